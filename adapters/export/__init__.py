"""Exporting reduced layers and networks: operators for other languages, graphs for other runtimes."""
