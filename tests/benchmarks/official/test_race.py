import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.official.contenders import BF16, FP32, Lap, Official, Plans, State, grid_rows
from benchmarks.official.mar import OfficialMAR
from benchmarks.official.race import Progress, race, result_of, state_of
from benchmarks.official.tables import milliseconds_a_call
from disa.errors import DisaError
from disa.exporter.checkpoints.checkpoint import open_checkpoint
from disa.exporter.families.configs.mar import MARConfig, configure
from disa.runtime.families.masked.options import MaskedOptions
from disa.runtime.pipeline import Pipeline
from disa.runtime.sampling.noise import PhiloxNoise
from disa.runtime.sampling.refresh import parse_refresh


@pytest.fixture(scope="module")
def config(pixel_checkpoint: Path) -> MARConfig:
    opened = open_checkpoint(pixel_checkpoint)
    return configure(opened.state, None, opened.args)


@pytest.fixture(scope="module")
def model(pixel_checkpoint: Path, config: MARConfig) -> OfficialMAR:
    torch.set_num_threads(1)
    model = OfficialMAR(config)
    model.load_state_dict(dict(open_checkpoint(pixel_checkpoint).state))
    return model.eval()


@pytest.fixture(scope="module")
def pipe(pixel_plan: Path) -> Pipeline:
    return Pipeline.from_plan(pixel_plan, "cpu", threads=1)


@pytest.fixture(scope="module")
def cached_pipe(cached_backbone_pixels: Path) -> Pipeline:
    return Pipeline.from_plan(cached_backbone_pixels, "cpu", threads=1)


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_original_way_samples_the_same(
    config: MARConfig, model: OfficialMAR, pipe: Pipeline, scale: float, batch: int
) -> None:
    options = pipe.options(num_iterations=4, steps="4:2", guidance_scale=scale)
    assert isinstance(options, MaskedOptions)
    plan = Plans("plan", pipe, options, [image % 2 for image in range(batch)])
    record = race(
        [Official(FP32, model), Official(BF16, model, torch.bfloat16), plan],
        options,
        config.tokens,
        config.channels,
        batch,
        [0, 1, 2, 3],
    )
    results = record["contenders"]
    assert results["plan"]["difference"] < 1e-4
    assert 1e-5 < results[BF16]["difference"] < 0.1
    assert record["measured"] == [0, 1, 2, 3]
    assert all(len(result["backbone_seconds_a_call"]) == 4 for result in results.values())


def test_rows_in_the_original_order() -> None:
    predicted = np.array([[7, 0], [2, 5], [4, 1]])
    # Image 0 has positions 2, 4, 7 along the grid: tokens 1, 2, 0; a row is token * 2 + image.
    assert grid_rows(predicted).tolist() == [2, 4, 0, 1, 5, 3]


def laps_of(*laps: tuple[int, float, float | None, float]) -> list[dict[str, Any]]:
    """Laps of one contender: iteration, and seconds of a full pass, a cached one and the head."""
    return [
        {
            "iteration": index,
            "plan": {"backbone": full, "cached": cached, "head": head, "difference": 0.0},
        }
        for index, full, cached, head in laps
    ]


def test_a_whole_image_from_some_iterations() -> None:
    laps = laps_of((0, 1.0, None, 8.0), (2, 3.0, None, 4.0))
    result = result_of("plan", laps, [0, 2], [4, 3, 2], batch=2)
    assert result["backbone_seconds_an_image"] == (1 + 2 + 3) / 2
    assert result["head_seconds_an_image"] == 2 * (4 + 3 + 2) / 2
    assert "cached_seconds_a_call" not in result


def test_cached_passes_count_where_the_pass_is_not_full() -> None:
    laps = laps_of((0, 10.0, None, 1.0), (2, 20.0, 1.0, 1.0), (4, 30.0, 2.0, 1.0))
    result = result_of("plan", laps, [0, 2, 4], [1] * 5, 1, parse_refresh("0,3"))
    # Full passes of 10 and 25 seconds, and cached ones of 1, 1 and 2.
    assert result["backbone_seconds_an_image"] == 10 + 1 + 1 + 25 + 2
    assert result["cached_seconds_a_call"] == [1.0, 2.0]
    assert milliseconds_a_call(result) == "20000 / 1500"


def test_a_plan_with_a_cached_backbone_runs_the_passes_of_the_pipeline(
    config: MARConfig, cached_pipe: Pipeline
) -> None:
    options = cached_pipe.options(num_iterations=4, steps="4:2")
    assert isinstance(options, MaskedOptions)
    plain = Plans("plan", cached_pipe, options, [0, 1])
    cached = Plans("plan", cached_pipe, options, [0, 1], "9:2")
    assert cached.name == "plan refresh 9:2"
    known = np.random.default_rng(0).standard_normal(
        (config.tokens, 2, config.channels), np.float32
    )
    noises = [PhiloxNoise(0, image) for image in (0, 1)]
    first = state_of(options, 0, known, noises, config.tokens)
    lap = cached.run(first)
    np.testing.assert_allclose(lap.sampled, plain.run(first).sampled, rtol=1e-4, atol=1e-5)
    assert lap.cached_seconds is None
    later = state_of(options, 2, known, noises, config.tokens)
    lap = cached.run(later)
    assert lap.cached_seconds is not None
    assert min(lap.backbone_seconds, lap.cached_seconds, lap.head_seconds) > 0
    # A cached pass is near a full one, and not equal to it.
    difference = np.abs(lap.sampled - plain.run(later).sampled).max()
    assert 1e-4 < difference < 0.5 * np.abs(lap.sampled).max()


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_a_compiled_contender_computes_the_same(
    config: MARConfig, model: OfficialMAR, pipe: Pipeline, backend: str
) -> None:
    """By a backend that only traces, and where there is a compiler by the one that is timed."""
    if backend == "inductor" and shutil.which("g++") is None:
        backend = "eager"
    compiled = OfficialMAR(config)
    compiled.load_state_dict(model.state_dict())
    compiled.eval().compile_parts(backend)
    options = pipe.options(num_iterations=4, steps="4:2", guidance_scale=3.0)
    assert isinstance(options, MaskedOptions)
    contenders = [Official(FP32, model), Official(BF16, model), Official("compiled", compiled)]
    record = race(contenders, options, config.tokens, config.channels, 1, [1, 2])
    assert record["contenders"]["compiled"]["difference"] < 1e-5


def test_a_race_goes_on_where_it_stopped(config: MARConfig, pipe: Pipeline, tmp_path: Path) -> None:
    options = pipe.options(num_iterations=4, steps="4:2")
    assert isinstance(options, MaskedOptions)
    runs = []

    class Counted(Plans):
        def run(self, state: State) -> Lap:
            if len(runs) == 3:
                raise KeyboardInterrupt
            runs.append(state.index)
            return super().run(state)

    path, question = tmp_path / "race.json", {"batch": 1}
    plan = Counted("plan", pipe, options, [0])
    arguments = ([plan], options, config.tokens, config.channels, 1, [0, 3], 2)
    with pytest.raises(KeyboardInterrupt):
        race(*arguments, Progress(path, question))
    assert runs == [3, 0, 3]  # The first is a warm-up.
    runs.append(-1)
    record = race(*arguments, Progress(path, question))
    assert runs[4:] == [3, 0, 3]
    assert len(record["contenders"]["plan"]["backbone_seconds_a_call"]) == 2
    with pytest.raises(DisaError, match="laps of another race"):
        Progress(path, {"batch": 2})
    Progress(path, question).finish()
    assert list(tmp_path.iterdir()) == []
