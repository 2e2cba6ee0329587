"""MAR in plain PyTorch, doing the work that the original implementation does.

This is the baseline of the benchmarks and nothing else: guided halves are doubled rows from the
first layer on, every token is projected before the visible ones are picked, every decoder block
runs over all tokens, and the head embeds condition and timestep at every denoising step. The
layers are those of a timm vision transformer with fused attention. Parameters have the names of
an official checkpoint.
"""

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from disa.exporter.families.configs.mar import MARConfig

EPS = 1e-6


class Attention(nn.Module):
    """Self-attention by `scaled_dot_product_attention`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value)
        result: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return result


class MLP(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return result


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.mlp = MLP(width, int(width * ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        result: Tensor = x + self.mlp(self.norm2(x))
        return result


class TimestepEmbedding(nn.Module):
    """Sinusoids and two linear layers."""

    def __init__(self, width: int, channels: int = 256) -> None:
        super().__init__()
        self.frequencies = channels // 2
        self.mlp = nn.Sequential(nn.Linear(channels, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, timestep: Tensor) -> Tensor:
        exponent = torch.arange(self.frequencies, dtype=torch.float32) / self.frequencies
        angle = timestep[:, None] * torch.exp(-math.log(10000) * exponent)
        result: Tensor = self.mlp(torch.cat([angle.cos(), angle.sin()], dim=-1))
        return result


class ResidualBlock(nn.Module):
    """A block of the head, modulated by its own linear layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=EPS)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        shift, scale, gate = self.adaLN_modulation(y).chunk(3, dim=-1)
        result: Tensor = x + gate * self.mlp(self.in_ln(x) * (1 + scale) + shift)
        return result


