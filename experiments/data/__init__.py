"""From a name or files to a data set."""
