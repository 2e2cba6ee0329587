"""Measures the time of each kind of operator in a MAR backbone call in ONNX Runtime.

    python -m benchmarks.random_plan mar_b -o mar_b.plan
    python -m benchmarks.operator_times mar_b.plan --batch-size 8

The graph runs in fp32 and in int8 with ONNX Runtime's profiler. The ranges of the int8 graph are
arbitrary, because they do not change the time.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime

from disa.calibration.quantization.plan_graph import PlanGraph
from disa.calibration.quantization.qdq import Format
from disa.commands.command import DisaCommand
from disa.engines.ort.session import session_options
from disa.engines.plan.plan import Plan
from disa.runtime.families.masked.partition import prediction_counts
from disa.tables import table

RANGE = 8.0
"""Arbitrary range of every activation in int8."""
MATMULS = "matmuls with weights"
KINDS: Mapping[str, str] = {
    **dict.fromkeys(
        ("Gemm", "FusedGemm", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"), MATMULS
    ),
    **dict.fromkeys(("QLinearMatMul", "MatMulInteger"), MATMULS),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), "quantising"),
    **dict.fromkeys(("LayerNormalization", "SkipLayerNormalization"), "norms"),
    **dict.fromkeys(("Gelu", "BiasGelu", "FastGelu", "Erf", "QuickGelu", "Sigmoid"), "activations"),
    **dict.fromkeys(("Softmax", "Attention", "MultiHeadAttention"), "attention"),
    **dict.fromkeys(("Transpose", "Concat", "Split", "Slice", "Gather", "Expand"), "copies"),
    **dict.fromkeys(("Reshape", "Unsqueeze", "Squeeze", "GatherND", "Tile"), "copies"),
    **dict.fromkeys(("Add", "Mul", "Sub", "Div"), "sums and biases"),
}
OTHERS = "others"
HEADINGS = ("kind", "fp32 ms", "share", "int8 ms", "share")


@click.command(cls=DisaCommand)
@click.argument("path", metavar="PLAN", type=click.Path(path_type=Path))
@click.option("--batch-size", default=8, show_default=True)
@click.option("--iteration", default=32, show_default=True, help="AR iteration, of 64.")
@click.option("--threads", default=1, show_default=True)
@click.option("--rounds", default=3, show_default=True, help="Calls; the fastest one counts.")
def main(path: Path, batch_size: int, iteration: int, threads: int, rounds: int) -> None:
    """Show the time of each kind of operator in a backbone call of PLAN, an fp32 MAR plan."""
    with Plan.open(path) as plan, tempfile.TemporaryDirectory(dir=path.parent) as folder:
        counts = prediction_counts(plan.manifest.tokens["count"], 64)
        visible, predicted = sum(counts[:iteration]), counts[iteration]
        inputs = backbone_inputs(plan, visible, predicted, batch_size)
        graph = PlanGraph(plan, plan.graph("backbone"), Path(folder))
        weights = {matmul.weight for matmul in graph.matmuls}
        full = profiled(graph.model, graph.folder, inputs, threads, rounds)
        graph.quantize_weights(Format.INT8)
        scales = {matmul.activation: RANGE / 127 for matmul in graph.matmuls}
        smaller = graph.quantized(graph.matmuls, scales)
        small = profiled(smaller, graph.folder, inputs, threads, rounds)
        names = {node.name for node in graph.model.graph.node if set(node.input) & weights}
        click.echo(table(HEADINGS, rows_of(by_kind(full, names), by_kind(small, names))))


def backbone_inputs(plan: Plan, visible: int, predicted: int, batch: int) -> dict[str, Any]:
    """Inputs of an AR iteration with guidance, in the middle of an image.

    Args:
        visible: tokens that were sampled before.
        predicted: tokens of this iteration.
        batch: number of images.
    """
    rng = np.random.default_rng(0)
    length, channels = plan.manifest.tokens["count"], plan.manifest.tokens["channels"]
    positions = rng.permuted(np.tile(np.arange(length)[:, None], batch), axis=0)
    classes = int(plan.manifest.model["class_num"])
    return {
        "tokens": rng.standard_normal((visible, batch, channels), np.float32),
        "positions": positions,
        "predicted": positions[visible : visible + predicted],
        "class_index": np.array([[0] * batch, [classes] * batch]),
    }


def profiled(
    model: Any, folder: Path, inputs: Mapping[str, Any], threads: int, rounds: int
) -> list[dict[str, Any]]:
    """Profile some calls of a graph.

    Returns:
        The events of the nodes in the fastest call, as ONNX Runtime writes them: `name`, duration
        `dur` in microseconds, and `args` with `op_name`.
    """
    options = session_options(onnxruntime, threads, prepack=True, precision="fp32")
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(folder)
    )
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    for _ in range(1 + rounds):
        session.run(None, dict(inputs))
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    calls: list[list[dict[str, Any]]] = [[]]
    for event in events:
        if event.get("cat") == "Node" and str(event.get("name")).endswith("_kernel_time"):
            calls[-1].append(event)
        elif event.get("name") == "model_run":
            calls.append([])
    measured = [call for call in calls if call][1:]
    return min(measured, key=lambda call: sum(event["dur"] for event in call))


def by_kind(events: list[dict[str, Any]], with_weights: set[str]) -> dict[str, float]:
    """Milliseconds by kind of operator; a MatMul is attention unless it has weights.

    Args:
        with_weights: names of the MatMul nodes with weights.
    """
    found: dict[str, float] = {}
    for event in events:
        operator = event["args"]["op_name"]
        kind = KINDS.get(operator, OTHERS)
        if operator in ("MatMul", "FusedMatMul"):
            name = event["name"].removesuffix("_kernel_time")
            kind = MATMULS if is_among(name, with_weights) else "attention"
        found[kind] = found.get(kind, 0.0) + event["dur"] / 1000
    return found


def is_among(name: str, nodes: set[str]) -> bool:
    """Whether a node is one of these; fusion may have extended its name."""
    return name in nodes or any(part in nodes for part in name.split("/"))


def rows_of(full: Mapping[str, float], small: Mapping[str, float]) -> list[list[str]]:
    """The cells under HEADINGS, the longest in fp32 first, and their sum."""
    rows = []
    kinds = sorted({*full, *small}, key=lambda kind: -full.get(kind, 0.0))
    for kind in [*kinds, "all"]:
        cells = [kind]
        for times in (full, small):
            total = sum(times.values())
            taken = total if kind == "all" else times.get(kind, 0.0)
            cells += [f"{taken:.0f}", f"{taken / total:.0%}"]
        rows.append(cells)
    return rows


if __name__ == "__main__":
    main()
