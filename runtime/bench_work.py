"""The work of drawing, and the time that it cannot take less than.

The floor of a graph call is the longer of two times: its operations at the rate of a large
matrix product on this machine, and the bytes of its weights, each read once, at this machine's
bandwidth. Norms, softmax, activations and the VAE are left out, so the floor is never too high.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..engines.plan import Plan
from .families import AnySettings
from .masked import prediction_counts
from .settings import Settings

WIDTHS = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2, "int8": 1}
"""Bytes of a weight in each precision."""


@dataclass(frozen=True)
class Call:
    """A call of a graph: multiplications and additions, and bytes of weights."""

    flops: float
    weight_bytes: float


@dataclass
class Work:
    """All calls of a draw, by part."""

    calls: dict[str, list[Call]] = field(default_factory=dict)

    def add(self, part: str, call: Call, times: int = 1) -> None:
        self.calls.setdefault(part, []).extend([call] * times)

    @property
    def flops(self) -> float:
        return sum(call.flops for calls in self.calls.values() for call in calls)

    @property
    def weight_bytes(self) -> float:
        return sum(call.weight_bytes for calls in self.calls.values() for call in calls)

    def floor(self, rate: float, bandwidth: float) -> dict[str, float]:
        """Seconds by part, at `rate` operations and `bandwidth` bytes a second."""
        return {
            part: sum(max(call.flops / rate, call.weight_bytes / bandwidth) for call in calls)
            for part, calls in self.calls.items()
        }


def count_work(plan: Plan, settings: AnySettings, batch: int, precision: str) -> Work | None:
    """The work of drawing a batch; None for a family whose work is not written down here.

    precision: what the engine computes in, which says how many bytes a weight takes.
    """
    if plan.manifest.family != "mar" or not isinstance(settings, Settings):
        return None
    smaller = WIDTHS.get(precision, 4) / WIDTHS.get(plan.manifest.precision, 4)
    weights = {name: smaller * graph_bytes(plan, name) for name in ("backbone", "head")}
    return mar_work(plan.manifest.model, settings, batch, weights)


def graph_bytes(plan: Plan, graph: str) -> int:
    """Bytes of a graph and its weights in the plan."""
    info = plan.graph(graph)
    return sum(plan.manifest.members[name].size for name in (info.onnx, *info.data))


def mar_work(
    model: Mapping[str, Any], settings: Settings, batch: int, weights: Mapping[str, float]
) -> Work:
    """The matrix products that MAR needs, with the last decoder block for predicted tokens only.

    weights: bytes of the backbone's and of the head's weights.
    """
    grid = model["img_size"] // model["vae_stride"] // model["patch_size"]
    guidance = 2 if settings.guided else 1
    work, known = Work(), 0
    for index, count in enumerate(prediction_counts(grid**2, settings.iterations)):
        one = backbone_flops(model, grid**2, known, count)
        work.add("backbone", Call(guidance * batch * one, weights["backbone"]))
        step = Call(batch * count * head_flops(model, guidance), weights["head"])
        work.add("head", step, len(settings.table(index)))
        known += count
    return work


def backbone_flops(model: Mapping[str, Any], tokens: int, visible: int, predicted: int) -> float:
    """Operations of the backbone for one image and one guidance half."""
    encoder, decoder = model["encoder_embed_dim"], model["decoder_embed_dim"]
    ratio = model["mlp_ratio"]
    seen = model["buffer_size"] + visible
    whole = model["buffer_size"] + tokens
    channels = model["vae_embed_dim"] * model["patch_size"] ** 2
    flops = 2.0 * visible * channels * encoder
    flops += model["encoder_depth"] * block_flops(seen, seen, encoder, ratio)
    flops += 2.0 * seen * encoder * decoder
    flops += (model["decoder_depth"] - 1) * block_flops(whole, whole, decoder, ratio)
    flops += block_flops(predicted, whole, decoder, ratio)
    return flops + 2.0 * predicted * decoder * model["diffloss_w"]


def block_flops(queries: int, keys: int, width: int, ratio: float) -> float:
    """Operations of a transformer block: 2 for each multiplication and addition of a product."""
    per_query = 2 + 2 * ratio
    projections = 2.0 * width**2 * (queries * per_query + 2 * keys)
    return projections + 4.0 * queries * keys * width


def head_flops(model: Mapping[str, Any], guidance: int) -> float:
    """Operations of a denoising step for one row."""
    width, depth = model["diffloss_w"], model["diffloss_d"]
    channels = model["vae_embed_dim"] * model["patch_size"] ** 2
    modulations, blocks = (3 * depth + 2) * width**2, 2 * depth * width**2
    return 2.0 * (channels * width + guidance * (modulations + blocks + 2 * channels * width))
