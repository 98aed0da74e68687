"""From a reduced layer or network to files for other runtimes."""
