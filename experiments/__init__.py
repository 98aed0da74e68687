"""Data, networks, baselines, scripts, reports and the command line of torchmor."""
