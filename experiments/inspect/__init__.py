"""What a file of torchmor holds, in words."""
