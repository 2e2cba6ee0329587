"""Isotonic regression: the nearest values that never rise."""

import numpy as np

from ...engines.array_types import Doubles


def falling(values: Doubles) -> Doubles:
    """The nearest values, in least squares, that never rise (pool adjacent violators)."""
    blocks: list[list[float]] = []
    for value in values:
        blocks.append([float(value), 1.0])
        while len(blocks) > 1 and blocks[-2][0] < blocks[-1][0]:
            last, weight = blocks.pop()
            before = blocks[-1]
            before[0] = (before[0] * before[1] + last * weight) / (before[1] + weight)
            before[1] += weight
    return np.concatenate([np.full(int(weight), value) for value, weight in blocks])
