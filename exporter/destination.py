"""The path of a plan, and the files that it must not replace."""

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from ..engines.plan.plan import Plan
from ..errors import DisaError
from ..files import is_same

PLAN_SUFFIX = ".plan"
FOLDER = Path("engines")
_SUFFIXES = re.compile(r"(\.index\.json|\.safetensors|\.bin|\.pth?|\.ckpt|\.plan)+$")
# Words in file names that training code uses for every model.
_SAY_NOTHING = {
    "avg", "best", "bin", "checkpoint", "ckpt", "consolidated", "diffusion", "dict", "ema", "ep",
    "epoch", "final", "fp", "global", "iter", "last", "latest", "model", "mp", "net", "of", "pth",
    "pytorch", "rank", "safetensors", "state", "states", "step", "val", "loss", "weights",
}  # fmt: skip


def name_in_path(source: Path) -> str | None:
    """The model's name, if the file's or folder's name is more specific than "checkpoint-last"."""
    stem = _SUFFIXES.sub("", source.resolve().name if source.is_dir() else source.name)
    words = {word for word in re.split(r"[^a-z]+", stem.lower()) if word}
    return None if words <= _SAY_NOTHING else stem


def is_folder(output: str | os.PathLike[str]) -> bool:
    """Whether an output is a folder: it exists as one, or its name ends in a slash."""
    text = os.fspath(output)
    return text.endswith(("/", os.sep)) or os.path.isdir(text)


def plan_path(output: str | os.PathLike[str] | None, name: Callable[[], str]) -> Path:
    """The path of a plan: `output`, or NAME.plan in that folder, or in `engines`."""
    if output is not None and not is_folder(output):
        return Path(output)
    folder = FOLDER if output is None else Path(output)
    return folder / f"{name()}{PLAN_SUFFIX}"


def refuse_inputs(path: Path, inputs: Iterable[Path | None]) -> None:
    """Check that writing `path` replaces no input file.

    Raises:
        DisaError: it would.
    """
    for file in inputs:
        if file is not None and is_same(path, file):
            raise DisaError(
                f"{path} is read for this plan and would be replaced by it: choose another name "
                "with -o"
            )


def refuse_other_plan(path: Path, sha256: Callable[[], str], overwrite: bool) -> None:
    """Check that `path` is free, or is a plan of the same checkpoint.

    Args:
        sha256: returns the digest of the checkpoint; called if the file exists.
        overwrite: replace any file.

    Raises:
        DisaError: `path` is another file.
    """
    if overwrite or not path.is_file():
        return
    try:
        with Plan.open(path) as plan:
            made_from = plan.manifest.source
    except DisaError as error:
        raise DisaError(
            f"{path} exists and is not a readable plan: choose another name with -o, or --overwrite"
        ) from error
    if made_from.get("sha256") != sha256():
        raise DisaError(
            f"{path} exists and was made from another file ({str(made_from.get('file'))[:80]}): "
            "choose another name with -o, or --overwrite"
        )
