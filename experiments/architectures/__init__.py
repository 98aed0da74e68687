"""From the sizes of a data set to an untrained network."""
