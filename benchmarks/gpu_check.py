"""Checks and measures everything that needs an NVIDIA GPU, in one call.

python -m benchmarks.gpu_check -o gpu.json --wheels FOLDER

It needs the packages in `gpu.packages.NEEDED`; disa need not be installed. These and others
(onnxruntime-gpu, cuda-bindings, tensorrt, tensorrt-rtx) can be installed from wheels in a folder,
whole or split into NAME.whl.00, NAME.whl.01 and so on. Every part runs in its own process and
reports each result at once, so a part that crashes or hangs does not affect the others. The most
important parts run first, while the plans of later parts are exported. The exit code is 1 if a
check failed.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .gpu.packages import SITE, ending, install, missing_packages

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = ("-m", "benchmarks.gpu.part")
ENGINES = ("cuda", "tensorrt", "tensorrt-rtx")
SIZES = ("mar_b", "mar_l", "mar_h")
FAMILIES = ("mar_patch2", "flowar_s", "xar", "harmon")
TARGETS = (("mar_b", 1, 10.0), ("mar_b", 64, 2.5))
"""Size, batch size, and the expected speed of the best engine relative to eager PyTorch."""
HEAD_TARGET = 2.0
"""Largest time of a head step at batch size 1, relative to the floor."""


@dataclass(frozen=True)
class Part:
    """A part of the check; see `benchmarks.gpu.part`.

    Attributes:
        name: name in the record.
        arguments: arguments of `benchmarks.gpu.part`.
        seconds: time limit.
        engine: the engine that it runs; if it cannot be used, the part is left out.
        plan: file name of the plan that it needs, which `EXPORTS` writes.
    """

    name: str
    arguments: tuple[str, ...]
    seconds: float
    engine: str = ""
    plan: str = ""


def golden_plan(model: str, precision: str) -> str:
    """The file name of a golden model's plan."""
    return f"{model}-{precision}.plan"


def random_plan(size: str, precision: str) -> str:
    """The file name of a plan with random weights."""
    return f"{size}-{precision}-random.plan"


EXPORTS = Part("exports", ("exports", ",".join(SIZES), ",".join(FAMILIES)), 600)
"""Runs beside the other parts: exporting takes minutes on one core and needs no GPU."""


def parts_of(quick: bool, engines: Sequence[str]) -> list[Part]:
    """All parts, the most important ones first."""
    if quick:
        return [
            Part("machine", ("machine",), 120),
            Part("checks cpu", ("checks", "cpu", "fp32", "mar"), 240),
            Part("tiny cpu", ("engine", "tiny", "cpu"), 120),
            Part("tiny eager", ("eager", "tiny"), 120),
        ]
    # The first import of PyTorch reads gigabytes, and the machine's results belong to all others.
    found = [Part("machine", ("machine",), 120)]
    found += [Part(f"checks {e}", ("checks", e, "fp32,fp16", "mar"), 150, e) for e in engines]
    for size in SIZES:
        plan = random_plan(size, "fp16")
        found += [Part(f"{size} {e}", ("engine", size, e), 120, e, plan) for e in engines]
        found.append(Part(f"{size} eager", ("eager", size), 120))
    found += [Part(f"{size} compile", ("compile", size), 100) for size in SIZES[:1]]
    others, last = ",".join(FAMILIES), golden_plan(FAMILIES[-1], "fp32")
    found += [Part(f"families {e}", ("checks", e, "fp32", others), 120, e, last) for e in engines]
    found += [Part(f"{size} compile", ("compile", size), 100) for size in SIZES[1:]]
    return found


def environment(folder: Path) -> dict[str, str]:
    """The environment variables of parts: installed wheels and this tree are importable."""
    package = folder / "package" / "disa"
    package.mkdir(parents=True)
    sources = [*(ROOT / "src" / "disa").iterdir()]
    sources += [ROOT / name for name in ("exporter", "engines", "runtime", "calibration")]
    for source in sources:
        (package / source.name).symlink_to(source)
    paths = [str(folder / SITE), str(ROOT), str(package.parent)]
    paths += filter(None, [os.environ.get("PYTHONPATH")])
    settings = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    return {**os.environ, "DISA_CACHE": str(folder / "cache"), **settings}


