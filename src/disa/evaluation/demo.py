"""Features of the demo's classifier of Fashion-MNIST."""

import importlib
from typing import Any

from ..errors import DisaError
from .features import ImageFeatures, Images

SIDE = 32


class DemoFeatures:
    """The classifier in the project's folder `demo`; implements `FeatureExtractor`.

    Raises:
        DisaError: this is not the project's folder, or the classifier is not trained.
    """

    name = "demo"

    def __init__(self) -> None:
        try:
            self._module = importlib.import_module("demo.classifier")
        except ImportError as error:
            raise DisaError(
                f"--features demo needs the project's sources ({error}): run it in their folder "
                "as `python -m disa.commands.evaluate`"
            ) from error
        self._classifier = self._module.load()
        self.width = int(self._module.FEATURES)

    def __call__(self, images: Images) -> ImageFeatures:
        grey = images.shape[1:3] == (SIDE, SIDE) and bool((images == images[..., :1]).all())
        if not grey:
            raise DisaError(f"the demo's classifier takes grey images of {SIDE}x{SIDE} pixels")
        features, classes = self._module.classify(self._classifier, images[..., 0])
        return ImageFeatures(features, classes=classes)

    def describe(self) -> dict[str, Any]:
        return {"features": self.name}
