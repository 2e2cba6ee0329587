"""Samplers: convert a step count to timesteps and coefficients of the head's update.

Every sampler here is linear in the noisy token and in the predicted noise, so one head graph
serves them all. Row i of the coefficients belongs to denoising step i, the noisiest first:

    x_next = c[0] * x + c[1] * epsilon + c[4] * exp(0.5 * log_variance) * noise

with log_variance between c[2] and c[3], as predicted by the model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from functools import lru_cache
from typing import Self

import numpy as np

from ...engines.array_types import Doubles, Floats
from ...errors import InvalidRequest

TRAINING_STEPS = 1000
CLIP_DDPM = 950
CLIP_DDIM = 980
DPM_START = 0.95


class SamplerName(StrEnum):
    """The available samplers."""

    DDPM = "ddpm"
    DDIM = "ddim"
    DPM_SOLVER = "dpm-solver"
    DPM_SOLVER_PP = "dpm-solver++"


@dataclass(frozen=True)
class StepTable:
    """The denoising steps of one AR iteration, noisiest first.

    Attributes:
        timesteps: the network's timesteps, [steps] in 0..999, fp32 (fractional for DPM-Solver).
        coefficients: [steps, 5] fp32, columns as in the module's formula.
    """

    timesteps: Floats
    coefficients: Floats

    def __len__(self) -> int:
        return len(self.timesteps)

    @property
    def places(self) -> Doubles:
        """The position between noise and token at which each step begins, descending, [steps]."""
        return self.timesteps.astype(np.float64)

    def part(self, rows: slice) -> Self:
        """Some consecutive steps."""
        return type(self)(*(getattr(self, field.name)[rows] for field in fields(self)))

    @classmethod
    def joined(cls, tables: Sequence[Self]) -> Self:
        """The concatenated steps of several tables."""
        columns = [[getattr(table, field.name) for table in tables] for field in fields(cls)]
        return cls(*(np.concatenate(parts) for parts in columns))

    def predicted_token(self, index: int, x: Floats, after: Floats, noise: Floats | None) -> Floats:
        """The token that the head predicted in step `index`, derived from the step's result.

        The step's formula is solved for epsilon with the middle of the range of log variances:
        in the first steps, where much noise is left, both ends of that range are nearly equal.

        Args:
            x, after: before and after the step, [..., C].
            noise: added in the step, like x; None for none.
        """
        of_x, of_epsilon, low, high, noise_scale = self.coefficients[index].astype(np.float64)
        added = 0.0 if noise is None else noise_scale * np.exp(0.25 * (low + high)) * noise
        epsilon = (after - of_x * x - added) / of_epsilon
        alpha_bar = cosine_alphas_cumprod()[int(self.timesteps[index])]
        token: Floats = (x - np.sqrt(1 - alpha_bar) * epsilon) / np.sqrt(alpha_bar)
        return token


@lru_cache(maxsize=1)
def cosine_alphas_cumprod() -> Doubles:
    """Cumulative alphas [1000] of the cosine schedule, betas at most 0.999 (arXiv 2102.09672)."""
    time = np.arange(TRAINING_STEPS + 1) / TRAINING_STEPS
    alpha_bar = np.cos((time + 0.008) / 1.008 * np.pi / 2) ** 2
    betas = np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)
    return np.cumprod(1 - betas)


def spread_timesteps(steps: int, clip: int | None) -> list[int]:
    """`steps` timesteps over 0..999, ascending; those above `clip` become `clip` and merge.

    The float stride is accumulated and each sum rounded half to even: the drift of the sum
    moves some timesteps by one, and the official models were evaluated with it.
    """
    if not 2 <= steps <= TRAINING_STEPS:
        raise InvalidRequest(f"a sampler needs 2 to {TRAINING_STEPS} steps, not {steps}")
    stride = (TRAINING_STEPS - 1) / (steps - 1)
    position, timesteps = 0.0, []
    for _ in range(steps):
        timesteps.append(round(position))
        position += stride
    return _clipped(timesteps, clip)


def strided_timesteps(steps: int, clip: int | None) -> list[int]:
    """`steps` timesteps with an integer stride (DDIM), ascending and clipped in the same way.

    If no stride gives the count over 1000 training steps, the range is shortened until
    one does, as in the official code.
    """
    if not 2 <= steps <= TRAINING_STEPS:
        raise InvalidRequest(f"a sampler needs 2 to {TRAINING_STEPS} steps, not {steps}")
    strided = (
        range(0, length, stride)
        for length in range(TRAINING_STEPS, 1, -1)
        for stride in range(1, length)
    )
    return _clipped(list(next(found for found in strided if len(found) == steps)), clip)


def _clipped(timesteps: list[int], clip: int | None) -> list[int]:
    if clip is None:
        return timesteps
    return sorted({min(timestep, clip) for timestep in timesteps})


def ddpm_table(steps: int, temperature: float, clip: int | None = CLIP_DDPM) -> StepTable:
    """Ancestral sampling with learned variance (arXiv 2102.09672, section 3.1)."""
    return _ddpm_rows(spread_timesteps(steps, clip), temperature)


def _ddpm_rows(timesteps: Sequence[int], temperature: float) -> StepTable:
    alpha_bar = cosine_alphas_cumprod()[list(timesteps)]
    previous = np.append(1.0, alpha_bar[:-1])
    betas = 1 - alpha_bar / previous
    variance = betas * (1 - previous) / (1 - alpha_bar)
    of_start = betas * np.sqrt(previous) / (1 - alpha_bar)
    of_x = (1 - previous) * np.sqrt(1 - betas) / (1 - alpha_bar)
    low = np.log(np.append(variance[1], variance[1:]))
    noise_scale = np.where(np.arange(len(timesteps)) == 0, 0.0, temperature)
    return _table(
        np.array(timesteps, np.float64),
        of_x + of_start / np.sqrt(alpha_bar),
        -of_start * np.sqrt(1 / alpha_bar - 1),
        low,
        np.log(betas),
        noise_scale,
    )


def ddim_table(steps: int, temperature: float, clip: int | None = CLIP_DDIM) -> StepTable:
    """Deterministic DDIM, eta 0 (arXiv 2010.02502, equation 12): the temperature has no effect."""
    del temperature
    return _ddim_rows(strided_timesteps(steps, clip))


def _ddim_rows(timesteps: Sequence[int]) -> StepTable:
    alpha_bar = cosine_alphas_cumprod()[list(timesteps)]
    previous = np.append(1.0, alpha_bar[:-1])
    of_x = np.sqrt(previous / alpha_bar)
    of_epsilon = np.sqrt(1 - previous) - np.sqrt(previous) * np.sqrt(1 / alpha_bar - 1)
    return _without_noise(np.array(timesteps, np.float64), of_x, of_epsilon)


def dpm_solver_table(steps: int, temperature: float, clip: int | None = None) -> StepTable:
    """First-order DPM-Solver on uniform time steps (arXiv 2206.00927, equation 3.7).

    At first order DPM-Solver and DPM-Solver++ are the same update written for the noise and
    for the data. Time runs from 0.95 down to 1/N over the N = 951 training steps that DDPM's
    clip leaves.
    """
    del temperature, clip
    log_alpha = 0.5 * np.log(cosine_alphas_cumprod()[: CLIP_DDPM + 1])
    count = len(log_alpha)
    knots = np.linspace(0, DPM_START, count + 1)[1:]
    time = np.linspace(DPM_START, 1 / count, steps + 1)
    at_time = np.interp(time, knots, log_alpha)
    sigma = np.sqrt(-np.expm1(2 * at_time))
    half_log_snr = at_time - np.log(sigma)
    of_x = np.exp(at_time[1:] - at_time[:-1])
    of_epsilon = -sigma[1:] * np.expm1(half_log_snr[1:] - half_log_snr[:-1])
    return _without_noise(1000 * time[:-1][::-1], of_x[::-1], of_epsilon[::-1])


TABLES: dict[SamplerName, Callable[..., StepTable]] = {
    SamplerName.DDPM: ddpm_table,
    SamplerName.DDIM: ddim_table,
    SamplerName.DPM_SOLVER: dpm_solver_table,
    SamplerName.DPM_SOLVER_PP: dpm_solver_table,
}


@lru_cache(maxsize=256)
def step_table(
    sampler: SamplerName, steps: int, temperature: float = 1.0, whole_range: bool = False
) -> StepTable:
    """The table of `steps` nominal steps.

    Args:
        temperature: scales the noise added at each step.
        whole_range: start at the last training timestep instead of the sampler's clip, like
            the models without annealing.
    """
    if whole_range:
        return TABLES[sampler](steps, temperature, clip=None)
    return TABLES[sampler](steps, temperature)


def respaced_table(sampler: SamplerName, timesteps: Sequence[int], temperature: float) -> StepTable:
    """The table of a sampler with these timesteps, two or more, ascending.

    Raises:
        DisaError: the sampler is a DPM-Solver, whose timesteps are not whole numbers.
    """
    if sampler is SamplerName.DDPM:
        return _ddpm_rows(timesteps, temperature)
    if sampler is SamplerName.DDIM:
        return _ddim_rows(timesteps)
    raise InvalidRequest(f"adaptive steps work with ddpm and ddim, not with {sampler}")


def _without_noise(timesteps: Doubles, of_x: Doubles, of_epsilon: Doubles) -> StepTable:
    zero = np.zeros_like(of_x)
    return _table(timesteps, of_x, of_epsilon, zero, zero, zero)


def _table(timesteps: Doubles, *columns: Doubles) -> StepTable:
    """Ascending columns in float64 as a table, noisiest first."""
    coefficients = np.stack(columns, axis=1)[::-1].astype(np.float32)
    return StepTable(timesteps[::-1].astype(np.float32), np.ascontiguousarray(coefficients))
