"""What a run sends to its workers, and their answers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from ..hub import HubName, fetch_file, is_hub_name
from ..runtime.outputs.run_folder import RunFolder, identify
from ..runtime.pipeline import Pipeline
from ..runtime.sampling.schedule import as_schedule
from ..runtime.stats import Stats

Advance = Callable[[float], object]
"""Called with the number of images that were finished, also with fractions of an image."""


@dataclass(frozen=True)
class Job:
    """Everything a worker needs to open its pipeline.

    Attributes:
        plan: path of the plan, valid on every machine, or its name on the hub with a commit.
        engine: engine of the graphs.
        threads: CPU threads of a worker; None for all available.
        options: sampling options by name; None is the plan's default.
        batch_size: images generated together; None for the model's default.
    """

    plan: str
    engine: str = "auto"
    threads: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int | None = None

    def open(self) -> Pipeline:
        """Open the pipeline.

        Raises:
            DisaError: as in `Pipeline.from_plan`.
        """
        path = fetch_file(HubName.parse(self.plan)) if is_hub_name(self.plan) else self.plan
        return Pipeline.from_plan(path, self.engine, threads=self.threads)


def portable(job: Job) -> Job:
    """The job for processes that have another working folder, perhaps on another machine.

    The path of the plan becomes absolute, and a schedule file is replaced by its content.

    Raises:
        DisaError: the schedule cannot be read.
    """
    plan = job.plan if is_hub_name(job.plan) else str(Path(job.plan).absolute())
    options = dict(job.options)
    if options.get("schedule") is not None:
        options["schedule"] = as_schedule(options["schedule"])
    return replace(job, plan=plan, options=options)


@dataclass(frozen=True)
class Description:
    """A worker's description of its pipeline.

    Attributes:
        name: name of the plan.
        family: family of the model.
        classes: number of classes; None for prompts.
        class_names: names of the classes, if the plan has them.
        engine: the engine that really runs.
        request: everything that determines the images, except which ones are selected.
        batch_size: images generated together.
    """

    name: str
    family: str
    classes: int | None
    class_names: Sequence[str] | None
    engine: str
    request: Mapping[str, Any]
    batch_size: int


def describe(pipe: Pipeline, options: Any, batch_size: int | None) -> Description:
    """Describe a pipeline with its checked sampling options."""
    manifest = pipe.plan.manifest
    request = {
        "plan": manifest.name,
        "plan_sha256": identify(pipe.plan),
        **options.to_json(),
    }
    return Description(
        manifest.name,
        manifest.family,
        pipe.family.classes,
        pipe.class_names,
        pipe.engine,
        request,
        batch_size or pipe.auto_batch_size(options),
    )


class Workers(Protocol):
    """Generates the images of a run."""

    @property
    def description(self) -> Description: ...

    def check_prompts(self, prompts: Sequence[str]) -> list[str]:
        """The prompts in the form that the model accepts.

        Raises:
            DisaError: the model does not accept a prompt.
        """
        ...

    def run(self, folder: RunFolder, advance: Advance) -> Stats:
        """Generate and write the missing images of the folder; returns the cost.

        Raises:
            DisaError: an image cannot be generated or written.
        """
        ...
