"""Exports a checkpoint to a plan."""

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..checked_numbers import positive_number
from ..engines.plan.manifest import QUANTIZED
from ..engines.plan.manifest_values import MAX_TEXT
from ..engines.plan.plan import PlanWriter
from ..engines.plan.sharing import SharedWeights
from ..engines.session import TensorSpec
from ..errors import DisaError, InvalidRequest
from ..files import as_text
from ..hub import hub_origin
from ..runtime.families.registry import checked_defaults
from ..scratch import scratch_folder
from .checkpoints.checkpoint import Checkpoint, load_config
from .checkpoints.tokenizer import MEMBER, read_tokenizer
from .destination import name_in_path, plan_path, refuse_inputs, refuse_other_plan
from .families.registry import Family, model_name
from .graphs.check import TOLERANCES, GraphError, check_graph, enforce, references
from .graphs.graph import Graph, Shape, export_graph
from .graphs.precision import Precision, set_precision
from .opened import OpenedModel, open_model
from .vae.decoder import KLDecoder
from .vae.files import OpenedVAE, open_vae
from .vae.latents import split_latent_scale

Report = Callable[[str], object]


@dataclass(frozen=True)
class Exported:
    """The result of an export.

    Attributes:
        path: the plan.
        manifest: its manifest, without members.
        layout: where in the checkpoint the weights were.
        errors: difference of each graph from the fp32 model; empty if not checked.
        ignored: unexpected tensors that were ignored on request.
    """

    path: Path
    manifest: Mapping[str, Any]
    layout: str
    errors: Sequence[GraphError]
    ignored: Sequence[str]


def export(
    checkpoint: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    vae: str | os.PathLike[str] | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    precision: Precision | str = Precision.FP32,
    config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    weights: str | None = None,
    ignore_tensors: Sequence[str] = (),
    latent_scale: float | None = None,
    latent_shift: float | None = None,
    defaults: Mapping[str, Any] | None = None,
    class_names: Sequence[str] | None = None,
    cached_backbone: bool = False,
    check: bool = True,
    tolerance: float | None = None,
    overwrite: bool = False,
    report: Report = lambda stage: None,
) -> Exported:
    """Make a plan from a checkpoint.

    Args:
        checkpoint: official training checkpoint, state dict, safetensors, or a folder of those.
        output: the plan, or a folder for it; `engines/NAME.plan` by default.
        vae: KL autoencoder whose decoder converts latents to pixels.
        tokenizer: folder with the tokenizer of a text-to-image model.
        precision: of the matmuls in the graphs.
        config: sizes that tensors do not show, or a JSON file with them.
        weights: key of the weights; by default the averaged ones, if there are any.
        ignore_tensors: patterns for names of unused tensors that may be ignored.
        latent_scale, latent_shift: the model was trained on `(latents - shift) * scale`; 0.2325
            and 0 by default.
        defaults: default sampling options of the plan.
        class_names: a name for each class.
        cached_backbone: add the graphs that the sampling option `refresh` needs.
        check: compare every exported graph with the fp32 model.
        tolerance: largest relative error allowed; by default 1e-4 in fp32, 1e-2 in fp16,
            5e-2 in bf16.
        overwrite: replace an existing plan of another checkpoint.
        report: called with the name of each stage when it starts.

    Returns:
        The path and the manifest of the plan, and the measured errors.

    Raises:
        DisaError: an input or an option is not valid, a graph exceeds the tolerance, or the plan
            cannot be written. No file is left in this case.
    """
    if precision in QUANTIZED:
        raise DisaError(f"{precision} needs calibration: export in fp32, and quantise that plan")
    precision = Precision(precision)
    if tolerance is not None:
        tolerance = positive_number("the tolerance", tolerance, zero=True)
    # A single text is a sequence, too: of letters.
    ignore_tensors = (ignore_tensors,) if isinstance(ignore_tensors, str) else ignore_tensors
    source = Path(checkpoint)
    report("reading the checkpoint")
    given = load_config(config) if isinstance(config, str | os.PathLike) else config
    given, told = split_latent_scale(given, latent_scale, latent_shift)
    if vae is None and (latent_scale, latent_shift) != (None, None):
        raise DisaError("the scale and shift of latents belong to the VAE: add --vae")
    opened_vae = open_vae(vae) if vae is not None else None
    opened = open_model(source, given, weights, opened_vae)
    path = plan_path(output, lambda: plan_name(source, opened))
    refuse_inputs(path, (*opened.checkpoint.files, *(opened_vae.files if opened_vae else ())))
    refuse_other_plan(path, opened.checkpoint.sha256, overwrite)
    content = opened.family.manifest(opened.sizes)
    content["defaults"] = checked_defaults(
        opened.family.FAMILY, content["tokens"], content["defaults"], defaults or {}
    )
    _check_refresh(content["defaults"], cached_backbone)
    decoder = open_decoder(opened_vae, content, told)
    text = _tokenizer(tokenizer, content)
    model, ignored = opened.build(ignore_tensors)
    cached = _cached_graphs(opened.family, model, content) if cached_backbone else []
    content |= {
        "name": as_text(path.stem),
        "precision": precision.value,
        "class_names": _class_names(opened.checkpoint, class_names, content),
        "source": {
            **opened.describe(ignored),
            **({"hub": origin} if (origin := hub_origin(source)) else {}),
            **_about(decoder),
            "disa": __version__,
        },
    }
    # The graphs are beside the plan while it is written.
    parameters = sum(parameter.numel() for parameter in model.parameters())
    needed = parameters * (8 if precision is Precision.FP32 else 4)
    with scratch_folder(path, needed) as folder, PlanWriter(path, content) as writer, _quiet():
        errors: list[GraphError] = []
        graphs, shared = opened.family.graphs(model, decoder) + cached, SharedWeights()
        # References come first, before any module is cast: graphs may share modules.
        expected = [references(graph) if check else [] for graph in graphs]
        for graph, wanted in zip(graphs, expected, strict=True):
            chosen = Precision.FP32 if graph.traits.always_fp32 else precision
            set_precision(graph.module, chosen)
            report(f"exporting the {graph.name} graph")
            exported = shared.share(export_graph(graph, folder))
            if check:
                report(f"checking the {graph.name} graph")
                errors += check_graph(exported, wanted, chosen, graph.judged(chosen))
            writer.add_graph(
                exported.name,
                exported.onnx,
                exported.data,
                _specs(exported.inputs),
                _specs(exported.outputs),
                graph.traits,
            )
        if errors:
            enforce(errors, TOLERANCES[precision] if tolerance is None else tolerance)
        if text is not None:
            writer.add(MEMBER, text)
        report("writing the plan")
    return Exported(path, content, opened.checkpoint.layout, errors, ignored.tensors)


