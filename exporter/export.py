"""From a checkpoint to a plan."""

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..engines.manifest import QUANTIZED
from ..engines.plan import PlanWriter
from ..engines.session import TensorSpec
from ..errors import DisaError
from .check import TOLERANCES, GraphError, check_graph, enforce, references
from .checkpoint import Checkpoint, load_config, open_checkpoint
from .families import find_family
from .graph import Shape, export_graph
from .precision import Precision, set_precision
from .scratch import scratch_folder
from .sharing import SharedWeights
from .tokenizer import MEMBER, read_tokenizer
from .vae import open_vae

Report = Callable[[str], object]


@dataclass(frozen=True)
class Exported:
    """What an export made.

    Attributes:
        path: the plan.
        manifest: what was written into it, without members.
        layout: where in the checkpoint the weights were found.
        errors: difference of each graph from the fp32 model; empty if not checked.
        unused: tensors of the checkpoint that this model has no place for, and that official
            checkpoints do not have: it may be another model.
    """

    path: Path
    manifest: Mapping[str, Any]
    layout: str
    errors: Sequence[GraphError]
    unused: Sequence[str]


def export(
    checkpoint: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    vae: str | os.PathLike[str] | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    precision: Precision | str = Precision.FP32,
    config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
    class_names: Sequence[str] | None = None,
    check: bool = True,
    tolerance: float | None = None,
    report: Report = lambda stage: None,
) -> Exported:
    """Make a plan from a checkpoint.

    Args:
        checkpoint: official training checkpoint, state dict, or safetensors.
        output: the plan; `engines/NAME.plan` by default.
        vae: KL autoencoder whose decoder makes pixels of latents.
        tokenizer: folder with the tokenizer of a text-to-image model.
        precision: of the matrix products in the graphs.
        config: sizes that the tensors do not tell, or a JSON file with them.
        defaults: sampling options to be used when a run gives none.
        class_names: a name for each class.
        check: compare every exported graph with the fp32 model.
        tolerance: largest relative error allowed; by default 1e-4 in fp32, 1e-2 in fp16,
            5e-2 in bf16.
        report: called with the name of each stage as it begins.

    Raises:
        DisaError: bad input, a graph beyond the tolerance, or a plan that cannot be written.
            Nothing is left behind then.
    """
    if precision in QUANTIZED:
        raise DisaError(f"{precision} needs calibration: export in fp32, and quantise that plan")
    precision = Precision(precision)
    source = Path(checkpoint)
    path = Path(output) if output else Path("engines") / f"{source.stem}.plan"
    report("reading the checkpoint")
    opened = open_checkpoint(source)
    family = find_family(opened.state, source)
    given = load_config(config) if isinstance(config, str | os.PathLike) else config
    sizes = family.configure(opened.state, given, opened.args)
    content = family.manifest(sizes)
    content["defaults"] = {**content["defaults"], **(defaults or {})}
    content |= _identity(opened, path, precision, class_names, content)
    decoder = None
    if vae is not None:
        _, *latent = content["tokens"]["latent_shape"]
        decoder = open_vae(
            vae,
            latent_channels=content["tokens"]["latent_shape"][0],
            stride=content["image"]["height"] // latent[0],
        )
    text = _tokenizer(tokenizer, content)
    with scratch_folder(path) as folder, PlanWriter(path, content) as writer, _quiet():
        model = family.build(opened.state, sizes, source)
        loaded = model.state_dict().keys()
        unused = [key for key in opened.state if not (key in loaded or family.is_needless(key))]
        errors: list[GraphError] = []
        graphs, weights = family.graphs(model, decoder), SharedWeights()
        # All of them before the first cast: graphs may have modules in common.
        expected = [references(graph) if check else [] for graph in graphs]
        for graph, wanted in zip(graphs, expected, strict=True):
            chosen = Precision.FP32 if graph.always_fp32 else precision
            set_precision(graph.module, chosen)
            report(f"exporting the {graph.name} graph")
            exported = weights.share(export_graph(graph, folder))
            if check:
                report(f"checking the {graph.name} graph")
                errors += check_graph(exported, wanted, chosen)
            writer.add_graph(
                exported.name,
                exported.onnx,
                exported.data,
                _specs(exported.inputs),
                _specs(exported.outputs),
            )
        if errors:
            enforce(errors, TOLERANCES[precision] if tolerance is None else tolerance)
        if text is not None:
            writer.add(MEMBER, text)
        report("writing the plan")
    return Exported(path, content, opened.layout, errors, unused)


def _tokenizer(folder: str | os.PathLike[str] | None, content: Mapping[str, Any]) -> bytes | None:
    if folder is None:
        return None
    language_model = content["model"].get("llm")
    if language_model is None:
        raise DisaError(
            f"a model of the family {content['family']} reads no text: leave --tokenizer"
        )
    return read_tokenizer(Path(folder), language_model["vocab_size"])


def _identity(
    checkpoint: Checkpoint,
    path: Path,
    precision: Precision,
    class_names: Sequence[str] | None,
    content: Mapping[str, Any],
) -> dict[str, Any]:
    told = checkpoint.args.get("class_names")
    names = class_names or ([str(name) for name in told] if isinstance(told, list) else None)
    classes = content["model"].get("class_num")
    if names is not None and len(names) != classes:
        raise DisaError(
            f"there are {len(names)} class names for {classes} classes: give one for each"
        )
    return {
        "name": path.stem,
        "precision": precision.value,
        "class_names": list(names) if names else None,
        "source": {
            "file": checkpoint.path.name,
            "layout": checkpoint.layout,
            "sha256": checkpoint.sha256(),
            "disa": __version__,
        },
    }


def _specs(entries: Sequence[tuple[str, str, Shape]]) -> list[TensorSpec]:
    return [TensorSpec(name, dtype, shape) for name, dtype, shape in entries]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's remarks about its own insides."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
