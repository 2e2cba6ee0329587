"""The language model for some tokens, with cached keys and values of the others.

Keys are cached before the rotation of their positions: the position of a token in the reading order
changes when earlier tokens become known, so all keys are rotated again in each pass.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .qwen2 import Layer, Qwen2, Rotation, by_head


def run_cached(
    model: Qwen2,
    x: Tensor,
    own: Tensor,
    positions: Tensor,
    mask: Tensor,
    keys: Tensor,
    values: Tensor,
    caches: Sequence[Tensor] = (),
) -> tuple[Tensor, list[Tensor]]:
    """Process embeddings of some tokens after cached prompts; the result is after the final norm.

    Args:
        x: [rows, tokens, width] in fp32.
        own: position of each of these tokens after the prompt, whole numbers, [rows, tokens].
        positions: those of the cached tokens and then of these, [rows, all tokens].
        mask: [rows, tokens, prompt_length + all tokens], added to the scores.
        keys, values: of the prompts, [layers, rows, key_heads, prompt_length, head_dim].
        caches: keys before rotation and values of the cached tokens, which are the first ones
            of each, [rows, key_heads, places, head_dim]; key and value of a layer alternate. Empty
            if no token is cached.

    Returns:
        The result, [rows, tokens, width], and keys before rotation and values of these tokens in
        fp32, [rows, key_heads, tokens, head_dim].
    """
    turn_own, turn_all, mask = model.rotation(own), model.rotation(positions), mask[:, None, None]
    cached = positions.shape[1] - own.shape[1]
    fresh = []
    for index, layer in enumerate(model.layers):
        normed = layer.input_layernorm(x)
        key, value = _project(layer, normed)
        fresh += [key.float(), value.float()]
        if caches:
            old_key, old_value = (
                cache[:, :, :cached].to(key.dtype) for cache in caches[2 * index : 2 * index + 2]
            )
            key, value = torch.cat([old_key, key], dim=2), torch.cat([old_value, value], dim=2)
        key, value = _behind(key, value, turn_all, keys[index], values[index])
        x = x + layer.self_attn(normed, turn_own, mask, key, value)
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    result: Tensor = model.norm(x)
    return result, fresh


def _project(layer: Layer, normed: Tensor) -> tuple[Tensor, Tensor]:
    """Keys before rotation and values, [rows, key_heads, tokens, head_dim]."""
    attn = layer.self_attn
    x = normed.to(attn.k_proj.weight.dtype)
    return by_head(attn.k_proj(x), attn.key_heads), by_head(attn.v_proj(x), attn.key_heads)


def _behind(
    key: Tensor, value: Tensor, rotation: Rotation, prompt_key: Tensor, prompt_value: Tensor
) -> tuple[Tensor, Tensor]:
    """Rotated keys, and values, after those of the prompt, [rows, heads, keys, head_dim]."""
    dtype = key.dtype
    key = torch.cat([prompt_key.to(dtype), rotation(key).to(dtype)], dim=2)
    return key, torch.cat([prompt_value.to(dtype), value], dim=2)
