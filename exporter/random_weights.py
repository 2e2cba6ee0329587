"""Models of the official sizes with random weights, to measure what has no checkpoint here."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DisaError
from . import flowar_config, harmon_config, mar_config, xar_config
from .export import export
from .flow_config import StackConfig
from .flow_layers import rotary_frequencies
from .flowar import FlowAR
from .harmon import Harmon
from .mar import MAR
from .scratch import scratch_folder
from .tokenizer import SPECIAL_TOKENS
from .xar import XAR

STD = 0.02
MODELS: Mapping[type, Callable[[Any], nn.Module]] = {
    mar_config.Config: MAR,
    flowar_config.Config: FlowAR,
    xar_config.Config: XAR,
    harmon_config.Config: Harmon,
}
"""The module that carries an official checkpoint's keys, for each type of configuration."""

FAMILIES: Mapping[str, Any] = {
    module.FAMILY: module for module in (mar_config, flowar_config, xar_config, harmon_config)
}
SIZES: Mapping[str, str] = {
    name: family for family, module in FAMILIES.items() for name in module.SIZES
}
"""Every official size, and the family that it belongs to."""

SHARED_SOURCES = (
    "export",
    "external_data",
    "graph",
    "layers",
    "precision",
    "random_weights",
    "sharing",
)
MASKED_SOURCES = ("head", "mar", "mar_config")
FLOW_SOURCES = ("flow_config", "flow_graphs", "flow_layers", "flow_stacks")
SOURCES: Mapping[str, tuple[str, ...]] = {
    "mar": MASKED_SOURCES,
    "flowar": (*FLOW_SOURCES, "flow_head", "flowar", "flowar_config"),
    "xar": (*FLOW_SOURCES, "xar", "xar_config"),
    "harmon": (*MASKED_SOURCES, "harmon", "harmon_config", "qwen2", "tokenizer"),
}
"""The modules of this package that decide what is in a family's plan, beside the shared ones."""


def official_config(size: str) -> Any:
    """The configuration of an official size, such as `mar_b`; DisaError for another name."""
    if size not in SIZES:
        raise DisaError(f"there are no shapes named {size}: choose one of {', '.join(SIZES)}")
    return FAMILIES[SIZES[size]].official_config(size)


def random_state(
    config: Any, seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """The tensors of a checkpoint for a family's `config`, the same for the same seed.

    Matrices and tables are normal with deviation 0.02, norms are identities and biases zero:
    every layer does its work, and values stay of ordinary size.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        shapes = MODELS[type(config)](config).state_dict()
    state = {name: torch.empty(like.shape, dtype=dtype) for name, like in shapes.items()}
    for name, tensor in state.items():
        if tensor.ndim > 1:
            tensor.normal_(0, STD, generator=generator)
        else:
            tensor.fill_(0 if name.endswith("bias") else 1)
    return state


def random_checkpoint(
    config: Any, path: Path, seed: int = 0, dtype: torch.dtype = torch.float32
) -> int:
    """Write random weights as the official training code or release of that family would.

    MAR's are the `model` of a training checkpoint. FlowAR's and xAR's come with the tables
    that tell their attention heads.

    Returns:
        The number of weights.
    """
    state = random_state(config, seed, dtype)
    weights = sum(tensor.numel() for tensor in state.values())
    if isinstance(config, StackConfig):
        state |= rotary_tables(config, state)
    content: object = {"model": state} if isinstance(config, mar_config.Config) else state
    torch.save(content, path)
    return weights


def rotary_tables(config: StackConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The rotary frequencies that every attention of FlowAR and xAR keeps in a checkpoint."""
    tables = {}
    for key in state:
        before, found, _ = key.rpartition("attn.proj.weight")
        if found:
            heads = next((n for stack, n in config.heads.items() if key.startswith(stack)), None)
            width = config.width // heads if heads else flowar_config.HEAD_DIM
            tables[f"{before}attn.rope.freqs"] = rotary_frequencies(width)
    return tables


def byte_tokenizer(folder: Path) -> Path:
    """Write a tokenizer of single bytes and the chat template's special tokens into `folder`.

    It stands in for Qwen2.5's, of which it needs about three times the tokens for a prompt.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    vocabulary = {token: index for index, token in enumerate(sorted(ByteLevel.alphabet()))}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    first = len(vocabulary)
    added = {str(first + n): {"content": token} for n, token in enumerate(SPECIAL_TOKENS)}
    content = json.dumps({"added_tokens_decoder": added})
    (folder / "tokenizer_config.json").write_text(content, encoding="utf-8")
    return folder


def random_plan(
    shapes: str,
    folder: Path | None = None,
    report: Callable[[str], object] = lambda stage: None,
) -> Path:
    """The plan of an official size such as `mar_b` with random weights, made where it is not yet.

    Args:
        folder: where plans are kept; the user's cache folder by default. The name of a plan
            there changes with the exporter, and plans of older exporters are removed.
        report: called with the name of each stage as it begins.
    """
    config = official_config(shapes)
    folder = folder or cache_folder()
    plan = folder / plan_name(shapes)
    if plan.exists():
        return plan
    with scratch_folder(plan) as scratch:
        checkpoint = scratch / f"{shapes}.pth"
        report("making random weights")
        random_checkpoint(config, checkpoint)
        tokenizer = byte_tokenizer(scratch) if reads_text(shapes) else None
        export(checkpoint, plan, tokenizer=tokenizer, check=False, report=report)
    for old in folder.glob(f"{shapes}-random-*.plan"):
        if old != plan:
            old.unlink(missing_ok=True)
    return plan


def reads_text(shapes: str) -> bool:
    """Whether a model of that official size needs a tokenizer."""
    return SIZES[shapes] == harmon_config.FAMILY


def plan_name(shapes: str) -> str:
    """The file that `random_plan` makes."""
    digest = hashlib.sha256()
    for name in (*SHARED_SOURCES, *SOURCES[SIZES[shapes]]):
        digest.update((Path(__file__).parent / f"{name}.py").read_bytes())
    return f"{shapes}-random-{digest.hexdigest()[:12]}.plan"


def cache_folder() -> Path:
    """`disa` in the user's cache folder (XDG_CACHE_HOME, else ~/.cache)."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "disa"
