"""From networks and data to rows of accuracy, time and cost."""
