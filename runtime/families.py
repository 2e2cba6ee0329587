"""How each family is drawn: its conditions, its sampling options, its loop."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..engines.plan import Plan
from ..engines.session import Array, Session
from ..errors import DisaError
from .counts import read_count, read_counts
from .flow import FlowSettings
from .flowar import FlowARLoop
from .harmon import Grid, HarmonLoop, parse_size
from .labels import find_class
from .mar import MARLoop
from .masked import Watcher, check_iterations
from .noise import NoiseSource
from .prompt import TOKENIZER_MEMBER, Tokenizer, encode_prompts
from .sampler import SamplerName
from .schedule import AnnealedSchedule, Schedule, Strategy, as_schedule, parse_steps
from .settings import GuidanceSchedule, Settings
from .stats import Stats
from .xar import XARLoop

AnySettings = Settings | FlowSettings
Sessions = Mapping[str, Session]
Options = Mapping[str, Any]

ADAPTIVE_TOLERANCE = 0.05
"""The tolerance of the strategy "adaptive" when none is given."""


class Family(Protocol):
    """A loaded model of some family.

    Attributes:
        width: width of the widest transformer, for the choice of a batch size.
        sequence: tokens that it sees at most.
    """

    width: int
    sequence: int

    @property
    def classes(self) -> int | None:
        """Number of classes; None for a family that draws prompts."""
        ...

    def settings(self, options: Options, schedule: Schedule | None) -> AnySettings:
        """Sampling options by their command-line names; all of the plan's defaults are there."""
        ...

    def iterations(self, settings: Any) -> int:
        """AR iterations of an image."""
        ...

    def conditions(self, wanted: Sequence[Any]) -> list[Any]:
        """Class numbers of classes, or prompts; DisaError for what does not exist."""
        ...

    def draw(
        self,
        conditions: Sequence[Any],
        settings: Any,
        noise: NoiseSource,
        stats: Stats,
        watch: Watcher | None = None,
    ) -> dict[str, Array]:
        """Draw a batch: `latents` [batch, c, h, w] and, where there is a decoder, `image`."""
        ...


class ClassConditioned:
    """What the families that draw classes have in common."""

    def __init__(self, plan: Plan, sessions: Sessions) -> None:
        self.classes = read_count(plan, "model", "class_num")
        self.channels = read_count(plan, "tokens", "channels")
        self.tokens = read_count(plan, "tokens", "count")
        self.width = read_count(plan, "model", "encoder_embed_dim")
        buffered = "buffer_size" in plan.manifest.model
        buffer = read_count(plan, "model", "buffer_size") if buffered else 0
        self.sequence = buffer + self.tokens
        self._names = plan.manifest.class_names
        self._decoder = sessions["decoder"]

    def conditions(self, wanted: Sequence[Any]) -> list[Any]:
        return [
            self.classes if label is None else find_class(label, self.classes, self._names)
            for label in wanted
        ]


class MARFamily(ClassConditioned):
    """Masked autoregressive generation of a class."""

    def __init__(self, plan: Plan, sessions: Sessions) -> None:
        super().__init__(plan, sessions)
        self.loop = MARLoop(sessions, self.tokens, self.channels, self.classes)

    def settings(self, options: Options, schedule: Schedule | None) -> Settings:
        settings = Settings(**_masked_options(options, schedule))
        check_iterations(settings.iterations, self.tokens)
        return settings

    def iterations(self, settings: Settings) -> int:
        return settings.iterations

    def draw(
        self,
        conditions: Sequence[Any],
        settings: Settings,
        noise: NoiseSource,
        stats: Stats,
        watch: Watcher | None = None,
    ) -> dict[str, Array]:
        labels = np.asarray(conditions, np.int64)
        tokens, positions = self.loop.generate(labels, settings, noise, stats, watch)
        with stats.timed("decoder"):
            return self._decoder.run({"tokens": tokens, "positions": positions})


class FlowFamily(ClassConditioned):
    """FlowAR and xAR: a fixed number of AR steps, each denoised along a flow."""

    def __init__(
        self, plan: Plan, sessions: Sessions, loop: FlowARLoop | XARLoop, iterations: int
    ) -> None:
        super().__init__(plan, sessions)
        self.loop, self._iterations = loop, iterations

    @classmethod
    def flowar(cls, plan: Plan, sessions: Sessions) -> "FlowFamily":
        scales = read_counts(plan, "tokens", "scales")
        channels = read_count(plan, "tokens", "channels")
        classes = read_count(plan, "model", "class_num")
        return cls(plan, sessions, FlowARLoop(sessions, scales, channels, classes), len(scales))

    @classmethod
    def xar(cls, plan: Plan, sessions: Sessions) -> "FlowFamily":
        clusters, tokens, channels = (
            read_count(plan, "tokens", name) for name in ("clusters", "count", "channels")
        )
        *_, rows = read_counts(plan, "tokens", "dimensions", "rows")
        classes = read_count(plan, "model", "class_num")
        loop = XARLoop(sessions, clusters, tokens, channels, classes, rows)
        return cls(plan, sessions, loop, clusters)

    def settings(self, options: Options, schedule: Schedule | None) -> FlowSettings:
        return FlowSettings(
            schedule or _annealed(options),
            float(options["cfg"]),
            float(options.get("guidance_interval", 1.0)),
            _tolerance(options),
        )

    def iterations(self, settings: FlowSettings) -> int:
        del settings
        return self._iterations

    def draw(
        self,
        conditions: Sequence[Any],
        settings: FlowSettings,
        noise: NoiseSource,
        stats: Stats,
        watch: Watcher | None = None,
    ) -> dict[str, Array]:
        labels = np.asarray(conditions, np.int64)
        tokens = self.loop.generate(labels, settings, noise, stats, watch)
        with stats.timed("decoder"):
            return self._decoder.run({"tokens": tokens})


