"""Checks and measures everything that needs an NVIDIA GPU, in one call.

python -m benchmarks.gpu_check -o gpu.json --wheels FOLDER

Needs PyTorch, onnx and onnxscript; disa need not be installed. What else is wanted
(onnxruntime-gpu, cuda-bindings, tensorrt, tensorrt-rtx) may lie as wheels in a folder, whole or cut
into pieces named NAME.whl.00, NAME.whl.01 and so on. Every part runs in a process of its own and
reports line by line, so one that crashes or hangs takes nothing with it; the most valuable parts
come first. Exit code 1 if a check failed.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ENGINES = ("cuda", "tensorrt", "tensorrt-rtx")
SIZES = ("mar_b", "mar_l", "mar_h")
TARGETS = (("mar_b", 1, 10.0), ("mar_b", 64, 2.5))
"""How many times faster than eager PyTorch the best engine should be: size, batch, times."""
HEAD_TARGET = 2.0
"""How many times the time that the memory needs a head step at batch 1 may take."""


@dataclass(frozen=True)
class Part:
    """Something that is checked or measured; see `benchmarks.gpu_part`."""

    name: str
    arguments: tuple[str, ...]
    seconds: float
    """When to stop it, if there is still so much time."""
    engine: str = ""
    """What it is about; once that cannot be used, the part is left out."""


def parts_of(quick: bool, engines: Sequence[str]) -> list[Part]:
    """All parts, those worth most first."""
    if quick:
        return [
            Part("machine", ("machine",), 120),
            Part("refusals", ("refusals",), 240),
            Part("checks cpu", ("checks", "cpu", "fp32", "mar"), 240),
            Part("tiny cpu", ("engine", "tiny", "cpu"), 120),
            Part("tiny eager", ("eager", "tiny"), 120),
        ]
    found = [Part("machine", ("machine",), 60)]
    found += [Part(f"checks {e}", ("checks", e, "fp32,fp16", "mar"), 90, e) for e in engines]
    for size in SIZES:
        found += [Part(f"{size} {e}", ("engine", size, e), 120, e) for e in engines]
        found.append(Part(f"{size} eager", ("eager", size), 120))
        if size == SIZES[0]:
            found.append(Part("refusals", ("refusals",), 60))
    found += [Part(f"{size} compile", ("compile", size), 100) for size in SIZES[:1]]
    others = "mar_patch2,flowar_s,xar,harmon"
    found += [Part(f"families {e}", ("checks", e, "fp32", others), 120, e) for e in engines]
    found += [Part(f"{size} compile", ("compile", size), 100) for size in SIZES[1:]]
    return found


def environment(wheels: Path | None, folder: Path) -> dict[str, str]:
    """What the parts run in: this tree, importable as disa, and the wheels before all others."""
    paths = [str(ROOT)]
    if wheels is not None:
        paths.insert(0, str(install(wheels, folder)))
    package = folder / "package" / "disa"
    package.mkdir(parents=True)
    sources = [*(ROOT / "src" / "disa").iterdir()]
    sources += [ROOT / name for name in ("exporter", "engines", "runtime", "calibration")]
    for source in sources:
        (package / source.name).symlink_to(source)
    paths.append(str(package.parent))
    paths += filter(None, [os.environ.get("PYTHONPATH")])
    settings = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    return {**os.environ, "DISA_CACHE": str(folder / "cache"), **settings}


def install(wheels: Path, folder: Path) -> Path:
    """Install wheels without a network, after putting those in pieces together."""
    whole, site = folder / "wheels", folder / "site"
    whole.mkdir()
    for piece in sorted(wheels.glob("*.whl*")):
        name = piece.name if piece.suffix == ".whl" else piece.stem
        with (whole / name).open("ab") as target, piece.open("rb") as source:
            shutil.copyfileobj(source, target)
    files = [str(path) for path in sorted(whole.glob("*.whl"))]
    say(f"installing {', '.join(Path(name).name for name in files) or 'no wheels'}")
    if files:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
        subprocess.run([*command, "--no-compile", "--target", str(site), *files], check=True)
    shutil.rmtree(whole)
    return site


class Check:
    """Runs the parts and keeps what they report."""

    def __init__(self, device: str, minutes: float, output: Path, folder: Path) -> None:
        self.device, self.output, self.folder = device, output, folder
        self.end = time.monotonic() + 60 * minutes
        self.program = [sys.executable, "-m", "benchmarks.gpu_part"]
        self.lines: list[dict[str, Any]] = []
        self.parts: list[dict[str, Any]] = []

    def run(self, part: Part, settings: dict[str, str]) -> None:
        """Run a part for as long as there is time, and write all that is known."""
        seconds = min(part.seconds, self.end - time.monotonic())
        began = time.monotonic()
        unusable = {line["engine"] for line in self.lines if line["kind"] == "unusable"}
        if part.engine in unusable:
            outcome = f"left out: {part.engine} cannot be used"
        elif seconds < 10:
            outcome = "left out: no time"
        else:
            outcome = self._run(part, settings, seconds)
        took = round(time.monotonic() - began, 1)
        self.parts.append({"part": part.name, "outcome": outcome, "seconds": took})
        if outcome != "done":
            say(f"{part.name}: {outcome}")
        self.write()

    def _run(self, part: Part, settings: dict[str, str], seconds: float) -> str:
        lines = self.folder / "lines.jsonl"
        lines.unlink(missing_ok=True)
        command = [*self.program, *part.arguments]
        command += ["--device", self.device, "--folder", str(self.folder), "--lines", str(lines)]
        command += ["--seconds", f"{seconds - 3:.0f}"]
        try:
            ended = subprocess.run(
                command, env=settings, cwd=ROOT, timeout=seconds, stderr=subprocess.PIPE, text=True
            )
            outcome = "done"
            if ended.returncode:
                said = ended.stderr.strip().splitlines() or ["no words"]
                outcome = f"ended with {ended.returncode}: {said[-1][:500]}"
        except subprocess.TimeoutExpired:
            outcome = f"stopped after {seconds:.0f} s"
        if lines.exists():
            self.lines += [json.loads(line) for line in lines.read_text().splitlines()]
        return outcome

    def write(self) -> dict[str, Any]:
        """Everything that is known so far, as it is written."""
        kinds = ("about", "refusal", "check", "unusable", "machine", "floor", "speed", "failure")
        kept = {
            kind: [_without(line) for line in self.lines if line["kind"] == kind] for kind in kinds
        }
        checks = kept["check"]
        result = {
            "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            **(kept["about"][0] if kept["about"] else {}),
            "parts": self.parts,
            "tensorrt-rtx says": {line["question"]: line["answer"] for line in kept["refusal"]},
            "unusable": {line["engine"]: line["reason"] for line in kept["unusable"]},
            "checks": checks,
            "passed": bool(checks) and all(check["passed"] for check in checks),
            "machine": kept["machine"][0] if kept["machine"] else None,
            "floors": [
                floor
                for index, floor in enumerate(kept["floor"])
                if floor not in kept["floor"][:index]
            ],
            "speeds": kept["speed"],
            "failures": kept["failure"],
            "targets": targets(kept["speed"], kept["floor"]),
        }
        kept_aside = self.output.with_name(f".{self.output.name}")
        kept_aside.write_text(json.dumps(result, indent=1) + "\n")
        kept_aside.replace(self.output)
        return result


def _without(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name != "kind"}


def targets(
    speeds: Sequence[dict[str, Any]], floors: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """What was aimed at, and what was reached; `reached` is None where it was not measured."""
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
    """Print at once: a run that is cut off has told what it knew."""
    print(text, flush=True)


def main() -> None:
    """The command line."""
    import click

    @click.command()
    @click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda")
    @click.option("--quick", is_flag=True, help="A tiny model and few runs, to try the script.")
    @click.option("--minutes", default=9.0, show_default=True, help="Time to keep within.")
    @click.option("--engines", default=",".join(ENGINES), show_default=True)
    @click.option("--parts", default="", help="Only parts with one of these, comma-separated.")
    @click.option("--wheels", type=click.Path(exists=True, path_type=Path), help="See above.")
    @click.option("-o", "--output", type=click.Path(path_type=Path), default="gpu-check.json")
    def command(
        device: str,
        quick: bool,
        minutes: float,
        engines: str,
        parts: str,
        wheels: Path | None,
        output: Path,
    ) -> None:
        """Check parity on this machine's GPU, then measure; write JSON."""
        if device == "cpu" and not quick:
            raise click.UsageError("without a GPU only --quick makes sense")
        with tempfile.TemporaryDirectory(prefix="disa-gpu-") as folder:
            # The time to install counts too.
            check = Check(device, minutes, output, Path(folder))
            settings = environment(wheels, Path(folder))
            for part in parts_of(quick, engines.split(",")):
                # What the machine can do is part of every record.
                if part.name == "machine" or any(w in part.name for w in parts.split(",")):
                    check.run(part, settings)
            result = check.write()
        for target in result["targets"]:
            say(f"{target['target']}: {target['reached']}, wanted {target['wanted']}")
        say(f"written to {output}; {'all passed' if result['passed'] else 'SOME CHECKS FAILED'}")
        sys.exit(0 if result["passed"] else 1)

    command()


if __name__ == "__main__":
    main()
