"""From a file to what it holds, in words."""
