"""The ODE layers, batches and costs of somebody's network."""
