"""One part of `benchmarks.gpu_check`, in a process of its own.

python -m benchmarks.gpu_part engine mar_b cuda --device cuda --folder WORK --lines WORK/lines.jsonl
"""

import importlib
import json
import platform
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from disa.errors import DisaError

BATCHES = {"tiny": (1, 2)}
ITERATIONS = {"tiny": 4}


class Report:
    """Adds lines to a file and prints them."""

    def __init__(self, lines: Path) -> None:
        self.lines = lines

    def __call__(self, kind: str, text: str, **content: Any) -> None:
        """Report something of a kind that `gpu_check` knows."""
        with self.lines.open("a") as file:
            file.write(json.dumps({"kind": kind, **content}) + "\n")
        print(text, flush=True)


class Work:
    """What the parts do."""

    def __init__(self, device: str, folder: Path, seconds: float, report: Report) -> None:
        from .gpu_speed import Clock

        self.device, self.folder, self.report = device, folder, report
        self.clock = Clock(device, seconds / 60)

    def attempt(self, what: str, work: Callable[[], object], least: float = 5) -> None:
        """Do something; what is raised is reported, and what there is no time for."""
        if self.clock.left < least:
            self.report("failure", f"{what}: no time left", what=what, reason="no time left")
            return
        try:
            work()
        # A comparison of many ways goes on without the one that does not work here.
        except Exception as error:
            reason = f"{type(error).__name__}: {str(error)[:500]}"
            way = traceback.format_exc()[-3000:]
            self.report("failure", f"{what}: {reason}", what=what, reason=reason, traceback=way)

    def machine(self) -> None:
        """What there is, and what it can do at most."""
        from .gpu_speed import measure_machine

        about = surroundings()
        self.report("about", f"{about['gpu'] or 'no GPU'}, {about}", **about)
        measured = measure_machine(self.clock)
        text = f"{measured.bytes_per_second / 1e12:.3f} TB/s, {measured.flops / 1e12:.2f} TFLOP/s"
        self.report("machine", f"measured: {text}", **asdict(measured))
        (self.folder / "machine.json").write_text(json.dumps(asdict(measured)))

    def refusals(self) -> None:
        """What TensorRT-RTX says of this GPU."""
        from .gpu_parity import refusals

        for question, answer in refusals(self.folder):
            text = f"TensorRT-RTX, {question}: {answer}"
            self.report("refusal", text, question=question, answer=answer)

    def exports(self, sizes: str, models: str) -> None:
        """The plans that later parts run, in their order."""
        from .gpu_parity import plan_of
        from .gpu_speed import random_plan_of

        for size in sizes.split(","):
            random_plan_of(size, "fp16", self.folder)
        for model in models.split(","):
            plan_of(model, "fp32", self.folder)

    def checks(self, engine: str, precisions: str, models: str) -> None:
        """Recorded runs, batch sizes, CUDA graphs."""
        from . import gpu_parity as parity

        reason = parity.unusable(engine, self.folder)
        if reason:
            text = f"{engine} cannot be used: {reason}"
            self.report("unusable", text, engine=engine, reason=reason)
            return
        for check in parity.checks(engine, precisions.split(","), models.split(","), self.folder):
            self.report(
                "check",
                f"{'ok  ' if check.passed else 'FAIL'} {check.name} [{check.engine}]: "
                f"{check.detail}",
                **asdict(check),
            )

    def engine(self, size: str, engine: str) -> None:
        """A plan with random weights on an engine."""
        from .gpu_parity import unusable
        from .gpu_speed import EngineSpeed, Machine, floor_of

        reason = unusable(engine, self.folder)
        if reason:
            self.report("unusable", f"{engine}: {reason}", engine=engine, reason=reason)
            return
        precision = "fp32" if self.device == "cpu" else "fp16"
        speed = EngineSpeed(size, precision, engine, self.folder, self.clock)
        known = self.folder / "machine.json"
        for batch in BATCHES.get(size, (1, 64, 8)):
            if known.exists():
                machine = Machine(**json.loads(known.read_text()))
                floor = floor_of(size, batch, ITERATIONS.get(size, 64), machine)
                self.report("floor", f"floor: {floor}", **floor)
            self.attempt(
                f"{size}, batch {batch}, {engine}",
                lambda b=batch: self._speed(speed.measure(b, ITERATIONS.get(size, 64))),  # type: ignore[misc]
            )

    def eager(self, size: str, compiled: bool = False) -> None:
        """The way of the original code in PyTorch."""
        from .gpu_speed import Eager
        from .random_plan import config_of

        model = Eager(config_of(size), self.clock)
        for batch in BATCHES.get(size, (1, 64, 8)):
            self.attempt(
                f"{size}, batch {batch}, {'torch.compile' if compiled else 'eager PyTorch'}",
                lambda b=batch: self._speed(  # type: ignore[misc]
                    model.speed(size, b, ITERATIONS.get(size, 64), compiled)
                ),
            )

    def compile(self, size: str) -> None:
        """The same through torch.compile."""
        self.eager(size, compiled=True)

    def _speed(self, speed: Any) -> None:
        self.report(
            "speed",
            f"{speed.size}, batch {speed.batch}, {speed.way}: {speed.seconds_per_image:.4f} s an "
            f"image, {speed.head_step_ms:.3f} ms a head step",
            **asdict(speed),
        )


def surroundings() -> dict[str, Any]:
    """What is installed here, and why what is not usable is not."""
    import torch

    from disa.engines.tensorrt.flavour import MODULES, find

    found: dict[str, Any] = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("onnx", "onnxruntime", "cuda.bindings"):
        try:
            module = importlib.import_module(name)
        # A broken installation fails in many ways, and the record is to say how.
        except Exception as error:
            found[name] = f"cannot be imported ({error})"
        else:
            found[name] = module.__version__
            if name == "onnxruntime":
                found["providers"] = module.get_available_providers()
    for name in MODULES:
        flavour = find(name)
        found[name] = flavour if isinstance(flavour, str) else flavour.version
    found["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return found


@click.command()
@click.argument(
    "name",
    type=click.Choice(["machine", "exports", "refusals", "checks", "engine", "eager", "compile"]),
)
@click.argument("arguments", nargs=-1)
@click.option("--device", type=click.Choice(["cuda", "cpu"]), required=True)
@click.option("--folder", type=click.Path(path_type=Path), required=True)
@click.option("--lines", type=click.Path(path_type=Path), required=True)
@click.option("--seconds", type=float, required=True)
def main(
    name: str, arguments: tuple[str, ...], device: str, folder: Path, lines: Path, seconds: float
) -> None:
    """Do a part and report line by line."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise click.ClickException("PyTorch sees no GPU here: use --device cpu --quick")
    try:
        getattr(Work(device, folder, seconds, Report(lines)), name)(*arguments)
    except DisaError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
