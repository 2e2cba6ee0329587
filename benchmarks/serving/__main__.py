"""Compares policies of disa-serve under load, measured or simulated.

python -m benchmarks.serving measure engines/fashion.plan --seconds 60
python -m benchmarks.serving simulate --head-launch 1e-4
python -m benchmarks.serving costs engines/fashion.plan -o costs.json
python -m benchmarks.serving soak engines/fashion.plan --minutes 60
"""

import asyncio
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import click
import httpx
import numpy as np

from disa.bench.machine import describe_machine, describe_versions
from disa.bench.report import write_record
from disa.commands.command import DisaCommand
from disa.engines.open import ENGINES
from disa.errors import DisaError
from disa.files import read_bytes
from disa.server.scheduling.policy import Cohorts, JoinAtOnce, OneAtATime, Policy, Static

from ..records import moment
from .costs import costs
from .load import (
    Arrival,
    Served,
    closed_loop,
    poisson,
    send_all,
    server_process,
    summary,
)
from .simulation import CostModel, simulate
from .soak import soak

VARIANT = re.compile(
    r"(?P<policy>[a-z]+)(-(?P<cohorts>\d+))?:(?P<images>\d+)(@(?P<engine>[a-z-]+))?"
)
UNLOADED = 5
CLOSED_CLIENTS = 16
BATCH_WAIT = 0.05
"""Seconds in which the static policy collects a batch."""
QUICK, FULL = "quick", "full"
QUICK_SHARE = 0.75
"""Share of the mixed requests that have a quarter of the AR iterations."""


@click.group()
def main() -> None:
    """Measure disa-serve under load."""


