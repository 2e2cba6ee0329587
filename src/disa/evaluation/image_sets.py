"""Sets of images that can be evaluated: runs of disa, folders of files, .npz files."""

import math
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

from ..errors import DisaError
from ..files import open_regular
from ..optional import first_line
from ..runtime.outputs.formats.folder import Numbered
from ..runtime.outputs.formats.registry import format_of
from ..runtime.outputs.image_files import MAX_PIXELS, SUFFIXES, decode_image
from ..runtime.outputs.record import RECORD, RunRecord, differing_options
from ..runtime.outputs.run_folder import GRID
from ..runtime.outputs.store import LocalStore, Store, open_store
from ..runtime.replay.npz_file import METHODS, UNREADABLE

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp"})
Image = npt.NDArray[np.uint8]


class ImageSet(Protocol):
    """Images that are read one after another."""

    @property
    def count(self) -> int:
        """The number of images."""
        ...

    @property
    def conditions(self) -> Sequence[int | str] | None:
        """Class or prompt of each image, if known."""
        ...

    def __iter__(self) -> Iterator[Image]:
        """Each image, uint8 [H, W, channels].

        Raises:
            DisaError: an image is damaged.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """A description for the result."""
        ...


@dataclass(frozen=True)
class _Run:
    store: Store
    record: RunRecord


class Runs:
    """Complete runs that are parts of one run.

    Args:
        places: folders or URLs.
        images: the number of images of the whole run. A record has only the images of its own
            part, so that without this number a missing part after the last one is not noticed.

    Raises:
        DisaError: a run is incomplete, contains other images, or does not match the other runs, or
            a part is missing.
    """

    def __init__(self, places: Sequence[str], images: int | None = None) -> None:
        runs = [_open_run(open_store(place)) for place in places]
        first = runs[0].record
        seen: set[tuple[int, int]] = set()
        for run in runs:
            other = run.record
            pair = first.request, other.request
            differ = differing_options(*pair) or differing_options(*pair[::-1])
            if differ or other.layout.image_type != first.layout.image_type:
                raise DisaError(
                    f"{run.store} is not a part of the run in {runs[0].store}: other "
                    f"{', '.join(differ) or 'image type'}"
                )
            rows = other.selection.rows(0, len(other.selection))
            keys = {(row.seed, row.index) for row in rows}
            if seen & keys:
                raise DisaError(f"{run.store} has images that another of the runs has too")
            seen |= keys
        # The Inception score depends on the order, and shells list part-10 before part-2.
        self._runs = sorted(runs, key=lambda run: run.record.selection.indices[0])
        self.count = sum(len(run.record.selection) for run in self._runs)
        _refuse_gaps(self._runs, self.count, images)
        self.conditions: list[int | str] = []
        for run in self._runs:
            self.conditions += run.record.selection.conditions

    def __iter__(self) -> Iterator[Image]:
        for run in self._runs:
            selection = run.record.selection
            for stored in format_of(run.record.layout).read(run.store, selection):
                if stored.file.suffix == SUFFIXES["latents"]:
                    raise DisaError(f"{run.store} contains latents: export the plan with --vae")
                yield stored.pixels()

    def describe(self) -> dict[str, Any]:
        first = self._runs[0].record
        return {
            "runs": [str(run.store) for run in self._runs],
            "images": self.count,
            "request": dict(first.request),
            "layout": first.layout.to_json(),
            "engine": " and ".join(dict.fromkeys(run.record.engine for run in self._runs)),
        }


def _open_run(store: Store) -> _Run:
    record = RunRecord.load(store)
    if record is None:
        raise DisaError(f"{store} has no {RECORD}: it is not a run of disa")
    _check_complete(store, record)
    if record.layout.format == "folder":
        _refuse_others(store, record)
    return _Run(store, record)


def _check_complete(store: Store, record: RunRecord) -> None:
    """Check that all images of a run exist, and that it has come to its end.

    Raises:
        DisaError: the run is incomplete.
    """
    present = format_of(record.layout).progress(store, record.selection).present
    if record.complete and all(present):
        return
    raise DisaError(
        f"{store} is not complete ({sum(present)} of {len(present)} images exist): run disa-run "
        "again with the same options, which finishes it"
    )


def _refuse_gaps(runs: Sequence[_Run], count: int, images: int | None) -> None:
    """Check that no part is missing.

    Runs of `--rows` may have any image numbers. A single part may be evaluated by itself, and any
    others if they have the number of images that the caller expects.

    Args:
        runs: in the order of their images.
        count: number of their images.
        images: expected number of their images, if known.

    Raises:
        DisaError: there is a gap, or another number of images.
    """
    parts = [run.record.selection.indices for run in runs]
    ranges = [part for part in parts if isinstance(part, range)]
    if len(ranges) == len(runs):
        # Several parts usually begin with image 0.
        begin = range(0) if images is None and len(runs) > 1 else ranges[0]
        for before, after in pairwise([begin, *ranges]):
            if after.start > before.stop:
                whole = ranges[-1].stop - begin.start
                first = "" if before.stop else f"; if these are all, give --images {count}"
                raise DisaError(
                    f"the runs have {count} of {whole} images: the part from image {before.stop} "
                    f"to {after.start - 1} is missing: give its run too, or generate it with "
                    f"--first-image {before.stop} --num {after.start - before.stop}{first}"
                )
    if images is not None and count != images:
        where = f" (images {ranges[0].start} to {ranges[-1].stop - 1})" if ranges else ""
        raise DisaError(
            f"the runs have {count} images{where}, not the {images} of --images: "
            + ("give the runs of all parts" if count < images else "leave out those of other parts")
        )


def _refuse_others(store: Store, record: RunRecord) -> None:
    """Check that all numbered images belong to the run.

    Raises:
        DisaError: there is an image that the run does not list.
    """
    naming = Numbered()
    for name in store.names(within=naming.is_folder):
        stem, _, suffix = name.rpartition(".")
        if suffix in SUFFIXES.values():
            index = naming.index(stem)
            if index is not None and (
                record.selection.position(index) is None
                or suffix not in (SUFFIXES[record.layout.image_type.name], SUFFIXES["latents"])
            ):
                raise DisaError(f"{store}/{name} is not an image of the run: move it away")


class ImageFiles:
    """The image files in a folder and its sub-folders, in the order of their names.

    All must have one size: a network for squares would stretch each of them in its own way.

    Raises:
        DisaError: there are none, a folder cannot be read, or a folder is a run that is incomplete.
    """

    conditions = None

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = sorted(_image_files(folder, frozenset()))
        self.count = len(self._files)
        if not self.count:
            raise DisaError(f"{folder} has no images")

    def __iter__(self) -> Iterator[Image]:
        size = None
        for path in self._files:
            with _regular(path) as file:
                image = decode_image(file, str(path), "replace it")
            height, width = image.shape[:2]
            if size not in (None, (height, width)):
                raise DisaError(
                    f"{path} has {width}x{height} pixels, other images of {self._folder} have "
                    "another size: crop and scale all of them to one size"
                )
            size = height, width
            yield image

    def describe(self) -> dict[str, Any]:
        return {"folder": str(self._folder), "images": self.count}


def _image_files(folder: Path, above: frozenset[tuple[int, int]]) -> Iterator[Path]:
    """The image files below a folder, also in folders that are links, as subsets are made of.

    The grid of a run is not one of its images.

    Args:
        above: the folders above it, which a link may lead back to.
    """
    try:
        found = folder.stat()
        entries = list(folder.iterdir())
    except OSError as error:
        raise DisaError(f"{folder} cannot be read: {error.strerror or error}") from error
    here = found.st_dev, found.st_ino
    if here in above:
        return
    others = {GRID} if any(entry.name == RECORD for entry in entries) else ()
    if others and (record := _record_if_any(folder)):
        _check_complete(LocalStore(folder), record)
    for entry in entries:
        if entry.is_dir():
            yield from _image_files(entry, above | {here})
        elif entry.suffix.lower() in IMAGE_SUFFIXES and entry.name not in others:
            yield entry


def _record_if_any(folder: Path) -> RunRecord | None:
    """The record of a run; None if the file of that name is something else."""
    try:
        return RunRecord.load(LocalStore(folder))
    except DisaError:
        return None


class NpzImages:
    """`arr_0`, uint8 [images, H, W, channels], of an .npz file, read image by image."""

    conditions = None

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._pixels() as (_, shape):
            self.count = shape[0]

    def __iter__(self) -> Iterator[Image]:
        with self._pixels() as (member, shape):
            size = int(np.prod(shape[1:]))
            for _ in range(self.count):
                try:
                    data = member.read(size)
                except UNREADABLE as error:
                    raise DisaError(f"{self._path} is damaged: {first_line(error)}") from error
                if len(data) < size:
                    raise DisaError(f"{self._path} ends too early: it is damaged")
                yield np.frombuffer(data, np.uint8).reshape(shape[1:])

    def describe(self) -> dict[str, Any]:
        return {"file": str(self._path), "images": self.count}

    def _pixels(self) -> "_Member":
        return _Member(self._path)


class _Member:
    """The open member `arr_0` of a file, and its shape."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> tuple[Any, tuple[int, ...]]:
        wrong = f"{self._path} has no arr_0 with uint8 images [images, H, W, channels]"
        try:
            self._raw = open_regular(self._path)
            self._archive = zipfile.ZipFile(self._raw)
            self._file = self._archive.open("arr_0.npy")
            if self._archive.getinfo("arr_0.npy").compress_type not in METHODS:
                raise ValueError("it is compressed with another method than NumPy's")
            np.lib.format.read_magic(self._file)
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(self._file)
            stored = self._archive.getinfo("arr_0.npy").file_size - self._file.tell()
        except UNREADABLE as error:
            raise DisaError(f"{wrong}: {first_line(error)}") from error
        if fortran or dtype != np.uint8 or len(shape) != 4 or math.prod(shape[1:]) > MAX_PIXELS:
            raise DisaError(wrong)
        if any(type(side) is not int or side < 1 for side in shape):
            raise DisaError(wrong)
        if math.prod(shape) > stored:
            # Known before hours of work.
            raise DisaError(f"{self._path} ends too early: it is damaged")
        return self._file, shape

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._archive.close()
        self._raw.close()


def _regular(path: Path) -> BinaryIO:
    try:
        return open_regular(path)
    except OSError as error:
        raise DisaError(f"{path} cannot be read: {error.strerror or error}") from error
