"""API keys."""

import hashlib
import hmac
from collections.abc import Callable, Sequence
from pathlib import Path

from fastapi import Request

from ...errors import InvalidRequest
from ...files import read_text
from .errors import ApiError

MAX_KEY_FILE_BYTES = 1 << 20
LEAST_KEY_LENGTH = 8


def read_keys(path: Path) -> tuple[str, ...]:
    """Read API keys from a file, one a line; blank lines and lines that begin with # are ignored.

    Raises:
        DisaError: the file cannot be read, or has no usable key. The message shows no key.
    """
    lines = [line.strip() for line in read_text(path, MAX_KEY_FILE_BYTES).splitlines()]
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise InvalidRequest(f"{path}: the file has no key: write one key a line")
    for number, line in enumerate(lines, 1):
        if line in keys and (len(line) < LEAST_KEY_LENGTH or not line.isascii() or " " in line):
            raise InvalidRequest(
                f"{path}: line {number} is not a valid key: a key has at least {LEAST_KEY_LENGTH} "
                "ASCII characters and no spaces"
            )
    return keys


def key_check(keys: Sequence[str]) -> Callable[[Request], None]:
    """Return a dependency that accepts only requests with one of the keys.

    All keys are compared, by their hashes, so the time of the check reveals nothing about them.

    Raises:
        ApiError: 401 from the dependency, if the key is missing or wrong.
    """
    known = [_digest(key) for key in keys]

    def check(request: Request) -> None:
        if not known:
            return
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        presented = _digest(key.strip())
        matches = [hmac.compare_digest(presented, digest) for digest in known]
        if scheme.lower() != "bearer" or not any(matches):
            raise ApiError(
                401,
                "the API key is missing or wrong: send it as Authorization: Bearer KEY",
                "invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )

    return check


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
