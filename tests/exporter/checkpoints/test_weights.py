from pathlib import Path

import pytest
import torch

from disa.errors import DisaError
from disa.exporter.checkpoints import weights
from disa.exporter.checkpoints.checkpoint import Checkpoint, open_checkpoint
from disa.exporter.checkpoints.tensor_names import LEADING_NAMES, is_counter
from disa.exporter.checkpoints.weights import select_weights
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


@pytest.mark.parametrize("average", ["a", "a.b"])
def test_many_models_and_averages(average: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every average was compared with the names of every model."""
    replaced = 0

    class Name(str):
        __slots__ = ()

        def replace(self, *arguments: str) -> str:  # type: ignore[override]
            nonlocal replaced
            replaced += 1
            return str(self).replace(*arguments)

        def removeprefix(self, _prefix: str) -> str:
            return self

    names = {Name("known"): Name("known"), Name("beside"): Name("beside"), "x": "y"}
    monkeypatch.setattr(
        weights, "_unwrap", lambda found, _: names if len(found.tensors) > 1 else {}
    )
    one = torch.ones(1)
    document = {f"m{n}": {"known": one, "beside": one} for n in range(100)}
    document |= {f"ema_{n}": {average: one} for n in range(100)}
    with pytest.raises(DisaError, match="is there more than once"):
        select_weights(document, Path("c.pth"), recognise=is_known)
    assert replaced <= 2 * 100


def test_many_sets_of_tensors() -> None:
    document = {f"{n}": {"a": torch.ones(1)} for n in range(weights.MAX_SETS)}
    assert select_weights(document, Path("c.pth")).key == "0"
    with pytest.raises(DisaError, match="too many sets of tensors"):
        select_weights({**document, "more": {"a": torch.ones(1)}}, Path("c.pth"))


def test_prefixes_are_not_removed_in_every_order() -> None:
    calls = 0

    def recognise(_names: object) -> bool:
        nonlocal calls
        calls += 1
        return False

    names = [f"{'.'.join([name] * 6)}.weight" for name in sorted(LEADING_NAMES - {"module"})]
    select_weights({name: torch.ones(1) for name in names}, Path("c.pth"), recognise=recognise)
    assert calls < 500