@main.command(cls=DisaCommand)
@click.argument("plan", type=click.Path(path_type=Path))
@click.option("--steps", help="Denoising steps; by default those of the plan.")
@click.option("--iterations", default=16, show_default=True, help="AR iterations.")
@click.option("--mixed", is_flag=True, help="Most requests have a quarter of the iterations.")
@click.option("--seconds", default=60.0, show_default=True, help="Length of each run.")
@click.option("--rounds", default=2, show_default=True, help="Runs of each policy and load.")
@click.option("--load", "loads", multiple=True, type=float, default=(0.3, 0.5, 0.8))
@click.option(
    "--server",
    "variants",
    multiple=True,
    default=("join:16", "cohorts-2:16", "cohorts-4:16", "static:16", "single:1"),
    show_default=True,
    help="POLICY[-COHORTS]:MAX_IMAGES[@ENGINE] of a server; may be repeated.",
)
@click.option("--capacity-images", default=128, show_default=True, help="Images of the capacity.")
@click.option("--record", type=click.Path(path_type=Path), help="File of the record.")
def measure(
    plan: Path,
    iterations: int,
    steps: str | None,
    mixed: bool,
    seconds: float,
    rounds: int,
    loads: tuple[float, ...],
    variants: tuple[str, ...],
    capacity_images: int,
    record: Path | None,
) -> None:
    """Send Poisson arrivals to servers with different policies, in alternation.

    Loads are shares of the capacity: the images per second of the best server with 16 requests
    at all times. The time of an image on an idle server is that of the first --server.
    """
    common = {} if steps is None else {"steps": steps}
    kinds = {
        FULL: {**common, "num_iterations": iterations},
        QUICK: {**common, "num_iterations": max(1, iterations // 4)},
    }
    mix = {QUICK: QUICK_SHARE, FULL: 1 - QUICK_SHARE} if mixed else {FULL: 1.0}
    begun = moment()
    runs: dict[tuple[float, str], list[list[Served]]] = {}
    with ExitStack() as stack:
        urls = {name: stack.enter_context(server(plan, name)) for name in variants}
        engines = {name: engine_of(url) for name, url in urls.items()}
        unloaded = {kind: median_unloaded(urls[variants[0]], kinds[kind]) for kind in mix}
        capacities = {
            name: asyncio.run(
                closed_loop(urls[name], CLOSED_CLIENTS, mixed_bodies(kinds, mix, capacity_images))
            )
            for name in variants
        }
        capacity = max(capacities.values())
        click.echo(f"unloaded {unloaded}, capacity {capacities}")
        for load in loads:
            for turn in range(rounds):
                moments = poisson(load * capacity, seconds, mix, seed=turn)
                arrivals = [
                    Arrival(at, kind, streamed(kinds[kind], number))
                    for number, (at, kind) in enumerate(moments)
                ]
                for name in rotated(variants, turn):
                    served = asyncio.run(send_all(urls[name], arrivals))
                    runs.setdefault((load, name), []).append(served)
                    click.echo(f"{load} {name} {as_text(summary(served, unloaded))}")
    content = {
        "kind": "serving",
        "plan": plan.name,
        "kinds": {kind: kinds[kind] for kind in mix},
        "mix": mix,
        "begun": begun,
        "ended": moment(),
        "machine": describe_machine(),
        "versions": describe_versions(),
        "engines": engines,
        "seconds": seconds,
        "wait": BATCH_WAIT,
        "unloaded_seconds": unloaded,
        "capacity": capacities,
        "entries": [
            {"load": load, "policy": name, **merged(parts, unloaded)}
            for (load, name), parts in runs.items()
        ],
    }
    if record:
        write_record(content, record)


def mixed_bodies(
    kinds: Mapping[str, dict[str, Any]], mix: Mapping[str, float], images: int
) -> list[dict[str, Any]]:
    """The bodies of `images` requests, with the share `mix` of each kind."""
    names = [kind for kind, share in mix.items() for _ in range(round(share * images))]
    order = np.random.default_rng(0).permutation(len(names))
    return [streamed(kinds[names[place]], int(place)) for place in order]


def streamed(options: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The body of a request with one preview."""
    return {
        **options, "prompt": "0", "seed": number, "stream": True, "partial_images": 1,
    }  # fmt: skip


def merged(parts: Sequence[Sequence[Served]], unloaded: Mapping[str, float]) -> dict[str, Any]:
    """The summary of several runs together, and of each run."""
    every = summary([one for part in parts for one in part], unloaded)
    each = [summary(part, unloaded) for part in parts]
    rate = float(np.mean([one["images_a_second"] for one in each]))
    return {**every, "images_a_second": rate, "runs": each}


def as_text(content: Mapping[str, Any]) -> str:
    """The numbers of a summary as text, rounded."""
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in content.items()
    )


def rotated(variants: Sequence[str], turn: int) -> list[str]:
    """The variants, beginning with another one in each turn."""
    return [*variants[turn % len(variants) :], *variants[: turn % len(variants)]]


@contextmanager
def server(plan: Path, variant: str) -> Iterator[str]:
    """Start a server with the policy and the engine of a variant; yields its URL."""
    options = ["--batch-wait", str(BATCH_WAIT), *options_of(variant)]
    options += ["--max-queue", "100000", "--request-timeout", "3600", "--warm-up-seconds", "5"]
    with server_process(plan, options) as (url, _):
        yield url


def engine_of(url: str) -> str:
    """The engine that really runs the only model of a server."""
    (model,) = httpx.get(f"{url}/v1/models").json()["data"]
    return str(httpx.get(f"{url}/v1/models/{model['id']}").json()["engine"])


def options_of(variant: str) -> list[str]:
    """The options of disa-serve for a variant such as "cohorts-2:16@openvino".

    Raises:
        DisaError: it is not written that way, or there is no such engine.
    """
    match = VARIANT.fullmatch(variant)
    if not match or match["engine"] not in (None, *ENGINES):
        raise DisaError(
            "--server is POLICY[-COHORTS]:MAX_IMAGES[@ENGINE], such as cohorts-2:16@openvino, "
            f"with an engine of {', '.join(ENGINES)}, not {variant!r}"
        )
    options = ["--policy", match["policy"], "--max-images", match["images"]]
    options += ["--cohorts", match["cohorts"]] if match["cohorts"] else []
    return options + (["--engine", match["engine"]] if match["engine"] else [])


def median_unloaded(url: str, options: Mapping[str, Any]) -> float:
    """The median latency of an image on an idle server, in seconds."""
    bodies = [[streamed(options, seed)] for seed in range(UNLOADED)]
    return float(np.median([1 / asyncio.run(closed_loop(url, 1, body)) for body in bodies]))


@click.option("--load", "loads", multiple=True, type=float, default=(0.3, 0.5, 0.8))
@click.option("--requests", default=1000, show_default=True)
@click.option("--mixed", is_flag=True, help="Most requests have a quarter of the iterations.")
@click.option("--max-images", default=64, show_default=True)
@click.option("--costs", type=click.Path(path_type=Path), help="JSON written by `costs`.")
@click.option("--record", type=click.Path(path_type=Path), help="File of the record.")
def simulated(
    loads: tuple[float, ...],
    requests: int,
    mixed: bool,
    max_images: int,
    costs: Path | None,
    record: Path | None,
    **given: Any,
) -> None:
    """Simulate the policies on a machine that a cost model describes."""
    measured = json.loads(read_bytes(costs, 1 << 20)) if costs else {}
    model = CostModel(**{**measured, **{k: v for k, v in given.items() if v is not None}})
    quick, full = max(1, model.iterations // 4), model.iterations
    mix = {quick: QUICK_SHARE, full: 1 - QUICK_SHARE} if mixed else {full: 1.0}
    unloaded = {
        str(kind): simulate(model, JoinAtOnce(), [(0.0, kind)], 1)[0].seconds or 0.0 for kind in mix
    }
    burst = [(0.0, kind) for kind, share in mix.items() for _ in range(int(share * 4 * max_images))]
    capacity = len(burst) / max(
        one.ended for one in simulate(model, Static(0.0), burst, max_images)
    )
    click.echo(f"unloaded {unloaded}, capacity {capacity:.2f} images a second")
    entries = []
    for load in loads:
        names = {str(kind): share for kind, share in mix.items()}
        moments = poisson(load * capacity, requests / (load * capacity), names, seed=0)
        arrivals = [(at, int(kind)) for at, kind in moments]
        for name, policy, ragged in simulated_policies(unloaded[str(full)]):
            one = summary(simulate(model, policy, arrivals, max_images, ragged), unloaded)
            entries.append({"load": load, "policy": name, **one})
            click.echo(f"{load} {name}: {as_text(one)}")
    if record:
        content = {"kind": "serving simulation", "costs": asdict(model), "mixed": mixed}
        content |= {"unloaded_seconds": unloaded, "capacity": capacity, "entries": entries}
        write_record(content, record)


def simulated_policies(unloaded: float) -> list[tuple[str, Policy, bool]]:
    """The simulated policies: name, policy, and whether backbone calls are ragged."""
    return [
        ("join", JoinAtOnce(), False),
        ("join, ragged backbone", JoinAtOnce(), True),
        ("cohorts, 2", Cohorts(2), False),
        ("cohorts, 4", Cohorts(4), False),
        ("static", Static(unloaded / 8), False),
        ("single", OneAtATime(), False),
    ]


def with_costs(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add an option for each field of the cost model."""
    for each in fields(CostModel):
        flag, kind = f"--{each.name.replace('_', '-')}", type(each.default)
        command = click.option(flag, type=kind, help=f"{each.default} by default.")(command)
    return command


main.command("simulate", cls=DisaCommand)(with_costs(simulated))
main.add_command(costs)
main.add_command(soak)


if __name__ == "__main__":
    main()
