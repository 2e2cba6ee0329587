"""The cached backbone of Harmon."""

from torch import Tensor, nn

from ...graphs.graph import Graph, Shape
from ...layers.cached_block import behind_all, run_all, run_some
from ...layers.cached_qwen2 import run_cached
from ...layers.transformer import for_each
from ..harmon import backbone_graph
from ..harmon_model import Backbone, Harmon
from .decoder import CachedDecoder
from .graphs import refresh_graph, reuse_graph, with_cache_sizes
from .shapes import cache_shape


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
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The condition as from `Backbone` with these arguments, and the caches.

        Returns:
            condition: [guidance, predicted * batch, width].
            encoder_cache: [buffer + visible, layers, 2, batch, heads, head_dim].
            language_cache: keys before rotation and values of the conditional half,
                [buffer + visible, layers, 2, batch, key_heads, head_dim].
            decoder_cache, difference: as from `CachedDecoder.fill`.
        """
        backbone, (guidance, batch) = self.backbone, prompt_index.shape
        place = positions[: tokens.shape[0]]
        x = backbone.embed(tokens, encoder_position[place])
        x, encoder_cache = run_all(backbone.encoder_blocks, x, batch)
        encoded = backbone.encoder_norm(x)
        rows = prompt_index.flatten()
        length = prompt_length[rows].float()[:, None]
        rank, mask = backbone.reading_order(
            place.transpose(0, 1), guidance, length, prompt_key.shape[3]
        )
        hidden, language_cache = run_cached(
            backbone.language_model,
            for_each(backbone.proj_in(encoded), guidance),
            length + rank,
            length + rank,
            mask,
            prompt_key.index_select(1, rows),
            prompt_value.index_select(1, rows),
            lambda fresh, layer: fresh,
        )
        fused = for_each(encoded, guidance) + backbone.proj_out(hidden)
        condition, decoder_cache, difference = self.decoder.fill(
            fused, guidance, positions, predicted, decoder_position, condition_position
        )
        return condition, encoder_cache, language_cache[:, :, :, :batch], decoder_cache, difference


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
        encoder_cache: Tensor,
        language_cache: Tensor,
        decoder_cache: Tensor,
        difference: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The condition of the predicted tokens, and the new parts of the caches.

        Args:
            tokens: tokens that became known since the last pass, [new, batch, C].
            known: grid positions of all known tokens in generation order, the new ones last,
                [visible, batch].
            predicted: positions predicted now, [predicted, batch].
            prompt_index, prompt_length, prompt_key, prompt_value: as in `Backbone`.
            encoder_position, decoder_position, condition_position: as in `Backbone`.
            encoder_cache, language_cache: of the buffer and the tokens known at the last pass,
                [buffer + visible - new, layers, 2, batch, heads, head_dim].
            decoder_cache: of all tokens in generation order, [buffer + length, ...].
            difference: difference of the predicted tokens at the last full pass,
                [predicted, batch, width].

        Returns:
            condition: [guidance, predicted * batch, width].
            new_encoder, new_language: keys and values of the new tokens,
                [new, layers, 2, batch, heads, head_dim].
            new_decoder: keys and values of new and predicted tokens, [new + predicted, ...].
        """
        backbone, old = self.backbone, encoder_cache.shape[0]
        cached = old - backbone.buffer_size
        place = known[cached:]

        x = backbone.embed_known(tokens, encoder_position[place])
        x, new_encoder = run_some(backbone.encoder_blocks, x, behind_all(encoder_cache))
        encoded = backbone.encoder_norm(x)
        rows = prompt_index[0]
        length = prompt_length[rows].float()[:, None]
        rank, mask = backbone.reading_order(known.transpose(0, 1), 1, length, prompt_key.shape[3])
        hidden, new_language = run_cached(
            backbone.language_model,
            backbone.proj_in(encoded),
            length + rank[:, old:],
            length + rank,
            mask[:, old:],
            prompt_key.index_select(1, rows),
            prompt_value.index_select(1, rows),
            behind_all(language_cache),
        )
        condition, new_decoder = self.decoder.extend(
            encoded + backbone.proj_out(hidden),
            prompt_index.shape[0],
            place,
            predicted,
            cached,
            decoder_cache,
            difference,
            decoder_position,
            condition_position,
        )
        return condition, new_encoder, new_language, new_decoder


def cached_graphs(model: Harmon, backbone: Backbone) -> list[Graph]:
    """The graphs `refresh` and `reuse`, whose weights are those of the backbone."""
    config, refresh = model.config, Refresh(backbone, model)
    plain, half, llm = backbone_graph(backbone, config), config.mar, config.llm
    width = half.decoder_embed_dim

    def caches(encoder: str, decoder: str) -> dict[str, Shape]:
        language = (encoder, llm.num_hidden_layers, 2, "batch", llm.num_key_value_heads)
        return {
            "encoder": cache_shape(encoder, half, "encoder"),
            "language": (*language, llm.head_dim),
            "decoder": cache_shape(decoder, half, "decoder"),
        }

    whole = caches("encoded", "decoded")
    sizes, *checks = (
        with_cache_sizes(each, new, half.buffer_size, each["length"])
        for each, new in zip((plain.sizes, *plain.checks[1:]), (3, 2, 2), strict=True)
    )
    return [
        refresh_graph(refresh, plain, whole, width, plain.checks[1:]),
        reuse_graph(
            Reuse(refresh),
            plain,
            "visible",
            whole,
            caches("new", "decoded_now"),
            width,
            # All sizes differ while the graph is traced.
            {**sizes, "visible": 8, "encoded": sizes["encoded"] + 1},
            checks,
        ),
    ]
