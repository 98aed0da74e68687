"""From a network and calibration data to a smaller network."""