def _check_refresh(defaults: Mapping[str, Any], cached_backbone: bool) -> None:
    """DisaError for full passes by default in a plan that has no other ones."""
    if cached_backbone:
        return
    if defaults.get("refresh") or (defaults.get("schedule") or {}).get("refresh"):
        raise DisaError("full passes need a cached backbone: add --cached-backbone")


def plan_name(source: Path, opened: OpenedModel) -> str:
    """The plan's name: that of its checkpoint, or of its model if the former is generic."""
    return name_in_path(source) or model_name(opened.family.FAMILY, opened.sizes)


def name_for(
    source: Path,
    config: str | os.PathLike[str] | None = None,
    weights: str | None = None,
    vae: str | os.PathLike[str] | None = None,
) -> str:
    """The name of the plan for a checkpoint that is not open yet."""
    if name := name_in_path(source):
        return name
    sizes, _ = split_latent_scale(load_config(config) if config else None)
    return plan_name(source, open_model(source, sizes, weights, open_vae(vae) if vae else None))


def open_decoder(
    vae: OpenedVAE | None, content: Mapping[str, Any], told: Mapping[str, float]
) -> KLDecoder | None:
    """Open the VAE's decoder for a model with that manifest.

    Args:
        told: `latent_scale` and `latent_shift`, if they are set.

    Raises:
        DisaError: it does not fit, or the scale of the latents is ambiguous.
    """
    if vae is None:
        return None
    channels, side, _ = content["tokens"]["latent_shape"]
    return vae.build(channels, content["image"]["height"] // side, told)


def cached_graphs(family: Family, model: Any) -> tuple[list[Graph], dict[str, list[int]]]:
    """The graphs of a cached backbone, and the sizes of their additional dimensions.

    Raises:
        InvalidRequest: the family has none.
    """
    make = getattr(family, "cached_graphs", None)
    if make is None:
        raise InvalidRequest(
            f"a {family.FAMILY} model always uses its caches: leave out --cached-backbone"
        )
    graphs, dimensions = make(model)
    return list(graphs), dict(dimensions)


def _cached_graphs(family: Family, model: Any, content: Mapping[str, Any]) -> list[Graph]:
    """The graphs of a backbone with a memory; their dimensions go into the manifest."""
    graphs, dimensions = cached_graphs(family, model)
    tokens = content["tokens"]
    tokens["dimensions"] = {**tokens.get("dimensions", {}), **dimensions}
    return graphs


def _about(decoder: KLDecoder | None) -> dict[str, float]:
    if decoder is None:
        return {}
    return {"latent_scale": decoder.latents.scale, "latent_shift": decoder.latents.shift}


def _tokenizer(folder: str | os.PathLike[str] | None, content: Mapping[str, Any]) -> bytes | None:
    if folder is None:
        return None
    language_model = content["model"].get("llm")
    if language_model is None:
        raise DisaError(f"a {content['family']} model takes no text: leave out --tokenizer")
    return read_tokenizer(Path(folder), language_model["vocab_size"])


def _class_names(
    checkpoint: Checkpoint, class_names: Sequence[str] | None, content: Mapping[str, Any]
) -> list[str] | None:
    recorded = checkpoint.args.get("class_names")
    names = class_names or (
        [str(name) for name in recorded] if isinstance(recorded, list) else None
    )
    classes = content["model"].get("class_num")
    if names is not None and classes is None:
        raise InvalidRequest(
            f"a {content['family']} model has no classes: leave out the class names (--labels)"
        )
    if names is not None and len(names) != classes:
        raise InvalidRequest(
            f"there are {len(names)} class names for {classes} classes: give one for each"
        )
    for number, name in enumerate(names or ()):
        if not isinstance(name, str) or len(name) > MAX_TEXT:
            raise DisaError(
                f"the name of class {number} must be text of at most {MAX_TEXT} letters, not "
                f"{repr(name)[:80]}"
            )
    return list(names) if names else None


def _specs(entries: Sequence[tuple[str, str, Shape]]) -> list[TensorSpec]:
    return [TensorSpec(name, dtype, shape) for name, dtype, shape in entries]


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporter's messages about its internals."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
