"""Settings of a server."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

from ..errors import InvalidRequest
from ..runtime.families.options import Limits, about, check_value

MIB = 1 << 20
INFINITY = float("inf")
_ORIGIN = re.compile(r"https?://[^\s/?#]+")
_URL = re.compile(_ORIGIN.pattern + r"(/[^\s?#]*)?")


class PolicyName(StrEnum):
    """When waiting images join the running ones: see `scheduling.policy`."""

    JOIN = "join"
    COHORTS = "cohorts"
    STATIC = "static"
    SINGLE = "single"


@dataclass(frozen=True)
class ServerSettings:
    """The settings of a server.

    Fields with metadata can be set by the user: they become options of `disa-serve` and arguments
    of the application for Ray Serve.

    Attributes:
        host, port: address to listen at; port 0 selects a free port.
        api_keys: accepted API keys; if there are none, no key is needed.
        cors: origins of pages that may use the API from a browser.
        public_url: beginning of the URLs in answers; None takes it from the request.
        max_body: largest size of a request's body in bytes.
        body_seconds: time limit for the arrival of a body.
        result_bytes: largest total size of the stored images of answers with URLs.
        result_seconds: time for which these images are stored.
        max_connections: largest number of open connections.

    Raises:
        InvalidRequest: `public_url` or an origin in `cors` is not one.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    max_images: int = field(
        default=64,
        metadata=about(
            int, "Largest number of running images of each model.", limits=Limits(1, 4096)
        ),
    )
    max_queue: int = field(
        default=256,
        metadata=about(
            int,
            "Largest number of waiting images of each model; more are refused (status 429).",
            limits=Limits(10, 1_000_000),
        ),
    )
    request_timeout: float = field(
        default=300.0,
        metadata=about(float, "Time limit of a request in seconds.", limits=Limits(0.1, INFINITY)),
    )
    drain_timeout: float = field(
        default=30.0,
        metadata=about(
            float,
            "Seconds in which running images may finish when the server is stopped.",
            limits=Limits(0, INFINITY),
        ),
    )
    api_keys: tuple[str, ...] = ()
    cors: tuple[str, ...] = ()
    policy: str = field(
        default="cohorts",
        metadata=about(
            PolicyName,
            "When waiting images start: at the next AR iteration if fewer than --cohorts groups "
            "are running (cohorts), at the next AR iteration (join), when the running batch is "
            "finished (static), or when the running image is finished (single).",
        ),
    )
    cohorts: int = field(
        default=2,
        metadata=about(
            int,
            "Largest number of groups with separate backbone calls, for --policy cohorts.",
            limits=Limits(1, INFINITY),
        ),
    )
    batch_wait: float = field(
        default=0.05,
        metadata=about(
            float,
            "Seconds in which a batch is collected, for --policy static.",
            limits=Limits(0, 60),
        ),
    )
    warm_up_seconds: float = field(
        default=30.0,
        metadata=about(
            float,
            "Seconds after which the warm-up starts no larger batch; one image is always run.",
            limits=Limits(0, INFINITY),
        ),
    )
    public_url: str | None = field(
        default=None,
        metadata=about(
            str,
            "Beginning of the URLs in answers, for a server behind a reverse proxy.",
            metavar="URL",
        ),
    )
    max_body: int = MIB
    body_seconds: float = 30.0
    result_bytes: int = 256 * MIB
    result_seconds: float = 3600.0
    max_connections: int = 1000

    def __post_init__(self) -> None:
        if self.public_url is not None and not _URL.fullmatch(self.public_url):
            raise InvalidRequest(
                "the public url must begin with http:// or https://, such as "
                f"https://images.example.org, not {self.public_url[:80]!r}"
            )
        for origin in self.cors:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise InvalidRequest(
                    f"an origin for CORS must be * or such as https://example.org, without a path, "
                    f"not {origin[:80]!r}"
                )


SETTABLE = {each.name: each for each in fields(ServerSettings) if each.metadata}
"""The settings that a user can set, by name."""


def read_settings(values: Mapping[str, Any], **others: Any) -> ServerSettings:
    """Settings from names and values.

    Args:
        values: settings by name; numbers may also be text.
        others: settings that are not checked.

    Raises:
        InvalidRequest: there is no setting with a name, or a value is not valid.
    """
    if unknown := sorted(set(values) - set(SETTABLE)):
        raise InvalidRequest(
            f"there is no setting {unknown[0][:60]!r}: the settings are {', '.join(SETTABLE)}"
        )
    checked = {
        name: check_value(name, SETTABLE[name].metadata, _number(name, value))
        for name, value in values.items()
    }
    return ServerSettings(**checked, **others)


def _number(name: str, value: Any) -> Any:
    """The value as a number if the setting is a number and the text is one; else unchanged."""
    kind = SETTABLE[name].metadata["kind"]
    if kind in (int, float) and isinstance(value, str):
        try:
            return kind(value)
        except ValueError:
            pass
    return value
