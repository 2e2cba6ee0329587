"""Denoising that leaves out the steps a token does not need.

After the first steps of an AR iteration each token is asked how much its prediction still
changes from one step to the next. The head predicts the token anew at every step, and a step
that is left out keeps the prediction of the one before for longer: a prediction that changes by
d between neighbouring steps is off by about q * d if only every q-th step is taken. So with the
tolerance T a token keeps

    ceil(R * d / T)

of its R remaining steps, at least two. On a straight path d is zero.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from ..engines.session import Array
from .head import Floats, Head
from .sampler import StepTable, cosine_alphas_cumprod
from .stats import Stats

Ints = npt.NDArray[np.int64]

FIRST_SHARE = 0.2
"""Share of the steps that every token takes."""
MIN_FIRST = 2
"""A change needs two predictions."""
MIN_REST = 3
"""With fewer steps left there is nothing to leave out."""

Respaced = Callable[[Sequence[int]], StepTable]


def sample_adaptively(
    head: Head,
    table: StepTable,
    respaced: Respaced,
    tolerance: float,
    condition: Array,
    guidance_scale: float,
    noise: Floats,
    stats: Stats,
) -> Array:
    """Denoise the rows of an AR iteration, each with as many steps as it needs.

    Args:
        table: all steps, noisiest first; its timesteps are whole numbers.
        respaced: the table of the same sampler for some of the timesteps, ascending.
        tolerance: see the module; above 0.
        condition: [guidance, rows, width].
        noise: [1 + steps, rows, C]; the first is where denoising starts.

    Returns:
        The sampled rows, [rows, C].
    """
    steps, rows = noise.shape[0] - 1, noise.shape[1]
    first = max(MIN_FIRST, round(FIRST_SHARE * steps))
    rest = steps - first
    if rest < MIN_REST:
        return head.sample(table, condition, guidance_scale, noise, stats)
    x = np.asarray(noise[0])
    guesses = []
    for index in range(first):
        step = np.full((1, rows), index, np.int64)
        after = np.asarray(
            head.walk(table, step, condition, guidance_scale, x, noise[index + 1][None], stats)
        )
        guesses.append(predicted_token(table, index, x, after, noise[index + 1]))
        x = after
    change = np.sqrt(np.square(guesses[-1] - guesses[-2]).mean(axis=1))
    kept = steps_kept(change, rest, tolerance)
    order = np.argsort(-kept, kind="stable")
    joint, starts = joint_table(table.timesteps[first:], np.unique(kept), respaced)
    begin = np.array([starts[int(count)] for count in kept[order]])
    known = np.asarray(condition)[:, order]
    x, left = x[order], kept[order]
    drawn = np.asarray(noise[first + 1 :])[:, order]
    done = 0
    for count in np.unique(kept):
        # Rows are sorted by their steps, so those that go on are the first ones.
        active = int(np.count_nonzero(left >= count))
        step = begin[:active] + np.arange(done, int(count))[:, None]
        x[:active] = np.asarray(
            head.walk(
                joint,
                step,
                np.ascontiguousarray(known[:, :active]),
                guidance_scale,
                x[:active],
                np.ascontiguousarray(drawn[done : int(count), :active]),
                stats,
            )
        )
        done = int(count)
    sampled = np.empty_like(x)
    sampled[order] = x
    return sampled


def steps_kept(change: Floats, rest: int, tolerance: float) -> Ints:
    """How many of the `rest` steps each row takes: two to all of them.

    Counts are rounded up to one of few, so that few rows go alone.
    """
    levels = sorted({max(2, -(-rest * eighth // 8)) for eighth in (1, 2, 3, 4, 6, 8)})
    wanted = np.ceil(np.minimum(rest * change.astype(np.float64) / tolerance, rest))
    return np.array(levels, np.int64)[np.searchsorted(levels, wanted)]


def joint_table(
    timesteps: npt.NDArray[np.float32], counts: Ints, respaced: Respaced
) -> tuple[StepTable, dict[int, int]]:
    """One table that holds the steps of each count, and where in it they begin.

    Args:
        timesteps: those that are left, noisiest first.
        counts: how many of them are kept; the first and the last always are.
    """
    ascending = timesteps[::-1].astype(int)
    tables, starts, start = [], {}, 0
    for count in counts:
        places = np.round(np.linspace(0, len(ascending) - 1, int(count))).astype(int)
        part = respaced([int(timestep) for timestep in ascending[places]])
        tables.append(part)
        starts[int(count)] = start
        start += len(part)
    joint = StepTable(
        np.concatenate([part.timesteps for part in tables]),
        np.concatenate([part.coefficients for part in tables]),
    )
    return joint, starts


def predicted_token(
    table: StepTable, index: int, x: Floats, after: Floats, noise: Floats
) -> Floats:
    """The token that the head predicted in a step, from the rows before and after it.

    The step's formula is solved for epsilon with the middle of the range of log variances: in
    the first steps, where much noise is left, both ends of that range nearly coincide.
    """
    of_x, of_epsilon, low, high, noise_scale = table.coefficients[index].astype(np.float64)
    added = noise_scale * np.exp(0.25 * (low + high)) * noise
    epsilon = (after - of_x * x - added) / of_epsilon
    alpha_bar = cosine_alphas_cumprod()[int(table.timesteps[index])]
    token: Floats = (x - np.sqrt(1 - alpha_bar) * epsilon) / np.sqrt(alpha_bar)
    return token
