"""Recorded runs of an official implementation."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...checked_json import JSONError, any_object, load
from ...engines.array_types import Floats, Ints
from ...errors import DamagedFile
from ..sampling.head import Iteration
from .npz_file import NpzFile

MAX_META_BYTES = 64 << 20
MAX_STEPS = 1 << 16
MAX_IMAGES = 4096
MAX_NOISE_BYTES = 2 << 30
"""Largest noise of one AR iteration in bytes."""
MAX_MASK_BYTES = 256 << 20
"""Largest masks of all AR iterations in bytes."""


class RecordedRun:
    """The arrays of a recorded run, read on request.

    Raises:
        DamagedFile: it is not a recorded run, or an array is missing or of the wrong kind.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._arrays = NpzFile(path)
        except DamagedFile as error:
            raise DamagedFile(
                f"{error}: use a recorded run, with the arrays meta, latents and draws"
            ) from error
        self.names = self._arrays.names
        meta = self._arrays.read("meta", kinds="U")
        try:
            if meta.ndim or meta.nbytes > MAX_META_BYTES:
                raise ValueError(f"{meta.nbytes} bytes")
            self.meta: Mapping[str, Any] = any_object(load(str(meta).encode(), "its meta"))
            self.steps: list[Any] = list(self.meta["steps"])
        except (ValueError, TypeError, KeyError, JSONError) as error:
            raise DamagedFile(
                f"{path}: its meta is not a JSON text with steps ({error})"
            ) from error
        if not 0 < len(self.steps) <= MAX_STEPS:
            raise DamagedFile(f"{path}: its meta has no steps, or more than {MAX_STEPS}")

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return self._arrays.read(name)

    def integers(self, name: str, rank: int) -> Ints:
        """An array of whole numbers with `rank` dimensions."""
        array = self._arrays.read(name, kinds="biu")
        if array.ndim != rank:
            raise DamagedFile(f"{self.path}: {name} has shape {array.shape}, not {rank} dimensions")
        return array.astype(np.int64)

    def option(self, name: str) -> Any:
        """An entry of the metadata."""
        try:
            return self.meta[name]
        except KeyError:
            raise DamagedFile(f"{self.path}: its meta has no {name}") from None

    def number(self, name: str) -> int:
        """A positive whole number in the metadata."""
        number = self.option(name)
        if type(number) is not int or number < 1:
            raise DamagedFile(f"{self.path}: its {name} is not a positive whole number")
        if number > MAX_IMAGES:
            raise DamagedFile(f"{self.path}: its {name} is above {MAX_IMAGES}")
        return number

    def recorded(self, iteration: int, *names: str) -> int:
        """A recorded value of an AR iteration, under the first of these names that exists."""
        if iteration >= len(self.steps):
            raise DamagedFile(
                f"{self.path}: it has {len(self.steps)} AR iterations, but the plan's model has "
                "more"
            )
        step = self.steps[iteration]
        found = [step[name] for name in names if isinstance(step, Mapping) and name in step]
        if not found or not isinstance(found[0], int):
            raise DamagedFile(f"{self.path}: its iteration {iteration} has no {names[0]}")
        return found[0]

    def check_noise(self, draws: int, shape: Sequence[int]) -> None:
        """Check the size of the noise.

        Raises:
            DamagedFile: `draws` arrays of this shape are more than a recorded run has.
        """
        if draws * math.prod(shape) * 4 > MAX_NOISE_BYTES:
            raise DamagedFile(
                f"{self.path}: its noise of an AR iteration would take {draws} arrays of shape "
                f"{tuple(shape)}: this is not a recorded run"
            )


@dataclass(frozen=True)
class Difference:
    """The error of an AR iteration, or of the latents, against a recorded run.

    Attributes:
        what: "iteration 3" or "latents".
        head_calls: number of denoising steps; None for the latents.
        relative: L2 norm of the difference over that of the recorded values.
    """

    what: str
    head_calls: int | None
    relative: float


