from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from disa.errors import DisaError, InvalidRequest
from disa.runtime.pipeline import Pipeline, to_uint8
from disa.runtime.result import Progress
from disa.runtime.sampling.noise import PhiloxNoise
from disa.runtime.sampling.schedule import AnnealedSchedule
from disa.runtime.stats import Stats

from ..conftest import ExportGolden

QUICK: dict[str, Any] = {"num_iterations": 3, "steps": "3:2"}


def test_the_public_face(pixel_pipeline: Pipeline) -> None:
    result = pixel_pipeline(class_labels=["bag", 2], guidance_scale=2.9, seed=0, **QUICK)
    assert result.images is not None
    assert result.images.shape == (2, 8, 8, 1)
    assert result.images.dtype == np.uint8
    assert result.latents.shape == (2, 1, 8, 8)
    assert np.isfinite(result.latents).all()
    assert result.stats.head_calls == 3 + 2 + 2
    np.testing.assert_array_equal(result.images, to_uint8(result.latents))


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 5), st.integers(0, 1000), st.integers(0, 10**6))
def test_an_image_depends_on_seed_and_index_alone(
    pixel_pipeline: Pipeline, batch_size: int, seed: int, first: int
) -> None:
    labels = [1, 4, 4, 9]
    whole = pixel_pipeline(labels, seed=seed, first_image=first, **QUICK)
    split = pixel_pipeline(labels, seed=seed, first_image=first, batch_size=batch_size, **QUICK)
    np.testing.assert_allclose(split.latents, whole.latents, rtol=1e-3, atol=1e-4)
    last = pixel_pipeline([9], seed=seed, first_image=first + 3, **QUICK)
    np.testing.assert_allclose(last.latents[0], whole.latents[3], rtol=1e-3, atol=1e-4)
    assert np.abs(whole.latents[1] - whole.latents[2]).max() > 1e-3


def test_no_label_is_no_class(pixel_pipeline: Pipeline) -> None:
    free, classed = pixel_pipeline(**QUICK), pixel_pipeline(3, **QUICK)
    assert free.latents.shape == classed.latents.shape
    assert np.abs(free.latents - classed.latents).max() > 1e-3


