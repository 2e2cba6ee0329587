"""What a pickle would do, found out without doing it.

A pickle is a program. `survey` reads its instructions with the standard library's
disassembler and follows only the bookkeeping of the stack: which globals the pickle asks
for, and how large the tensor storages are that it declares. Nothing is imported or called.
"""

import pickletools
from dataclasses import dataclass
from typing import Any, BinaryIO

MAX_TUPLE_DEPTH = 64


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
class Survey:
    """The globals and storages of one pickle, its highest protocol and its length in bytes."""

    globals: frozenset[Global]
    storages: frozenset[Storage]
    protocol: int
    length: int


@dataclass(frozen=True)
class _Tuple:
    items: tuple[Any, ...]
    depth: int


_MARK = object()
_OPAQUE = object()


def survey(stream: BinaryIO) -> Survey:
    """Follow the pickle at the stream's position up to its end.

    Raises:
        PickleError: not a pickle, cut short, or nested too deeply.
    """
    start = stream.tell()
    tracer = _Tracer()
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            tracer.step(opcode, argument)
    except PickleError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise PickleError("is cut short or damaged") from error
    return Survey(
        frozenset(tracer.globals),
        frozenset(tracer.storages),
        tracer.protocol,
        stream.tell() - start,
    )


class _Tracer:
    """Stack and memo of an unpickler, holding strings, numbers and tuples but no objects."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.globals: set[Global] = set()
        self.storages: set[Storage] = set()
        self.protocol = 0

    def step(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        self.protocol = max(self.protocol, opcode.proto)
        match opcode.name:
            case "MARK":
                self.stack.append(_MARK)
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                self.memo[argument] = self.stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                self.stack.append(self.memo[argument])
            case "GLOBAL":
                self.stack.append(self._ask_for(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = self.stack.pop(), self.stack.pop()
                self.stack.append(self._ask_for(str(module), str(name)))
            case "INST":
                self._pop(opcode)
                self.stack.append(self._ask_for(*argument.split(" ", 1)))
            case "EXT1" | "EXT2" | "EXT4":
                self.stack.append(self._ask_for("copyreg", f"extension {argument}"))
            case "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3" | "EMPTY_TUPLE":
                self.stack.append(_tuple(self._pop(opcode)))
            case "BINPERSID":
                self._declare(self.stack.pop())
                self.stack.append(_OPAQUE)
            case "POP":
                self.stack.pop()
            case _:
                self._pop(opcode)
                value = argument if isinstance(argument, str | int) else _OPAQUE
                self.stack.extend(value for _ in opcode.stack_after)

    def _pop(self, opcode: pickletools.OpcodeInfo) -> tuple[Any, ...]:
        """Take what the instruction consumes; what lies above the mark, if it has one."""
        before = opcode.stack_before
        taken: list[Any] = []
        if pickletools.markobject in before:
            while (value := self.stack.pop()) is not _MARK:
                taken.append(value)
            before = before[: before.index(pickletools.markobject)]
        for _ in before:
            taken.append(self.stack.pop())
        return tuple(reversed(taken))

    def _ask_for(self, module: str, name: str) -> Global:
        wanted = Global(module, name)
        self.globals.add(wanted)
        return wanted

    def _declare(self, identity: Any) -> None:
        items = identity.items if isinstance(identity, _Tuple) else ()
        if len(items) < 5 or items[0] != "storage":
            raise PickleError("refers to outside objects that are no tensor storage")
        kind, key, elements = items[1], items[2], items[4]
        if not (isinstance(kind, Global) and isinstance(key, str) and isinstance(elements, int)):
            raise PickleError("declares a tensor storage without type, key or size")
        if elements < 0:
            raise PickleError(f"declares a tensor storage of {elements} elements")
        self.storages.add(Storage(kind.name, key, elements))


def _tuple(items: tuple[Any, ...]) -> _Tuple:
    depth = 1 + max((item.depth for item in items if isinstance(item, _Tuple)), default=0)
    if depth > MAX_TUPLE_DEPTH:
        raise PickleError("nests tuples too deeply")
    return _Tuple(items, depth)
