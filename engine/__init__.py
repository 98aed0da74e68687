"""From a stage chain and its snapshots to a reduced model, with pyMOR, NumPy and SciPy; it never imports torch."""
