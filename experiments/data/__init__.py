"""Data sets of images and of sequences."""
