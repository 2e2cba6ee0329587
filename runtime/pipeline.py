"""From class labels to images."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..engines.open import open_session
from ..engines.plan import Plan
from ..engines.session import Session
from ..errors import DisaError
from .families import AnySettings, open_family
from .masked import Watcher
from .noise import NoiseSource, PhiloxNoise
from .schedule import Schedule, as_schedule
from .stats import Stats

Images = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
AUTO_BATCH_FLOATS = 64 * 1024**2
MAX_AUTO_BATCH = 64
RUN_ONCE = frozenset({"prompt"})
"""Graphs that run once for a batch and have the weights of another graph. A copy of a language
model in the layout of the matrix kernels would cost more than it saves."""


@dataclass(frozen=True)
class Result:
    """What a pipeline drew.

    Attributes:
        images: uint8 [images, height, width, 3 or 1]; None if the plan cannot make pixels.
        latents: fp32 [images, channels, height, width], before the decoder.
        stats: what it cost.
    """

    images: Images | None
    latents: Floats
    stats: Stats


class Pipeline:
    """A plan with its graphs loaded, ready to draw.

    pipe = Pipeline.from_plan("engines/mar_b.plan")
    result = pipe(class_labels=[207, 360], guidance_scale=2.9, seed=0)
    """

    def __init__(self, plan: Plan, sessions: Mapping[str, Session]) -> None:
        self.plan = plan
        self.sessions = dict(sessions)
        self.family = open_family(plan, self.sessions)
        self.class_names = plan.manifest.class_names

    @classmethod
    def from_plan(
        cls,
        path: str | os.PathLike[str],
        engine: str = "auto",
        *,
        threads: int | None = None,
        exact: bool = False,
    ) -> "Pipeline":
        """Open a plan and load its graphs.

        Args:
            engine: what runs them; `auto` takes the fastest that is here.
            threads: CPU threads; all cores by default.
            exact: do not let the engine compute in less than fp32 if the plan is fp32.

        Raises:
            DisaError: the plan is damaged, or the engine cannot run here.
        """
        plan = Plan.open(Path(path))
        precision = "fp32" if exact and plan.manifest.precision == "fp32" else None
        sessions = {
            name: open_session(
                plan,
                name,
                engine,
                threads=threads,
                precision=precision,
                prepack=name not in RUN_ONCE,
            )
            for name in plan.manifest.graphs
        }
        return cls(plan, sessions)

    @property
    def engine(self) -> str:
        """What really runs, as the sessions say."""
        return "; ".join(sorted({session.description for session in self.sessions.values()}))

    def __call__(
        self,
        class_labels: Sequence[int | str] | int | str | None = None,
        *,
        prompt: Sequence[str] | str | None = None,
        guidance_scale: float | None = None,
        guidance_schedule: str | None = None,
        guidance_interval: float | None = None,
        seed: int = 0,
        num_iterations: int | None = None,
        steps: str | int | None = None,
        strategy: str | None = None,
        schedule: Schedule | str | os.PathLike[str] | None = None,
        sampler: str | None = None,
        temperature: float | None = None,
        size: str | int | None = None,
        tolerance: float | None = None,
        batch_size: int | None = None,
        first_image: int = 0,
        progress: Callable[[int], object] | None = None,
    ) -> Result:
        """Draw one image for each class label or prompt.

        An option that is not given comes from the plan; one that the model's family does not
        have is refused.

        Args:
            class_labels: numbers or names; None draws one image without a class.
            prompt: texts, for a model that draws texts.
            guidance_scale: classifier-free guidance; 1 is none.
            guidance_schedule: "linear" or "constant" over the AR iterations.
            guidance_interval: latest flow time at which FlowAR guides, 0 to 1.
            seed: image i of a seed is the same in any batch.
            num_iterations: AR iterations, at most the tokens of an image.
            steps: "UPPER:LOWER" denoising steps.
            strategy: "linear", "cosine", "two-stage", "constant", "fixed", or "adaptive".
            schedule: an object that says the steps, or the path of a schedule that was
                written by disa-calibrate, instead of `steps` and `strategy`.
            sampler: "ddpm", "ddim", "dpm-solver", or "dpm-solver++".
            temperature: of the noise in each denoising step.
            size: pixels, "512" or "640x384" (width x height), for Harmon.
            tolerance: by how much a token's prediction may change between two denoising steps
                before a step more is taken; 0 takes all, 0.05 is that of "adaptive".
            batch_size: images drawn together; chosen by the model's size if not given.
            first_image: index of the first image in the seed's sequence.
            progress: called with the number of images after each batch.

        Raises:
            DisaError: an unknown class or option, or a value that cannot be.
        """
        settings = self.settings(
            iterations=num_iterations,
            steps=str(steps) if steps is not None else None,
            strategy=strategy,
            schedule=schedule,
            sampler=sampler,
            cfg=guidance_scale,
            cfg_schedule=guidance_schedule,
            guidance_interval=guidance_interval,
            temperature=temperature,
            size=size,
            tolerance=tolerance,
        )
        conditions = self.conditions(class_labels, prompt)
        together = self.auto_batch_size(settings) if batch_size is None else batch_size
        if together < 1:
            raise DisaError(f"the batch size must be at least 1, not {together}")
        if first_image < 0:
            raise DisaError(f"the first image has at least the index 0, not {first_image}")
        stats = Stats()
        parts = []
        for start in range(0, len(conditions), together):
            batch = conditions[start : start + together]
            images = range(first_image + start, first_image + start + len(batch))
            parts.append(self.draw(batch, settings, PhiloxNoise(seed, images), stats))
            if progress:
                progress(len(batch))
        images_of = [images for images, _ in parts if images is not None]
        return Result(
            np.concatenate(images_of) if images_of else None,
            np.concatenate([latents for _, latents in parts]),
            stats,
        )

    def draw(
        self,
        conditions: Sequence[Any],
        settings: AnySettings,
        noise: NoiseSource,
        stats: Stats,
        watch: Watcher | None = None,
    ) -> tuple[Images | None, Floats]:
        """Draw one batch: images [batch, H, W, channels] or None, and latents.

        Args:
            conditions: class numbers or prompts, as `conditions` gives them.
            watch: called after each AR iteration.
        """
        with stats.timed("total"):
            outputs = self.family.draw(conditions, settings, noise, stats, watch)
            latents = np.asarray(outputs["latents"])
            images = to_uint8(np.asarray(outputs["image"])) if "image" in outputs else None
        stats.images += len(conditions)
        return images, latents

    def settings(
        self, *, schedule: Schedule | str | os.PathLike[str] | None = None, **given: Any
    ) -> AnySettings:
        """Sampling options: those given, the others from the plan's defaults.

        Raises:
            DisaError: an option that this family does not have, or a value that cannot be.
        """
        known = dict(self.plan.manifest.defaults)
        chosen = {name: value for name, value in given.items() if value is not None}
        for name in chosen:
            if name not in known and name != "tolerance":
                raise DisaError(
                    f"a {self.plan.manifest.family} model has no option {name}: it has "
                    f"{', '.join(known)}"
                )
        named = [name for name in ("steps", "strategy") if name in chosen]
        if schedule is not None and named:
            raise DisaError(f"a schedule says the steps: leave out {' and '.join(named)}")
        if named:
            known.pop("schedule", None)
        fitted = None if schedule is None else as_schedule(schedule)
        try:
            return self.family.settings({**known, **chosen}, fitted)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DisaError(f"the sampling options are not usable: {error}") from error

    def conditions(
        self,
        class_labels: Sequence[int | str] | int | str | None,
        prompt: Sequence[str] | str | None = None,
    ) -> list[Any]:
        """What each image is drawn of: class numbers, or prompts; no label is no class."""
        wanted: Sequence[int | str] | int | str | None
        if self.family.classes is None:
            wanted, other, kind = prompt, class_labels, "prompt"
        else:
            wanted, other, kind = class_labels, prompt, "class"
        if other is not None:
            raise DisaError(f"a {self.plan.manifest.family} model draws a {kind}: give one")
        if wanted is None and kind == "class":
            return self.family.conditions([None])
        listed = [wanted] if isinstance(wanted, int | str) else list(wanted or [])
        if not listed:
            raise DisaError(f"there is nothing to draw: give at least one {kind}")
        return self.family.conditions(listed)

    def auto_batch_size(self, settings: AnySettings) -> int:
        """Images drawn together when nobody says: as many as keep activations near 256 MiB."""
        # A block holds about 16 activations of the model's width for each token.
        floats = 16 * self.family.sequence * self.family.width * (2 if settings.guided else 1)
        return max(1, min(MAX_AUTO_BATCH, AUTO_BATCH_FLOATS // floats))


def to_uint8(image: Floats) -> Images:
    """[images, channels, H, W] in [-1, 1] to uint8 [images, H, W, channels], rounded."""
    scaled = np.round(np.clip((image + 1) * 127.5, 0, 255))
    return np.ascontiguousarray(scaled.transpose(0, 2, 3, 1)).astype(np.uint8)
