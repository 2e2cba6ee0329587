from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import nn

try:
    import torchvision  # noqa: F401
except RuntimeError:
    # A torchvision that was built for another torch lacks its operators. torch-fidelity
    # imports it and uses its transforms alone, so that the names of two operators are enough.
    OPERATORS = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        OPERATORS.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights with the layout of the official ones."""
    torch.manual_seed(0)
    from torch_fidelity import feature_extractor_inceptionv3 as library

    nothing = mock.patch.object(library, "load_state_dict_from_url", return_value={})
    as_it_is = mock.patch.object(nn.Module, "load_state_dict")
    with nothing, as_it_is:
        network = library.FeatureExtractorInceptionV3("random", ["2048"])
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            # Of a size that signals neither die nor grow on their way.
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(network.state_dict(), path)
    return path
