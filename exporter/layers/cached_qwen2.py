"""The language model for some tokens, with cached keys and values of the others.

Keys are cached before the rotation of their positions: the position of a token in the reading order
changes when earlier tokens become known, so all keys are rotated again in each pass.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .qwen2 import Layer, Qwen2, Rotation


def run_cached(
    model: Qwen2,
    x: Tensor,
    own: Tensor,
    places: Tensor,
    mask: Tensor,
    keys: Tensor,
    values: Tensor,
    merge: Callable[[Tensor, int], Tensor],
) -> tuple[Tensor, Tensor]:
    """Process embeddings of some tokens after cached prompts; the result is after the final norm.

    Args:
        x: [rows, tokens, width] in fp32.
        own: position of each of these tokens after the prompt, [rows, tokens] in fp32.
        places: the positions of all tokens, [rows, all tokens].
        mask: [rows, tokens, prompt_length + all tokens], added to the scores.
        keys, values: of the prompts, [layers, rows, key_heads, prompt_length, head_dim].
        merge: inserts a layer's new keys and values, [tokens, 2, rows, key_heads, head_dim], into
            the cached ones of that layer: [all tokens, 2, ...].

    Returns:
        The result, [rows, tokens, width], and the new part of the cache in fp32,
        [tokens, layers, 2, rows, key_heads, head_dim].
    """
    turn_own, turn_all, mask = model.rotation(own), model.rotation(places), mask[:, None, None]
    layers = []
    for index, layer in enumerate(model.layers):
        normed = layer.input_layernorm(x)
        fresh = _project(layer, normed)
        layers.append(fresh)
        key, value = _behind(merge(fresh, index), turn_all, keys[index], values[index])
        x = x + layer.self_attn(normed, turn_own, mask, key, value)
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    result: Tensor = model.norm(x)
    return result, torch.stack(layers, dim=1).float()


def _project(layer: Layer, normed: Tensor) -> Tensor:
    """Keys before rotation and values, [tokens, 2, rows, key_heads, head_dim]."""
    attn = layer.self_attn
    x = normed.to(attn.k_proj.weight.dtype)
    pair = torch.stack([attn.k_proj(x), attn.v_proj(x)]).unflatten(-1, (attn.key_heads, -1))
    return pair.permute(2, 0, 1, 3, 4)


def _behind(
    pair: Tensor, rotation: Rotation, prompt_key: Tensor, prompt_value: Tensor
) -> tuple[Tensor, Tensor]:
    """Rotated keys, and values, after those of the prompt, [rows, heads, keys, head_dim]."""
    key, value = pair.permute(1, 2, 3, 0, 4).unbind(0)
    dtype = key.dtype
    key = torch.cat([prompt_key.to(dtype), rotation(key).to(dtype)], dim=2)
    return key, torch.cat([prompt_value.to(dtype), value], dim=2)
