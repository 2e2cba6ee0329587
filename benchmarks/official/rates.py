"""How fast this machine multiplies matrices at best, in each precision.

What an image's operations take at these rates is the least that any implementation in that
precision can take, whatever else it saves.
"""

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from disa.bench.machine import MATRIX_SIZE, best_of, matrix_rate
from disa.engines.cpu import fast_bfloat16, physical_cores

TRIES = 10
EMULATED_SIZE = 256
"""Size in bf16 on a processor without it, where a large matmul takes half a minute."""


def matrix_rates(threads: int | None = None, size: int = MATRIX_SIZE) -> dict[str, float]:
    """Operations a second of a large matmul: fp32 and int8 in ONNX Runtime, bf16 in PyTorch."""
    return {
        "fp32": matrix_rate("cpu", threads, size),
        "bf16": bf16_rate(size),
        "int8": int8_rate(threads, size),
    }


def bf16_rate(size: int = MATRIX_SIZE) -> float:
    """In PyTorch, with the threads that it is set to: ONNX Runtime has no bf16 on the CPU."""
    if not fast_bfloat16():
        size = min(size, EMULATED_SIZE)
    left, right = (torch.randn(size, size, dtype=torch.bfloat16) for _ in range(2))
    torch.mm(left, right)
    return 2 * size**3 / best_of(lambda: torch.mm(left, right), TRIES)


def int8_rate(threads: int | None, size: int = MATRIX_SIZE) -> float:
    """In ONNX Runtime; the right matrix is a constant, laid out for the kernels while loading."""
    rng = np.random.default_rng(0)
    left, right = (rng.integers(0, 100, (size, size), kind) for kind in (np.uint8, np.int8))
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["left", "right"], ["result"])],
        "matmul",
        [helper.make_tensor_value_info("left", TensorProto.UINT8, [size, size])],
        [helper.make_tensor_value_info("result", TensorProto.INT32, [size, size])],
        [numpy_helper.from_array(right, "right")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or physical_cores()
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    session.run(None, {"left": left})
    return 2 * size**3 / best_of(lambda: session.run(None, {"left": left}), TRIES)
