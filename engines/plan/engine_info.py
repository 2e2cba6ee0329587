"""A compiled engine in a plan: for which graph, GPUs and shapes it was built."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...checked_json import JSONError, Value, any_object, integer, list_of, matching, size, table_of
from ..session import TensorSpec
from .manifest_values import EMPTY, identifier, member_name, short_text

_cuda = matching(re.compile(r"\d{0,3}"), "the major version of CUDA")


@dataclass(frozen=True)
class ShapeRange:
    """The smallest, usual and largest shape of an input for which an engine is built."""

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
    """Additional data of the backend, as JSON."""

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


def engine_info(value: Value) -> EngineInfo:
    """An entry of "engines", checked."""
    return EngineInfo(
        graph=value.get("graph", identifier),
        backend=value.get("backend", identifier),
        version=value.get("version", short_text),
        precision=value.get("precision", identifier),
        architectures=value.get("architectures", list_of(identifier)),
        profiles=value.get("profiles", list_of(_profile)),
        member=value.get("member", member_name),
        details=value.get("details", _details, EMPTY),
    )


def _details(value: Value) -> Mapping[str, Any]:
    """Any object, but fields that decide whether an engine is loaded have checked types."""
    value.get("least_sm", integer, 0)
    value.get("cuda", _cuda, "")
    value.get("device", short_text, "")
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


def check_profiles(engine: EngineInfo, inputs: Sequence[TensorSpec]) -> None:
    """Check that an engine has shapes for all inputs of its graph.

    Raises:
        JSONError: it has not.
    """
    wanted = {spec.name: len(spec.shape) for spec in inputs}
    ranks = [{name: len(r.minimum) for name, r in p.items()} for p in engine.profiles]
    if not ranks or any(found != wanted for found in ranks):
        raise JSONError(
            f"the engine {engine.member} has no shapes for the inputs of {engine.graph}"
        )
