"""Compares the graphs of a plan with the checkpoint that the plan was made from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..engines.open import ON_HOST, choose_engine, open_session
from ..engines.plan.plan import Plan
from ..engines.plan.traits import HOST_ONLY, Role
from ..engines.session import Session
from ..errors import DisaError
from ..relative_error import relative_error
from .checkpoints.checkpoint import load_config
from .export import cached_graphs, open_decoder
from .families.fit import Ignored
from .graphs.check import references
from .graphs.graph import Arrays, Graph, Shape
from .opened import open_model
from .vae.decoder import KLDecoder
from .vae.files import OpenedVAE, open_vae
from .vae.latents import OPTIONS, split_latent_scale


@dataclass(frozen=True)
class Comparison:
    """The error of a plan's graph against the fp32 module, for given sizes.

    Attributes:
        relative: largest relative L2 error over the outputs.
        alone: largest relative L2 difference between an image in the batch and the same image
            alone, which would show a wrong fused attention.
    """

    graph: str
    sizes: Mapping[str, int]
    relative: float
    alone: float


@dataclass(frozen=True)
class Compared:
    """The comparison of a plan with its checkpoint.

    Attributes:
        weights: the key of the weights in the checkpoint.
        same_file: whether the plan was made from this file.
        ignored: tensors of the checkpoint that neither plan nor model uses.
    """

    precision: str
    comparisons: list[Comparison]
    weights: str
    averaged: bool
    same_file: bool
    ignored: Ignored


def compare_with_checkpoint(
    path: Path,
    checkpoint: Path,
    vae: Path | None = None,
    config: Path | None = None,
    engine: str = "cpu",
    weights: str | None = None,
) -> Compared:
    """Compare every graph of a plan with the checkpoint's fp32 module at several batch sizes.

    Args:
        vae: required if the plan was made with one.
        config: sizes that tensors do not show; by default those in the plan.
        weights: the key of the weights; by default the one that the plan was made from.

    Raises:
        DisaError: the checkpoint belongs to another model, its weights are ambiguous, or a file
            cannot be read.
    """
    with Plan.open(path) as plan:
        source = plan.manifest.source
        sizes, told = split_latent_scale(load_config(config) if config else None)
        if not config:
            model = {key: value for key, value in plan.manifest.model.items() if key != "size"}
            sizes, told = split_latent_scale(model)
        # As in the export, the VAE determines what neither the tensors nor `config` do.
        opened_vae = open_vae(vae) if vae is not None else None
        recorded = _text(source.get("weights"))
        opened = open_model(checkpoint, sizes, weights, opened_vae, recorded)
        if plan.manifest.family != opened.family.FAMILY:
            raise DisaError(
                f"{checkpoint} is a {opened.family.FAMILY} model but {path} is a "
                f"{plan.manifest.family} plan"
            )
        same_file = opened.checkpoint.sha256() == source.get("sha256")
        module, ignored = opened.build(_patterns(source))
        scale = {key: source[key] for key in OPTIONS if type(source.get(key)) in (int, float)}
        decoder = _open_decoder(plan, opened_vae, {**scale, **told})
        found: list[Comparison] = []
        precision = "fp32" if plan.manifest.precision == "fp32" else None
        on_host = choose_engine(plan, engine, precision) in ON_HOST
        graphs = opened.family.graphs(module, decoder)
        if plan.manifest.with_role(Role.REFRESH):
            graphs += cached_graphs(opened.family, module)[0]
        for graph in graphs:
            # Plans of earlier versions do not have them.
            absent = graph.name not in plan.manifest.graphs or not on_host
            if graph.traits.role in HOST_ONLY and absent:
                continue
            session = open_session(plan, graph.name, engine, precision=precision)
            found += compare_graph(graph, session, plan.manifest.precision_of(graph.name))
        chosen = opened.checkpoint
        return Compared(
            plan.manifest.precision, found, chosen.weights, chosen.averaged, same_file, ignored
        )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _patterns(source: Mapping[str, Any]) -> list[str]:
    """The patterns of ignored tensors in the plan's export."""
    ignored = source.get("ignored")
    patterns = ignored.get("patterns") if isinstance(ignored, Mapping) else None
    return [p for p in patterns if isinstance(p, str)] if isinstance(patterns, list) else []


def compare_graph(graph: Graph, session: Session, precision: str = "fp32") -> list[Comparison]:
    """One graph at all its sizes, and every image of a batch on its own."""
    found, judged = [], graph.judged(precision)
    for reference in references(graph):
        got = {name: np.asarray(value) for name, value in session.run(reference.inputs).items()}
        relative = max(relative_error(got[name], reference.outputs[name]) for name in judged)
        alone = 0.0
        for image in range(reference.sizes.get("batch", reference.sizes.get("rows", 1))):
            inputs = _one(reference.inputs, graph.inputs, reference.sizes, image)
            single = session.run(inputs)
            expected = _one(got, graph.outputs, reference.sizes, image)
            for name in judged:
                alone = max(alone, relative_error(np.asarray(single[name]), expected[name]))
        found.append(Comparison(graph.name, reference.sizes, relative, alone))
    return found


def _one(
    arrays: Mapping[str, np.ndarray[Any, Any]],
    shapes: Mapping[str, Shape],
    sizes: Mapping[str, int],
    image: int,
) -> Arrays:
    """The part of one image; rows of a batch are ordered by token first and by image second."""
    rows = slice(image, None, sizes["batch"]) if "batch" in sizes else slice(image, image + 1)
    taken = {"batch": slice(image, image + 1), "rows": rows}
    return {
        name: array[tuple(taken.get(str(dim), slice(None)) for dim in shapes[name])]
        for name, array in arrays.items()
    }


def _open_decoder(plan: Plan, vae: OpenedVAE | None, told: Mapping[str, float]) -> KLDecoder | None:
    pixels = any(
        spec.name == "image"
        for graph in plan.manifest.with_role(Role.DECODE)
        for spec in graph.outputs
    )
    side = plan.manifest.tokens["latent_shape"][1]
    if pixels and plan.manifest.image["height"] // side > 1 and vae is None:
        raise DisaError(f"{plan.path} was made with a VAE: add --vae")
    if vae is None or not pixels:
        return None
    return open_decoder(vae, plan.manifest.raw, told)
