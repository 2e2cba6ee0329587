"""Transformer blocks that compute some tokens with cached keys and values of the others.

Keys and values are [batch, heads, tokens, head_dim], as attention reads them, and lists of them
alternate: key and value of the first layer, then those of the second, and so on. Caches have a
place for every token, so that their shape does not change; places that must not be read are
masked, and have finite values.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .transformer import Block, additive, attention


def attention_over_both(
    query: Tensor, old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor], mask: Tensor
) -> Tensor:
    """Attention over cached and new tokens, equal to `attention` over both in one tensor.

    Only the scores are joined, which are much smaller than keys and values if queries are few.

    Args:
        query: [batch, heads, queries, head_dim].
        old, new: keys and values.
        mask: added to the scores of the old keys, [old tokens].

    Returns:
        [batch, queries, heads * head_dim].
    """
    (old_key, old_value), (key, value) = old, new
    query = query * query.shape[-1] ** -0.5
    old_scores, scores = (query @ each.transpose(-2, -1) for each in (old_key, key))
    joined = torch.cat([old_scores.float() + mask, scores.float()], dim=-1)
    weights = joined.softmax(-1).to(value.dtype)
    places = mask.shape[0]
    mixed = weights[..., :places] @ old_value + weights[..., places:] @ value
    return mixed.transpose(1, 2).flatten(2)


def hiding(start: int, stop: int, places: int) -> Tensor:
    """The additive mask that hides the places from `start` to `stop`, [places] in fp32."""
    place = torch.arange(places)
    return additive((place < start) | (place >= stop))


def with_places(kept: Tensor, places: int) -> Tensor:
    """Keys or values in fp32, with zeros behind them for the tokens that come later.

    Args:
        kept: [batch, heads, tokens, head_dim]; the result has `places` tokens.
    """
    batch, heads, tokens, width = kept.shape
    later = torch.zeros(batch, heads, places - tokens, width)
    return torch.cat([kept.float(), later], dim=2)


def run_all(
    blocks: Iterable[Block], x: Tensor, cached: int, last_from: int = 0
) -> tuple[Tensor, list[Tensor]]:
    """Run the blocks on all tokens.

    Args:
        x: [rows, tokens, width].
        cached: number of leading rows whose keys and values are returned.
        last_from: first token for which the last block's result is needed.

    Returns:
        The result, [rows, tokens - last_from, width], and keys and values,
        [cached, heads, tokens, head_dim].
    """
    blocks = list(blocks)
    kept = []
    for index, block in enumerate(blocks):
        query, key, value = block.attn.project(block.norm1(x))
        kept += [key[:cached], value[:cached]]
        if index == len(blocks) - 1 and last_from:
            x, query = x[:, last_from:], query[:, :, last_from:]
        x = _rest(block, x, attention(query, key, value))
    return x, kept


def run_some(
    blocks: Iterable[Block],
    x: Tensor,
    caches: Sequence[Tensor],
    mask: Tensor,
    last_from: int = 0,
) -> tuple[Tensor, list[Tensor]]:
    """Run the blocks on some tokens, with the cached keys and values of the others.

    Args:
        x: the tokens to compute, [batch, tokens, width].
        caches: keys and values of all tokens, [batch, heads, places, head_dim].
        mask: added to the scores of the cached keys, [places].
        last_from: first token of `x` for which the last block's result is needed.

    Returns:
        The result, [batch, tokens - last_from, width], and keys and values of the tokens in fp32,
        [batch, heads, tokens, head_dim].
    """
    blocks = list(blocks)
    fresh = []
    for index, block in enumerate(blocks):
        query, key, value = block.attn.project(block.norm1(x))
        fresh += [key.float(), value.float()]
        if index == len(blocks) - 1 and last_from:
            x, query = x[:, last_from:], query[:, :, last_from:]
        old_key, old_value = (cache.to(key.dtype) for cache in caches[2 * index : 2 * index + 2])
        mixed = attention_over_both(query, (old_key, old_value), (key, value), mask)
        x = _rest(block, x, mixed)
    return x, fresh


def _rest(block: Block, x: Tensor, mixed: Tensor) -> Tensor:
    """The block's result for `x` [batch, tokens, width] from the result of its attention."""
    x = x + block.attn.proj(mixed).float()
    result: Tensor = x + block.mlp(block.norm2(x))
    return result
