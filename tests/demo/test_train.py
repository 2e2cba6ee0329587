from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from demo import train
from demo.model import TrainingMAR, initialise, masked_count, patchify
from disa.exporter.checkpoint import open_checkpoint
from disa.exporter.mar import MAR
from disa.exporter.mar_config import Config

TINY = Config(
    img_size=8,
    vae_stride=1,
    patch_size=4,
    vae_embed_dim=1,
    class_num=3,
    buffer_size=2,
    encoder_embed_dim=16,
    encoder_depth=1,
    encoder_num_heads=2,
    decoder_embed_dim=32,
    decoder_depth=2,
    decoder_num_heads=2,
    diffloss_d=1,
    diffloss_w=32,
)
OPTIONS = train.Options(
    minutes=10, batch_size=8, learning_rate=3e-3, ema_rate=0.99, warmup_steps=5, seed=0
)


def test_patches_are_row_major() -> None:
    images = torch.arange(2 * 1 * 8 * 8).view(2, 1, 8, 8)
    tokens = patchify(images, 4)
    assert tokens.shape == (2, 4, 16)
    assert torch.equal(tokens[1, 1].view(4, 4), images[1, 0, :4, 4:])


def test_mask_counts_lie_in_the_range() -> None:
    generator = torch.Generator().manual_seed(0)
    counts = [masked_count(64, 0.7, generator) for _ in range(2000)]
    assert min(counts) == 45
    assert max(counts) == 64
    # the mean of 1 - 0.25 |n|, cut to 0.7..1
    assert np.mean(counts) / 64 == pytest.approx(0.876, abs=0.01)


def test_training_sees_neither_masked_tokens_nor_dropped_labels() -> None:
    torch.manual_seed(0)
    model = MAR(TINY)
    initialise(model)
    training = TrainingMAR(model)
    known, order = torch.randn(2, 1, 16), torch.tensor([[3, 0, 1, 2], [1, 2, 3, 0]])
    labels = torch.tensor([0, 1])
    dropped = torch.tensor([True, False])
    condition = training.condition(known, labels, order, dropped)
    other = training.condition(known, torch.tensor([2, 2]), order, dropped)
    assert condition.shape == (2, 3, 32)
    assert torch.equal(condition[0], other[0])
    assert not torch.allclose(condition[1], other[1])


def test_the_loss_falls() -> None:
    run = train.Run(OPTIONS, torch.device("cpu"), TINY)
    labels = torch.arange(8) % 3
    images = (labels.float() - 1)[:, None, None, None].expand(8, 1, 8, 8) * 0.8
    first = run.train_step(images, labels)[0].item()
    for _ in range(30):
        last = run.train_step(images, labels)[0].item()
    assert first == pytest.approx(1, abs=0.2)
    assert last < 0.6
    assert run.images == 31 * 8


def test_the_rate_falls_with_the_clock() -> None:
    run = train.Run(OPTIONS, torch.device("cpu"), TINY)
    assert run.learning_rate() == pytest.approx(3e-3 / 5)
    run.step, run.seconds = 100, 300.0
    assert run.learning_rate() == pytest.approx(1.5e-3)
    run.seconds = 601.0
    assert run.learning_rate() == 0


def test_a_short_run_writes_an_official_checkpoint_and_resumes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write_split: Callable[[np.ndarray, np.ndarray], None],
) -> None:
    random = np.random.default_rng(0)
    write_split(random.integers(0, 256, (20, 28, 28)), random.integers(0, 3, 20))
    model = Config(**{**vars(TINY), "img_size": 32})
    monkeypatch.setattr(train.Run.__init__, "__defaults__", (model,))
    output = tmp_path / "model.pth"
    command = ["--minutes", "0.005", "--batch-size", "4", "--device", "cpu", "--data", tmp_path]
    command += ["--work", tmp_path, "-o", output]
    arguments = [str(part) for part in command]
    result = CliRunner().invoke(train.main, arguments)
    assert result.exit_code == 0, result.output
    content = open_checkpoint(output)
    assert content.state.keys() == dict(MAR(model).named_parameters()).keys()
    result = CliRunner().invoke(train.main, arguments)
    assert "goes on at step" in result.output


def test_missing_data_is_one_sentence(tmp_path: Path) -> None:
    arguments = ["--data", str(tmp_path), "--work", str(tmp_path), "--minutes", "0.01"]
    result = CliRunner().invoke(train.main, arguments)
    assert result.exit_code == 1
    assert "dataset-fashion-mnist" in result.output
    assert result.output.count("\n") == 1
