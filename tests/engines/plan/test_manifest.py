import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from disa.checked_json import JSONError
from disa.engines.plan import manifest as manifest_module
from disa.engines.plan.engine_info import EngineInfo, ShapeRange
from disa.engines.plan.manifest import MAX_BYTES, Manifest, dump_manifest, parse_manifest
from disa.engines.plan.traits import Role
from disa.engines.session import TensorSpec
from disa.errors import DisaError

HASH = "0123456789abcdef" * 4
ENGINE = EngineInfo(
    graph="head",
    backend="tensorrt-rtx",
    version="1.7.1.116",
    precision="fp16",
    architectures=("sm_89", "sm_120"),
    profiles=({"x": ShapeRange((1, 4), (8, 4), (64, 4))},),
    member="engines/head.engine",
    details={"cuda": "13", "memory": 1024},
)


def content() -> dict[str, Any]:
    """A manifest with everything in it."""
    return {
        "format": 2,
        "family": "mar",
        "name": "mar_b",
        "precision": "fp32",
        "model": {"depth": 12, "ratio": 4.0, "nested": {"list": [1, None, True, "x"]}},
        "tokens": {"count": 256, "channels": 16},
        "image": {"height": 256, "width": 256},
        "defaults": {"steps": "50:5", "guidance_scale": 2.9},
        "class_names": ["tench", "großer Hai", "金魚\u3000"],
        "graphs": {
            "head": {
                "role": "step",
                "quantizable": True,
                "always_fp32": False,
                "split": "rows",
                "prepack": True,
                "onnx": "graphs/head.onnx",
                "data": ["graphs/head.data"],
                "inputs": [{"name": "x", "dtype": "float32", "shape": ["rows", 16]}],
                "outputs": [{"name": "next_x", "dtype": "float32", "shape": ["rows", 16]}],
            }
        },
        "engines": [ENGINE.to_json()],
        "members": {
            "graphs/head.onnx": {"size": 10, "sha256": HASH},
            "graphs/head.data": {"size": 2**40, "sha256": HASH},
            "engines/head.engine": {"size": 0, "sha256": HASH},
        },
        "source": {"file": "mar_b.pth"},
    }


def parse(item: Any) -> Manifest:
    return parse_manifest(json.dumps(item).encode())


def test_a_manifest_becomes_dataclasses() -> None:
    manifest = parse(content())
    assert (manifest.family, manifest.name, manifest.precision) == ("mar", "mar_b", "fp32")
    assert manifest.class_names == ("tench", "großer Hai", "金魚\u3000")
    head = manifest.graphs["head"]
    assert (head.onnx, head.data) == ("graphs/head.onnx", ("graphs/head.data",))
    assert head.inputs == (TensorSpec("x", "float32", ("rows", 16)),)
    assert manifest.members["graphs/head.data"].size == 2**40
    assert manifest.engines == (ENGINE,)


def test_what_is_written_is_what_was_read() -> None:
    manifest = parse(content())
    again = content()
    again["graphs"] = {name: graph.to_json() for name, graph in manifest.graphs.items()}
    again["engines"] = [engine.to_json() for engine in manifest.engines]
    assert parse_manifest(dump_manifest(again)) == replace(manifest, raw=again)


def test_unknown_keys_are_kept() -> None:
    given_ = content()
    given_["future"] = {"more": [1]}
    given_["graphs"]["head"]["future"] = 1
    given_["members"]["graphs/head.onnx"]["future"] = 1
    assert parse(given_).raw["future"] == {"more": [1]}


def test_optional_keys_may_be_missing() -> None:
    given_ = content()
    for key in ("image", "class_names", "engines", "source"):
        del given_[key]
    manifest = parse(given_)
    assert manifest.class_names is None
    assert (dict(manifest.image), manifest.engines) == ({}, ())


def test_a_newer_format_says_so() -> None:
    with pytest.raises(DisaError, match=r"format 3, made by a newer disa.*update disa"):
        parse({"format": 3})


def test_values_are_looked_up_with_their_kind() -> None:
    manifest = parse(content())
    assert manifest.value("tokens", "count", int) == 256
    assert manifest.value("defaults", "guidance_scale", float) == 2.9
    assert isinstance(manifest.value("tokens", "count", float), float)
    for section, key, kind in [
        ("tokens", "none", int),
        ("defaults", "guidance_scale", int),
        ("no", "x", str),
    ]:
        with pytest.raises(DisaError, match=f"no {kind.__name__} {key} in {section}"):
            manifest.value(section, key, kind)


