"""From settings, steps and input signals to a solved ODE."""
