"""The relative L2 error of an array."""

from typing import Any

import numpy as np
import numpy.typing as npt


def relative_error(
    actual: npt.NDArray[Any], expected: npt.NDArray[Any], origin: float = 0.0
) -> float:
    """L2 norm of the difference, divided by the L2 norm of `expected` - `origin`.

    Infinite if it is not finite; not divided if `expected` equals `origin` everywhere.
    """
    wide = expected.astype(np.float64)
    difference = np.linalg.norm(actual.astype(np.float64) - wide)
    error = float(difference / (np.linalg.norm(wide - origin) or 1.0))
    return error if np.isfinite(error) else float("inf")
