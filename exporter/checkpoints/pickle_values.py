"""What a pickle can say, as data: text, numbers and descriptions of tensors and objects."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MAX_KEY = 1 << 16


class PickleError(ValueError):
    """The bytes are not a pickle, or one that no program of good faith writes."""


@dataclass(frozen=True)
class Global:
    """A Python object that a pickle asks for by name."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True)
class Storage:
    """A run of numbers kept outside the pickle: `kind` as in torch ("FloatStorage")."""

    kind: str
    key: str
    elements: int


@dataclass(frozen=True)
class TensorInfo:
    """A strided tensor over a storage.

    Attributes:
        dtype: its name in torch, such as "float8_e4m3fn"; empty if the storage's kind says it.
        offset: first element in the storage.
        shape, stride: in elements.
    """

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(eq=False)
class Opaque:
    """An object that is not rebuilt: its class or factory, and its attributes if it has any."""

    kind: Global | None = None
    state: Mapping[Any, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return str(self.kind) if self.kind else "an object"


@dataclass(eq=False, frozen=True)
class OddKey:
    """A dictionary key that is neither text nor a whole number; equal only to itself."""

    kind: str

    def __str__(self) -> str:
        return f"a {self.kind}"


NUMPY_TYPE = Global("numpy", "dtype")


def as_key(key: Any) -> str | int | OddKey:
    """Hashing a nested tuple can take any time; text and numbers are all that names need."""
    if isinstance(key, int) or (isinstance(key, str) and len(key) <= MAX_KEY):
        return key
    return OddKey("text of excessive length" if isinstance(key, str) else type(key).__name__)