def _set(*keys_and_value: Any) -> Callable[[dict[str, Any]], None]:
    *keys, last, value = keys_and_value

    def change(item: Any) -> None:
        for key in keys:
            item = item[key]
        item[last] = value

    return change


def _delete(*keys: str) -> Callable[[dict[str, Any]], None]:
    def change(item: Any) -> None:
        for key in keys[:-1]:
            item = item[key]
        del item[keys[-1]]

    return change


HEAD = ("graphs", "head")
X = (*HEAD, "inputs", 0)
WRONG: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    *((_delete(key), f"lacks {key}") for key in ("format", "family", "name", "model", "tokens")),
    *((_delete(key), f"lacks {key}") for key in ("defaults", "graphs", "members", "precision")),
    (_set("format", 0), "format 0"),
    (_set("format", "1"), "format in the manifest should be a whole number"),
    (_set("format", True), "should be a whole number"),
    (_set("family", "a\u202eb"), "family in the manifest should be a name"),
    (_set("family", ["mar"]), "should be text"),
    (_set("name", "a\x1b[2Jb"), "control characters"),
    (_set("name", "\ud800"), "control characters"),
    (_set("name", "x" * 70000), "should be text"),
    (_set("name", "x" * 257), "at most 256 letters"),
    (_set("model", []), "model in the manifest should be an object"),
    (_set("model", "depth", 2**70), "too large"),
    (_set("model", "depth", math.nan), "not finite"),
    (_set("model", "depth", -math.inf), "not finite"),
    (_set("class_names", "abc"), "class_names in the manifest should be a list"),
    (_set("class_names", [1]), "item 0 in class_names in the manifest should be text"),
    (_set("graphs", []), "should be an object"),
    (_set("graphs", "../a", {}), "invalid name"),
    (_delete(*HEAD, "onnx"), "head in graphs in the manifest lacks onnx"),
    (_set(*HEAD, "onnx", "graphs/other.onnx"), "needs graphs/other.onnx, which is not listed"),
    (_set(*HEAD, "onnx", "../x"), "should be the name of a member"),
    (_set(*HEAD, "data", ["none"]), "needs none, which is not listed"),
    *((_delete(*HEAD, key), f"lacks {key}") for key in ("role", "quantizable", "split", "prepack")),
    (_set(*HEAD, "role", "head"), "should be one of once, timestep, iteration, .*, step, decode"),
    (_set(*HEAD, "quantizable", 1), "quantizable in .* should be true or false"),
    (_set(*HEAD, "always_fp32", True), "both as quantizable and as always_fp32"),
    (_set(*HEAD, "split", "batch"), "split along batch, which no input has"),
    (_set(*HEAD, "outputs", 0, "shape", ["rows", 8]), "no output of it can be its next input"),
    (_set("tokens", "count", 2**40), "count in tokens in .* should be from 0 to"),
    (_set("tokens", "rows", [1, -2]), "1 in rows in tokens in .* should be from 0 to"),
    (_set("image", "height", -1), "height in image in .* should be from 0 to"),
    (_set("defaults", "schedule", "/etc/passwd"), "schedule in .* should be an object"),
    (_set("defaults", "steps", ["50:5"]), "steps in .* should be a number or a short text"),
    (_set("class_names", ["x" * 257]), "at most 256 letters"),
    (_set("source", {"file": "x" * 2**16, "args": ["y" * 2**16] * 4}), "at most 262144 bytes"),
    (_set(*HEAD, "inputs", [content()["graphs"]["head"]["inputs"][0]] * 2), "twice"),
    (_set(*X, "dtype", "float16"), "should be one of float32, int64"),
    (_set(*X, "dtype", {}), "should be one of"),
    (_set(*X, "shape", ["rows", -1]), "should be a size"),
    (_set(*X, "shape", ["rows", 1.0]), "should be a whole number"),
    (_set(*X, "shape", ["3 rows"]), "should be the name of a dimension"),
    (_set(*X, "shape", [1] * 9), "at most 8 dimensions"),
    (_set("members", "/etc/passwd", {"size": 1, "sha256": HASH}), "unsafe name"),
    (_set("members", "a", {"size": -1, "sha256": HASH}), "should be a size"),
    (_set("members", "a", {"size": 1, "sha256": "0"}), "sha256 in hexadecimal"),
    (_set("engines", 0, "graph", "none"), "an engine is for the graph none"),
    (_set("engines", 0, "member", "none"), "an engine needs none"),
    (_set("engines", 0, "profiles", [{"x": [[1], [2]]}]), "three shapes of one rank"),
    (_set("engines", 0, "profiles", [{"x": [[1], [2], [3, 4]]}]), "three shapes of one rank"),
    (_set("engines", 0, "profiles", [{"x": [[2], [1], [3]]}]), "smallest, a usual and a largest"),
    (_set("engines", 0, "profiles", []), "no shapes for the inputs of head"),
    (_set("engines", 0, "profiles", [{"y": [[1, 4]] * 3}]), "no shapes for the inputs of head"),
    (_set("engines", 0, "profiles", [{"x": [[1]] * 3}]), "no shapes for the inputs of head"),
    (_set("engines", 0, "details", "least_sm", "89"), "least_sm in .* should be a whole number"),
    (_set("engines", 0, "details", "cuda", "new"), "should be the major version of CUDA"),
    (_set("engines", 0, "details", "device", 4), "device in .* should be text"),
]


