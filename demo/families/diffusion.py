"""The training loss of a diffusion head with learned variance.

Formulas: cosine schedule and learned range from Nichol and Dhariwal 2021 (arXiv 2102.09672,
equations 15-17), posterior and its divergence from Ho et al. 2020 (arXiv 2006.11239).
"""

import math

import torch
from torch import Tensor, nn

STEPS = 1000
_MAX_BETA = 0.999
_NATS_PER_BIT = math.log(2.0)


def cosine_betas(steps: int = STEPS) -> Tensor:
    """Betas of the cosine schedule, [steps] in fp64."""
    time = torch.arange(steps + 1, dtype=torch.float64) / steps
    level = ((time + 0.008) / 1.008 * math.pi / 2).cos() ** 2
    return (1 - level[1:] / level[:-1]).clamp(max=_MAX_BETA)


class DiffusionLoss(nn.Module):
    """Squared error of epsilon, plus the variational bound as a loss of the variance alone."""

    table: Tensor

    def __init__(self, steps: int = STEPS) -> None:
        super().__init__()
        self.steps = steps
        betas = cosine_betas(steps)
        kept = (1 - betas).cumprod(0)
        before = torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]])
        variance = betas * (1 - before) / (1 - kept)
        # The posterior variance is 0 at the first step; the logarithm of the second is used there.
        log_variance = torch.cat([variance[1:2], variance[1:]]).log()
        columns = {
            "signal": kept.sqrt(),
            "noise": (1 - kept).sqrt(),
            "low": log_variance,
            "high": betas.log(),
            # Both means are linear in x_t with one coefficient, so their difference is this
            # factor times the error of epsilon.
            "error": betas / ((1 - betas).sqrt() * (1 - kept).sqrt()),
            "mean_of_x": 1 / (1 - betas).sqrt(),
        }
        self.columns = tuple(columns)
        table = torch.stack(list(columns.values()), dim=-1).float()
        self.register_buffer("table", table, persistent=False)

    def rows(self, timestep: Tensor) -> dict[str, Tensor]:
        """The coefficients of each row's timestep, every one [rows, 1]."""
        return dict(zip(self.columns, self.table[timestep].split(1, dim=-1), strict=True))

    def diffuse(self, x: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """`x` [rows, C] with the noise of `timestep` [rows]."""
        of = self.rows(timestep)
        return of["signal"] * x + of["noise"] * noise

    def forward(
        self, output: Tensor, x: Tensor, x_t: Tensor, timestep: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mean squared error of epsilon, and the bound in bits a channel: two scalars.

        Args:
            output: the head's output for `x_t`, [rows, 2C]: epsilon, then the position of the
                log-variance between its bounds, -1 for the posterior's and 1 for beta's.
            x, x_t: the clean and the noisy rows, [rows, C].
            timestep: [rows].
            noise: the added noise, [rows, C].
        """
        epsilon, place = output.chunk(2, dim=-1)
        of = self.rows(timestep)
        fraction = (place + 1) / 2
        log_variance = fraction * of["high"] + (1 - fraction) * of["low"]
        error = (epsilon - noise).square()
        frozen = error.detach() * of["error"].square()
        divergence = 0.5 * (
            log_variance
            - of["low"]
            - 1
            + (of["low"] - log_variance).exp()
            + frozen * (-log_variance).exp()
        )
        mean = of["mean_of_x"] * x_t - of["error"] * epsilon.detach()
        likelihood = -discretised_log_likelihood(x, mean, 0.5 * log_variance)
        bound = torch.where(timestep[:, None] == 0, likelihood, divergence)
        return error.mean(), bound.mean() / _NATS_PER_BIT


def discretised_log_likelihood(x: Tensor, mean: Tensor, log_deviation: Tensor) -> Tensor:
    """Log-probability, under a normal distribution, of the byte that `x` (-1..1) represents."""
    inverse = (-log_deviation).exp()
    above = _normal_cdf((x - mean + 1 / 255) * inverse)
    below = _normal_cdf((x - mean - 1 / 255) * inverse)
    inside = (above - below).clamp(min=1e-12)
    probability = torch.where(x < -0.999, above, torch.where(x > 0.999, 1 - below, inside))
    return probability.clamp(min=1e-12).log()


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(x * math.sqrt(0.5)))
