"""From an ODE function or reduced operators to modules that run in a network, and to their files."""
