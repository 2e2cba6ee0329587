"""Batches of a long evaluation that are kept, so that it continues after an interruption."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from disa.files import written_whole
from disa.runtime.outputs.run_folder import identify
from disa.runtime.pipeline import Pipeline
from disa.runtime.stats import Stats

Batch = tuple[npt.NDArray[np.uint8], Stats, float]
"""Images [n, 32, 32], their cost, and their CPU seconds."""


class KeptBatches:
    """A folder with the batches that were generated so far, in a file each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(
        self, pipe: Pipeline, arguments: Mapping[str, Any], generate: Callable[[], Batch]
    ) -> Batch:
        """Read the batch of a pipeline with these arguments, or generate and keep it."""
        path = self._folder / f"{_identify(pipe, arguments)}.npz"
        if path.is_file():
            with np.load(path, allow_pickle=False) as content:
                cost = json.loads(str(content["cost"]))
                return content["images"], Stats.from_json(cost), cost["cpu_seconds"]
        images, stats, cpu_seconds = batch = generate()
        self._folder.mkdir(parents=True, exist_ok=True)
        cost = stats.to_json() | {"cpu_seconds": cpu_seconds}
        with written_whole(path) as file:
            np.savez_compressed(file, images=images, cost=np.array(json.dumps(cost)))
        return batch


def _identify(pipe: Pipeline, arguments: Mapping[str, Any]) -> str:
    """What determines a batch: the plan, the engine, the arguments, and the steps in a file."""
    request = {"plan": identify(pipe.plan), "engine": pipe.engine, **arguments}
    if (schedule := arguments.get("schedule")) is not None:
        request["schedule"] = Path(schedule).read_text()
    text = json.dumps(request, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
