import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from benchmarks.contenders import Lap, Official, Plans, grid_rows
from benchmarks.official_loop import BF16, FP32, main, race, state_of, whole
from benchmarks.official_model import OfficialMAR
from disa.exporter.checkpoint import open_checkpoint
from disa.exporter.mar_config import Config, configure
from disa.runtime.noise import PhiloxNoise
from disa.runtime.pipeline import Pipeline
from disa.runtime.settings import Settings
from disa.runtime.stats import Stats


@pytest.fixture(scope="module")
def config(pixel_checkpoint: Path) -> Config:
    opened = open_checkpoint(pixel_checkpoint)
    return configure(opened.state, None, opened.args)


@pytest.fixture(scope="module")
def model(pixel_checkpoint: Path, config: Config) -> OfficialMAR:
    torch.set_num_threads(1)
    model = OfficialMAR(config)
    model.load_state_dict(dict(open_checkpoint(pixel_checkpoint).state))
    return model.eval()


@pytest.fixture(scope="module")
def pipe(pixel_plan: Path) -> Pipeline:
    return Pipeline.from_plan(pixel_plan, "cpu", threads=1)


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_original_way_draws_the_same(
    config: Config, model: OfficialMAR, pipe: Pipeline, scale: float, batch: int
) -> None:
    settings = pipe.settings(iterations=4, steps="4:2", cfg=scale)
    assert isinstance(settings, Settings)
    plan = Plans("plan", pipe.sessions, config.class_num)
    record = race(
        [Official(FP32, model), Official(BF16, model, torch.bfloat16), plan],
        settings,
        config.tokens,
        config.channels,
        batch,
        every=1,
    )
    results = record["contenders"]
    assert results["plan"]["difference"] < 1e-4
    assert 1e-5 < results[BF16]["difference"] < 0.1
    assert record["measured"] == [0, 1, 2, 3]
    assert all(len(result["backbone_seconds_a_call"]) == 4 for result in results.values())


def test_what_is_raced_is_what_the_pipeline_runs(config: Config, pipe: Pipeline) -> None:
    settings = pipe.settings(iterations=4, steps="4:2", cfg=3.0)
    assert isinstance(settings, Settings)
    noise = PhiloxNoise(5, [0, 1])
    _, latents = pipe.draw([0, 1], settings, noise, Stats())
    known = np.zeros((config.tokens, 2, config.channels), np.float32)
    plan, done = Plans("plan", pipe.sessions, config.class_num), 0
    for index in range(4):
        state = state_of(settings, index, known, noise, config.tokens)
        known[done : done + state.count] = plan.run(state).sampled.reshape(state.count, 2, -1)
        done += state.count
    grid = {"tokens": known, "positions": noise.order(config.tokens)}
    decoded = pipe.sessions["decoder"].run(grid)
    np.testing.assert_allclose(decoded["latents"], latents, rtol=1e-4, atol=1e-5)


def test_rows_in_the_original_order() -> None:
    predicted = np.array([[7, 0], [2, 5], [4, 1]])
    # Image 0 has positions 2, 4, 7 along the grid: tokens 1, 2, 0; a row is token * 2 + image.
    assert grid_rows(predicted).tolist() == [2, 4, 0, 1, 5, 3]


def test_a_whole_image_from_some_iterations() -> None:
    nothing = np.zeros((1, 1), np.float32)
    laps = [Lap(1.0, 8.0, nothing), Lap(3.0, 4.0, nothing)]
    result = whole([0, 2], laps, steps=[4, 3, 2], batch=2)
    assert result["backbone_seconds_an_image"] == (1 + 2 + 3) / 2
    assert result["head_seconds_an_image"] == 2 * (4 + 3 + 2) / 2
    assert result["head_seconds_a_step"] == [2.0, 2.0]


def test_the_command(pixel_checkpoint: Path, pixel_plan: Path, tmp_path: Path) -> None:
    output = tmp_path / "race.json"
    options = ["--checkpoint", str(pixel_checkpoint), "--plan", str(pixel_plan)]
    options += ["--iterations", "5", "--steps", "3:2", "--every", "3", "--threads", "1"]
    result = CliRunner().invoke(main, [*options, "--json", str(output)])
    assert result.exit_code == 0, result.output
    assert "disa cpu" in result.output
    record = json.loads(output.read_text())
    assert record["measured"] == [0, 3, 4]
    assert record["contenders"].keys() == {FP32, BF16, "disa cpu"}


def test_the_command_needs_weights() -> None:
    result = CliRunner().invoke(main, [])
    assert result.exit_code == 2
    assert "--shapes" in result.output
