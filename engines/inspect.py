"""disa-inspect: shows what is in a plan, and checks that it is undamaged."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ..cli import DisaCommand, progress_bar
from ..errors import DisaError
from .manifest import EngineInfo, GraphInfo, Manifest
from .plan import Plan

_MAX_TEXT = 400


@click.command(
    cls=DisaCommand,
    epilog="Examples:\n\n\b\n"
    "  disa-inspect engines/mar_b.plan\n"
    "  disa-inspect engines/mar_b.plan --check\n"
    "  disa-inspect engines/mar_b.plan --json | jq .graphs.head.inputs",
)
@click.argument("plan", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
@click.option("--check", is_flag=True, help="Read the whole file and compare all checksums.")
@click.option("--layers", is_flag=True, help="Show the layers of engines that can run here.")
def main(plan: Path, as_json: bool, check: bool, layers: bool) -> None:
    """Show what PLAN holds: model, sizes, defaults, graphs and engines.

    With --check the exit code is 1 if any member differs from its checksum; without it only
    the directory and the manifest are checked, however large the file is.
    """
    with Plan.open(plan) as opened:
        if check:
            _check(opened)
        described = _layers(opened) if layers else []
        if as_json:
            click.echo(json.dumps(as_data(opened, check, described), indent=1))
            return
        click.echo("\n".join(as_text(opened)))
        for engine, description in zip(opened.manifest.engines, described, strict=layers):
            click.echo(f"\nengine for {engine.graph}: {json.dumps(description, indent=1)}")
        if check:
            click.echo(f"\nall {len(opened.manifest.members)} checksums match")


def _check(plan: Plan) -> None:
    total = sum(member.size for member in plan.manifest.members.values())
    with progress_bar(total, "checking", "B") as advance:
        plan.check(advance)


def _layers(plan: Plan) -> list[dict[str, Any]]:
    """For each engine what TensorRT tells about it, or why it cannot."""
    from .tensorrt.inspect import describe

    described = []
    for engine in plan.manifest.engines:
        try:
            described.append(describe(plan, engine))
        except DisaError as error:
            described.append({"error": str(error)})
    return described


def as_data(plan: Plan, checked: bool, layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The manifest with what the file itself tells."""
    data = {"path": str(plan.path), "bytes": plan.size, **plan.manifest.raw}
    if checked:
        data["checked"] = True
    if layers:
        data["layers"] = list(layers)
    return data


def as_text(plan: Plan) -> list[str]:
    """The lines that describe a plan."""
    manifest = plan.manifest
    facts = [
        ("name", manifest.name),
        ("family", manifest.family),
        ("precision", manifest.precision),
        ("quantized", _quantized(manifest)),
        ("size", _bytes(plan.size)),
        ("model", _pairs(manifest.model)),
        ("tokens", _pairs(manifest.tokens)),
        ("image", _pairs(manifest.image)),
        ("defaults", _pairs(manifest.defaults)),
        ("classes", _classes(manifest)),
        ("made from", _pairs(manifest.source)),
    ]
    lines = [f"{key:<10} {_shorten(value)}" for key, value in facts if value]
    lines += ["", *_table(("graph", "size", "inputs", "outputs"), _graph_rows(plan))]
    if manifest.engines:
        head = ("engine for", "backend", "precision", "GPUs", "size", "shapes")
        lines += ["", *_table(head, _engine_rows(manifest))]
    else:
        lines += ["", "no TensorRT engines: runs on ONNX Runtime"]
    return lines


def _graph_rows(plan: Plan) -> Iterable[Sequence[str]]:
    for graph in plan.manifest.graphs.values():
        rows = max(len(graph.inputs), len(graph.outputs), 1)
        for row in range(rows):
            first = (graph.name, _bytes(_graph_size(plan, graph))) if row == 0 else ("", "")
            yield (
                *first,
                str(graph.inputs[row]) if row < len(graph.inputs) else "",
                str(graph.outputs[row]) if row < len(graph.outputs) else "",
            )


def _graph_size(plan: Plan, graph: GraphInfo) -> int:
    members = plan.manifest.members
    return sum(members[name].size for name in (graph.onnx, *graph.data))


def _engine_rows(manifest: Manifest) -> Iterable[Sequence[str]]:
    for engine in manifest.engines:
        yield (
            engine.graph,
            f"{engine.backend} {engine.version}",
            engine.precision,
            " ".join(engine.architectures),
            _bytes(manifest.members[engine.member].size),
            _shapes(engine),
        )


def _shapes(engine: EngineInfo) -> str:
    """The first input of each profile, from its smallest to its largest shape."""
    ranges = [next(iter(profile.items())) for profile in engine.profiles if profile]
    return "; ".join(f"{n} {_shape(r.minimum)} to {_shape(r.maximum)}" for n, r in ranges)


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _classes(manifest: Manifest) -> str:
    names = manifest.class_names
    return f"{len(names)}: {', '.join(names)}" if names else ""


def _quantized(manifest: Manifest) -> str:
    """For each quantised graph how many of its products are, and what that did to its output."""
    return "; ".join(f"{name}: {_pairs(about)}" for name, about in manifest.quantized.items())


def _pairs(entries: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key} {value if isinstance(value, str) else json.dumps(value)}"
        for key, value in entries.items()
    )


def _shorten(value: str) -> str:
    line = " ".join(value.split())
    return line if len(line) <= _MAX_TEXT else line[: _MAX_TEXT - 3] + "..."


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    table = [head, *([_shorten(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]


def _bytes(count: float) -> str:
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


if __name__ == "__main__":
    main()
