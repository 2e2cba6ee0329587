"""The caches of a group of images, for a cached backbone.

Keys and values of each layer, [batch, heads, buffer + tokens, head_dim], the tokens in generation
order, so that new ones are written in place.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from ....engines.plan.manifest import NEW
from ....engines.plan.plan import Plan
from ....engines.session import Array, Session, TensorSpec
from ....errors import InvalidRequest
from ..cohort import Group

DIFFERENCE = "difference"
DECODER = "decoder_key_0"
"""A cache that every plan with a cached backbone has."""
_TOKEN_AXIS = 2


def check_cached_backbone(plan: Plan) -> None:
    """Check that a plan has the graphs of a cached backbone.

    Raises:
        InvalidRequest: it has none, or those of an earlier version, whose caches have another
            layout.
    """
    again = "export the checkpoint again with --cached-backbone"
    if "reuse" not in plan.manifest.graphs:
        raise InvalidRequest(
            f"{plan.path.name} has no cached backbone, which refresh needs: {again}"
        )
    if DECODER not in {spec.name for spec in plan.graph("reuse").inputs}:
        raise InvalidRequest(
            f"{plan.path.name} has the cached backbone of an earlier version of disa: {again}"
        )


def reuse_inputs(group: Group[Any], specs: Iterable[TensorSpec]) -> dict[str, Array]:
    """The inputs of a pass that computes only the new tokens.

    Args:
        specs: the inputs of its graph.
    """
    first, cohort = group.samples[0], group.cohort
    known, count, cached = first.known, first.count, first.cached
    positions = cohort.arrays["positions"]
    inputs: dict[str, Array] = {
        "tokens": cohort.arrays["tokens"][cached:known],
        "known": positions[:known],
        "predicted": positions[known : known + count],
        DIFFERENCE: cohort.arrays[DIFFERENCE][known : known + count],
        **cohort.constants,
    }
    caches = {spec.name for spec in specs} - inputs.keys()
    return inputs | {name: cohort.arrays[name] for name in caches}


def update_caches(group: Group[Any], outputs: Mapping[str, Array], home: Session) -> None:
    """Store the cache outputs of a pass: whole caches after a full one, otherwise new parts.

    Args:
        home: the session whose output memory holds the caches; on a GPU nothing here waits for the
            device.
    """
    first, arrays = group.samples[0], group.cohort.arrays
    if DIFFERENCE in outputs:
        length = len(first.order)
        for name, values in outputs.items():
            if name != DIFFERENCE:
                arrays[name] = values
                continue
            if name not in arrays:
                # Entries that are not written here are not read.
                arrays[name] = home.empty((length, *values.shape[1:]), values.dtype)
            arrays[name][first.known :] = values
        axes = {name: int(name == DIFFERENCE) for name in outputs}
        group.cohort.axes = {**group.cohort.axes, **axes}
        return
    start = arrays[DECODER].shape[_TOKEN_AXIS] - len(first.order) + first.cached
    for name, fresh in outputs.items():
        stop = start + fresh.shape[_TOKEN_AXIS]
        arrays[name.removeprefix(NEW)][:, :, start:stop] = fresh
