"""Checks and measures everything that needs an NVIDIA GPU, in one call.

python -m benchmarks.gpu_check -o gpu.json

Needs PyTorch, onnx, onnxscript and onnxruntime(-gpu); TensorRT and cuda-bindings if there
are to be engines. disa need not be installed. Exit code 1 if a check failed.
"""

import importlib
import json
import os
import platform
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ENGINES = ("cuda", "tensorrt", "tensorrt-rtx")


def make_importable() -> None:
    """Let `import disa` find this tree where disa is not installed."""
    sys.path.insert(0, str(ROOT))
    try:
        importlib.import_module("disa")
    except ImportError:
        package = Path(tempfile.mkdtemp()) / "disa"
        package.mkdir()
        sources = [*(ROOT / "src" / "disa").iterdir()]
        sources += [ROOT / name for name in ("exporter", "engines", "runtime", "calibration")]
        for source in sources:
            (package / source.name).symlink_to(source)
        sys.path.insert(0, str(package.parent))


def surroundings() -> dict[str, Any]:
    """What is installed here, and why what is not usable is not."""
    import torch

    from disa.engines.tensorrt.flavour import MODULES, find

    found: dict[str, Any] = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("onnx", "onnxruntime"):
        try:
            found[name] = importlib.import_module(name).__version__
        except ImportError as error:
            found[name] = f"cannot be imported ({error})"
    try:
        found["providers"] = importlib.import_module("onnxruntime").get_available_providers()
    except ImportError:
        found["providers"] = []
    for name in MODULES:
        flavour = find(name)
        found[name] = flavour if isinstance(flavour, str) else flavour.version
    found["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return found


def refusals(folder: Path) -> dict[str, Any]:
    """What TensorRT-RTX says of this GPU: while building, of an engine's header, on loading.

    The engine is built for the architectures that it does support.
    """
    from benchmarks.gpu_parity import plan_of
    from disa.engines.build import EngineOptions, build_engines
    from disa.engines.plan import Plan
    from disa.engines.tensorrt.device import present
    from disa.engines.tensorrt.flavour import TENSORRT_RTX, find
    from disa.engines.tensorrt.logger import collect, logger_of
    from disa.errors import DisaError

    flavour = find(TENSORRT_RTX)
    if isinstance(flavour, str):
        return {"imported": flavour}
    gpu = present()
    said: dict[str, Any] = {"gpu": None if gpu is None else f"{gpu.name}, sm_{gpu.sm}"}
    with Plan.open(plan_of("mar", "fp16", folder)) as plan:
        if gpu is not None:
            try:
                build_engines(plan, EngineOptions(TENSORRT_RTX, (gpu.sm,)))
                said["build for this GPU"] = "done"
            except DisaError as error:
                said["build for this GPU"] = str(error)
        built = build_engines(plan, EngineOptions(TENSORRT_RTX, (80, 86, 89, 120)))[-1]
    data = built.path.read_bytes()
    with collect(flavour.trt) as messages:
        runtime = flavour.trt.Runtime(logger_of(flavour.trt))
        said["validity of an engine"] = flavour.validity(runtime, memoryview(data)) or "valid"
        engine = runtime.deserialize_cuda_engine(data)
        said["loading an engine"] = "refused" if engine is None else "done"
        said["messages"] = messages.errors
    return said


def usable_engines(device: str, folder: Path, asked: list[str]) -> tuple[list[str], dict[str, str]]:
    """The engines that can draw here, and why the others cannot."""
    from benchmarks.gpu_parity import plan_of, with_engines
    from disa.engines.tensorrt.profile import Range
    from disa.errors import DisaError
    from disa.runtime.pipeline import Pipeline

    if device == "cpu":
        return ["cpu"], {}
    usable, reasons = [], {}
    for engine in asked:
        try:
            path = with_engines(plan_of("mar", "fp32", folder), engine, Range(1, 2, 4))
            Pipeline.from_plan(path, engine)
            usable.append(engine)
        except DisaError as error:
            reasons[engine] = str(error)
    return usable, reasons


def run(device: str, quick: bool, minutes: float, asked: list[str], folder: Path) -> dict[str, Any]:
    """Everything; see the module."""
    from benchmarks import gpu_parity as parity
    from benchmarks.gpu_speed import Benchmark, Clock

    clock, checks = Clock(device, minutes), []
    result: dict[str, Any] = {"when": time.strftime("%Y-%m-%d"), **surroundings()}
    say(f"{result['gpu'] or 'no GPU'}, torch {result['torch']}, ORT {result['onnxruntime']}")
    result["tensorrt-rtx says"] = refusals(folder)
    for question, answer in result["tensorrt-rtx says"].items():
        say(f"TensorRT-RTX, {question}: {answer}")
    engines, result["unusable"] = usable_engines(device, folder, asked)
    for engine, reason in result["unusable"].items():
        say(f"{engine} cannot be used: {reason}")
    models = ["mar"] if quick else ["mar", "mar_patch2", "flowar_s", "xar", "harmon"]
    precisions = ["fp32"] if quick or device == "cpu" else ["fp32", "fp16"]
    for engine in engines:
        for check in parity.replays(engine, models, precisions, folder, 1 if quick else 3):
            checks.append(check)
            say_check(check)
            if clock.left < 60 * minutes / 2:
                say("half of the time is gone: the remaining recorded runs are left out")
                result["replays_cut"] = True
                break
        for precision in precisions:
            sizes = (1, 2) if quick else (1, 2, 3, 5)
            for work in (
                lambda e=engine, p=precision, s=sizes: parity.batch_invariance(e, p, folder, s),
                lambda e=engine, p=precision: parity.graph_against_plain(e, p, folder),
            ):
                checks.append(parity.attempt(f"{engine} {precision}", engine, work))
                say_check(checks[-1])
    result["checks"] = [asdict(check) for check in checks]
    result["passed"] = bool(engines) and all(check.passed for check in checks)
    benchmark = Benchmark(
        clock,
        folder,
        engines,
        [1, 2] if quick else [1, 8, 64],
        4 if quick else 64,
        "fp32" if device == "cpu" else "fp16",
        say,
    )
    result["benchmark"] = benchmark.run(["tiny"] if quick else ["mar_b", "mar_l", "mar_h"])
    return result


def say(text: str) -> None:
    """Print at once: a run that is cut off has told what it knew."""
    print(text, flush=True)


def say_check(check: Any) -> None:
    """One line on a check."""
    say(f"{'ok  ' if check.passed else 'FAIL'} {check.name} [{check.engine}]: {check.detail}")


def main() -> None:
    """The command line."""
    make_importable()
    import click

    @click.command()
    @click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda")
    @click.option("--quick", is_flag=True, help="A tiny model and few runs, to try the script.")
    @click.option("--minutes", default=9.0, show_default=True, help="Time to keep within.")
    @click.option("--engines", default=",".join(ENGINES), show_default=True)
    @click.option("-o", "--output", type=click.Path(path_type=Path), default="gpu-check.json")
    def command(device: str, quick: bool, minutes: float, engines: str, output: Path) -> None:
        """Check parity on this machine's GPU, then measure; write JSON."""
        import torch

        if device == "cuda" and not torch.cuda.is_available():
            raise click.ClickException("PyTorch sees no GPU here: use --device cpu --quick")
        with tempfile.TemporaryDirectory(prefix="disa-gpu-") as folder:
            os.environ.setdefault("DISA_CACHE", str(Path(folder) / "cache"))
            result = run(device, quick, minutes, engines.split(","), Path(folder))
        output.write_text(json.dumps(result, indent=1) + "\n")
        say(f"written to {output}; {'all passed' if result['passed'] else 'SOME CHECKS FAILED'}")
        sys.exit(0 if result["passed"] else 1)

    command()


if __name__ == "__main__":
    main()
