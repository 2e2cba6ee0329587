"""The diffusion head of MAR and Harmon: a small MLP with adaptive LayerNorm.

`DiffusionMLP` carries the keys of the official checkpoints; `HeadStep` is the same network
as one whole denoising step, arranged for a graph.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from .graph import Arrays, Graph
from .layers import LayerNorm, Linear, TimestepEmbedding, guided


class ResidualBlock(nn.Module):
    """Adaptive LayerNorm, Linear-SiLU-Linear, gated residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_ln = LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))

    def modulated(self, x: Tensor, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
        """One block with its modulation given; all [..., width] in fp32."""
        dtype = self.mlp[0].weight.dtype
        hidden = self.mlp((self.in_ln(x) * (1 + scale) + shift).to(dtype))
        return x + gate * hidden.float()


class FinalLayer(nn.Module):
    """Adaptive LayerNorm without weights, then the projection to the output channels."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.norm_final = LayerNorm(width, affine=False)
        self.linear = nn.Linear(width, channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def modulated(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """[..., width] -> [..., channels], both fp32."""
        x = self.norm_final(x) * (1 + scale) + shift
        result: Tensor = self.linear(x.to(self.linear.weight.dtype)).float()
        return result


class DiffusionMLP(nn.Module):
    """Predicts epsilon and the variance interpolation of noisy tokens.

    Args:
        channels: channels of a token, C.
        condition_width: width of the backbone's condition.
        width, depth: width and number of residual blocks.
    """

    def __init__(self, channels: int, condition_width: int, width: int, depth: int) -> None:
        super().__init__()
        self.channels = channels
        self.width = width
        self.time_embed = TimestepEmbedding(width)
        self.cond_embed = Linear(condition_width, width)
        self.input_proj = Linear(channels, width)
        self.res_blocks = nn.ModuleList(ResidualBlock(width) for _ in range(depth))
        self.final_layer = FinalLayer(width, 2 * channels)

    def forward(self, x: Tensor, timestep: Tensor, condition: Tensor) -> Tensor:
        """`x` [rows, C], `timestep` [rows], `condition` [rows, condition_width] -> [rows, 2C]."""
        y = self.time_embed(timestep) + self.cond_embed(condition)
        x = self.input_proj(x)
        for block in self.res_blocks:
            x = block.modulated(x, *block.adaLN_modulation(y).chunk(3, dim=-1))
        final = self.final_layer
        result: Tensor = final.modulated(x, *final.adaLN_modulation(y).chunk(2, dim=-1))
        return result


class HeadStep(nn.Module):
    """One denoising step: network, guidance and sampler update.

    The modulations of all blocks depend on timestep and condition only, so they are one
    matrix product here instead of one a block.
    """

    def __init__(self, net: DiffusionMLP) -> None:
        super().__init__()
        self.channels, self.width = net.channels, net.width
        self.input_proj = net.input_proj
        self.res_blocks, self.final_layer = net.res_blocks, net.final_layer
        parts = [block.adaLN_modulation[1] for block in net.res_blocks]
        parts.append(net.final_layer.adaLN_modulation[1])
        self.modulation = nn.Linear(net.width, sum(part.out_features for part in parts))
        with torch.no_grad():
            self.modulation.weight.copy_(torch.cat([part.weight for part in parts]))
            self.modulation.bias.copy_(torch.cat([part.bias for part in parts]))

    def forward(
        self,
        x: Tensor,
        condition: Tensor,
        step: Tensor,
        embedding: Tensor,
        coefficients: Tensor,
        guidance_scale: Tensor,
        noise: Tensor,
    ) -> Tensor:
        """`x_t` to `x_{t-1}`.

        Args:
            x: [rows, C].
            condition: embedded condition [guidance, rows, width]; guidance is
                (conditional, unconditional), or one entry for no guidance.
            step: [rows], row of the two tables below that each row is at.
            embedding: embedded timesteps [steps, width].
            coefficients: sampler coefficients [steps, 5]: of x, of epsilon, lower and upper
                log-variance, noise scale.
            guidance_scale: [rows].
            noise: standard normal [rows, C].
        """
        # `embedding[step]` would be a GatherND, which ONNX Runtime cannot replay in a CUDA graph.
        output = self.network(x, condition + embedding.index_select(0, step))
        epsilon, variance = output.split(self.channels, dim=-1)
        of_x, of_epsilon, low, high, noise_scale = coefficients.index_select(0, step).split(
            1, dim=-1
        )
        fraction = (variance[0] + 1) / 2
        deviation = noise_scale * (0.5 * (fraction * high + (1 - fraction) * low)).exp()
        return of_x * x + of_epsilon * guided(epsilon, guidance_scale) + deviation * noise

    def network(self, x: Tensor, y: Tensor) -> Tensor:
        """`x` [rows, C], `y` [guidance, rows, width] -> [guidance, rows, 2C]."""
        dtype = self.modulation.weight.dtype
        y = nn.functional.silu(y).to(dtype)
        modulations = self.modulation(y).float().split(self.width, dim=-1)
        x = self.input_proj(x)
        for index, block in enumerate(self.res_blocks):
            x = block.modulated(x, *modulations[3 * index : 3 * index + 3])
        return self.final_layer.modulated(x, *modulations[-2:])


def timestep_graph(module: TimestepEmbedding, width: int) -> Graph:
    """The graph that embeds the timesteps of a sampler, once for each grid of timesteps."""

    def example(sizes: Mapping[str, int]) -> Arrays:
        return {"timestep": np.linspace(0, 999, sizes["steps"], dtype=np.float32)}

    return Graph(
        name="timestep",
        module=module,
        inputs={"timestep": ("steps",)},
        outputs={"embedding": ("steps", width)},
        example=example,
        sizes={"steps": 9},
        checks=({"steps": 1}, {"steps": 50}),
        always_fp32=True,
    )


def head_graph(module: HeadStep) -> Graph:
    """The graph of one denoising step."""
    channels, width = module.channels, module.width

    def example(sizes: Mapping[str, int]) -> Arrays:
        rng = np.random.default_rng(0)
        guidance, rows, steps = sizes["guidance"], sizes["rows"], sizes["steps"]
        return {
            "x": rng.standard_normal((rows, channels), np.float32),
            "condition": rng.standard_normal((guidance, rows, width), np.float32),
            "step": rng.integers(0, steps, rows),
            "embedding": rng.standard_normal((steps, width), np.float32),
            "coefficients": np.tile(
                np.array([1.02, -0.2, -4.0, -3.0, 1.0], np.float32), (steps, 1)
            ),
            "guidance_scale": rng.uniform(1, 4, rows).astype(np.float32),
            "noise": rng.standard_normal((rows, channels), np.float32),
        }

    return Graph(
        name="head",
        module=module,
        inputs={
            "x": ("rows", channels),
            "condition": ("guidance", "rows", width),
            "step": ("rows",),
            "embedding": ("steps", width),
            "coefficients": ("steps", 5),
            "guidance_scale": ("rows",),
            "noise": ("rows", channels),
        },
        outputs={"next_x": ("rows", channels)},
        example=example,
        sizes={"guidance": 2, "rows": 5, "steps": 9},
        checks=(
            {"guidance": 1, "rows": 1, "steps": 2},
            {"guidance": 2, "rows": 1, "steps": 9},
            {"guidance": 2, "rows": 64, "steps": 50},
        ),
    )
