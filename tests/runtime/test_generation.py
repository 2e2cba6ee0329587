"""Samples that join and leave, in all families: each image is what it is alone."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from disa.engines.session import Session
from disa.errors import DisaError
from disa.runtime.generation import Request, Sample, generate
from disa.runtime.pipeline import Pipeline
from disa.runtime.sampling.head import Iteration
from disa.runtime.sampling.noise import PhiloxNoise, noise_of
from disa.runtime.stats import Stats

from ..conftest import ExportGolden

FAMILIES = ("mar", "harmon", "flowar_s", "flowar_l", "xar")
TOLERANCE = 1e-5
"""Of an image's largest value, where something rounds differently in company (see `generation`).
ONNX Runtime computes rows on the CPU in fp32 independently of how many there are: there the other
images are equal to the last bit, see `test_what_is_bit_for_bit`."""

COMMON: dict[str, list[Any]] = {
    "guidance_scale": [1.0, 1.7, 3.0],
    "steps": ["6:3", "4:2", "9:5", "16:12"],
    "strategy": ["linear", "constant", "fixed", "adaptive"],
}
MASKED = {
    "num_iterations": [2, 3, 5],
    "sampler": ["ddpm", "ddim"],
    "guidance_schedule": ["linear", "constant"],
    "temperature": [0.7, 1.0],
}
CHOICES = {
    "mar": COMMON | MASKED,
    "harmon": COMMON | MASKED | {"size": ["64x48", "48x64", "64"]},
    "flowar_s": COMMON | {"guidance_interval": [0.5, 1.0]},
    "flowar_l": COMMON | {"guidance_interval": [0.5, 1.0]},
    "xar": COMMON,
}


class Failing:
    """A session whose next call of a kind can be made to fail."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.broken = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def iterate(self, *arguments: Any, **named: Any) -> Any:
        if self.broken:
            raise DisaError("the head is broken")
        return self._session.iterate(*arguments, **named)


@pytest.fixture(scope="module")
def pipelines(golden_plan: ExportGolden, text_plan: Path) -> Callable[[str], Pipeline]:
    opened: dict[str, Pipeline] = {}

    def pipeline(name: str) -> Pipeline:
        if name not in opened:
            path = text_plan if name == "harmon" else golden_plan(name)
            opened[name] = Pipeline.from_plan(path, "cpu", threads=1)
        return opened[name]

    return pipeline


def condition_of(pipe: Pipeline, number: int) -> Any:
    if pipe.family.classes is None:
        return ("a dog", "a red bird", "a long prompt of many words about a cat")[number % 3]
    return number % pipe.family.classes


def request_of(pipe: Pipeline, number: int, options: dict[str, Any]) -> Request:
    chosen = pipe.options(**options)
    if chosen.tolerance:
        # So that steps are left out in these small models, and not the same by all.
        chosen = replace(chosen, tolerance=0.6)
    return Request(condition_of(pipe, number), chosen, PhiloxNoise(1, number))


def alone(pipe: Pipeline, request: Request) -> tuple[np.ndarray[Any, Any], Sample]:
    (sample,) = pipe.family.start([request], Stats())
    generate(pipe.family, [sample], Stats())
    (output,) = pipe.family.finish([sample], Stats())
    assert output.finite
    return output.latents, sample


