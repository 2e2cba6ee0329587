"""How fast this machine multiplies matrices at best, in each precision.

What an image's operations take at these rates is the least that any implementation in that
precision can take, whatever else it saves.
"""

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper

from disa.engines.cpu import physical_cores
from disa.runtime.bench_machine import best_of, matrix_rate

SIZE = 2048


def matrix_rates(threads: int | None = None, size: int = SIZE) -> dict[str, float]:
    """Operations a second of a large product: fp32 and int8 in ONNX Runtime, bf16 in PyTorch."""
    return {
        "fp32": matrix_rate("cpu", threads, size),
        "bf16": bf16_rate(size),
        "int8": int8_rate(threads, size),
    }


def bf16_rate(size: int = SIZE) -> float:
    """In PyTorch, with the threads that it is set to: ONNX Runtime has no bf16 on the CPU."""
    left, right = (torch.randn(size, size, dtype=torch.bfloat16) for _ in range(2))
    torch.mm(left, right)
    return 2 * size**3 / best_of(lambda: torch.mm(left, right))


def int8_rate(threads: int | None = None, size: int = SIZE) -> float:
    """Unsigned times signed bytes, which the processors' dot products are made for."""
    types = {"left": TensorProto.UINT8, "right": TensorProto.INT8, "product": TensorProto.INT32}
    left, right, product = (
        helper.make_tensor_value_info(name, dtype, [size, size]) for name, dtype in types.items()
    )
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["left", "right"], ["product"])],
        "product",
        [left, right],
        [product],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or physical_cores()
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    rng = np.random.default_rng(0)
    inputs = {
        "left": rng.integers(0, 255, (size, size), np.uint8),
        "right": rng.integers(-127, 127, (size, size), np.int8),
    }
    session.run(None, inputs)
    return 2 * size**3 / best_of(lambda: session.run(None, inputs))
