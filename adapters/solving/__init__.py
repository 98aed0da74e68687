"""A solved ODE, from settings, steps and input signals."""
