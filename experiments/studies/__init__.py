"""From data and recipes of networks to a comparison with its report."""
