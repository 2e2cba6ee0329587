"""Harmon: a language model between MAR's encoder and decoder, text to image (arXiv 2503.21979)."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from . import mar, mar_config, qwen2
from .graph import Arrays, Graph, Shape
from .harmon_config import FAMILY, Config, configure, manifest, recognise
from .head import HeadStep, head_graph, timestep_graph
from .layers import Linear, for_each
from .mar import MAR
from .qwen2 import Qwen2
from .vae import LATENT_SCALE, KLDecoder
from .weights import load_strict

__all__ = ["FAMILY", "Config", "Harmon", "build", "configure", "graphs", "manifest", "recognise"]

AFTER_THE_IMAGE = 2**30
"""Place of the first buffer token in the language model's order: behind every grid position."""


class Harmon(nn.Module):
    """The whole model, with the keys of an official checkpoint."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        encoder, hidden = config.mar.encoder_embed_dim, config.llm.hidden_size
        self.llm = nn.ModuleDict({"model": Qwen2(config.llm)})
        self.mar = MAR(config.mar)
        self.proj_in = nn.Sequential(Linear(encoder, hidden), nn.SiLU(), Linear(hidden, hidden))
        self.proj_out = nn.Sequential(Linear(hidden, hidden), nn.SiLU(), Linear(hidden, encoder))

    @property
    def language_model(self) -> Qwen2:
        """The language model."""
        model = self.llm["model"]
        assert isinstance(model, Qwen2)
        return model


class Prompt(nn.Module):
    """Token ids to the cache that every AR iteration reads."""

    def __init__(self, language_model: Qwen2) -> None:
        super().__init__()
        self.language_model = language_model

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, [layers, prompts, heads, prompt_length, head_dim].

        `input_ids` [prompts, prompt_length] are padded on the right.
        """
        return self.language_model.prompt(input_ids)


