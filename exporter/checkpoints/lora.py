"""Merges low-rank adapters (LoRA, arXiv 2106.09685) into the weights they adapt.

W + alpha / r * B A, for linear layers, with A [r, in] and B [out, r].
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ...errors import DisaError
from .state_dict import check_floats

_FACTOR = re.compile(
    r"(?P<layer>.+)\.lora_(?P<side>A|B|down|up)(?:\.(?P<adapter>(?!weight$)\w+))?(?:\.weight)?"
)
_ALPHA = re.compile(r"(?P<layer>.+)\.(?:lora_)?alpha")
_SIDES = {"A": "A", "down": "A", "B": "B", "up": "B"}


@dataclass(frozen=True)
class Merged:
    """A state dict with merged adapters.

    Attributes:
        layers: number of adapted weights; 0 if there were no adapters.
        rank: the largest rank.
        scale: the distinct factors alpha / r.
    """

    state: dict[str, Tensor]
    layers: int = 0
    rank: int = 0
    scale: tuple[float, ...] = ()

    def describe(self) -> dict[str, Any]:
        """The entry in a plan's manifest."""
        return {"layers": self.layers, "rank": self.rank, "scale": list(self.scale)}


def merge_lora(
    state: Mapping[str, Tensor], options: Mapping[str, Any], where: Path | str
) -> Merged:
    """Merge adapters, if there are any.

    Args:
        options: training options; their `lora_alpha` is used for layers without a tensor
            `LAYER.alpha`.

    Raises:
        DisaError: a factor, a base weight or alpha is missing, the adapters are not LoRA
            adapters of linear layers, or a weight is not a float.
    """
    if not any("lora_" in key for key in state):
        return Merged(dict(state))
    factors: dict[str, dict[str, str]] = {}
    adapters: set[str | None] = set()
    for key in state:
        if match := _FACTOR.fullmatch(key):
            factors.setdefault(match["layer"], {})[_SIDES[match["side"]]] = key
            adapters.add(match["adapter"])
        elif "lora_" in key and not _ALPHA.fullmatch(key):
            raise _refused(where, f"{key} is of another kind than LoRA of linear layers")
    if len(adapters) > 1:
        raise _refused(where, f"there are several adapters ({', '.join(map(str, adapters))})")
    if options.get("use_rslora") or options.get("use_dora"):
        raise _refused(where, "their scale is not that of LoRA (rslora or dora)")
    if options.get("alpha_pattern"):
        raise _refused(where, "some layers have an alpha of their own (alpha_pattern)")
    result, used, scales, ranks = dict(state), set(), set(), []
    for layer, sides in factors.items():
        weight = f"{layer}.weight"
        if sides.keys() != {"A", "B"}:
            raise _refused(where, f"{layer} has one of its two factors only")
        if weight not in state:
            raise _refused(where, f"the adapted weight {weight} is missing")
        # Integers would lack the scales that belong to them.
        check_floats({key: state[key] for key in (weight, *sides.values())}, where)
        down, up = state[sides["A"]].float(), state[sides["B"]].float()
        base = state[weight]
        if down.ndim != 2 or up.ndim != 2 or base.shape != (up.shape[0], down.shape[1]):
            raise _refused(where, f"the adapters of {layer} do not have the shape of its weight")
        if down.shape[0] != up.shape[1] or not down.shape[0]:
            raise _refused(where, f"the two factors of {layer} have different ranks")
        scale = _alpha(state, layer, options, where) / down.shape[0]
        result[weight] = base.float() + scale * (up @ down)
        used |= set(sides.values())
        scales.add(scale)
        ranks.append(down.shape[0])
    alphas = {key for key in state if (m := _ALPHA.fullmatch(key)) and m["layer"] in factors}
    kept = {key: tensor for key, tensor in result.items() if key not in used | alphas}
    return Merged(kept, len(factors), max(ranks, default=0), tuple(sorted(scales)))


def _alpha(
    state: Mapping[str, Tensor], layer: str, options: Mapping[str, Any], where: Path | str
) -> float:
    for key in (f"{layer}.alpha", f"{layer}.lora_alpha"):
        if key in state and state[key].numel() == 1:
            return float(state[key])
    alpha = options.get("lora_alpha")
    if isinstance(alpha, int | float) and not isinstance(alpha, bool):
        return float(alpha)
    raise _refused(where, "their scale lora_alpha is not known")


def _refused(where: Path | str, why: str) -> DisaError:
    return DisaError(
        f"{where}: it has LoRA adapters that cannot be merged: {why}: merge them with the code "
        "that trained them, and export the result"
    )