def _source_of(size: int) -> dict[str, str]:
    """An object of so many bytes as JSON."""
    source = {str(part): "x" * 65_000 for part in range(4)} | {"rest": ""}
    source["rest"] = "x" * (size - len(json.dumps(source)))
    return source


LIMITS: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (_set("name", "x" * 256), ""),
    (_set("name", "x" * 257), "at most 256 letters"),
    (_set("class_names", ["x" * 256]), ""),
    (_set("defaults", "note", "x" * 256), ""),
    (_set("defaults", "note", "x" * 257), "note in .* should be a number or a short text"),
    (_set("tokens", "count", 0), ""),
    (_set("tokens", "count", 2**24), ""),
    (_set("tokens", "count", 2**24 + 1), "from 0 to 16777216"),
    (_set("tokens", "sizes", {"a": [1, 2**24 + 1]}), "1 in a in sizes in tokens in .* from 0 to"),
    (_set("tokens", "what", "text"), ""),
    (_set(*X, "shape", ["rows", 16, *[1] * 6]), "no output of it can be its next input"),
    (_set(*X, "shape", ["rows", 16, *[1] * 7]), "a tensor of at most 8 dimensions"),
    (_set("source", _source_of(1 << 18)), ""),
    (_set("source", _source_of((1 << 18) + 1)), "an object of at most 262144 bytes"),
    (_set(*HEAD, "split", None), ""),
    (_set(*HEAD, "role", "modulated_step"), ""),
    (_set(*HEAD, "outputs", 0, "dtype", "int64"), "no output of it can be its next input"),
    (_set(*HEAD, "quantizable", False), ""),
]


@pytest.mark.parametrize(("change", "message"), LIMITS)
def test_limits_may_be_reached(change: Callable[[dict[str, Any]], None], message: str) -> None:
    changed = content()
    changed["engines"] = []
    change(changed)
    if not message:
        assert parse(changed).raw == changed
        return
    with pytest.raises(JSONError, match=message):
        parse(changed)


@pytest.mark.parametrize("role", ["step", "modulated_step", "iteration", "decode"])
def test_only_a_step_feeds_itself(role: str) -> None:
    changed = content()
    changed["engines"] = []
    changed["graphs"]["head"] |= {"role": role}
    changed["graphs"]["head"]["outputs"][0]["shape"] = ["rows", 8]
    if "step" not in role:
        assert [graph.name for graph in parse(changed).with_role(Role(role))] == ["head"]
        assert parse(changed).with_role(Role.STEP) == []
        return
    with pytest.raises(JSONError, match="no output of it can be its next input"):
        parse(changed)


def test_a_manifest_may_have_so_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    data = json.dumps(content()).encode()
    monkeypatch.setattr(manifest_module, "MAX_BYTES", len(data))
    parse_manifest(data)
    monkeypatch.setattr(manifest_module, "MAX_BYTES", len(data) - 1)
    with pytest.raises(JSONError, match=f"larger than {len(data) - 1} bytes"):
        parse_manifest(data)