class FinalLayer(nn.Module):
    """The head's output layer."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, eps=EPS, elementwise_affine=False)
        self.linear = nn.Linear(width, channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(y).chunk(2, dim=-1)
        result: Tensor = self.linear(self.norm_final(x) * (1 + scale) + shift)
        return result


class Net(nn.Module):
    """The head: all of it at every step."""

    def __init__(self, config: MARConfig) -> None:
        super().__init__()
        width = config.diffloss_w
        self.time_embed = TimestepEmbedding(width)
        self.cond_embed = nn.Linear(config.decoder_embed_dim, width)
        self.input_proj = nn.Linear(config.channels, width)
        self.res_blocks = nn.ModuleList(ResidualBlock(width) for _ in range(config.diffloss_d))
        self.final_layer = FinalLayer(width, 2 * config.channels)

    def forward(self, x: Tensor, timestep: Tensor, condition: Tensor) -> Tensor:
        x = self.input_proj(x)
        y = self.time_embed(timestep) + self.cond_embed(condition)
        for block in self.res_blocks:
            x = block(x, y)
        result: Tensor = self.final_layer(x, y)
        return result


class OfficialMAR(nn.Module):
    """The whole model. Arrays are image-major here, [batch, tokens, ...], in grid order."""

    def __init__(self, config: MARConfig) -> None:
        super().__init__()
        self.compiled = False
        self.buffer, self.channels = config.buffer_size, config.channels
        encoder, decoder = config.encoder_embed_dim, config.decoder_embed_dim
        places = config.buffer_size + config.tokens
        self.class_emb = nn.Embedding(config.class_num, encoder)
        self.fake_latent = nn.Parameter(torch.zeros(1, encoder))
        self.z_proj = nn.Linear(config.channels, encoder)
        self.z_proj_ln = nn.LayerNorm(encoder, eps=EPS)
        self.encoder_pos_embed_learned = nn.Parameter(torch.zeros(1, places, encoder))
        self.encoder_blocks = nn.ModuleList(
            Block(encoder, config.encoder_num_heads, config.mlp_ratio)
            for _ in range(config.encoder_depth)
        )
        self.encoder_norm = nn.LayerNorm(encoder, eps=EPS)
        self.decoder_embed = nn.Linear(encoder, decoder)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder))
        self.decoder_pos_embed_learned = nn.Parameter(torch.zeros(1, places, decoder))
        self.decoder_blocks = nn.ModuleList(
            Block(decoder, config.decoder_num_heads, config.mlp_ratio)
            for _ in range(config.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder, eps=EPS)
        self.diffusion_pos_embed_learned = nn.Parameter(torch.zeros(1, config.tokens, decoder))
        self.diffloss = nn.ModuleDict({"net": Net(config)})

    def compile_parts(self, backend: str = "inductor") -> None:
        """Let torch.compile have the blocks and the head, for any number of tokens and rows.

        What chooses tokens by a mask stays outside: its shapes depend on values.
        """
        self.compiled = True
        for part in (*self.encoder_blocks, *self.decoder_blocks, self.diffloss["net"]):
            part.compile(backend=backend, dynamic=True)

    def encode(self, tokens: Tensor, hidden: Tensor, embedding: Tensor) -> Tensor:
        """Buffer and visible tokens; `hidden` [batch, buffer + L] says which are masked."""
        x = self.z_proj(tokens)
        batch, _, width = x.shape
        x = torch.cat([torch.zeros(batch, self.buffer, width, dtype=x.dtype), x], dim=1)
        x[:, : self.buffer] = embedding.unsqueeze(1).to(x.dtype)
        x = self.z_proj_ln(x + self.encoder_pos_embed_learned)
        x = x[(~hidden).nonzero(as_tuple=True)].reshape(batch, -1, width)
        for block in self.encoder_blocks:
            x = block(x)
        result: Tensor = self.encoder_norm(x)
        return result

    def decode(self, x: Tensor, hidden: Tensor) -> Tensor:
        """The condition of every token of the grid, [batch, L, width]."""
        x = self.decoder_embed(x)
        padded = self.mask_token.repeat(*hidden.shape, 1).to(x.dtype)
        padded[(~hidden).nonzero(as_tuple=True)] = x.flatten(0, 1)
        x = padded + self.decoder_pos_embed_learned
        for block in self.decoder_blocks:
            x = block(x)
        x = self.decoder_norm(x)[:, self.buffer :]
        return x + self.diffusion_pos_embed_learned

    def condition(
        self, tokens: Tensor, masked: Tensor, predicted: Tensor, labels: Tensor, guided: bool
    ) -> Tensor:
        """The condition of the tokens to predict, [guidance * rows, width].

        Args:
            tokens: [batch, L, C], zero where masked.
            masked, predicted: [batch, L], bool.
            labels: class of each image, [batch]; the number of classes stands for none.
        """
        embedding = self.embeddings(labels, guided)
        if guided:
            tokens, masked = torch.cat([tokens, tokens]), torch.cat([masked, masked])
            predicted = torch.cat([predicted, predicted])
        buffer = torch.zeros(len(masked), self.buffer, dtype=torch.bool)
        hidden = torch.cat([buffer, masked], dim=1)
        z = self.decode(self.between(self.encode(tokens, hidden, embedding), guided), hidden)
        return z[predicted.nonzero(as_tuple=True)]

    def embeddings(self, labels: Tensor, guided: bool) -> Tensor:
        """What the buffer starts from, [guidance * batch, width]."""
        table = torch.cat([self.class_emb.weight, self.fake_latent])
        free = self.fake_latent.repeat(len(labels), 1)
        return torch.cat([table[labels], free]) if guided else table[labels]

    def between(self, x: Tensor, guided: bool) -> Tensor:
        """What is done to the encoded tokens before the decoder: nothing in MAR."""
        del guided
        return x

    def sample(
        self,
        z: Tensor,
        noise: Tensor,
        timesteps: Tensor,
        coefficients: Tensor,
        scale: float,
        guided: bool,
    ) -> Tensor:
        """The denoising loop over doubled rows; the first half is the result, [rows, C].

        The sampler's update is in its folded form, with fewer operations than the original.

        Args:
            noise: [1 + steps, rows, C].
            timesteps, coefficients: [steps] and [steps, 5], noisiest first.
        """
        net = self.diffloss["net"]
        rows = noise.shape[1]
        noise = torch.cat([noise, noise], dim=1) if guided else noise
        x = noise[0]
        for step in range(len(timesteps)):
            of_x, of_eps, low, high, deviation = coefficients[step].unbind()
            doubled = torch.cat([x[:rows], x[:rows]]) if guided else x
            output = net(doubled, timesteps[step].repeat(len(x)), z)
            eps, variance = output.split(self.channels, dim=1)
            if guided:
                conditional, free = eps.chunk(2)
                guided_eps = free + scale * (conditional - free)
                eps = torch.cat([guided_eps, guided_eps])
            fraction = (variance + 1) / 2
            log_variance = fraction * high + (1 - fraction) * low
            x = of_x * x + of_eps * eps + deviation * (0.5 * log_variance).exp() * noise[step + 1]
        return x[:rows]