class GpuCheck:
    """Runs the parts and collects their results.

    Args:
        device: "cuda" or "cpu".
        minutes: time limit of all parts.
        output: file of the record.
        folder: for plans and results of the parts.
    """

    def __init__(self, device: str, minutes: float, output: Path, folder: Path) -> None:
        self.device, self.output, self.folder = device, output, folder
        self.start = time.monotonic()
        self.end = self.start + 60 * minutes
        self.program = [sys.executable, *PROGRAM]
        self.lines: list[dict[str, Any]] = []
        self.parts: list[dict[str, Any]] = []
        self.exports: subprocess.Popen[bytes] | None = None

    def install(self, wheels: Path) -> None:
        """Install wheels; one that cannot be installed is reported, and the parts run anyway."""
        for name, outcome in install(wheels, self.folder).items():
            self._ended(f"wheel {name}", outcome, time.monotonic())

    def run(self, part: Part, settings: dict[str, str]) -> None:
        """Run a part within its time limit, and write the record."""
        start, outcome = time.monotonic(), "stopped: the whole check was stopped"
        unusable = {line["engine"] for line in self.lines if line["kind"] == "unusable"}
        try:
            if part.engine in unusable:
                outcome = f"left out: {part.engine} cannot be used"
            elif self._seconds(part) < 10:
                outcome = "left out: no time"
            else:
                self._await_plan(part)
                process = self._begin(part, settings)
                outcome = self._end(part, process, self._seconds(part))
        finally:
            self._ended(part.name, outcome, start)

    def lacks_packages(self, settings: dict[str, str]) -> bool:
        """Whether packages are missing without which no part can run; the record names them."""
        missing = missing_packages(settings, ROOT)
        if missing:
            outcome = f"missing: {', '.join(missing)}"
            self._ended("packages", outcome, time.monotonic())
        return bool(missing)

    def begin_exports(self, settings: dict[str, str]) -> None:
        """Export plans while parts run."""
        self.exports = self._begin(EXPORTS, settings)

    def end_exports(self) -> None:
        """Stop exporting, if it is still running."""
        if self.exports is not None:
            outcome = self._end(EXPORTS, self.exports, 0)
            self._ended(EXPORTS.name, outcome, self.start)

    def _seconds(self, part: Part) -> float:
        return min(part.seconds, self.end - time.monotonic())

    def _await_plan(self, part: Part) -> None:
        """Wait until the plan of a part is exported; otherwise the part itself exports it."""
        if self.exports is None or not part.plan:
            return
        until = time.monotonic() + self._seconds(part)
        while not (self.folder / part.plan).exists() and self.exports.poll() is None:
            if time.monotonic() > until:
                return
            time.sleep(0.1)

    def _begin(self, part: Part, settings: dict[str, str]) -> subprocess.Popen[bytes]:
        command = [*self.program, *part.arguments]
        command += ["--device", self.device, "--folder", str(self.folder)]
        command += ["--lines", str(self._file(part, "jsonl"))]
        command += ["--seconds", f"{self._seconds(part) - 3:.0f}"]
        # With a file instead of a pipe, and a process group, child processes cannot block the end.
        with self._file(part, "txt").open("wb") as errors:
            return subprocess.Popen(
                command, env=settings, cwd=ROOT, stderr=errors, start_new_session=True
            )

    def _end(self, part: Part, process: subprocess.Popen[bytes], seconds: float) -> str:
        try:
            code = process.wait(seconds)
            outcome = ending(code, self._file(part, "txt").read_text(errors="replace"))
        except subprocess.TimeoutExpired:
            outcome = "stopped: time limit"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            found = self._read_lines(part)
            self.lines += found
        if outcome != "done" and found and found[-1]["kind"] == "end":
            # Libraries of GPUs can crash or hang while they are unloaded, when all is reported.
            outcome = f"done, but its process {outcome}"
        return outcome

    def _read_lines(self, part: Part) -> list[dict[str, Any]]:
        lines = self._file(part, "jsonl")
        if not lines.exists():
            return []
        # The last line of a part that was stopped may be incomplete.
        whole = lines.read_text().rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines()]

    def _file(self, part: Part, suffix: str) -> Path:
        return self.folder / f"{part.name.replace(' ', '-')}.{suffix}"

    def _ended(self, name: str, outcome: str, start: float) -> None:
        took = round(time.monotonic() - start, 1)
        self.parts.append({"part": name, "outcome": outcome, "seconds": took})
        if outcome != "done":
            say(f"{name}: {outcome}")
        self.write()

    def write(self) -> dict[str, Any]:
        """Write the record of all results so far; returns it."""
        kinds = ("about", "check", "unusable", "machine", "floor", "speed", "failure")
        results = {
            kind: [_without_kind(line) for line in self.lines if line["kind"] == kind]
            for kind in kinds
        }
        checks = results["check"]
        # A part with checks that did not finish counts as failed.
        incomplete = any(
            part["part"].startswith(("checks", "families"))
            and part["outcome"].startswith(("ended", "stopped"))
            for part in self.parts
        )
        result = {
            "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            **(results["about"][0] if results["about"] else {}),
            "parts": self.parts,
            "unusable": {line["engine"]: line["reason"] for line in results["unusable"]},
            "checks": checks,
            "passed": bool(checks) and not incomplete and all(check["passed"] for check in checks),
            "machine": results["machine"][0] if results["machine"] else None,
            "floors": [
                floor
                for index, floor in enumerate(results["floor"])
                if floor not in results["floor"][:index]
            ],
            "speeds": results["speed"],
            "failures": results["failure"],
            "targets": targets(results["speed"], results["floor"]),
        }
        self.output.parent.mkdir(parents=True, exist_ok=True)
        partial = self.output.with_name(f".{self.output.name}")
        partial.write_text(json.dumps(result, indent=1) + "\n")
        partial.replace(self.output)
        return result


