"""Train the demo's models: `python -m demo.train mar`, or `all`.

A run of `--minutes` ends fully annealed on a machine of any speed, and an interrupted run continues
with the same command. Each process uses one thread: use several processes for several models.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

from disa.commands.command import DisaCommand
from disa.exporter.checkpoints.checkpoint import open_checkpoint
from disa.files import written_whole

from . import autoencoder
from .data import fashion_mnist
from .data.latents import Latents, open_latents
from .families import flow, flowar, harmon, mar, xar
from .training import Loss, Options, Run

FOLDER = Path(__file__).with_name("weights")
WORK = Path("outputs/train-demo")


@dataclass(frozen=True)
class Recipe:
    """How a family is trained.

    Attributes:
        build: makes a new model.
        training: a model's losses on latents.
        checkpoint: the file of trained weights, in the family's official layout.
        start: the family whose trained weights initialise a new model, and a function for it.
    """

    build: Callable[[], Any]
    training: Callable[[Any, Latents], Loss]
    checkpoint: Callable[[dict[str, Tensor]], Any]
    start: tuple[str, Callable[[Any, dict[str, Tensor]], None]] | None = None
    batch_size: int = 64
    learning_rate: float = 1.5e-3


RECIPES = {
    "mar": Recipe(mar.build, mar.Training, mar.checkpoint),
    "flowar": Recipe(flowar.build, flowar.Training, flowar.checkpoint, batch_size=32),
    "xar": Recipe(xar.build, xar.Training, xar.checkpoint, batch_size=32),
    "harmon": Recipe(
        harmon.build, harmon.Training, harmon.checkpoint, start=("mar", harmon.start_from)
    ),
}


def train(
    family: str, latents: Latents, options: Options, work: Path, output: Path, further: bool
) -> None:
    """Train one family and write its model, as fp16.

    Args:
        further: start with the trained weights in `output`.
    """
    recipe = RECIPES[family]
    torch.manual_seed(0)
    model: nn.Module = recipe.build()
    if further:
        state = open_checkpoint(output).state
        trained = {key: state[key] for key in model.state_dict()}
        model.load_state_dict(trained)
    elif recipe.start is not None:
        first, begin = recipe.start
        begin(model, open_checkpoint(output.with_name(f"fashion_{first}.pth")).state)

    def finish(run: Run) -> None:
        weights = {key: value.half() for key, value in run.averaged().items()}
        with written_whole(output) as file:
            torch.save(recipe.checkpoint(weights), file)

    run = Run(model, recipe.training(model, latents), len(latents), options)
    run.train(work / f"{family}.pt", finish)
    click.echo(f"written: {output}")


@click.command(cls=DisaCommand)
@click.argument("families", nargs=-1, required=True, type=click.Choice([*RECIPES, "all"]))
@click.option(
    "--minutes", default=40.0, show_default=True, help="Time for each model, over all runs."
)
@click.option("--learning-rate", type=float, help="Highest one, instead of the family's default.")
@click.option("--further", is_flag=True, help="Start with the trained weights in OUTPUT.")
@click.option("--threads", default=1, show_default=True, help="CPU threads.")
@click.option("--compiled", is_flag=True, help="Compile FlowAR's and xAR's blocks (needs g++).")
@click.option("--data", type=click.Path(path_type=Path), default=fashion_mnist.FOLDER)
@click.option("--vae", type=click.Path(path_type=Path), default=autoencoder.WEIGHTS)
@click.option("--work", type=click.Path(path_type=Path), default=WORK)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=FOLDER)
def main(
    families: tuple[str, ...],
    minutes: float,
    learning_rate: float | None,
    further: bool,
    threads: int,
    compiled: bool,
    data: Path,
    vae: Path,
    work: Path,
    output: Path,
) -> None:
    """Train FAMILIES on Fashion-MNIST; writes fashion_FAMILY.pth into the folder OUTPUT."""
    torch.set_num_threads(threads)
    if compiled:
        flow.run_block = torch.compile(flow.run_block, dynamic=False)
    latents = open_latents(vae, data, work / "latents.pt")
    for family in RECIPES if "all" in families else families:
        recipe = RECIPES[family]
        options = Options(minutes, recipe.batch_size, learning_rate or recipe.learning_rate)
        train(family, latents, options, work, output / f"fashion_{family}.pth", further)


if __name__ == "__main__":
    main()
