"""Runs one part of `benchmarks.gpu_check`.

python -m benchmarks.gpu.part engine mar_b cuda --device cuda --folder WORK --lines WORK/lines.jsonl
"""

import importlib
import json
import os
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


class PartRunner:
    """Runs parts; each public method that is a choice of NAME is one."""

    def __init__(self, device: str, folder: Path, seconds: float, lines: Path) -> None:
        from .speed import Timer

        self.device, self.folder, self.lines = device, folder, lines
        self.timer = Timer(device, seconds / 60)

    def report(self, kind: str, text: str, **content: Any) -> None:
        """Append a result to the file of JSON lines, and print it.

        Args:
            kind: one of the kinds in `gpu_check.GpuCheck.write`.
            text: printed.
            content: written to the file.
        """
        with self.lines.open("a") as file:
            file.write(json.dumps({"kind": kind, **content}) + "\n")
        print(text, flush=True)

    def attempt(self, what: str, work: Callable[[], object], least: float = 5) -> None:
        """Run `work`; reports a failure if it raises an exception or if no time is left.

        Args:
            what: name of the work.
            least: seconds that must be left.
        """
        if self.timer.left < least:
            self.report("failure", f"{what}: no time left", what=what, reason="no time left")
            return
        try:
            work()
        # The comparison continues without the variant that does not work here.
        except Exception as error:
            reason = f"{type(error).__name__}: {str(error)[:500]}"
            way = traceback.format_exc()[-3000:]
            self.report("failure", f"{what}: {reason}", what=what, reason=reason, traceback=way)

    def machine(self) -> None:
        """Report the installed packages, and measure the bandwidth and the matmul rate."""
        from .speed import measure_machine

        about, reasons = describe_environment()
        self.report("about", f"{about['gpu'] or 'no GPU'}, {about}", **about)
        for engine, reason in reasons.items():
            self.report("unusable", f"{engine}: {reason}", engine=engine, reason=reason)
        measured = measure_machine(self.timer)
        text = f"{measured.bytes_per_second / 1e12:.3f} TB/s, {measured.flops / 1e12:.2f} TFLOP/s"
        self.report("machine", f"measured: {text}", **asdict(measured))
        (self.folder / "machine.json").write_text(json.dumps(asdict(measured)))

    def exports(self, sizes: str, models: str) -> None:
        """Export the plans of later parts, in the order in which they are needed."""
        import torch

        from .parity import plan_of
        from .speed import random_plan_of

        # What is measured meanwhile must not wait for a processor.
        os.nice(10)
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // 4))
        for size in sizes.split(","):
            random_plan_of(size, "fp16", self.folder)
        for model in models.split(","):
            plan_of(model, "fp32", self.folder)

    def checks(self, engine: str, precisions: str, models: str) -> None:
        """Check the results of an engine."""
        from . import parity

        if not self.usable(engine):
            return
        for check in parity.checks(engine, precisions.split(","), models.split(","), self.folder):
            self.report(
                "check",
                f"{'ok  ' if check.passed else 'FAIL'} {check.name} [{check.engine}]: "
                f"{check.detail}",
                **asdict(check),
            )

    def usable(self, engine: str) -> bool:
        """Whether an engine can be used; reports why not, and later parts leave it out."""
        from .parity import unusable

        try:
            reason = unusable(engine, self.folder)
        # A defect, which ends this part with its traceback; the others would end in the same way.
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            self.report("unusable", f"{engine}: {reason}", engine=engine, reason=reason)
            raise
        if reason:
            self.report("unusable", f"{engine}: {reason}", engine=engine, reason=reason)
        return not reason

    def engine(self, size: str, engine: str) -> None:
        """Measure a plan with random weights on an engine."""
        from .speed import EngineSpeed, Machine

        if not self.usable(engine):
            return
        precision = "fp32" if self.device == "cpu" else "fp16"
        speed = EngineSpeed(size, precision, engine, self.folder, self.timer)
        known = self.folder / "machine.json"
        for batch in BATCHES.get(size, (1, 64, 8)):
            if known.exists():
                machine = Machine(**json.loads(known.read_text()))
                floor = speed.floor(batch, ITERATIONS.get(size, 64), machine)
                self.report("floor", f"floor: {floor}", **floor)
            self.attempt(
                f"{size}, batch {batch}, {engine}",
                lambda b=batch: self._speed(speed.measure(b, ITERATIONS.get(size, 64))),  # type: ignore[misc]
            )

    def eager(self, size: str, compiled: bool = False) -> None:
        """Measure PyTorch, in the way of the original code."""
        from ..random_plan import config_of
        from .speed import Eager

        model = Eager(config_of(size), self.timer, compiled)
        for batch in BATCHES.get(size, (1, 64, 8)):
            self.attempt(
                f"{size}, batch {batch}, {'torch.compile' if compiled else 'eager PyTorch'}",
                lambda b=batch: self._speed(model.speed(size, b, ITERATIONS.get(size, 64))),  # type: ignore[misc]
            )

    def compile(self, size: str) -> None:
        """Measure PyTorch with torch.compile."""
        self.eager(size, compiled=True)

    def _speed(self, speed: Any) -> None:
        self.report(
            "speed",
            f"{speed.size}, batch {speed.batch}, {speed.way}: {speed.seconds_per_image:.4f} s an "
            f"image, {speed.head_step_ms:.3f} ms a head step",
            **asdict(speed),
        )


