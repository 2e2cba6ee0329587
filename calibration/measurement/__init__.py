"""Measures a plan: errors and costs of fewer denoising steps, AR iterations and full passes."""
