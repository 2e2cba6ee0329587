"""A small multilayer perceptron in NumPy, trained on the spot."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

HIDDEN = 64
BATCH = 256
UPDATES = 1500
RATE = 2e-3
DECAY = 1e-2
BETAS = (0.9, 0.99)


class MLP:
    """Regression with one hidden layer of rectified units (ReLU).

    Adam (arXiv 1412.6980) with decoupled weight decay and a rate that falls to zero along a
    cosine. Inputs and outputs are standardised by the training rows. The same seed and rows
    give the same network.
    """

    def __init__(self, inputs: Floats, outputs: Floats, seed: int, updates: int = UPDATES) -> None:
        rng = np.random.default_rng(seed)
        self._centre, self._scale = inputs.mean(axis=0), inputs.std(axis=0) + 1e-6
        self._mean, self._spread = outputs.mean(axis=0), outputs.std(axis=0) + 1e-6
        x = (inputs - self._centre) / self._scale
        y = (outputs - self._mean) / self._spread
        width = x.shape[1]
        self._weights: list[npt.NDArray[np.float32]] = [
            rng.standard_normal((width, HIDDEN), np.float32) * np.float32(np.sqrt(2 / width)),
            np.zeros(HIDDEN, np.float32),
            # The first prediction is the mean.
            np.zeros((HIDDEN, y.shape[1]), np.float32),
            np.zeros(y.shape[1], np.float32),
        ]
        self._train(x, y, rng, updates)

    def predict(self, inputs: Floats) -> Floats:
        """Predicted outputs, [rows, C]."""
        _, scaled = self._forward((inputs - self._centre) / self._scale)
        predicted: Floats = scaled * self._spread + self._mean
        return predicted

    def _forward(self, x: Floats) -> tuple[Floats, Floats]:
        first, first_bias, second, second_bias = self._weights
        hidden = np.maximum(x @ first + first_bias, 0)
        return hidden, hidden @ second + second_bias

    def _train(self, x: Floats, y: Floats, rng: np.random.Generator, updates: int) -> None:
        means = [np.zeros_like(weight) for weight in self._weights]
        squares = [np.zeros_like(weight) for weight in self._weights]
        for update in range(updates):
            rows = rng.integers(len(x), size=min(BATCH, len(x)))
            rate = RATE * 0.5 * (1 + np.cos(np.pi * update / updates))
            gradients = self._gradients(x[rows], y[rows])
            for weight, gradient, mean, square in zip(
                self._weights, gradients, means, squares, strict=True
            ):
                mean += (1 - BETAS[0]) * (gradient - mean)
                square += (1 - BETAS[1]) * (gradient**2 - square)
                direction = mean / (1 - BETAS[0] ** (update + 1))
                size = np.sqrt(square / (1 - BETAS[1] ** (update + 1))) + 1e-8
                weight -= np.float32(rate) * (direction / size + DECAY * weight)

    def _gradients(self, x: Floats, y: Floats) -> list[Floats]:
        hidden, predicted = self._forward(x)
        error = (predicted - y) * np.float32(2 / len(x))
        back = (error @ self._weights[2].T) * (hidden > 0)
        return [x.T @ back, back.sum(axis=0), hidden.T @ error, error.sum(axis=0)]
