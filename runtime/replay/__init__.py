"""Replays recorded runs of the official implementations with a plan."""
