import json
from typing import Any

import pytest

from disa.engines.plan.manifest import parse_manifest
from disa.engines.plan.traits import GraphTraits, Role
from disa.errors import DisaError


def version1(family: str, **graphs: list[list[Any]]) -> dict[str, Any]:
    """A manifest of format 1 with graphs of these input shapes; the first is put out again."""
    return {
        "format": 1,
        "family": family,
        "name": "old",
        "precision": "fp32",
        "model": {},
        "tokens": {"count": 16},
        "defaults": {"iterations": 16, "cfg": 2.5, "cfg_schedule": "linear", "steps": "50:5"},
        "graphs": {
            name: {
                "onnx": "graph.onnx",
                "inputs": [
                    {"name": f"in_{index}", "dtype": "float32", "shape": shape}
                    for index, shape in enumerate(shapes)
                ],
                "outputs": [{"name": "out", "dtype": "float32", "shape": shapes[0]}],
            }
            for name, shapes in graphs.items()
        },
        "members": {"graph.onnx": {"size": 1, "sha256": "0" * 64}},
    }


def parse(content: Any) -> Any:
    return parse_manifest(json.dumps(content).encode())


def test_options_have_their_new_names() -> None:
    manifest = parse(version1("mar", head=[["rows", 4]]))
    assert manifest.defaults == {
        "num_iterations": 16,
        "guidance_scale": 2.5,
        "guidance_schedule": "linear",
        "steps": "50:5",
    }
    assert manifest.raw["defaults"] == manifest.defaults
    assert manifest.raw["format"] == 2


def test_masked_families_get_their_dimensions() -> None:
    expected = {"visible": [0, 8, 16], "predicted": [1, 16]}
    assert parse(version1("mar", head=[["rows", 4]])).tokens["dimensions"] == expected
    content = version1("harmon", head=[["rows", 4]])
    content["tokens"]["dimensions"] = {"width": [1, 4, 4]}
    assert parse(content).tokens["dimensions"] == {**expected, "width": [1, 4, 4]}
    assert "dimensions" not in parse(version1("xar", head=[["rows", 4]])).tokens


@pytest.mark.parametrize(
    ("family", "graph", "shapes", "traits"),
    [
        ("mar", "head", [["rows", 4], ["steps", 5]], GraphTraits(Role.STEP, split="rows")),
        ("flowar", "head", [["tokens", "batch"]], GraphTraits(Role.STEP, split="batch")),
        ("mar", "backbone", [["visible", "batch"]], GraphTraits(Role.ITERATION, split="batch")),
        ("xar", "timestep", [["rows"]], GraphTraits(Role.TIMESTEP, split="rows")),
        (
            "mar",
            "timestep",
            [["steps"]],
            GraphTraits(Role.TIMESTEP, quantizable=False, always_fp32=True),
        ),
        (
            "flowar",
            "modulation",
            [["guidance", "batch"]],
            GraphTraits(Role.ONCE, quantizable=False, split="batch"),
        ),
        ("harmon", "prompt", [["prompts"]], GraphTraits(Role.ONCE, prepack=False)),
    ],
)
def test_roles_come_from_the_names_of_that_time(
    family: str, graph: str, shapes: list[list[Any]], traits: GraphTraits
) -> None:
    assert parse(version1(family, **{graph: shapes})).graphs[graph].traits == traits


def test_a_graph_of_unknown_use_says_how_to_go_on() -> None:
    with pytest.raises(DisaError, match=r"use of its graph 'other': .* with disa-export"):
        parse(version1("mar", other=[["rows"]]))
