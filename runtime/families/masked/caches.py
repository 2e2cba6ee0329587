"""The caches of a group of images, for a cached backbone.

The first axis of a cache is the token, in generation order after the buffer, so that new tokens are
written in place: [buffer + tokens, layers, 2, batch, heads, head_dim].
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ....engines.plan.plan import Plan
from ....engines.session import Array, Session, TensorSpec
from ....errors import InvalidRequest
from ..cohort import Group

CACHE = "_cache"
NEW = "new_"
DIFFERENCE = "difference"
BATCH_AXIS = {CACHE: 3, DIFFERENCE: 1}


def check_cached_backbone(plan: Plan) -> None:
    """Check that a plan has the graphs of a cached backbone.

    Raises:
        InvalidRequest: it has none, or those of an earlier version, which return the keys and
            values of the buffer too.
    """
    again = "export the checkpoint again with --cached-backbone"
    if "reuse" not in plan.manifest.graphs:
        raise InvalidRequest(
            f"{plan.path.name} has no cached backbone, which refresh needs: {again}"
        )
    shapes = {spec.name: spec.shape for spec in plan.graph("reuse").outputs}
    if shapes.get("new_encoder", ())[:1] != ("new",):
        raise InvalidRequest(
            f"{plan.path.name} has the cached backbone of an earlier version of disa: {again}"
        )


def reuse_inputs(group: Group[Any], specs: Iterable[TensorSpec]) -> dict[str, Array]:
    """The inputs of a pass that computes only the new tokens.

    Args:
        specs: the inputs of its graph. The input `known` has the positions of all known tokens if
            its dimension is "visible", otherwise those of the new tokens.
    """
    first, cohort = group.samples[0], group.cohort
    known, count, cached = first.known, first.count, first.cached
    positions = cohort.arrays["positions"]
    inputs: dict[str, Array] = {
        "tokens": cohort.arrays["tokens"][cached:known],
        "predicted": positions[known : known + count],
        DIFFERENCE: cohort.arrays[DIFFERENCE][known : known + count],
        **cohort.constants,
    }
    for spec in specs:
        if spec.name == "known":
            start = 0 if spec.shape[0] == "visible" else cached
            inputs["known"] = positions[start:known]
        elif spec.name.endswith(CACHE):
            cache = cohort.arrays[spec.name]
            whole = spec.name == "decoder" + CACHE
            inputs[spec.name] = cache if whole else cache[: _buffer(group) + cached]
    return inputs


def update_caches(group: Group[Any], outputs: Mapping[str, Array], home: Session) -> None:
    """Store the cache outputs of a pass: whole caches after a full one, otherwise new parts.

    Args:
        home: the session whose output memory holds the caches; on a GPU nothing here waits for the
            device.
    """
    first, cohort = group.samples[0], group.cohort
    known, length = first.known, len(first.order)
    if DIFFERENCE in outputs:
        skip = outputs["decoder" + CACHE].shape[0] - length
        for name, values in outputs.items():
            tokens, start = (length, known) if name == DIFFERENCE else (skip + length, 0)
            shape = (tokens, *values.shape[1:])
            if isinstance(values, np.ndarray) and values.shape == shape:
                cohort.arrays[name] = values  # Nothing else uses the array, so it is not copied.
                continue
            cache = cohort.arrays.get(name)
            if cache is None or tuple(cache.shape) != shape:
                # Entries that are not written here are written before they are first read.
                cache = home.empty(shape, np.float32)
            cache[start : start + len(values)] = values
            cohort.arrays[name] = cache
        axes = {name: BATCH_AXIS.get(name, BATCH_AXIS[CACHE]) for name in outputs}
        cohort.axes = {**cohort.axes, **axes}
        return
    start = _buffer(group) + first.cached
    for name, fresh in outputs.items():
        cohort.arrays[name.removeprefix(NEW) + CACHE][start : start + len(fresh)] = fresh


def _buffer(group: Group[Any]) -> int:
    """Number of tokens of the buffer."""
    cache = group.cohort.arrays["decoder" + CACHE]
    return int(cache.shape[0]) - len(group.samples[0].order)
