"""Generates the images of a unit and writes them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ..errors import DisaError
from ..runtime.generation import Output, Request
from ..runtime.outputs.formats.format import Shard, Unit
from ..runtime.outputs.formats.registry import format_of
from ..runtime.outputs.image_files import ImageFile, encode_image, encode_latents
from ..runtime.outputs.layout import Layout
from ..runtime.outputs.selection import ImageRow, Selection
from ..runtime.outputs.store import Store, storing
from ..runtime.pipeline import Pipeline
from ..runtime.sampling.noise import PhiloxNoise
from ..runtime.stats import Stats


class UnitWorker:
    """A pipeline and the run that its images are written to.

    Args:
        options: sampling options checked by the pipeline.
        batch_size: largest number of images generated together.
    """

    def __init__(
        self, pipe: Pipeline, options: Any, store: Store, layout: Layout, batch_size: int
    ) -> None:
        self._pipe, self._options = pipe, options
        self._store, self._layout = store, layout
        self._format = format_of(layout)
        self._batch_size = batch_size

    def generate(
        self, unit: Unit, progress: Callable[[float], object] | None = None
    ) -> tuple[list[Output], Stats]:
        """Generate the images of a unit; returns them and their cost.

        Args:
            progress: called after each AR iteration with the finished fraction of images.
        """
        stats, images = Stats(), []
        for start in range(0, len(unit.rows), self._batch_size):
            batch = unit.rows[start : start + self._batch_size]
            images += self._batch(batch, stats, progress)
        stats.images = len(unit.missing)
        return images, stats

    def _batch(
        self,
        rows: Sequence[ImageRow],
        stats: Stats,
        progress: Callable[[float], object] | None,
    ) -> list[Output]:
        share = len(rows) / self._pipe.family.iterations(self._options)

        def advance(_: object) -> None:
            if progress:
                progress(share)

        requests = [
            Request(row.condition, self._options, PhiloxNoise(row.seed, row.index)) for row in rows
        ]
        return self._pipe.generate(requests, stats, advance)

    def write(self, unit: Unit, images: Sequence[Output]) -> None:
        """Write the missing images of a unit.

        Raises:
            DisaError: the run cannot be written, or latents are not finite: a missing image is
                better than a black one.
        """
        failed = [i for i in unit.missing if not images[i].finite]
        if failed and not self._layout.sharded:
            unit = replace(unit, missing=[i for i in unit.missing if i not in failed])
        if not failed or not self._layout.sharded:
            files = {offset: self._encoded(images[offset]) for offset in unit.missing}
            with storing(self._store):
                self._format.write(self._store, unit, files)
        if failed:
            raise DisaError(
                f"image {unit.rows[failed[0]].index} has values that are not finite: "
                "lower --cfg or --temperature, or export the checkpoint in fp32 or bf16"
            )

    def assemble(self, shard: Shard, selection: Selection) -> None:
        """Join the units of a shard, which are complete."""
        with storing(self._store):
            self._format.assemble(self._store, shard, selection)

    def _encoded(self, image: Output) -> ImageFile:
        if image.image is None:
            return encode_latents(image.latents)
        return encode_image(image.image, self._layout.image_type)