@pytest.mark.parametrize(
    ("shapes", "fits"),
    [
        ([[1, 4], [1, 4], [1, 4]], True),
        ([[1, 4], [2, 4], [2, 4]], True),
        ([[2, 4], [1, 4], [3, 4]], False),
        ([[1, 4], [3, 4], [2, 4]], False),
        ([[1, 4], [1, 4], [1, 4], [1, 4]], False),
    ],
)
def test_shapes_of_an_engine(shapes: list[list[int]], fits: bool) -> None:
    changed = content()
    changed["engines"][0]["profiles"] = [{"x": shapes}]
    if fits:
        parse(changed)
        return
    with pytest.raises(JSONError):
        parse(changed)


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_what_is_wrong_is_named(change: Callable[[dict[str, Any]], None], message: str) -> None:
    changed = content()
    change(changed)
    with pytest.raises(JSONError, match=message):
        parse(changed)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[" * 20 + b"]" * 20, "too many nested levels"),
        (b'{"a":' * 20 + b"1" + b"}" * 20, "too many nested levels"),
        (b'{"format": 1' + b"0" * 9999 + b"}", "not valid JSON"),
        (b'{"format": 1e999}', "not finite"),
        (b'{"format": 1, "format": 1}', "a duplicate name"),
        (b" " * (MAX_BYTES + 1), "larger than"),
        (b"[]", "the manifest should be an object"),
        (b"null", "the manifest should be an object"),
    ],
)
def test_bytes_that_are_no_manifest(data: bytes, message: str) -> None:
    with pytest.raises(JSONError, match=message):
        parse_manifest(data)


def test_what_cannot_be_read_back_is_not_written() -> None:
    for change, message in [
        (_set("model", "x", object()), "cannot be written as JSON"),
        (_set("model", "x", math.nan), "cannot be written as JSON"),
        (_set("family", ""), "should be a name"),
    ]:
        changed = content()
        change(changed)
        with pytest.raises(JSONError, match=message):
            dump_manifest(changed)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def _all_paths() -> list[tuple[Any, ...]]:
    def walk(item: Any, path: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        if isinstance(item, dict):
            return [path, *(p for key, value in item.items() for p in walk(value, (*path, key)))]
        if isinstance(item, list):
            return [path, *(p for i, value in enumerate(item) for p in walk(value, (*path, i)))]
        return [path]

    return walk(content(), ())[1:]


def taken_or_named(item: Any) -> bool:
    """Whether a manifest was taken whole, and not refused in one short sentence."""
    try:
        manifest = parse(item)
    except (JSONError, DisaError) as error:
        sentence = str(error)
        return len(sentence) < 2000 and "\n" not in sentence
    return manifest.raw == item


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.sampled_from(_all_paths()), JSON)
def test_any_value_anywhere_is_taken_or_named(path: tuple[Any, ...], value: Any) -> None:
    changed = content()
    _set(*path, value)(changed)
    assert taken_or_named(changed)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(JSON)
def test_any_json_is_taken_or_named(item: Any) -> None:
    assert taken_or_named(item)


def test_graphs_that_quantisation_left_alone_are_in_fp32() -> None:
    def manifest(precision: str, quantization: Any) -> Manifest:
        raw = {**content(), "precision": precision, "quantization": quantization}
        return parse_manifest(json.dumps(raw).encode())

    quantized = manifest("int8", {"graphs": {"head": {"products": 3}}})
    assert quantized.precision_of("head") == "int8"
    assert quantized.precision_of("decoder") == "fp32"
    assert quantized.quantized["head"] == {"products": 3}
    plain = parse_manifest(json.dumps({**content(), "precision": "fp16"}).encode())
    assert plain.precision_of("decoder") == "fp16"
    for wrong in ({"graphs": []}, {"graphs": {"head": 3}}, {}, 7):
        with pytest.raises(JSONError):
            manifest("int8", wrong)


def test_graphs_that_are_always_in_fp32() -> None:
    raw = {**content(), "precision": "fp16"}
    assert parse(raw).precision_of("head") == "fp16"
    raw["graphs"]["head"] |= {"quantizable": False, "always_fp32": True}
    assert parse(raw).precision_of("head") == "fp32"


def _pass(role: str, inputs: list[str], outputs: list[str]) -> dict[str, Any]:
    specs = [
        [{"name": name, "dtype": "float32", "shape": ["batch", 4]} for name in names]
        for names in (inputs, outputs)
    ]
    graph: dict[str, Any] = dict(content()["graphs"]["head"])
    traits = {"role": role, "split": None, "quantizable": False}
    return graph | traits | {"inputs": specs[0], "outputs": specs[1]}


def test_caches_go_from_a_full_pass_to_the_next_ones() -> None:
    changed = content()
    changed["engines"] = []
    graphs = changed["graphs"]
    graphs["all"] = _pass("refresh", ["tokens"], ["condition", "keys", "difference"])
    assert parse(changed).cache_tensors("all") == frozenset()
    graphs["some"] = _pass(
        "reuse", ["tokens", "difference", "keys"], ["condition", "new_keys", "new_tokens"]
    )
    manifest = parse(changed)
    assert manifest.cache_tensors("all") == {"keys", "difference"}
    assert manifest.cache_tensors("some") == {"keys", "difference", "new_keys"}
    assert manifest.cache_tensors("head") == frozenset()
