"""The cached backbone of MAR."""

from torch import Tensor, nn

from ...graphs.graph import Graph, Shape
from ...layers.cached_block import hiding, run_all, run_some, with_places
from ..mar import MAR, Backbone, backbone_graph
from .decoder import CachedDecoder
from .graphs import refresh_graph, reuse_graph, with_cache_sizes
from .shapes import half_shapes


class Refresh(nn.Module):
    """A full pass that also computes the caches for the passes after it."""

    def __init__(self, backbone: Backbone, model: MAR) -> None:
        super().__init__()
        self.backbone = backbone
        self.decoder = CachedDecoder(backbone.decode, model)

    def forward(
        self, tokens: Tensor, positions: Tensor, predicted: Tensor, class_index: Tensor
    ) -> tuple[Tensor, ...]:
        """The condition as from `Backbone`, and the caches.

        Returns:
            condition: [guidance, predicted * batch, width].
            encoder caches: keys and values of buffer and visible tokens, of the conditional half,
                with places for the other tokens, [batch, heads, buffer + L, head_dim].
            decoder caches, difference: as from `CachedDecoder.fill`.
        """
        backbone, (guidance, batch) = self.backbone, class_index.shape
        x = backbone.embed(tokens, positions[: tokens.shape[0]], class_index)
        x, encoder = run_all(backbone.encoder_blocks, x, batch)
        condition, decoder, difference = self.decoder.fill(
            backbone.encoder_norm(x),
            guidance,
            positions,
            predicted,
            backbone.decoder_position,
            backbone.condition_position,
        )
        places = backbone.decode.buffer_size + positions.shape[0]
        return condition, *(with_places(each, places) for each in encoder), *decoder, difference


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
        difference: Tensor,
        *caches: Tensor,
    ) -> tuple[Tensor, ...]:
        """The condition of the predicted tokens, and the new parts of the caches.

        Args:
            tokens: tokens that became known since the last pass, [new, batch, C].
            known: grid positions of all known tokens in generation order, the new ones last,
                [visible, batch].
            predicted: positions predicted now, [predicted, batch].
            class_index: class of each image, [guidance, batch]; only its shape is used, as the
                buffer in the caches has the classes.
            difference: difference of the predicted tokens at the last full pass,
                [predicted, batch, width].
            caches: those of the encoder and of the decoder, as `Refresh` gives them.

        Returns:
            condition: [guidance, predicted * batch, width].
            new parts of the encoder's caches: keys and values of the new tokens,
                [batch, heads, new, head_dim].
            new parts of the decoder's: of new and predicted tokens.
        """
        backbone, cached = self.backbone, known.shape[0] - tokens.shape[0]
        of_encoder = 2 * len(backbone.encoder_blocks)
        place = known[cached:]
        x = backbone.embed_known(tokens, place)
        places = caches[0].shape[2]
        mask = hiding(backbone.decode.buffer_size + cached, places, places)
        x, encoder = run_some(backbone.encoder_blocks, x, caches[:of_encoder], mask)
        condition, decoder = self.decoder.extend(
            backbone.encoder_norm(x),
            class_index.shape[0],
            place,
            predicted,
            cached,
            caches[of_encoder:],
            difference,
            backbone.decoder_position,
            backbone.condition_position,
        )
        return condition, *encoder, *decoder


def cached_graphs(model: MAR, backbone: Backbone) -> list[Graph]:
    """The graphs `refresh` and `reuse`, whose weights are those of the backbone."""
    config, refresh = model.config, Refresh(backbone, model)
    plain, width = backbone_graph(backbone, config), config.decoder_embed_dim
    buffer, length = config.buffer_size, config.tokens

    def caches(encoder: int | str, decoder: int | str) -> dict[str, Shape]:
        return {
            **half_shapes("encoder", config, encoder),
            **half_shapes("decoder", config, decoder),
        }

    places = buffer + length
    # At most as many tokens are new as are known in the check of the plain backbone.
    sizes, *checks = (
        with_cache_sizes(each, new, buffer, length)
        for each, new in zip((plain.sizes, *plain.checks), (4, 0, 2, 1), strict=True)
    )
    return [
        refresh_graph(refresh, plain, caches(places, places), width, plain.checks),
        reuse_graph(
            Reuse(refresh),
            plain,
            caches(places, places),
            caches("new", "computed"),
            width,
            sizes,
            checks,
        ),
    ]
