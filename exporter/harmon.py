"""Harmon: text to image with a language model between MAR's encoder and decoder (arXiv 2503.21979)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import DisaError
from . import mar, qwen2
from .checkpoint import load_strict
from .graph import Arrays, Graph, Shape
from .head import HeadStep, head_graph, timestep_graph
from .layers import Linear
from .mar import MAR
from .precision import Precision, set_precision
from .qwen2 import Qwen2
from .vae import LATENT_SCALE, KLDecoder

FAMILY = "harmon"
LLM_SIZES = {
    "qwen2.5_0.5b": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
    },
    "qwen2.5_1.5b": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
    },
}
SIZES = {
    "harmon_0.5b": {"llm": "qwen2.5_0.5b", "mar": "mar_b"},
    "harmon_1.5b": {"llm": "qwen2.5_1.5b", "mar": "mar_h"},
}
AFTER_THE_IMAGE = 2**30
"""Place of the first buffer token in the language model's order: behind every grid position."""


@dataclass(frozen=True)
class Config:
    """Sizes of the two halves, and the factor of the latents before the VAE."""

    llm: qwen2.Config
    mar: mar.Config
    vae_scale: float = LATENT_SCALE

    def __post_init__(self) -> None:
        if not isinstance(self.vae_scale, int | float) or self.vae_scale <= 0:
            raise DisaError(f"vae_scale must be a positive number, not {self.vae_scale!r}")


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
        """`input_ids` [prompts, prompt_length] -> keys, values [layers, prompts, heads, prompt_length, head_dim]."""
        return self.language_model.prompt(input_ids)


class Grid(nn.Module):
    """Position embeddings of another grid than the trained one: separable linear interpolation.

    The host decides the interpolation, as two matrices whose rows sum to one; identity
    matrices give the embeddings as they are stored.
    """

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
            mar.for_each(self.proj_in(encoded), guidance),
            length + rank,
            mask,
            prompt_key[:, rows],
            prompt_value[:, rows],
        )
        fused = mar.for_each(encoded, guidance) + self.proj_out(hidden)
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
        in_image = mar.for_each(qwen2.additive(earlier), guidance)
        return mar.for_each(rank, guidance), torch.cat([in_prompt, in_image], dim=2)


class Decoder(nn.Module):
    """Tokens in generation order to latents, and on to pixels where there is a VAE."""

    def __init__(self, config: Config, vae: KLDecoder | None) -> None:
        super().__init__()
        self.latent_channels, self.patch = config.mar.vae_embed_dim, config.mar.patch_size
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
        return latents, self.to_pixels(latents)


def recognise(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the tensors of a Harmon model."""
    return {"llm.model.embed_tokens.weight", "mar.mask_token", "proj_in.0.weight"} <= state.keys()


def configure(
    state: Mapping[str, Tensor],
    config: Mapping[str, Any] | None = None,
    args: Mapping[str, Any] | None = None,
) -> Config:
    """The sizes of a checkpoint.

    What the tensors tell is read from them; the rest comes from `config` (with the entries
    `llm`, `mar` and `vae_scale`), then from the official models of that width.

    Raises:
        DisaError: a size is told by nobody, or `config` contradicts the tensors.
    """
    given = dict(config or {})
    llm = _configure_language_model(state, given.get("llm") or {})
    half = mar.configure(_under(state, "mar."), given.get("mar"), args)
    return Config(llm, half, given.get("vae_scale", LATENT_SCALE))


def _configure_language_model(
    state: Mapping[str, Tensor], given: Mapping[str, Any]
) -> qwen2.Config:
    told = qwen2.sizes_in_tensors(_under(state, "llm.model."))
    official = next((s for s in LLM_SIZES.values() if told.items() <= {**s, **told}.items() and all(s[k] == v for k, v in told.items() if k in s)), {})
    return official


def _under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
