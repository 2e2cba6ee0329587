"""Recorded runs of an official implementation, to be replayed through a plan."""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DisaError
from .head import Iteration

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class Reference:
    """The arrays of a reference file, read when asked for.

    Raises:
        DisaError: not a reference, or an array is missing or of the wrong kind.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._arrays = np.load(path, allow_pickle=False)
            names = set(self._arrays.files)
        except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
            raise DisaError(
                f"{path}: it is not a reference: give an .npz file with meta, latents and draws"
            ) from error
        self.names = names
        try:
            self.meta: Mapping[str, Any] = json.loads(str(self["meta"]))
            self.steps: list[Mapping[str, Any]] = list(self.meta["steps"])
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise DisaError(f"{path}: its meta is not a JSON text with steps") from error
        if not self.steps:
            raise DisaError(f"{path}: its meta has no steps")

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        if name not in self.names:
            raise DisaError(f"{self.path}: the array {name} is missing")
        try:
            array: npt.NDArray[Any] = self._arrays[name]
        except (ValueError, OSError, MemoryError, zipfile.BadZipFile) as error:
            raise DisaError(f"{self.path}: the array {name} cannot be read: {error}") from error
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DisaError(f"{self.path}: the array {name} has values that are not finite")
        return array

    def option(self, name: str) -> Any:
        """An entry of the meta data."""
        try:
            return self.meta[name]
        except KeyError:
            raise DisaError(f"{self.path}: its meta does not say {name}") from None

    def number(self, name: str) -> int:
        """A positive whole number of the meta data."""
        number = self.option(name)
        if not isinstance(number, int) or number < 1:
            raise DisaError(f"{self.path}: its {name} is not a positive whole number")
        return number

    def recorded(self, iteration: int, *names: str) -> int:
        """What was recorded of an AR iteration, under the first of these names that is there."""
        if iteration >= len(self.steps):
            raise DisaError(
                f"{self.path}: it has {len(self.steps)} AR iterations, and the plan's model has "
                "more"
            )
        step = self.steps[iteration]
        found = [step[name] for name in names if isinstance(step, Mapping) and name in step]
        if not found or not isinstance(found[0], int):
            raise DisaError(f"{self.path}: its iteration {iteration} does not say {names[0]}")
        return found[0]


@dataclass(frozen=True)
class Difference:
    """How far an AR iteration, or the latents, are from a reference.

    Attributes:
        what: "iteration 3" or "latents".
        head_calls: denoising steps made; None for the latents.
        relative: L2 norm of the difference over that of the reference.
    """

    what: str
    head_calls: int | None
    relative: float


def difference(got: npt.NDArray[Any], want: npt.NDArray[Any]) -> float:
    """L2 norm of the difference over that of `want`; infinite for another shape or NaN."""
    if got.shape != want.shape:
        return float("inf")
    error = np.linalg.norm((got.astype(np.float64) - want).ravel())
    error /= np.linalg.norm(want.astype(np.float64).ravel()) or 1.0
    return float(error) if np.isfinite(error) else float("inf")


class MaskedReplay:
    """The recorded randomness of a masked model (MAR, Harmon), as a noise source.

    Recorded rows go through images first and through positions, ascending, inside an image.
    """

    def __init__(self, reference: Reference, images: int, guided: bool) -> None:
        self._reference = reference
        self._images, self._guided = images, guided
        masks = [self._mask(f"mask_before_{index:03d}") for index in range(len(reference.steps))]
        masks.append(np.zeros_like(masks[0]))
        self._predicted: list[Ints] = []
        for index, (before, after) in enumerate(pairwise(masks)):
            now = before & ~after
            counts = now.sum(axis=1)
            if not counts.all() or (counts != counts[0]).any():
                raise DisaError(
                    f"{reference.path}: in iteration {index} the images predict "
                    f"{sorted(set(counts.tolist()))} tokens, and all must predict as many"
                )
            self._predicted.append(np.nonzero(now)[1].reshape(images, -1).T.astype(np.int64))

    def _mask(self, name: str) -> npt.NDArray[np.bool_]:
        mask = self._reference[name]
        if mask.ndim != 2 or mask.dtype != bool or len(mask) < self._images:
            raise DisaError(
                f"{self._reference.path}: {name} is not a mask of {self._images} images"
            )
        return mask[: self._images]

    @property
    def counts(self) -> list[int]:
        """Tokens predicted in each AR iteration."""
        return [len(positions) for positions in self._predicted]

    def order(self, tokens: int) -> Ints:
        order = np.concatenate(self._predicted)
        if not np.array_equal(np.sort(order[:, 0]), np.arange(tokens)):
            raise DisaError(
                f"{self._reference.path}: it is of a model with {len(order)} tokens, and the plan "
                f"has {tokens}"
            )
        return order

    def gaussian(self, iteration: int, draws: int, shape: tuple[int, ...]) -> Floats:
        count, batch, channels = shape
        first = self._reference.recorded(iteration, "first_draw")
        recorded = self._reference.recorded(iteration, "draws")
        if recorded not in (1, draws):
            raise DisaError(
                f"{self._reference.path}: iteration {iteration} has {recorded - 1} denoising "
                f"steps, and the options it names mean {draws - 1}"
            )
        noise = np.zeros((draws, count, batch, channels), np.float32)
        for index in range(recorded):
            name = f"draw_{first + index:04d}"
            rows = self._reference[name]
            if rows.ndim != 2 or rows.shape[1] != channels or len(rows) < batch * count:
                raise DisaError(
                    f"{self._reference.path}: {name} has shape {rows.shape}, and at least "
                    f"{(batch * count, channels)} is needed"
                )
            noise[index] = by_token(rows[: batch * count], batch)
        return noise

    def compare(self, iteration: Iteration) -> Difference:
        """The tokens of an AR iteration against the recorded ones."""
        recorded = self._reference[f"sampled_{iteration.index:03d}"]
        kept = recorded[: len(recorded) // 2] if self._guided else recorded
        sampled = np.asarray(iteration.sampled)
        expected = by_token(kept, self._images).reshape(-1, kept.shape[-1])
        return Difference(
            f"iteration {iteration.index}", len(iteration.table), difference(sampled, expected)
        )


def by_token(rows: npt.NDArray[Any], images: int) -> npt.NDArray[Any]:
    """Rows (image, token) as [tokens, images, C]."""
    return rows.reshape(images, -1, rows.shape[-1]).swapaxes(0, 1)
