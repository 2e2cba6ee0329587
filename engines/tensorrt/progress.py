"""The progress of a build as one number, from TensorRT's nested phases."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass
class Phase:
    """A running phase: the number of its finished steps."""

    name: str
    steps: int
    done: int = 0


class Progress:
    """Adds up nested phases to a share of the whole that never decreases."""

    def __init__(self, report: Callable[[float], None]) -> None:
        self.report = report
        self.phases: list[Phase] = []
        self.share = 0.0
        self.interrupted = False

    def start(self, name: str, steps: int) -> None:
        """A phase starts inside the running one."""
        self.phases.append(Phase(name, max(steps, 1)))

    def step(self, name: str, step: int) -> None:
        """A step of a phase is done."""
        for phase in self.phases:
            if phase.name == name:
                phase.done = max(phase.done, step + 1)
        self._advance()

    def finish(self, name: str) -> None:
        """A phase and all its nested phases are done."""
        for index in reversed(range(len(self.phases))):
            if self.phases[index].name == name:
                del self.phases[index:]
                return

    def _advance(self) -> None:
        share, part = 0.0, 1.0
        for phase in self.phases:
            share += part * min(phase.done, phase.steps) / phase.steps
            part /= phase.steps
        if share > self.share:
            self.share = min(share, 1.0)
            self.report(self.share)


def new_monitor(trt: Any, progress: Progress) -> Any:
    """Create a progress monitor for the module `trt` that reports to `progress`."""

    def tell(action: Callable[..., None], *arguments: Any) -> bool:
        try:
            action(*arguments)
        except KeyboardInterrupt:
            # An exception cannot cross the builder; it is raised again after the build returns.
            progress.interrupted = True
        return not progress.interrupted

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            tell(progress.start, name, steps)

        def step_complete(self, name: str, step: int) -> bool:
            return tell(progress.step, name, step)

        def phase_finish(self, name: str) -> None:
            tell(progress.finish, name)

    return Monitor()
