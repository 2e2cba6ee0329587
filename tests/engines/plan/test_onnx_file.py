import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from disa.engines.plan.onnx_file import Extent, detach, relocate
from disa.errors import DisaError

from ..tiny_graphs import WEIGHT, External, as_model, head

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


def test_large_weights_are_taken_out_and_the_others_put_in() -> None:
    model = memoryview(head().onnx)
    contents = {"head.data": memoryview(head().data)}
    before = onnx.load_model_from_string(head().onnx)
    onnx_bytes, (weight,) = detach(model, contents, 64)
    after = onnx.load_model_from_string(onnx_bytes)
    assert (weight.name, weight.dtype, weight.shape) == ("weight", "float32", WEIGHT.shape)
    np.testing.assert_array_equal(np.frombuffer(weight.data, np.float32), WEIGHT.ravel())
    assert list(after.graph.input[:-1]) == list(before.graph.input)
    assert after.graph.input[-1] == helper.make_tensor_value_info("weight", 1, WEIGHT.shape)
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in after.graph.initializer}
    assert values.keys() == {"padding", "last"}
    assert values["padding"].tolist() == [1, 1, 1]
    assert after.graph.node == before.graph.node


def test_what_is_not_an_initializer_of_the_main_graph_is_put_in() -> None:
    values = np.arange(4, dtype=np.float32)
    onnx_bytes, weights = detach(
        memoryview(_nested("inner")), {"inner": memoryview(values.tobytes())}, 1
    )
    assert weights == []
    model = onnx.load_model_from_string(onnx_bytes)
    body = model.graph.node[0].attribute[0].g
    inside = [body.initializer[0], model.graph.node[1].attribute[0].t]
    for tensor in [*inside, model.functions[0].node[0].attribute[0].t]:
        assert numpy_helper.to_array(tensor).tolist() == values.tolist()


@pytest.mark.parametrize("least", [1, 1 << 20])
def test_detaching_refuses_what_relocating_refuses(least: int) -> None:
    with pytest.raises(
        DisaError, match="refers to weights in 'secret', which is not part of the plan"
    ):
        detach(memoryview(_nested("secret")), {"head.data": memoryview(b"")}, least)
    with pytest.raises(DisaError, match=r"weights beyond the end of head\.data"):
        detach(memoryview(head().onnx), {"head.data": memoryview(head().data)[:-8]}, least)


def test_a_weight_of_another_size_than_its_shape_is_refused() -> None:
    model = onnx.load_model_from_string(head().onnx)
    weight = next(t for t in model.graph.initializer if t.name == "weight")
    weight.dims[:] = [4, 5]
    with pytest.raises(DisaError, match=r"the weight weight of shape \[4, 5\] in 64 bytes"):
        detach(memoryview(model.SerializeToString()), {"head.data": memoryview(head().data)}, 1)


@pytest.mark.parametrize("least", [1, 1 << 20])
def test_weights_named_again_and_again_are_refused(least: int) -> None:
    """A short graph would otherwise take the weights of a large plan any number of times."""
    values = np.ones(1 << 14, np.float32)
    weight = External("big").add("w", values)
    model = as_model([], [weight] * 50, (), ()).SerializeToString()
    with pytest.raises(DisaError, match="it refers to the same weights too often"):
        detach(memoryview(model), {"big": memoryview(values.tobytes())}, least)