def _without_kind(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name != "kind"}


def targets(
    speeds: Sequence[dict[str, Any]], floors: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The targets with the measured values; `reached` is None if it was not measured."""
    found = []
    for size, batch, wanted in TARGETS:
        here = [s for s in speeds if (s["size"], s["batch"]) == (size, batch)]
        eager = [s["seconds_per_image"] for s in here if s["way"] == "eager"]
        best = [s["seconds_per_image"] for s in here if s["way"] in ENGINES]
        reached = round(eager[0] / min(best), 2) if eager and best else None
        name = f"{size}, batch {batch}: times the speed of eager PyTorch"
        found.append({"target": name, "wanted": wanted, "reached": reached})
    steps = [
        speed["head_step_ms"] / floor["head_step_ms"]
        for speed in speeds
        for floor in floors
        if speed["way"] in ENGINES
        and (speed["size"], speed["batch"]) == (floor["size"], floor["batch"]) == ("mar_b", 1)
    ]
    name = "mar_b, batch 1: time of a head step over the floor"
    reached = round(min(steps), 2) if steps else None
    return [*found, {"target": name, "wanted": HEAD_TARGET, "reached": reached}]


def say(text: str) -> None:
    """Print without buffering, so that nothing is lost if the run is stopped."""
    print(text, flush=True)


def run_all(arguments: argparse.Namespace) -> dict[str, Any]:
    """Install packages and run all parts; returns the record."""
    with tempfile.TemporaryDirectory(prefix="disa-gpu-", ignore_cleanup_errors=True) as folder:
        # The time limit includes the installation.
        check = GpuCheck(arguments.device, arguments.minutes, arguments.output, Path(folder))
        # If the record cannot be written, that should be known at once.
        check.write()
        if arguments.wheels is not None:
            check.install(arguments.wheels)
        settings = environment(Path(folder))
        if check.lacks_packages(settings):
            return check.write()
        if not arguments.quick:
            check.begin_exports(settings)
        try:
            for part in parts_of(arguments.quick, arguments.engines.split(",")):
                check.run(part, settings)
        finally:
            check.end_exports()
        return check.write()


def main() -> None:
    """The command line; it imports no package that a wheel may install."""
    arguments = parser().parse_args()
    if arguments.device == "cpu" and not arguments.quick:
        sys.exit("without a GPU only --quick makes sense")
    # What a part has reported when the whole check is stopped belongs in the record too.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit("the check was stopped"))
    try:
        result = run_all(arguments)
    finally:
        signal.signal(signal.SIGTERM, before)
    for target in result["targets"]:
        say(f"{target['target']}: {target['reached']}, wanted {target['wanted']}")
    passed = "all passed" if result["passed"] else "SOME CHECKS FAILED"
    say(f"written to {arguments.output}; {passed}")
    sys.exit(0 if result["passed"] else 1)


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check",
        description="Check parity on this machine's GPU, then measure; write JSON.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    made.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="where to run")
    made.add_argument("--quick", action="store_true", help="use a tiny model, to test the script")
    made.add_argument("--minutes", type=float, default=9.0, help="time limit of all parts")
    made.add_argument("--engines", default=",".join(ENGINES), help="what to check and measure")
    made.add_argument("--wheels", type=Path, help="folder of packages to install, see above")
    made.add_argument(
        "-o", "--output", type=Path, default=Path("gpu-check.json"), help="the file to write"
    )
    return made


if __name__ == "__main__":
    main()
