import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from disa.engines.plan import onnx_file
from disa.engines.plan.onnx_file import Extent, detach, relocate
from disa.engines.plan.protobuf import framed
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
    """External data in subgraphs, attributes, functions and sparse tensors: twelve times."""
    tensor = External(location).add("inner", np.ones(4, np.float32))
    body = helper.make_graph([], "body", [], [], [tensor])
    loop = helper.make_node("Loop", [], [], body=body)
    constant = helper.make_node("Constant", [], ["c"], value=tensor)
    many = helper.make_node("Many", [], [])
    attribute = many.attribute.add(name="many")
    attribute.tensors.append(tensor)
    attribute.graphs.append(body)
    model = as_model([loop, constant, many], [], (), ())
    function = helper.make_function("own", "f", [], [], [constant], [helper.make_opsetid("", 20)])
    function.attribute_proto.add(name="default").t.CopyFrom(tensor)
    model.functions.append(function)
    for sparse in (
        model.graph.sparse_initializer.add(),
        attribute.sparse_tensor,
        attribute.sparse_tensors.add(),
    ):
        sparse.values.CopyFrom(tensor)
        sparse.indices.CopyFrom(tensor)
    model.graph.node[2].CopyFrom(many)
    return model.SerializeToString()


def test_external_data_is_found_wherever_it_hides() -> None:
    relocated = relocate(memoryview(_nested("secret")), {"secret": Extent(64, 16)}, "a.plan")
    assert b"secret" not in relocated
    assert relocated.count(b"a.plan") == 12
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


@pytest.mark.parametrize("above", [1, 7])
def test_an_initializer_with_a_disguised_field_number_is_refused(above: int) -> None:
    """protobuf's own parser ignores the bits above 32 of a tag, and would find the weights."""
    weight = framed(8, "w") + framed(13, framed(1, "location") + framed(2, "/etc/passwd"))
    disguised = bytes([0x2A | 0x80, 0x80, 0x80, 0x80, above << 4]) + bytes([len(weight)]) + weight
    plain = framed(7, framed(5, weight))
    for model in (plain, framed(7, disguised)):
        for read in (
            lambda data: relocate(memoryview(data), {}, "mar.plan"),
            lambda data: detach(memoryview(data), {}, 1),
        ):
            with pytest.raises(DisaError, match=r"not part of the plan|field number"):
                read(model)


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


@pytest.mark.parametrize(("depth", "fits"), [(3, True), (2, False)])
def test_so_deep_may_a_graph_be(depth: int, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model has a graph, which has a node."""
    monkeypatch.setattr(onnx_file, "_MAX_DEPTH", depth)
    model = as_model([helper.make_node("Identity", ["x"], ["y"])], [], (), ()).SerializeToString()
    if fits:
        assert relocate(memoryview(model), {}, "a.plan") == model
        return
    with pytest.raises(DisaError, match="nested too deeply"):
        relocate(memoryview(model), {}, "a.plan")


def _one_weight(number: int, shape: tuple[int, ...]) -> bytes:
    """A model of an initializer in the file `data`."""
    model = onnx.ModelProto()
    tensor = model.graph.initializer.add(name="w", data_type=number, dims=shape)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="data")
    return model.SerializeToString()


@pytest.mark.parametrize(
    "kind",
    [
        "FLOAT",
        "UINT8",
        "INT8",
        "INT32",
        "INT64",
        "FLOAT16",
        "BFLOAT16",
        "FLOAT8E4M3FN",
        "FLOAT8E5M2",
    ],
)
def test_weights_of_every_type(kind: str) -> None:
    number = TensorProto.DataType.Value(kind)
    dtype = helper.tensor_dtype_to_np_dtype(number)
    data = memoryview(bytes(range(6 * dtype.itemsize)))
    onnx_bytes, (weight,) = detach(memoryview(_one_weight(number, (2, 3))), {"data": data}, 1)
    assert (weight.dtype, weight.shape, weight.data) == (dtype.name, (2, 3), data)
    (found,) = onnx.load_model_from_string(onnx_bytes).graph.input
    assert found == helper.make_tensor_value_info("w", number, (2, 3))


def test_weights_of_other_types_stay_inside() -> None:
    values = np.arange(6, dtype=np.float64)
    model = memoryview(_one_weight(TensorProto.DOUBLE, (2, 3)))
    onnx_bytes, weights = detach(model, {"data": memoryview(values.tobytes())}, 1)
    assert weights == []
    (tensor,) = onnx.load_model_from_string(onnx_bytes).graph.initializer
    assert numpy_helper.to_array(tensor).ravel().tolist() == values.tolist()


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
    contents = {"big": memoryview(values.tobytes())}
    detach(memoryview(as_model([], [weight] * 2, (), ()).SerializeToString()), contents, least)
    for count in (3, 50):
        model = as_model([], [weight] * count, (), ()).SerializeToString()
        with pytest.raises(DisaError, match="it refers to the same weights too often"):
            detach(memoryview(model), contents, least)
