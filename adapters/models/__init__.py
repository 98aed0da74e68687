"""From a layer to a pyMOR model, and back."""
