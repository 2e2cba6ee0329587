import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from disa.commands.verify import main as verify
from disa.errors import DisaError
from disa.runtime.families.conditions.prompt import EncodedPrompt
from disa.runtime.families.masked.harmon import (
    MAX_GRIDS,
    MAX_SIDE,
    HarmonOptions,
    interpolation,
    parse_size,
)
from disa.runtime.pipeline import Pipeline

from ....conftest import GOLDEN, ExportGolden, references
from ..drive import Spy, latents_of, spied

OPTIONS: dict[str, Any] = {
    "num_iterations": 4,
    "steps": "5:2",
    "guidance_scale": 3.0,
    "guidance_schedule": "constant",
}
UNGUIDED: dict[str, Any] = {"num_iterations": 3, "guidance_scale": 1.0}
UNCONDITIONAL = (7, 8, 9)

Opened = tuple[Pipeline, dict[str, Spy]]


@pytest.fixture(scope="module")
def opened(golden_plan: ExportGolden) -> Opened:
    return spied(golden_plan("harmon"))


def draw(
    pipe: Pipeline,
    prompts: Sequence[Sequence[int]],
    images: Sequence[int],
    grid: tuple[int, int] = (4, 6),
    **options: Any,
) -> np.ndarray[Any, Any]:
    """Latents of images for these token ids; `grid` is height and width in tokens."""
    height, width = (16 * side for side in grid)
    chosen = HarmonOptions(**{**OPTIONS, "size": f"{width}x{height}", **options})
    encoded = [EncodedPrompt(tuple(prompt), UNCONDITIONAL) for prompt in prompts]
    return latents_of(pipe, encoded, chosen, images)


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


@pytest.mark.parametrize("options", [{}, UNGUIDED])
def test_an_image_is_the_same_in_any_batch(options: dict[str, Any], opened: Opened) -> None:
    """Though its prompt is padded there to the length of a longer one."""
    pipe, _ = opened
    prompts = [[5, 6], [10, 11, 12, 13, 14, 15], [5, 6]]
    together = draw(pipe, prompts, [0, 1, 2], **options)
    for index, prompt in enumerate(prompts):
        alone = draw(pipe, [prompt], [index], **options)[0]
        assert np.abs(alone - together[index]).max() < 1e-4 * np.abs(alone).max()


def test_prompts_matter_only_where_they_stand(opened: Opened) -> None:
    pipe, _ = opened
    one = draw(pipe, [[5, 6], [10, 11]], [0, 1])
    other = draw(pipe, [[5, 6], [10, 12]], [0, 1])
    scale = np.abs(one).max()
    assert np.abs(one[0] - other[0]).max() < 1e-5 * scale
    assert np.abs(one[1] - other[1]).max() > 1e-3 * scale


def test_every_prompt_is_computed_once(golden_plan: ExportGolden) -> None:
    pipe, spies = spied(golden_plan("harmon"))
    draw(pipe, [[5, 6], [5, 6], [10, 11, 12]], [0, 1, 2])
    # Two different prompts and the unconditional one, before the loop.
    assert spies["prompt"].calls == [{"input_ids": (3, 3)}]
    assert len(spies["grid"].calls) == 1
    steps = spies["backbone"].calls
    assert len(steps) == OPTIONS["num_iterations"]
    assert {call["prompt_key"] for call in steps} == {(2, 3, 2, 3, 16)}
    assert {call["prompt_index"] for call in steps} == {(2, 3)}
    # Tokens are handed over once for both guidance halves.
    assert [call["tokens"][1] for call in steps] == [3] * len(steps)


def test_position_embeddings_of_a_grid_are_kept(golden_plan: ExportGolden) -> None:
    pipe, spies = spied(golden_plan("harmon"))
    for grid in ((4, 6), (6, 4), (4, 6)):
        assert pipe.family.grid_tables(grid)["decoder_position"].shape == (24, 64)
    assert [call["rows"] for call in spies["grid"].calls] == [(4, 16), (6, 16)]
    for side in range(1, 3 * MAX_GRIDS):
        pipe.family.grid_tables((1, side))
    assert len(pipe.family._grids.values()) == MAX_GRIDS


@pytest.mark.parametrize("grid", [(16, 16), (3, 20), (8, 5)])
def test_grids_of_any_shape(grid: tuple[int, int], opened: Opened) -> None:
    latents = draw(opened[0], [[5, 6]], [0], grid)
    assert latents.shape == (1, 16, *grid)
    assert np.isfinite(latents).all()


def test_the_batch_follows_from_the_size(
    golden_plan: ExportGolden, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Pipeline.from_plan(golden_plan("harmon"), "cpu", threads=1) as pipe:
        monkeypatch.setattr(pipe.family, "width", 128)
        sizes = ("512", "1024", "1024x512", "1024x2048")
        batches = [pipe.auto_batch_size(pipe.options(size=size)) for size in sizes]
    assert batches == [16, 4, 8, 2]


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
    assert parse_size(" 640X384 ", 16) == (24, 40)
    assert parse_size("16", 16) == (1, 1)
    assert parse_size(MAX_SIDE, 16) == (MAX_SIDE // 16, MAX_SIDE // 16)
    for text in ("", "big", "512x", "-16", "1e3", "1000000", "16x1000000"):
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
    assert pipe.options().size == "512"


def test_a_plan_without_a_tokenizer_says_so(golden_plan: ExportGolden) -> None:
    pipe = Pipeline.from_plan(golden_plan("harmon"), "cpu")
    with pytest.raises(DisaError, match="--tokenizer"):
        pipe(prompt="a dog")
