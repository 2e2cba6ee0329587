"""Models of official sizes with random weights, for measurements without a checkpoint."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..cache_folder import cache_folder
from ..engines.plan import plan as plan_module
from ..errors import DisaError
from ..scratch import scratch_folder
from .checkpoints.tokenizer import SPECIAL_TOKENS
from .export import export
from .families.registry import Family, all_families

STD = 0.02
FAMILY_OF_SIZE: Mapping[str, Family] = {
    name: family for family in all_families() for name in family.SIZES
}
SIZES: Mapping[str, str] = {name: family.FAMILY for name, family in FAMILY_OF_SIZE.items()}
"""Every official size, and its family."""


def family_of(config: Any) -> Family:
    """The family of a configuration."""
    return next(family for family in all_families() if isinstance(config, family.Config))


def official_config(size: str) -> Any:
    """The configuration of an official size, such as `mar_b`.

    Raises:
        DisaError: there is no such size.
    """
    if size not in SIZES:
        raise DisaError(f"there are no shapes named {size}: choose one of {', '.join(SIZES)}")
    return FAMILY_OF_SIZE[size].official_config(size)


def random_state(
    config: Any, seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """The tensors of a checkpoint for a family's `config`, reproducible for a seed."""
    return random_tensors(lambda: family_of(config).Model(config), seed, dtype)


def random_tensors(
    build: Callable[[], nn.Module], seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Tensors for the module that `build` makes, reproducible for a seed.

    Matrices and tables are normal with standard deviation 0.02, norms are identities and biases are
    zero, so that every layer has an effect and values stay in the usual range.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        shapes = build().state_dict()
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
    """Write random weights in the format of the family's official training code or release.

    Returns:
        The number of weights.
    """
    state = random_state(config, seed, dtype)
    weights = sum(tensor.numel() for tensor in state.values())
    torch.save(family_of(config).released(state, config), path)
    return weights


def byte_tokenizer(folder: Path) -> Path:
    """Write a tokenizer of single bytes and the chat template's special tokens into `folder`.

    It replaces Qwen2.5's tokenizer, but needs about three times as many tokens for a prompt.
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
    """The plan of an official size such as `mar_b` with random weights; made if it does not exist.

    Args:
        folder: folder of the plans; the user's cache folder by default. The name of a plan there
            changes with the exporter, and plans of older exporters are deleted.
        report: called with the name of each stage when it starts.
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
    return FAMILY_OF_SIZE[shapes].READS_TEXT


def plan_name(shapes: str) -> str:
    """The file name of the plan of `random_plan`."""
    digest = hashlib.sha256()
    exporter = Path(__file__).parent
    for folder in (exporter, Path(plan_module.__file__).parent):
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.read_bytes())
    return f"{shapes}-random-{digest.hexdigest()[:12]}.plan"
