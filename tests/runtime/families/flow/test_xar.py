from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from disa.errors import DisaError
from disa.runtime.families.flow.options import FlowOptions
from disa.runtime.families.flow.xar import euler_maruyama_subsample
from disa.runtime.replay.reference import RecordedRun, difference
from disa.runtime.sampling.flow import euler_maruyama_steps, euler_maruyama_table

from ....conftest import GOLDEN, references
from ..drive import latents_of, replay_flow_run, spied

Plans = Callable[..., Path]


@pytest.mark.parametrize("path", references("xar"), ids=lambda path: path.stem)
def test_recorded_runs_are_reproduced(path: Path, golden_plan: Plans) -> None:
    pipe, _ = spied(golden_plan("xar"))
    reference = RecordedRun(path)
    *found, latents = replay_flow_run(pipe, reference)
    assert len(found) == 4
    assert max(entry.relative for entry in [*found, latents]) < 2e-5
    assert [entry.head_calls for entry in found] == [step["calls"] for step in reference.steps]


def test_modulations_in_small_portions_change_nothing(golden_plan: Plans) -> None:
    latents = []
    for rows in (None, 1, 9):
        pipe, _ = spied(golden_plan("xar"))
        if rows:
            pipe.family._head.rows = rows
        options = FlowOptions(steps="6:4", guidance_scale=2.0)
        latents.append(latents_of(pipe, [7, 3], options, [0, 1]))
    assert difference(latents[1], latents[0]) < 1e-5
    assert difference(latents[2], latents[0]) < 1e-5


def test_an_image_is_the_same_in_any_batch(golden_plan: Plans) -> None:
    pipe, _ = spied(golden_plan("xar"))
    options = FlowOptions(steps="4:2", guidance_scale=2.0)
    labels = [7, 999, 0]
    together = latents_of(pipe, labels, options, [0, 1, 2], seed=5)
    for image in range(3):
        alone = latents_of(pipe, labels[image : image + 1], options, [image], seed=5)
        assert difference(alone[0], together[image]) < 1e-5


def test_a_reference_of_other_options(golden_plan: Plans, tmp_path: Path) -> None:
    arrays = dict(np.load(GOLDEN / "xar" / "no_guidance.npz"))
    arrays["meta"] = np.array(str(arrays["meta"]).replace('"upper": 6', '"upper": 9'))
    path = tmp_path / "other.npz"
    np.savez(path, **arrays)
    pipe, _ = spied(golden_plan("xar"))
    with pytest.raises(DisaError, match="has 6 noise arrays, but the recorded options need 9"):
        replay_flow_run(pipe, RecordedRun(path))


def test_a_tolerance_skips_steps(golden_plan: Plans) -> None:
    """Two of 12 steps are always run, and of the others two: the first and the last."""
    pipe, spies = spied(golden_plan("xar"))
    for tolerance, steps in ((0.0, 12), (10.0, 4)):
        spies["head"].loops.clear()
        options = FlowOptions(steps="12:12", guidance_scale=2.0, tolerance=tolerance)
        latents_of(pipe, [3], options, [0])
        assert sum(count for _, count in spies["head"].loops) == 4 * steps


def test_fewer_steps_of_a_cluster() -> None:
    table, kept = euler_maruyama_table(9), np.array([0, 3, 8])
    found = euler_maruyama_subsample(table, kept)
    np.testing.assert_array_equal(found.times, table.times[kept])  # type: ignore[attr-defined]
    expected = euler_maruyama_steps(table.times[kept])
    np.testing.assert_array_equal(found.coefficients, expected.coefficients)
