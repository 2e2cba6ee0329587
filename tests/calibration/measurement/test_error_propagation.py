from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from disa.calibration.measurement.error_propagation import OtherwiseAt, measure_carry, places_of
from disa.errors import DisaError
from disa.runtime.families.masked.options import MaskedOptions
from disa.runtime.pipeline import Pipeline


class Chain:
    """A model whose iterations add half of all tokens before to a token of their own."""

    def __init__(self, iterations: int) -> None:
        self.iterations = iterations
        self.family = SimpleNamespace(iterations=lambda options: iterations)

    def requests(self, conditions: list[int], options: MaskedOptions, *_: Any) -> list[Any]:
        return [options] * len(conditions)

    def generate(self, requests: list[MaskedOptions], stats: Any, watch: Any) -> list[Any]:
        known: list[np.ndarray] = []
        for index in range(self.iterations):
            # Fewer steps move a token by 1.
            own = np.full(
                len(requests), requests[0].step_schedule.steps(index, self.iterations) == 5
            )
            known.append(own + 0.5 * np.sum(known, axis=0) if known else own * 1.0)
            watch(SimpleNamespace(sampled=known[-1][:, None]))
        return [SimpleNamespace(latents=image) for image in np.stack(known, axis=1)]


def test_a_change_is_followed_to_the_end() -> None:
    found = measure_carry(Chain(4), MaskedOptions(num_iterations=4), [0, 1, 2], 2, 0)  # type: ignore[arg-type]
    # 1, then 1/2, then 3/4, then 9/8 after it.
    expected = [1 + 0.25 + 0.75**2 + 1.125**2, 1 + 0.25 + 0.75**2, 1.25, 1.0]
    np.testing.assert_allclose(found, expected)


def test_iterations_between_are_read_off() -> None:
    assert places_of(3) == [0, 1, 2]
    assert places_of(64) == [0, 9, 18, 27, 36, 45, 54, 63]
    found = measure_carry(Chain(20), MaskedOptions(num_iterations=20), [0], 2, 0)  # type: ignore[arg-type]
    assert len(found) == 20
    assert (np.diff(found) < 0).all()


def test_latents_that_are_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    def overflowing(self: Chain, *given: Any, **named: Any) -> list[Any]:
        images = finite(self, *given, **named)
        images[1].latents[0] = np.inf
        return images

    finite = Chain.generate
    monkeypatch.setattr(Chain, "generate", overflowing)
    with pytest.raises(DisaError, match="tokens or latents of an image were not finite"):
        measure_carry(Chain(4), MaskedOptions(num_iterations=4), [0, 1, 2], 2, 0)  # type: ignore[arg-type]


def test_one_iteration_differs() -> None:
    assert [OtherwiseAt(2).steps(index, 4) for index in range(4)] == [20, 20, 5, 20]
    assert [OtherwiseAt(None).steps(index, 2) for index in range(2)] == [20, 20]


def test_the_last_tokens_are_seen_by_nobody(
    pixel_pipeline: Pipeline, golden_plan: Callable[..., Path]
) -> None:
    found = measure_carry(pixel_pipeline, pixel_pipeline.options(num_iterations=4), [1, 2], 2, 0)
    assert found.shape == (4,)
    np.testing.assert_allclose(found[-1], 1, rtol=1e-4)
    xar = Pipeline.from_plan(golden_plan("xar"), "cpu")
    found = measure_carry(xar, xar.options(), [1], 2, 0)
    assert (found >= 1 - 1e-4).all()
