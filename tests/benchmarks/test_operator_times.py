from benchmarks.operator_times import by_kind, rows_of


def event(operator: str, name: str, microseconds: int) -> dict[str, object]:
    return {"name": f"{name}_kernel_time", "dur": microseconds, "args": {"op_name": operator}}


def test_a_matmul_without_weights_is_attention() -> None:
    events = [
        event("MatMul", "node_MatMul_1", 4000),
        event("MatMul", "node_matmul_2", 1000),
        event("FusedMatMul", "node_matmul_3/MatMulScaleFusion/", 2000),
        event("Softmax", "node_softmax", 500),
        event("Nonsense", "node", 500),
    ]
    found = by_kind(events, {"node_MatMul_1"})
    assert found == {"matmuls with weights": 4.0, "attention": 3.5, "others": 0.5}


def test_rows_have_shares_and_a_sum() -> None:
    rows = rows_of({"norms": 1.0, "copies": 3.0}, {"norms": 1.0, "quantising": 1.0})
    assert rows[0] == ["copies", "3", "75%", "0", "0%"]
    assert rows[-1] == ["all", "4", "100%", "2", "100%"]
