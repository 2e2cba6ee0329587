"""TensorRT and TensorRT-RTX: engines built ahead of time, and sessions that run them."""
