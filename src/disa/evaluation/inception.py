"""Features of the Inception network that defines the FID, through torch-fidelity."""

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DisaError, MissingDependency
from ..files import open_regular
from ..optional import first_line, is_memory_failure
from .features import ImageFeatures, Images

FEATURES = "2048"
LOGITS = "logits_unbiased"
FREE = "weights-inception-2015-12-05-6726825d.pth of torch-fidelity's release v0.2.0"


class Inception:
    """The network of the original FID code, with weights from the user.

    Args:
        weights: file with the converted official weights.
        device: cpu, cuda, or the name of a torch device.
        features: the layer; the FID uses "2048".

    Raises:
        DisaError: the weights cannot be read or belong to another network, or there is no such
            device.
        MissingDependency: torch-fidelity is not installed.
    """

    name = "inception-v3"

    def __init__(self, weights: Path, device: str = "cpu", features: str = FEATURES) -> None:
        try:
            import torch
            import torch_fidelity
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise MissingDependency(error.name or "torch-fidelity", "evaluate") from error
        except RuntimeError as error:  # of torchvision beside a torch that it was not built for
            raise DisaError(
                f"torchvision does not fit the installed torch ({error}): install both from the "
                "same index"
            ) from error
        data = _read(weights)
        self._torch, self._device = torch, device
        try:
            # The library would execute a pickle; a plain state dict contains no code.
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            safe = io.BytesIO()
            torch.save(dict(state), safe)
            safe.seek(0)
            network = FeatureExtractorInceptionV3(
                self.name, [features, LOGITS], feature_extractor_weights_path=safe
            )
        except Exception as error:  # torch raises many types here
            reason = first_line(error)
            raise DisaError(
                f"{weights} is not the Inception network ({reason}): give {FREE}"
            ) from error
        try:
            self._network = network.to(device)
        except (RuntimeError, AssertionError) as error:
            if is_memory_failure(error):
                raise
            raise DisaError(
                f"the network cannot run on the device {device!r} ({first_line(error)}): choose "
                "another one with --device"
            ) from error
        self.width = int(features)
        self._description = {
            "features": self.name,
            "layer": features,
            "weights": weights.name,
            "weights_sha256": hashlib.sha256(data).hexdigest(),
            "torch_fidelity": torch_fidelity.__version__,
            "torch": torch.__version__,
        }

    def __call__(self, images: Images) -> ImageFeatures:
        channels = images.shape[3]
        if channels not in (1, 3):
            raise DisaError(
                f"Inception takes images of 1 or 3 channels, not {channels}: convert them to RGB"
            )
        pixels = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        batch = self._torch.from_numpy(pixels).to(self._device)
        with self._torch.inference_mode():
            features, logits = self._network(batch.expand(-1, 3, -1, -1))
        return ImageFeatures(features.cpu().numpy(), logits.cpu().numpy())

    def describe(self) -> dict[str, Any]:
        return self._description


def _read(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            return file.read()
    except OSError as error:
        raise DisaError(f"{path} cannot be read: {error.strerror or error}: give {FREE}") from error
