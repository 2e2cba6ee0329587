"""Plots a measurement and the schedule that was fitted to it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ..files import written_whole
from ..optional import import_failed
from ..runtime.sampling.schedule import AnnealedSchedule, FittedSchedule, Strategy
from .fit.steps import counts_of, fit_to_cost
from .measurement.dependence import Dependence
from .measurement.measure import Measurement
from .measurement.refresh import RefreshErrors

STRATEGIES = (Strategy.LINEAR, Strategy.COSINE, Strategy.TWO_STAGE)
BOUNDS = ((50, 5), (40, 5), (30, 5), (25, 5), (20, 4), (15, 3), (10, 3))
BUDGETS = (4, 5, 6, 8, 10, 13, 16, 20, 25, 30, 40)


def require_matplotlib() -> None:
    """Check that matplotlib is installed.

    Raises:
        MissingDependency: it is not.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise import_failed(error, "matplotlib", "plot") from error


def draw(
    measured: Measurement, schedule: FittedSchedule, baseline: AnnealedSchedule, path: Path
) -> None:
    """Write the plot as PNG.

    Args:
        schedule: the fitted schedule.
        baseline: the schedule that it is compared with.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps = list(schedule.counts)
    more: list[Callable[[Any], None]] = []
    if schedule.tokens is not None and measured.dependence is not None:
        more = [
            partial(_dependence, measured.dependence),
            partial(_tokens, measured, schedule),
        ]
    if schedule.refresh is not None and measured.refresh is not None:
        more.append(partial(_refresh, measured.refresh, schedule.refresh))
    figure = Figure(figsize=(15 + 5 * len(more), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    signals, counts, tradeoff, *others = figure.subplots(1, 3 + len(more))
    _signals(signals, measured)
    _schedule(counts, steps)
    _tradeoff(tradeoff, measured, steps if schedule.tokens is None else None, baseline)
    for axes, panel in zip(others, more, strict=True):
        panel(axes)
    with written_whole(path) as file:
        figure.savefig(file, dpi=90, format="png")


def _signals(axes: Any, measured: Measurement) -> None:
    titles = {
        "predictability": "error of prediction",
        "variance": "variance",
        "curvature": "path's curvature",
    }
    for name, title in titles.items():
        signal = getattr(measured.signals, name)
        places = range(1, len(signal.mean) + 1)
        (line,) = axes.plot(places, signal.mean, label=title)
        low, high = signal.mean - signal.half_width, signal.mean + signal.half_width
        axes.fill_between(places, low, high, alpha=0.25, color=line.get_color(), linewidth=0)
    axes.set(
        title=f"signals ({measured.images} images, 95 % intervals)",
        xlabel="AR iteration",
        ylabel="relative to the tokens' variance",
        ylim=(0, None),
    )
    axes.legend()


def _schedule(axes: Any, steps: list[int]) -> None:
    places = range(1, len(steps) + 1)
    axes.step(places, steps, where="mid", label="fitted", color="black", linewidth=2)
    for strategy in (*STRATEGIES, Strategy.CONSTANT):
        counts = counts_of(AnnealedSchedule(50, 5, strategy), len(steps))
        axes.plot(places, counts, label=f"{strategy} 50:5", linewidth=1)
    axes.set(title="steps", xlabel="AR iteration", ylabel="denoising steps", ylim=(0, None))
    axes.legend()


def _dependence(found: Dependence, axes: Any) -> None:
    for place, errors, half in zip(found.places, found.error, found.half_width, strict=True):
        behind = found.places >= place
        axes.errorbar(
            found.places[behind], errors[behind], half[behind], marker=".", label=f"{place} known"
        )
    axes.set(
        title="tokens sampled with fewer known",
        xlabel="tokens before the token",
        ylabel="energy distance to all of them known",
        ylim=(0, None),
    )
    axes.legend(fontsize="small")


def _tokens(measured: Measurement, schedule: FittedSchedule, axes: Any) -> None:
    for label, tokens in (
        ("baseline", measured.tradeoff.tokens.tolist()),
        ("fitted", list(schedule.tokens or ())),
    ):
        axes.step(range(1, len(tokens) + 1), tokens, where="mid", marker=".", label=label)
    axes.set(title="tokens", xlabel="AR iteration", ylabel="tokens predicted", ylim=(0, None))
    axes.legend()


def _refresh(found: RefreshErrors, passes: tuple[int, ...], axes: Any) -> None:
    for place, errors, half in zip(found.places, found.error, found.half_width, strict=True):
        places = range(place + 1, len(errors) + 1)
        axes.errorbar(places, errors[place:], half[place:], marker=".", label=f"after {place + 1}")
    for index in passes:
        axes.axvline(index + 1, color="black", linewidth=0.5)
    axes.set(
        title="passes that are not full (lines: full ones)",
        xlabel="AR iteration",
        ylabel="energy distance to a full pass",
        ylim=(0, None),
    )
    axes.legend(fontsize="small", title="last full pass")


def _tradeoff(
    axes: Any, measured: Measurement, steps: list[int] | None, baseline: AnnealedSchedule
) -> None:
    tradeoff = measured.tradeoff
    iterations, tokens = len(tradeoff.tokens), int(tradeoff.tokens.sum())
    families: dict[str, list[list[int]]] = {
        strategy.value: [
            counts_of(AnnealedSchedule(upper, lower, strategy), iterations)
            for upper, lower in BOUNDS
        ]
        for strategy in STRATEGIES
    }
    families["constant"] = [[budget] * iterations for budget in BUDGETS]
    families["fitted"] = [fit_to_cost(tradeoff, budget * tokens, "calls") for budget in BUDGETS]
    for name, schedules in families.items():
        points = [tradeoff.of(each, "calls") for each in schedules]
        axes.plot(
            [calls / tokens for _, calls in points],
            [error for error, _ in points],
            marker=".",
            label=name,
            color="black" if name == "fitted" else None,
        )
    if measured.adaptive:
        axes.errorbar(
            [point.calls / tokens for point in measured.adaptive],
            [point.error for point in measured.adaptive],
            [point.half_width for point in measured.adaptive],
            marker=".",
            capsize=2,
            label=f"adaptive {baseline.upper}:{baseline.lower}",
        )
    # A schedule with other AR iterations than the measured ones cannot be shown here.
    chosen = [] if steps is None else [(steps, "*", "chosen")]
    for found, marker, label in ((counts_of(baseline, iterations), "o", str(baseline)), *chosen):
        error, calls = tradeoff.of(found, "calls")
        axes.plot(calls / tokens, error, f"k{marker}", markersize=11, label=label, fillstyle="none")
    axes.set(
        title="cost and error",
        xlabel="head calls for a token",
        ylabel="energy distance to many steps",
        yscale="log",
    )
    axes.legend()
