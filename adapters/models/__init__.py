"""A pyMOR model from a layer, and a layer from a pyMOR model."""
