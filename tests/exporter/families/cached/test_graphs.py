"""A cached pass in the state of a full pass gives what the full pass gives."""

import json
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest

from disa.exporter.checkpoints.checkpoint import open_checkpoint
from disa.exporter.families import harmon, mar
from disa.exporter.families.cached.harmon import cached_graphs as harmon_graphs
from disa.exporter.families.cached.mar import cached_graphs as mar_graphs
from disa.exporter.graphs.graph import Arrays, Graph, evaluate

from ....conftest import CONFIGS, GOLDEN

FAMILIES: dict[str, tuple[Any, Callable[..., list[Graph]]]] = {
    "mar": (mar, mar_graphs),
    "harmon": (harmon, harmon_graphs),
}


@pytest.fixture(scope="module", params=FAMILIES)
def graphs(request: pytest.FixtureRequest) -> tuple[Graph, Graph, Graph]:
    """The plain backbone, its full pass and its cached pass."""
    family, cached_graphs = FAMILIES[request.param]
    folder = GOLDEN / request.param
    opened = open_checkpoint(folder / "checkpoint.pth")
    config = json.loads((folder / CONFIGS.get(request.param, "architecture.json")).read_text())
    sizes = family.configure(opened.state, config, opened.args)
    model = family.build(opened.state, sizes, folder)
    plain = next(graph for graph in family.graphs(model) if graph.name == "backbone")
    refresh, reuse = cached_graphs(model, plain.module)
    return plain, refresh, reuse


def reuse_inputs(
    reuse: Graph, arrays: Arrays, caches: Arrays, new: int, count: int, predicted: int
) -> Arrays:
    """What the cached pass gets after a full pass, when `new` tokens more are known.

    Args:
        arrays: inputs of the full pass.
        caches: its outputs.
        count: tokens that the pass predicts.
        predicted: where in generation order they begin.
    """
    visible = len(arrays["tokens"])
    known = arrays["positions"][: visible + new]
    rng = np.random.default_rng(3)
    shape = (new, *arrays["tokens"].shape[1:])
    given = {name: arrays[name] for name in reuse.inputs if name in arrays}
    return given | {
        "tokens": rng.standard_normal(shape, np.float32),
        "known": known,
        "predicted": arrays["positions"][predicted : predicted + count],
        **{name: caches[name] for name in reuse.inputs if name in caches},
        "difference": caches["difference"][predicted - visible : predicted - visible + count],
    }


def test_a_full_pass_is_the_backbone(graphs: tuple[Graph, Graph, Graph]) -> None:
    plain, refresh, _ = graphs
    arrays = refresh.example(refresh.sizes)
    expected = evaluate(plain, arrays)["condition"]
    np.testing.assert_allclose(evaluate(refresh, arrays)["condition"], expected, atol=1e-5)


def test_nothing_new_changes_nothing(graphs: tuple[Graph, Graph, Graph]) -> None:
    plain, refresh, reuse = graphs
    arrays = refresh.example(refresh.sizes)
    visible, count = len(arrays["tokens"]), len(arrays["predicted"])
    inputs = reuse_inputs(reuse, arrays, evaluate(refresh, arrays), 0, count, visible)
    expected = evaluate(plain, arrays)["condition"]
    np.testing.assert_allclose(evaluate(reuse, inputs)["condition"], expected, atol=2e-6)


def test_nothing_is_approximate_in_front_of_the_first_attention(
    graphs: tuple[Graph, Graph, Graph],
) -> None:
    """The keys of the first layer are the true ones."""
    _, refresh, reuse = graphs
    arrays = refresh.example(refresh.sizes)
    visible = len(arrays["tokens"])
    inputs = reuse_inputs(reuse, arrays, evaluate(refresh, arrays), 2, 1, visible + 2)
    outputs = evaluate(reuse, inputs)
    later = arrays | {
        "tokens": np.concatenate([arrays["tokens"], inputs["tokens"]]),
        "predicted": inputs["predicted"],
    }
    expected = evaluate(refresh, later)
    places = expected["encoder_key_0"].shape[2]
    end = places - len(arrays["positions"]) + visible + 2
    for name in ("encoder_key_0", "encoder_value_0"):
        np.testing.assert_allclose(
            outputs[f"new_{name}"], expected[name][:, :, end - 2 : end], atol=1e-5, err_msg=name
        )


def test_without_guidance_there_is_no_difference(graphs: tuple[Graph, Graph, Graph]) -> None:
    _, refresh, _ = graphs
    arrays = refresh.example({**refresh.sizes, "guidance": 1})
    assert not evaluate(refresh, arrays)["difference"].any()


def test_caches_are_of_the_conditional_half(graphs: tuple[Graph, Graph, Graph]) -> None:
    _, refresh, _ = graphs
    guided = refresh.example(refresh.sizes)
    index = "class_index" if "class_index" in guided else "prompt_index"
    alone = guided | {index: cast(np.ndarray, guided[index])[:1]}
    both, one = evaluate(refresh, guided), evaluate(refresh, alone)
    for name in both.keys() - {"condition", "difference"}:
        np.testing.assert_allclose(both[name], one[name], atol=2e-5, err_msg=name)


def test_places_that_are_not_read_have_no_effect(graphs: tuple[Graph, Graph, Graph]) -> None:
    """Neither those of tokens that come later, nor those of tokens that are computed again."""
    _, refresh, reuse = graphs
    arrays = refresh.example(refresh.sizes)
    visible = len(arrays["tokens"])
    inputs = reuse_inputs(reuse, arrays, evaluate(refresh, arrays), 2, 1, visible + 2)
    expected = evaluate(reuse, inputs)
    other = dict(inputs)
    for name, values in inputs.items():
        if "_key_" in name or "_value_" in name:
            old = values.shape[2] - len(arrays["positions"]) + visible
            stop = old + 3 if name.startswith("decoder") else values.shape[2]
            other[name] = values.copy()
            other[name][:, :, old:stop] = 1e3
    for name, values in evaluate(reuse, other).items():
        np.testing.assert_allclose(values, expected[name], atol=2e-6, err_msg=name)
