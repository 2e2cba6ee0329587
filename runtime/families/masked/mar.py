"""MAR: masked autoregressive generation of a class."""

import math
from collections.abc import Hashable, Sequence
from typing import Any

from ....engines.plan.plan import Plan
from ...generation import Request
from ...stats import Stats
from ..counts import read_count
from ..family import ClassConditioned, Decoded, Sessions
from ..signatures import Signature
from .family import MaskedFamily, MaskedSample
from .options import MaskedOptions
from .partition import generation_order


class MARFamily(ClassConditioned[MaskedSample], MaskedFamily[MaskedSample]):
    """A loaded MAR model. See `generation.Family`."""

    Options = MaskedOptions

    def __init__(self, plan: Plan, sessions: Sessions) -> None:
        super().__init__(plan, sessions)
        # The exporter makes square grids only; in any other a checkerboard is a row.
        side = math.isqrt(self.tokens)
        self._grid = (side, side) if side * side == self.tokens else (1, self.tokens)

    @staticmethod
    def signature(plan: Plan) -> Signature:
        """See `BaseFamily`."""
        length, channels = (read_count(plan, "tokens", name) for name in ("count", "channels"))
        tokens, positions = ("batch", channels), (length, "batch")
        return {
            "backbone": {"tokens": ("visible", *tokens), "positions": positions},
            **MaskedFamily.head_signature(plan, channels),
            "decoder": {"tokens": (length, *tokens), "positions": positions},
        }

    def start(self, requests: Sequence[Request], stats: Stats) -> list[MaskedSample]:
        """See `generation.Family`."""
        del stats
        samples = [
            MaskedSample(
                request,
                request.options.num_iterations,
                counts=request.options.partition(self.tokens),
                order=generation_order(request.noise, self._grid, request.options.order),
            )
            for request in requests
        ]
        self._seat(samples)
        return samples

    def _shape(self, sample: MaskedSample) -> Hashable:
        return None

    def _constants(self, samples: Sequence[MaskedSample]) -> dict[str, Any]:
        return {"class_index": self.class_index(samples, samples[0].request.options.guided)}

    def _decode(self, samples: Sequence[MaskedSample]) -> Decoded:
        tokens, positions = self._all_tokens(samples)
        return [(samples, self._decoder.run({"tokens": tokens, "positions": positions}))]
