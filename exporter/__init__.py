"""Exports an official checkpoint to the ONNX graphs of a plan."""
