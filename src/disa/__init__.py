"""disa: diffusion step annealing for autoregressive image models, in production.

`Pipeline` generates images from a plan. `export` makes a plan from a checkpoint, `quantize` makes
an 8-bit plan from a plan, `calibrate` fits the denoising steps to a plan, and `verify` compares a
plan with its checkpoint or with the official implementation. These names are imported on first
use, so that a machine that only runs plans needs no PyTorch.
"""

import logging
import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import (
    DamagedFile,
    DisaError,
    EngineError,
    InvalidRequest,
    MissingDependency,
    OutOfMemory,
)
from .optional import import_failed

if TYPE_CHECKING:
    from .calibration.calibrate import calibrate
    from .calibration.quantization.options import QuantizeOptions
    from .calibration.quantization.quantize import quantize
    from .exporter.export import export
    from .exporter.verification import verify
    from .runtime.pipeline import Pipeline

__version__ = "0.1.0"
__all__ = [
    "DamagedFile",
    "DisaError",
    "EngineError",
    "InvalidRequest",
    "MissingDependency",
    "OutOfMemory",
    "Pipeline",
    "QuantizeOptions",
    "__version__",
    "calibrate",
    "export",
    "quantize",
    "verify",
]

# ONNX Runtime sends usage reports as soon as it is imported: only if the user has asked for it.
# Processes that are started from here inherit the variable.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# A library is silent until the program that uses it configures logging.
logging.getLogger(__name__).addHandler(logging.NullHandler())


_ELSEWHERE = {
    "Pipeline": "runtime.pipeline",
    "QuantizeOptions": "calibration.quantization.options",
    "calibrate": "calibration.calibrate",
    "export": "exporter.export",
    "quantize": "calibration.quantization.quantize",
    "verify": "exporter.verification",
}
"""Names that are imported on first use, and the modules that define them."""


def __getattr__(name: str) -> Any:
    if name not in _ELSEWHERE:
        raise AttributeError(f"module 'disa' has no attribute {name!r}")
    try:
        module = import_module(f".{_ELSEWHERE[name]}", __name__)
    except ImportError as error:
        if error.name is not None and error.name.partition(".")[0] == __name__:
            raise
        raise import_failed(error, error.name or "torch", "export") from error
    return getattr(module, name)
