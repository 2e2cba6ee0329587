"""The Python interface: from class labels or prompts to images."""

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as PILImage

from ..checked_numbers import whole_number
from ..engines.open import open_session
from ..engines.plan.plan import Plan
from ..engines.session import Session
from ..errors import DisaError, InvalidRequest
from .families.registry import open_family
from .generation import (
    Family,
    Output,
    Request,
    Sample,
    Watcher,
    generate,
    to_uint8,
)
from .result import Progress, Result
from .sampling.noise import PhiloxNoise
from .sampling.schedule import Schedule
from .sessions import Sessions
from .stats import Stats

__all__ = ["Pipeline", "Progress", "Result", "to_uint8"]

Images = npt.NDArray[np.uint8]
AUTO_BATCH_FLOATS = 64 * 1024**2
MAX_AUTO_BATCH = 64
MAX_IMAGE = 2**62
OUTPUT_TYPES = ("np", "pil", "latent")

logger = logging.getLogger("disa")


class Pipeline:
    """A plan with its graphs loaded, ready to generate.

    ::

        with Pipeline.from_plan("engines/mar_b.plan") as pipe:
            result = pipe(class_labels=[207, 360], guidance_scale=2.9, seed=0)

    Any thread may call a pipeline; calls run one after another. Its `family` is for one thread
    at a time: code that uses it directly must hold `lock`.
    """

    def __init__(self, plan: Plan, sessions: Mapping[str, Session]) -> None:
        self.plan = plan
        self.sessions = sessions if isinstance(sessions, Sessions) else dict(sessions)
        self.lock = threading.RLock()
        self._family: Family[Any] | None = open_family(plan, self.sessions)
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
            path: the plan.
            engine: engine of the graphs; `auto` selects the fastest one available.
            threads: CPU threads; all cores by default.
            exact: do not let the engine compute in less than fp32 if the plan is fp32.

        Raises:
            DisaError: the plan is damaged, or the engine cannot run here.
        """
        plan = Plan.open(Path(path))
        precision = "fp32" if exact and plan.manifest.precision == "fp32" else None

        def open_graph(name: str) -> Session:
            prepack = plan.graph(name).traits.prepack
            return open_session(
                plan, name, engine, threads=threads, precision=precision, prepack=prepack
            )

        try:
            pipe = cls(plan, Sessions(plan, open_graph))
        except BaseException:
            plan.close()
            raise
        logger.info("%s: %s", path, pipe.engine)
        return pipe

    @property
    def family(self) -> Family[Any]:
        """The loaded model, a `generation.Family`.

        Raises:
            DisaError: the pipeline is closed.
        """
        if self._family is None:
            raise DisaError(f"the pipeline of {self.plan.path} is closed: open the plan again")
        return self._family

    @property
    def engine(self) -> str:
        """The engine that really runs, as its sessions describe it."""
        return "; ".join(sorted({session.description for session in self.sessions.values()}))

    def close(self) -> None:
        """Release the graphs and their memory, after a running call has ended."""
        with self.lock:
            self._family = None
            self.sessions.clear()
            self.plan.close()

    def __enter__(self) -> "Pipeline":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

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
        order: str | None = None,
        refresh: str | None = None,
        batch_size: int | None = None,
        first_image: int = 0,
        output_type: str = "np",
        callback: Callable[[Progress], object] | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> Result:
        """Generate one image for each class label or prompt.

        The default of every option comes from the plan; an option that the model's family does
        not have is refused.

        Args:
            class_labels: numbers or names; None generates one image without a class.
            prompt: texts, for a model that takes prompts.
            guidance_scale: scale of classifier-free guidance; 1 turns it off.
            guidance_schedule: "linear" or "constant" over the AR iterations.
            guidance_interval: largest flow time (1 is pure noise) at which FlowAR guides, 0 to 1.
            seed: seed of the noise and of the generation order; image i of a seed is the same in
                any batch.
            num_iterations: AR iterations, at most the tokens of an image.
            steps: "UPPER:LOWER" denoising steps.
            strategy: "linear", "cosine", "two-stage", "constant", "fixed", or "adaptive".
            schedule: an object that gives the steps, or the path of a schedule that was
                written by disa-calibrate, instead of `steps` and `strategy`. It may also set how
                many tokens each AR iteration predicts, and which are full passes.
            sampler: "ddpm", "ddim", "dpm-solver", or "dpm-solver++".
            temperature: scales the noise of each denoising step.
            size: pixels, "512" or "640x384" (width x height), for Harmon.
            tolerance: steps are skipped while a token's prediction changes less than this between
                two denoising steps; 0 skips none, 0.05 is the value of "adaptive".
            order: order in which MAR and Harmon generate tokens, "random" or "checkerboard".
            refresh: full passes of a cached backbone of MAR and Harmon, such as "9:5" (the first 5
                AR iterations, then every 9th); approximate. By default the backbone is not cached.
            batch_size: images generated together; by default derived from the model's size.
            first_image: index of the first image in the seed's sequence.
            output_type: "np" for an array of images, "pil" for a list of PIL images, "latent"
                for latents only.
            callback: called after each AR iteration of a batch with a `Progress`; an exception
                ends the call.
            progress: called with the number of images after each batch.

        Returns:
            The images in the order of the labels or prompts, their latents, and the cost.

        Raises:
            DisaError: a class or option does not exist, a value is not valid, or an image has
                values that are not finite.
        """
        if output_type not in OUTPUT_TYPES:
            raise InvalidRequest(
                f"the output type must be one of {', '.join(OUTPUT_TYPES)}, not {output_type!r}"
            )
        options = self.options(
            num_iterations=num_iterations,
            steps=steps,
            strategy=strategy,
            schedule=schedule,
            sampler=sampler,
            guidance_scale=guidance_scale,
            guidance_schedule=guidance_schedule,
            guidance_interval=guidance_interval,
            temperature=temperature,
            size=size,
            tolerance=tolerance,
            order=order,
            refresh=refresh,
        )
        conditions = self.conditions(class_labels, prompt)
        together = self.auto_batch_size(options)
        if batch_size is not None:
            together = whole_number("the batch size", batch_size, 1)
        first_image = whole_number("the index of the first image", first_image, 0, MAX_IMAGE)
        stats = Stats()
        outputs: list[Output] = []
        for start in range(0, len(conditions), together):
            batch = conditions[start : start + together]
            images = range(first_image + start, first_image + start + len(batch))
            requests = self.requests(batch, options, seed, images)
            outputs += self.generate(requests, stats, self._told(callback, images))
            if progress:
                progress(len(batch))
        check_finite(outputs, first_image)
        logger.debug("%d images, %s", len(outputs), stats.to_json())
        return Result(
            images_as(outputs, output_type), np.stack([each.latents for each in outputs]), stats
        )

    def requests(
        self, conditions: Sequence[Any], options: Any, seed: int, images: Sequence[int]
    ) -> list[Request]:
        """One request for each condition, with the noise of the given images of the seed."""
        return [
            Request(condition, options, PhiloxNoise(seed, image))
            for condition, image in zip(conditions, images, strict=True)
        ]

    def generate(
        self,
        requests: Sequence[Request],
        stats: Stats,
        callback: Callable[[Sequence[Sample]], object] | None = None,
        watch: Watcher | None = None,
    ) -> list[Output]:
        """Generate one batch.

        Args:
            requests: one for each image, from `requests`.
            stats: the cost is added to it.
            callback: called after each AR iteration with the samples that were stepped.
            watch: called with the results of each AR iteration.

        Raises:
            DisaError: the plan was changed while it was in use, or an engine failed.
        """
        # Weights are mapped from the file: a process that writes into it changes them.
        self.plan.check_unchanged()
        with self.lock, stats.timed("total"):
            samples = self.family.start(requests, stats)
            generate(self.family, samples, stats, callback, watch)
            outputs = self.family.finish(samples, stats)
        self.plan.check_unchanged()
        return outputs

    def _told(
        self, callback: Callable[[Progress], object] | None, images: range
    ) -> Callable[[Sequence[Sample]], object] | None:
        if callback is None:
            return None

        def tell(samples: Sequence[Sample]) -> None:
            first = samples[0]
            callback(
                Progress(
                    images,
                    first.iteration,
                    first.iterations,
                    lambda: self.family.preview(samples),
                )
            )

        return tell

    def options(self, **overrides: Any) -> Any:
        """Sampling options: the arguments that are not None, and the plan's defaults.

        Raises:
            DisaError: this family does not have an option, or a value is not valid.
        """
        chosen = {name: value for name, value in overrides.items() if value is not None}
        return self.family.options(chosen)

    def conditions(
        self,
        class_labels: Sequence[int | str] | int | str | None,
        prompt: Sequence[str] | str | None = None,
    ) -> list[Any]:
        """The condition of each image: class numbers or prompts; no label means no class."""
        wanted: Sequence[int | str] | int | str | None
        if self.family.classes is None:
            wanted, other, kind = prompt, class_labels, "prompt"
        else:
            wanted, other, kind = class_labels, prompt, "class"
        if other is not None:
            takes = "classes, not prompts" if kind == "class" else "prompts, not classes"
            raise InvalidRequest(
                f"a {self.plan.manifest.family} model takes {takes}: give a {kind}"
            )
        if wanted is None and kind == "class":
            return self.family.conditions([None])
        listed = _listed(wanted)
        if not listed:
            raise InvalidRequest(f"there is nothing to generate: give at least one {kind}")
        return self.family.conditions(listed)

    def auto_batch_size(self, options: Any) -> int:
        """The default batch size: as many images as keep activations near 256 MiB."""
        # A block holds about 16 activations of the model's width for each token.
        tokens = self.plan.manifest.tokens
        sequence: int = self.family.sequence + options.image_tokens(tokens) - tokens["count"]
        floats = 16 * sequence * self.family.width * (2 if options.guided else 1)
        return max(1, min(MAX_AUTO_BATCH, AUTO_BATCH_FLOATS // floats))


def check_finite(outputs: Sequence[Output], first_image: int = 0) -> None:
    """Check that all images are finite.

    Raises:
        DisaError: an image has values that are not finite.
    """
    broken = [first_image + index for index, each in enumerate(outputs) if not each.finite]
    if broken:
        raise DisaError(
            f"image {broken[0]} has values that are not finite: the plan is damaged, its "
            "precision overflows (try fp32), or its sampling options are not usable"
        )


def images_as(outputs: Sequence[Output], output_type: str) -> Any:
    """The images in the form of the output type; None if there are none."""
    images = [each.image for each in outputs if each.image is not None]
    if output_type == "latent" or not images:
        return None
    if output_type == "np":
        return np.stack(images)
    return [
        PILImage.fromarray(image[:, :, 0] if image.shape[2] == 1 else image) for image in images
    ]


def _listed(given: Any) -> list[Any]:
    """One item or several, also of NumPy, as a list."""
    if given is None:
        return []
    if isinstance(given, str | bytes):
        return [given]
    try:
        return list(given)
    except TypeError:
        return [given]
