"""The folder of a run: numbered images, the grid, the record, and how a run goes on."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import numpy.typing as npt
from PIL import Image

from .. import __version__
from ..engines.plan import Plan
from ..errors import DisaError
from ..files import written_whole
from .grid import draw_grid
from .stats import Stats

RECORD = "run.json"
GRID = "grid.png"
SAMPLES = "samples.npz"
EXTRAS = (RECORD, GRID, SAMPLES)
FINISHED = re.compile(r"(\d{6,})\.(png|npy)")
GRID_IMAGES = 400
"""The grid shows the first ones of a longer run."""


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
        engine: what draws, for the record.
        overwrite: delete the run that the folder holds.

    Raises:
        DisaError: the folder cannot be written, or holds another run.
    """

    def __init__(
        self,
        folder: Path,
        request: Mapping[str, Any],
        conditions: Sequence[int | str],
        engine: str,
        overwrite: bool = False,
    ) -> None:
        self.folder = folder
        self.conditions = list(conditions)
        self._recorded = self.conditions
        self._engine = engine
        self._request = json.loads(json.dumps(dict(request)))
        self._earlier = Stats()
        with self._writing():
            folder.mkdir(parents=True, exist_ok=True)
            if overwrite:
                for path in [*self._present().values(), *map(folder.joinpath, EXTRAS)]:
                    path.unlink(missing_ok=True)
            present = self._present()
        self._continue(present)
        self.checkpoint(Stats())

    def missing(self) -> list[int]:
        """Indices of the images that are not there yet."""
        present = self._present()
        return [index for index in range(len(self.conditions)) if index not in present]

    def add(self, index: int, image: npt.NDArray[Any] | None, latents: npt.NDArray[Any]) -> None:
        """Write image `index` as PNG, or its latents as .npy where there are no pixels.

        Raises DisaError for latents that are not finite: no picture is better than a black one.
        """
        if not np.isfinite(latents).all():
            raise DisaError(
                f"image {index} came out as numbers that are not finite: lower --cfg or "
                "--temperature, or export the checkpoint in fp32 or bf16"
            )
        target = self.folder / f"{index:06d}.{'npy' if image is None else 'png'}"
        with self._writing(), written_whole(target) as file:
            if image is None:
                np.save(file, latents)
            else:
                Image.fromarray(image.squeeze()).save(file, "PNG")

    def finish(self, stats: Stats, names: Sequence[str] | None, npz: bool) -> dict[str, Any]:
        """Write grid, samples and the record of a complete run; returns the record."""
        files = self._present()
        paths = [files[index] for index in range(len(self.conditions))]
        if all(path.suffix == ".png" for path in paths):
            self._save_grid(paths[:GRID_IMAGES], names)
            if npz:
                self._save_samples(paths)
        return self.checkpoint(stats, files.keys() >= set(range(len(self._recorded))))

    def checkpoint(self, stats: Stats, complete: bool = False) -> dict[str, Any]:
        """Write the record of what there is now; returns it."""
        total = Stats()
        total.add(self._earlier)
        total.add(stats)
        record = {
            "disa": __version__,
            "complete": complete,
            "engine": self._engine,
            "request": self._request,
            "conditions": self._recorded,
            "stats": total.to_json(),
        }
        with self._writing(), written_whole(self.folder / RECORD) as file:
            file.write(json.dumps(record, indent=1).encode() + b"\n")
        return record

    def _save_grid(self, paths: Sequence[Path], names: Sequence[str] | None) -> None:
        grid = draw_grid([read_image(path) for path in paths], self.conditions[: len(paths)], names)
        with self._writing(), written_whole(self.folder / GRID) as file:
            grid.save(file, "PNG")

    def _save_samples(self, paths: Sequence[Path]) -> None:
        """As `np.savez` does, but image by image: all together may not fit into memory."""
        one = read_image(paths[0]).shape
        header = {
            "descr": "|u1",
            "fortran_order": False,
            "shape": (len(paths), *one[:2], *(one[2:] or (1,))),
        }
        target = self.folder / SAMPLES
        with self._writing(), written_whole(target) as file, ZipFile(file, "w") as archive:
            with archive.open("arr_0.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                for path in paths:
                    member.write(read_image(path, one).tobytes())
            with archive.open("arr_1.npy", "w") as member:
                np.save(member, np.array(self.conditions))

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
            request, conditions = dict(record["request"]), list(record["conditions"])
            earlier = Stats.from_json(record["stats"])
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise DisaError(
                f"{path} is damaged, so the run cannot be continued: choose another folder "
                "with -o, or --overwrite"
            ) from error
        shared = min(len(conditions), len(self.conditions))
        differ = [key for key in self._request if request.get(key) != self._request[key]]
        if conditions[:shared] != self.conditions[:shared]:
            differ.append("classes" if isinstance(self.conditions[0], int) else "prompts")
        if not differ:
            self._earlier = earlier
            self._recorded = max(conditions, self.conditions, key=len)
        elif present:
            raise DisaError(
                f"{self.folder} holds another run (other {', '.join(differ)}): choose another "
                "folder with -o, or --overwrite"
            )

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """What the system cannot write, as one sentence."""
        try:
            yield
        except OSError as error:
            raise DisaError(
                f"{error.filename or self.folder} cannot be written: {error.strerror or error}: "
                "choose another folder with -o; what was finished is kept"
            ) from error


def read_image(path: Path, shape: tuple[int, ...] | None = None) -> npt.NDArray[np.uint8]:
    """A finished image; DisaError if it was damaged or is not of this shape."""
    try:
        image = np.asarray(Image.open(path))
    except OSError as error:
        raise DisaError(f"{path} is damaged: delete it and run again to have it drawn") from error
    if shape not in (None, image.shape):
        raise DisaError(f"{path} has another size than the rest: delete it and run again")
    return image
