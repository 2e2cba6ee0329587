"""The cached backbone of MAR."""

from torch import Tensor, nn

from ...graphs.graph import Graph, Shape
from ...layers.cached_block import behind_all, run_all, run_some
from ..mar import MAR, Backbone, backbone_graph
from .decoder import CachedDecoder
from .graphs import refresh_graph, reuse_graph, with_cache_sizes
from .shapes import cache_shape


class Refresh(nn.Module):
    """A full pass that also computes the caches for the passes after it."""

    def __init__(self, backbone: Backbone, model: MAR) -> None:
        super().__init__()
        self.backbone = backbone
        self.decoder = CachedDecoder(backbone.decode, model)

    def forward(
        self, tokens: Tensor, positions: Tensor, predicted: Tensor, class_index: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The condition as from `Backbone`, and the caches.

        Returns:
            condition: [guidance, predicted * batch, width].
            encoder_cache: [buffer + visible, layers, 2, batch, heads, head_dim], of the
                conditional half.
            decoder_cache, difference: as from `CachedDecoder.fill`.
        """
        backbone, (guidance, batch) = self.backbone, class_index.shape
        x = backbone.embed(tokens, positions[: tokens.shape[0]], class_index)
        x, encoder_cache = run_all(backbone.encoder_blocks, x, batch)
        condition, decoder_cache, difference = self.decoder.fill(
            backbone.encoder_norm(x),
            guidance,
            positions,
            predicted,
            backbone.decoder_position,
            backbone.condition_position,
        )
        return condition, encoder_cache, decoder_cache, difference


class Reuse(nn.Module):
    """A pass that computes new tokens only and reads all others from the caches."""

    def __init__(self, refresh: Refresh) -> None:
        super().__init__()
        self.backbone, self.decoder = refresh.backbone, refresh.decoder

    def forward(
        self,
        tokens: Tensor,
        known: Tensor,
        predicted: Tensor,
        class_index: Tensor,
        encoder_cache: Tensor,
        decoder_cache: Tensor,
        difference: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The condition of the predicted tokens, and the new parts of the caches.

        Args:
            tokens: tokens that became known since the last pass, [new, batch, C].
            known: their grid positions, [new, batch].
            predicted: positions predicted now, [predicted, batch].
            class_index: class of each image, [guidance, batch]; only its shape is used, as the
                buffer in the caches has the classes.
            encoder_cache: of the buffer and the tokens known at the last pass,
                [buffer + visible, layers, 2, batch, heads, head_dim].
            decoder_cache: of all tokens in generation order, [buffer + L, ...].
            difference: difference of the predicted tokens at the last full pass,
                [predicted, batch, width].

        Returns:
            condition: [guidance, predicted * batch, width].
            new_encoder: keys and values of the new tokens,
                [new, layers, 2, batch, heads, head_dim].
            new_decoder: keys and values of new and predicted tokens, [new + predicted, ...].
        """
        backbone = self.backbone
        x = backbone.embed_known(tokens, known)
        x, new_encoder = run_some(backbone.encoder_blocks, x, behind_all(encoder_cache))
        condition, new_decoder = self.decoder.extend(
            backbone.encoder_norm(x),
            class_index.shape[0],
            known,
            predicted,
            encoder_cache.shape[0] - backbone.decode.buffer_size,
            decoder_cache,
            difference,
            backbone.decoder_position,
            backbone.condition_position,
        )
        return condition, new_encoder, new_decoder


def cached_graphs(model: MAR, backbone: Backbone) -> list[Graph]:
    """The graphs `refresh` and `reuse`, whose weights are those of the backbone."""
    config, refresh = model.config, Refresh(backbone, model)
    plain, width = backbone_graph(backbone, config), config.decoder_embed_dim
    buffer, length = config.buffer_size, config.tokens

    def caches(encoder: str, decoder: str | int) -> dict[str, Shape]:
        return {
            "encoder": cache_shape(encoder, config, "encoder"),
            "decoder": cache_shape(decoder, config, "decoder"),
        }

    whole = caches("encoded", buffer + length)
    # At most as many tokens are new as are known in the check of the plain backbone.
    sizes, *checks = (
        with_cache_sizes(each, new, buffer, length)
        for each, new in zip((plain.sizes, *plain.checks), (4, 0, 2, 1), strict=True)
    )
    return [
        refresh_graph(refresh, plain, whole, width, plain.checks),
        reuse_graph(
            Reuse(refresh),
            plain,
            "new",
            whole,
            caches("new", "decoded_now"),
            width,
            # All sizes differ while the graph is traced.
            {**sizes, "encoded": buffer + 6},
            checks,
        ),
    ]
