"""Which tokens of an image each AR iteration of masked generation predicts."""

import math
from enum import StrEnum

from ....engines.array_types import Ints
from ....errors import InvalidRequest
from ...sampling.noise import ImageNoise

DETAIL_SHARE = 1 / 8
"""Share of the AR iterations that predict the second half of a checkerboard."""


class Order(StrEnum):
    """The order in which the tokens of an image are generated.

    `RANDOM` is the order of the official models. `CHECKERBOARD` generates the cells of one colour
    first, each colour in random order: no two cells of the first half are neighbours, and when a
    cell of the second half is generated, all its neighbours are known (Generation then
    Reconstruction, arXiv 2510.17171).
    """

    RANDOM = "random"
    CHECKERBOARD = "checkerboard"


def generation_order(noise: ImageNoise, grid: tuple[int, int], order: Order) -> Ints:
    """Grid positions of all tokens of an image in the order in which they are generated, [L].

    Args:
        noise: of the image; determines the random order.
        grid: height and width in tokens.
    """
    height, width = grid
    positions = noise.order(height * width)
    if order is Order.RANDOM:
        return positions
    colour = (positions // width + positions % width) % 2
    return positions[colour.argsort(kind="stable")]


def check_iterations(iterations: int, tokens: int) -> None:
    """Check that an image has at least as many tokens as AR iterations.

    Raises:
        InvalidRequest: it has fewer.
    """
    if iterations > tokens:
        raise InvalidRequest(
            f"{iterations} iterations are more than the {tokens} tokens of an image: "
            f"give at most {tokens}"
        )


def prediction_counts(tokens: int, iterations: int, order: Order = Order.RANDOM) -> list[int]:
    """Number of tokens that each AR iteration predicts, which depends on the order.

    Random: after iteration s of S, floor(L * cos(pi/2 * (s+1)/S)) tokens stay masked (as in
    MaskGIT, arXiv 2202.04200), at least one and at least one fewer than before; the last
    iteration predicts all remaining tokens.

    Checkerboard: the last eighth of the iterations predicts the second half, in parts of equal
    size where possible; the iterations before predict the first half by the rule above.

    Raises:
        InvalidRequest: more iterations than tokens.
    """
    check_iterations(iterations, tokens)
    first = (tokens + 1) // 2
    if order is Order.RANDOM or iterations == 1:
        return _cosine_counts(tokens, iterations)
    few = max(1, round(iterations * DETAIL_SHARE), iterations - first)
    return _cosine_counts(first, iterations - few) + _even_counts(tokens - first, few)


def _cosine_counts(tokens: int, iterations: int) -> list[int]:
    counts, masked = [], tokens
    for iteration in range(iterations - 1):
        wanted = math.floor(tokens * math.cos(math.pi / 2 * (iteration + 1) / iterations))
        left = max(1, min(masked - 1, wanted))
        counts.append(masked - left)
        masked = left
    return [*counts, masked]


def _even_counts(tokens: int, iterations: int) -> list[int]:
    ends = [tokens * (index + 1) // iterations for index in range(iterations)]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]
