"""The manifest of a plan, checked before anything in the plan is used."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from ...checked_json import (
    JSONError,
    Value,
    any_object,
    boolean,
    choice,
    integer,
    list_of,
    load,
    matching,
    optional,
    size,
    table_of,
)
from ...errors import DisaError
from ..session import DTYPES, Dimension, TensorSpec
from .archive import safe_name
from .engine_info import EngineInfo, check_profiles, engine_info
from .manifest_values import EMPTY, MAX_TEXT, NAME, identifier, member_name, short_text
from .traits import GraphTraits, Role
from .version1 import upgraded

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
"""The name of the manifest's member."""
MAX_BYTES = 2 << 20

NEW = "new_"
"""Prefix of the outputs with which a pass that reuses caches extends them."""
QUANTIZED = ("int8", "fp8")
"""Precisions for which the manifest has an entry "quantization"."""

_MAX_RANK = 8
_MAX_COUNT = 1 << 24
"""Largest count of anything in an image or its tokens; no model has so many."""
_MAX_SOURCE = 1 << 18
"""Most bytes of `source` as JSON."""
_DIMENSION = re.compile(r"[A-Za-z_][A-Za-z0-9_ +*/()\-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")

_dimension_name = matching(_DIMENSION, "the name of a dimension")
_sha256 = matching(_SHA256, "a sha256 in hexadecimal")

T = TypeVar("T")


@dataclass(frozen=True)
class Member:
    """A file inside the plan."""

    size: int
    sha256: str


@dataclass(frozen=True)
class GraphInfo:
    """An ONNX graph: its members, inputs and outputs."""

    name: str
    onnx: str
    data: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    traits: GraphTraits

    def to_json(self) -> dict[str, Any]:
        return {
            **self.traits.to_json(),
            "onnx": self.onnx,
            "data": list(self.data),
            "inputs": [_spec_to_json(spec) for spec in self.inputs],
            "outputs": [_spec_to_json(spec) for spec in self.outputs],
        }


@dataclass(frozen=True)
class Manifest:
    """The manifest of a plan. `raw` is the complete JSON, including unknown keys."""

    family: str
    name: str
    precision: str
    model: Mapping[str, Any]
    tokens: Mapping[str, Any]
    image: Mapping[str, Any]
    defaults: Mapping[str, Any]
    class_names: tuple[str, ...] | None
    graphs: Mapping[str, GraphInfo]
    engines: tuple[EngineInfo, ...]
    members: Mapping[str, Member]
    source: Mapping[str, Any]
    """Where the weights come from, and the options of the export, as JSON."""
    quantized: Mapping[str, Mapping[str, Any]]
    """The quantisation of each graph that it changed."""
    raw: Mapping[str, Any]

    def precision_of(self, graph: str) -> str:
        """The precision of a graph's matmuls.

        This is the plan's precision, but "fp32" for graphs that always stay in fp32 and for those
        that quantisation did not change.
        """
        if self.precision in QUANTIZED:
            return self.precision if graph in self.quantized else "fp32"
        info = self.graphs.get(graph)
        return "fp32" if info and info.traits.always_fp32 else self.precision

    def with_role(self, role: Role) -> list[GraphInfo]:
        """The graphs with a role, in the plan's order."""
        return [graph for graph in self.graphs.values() if graph.traits.role is role]

    def cache_tensors(self, graph: str) -> frozenset[str]:
        """The inputs and outputs of a graph that only a cached backbone's next passes read.

        They are outputs of the full pass and inputs of the passes that reuse them, and the new
        parts that these return.
        """
        passes = [*self.with_role(Role.REFRESH), *self.with_role(Role.REUSE)]
        if len(passes) != 2 or graph not in {each.name for each in passes}:
            return frozenset()
        refresh, reuse = passes
        caches = _names(refresh.outputs) & _names(reuse.inputs)
        info = self.graphs[graph]
        own = _names(info.inputs) | _names(info.outputs)
        return own & (caches | {NEW + name for name in caches})

    def value(self, section: str, key: str, kind: type[T]) -> T:
        """The entry `key` of "model", "tokens", "image" or "defaults".

        Raises:
            DisaError: it is missing or of another type. A float may be a whole number.
        """
        item = self.raw.get(section, {}).get(key)
        if kind is float and type(item) is int:
            item = float(item)
        if type(item) is not kind:
            raise DisaError(
                f"the plan of {self.name} has no {kind.__name__} {key} in {section}: "
                "export the checkpoint again"
            )
        return item


def parse_manifest(data: bytes) -> Manifest:
    """Parse a manifest.

    Raises:
        JSONError: the manifest is not valid.
        DisaError: a newer disa wrote it.
    """
    if len(data) > MAX_BYTES:
        raise JSONError(f"the manifest is larger than {MAX_BYTES} bytes")
    root = load(data, "the manifest")
    version = root.get("format", integer)
    if version > FORMAT_VERSION:
        raise DisaError(
            f"the plan has format {version}, made by a newer disa, and this one reads up to "
            f"{FORMAT_VERSION}: update disa, or export the checkpoint again"
        )
    if version < 1:
        raise JSONError(f"the manifest has format {version}")
    if version == 1:
        root = Value(root.where, upgraded(any_object(root)))
    members = root.get("members", table_of(_member))
    manifest = Manifest(
        family=root.get("family", identifier),
        name=root.get("name", short_text),
        precision=root.get("precision", identifier),
        model=root.get("model", any_object),
        tokens=root.get("tokens", _counts),
        image=root.get("image", _counts, EMPTY),
        defaults=root.get("defaults", _defaults),
        class_names=root.get("class_names", optional(list_of(short_text)), None),
        graphs=root.get("graphs", table_of(_graph)),
        engines=root.get("engines", list_of(engine_info), ()),
        members=members,
        source=root.get("source", _source, EMPTY),
        quantized=root.get("quantization", _quantization, EMPTY),
        raw=root.item,
    )
    _check_references(manifest)
    return manifest


