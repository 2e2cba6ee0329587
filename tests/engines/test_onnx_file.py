import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from disa.engines.onnx_file import Extent, relocate
from disa.errors import DisaError

from .tiny_graphs import External, as_model, head

WHERE = {"head.data": Extent(1 << 40, len(head().data))}


def test_external_data_is_moved_and_nothing_else() -> None:
    before = onnx.load_model_from_string(head().onnx)
    after = onnx.load_model_from_string(relocate(memoryview(head().onnx), WHERE, "my model.plan"))
    for old, new in zip(before.graph.initializer, after.graph.initializer, strict=True):
        entries = {entry.key: entry.value for entry in old.external_data}
        if entries:
            entries["location"] = "my model.plan"
            entries["offset"] = str((1 << 40) + int(entries["offset"]))
        assert {entry.key: entry.value for entry in new.external_data} == entries
        old.ClearField("external_data")
        new.ClearField("external_data")
    assert after == before


def test_a_graph_without_external_data_stays_as_it_is() -> None:
    model = as_model(
        [helper.make_node("Add", ["x", "one"], ["y"])],
        [numpy_helper.from_array(np.ones(1, np.float32), "one")],
        (),
        (),
    ).SerializeToString()
    assert relocate(memoryview(model), {}, "a.plan") == model


def _nested(location: str) -> bytes:
    """External data in a subgraph, in an attribute, in a function and in a sparse tensor."""
    tensor = External(location).add("inner", np.ones(4, np.float32))
    body = helper.make_graph([], "body", [], [], [tensor])
    loop = helper.make_node("Loop", [], [], body=body)
    constant = helper.make_node("Constant", [], ["c"], value=tensor)
    model = as_model([loop, constant], [], (), ())
    function = helper.make_function("own", "f", [], [], [constant], [helper.make_opsetid("", 20)])
    model.functions.append(function)
    sparse = model.graph.sparse_initializer.add()
    sparse.values.CopyFrom(tensor)
    sparse.indices.CopyFrom(tensor)
    return model.SerializeToString()


def test_external_data_is_found_wherever_it_hides() -> None:
    relocated = relocate(memoryview(_nested("secret")), {"secret": Extent(64, 16)}, "a.plan")
    assert b"secret" not in relocated
    assert relocated.count(b"a.plan") == 5
    onnx.load_model_from_string(relocated)


@pytest.mark.parametrize(
    "location", ["/etc/passwd", "../other.data", "tail.data", "", "*/_ORT_MEM_ADDR_/*"]
)
def test_other_files_are_refused(location: str) -> None:
    for model in (_nested(location), head().onnx.replace(b"head.data", location.encode())):
        with pytest.raises(DisaError, match=r"do not use this plan|is damaged"):
            relocate(memoryview(model), WHERE, "a.plan")
    with pytest.raises(DisaError, match="do not use this plan"):
        relocate(memoryview(_nested(location)), WHERE, "a.plan")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("offset", "999"),
        ("offset", "-64"),
        ("offset", "0x40"),
        ("offset", str(2**63)),
        ("offset", "٣"),
        ("offset", "9" * 4000),
        ("length", "65"),
        ("length", ""),
    ],
)
def test_extents_beyond_the_data_are_refused(key: str, value: str) -> None:
    model = onnx.load_model_from_string(head().onnx)
    entries = model.graph.initializer[1].external_data
    next(entry for entry in entries if entry.key == key).value = value
    with pytest.raises(DisaError, match="is damaged"):
        relocate(memoryview(model.SerializeToString()), WHERE, "a.plan")


def test_a_missing_length_is_made_explicit() -> None:
    """ONNX Runtime would otherwise read to the end of the plan."""
    model = onnx.ModelProto()
    tensor = model.graph.initializer.add(name="w", data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="head.data")
    tensor.external_data.add(key="offset", value="8")
    relocated = relocate(memoryview(model.SerializeToString()), {"head.data": Extent(64, 72)}, "p")
    (after,) = onnx.load_model_from_string(relocated).graph.initializer
    entries = {entry.key: entry.value for entry in after.external_data}
    assert entries == {"location": "p", "offset": "72", "length": "64"}


def test_nesting_without_end_is_refused() -> None:
    graph = helper.make_graph([], "g", [], [])
    for _ in range(20):
        graph = helper.make_graph([helper.make_node("Loop", [], [], body=graph)], "g", [], [])
    model = helper.make_model(graph).SerializeToString()
    with pytest.raises(DisaError, match="nested too deeply"):
        relocate(memoryview(model), {}, "a.plan")
