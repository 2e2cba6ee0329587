import json
from typing import Any

import pytest

from disa.checked_json import JSONError
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
        ("xar", "prefill", [["tokens", "batch"]], GraphTraits(Role.ITERATION, split="batch")),
        *(
            (family, graph, [["steps"]], GraphTraits(role, quantizable=False, always_fp32=fp32))
            for family, graph, role, fp32 in [
                ("harmon", "grid", Role.ONCE, True),
                ("harmon", "timestep", Role.TIMESTEP, True),
                ("flowar", "timestep", Role.TIMESTEP, False),
                ("mar", "decoder", Role.DECODE, False),
            ]
        ),
    ],
)
def test_roles_come_from_the_names_of_that_time(
    family: str, graph: str, shapes: list[list[Any]], traits: GraphTraits
) -> None:
    assert parse(version1(family, **{graph: shapes})).graphs[graph].traits == traits


def test_what_is_not_said_otherwise() -> None:
    traits = parse(version1("mar", head=[["rows", 4]])).graphs["head"].traits
    assert (traits.quantizable, traits.always_fp32, traits.prepack) == (True, False, True)


@pytest.mark.parametrize(
    "change",
    [
        {"graphs": 3},
        {"graphs": {"head": 3}},
        {"graphs": {"head": {"onnx": "graph.onnx", "inputs": 3, "outputs": []}}},
        {"graphs": {"head": {"onnx": "graph.onnx", "inputs": [3], "outputs": []}}},
        {"graphs": {"head": {"onnx": "graph.onnx", "inputs": [{"shape": 3}], "outputs": []}}},
        {"graphs": {"head": {"onnx": "graph.onnx", "outputs": []}}},
        {"tokens": 3},
        {"defaults": [3]},
        {"family": 3},
    ],
)
def test_parts_that_are_nothing_are_left_to_the_checks(change: dict[str, Any]) -> None:
    with pytest.raises(JSONError, match=r"should be|lacks"):
        parse({**version1("mar", head=[["rows", 4]]), **change})


def test_tokens_without_a_count_have_no_dimensions() -> None:
    for tokens in ({"count": 1.5}, {}, {"count": 16, "dimensions": 3}):
        content = version1("mar", head=[["rows", 4]])
        assert parse({**content, "tokens": tokens}).tokens == tokens


def test_a_graph_of_unknown_use_says_how_to_go_on() -> None:
    with pytest.raises(DisaError, match=r"use of its graph 'other': .* with disa-export"):
        parse(version1("mar", other=[["rows"]]))
