"""What all families share, on golden models: what a watcher is shown, costs, groups, decoding."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from disa.runtime.families.family import StepPlans
from disa.runtime.generation import Request, Sample
from disa.runtime.pipeline import Pipeline
from disa.runtime.sampling.denoise import Steps
from disa.runtime.sampling.head import Iteration
from disa.runtime.sampling.noise import PhiloxNoise, noise_of
from disa.runtime.sampling.sampler import step_table
from disa.runtime.stats import Stats

from ...conftest import ExportGolden

FAMILIES = ("mar", "harmon", "flowar_s", "xar")
OPTIONS: dict[str, dict[str, Any]] = {
    "mar": {"num_iterations": 5, "steps": "6:2"},
    "harmon": {
        "num_iterations": 5,
        "steps": "6:2",
        "size": "64x80",
        "guidance_schedule": "constant",
    },
    "flowar_s": {"steps": "6:2"},
    "xar": {"steps": "6:2"},
}
TOKENS = {
    "mar": [4, 9, 14, 18, 19],
    "harmon": [1, 3, 5, 5, 6],
    "flowar_s": [1, 4, 16, 64, 256],
    "xar": [64] * 4,
}
"""Of each AR iteration."""
STEPS = {"mar": [6, 5, 4, 3, 2], "harmon": [6, 5, 4, 3, 2], "flowar_s": [6, 4, 4, 2, 2]}
STEPS["xar"] = [6, 4, 3, 2]

Pipelines = Callable[[str], Pipeline]


@pytest.fixture(scope="module")
def pipelines(golden_plan: ExportGolden, text_plan: Any) -> Pipelines:
    opened: dict[str, Pipeline] = {}

    def pipeline(name: str) -> Pipeline:
        if name not in opened:
            path = text_plan if name == "harmon" else golden_plan(name)
            opened[name] = Pipeline.from_plan(path, "cpu", threads=1)
        return opened[name]

    return pipeline


def started(pipe: Pipeline, name: str, *chosen: dict[str, Any]) -> list[Any]:
    """Samples with options of their own; equal ones share them."""
    known: dict[str, Any] = {}
    requests = []
    for index, each in enumerate(chosen):
        options = known.setdefault(str(each), pipe.options(**OPTIONS[name], **each))
        condition = index + 3 if pipe.family.classes else ("a dog", "a red bird", "a cat")[index]
        requests.append(Request(condition, options, PhiloxNoise(5, index)))
    return list(pipe.family.start(requests, Stats()))


def tokens_of(name: str, sample: Any, at: int) -> np.ndarray[Any, Any]:
    """What AR iteration `at`, the last one, added to a sample, [tokens, C]."""
    arrays = sample.cohort.arrays
    if name.startswith("flowar"):
        return np.asarray(arrays["sampled"])[:, sample.column]
    stop = sum(TOKENS[name][: at + 1])
    return np.asarray(arrays["tokens"])[stop - TOKENS[name][at] : stop, sample.column]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_watcher_can_sample_again(name: str, pipelines: Pipelines) -> None:
    """It is called once for images with equal options, with all that an iteration was."""
    pipe = pipelines(name)
    samples = started(pipe, name, *({"guidance_scale": scale} for scale in (2.5, 3.0, 2.5)))
    members = {2.5: [0, 2], 3.0: [1]}
    for at, count in enumerate(TOKENS[name]):
        seen: list[tuple[Iteration, np.ndarray[Any, Any], Stats]] = []

        def watch(each: Iteration, seen: Any = seen, at: int = at, count: int = count) -> None:
            images = each.predicted.shape[1]
            noises = [PhiloxNoise(5, i) for i in ((0, 2) if images == 2 else (1,))]
            width = each.sampled.shape[-1]
            noise = noise_of(noises, at, 1 + len(each.table), (count, width))
            stats = Stats()
            again = each.denoise(each.table, noise.reshape(len(noise), -1, width), stats=stats)
            seen.append((each, np.array(np.asarray(again)), stats))

        pipe.family.step(samples, Stats(), watch)
        assert [each.predicted.shape for each, _, _ in seen] == [(count, 2), (count, 1)]
        for (each, again, stats), (scale, columns) in zip(seen, members.items(), strict=True):
            assert (each.index, len(each.table)) == (at, STEPS[name][at])
            assert each.guidance_scale == pytest.approx(scale_at(name, scale, at))
            expected = np.stack([tokens_of(name, samples[c], at) for c in columns], axis=1)
            found = np.asarray(each.sampled).reshape(expected.shape)
            np.testing.assert_array_equal(found, expected)
            np.testing.assert_allclose(again.reshape(expected.shape), expected, atol=1e-5)
            assert stats.head_calls == STEPS[name][at]
            assert stats.head_rows == STEPS[name][at] * count * len(columns)
            assert len(each.table_of(4)) == 4


def scale_at(name: str, scale: float, at: int) -> float:
    """The guidance scale of an AR iteration: it grows with what is known, or with the iteration."""
    if name == "harmon":
        return scale
    if name in ("flowar_s", "xar"):
        return 1 + (scale - 1) * at / (len(TOKENS[name]) - 1)
    known, length = sum(TOKENS[name][: at + 1]), sum(TOKENS[name])
    # By the official rule, one token counts as unknown even in the end.
    return 1 + (scale - 1) * min(known, length - 1) / length


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_what_an_image_costs(name: str, scale: float, pipelines: Pipelines) -> None:
    pipe = pipelines(name)
    (sample,) = started(pipe, name, {"guidance_scale": scale})
    stats = Stats()
    seen: list[Iteration] = []
    for at in range(len(TOKENS[name])):
        assert (sample.iteration, sample.done) == (at, False)
        pipe.family.step([sample], stats, seen.append)
    assert sample.done
    assert [each.predicted.shape for each in seen] == [(count, 1) for count in TOKENS[name]]
    rows = sum(c * s for c, s in zip(TOKENS[name], STEPS[name], strict=True))
    assert sample.cost.steps == STEPS[name]
    assert sample.cost.head_rows == stats.head_rows == rows
    assert stats.head_calls == sum(STEPS[name])
    assert {"backbone", "head", "noise"} <= stats.seconds.keys()
    pipe.family.finish([sample], stats)
    assert stats.images == 1


@pytest.mark.parametrize("name", FAMILIES)
def test_only_what_is_done_is_finished(name: str, pipelines: Pipelines) -> None:
    pipe = pipelines(name)
    samples = started(pipe, name, {}, {})
    pipe.family.step(samples, Stats())
    with pytest.raises(ValueError, match="2 of the samples are not done"):
        pipe.family.finish(samples, Stats())


@pytest.mark.parametrize("name", FAMILIES)
def test_who_shares_a_backbone_call(name: str, pipelines: Pipelines) -> None:
    pipe = pipelines(name)
    guided, other, unguided = started(
        pipe, name, *({"guidance_scale": scale} for scale in (2.0, 3.0, 1.0))
    )
    key = pipe.family.key
    assert key(guided) == key(other)
    # The first cluster of xAR is never guided.
    assert (key(guided) == key(unguided)) is (name == "xar")
    pipe.family.step([guided, unguided], Stats())
    assert len({key(sample) for sample in (guided, other, unguided)}) == 3
    pipe.family.step([other], Stats())
    assert key(guided) == key(other)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_image_alone_is_decoded_at_any_time(name: str, pipelines: Pipelines) -> None:
    """Whether its cohort has others or not."""
    pipe = pipelines(name)
    first, second = started(pipe, name, {}, {})

    def latents(samples: list[Sample]) -> np.ndarray[Any, Any]:
        found = {
            id(sample): np.asarray(decoded["latents"])[row]
            for members, decoded in pipe.family._decode(samples)  # type: ignore[attr-defined]
            for row, sample in enumerate(members)
        }
        return np.stack([found[id(sample)] for sample in samples])

    for at in range(len(TOKENS[name]) + 1):
        both = latents([first, second])
        np.testing.assert_allclose(latents([first])[0], both[0], atol=1e-5)
        np.testing.assert_allclose(latents([second, first]), both[::-1], atol=1e-5)
        known = np.count_nonzero(both[0].any(axis=0))
        if not name.startswith("flowar"):
            assert known == sum(TOKENS[name][:at])
        if at < len(TOKENS[name]):
            pipe.family.step([first, second], Stats())
    outputs = pipe.family.finish([second], Stats())
    np.testing.assert_allclose(outputs[0].latents, both[1], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "width", "sequence"),
    [("mar", 64, 8 + 64), ("harmon", 64, 1024), ("flowar_s", 64, 256), ("xar", 64, 256)],
)
def test_the_size_of_a_model(name: str, width: int, sequence: int, pipelines: Pipelines) -> None:
    """From it follows how many images go into a batch."""
    family = pipelines(name).family
    assert (family.width, family.sequence) == (width, sequence)
    assert family.iterations(pipelines(name).options(**OPTIONS[name])) == len(TOKENS[name])


def test_no_class_is_the_one_after_the_last(pipelines: Pipelines) -> None:
    family = pipelines("mar").family
    assert family.conditions([None, 0, "19"]) == [20, 0, 19]
    samples = started(pipelines("mar"), "mar", {}, {})
    assert family.class_index(samples, True).tolist() == [[3, 4], [20, 20]]  # type: ignore[attr-defined]
    assert family.class_index(samples, False).tolist() == [[3, 4]]  # type: ignore[attr-defined]


def test_equal_steps_are_stored_once() -> None:
    plans = StepPlans()
    steps = [Steps(step_table("ddpm", count), 0.0, lambda table, kept: table) for count in (3, 4)]  # type: ignore[arg-type]
    assert [plans.index(key, steps[key == "b"]) for key in "abab"] == [0, 1, 0, 1]
    assert plans.plans == steps


@pytest.mark.parametrize("name", ["mar", "harmon", "flowar_s"])
def test_a_cohort_that_could_not_be_formed_is_stepped_again(
    name: str, pipelines: Pipelines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a server does with the samples of a batch for which memory ran out."""
    pipe = pipelines(name)
    family: Any = pipe.family
    [alone] = started(pipe, name, {})
    for _ in range(2):
        family.step([alone], Stats())
    samples = started(pipe, name, {}, {})
    family.step(samples, Stats())

    def fail(samples: Any) -> dict[str, Any]:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(family, "_constants", fail)
        with pytest.raises(MemoryError):
            family.step(samples[:1], Stats())
    assert samples[0].iteration == 1
    family.step(samples[:1], Stats())
    expected = tokens_of(name, alone, 1)
    error = np.abs(tokens_of(name, samples[0], 1) - expected).max()
    assert error < 1e-5 * np.abs(expected).max()
