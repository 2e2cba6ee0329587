"""Compares generated images with real ones."""
