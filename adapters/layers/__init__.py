"""Modules that run in a network, full and reduced, and their files."""
