"""The cached backbone of Harmon."""

from torch import Tensor, nn

from ...graphs.graph import Graph, Shape
from ...layers.cached_block import hiding, run_all, run_some, with_places
from ...layers.cached_qwen2 import run_cached
from ...layers.transformer import for_each
from ..harmon import backbone_graph
from ..harmon_model import Backbone, Harmon
from .decoder import CachedDecoder
from .graphs import refresh_graph, reuse_graph, with_cache_sizes
from .shapes import cache_shapes, half_shapes


class Refresh(nn.Module):
    """A full pass that also computes the caches for the passes after it."""

    def __init__(self, backbone: Backbone, model: Harmon) -> None:
        super().__init__()
        self.backbone = backbone
        self.decoder = CachedDecoder(backbone.decode, model.mar)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        predicted: Tensor,
        prompt_index: Tensor,
        prompt_length: Tensor,
        prompt_key: Tensor,
        prompt_value: Tensor,
        encoder_position: Tensor,
        decoder_position: Tensor,
        condition_position: Tensor,
    ) -> tuple[Tensor, ...]:
        """The condition as from `Backbone` with these arguments, and the caches.

        Returns:
            condition: [guidance, predicted * batch, width].
            encoder caches: keys and values of buffer and visible tokens, with places for the other
                tokens, [batch, heads, buffer + length, head_dim].
            language caches: keys before rotation and values of the same tokens, of the conditional
                half, [batch, key_heads, buffer + length, head_dim].
            decoder caches, difference: as from `CachedDecoder.fill`.
        """
        backbone, (guidance, batch) = self.backbone, prompt_index.shape
        place = positions[: tokens.shape[0]]
        x = backbone.embed(tokens, encoder_position[place])
        x, encoder = run_all(backbone.encoder_blocks, x, batch)
        encoded = backbone.encoder_norm(x)
        rows = prompt_index.flatten()
        length = prompt_length[rows][:, None]
        rank, mask = backbone.reading_order(
            place.transpose(0, 1), guidance, length, prompt_key.shape[3]
        )
        hidden, language = run_cached(
            backbone.language_model,
            for_each(backbone.proj_in(encoded), guidance),
            length + rank,
            length + rank,
            mask,
            prompt_key.index_select(1, rows),
            prompt_value.index_select(1, rows),
        )
        fused = for_each(encoded, guidance) + backbone.proj_out(hidden)
        condition, decoder, difference = self.decoder.fill(
            fused, guidance, positions, predicted, decoder_position, condition_position
        )
        places = backbone.buffer_size + positions.shape[0]
        kept = [with_places(each[:batch], places) for each in (*encoder, *language)]
        return condition, *kept, *decoder, difference


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
        prompt_index: Tensor,
        prompt_length: Tensor,
        prompt_key: Tensor,
        prompt_value: Tensor,
        encoder_position: Tensor,
        decoder_position: Tensor,
        condition_position: Tensor,
        difference: Tensor,
        *caches: Tensor,
    ) -> tuple[Tensor, ...]:
        """The condition of the predicted tokens, and the new parts of the caches.

        Args:
            tokens: tokens that became known since the last pass, [new, batch, C].
            known: grid positions of all known tokens in generation order, the new ones last,
                [visible, batch].
            predicted: positions predicted now, [predicted, batch].
            prompt_index, prompt_length, prompt_key, prompt_value: as in `Backbone`.
            encoder_position, decoder_position, condition_position: as in `Backbone`.
            difference: difference of the predicted tokens at the last full pass,
                [predicted, batch, width].
            caches: those of the encoder, the language model and the decoder, as `Refresh` gives
                them.

        Returns:
            condition: [guidance, predicted * batch, width].
            new parts of the encoder's and the language model's caches: keys and values of the new
                tokens, [batch, heads, new, head_dim].
            new parts of the decoder's: of new and predicted tokens.
        """
        backbone, cached = self.backbone, known.shape[0] - tokens.shape[0]
        of_encoder = 2 * len(backbone.encoder_blocks)
        of_both = of_encoder + 2 * len(backbone.language_model.layers)
        place, old = known[cached:], backbone.buffer_size + cached
        places = caches[0].shape[2]

        x = backbone.embed_known(tokens, encoder_position[place])
        mask = hiding(old, places, places)
        x, encoder = run_some(backbone.encoder_blocks, x, caches[:of_encoder], mask)
        encoded = backbone.encoder_norm(x)
        rows = prompt_index[0]
        length = prompt_length[rows][:, None]
        rank, order = backbone.reading_order(known.transpose(0, 1), 1, length, prompt_key.shape[3])
        hidden, language = run_cached(
            backbone.language_model,
            backbone.proj_in(encoded),
            length + rank[:, old:],
            length + rank,
            order[:, old:],
            prompt_key.index_select(1, rows),
            prompt_value.index_select(1, rows),
            caches[of_encoder:of_both],
        )
        condition, decoder = self.decoder.extend(
            encoded + backbone.proj_out(hidden),
            prompt_index.shape[0],
            place,
            predicted,
            cached,
            caches[of_both:],
            difference,
            decoder_position,
            condition_position,
        )
        return condition, *encoder, *language, *decoder


def cached_graphs(model: Harmon, backbone: Backbone) -> list[Graph]:
    """The graphs `refresh` and `reuse`, whose weights are those of the backbone."""
    config, refresh = model.config, Refresh(backbone, model)
    plain, half, llm = backbone_graph(backbone, config), config.mar, config.llm
    width = half.decoder_embed_dim

    def caches(encoder: str, decoder: str) -> dict[str, Shape]:
        heads = llm.num_key_value_heads
        return {
            **half_shapes("encoder", half, encoder),
            **cache_shapes("language", llm.num_hidden_layers, heads, encoder, llm.head_dim),
            **half_shapes("decoder", half, decoder),
        }

    sizes, *checks = (
        with_cache_sizes(each, new, half.buffer_size, each["length"])
        for each, new in zip((plain.sizes, *plain.checks[1:]), (3, 2, 2), strict=True)
    )
    return [
        refresh_graph(refresh, plain, caches("places", "places"), width, plain.checks[1:]),
        reuse_graph(
            Reuse(refresh),
            plain,
            caches("places", "places"),
            caches("new", "computed"),
            width,
            # All sizes differ while the graph is traced.
            {**sizes, "visible": 8},
            checks,
        ),
    ]
