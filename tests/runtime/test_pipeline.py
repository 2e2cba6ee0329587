import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from disa.errors import DisaError
from disa.runtime.pipeline import Pipeline, to_uint8

QUICK = {"num_iterations": 3, "steps": "3:2"}


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
        {"first_image": -1},
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
