"""The model order reduction engine of torchmor, on pyMOR, NumPy and SciPy. It never imports torch."""
