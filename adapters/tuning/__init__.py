"""From a reduced network to one that is tuned to the outputs of the full one."""
