"""Generates images from a plan: schedules, samplers, token loops and the pipeline."""
