from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from disa.engines.plan import sharing
from disa.engines.plan.external_data import place
from disa.engines.plan.graph_files import ExportedGraph
from disa.engines.plan.sharing import SharedWeights
from disa.engines.plan.traits import GraphTraits, Role
from disa.errors import DisaError
from disa.exporter.graphs.graph import Arrays, Graph, evaluate, export_graph

WIDTH = 64


class Chain(nn.Module):
    """Several layers in turn."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layers(x)
        return result


def graph_of(name: str, *layers: nn.Module) -> Graph:
    def example(sizes: object) -> Arrays:
        return {"x": np.random.default_rng(0).standard_normal((3, WIDTH), np.float32)}

    shape = {"x": ("rows", WIDTH)}
    return Graph(
        name,
        Chain(*layers),
        shape,
        {"y": ("rows", WIDTH)},
        example,
        {"rows": 3},
        GraphTraits(Role.ONCE),
    )


def error_of(graph: Graph, exported: ExportedGraph) -> float:
    session = onnxruntime.InferenceSession(exported.onnx, providers=["CPUExecutionProvider"])
    inputs = graph.example({})
    return float(np.abs(session.run(None, inputs)[0] - evaluate(graph, inputs)["y"]).max())


@pytest.mark.parametrize("chunk", [sharing.CHUNK, 1000])
def test_a_later_graph_takes_what_an_earlier_one_has(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "CHUNK", chunk)
    torch.manual_seed(0)
    common, own = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
    graphs = graph_of("first", common), graph_of("second", own, common, common)
    weights = SharedWeights()
    first, second = (weights.share(export_graph(graph, tmp_path)) for graph in graphs)
    assert first.data == (tmp_path / "first.data",)
    assert second.data == (tmp_path / "first.data", tmp_path / "second.data")
    matrix = 4 * WIDTH * WIDTH
    for path in second.data:
        assert matrix <= path.stat().st_size < 1.5 * matrix
    for graph, exported in zip(graphs, (first, second), strict=True):
        assert error_of(graph, exported) < 1e-5
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "first.data",
        "first.onnx",
        "second.data",
        "second.onnx",
    ]


def test_a_graph_of_nothing_but_shared_weights_and_one_of_none(tmp_path: Path) -> None:
    common = nn.Linear(WIDTH, WIDTH, bias=False)
    weights = SharedWeights()
    weights.share(export_graph(graph_of("first", common), tmp_path))
    again = graph_of("again", common, nn.SiLU())
    exported = weights.share(export_graph(again, tmp_path))
    assert exported.data == (tmp_path / "first.data",)
    assert error_of(again, exported) < 1e-5
    bare = graph_of("bare", nn.SiLU())
    exported = weights.share(export_graph(bare, tmp_path))
    assert exported.data == ()
    assert error_of(bare, exported) < 1e-5


@pytest.mark.parametrize(("more", "shared"), [(0, True), (1, False)])
def test_small_tensors_are_not_compared(
    more: int, shared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "SMALLEST", 4 * WIDTH * WIDTH + more)
    weights, common = SharedWeights(), nn.Linear(WIDTH, WIDTH, bias=False)
    first, second = (
        weights.share(export_graph(graph_of(name, common), tmp_path)) for name in ("a", "b")
    )
    assert (first.data[0] in second.data) is shared


def test_weights_begin_where_they_can_be_mapped(tmp_path: Path) -> None:
    common, own = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 65, bias=False)
    weights = SharedWeights()
    weights.share(export_graph(graph_of("first", common), tmp_path))
    again = nn.Linear(65, WIDTH)
    exported = weights.share(export_graph(graph_of("second", common, own, again), tmp_path))
    model = onnx.load(exported.onnx, load_external_data=False)
    places = [place(tensor) for tensor in model.graph.initializer if tensor.external_data]
    assert len({file for file, _, _ in places}) == 2
    assert all(offset % 64 == 0 for _, offset, _ in places)


def test_a_file_that_is_too_short(tmp_path: Path) -> None:
    exported = export_graph(graph_of("first", nn.Linear(WIDTH, WIDTH)), tmp_path)
    (tmp_path / "first.data").write_bytes(b"")
    assert onnx.load(exported.onnx, load_external_data=False).graph.initializer
    with pytest.raises(DisaError, match="shorter"):
        SharedWeights().share(exported)
