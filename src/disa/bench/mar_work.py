"""The matmuls of MAR."""

from collections.abc import Mapping
from typing import Any

from ..engines.plan.plan import Plan
from ..engines.plan.traits import Role
from ..runtime.families.masked.options import MaskedOptions
from .calls import Call, Work


def count_mar(plan: Plan, options: Any, batch: int, weight_scale: float) -> Work:
    """See `work.Counter`."""
    weights = {name: weight_scale * graph_bytes(plan, name) for name in ("backbone", "head")}
    if plan.manifest.with_role(Role.MODULATION):
        # The modulations may be computed once in an AR iteration; steps need only other weights.
        model = plan.manifest.model
        share = 2 * modulation_weights(model) / head_flops(model, 1)
        weights["modulation"] = share * weights["head"]
        weights["head"] -= weights["modulation"]
    return mar_work(plan.manifest.model, options, batch, weights)


def graph_bytes(plan: Plan, graph: str) -> int:
    """Bytes of a graph and its weights in the plan."""
    info = plan.graph(graph)
    return sum(plan.manifest.members[name].size for name in (info.onnx, *info.data))


def mar_work(
    model: Mapping[str, Any], options: MaskedOptions, batch: int, weights: Mapping[str, float]
) -> Work:
    """The matmuls that MAR needs, with the last decoder block for predicted tokens only.

    Args:
        model: sizes of the model, as in the manifest.
        options: checked sampling options.
        batch: number of images.
        weights: bytes of weights: "backbone", "head" for those that each denoising step reads, and
            "modulation" for those that the head reads once in an AR iteration, if there are any.
    """
    grid = model["img_size"] // model["vae_stride"] // model["patch_size"]
    guidance = 2 if options.guided else 1
    work, known = Work(), 0
    for index, count in enumerate(options.partition(grid**2)):
        one = backbone_flops(model, grid**2, known, count)
        work.add("backbone", Call(guidance * batch * one, weights["backbone"]))
        step = Call(batch * count * head_flops(model, guidance), weights["head"])
        work.add("head", step, len(options.table(index)))
        if "modulation" in weights:
            work.add("head", Call(0.0, weights["modulation"]))
        known += count
    return work


def backbone_flops(model: Mapping[str, Any], tokens: int, visible: int, predicted: int) -> float:
    """Operations of the backbone for one image and one half of the guidance.

    Args:
        tokens: tokens of an image.
        visible: tokens that were sampled before.
        predicted: tokens that are sampled in this iteration.
    """
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
    return float(flops + 2.0 * predicted * decoder * model["diffloss_w"])


def block_flops(queries: int, keys: int, width: int, ratio: float) -> float:
    """Operations of a transformer block: 2 for each multiplication with its addition.

    Args:
        queries, keys: number of tokens.
        width: width of a token.
        ratio: width of the MLP, relative to `width`.
    """
    per_query = 2 + 2 * ratio
    projections = 2.0 * width**2 * (queries * per_query + 2 * keys)
    return projections + 4.0 * queries * keys * width


def modulation_weights(model: Mapping[str, Any]) -> int:
    """The number of weights that compute the modulations of the head."""
    return int((3 * model["diffloss_d"] + 2) * model["diffloss_w"] ** 2)


def head_flops(model: Mapping[str, Any], guidance: int) -> float:
    """Operations of a denoising step for one row."""
    width, depth = model["diffloss_w"], model["diffloss_d"]
    channels = model["vae_embed_dim"] * model["patch_size"] ** 2
    modulations, blocks = (3 * depth + 2) * width**2, 2 * depth * width**2
    matmuls = channels * width + guidance * (modulations + blocks + 2 * channels * width)
    return 2.0 * float(matmuls)
