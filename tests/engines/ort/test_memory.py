"""A graph that asks for huge arrays is stopped by the limit and not by the machine."""

import resource
import subprocess
import sys
import textwrap

import pytest

from disa.engines.ort.memory import limited_loading, memory_limit
from disa.errors import InvalidRequest

# The graph adds the sum of an array of `size` floats to x. The size depends on x, or is a
# constant: then ONNX Runtime computes the sum while it loads the graph.
CODE = """
    import os, resource, sys
    os.environ["DISA_MEMORY_LIMIT_MIB"] = "300"
    import numpy as np, onnxruntime
    from onnx import TensorProto, helper, numpy_helper
    from disa.engines.ort.memory import limit_arrays, limited_loading

    size, constant = int(sys.argv[1]), sys.argv[2] == "constant"
    nodes = [
        helper.make_node("Shape", ["x"], ["rows"]),
        helper.make_node("Mul", ["rows", "size"], ["shape"]),
        helper.make_node("ConstantOfShape", ["size" if constant else "shape"], ["huge"]),
        helper.make_node("ReduceSum", ["huge"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n"]) for n in ("x", "y")]
    shape = numpy_helper.from_array(np.array([size], np.int64), "size")
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [shape])
    opset = [helper.make_opsetid("", 20)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    limit_arrays(onnxruntime, options)
    providers = ["CPUExecutionProvider"]
    before = resource.getrlimit(resource.RLIMIT_DATA)
    try:
        with limited_loading():
            session = onnxruntime.InferenceSession(model, options, providers=providers)
        print(session.run(None, {"x": np.ones(1, np.float32)}))
    except Exception as error:
        print(error)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    # Not ru_maxrss: a child begins with that of the process that started it.
    words = open("/proc/self/status", encoding="ascii").read().split()
    print(int(words[words.index("VmHWM:") + 1]) >> 10)
"""


def outcome(size: int, kind: str) -> tuple[str, int]:
    """What such a graph says, and the most memory of its process in MiB."""
    command = [sys.executable, "-c", textwrap.dedent(CODE), str(size), kind]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    *said, peak = done.stdout.strip().splitlines()
    return " ".join(said), int(peak)


@pytest.mark.parametrize("kind", ["constant", "variable"])
def test_huge_arrays_are_refused(kind: str) -> None:
    said, peak = outcome(1 << 28, kind)
    assert "is smaller than requested bytes of 1073741824" in said
    assert peak < 300


def test_small_ones_are_not() -> None:
    assert "[array([1.]" in outcome(1 << 20, "variable")[0].replace(", dtype=float32", "")


def test_graphs_loaded_at_the_same_time_leave_no_limit_behind() -> None:
    """As two models of a server: the first to begin is the first to end."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    first, second = limited_loading(), limited_loading()
    first.__enter__()
    limited = resource.getrlimit(resource.RLIMIT_DATA)
    second.__enter__()
    first.__exit__(None, None, None)
    assert resource.getrlimit(resource.RLIMIT_DATA) == limited != before
    second.__exit__(None, None, None)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISA_MEMORY_LIMIT_MIB", raising=False)
    assert memory_limit() > 1 << 28
    monkeypatch.setenv("DISA_MEMORY_LIMIT_MIB", "512")
    assert memory_limit() == 512 << 20
    for value in ("", "0", "-1", "1e3", "9" * 99):
        monkeypatch.setenv("DISA_MEMORY_LIMIT_MIB", value)
        with pytest.raises(InvalidRequest, match="whole number of MiB"):
            memory_limit()
