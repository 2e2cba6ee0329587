"""The diffusion head of MAR and Harmon: a small MLP with adaptive LayerNorm.

`DiffusionMLP` carries the keys of the official checkpoints; `StepNetwork` is the same network
for a graph, and `head_step` one whole denoising step with it. `Modulation` and `ModulatedNetwork`
are the two halves of that network.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from ...engines.plan.traits import GraphTraits, Role
from ..graphs.graph import Arrays, Graph, Shape
from .denoising_step import DenoisingStep, LearnedVariance, Network
from .transformer import LayerNorm, Linear, TimestepEmbedding


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


class ModulatedNetwork(Network):
    """The network with the modulations of all blocks given."""

    inputs = ("x", "modulation")

    def __init__(self, net: DiffusionMLP) -> None:
        super().__init__()
        self.channels, self.width = net.channels, net.width
        self.input_proj = net.input_proj
        self.res_blocks, self.final_layer = net.res_blocks, net.final_layer

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """Epsilon and the variance interpolation, [guidance, rows, 2C].

        Args:
            x: [rows, C].
            modulation: [guidance, rows, `modulation_width`], fp32.
        """
        modulations = modulation.split(self.width, dim=-1)
        x = self.input_proj(x)
        for index, block in enumerate(self.res_blocks):
            x = block.modulated(x, *modulations[3 * index : 3 * index + 3])
        result: Tensor = self.final_layer.modulated(x, *modulations[-2:])
        return result


class StepNetwork(Network):
    """The network, arranged for the graph of a denoising step.

    The modulations of all blocks depend on timestep and condition only, so they are one
    matmul here instead of one a block.
    """

    inputs = ("x", "condition", "step", "embedding")

    def __init__(self, net: DiffusionMLP) -> None:
        super().__init__()
        self.channels, self.width = net.channels, net.width
        self.modulation, self.modulated = joined_modulations(net), ModulatedNetwork(net)

    def forward(self, x: Tensor, condition: Tensor, step: Tensor, embedding: Tensor) -> Tensor:
        """Epsilon and the variance interpolation, [guidance, rows, 2C].

        Args:
            x: [rows, C].
            condition: embedded condition [guidance, rows, width]; guidance is
                (conditional, unconditional), or one entry for no guidance.
            step: [rows], row of `embedding` that each row is at.
            embedding: embedded timesteps [steps, width].
        """
        return self.network(x, condition + embedding.index_select(0, step))

    def network(self, x: Tensor, y: Tensor) -> Tensor:
        """`x` [rows, C], `y` [guidance, rows, width] -> [guidance, rows, 2C]."""
        result: Tensor = self.modulated(x, modulated(self.modulation, y))
        return result


class Modulation(nn.Module):
    """The modulations of all blocks in some denoising steps at once.

    They take three fifths of the head's weights, which are read once here instead of once a
    step.

    Args:
        modulation: of a `StepNetwork`.
    """

    def __init__(self, modulation: nn.Linear) -> None:
        super().__init__()
        self.modulation = modulation

    def forward(self, condition: Tensor, step: Tensor, embedding: Tensor) -> Tensor:
        """[steps now, guidance, rows, `modulation_width`] in fp32.

        Args:
            condition: embedded condition [guidance, rows, width].
            step: row of `embedding` that each row is at in each step, [steps now, rows].
            embedding: embedded timesteps [steps, width].
        """
        at = embedding.index_select(0, step.flatten()).unflatten(0, (step.shape[0], step.shape[1]))
        return modulated(self.modulation, condition.unsqueeze(0) + at.unsqueeze(1))


def joined_modulations(net: DiffusionMLP) -> nn.Linear:
    """The modulations of all blocks and of the final layer as one layer."""
    parts = [block.adaLN_modulation[1] for block in net.res_blocks]
    parts.append(net.final_layer.adaLN_modulation[1])
    modulation = nn.Linear(net.width, modulation_width(net))
    with torch.no_grad():
        modulation.weight.copy_(torch.cat([part.weight for part in parts]))
        modulation.bias.copy_(torch.cat([part.bias for part in parts]))
    return modulation


def modulation_width(net: DiffusionMLP) -> int:
    """Shift, scale and gate of every block, shift and scale of the final layer."""
    return (3 * len(net.res_blocks) + 2) * net.width


def modulated(modulation: nn.Linear, y: Tensor) -> Tensor:
    """`y` [..., width] -> all modulations [..., `modulation_width`], both fp32."""
    result: Tensor = modulation(nn.functional.silu(y).to(modulation.weight.dtype)).float()
    return result


def head_step(net: DiffusionMLP) -> DenoisingStep:
    """One denoising step of the head."""
    return DenoisingStep(StepNetwork(net), LearnedVariance())


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
        traits=GraphTraits(Role.TIMESTEP, quantizable=False, always_fp32=True),
        checks=({"steps": 1}, {"steps": 50}),
    )


def head_graphs(net: DiffusionMLP) -> list[Graph]:
    """The graph of a denoising step, and the two that do the same for calls of few rows."""
    network = StepNetwork(net)
    return [
        _head_graph(DenoisingStep(network, LearnedVariance()), net),
        _modulation_graph(Modulation(network.modulation), net),
        _modulated_graph(DenoisingStep(ModulatedNetwork(net), LearnedVariance()), net),
    ]


def _head_graph(step: DenoisingStep, net: DiffusionMLP) -> Graph:
    def example(sizes: Mapping[str, int]) -> Arrays:
        arrays = {**_update_example(sizes, net.channels), **_modulation_example(sizes, net.width)}
        return {name: arrays[name] for name in step.inputs}

    shapes: dict[str, Shape] = {
        "x": ("rows", net.channels),
        "condition": ("guidance", "rows", net.width),
        "embedding": ("steps", net.width),
    }
    return Graph(
        name="head",
        module=step,
        inputs=step.shapes(shapes, "rows"),
        outputs={"next_x": ("rows", net.channels)},
        example=example,
        sizes={"guidance": 2, "rows": 5, "steps": 9},
        traits=GraphTraits(Role.STEP, split="rows"),
        checks=(
            {"guidance": 1, "rows": 1, "steps": 2},
            {"guidance": 2, "rows": 1, "steps": 9},
            {"guidance": 2, "rows": 64, "steps": 50},
        ),
    )


def _modulation_graph(module: Modulation, net: DiffusionMLP) -> Graph:
    def example(sizes: Mapping[str, int]) -> Arrays:
        shape = (sizes["chunk"], sizes["rows"])
        step = np.random.default_rng(1).integers(0, sizes["steps"], shape)
        given = _modulation_example(sizes, net.width)
        # Smaller: beyond the range that is quantised an error is not hidden by a whole step here.
        condition, embedding = (np.float32(0.5) * given[n] for n in ("condition", "embedding"))
        return {"condition": condition, "step": step, "embedding": embedding}

    return Graph(
        name="modulation",
        module=module,
        inputs={
            "condition": ("guidance", "rows", net.width),
            "step": ("chunk", "rows"),
            "embedding": ("steps", net.width),
        },
        outputs={"modulation": ("chunk", "guidance", "rows", modulation_width(net))},
        example=example,
        sizes={"guidance": 2, "rows": 5, "steps": 9, "chunk": 7},
        traits=GraphTraits(Role.MODULATION, split="rows"),
        checks=(
            {"guidance": 1, "rows": 1, "steps": 2, "chunk": 2},
            {"guidance": 2, "rows": 12, "steps": 50, "chunk": 4},
        ),
    )


def _modulated_graph(step: DenoisingStep, net: DiffusionMLP) -> Graph:
    def example(sizes: Mapping[str, int]) -> Arrays:
        shape = (sizes["guidance"], sizes["rows"], modulation_width(net))
        modulation = np.random.default_rng(1).standard_normal(shape, np.float32)
        arrays = {**_update_example(sizes, net.channels), "modulation": modulation}
        return {name: arrays[name] for name in step.inputs}

    shapes: dict[str, Shape] = {
        "x": ("rows", net.channels),
        "modulation": ("guidance", "rows", modulation_width(net)),
    }
    return Graph(
        name="modulated_head",
        module=step,
        inputs=step.shapes(shapes, "rows"),
        outputs={"next_x": ("rows", net.channels)},
        example=example,
        sizes={"guidance": 2, "rows": 5, "steps": 9},
        traits=GraphTraits(Role.MODULATED_STEP, split="rows"),
        checks=(
            {"guidance": 1, "rows": 1, "steps": 2},
            {"guidance": 2, "rows": 12, "steps": 50},
        ),
    )


def _modulation_example(sizes: Mapping[str, int], width: int) -> Arrays:
    rng = np.random.default_rng(0)
    guidance, rows, steps = sizes["guidance"], sizes["rows"], sizes["steps"]
    return {
        "condition": rng.standard_normal((guidance, rows, width), np.float32),
        "embedding": rng.standard_normal((steps, width), np.float32),
    }


def _update_example(sizes: Mapping[str, int], channels: int) -> Arrays:
    rng = np.random.default_rng(2)
    rows, steps = sizes["rows"], sizes["steps"]
    return {
        "x": rng.standard_normal((rows, channels), np.float32),
        "step": rng.integers(0, steps, rows),
        "coefficients": np.tile(np.array([1.02, -0.2, -4.0, -3.0, 1.0], np.float32), (steps, 1)),
        "guidance_scale": rng.uniform(1, 4, rows).astype(np.float32),
        "noise": rng.standard_normal((rows, channels), np.float32),
    }
