"""Networks to train, from the sizes of a data set."""
