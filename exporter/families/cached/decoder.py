"""The masked decoder of a cached backbone, shared by MAR and Harmon."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...layers.cached_block import hiding, run_all, run_some
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
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """A full pass; the arguments are those of `MaskedDecoder`.

        Returns:
            condition: [guidance, predicted * batch, width].
            caches: keys and values of all tokens in generation order, of the conditional half,
                [batch, heads, buffer + L, head_dim] in fp32.
            difference: unconditional minus conditional half before the last norm, for the masked
                tokens in generation order, [L - visible, batch, width].
        """
        decode, skip, batch = self.decode, self.decode.buffer_size, positions.shape[1]
        visible, count = encoded.shape[1] - skip, predicted.shape[0]
        x = decode.tokens(encoded, guidance, positions, decoder_position)
        x, kept = run_all(self.blocks, x, batch, skip + visible)
        halves = x.unflatten(0, (guidance, batch)).transpose(1, 2)
        condition = decode.condition(halves[:, :count], condition_position[predicted])
        return condition, [each.float() for each in kept], halves[-1] - halves[0]

    def extend(
        self,
        encoded: Tensor,
        guidance: int,
        known: Tensor,
        predicted: Tensor,
        cached: int,
        caches: Sequence[Tensor],
        difference: Tensor,
        decoder_position: Tensor,
        condition_position: Tensor,
    ) -> tuple[Tensor, list[Tensor]]:
        """A pass that computes only new and predicted tokens.

        Args:
            encoded: new tokens, [batch, new, width].
            known: grid positions of the new tokens, [new, batch].
            predicted: positions predicted now, [predicted, batch].
            cached: known tokens at the last pass.
            caches: of all tokens in generation order, as `fill` gives them.
            difference: of the predicted tokens, [predicted, batch, width].

        Returns:
            The condition, [guidance, predicted * batch, width], and keys and values of the new
            and predicted tokens, [batch, heads, new + predicted, head_dim] in fp32.
        """
        decode, new = self.decode, known.shape[0]
        start = decode.buffer_size + cached
        mask = hiding(start, start + new + predicted.shape[0], caches[0].shape[2])
        places = torch.cat([known, predicted])
        known_tokens = decode.decoder_embed(encoded)
        x = torch.cat(decode.image_tokens(known_tokens, 1, places, decoder_position), dim=1)
        x, fresh = run_some(self.blocks, x, caches, mask, new)
        half = torch.arange(guidance, dtype=x.dtype, device=x.device)[:, None, None, None]
        halves = x.transpose(0, 1) + half * difference
        return decode.condition(halves, condition_position[predicted]), fresh
