"""The sizes of each family: the official ones, and those of a checkpoint."""
