"""What plans are timed against: the loops of the official code in plain PyTorch."""
