from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from demo.training import Options, Run
from disa.errors import DisaError

OPTIONS = Options(minutes=10, batch_size=4, learning_rate=0.1, ema_rate=0.9, warmup_steps=5)


def small_run(options: Options = OPTIONS) -> Run:
    """A linear model that should become the identity."""
    torch.manual_seed(0)
    model, data = nn.Linear(3, 3), torch.randn(20, 3)

    def loss(rows: Tensor) -> dict[str, Tensor]:
        error = (model(data[rows]) - data[rows]).square().mean()
        return {"loss": error, "twice": 2 * error}

    return Run(model, loss, len(data), options)


def test_the_loss_falls() -> None:
    run = small_run()
    losses = [run.train_step(torch.arange(4)) for _ in range(40)]
    assert losses[-1]["loss"] < 0.1 * losses[0]["loss"]
    assert losses[0]["twice"] == pytest.approx(2 * losses[0]["loss"])
    assert run.epoch == 40 * 4 / 20


def test_the_rate_falls_with_the_clock() -> None:
    run = small_run()
    assert run.learning_rate() == pytest.approx(0.1 / 5)
    run.step, run.seconds = 100, 300.0
    assert run.learning_rate() == pytest.approx(0.05)
    run.seconds = 601.0
    assert run.learning_rate() == 0


def test_the_average_follows_the_weights() -> None:
    run = small_run()
    for _ in range(200):
        run.train_step(torch.arange(20))
    run.options.learning_rate = 0.0
    for _ in range(100):
        run.train_step(torch.arange(4))
    for key, value in run.averaged().items():
        torch.testing.assert_close(value, run.parameters[key].detach(), rtol=0, atol=1e-3)


def test_a_stopped_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = Options(minutes=0.002, batch_size=4, learning_rate=0.1)
    finished: list[int] = []
    run = small_run(options)
    run.train(tmp_path / "work" / "state.pt", lambda run: finished.append(run.step))
    assert finished == [run.step]
    options.minutes = 0.004
    again = small_run(options)
    again.train(tmp_path / "work" / "state.pt", lambda run: finished.append(run.step))
    assert f"continues at step {finished[0]}" in capsys.readouterr().out
    assert finished[1] > finished[0]
    assert again.seconds >= 0.24


def test_a_gradient_that_is_not_finite_stops_the_run() -> None:
    run = small_run()
    run.parameters["weight"].data.fill_(torch.inf)
    with pytest.raises(DisaError, match="lower learning rate"):
        run.train_step(torch.arange(4))
