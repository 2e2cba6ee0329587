"""How to draw: what every family's token loop is told."""

from dataclasses import dataclass, field
from enum import StrEnum

from ..errors import DisaError
from .sampler import SamplerName, StepTable, step_table
from .schedule import AnnealedSchedule, Schedule, Strategy

MAX_GUIDANCE_SCALE = 1000
MAX_TOLERANCE = 10
ADAPTIVE_SAMPLERS = (SamplerName.DDPM, SamplerName.DDIM)
"""Those whose steps can be left out at run time: their timesteps are whole numbers."""


class GuidanceSchedule(StrEnum):
    """How the guidance scale grows over the AR iterations."""

    LINEAR = "linear"
    CONSTANT = "constant"


@dataclass(frozen=True)
class Settings:
    """Sampling options.

    Attributes:
        iterations: AR iterations of an image.
        schedule: denoising steps of each AR iteration.
        sampler: how the head's prediction becomes a step.
        guidance_scale: classifier-free guidance; 1 is none and costs half.
        guidance_schedule: linear grows from 1 to the scale as tokens become known.
        temperature: scales the noise added at each denoising step.
        tolerance: by how much a token's prediction may change between two steps, in standard
            deviations of a token; tokens leave out steps up to that. 0 takes every step.
    """

    iterations: int = 64
    schedule: Schedule = field(default_factory=AnnealedSchedule)
    sampler: SamplerName = SamplerName.DDPM
    guidance_scale: float = 1.0
    guidance_schedule: GuidanceSchedule = GuidanceSchedule.LINEAR
    temperature: float = 1.0
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise DisaError(f"iterations must be at least 1, not {self.iterations}")
        check_guidance_scale(self.guidance_scale)
        if not 0 <= self.temperature <= 10:
            raise DisaError(f"the temperature goes from 0 to 10, not {self.temperature}")
        check_tolerance(self.tolerance)
        if self.tolerance and self.sampler not in ADAPTIVE_SAMPLERS:
            raise DisaError(f"adaptive steps work with ddpm and ddim, not with {self.sampler}")

    @property
    def guided(self) -> bool:
        """Whether an unconditional half runs along."""
        return self.guidance_scale != 1

    def guidance(self, known: int, tokens: int) -> float:
        """Guidance scale of an iteration after which `known` of `tokens` tokens are known."""
        if self.guidance_schedule is GuidanceSchedule.CONSTANT:
            return self.guidance_scale
        return 1 + (self.guidance_scale - 1) * known / tokens

    def table(self, iteration: int) -> StepTable:
        """The denoising steps of AR iteration `iteration`."""
        return self.table_of(self.schedule.steps(iteration, self.iterations))

    def table_of(self, steps: int) -> StepTable:
        """The table of `steps` nominal denoising steps."""
        return step_table(self.sampler, steps, self.temperature, self._whole_range)

    @property
    def _whole_range(self) -> bool:
        schedule = self.schedule
        return isinstance(schedule, AnnealedSchedule) and schedule.strategy is Strategy.FIXED


def check_guidance_scale(scale: float) -> None:
    """DisaError for a guidance scale that cannot be."""
    if not 0 < scale < MAX_GUIDANCE_SCALE:
        raise DisaError(
            f"the guidance scale must be above 0 and below {MAX_GUIDANCE_SCALE}, not {scale}"
        )


def check_tolerance(tolerance: float) -> None:
    """DisaError for a tolerance of adaptive steps that cannot be."""
    if not 0 <= tolerance <= MAX_TOLERANCE:
        raise DisaError(f"the tolerance goes from 0 to {MAX_TOLERANCE}, not {tolerance}")
