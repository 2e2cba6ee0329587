"""Transformer blocks that compute some tokens with cached keys and values of the others.

The first axis of a cache is the token, [tokens, layers, 2, batch, heads, head_dim], with keys at
index 0 of the third axis and values at index 1, so that tokens in generation order are appended and
replaced as contiguous slices.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from .transformer import Block, attention


def project(block: Block, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value of `x` [batch, tokens, width], each [tokens, batch, heads, head_dim]."""
    attn = block.attn
    qkv = attn.qkv(block.norm1(x).to(attn.qkv.weight.dtype)).unflatten(-1, (3, attn.heads, -1))
    query, key, value = qkv.permute(2, 1, 0, 3, 4).unbind(0)
    return query, key, value


def attend(block: Block, x: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The block's result for the tokens of `x`, from their queries and all keys and values.

    Args:
        x: [batch, tokens, width] in fp32; the result has the same shape.
        query: [tokens, batch, heads, head_dim].
        key, value: [all tokens, batch, heads, head_dim].
    """
    by_head = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
    x = x + block.attn.proj(attention(*by_head)).float()
    result: Tensor = x + block.mlp(block.norm2(x))
    return result


def run_all(
    blocks: Iterable[Block], x: Tensor, cached: int, last_from: int = 0
) -> tuple[Tensor, Tensor]:
    """Run the blocks on all tokens, and fill the cache.

    Args:
        x: [rows, tokens, width].
        cached: number of leading rows whose keys and values are cached.
        last_from: first token for which the last block's result is needed.

    Returns:
        The result, [rows, tokens - last_from, width], and the cache in fp32,
        [tokens, layers, 2, cached, heads, head_dim].
    """
    blocks = list(blocks)
    layers = []
    for index, block in enumerate(blocks):
        query, key, value = project(block, x)
        layers.append(torch.stack([key[:, :cached], value[:, :cached]], dim=1))
        if index == len(blocks) - 1 and last_from:
            x, query = x[:, last_from:], query[last_from:]
        x = attend(block, x, query, key, value)
    return x, torch.stack(layers, dim=1).float()


def behind_all(cache: Tensor) -> Callable[[Tensor, int], Tensor]:
    """How `run_some` merges if new tokens come after all cached ones.

    Args:
        cache: [tokens, layers, 2, batch, heads, head_dim].
    """
    return lambda new, layer: torch.cat([cache[:, layer].to(new.dtype), new])


def run_some(
    blocks: Iterable[Block], x: Tensor, merge: Callable[[Tensor, int], Tensor], last_from: int = 0
) -> tuple[Tensor, Tensor]:
    """Run the blocks on some tokens, with the cached keys and values of the others.

    Args:
        x: the tokens to compute, [batch, tokens, width].
        merge: inserts the new keys and values of a layer, [tokens, 2, batch, heads, head_dim],
            into the cached ones of that layer.
        last_from: first token of `x` for which the last block's result is needed.

    Returns:
        The result, [batch, tokens - last_from, width], and the new part of the cache in fp32,
        [tokens, layers, 2, batch, heads, head_dim].
    """
    blocks = list(blocks)
    layers = []
    for index, block in enumerate(blocks):
        query, key, value = project(block, x)
        new = torch.stack([key, value], dim=1)
        layers.append(new)
        all_keys, all_values = merge(new, index).unbind(1)
        if index == len(blocks) - 1 and last_from:
            x, query = x[:, last_from:], query[last_from:]
        x = attend(block, x, query, all_keys, all_values)
    return x, torch.stack(layers, dim=1).float()
