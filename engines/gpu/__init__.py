"""Shared by all engines on NVIDIA GPUs: memory, streams, shapes, and loops on the device."""
