"""The graphs of a cached backbone, derived from the graph of the plain backbone."""

from collections.abc import Mapping, Sequence

import numpy as np
from torch import nn

from ....engines.plan.manifest import NEW
from ....engines.plan.traits import GraphTraits, Role
from ...graphs.graph import Arrays, Graph, Shape
from .shapes import concrete

Caches = Mapping[str, Shape]
"""Shape of each cache by its name."""


def refresh_graph(
    module: nn.Module,
    plain: Graph,
    caches: Caches,
    width: int,
    checks: Sequence[Mapping[str, int]],
) -> Graph:
    """The full pass: the inputs and outputs of the plain backbone, and the caches as outputs.

    Args:
        width: width of the decoder, and so of the difference between its guidance halves.
        checks: see `Graph`.
    """
    return Graph(
        name="refresh",
        module=module,
        inputs=plain.inputs,
        outputs={**plain.outputs, **caches, "difference": ("masked", "batch", width)},
        example=plain.example,
        # With weights laid out at load, the order of sums does not depend on the batch, as in the
        # plain backbone.
        traits=GraphTraits(Role.REFRESH, split="batch"),
        sizes=plain.sizes,
        checks=tuple(checks),
        differences=frozenset(("difference",)),
    )


def reuse_graph(
    module: nn.Module,
    plain: Graph,
    caches: Caches,
    now: Caches,
    width: int,
    sizes: Mapping[str, int],
    checks: Sequence[Mapping[str, int]],
) -> Graph:
    """The pass that computes new tokens only.

    Args:
        caches: the caches, which are inputs.
        now: their new parts, which are outputs, by the names of the caches.
        width: see `refresh_graph`.
        sizes, checks: see `Graph`; from `with_cache_sizes`.
    """
    same = {name: s for name, s in plain.inputs.items() if name not in ("tokens", "positions")}
    cached: dict[str, Shape] = {"difference": ("predicted", "batch", width), **caches}

    def example(sizes: Mapping[str, int]) -> Arrays:
        visible, new = sizes["visible"], sizes["new"]
        arrays, rng = plain.example(sizes), np.random.default_rng(1)
        return {
            "tokens": arrays["tokens"][visible - new :],
            "known": arrays["positions"][:visible],
            **{name: arrays[name] for name in same},
            **{
                name: rng.standard_normal(concrete(shape, sizes), np.float32)
                for name, shape in cached.items()
            },
        }

    return Graph(
        name="reuse",
        module=module,
        inputs={
            "tokens": ("new", *plain.inputs["tokens"][1:]),
            "known": ("visible", "batch"),
            **same,
            **cached,
        },
        outputs={**plain.outputs, **{NEW + name: shape for name, shape in now.items()}},
        example=example,
        traits=GraphTraits(Role.REUSE, split="batch"),
        sizes=sizes,
        checks=tuple(checks),
    )


def with_cache_sizes(
    sizes: Mapping[str, int], new: int, buffer: int, length: int
) -> dict[str, int]:
    """The sizes of the plain backbone, extended for a pass that computes new tokens only.

    Args:
        new: number of new tokens, limited to the visible ones.
        buffer: number of tokens of the buffer.
        length: number of tokens of an image.
    """
    return {**sizes, "new": min(new, sizes["visible"]), "places": buffer + length}
