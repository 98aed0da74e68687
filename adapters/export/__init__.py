"""Files for other runtimes, from a reduced layer or network."""
