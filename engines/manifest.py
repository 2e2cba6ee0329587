"""What a plan says about itself, checked before anything in it is used."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeVar

from ..errors import DisaError
from .archive import safe_name
from .checked_json import (
    JSONError,
    Value,
    any_object,
    choice,
    integer,
    list_of,
    load,
    matching,
    optional,
    size,
    table_of,
    text,
)
from .session import DTYPES, Dimension, TensorSpec

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
"""The name of the member that holds it."""
MAX_BYTES = 2 << 20

QUANTIZED = ("int8", "fp8")
"""Precisions of which the manifest says more under "quantization"."""

_MAX_RANK = 8
_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,64}")
_DIMENSION = re.compile(r"[A-Za-z_][A-Za-z0-9_ +*/()\-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CUDA = re.compile(r"\d{0,3}")
_EMPTY: Mapping[str, Any] = MappingProxyType({})

_name = matching(_NAME, "a name")
_dimension_name = matching(_DIMENSION, "the name of a dimension")
_sha256 = matching(_SHA256, "a sha256 in hexadecimal")
_cuda = matching(_CUDA, "the major version of CUDA")

T = TypeVar("T")


@dataclass(frozen=True)
class Member:
    """A file inside the plan."""

    size: int
    sha256: str


@dataclass(frozen=True)
class GraphInfo:
    """An ONNX graph: the members that hold it, its inputs and its outputs."""

    name: str
    onnx: str
    data: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "onnx": self.onnx,
            "data": list(self.data),
            "inputs": [_spec_to_json(spec) for spec in self.inputs],
            "outputs": [_spec_to_json(spec) for spec in self.outputs],
        }


@dataclass(frozen=True)
class ShapeRange:
    """The smallest, usual and largest shape of an input that an engine is built for."""

    minimum: tuple[int, ...]
    usual: tuple[int, ...]
    maximum: tuple[int, ...]


Profile = Mapping[str, ShapeRange]


@dataclass(frozen=True)
class EngineInfo:
    """A graph compiled for certain GPUs."""

    graph: str
    backend: str
    """"tensorrt" or "tensorrt-rtx"."""
    version: str
    precision: str
    architectures: tuple[str, ...]
    """Such as "sm_89"."""
    profiles: tuple[Profile, ...]
    member: str
    details: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else the backend wants to remember, as JSON."""

    def to_json(self) -> dict[str, Any]:
        return {
            "graph": self.graph,
            "backend": self.backend,
            "version": self.version,
            "precision": self.precision,
            "architectures": list(self.architectures),
            "profiles": [
                {name: [list(r.minimum), list(r.usual), list(r.maximum)] for name, r in p.items()}
                for p in self.profiles
            ],
            "member": self.member,
            "details": dict(self.details),
        }


@dataclass(frozen=True)
class Manifest:
    """The manifest of a plan. `raw` is all of it as JSON, with keys unknown here too."""

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
    quantized: Mapping[str, Mapping[str, Any]]
    """What quantisation did to each graph that it changed."""
    raw: Mapping[str, Any]

    def precision_of(self, graph: str) -> str:
        """What the products of a graph are computed in.

        That is the plan's precision, but "fp32" for graphs that quantisation left alone.
        """
        if self.precision not in QUANTIZED:
            return self.precision
        return self.precision if graph in self.quantized else "fp32"

    def value(self, section: str, key: str, kind: type[T]) -> T:
        """The entry `key` of "model", "tokens", "image" or "defaults".

        Raises DisaError if it is missing or is not of that kind. A float may be a whole number.
        """
        item = self.raw.get(section, {}).get(key)
        if kind is float and type(item) is int:
            item = float(item)
        if type(item) is not kind:
            raise DisaError(
                f"the plan of {self.name} has no {kind.__name__} {key} among its {section}: "
                "export the checkpoint again"
            )
        return item