def assert_same(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> None:
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()


@st.composite
def stories(draw: st.DrawFn, name: str) -> list[tuple[int, int | None, dict[str, Any]]]:
    """When samples join, after how many iterations they leave, and their options."""
    choice = st.fixed_dictionaries({n: st.sampled_from(v) for n, v in CHOICES[name].items()})
    leave = st.one_of(st.none(), st.none(), st.integers(0, 3))
    return draw(st.lists(st.tuples(st.integers(0, 4), leave, choice), min_size=2, max_size=6))


@pytest.mark.parametrize("name", FAMILIES)
def test_samples_join_and_leave(name: str, pipelines: Callable[[str], Pipeline]) -> None:
    pipe = pipelines(name)
    family = pipe.family

    @settings(
        max_examples=5, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
    )
    @given(stories(name), st.randoms(use_true_random=False))
    def told(story: list[tuple[int, int | None, dict[str, Any]]], random: Any) -> None:
        requests = [request_of(pipe, i, options) for i, (_, _, options) in enumerate(story)]
        running: list[tuple[int, Sample]] = []
        finished: dict[int, np.ndarray[Any, Any]] = {}
        costs = {}
        clock = 0
        while clock <= 4 or running:
            joining = [i for i, (at, _, _) in enumerate(story) if at == clock]
            apart = random.random() < 0.5
            for part in [[i] for i in joining] if apart else [joining]:
                started = family.start([requests[i] for i in part], Stats())
                running += zip(part, started, strict=True)
            running = [
                (i, s)
                for i, s in running
                if story[i][1] is None or s.iteration < (story[i][1] or 0)
            ]
            random.shuffle(running)
            if running:
                family.step([sample for _, sample in running], Stats())
            done = [(i, s) for i, s in running if s.done]
            if done:
                for (i, s), output in zip(
                    done, family.finish([s for _, s in done], Stats()), strict=True
                ):
                    finished[i], costs[i] = output.latents, s.cost
            running = [(i, s) for i, s in running if not s.done]
            clock += 1
        stayed = {i for i, (_, leaves, _) in enumerate(story) if leaves is None}
        assert stayed <= finished.keys()
        for i, latents in finished.items():
            expected, sample = alone(pipe, requests[i])
            assert_same(latents, expected)
            assert len(costs[i].steps) == sample.iterations
            if not requests[i].options.tolerance:
                assert costs[i] == sample.cost

    told()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_step_that_fails_leaves_all_samples_where_they_were(
    name: str, pipelines: Callable[[str], Pipeline]
) -> None:
    opened = pipelines(name)
    head = Failing(opened.sessions["head"])
    pipe = Pipeline(opened.plan, {**opened.sessions, "head": head})  # type: ignore[dict-item]
    options = [{"guidance_scale": scale, "steps": "3:2"} for scale in (1.0, 2.0, 3.0)]
    if "num_iterations" in CHOICES[name]:
        options = [{**each, "num_iterations": 3} for each in options]
    if name == "harmon":
        options = [{**each, "size": "64"} for each in options]
    requests = [request_of(pipe, i, each) for i, each in enumerate(options)]
    samples = pipe.family.start(requests, Stats())
    pipe.family.step(samples[:2], Stats())
    head.broken = True
    before = [(s.iteration, list(s.cost.steps), s.cost.head_rows) for s in samples]
    with pytest.raises(DisaError, match="broken"):
        pipe.family.step(samples, Stats())
    assert before == [(s.iteration, list(s.cost.steps), s.cost.head_rows) for s in samples]
    head.broken = False
    generate(pipe.family, samples, Stats())
    for request, output in zip(requests, pipe.family.finish(samples, Stats()), strict=True):
        assert_same(output.latents, alone(pipe, request)[0])


def test_head_rows_share_calls(pipelines: Callable[[str], Pipeline]) -> None:
    """Images at different iterations, scales and step counts take the calls of the longest."""
    pipe = pipelines("mar")
    all_options: list[dict[str, Any]] = [
        {"num_iterations": 4, "steps": "9:9", "guidance_scale": 2.0},
        {"num_iterations": 5, "steps": "4:4", "guidance_scale": 3.0},
        {"num_iterations": 3, "steps": "6:6", "guidance_scale": 1.5, "sampler": "ddim"},
    ]
    requests = [request_of(pipe, i, options) for i, options in enumerate(all_options)]
    samples = pipe.family.start(requests, Stats())
    pipe.family.step(samples[:1], Stats())
    stats = Stats()
    pipe.family.step(samples, stats)
    assert stats.head_calls == 9
    assert stats.head_rows == sum(s.counts[s.iteration - 1] * s.cost.steps[-1] for s in samples)
    unguided = pipe.family.start(
        [request_of(pipe, 7, {"steps": "5:5", "guidance_scale": 1.0})], stats
    )
    stats = Stats()
    pipe.family.step([*samples[1:2], *unguided], stats)
    assert stats.head_calls == 4 + 5


@pytest.mark.parametrize("name", FAMILIES)
def test_cohorts_merge(name: str, pipelines: Callable[[str], Pipeline]) -> None:
    """Images that began apart go on together from where they are, and one leaves."""
    pipe = pipelines(name)
    options: dict[str, Any] = {"steps": "3:2", "guidance_scale": 2.0}
    if "num_iterations" in CHOICES[name]:
        options["num_iterations"] = 4
    if name == "harmon":
        options["size"] = "64x48"
    requests = [request_of(pipe, i, options) for i in range(5)]
    first, second = (pipe.family.start(part, Stats()) for part in (requests[:2], requests[2:]))
    for _ in range(2):
        pipe.family.step(first, Stats())
        pipe.family.step(second, Stats())
    together = [second[2], first[1], second[0], first[0]]
    pipe.family.step(together, Stats())
    assert len({id(sample.cohort) for sample in together}) == 1
    assert second[1].iteration == 2
    generate(pipe.family, together, Stats())
    for number, output in zip((4, 1, 2, 0), pipe.family.finish(together, Stats()), strict=True):
        assert_same(output.latents, alone(pipe, requests[number])[0])


def test_a_group_that_stays_keeps_its_arrays(pipelines: Callable[[str], Pipeline]) -> None:
    pipe = pipelines("mar")
    requests = [request_of(pipe, i, {"num_iterations": 4}) for i in range(3)]
    samples = pipe.family.start(requests, Stats())
    tokens = samples[0].cohort.arrays["tokens"]
    pipe.family.step(samples, Stats())
    pipe.family.step(samples[::-1], Stats())
    assert all(sample.cohort.arrays["tokens"] is tokens for sample in samples)
    pipe.family.step(samples[:2], Stats())
    assert samples[0].cohort.arrays["tokens"].shape[1] == 2
    assert samples[2].cohort.arrays["tokens"] is tokens


@pytest.mark.parametrize("name", ["mar", "flowar_s", "flowar_l", "xar"])
def test_what_is_bit_for_bit(name: str, pipelines: Callable[[str], Pipeline]) -> None:
    """Images of other scales, step counts and iterations, joined one after the other."""
    pipe = pipelines(name)
    masked = {"num_iterations": 4} if "num_iterations" in CHOICES[name] else {}
    requests = [
        request_of(pipe, i, {**masked, "steps": steps, "guidance_scale": scale})
        for i, (steps, scale) in enumerate([("6:3", 2.0), ("9:5", 3.0), ("4:4", 1.0), ("5:2", 2.5)])
    ]
    samples: list[Any] = []
    for request in requests:
        samples += pipe.family.start([request], Stats())
        pipe.family.step(samples, Stats())
    generate(pipe.family, samples, Stats())
    for request, output in zip(requests, pipe.family.finish(samples, Stats()), strict=True):
        np.testing.assert_array_equal(output.latents, alone(pipe, request)[0])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_watcher_can_sample_an_iteration_again(
    name: str, pipelines: Callable[[str], Pipeline]
) -> None:
    """From the noise of the run the same tokens come out, for images with equal options."""
    pipe = pipelines(name)
    options: dict[str, Any] = {"guidance_scale": 2.0} | ({"size": "64"} if name == "harmon" else {})
    if "num_iterations" in CHOICES[name]:
        options["num_iterations"] = 3
    first, second = (
        request_of(pipe, i, {**options, "steps": steps}) for i, steps in enumerate(("12:9", "16:8"))
    )
    third = Request(condition_of(pipe, 2), first.options, PhiloxNoise(1, 2))
    watched: list[tuple[int, int]] = []

    def watch(iteration: Iteration) -> None:
        tokens, images = iteration.predicted.shape
        noises = [first.noise, third.noise] if images == 2 else [second.noise]
        sampled, draws = np.asarray(iteration.sampled), 1 + len(iteration.table)
        shape = (tokens, sampled.shape[1])
        noise = noise_of(noises, iteration.index, draws, shape).reshape(draws, *sampled.shape)
        whole, loose = Stats(), Stats()
        assert_same(np.asarray(iteration.denoise(iteration.table, noise, 0.0, whole)), sampled)
        iteration.denoise(iteration.table, noise, 1e9, loose)
        assert 0 < loose.head_rows < whole.head_rows
        watched.append((iteration.index, images))

    samples = pipe.family.start([first, second, third], Stats())
    generate(pipe.family, samples, Stats(), watch=watch)
    iterations = range(samples[0].iterations)
    assert sorted(watched) == [(index, images) for index in iterations for images in (1, 2)]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_outputs_say_whether_they_are_finite(
    name: str, pipelines: Callable[[str], Pipeline]
) -> None:
    pipe = pipelines(name)
    options = {"size": "64"} if name == "harmon" else {}
    if "num_iterations" in CHOICES[name]:
        options = {**options, "num_iterations": 2}
    request = request_of(pipe, 0, {**options, "steps": "2:2"})
    broken = Request(request.condition, request.options, Infinite())
    samples = pipe.family.start([request, broken], Stats())
    generate(pipe.family, samples, Stats())
    assert [output.finite for output in pipe.family.finish(samples, Stats())] == [True, False]


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_known_so_far(name: str, pipelines: Callable[[str], Pipeline]) -> None:
    """Images at different iterations; a preview shows what this decodes, see `test_pipeline`."""
    pipe = pipelines(name)
    options: dict[str, Any] = {"steps": "3:2"} | ({"size": "64"} if name == "harmon" else {})
    if "num_iterations" in CHOICES[name]:
        options["num_iterations"] = 3
    samples = pipe.family.start([request_of(pipe, i, options) for i in range(3)], Stats())
    pipe.family.step(samples[1:], Stats())
    pipe.family.step(samples[2:], Stats())
    partial = {
        id(sample): np.asarray(decoded["latents"])[row]
        for members, decoded in pipe.family._decode(samples)
        for row, sample in enumerate(members)
    }
    known = [np.count_nonzero(partial[id(sample)]) for sample in samples]
    assert known[0] == 0 < known[1] <= known[2]
    if name.startswith("flowar"):
        # One token everywhere, then two by two.
        assert np.ptp(partial[id(samples[1])], axis=(1, 2)).max() == 0
        assert np.ptp(partial[id(samples[2])][:, :8, :8], axis=(1, 2)).max() == 0
        return
    generate(pipe.family, samples, Stats())
    for sample, output in zip(samples, pipe.family.finish(samples, Stats()), strict=True):
        seen = partial[id(sample)]
        np.testing.assert_array_equal(seen, np.where(seen == 0, 0, output.latents))


class Infinite(PhiloxNoise):
    """Noise that no image survives."""

    def __init__(self) -> None:
        super().__init__(0, 0)

    def gaussian(self, iteration: int, draws: int, shape: tuple[int, int]) -> Any:
        return np.full((draws, *shape), np.inf, np.float32)