@dataclass(frozen=True)
class HarmonSettings(Settings):
    """Sampling options of Harmon; `grid` is height and width in tokens."""

    grid: Grid = (32, 32)


class HarmonFamily:
    """Masked autoregressive generation of a prompt."""

    classes: int | None = None

    def __init__(self, plan: Plan, sessions: Sessions) -> None:
        self._plan = plan
        self._stride = read_count(plan, "tokens", "stride")
        self.vocabulary = read_count(plan, "model", "llm", "vocab_size")
        self._tokenizer: Tokenizer | None = None
        native = read_count(plan, "tokens", "native_grid")
        self.width = read_count(plan, "model", "llm", "hidden_size")
        self.sequence = read_count(plan, "tokens", "count")
        self.loop = HarmonLoop(sessions, native, read_count(plan, "tokens", "channels"))

    @property
    def tokenizer(self) -> Tokenizer:
        """The plan's tokenizer, read when a prompt is first needed."""
        if self._tokenizer is None:
            if TOKENIZER_MEMBER not in self._plan.manifest.members:
                raise DisaError(
                    f"{self._plan.path} has no tokenizer, so it cannot read prompts: export it "
                    "again with --tokenizer DIR"
                )
            self._tokenizer = Tokenizer(bytes(self._plan.read(TOKENIZER_MEMBER)))
        return self._tokenizer

    def settings(self, options: Options, schedule: Schedule | None) -> HarmonSettings:
        grid = parse_size(options["size"], self._stride)
        settings = HarmonSettings(**_masked_options(options, schedule), grid=grid)
        check_iterations(settings.iterations, grid[0] * grid[1])
        return settings

    def iterations(self, settings: HarmonSettings) -> int:
        return settings.iterations

    def conditions(self, wanted: Sequence[Any]) -> list[Any]:
        for prompt in wanted:
            if not isinstance(prompt, str) or not prompt.strip():
                raise DisaError("a prompt is empty: say what to draw")
            self.tokenizer.encode(prompt)
        return list(wanted)

    def draw(
        self,
        conditions: Sequence[Any],
        settings: HarmonSettings,
        noise: NoiseSource,
        stats: Stats,
        watch: Watcher | None = None,
    ) -> dict[str, Array]:
        prompts = encode_prompts(self.tokenizer, conditions, settings.guided)
        prompts.check(self.vocabulary)
        tokens, positions = self.loop.generate(
            prompts, settings.grid, settings, noise, stats, watch
        )
        with stats.timed("decoder"):
            return self.loop.decode(tokens, positions, settings.grid)


FAMILIES: Mapping[str, Callable[[Plan, Sessions], Family]] = {
    "mar": MARFamily,
    "flowar": FlowFamily.flowar,
    "xar": FlowFamily.xar,
    "harmon": HarmonFamily,
}


def open_family(plan: Plan, sessions: Sessions) -> Family:
    """The family that a plan belongs to, with its graphs."""
    name = plan.manifest.family
    if name not in FAMILIES:
        raise DisaError(
            f"{plan.path} holds a model of the family {name}, and this disa knows "
            f"{', '.join(FAMILIES)}: update disa"
        )
    try:
        return FAMILIES[name](plan, sessions)
    except KeyError as error:
        raise DisaError(
            f"{plan.path} has no {error.args[0]} graph, which a {name} model needs: export the "
            "checkpoint again"
        ) from error


def _masked_options(options: Options, schedule: Schedule | None) -> dict[str, Any]:
    return {
        "iterations": int(options["iterations"]),
        "schedule": schedule or _annealed(options),
        "sampler": SamplerName(options["sampler"]),
        "guidance_scale": float(options["cfg"]),
        "guidance_schedule": GuidanceSchedule(options["cfg_schedule"]),
        "temperature": float(options["temperature"]),
        "tolerance": _tolerance(options),
    }


def _tolerance(options: Options) -> float:
    if "tolerance" in options:
        return float(options["tolerance"])
    return ADAPTIVE_TOLERANCE if options["strategy"] == Strategy.ADAPTIVE else 0.0


def _annealed(options: Options) -> Schedule:
    if "schedule" in options:
        return as_schedule(options["schedule"])
    upper, lower = parse_steps(str(options["steps"]))
    return AnnealedSchedule(upper, lower, Strategy(options["strategy"]))
