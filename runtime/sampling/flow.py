"""Flow-matching samplers: convert a step count to times, timesteps and update coefficients.

Time runs from 1 (noise) to 0 (data) and the network predicts the velocity v. Every step is

    x_next = c[0] * x + c[1] * v + c[2] * noise

with a row of coefficients c; samplers without noise have no c[2].
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np

from ...engines.array_types import Doubles, Floats
from ...errors import DisaError
from .sampler import StepTable
from .schedule import MAX_STEPS, MIN_STEPS

TIMESTEPS = 1000
"""The network's timestep for time 1."""
UNIFORM_STEPS = 50
"""The only step count with a uniform Euler grid."""


@dataclass(frozen=True)
class FlowTable(StepTable):
    """The steps of one AR iteration, noisiest first.

    Attributes:
        times: time before each step, float64 [steps].
    """

    times: Doubles

    @property
    def places(self) -> Doubles:
        return self.times

    def predicted_token(self, index: int, x: Floats, after: Floats, noise: Floats | None) -> Floats:
        """The token x - t v that the velocity of step `index` predicts; see `StepTable`."""
        of_x, of_velocity, *of_noise = self.coefficients[index].astype(np.float64)
        added = 0.0 if noise is None else of_noise[0] * noise
        velocity = (after - of_x * x - added) / of_velocity
        token: Floats = x - self.times[index] * velocity
        return token


@lru_cache(maxsize=256)
def euler_table(steps: int) -> FlowTable:
    """The Euler steps of FlowAR.

    Half of the times are between 1 and 0.3, the others start at 0.25, except that 50 steps are
    uniform. An odd count gives one step less.
    """
    _check(steps)
    if steps == UNIFORM_STEPS:
        return euler_steps(linspace(1, 0, steps + 1)[:-1])
    half = steps // 2
    return euler_steps(np.concatenate([linspace(1, 0.3, half), linspace(0.25, 0, half + 1)[:-1]]))


def euler_steps(times: Doubles) -> FlowTable:
    """Euler steps from each of these descending times to the next, and finally to 0.

    The coefficients are those of x and of the velocity.
    """
    return _table(times, np.ones_like(times), _changes(times))


@lru_cache(maxsize=256)
def euler_maruyama_table(steps: int) -> FlowTable:
    """The Euler-Maruyama steps of xAR, from 1 to 0.04 and then to 0."""
    _check(steps)
    return euler_maruyama_steps(linspace(1, 0.04, steps))


def euler_maruyama_steps(times: Doubles) -> FlowTable:
    """Euler-Maruyama steps from each of these descending times to the next, and finally to 0.

    The reverse process dx = (v - t * score) dt + sqrt(2t) dw on the path x = (1-t) data + t noise
    (SiT, arXiv 2401.08740), where the score is -((1-t) v + x) / t, so that the drift is
    (2-t) v + x. The last step adds no noise. The coefficients are those of x, of the velocity
    and of the noise.
    """
    change = _changes(times)
    noise = np.sqrt(2 * times) * np.sqrt(np.abs(change))
    noise[-1] = 0
    return _table(times, 1 + change, change * (2 - times), noise)


def _changes(times: Doubles) -> Doubles:
    return np.diff(np.append(times, 0.0))


def linspace(start: float, stop: float, count: int) -> Doubles:
    """Evenly spaced points with PyTorch's rounding: from both ends, with one rounding each.

    The last bit decides whether a time equals the guidance interval.
    """
    if count < 2:
        return np.full(count, start, np.float64)
    step = (stop - start) / (count - 1)
    points = [
        Fraction(start) + Fraction(step) * index
        if index < count // 2
        else Fraction(stop) - Fraction(step) * (count - 1 - index)
        for index in range(count)
    ]
    return np.array([float(point) for point in points])


def _check(steps: int) -> None:
    if not MIN_STEPS <= steps <= MAX_STEPS:
        raise DisaError(f"a sampler needs {MIN_STEPS} to {MAX_STEPS} steps, not {steps}")


def _table(times: Doubles, *columns: Doubles) -> FlowTable:
    """The network's timestep is a whole number: the fp32 product, truncated."""
    timesteps = np.trunc(times.astype(np.float32) * np.float32(TIMESTEPS))
    return FlowTable(timesteps, np.stack(columns, axis=1).astype(np.float32), times)
