"""A picture of a measurement: signals, schedule, and cost against error."""

from pathlib import Path
from typing import Any

from ..errors import MissingDependency
from ..files import written_whole
from ..runtime.schedule import AnnealedSchedule, Strategy
from .fit import counts_of, fit_to_cost
from .measure import Measurement

STRATEGIES = (Strategy.LINEAR, Strategy.COSINE, Strategy.TWO_STAGE)
BOUNDS = ((50, 5), (40, 5), (30, 5), (25, 5), (20, 4), (15, 3), (10, 3))
BUDGETS = (4, 5, 6, 8, 10, 13, 16, 20, 25, 30, 40)


def require_matplotlib() -> None:
    """Raise MissingDependency if there is no matplotlib."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingDependency("matplotlib", "plot") from error


def draw(measured: Measurement, steps: list[int], baseline: AnnealedSchedule, path: Path) -> None:
    """Write the picture as PNG.

    Args:
        steps: the fitted ones.
        baseline: what they were fitted to match.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    signals, schedule, tradeoff = figure.subplots(1, 3)
    _signals(signals, measured)
    _schedule(schedule, steps)
    _tradeoff(tradeoff, measured, steps, baseline)
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


def _tradeoff(
    axes: Any, measured: Measurement, steps: list[int], baseline: AnnealedSchedule
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
    for found, marker, label in (
        (counts_of(baseline, iterations), "o", str(baseline)),
        (steps, "*", "chosen"),
    ):
        error, calls = tradeoff.of(found, "calls")
        axes.plot(calls / tokens, error, f"k{marker}", markersize=11, label=label, fillstyle="none")
    axes.set(
        title="cost and error",
        xlabel="head calls for a token",
        ylabel="energy distance to many steps",
        yscale="log",
    )
    axes.legend()
