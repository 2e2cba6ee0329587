"""Generation as a state: running samples, which join and leave between AR iterations.

A `Family` starts requests as samples, advances them by one AR iteration at a time, and finishes
them. The caller may step any samples together: an image is the same alone, in a batch, or joined
late. It is equal bit for bit on an engine that computes rows independently of their number, as ONNX
Runtime does in fp32 on the CPU, otherwise within the engine's rounding. Two things depend on the
batch on every engine: prompts, which are padded to the longest, and FlowAR images with different
guidance intervals. Both effects are below 1e-5 of an image's largest value.

A family is used by one thread at a time.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from ..engines.array_types import Floats
from .sampling.head import Iteration
from .sampling.noise import ImageNoise
from .stats import Stats

Watcher = Callable[[Iteration], None]
Image = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Request:
    """A request for one image.

    Attributes:
        condition: class number or prompt, as `Family.conditions` checked it.
        options: the family's `Options`, as `Family.options` checked them.
        noise: the random numbers of this image.
    """

    condition: Any
    options: Any
    noise: ImageNoise


@dataclass
class Cost:
    """The cost of an image.

    Attributes:
        steps: denoising steps in each AR iteration so far, of the token with the most steps.
        head_rows: rows of this image in the calls of the head.
    """

    steps: list[int] = field(default_factory=list)
    head_rows: int = 0


@dataclass(eq=False)
class Sample:
    """One image in progress. To cancel it, drop all references.

    Attributes:
        iteration: finished AR iterations.
        iterations: total AR iterations.
        cost: its cost so far.
    """

    request: Request
    iterations: int
    iteration: int = 0
    cost: Cost = field(default_factory=Cost)

    @property
    def done(self) -> bool:
        """Whether all AR iterations are done."""
        return self.iteration == self.iterations


S = TypeVar("S", bound=Sample)


@dataclass(frozen=True)
class Output:
    """A finished image.

    Attributes:
        image: uint8 [H, W, C]; None if the plan has no decoder to pixels.
        latents: fp32 [c, h, w], before the decoder.
        finite: whether all values are; the caller must fail the image if not.
    """

    image: Image | None
    latents: Floats
    finite: bool


class Family(Protocol[S]):
    """A loaded model of some family.

    Attributes:
        width: width of the widest transformer, from which a batch size is derived.
        sequence: largest number of tokens in it, for an image of the plan's own size.
    """

    width: int
    sequence: int

    @property
    def Options(self) -> type[Any]:  # noqa: N802
        """Frozen dataclass of its sampling options; the metadata of each field describe the option
        and its valid values (see `families.options`)."""
        ...

    @property
    def classes(self) -> int | None:
        """Number of classes; None for a family that takes prompts."""
        ...

    def options(self, overrides: Mapping[str, Any]) -> Any:
        """The plan's default options with `overrides`.

        Raises:
            DisaError: this family does not have an option, or a value is not valid.
        """
        ...

    def iterations(self, options: Any) -> int:
        """AR iterations of an image."""
        ...

    def conditions(self, wanted: Sequence[Any]) -> list[Any]:
        """Class numbers of classes, or prompts.

        Raises:
            DisaError: a class does not exist, or a prompt is not valid.
        """
        ...

    def start(self, requests: Sequence[Request], stats: Stats) -> list[S]:
        """Create the samples of these requests. Graphs that run once for an image run here."""
        ...

    def key(self, sample: S) -> Hashable:
        """Samples with equal keys share a backbone call."""
        ...

    def step(self, samples: Sequence[S], stats: Stats, watch: Watcher | None = None) -> None:
        """Advance each of these samples by one AR iteration; their keys may differ.

        Head calls are shared by samples of different iterations, guidance scales and step counts
        if the head graph allows it; guided and unguided samples are separate. Nothing is copied
        for a group that is unchanged since the last call.

        If an exception is raised, no sample has advanced, and each may be stepped again.

        Args:
            watch: called with the results of each group of similar samples, before they advance.
        """
        ...

    def preview(self, samples: Sequence[S]) -> list[Image]:
        """A preview of each image, with a neutral value for unknown tokens.

        Raises:
            DisaError: the plan has no decoder to pixels.
        """
        ...

    def finish(self, samples: Sequence[S], stats: Stats) -> list[Output]:
        """Decode samples that are done."""
        ...


def generate(
    family: Family[S],
    samples: Sequence[S],
    stats: Stats,
    callback: Callable[[Sequence[S]], object] | None = None,
    watch: Watcher | None = None,
) -> None:
    """Step samples until all are done.

    Args:
        callback: called after each step with the samples that were stepped.
        watch: see `Family.step`.
    """
    while running := [sample for sample in samples if not sample.done]:
        family.step(running, stats, watch)
        if callback:
            callback(running)


def to_uint8(image: Floats) -> Image:
    """[images, channels, H, W] in [-1, 1] to uint8 [images, H, W, channels], rounded."""
    scaled = np.round(np.clip((image + 1) * 127.5, 0, 255))
    return np.ascontiguousarray(np.nan_to_num(scaled).transpose(0, 2, 3, 1)).astype(np.uint8)


def outputs_of(decoded: Mapping[str, Any]) -> list[Output]:
    """A decoder's outputs, `latents` and optionally `image`, image by image."""
    latents = np.asarray(decoded["latents"])
    pixels = np.asarray(decoded["image"]) if "image" in decoded else None
    finite = np.isfinite(latents).reshape(len(latents), -1).all(axis=1)
    images: Sequence[Image | None] = [None] * len(latents)
    if pixels is not None:
        finite &= np.isfinite(pixels).reshape(len(pixels), -1).all(axis=1)
        images = list(to_uint8(pixels))
    return [
        Output(image, latent, bool(whole))
        for image, latent, whole in zip(images, latents, finite, strict=True)
    ]
