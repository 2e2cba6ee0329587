"""Which products of a graph to leave out of quantisation, by what each does to its output."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..exporter.products import Product

Measure = Callable[[Collection[Product]], float]
"""The error of a graph in which these products are quantised."""

MARGIN = 0.9
"""Share of the tolerance that is planned with: squares of errors add up only about."""


@dataclass(frozen=True)
class Selection:
    """What is quantised in a graph.

    Attributes:
        chosen: the products that are.
        left_out: those that are not, the most sensitive first.
        error: of the graph.
        error_of_all: if nothing were left out.
        effects: error that each product alone causes, by node; empty if it was not needed.
    """

    chosen: Sequence[Product]
    left_out: Sequence[Product]
    error: float
    error_of_all: float
    effects: Mapping[str, float] = field(default_factory=dict)


def select(
    products: Sequence[Product],
    measure: Measure,
    tolerance: float,
    measure_alone: Measure | None = None,
    advance: Callable[[int], object] = lambda count: None,
) -> Selection:
    """Leave out as few products as it takes to keep the graph's error within the tolerance.

    If all together are within it, nothing else is measured. Otherwise each product is
    quantised alone. Those that are beyond the tolerance alone go first, then those with the
    largest effect for their size: rounding errors of different products are independent, so
    their squares add up, and size is what quantising a product saves.

    Args:
        measure_alone: a cheaper measure for single products.
        advance: called with 1 after each product that was measured alone.
    """
    error_of_all = measure(products)
    if error_of_all <= tolerance:
        return Selection(list(products), [], error_of_all, error_of_all)
    effects = {}
    for product in products:
        effects[product.node] = (measure_alone or measure)([product])
        advance(1)

    def urgency(product: Product) -> tuple[bool, float]:
        effect = effects[product.node]
        return effect > tolerance, effect**2 / product.size

    ordered = sorted(products, key=urgency, reverse=True)
    squares = np.array([effects[product.node] ** 2 for product in ordered])
    # What remains after leaving out the first 0, 1, 2, ... of them, scaled to what was measured.
    remaining = np.append(squares[::-1].cumsum()[::-1], 0.0)
    remaining *= error_of_all**2 / remaining[0] if np.isfinite(remaining[0]) else 1.0
    out = max(1, int(np.argmax(remaining <= (MARGIN * tolerance) ** 2)))
    error = error_of_all
    while out < len(ordered):
        chosen = [product for product in products if product not in ordered[:out]]
        error = measure(chosen)
        if error <= tolerance:
            return Selection(chosen, ordered[:out], error, error_of_all, effects)
        out += max(1, len(ordered) // 20)
    return Selection([], ordered, 0.0, error_of_all, effects)