class Grid(nn.Module):
    """Position embeddings of another grid than the trained one: separable linear interpolation.

    The host decides the interpolation, as two matrices whose rows sum to one; identity
    matrices give the embeddings as they are stored.
    """

    encoder: Tensor
    decoder: Tensor
    condition: Tensor

    def __init__(self, model: MAR) -> None:
        super().__init__()
        side, skip = model.config.grid, model.config.buffer_size
        tables = {
            "encoder": model.encoder_pos_embed_learned[0, skip:],
            "decoder": model.decoder_pos_embed_learned[0, skip:],
            "condition": model.diffusion_pos_embed_learned[0],
        }
        for name, table in tables.items():
            self.register_buffer(name, table.detach().unflatten(0, (side, side)).clone())

    def forward(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`rows` [height, side], `columns` [width, side] -> three tables [height * width, ...]."""
        encoder, decoder, condition = (
            # [height, side] @ [side, side * D], then [width, side] @ [height, side, D].
            (columns @ (rows @ table.flatten(1)).unflatten(1, (table.shape[1], -1))).flatten(0, 1)
            for table in (self.encoder, self.decoder, self.condition)
        )
        return encoder, decoder, condition


class Backbone(nn.Module):
    """The condition of the tokens that one AR iteration predicts.

    Tokens stand in generation order: [buffer, visible, predicted, the rest]. Encoder and
    decoder do not mind the order; for the language model, which reads the image line by
    line and the buffer last, it is in the mask and in the rotary positions. The prompt acts
    in the language model only, so both guidance halves share one encoder pass.
    """

    buffer: Tensor

    def __init__(self, model: Harmon) -> None:
        super().__init__()
        half, skip = model.mar, model.config.mar.buffer_size
        self.buffer_size = skip
        buffer = half.fake_latent + half.encoder_pos_embed_learned[0, :skip]
        self.register_buffer("buffer", half.z_proj_ln(buffer).detach().clone())
        self.z_proj, self.z_proj_ln = half.z_proj, half.z_proj_ln
        self.encoder_blocks, self.encoder_norm = half.encoder_blocks, half.encoder_norm
        self.proj_in, self.proj_out = model.proj_in, model.proj_out
        self.language_model = model.language_model
        self.decode = mar.MaskedDecoder(half)

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
    ) -> Tensor:
        """The embedded condition of the predicted tokens, [guidance, predicted * batch, width].

        Args:
            tokens: the tokens known so far, in generation order, [visible, batch, C].
            positions: grid position of every token in generation order, [length, batch].
            predicted: positions predicted now, `positions[visible : visible + predicted]`,
                [predicted, batch].
            prompt_index: which prompt each row has, [guidance, batch].
            prompt_length: tokens of each prompt without padding, [prompts].
            prompt_key, prompt_value: the cache, [layers, prompts, heads, prompt_length, head_dim].
            encoder_position, decoder_position, condition_position: position embeddings of the
                grid, [length, ...].
        """
        guidance, visible = prompt_index.shape[0], tokens.shape[0]
        place = positions[:visible].transpose(0, 1)
        known = self.z_proj_ln(self.z_proj(tokens) + encoder_position[positions[:visible]])
        encoded = self.encode(known.transpose(0, 1))
        rows = prompt_index.flatten()
        length = prompt_length[rows].float()[:, None]
        rank, mask = self.reading_order(place, guidance, length, prompt_key.shape[3])
        hidden = self.language_model(
            for_each(self.proj_in(encoded), guidance),
            length + rank,
            mask,
            prompt_key.index_select(1, rows),
            prompt_value.index_select(1, rows),
        )
        fused = for_each(encoded, guidance) + self.proj_out(hidden)
        result: Tensor = self.decode(
            fused, guidance, positions, predicted, decoder_position, condition_position
        )
        return result

    def encode(self, known: Tensor) -> Tensor:
        """The encoder over buffer and visible tokens, [batch, buffer + visible, width]."""
        x = torch.cat([self.buffer.expand(known.shape[0], -1, -1), known], dim=1)
        for block in self.encoder_blocks:
            x = block(x)
        result: Tensor = self.encoder_norm(x)
        return result

    def reading_order(
        self, place: Tensor, guidance: int, length: Tensor, padded: int
    ) -> tuple[Tensor, Tensor]:
        """Where a token stands behind the prompt, and what it sees.

        Args:
            place: grid positions of the visible tokens, [batch, visible].
            length: tokens of each row's prompt, [guidance * batch, 1].
            padded: tokens of the longest prompt.

        Returns:
            The rank of every token, [guidance * batch, tokens] in fp32, and the additive mask
            [guidance * batch, tokens, padded + tokens].
        """
        last = torch.arange(self.buffer_size, device=place.device) + AFTER_THE_IMAGE
        place = torch.cat([last.expand(place.shape[0], -1), place], dim=1)
        earlier = place[:, None, :] <= place[:, :, None]
        rank = earlier.float().sum(-1) - 1
        in_prompt = torch.arange(padded, device=place.device) < length
        in_prompt = qwen2.additive(in_prompt)[:, None].expand(-1, place.shape[1], -1)
        in_image = for_each(qwen2.additive(earlier), guidance)
        return for_each(rank, guidance), torch.cat([in_prompt, in_image], dim=2)


class Decoder(nn.Module):
    """Tokens in generation order to latents, and on to pixels where there is a VAE."""

    def __init__(self, config: Config, vae: KLDecoder | None) -> None:
        super().__init__()
        self.latent_channels, self.patch = config.mar.vae_embed_dim, config.mar.patch_size
        # A VAE undoes the usual scale of latents by itself.
        self.scale = LATENT_SCALE / config.vae_scale
        self.to_pixels: nn.Module | None = vae

    def forward(self, tokens: Tensor, place: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Latents [batch, c, h, w], and the image.

        Args:
            tokens: [length, batch, C] in generation order.
            place: where in that order each token of the grid stands, [height, width, batch].
        """
        height = place.shape[0]
        place = place.flatten(0, 1).unsqueeze(-1).expand(-1, -1, tokens.shape[2])
        x = tokens.gather(0, place).unflatten(0, (height, -1))
        x = x.unflatten(3, (self.latent_channels, self.patch, self.patch))
        latents = x.permute(2, 3, 0, 4, 1, 5).flatten(4, 5).flatten(2, 3)
        if self.to_pixels is None:
            return latents
        scaled = latents if self.scale == 1 else latents * self.scale
        return latents, self.to_pixels(scaled)


def build(state: Mapping[str, Tensor], config: Config, where: Path | str) -> Harmon:
    """The model with the weights of `state` (strictly all of the model's)."""
    with torch.device("meta"):
        model = Harmon(config)
    load_strict(model, state, where=where)
    return model.eval()


def is_needless(key: str) -> bool:
    """Whether drawing has no use for that tensor: the output of words, and the VAE."""
    return key == "llm.lm_head.weight" or "vae." in key


def graphs(model: Harmon, vae: KLDecoder | None = None) -> list[Graph]:
    """The graphs of a plan: prompt, grid, backbone, timestep, head and decoder, all in fp32."""
    config, head = model.config, model.mar.head
    return [
        _prompt_graph(Prompt(model.language_model), config.llm),
        _grid_graph(Grid(model.mar), config.mar),
        _backbone_graph(Backbone(model), config),
        timestep_graph(head.time_embed, config.mar.diffloss_w),
        head_graph(HeadStep(head)),
        _decoder_graph(Decoder(config, vae), config.mar),
    ]


def _cache_shape(config: qwen2.Config) -> Shape:
    layers, heads = config.num_hidden_layers, config.num_key_value_heads
    return (layers, "prompts", heads, "prompt_length", config.head_dim)


def _prompt_graph(module: Prompt, config: qwen2.Config) -> Graph:
    def example(sizes: Mapping[str, int]) -> Arrays:
        shape = (sizes["prompts"], sizes["prompt_length"])
        return {"input_ids": np.random.default_rng(0).integers(0, config.vocab_size, shape)}

    return Graph(
        name="prompt",
        module=module,
        inputs={"input_ids": ("prompts", "prompt_length")},
        outputs={"prompt_key": _cache_shape(config), "prompt_value": _cache_shape(config)},
        example=example,
        sizes={"prompts": 4, "prompt_length": 6},
        checks=({"prompts": 1, "prompt_length": 1}, {"prompts": 2, "prompt_length": 40}),
    )


def _grid_graph(module: Grid, config: mar_config.Config) -> Graph:
    def example(sizes: Mapping[str, int]) -> Arrays:
        rng = np.random.default_rng(0)
        return {
            name: rng.uniform(0, 2 / config.grid, (sizes[size], config.grid)).astype(np.float32)
            for name, size in (("rows", "height"), ("columns", "width"))
        }

    return Graph(
        name="grid",
        module=module,
        inputs={"rows": ("height", config.grid), "columns": ("width", config.grid)},
        outputs={
            "encoder_position": ("length", config.encoder_embed_dim),
            "decoder_position": ("length", config.decoder_embed_dim),
            "condition_position": ("length", config.decoder_embed_dim),
        },
        example=example,
        sizes={"height": 9, "width": 7},
        checks=({"height": 1, "width": 1}, {"height": 32, "width": 24}),
        always_fp32=True,
    )


def _backbone_graph(module: Backbone, config: Config) -> Graph:
    half, cache = config.mar, _cache_shape(config.llm)
    dimensions = (
        "guidance",
        "batch",
        "visible",
        "predicted",
        "length",
        "prompts",
        "prompt_length",
    )

    def example(sizes: Mapping[str, int]) -> Arrays:
        rng = np.random.default_rng(0)
        batch, visible, length = sizes["batch"], sizes["visible"], sizes["length"]
        positions = rng.permuted(np.tile(np.arange(length)[:, None], batch), axis=0)
        concrete = tuple(sizes[dim] if isinstance(dim, str) else dim for dim in cache)
        tables = {"encoder": half.encoder_embed_dim, "decoder": half.decoder_embed_dim}
        tables["condition"] = half.decoder_embed_dim
        prompts, longest = sizes["prompts"], sizes["prompt_length"]
        return {
            "tokens": rng.standard_normal((visible, batch, half.channels), np.float32),
            "positions": positions,
            "predicted": positions[visible : visible + sizes["predicted"]],
            "prompt_index": rng.integers(0, prompts, (sizes["guidance"], batch)),
            "prompt_length": rng.integers(1, longest + 1, prompts),
            "prompt_key": rng.standard_normal(concrete, np.float32),
            "prompt_value": rng.standard_normal(concrete, np.float32),
            **{
                f"{name}_position": 0.02 * rng.standard_normal((length, width), np.float32)
                for name, width in tables.items()
            },
        }

    return Graph(
        name="backbone",
        module=module,
        inputs={
            "tokens": ("visible", "batch", half.channels),
            "positions": ("length", "batch"),
            "predicted": ("predicted", "batch"),
            "prompt_index": ("guidance", "batch"),
            "prompt_length": ("prompts",),
            "prompt_key": cache,
            "prompt_value": cache,
            "encoder_position": ("length", half.encoder_embed_dim),
            "decoder_position": ("length", half.decoder_embed_dim),
            "condition_position": ("length", half.decoder_embed_dim),
        },
        outputs={"condition": ("guidance", "rows", half.diffloss_w)},
        example=example,
        sizes=dict(zip(dimensions, (2, 3, 7, 5, 31, 4, 6), strict=True)),
        checks=tuple(
            dict(zip(dimensions, sizes, strict=True))
            for sizes in ((1, 1, 0, 1, 4, 1, 1), (2, 1, 3, 1, 4, 2, 9), (2, 4, 80, 40, 150, 3, 12))
        ),
    )


def _decoder_graph(module: Decoder, config: mar_config.Config) -> Graph:
    def example(sizes: Mapping[str, int]) -> Arrays:
        rng = np.random.default_rng(0)
        height, width, batch = sizes["height"], sizes["width"], sizes["batch"]
        length = height * width
        place = rng.permuted(np.tile(np.arange(length)[:, None], batch), axis=0)
        return {
            "tokens": 0.25 * rng.standard_normal((length, batch, config.channels), np.float32),
            "place": place.reshape(height, width, batch),
        }

    outputs: dict[str, Shape] = {
        "latents": ("batch", config.vae_embed_dim, "latent_height", "latent_width")
    }
    if module.to_pixels is not None:
        outputs["image"] = ("batch", 3, "image_height", "image_width")
    return Graph(
        name="decoder",
        module=module,
        inputs={
            "tokens": ("length", "batch", config.channels),
            "place": ("height", "width", "batch"),
        },
        outputs=outputs,
        example=example,
        sizes={"batch": 3, "height": 7, "width": 5},
        checks=({"batch": 1, "height": 2, "width": 9}, {"batch": 2, "height": 16, "width": 16}),
    )
