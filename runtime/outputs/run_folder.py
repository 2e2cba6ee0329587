"""The files of a run: start, continuation and end."""

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Self

from ...engines.plan.manifest import MANIFEST
from ...engines.plan.plan import Plan
from ...errors import DisaError
from ..stats import Stats
from .formats.format import Progress, Shard, StoredImage, Unit
from .formats.npz import SAMPLES, Npz, image_count
from .formats.registry import format_of
from .grid import make_grid
from .image_files import SUFFIXES
from .layout import Layout
from .lock import Lock, lock_store
from .record import RECORD, RunRecord, differing_options
from .selection import Selection
from .store import Store, storing
from .unit_log import UnitLog

GRID = "grid.png"
GRID_IMAGES = 400
"""The grid has the first images of a longer run."""


def identify(plan: Plan) -> str:
    """SHA-256 of a plan's manifest, which has the checksums of everything in the plan.

    The manifest is hashed as stored, so a plan of an earlier format keeps its identity.
    """
    text = json.dumps(json.loads(bytes(plan.read(MANIFEST))), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class RunFolder:
    """Writes the files of a run, each completely or not at all; a context manager.

    No other process can write there until the context ends. The run owns the files that its
    record lists: other files in the folder are neither read nor deleted.

    Args:
        store: the place; created if it does not exist.
        request: what determines the images; a run is continued only with the same request.
        selection: the requested images.
        layout: their files.
        engine: the engine that generates them, for the record.
        overwrite: delete the existing run.
        extra: additional entries of the record.

    Raises:
        DisaError: the place cannot be written, is in use, or has another run.
    """

    def __init__(
        self,
        store: Store,
        request: Mapping[str, Any],
        selection: Selection,
        layout: Layout,
        engine: str,
        overwrite: bool = False,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        self.store = store
        self.selection = selection
        self._format = format_of(layout)
        request = json.loads(json.dumps(dict(request)))
        self._record = RunRecord(request, selection, layout, engine, extra=extra or {})
        with storing(store):
            self._lock: Lock = lock_store(store)
        try:
            with storing(store):
                self._begin(overwrite)
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            with storing(self.store):
                self._log.flush()
        finally:
            with suppress(OSError):
                self.store.clean()
            self._lock.release()

    @property
    def layout(self) -> Layout:
        """The layout of the run; a continued run keeps its original units."""
        return self._record.layout

    def missing(self) -> int:
        """The number of requested images that do not exist yet."""
        return len(self.selection) - sum(self._present[: len(self.selection)])

    def units(self, unit_images: int) -> Iterator[Unit]:
        """The remaining work. Shards that only need to be assembled are in `shards`.

        Units begin at multiples of their size, so that an image is always generated in the same
        batch and has the same bits after any number of interruptions.

        Args:
            unit_images: images in a unit, for a format without shards.
        """
        sharded = self.layout.sharded
        unit_images = self.layout.unit_images if sharded else unit_images
        for shard in self._all_shards() if sharded else [Shard(0, len(self.selection))]:
            for start in range(shard.start, shard.stop, unit_images):
                stop = min(start + unit_images, shard.stop)
                missing = [i for i in range(stop - start) if not self._present[start + i]]
                if missing:
                    yield Unit(start, self.selection.rows(start, stop), missing)

    def shards(self) -> list[Shard]:
        """Shards whose images all exist and that are not assembled yet."""
        return [shard for shard in self._open_shards.values() if self._full(shard)]

    def finished(self, unit: Unit, stats: Stats, worker: str = "") -> list[Shard]:
        """Record that a unit is written; returns the shards that can be assembled now.

        Raises:
            DisaError: another process writes here by now.
        """
        self._lock.check()
        for offset in unit.missing:
            self._present[unit.start + offset] = 1
        content: dict[str, Any] = {"images": [unit.start, unit.stop]}
        with storing(self.store):
            self._log.add(stats, content | ({"worker": worker} if worker else {}))
        shard = self._open_shards.get(unit.start // self.layout.shard_images)
        return [shard] if self.layout.sharded and shard and self._full(shard) else []

    def assembled(self, shard: Shard) -> None:
        """Record that a shard is written."""
        self._open_shards.pop(shard.start // self.layout.shard_images, None)

    def finish(self, names: Sequence[str] | None, npz: bool = False) -> dict[str, Any]:
        """Write the grid, samples.npz and the record of a complete run.

        Args:
            names: of the classes, for the grid.
            npz: also write samples.npz, for a folder.

        Returns:
            The record.

        Raises:
            DisaError: an image was removed or is damaged, there are no pixels for samples.npz, or
                another process writes here by now.
        """
        self._lock.check()
        with storing(self.store):
            self._log.flush()
            progress = self._format.progress(self.store, self._record.selection)
            self._present = progress.present
            if self.missing():
                raise DisaError(
                    f"{self.missing()} images were removed from {self.store} during the run: "
                    "run again to generate them"
                )
            self._save_grid(names)
            if npz:
                self._save_samples()
            complete = all(self._present) and not self._open_shards
            self._record = replace(self._record, complete=complete, stats=self._log.total())
            self._record.save(self.store)
        return self._record.to_json()

    def stored(self) -> Iterator[StoredImage]:
        """The requested images in their files."""
        return self._format.read(self.store, self.selection)

    def _begin(self, overwrite: bool) -> None:
        earlier = RunRecord.load(self.store)
        self.store.clean()
        if earlier and overwrite:
            self._delete(earlier)
            earlier = None
        self._log = UnitLog(self.store)
        if earlier and not self._continue(earlier):
            earlier = None
        progress = self._format.progress(self.store, self._record.selection)
        self._refuse_unlisted(earlier, progress)
        self._present = progress.present
        if not self.layout.sharded and not self._samples_fit():
            self.store.remove(SAMPLES)
        self._open_shards = {
            shard.start // self.layout.shard_images: shard
            for shard in (self._all_shards() if self.layout.sharded else [])
            if shard not in progress.shards
        }
        self._record = replace(
            self._record,
            engine=self._engines(earlier.engine if earlier else ""),
            complete=False,
            stats=self._log.total(),
        )
        self._record.save(self.store)

    def _engines(self, earlier: str) -> str:
        """The engine of all images; several in order if a continued run uses another one."""
        mine = self._record.engine
        if not earlier or not any(self._present):
            return mine
        if not self.missing() or earlier.endswith(mine):
            return earlier
        return f"{earlier}, then {mine}"

    def _continue(self, earlier: RunRecord) -> bool:
        """Continue an earlier run; returns whether it is this one, and not an empty other one.

        Raises:
            DisaError: it is another run and has images.
        """
        mine = self._record
        differ = differing_options(mine.request, earlier.request)
        differ += [d for d in mine.selection.differences(earlier.selection) if d not in differ]
        layout = mine.layout
        if layout.sharded:
            # The units of the original run are used, whatever the batch size is now.
            layout = replace(layout, unit_images=earlier.layout.unit_images)
            if not differ and len(earlier.selection) != len(mine.selection):
                raise DisaError(
                    f"{self.store} has a run of {len(earlier.selection)} images in shards, "
                    f"which cannot be changed to {len(mine.selection)}: choose another folder with "
                    "-o, and --first-image to continue its images there"
                )
        if earlier.layout.to_json() != layout.to_json():
            differ.append("format")
        if differ:
            progress = format_of(earlier.layout).progress(self.store, earlier.selection)
            if any(progress.present):
                raise DisaError(
                    f"{self.store} has another run (other {', '.join(differ)}): choose another "
                    "folder with -o, or --overwrite"
                )
            self._delete(earlier)
            return False
        if not self._log.names() and earlier.stats.images:
            # A run of version 1 has its cost only in its record.
            self._log.add(earlier.stats, {"images": [0, len(earlier.selection)]})
        longest = max(earlier.selection, mine.selection, key=len)
        self._record = replace(mine, selection=longest, layout=layout)
        return True

    def _refuse_unlisted(self, earlier: RunRecord | None, progress: Progress) -> None:
        """Check that no unlisted file has a name of this run's files.

        Raises:
            DisaError: there is one.
        """
        if earlier:
            found = any(progress.present[len(earlier.selection) :])
        else:
            owned = self._format.owned(self.store, self._record.selection)
            found = any(True for _ in owned) or any(map(self.store.exists, (GRID, SAMPLES)))
        if found:
            raise DisaError(
                f"{self.store} has files of a run but no {RECORD} that describes them: choose "
                "another folder with -o"
            )

    def _delete(self, record: RunRecord) -> None:
        """Delete the files that the record of a run lists."""
        owned = list(format_of(record.layout).owned(self.store, record.selection))
        for name in [*owned, GRID, SAMPLES, *UnitLog(self.store).names(), RECORD]:
            self.store.remove(name)

    def _samples_fit(self) -> bool:
        """Whether samples.npz, if there is one, has all requested images or all of the run."""
        if self.missing():
            return False
        if not self.store.exists(SAMPLES):
            return True
        with self.store.read(SAMPLES) as file:
            return image_count(file) in (len(self.selection), len(self._record.selection))

    def _all_shards(self) -> list[Shard]:
        count, size = len(self.selection), self.layout.shard_images
        return [Shard(start, min(start + size, count)) for start in range(0, count, size)]

    def _full(self, shard: Shard) -> bool:
        return all(self._present[shard.start : shard.stop])

    def _save_grid(self, names: Sequence[str] | None) -> None:
        stored = itertools.islice(self.stored(), GRID_IMAGES)
        first = next(stored)
        if first.file.suffix == SUFFIXES["latents"]:
            return
        images = (each.pixels() for each in itertools.chain([first], stored))
        grid = make_grid(images, self.selection.conditions[:GRID_IMAGES], names)
        with self.store.write(GRID) as file:
            grid.save(file, "PNG")

    def _save_samples(self) -> None:
        with self.store.write(SAMPLES) as file:
            Npz().write(file, self.stored(), len(self.selection))
