"""Converts manifests of format 1 to format 2.

Format 1 said nothing of what a graph is for, nor how large the dimensions of masked families
get: programs tested for names. Those that were in use then are known here, and nowhere else.
"""

from collections.abc import Mapping
from typing import Any

from ...errors import DisaError
from .traits import GraphTraits, Role

DEFAULTS: Mapping[str, str] = {
    "iterations": "num_iterations",
    "cfg": "guidance_scale",
    "cfg_schedule": "guidance_schedule",
}
"""Options that were renamed."""

_TRAITS: Mapping[str, GraphTraits] = {
    "prompt": GraphTraits(Role.ONCE, prepack=False),
    "grid": GraphTraits(Role.ONCE, quantizable=False, always_fp32=True),
    "modulation": GraphTraits(Role.ONCE, quantizable=False),
    "timestep": GraphTraits(Role.TIMESTEP, quantizable=False),
    "backbone": GraphTraits(Role.ITERATION),
    "prefill": GraphTraits(Role.ITERATION),
    "head": GraphTraits(Role.STEP),
    "decoder": GraphTraits(Role.DECODE, quantizable=False),
}
_TRAITS_IN: Mapping[tuple[str, str], GraphTraits] = {
    ("mar", "timestep"): GraphTraits(Role.TIMESTEP, quantizable=False, always_fp32=True),
    ("harmon", "timestep"): GraphTraits(Role.TIMESTEP, quantizable=False, always_fp32=True),
    # It has a third of xAR's weights.
    ("xar", "timestep"): GraphTraits(Role.TIMESTEP),
}
_MASKED = ("mar", "harmon")
_SPLIT = ("batch", "rows")


def upgraded(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a manifest of format 1; invalid parts are left for the checks of format 2.

    Raises:
        DisaError: a graph has an unknown name, so its role is not known.
    """
    content = {**manifest, "format": 2}
    if isinstance(defaults := manifest.get("defaults"), dict):
        content["defaults"] = {DEFAULTS.get(name, name): v for name, v in defaults.items()}
    tokens = manifest.get("tokens")
    if isinstance(tokens, dict) and manifest.get("family") in _MASKED:
        content["tokens"] = _with_dimensions(tokens)
    if isinstance(graphs := manifest.get("graphs"), dict):
        family = str(manifest.get("family"))
        content["graphs"] = {name: _graph(family, name, entry) for name, entry in graphs.items()}
    return content


def _with_dimensions(tokens: Mapping[str, Any]) -> Mapping[str, Any]:
    count, given = tokens.get("count"), tokens.get("dimensions", {})
    if not isinstance(count, int) or not isinstance(given, dict):
        return tokens
    masked = {"visible": [0, count // 2, count], "predicted": [1, count]}
    return {**tokens, "dimensions": {**masked, **given}}


def _graph(family: str, name: str, entry: Any) -> Any:
    if not isinstance(entry, dict):
        return entry
    traits = _TRAITS_IN.get((family, name)) or _TRAITS.get(name)
    if traits is None:
        raise DisaError(
            f"the plan has format 1, which does not describe the use of its graph {name[:64]!r}: "
            "export the checkpoint again with disa-export"
        )
    given = entry.get("inputs")
    inputs = given if isinstance(given, list) else []
    shapes = [spec.get("shape") for spec in inputs if isinstance(spec, dict)]
    names = [dim for shape in shapes if isinstance(shape, list) for dim in shape]
    split = next((dimension for dimension in _SPLIT if dimension in names), None)
    return {**traits.to_json(), "split": split, **entry}
