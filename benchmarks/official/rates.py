"""How fast this machine multiplies matrices at best, in each precision.

What an image's operations take at these rates is the least that any implementation in that
precision can take, whatever else it saves.
"""

import time
from collections.abc import Mapping

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from disa.engines.cpu import fast_bfloat16, physical_cores

from ..records import Clock, least

SIZE, TRIES = 2048, 10
EMULATED_SIZE = 256
"""Size in bf16 on a processor without it, where a large product takes half a minute."""


def matrix_rates(
    threads: int | None = None, clock: Clock = time.perf_counter, size: int = SIZE
) -> dict[str, float]:
    """Operations a second of a large product: fp32 and int8 in ONNX Runtime, bf16 in PyTorch."""
    fp32 = {"left": TensorProto.FLOAT, "right": TensorProto.FLOAT, "product": TensorProto.FLOAT}
    int8 = {"left": TensorProto.UINT8, "right": TensorProto.INT8, "product": TensorProto.INT32}
    return {
        "fp32": onnx_rate("MatMul", fp32, threads, clock, size),
        "bf16": bf16_rate(clock, size),
        "int8": onnx_rate("MatMulInteger", int8, threads, clock, size),
    }


def bf16_rate(clock: Clock = time.perf_counter, size: int = SIZE) -> float:
    """In PyTorch, with the threads that it is set to: ONNX Runtime has no bf16 on the CPU."""
    if not fast_bfloat16():
        size = min(size, EMULATED_SIZE)
    left, right = (torch.randn(size, size, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / least(lambda: torch.mm(left, right), clock, TRIES)


def onnx_rate(
    operator: str, types: Mapping[str, int], threads: int | None, clock: Clock, size: int
) -> float:
    """In ONNX Runtime; types: of `left` and `right`, which are multiplied, and of `product`.

    `right` is a constant like the weights of a plan, laid out for the kernels while loading.
    """
    rng = np.random.default_rng(0)
    left, right = (
        rng.integers(0, 100, (size, size)).astype(helper.tensor_dtype_to_np_dtype(types[name]))
        for name in ("left", "right")
    )
    graph = helper.make_graph(
        [helper.make_node(operator, ["left", "right"], ["product"])],
        "product",
        [helper.make_tensor_value_info("left", types["left"], [size, size])],
        [helper.make_tensor_value_info("product", types["product"], [size, size])],
        [numpy_helper.from_array(right, "right")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or physical_cores()
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return 2 * size**3 / least(lambda: session.run(None, {"left": left}), clock, TRIES)