def _check_references(manifest: Manifest) -> None:
    for graph in manifest.graphs.values():
        for member in (graph.onnx, *graph.data):
            if member not in manifest.members:
                raise JSONError(f"the graph {graph.name} needs {member}, which is not listed")
    for engine in manifest.engines:
        if engine.graph not in manifest.graphs:
            raise JSONError(f"an engine is for the graph {engine.graph}, which is not listed")
        if engine.member not in manifest.members:
            raise JSONError(f"an engine needs {engine.member}, which is not listed")
        check_profiles(engine, manifest.graphs[engine.graph].inputs)


def dump_manifest(content: Mapping[str, Any]) -> bytes:
    """The bytes of a manifest.

    Raises:
        JSONError: it would not be accepted by `parse_manifest`.
    """
    try:
        data = json.dumps(content, indent=1, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise JSONError(f"the manifest cannot be written as JSON ({error})") from error
    parse_manifest(data)
    return data


def _counts(value: Value) -> Mapping[str, Any]:
    """An object of names and numbers within the limits of counts."""
    for key, item in any_object(value).items():
        _check_counts(value.inside(key, item))
    return any_object(value)


def _check_counts(value: Value) -> None:
    item = value.item
    if isinstance(item, dict | list):
        parts = item.items() if isinstance(item, dict) else enumerate(item)
        for key, part in parts:
            _check_counts(value.inside(f"{key}", part))
    elif isinstance(item, int | float) and not 0 <= item <= _MAX_COUNT:
        raise value.wrong(f"from 0 to {_MAX_COUNT}")


def _defaults(value: Value) -> Mapping[str, Any]:
    """Options by name: numbers and short texts; a schedule is an object, never a path."""
    for key, item in any_object(value).items():
        part = value.inside(key, item)
        if key == "schedule":
            any_object(part)
        elif isinstance(item, dict | list) or len(str(item)) > MAX_TEXT:
            raise part.wrong("a number or a short text")
    return any_object(value)


def _source(value: Value) -> Mapping[str, Any]:
    if len(json.dumps(any_object(value))) > _MAX_SOURCE:
        raise value.wrong(f"an object of at most {_MAX_SOURCE} bytes")
    return any_object(value)


def _quantization(value: Value) -> Mapping[str, Mapping[str, Any]]:
    return value.get("graphs", table_of(lambda _name, graph: any_object(graph)))


def _member(name: str, value: Value) -> Member:
    if not safe_name(name):
        raise JSONError(f"the manifest lists a member with the unsafe name {name[:80]!r}")
    return Member(value.get("size", size), value.get("sha256", _sha256))


def _graph(name: str, value: Value) -> GraphInfo:
    if not NAME.fullmatch(name):
        raise JSONError(f"the manifest lists a graph with the invalid name {name[:80]!r}")
    info = GraphInfo(
        name,
        value.get("onnx", member_name),
        value.get("data", list_of(member_name), ()),
        _distinct(value, value.get("inputs", list_of(_spec))),
        _distinct(value, value.get("outputs", list_of(_spec))),
        GraphTraits(
            Role(value.get("role", choice(*Role))),
            value.get("quantizable", boolean),
            value.get("always_fp32", boolean),
            value.get("split", optional(_dimension_name)),
            value.get("prepack", boolean),
        ),
    )
    _check_traits(value, info)
    return info


def _check_traits(value: Value, info: GraphInfo) -> None:
    traits = info.traits
    if traits.quantizable and traits.always_fp32:
        raise JSONError(f"{value.where} is marked both as quantizable and as always_fp32")
    if traits.split and not any(traits.split in spec.shape for spec in info.inputs):
        raise JSONError(f"{value.where} is split along {traits.split}, which no input has")
    if traits.role in (Role.STEP, Role.MODULATED_STEP):
        kinds = {(spec.dtype, spec.shape) for spec in info.inputs}
        if not any((spec.dtype, spec.shape) in kinds for spec in info.outputs):
            raise JSONError(f"{value.where} is a step, and no output of it can be its next input")


def _names(specs: Iterable[TensorSpec]) -> frozenset[str]:
    return frozenset(spec.name for spec in specs)


def _distinct(value: Value, specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    if len({spec.name for spec in specs}) != len(specs):
        raise JSONError(f"{value.where} lists an input or output twice")
    return specs


def _spec(value: Value) -> TensorSpec:
    shape = value.get("shape", list_of(_dimension))
    if len(shape) > _MAX_RANK:
        raise value.wrong(f"a tensor of at most {_MAX_RANK} dimensions")
    return TensorSpec(value.get("name", short_text), value.get("dtype", choice(*DTYPES)), shape)


def _dimension(value: Value) -> Dimension:
    return _dimension_name(value) if isinstance(value.item, str) else size(value)


def _spec_to_json(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}
