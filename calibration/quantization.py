"""Quantises a plan: ranges from real generation, what to leave out, and what it did.

The fp32 plan draws images; the ranges of what its products multiply are counted. Other images
are then drawn with it, and calls of its graphs kept: every choice is judged by them.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..cli import progress_bar
from ..engines.onnxruntime import OnnxRuntimeSession
from ..engines.plan import Plan
from ..engines.plan_writer import PlanWriter
from ..engines.session import Session
from ..errors import DisaError
from ..exporter.plan_graph import PlanGraph
from ..exporter.products import Product
from ..exporter.quantization_options import IMAGES, SPREAD_TOLERANCE, TOKEN_TOLERANCE
from ..exporter.quantize import Format
from ..exporter.scratch import scratch_folder
from ..exporter.sharing import SharedWeights
from ..runtime.noise import PhiloxNoise
from ..runtime.pipeline import Pipeline
from ..runtime.stats import Stats
from .graph_session import GraphSession, RangeSession, scales_of
from .sensitivity import Selection, select
from .states import CountingSession, Differences, FollowingSession, KeepingSession, State

KEPT = ("timestep", "grid", "decoder")
"""Graphs that stay as they are: the first two run once and steer all steps, the last makes the
pixels."""
MAX_BATCH = 4
TIMED_ROUNDS = 3


@dataclass(frozen=True)
class QuantizeOptions:
    """How to quantise a plan.

    Attributes:
        form: int8 or fp8.
        images: drawn to find the ranges; a quarter as many more are drawn to judge by.
        tolerance: largest relative error of a graph's output; products are left out to keep it.
        token_tolerance: largest distance between tokens drawn by both plans in the same
            state, in standard deviations of a token.
        spread_tolerance: largest change of the tokens' standard deviation, as a share of it.
        prompts: texts to draw, for a model that draws texts.
        threads: CPU threads; all physical cores if None.
        check: whether anything is measured, left out or refused.
    """

    form: Format = Format.INT8
    images: int = IMAGES
    tolerance: float = 0.03
    token_tolerance: float = TOKEN_TOLERANCE
    spread_tolerance: float = SPREAD_TOLERANCE
    prompts: Sequence[str] = ()
    seed: int = 0
    threads: int | None = None
    check: bool = True


@dataclass(frozen=True)
class QuantizedGraph:
    """What became of a graph.

    Attributes:
        selection: what is quantised in it.
        seconds: of the kept calls, in fp32 and quantised; zero if not measured.
    """

    name: str
    selection: Selection
    seconds: tuple[float, float] = (0.0, 0.0)

    @property
    def measured(self) -> bool:
        """Whether the graph was compared with fp32."""
        return self.seconds != (0.0, 0.0)

    @property
    def speedup(self) -> float:
        """How many times faster the quantised graph is."""
        before, after = self.seconds
        return before / after if after else 1.0

    def to_json(self) -> dict[str, Any]:
        """The graph's entry in the manifest."""
        selection = self.selection
        content: dict[str, Any] = {
            "products": len(selection.chosen),
            "left_out": [product.node for product in selection.left_out],
        }
        if self.measured:
            content |= {"error": selection.error, "speedup": round(self.speedup, 2)}
        return content


@dataclass(frozen=True)
class Quantized:
    """A quantised plan.

    Attributes:
        tokens: how tokens differ that both plans draw in the same state; None if not measured.
    """

    path: Path
    graphs: Sequence[QuantizedGraph]
    tokens: Differences | None


def quantize(
    source: Path,
    output: Path,
    options: QuantizeOptions,
    report: Callable[[str], object] = lambda stage: None,
) -> Quantized:
    """Make a quantised plan of an fp32 plan.

    Raises DisaError if the plan is damaged, not fp32 or cannot draw, if nothing in it can be
    quantised, or if what is drawn differs by more than is allowed. Nothing is written then.
    """
    with (
        Plan.open(source) as plan,
        scratch_folder(output) as folder,
        PlanWriter(output) as writer,
    ):
        # What is written gets checksums of its own, which must not vouch for damage.
        plan.check()
        job = _Job(plan, folder, options, report)
        job.collect_ranges()
        if options.check:
            job.keep_states()
        graphs = [job.quantize(name) for name in job.graphs]
        if not any(graph.selection.chosen for graph in graphs):
            raise DisaError(
                f"nothing in {source} can be quantised to {options.form.value} within a tolerance "
                f"of {options.tolerance:g}: raise --tolerance, or use the plan as it is"
            )
        tokens = None
        if options.check:
            tokens = job.compare_tokens()
            _enforce(tokens, options)
            report("measuring the speed")
            graphs = [job.timed(graph) for graph in graphs]
        report("writing the plan")
        job.write(writer, graphs, tokens)
    return Quantized(output, graphs, tokens)


