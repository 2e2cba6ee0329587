from pathlib import Path

import pytest
import torch

from disa.errors import DisaError
from disa.exporter.checkpoints import weights
from disa.exporter.checkpoints.checkpoint import Checkpoint, open_checkpoint
from disa.exporter.checkpoints.weights import (
    LEADING_NAMES,
    is_counter,
    looks_averaged,
    select_weights,
)
from disa.exporter.families.registry import is_known

from .layouts import ALONE, AVERAGED, UNCLEAR, Source

GOLDEN = Path(__file__).parents[2] / "golden" / "mar" / "checkpoint.pth"


@pytest.fixture(scope="module")
def source() -> Source:
    golden = torch.load(GOLDEN, weights_only=False)
    return Source(dict(golden["model_ema"]), dict(golden["model"]), golden["args"])


def opened(path: Path, document: object, weights: str | None = None) -> Checkpoint:
    torch.save(document, path)
    return open_checkpoint(path, weights, is_known)


def check_equal(checkpoint: Checkpoint, expected: dict[str, torch.Tensor]) -> None:
    state = {k: t for k, t in checkpoint.state.items() if not is_counter(k, t)}
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in expected)


@pytest.mark.parametrize("name", AVERAGED)
def test_averaged_weights_are_taken(name: str, tmp_path: Path, source: Source) -> None:
    key, make = AVERAGED[name]
    checkpoint = opened(tmp_path / "c.pth", make(source))
    check_equal(checkpoint, source.averaged)
    assert (checkpoint.weights, checkpoint.averaged) == (key, True)


@pytest.mark.parametrize("name", ALONE)
def test_the_only_weights_are_taken(name: str, tmp_path: Path, source: Source) -> None:
    key, make = ALONE[name]
    checkpoint = opened(tmp_path / "c.pth", make(source))
    check_equal(checkpoint, source.averaged)
    assert (checkpoint.weights, checkpoint.averaged) == (key, False)


@pytest.mark.parametrize("name", UNCLEAR)
def test_an_unclear_choice_is_the_users(name: str, tmp_path: Path, source: Source) -> None:
    sentence, make = UNCLEAR[name]
    with pytest.raises(DisaError, match=f"{sentence}.*--weights KEY"):
        opened(tmp_path / "c.pth", make(source))


def test_weights_that_were_asked_for(tmp_path: Path, source: Source) -> None:
    document = UNCLEAR["two averages"][1](source)
    checkpoint = opened(tmp_path / "c.pth", document, "ema_0.999")
    check_equal(checkpoint, source.averaged)
    assert checkpoint.averaged
    check_equal(opened(tmp_path / "c.pth", document, "model"), source.raw)
    with pytest.raises(DisaError, match=r"no weights under the key 'emma': choose one of model, "):
        opened(tmp_path / "c.pth", document, "emma")
    shadow = UNCLEAR["shadow parameters"][1](source)
    with pytest.raises(DisaError, match="have no names"):
        opened(tmp_path / "c.pth", shadow, "ema.shadow_params")


def test_weights_that_were_taken_before(tmp_path: Path, source: Source) -> None:
    torch.save({"model": source.raw, "ema": source.averaged}, tmp_path / "c.pth")
    torch.save(source.averaged, tmp_path / "plain.pth")
    raw = open_checkpoint(tmp_path / "c.pth", None, is_known, recorded="model")
    check_equal(raw, source.raw)
    plain = open_checkpoint(tmp_path / "plain.pth", None, is_known, recorded="model")
    check_equal(plain, source.averaged)


def test_other_tensors_beside_the_model_keep_their_names(tmp_path: Path, source: Source) -> None:
    state = {f"model.{k}": t for k, t in source.averaged.items()} | {"loss.w": torch.ones(3)}
    checkpoint = opened(tmp_path / "c.pth", {"state_dict": state})
    assert checkpoint.state.keys() - source.averaged.keys() == {"loss.w"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ema", True), ("EMA", True), ("model_ema", True), ("emaModel", True), ("swa_model", True),
        ("WeightAveraging", True), ("shadow_params", True), ("avg_model", True),
        ("schema", False), ("email", False), ("exp_avg_sq", False), ("square_avg", False),
        ("time_embed", False), ("model", False),
    ],
)  # fmt: skip
def test_names_of_averages(name: str, expected: bool) -> None:
    assert looks_averaged(name) == expected


def test_dicts_that_are_contained_many_times(
    tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "MAX_ENTRIES", 5000)
    inner: dict[str, object] = {f"{n}": {} for n in range(100)}
    document = {"model": source.raw, "state": {f"{n}": inner for n in range(20)}}
    assert opened(tmp_path / "c.pth", document).weights == "model"
    document["state"] |= {f"more {n}": inner for n in range(40)}
    with pytest.raises(DisaError, match="too many nested values"):
        opened(tmp_path / "c.pth", document)


def test_prefixes_are_not_removed_in_every_order() -> None:
    calls = 0

    def recognise(_names: object) -> bool:
        nonlocal calls
        calls += 1
        return False

    names = [f"{'.'.join([name] * 6)}.weight" for name in sorted(LEADING_NAMES - {"module"})]
    select_weights({name: torch.ones(1) for name in names}, Path("c.pth"), recognise=recognise)
    assert calls < 500
