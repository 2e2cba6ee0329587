"""Selects the tensors of a checkpoint that belong to the model: averaged or not, by their names.

Training code stores weights under many keys, often twice: as trained, and as a moving average
(EMA), which is used in evaluation. The average is used if it is recognised. If something looks like
an average but is not recognised, the user must choose.
"""

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from ...errors import DisaError
from .pickle_values import Global, Opaque, TensorInfo
from .tensor_names import (
    COUNTERS,
    INNER_WRAPPERS,
    LEADING_NAMES,
    looks_averaged,
    without_inner,
    without_leading,
    without_outer,
)

Recognise = Callable[[Mapping[str, Any]], bool]
"""Whether a state dict is that of an expected model, judged by its keys."""

TOP = "."
"""The name of the outermost dict in keys."""
MAX_DEPTH = 5
# Most entries of all dicts that are searched, most sets in them, and most ways to rename a set.
MAX_ENTRIES, MAX_SETS, MAX_RENAMED = 1 << 19, 1024, 128

# Keys of weights in training code, in order of preference.
USUAL_KEYS = ("model", "state_dict", "module", "params", "model_state_dict", "net", TOP)
# Lightning's WeightAveraging swaps the two: "state_dict" is then the average.
LIGHTNING_AVERAGING = {"current_model_state", "averaging_state"}

_OPTIMIZER = re.compile(
    r"opt|opts|optims?(_.*)?|.*optimizers?(_.*)?|.*schedulers?(_.*)?|scaler|rng"
)
_NO_WEIGHTS = ("numpy", "pathlib", "datetime", "builtins", "collections", "torch.device")


