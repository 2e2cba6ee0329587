"""Orders and partitions of masked generation, through the exported graphs."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from disa.errors import DisaError
from disa.runtime.families.masked.family import MaskedFamily
from disa.runtime.families.masked.partition import Order, prediction_counts
from disa.runtime.generation import Request, generate
from disa.runtime.pipeline import Pipeline
from disa.runtime.sampling.head import Iteration
from disa.runtime.sampling.noise import PhiloxNoise
from disa.runtime.sampling.schedule import FittedSchedule
from disa.runtime.stats import Stats


def test_the_usual_partition_written_out_is_the_usual_image(pixel_pipeline: Pipeline) -> None:
    tokens = pixel_pipeline.plan.manifest.tokens["count"]
    usual = pixel_pipeline([0, 1], num_iterations=5, steps="4:4").latents
    fitted = FittedSchedule((4,) * 5, tokens=tuple(prediction_counts(tokens, 5)))
    np.testing.assert_array_equal(pixel_pipeline([0, 1], schedule=fitted).latents, usual)
    np.testing.assert_array_equal(
        pixel_pipeline([0, 1], num_iterations=5, steps="4:4", order="random").latents, usual
    )
    other = FittedSchedule((4, 4), tokens=(1, tokens - 1))
    assert np.abs(pixel_pipeline([0, 1], schedule=other).latents - usual).max() > 0


def test_a_checkerboard_is_generated(pixel_pipeline: Pipeline) -> None:
    options = {"num_iterations": 4, "steps": "3:3"}
    family = pixel_pipeline.family
    checkered = pixel_pipeline.options(order="checkerboard", **options)
    requests = pixel_pipeline.requests([0, 1], checkered, 0, range(2))
    for sample in family.start(requests, Stats()):
        length = len(sample.order)
        assert sample.counts == prediction_counts(length, 4, Order.CHECKERBOARD)
        side = int(length**0.5)
        colour = (sample.order // side + sample.order % side) % 2
        assert (np.diff(colour) >= 0).all()
    plain = pixel_pipeline([0, 1], **options).latents
    assert np.abs(pixel_pipeline([0, 1], order="checkerboard", **options).latents - plain).max() > 0


def test_other_orders_in_company(pixel_pipeline: Pipeline) -> None:
    """An image is that of its own run beside images of other orders and partitions."""
    tokens = pixel_pipeline.plan.manifest.tokens["count"]
    fitted = FittedSchedule((4, 3, 2), tokens=(1, 5, tokens - 6))
    chosen = [
        pixel_pipeline.options(num_iterations=3, steps="4:2", order="checkerboard"),
        pixel_pipeline.options(num_iterations=3, steps="4:2"),
        pixel_pipeline.options(schedule=fitted),
    ]
    requests = [Request(1, options, PhiloxNoise(5, i)) for i, options in enumerate(chosen)]
    together = pixel_pipeline.generate(requests, Stats())
    for request, output in zip(requests, together, strict=True):
        alone = pixel_pipeline.generate([request], Stats())[0]
        np.testing.assert_allclose(output.latents, alone.latents, atol=1e-5)


def test_a_tolerance_skips_steps(pixel_pipeline: Pipeline) -> None:
    rows = []
    for tolerance in (0.0, 10.0):
        options = pixel_pipeline.options(num_iterations=3, steps="20:20", tolerance=tolerance)
        requests = pixel_pipeline.requests([1], options, 0, range(1))
        samples = pixel_pipeline.family.start(requests, Stats())
        generate(pixel_pipeline.family, samples, Stats())
        rows.append(samples[0].cost.head_rows)
    assert rows[0] == len(options.table(0)) * pixel_pipeline.plan.manifest.tokens["count"]
    assert rows[1] < rows[0]


@pytest.mark.parametrize("size", ["48x80", "80x48", "16", "112x16"])
def test_sizes_of_harmon(text_plan: Path, size: str) -> None:
    pipe = Pipeline.from_plan(text_plan, "cpu")
    width, height = (int(side) // 16 for side in (size.split("x") * 2)[:2])
    options = pipe.options(num_iterations=1, steps="2:2", size=size, order="checkerboard")
    assert isinstance(pipe.family, MaskedFamily)
    sample = pipe.family.start(pipe.requests(["a dog"], options, 0, range(1)), Stats())[0]
    colour = (sample.order // width + sample.order % width) % 2
    assert (np.diff(colour) >= 0).all()
    assert sorted(sample.order) == list(range(width * height))


def test_a_schedule_of_another_size(text_plan: Path) -> None:
    pipe = Pipeline.from_plan(text_plan, "cpu")
    fitted = FittedSchedule((3, 2), tokens=(4, 11))
    assert pipe.options(schedule=fitted, size="48x80").partition(15) == [4, 11]
    with pytest.raises(DisaError, match="images of 15 tokens, and these have 16"):
        pipe.options(schedule=fitted, size="64")


@pytest.mark.parametrize("name", ["flowar_s", "xar"])
def test_families_whose_iterations_are_fixed(golden_plan: Callable[..., Path], name: str) -> None:
    pipe = Pipeline.from_plan(golden_plan(name), "cpu")
    with pytest.raises(DisaError, match="which are fixed in a"):
        pipe.options(schedule=FittedSchedule((3, 2), tokens=(4, 11)))
    with pytest.raises(DisaError, match="no option order"):
        pipe.options(order="checkerboard")


def test_harmon_looks_ahead(text_plan: Path) -> None:
    """Tokens are predicted as by an iteration that predicts those between as well."""
    pipe = Pipeline.from_plan(text_plan, "cpu")
    options = pipe.options(num_iterations=2, steps="2:2", size="48x80", guidance_scale=2.0)
    samples = pipe.family.start(pipe.requests(["a dog", "a bag"], options, 0, range(2)), Stats())
    known, count = samples[0].counts
    seen: list[Iteration] = []
    generate(pipe.family, samples, Stats(), watch=seen.append)
    found: list[Iteration] = []
    assert isinstance(pipe.family, MaskedFamily)
    probes = range(known + 2, known + count)
    pipe.family.look_ahead(samples, known, probes, Stats(), found.append)
    np.testing.assert_array_equal(found[0].predicted, seen[1].predicted[2:])
    expected = np.asarray(seen[1].condition)[:, 2 * 2 :]
    np.testing.assert_allclose(np.asarray(found[0].condition), expected, rtol=1e-4, atol=1e-5)
