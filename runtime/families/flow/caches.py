"""Keys and values of earlier AR iterations, which go into a graph and come out of it."""

from collections.abc import Mapping

import numpy as np

from ....engines.session import Array, Session


def empty_caches(session: Session, sizes: Mapping[str, int]) -> dict[str, Array]:
    """A cache without tokens for every cache input of the session.

    Args:
        sizes: of the named dimensions.
    """
    return {
        spec.name: session.empty(
            tuple(sizes[dim] if isinstance(dim, str) else dim for dim in spec.shape), np.float32
        )
        for spec in session.inputs
        if spec.name.endswith("_cache")
    }


def batch_axes(session: Session) -> dict[str, int]:
    """The batch axis of each input of a session that has one."""
    return {
        spec.name: spec.shape.index("batch") for spec in session.inputs if "batch" in spec.shape
    }
