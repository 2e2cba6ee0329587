"""A small multilayer perceptron in NumPy."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ...engines.array_types import Floats

HIDDEN = 128
BATCH = 256
UPDATES = 2000
CHECK_EVERY = 50
PATIENCE = 6
"""Checks without improvement after which training stops."""
RATE = 1e-3
DECAY = 1e-2
BETAS = (0.9, 0.99)
RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Penalties of the linear part, as shares of the number of rows."""


@dataclass
class Scaling:
    """Shift and scale of columns that give `rows` mean 0 and standard deviation 1."""

    rows: Floats
    mean: Floats = field(init=False)
    deviation: Floats = field(init=False)

    def __post_init__(self) -> None:
        self.mean, self.deviation = self.rows.mean(axis=0), self.rows.std(axis=0) + 1e-6

    def __call__(self, values: Floats) -> Floats:
        scaled: Floats = (values - self.mean) / self.deviation
        return scaled

    def back(self, scaled: Floats) -> Floats:
        """Undo the scaling."""
        values: Floats = scaled * self.deviation + self.mean
        return values


class MLP:
    """Regression with one hidden layer of rectified linear units (ReLU) plus a linear part.

    The linear part is fitted first, by ridge regression; the hidden layer learns the residual with
    Adam (arXiv 1412.6980) and decoupled weight decay. Held-out rows select the penalty and the end
    of training: the network is the one that was best on them, so with little data the network is
    weak but not unstable. The same seed and rows give the same network.

    Args:
        inputs: [rows, inputs]; the columns of inputs and outputs are standardised.
        outputs: [rows, outputs].
        held_out: rows that are not used for training, [rows]. Rows that belong together should be
            held out together.
    """

    def __init__(
        self,
        inputs: Floats,
        outputs: Floats,
        held_out: npt.NDArray[np.bool_],
        seed: int,
        updates: int = UPDATES,
    ) -> None:
        rng = np.random.default_rng(seed)
        self._in, self._out = Scaling(inputs[~held_out]), Scaling(outputs[~held_out])
        x, y = self._in(inputs), self._out(outputs)
        self._linear = best_ridge(x[~held_out], y[~held_out], x[held_out], y[held_out])
        width, rest = x.shape[1], y - x @ self._linear
        self._weights: list[Floats] = [
            rng.standard_normal((width, HIDDEN), np.float32) * np.float32(np.sqrt(2 / width)),
            np.zeros(HIDDEN, np.float32),
            # Initially only the linear part has an effect.
            np.zeros((HIDDEN, y.shape[1]), np.float32),
            np.zeros(y.shape[1], np.float32),
        ]
        training = (x[~held_out], rest[~held_out])
        self._train(*training, (x[held_out], rest[held_out]), rng, updates)

    def predict(self, inputs: Floats) -> Floats:
        """Predicted outputs, [rows, outputs]."""
        x = self._in(inputs)
        return self._out.back(x @ self._linear + self._forward(x)[1])

    def _forward(self, x: Floats) -> tuple[Floats, Floats]:
        first, first_bias, second, second_bias = self._weights
        hidden = np.maximum(x @ first + first_bias, 0)
        return hidden, hidden @ second + second_bias

    def _train(
        self,
        x: Floats,
        y: Floats,
        held_out: tuple[Floats, Floats],
        rng: np.random.Generator,
        updates: int,
    ) -> None:
        means = [np.zeros_like(weight) for weight in self._weights]
        squares = [np.zeros_like(weight) for weight in self._weights]
        best, least, checks = self._copy(), self._error(*held_out), 0
        for update in range(1, updates + 1):
            rows = rng.integers(len(x), size=min(BATCH, len(x)))
            for weight, gradient, mean, square in zip(
                self._weights, self._gradients(x[rows], y[rows]), means, squares, strict=True
            ):
                mean += (1 - BETAS[0]) * (gradient - mean)
                square += (1 - BETAS[1]) * (gradient**2 - square)
                direction = mean / (1 - BETAS[0] ** update)
                size = np.sqrt(square / (1 - BETAS[1] ** update)) + 1e-8
                weight -= np.float32(RATE) * (direction / size + DECAY * weight)
            if update % CHECK_EVERY == 0:
                error = self._error(*held_out)
                if error < least:
                    best, least, checks = self._copy(), error, 0
                elif (checks := checks + 1) == PATIENCE:
                    break
        self._weights = best

    def _copy(self) -> list[Floats]:
        return [weight.copy() for weight in self._weights]

    def _error(self, x: Floats, y: Floats) -> float:
        return float(np.square(self._forward(x)[1] - y).mean())

    def _gradients(self, x: Floats, y: Floats) -> list[Floats]:
        hidden, predicted = self._forward(x)
        error = (predicted - y) * np.float32(2 / len(x))
        back = (error @ self._weights[2].T) * (hidden > 0)
        return [x.T @ back, back.sum(axis=0), hidden.T @ error, error.sum(axis=0)]


def best_ridge(x: Floats, y: Floats, held_x: Floats, held_y: Floats) -> Floats:
    """The linear map [inputs, outputs] of ridge regression that is best on the held-out rows."""
    square, product = x.T @ x, x.T @ y
    unit = np.eye(len(square), dtype=np.float32) * np.float32(len(x))
    maps = [np.linalg.solve(square + np.float32(ridge) * unit, product) for ridge in RIDGES]
    errors = [np.square(held_x @ found - held_y).mean() for found in maps]
    best: Floats = maps[int(np.argmin(errors))]
    return best
