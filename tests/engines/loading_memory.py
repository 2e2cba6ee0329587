"""Measures what loading a plan takes: `python -m tests.engines.loading_memory ENGINE SMALL LARGE`.

In a process of its own, because threads and pools of earlier tests move the memory of theirs.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from disa.engines.openvino.session import OpenVINOSession
from disa.engines.ort.session import OnnxRuntimeSession
from disa.engines.plan.plan import Plan

ROOT = Path(__file__).parents[2]
OPENERS: dict[str, Callable[..., Any]] = {
    "openvino": partial(OpenVINOSession, precision="fp32"),
    "mapped": partial(OnnxRuntimeSession, prepack=False),
    "packed": OnnxRuntimeSession,
}


def loading_memory(engine: str, small: Path, large: Path) -> int:
    """Bytes not backed by a file that the session of the plan `large` takes.

    Args:
        engine: a key of OPENERS.
        small: a plan whose session is opened first, with all that is loaded only once.
    """
    command = [sys.executable, "-m", "tests.engines.loading_memory", engine, str(small), str(large)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True
    )
    taken: int = json.loads(done.stdout)
    return taken


def _anonymous() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii").split()
    return int(status[status.index("RssAnon:") + 1]) << 10


def main(engine: str, *paths: str) -> None:
    sessions, levels = [], []
    for path in paths:
        with Plan.open(Path(path)) as plan:
            sessions.append(OPENERS[engine](plan, "head"))
        levels.append(_anonymous())
    print(json.dumps(levels[1] - levels[0]))


if __name__ == "__main__":
    main(*sys.argv[1:])
