from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from disa.engines.open import open_session
from disa.engines.plan import Plan
from disa.errors import DisaError
from disa.runtime.flow import FlowSettings
from disa.runtime.flow_reference import FlowReplay, recorded_settings
from disa.runtime.noise import PhiloxNoise
from disa.runtime.reference import Reference, difference
from disa.runtime.schedule import AnnealedSchedule
from disa.runtime.stats import Stats
from disa.runtime.xar import XARLoop

from ..conftest import GOLDEN, references

Plans = Callable[..., Path]


def open_loop(path: Path, rows: int | None = None) -> tuple[XARLoop, dict[str, Any]]:
    plan = Plan.open(path)
    sessions = {name: open_session(plan, name, "cpu") for name in plan.manifest.graphs}
    tokens = plan.manifest.tokens
    loop = XARLoop(
        sessions,
        tokens["clusters"],
        tokens["count"],
        tokens["channels"],
        plan.manifest.model["class_num"],
        rows or tokens["dimensions"]["rows"][2],
    )
    return loop, sessions


def replayed(loop: XARLoop, reference: Reference) -> tuple[Any, list[Any], Stats]:
    stats, found = Stats(), []
    replay = FlowReplay(reference, reference.option("batch"))
    tokens = loop.generate(
        reference["labels"],
        recorded_settings(reference),
        replay,
        stats,
        lambda done: found.append(replay.compare(done)),
    )
    return tokens, found, stats


@pytest.mark.parametrize("path", references("xar"), ids=lambda path: path.stem)
def test_recorded_runs_are_reproduced(path: Path, golden_plan: Plans) -> None:
    loop, sessions = open_loop(golden_plan("xar"))
    reference = Reference(path)
    tokens, found, stats = replayed(loop, reference)
    latents = sessions["decoder"].run({"tokens": tokens})["latents"]
    assert len(found) == 4
    assert max(entry.relative for entry in found) < 2e-5
    assert difference(np.asarray(latents), reference["latents"]) < 2e-5
    assert [entry.head_calls for entry in found] == [step["calls"] for step in reference.steps]
    assert stats.head_calls == sum(step["calls"] for step in reference.steps)


def test_modulations_in_small_portions_change_nothing(golden_plan: Plans) -> None:
    reference = Reference(GOLDEN / "xar" / "guided.npz")
    tokens = [
        np.asarray(replayed(open_loop(golden_plan("xar"), rows)[0], reference)[0])
        for rows in (None, 1, 9)
    ]
    assert difference(tokens[1], tokens[0]) < 1e-5
    assert difference(tokens[2], tokens[0]) < 1e-5


def test_an_image_is_the_same_in_any_batch(golden_plan: Plans) -> None:
    loop, _ = open_loop(golden_plan("xar"))
    settings = FlowSettings(AnnealedSchedule(4, 2), guidance_scale=2.0)
    labels = np.array([7, 999, 0])
    together = loop.generate(labels, settings, PhiloxNoise(5, [0, 1, 2]), Stats())
    for image in range(3):
        noise = PhiloxNoise(5, [image])
        alone = loop.generate(labels[image : image + 1], settings, noise, Stats())
        assert difference(np.asarray(alone)[:, 0], np.asarray(together)[:, image]) < 1e-5


def test_a_reference_of_other_options(golden_plan: Plans, tmp_path: Path) -> None:
    arrays = dict(np.load(GOLDEN / "xar" / "no_guidance.npz"))
    arrays["meta"] = np.array(str(arrays["meta"]).replace('"upper": 6', '"upper": 9'))
    path = tmp_path / "other.npz"
    np.savez(path, **arrays)
    with pytest.raises(DisaError, match="has 6 draws, and the options it names mean 9"):
        replayed(open_loop(golden_plan("xar"))[0], Reference(path))
