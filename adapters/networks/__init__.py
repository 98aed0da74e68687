"""From somebody's network to its ODE layers, its batches and its costs."""
