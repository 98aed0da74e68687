"""Everything that a command compares, from data and recipes of networks to a report."""
