"""Recorded runs of MAR and Harmon, replayed through a plan."""

from typing import Any

import numpy as np

from ..errors import DisaError
from .families import HarmonFamily, HarmonSettings
from .masked import prediction_counts
from .pipeline import Pipeline
from .prompt import PromptBatch
from .reference import Difference, MaskedReplay, Reference, difference
from .sampler import SamplerName
from .schedule import AnnealedSchedule, Strategy
from .settings import GuidanceSchedule, Settings
from .stats import Stats

SAMPLERS = {
    "disa": SamplerName.DDPM,
    "default": SamplerName.DDPM,
    "ddim": SamplerName.DDIM,
    "dpm_solver": SamplerName.DPM_SOLVER,
    "dpm_solver++": SamplerName.DPM_SOLVER_PP,
}


def replay_mar(pipe: Pipeline, reference: Reference) -> list[Difference]:
    """Draw a recorded MAR run again: the difference of every AR iteration and of the latents."""
    settings = Settings(**_options(reference))
    images = reference.number("batch")
    labels = reference["labels"].astype(np.int64)
    classes = pipe.family.classes or 0
    if len(labels) == 0:
        labels = np.full(images, classes)
    elif labels.shape != (images,) or labels.min() < 0 or labels.max() >= classes:
        raise DisaError(f"{reference.path}: its labels are not {images} classes of the plan")
    replay = MaskedReplay(reference, images, reference.recorded(0, "rows") > _rows(reference))
    _check_counts(replay, settings, reference)
    found: list[Difference] = []
    _, latents = pipe.draw(
        labels.tolist(), settings, replay, Stats(), lambda done: found.append(replay.compare(done))
    )
    return [*found, Difference("latents", None, difference(latents, reference["latents"]))]


def replay_harmon(pipe: Pipeline, reference: Reference) -> list[Difference]:
    """Draw a recorded Harmon run again, from its token ids."""
    family = pipe.family
    assert isinstance(family, HarmonFamily)
    settings = HarmonSettings(**_options(reference), grid=_grid(reference))
    images = reference.number("images")
    prompts = PromptBatch.of_masked(
        reference["input_ids"], reference["attention_mask"], 1 + settings.guided
    )
    if prompts.index.shape[1] != images:
        raise DisaError(
            f"{reference.path}: it has {prompts.index.size} prompts, and its {images} images need "
            f"{images * (1 + settings.guided)}"
        )
    prompts.check(family.vocabulary)
    replay = MaskedReplay(reference, images, settings.guided)
    _check_counts(replay, settings, reference)
    found: list[Difference] = []
    tokens, positions = family.loop.generate(
        prompts,
        settings.grid,
        settings,
        replay,
        Stats(),
        lambda done: found.append(replay.compare(done)),
    )
    latents = np.asarray(family.loop.decode(tokens, positions, settings.grid)["latents"])
    return [*found, Difference("latents", None, difference(latents, reference["latents"]))]


def _check_counts(replay: MaskedReplay, settings: Settings, reference: Reference) -> None:
    if replay.counts != prediction_counts(sum(replay.counts), settings.iterations):
        raise DisaError(
            f"{reference.path}: its masks do not follow the cosine rule of {settings.iterations} "
            "iterations: it is not a run of the official sampler"
        )


def _grid(reference: Reference) -> tuple[int, int]:
    shape = reference.option("image_shape")
    if (
        not isinstance(shape, list)
        or len(shape) != 2
        or not all(isinstance(side, int) and side > 0 for side in shape)
    ):
        raise DisaError(f"{reference.path}: its image_shape is not a height and a width")
    return shape[0], shape[1]


def _rows(reference: Reference) -> int:
    """Rows of the first iteration without guidance."""
    masks = [reference[f"mask_before_{index:03d}"].sum() for index in (0, 1)]
    return int(masks[0] - masks[1])


def _options(reference: Reference) -> dict[str, Any]:
    """The sampling options of a recorded run, by the names of `Settings`."""
    name = str(reference.option("sampler")).lower()
    if name not in SAMPLERS:
        raise DisaError(f"{reference.path}: its sampler {name} is unknown")
    sampler = SAMPLERS[name]
    strategy = reference.option("strategy") or "fixed"
    # The official code lets each half follow its own prediction with DPM-Solver: no guidance.
    unguided = sampler in (SamplerName.DPM_SOLVER, SamplerName.DPM_SOLVER_PP)
    try:
        return {
            "iterations": int(reference.option("num_iter")),
            "schedule": AnnealedSchedule(
                int(reference.option("upper")),
                int(reference.option("lower")),
                Strategy.FIXED if name == "default" else Strategy(strategy.replace("_", "-")),
            ),
            "sampler": sampler,
            "guidance_scale": 1.0 if unguided else float(reference.option("cfg")),
            "guidance_schedule": GuidanceSchedule(reference.option("cfg_schedule")),
            "temperature": float(reference.option("temperature")),
        }
    except (TypeError, ValueError, AttributeError) as error:
        raise DisaError(f"{reference.path}: its options are not usable: {error}") from error
