"""Replays recorded runs of MAR and Harmon with a plan."""

from typing import Any

import numpy as np

from ...errors import DisaError
from ..families.conditions.prompt import EncodedPrompt, PromptBatch
from ..families.masked.harmon import HarmonFamily, HarmonOptions
from ..families.masked.options import MaskedOptions
from ..families.masked.partition import Order, prediction_counts
from ..pipeline import Pipeline
from ..sampling.guidance import GuidanceSchedule
from ..sampling.sampler import SamplerName
from ..sampling.schedule import AnnealedSchedule, Strategy
from .recorded_noise import replayed
from .reference import Difference, MaskedReplay, RecordedRun

SAMPLERS = {
    "disa": SamplerName.DDPM,
    "default": SamplerName.DDPM,
    "ddim": SamplerName.DDIM,
    "dpm_solver": SamplerName.DPM_SOLVER,
    "dpm_solver++": SamplerName.DPM_SOLVER_PP,
}


def replay_mar(pipe: Pipeline, reference: RecordedRun) -> list[Difference]:
    """Replay a recorded MAR run; returns the difference of every AR iteration and of the
    latents."""
    options = MaskedOptions(**_options(reference))
    images = reference.number("batch")
    labels = reference.integers("labels", 1)
    classes = pipe.family.classes or 0
    if len(labels) == 0:
        labels = np.full(images, classes)
    elif labels.shape != (images,) or labels.min() < 0 or labels.max() >= classes:
        raise DisaError(f"{reference.path}: its labels are not {images} classes of the plan")
    replay = MaskedReplay(reference, images, reference.recorded(0, "rows") > _rows(reference))
    _check_counts(replay, options, reference)
    return replayed(pipe, labels.tolist(), options, replay, reference)


def replay_harmon(pipe: Pipeline, reference: RecordedRun) -> list[Difference]:
    """Replay a recorded Harmon run from its token ids; returns the differences."""
    family = pipe.family
    assert isinstance(family, HarmonFamily)
    height, width = (side * family.token_sizes["stride"] for side in _grid(reference))
    options = HarmonOptions(**_options(reference), size=f"{width}x{height}")
    images = reference.number("images")
    prompts = PromptBatch.of_masked(
        reference.integers("input_ids", 2),
        reference.integers("attention_mask", 2),
        1 + options.guided,
    )
    if prompts.index.shape[1] != images:
        raise DisaError(
            f"{reference.path}: it has {prompts.index.size} prompts, but its {images} images need "
            f"{images * (1 + options.guided)}"
        )
    prompts.check(family.vocabulary)
    replay = MaskedReplay(reference, images, options.guided)
    _check_counts(replay, options, reference)
    halves = [
        [tuple(prompts.input_ids[row, : prompts.length[row]].tolist()) for row in half]
        for half in prompts.index
    ]
    # Without guidance the second half is not used.
    encoded = [EncodedPrompt(*both) for both in zip(halves[0], halves[-1], strict=True)]
    return replayed(pipe, encoded, options, replay, reference)


def _check_counts(replay: MaskedReplay, options: MaskedOptions, reference: RecordedRun) -> None:
    if replay.counts != prediction_counts(sum(replay.counts), options.num_iterations):
        raise DisaError(
            f"{reference.path}: its masks do not follow the cosine rule of "
            f"{options.num_iterations} iterations: it is not a run of the official sampler"
        )


def _grid(reference: RecordedRun) -> tuple[int, int]:
    shape = reference.option("image_shape")
    if (
        not isinstance(shape, list)
        or len(shape) != 2
        or not all(isinstance(side, int) and side > 0 for side in shape)
    ):
        raise DisaError(f"{reference.path}: its image_shape is not a height and a width")
    return shape[0], shape[1]


def _rows(reference: RecordedRun) -> int:
    """Number of rows in the first iteration, without guidance."""
    first = reference.integers("mask_before_000", 2).sum()
    # After the last iteration nothing is masked, and no mask is recorded.
    rest = reference.integers("mask_before_001", 2).sum() if len(reference.steps) > 1 else 0
    return int(first - rest)


def _options(reference: RecordedRun) -> dict[str, Any]:
    """The sampling options of a recorded run, under the names in `MaskedOptions`."""
    name = str(reference.option("sampler")).lower()
    if name not in SAMPLERS:
        raise DisaError(f"{reference.path}: its sampler {name} is unknown")
    sampler = SAMPLERS[name]
    strategy = reference.option("strategy") or "fixed"
    # With DPM-Solver the official code lets each half follow its own prediction: no guidance.
    unguided = sampler in (SamplerName.DPM_SOLVER, SamplerName.DPM_SOLVER_PP)
    try:
        return {
            "num_iterations": int(reference.option("num_iter")),
            "schedule": AnnealedSchedule(
                int(reference.option("upper")),
                int(reference.option("lower")),
                Strategy.FIXED if name == "default" else Strategy(strategy.replace("_", "-")),
            ),
            "sampler": sampler,
            "guidance_scale": 1.0 if unguided else float(reference.option("cfg")),
            "guidance_schedule": GuidanceSchedule(reference.option("cfg_schedule")),
            "temperature": float(reference.option("temperature")),
            "order": Order.RANDOM,
        }
    except (TypeError, ValueError, AttributeError) as error:
        raise DisaError(f"{reference.path}: its options are not usable: {error}") from error
