"""Reads the data of a pickle without being able to run it.

A pickle is a program that builds objects by calling functions. `read_pickle` follows its
instructions with the standard library's disassembler and builds dicts, lists, tuples, text,
numbers and descriptions of tensors. Nothing is imported or called: any other object becomes
an `Opaque` value that only remembers its class.
"""

import pickletools
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, BinaryIO

from .pickle_calls import call
from .pickle_values import NUMPY_TYPE, Global, Opaque, PickleError, Storage, as_key

MAX_INSTRUCTIONS = 8_000_000
# Enough for any size or offset, and its decimal form stays printable.
MAX_INTEGER = 1 << 63
MAX_GLOBAL = 1024
"""Most letters in the name of an object."""
MAX_COPIED = 1 << 26
"""Most bytes, about, that calls may copy. A pickle can name the same dict or text in every call."""
_ENTRY, _FEW = 16, 16
"""Bytes of an entry; and entries of a tuple that count for nothing, such as those of a shape."""


@dataclass(frozen=True)
class Pickle:
    """One pickle.

    Attributes:
        document: what it builds, as data.
        globals: every object that it asks for by name.
        storages: every tensor storage that it declares.
        protocol: the highest protocol of its instructions.
        length: in bytes.
    """

    document: Any
    globals: frozenset[Global]
    storages: frozenset[Storage]
    protocol: int
    length: int


_MARK = object()


def read_pickle(stream: BinaryIO) -> Pickle:
    """Read the pickle at the stream's position up to its end.

    Raises:
        PickleError: not a pickle, cut short, or too long.
    """
    start = stream.tell()
    machine = _Machine()
    try:
        # The disassembler warns of odd escapes in text.
        with warnings.catch_warnings(action="ignore"):
            for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
                if count > MAX_INSTRUCTIONS:
                    raise PickleError("has more instructions than any checkpoint needs")
                machine.step(opcode, argument)
        document = machine.stack.pop()
    except PickleError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, AttributeError) as error:
        raise PickleError("is cut short or damaged") from error
    return Pickle(
        document,
        frozenset(machine.globals),
        frozenset(machine.storages),
        machine.protocol,
        stream.tell() - start,
    )


