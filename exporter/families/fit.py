"""Checks the tensors of a checkpoint that do not belong to its model."""

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ...errors import DisaError
from ..checkpoints.tensor_names import is_counter, looks_averaged

MAX_LISTED = 200
_LOOKS = (
    (re.compile(r"(^|[._])(q|k|qk)_?(norm|ln)\b"), "norms of queries and keys (qk-norm)"),
    (re.compile(r"\bls\d?\b|layer_?scale|\bgamma(_\d)?$"), "LayerScale"),
    (re.compile(r"lora_"), "LoRA adapters"),
    (re.compile(r"^(first_stage_model|vae|autoencoder)\."), "a VAE"),
    (re.compile(r"^(loss|discriminator|perceptual_loss|lpips)\."), "a part of the training loss"),
    (re.compile(r"rope|rotary|freqs"), "rotary position embeddings"),
    (re.compile(r"register|cls_token"), "register tokens"),
    (re.compile(r"\.bias$"), "biases"),
    (re.compile(r"norm"), "further norms"),
)


@dataclass(frozen=True)
class Ignored:
    """Unexpected tensors that were ignored on request."""

    patterns: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()

    def describe(self) -> dict[str, Any]:
        """The entry in a plan's manifest."""
        return {
            "patterns": list(self.patterns),
            "count": len(self.tensors),
            "tensors": list(self.tensors[:MAX_LISTED]),
        }


def check_places(
    state: Mapping[str, Tensor],
    places: Iterable[str],
    patterns: Sequence[str],
    where: Path | str,
    family: str,
) -> Ignored:
    """Check that the model uses all tensors, except those that match a pattern.

    Args:
        places: names of the model's tensors, and of those that inference does not need.
        patterns: names with shell wildcards.

    Raises:
        DisaError: there are other tensors; the checkpoint may have another architecture.
    """
    known = set(places)
    spare = [key for key in state if key not in known and not is_counter(key, state[key])]
    ignored = [key for key in spare if any(fnmatch.fnmatchcase(key, p) for p in patterns)]
    for pattern in patterns:
        if not fnmatch.filter(ignored, pattern):
            raise DisaError(
                f"{where}: no tensor without a place has a name like {pattern!r} "
                f"(--ignore-tensors): {_few(spare) if spare else 'all tensors have a place'}"
            )
    rest = sorted(set(spare) - set(ignored))
    if rest:
        raise DisaError(
            f"{where}: {len(rest)} of its tensors have no place in {family} ({_few(rest)}): they "
            f"look like {_looks(rest)}, so images would be wrong without them; if you are sure "
            "that they do not matter, add --ignore-tensors PATTERN"
        )
    return Ignored(tuple(patterns), tuple(ignored))


def _looks(names: Sequence[str]) -> str:
    kinds: dict[str, None] = {}
    for name in names:
        kind = next((kind for pattern, kind in _LOOKS if pattern.search(name)), None)
        if kind is None and any(looks_averaged(part) for part in name.split(".")):
            kind = "averaged weights"
        kinds[kind or "parts of another architecture"] = None
    return " and ".join(list(kinds)[:3])


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if names[3:] else "")
