"""The stage chain of an ODE function that is written in torch."""
