"""What int8 saves on this CPU: `python -m benchmarks.quantized_speed PLAN`.

Backbone call and head step of an fp32 MAR plan, as it is and with every product in int8, in turn.
Ranges are made up, so the plan may have random weights: speed does not depend on them, and
nothing is said about accuracy.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np

from disa.calibration.graph_session import GraphSession
from disa.engines.plan import Plan
from disa.errors import DisaError
from disa.exporter.plan_graph import PlanGraph
from disa.exporter.quantize import Format

from .timing import CLOCKS

RANGE = 8.0
STEPS = 50


def backbone_inputs(plan: Plan, visible: int, predicted: int, batch: int) -> dict[str, Any]:
    """An AR iteration with guidance, in the middle of an image."""
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


def head_inputs(plan: Plan, rows: int) -> dict[str, Any]:
    """A denoising step with guidance."""
    rng = np.random.default_rng(0)
    width = int(plan.manifest.model["diffloss_w"])
    channels = plan.manifest.tokens["channels"]
    return {
        "x": rng.standard_normal((rows, channels), np.float32),
        "condition": rng.standard_normal((2, rows, width), np.float32),
        "step": np.full(rows, STEPS // 2),
        "embedding": rng.standard_normal((STEPS, width), np.float32),
        "coefficients": np.tile(np.array([1.02, -0.2, -4, -3, 1], np.float32), (STEPS, 1)),
        "guidance_scale": np.full(rows, 3, np.float32),
        "noise": rng.standard_normal((rows, channels), np.float32),
    }


def measure(
    sessions: Mapping[str, GraphSession], inputs: Mapping[str, Any], rounds: int, clock: str
) -> dict[str, float]:
    """Median milliseconds of a call of each session, in turn."""
    taken: dict[str, list[float]] = {name: [] for name in sessions}
    for session in sessions.values():
        session.run(inputs)
    for _ in range(rounds):
        for name, session in sessions.items():
            start = CLOCKS[clock]()
            session.run(inputs)
            taken[name].append(1e3 * (CLOCKS[clock]() - start))
    return {name: float(np.median(times)) for name, times in taken.items()}


def open_both(graph: PlanGraph, threads: int) -> dict[str, GraphSession]:
    """The graph as it is and in int8."""
    graph.quantize_weights(Format.INT8)
    scales = {product.activation: RANGE / 127 for product in graph.products}
    models = {"fp32": graph.model, "int8": graph.quantized(graph.products, scales)}
    return {
        name: GraphSession(
            graph.info, model.SerializeToString(), graph.folder, name, threads=threads
        )
        for name, model in models.items()
    }


@click.command()
@click.argument("path", metavar="PLAN", type=click.Path(path_type=Path))
@click.option("--threads", default="1,2", show_default=True)
@click.option("--batch-size", default=1, show_default=True)
@click.option("--visible", default=128, show_default=True, help="Known tokens of the backbone.")
@click.option("--predicted", default=8, show_default=True, help="Tokens predicted at once.")
@click.option("--rounds", default=5, show_default=True, help="Backbone calls; ten head steps each.")
@click.option(
    "--clock",
    type=click.Choice(list(CLOCKS)),
    default="wall",
    show_default=True,
    help="cpu counts the time of all threads, and holds on a machine that is busy.",
)
def main(
    path: Path,
    threads: str,
    batch_size: int,
    visible: int,
    predicted: int,
    rounds: int,
    clock: str,
) -> None:
    """Time a backbone call and a head step of PLAN in fp32 and in int8."""
    click.echo("| graph | threads | fp32 ms | int8 ms | times as fast |\n|---|---:|---:|---:|---:|")
    with Plan.open(path) as plan, tempfile.TemporaryDirectory(dir=path.parent) as folder:
        if plan.manifest.family != "mar" or plan.manifest.precision != "fp32":
            raise DisaError(f"{path} is no fp32 plan of a MAR model")
        inputs = {
            "backbone": backbone_inputs(plan, visible, predicted, batch_size),
            "head": head_inputs(plan, predicted * batch_size),
        }
        for name, given in inputs.items():
            graph = PlanGraph(plan, plan.graph(name), Path(folder))
            for count in map(int, threads.split(",")):
                calls = rounds * (10 if name == "head" else 1)
                found = measure(open_both(graph, count), given, calls, clock)
                ratio = found["fp32"] / found["int8"]
                click.echo(
                    f"| {name} | {count} | {found['fp32']:.1f} | {found['int8']:.1f} "
                    f"| {ratio:.2f} |"
                )


if __name__ == "__main__":
    main()
