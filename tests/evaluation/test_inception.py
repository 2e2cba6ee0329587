from pathlib import Path

import pytest
import torch

from disa.errors import DisaError
from disa.evaluation.inception import Inception


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", None])
def test_other_weights(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    if content is None:
        torch.save({"Conv2d_1a_3x3.conv.weight": torch.zeros(3)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(DisaError, match="is not the Inception network"):
        Inception(path)
    with pytest.raises(DisaError, match="cannot be read"):
        Inception(tmp_path / "missing.pth")


@pytest.mark.parametrize("device", ["abacus", "cuda:99"])
def test_devices_that_do_not_exist(device: str, inception_weights: Path) -> None:
    """The weights are not to blame."""
    with pytest.raises(DisaError, match=f"cannot run on the device '{device}' .*--device"):
        Inception(inception_weights, device)
