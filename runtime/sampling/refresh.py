"""The AR iterations in which a cached backbone computes all tokens.

Between full passes it computes only new tokens, with cached keys and values of the others. This is
an approximation, and off by default.
"""

import re
from dataclasses import dataclass

from ...errors import InvalidRequest


@dataclass(frozen=True)
class RefreshPlan:
    """Which AR iterations are full passes.

    Attributes:
        first: number of iterations at the beginning that are all full.
        every: after them, the distance from one full pass to the next; 0 for none.
        listed: the numbers of the full passes, instead of both.
    """

    first: int = 0
    every: int = 0
    listed: frozenset[int] = frozenset()

    def is_full(self, iteration: int) -> bool:
        """Whether AR iteration `iteration` (from 0) computes all tokens; the first one always
        does."""
        if iteration < max(1, self.first) or iteration in self.listed:
            return True
        return self.every > 0 and (iteration - self.first) % self.every == 0


def parse_refresh(text: str) -> RefreshPlan:
    """A plan from "9:5" (every 9th after the first 5), "every 9 after 5", or "0,1,2,9,18".

    Raises:
        InvalidRequest: it is none of these.
    """
    text = text.strip()
    # No two repeated blanks may follow each other: the time for a long text would be quadratic.
    match = re.fullmatch(r"(?:every\s+)?(\d{1,5})(?:\s*:\s*|\s+after\s+)(\d{1,5})", text.lower())
    if match:
        every, first = int(match[1]), int(match[2])
        return RefreshPlan(first, every)
    if re.fullmatch(r"\d{1,5}(\s*,\s*\d{1,5})*", text):
        return RefreshPlan(listed=frozenset(map(int, text.split(","))))
    raise InvalidRequest(
        "full passes are EVERY:FIRST, such as 9:5 (the first 5 and then every 9th), or a list such "
        f"as 0,1,2,9,18, not {text[:80]!r}"
    )
