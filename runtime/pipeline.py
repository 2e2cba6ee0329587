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
from ..engines.session import Array, Session
from ..errors import DisaError
from .labels import find_class
from .mar import MARLoop, Watcher
from .noise import NoiseSource, PhiloxNoise
from .sampler import SamplerName
from .schedule import AnnealedSchedule, Schedule, Strategy, parse_steps
from .settings import GuidanceSchedule, Settings
from .stats import Stats

Images = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
AUTO_BATCH_FLOATS = 64 * 1024**2
MAX_AUTO_BATCH = 64


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
        manifest = plan.manifest
        if manifest.family != "mar":
            raise DisaError(f"{plan.path}: this disa cannot run the family {manifest.family}")
        self.class_names = manifest.class_names
        self.classes = int(manifest.model["class_num"])
        self._loop = MARLoop(
            self.sessions,
            int(manifest.tokens["count"]),
            int(manifest.tokens["channels"]),
            self.classes,
        )

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
            exact: do not let the engine compute in less than the plan's precision.

        Raises:
            DisaError: the plan is damaged, or the engine cannot run here.
        """
        plan = Plan.open(Path(path))
        sessions = {
            name: open_session(plan, name, engine, threads=threads) for name in plan.manifest.graphs
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
        guidance_scale: float | None = None,
        guidance_schedule: str | None = None,
        seed: int = 0,
        num_iterations: int | None = None,
        steps: str | int | None = None,
        strategy: str | None = None,
        schedule: Schedule | None = None,
        sampler: str | None = None,
        temperature: float | None = None,
        batch_size: int | None = None,
        first_image: int = 0,
        progress: Callable[[int], object] | None = None,
    ) -> Result:
        """Draw one image for each class label; what is not given comes from the plan.

        Args:
            class_labels: numbers or names; None draws one image without a class.
            guidance_scale: classifier-free guidance; 1 is none.
            guidance_schedule: "linear" or "constant" over the AR iterations.
            seed: image i of a seed is the same in any batch.
            num_iterations: AR iterations, at most the tokens of an image.
            steps: "UPPER:LOWER" denoising steps.
            strategy: "linear", "cosine", "two-stage", "constant", or "fixed".
            schedule: an object that says the steps, instead of `steps` and `strategy`.
            sampler: "ddpm", "ddim", "dpm-solver", or "dpm-solver++".
            temperature: of the noise in each denoising step.
            batch_size: images drawn together; chosen by the model's size if not given.
            first_image: index of the first image in the seed's sequence.
            progress: called with the number of images after each batch.
        """
        settings = self.settings(
            iterations=num_iterations,
            steps=str(steps) if steps is not None else None,
            strategy=strategy,
            schedule=schedule,
            sampler=sampler,
            cfg=guidance_scale,
            cfg_schedule=guidance_schedule,
            temperature=temperature,
        )
        labels = self.labels(class_labels)
        size = batch_size or self.auto_batch_size(settings)
        stats = Stats()
        parts = []
        for start in range(0, len(labels), size):
            batch = labels[start : start + size]
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
        labels: npt.NDArray[np.int64],
        settings: Settings,
        noise: NoiseSource,
        stats: Stats,
        watch: Watcher | None = None,
    ) -> tuple[Images | None, Floats]:
        """Draw one batch: images [batch, H, W, channels] or None, and latents."""
        with stats.timed("total"):
            tokens, positions = self._loop.generate(labels, settings, noise, stats, watch)
            with stats.timed("decoder"):
                images, latents = self._decode(tokens, positions)
        stats.images += len(labels)
        return images, latents

    def settings(self, *, schedule: Schedule | None = None, **given: Any) -> Settings:
        """Sampling options: those given, the others from the plan's defaults."""
        known = dict(self.plan.manifest.defaults)
        chosen = {**known, **{name: value for name, value in given.items() if value is not None}}
        try:
            if schedule is None:
                upper, lower = parse_steps(chosen["steps"])
                schedule = AnnealedSchedule(upper, lower, Strategy(chosen["strategy"]))
            return Settings(
                iterations=int(chosen["iterations"]),
                schedule=schedule,
                sampler=SamplerName(chosen["sampler"]),
                guidance_scale=float(chosen["cfg"]),
                guidance_schedule=GuidanceSchedule(chosen["cfg_schedule"]),
                temperature=float(chosen["temperature"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DisaError(f"the sampling options are not usable: {error}") from error

    def labels(self, wanted: Sequence[int | str] | int | str | None) -> npt.NDArray[np.int64]:
        """Class numbers [images]; None is one image of no class."""
        if wanted is None:
            return np.array([self.classes], np.int64)
        listed = [wanted] if isinstance(wanted, int | str) else list(wanted)
        if not listed:
            raise DisaError("there are no class labels to draw: give at least one")
        found = [find_class(label, self.classes, self.class_names) for label in listed]
        return np.array(found, np.int64)

    def auto_batch_size(self, settings: Settings) -> int:
        """Images drawn together when nobody says: as many as keep activations near 256 MiB."""
        model = self.plan.manifest.model
        width = int(model["encoder_embed_dim"])
        sequence = int(model["buffer_size"]) + int(self.plan.manifest.tokens["count"])
        # A block holds about 16 activations of the model's width for each token.
        floats = 16 * sequence * width * (2 if settings.guided else 1)
        return max(1, min(MAX_AUTO_BATCH, AUTO_BATCH_FLOATS // floats))

    def _decode(
        self, tokens: Array, positions: npt.NDArray[np.int64]
    ) -> tuple[Images | None, Floats]:
        outputs = self.sessions["decoder"].run({"tokens": tokens, "positions": positions})
        latents = np.asarray(outputs["latents"])
        if "image" not in outputs:
            return None, latents
        return to_uint8(np.asarray(outputs["image"])), latents


def to_uint8(image: Floats) -> Images:
    """[images, channels, H, W] in [-1, 1] to uint8 [images, H, W, channels], rounded."""
    scaled = np.round(np.clip((image + 1) * 127.5, 0, 255))
    return np.ascontiguousarray(scaled.transpose(0, 2, 3, 1)).astype(np.uint8)
