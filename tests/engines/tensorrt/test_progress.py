import types
from collections.abc import Callable

import pytest

from disa.engines.tensorrt.progress import Progress, new_monitor


class Monitor:
    """Base of monitors."""


TRT = types.SimpleNamespace(IProgressMonitor=Monitor)


def test_nested_phases_add_up() -> None:
    told: list[float] = []
    progress = Progress(told.append)
    progress.start("build", 2)
    progress.start("optimise", 4)
    progress.step("optimise", 1)
    progress.finish("optimise")
    progress.step("build", 0)
    progress.start("time", 2)
    progress.step("time", 0)
    progress.step("time", 1)
    progress.finish("build")
    assert told == [0.25, 0.5, 0.75, 1.0]


def test_it_never_goes_back() -> None:
    told: list[float] = []
    progress = Progress(told.append)
    progress.start("build", 1)
    for _ in range(3):
        progress.start("again", 2)
        progress.step("again", 0)
        progress.finish("again")
    assert told == [0.5]


def test_unknown_names_are_no_matter() -> None:
    progress = Progress(lambda share: None)
    progress.finish("nothing")
    progress.step("nothing", 3)


@pytest.mark.parametrize("at", ["start", "step", "finish"])
def test_an_interrupt_stops_the_build_and_does_not_cross_it(at: str) -> None:
    progress = Progress(lambda share: None)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    setattr(progress, at, interrupt)
    monitor = new_monitor(TRT, progress)
    calls: dict[str, Callable[[], object]] = {
        "start": lambda: monitor.phase_start("a", None, 1),
        "step": lambda: monitor.step_complete("a", 0),
        "finish": lambda: monitor.phase_finish("a"),
    }
    for call in calls.values():
        call()
    assert progress.interrupted
    assert monitor.step_complete("a", 0) is False
