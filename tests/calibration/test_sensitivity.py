import math
from collections.abc import Collection

from disa.calibration.sensitivity import select
from disa.exporter.products import Product

EFFECTS = {"a": 0.01, "b": 0.08, "c": 0.02, "d": 0.03, "e": 0.06}


def product(node: str, size: int = 100) -> Product:
    return Product(node, node, node, 1, "", size)


PRODUCTS = [product(node) for node in "abcd"]


class Graph:
    """Errors whose squares add up; remembers what was measured."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, chosen: Collection[Product]) -> float:
        self.asked.append("".join(p.node for p in chosen))
        return math.sqrt(sum(EFFECTS[p.node] ** 2 for p in chosen))


def test_nothing_else_is_measured_where_all_are_good_enough() -> None:
    graph = Graph()
    found = select(PRODUCTS, graph, 0.1)
    assert (found.chosen, found.left_out, found.effects) == (PRODUCTS, [], {})
    assert graph.asked == ["abcd"]


def test_the_largest_effects_are_left_out_until_the_rest_is_good_enough() -> None:
    graph, steps = Graph(), []
    found = select(PRODUCTS, graph, 0.03, advance=steps.append)
    assert [p.node for p in found.left_out] == ["b", "d"]
    assert [p.node for p in found.chosen] == ["a", "c"]
    assert found.error == math.sqrt(0.0005)
    assert found.error_of_all == graph(PRODUCTS)
    assert found.effects == {node: EFFECTS[node] for node in "abcd"}
    assert steps == [1, 1, 1, 1]


def test_what_saves_little_goes_before_what_saves_much() -> None:
    """b has the largest effect, and its matrix is a hundred times that of the others."""
    products = [product("b", 10_000), product("e"), product("c")]
    found = select(products, Graph(), 0.095)
    assert [p.node for p in found.left_out] == ["e"]


def test_what_is_beyond_the_tolerance_alone_goes_first() -> None:
    found = select([product("b", 10_000), product("d"), product("c")], Graph(), 0.05)
    assert [p.node for p in found.left_out] == ["b"]


def test_single_products_may_be_measured_more_cheaply() -> None:
    all_at_once, alone = Graph(), Graph()
    select(PRODUCTS, all_at_once, 0.03, alone)
    assert alone.asked == ["a", "b", "c", "d"]
    assert all_at_once.asked == ["abcd", "ac"]


def test_a_graph_that_nothing_helps_stays_as_it_is() -> None:
    found = select(PRODUCTS, lambda chosen: math.inf, 0.03)
    assert not found.chosen
    assert len(found.left_out) == 4
    assert found.error == 0.0


def test_more_goes_where_errors_do_not_add_up_as_planned() -> None:
    def stubborn(chosen: Collection[Product]) -> float:
        return {4: 0.1, 3: 0.06, 2: 0.05, 1: 0.01}[len(chosen)]

    found = select(PRODUCTS, stubborn, 0.03, Graph())
    assert found.error == 0.01
    assert [p.node for p in found.chosen] == ["a"]