def difference(got: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    """L2 norm of the difference over that of `expected`; infinite for another shape or NaN."""
    if got.shape != expected.shape:
        return float("inf")
    error = np.linalg.norm((got.astype(np.float64) - expected).ravel())
    error /= np.linalg.norm(expected.astype(np.float64).ravel()) or 1.0
    return float(error) if np.isfinite(error) else float("inf")


class MaskedReplay:
    """The recorded random numbers of a masked model (MAR, Harmon), as a noise source.

    Recorded rows are ordered by image first, and by ascending position inside an image.
    """

    def __init__(self, reference: RecordedRun, images: int, guided: bool) -> None:
        self._reference = reference
        self._images, self._guided = images, guided
        self._tokens: int | None = None
        masks = [self._mask(f"mask_before_{index:03d}") for index in range(len(reference.steps))]
        masks.append(np.zeros_like(masks[0]))
        self._predicted: list[Ints] = []
        for index, (before, after) in enumerate(pairwise(masks)):
            now = before & ~after
            counts = now.sum(axis=1)
            if not counts.all() or (counts != counts[0]).any():
                raise DamagedFile(
                    f"{reference.path}: in iteration {index} the images predict "
                    f"{sorted(set(counts.tolist()))} tokens, but all must predict the same number"
                )
            self._predicted.append(np.nonzero(now)[1].reshape(images, -1).T.astype(np.int64))

    def _mask(self, name: str) -> npt.NDArray[np.bool_]:
        mask = self._reference[name]
        if mask.ndim != 2 or mask.dtype != bool or len(mask) < self._images:
            raise DamagedFile(
                f"{self._reference.path}: {name} is not a mask of {self._images} images"
            )
        if self._tokens is None:
            self._tokens = mask.shape[1]
            if len(self._reference.steps) * self._images * self._tokens > MAX_MASK_BYTES:
                raise DamagedFile(
                    f"{self._reference.path}: its masks are of {mask.shape[1]} tokens"
                )
        if mask.shape[1] != self._tokens:
            raise DamagedFile(
                f"{self._reference.path}: {name} is of {mask.shape[1]} tokens, but the masks "
                f"before it of {self._tokens}"
            )
        return mask[: self._images].copy()

    @property
    def counts(self) -> list[int]:
        """The number of tokens predicted in each AR iteration."""
        return [len(positions) for positions in self._predicted]

    def order(self, tokens: int) -> Ints:
        order = np.concatenate(self._predicted)
        if not np.array_equal(np.sort(order[:, 0]), np.arange(tokens)):
            raise DamagedFile(
                f"{self._reference.path}: it is of a model with {len(order)} tokens, but the plan "
                f"has {tokens}"
            )
        return order

    def gaussian(self, iteration: int, draws: int, shape: tuple[int, ...]) -> Floats:
        count, batch, channels = shape
        first = self._reference.recorded(iteration, "first_draw")
        recorded = self._reference.recorded(iteration, "draws")
        if recorded not in (1, draws):
            raise DamagedFile(
                f"{self._reference.path}: iteration {iteration} has {recorded - 1} denoising "
                f"steps, but the recorded options need {draws - 1}"
            )
        self._reference.check_noise(draws, shape)
        noise = np.zeros((draws, count, batch, channels), np.float32)
        for index in range(recorded):
            name = f"draw_{first + index:04d}"
            rows = self._reference[name]
            if rows.ndim != 2 or rows.shape[1] != channels or len(rows) < batch * count:
                raise DamagedFile(
                    f"{self._reference.path}: {name} has shape {rows.shape}, but at least "
                    f"{(batch * count, channels)} is needed"
                )
            noise[index] = by_token(rows[: batch * count], batch)
        return noise

    def compare(self, iteration: Iteration) -> Difference:
        """Compare the tokens of an AR iteration with the recorded ones."""
        name = f"sampled_{iteration.index:03d}"
        recorded = self._reference[name]
        rows, channels = iteration.sampled.shape
        if recorded.shape != (rows * (1 + self._guided), channels):
            raise DamagedFile(
                f"{self._reference.path}: {name} has shape {recorded.shape}, but "
                f"{(rows * (1 + self._guided), channels)} is needed"
            )
        kept = recorded[: len(recorded) // 2] if self._guided else recorded
        sampled = np.asarray(iteration.sampled)
        expected = by_token(kept, self._images).reshape(-1, kept.shape[-1])
        return Difference(
            f"iteration {iteration.index}", len(iteration.table), difference(sampled, expected)
        )


def by_token(rows: npt.NDArray[Any], images: int) -> npt.NDArray[Any]:
    """Rows (image, token) as [tokens, images, C]."""
    return rows.reshape(images, -1, rows.shape[-1]).swapaxes(0, 1)
