import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from disa.engines.open import open_session
from disa.engines.plan import Plan
from disa.engines.session import Session
from disa.errors import DisaError
from disa.runtime.families import HarmonSettings
from disa.runtime.harmon import MAX_SIDE, HarmonLoop, interpolation, parse_size
from disa.runtime.noise import PhiloxNoise
from disa.runtime.pipeline import Pipeline
from disa.runtime.prompt import PromptBatch
from disa.runtime.schedule import AnnealedSchedule
from disa.runtime.settings import GuidanceSchedule, Settings
from disa.runtime.stats import Stats
from disa.runtime.verify import main as verify

from ..conftest import GOLDEN, ExportGolden, references

SETTINGS = Settings(
    iterations=4,
    schedule=AnnealedSchedule(5, 2),
    guidance_scale=3.0,
    guidance_schedule=GuidanceSchedule.CONSTANT,
)
UNCONDITIONAL = [7, 8, 9]


class Spy:
    """A session that remembers the shapes of its inputs."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.calls: list[dict[str, tuple[int, ...]]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, inputs: Mapping[str, Any]) -> Any:
        self.calls.append({name: value.shape for name, value in inputs.items()})
        return self._session.run(inputs)


@pytest.fixture(scope="module")
def sessions(golden_plan: ExportGolden) -> dict[str, Session]:
    plan = Plan.open(golden_plan("harmon"))
    return {name: open_session(plan, name, "cpu") for name in plan.manifest.graphs}


def draw(
    sessions: Mapping[str, Session],
    prompts: list[list[int]],
    images: list[int],
    grid: tuple[int, int] = (4, 6),
    settings: Settings = SETTINGS,
) -> np.ndarray[Any, Any]:
    """Latents of images for these token ids."""
    rows = [prompts, [UNCONDITIONAL] * len(prompts)] if settings.guided else [prompts]
    loop, noise = HarmonLoop(sessions, native=16, channels=16), PhiloxNoise(0, images)
    tokens, positions = loop.generate(PromptBatch.of(rows), grid, settings, noise, Stats())
    return np.asarray(loop.decode(tokens, positions, grid)["latents"])


def test_recorded_runs_are_reproduced(golden_plan: ExportGolden) -> None:
    paths = references("harmon")
    assert len(paths) == 2
    options = [part for path in paths for part in ("--reference", str(path))]
    result = CliRunner().invoke(verify, [str(golden_plan("harmon")), *options, "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.output)
    assert report["worst"] < 1e-5
    for path in paths:
        meta = json.loads(str(np.load(path)["meta"]))
        calls = [entry["head_calls"] for entry in report["references"][str(path)]]
        assert calls == [step["diffusion_steps"] for step in meta["steps"]] + [None]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"image_shape": [8]}, "image_shape"),
        ({"image_shape": [8, 9]}, "72"),
        ({"images": 3}, "needs|need"),
        ({"cfg": 1.0}, "need"),
        ({"num_iter": 5}, "cosine rule"),
    ],
)
def test_references_that_do_not_fit(
    change: dict[str, Any], told: str, golden_plan: ExportGolden, tmp_path: Path
) -> None:
    arrays = dict(np.load(GOLDEN / "harmon" / "reference_a.npz"))
    arrays["meta"] = np.array(json.dumps({**json.loads(str(arrays["meta"])), **change}))
    np.savez(tmp_path / "odd.npz", **arrays)
    arguments = [str(golden_plan("harmon")), "--reference", str(tmp_path / "odd.npz")]
    result = CliRunner().invoke(verify, arguments)
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    assert any(word in result.output for word in told.split("|")), result.output


@pytest.mark.parametrize("settings", [SETTINGS, Settings(iterations=3, guidance_scale=1.0)])
def test_an_image_is_the_same_in_any_batch(
    settings: Settings, sessions: dict[str, Session]
) -> None:
    """Though its prompt is padded there to the length of a longer one."""
    prompts = [[5, 6], [10, 11, 12, 13, 14, 15], [5, 6]]
    together = draw(sessions, prompts, [0, 1, 2], settings=settings)
    for index, prompt in enumerate(prompts):
        alone = draw(sessions, [prompt], [index], settings=settings)[0]
        assert np.abs(alone - together[index]).max() < 1e-4 * np.abs(alone).max()


def test_prompts_matter_only_where_they_stand(sessions: dict[str, Session]) -> None:
    one = draw(sessions, [[5, 6], [10, 11]], [0, 1])
    other = draw(sessions, [[5, 6], [10, 12]], [0, 1])
    scale = np.abs(one).max()
    assert np.abs(one[0] - other[0]).max() < 1e-5 * scale
    assert np.abs(one[1] - other[1]).max() > 1e-3 * scale


def test_every_prompt_is_computed_once(sessions: dict[str, Session]) -> None:
    spies = {name: Spy(session) for name, session in sessions.items()}
    draw(spies, [[5, 6], [5, 6], [10, 11, 12]], [0, 1, 2])
    # Two different prompts and the unconditional one, before the loop.
    assert spies["prompt"].calls == [{"input_ids": (3, 3)}]
    assert len(spies["grid"].calls) == 1
    steps = spies["backbone"].calls
    assert len(steps) == SETTINGS.iterations
    assert {call["prompt_key"] for call in steps} == {(2, 3, 2, 3, 16)}
    assert {call["prompt_index"] for call in steps} == {(2, 3)}
    # Tokens are handed over once for both guidance halves.
    assert [call["tokens"][1] for call in steps] == [3] * len(steps)


def test_position_embeddings_of_a_grid_are_kept(sessions: dict[str, Session]) -> None:
    spy = Spy(sessions["grid"])
    loop = HarmonLoop({**sessions, "grid": spy}, native=16, channels=16)
    for grid in ((4, 6), (6, 4), (4, 6)):
        assert loop.tables(grid)["decoder_position"].shape == (24, 64)
    assert [call["rows"] for call in spy.calls] == [(4, 16), (6, 16)]


@pytest.mark.parametrize("grid", [(16, 16), (3, 20), (8, 5)])
def test_grids_of_any_shape(grid: tuple[int, int], sessions: dict[str, Session]) -> None:
    latents = draw(sessions, [[5, 6]], [0], grid)
    assert latents.shape == (1, 16, *grid)
    assert np.isfinite(latents).all()


def test_guidance_needs_both_prompts(sessions: dict[str, Session]) -> None:
    loop = HarmonLoop(sessions, native=16, channels=16)
    with pytest.raises(DisaError, match="needs 2 prompts"):
        loop.generate(PromptBatch.of([[[1, 2]]]), (4, 4), SETTINGS, PhiloxNoise(0, [0]), Stats())


def test_interpolation_has_half_pixel_centres() -> None:
    np.testing.assert_array_equal(interpolation(4, 4), np.eye(4, dtype=np.float32))
    wanted = [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]
    np.testing.assert_allclose(interpolation(2, 4), np.array(wanted))
    # Fewer points than before are not averaged over all that they cover.
    np.testing.assert_allclose(interpolation(8, 2)[0], np.array([0, 0.5, 0.5, 0, 0, 0, 0, 0]))
    for size in (1, 3, 16, 31):
        np.testing.assert_allclose(interpolation(16, size).sum(1), 1, rtol=1e-6)


def test_sizes() -> None:
    assert parse_size("512", 16) == (32, 32)
    assert parse_size(256, 16) == (16, 16)
    assert parse_size("640X384", 16) == (24, 40)
    for text in ("", "big", "512x", "-16", "1e3"):
        with pytest.raises(DisaError, match="width x height"):
            parse_size(text, 16)
    for text in ("500", "0", f"{MAX_SIDE + 16}", "512x8"):
        with pytest.raises(DisaError, match="multiple of 16"):
            parse_size(text, 16)


def test_prompts_become_images(text_plan: Path) -> None:
    pipe = Pipeline.from_plan(text_plan, "cpu")
    options = {"steps": "3:2", "num_iterations": 3, "seed": 1}
    result = pipe(prompt=["a dog", "a cat"], size="64x48", **options)  # type: ignore[arg-type]
    assert result.latents.shape == (2, 16, 3, 4)
    assert result.images is None
    again = pipe(prompt="a cat", size="64x48", first_image=1, **options)  # type: ignore[arg-type]
    difference = np.abs(again.latents[0] - result.latents[1]).max()
    assert difference < 1e-4 * np.abs(result.latents[1]).max()
    settings = pipe.settings()
    assert isinstance(settings, HarmonSettings)
    assert settings.grid == (32, 32)


def test_a_plan_without_a_tokenizer_says_so(golden_plan: ExportGolden) -> None:
    pipe = Pipeline.from_plan(golden_plan("harmon"), "cpu")
    with pytest.raises(DisaError, match="--tokenizer"):
        pipe(prompt="a dog")
