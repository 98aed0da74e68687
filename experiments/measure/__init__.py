"""Accuracy, time and cost of networks, as rows of a comparison."""
