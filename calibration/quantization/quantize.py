"""Quantises a plan: measures ranges, chooses the matmuls, and compares the result with fp32.

The fp32 plan generates images, from which the ranges of the matmuls' operands are measured. Then it
generates other images, and calls of its graphs are recorded: every choice is evaluated on them.
"""

import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ... import __version__
from ...engines.ort.session import OnnxRuntimeSession
from ...engines.plan.plan import Plan
from ...engines.plan.sharing import SharedWeights
from ...engines.plan.traits import HOST_ONLY, Role
from ...engines.plan.writer import PlanWriter
from ...engines.session import Session
from ...errors import DisaError, InvalidRequest
from ...progress import progress_bar
from ...runtime.families.masked.caches import DIFFERENCE
from ...runtime.pipeline import Pipeline
from ...runtime.sessions import ON_DEMAND
from ...runtime.stats import Stats
from ...scratch import scratch_folder
from ..spread import spread_classes
from .graph_session import GraphSession, RangeSession, scales_of
from .matmuls import Matmul
from .options import QuantizeOptions
from .plan_graph import PlanGraph
from .qdq import Format
from .recorded_calls import CountingSession, Differences, FollowingSession, RecordingSession, State
from .result import Quantized, QuantizedGraph
from .rounds import Round, rounds_of
from .sensitivity import Selection, select

MAX_BATCH = 4
NOT_COMPARED = (DIFFERENCE,)
"""Outputs whose relative error has no meaning: a small difference of two large arrays, which is
later added to one of them. Its effect is included in the comparison of tokens."""
TIMED_ROUNDS = 3


