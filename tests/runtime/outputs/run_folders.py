"""Runs of small images for tests."""

from pathlib import Path
from typing import Any

import numpy as np

from disa.runtime.outputs.formats.format import Unit
from disa.runtime.outputs.formats.registry import format_of
from disa.runtime.outputs.image_files import ImageType, encode_image
from disa.runtime.outputs.layout import Layout
from disa.runtime.outputs.run_folder import RunFolder
from disa.runtime.outputs.selection import Selection
from disa.runtime.outputs.store import LocalStore
from disa.runtime.stats import Stats

REQUEST = {"plan": "tiny", "seed": 3}


def pixels(index: int) -> np.ndarray:
    return np.full((4, 4, 1), index % 256, np.uint8)


def open_folder(place: Path, count: int, **options: Any) -> RunFolder:
    layout = options.pop("layout", Layout())
    engine = options.pop("engine", "test")
    request = options.pop("request", REQUEST)
    selection = Selection.of_seed([0] * count, 3, options.pop("first", 0))
    return RunFolder(LocalStore(place), request, selection, layout, engine, **options)


def write(folder: RunFolder, unit: Unit) -> None:
    files = {i: encode_image(pixels(unit.rows[i].index), ImageType()) for i in unit.missing}
    format_of(folder.layout).write(folder.store, unit, files)
    folder.finished(unit, Stats(images=len(unit.missing)))


def run(place: Path, count: int, npz: bool = False, **options: Any) -> dict[str, Any]:
    with open_folder(place, count, **options) as folder:
        for unit in folder.units(4):
            write(folder, unit)
        return folder.finish(None, npz)


def names(place: Path) -> set[str]:
    return {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}
