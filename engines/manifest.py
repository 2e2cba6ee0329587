"""What a plan says about itself, checked before anything in it is used."""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeVar

from ..errors import DisaError
from .archive import safe_name
from .session import DTYPES, Dimension, TensorSpec

FORMAT_VERSION = 1
MAX_BYTES = 4 << 20
PRECISIONS = ("fp32", "fp16", "bf16")

_MAX_DEPTH = 16
_MAX_ITEMS = 65536
_MAX_TEXT = 65536
_MAX_INTEGER = 2**53
_MAX_RANK = 8
_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_EMPTY: Mapping[str, Any] = MappingProxyType({})

T = TypeVar("T")


class ManifestError(Exception):
    """The manifest is not as it should be; the message says where."""


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
    raw: Mapping[str, Any]


def parse_manifest(data: bytes) -> Manifest:
    """Read a manifest. Raises ManifestError, and DisaError if a newer disa made it."""
    root = _Value("the manifest", _load(data))
    version = root.get("format", _integer)
    if version > FORMAT_VERSION:
        raise DisaError(
            f"the plan has format {version}, made by a newer disa, and this one reads up to "
            f"{FORMAT_VERSION}: update disa, or export the checkpoint again"
        )
    if version < 1:
        raise ManifestError(f"the manifest has format {version}")
    members = root.get("members", _table(_member))
    manifest = Manifest(
        family=root.get("family", _name),
        name=root.get("name", _text),
        precision=root.get("precision", _choice(*PRECISIONS)),
        model=root.get("model", _object),
        tokens=root.get("tokens", _object),
        image=root.get("image", _object, _EMPTY),
        defaults=root.get("defaults", _object),
        class_names=root.get("class_names", _optional(_list(_text)), None),
        graphs=root.get("graphs", _table(_graph)),
        engines=root.get("engines", _list(_engine), ()),
        members=members,
        source=root.get("source", _object, _EMPTY),
        raw=root.item,
    )
    _check_references(manifest)
    return manifest


def _check_references(manifest: Manifest) -> None:
    for graph in manifest.graphs.values():
        for member in (graph.onnx, *graph.data):
            if member not in manifest.members:
                raise ManifestError(f"the graph {graph.name} needs {member}, which is not listed")
    for engine in manifest.engines:
        if engine.graph not in manifest.graphs:
            raise ManifestError(f"an engine is for the graph {engine.graph}, which is not listed")
        if engine.member not in manifest.members:
            raise ManifestError(f"an engine needs {engine.member}, which is not listed")


def dump_manifest(content: Mapping[str, Any]) -> bytes:
    """The bytes of a manifest; ManifestError if it would not be read back."""
    try:
        data = json.dumps(content, indent=1, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ManifestError(f"the manifest cannot be written as JSON ({error})") from error
    parse_manifest(data)
    return data


@dataclass(frozen=True)
class _Value:
    """A piece of JSON and the words for where it stands."""

    where: str
    item: Any

    def get(self, key: str, check: "Callable[[_Value], T]", *default: T) -> T:
        items = _object(self)
        if key in items:
            return check(_Value(f"{key} in {self.where}", items[key]))
        if default:
            return default[0]
        raise ManifestError(f"{self.where} lacks {key}")

    def wrong(self, expected: str) -> ManifestError:
        return ManifestError(f"{self.where} should be {expected}")


def _load(data: bytes) -> Any:
    if len(data) > MAX_BYTES:
        raise ManifestError(f"the manifest is larger than {MAX_BYTES} bytes")
    try:
        item = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_without_duplicates,
            parse_constant=_no_constant,
        )
    except (ValueError, RecursionError) as error:
        raise ManifestError("the manifest is not valid JSON") from error
    _check_scalars(item, _MAX_DEPTH)
    return item


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    items = dict(pairs)
    if len(items) != len(pairs):
        raise ManifestError("the manifest names something twice")
    return items


def _no_constant(_constant: str) -> None:
    raise ManifestError("the manifest has a number that is not finite")


def _check_scalars(item: Any, depth: int) -> None:
    if depth < 0:
        raise ManifestError("the manifest is nested too deeply")
    if isinstance(item, dict):
        for key, value in item.items():
            _check_scalars(key, depth - 1)
            _check_scalars(value, depth - 1)
    elif isinstance(item, list):
        for value in item:
            _check_scalars(value, depth - 1)
    elif isinstance(item, float) and not math.isfinite(item):
        raise ManifestError("the manifest has a number that is not finite")
    elif isinstance(item, int) and abs(item) > _MAX_INTEGER:
        raise ManifestError("the manifest has a number beyond all measure")
    elif isinstance(item, str) and not item.isprintable():
        raise ManifestError("the manifest has text with control characters")