def describe_environment() -> tuple[dict[str, Any], dict[str, str]]:
    """Versions of the installed packages, and the engines that cannot be imported with reasons."""
    import torch

    from disa.engines.gpu.device import CudaDevice
    from disa.engines.tensorrt.flavour import MODULES, find

    found: dict[str, Any] = {"python": platform.python_version(), "torch": torch.__version__}
    found["torch_cuda"] = torch.version.cuda
    for name in ("numpy", "onnx", "onnxscript", "onnxruntime", "cuda.bindings"):
        try:
            module = importlib.import_module(name)
        # A broken installation can raise any exception, which the record should contain.
        except Exception as error:
            found[name] = f"cannot be imported ({error})"
        else:
            found[name] = getattr(module, "__version__", "unknown")
            if name == "onnxruntime":
                found["providers"] = module.get_available_providers()
    reasons = {}
    for name in MODULES:
        flavour = find(name)
        found[name] = flavour if isinstance(flavour, str) else flavour.version
        if isinstance(flavour, str):
            reasons[name] = f"it cannot be imported ({flavour})"
    found["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    try:
        gpu = CudaDevice()
        found["device"] = {"sm": gpu.sm, "memory": gpu.memory, "driver_cuda": gpu.cuda}
    # The engines only see that there is no GPU; the record should say what CUDA said.
    except Exception as error:
        found["device"] = f"cannot be opened ({error})"
    return found, reasons


@click.command()
@click.argument(
    "name",
    type=click.Choice(["machine", "exports", "checks", "engine", "eager", "compile"]),
)
@click.argument("arguments", nargs=-1)
@click.option("--device", type=click.Choice(["cuda", "cpu"]), required=True)
@click.option("--folder", type=click.Path(path_type=Path), required=True)
@click.option("--lines", type=click.Path(path_type=Path), required=True)
@click.option("--seconds", type=float, required=True)
def main(
    name: str, arguments: tuple[str, ...], device: str, folder: Path, lines: Path, seconds: float
) -> None:
    """Run the part NAME with its ARGUMENTS, and report each result at once."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise click.ClickException("PyTorch sees no GPU here: use --device cpu --quick")
    runner = PartRunner(device, folder, seconds, lines)
    try:
        getattr(runner, name)(*arguments)
        runner.report("end", f"{name} has ended")
    except DisaError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
