import math
from collections.abc import Collection

from disa.calibration.quantization.matmuls import Matmul
from disa.calibration.quantization.sensitivity import select

EFFECTS = {"a": 0.01, "b": 0.08, "c": 0.02, "d": 0.03, "e": 0.06}


def matmul(node: str, size: int = 100) -> Matmul:
    return Matmul(node, node, node, 1, "", size)


MATMULS = [matmul(node) for node in "abcd"]


class Graph:
    """Errors whose squares add up; remembers what was measured."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, chosen: Collection[Matmul]) -> float:
        self.asked.append("".join(p.node for p in chosen))
        return math.sqrt(sum(EFFECTS[p.node] ** 2 for p in chosen))


def test_nothing_else_is_measured_where_all_are_good_enough() -> None:
    graph = Graph()
    found = select(MATMULS, graph, 0.1)
    assert (found.chosen, found.left_out, found.effects) == (MATMULS, [], {})
    assert graph.asked == ["abcd"]


def test_the_largest_effects_are_left_out_until_the_rest_is_good_enough() -> None:
    graph, steps = Graph(), []
    found = select(MATMULS, graph, 0.03, advance=steps.append)
    assert [p.node for p in found.left_out] == ["b", "d"]
    assert [p.node for p in found.chosen] == ["a", "c"]
    assert found.error == math.sqrt(0.0005)
    assert found.error_of_all == graph(MATMULS)
    assert found.effects == {node: EFFECTS[node] for node in "abcd"}
    assert steps == [1, 1, 1, 1]


def test_what_saves_little_goes_before_what_saves_much() -> None:
    """b has the largest effect, and its matrix is a hundred times that of the others."""
    matmuls = [matmul("b", 10_000), matmul("e"), matmul("c")]
    found = select(matmuls, Graph(), 0.095)
    assert [p.node for p in found.left_out] == ["e"]


def test_what_is_beyond_the_tolerance_alone_goes_first() -> None:
    found = select([matmul("b", 10_000), matmul("d"), matmul("c")], Graph(), 0.05)
    assert [p.node for p in found.left_out] == ["b"]


def test_single_products_may_be_measured_more_cheaply() -> None:
    all_at_once, alone = Graph(), Graph()
    select(MATMULS, all_at_once, 0.03, alone)
    assert alone.asked == ["a", "b", "c", "d"]
    assert all_at_once.asked == ["abcd", "ac"]


def test_a_graph_that_nothing_helps_stays_as_it_is() -> None:
    found = select(MATMULS, lambda chosen: math.inf, 0.03)
    assert not found.chosen
    assert len(found.left_out) == 4
    assert found.error == 0.0


def test_more_goes_where_errors_do_not_add_up_as_planned() -> None:
    def stubborn(chosen: Collection[Matmul]) -> float:
        return {4: 0.1, 3: 0.06, 2: 0.05, 1: 0.01}[len(chosen)]

    found = select(MATMULS, stubborn, 0.03, Graph())
    assert found.error == 0.01
    assert [p.node for p in found.chosen] == ["a"]


def test_what_a_graph_of_the_same_weights_got_is_tried_first() -> None:
    graph = Graph()
    found = select(MATMULS, graph, 0.03, first=[MATMULS[0], MATMULS[2]])
    assert graph.asked == ["abcd", "ac"]
    assert [p.node for p in found.chosen] == ["a", "c"]
    assert [p.node for p in found.left_out] == ["b", "d"]
    # What is not good enough here is chosen by measuring, as without it.
    tried = select(MATMULS, Graph(), 0.03, first=MATMULS[:2])
    assert [p.node for p in tried.chosen] == ["a", "c"]
