"""Selects the replay for a family's recorded runs."""

from collections.abc import Callable, Mapping
from pathlib import Path

from ...errors import DisaError
from ..pipeline import Pipeline
from .flow import replay_flow
from .masked import replay_harmon, replay_mar
from .reference import Difference, RecordedRun

REPLAYS: Mapping[str, Callable[[Pipeline, RecordedRun], list[Difference]]] = {
    "mar": replay_mar,
    "harmon": replay_harmon,
    "flowar": replay_flow,
    "xar": replay_flow,
}


def replay(pipe: Pipeline, path: Path) -> list[Difference]:
    """Replay the recorded run in a file with a plan.

    Returns:
        The difference of each AR iteration and of the latents.

    Raises:
        DisaError: the file is damaged, or belongs to another model.
    """
    family = pipe.plan.manifest.family
    if family not in REPLAYS:
        raise DisaError(f"{pipe.plan.path}: runs of a {family} model cannot be replayed")
    return REPLAYS[family](pipe, RecordedRun(path))
