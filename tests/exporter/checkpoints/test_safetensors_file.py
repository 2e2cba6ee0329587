import json
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from disa.errors import DisaError
from disa.exporter.checkpoints.checkpoint import open_checkpoint


def weights() -> dict[str, torch.Tensor]:
    return {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor([1.0, -2.0])}


def refusal(path: Path) -> str:
    """The sentence with which the file is refused."""
    with pytest.raises(DisaError) as caught:
        open_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message


def test_safetensors(tmp_path: Path) -> None:
    for name in ("model.safetensors", "weights.bin"):
        safetensors.torch.save_file(weights(), tmp_path / name)
        checkpoint = open_checkpoint(tmp_path / name)
        assert checkpoint.layout == "safetensors"
        assert torch.equal(checkpoint.state["a.weight"], weights()["a.weight"])
    assert open_checkpoint(tmp_path).state.keys() == weights().keys()


def shard(folder: Path, weight_map: dict[str, Any] | None = None) -> Path:
    for number, (key, tensor) in enumerate(weights().items()):
        safetensors.torch.save_file({key: tensor}, folder / f"model-{number}.safetensors")
    index = folder / "model.safetensors.index.json"
    default = {"a.weight": "model-0.safetensors", "a.bias": "model-1.safetensors"}
    index.write_text(json.dumps({"weight_map": weight_map or default}))
    return index


def test_sharded_safetensors(tmp_path: Path) -> None:
    index = shard(tmp_path)
    for path in (tmp_path, index):
        checkpoint = open_checkpoint(path)
        assert checkpoint.layout == "safetensors, 2 files"
        assert torch.equal(checkpoint.state["a.bias"], weights()["a.bias"])
    before = checkpoint.sha256()
    safetensors.torch.save_file({"a.bias": torch.zeros(2)}, tmp_path / "model-1.safetensors")
    assert open_checkpoint(index).sha256() != before


@pytest.mark.parametrize(
    ("weight_map", "sentence"),
    [
        ({"a.weight": "../model-0.safetensors"}, "only files beside it are opened"),
        ({"a.weight": "/etc/passwd"}, "only files beside it are opened"),
        ({"a.weight": 3}, "only files beside it are opened"),
        ({"a.weight": "model-9.safetensors"}, "lists model-9.safetensors, which is not beside it"),
        ({"b.weight": "model-0.safetensors"}, "1 of its tensors are missing in its files"),
        ([1], "has no weight_map"),
    ],
)
def test_bad_index(tmp_path: Path, weight_map: Any, sentence: str) -> None:
    assert sentence in refusal(shard(tmp_path, weight_map))


def test_safetensors_with_a_broken_header(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    good = safetensors.torch.save(weights())
    length = int.from_bytes(good[:8], "little")
    lying = json.loads(good[8 : 8 + length])
    lying["a.weight"]["shape"] = [2**40, 2**40]
    header = json.dumps(lying).encode()
    for content in (
        good[:-1],
        b"\xff" * 8 + good[8:],
        good[:8] + b"[" + good[9:],
        struct.pack("<Q", len(header)) + header + good[8 + length :],
        b"hello",
    ):
        path.write_bytes(content)
        assert "not a valid safetensors file" in refusal(path)
