"""run.json: what determines the images of a run, and whether the run is complete."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from ... import __version__
from ...errors import DisaError, InvalidRequest
from ..families.masked.harmon import parse_size
from ..families.options import canonical_defaults
from ..families.registry import OPTIONS
from ..sampling.refresh import parse_refresh
from ..stats import Stats
from .layout import Layout
from .selection import Selection
from .store import Store

RECORD = "run.json"
MAX_BYTES = 1 << 30
_LISTS = ("conditions", "indices", "seeds")


@dataclass(frozen=True)
class RunRecord:
    """The content of run.json.

    Attributes:
        request: what determines the images: plan, options, seed.
        selection: the images.
        layout: their files.
        engine: the engine that generates them; after a change of it, "FIRST, then SECOND".
        complete: whether all images exist.
        stats: the cost.
        extra: additional entries, such as the source of the plan.
    """

    request: Mapping[str, Any]
    selection: Selection
    layout: Layout
    engine: str
    complete: bool = False
    stats: Stats = field(default_factory=Stats)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The content of run.json."""
        return {
            "disa": __version__,
            "complete": self.complete,
            "engine": self.engine,
            **self.extra,
            "request": dict(self.request),
            "layout": self.layout.to_json(),
            **self.selection.to_json(),
            "stats": self.stats.to_json(),
        }

    def save(self, store: Store) -> None:
        """Write the record.

        Raises:
            OSError: the system cannot write it.
            DisaError: it is too large to be read again.
        """
        content = self.to_json()
        # A million conditions on separate lines would be slow to write and to read.
        entries = [
            f" {json.dumps(key)}: {json.dumps(value, indent=None if key in _LISTS else 1)}"
            for key, value in content.items()
        ]
        data = ("{\n" + ",\n".join(entries) + "\n}\n").encode()
        if len(data) > MAX_BYTES:
            raise DisaError(
                f"the conditions of {len(self.selection)} images take more than "
                f"{MAX_BYTES >> 20} MiB in {RECORD}: generate them in several runs"
            )
        with store.write(RECORD) as file:
            file.write(data)

    @classmethod
    def load(cls, store: Store) -> "RunRecord | None":
        """Read it; None if there is none.

        Raises:
            DisaError: it is damaged or cannot be read.
        """
        try:
            if not store.exists(RECORD):
                return None
            with store.read(RECORD) as file:
                data = file.read(MAX_BYTES + 1)
        except OSError as error:
            reason = error.strerror or error
            raise DisaError(f"{store}/{RECORD} cannot be read: {reason}") from error
        try:
            if len(data) > MAX_BYTES:
                raise ValueError("too large")
            content = json.loads(data)
            request = dict(content["request"])
            if "layout" in content:
                layout = Layout.from_json(content["layout"])
            else:
                layout, request = Layout(), _request_of_version_1(request)
            return cls(
                request,
                Selection.from_json(content, request.get("seed", 0)),
                layout,
                str(content.get("engine", "")),
                content.get("complete") is True,
                Stats.from_json(content["stats"]),
            )
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            OverflowError,
            RecursionError,
            DisaError,
        ) as error:
            raise DisaError(
                f"{store}/{RECORD} is damaged, so the files of the run are not known: "
                "choose another folder with -o"
            ) from error


def differing_options(request: Mapping[str, Any], earlier: Mapping[str, Any]) -> list[str]:
    """The names of the entries of a request that are different in an earlier one.

    A run that was begun before an option existed has no entry for it. Its images were generated
    as with the option's default, so that is what a missing option is compared as.
    """
    defaults = _option_defaults()
    return [
        name
        for name, value in request.items()
        if _meaning(name, earlier.get(name, defaults.get(name))) != _meaning(name, value)
    ]


def _meaning(name: str, value: Any) -> Any:
    """The value of an option that can be written in several ways; others are compared as they are.

    Records of earlier versions have options as they were given, so that the texts may differ.
    """
    try:
        match name, value:
            case "size", str() | int():
                return parse_size(value, stride=1)
            case "refresh", str():
                plan = parse_refresh(value)
                # The first AR iteration is a full pass whether it is listed or not.
                return replace(plan, listed=plan.listed | {0}) if plan.listed else plan
    except InvalidRequest:
        pass  # A text that is not valid is equal to itself only.
    return value


@cache
def _option_defaults() -> dict[str, Any]:
    """The default of every sampling option of any family, as requests have it."""
    return {
        name: value for options in OPTIONS.values() for name, value in options().to_json().items()
    }


def _request_of_version_1(request: Mapping[str, Any]) -> dict[str, Any]:
    """The request of a record of version 1, with today's names of options."""
    renamed = canonical_defaults(request)
    if "grid" in renamed:
        # Harmon's size was stored in tokens, height before width.
        height, width = (16 * int(side) for side in renamed.pop("grid").strip("()").split(","))
        renamed["size"] = str(width) if width == height else f"{width}x{height}"
    return renamed
