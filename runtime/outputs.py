"""The folder of a run: numbered images, the grid, the record, and how a run goes on."""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from .. import __version__
from ..engines.plan import Plan
from ..errors import DisaError
from .grid import draw_grid
from .stats import Stats

RECORD = "run.json"
GRID = "grid.png"
SAMPLES = "samples.npz"
FINISHED = re.compile(r"(\d{6,})\.(png|npy)")


def identify(plan: Plan) -> str:
    """SHA-256 of a plan's manifest, which holds the checksums of everything in the plan."""
    text = json.dumps(plan.manifest.raw, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class Outputs:
    """What a run writes, each file whole or not at all.

    Args:
        folder: made if it is not there.
        request: what decides the pictures; a folder continues only the same request.
        conditions: class or prompt of each image.

    Raises:
        DisaError: the folder cannot be written, or holds another run.
    """

    def __init__(
        self,
        folder: Path,
        request: Mapping[str, Any],
        conditions: Sequence[int | str],
        overwrite: bool = False,
    ) -> None:
        self.folder = folder
        self.conditions = list(conditions)
        self._request = json.loads(json.dumps(dict(request)))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            present = self._present()
            if overwrite:
                for path in [*present.values(), folder / RECORD, folder / GRID, folder / SAMPLES]:
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error
        self._stats: dict[str, Any] = {}
        self._continue(present if not overwrite else {})
        self._save_record("unknown", Stats(), complete=False)

    def missing(self) -> list[int]:
        """Indices of the images that are not there yet."""
        present = self._present()
        return [index for index in range(len(self.conditions)) if index not in present]

    def add(self, index: int, image: npt.NDArray[Any] | None, latents: npt.NDArray[Any]) -> None:
        """Write image `index` as PNG, or its latents as .npy where there are no pixels."""
        target = self.folder / f"{index:06d}.{'npy' if image is None else 'png'}"
        temporary = target.with_name(f".{target.name}.partial")
        try:
            with temporary.open("wb") as file:
                if image is None:
                    np.save(file, latents)
                else:
                    Image.fromarray(image.squeeze()).save(file, "PNG")
            os.replace(temporary, target)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise self._unwritable(error) from error

    def finish(
        self, engine: str, stats: Stats, names: Sequence[str] | None, npz: bool
    ) -> dict[str, Any]:
        """Write grid, samples and the record of a complete run; returns the record."""
        files = self._present()
        paths = [files[index] for index in range(len(self.conditions))]
        try:
            if all(path.suffix == ".png" for path in paths):
                images = [np.asarray(Image.open(path)) for path in paths]
                draw_grid(images, self.conditions, names).save(self.folder / GRID)
                if npz:
                    stacked = np.stack([image.reshape(*image.shape[:2], -1) for image in images])
                    self._save_samples(stacked)
        except OSError as error:
            raise self._unwritable(error) from error
        return self._save_record(engine, stats, complete=True)

    def checkpoint(self, engine: str, stats: Stats) -> None:
        """Write the record of a run that goes on."""
        self._save_record(engine, stats, complete=False)

    def _save_samples(self, images: npt.NDArray[Any]) -> None:
        temporary = self.folder / f".{SAMPLES}.partial"
        with temporary.open("wb") as file:
            np.savez(file, arr_0=images, arr_1=np.array(self.conditions))
        os.replace(temporary, self.folder / SAMPLES)

    def _present(self) -> dict[int, Path]:
        found = {}
        for path in self.folder.iterdir():
            if match := FINISHED.fullmatch(path.name):
                found[int(match[1])] = path
        return found

    def _continue(self, present: Mapping[int, Path]) -> None:
        path = self.folder / RECORD
        if not path.exists():
            if present:
                raise DisaError(
                    f"{self.folder} holds images but no {RECORD} that tells how they were made: "
                    "choose another folder with -o, or --overwrite"
                )
            return
        try:
            record = json.loads(path.read_text())
            request, conditions = record["request"], record["conditions"]
            self._stats = dict(record["stats"])
            self._stats.setdefault("seconds", {})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DisaError(
                f"{path} is damaged, so the run cannot be continued: choose another folder "
                "with -o, or --overwrite"
            ) from error
        shared = min(len(conditions), len(self.conditions))
        differ = [key for key in self._request if request.get(key) != self._request[key]]
        if conditions[:shared] != self.conditions[:shared]:
            differ.append("classes" if isinstance(self.conditions[0], int) else "prompts")
        if differ and present:
            raise DisaError(
                f"{self.folder} holds another run (other {', '.join(differ)}): choose another "
                "folder with -o, or --overwrite"
            )
        if differ:
            self._stats = {}

    def _save_record(self, engine: str, stats: Stats, complete: bool) -> dict[str, Any]:
        record = {
            "disa": __version__,
            "complete": complete,
            "engine": engine,
            "request": self._request,
            "conditions": self.conditions,
            "stats": _combined(self._stats, stats),
        }
        path = self.folder / RECORD
        temporary = path.with_name(f".{RECORD}.partial")
        try:
            temporary.write_text(json.dumps(record, indent=1) + "\n")
            os.replace(temporary, path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise self._unwritable(error) from error
        return record

    def _unwritable(self, error: OSError) -> DisaError:
        return DisaError(
            f"{error.filename or self.folder} cannot be written: {error.strerror or error}: "
            "choose another folder with -o; what was finished is kept"
        )


def _combined(before: Mapping[str, Any], stats: Stats) -> dict[str, Any]:
    """The cost of this run and of its earlier parts together."""
    total = Stats(
        seconds=dict(before.get("seconds", {})),
        images=int(before.get("images", 0)),
        head_calls=int(before.get("head_calls", 0)),
        head_rows=int(before.get("head_rows", 0)),
    )
    total.add(stats)
    return total.to_json()
