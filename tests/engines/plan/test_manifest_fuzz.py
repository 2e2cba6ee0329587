"""Every field of a manifest changed: a plan is taken whole or refused in one sentence."""

import json
import random
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from disa.checked_json import JSONError
from disa.engines.plan.manifest import parse_manifest
from disa.engines.plan.plan import Plan
from disa.errors import DisaError
from disa.runtime.families.registry import open_family

from ...fuzzing import MUTATIONS, seeded
from .test_plan_fuzz import forge, frugal, positions

__all__ = ["frugal"]

SECONDS = 2.0
NUMBERS = (0, 1, 2, 3, 7, 15, 17, 255, 2**16, 2**24, 2**31, 2**40, 2**53, -1, 0.5)


def change(rng: random.Random, manifest: dict[str, Any]) -> str:
    """Change a number or a name to one that could be meant; what was changed."""
    container, key = rng.choice(positions(manifest))
    item = container[key]
    if isinstance(item, bool):
        container[key] = not item
    elif isinstance(item, int | float):
        container[key] = rng.choice(NUMBERS)
    elif isinstance(item, str):
        container[key] = rng.choice(["rows", "batch", "steps", "int64", "once", "x" * 300, ""])
    else:
        forge(rng, manifest)
    return f"{key} -> {str(container.get(key) if isinstance(container, dict) else '')[:60]}"


def test_each_field(pixel_plan: Path, frugal: None) -> None:
    rng = seeded("manifest fields")
    with Plan.open(pixel_plan) as plan:
        manifest = bytes(plan.read("manifest.json"))
    refused = 0
    for _ in range(MUTATIONS):
        changed = json.loads(manifest)
        what = change(rng, changed)
        begin = time.process_time()
        try:
            parsed = parse_manifest(json.dumps(changed).encode())
            opened = Plan(pixel_plan, parsed, [], cast(Any, b""), ())
            # Sessions are not opened: only what is read from the manifest is tried.
            sessions: Any = {
                name: SimpleNamespace(inputs=graph.inputs, outputs=graph.outputs, empty=np.empty)
                for name, graph in parsed.graphs.items()
            }
            open_family(opened, sessions).conditions([0])
        except (DisaError, JSONError) as error:
            refused += 1
            assert "\n" not in str(error), what  # noqa: PT017
            assert len(str(error)) < 2000, what  # noqa: PT017
        assert time.process_time() - begin < SECONDS, what
    assert refused > MUTATIONS / 4
