"""File formats of a run's images."""
