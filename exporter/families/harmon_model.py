"""The PyTorch modules of Harmon: the whole model, and the parts that become graphs."""

import torch
from torch import Tensor, nn

from ..layers.qwen2 import Qwen2
from ..layers.transformer import Linear, additive, for_each
from ..vae.decoder import KLDecoder
from .configs.harmon import HarmonConfig
from .mar import MAR, MaskedDecoder

AFTER_THE_IMAGE = 2**20
"""Position of the first buffer token in the order of the language model: after the whole grid.

It is below 2**24, because OpenVINO compares integers in fp32.
"""


class Harmon(nn.Module):
    """The whole model, with the keys of an official checkpoint."""

    def __init__(self, config: HarmonConfig) -> None:
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
    """Computes the cache of the prompts, which every AR iteration reads."""

    def __init__(self, language_model: Qwen2) -> None:
        super().__init__()
        self.language_model = language_model

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, [layers, prompts, heads, prompt_length, head_dim].

        `input_ids` [prompts, prompt_length] are padded on the right.
        """
        return self.language_model.prompt(input_ids)


class Grid(nn.Module):
    """Position embeddings for any grid, by separable linear interpolation of the trained ones.

    The interpolation is given as two matrices whose rows sum to one. Identity matrices give the
    trained embeddings.
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

    Tokens are in generation order: [buffer, visible, predicted, the rest]. Encoder and decoder do
    not depend on the order. The language model reads the image line by line and the buffer last;
    the mask and the rotary positions give it this order. The prompt affects only the language
    model, so both guidance halves share one encoder pass.
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
        self.decode = MaskedDecoder(half)

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
            prompt_index: prompt of each row, [guidance, batch].
            prompt_length: number of tokens of each prompt without padding, [prompts].
            prompt_key, prompt_value: cache of the prompts,
                [layers, prompts, heads, prompt_length, head_dim].
            encoder_position, decoder_position, condition_position: position embeddings of the
                grid, [length, ...].
        """
        guidance, visible = prompt_index.shape[0], tokens.shape[0]
        place = positions[:visible].transpose(0, 1)
        encoded = self.encode(tokens, encoder_position[positions[:visible]])
        rows = prompt_index.flatten()
        length = prompt_length[rows][:, None]
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

    def encode(self, tokens: Tensor, place: Tensor) -> Tensor:
        """The encoder over buffer and visible tokens, [batch, buffer + visible, width]."""
        x = self.embed(tokens, place)
        for block in self.encoder_blocks:
            x = block(x)
        result: Tensor = self.encoder_norm(x)
        return result

    def embed(self, tokens: Tensor, place: Tensor) -> Tensor:
        """The input of the encoder, [batch, buffer + tokens, width].

        Args:
            tokens: [tokens, batch, C].
            place: their position embeddings, [tokens, batch, width].
        """
        known = self.embed_known(tokens, place)
        return torch.cat([self.buffer.expand(known.shape[0], -1, -1), known], dim=1)

    def embed_known(self, tokens: Tensor, place: Tensor) -> Tensor:
        """The part of `embed` after the buffer, [batch, tokens, width]."""
        return self.z_proj_ln(self.z_proj(tokens) + place).transpose(0, 1)

    def reading_order(
        self, place: Tensor, guidance: int, length: Tensor, padded: int
    ) -> tuple[Tensor, Tensor]:
        """The order in which the language model reads the tokens after the prompt.

        Args:
            place: grid positions of the visible tokens, [batch, visible].
            length: number of tokens of each row's prompt, [guidance * batch, 1].
            padded: number of tokens of the longest prompt.

        Returns:
            The rank of every token in this order, [guidance * batch, tokens], and the
            additive attention mask, [guidance * batch, tokens, padded + tokens]: a token attends to
            its prompt and to tokens up to its own rank.
        """
        last = torch.arange(self.buffer_size, device=place.device) + AFTER_THE_IMAGE
        place = torch.cat([last.expand(place.shape[0], -1), place], dim=1)
        earlier = place[:, None, :] <= place[:, :, None]
        rank = earlier.sum(-1) - 1
        in_prompt = torch.arange(padded, device=place.device) < length
        in_prompt = additive(in_prompt)[:, None].expand(-1, place.shape[1], -1)
        in_image = for_each(additive(earlier), guidance)
        return for_each(rank, guidance), torch.cat([in_prompt, in_image], dim=2)


class Decoder(nn.Module):
    """Tokens in generation order to latents, and to pixels if there is a VAE."""

    def __init__(self, config: HarmonConfig, vae: KLDecoder | None) -> None:
        super().__init__()
        self.latent_channels, self.patch = config.mar.vae_embed_dim, config.mar.patch_size
        self.to_pixels: nn.Module | None = vae
        self.pixel_channels = vae.config.out_channels if vae else 0

    def forward(self, tokens: Tensor, place: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """The latents [batch, c, h, w], and the image if there is a VAE.

        Args:
            tokens: [length, batch, C] in generation order.
            place: index in that order of each token of the grid, [height, width, batch].
        """
        height = place.shape[0]
        place = place.flatten(0, 1).unsqueeze(-1).expand(-1, -1, tokens.shape[2])
        x = tokens.gather(0, place).unflatten(0, (height, -1))
        x = x.unflatten(3, (self.latent_channels, self.patch, self.patch))
        latents = x.permute(2, 3, 0, 4, 1, 5).flatten(4, 5).flatten(2, 3)
        if self.to_pixels is None:
            return latents
        return latents, self.to_pixels(latents)
