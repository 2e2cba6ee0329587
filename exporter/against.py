"""Compares the graphs of a plan with the checkpoint the plan was made from."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from ..engines.open import open_session
from ..engines.plan import Plan
from ..engines.session import Session
from ..errors import DisaError
from .check import TOLERANCES, references, relative_error
from .checkpoint import load_config, open_checkpoint
from .families import find_family
from .graph import Arrays, Graph, Shape
from .vae import KLDecoder, open_vae


@dataclass(frozen=True)
class Comparison:
    """A graph of a plan against the fp32 module at given sizes.

    Attributes:
        relative: largest relative L2 error over the outputs.
        alone: largest relative L2 difference between an image in the batch and the same
            image on its own, which a wrong fused attention would show.
    """

    graph: str
    sizes: Mapping[str, int]
    relative: float
    alone: float


def compare_with_checkpoint(
    path: Path,
    checkpoint: Path,
    vae: Path | None = None,
    config: Path | None = None,
    engine: str = "cpu",
) -> tuple[str, list[Comparison]]:
    """Run every graph of a plan at several batch sizes beside the checkpoint's fp32 module.

    Args:
        vae: needed if the plan was made with one.
        config: sizes that the tensors do not tell; by default those in the plan.

    Raises:
        DisaError: the checkpoint is of another model, or something cannot be read.
    """
    with Plan.open(path) as plan:
        opened = open_checkpoint(checkpoint)
        family = find_family(opened.state, checkpoint)
        if plan.manifest.family != family.FAMILY:
            raise DisaError(
                f"{checkpoint} is a {family.FAMILY} model and {path} a {plan.manifest.family} plan"
            )
        sizes = load_config(config) if config else plan.manifest.model
        model = family.build(
            opened.state, family.configure(opened.state, sizes, opened.args), checkpoint
        )
        decoder = _open_decoder(plan, vae)
        found: list[Comparison] = []
        for graph in family.graphs(model, decoder):
            session = open_session(
                plan,
                graph.name,
                engine,
                precision="fp32" if plan.manifest.precision == "fp32" else None,
            )
            found += compare_graph(graph, session)
        return plan.manifest.precision, found


def compare_graph(graph: Graph, session: Session) -> list[Comparison]:
    """One graph at all its sizes, and every image of a batch on its own."""
    found = []
    for reference in references(graph):
        got = {name: np.asarray(value) for name, value in session.run(reference.inputs).items()}
        relative = max(relative_error(got[name], want) for name, want in reference.outputs.items())
        alone = 0.0
        for image in range(reference.sizes.get("batch", reference.sizes.get("rows", 1))):
            inputs = _one(reference.inputs, graph.inputs, reference.sizes, image)
            single = session.run(inputs)
            expected = _one(got, graph.outputs, reference.sizes, image)
            for name, want in expected.items():
                alone = max(alone, relative_error(np.asarray(single[name]), want))
        found.append(Comparison(graph.name, reference.sizes, relative, alone))
    return found


def _one(
    arrays: Mapping[str, np.ndarray[Any, Any]],
    shapes: Mapping[str, Shape],
    sizes: Mapping[str, int],
    image: int,
) -> Arrays:
    """The part of one image; rows of a batch go through tokens first and images second."""
    rows = slice(image, None, sizes["batch"]) if "batch" in sizes else slice(image, image + 1)
    taken = {"batch": slice(image, image + 1), "rows": rows}
    return {
        name: array[tuple(taken.get(str(dim), slice(None)) for dim in shapes[name])]
        for name, array in arrays.items()
    }


def _open_decoder(plan: Plan, vae: Path | None) -> KLDecoder | None:
    pixels = any(spec.name == "image" for spec in plan.graph("decoder").outputs)
    channels, *latent = plan.manifest.tokens["latent_shape"]
    stride = plan.manifest.image["height"] // latent[0]
    if pixels and stride > 1 and vae is None:
        raise DisaError(f"{plan.path} was made with a VAE: give it with --vae")
    if vae is None or not pixels:
        return None
    return open_vae(vae, latent_channels=channels, stride=stride)


def report(precision: str, found: list[Comparison], tolerance: float | None, as_json: bool) -> None:
    """Print the comparisons; DisaError if one is beyond the tolerance."""
    allowed = TOLERANCES[precision] if tolerance is None else tolerance
    worst = max(max(entry.relative, entry.alone) for entry in found)
    passed = worst <= allowed
    if as_json:
        entries = [
            {"graph": e.graph, "sizes": dict(e.sizes), "relative": e.relative, "alone": e.alone}
            for e in found
        ]
        summary = {"tolerance": allowed, "worst": worst, "passed": passed, "graphs": entries}
        click.echo(json.dumps(summary, indent=1))
    else:
        click.echo("graph       relative error  in a batch or alone  sizes")
        for entry in found:
            sizes = ", ".join(f"{name} {size}" for name, size in entry.sizes.items())
            click.echo(f"{entry.graph:<10}  {entry.relative:>14.1e}  {entry.alone:>19.1e}  {sizes}")
        verdict = "passed" if passed else "FAILED"
        click.echo(f"{verdict}: worst relative error {worst:.1e} (tolerance {allowed:.0e})")
    if not passed:
        raise DisaError(
            f"the plan differs from its checkpoint by {worst:.1e}, and {allowed:.0e} is allowed"
        )