def parse_manifest(data: bytes) -> Manifest:
    """Read a manifest. Raises JSONError, and DisaError if a newer disa made it."""
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
    members = root.get("members", table_of(_member))
    manifest = Manifest(
        family=root.get("family", _name),
        name=root.get("name", text),
        precision=root.get("precision", _name),
        model=root.get("model", any_object),
        tokens=root.get("tokens", any_object),
        image=root.get("image", any_object, _EMPTY),
        defaults=root.get("defaults", any_object),
        class_names=root.get("class_names", optional(list_of(text)), None),
        graphs=root.get("graphs", table_of(_graph)),
        engines=root.get("engines", list_of(_engine), ()),
        members=members,
        source=root.get("source", any_object, _EMPTY),
        quantized=root.get("quantization", _quantization, _EMPTY),
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
        _check_profiles(engine, manifest.graphs[engine.graph])


def _check_profiles(engine: EngineInfo, graph: GraphInfo) -> None:
    wanted = {spec.name: len(spec.shape) for spec in graph.inputs}
    ranks = [{name: len(r.minimum) for name, r in p.items()} for p in engine.profiles]
    if not ranks or any(found != wanted for found in ranks):
        raise JSONError(f"the engine {engine.member} has no shapes for the inputs of {graph.name}")


def dump_manifest(content: Mapping[str, Any]) -> bytes:
    """The bytes of a manifest; JSONError if it would not be read back."""
    try:
        data = json.dumps(content, indent=1, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise JSONError(f"the manifest cannot be written as JSON ({error})") from error
    parse_manifest(data)
    return data


def _quantization(value: Value) -> Mapping[str, Mapping[str, Any]]:
    return value.get("graphs", table_of(lambda _name, graph: any_object(graph)))


def _member_name(value: Value) -> str:
    if not safe_name(text(value)):
        raise value.wrong("the name of a member")
    return str(value.item)


def _member(name: str, value: Value) -> Member:
    if not safe_name(name):
        raise JSONError(f"the manifest lists a member with the unsafe name {name[:80]!r}")
    return Member(value.get("size", size), value.get("sha256", _sha256))


def _graph(name: str, value: Value) -> GraphInfo:
    if not _NAME.fullmatch(name):
        raise JSONError(f"the manifest lists a graph with the odd name {name[:80]!r}")
    return GraphInfo(
        name,
        value.get("onnx", _member_name),
        value.get("data", list_of(_member_name), ()),
        _distinct(value, value.get("inputs", list_of(_spec))),
        _distinct(value, value.get("outputs", list_of(_spec))),
    )


def _distinct(value: Value, specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    if len({spec.name for spec in specs}) != len(specs):
        raise JSONError(f"{value.where} names an input or output twice")
    return specs


def _spec(value: Value) -> TensorSpec:
    shape = value.get("shape", list_of(_dimension))
    if len(shape) > _MAX_RANK:
        raise value.wrong(f"a tensor of at most {_MAX_RANK} dimensions")
    return TensorSpec(value.get("name", text), value.get("dtype", choice(*DTYPES)), shape)


def _dimension(value: Value) -> Dimension:
    return _dimension_name(value) if isinstance(value.item, str) else size(value)


def _spec_to_json(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}


def _engine(value: Value) -> EngineInfo:
    return EngineInfo(
        graph=value.get("graph", _name),
        backend=value.get("backend", _name),
        version=value.get("version", text),
        precision=value.get("precision", _name),
        architectures=value.get("architectures", list_of(_name)),
        profiles=value.get("profiles", list_of(_profile)),
        member=value.get("member", _member_name),
        details=value.get("details", _details, _EMPTY),
    )


def _details(value: Value) -> Mapping[str, Any]:
    """Any object, but what decides whether an engine is loaded has its types."""
    value.get("least_sm", integer, 0)
    value.get("cuda", _cuda, "")
    value.get("device", text, "")
    return any_object(value)


def _profile(value: Value) -> Profile:
    return table_of(_shape_range)(value)


def _shape_range(_name: str, value: Value) -> ShapeRange:
    shapes: Sequence[tuple[int, ...]] = list_of(list_of(size))(value)
    if len(shapes) != 3 or len({len(shape) for shape in shapes}) != 1:
        raise value.wrong("three shapes of one rank")
    minimum, usual, maximum = shapes
    if any(not a <= b <= c for a, b, c in zip(minimum, usual, maximum, strict=True)):
        raise value.wrong("a smallest, a usual and a largest shape")
    return ShapeRange(minimum, usual, maximum)
