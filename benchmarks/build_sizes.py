"""How long TensorRT takes to build the official sizes, and how large the engines are.

python -m benchmarks.build_sizes --precision fp16 --gpu sm_80,sm_86,sm_89,sm_120 -o sizes.json
"""

import json
import os
import platform
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from disa.cli import DisaCommand
from disa.engines.build import BuiltEngine, EngineOptions, build_engines, engine_options
from disa.engines.plan import Plan

from .random_plan import write_random_plan

MIB = 2**20


def measure(size: str, precision: str, options: EngineOptions, folder: Path) -> dict[str, Any]:
    """Export a size with random weights and build it; nothing comes from the cache."""
    started = time.perf_counter()
    path = write_random_plan(size, precision, folder / f"{size}.plan", click.echo)
    exported = time.perf_counter() - started
    with Plan.open(path) as plan:
        before = time.process_time()
        built = build_engines(plan, options)
        worked = time.process_time() - before
        version = f"{built[0].info.backend} {built[0].info.version}"
    return {
        "size": size,
        "precision": precision,
        "built_with": version,
        "load_average": round(os.getloadavg()[0], 1),
        "architectures": list(built[0].info.architectures),
        "export_seconds": round(exported, 1),
        "build_seconds": round(sum(engine.seconds for engine in built), 1),
        "build_cpu_seconds": round(worked, 1),
        "engine_mib": round(sum(engine.size for engine in built) / MIB, 1),
        "plan_mib": round(path.stat().st_size / MIB, 1),
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "graphs": {engine.info.graph: _row(engine) for engine in built},
    }


def _row(engine: BuiltEngine) -> dict[str, Any]:
    memory = engine.info.details["memory"]
    return {
        "seconds": round(engine.seconds, 2),
        "mib": round(engine.size / MIB, 2),
        "activation_mib": round(memory.get("activations", 0) / MIB, 1),
    }


@click.command(cls=DisaCommand)
@click.option("--sizes", default="mar_b,mar_l,mar_h", show_default=True)
@click.option(
    "--precision", type=click.Choice(["fp32", "fp16", "bf16"]), default="fp16", show_default=True
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="A JSON file to write.")
@engine_options
def main(sizes: str, precision: str, output: Path | None, **engine: Any) -> None:
    """Build engines for MAR models with random weights and print time and size."""
    options = EngineOptions.from_command(**engine)
    if options is None:
        raise click.UsageError("onnxruntime builds no engines: choose another --engine")
    rows: list[dict[str, Any]] = []
    result = {"machine": f"{platform.machine()}, {os.cpu_count()} cores", "builds": rows}
    for size in sizes.split(","):
        # A folder of its own as the cache too: what is measured is a build.
        with tempfile.TemporaryDirectory() as folder:
            os.environ["DISA_CACHE"] = folder
            rows.append(measure(size, precision, options, Path(folder)))
            click.echo(json.dumps(rows[-1], indent=1))
        if output:
            output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
