"""A denoising step: a network, and the sampler's update with the network's prediction.

A head's graph has one of each. The update reads all properties of the sampler from a table of
coefficients, so that one graph serves all schedules, and rows at different steps share a call.
"""

from torch import Tensor, nn

from ..graphs.graph import Shape
from .transformer import guided


class Network(nn.Module):
    """The network of a denoising step.

    `forward` receives the arrays listed in `inputs`, `x` [..., C] first, and returns
    [guidance, ..., outputs]; guidance is (conditional, unconditional), or one entry for no
    guidance.
    """

    inputs: tuple[str, ...]


class Update(nn.Module):
    """Computes the next state from a state and the prediction; all in fp32.

    Attributes:
        columns: columns of the table of coefficients.
        takes_noise: whether it adds noise.
    """

    columns: int
    takes_noise: bool = False

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of its graph inputs."""
        noise = ("noise",) if self.takes_noise else ()
        return ("coefficients", "guidance_scale", *noise)


class LearnedVariance(Update):
    """A step of DDPM, DDIM or DPM-Solver with the variance that the network interpolates.

    Coefficients: of x, of epsilon, lower and upper log-variance, noise scale. Equation 15 of
    Nichol and Dhariwal, "Improved denoising diffusion probabilistic models".
    """

    columns, takes_noise = 5, True

    def forward(
        self,
        x: Tensor,
        prediction: Tensor,
        coefficients: Tensor,
        guidance_scale: Tensor,
        noise: Tensor,
    ) -> Tensor:
        """`x` and `noise` [rows, C], `prediction` [guidance, rows, 2C] -> [rows, C]."""
        epsilon, variance = prediction.split(x.shape[-1], dim=-1)
        of_x, of_epsilon, low, high, noise_scale = coefficients.split(1, dim=-1)
        fraction = (variance[0] + 1) / 2
        deviation = noise_scale * (0.5 * (fraction * high + (1 - fraction) * low)).exp()
        return of_x * x + of_epsilon * guided(epsilon, guidance_scale) + deviation * noise


class Euler(Update):
    """A step along a velocity. Coefficients: of x and of the velocity.

    The state stays in fp32: an Euler sum of a few hundred terms loses less precision in it than
    the fp32 network loses in one call.
    """

    columns = 2

    def forward(
        self, x: Tensor, prediction: Tensor, coefficients: Tensor, guidance_scale: Tensor
    ) -> Tensor:
        """`x` [tokens, batch, C], `prediction` [guidance, tokens, batch, C] -> like `x`."""
        of_x, of_velocity = coefficients.split(1, dim=-1)
        return of_x * x + of_velocity * guided(prediction, guidance_scale)


class EulerMaruyama(Update):
    """A step of the stochastic equation with the same marginals as the flow.

    Coefficients: of x, of the velocity and of the noise. The score of a linear path is
    -((1 - t) v + x) / t, so the drift v - t * score is (2 - t) v + x: linear in v and x, and
    guidance of drifts is guidance of velocities.
    """

    columns, takes_noise = 3, True

    def forward(
        self,
        x: Tensor,
        prediction: Tensor,
        coefficients: Tensor,
        guidance_scale: Tensor,
        noise: Tensor,
    ) -> Tensor:
        """`x` and `noise` [tokens, batch, C], `prediction` [guidance, tokens, batch, C]."""
        of_x, of_velocity, of_noise = coefficients.split(1, dim=-1)
        return of_x * x + of_velocity * guided(prediction, guidance_scale) + of_noise * noise


class DenoisingStep(nn.Module):
    """One complete step of a sampler, for a graph.

    Attributes:
        inputs: the names of its inputs, in order: those of the network, `step` [rows or batch],
            which is the row of each entry in the tables, and those of the update.
    """

    def __init__(self, network: Network, update: Update) -> None:
        super().__init__()
        self.network, self.update = network, update
        own = network.inputs
        self.inputs = (*own, *(() if "step" in own else ("step",)), *update.inputs)

    def forward(self, *arrays: Tensor) -> Tensor:
        """Compute `x` at the next step's time.

        Args:
            arrays: those listed in `inputs`; `coefficients` is a table [steps, columns], and
                `guidance_scale` has an entry for each of `step`.
        """
        given = dict(zip(self.inputs, arrays, strict=True))
        prediction = self.network(*(given[name] for name in self.network.inputs))
        # `coefficients[step]` would be a GatherND, which ONNX Runtime cannot replay in a CUDA
        # graph.
        coefficients = given["coefficients"].index_select(0, given["step"])
        rest = (given[name] for name in self.update.inputs[1:])
        result: Tensor = self.update(given["x"], prediction, coefficients, *rest)
        return result

    def shapes(self, network: dict[str, Shape], rows: str) -> dict[str, Shape]:
        """The symbolic shapes of the inputs, from those of the network.

        Args:
            rows: the dimension whose entries may be at different steps: rows of tokens, or images.
        """
        known: dict[str, Shape] = {
            **network,
            "step": (rows,),
            "coefficients": ("steps", self.update.columns),
            "guidance_scale": (rows,),
            "noise": network["x"],
        }
        return {name: known[name] for name in self.inputs}
