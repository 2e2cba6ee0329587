"""Compares a plan with recorded runs of its implementation, or with its checkpoint."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InvalidRequest
from ..optional import import_failed
from ..runtime.pipeline import Pipeline
from ..runtime.replay.reference import Difference
from ..runtime.replay.registry import replay

if TYPE_CHECKING:
    from .against import Compared

REPLAY_TOLERANCE = 1e-4


@dataclass(frozen=True)
class ReplayReport:
    """The comparison with recorded runs.

    Attributes:
        engine: the engine that ran.
        tolerance: largest relative error allowed.
        differences: for each file, those of its AR iterations and of the latents.
    """

    engine: str
    tolerance: float
    differences: Mapping[Path, Sequence[Difference]]

    @property
    def worst(self) -> float:
        """The largest relative error."""
        return max(entry.relative for found in self.differences.values() for entry in found)

    @property
    def passed(self) -> bool:
        """Whether no error is above the tolerance."""
        return self.worst <= self.tolerance

    def to_json(self) -> dict[str, Any]:
        """The report as JSON."""
        return {
            "engine": self.engine,
            "tolerance": self.tolerance,
            "references": {
                str(path): [asdict(entry) for entry in found]
                for path, found in self.differences.items()
            },
            "worst": self.worst,
            "passed": self.passed,
        }


@dataclass(frozen=True)
class CheckpointReport:
    """The comparison of a plan's graphs with the modules of its checkpoint in fp32.

    Attributes:
        tolerance: largest relative error allowed.
        compared: each graph at each of several batch sizes, and the weights used.
    """

    tolerance: float
    compared: "Compared"

    @property
    def worst(self) -> float:
        """The largest relative error, also between an image in a batch and alone."""
        return float(np.max([[e.relative, e.alone] for e in self.compared.comparisons]))

    @property
    def passed(self) -> bool:
        """Whether no error is above the tolerance."""
        return self.worst <= self.tolerance

    def to_json(self) -> dict[str, Any]:
        """The report as JSON."""
        return {
            "tolerance": self.tolerance,
            "worst": self.worst,
            "passed": self.passed,
            "weights": self.compared.weights,
            "averaged": self.compared.averaged,
            "same_file": self.compared.same_file,
            "ignored": self.compared.ignored.describe(),
            "graphs": [
                {"graph": e.graph, "sizes": dict(e.sizes), "relative": e.relative, "alone": e.alone}
                for e in self.compared.comparisons
            ],
        }


@dataclass(frozen=True)
class Verification:
    """All comparisons; a part that was not requested is None."""

    recorded: ReplayReport | None
    checkpoint: CheckpointReport | None

    @property
    def passed(self) -> bool:
        """Whether everything that was compared is within its tolerance."""
        return all(part.passed for part in (self.recorded, self.checkpoint) if part is not None)

    def to_json(self) -> dict[str, Any]:
        """The only part as JSON, or both by name."""
        parts = {"recorded": self.recorded, "checkpoint": self.checkpoint}
        found = {name: part.to_json() for name, part in parts.items() if part is not None}
        return found if len(found) > 1 else next(iter(found.values()))


def verify(
    plan: str | os.PathLike[str],
    *,
    references: Sequence[str | os.PathLike[str]] | str | os.PathLike[str] = (),
    against: str | os.PathLike[str] | None = None,
    vae: str | os.PathLike[str] | None = None,
    config: str | os.PathLike[str] | None = None,
    weights: str | None = None,
    engine: str = "cpu",
    tolerance: float | None = None,
) -> Verification:
    """Compare a plan with recorded runs of the official implementation, or with its checkpoint.

    Args:
        plan: the plan.
        references: recorded runs (.npz), or one. Their random numbers are used with the plan's
            graphs.
        against: the checkpoint that the plan was made from; this needs PyTorch.
        vae: the VAE that the plan was made with.
        config: sizes that tensors do not show, as a JSON file.
        weights: key of the checkpoint's weights; by default that of the plan's weights.
        engine: engine of the plan's graphs.
        tolerance: largest relative error allowed. By default 1e-4 for recorded runs; for a
            checkpoint it depends on the plan's precision.

    Returns:
        The errors. Errors beyond the tolerance do not raise: see `Verification.passed`.

    Raises:
        InvalidRequest: there is nothing to compare with, or the tolerance is not a number.
        DisaError: a file is damaged or of another model.
    """
    if isinstance(references, str | os.PathLike):
        references = [references]
    if not references and against is None:
        raise InvalidRequest("there is nothing to compare with: give references, or a checkpoint")
    if tolerance is not None and not 0 <= tolerance < float("inf"):
        raise InvalidRequest(f"the tolerance must be a number of at least 0, not {tolerance}")
    checkpoint = None
    if against is not None:
        checkpoint = _compare(Path(plan), Path(against), vae, config, weights, engine, tolerance)
    recorded = None
    if references:
        allowed = REPLAY_TOLERANCE if tolerance is None else tolerance
        recorded = _replay(Path(plan), [Path(path) for path in references], engine, allowed)
    return Verification(recorded, checkpoint)


def _compare(
    plan: Path,
    checkpoint: Path,
    vae: str | os.PathLike[str] | None,
    config: str | os.PathLike[str] | None,
    weights: str | None,
    engine: str,
    tolerance: float | None,
) -> CheckpointReport:
    # The only place where verification needs PyTorch.
    try:
        from .against import compare_with_checkpoint
        from .graphs.check import TOLERANCES
    except ImportError as error:
        raise import_failed(error, error.name or "torch", "export") from error
    compared = compare_with_checkpoint(
        plan,
        checkpoint,
        Path(vae) if vae else None,
        Path(config) if config else None,
        engine,
        weights,
    )
    allowed = TOLERANCES[compared.precision] if tolerance is None else tolerance
    return CheckpointReport(allowed, compared)


def _replay(plan: Path, references: Sequence[Path], engine: str, tolerance: float) -> ReplayReport:
    with Pipeline.from_plan(plan, engine, exact=True) as pipe:
        found = {path: replay(pipe, path) for path in references}
        return ReplayReport(pipe.engine, tolerance, found)
