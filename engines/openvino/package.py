"""The package `openvino`, imported without its model converter."""

import sys
from types import ModuleType

from ...errors import MissingDependency

_CONVERTER = "openvino.tools.ovc"


def load() -> ModuleType:
    """Import the package.

    Its model converter is left out: nothing here needs it, and importing it sends a usage report.

    Raises:
        MissingDependency: the package is not installed.
    """
    hidden = _CONVERTER not in sys.modules
    if hidden:
        sys.modules[_CONVERTER] = None  # type: ignore[assignment]
    try:
        import openvino
    except ImportError as error:
        raise MissingDependency("openvino", "openvino") from error
    finally:
        if hidden:
            del sys.modules[_CONVERTER]
    module: ModuleType = openvino
    return module
