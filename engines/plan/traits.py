"""The traits of a graph, so that other code needs no names of graphs."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Role(StrEnum):
    """When a graph runs while an image is generated."""

    ONCE = "once"
    """Before the first AR iteration: prompts, class modulations, position tables."""
    TIMESTEP = "timestep"
    """For each table of timesteps; all denoising steps read their rows from the result."""
    ITERATION = "iteration"
    """In every AR iteration."""
    REFRESH = "refresh"
    """In some AR iterations instead of the graph of `ITERATION`: it also fills the caches."""
    REUSE = "reuse"
    """In the AR iterations after `REFRESH`: it computes only the new tokens."""
    MODULATION = "modulation"
    """For some denoising steps at once, each of which takes its part of the result."""
    MODULATED_STEP = "modulated_step"
    """In the denoising steps after `MODULATION` instead of the graph of `STEP`."""
    STEP = "step"
    """In every denoising step; an output is the next step's input."""
    DECODE = "decode"
    """After the last AR iteration: finished tokens to latents and pixels."""


HOST_ONLY = (Role.MODULATION, Role.MODULATED_STEP)
"""Graphs that do what others can, and that only engines on the host's processor run: whether
they pay on a GPU is not measured."""


@dataclass(frozen=True)
class GraphTraits:
    """Properties of a graph that engines, quantisation and builders use.

    Attributes:
        role: when it runs.
        quantizable: whether its matmuls may be quantised. False if an error would affect all
            steps or be visible in the pixels, and if it would save nothing.
        always_fp32: whether it stays in fp32 in a plan of lower precision.
        split: the dimension of its inputs along which a request that is too large for an
            engine is split; its entries must be independent. None if it cannot be split.
        prepack: whether to lay its weights out for the matrix kernels when it is loaded. Not
            useful for a graph that runs once for a batch and shares the weights of another one.
    """

    role: Role
    quantizable: bool = True
    always_fp32: bool = False
    split: str | None = None
    prepack: bool = True

    def to_json(self) -> dict[str, Any]:
        """The entries of these traits in the manifest."""
        return {
            "role": self.role.value,
            "quantizable": self.quantizable,
            "always_fp32": self.always_fp32,
            "split": self.split,
            "prepack": self.prepack,
        }