class _Job:
    """The steps of quantising one plan."""

    def __init__(
        self, plan: Plan, folder: Path, options: QuantizeOptions, report: Callable[[str], object]
    ) -> None:
        if plan.manifest.precision != "fp32":
            raise DisaError(
                f"{plan.path} is in {plan.manifest.precision}: quantise an fp32 plan, or the "
                "checkpoint"
            )
        self.plan, self.folder, self.options, self.report = plan, folder, options, report
        opened = {
            name: PlanGraph(plan, info, folder)
            for name, info in plan.manifest.graphs.items()
            if name not in KEPT
        }
        self.graphs = {name: graph for name, graph in opened.items() if graph.products}
        if not self.graphs:
            raise DisaError(f"{plan.path} has no matrix products that could be quantised")
        self.full = {name: self._range_session(graph) for name, graph in self.graphs.items()}
        self.rest = {
            name: OnnxRuntimeSession(plan, name, threads=options.threads)
            for name in plan.manifest.graphs
            if name not in self.graphs
        }
        self.states: dict[str, list[State]] = {}
        self.results: dict[str, list[Any]] = {}
        self.models: dict[str, Any] = {}
        self.asked: dict[str, tuple[int, int]] = {}
        pipe = self._pipeline(self.full)
        # Adaptive steps would follow the rounding, and could not be compared one by one.
        self.settings = replace(pipe.settings(), tolerance=0.0)
        self.batch = min(MAX_BATCH, pipe.auto_batch_size(self.settings))
        self.held_out = max(2, options.images // 4)
        self.conditions = self._conditions(pipe, options.images + self.held_out)

    def _range_session(self, graph: PlanGraph) -> RangeSession:
        watched = {product.activation for product in graph.products}
        model = graph.with_outputs(sorted(watched))
        return RangeSession(graph.info, model, self.folder, watched, self.options.threads)

    def _pipeline(self, sessions: Mapping[str, Session]) -> Pipeline:
        return Pipeline(self.plan, {**self.rest, **sessions})

    def _conditions(self, pipe: Pipeline, count: int) -> list[Any]:
        classes = pipe.family.classes
        if classes is None:
            if not self.options.prompts:
                raise DisaError(
                    f"a {self.plan.manifest.family} model draws prompts: give some with --prompt "
                    "or --prompt-file, to calibrate on"
                )
            prompts = self.options.prompts
            return pipe.family.conditions([prompts[i % len(prompts)] for i in range(count)])
        # A stride that shares no divisor with the classes goes through all of them.
        stride = max(1, round(classes * 0.618))
        while np.gcd(stride, classes) != 1:
            stride += 1
        return [index * stride % classes for index in range(count)]

    def _draw(self, sessions: Mapping[str, Session], images: range, what: str) -> None:
        pipe = self._pipeline(sessions)
        with progress_bar(len(images), what, "image") as advance:
            for start in range(images.start, images.stop, self.batch):
                batch = range(start, min(start + self.batch, images.stop))
                noise = PhiloxNoise(self.options.seed, batch)
                pipe.draw([self.conditions[i] for i in batch], self.settings, noise, Stats())
                advance(len(batch))

    def collect_ranges(self) -> None:
        """Draw images and count the magnitudes of what is multiplied."""
        self.report(f"drawing {self.options.images} images to find the ranges")
        counters = {name: CountingSession(session) for name, session in self.full.items()}
        self._draw(counters, range(self.options.images), "ranges")
        draws = -(-self.options.images // self.batch)
        for name, counter in counters.items():
            self.asked[name] = counter.calls // draws, counter.loops // draws
            self.full[name].watching = False

    def keep_states(self) -> None:
        """Draw other images and keep calls of the graphs."""
        self.report(f"drawing {self.held_out} other images to judge by")
        keepers = {
            name: KeepingSession(session, *self.asked[name]) for name, session in self.full.items()
        }
        first = self.options.images
        self._draw(keepers, range(first, first + self.held_out), "states")
        self.states = {name: keeper.states for name, keeper in keepers.items()}
        self.results = {name: keeper.results for name, keeper in keepers.items()}

    def quantize(self, name: str) -> QuantizedGraph:
        """Choose what to quantise in a graph."""
        self.report(f"quantising the {name} graph")
        graph, form = self.graphs[name], self.options.form
        # The session goes, with its copy of the weights, before others are loaded.
        magnitudes = self.full.pop(name).magnitudes
        scales = scales_of(magnitudes, form.largest, form is Format.INT8, name)
        graph.quantize_weights(form)
        if self.options.check:
            states = self.states[name]
            few = states[1::3] or states
            with progress_bar(len(graph.products), f"effects in {name}", "product") as advance:
                selection = select(
                    graph.products,
                    lambda chosen: self._error(graph, chosen, scales, states),
                    self.options.tolerance,
                    lambda chosen: self._error(graph, chosen, scales, few),
                    advance,
                )
        else:
            selection = Selection(graph.products, [], float("nan"), float("nan"))
        self.models[name] = graph.quantized(selection.chosen, scales)
        return QuantizedGraph(name, selection)

    def _error(
        self,
        graph: PlanGraph,
        chosen: Collection[Product],
        scales: Mapping[str, float],
        states: Sequence[State],
    ) -> float:
        """Root mean square over the states of the error with some products quantised."""
        model = graph.quantized(chosen, scales).SerializeToString()
        session = self._session(graph, model, prepack=len(chosen) > 1)
        errors = [state.error(session) for state in states]
        return float(np.sqrt(np.mean(np.square(errors))))

    def _session(self, graph: PlanGraph, model: bytes, prepack: bool = True) -> GraphSession:
        precision = self.options.form.value
        return GraphSession(
            graph.info, model, self.folder, precision, self.options.threads, prepack
        )

    def compare_tokens(self) -> Differences:
        """Draw the held-out images again, every loop from the state of the fp32 plan."""
        self.report("drawing them again in the same states")
        replaced: dict[str, Session] = {}
        differences = Differences()
        for name, graph in self.graphs.items():
            session = self._session(graph, self.models[name].SerializeToString())
            results = self.results[name]
            replaced[name] = FollowingSession(session, results, differences) if results else session
        first = self.options.images
        self._draw(replaced, range(first, first + self.held_out), "tokens")
        return differences

    def timed(self, graph: QuantizedGraph) -> QuantizedGraph:
        """Measure the kept calls in fp32 and quantised, in turn."""
        opened = self.graphs[graph.name]
        pair = (
            self._session(opened, opened.model.SerializeToString()),
            self._session(opened, self.models[graph.name].SerializeToString()),
        )
        total = np.zeros(2)
        for state in self.states[graph.name]:
            rounds = [[_seconds(state, session) for session in pair] for _ in range(TIMED_ROUNDS)]
            total += np.median(rounds, axis=0)
        return replace(graph, seconds=(float(total[0]), float(total[1])))

    def write(
        self, writer: PlanWriter, graphs: Sequence[QuantizedGraph], tokens: Differences | None
    ) -> None:
        """Give the writer all that the plan is to hold."""
        manifest, options = self.plan.manifest, self.options
        kept = {key: value for key, value in manifest.raw.items() if key not in _OF_THE_FILE}
        changed = {graph.name: graph.to_json() for graph in graphs if graph.selection.chosen}
        writer.content |= {
            **kept,
            "name": writer.path.stem,
            "precision": options.form.value,
            "quantization": {
                "made_by": f"disa {__version__}",
                "rest": "fp32",
                "images": options.images,
                "seed": options.seed,
                "tolerance": options.tolerance if options.check else None,
                "token_distance": tokens.distance if tokens else None,
                "token_spread": tokens.spread if tokens else None,
                "graphs": changed,
            },
        }
        weights = SharedWeights()
        for name, info in manifest.graphs.items():
            graph = self.graphs.get(name) or PlanGraph(self.plan, info, self.folder)
            written = weights.share(graph.write(self.models.get(name, graph.model)))
            writer.add_graph(name, written.onnx, written.data, info.inputs, info.outputs)
        for member in _others(self.plan):
            writer.add(member, self.plan.read(member))


_OF_THE_FILE = ("format", "graphs", "engines", "members")


def _others(plan: Plan) -> list[str]:
    """Members that belong neither to a graph nor to an engine, such as a tokenizer."""
    manifest = plan.manifest
    used = {name for info in manifest.graphs.values() for name in (info.onnx, *info.data)}
    used |= {engine.member for engine in manifest.engines}
    return [name for name in manifest.members if name not in used]


def _seconds(state: State, session: Session) -> float:
    start = time.perf_counter()
    state.error(session)
    return time.perf_counter() - start


def _enforce(tokens: Differences, options: QuantizeOptions) -> None:
    if not tokens.distance <= options.token_tolerance:
        found = f"lie {tokens.distance:.3f} standard deviations from"
        allowed, option = options.token_tolerance, "--token-tolerance"
    elif not abs(tokens.spread) <= options.spread_tolerance:
        found = f"spread {tokens.spread:+.1%} against"
        allowed, option = options.spread_tolerance, "--spread-tolerance"
    else:
        return
    raise DisaError(
        f"tokens drawn in {options.form.value} {found} those drawn in fp32, and {allowed:g} is "
        f"allowed: lower --tolerance to leave more products in fp32, or raise {option}"
    )
