"""The packages that the GPU check needs, and their installation from wheels.

Imports nothing that a wheel may install.
"""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

SITE = "site"
"""Name of the folder that wheels are installed into."""
NEEDED = {
    "torch": "torch",
    "numpy": "numpy",
    "onnx": "onnx",
    "onnxscript": "onnxscript",
    "click": "click",
    "tqdm": "tqdm",
    "PIL": "pillow",
}
"""Modules that every part needs, and the packages that have them."""


def install(wheels: Path, folder: Path) -> dict[str, str]:
    """Install wheels without a network, after joining split ones.

    Returns:
        For each wheel "done", or pip's error message.
    """
    whole = folder / "wheels"
    whole.mkdir()
    for piece in sorted(wheels.glob("*.whl*")):
        name = piece.name if piece.suffix == ".whl" else piece.stem
        with (whole / name).open("ab") as target, piece.open("rb") as source:
            shutil.copyfileobj(source, target)
    paths = sorted(whole.glob("*.whl"))
    together = _pip(folder, paths)
    outcomes = {path.name: together for path in paths}
    if together != "done":
        # pip installs none of several if it refuses one. They must not be installed one by one:
        # it leaves out a folder that another one has made, such as the namespace cuda.
        outcomes = {path.name: _pip(folder, [path], "--dry-run") for path in paths}
        accepted = [path for path in paths if outcomes[path.name] == "done"]
        if accepted:
            outcomes |= dict.fromkeys((path.name for path in accepted), _pip(folder, accepted))
    shutil.rmtree(whole)
    return outcomes


def _pip(folder: Path, wheels: Sequence[Path], *options: str) -> str:
    if not wheels:
        return "done"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    command += ["--no-compile", "--target", str(folder / SITE), *options, *map(str, wheels)]
    ended = subprocess.run(command, capture_output=True, text=True)
    return ending(ended.returncode, ended.stderr)


def missing_packages(settings: dict[str, str], folder: Path) -> list[str]:
    """The packages of `NEEDED` that the parts would not find that run in `folder`."""
    names = tuple(NEEDED)
    program = (
        f"from importlib.util import find_spec; print(*(n for n in {names} if not find_spec(n)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], env=settings, cwd=folder, capture_output=True, text=True
    )
    return [NEEDED[name] for name in found.stdout.split()]


def ending(code: int, errors: str) -> str:
    """How a process ended."""
    # There may be no second run, so the record contains the end of the error output.
    return "done" if code == 0 else f"ended with {code}: {errors.strip()[-3000:] or 'no message'}"
