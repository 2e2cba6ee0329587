"""Shared by all routes: errors, keys, limits, logs, event streams."""
