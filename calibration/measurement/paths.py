"""The deterministic path from noise to token, and its curvature."""

import numpy as np

from ...engines.array_types import Doubles, Floats
from ...runtime.sampling.flow import TIMESTEPS, FlowTable
from ...runtime.sampling.head import Iteration
from ...runtime.sampling.sampler import StepTable, cosine_alphas_cumprod, ddim_table


def path_table(iteration: Iteration, steps: int) -> tuple[StepTable, Doubles, Doubles]:
    """The steps of a path without noise, for the head of an AR iteration.

    For a head that predicts epsilon these are DDIM steps (arXiv 2010.02502), for a flow head
    uniform Euler steps of its velocity.

    Returns:
        The table, and for each of its points, the end included: the time t (1 noise, 0 token)
        and the scale that converts x to a point of the straight frame
        z_t = (1 - t) token + t noise.
    """
    table = iteration.table
    if isinstance(table, FlowTable):
        times = np.linspace(1, 0, steps + 1)
        columns = np.zeros((steps, table.coefficients.shape[1]), np.float32)
        columns[:, 0], columns[:, 1] = 1, np.diff(times)
        timesteps = np.trunc(times[:-1] * TIMESTEPS).astype(np.float32)
        return FlowTable(timesteps, columns, times[:-1]), times, np.ones(steps + 1)
    deterministic = ddim_table(steps, 0.0)
    alpha_bar = cosine_alphas_cumprod()[deterministic.timesteps.astype(np.int64)]
    # x_t = signal * token + noise * epsilon becomes (1-t) token + t epsilon when divided by both.
    signal, noise = np.sqrt(np.append(alpha_bar, 1.0)), np.sqrt(1 - np.append(alpha_bar, 1.0))
    return deterministic, noise / (signal + noise), 1 / (signal + noise)


def trace(iteration: Iteration, start: Floats, steps: int) -> tuple[Doubles, Doubles]:
    """Follow the path of each token from its noise.

    Args:
        start: noise, [rows, C].

    Returns:
        Times, descending, and the points z_t [times, rows, C] of the straight frame.
    """
    table, times, scales = path_table(iteration, steps)
    points = [start]
    for index in range(len(table)):
        noise = np.stack([points[-1], np.zeros_like(start)])
        points.append(np.asarray(iteration.denoise(table.part(slice(index, index + 1)), noise)))
    return times, np.stack(points) * scales[:, None, None]


def curvature(times: Doubles, points: Doubles) -> Doubles:
    """The deviation of each path from a straight line, [rows]; 0 is straight.

    This is the straightness of rectified flow (arXiv 2209.03003, section 2.2),

        S = integral of E ||(z_1 - z_0) - dz_t/dt||^2 dt,

    over the measured times, divided by ||z_1 - z_0||^2, so that it has no unit. A path is
    straight if every part of it has the velocity of the whole.
    """
    span = times[0] - times[-1]
    whole = (points[0] - points[-1]) / span
    parts = np.diff(points, axis=0) / np.diff(times)[:, None, None]
    share = -np.diff(times) / span
    bent = np.square(parts - whole).sum(axis=2)
    straight: Doubles = (share[:, None] * bent).sum(axis=0) / np.square(whole).sum(axis=1)
    return straight
