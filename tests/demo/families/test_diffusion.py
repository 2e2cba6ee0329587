import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from demo.families.diffusion import DiffusionLoss, cosine_betas, discretised_log_likelihood

GOLDEN = Path(__file__).parents[2] / "golden" / "schedules.json"


@pytest.fixture
def rows() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (40, 3)
    return {
        "output": torch.randn(40, 6, generator=generator),
        "x": torch.randn(shape, generator=generator),
        "noise": torch.randn(shape, generator=generator),
        "timestep": torch.randint(1, 1000, (40,), generator=generator),
    }


def losses(rows: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    loss = DiffusionLoss()
    x_t = loss.diffuse(rows["x"], rows["timestep"], rows["noise"])
    result: tuple[torch.Tensor, torch.Tensor] = loss(
        rows["output"], rows["x"], x_t, rows["timestep"], rows["noise"]
    )
    return result


def test_betas_are_those_of_the_original() -> None:
    expected = json.loads(GOLDEN.read_text())["cosine_betas_1000"]
    betas = cosine_betas().numpy()
    np.testing.assert_allclose(betas[:5], expected["first"], rtol=1e-9)
    # Recorded from a process that ends at timestep 950.
    np.testing.assert_allclose(betas[946:951], expected["last"], rtol=1e-9)


def test_the_error_is_that_of_epsilon(rows: dict[str, torch.Tensor]) -> None:
    error, _ = losses(rows)
    assert error.item() == pytest.approx(
        (rows["output"][:, :3] - rows["noise"]).square().mean().item(), rel=1e-6
    )


def test_the_bound_is_the_divergence_of_the_posterior(rows: dict[str, torch.Tensor]) -> None:
    _, bound = losses(rows)
    beta = cosine_betas()
    kept = (1 - beta).cumprod(0)
    t = rows["timestep"]
    beta, before, kept = (v[:, None] for v in (beta[t], kept[t - 1], kept[t]))
    x_t = kept.sqrt() * rows["x"] + (1 - kept).sqrt() * rows["noise"]

    def mean(x: torch.Tensor) -> torch.Tensor:
        of_x = before.sqrt() * beta / (1 - kept)
        return of_x * x + (1 - beta).sqrt() * (1 - before) / (1 - kept) * x_t

    variance = beta * (1 - before) / (1 - kept)
    epsilon, place = rows["output"].double().chunk(2, dim=-1)
    predicted = (x_t - (1 - kept).sqrt() * epsilon) / kept.sqrt()
    fraction = (place + 1) / 2
    log_variance = fraction * beta.log() + (1 - fraction) * variance.log()
    expected = kl_divergence(
        Normal(mean(rows["x"].double()), variance.sqrt()),
        Normal(mean(predicted), (0.5 * log_variance).exp()),
    )
    assert bound.item() == pytest.approx(expected.mean().item() / math.log(2), rel=1e-3)


def test_the_first_step_pays_for_the_byte(rows: dict[str, torch.Tensor]) -> None:
    rows["timestep"] = torch.zeros(40, dtype=torch.long)
    rows["x"] = rows["x"].clamp(-1, 1)
    loss = DiffusionLoss()
    _, bound = losses(rows)
    beta = cosine_betas()
    low = (beta[1] * beta[0] / (1 - (1 - beta[0]) * (1 - beta[1]))).log()
    fraction = (rows["output"][:, 3:] + 1) / 2
    log_deviation = 0.5 * (fraction * beta[0].log() + (1 - fraction) * low)
    x_t = loss.diffuse(rows["x"], rows["timestep"], rows["noise"])
    mean = (x_t - beta[0].sqrt() * rows["output"][:, :3]) / (1 - beta[0]).sqrt()
    likelihood = discretised_log_likelihood(rows["x"], mean.float(), log_deviation.float())
    assert bound.item() == pytest.approx(-likelihood.mean().item() / math.log(2), rel=1e-3)


def test_the_bound_leaves_epsilon_alone(rows: dict[str, torch.Tensor]) -> None:
    rows["timestep"][:5] = 0
    rows["output"].requires_grad_()
    _, bound = losses(rows)
    bound.backward()
    gradient = rows["output"].grad
    assert gradient is not None
    assert not gradient[:, :3].any()
    assert gradient[:, 3:].any()


def test_bytes_are_certain_of_being_some_byte() -> None:
    x = torch.linspace(-1, 1, 256)
    for mean, deviation in [(0.1, 0.3), (-1.0, 0.01), (0.9, 1.0)]:
        log = discretised_log_likelihood(x, torch.tensor(mean), torch.tensor(math.log(deviation)))
        assert log.exp().sum().item() == pytest.approx(1, abs=1e-4)