def _object(value: _Value) -> Mapping[str, Any]:
    if not isinstance(value.item, dict):
        raise value.wrong("an object")
    return value.item


def _integer(value: _Value) -> int:
    if not isinstance(value.item, int) or isinstance(value.item, bool):
        raise value.wrong("a whole number")
    return value.item


def _size(value: _Value) -> int:
    number = _integer(value)
    if number < 0:
        raise value.wrong("a size")
    return number


def _text(value: _Value) -> str:
    if not isinstance(value.item, str) or len(value.item) > _MAX_TEXT:
        raise value.wrong("text")
    return value.item


def _matching(pattern: re.Pattern[str], what: str) -> Callable[[_Value], str]:
    def check(value: _Value) -> str:
        if not pattern.fullmatch(_text(value)):
            raise value.wrong(what)
        return str(value.item)

    return check


_name = _matching(_NAME, "a name")
_sha256 = _matching(_SHA256, "a sha256 in hexadecimal")


def _choice(*allowed: str) -> Callable[[_Value], str]:
    def check(value: _Value) -> str:
        if value.item not in allowed:
            raise value.wrong("one of " + ", ".join(allowed))
        return str(value.item)

    return check


def _optional(check: Callable[[_Value], T]) -> Callable[[_Value], T | None]:
    return lambda value: None if value.item is None else check(value)


def _list(check: Callable[[_Value], T]) -> Callable[[_Value], tuple[T, ...]]:
    def check_all(value: _Value) -> tuple[T, ...]:
        if not isinstance(value.item, list) or len(value.item) > _MAX_ITEMS:
            raise value.wrong("a list")
        return tuple(
            check(_Value(f"item {i} of {value.where}", x)) for i, x in enumerate(value.item)
        )

    return check_all


def _table(check: Callable[[str, _Value], T]) -> Callable[[_Value], Mapping[str, T]]:
    def check_all(value: _Value) -> Mapping[str, T]:
        return MappingProxyType(
            {
                key: check(key, _Value(f"{key} in {value.where}", item))
                for key, item in _object(value).items()
            }
        )

    return check_all


def _member_name(value: _Value) -> str:
    if not safe_name(_text(value)):
        raise value.wrong("the name of a member")
    return str(value.item)


def _member(name: str, value: _Value) -> Member:
    if not safe_name(name):
        raise ManifestError(f"the manifest lists a member with the unsafe name {name[:80]!r}")
    return Member(value.get("size", _size), value.get("sha256", _sha256))


def _graph(name: str, value: _Value) -> GraphInfo:
    if not _NAME.fullmatch(name):
        raise ManifestError(f"the manifest lists a graph with the odd name {name[:80]!r}")
    return GraphInfo(
        name,
        value.get("onnx", _member_name),
        value.get("data", _list(_member_name), ()),
        _distinct(value, value.get("inputs", _list(_spec))),
        _distinct(value, value.get("outputs", _list(_spec))),
    )


def _distinct(value: _Value, specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    if len({spec.name for spec in specs}) != len(specs):
        raise ManifestError(f"{value.where} names an input or output twice")
    return specs


def _spec(value: _Value) -> TensorSpec:
    shape = value.get("shape", _list(_dimension))
    if len(shape) > _MAX_RANK:
        raise value.wrong(f"a tensor of at most {_MAX_RANK} dimensions")
    return TensorSpec(value.get("name", _text), value.get("dtype", _choice(*DTYPES)), shape)


def _dimension(value: _Value) -> Dimension:
    return _name(value) if isinstance(value.item, str) else _size(value)


def _spec_to_json(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}


def _engine(value: _Value) -> EngineInfo:
    return EngineInfo(
        graph=value.get("graph", _name),
        backend=value.get("backend", _name),
        version=value.get("version", _text),
        precision=value.get("precision", _name),
        architectures=value.get("architectures", _list(_name)),
        profiles=value.get("profiles", _list(_profile)),
        member=value.get("member", _member_name),
        details=value.get("details", _object, _EMPTY),
    )


def _profile(value: _Value) -> Profile:
    return _table(_shape_range)(value)


def _shape_range(_name: str, value: _Value) -> ShapeRange:
    shapes: Sequence[tuple[int, ...]] = _list(_list(_size))(value)
    if len(shapes) != 3 or len({len(shape) for shape in shapes}) != 1:
        raise value.wrong("three shapes of one rank")
    minimum, usual, maximum = shapes
    if any(not a <= b <= c for a, b, c in zip(minimum, usual, maximum, strict=True)):
        raise value.wrong("a smallest, a usual and a largest shape")
    return ShapeRange(minimum, usual, maximum)