@dataclass(frozen=True)
class WeightSet:
    """Tensors that belong together.

    Attributes:
        key: their position, names joined by dots; TOP for the outermost dict.
        tensors: by name.
        averaged: whether the key indicates an average.
        named: False for an average that is only a list of tensors, or an unknown object.
        mapping: the dict that contains them, with its other entries.
    """

    key: str
    tensors: Mapping[str, Any]
    averaged: bool
    named: bool = True
    mapping: Mapping[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SelectedWeights:
    """The selected weights.

    Attributes:
        key: their position, TOP for the outermost dict.
        averaged: whether they are an average.
        tensors: by the model's own names.
        mapping: the dict that contains them, with its other entries.
    """

    key: str
    averaged: bool
    tensors: Mapping[str, Any]
    mapping: Mapping[Any, Any]


def select_weights(
    document: Mapping[Any, Any],
    path: Path,
    requested: str | None = None,
    recognise: Recognise | None = None,
    recorded: str | None = None,
) -> SelectedWeights:
    """Select the model's weights in a checkpoint's content.

    Args:
        requested: the key of the weights, TOP for the outermost dict.
        recognise: recognises the expected models; by default any tensors are accepted.
        recorded: the key that was used before, for a comparison; used if it exists.

    Raises:
        DisaError: `requested` does not exist, an average is not recognised, or there are several
            sets of weights and none is selected.
    """
    sets = list(islice(_find(document, path), MAX_SETS + 1))
    if len(sets) > MAX_SETS:
        raise DisaError(f"{path}: it has too many sets of tensors: save the weights alone")
    if requested is None and any(found.key == recorded and found.named for found in sets):
        requested = recorded
    if requested is not None:
        return _take_requested(sets, path, requested, recognise)
    fitting = [
        (found, names) for found in sets if found.named and (names := _unwrap(found, recognise))
    ]
    if not fitting:
        # The code that reads the keys next reports what is wrong with them.
        named = [(found, dict.fromkeys(found.tensors)) for found in sets if found.named]
        best = _preferred(named)
        if best is None:
            return SelectedWeights(TOP, False, {}, _usual(document))
        return SelectedWeights(best[0].key, best[0].averaged, best[0].tensors, best[0].mapping)
    others = _beside(fitting)
    averages = [found for found in sets if found.averaged and not _is_of_others(found, others)]
    if averages:
        known = [(found, names) for found, names in fitting if found.averaged]
        if len(averages) == 1 and (names := _without_dots(averages[0], fitting)):
            known.append((averages[0], names))
        if len(known) != 1 or len(averages) != 1:
            raise _unclear_average(path, averages, [found for found, _ in fitting])
        return _chosen(*known[0])
    if len(fitting) > 1 and recognise is not None:
        raise DisaError(
            f"{path}: it has several sets of weights ({_keys(s for s, _ in fitting)}): "
            "choose one with --weights KEY"
        )
    best = _preferred(fitting)
    assert best is not None
    return _chosen(*best)


def is_tensor(value: Any) -> bool:
    """Whether a value is a tensor or the description of one."""
    return isinstance(value, Tensor | TensorInfo)


def _take_requested(
    sets: list[WeightSet], path: Path, requested: str, recognise: Recognise | None
) -> SelectedWeights:
    found = next((s for s in sets if s.key == requested), None)
    if found is None:
        raise DisaError(
            f"{path}: it has no weights under the key {requested!r}: choose one of {_keys(sets)}"
        )
    if not found.named:
        raise DisaError(
            f"{path}: the tensors under {requested} have no names, so they cannot be "
            "assigned: save them as a state dict"
        )
    names = _unwrap(found, recognise)
    if not names:
        return SelectedWeights(found.key, found.averaged, found.tensors, found.mapping)
    return _chosen(found, names)


def _chosen(found: WeightSet, names: Mapping[str, str]) -> SelectedWeights:
    tensors = {name: found.tensors[old] for name, old in names.items()}
    return SelectedWeights(found.key, found.averaged, tensors, found.mapping)


def _usual(document: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """The dict in which weights are expected."""
    inner = (document.get(key) for key in USUAL_KEYS)
    return next((found for found in inner if isinstance(found, Mapping) and found), document)


def _preferred(
    fitting: list[tuple[WeightSet, dict[str, Any]]],
) -> tuple[WeightSet, dict[str, Any]] | None:
    ranks = {key: rank for rank, key in enumerate(USUAL_KEYS)}
    return min(fitting, key=lambda entry: ranks.get(entry[0].key, len(ranks)), default=None)


def _unclear_average(path: Path, averages: list[WeightSet], fitting: list[WeightSet]) -> DisaError:
    unnamed = [found for found in averages if not found.named]
    if unnamed:
        why = "has no names for its tensors"
    elif len(averages) > 1:
        why = "is there more than once"
    else:
        why = "is not recognised"
    others = [found for found in fitting if found not in averages]
    choices = [found for found in (*averages, *others) if found.named]
    return DisaError(
        f"{path}: it has averaged weights ({_keys(averages)}), which evaluation uses, and the "
        f"average {why}: choose the weights with --weights KEY ({_keys(choices)})"
    )


def _keys(sets: Iterable[WeightSet]) -> str:
    keys = [found.key[:80] for found in sets]
    return ", ".join(keys[:8]) + (", ..." if keys[8:] else "") or "nothing"


def _find(document: Mapping[Any, Any], file: Path) -> Iterator[WeightSet]:
    """All sets of tensors, the outermost first; a DisaError if there are too many entries."""
    swapped = document.keys() >= LIGHTNING_AVERAGING
    pending: deque[tuple[tuple[str, ...], Any, bool, bool]] = deque([((), document, False, False)])
    visited = 0
    while pending:
        path, value, averaged, optimizer = pending.popleft()
        if isinstance(value, Opaque):
            if averaged and not str(value).startswith(_NO_WEIGHTS):
                yield WeightSet(_join(path), {}, averaged=True, named=False)
            continue
        if isinstance(value, list | tuple):
            if averaged and sum(is_tensor(item) and item.ndim > 0 for item in value) > 1:
                yield WeightSet(_join(path), {}, averaged=True, named=False)
            inner = list(enumerate(value[:64]))
        else:
            if not optimizer or averaged:
                lightning = swapped and path == ("state_dict",)
                yield from _split(path, value, averaged or lightning)
            inner = list(value.items())
        visited += len(inner)
        if visited > MAX_ENTRIES:
            raise DisaError(f"{file}: it has too many nested values: save the weights alone")
        for key, item in inner if len(path) < MAX_DEPTH else ():
            if isinstance(item, Mapping | list | tuple | Opaque) and not isinstance(item, Global):
                name = str(key)
                inside = optimizer or bool(_OPTIMIZER.fullmatch(name.lower()))
                average = averaged or looks_averaged(name)
                if swapped and name == "averaging_state":
                    average = False
                pending.append(((*path, name), item, average, inside))


def _split(
    path: tuple[str, ...], mapping: Mapping[Any, Any], averaged: bool
) -> Iterator[WeightSet]:
    """The tensors of one dict; tensors with an average's prefix are a separate set."""
    parts: dict[str, dict[str, Any]] = {}
    for key, value in mapping.items():
        if is_tensor(value):
            parts.setdefault(_average_prefix(str(key)), {})[key] = value
    alone = [prefix for prefix, tensors in parts.items() if prefix and _has_arrays(tensors)]
    for prefix, tensors in parts.items():
        if not _has_arrays(tensors):
            continue
        if prefix:
            inner = {name[len(prefix) + 1 :]: tensor for name, tensor in tensors.items()}
            yield WeightSet(_join((*path, prefix)), inner, averaged=True, mapping=mapping)
        else:
            average = averaged and not alone
            yield WeightSet(_join(path), tensors, average, mapping=mapping)


def _has_arrays(tensors: Mapping[Any, Any]) -> bool:
    return any(tensor.ndim > 0 for tensor in tensors.values())


def _average_prefix(name: str) -> str:
    parts = name.split(".")[:-1]
    for index, part in enumerate(parts[:3]):
        if looks_averaged(part):
            return ".".join(parts[: index + 1])
        if part not in LEADING_NAMES | INNER_WRAPPERS:
            return ""
    return ""


def _join(path: tuple[str, ...]) -> str:
    return ".".join(path) or TOP


def _unwrap(found: WeightSet, recognise: Recognise | None) -> dict[str, str]:
    """The model's own names -> the names in the file; empty if it is not an expected model."""
    plain = {name: name for name in found.tensors}
    if any(not isinstance(name, str) for name in plain):
        return plain if recognise is None else {}
    if recognise is None:
        return without_outer(plain)
    inner = without_inner(plain)
    tried = [plain] if inner in (None, plain) else [inner, plain]
    most = min(MAX_RENAMED, MAX_ENTRIES // max(len(plain), 1))
    for _ in range(MAX_DEPTH):
        if (fitting := next(filter(recognise, tried), None)) is not None:
            return fitting
        shorter = (other for names in tried for other in without_leading(names))
        tried = list(islice(shorter, most))
        most -= len(tried)
    return {}


def _beside(fitting: list[tuple[WeightSet, dict[str, str]]]) -> list[set[str]]:
    """The names, without dots, of tensors outside the model, in files of several models."""
    same = [
        {name.removeprefix("model.").replace(".", "") for name, old in names.items() if name == old}
        for raw, names in fitting
        if not raw.averaged and any(name != old for name, old in names.items())
    ]
    return [names for names in same if names]


def _is_of_others(found: WeightSet, others: list[set[str]]) -> bool:
    """Whether an average belongs to tensors outside the model; see `_beside`."""
    if not others or not all(isinstance(name, str) for name in found.tensors):
        return False
    arrays = {name.replace(".", "") for name in found.tensors if name not in COUNTERS}
    return bool(arrays) and any(arrays <= names for names in others)


def _without_dots(
    found: WeightSet, fitting: list[tuple[WeightSet, dict[str, str]]]
) -> dict[str, str]:
    """Names of an average without dots, as in latent diffusion's code."""
    arrays = [name for name in found.tensors if name not in COUNTERS]
    if (
        not found.named
        or not arrays
        or any(not isinstance(name, str) or "." in name for name in arrays)
    ):
        return {}
    for raw, names in fitting:
        if raw.averaged:
            continue
        spelled: dict[str, list[str]] = {}
        for name in names:
            spelled.setdefault(name.replace(".", ""), []).append(name)
        result = {}
        for name in arrays:
            match = spelled.get(name) or spelled.get(name.removeprefix("model"), [])
            if len(match) != 1:
                break
            result[match[0]] = name
        else:
            if len(result) == len(arrays):
                return result
    return {}
