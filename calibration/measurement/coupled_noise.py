"""Coupled noise for runs with many and with few denoising steps.

The effect of few steps on a token is measured with far fewer samples if both runs start from the
same noise and follow the same Brownian path, of which few steps use the sums over their longer
intervals. Each run alone has the correct distribution: sums of disjoint parts of white noise are
white noise.
"""

import numpy as np
from numpy.random import SeedSequence

from ...engines.array_types import Doubles, Floats
from ...runtime.sampling.flow import FlowTable
from ...runtime.sampling.sampler import StepTable, cosine_alphas_cumprod


def coupled_noise(noise: Floats, many: StepTable, few: StepTable, seed: SeedSequence) -> Floats:
    """Noise for the steps of `few` that follows the noise of `many`.

    For a fixed prediction of the token, the noise that a sampler adds between two positions moves x
    in proportion to a Brownian motion whose clock is `information`. So a step of `few` sums the
    noise of the steps of `many` in its interval, weighted by the square root of the information
    that each gains.

    Args:
        noise: [1 + steps of many, rows, C]; the first is the start of both.
        seed: for the noise of a step of `few` whose interval has no step of `many`; a different
            one for each `noise`.

    Returns:
        Noise [1 + steps of few, rows, C], standard normal and independent between steps.
    """
    gain = np.diff(information(many))
    middle = (many.places[:-1] + many.places[1:]) / 2
    # Positions descend: a step of `few` goes from its own position to the next one.
    step_of = np.searchsorted(-few.places, -middle, side="right") - 1
    coupled = np.zeros((1 + len(few), *noise.shape[1:]), np.float32)
    coupled[0] = noise[0]
    rng = np.random.default_rng(seed)
    for step in range(len(few) - 1):
        parts = np.flatnonzero(step_of.clip(min=0) == step)
        if len(parts):
            weights = np.sqrt(gain[parts] / gain[parts].sum()).astype(np.float32)
            coupled[1 + step] = np.tensordot(weights, noise[1 + parts], axes=1)
        else:
            coupled[1 + step] = rng.standard_normal(noise.shape[1:], np.float32)
    return coupled


def information(table: StepTable) -> Doubles:
    """The clock of a sampler's noise at the beginning of each step, ascending.

    With a fixed prediction D, DDPM's steps are w' = w + sqrt(s' - s) z for
    w = s (x / sqrt(alpha_bar) - D) and s = alpha_bar / (1 - alpha_bar), the ratio of signal to
    noise. The reverse process of xAR becomes dw = sqrt(2 t) / t^2 dB for w = (x - D) / t^2, whose
    variance between t and t' is 1 / t'^2 - 1 / t^2.
    """
    if isinstance(table, FlowTable):
        return 1 / np.square(table.times)
    # DPM-Solver, whose timesteps are fractions, adds no noise.
    alpha_bar = cosine_alphas_cumprod()[np.round(table.timesteps).astype(np.int64)]
    ratio: Doubles = alpha_bar / (1 - alpha_bar)
    return ratio
