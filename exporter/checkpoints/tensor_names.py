"""Names of tensors in training code: wrappers, averages and counters."""

import re
from collections.abc import Iterator

from torch import Tensor

# Wrappers of torch.compile, FSDP, activation checkpointing, DeepSpeed and PEFT, at any position.
INNER_WRAPPERS = {
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
    "base_layer",
    "module",
}
# Names of the whole model in various training codes.
LEADING_NAMES = {
    "autoencoder",
    "base_model",
    "ema_model",
    "first_stage_model",
    "generator",
    "mar",
    "model",
    "model_ema",
    "module",
    "net",
    "network",
    "online_model",
    "vae",
}
COUNTERS = {"decay", "initted", "n_averaged", "num_batches_tracked", "num_updates", "step"}

_WORDS = re.compile("[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_AVERAGES = {
    "average", "averaged", "averages", "averaging", "avg", "ema", "emas", "moving", "polyak",
    "shadow", "swa",
}  # fmt: skip
# Moments of an optimizer are averages of gradients.
_MOMENTS = re.compile(r"(max_)?exp_avg.*|(square|grad|acc)_avg.*")


def is_counter(name: str, tensor: Tensor) -> bool:
    """Whether a tensor is only a counter or a time of the training."""
    last = name.rpartition(".")[2]
    whole = not (tensor.is_floating_point() or tensor.is_complex())
    return tensor.numel() == 1 and (last in COUNTERS or (whole and tensor.ndim == 0))


def looks_averaged(name: str) -> bool:
    """Whether a key or file name indicates an average."""
    if _MOMENTS.fullmatch(name):
        return False
    return any(word.lower() in _AVERAGES for word in _WORDS.findall(name))


def without_outer(names: dict[str, str]) -> dict[str, str]:
    """Remove wrapper prefixes that all names have; counters may be beside them."""
    while prefix := next(
        (
            wrapper + "."
            for wrapper in INNER_WRAPPERS
            if any(name.startswith(wrapper + ".") for name in names)
            and all(name.startswith(wrapper + ".") or name in COUNTERS for name in names)
        ),
        "",
    ):
        names = {name.removeprefix(prefix): old for name, old in names.items()}
    return names


def without_inner(names: dict[str, str]) -> dict[str, str] | None:
    """Remove wrapper names at any position; None if two names would become equal."""
    shorter = {}
    for name, old in names.items():
        parts = [part for part in name.split(".") if part not in INNER_WRAPPERS]
        shorter[".".join(parts)] = old
    return shorter if len(shorter) == len(names) else None


def without_leading(names: dict[str, str]) -> Iterator[dict[str, str]]:
    """Remove the prefix of the whole model; other names are unchanged."""
    for leading in sorted({name.split(".")[0] for name in names} & LEADING_NAMES):
        shorter = {name.removeprefix(f"{leading}."): old for name, old in names.items()}
        if len(shorter) == len(names):
            yield shorter
