import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from disa.engines.open import open_session
from disa.engines.plan import Plan
from disa.engines.session import Session
from disa.errors import DisaError
from disa.runtime.flow import FlowSettings, euler_table
from disa.runtime.flow_reference import FlowReplay, recorded_settings
from disa.runtime.flowar import FlowARLoop
from disa.runtime.noise import PhiloxNoise
from disa.runtime.reference import Reference, difference
from disa.runtime.schedule import AnnealedSchedule
from disa.runtime.stats import Stats

from ..conftest import GOLDEN, references

Plans = Callable[..., Path]
CASES = [(name, path) for name in ("flowar_s", "flowar_l") for path in references(name)]


class Spy:
    """A session that remembers the guidance axis and the steps of its loops."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.loops: list[tuple[int, int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def iterate(self, **parts: Mapping[str, Any]) -> Any:
        guidance = len(parts["constants"]["condition"])
        self.loops.append((guidance, len(parts["per_step"]["step"])))
        return self._session.iterate(**parts)


def open_loop(path: Path) -> tuple[FlowARLoop, dict[str, Any]]:
    plan = Plan.open(path)
    sessions = {name: open_session(plan, name, "cpu") for name in plan.manifest.graphs}
    sessions["head"] = Spy(sessions["head"])
    tokens, model = plan.manifest.tokens, plan.manifest.model
    loop = FlowARLoop(sessions, tokens["scales"], tokens["channels"], model["class_num"])
    return loop, sessions


def ids(case: Any) -> str:
    return case.stem if isinstance(case, Path) else str(case)


@pytest.mark.parametrize(("name", "path"), CASES, ids=ids)
def test_recorded_runs_are_reproduced(name: str, path: Path, golden_plan: Plans) -> None:
    loop, sessions = open_loop(golden_plan(name))
    reference, stats, found = Reference(path), Stats(), []
    replay = FlowReplay(reference, reference.option("batch"))
    tokens = loop.generate(
        reference["labels"],
        recorded_settings(reference),
        replay,
        stats,
        lambda done: found.append(replay.compare(done)),
    )
    latents = sessions["decoder"].run({"tokens": tokens})["latents"]
    assert len(found) == 5
    assert max(entry.relative for entry in found) < 2e-5
    assert difference(np.asarray(latents), reference["latents"]) < 2e-5
    assert [entry.head_calls for entry in found] == [s["head_calls"] for s in reference.steps]
    assert stats.head_calls == sum(step["head_calls"] for step in reference.steps)


def test_only_guided_steps_run_the_unconditional_half(golden_plan: Plans) -> None:
    loop, sessions = open_loop(golden_plan("flowar_s"))
    settings = FlowSettings(AnnealedSchedule(12, 5), guidance_scale=2.5, guidance_interval=0.7)
    loop.generate(np.array([3]), settings, PhiloxNoise(0, [0]), Stats())
    meta = json.loads(str(np.load(GOLDEN / "flowar_s" / "guided.npz")["meta"]))
    expected = [(1, 12), (2, 0)]
    for step in meta["steps"][1:]:
        guided = sum(time <= 0.7 for time in step["timesteps"])
        expected += [(1, step["head_calls"] - guided), (2, guided)]
    assert sessions["head"].loops == expected


def test_without_guidance_nothing_runs_twice(golden_plan: Plans) -> None:
    loop, sessions = open_loop(golden_plan("flowar_s"))
    settings = FlowSettings(AnnealedSchedule(3, 2), guidance_scale=1.0)
    loop.generate(np.array([3]), settings, PhiloxNoise(0, [0]), Stats())
    assert {guidance for guidance, steps in sessions["head"].loops if steps} == {1}


@pytest.mark.parametrize("name", ["flowar_s", "flowar_l"])
def test_an_image_is_the_same_in_any_batch(name: str, golden_plan: Plans) -> None:
    loop, _ = open_loop(golden_plan(name))
    settings = FlowSettings(AnnealedSchedule(4, 2), guidance_scale=2.0, guidance_interval=0.9)
    labels = np.array([7, 999, 0])
    together = loop.generate(labels, settings, PhiloxNoise(5, [0, 1, 2]), Stats())
    for image in range(3):
        noise = PhiloxNoise(5, [image])
        alone = loop.generate(labels[image : image + 1], settings, noise, Stats())
        assert difference(np.asarray(alone)[:, 0], np.asarray(together)[:, image]) < 1e-5


def test_a_reference_of_other_options(golden_plan: Plans, tmp_path: Path) -> None:
    loop, _ = open_loop(golden_plan("flowar_s"))
    arrays = dict(np.load(GOLDEN / "flowar_s" / "no_guidance.npz"))
    arrays["draw_0001"] = arrays["draw_0001"][:, :3]
    path = tmp_path / "cut.npz"
    np.savez(path, **arrays)
    reference = Reference(path)
    replay = FlowReplay(reference, 1)
    with pytest.raises(DisaError, match=r"draw_0001 has shape \(1, 3, 16\)"):
        loop.generate(reference["labels"], recorded_settings(reference), replay, Stats())


def test_an_unguided_image_beside_a_guided_one(golden_plan: Plans) -> None:
    loop, sessions = open_loop(golden_plan("flowar_s"))
    shape = next(spec.shape for spec in sessions["head"].inputs if spec.name == "condition")
    rng = np.random.default_rng(0)
    condition = rng.standard_normal((2, 2, 4, shape[-1])).astype(np.float32)
    x = rng.standard_normal((4, 2, loop.channels)).astype(np.float32)
    table, positions = euler_table(12), np.arange(1, 5)
    step = np.array([[1, 9], [2, 10]])
    assert table.times[2] > 0.5 > table.times[9]

    def walk(images: slice) -> Any:
        given = {"condition": condition[:, images]}
        options = (given, positions, 3.0, 0.5, x[:, images], Stats())
        return np.asarray(loop._head.walk(table, step[:, images], *options))

    together = walk(slice(0, 2))
    for image in range(2):
        alone = walk(slice(image, image + 1))
        assert difference(together[:, image : image + 1], alone) < 1e-5
    # Alone, the first one never runs its unconditional half.
    assert [guidance for guidance, steps in sessions["head"].loops if steps] == [2, 1, 2]
