"""The masked decoder of a cached backbone, shared by MAR and Harmon."""

import torch
from torch import Tensor, nn

from ...layers.cached_block import run_all, run_some
from ..mar import MAR, MaskedDecoder


class CachedDecoder(nn.Module):
    """`MaskedDecoder` in a full pass, and in a pass that computes new tokens only."""

    def __init__(self, decode: MaskedDecoder, model: MAR) -> None:
        super().__init__()
        self.decode = decode
        self.blocks = nn.ModuleList([*decode.decoder_blocks, model.decoder_blocks[-1]])

    def fill(
        self,
        encoded: Tensor,
        guidance: int,
        positions: Tensor,
        predicted: Tensor,
        decoder_position: Tensor,
        condition_position: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A full pass; the arguments are those of `MaskedDecoder`.

        Returns:
            condition: [guidance, predicted * batch, width].
            cache: keys and values of all tokens in generation order, of the conditional half,
                [buffer + L, layers, 2, batch, heads, head_dim].
            difference: unconditional minus conditional half before the last norm, for the masked
                tokens in generation order, [L - visible, batch, width].
        """
        decode, skip, batch = self.decode, self.decode.buffer_size, positions.shape[1]
        visible, count = encoded.shape[1] - skip, predicted.shape[0]
        x = decode.tokens(encoded, guidance, positions, decoder_position)
        x, cache = run_all(self.blocks, x, batch, skip + visible)
        halves = x.unflatten(0, (guidance, batch)).transpose(1, 2)
        condition = decode.condition(halves[:, :count], condition_position[predicted])
        return condition, cache, halves[-1] - halves[0]

    def extend(
        self,
        encoded: Tensor,
        guidance: int,
        known: Tensor,
        predicted: Tensor,
        cached: int,
        cache: Tensor,
        difference: Tensor,
        decoder_position: Tensor,
        condition_position: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """A pass that computes only new and predicted tokens.

        Args:
            encoded: new tokens, [batch, new, width].
            known: grid positions of the new tokens, [new, batch].
            predicted: positions predicted now, [predicted, batch].
            cached: known tokens at the last pass.
            cache: of all tokens in generation order, as `fill` gives it.
            difference: of the predicted tokens, [predicted, batch, width].

        Returns:
            The condition, [guidance, predicted * batch, width], and the cache at the places of
            new and predicted tokens, [new + predicted, ...].
        """
        decode, new = self.decode, known.shape[0]
        start = decode.buffer_size + cached
        stop = start + new + predicted.shape[0]

        def merge(fresh: Tensor, layer: int) -> Tensor:
            old = cache[:start, layer].to(fresh.dtype)
            rest = cache[stop:, layer].to(fresh.dtype)
            return torch.cat([old, fresh, rest])

        places = torch.cat([known, predicted])
        known_tokens = decode.decoder_embed(encoded)
        x = torch.cat(decode.image_tokens(known_tokens, 1, places, decoder_position), dim=1)
        x, fresh = run_some(self.blocks, x, merge, new)
        half = torch.arange(guidance, dtype=x.dtype, device=x.device)[:, None, None, None]
        halves = x.transpose(0, 1) + half * difference
        return decode.condition(halves, condition_position[predicted]), fresh
