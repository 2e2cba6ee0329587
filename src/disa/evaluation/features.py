"""The interface of networks that extract features from images."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ImageFeatures:
    """The output of a network for a batch of images.

    Attributes:
        features: [batch, width].
        logits: for the Inception score, [batch, classes].
        classes: predicted classes, if the network knows the model's classes, [batch].
    """

    features: npt.NDArray[np.float32]
    logits: npt.NDArray[np.float32] | None = None
    classes: npt.NDArray[np.int64] | None = None


class FeatureExtractor(Protocol):
    """A network that turns images into features.

    Attributes:
        name: name of the features, for results.
        width: number of features of an image.
    """

    name: str
    width: int

    def __call__(self, images: Images) -> ImageFeatures:
        """The features of images [batch, H, W, channels].

        Raises:
            DisaError: the network cannot process these images.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """The weights and versions that determine the features, for the result."""
        ...
