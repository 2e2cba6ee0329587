"""Denoising: schedules, samplers, flows, adaptive steps, noise, and the head that runs them."""
