"""torchmor between PyTorch and the engine: the only package that knows both."""
