import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from disa.errors import DisaError
from disa.runtime.families.flow.flowar import (
    FlowAROptions,
    ScaleImages,
    enlarged,
    euler_subsample,
)
from disa.runtime.replay.reference import RecordedRun, difference
from disa.runtime.sampling.flow import euler_table
from disa.runtime.stats import Stats

from ....conftest import GOLDEN, references
from ..drive import latents_of, replay_flow_run, spied

Plans = Callable[..., Path]
CASES = [(name, path) for name in ("flowar_s", "flowar_l") for path in references(name)]


def ids(case: Any) -> str:
    return case.stem if isinstance(case, Path) else str(case)


@pytest.mark.parametrize(("name", "path"), CASES, ids=ids)
def test_recorded_runs_are_reproduced(name: str, path: Path, golden_plan: Plans) -> None:
    pipe, _ = spied(golden_plan(name))
    reference = RecordedRun(path)
    *found, latents = replay_flow_run(pipe, reference)
    assert len(found) == 5
    assert max(entry.relative for entry in [*found, latents]) < 2e-5
    assert [entry.head_calls for entry in found] == [s["head_calls"] for s in reference.steps]


def test_only_guided_steps_run_the_unconditional_half(golden_plan: Plans) -> None:
    pipe, spies = spied(golden_plan("flowar_s"))
    options = FlowAROptions(steps="12:5", guidance_scale=2.5, guidance_interval=0.7)
    latents_of(pipe, [3], options, [0])
    meta = json.loads(str(np.load(GOLDEN / "flowar_s" / "guided.npz")["meta"]))
    expected = [(1, 12), (2, 0)]
    for step in meta["steps"][1:]:
        guided = sum(time <= 0.7 for time in step["timesteps"])
        expected += [(1, step["head_calls"] - guided), (2, guided)]
    assert spies["head"].loops == expected


def test_without_guidance_nothing_runs_twice(golden_plan: Plans) -> None:
    pipe, spies = spied(golden_plan("flowar_s"))
    latents_of(pipe, [3], FlowAROptions(steps="3:2", guidance_scale=1.0), [0])
    assert {guidance for guidance, steps in spies["head"].loops if steps} == {1}


@pytest.mark.parametrize("name", ["flowar_s", "flowar_l"])
def test_an_image_is_the_same_in_any_batch(name: str, golden_plan: Plans) -> None:
    pipe, _ = spied(golden_plan(name))
    options = FlowAROptions(steps="4:2", guidance_scale=2.0, guidance_interval=0.9)
    labels = [7, 999, 0]
    together = latents_of(pipe, labels, options, [0, 1, 2], seed=5)
    for image in range(3):
        alone = latents_of(pipe, labels[image : image + 1], options, [image], seed=5)
        assert difference(alone[0], together[image]) < 1e-5


def test_a_reference_of_other_options(golden_plan: Plans, tmp_path: Path) -> None:
    pipe, _ = spied(golden_plan("flowar_s"))
    arrays = dict(np.load(GOLDEN / "flowar_s" / "no_guidance.npz"))
    arrays["draw_0001"] = arrays["draw_0001"][:, :3]
    path = tmp_path / "cut.npz"
    np.savez(path, **arrays)
    with pytest.raises(DisaError, match=r"draw_0001 has shape \(1, 3, 16\)"):
        replay_flow_run(pipe, RecordedRun(path))


def test_an_unguided_image_beside_a_guided_one(golden_plan: Plans) -> None:
    pipe, spies = spied(golden_plan("flowar_s"))
    shape = next(spec.shape for spec in spies["head"].inputs if spec.name == "condition")
    rng = np.random.default_rng(0)
    condition = rng.standard_normal((2, 2, 4, shape[-1])).astype(np.float32)
    x = rng.standard_normal((4, 2, pipe.family.channels)).astype(np.float32)
    table, positions = euler_table(12), np.arange(1, 5)
    step = np.array([[1, 9], [2, 10]])
    assert table.times[2] > 0.5 > table.times[9]

    def run_steps(images: slice) -> Any:
        scales, intervals = np.float32([3, 3])[images], np.array([0.5, 0.5])[images]
        outputs = {"condition": condition[:, images]}
        denoiser = ScaleImages(pipe.family._head, outputs, positions, scales, intervals, Stats())
        drawn = np.zeros(len(scales), np.int64)
        return np.asarray(denoiser.run_steps(table, step[:, images], drawn, x[:, images]))

    together = run_steps(slice(0, 2))
    for image in range(2):
        alone = run_steps(slice(image, image + 1))
        assert difference(together[:, image : image + 1], alone) < 1e-5
    # Alone, the first one never runs its unconditional half.
    assert [guidance for guidance, steps in spies["head"].loops if steps] == [2, 1, 2]


def test_a_tolerance_skips_steps(golden_plan: Plans) -> None:
    """Two of 12 steps are always run, and of the others two: the first and the last."""
    pipe, spies = spied(golden_plan("flowar_s"))
    for tolerance, steps in ((0.0, 12), (10.0, 4)):
        spies["head"].loops.clear()
        options = FlowAROptions(steps="12:12", guidance_scale=2.0, tolerance=tolerance)
        latents_of(pipe, [3], options, [0])
        assert sum(count for _, count in spies["head"].loops) == 5 * steps


def test_a_small_grid_is_repeated() -> None:
    tokens = np.arange(4, dtype=np.float32).reshape(4, 1, 1)
    larger = enlarged(tokens, 2, 4)[:, 0, 0].reshape(4, 4)
    assert larger.tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    larger = enlarged(tokens, 2, 3)[:, 0, 0].reshape(3, 3)
    assert larger.tolist() == [[0, 0, 1], [0, 0, 1], [2, 2, 3]]


@pytest.mark.parametrize("interval", [0.5, 0.25, 1.0, 0.0, None])
def test_the_first_guided_step_is_never_skipped(interval: float | None) -> None:
    table = euler_table(12)
    guided = [] if interval is None else [i for i in range(12) if table.times[i] <= interval][:1]
    for kept in ([0, 11], [0, 4, 5, 6, 7, 11]):
        expected = table.times[sorted({*kept, *guided})]
        found = euler_subsample(interval, table, np.array(kept))
        np.testing.assert_array_equal(found.times, expected)  # type: ignore[attr-defined]


def test_an_image_that_is_never_guided_skips_any_step() -> None:
    scales, intervals = np.float32([1, 1.5]), np.array([0.5, 0.7])
    images = ScaleImages(None, {}, np.arange(4), scales, intervals, Stats())  # type: ignore[arg-type]
    assert images.items == 2
    assert [images.subsample_of(image).args for image in range(2)] == [(None,), (0.7,)]
