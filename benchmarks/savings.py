"""Times each exact saving on its own: the same numbers, before and after, at MAR-B's sizes.

python -m benchmarks.savings --json benchmarks/results/savings.json
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime
import torch
from torch import nn

from disa.cli import DisaCommand
from disa.engines.onnxruntime import OnnxRuntimeSession
from disa.engines.plan import Plan
from disa.exporter.head import DiffusionMLP, HeadStep
from disa.exporter.layers import Block, QueryBlock
from disa.exporter.mar_config import official_config
from disa.exporter.random_weights import random_plan
from disa.runtime.bench_report import check_writable, figure, table, write_record

from .official_model import Net
from .records import moment, new_record
from .timing import CLOCKS, least

PREDICTED, STEPS, TRIES = 4, 27, 5
"""Tokens of an AR iteration in the middle of 64, its denoising steps, and how often to try."""
HEADINGS = ("saving", "before", "after", "milliseconds of CPU time of")

Saving = tuple[str, Callable[[], object], Callable[[], object], str]


@click.command(cls=DisaCommand)
@click.option("--plan", type=click.Path(path_type=Path), help="MAR-B; made if not given.")
@click.option("--json", "output", type=click.Path(path_type=Path))
def main(plan: Path | None, output: Path | None) -> None:
    """Time each exact saving on its own, with one thread."""
    if output:
        check_writable(output)
    torch.set_num_threads(1)
    path = plan or random_plan("mar_b")
    record = new_record("savings")
    record["entries"] = []
    with torch.no_grad():
        for what, before, after, of in [*layer_savings(), *head_savings(), *engine_savings(path)]:
            slow, fast = (1000 * least(work, CLOCKS["cpu"], TRIES) for work in (before, after))
            entry = {"saving": what, "before": slow, "after": fast, "of": of}
            record["entries"].append(entry)
    record["machine"]["load_after"] = moment()["load"]
    if output:
        write_record(record, output)
    click.echo(table(HEADINGS, saving_rows(record)))


def saving_rows(record: Mapping[str, Any]) -> list[list[str]]:
    """The cells of a record under HEADINGS."""
    return [
        [entry["saving"], figure(entry["before"]), figure(entry["after"]), entry["of"]]
        for entry in record["entries"]
    ]


def layer_savings() -> Iterator[Saving]:
    """In the backbone."""
    config = official_config("mar_b")
    block = Block(config.decoder_embed_dim, config.decoder_num_heads).eval()
    some = QueryBlock(block)
    whole = torch.randn(2, config.buffer_size + config.tokens, config.decoder_embed_dim)
    start = whole.shape[1] - PREDICTED
    yield (
        "queries, projection and MLP of the last decoder block for predicted tokens only",
        lambda: block(whole),
        lambda: some(whole, start, PREDICTED),
        "a block (PyTorch)",
    )
    project = nn.Sequential(
        nn.Linear(config.channels, config.encoder_embed_dim), nn.LayerNorm(config.encoder_embed_dim)
    )
    everything = torch.randn(2, config.tokens, config.channels)
    visible = everything[:1, : config.tokens // 2].contiguous()
    yield (
        "tokens projected and normalised if visible, and once for both guided halves",
        lambda: project(everything),
        lambda: project(visible),
        "a backbone call (PyTorch)",
    )


def head_savings() -> Iterator[Saving]:
    """In the head, for the steps of an AR iteration."""
    config, rows = official_config("mar_b"), 2 * PREDICTED
    net = Net(config).eval()
    z, timestep = torch.randn(rows, config.decoder_embed_dim), torch.full((rows,), 500.0)
    grid = torch.linspace(0, 950, STEPS)

    def at_every_step() -> None:
        for _ in range(STEPS):
            net.cond_embed(z), net.time_embed(timestep)

    yield (
        "condition embedded once, timesteps once a schedule",
        at_every_step,
        lambda: (net.cond_embed(z), net.time_embed(grid)),
        f"{STEPS} steps (PyTorch)",
    )
    mlp = DiffusionMLP(
        config.channels, config.decoder_embed_dim, config.diffloss_w, config.diffloss_d
    )
    step = HeadStep(mlp.eval())
    x, noise = torch.randn(PREDICTED, config.channels), torch.randn(rows, config.channels)
    y = torch.randn(2, PREDICTED, config.diffloss_w)
    yield (
        "one product for all modulations, one input projection for both guided halves",
        lambda: net(noise, timestep, z),
        lambda: step.network(x, y),
        "a denoising step (PyTorch)",
    )


def modulations() -> Saving:
    """What would be saved if the modulations of all steps were one product in ONNX Runtime."""
    from onnx import TensorProto, helper, numpy_helper

    config, options = official_config("mar_b"), onnxruntime.SessionOptions()
    width = config.diffloss_w
    total = (3 * config.diffloss_d + 2) * width
    weight = np.random.default_rng(0).standard_normal((width, total), np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["y", "weight"], ["modulations"])],
        "modulations",
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", width])],
        [helper.make_tensor_value_info("modulations", TensorProto.FLOAT, ["rows", total])],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    step = {"y": np.ones((2 * PREDICTED, width), np.float32)}
    whole = {"y": np.ones((2 * PREDICTED * STEPS, width), np.float32)}
    return (
        "not done: modulations of all steps in one product",
        lambda: [session.run(None, step) for _ in range(STEPS)],
        lambda: session.run(None, whole),
        f"{STEPS} steps (ONNX Runtime)",
    )


def engine_savings(path: Path) -> Iterator[Saving]:
    """In ONNX Runtime."""
    plan = Plan.open(path)
    packed, plain = (
        OnnxRuntimeSession(plan, "head", "cpu", threads=1, prepack=prepack)
        for prepack in (True, False)
    )
    width, channels = official_config("mar_b").diffloss_w, official_config("mar_b").channels
    inputs = {
        "x": torch.randn(PREDICTED, channels),
        "condition": torch.randn(2, PREDICTED, width),
        "step": torch.zeros(PREDICTED, dtype=torch.int64),
        "embedding": torch.randn(STEPS, width),
        "coefficients": torch.ones(STEPS, 5),
        "guidance_scale": torch.ones(PREDICTED),
        "noise": torch.randn(PREDICTED, channels),
    }
    arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
    yield modulations()
    yield (
        "weights laid out for the matrix kernels while loading",
        lambda: plain.run(arrays),
        lambda: packed.run(arrays),
        "a denoising step (ONNX Runtime)",
    )


if __name__ == "__main__":
    main()
