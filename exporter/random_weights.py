"""Plans of official sizes with random weights, to measure speed where there is no checkpoint."""

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import DisaError
from .export import export
from .mar import MAR
from .mar_config import SIZES, Config, official_config

STD = 0.02
SOURCES = (
    *("export", "graph", "head", "layers", "mar", "mar_config", "precision"),
    *("random_weights", "sharing"),
)
"""The modules of this package that decide what is in such a plan."""


def random_state(config: Config, seed: int = 0) -> dict[str, Tensor]:
    """A state dict for `MAR(config)`, the same for the same seed.

    Matrices and tables are normal with deviation 0.02, norms are identities and biases zero:
    every layer does its work, and values stay of ordinary size.
    """
    generator = torch.Generator().manual_seed(seed)
    model = MAR(config)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                continue
            for name, parameter in module.named_parameters(recurse=False):
                if name == "bias":
                    parameter.zero_()
                else:
                    parameter.normal_(0, STD, generator=generator)
    return dict(model.state_dict())


def random_plan(
    shapes: str,
    folder: Path | None = None,
    report: Callable[[str], object] = lambda stage: None,
) -> Path:
    """The plan of an official size such as `mar_b` with random weights, made where it is not yet.

    Args:
        folder: where plans are kept; the user's cache folder by default. The name of a plan
            there changes with the exporter, and plans of older exporters are removed.
        report: called with the name of each stage as it begins.
    """
    if shapes not in SIZES:
        raise DisaError(f"there are no shapes named {shapes}: choose one of {', '.join(SIZES)}")
    folder = folder or cache_folder()
    plan = folder / f"{shapes}-random-{_fingerprint()}.plan"
    if plan.exists():
        return plan
    try:
        folder.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(prefix=".random-", dir=folder)
    except OSError as error:
        raise DisaError(f"{folder} cannot be written: {error.strerror or error}") from error
    with scratch as name:
        checkpoint = Path(name) / f"{shapes}.pth"
        report("making random weights")
        torch.save({"model": random_state(official_config(shapes))}, checkpoint)
        export(checkpoint, plan, check=False, report=report)
    for old in folder.glob(f"{shapes}-random-*.plan"):
        if old != plan:
            old.unlink(missing_ok=True)
    return plan


def cache_folder() -> Path:
    """`disa` in the user's cache folder (XDG_CACHE_HOME, else ~/.cache)."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "disa"


def _fingerprint() -> str:
    digest = hashlib.sha256()
    for name in SOURCES:
        digest.update((Path(__file__).parent / f"{name}.py").read_bytes())
    return digest.hexdigest()[:12]
