"""A smaller network, from a network and calibration data."""
