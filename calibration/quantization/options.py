"""Options of the quantisation of a plan."""

from collections.abc import Sequence
from dataclasses import dataclass

from ...checked_numbers import positive_number, whole_number
from ...errors import InvalidRequest
from .qdq import Format

IMAGES = 16
TOKEN_TOLERANCE = 0.1
SPREAD_TOLERANCE = 0.015


@dataclass(frozen=True)
class QuantizeOptions:
    """Options of the quantisation of a plan.

    Attributes:
        form: int8 or fp8, also as text.
        images: images generated to find the ranges; a quarter as many more for evaluation.
        tolerance: largest relative error of a graph's output; matmuls are left out to reach it.
        token_tolerance: largest distance between tokens sampled by both plans in the same
            state, in standard deviations of a token.
        spread_tolerance: largest relative change of the tokens' standard deviation.
        prompts: prompts for a model that takes text.
        seed: seed of the images.
        threads: CPU threads; all physical cores if None.
        check: whether errors are measured, matmuls left out and bad results refused.

    Raises:
        InvalidRequest: a value is not valid.
    """

    form: Format = Format.INT8
    images: int = IMAGES
    tolerance: float = 0.03
    token_tolerance: float = TOKEN_TOLERANCE
    spread_tolerance: float = SPREAD_TOLERANCE
    prompts: Sequence[str] = ()
    seed: int = 0
    threads: int | None = None
    check: bool = True

    def __post_init__(self) -> None:
        if self.form not in list(Format):
            known = ", ".join(Format)
            raise InvalidRequest(f"the form must be one of {known}, not {str(self.form)[:80]!r}")
        object.__setattr__(self, "form", Format(self.form))
        for name in ("tolerance", "token_tolerance", "spread_tolerance"):
            positive_number(f"the {name.replace('_', ' ')}", getattr(self, name))
        whole_number("the number of calibration images", self.images, 1)
        # A single text is a sequence, too: of letters.
        prompts = (self.prompts,) if isinstance(self.prompts, str) else tuple(self.prompts)
        object.__setattr__(self, "prompts", prompts)
