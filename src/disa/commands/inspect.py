"""disa-inspect: shows the contents of a plan, and checks that it is undamaged."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ..engines.plan.engine_info import EngineInfo
from ..engines.plan.manifest import GraphInfo, Manifest
from ..engines.plan.plan import Plan
from ..errors import DisaError
from ..progress import progress_bar
from .command import DisaCommand

_MAX_TEXT = 400
# Fields of the manifest's source that are shown on separate lines.
_SOURCE_LINES = ("weights", "averaged", "lora", "ignored", "latent_scale", "latent_shift")


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
@click.option(
    "--layers", is_flag=True, help="Show the layers of the TensorRT engines that can run here."
)
def main(plan: Path, as_json: bool, check: bool, layers: bool) -> None:
    """Show the contents of PLAN: model, sizes, defaults, graphs and engines.

    With --check the exit code is 1 if any member differs from its checksum; without it only
    the directory and the manifest are read, so the command is fast for a file of any size.
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
    """TensorRT's description of each engine, or why there is none."""
    from ..engines.tensorrt.describe import describe

    described = []
    for engine in plan.manifest.engines:
        try:
            described.append(describe(plan, engine))
        except DisaError as error:
            described.append({"error": str(error)})
    return described


def as_data(plan: Plan, checked: bool, layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The manifest with additional facts about the file."""
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
        ("made from", _pairs(_without(manifest.source, *_SOURCE_LINES))),
        ("weights", _weights(manifest.source)),
        ("latents", _latents(manifest.source)),
        ("ignored", _ignored(manifest.source)),
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
    shown: set[str] = set()
    for graph in plan.manifest.graphs.values():
        rows = max(len(graph.inputs), len(graph.outputs), 1)
        size = _graph_size(plan, graph, shown)
        shown |= set(graph.data)
        for row in range(rows):
            first = (graph.name, size) if row == 0 else ("", "")
            yield (
                *first,
                str(graph.inputs[row]) if row < len(graph.inputs) else "",
                str(graph.outputs[row]) if row < len(graph.outputs) else "",
            )


def _graph_size(plan: Plan, graph: GraphInfo, shown: Collection[str]) -> str:
    """The bytes that a graph adds to the file, and whether it shares weights with earlier graphs.

    Args:
        shown: members of the graphs that were described before.
    """
    members = plan.manifest.members
    own = sum(members[name].size for name in (graph.onnx, *graph.data) if name not in shown)
    return _bytes(own) + (" + shared" if set(graph.data) & set(shown) else "")


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
    """The shapes of the first input of each profile, from smallest to largest."""
    ranges = [next(iter(profile.items())) for profile in engine.profiles if profile]
    return "; ".join(f"{n} {_shape(r.minimum)} to {_shape(r.maximum)}" for n, r in ranges)


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _classes(manifest: Manifest) -> str:
    names = manifest.class_names
    return f"{len(names)}: {', '.join(names)}" if names else ""


def _quantized(manifest: Manifest) -> str:
    """For each quantised graph the number of quantised matmuls and the error of its output."""
    return "; ".join(f"{name}: {_pairs(about)}" for name, about in manifest.quantized.items())


def _without(entries: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    return {key: value for key, value in entries.items() if key not in keys}


def _weights(source: Mapping[str, Any]) -> str:
    """Which weights of the checkpoint were used."""
    if "weights" not in source:
        return ""
    kind = "averaged" if source.get("averaged") is True else "not averaged"
    merged = ", LoRA merged: " + json.dumps(source["lora"]) if "lora" in source else ""
    return f"{source['weights']} ({kind}){merged}"


def _latents(source: Mapping[str, Any]) -> str:
    """Scale and shift of the latents, which the decoder inverts."""
    if "latent_scale" not in source:
        return ""
    return f"scale {source['latent_scale']}, shift {source.get('latent_shift', 0)}"


def _ignored(source: Mapping[str, Any]) -> str:
    """Tensors of the checkpoint that were ignored on request."""
    ignored = source.get("ignored")
    if not isinstance(ignored, Mapping):
        return ""
    patterns, tensors = (
        ", ".join(map(str, items)) if isinstance(items, list) else ""
        for items in (ignored.get("patterns"), ignored.get("tensors"))
    )
    return f"{ignored.get('count')} tensors like {patterns}: {tensors}"


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
