"""Fits a schedule to a measurement: denoising steps, AR iterations and full passes."""
