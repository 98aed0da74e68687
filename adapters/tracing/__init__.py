"""From an ODE function in torch to its stage chain."""
