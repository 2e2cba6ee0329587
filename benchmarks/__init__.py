"""Benchmarks of disa, and their records."""

import os

# Before anything imports ONNX Runtime, as `import disa` would do; `gpu_check` begins without it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