def test_no_guidance_halves_the_rows(pixel_pipeline: Pipeline) -> None:
    session = pixel_pipeline.sessions["backbone"]
    seen: list[int] = []
    run = session.run

    def watched(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        seen.append(len(inputs["class_index"]))
        return run(inputs)

    session.run = watched  # type: ignore[method-assign, assignment]
    try:
        pixel_pipeline(3, guidance_scale=1, **QUICK)
        pixel_pipeline(3, guidance_scale=2, **QUICK)
    finally:
        session.run = run  # type: ignore[method-assign]
    assert seen == [1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize(
    "options",
    [
        {"class_labels": []},
        {"class_labels": "boat"},
        {"prompt": "a boat"},
        {"steps": "5:50"},
        {"num_iterations": 17},
        {"num_iterations": 0},
        {"batch_size": 0},
        {"batch_size": -1},
        {"batch_size": 1.5},
        {"batch_size": "2"},
        {"first_image": -1},
        {"first_image": 0.5},
        {"first_image": None},
        {"first_image": 2**64},
        {"schedule": AnnealedSchedule},
        {"guidance_scale": 0.0},
        {"guidance_scale": 10**400},
        {"sampler": "euler"},
        {"strategy": "quadratic"},
        {"guidance_interval": 0.5},
    ],
)
def test_what_cannot_be(pixel_pipeline: Pipeline, options: dict[str, object]) -> None:
    with pytest.raises(DisaError):
        pixel_pipeline(**{"class_labels": [1], **options})  # type: ignore[arg-type]


def test_every_option_changes_the_result(pixel_pipeline: Pipeline) -> None:
    options: list[dict[str, object]] = [
        {},
        {"guidance_scale": 1},
        {"guidance_schedule": "constant"},
        {"sampler": "ddim"},
        {"sampler": "dpm-solver"},
        {"strategy": "constant"},
        {"strategy": "fixed"},
        {"temperature": 0.5},
        {"num_iterations": 5},
        {"seed": 1},
    ]
    results = {
        pixel_pipeline("bag", **{"num_iterations": 4, "steps": "4:2", **option}).latents.tobytes()  # type: ignore[arg-type]
        for option in options
    }
    assert len(results) == len(options)


def test_to_uint8_rounds_and_clips() -> None:
    image = np.array([-2.0, -1.0, 0.0, 0.9999, 1.0, 2.0], np.float32).reshape(1, 1, 1, 6)
    assert to_uint8(image).ravel().tolist() == [0, 0, 128, 255, 255, 255]


def test_a_callback_sees_every_iteration(pixel_pipeline: Pipeline) -> None:
    seen: list[tuple[range, int, int]] = []
    previews: list[list[np.ndarray]] = []

    def look(progress: Progress) -> None:
        seen.append((progress.images, progress.iteration, progress.iterations))
        previews.append(progress.preview())

    result = pixel_pipeline([1, 2, 3], batch_size=2, first_image=5, callback=look, **QUICK)
    first, second = range(5, 7), range(7, 8)
    assert seen == [(first, i, 3) for i in (1, 2, 3)] + [(second, i, 3) for i in (1, 2, 3)]
    assert all(image.shape == (8, 8, 1) for images in previews for image in images)
    np.testing.assert_array_equal(np.stack(previews[2]), result.images[:2])
    # What is not known yet is grey, the mean of pixels from -1 to 1.
    assert (previews[0][0] == 128).sum() > (previews[1][0] == 128).sum()


def test_a_callback_that_raises_ends_the_call(pixel_pipeline: Pipeline) -> None:
    def stop(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pixel_pipeline(1, callback=stop, **QUICK)
    assert np.isfinite(pixel_pipeline(1, **QUICK).latents).all()


def test_output_types(pixel_pipeline: Pipeline) -> None:
    arrays = pixel_pipeline([1, 2], **QUICK)
    pictures = pixel_pipeline([1, 2], output_type="pil", **QUICK)
    latents = pixel_pipeline([1, 2], output_type="latent", **QUICK)
    assert [(image.mode, image.size) for image in pictures.images] == [("L", (8, 8))] * 2
    for image, array in zip(pictures.images, arrays.images, strict=True):
        np.testing.assert_array_equal(np.asarray(image), array[:, :, 0])
    assert latents.images is None
    np.testing.assert_array_equal(latents.latents, arrays.latents)
    with pytest.raises(DisaError, match="one of np, pil, latent"):
        pixel_pipeline(1, output_type="jpeg")


def test_numbers_that_are_not_finite_are_an_error(
    pixel_pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = PhiloxNoise.gaussian

    def overflowing(self: PhiloxNoise, *given: Any) -> Any:
        return np.full_like(noise(self, *given), np.inf if self.image == 4 else 0)

    monkeypatch.setattr(PhiloxNoise, "gaussian", overflowing)
    with pytest.raises(DisaError, match="image 4 has values that are not finite"):
        pixel_pipeline([1, 2, 3], first_image=3, **QUICK)


def test_a_closed_pipeline(pixel_plan: Path) -> None:
    with Pipeline.from_plan(pixel_plan, "cpu") as pipe:
        assert pipe(1, **QUICK).images is not None
    with pytest.raises(DisaError, match=r"is closed: open the plan again"):
        pipe(1, **QUICK)
    pipe.close()


def test_threads_take_turns(pixel_pipeline: Pipeline) -> None:
    def latents(label: int) -> np.ndarray:
        return pixel_pipeline(label, **QUICK).latents

    expected = [latents(label) for label in range(8)]
    with ThreadPoolExecutor(4) as threads:
        for found, alone in zip(threads.map(latents, range(8)), expected, strict=True):
            np.testing.assert_array_equal(found, alone)


def test_what_it_does_is_logged(pixel_plan: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG", logger="disa"), Pipeline.from_plan(pixel_plan, "cpu") as pipe:
        pipe(1, **QUICK)
    text = " ".join(record.getMessage() for record in caplog.records)
    assert "pixels.plan" in text or "fp32" in text
    assert "1 images" in text


@pytest.mark.parametrize("name", ["mar", "mar_patch2", "flowar_s", "xar"])
def test_no_preview_without_a_decoder_to_pixels(golden_plan: ExportGolden, name: str) -> None:
    pipe = Pipeline.from_plan(golden_plan(name), "cpu")
    options = pipe.options(steps="2:2")
    samples = pipe.family.start(pipe.requests([1], options, 0, [0]), Stats())
    with pytest.raises(DisaError, match="no decoder to pixels"):
        pipe.family.preview(samples)


@pytest.mark.parametrize(
    "labels", [np.array([3, 1]), (np.int64(3), np.uint8(1)), range(3, 0, -2), np.array(["3", "1"])]
)
def test_labels_of_any_library(labels: Any, pixel_pipeline: Pipeline) -> None:
    assert pixel_pipeline.conditions(labels) == [3, 1]
    assert pixel_pipeline.conditions(np.array(3)) == [3]
    assert pixel_pipeline.conditions(np.int64(3)) == [3]


def test_seeds_of_any_library(pixel_pipeline: Pipeline) -> None:
    options: dict[str, Any] = {"num_iterations": 2, "steps": "2"}
    plain = pixel_pipeline(1, seed=5, **options).latents
    for seed in (np.int64(5), np.uint8(5), np.array(5)):
        np.testing.assert_array_equal(pixel_pipeline(1, seed=seed, **options).latents, plain)
    for seed in (1.5, "5", None, np.array([1, 2])):
        with pytest.raises(InvalidRequest, match="a seed must be a whole number"):
            pixel_pipeline(1, seed=seed, **options)


def test_a_plan_that_is_written_into_while_it_is_used(pixel_plan: Path, tmp_path: Path) -> None:
    """Weights are used where they lie: images that are half of another model are refused."""
    plan = tmp_path / "copy.plan"
    plan.write_bytes(pixel_plan.read_bytes())
    pipe = Pipeline.from_plan(plan, "cpu")
    pipe(1, num_iterations=2, steps="2")
    with plan.open("r+b") as file:
        file.seek(plan.stat().st_size - 1)
        file.write(b"x")
    with pytest.raises(DisaError, match="was replaced or changed while it was in use"):
        pipe(1, num_iterations=2, steps="2")


@pytest.mark.parametrize("schedule", ["/etc/hostname", "", 3, {}, None, ["a"]])
def test_a_plan_names_no_file_as_its_schedule(
    schedule: Any, pixel_pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    defaults = {**pixel_pipeline.plan.manifest.defaults, "schedule": schedule}
    manifest = replace(pixel_pipeline.plan.manifest, defaults=defaults)
    monkeypatch.setattr(pixel_pipeline.plan, "manifest", manifest)
    with pytest.raises(DisaError, match="the plan's schedule"):
        pixel_pipeline.options()
