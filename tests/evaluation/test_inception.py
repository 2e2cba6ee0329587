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