def quantize(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    options: QuantizeOptions | None = None,
    report: Callable[[str], object] = lambda stage: None,
) -> Quantized:
    """Make a quantised plan of an fp32 plan.

    Args:
        source: the fp32 plan.
        output: path of the quantised plan; an existing file is replaced.
        options: None for int8 with the default tolerances.
        report: called with the name of each stage as it begins.

    Returns:
        What was quantised in each graph, and the measured errors.

    Raises:
        DisaError: the plan is damaged, not fp32 or cannot generate, nothing in it can be
            quantised, or the tokens differ from those of fp32 by more than the tolerances. In
            these cases nothing is written.
    """
    source, output, options = Path(source), Path(output), options or QuantizeOptions()
    with (
        Plan.open(source) as plan,
        scratch_folder(output) as folder,
        PlanWriter(output) as writer,
    ):
        # The output gets checksums of its own, which would hide damage of the source.
        plan.check()
        job = _Job(plan, folder, options, report)
        job.collect_ranges()
        if options.check:
            job.record_states()
        graphs = [job.quantize(name) for name in job.graphs]
        if not any(graph.selection.chosen for graph in graphs):
            raise DisaError(
                f"nothing in {source} can be quantised to {options.form.value} within a tolerance "
                f"of {options.tolerance:g}: raise --tolerance, or use the fp32 plan"
            )
        differences: list[Differences] = []
        if options.check:
            differences = list(job.compare_tokens())
            report("measuring the speed")
            graphs = [job.timed(graph) for graph in graphs]
        # The first round is the plain one; a second one is with a cached backbone.
        tokens, refreshed, *_ = (*differences, None, None)
        result = Quantized(output, graphs, tokens, refreshed, job.rounds[-1].refresh)
        halves = [job.quantize_half(name) for name in job.halves]
        report("writing the plan")
        job.write(writer, replace(result, graphs=[*graphs, *halves]))
    return result


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
            if info.traits.quantizable
        }
        roles = {name: info.traits.role for name, info in plan.manifest.graphs.items()}
        self.graphs = {n: g for n, g in opened.items() if g.matmuls and roles[n] not in HOST_ONLY}
        # They compute the same as the graph of a step, and are quantised in the same way.
        self.halves = {n: g for n, g in opened.items() if roles[n] in HOST_ONLY}
        if not self.graphs:
            raise DisaError(f"{plan.path} has no matmuls that could be quantised")
        self.full = {name: self._range_session(graph) for name, graph in self.graphs.items()}
        self.rest = {
            name: OnnxRuntimeSession(plan, name, threads=options.threads)
            for name in plan.manifest.graphs
            if name not in self.graphs and roles[name] not in HOST_ONLY
        }
        # Tokens are compared even if nothing in the graph that samples them can be quantised.
        self.loops = {n: s for n, s in self.rest.items() if roles[n] is Role.STEP}
        self.states: dict[str, list[State]] = {}
        self.models: dict[str, Any] = {}
        self.shared: dict[tuple[int, int], float] = {}
        self.chosen: set[tuple[int, int] | None] = set()
        pipe = self._pipeline(self.full)
        sampling = pipe.options()
        infos = {name: graph.info for name, graph in self.graphs.items()}
        self.rounds = rounds_of(infos, sampling, pipe.family.iterations(sampling))
        self.batch = min(MAX_BATCH, pipe.auto_batch_size(sampling))
        self.held_out = max(2, options.images // 4)
        self.conditions = self._conditions(pipe, options.images + self.held_out)

    def _range_session(self, graph: PlanGraph) -> RangeSession:
        watched = {matmul.activation for matmul in graph.matmuls}
        model = graph.with_outputs(sorted(watched))
        # A graph that shares weights with another one would hold a second copy of them.
        prepack = graph.info.traits.role not in ON_DEMAND
        threads = self.options.threads
        return RangeSession(graph.info, model, self.folder, watched, threads, prepack)

    def _pipeline(self, sessions: Mapping[str, Session]) -> Pipeline:
        return Pipeline(self.plan, {**self.rest, **sessions})

    def _conditions(self, pipe: Pipeline, count: int) -> list[Any]:
        classes = pipe.family.classes
        if classes is None:
            if not self.options.prompts:
                raise DisaError(
                    f"a {self.plan.manifest.family} model needs prompts for calibration: give some "
                    "with --prompt or --prompt-file"
                )
            prompts = self.options.prompts
            return pipe.family.conditions([prompts[i % len(prompts)] for i in range(count)])
        if self.options.prompts:
            raise InvalidRequest(
                f"a {self.plan.manifest.family} model takes classes, not prompts: leave the "
                "prompts out"
            )
        return spread_classes(classes, count)

    def _generate(
        self, sessions: Mapping[str, Session], sampling: Any, images: range, what: str
    ) -> None:
        pipe = self._pipeline(sessions)
        with progress_bar(len(images), what, "image") as advance:
            for start in range(images.start, images.stop, self.batch):
                batch = range(start, min(start + self.batch, images.stop))
                conditions = [self.conditions[i] for i in batch]
                pipe.generate(
                    pipe.requests(conditions, sampling, self.options.seed, batch), Stats()
                )
                advance(len(batch))

    def collect_ranges(self) -> None:
        """Generate images and count the magnitudes of the matmuls' operands."""
        for each in self.rounds:
            self.report(f"generating {self.options.images} images to find the ranges{each.where}")
            for name, session in self.full.items():
                session.watching = name in each.graphs
            counters = {name: CountingSession(session) for name, session in self.full.items()}
            self._generate(counters, each.sampling, range(self.options.images), "ranges")
            batches = -(-self.options.images // self.batch)
            for name, counter in counters.items():
                # A graph whose results are cached may be called in the first batch only.
                calls = max(counter.calls // batches, min(counter.calls, 1))
                each.calls[name] = calls, counter.loops // batches
            for name in each.graphs:
                each.check_called(name)
        for session in self.full.values():
            session.watching = False

    def record_states(self) -> None:
        """Generate other images and record calls of the graphs."""
        for each in self.rounds:
            self.report(f"generating {self.held_out} other images to compare with{each.where}")
            recorders = {
                name: RecordingSession(session, *each.calls[name], NOT_COMPARED)
                for name, session in self.full.items()
            }
            loops = {name: RecordingSession(session, 0, 0) for name, session in self.loops.items()}
            recorders |= loops
            self._generate(recorders, each.sampling, self._held_out(), "states")
            self.states |= {name: recorders[name].states for name in each.graphs}
            each.results = {name: recorder.results for name, recorder in recorders.items()}

    def _held_out(self) -> range:
        first = self.options.images
        return range(first, first + self.held_out)

    def quantize(self, name: str) -> QuantizedGraph:
        """Choose what to quantise in a graph."""
        self.report(f"quantising the {name} graph")
        graph, form = self.graphs[name], self.options.form
        # This frees the session, with its copy of the weights, before others are loaded.
        magnitudes = self.full.pop(name).magnitudes
        scales = scales_of(magnitudes, form.largest, form is Format.INT8, name)
        graph.quantize_weights(form)
        if self.options.check:
            states = self.states[name]
            few = states[1::3] or states
            with progress_bar(len(graph.matmuls), f"effects in {name}", "matmul") as advance:
                selection = select(
                    graph.matmuls,
                    lambda chosen: self._error(graph, chosen, scales, states),
                    self.options.tolerance,
                    lambda chosen: self._error(graph, chosen, scales, few),
                    advance,
                    self._chosen_before(graph),
                )
        else:
            selection = Selection(graph.matmuls, [], float("nan"), float("nan"))
        self.models[name] = graph.quantized(selection.chosen, scales)
        self.chosen |= {graph.origin(matmul) for matmul in selection.chosen}
        if graph.info.traits.role is Role.STEP:
            for matmul in selection.chosen:
                if origin := graph.origin(matmul):
                    self.shared[origin] = scales[matmul.activation]
        return QuantizedGraph(name, selection)

    def _chosen_before(self, graph: PlanGraph) -> list[Matmul]:
        """The matmuls of a graph whose weights are already quantised in another graph."""
        before = self.chosen - {None}
        return [matmul for matmul in graph.matmuls if graph.origin(matmul) in before]

    def quantize_half(self, name: str) -> QuantizedGraph:
        """Quantise the matmuls of a half of the step as in the step, with the same scales."""
        graph = self.halves[name]
        chosen, scales = [], {}
        for matmul in graph.matmuls:
            origin = graph.origin(matmul)
            if origin is not None and origin in self.shared:
                chosen.append(matmul)
                scales[matmul.activation] = self.shared[origin]
        graph.quantize_weights(self.options.form)
        self.models[name] = graph.quantized(chosen, scales)
        left_out = [matmul for matmul in graph.matmuls if matmul not in chosen]
        return QuantizedGraph(name, Selection(chosen, left_out, float("nan"), float("nan")))

    def _error(
        self,
        graph: PlanGraph,
        chosen: Collection[Matmul],
        scales: Mapping[str, float],
        states: Sequence[State],
    ) -> float:
        """Root mean square over the states of the error with some matmuls quantised."""
        model = graph.quantized(chosen, scales).SerializeToString()
        session = self._session(graph, model, prepack=len(chosen) > 1)
        errors = [state.error(session) for state in states]
        return float(np.sqrt(np.mean(np.square(errors))))

    def _session(self, graph: PlanGraph, model: bytes, prepack: bool = True) -> GraphSession:
        precision = self.options.form.value
        return GraphSession(
            graph.info, model, self.folder, precision, self.options.threads, prepack
        )

    def compare_tokens(self) -> Iterator[Differences]:
        """Generate the held-out images again, every loop from the state of the fp32 plan.

        Yields:
            The differences in each round.

        Raises:
            DisaError: they are too large.
        """
        sessions: dict[str, Session] = dict(self.loops)
        for name, graph in self.graphs.items():
            sessions[name] = self._session(graph, self.models[name].SerializeToString())
        for each in self.rounds:
            self.report(f"generating them again from the same states{each.where}")
            differences = Differences()
            replaced: dict[str, Session] = {
                name: FollowingSession(session, each.results[name], differences)
                if each.results[name]
                else session
                for name, session in sessions.items()
            }
            self._generate(replaced, each.sampling, self._held_out(), "tokens")
            _enforce(differences, self.options, each)
            yield differences

    def timed(self, graph: QuantizedGraph) -> QuantizedGraph:
        """Time the recorded calls in fp32 and quantised, in turn."""
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

    def write(self, writer: PlanWriter, result: Quantized) -> None:
        """Write the content of the quantised plan."""
        manifest, options = self.plan.manifest, self.options
        kept = {key: value for key, value in manifest.raw.items() if key not in _OF_THE_FILE}
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
                **result.to_json(),
            },
        }
        weights = SharedWeights()
        for name, info in manifest.graphs.items():
            graph = self.graphs.get(name) or self.halves.get(name)
            graph = graph or PlanGraph(self.plan, info, self.folder)
            written = weights.share(graph.write(self.models.get(name, graph.model)))
            writer.add_graph(
                name, written.onnx, written.data, info.inputs, info.outputs, info.traits
            )
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


def _enforce(tokens: Differences, options: QuantizeOptions, of: Round) -> None:
    if not tokens.distance <= options.token_tolerance:
        found = f"are {tokens.distance:.3f} standard deviations away from"
        allowed, option = options.token_tolerance, "--token-tolerance"
    elif not abs(tokens.spread) <= options.spread_tolerance:
        found = f"differ in their standard deviation by {tokens.spread:+.1%} from"
        allowed, option = options.spread_tolerance, "--spread-tolerance"
    else:
        return
    raise DisaError(
        f"tokens sampled in {options.form.value}{of.where} {found} those sampled in fp32, but only "
        f"{allowed:g} is allowed: lower --tolerance to leave more matmuls in fp32, or raise "
        f"{option}"
    )
