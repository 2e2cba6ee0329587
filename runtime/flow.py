"""Flow-matching samplers: a step count becomes times, timesteps and factors of the update.

Time runs from 1 (noise) to 0 (data) and the network predicts the velocity v. Every step is

    x_next = c[0] * x + c[1] * v + c[2] * noise

with a row of coefficients c; c[2] is missing where no step adds noise.
"""

from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ..errors import DisaError
from .sampler import Singles, StepTable
from .schedule import MAX_STEPS, MIN_STEPS, AnnealedSchedule, Schedule
from .settings import check_guidance_scale, check_tolerance

Floats = npt.NDArray[np.float64]

TIMESTEPS = 1000
"""Time 1 is this timestep of the network."""
UNIFORM_STEPS = 50
"""The one step count whose Euler grid is uniform."""


@dataclass(frozen=True)
class FlowTable(StepTable):
    """The steps of one AR iteration, noisiest first.

    Attributes:
        times: time before each step, float64 [steps].
    """

    times: Floats

    @property
    def places(self) -> Floats:
        return self.times

    def predicted_token(
        self, index: int, x: Singles, after: Singles, noise: Singles | None
    ) -> Singles:
        """The token x - t v that the velocity of step `index` points at; see `StepTable`."""
        of_x, of_velocity, *of_noise = self.coefficients[index].astype(np.float64)
        added = 0.0 if noise is None else of_noise[0] * noise
        velocity = (after - of_x * x - added) / of_velocity
        token: Singles = x - self.times[index] * velocity
        return token


@dataclass(frozen=True)
class FlowSettings:
    """Sampling options of the flow-matching families.

    Attributes:
        schedule: denoising steps of each AR iteration.
        guidance_scale: classifier-free guidance of the last AR iteration, growing linearly
            from none in the first; 1 or less is none.
        guidance_interval: latest time at which FlowAR guides (arXiv 2404.07724); earlier
            steps, with more noise, are not guided.
        tolerance: by how much an image's prediction may change between two steps; images leave
            out steps up to that. 0 takes every step.
    """

    schedule: Schedule = field(default_factory=lambda: AnnealedSchedule(25, 15))
    guidance_scale: float = 1.0
    guidance_interval: float = 1.0
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        check_guidance_scale(self.guidance_scale)
        if not 0 <= self.guidance_interval <= 1:
            raise DisaError(
                f"the guidance interval is a time from 0 to 1, not {self.guidance_interval}"
            )
        check_tolerance(self.tolerance)

    @property
    def guided(self) -> bool:
        """Whether an unconditional half runs along."""
        return self.guidance_scale > 1

    def guidance(self, iteration: int, iterations: int) -> float:
        """Guidance scale of AR iteration `iteration`."""
        return 1 + (self.guidance_scale - 1) * iteration / max(1, iterations - 1)


@lru_cache(maxsize=4096)
def euler_table(steps: int) -> FlowTable:
    """The Euler steps of FlowAR.

    Half of the times lie between 1 and 0.3, the others from 0.25 on, except that 50 steps are
    uniform. An odd count makes one step less.
    """
    _check(steps)
    if steps == UNIFORM_STEPS:
        return euler_steps(linspace(1, 0, steps + 1)[:-1])
    half = steps // 2
    return euler_steps(np.concatenate([linspace(1, 0.3, half), linspace(0.25, 0, half + 1)[:-1]]))


def euler_steps(times: Floats) -> FlowTable:
    """Euler steps from each of these times, falling, to the next, and at last to 0.

    The coefficients are those of x and of the velocity.
    """
    return _table(times, np.ones_like(times), _changes(times))


@lru_cache(maxsize=4096)
def euler_maruyama_table(steps: int) -> FlowTable:
    """The Euler-Maruyama steps of xAR, from 1 to 0.04 and then to 0."""
    _check(steps)
    return euler_maruyama_steps(linspace(1, 0.04, steps))


def euler_maruyama_steps(times: Floats) -> FlowTable:
    """Euler-Maruyama steps from each of these times, falling, to the next, and at last to 0.

    The reverse process dx = (v - t * score) dt + sqrt(2t) dw on the path x = (1-t) data + t noise
    (SiT, arXiv 2401.08740), where the score is -((1-t) v + x) / t, so that the drift is
    (2-t) v + x. The last step adds no noise. The coefficients are those of x, of the velocity
    and of the noise.
    """
    change = _changes(times)
    noise = np.sqrt(2 * times) * np.sqrt(np.abs(change))
    noise[-1] = 0
    return _table(times, 1 + change, change * (2 - times), noise)


def _changes(times: Floats) -> Floats:
    return np.diff(np.append(times, 0.0))


def linspace(start: float, stop: float, count: int) -> Floats:
    """Evenly spaced points as PyTorch rounds them: from both ends, with one rounding each.

    The last bit decides where a time equals the guidance interval.
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
        raise DisaError(f"a sampler takes {MIN_STEPS} to {MAX_STEPS} steps, not {steps}")


def _table(times: Floats, *columns: Floats) -> FlowTable:
    """The network sees a whole number: the product in fp32, its fraction cut off."""
    timesteps = np.trunc(times.astype(np.float32) * np.float32(TIMESTEPS))
    return FlowTable(timesteps, np.stack(columns, axis=1).astype(np.float32), times)