class _Machine:
    """Stack and memo of an unpickler that holds data only."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.globals: set[Global] = set()
        self.storages: set[Storage] = set()
        self.protocol = 0
        self.copied = 0

    def step(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        self.protocol = max(self.protocol, opcode.proto)
        if opcode.name == "PROTO":
            self.protocol = max(self.protocol, argument)
        stack = self.stack
        match opcode.name:
            case "PROTO" | "FRAME" | "STOP" | "READONLY_BUFFER":
                pass
            case "MARK":
                stack.append(_MARK)
            case "POP":
                stack.pop()
            case "POP_MARK":
                self._pop_to_mark()
            case "DUP":
                stack.append(stack[-1])
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                self.memo[argument] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                stack.append(self.memo[argument])
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
            case "EMPTY_LIST" | "EMPTY_DICT" | "EMPTY_TUPLE":
                stack.append({"LIST": [], "DICT": {}, "TUPLE": ()}[opcode.name[6:]])
            case "LIST":
                stack.append(self._pop_to_mark())
            case "TUPLE":
                stack.append(tuple(self._pop_to_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self._pop(int(opcode.name[-1]))))
            case "DICT":
                stack.append(_store({}, self._pop_to_mark()))
            case "APPEND":
                _extend(stack, self._pop(1))
            case "APPENDS" | "ADDITEMS":
                _extend(stack, self._pop_to_mark())
            case "SETITEM":
                _store(stack[-3], self._pop(2))
            case "SETITEMS":
                items = self._pop_to_mark()
                _store(stack[-1], items)
            case "EMPTY_SET":
                stack.append(Opaque(Global("builtins", "set")))
            case "FROZENSET":
                self._pop_to_mark()
                stack.append(Opaque(Global("builtins", "frozenset")))
            case _:
                self._build(opcode, argument)

    def _build(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        """The instructions that would import, call or restore objects; and plain values."""
        stack = self.stack
        match opcode.name:
            case "GLOBAL":
                stack.append(self._ask_for(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                stack.append(self._ask_for(*self._pop(2)))
            case "EXT1" | "EXT2" | "EXT4":
                stack.append(self._ask_for("copyreg", f"extension {argument}"))
            case "INST":
                wanted = self._ask_for(*argument.split(" ", 1))
                stack.append(self._call(wanted, tuple(self._pop_to_mark())))
            case "OBJ":
                wanted, *arguments = self._pop_to_mark()
                stack.append(self._call(wanted, tuple(arguments)))
            case "REDUCE" | "NEWOBJ":
                wanted, arguments = self._pop(2)
                stack.append(self._call(wanted, arguments))
            case "NEWOBJ_EX":
                wanted, arguments, _ = self._pop(3)
                stack.append(self._call(wanted, arguments))
            case "BUILD":
                _restore(stack[-2], self._pop(1)[0])
            case "BINPERSID":
                stack.append(self._declare(stack.pop()))
            case "PERSID":
                raise PickleError("refers to outside objects that are no tensor storage")
            case "NEXT_BUFFER":
                stack.append(Opaque())
            case _:
                if opcode.stack_before or len(opcode.stack_after) != 1:
                    raise PickleError(f"has the unknown instruction {opcode.name}")
                if isinstance(argument, int) and abs(argument) >= MAX_INTEGER:
                    argument = Opaque()
                stack.append(argument)

    def _pop(self, count: int) -> list[Any]:
        taken = self.stack[-count:]
        if len(taken) < count or any(item is _MARK for item in taken):
            raise PickleError("is cut short or damaged")
        del self.stack[-count:]
        return taken

    def _pop_to_mark(self) -> list[Any]:
        taken: list[Any] = []
        while (value := self.stack.pop()) is not _MARK:
            taken.append(value)
        taken.reverse()
        return taken

    def _call(self, wanted: Any, arguments: Any) -> Any:
        if isinstance(arguments, tuple):
            for part in (arguments, *arguments):
                if isinstance(part, str):
                    self.copied += len(part)
                elif isinstance(part, list | dict) or (
                    isinstance(part, tuple) and len(part) > _FEW
                ):
                    self.copied += _ENTRY * len(part)
            if self.copied > MAX_COPIED:
                raise PickleError("copies more values than any checkpoint needs")
        return call(wanted, arguments)

    def _ask_for(self, module: Any, name: Any) -> Global:
        # Other values can have a text form of any length.
        if not (isinstance(module, str) and isinstance(name, str)):
            raise PickleError("asks for an object without a name")
        if len(module) + len(name) > MAX_GLOBAL:
            raise PickleError("asks for an object with a name of excessive length")
        wanted = Global(module, name)
        self.globals.add(wanted)
        return wanted

    def _declare(self, identity: Any) -> Storage:
        if not isinstance(identity, tuple) or len(identity) < 5 or identity[0] != "storage":
            raise PickleError("refers to outside objects that are no tensor storage")
        kind, key, elements = identity[1], identity[2], identity[4]
        if not (isinstance(kind, Global) and isinstance(key, str) and type(elements) is int):
            raise PickleError("declares a tensor storage without type, key or size")
        if elements < 0:
            raise PickleError(f"declares a tensor storage of {elements} elements")
        if len(identity) > 5 and identity[5] is not None:
            raise PickleError("uses views of storages, as PyTorch did before 0.4")
        storage = Storage(kind.name, key, elements)
        self.storages.add(storage)
        return storage


def _extend(stack: list[Any], items: list[Any]) -> None:
    if isinstance(stack[-1], list):
        stack[-1].extend(items)
    elif not isinstance(stack[-1], Opaque | dict):
        raise PickleError("is cut short or damaged")


def _store(target: Any, items: Iterable[Any]) -> Any:
    """Put keys and values, in turn, into a dict; other objects keep nothing."""
    if isinstance(target, dict):
        turns = iter(items)
        for key, value in zip(turns, turns, strict=True):
            target[as_key(key)] = value
    elif not isinstance(target, Opaque):
        raise PickleError("is cut short or damaged")
    return target


def _restore(target: Any, state: Any) -> None:
    """Remember the attributes of an object; dicts that had some lose them."""
    if isinstance(target, Opaque):
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[0], dict):
            state = state[0]
        if isinstance(state, dict):
            target.state = state
        elif target.kind == NUMPY_TYPE and isinstance(state, tuple) and len(state) > 1:
            target.state = {"code": target.state.get("code"), "order": state[1]}
