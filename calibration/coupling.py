"""The same randomness for runs of many and of few denoising steps.

What few steps do to a token is seen much sooner where both runs start from the same noise and
are moved by the same Brownian path, of which few steps see the sums over their longer way. Each
run alone is as random as ever: sums of disjoint parts of white noise are white noise.
"""

import numpy as np
import numpy.typing as npt

from ..runtime.flow import FlowTable
from ..runtime.sampler import StepTable, cosine_alphas_cumprod

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


def coupled_noise(noise: Floats, many: StepTable, few: StepTable, seed: int) -> Floats:
    """Noise for the steps of `few` that follows the noise of `many`.

    With a fixed prediction of the token, the noise that a sampler adds between two places moves
    x in proportion to a Brownian motion whose clock is `information`. So a step of `few` takes
    the steps of `many` on its way, weighted by the root of the information that each gains.

    Args:
        noise: [1 + steps of many, rows, C]; the first is where both start.
        seed: of the noise of a step of `few` on whose way `many` has none.

    Returns:
        Noise [1 + steps of few, rows, C], standard normal and independent between steps.
    """
    gain = np.diff(information(many))
    middle = (many.places[:-1] + many.places[1:]) / 2
    # Places fall: a step of `few` goes from its own place down to the next.
    step_of = np.searchsorted(-few.places, -middle, side="right") - 1
    coupled = np.zeros((1 + len(few), *noise.shape[1:]), np.float32)
    coupled[0] = noise[0]
    for step in range(len(few) - 1):
        parts = np.flatnonzero(step_of.clip(min=0) == step)
        if len(parts):
            weights = np.sqrt(gain[parts] / gain[parts].sum()).astype(np.float32)
            coupled[1 + step] = np.tensordot(weights, noise[1 + parts], axes=1)
        else:
            rng = np.random.default_rng([seed, step])
            coupled[1 + step] = rng.standard_normal(noise.shape[1:], np.float32)
    return coupled


def information(table: StepTable) -> Doubles:
    """The clock of the noise that a sampler adds, rising, at the beginning of each step.

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
