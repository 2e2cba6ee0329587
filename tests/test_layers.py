"""Imports go downwards only, and what is heavy is imported in one layer only."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = {
    "disa": "src/disa",
    "disa.exporter": "exporter",
    "disa.calibration": "calibration",
    "disa.runtime": "runtime",
    "disa.engines": "engines",
    "disa.server": "server",
    "disa.workers": "workers",
}
LAYERS = (
    "engines",
    "runtime",
    "evaluation",
    "bench",
    "calibration",
    "workers",
    "exporter",
    "server",
    "commands",
)
"""From the lowest up; what lies in `disa` itself is below all of them."""
ONLY_IN = {
    "torch": {"exporter", "evaluation"},
    "click": {"commands"},
    "safetensors": {"exporter"},
    "onnxruntime": {"engines", "exporter", "calibration"},
    "tensorrt": {"engines"},
    "cuda": {"engines"},
    "fastapi": {"server"},
    "starlette": {"server"},
    "uvicorn": {"server"},
    "pydantic": {"server"},
    "prometheus_client": {"server"},
    "ray": {"workers", "server"},
}


def modules() -> Iterator[tuple[Path, str]]:
    """Every source file, and the layer that it is in; "" for `disa` itself."""
    for package, folder in SOURCES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            first = path.relative_to(ROOT / folder).parts[0]
            inside = package == "disa" and not first.endswith(".py")
            yield path, first if inside else package.partition(".")[2]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute name of everything that a file imports, wherever it does."""
    for package, folder in SOURCES.items():
        if path.is_relative_to(ROOT / folder):
            inside = path.relative_to(ROOT / folder).parts[:-1]
            here = (*package.split("."), *inside)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else ()
            name = ".".join((*base, *([node.module] if node.module else [])))
            yield node.lineno, name
            yield from ((node.lineno, f"{name}.{alias.name}") for alias in node.names)


def layer_of(name: str) -> str | None:
    """The layer of a module of disa, "" for one in no layer; None for others."""
    first, _, rest = name.partition(".")
    if first != "disa":
        return None
    second = rest.partition(".")[0]
    return second if second in LAYERS else ""


def upward(path: Path, layer: str) -> list[str]:
    """The imports of a file from a higher layer."""
    rank = LAYERS.index(layer) if layer else -1
    return [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for line, name in imports(path)
        if (other := layer_of(name)) and LAYERS.index(other) > rank
    ]


@pytest.mark.parametrize("layer", ["", *LAYERS])
def test_imports_go_downwards(layer: str) -> None:
    """`disa/__init__.py` lends its names from all layers when they are asked for."""
    files = [p for p, own in modules() if own == layer and p != ROOT / "src/disa/__init__.py"]
    assert [found for path in files for found in upward(path, layer)] == []


def test_every_layer_is_known() -> None:
    assert {layer for _, layer in modules()} <= {"", *LAYERS}


@pytest.mark.parametrize("package", ONLY_IN)
def test_heavy_packages_are_imported_in_one_layer(package: str) -> None:
    found = {
        str(path.relative_to(ROOT))
        for path, layer in modules()
        if layer not in ONLY_IN[package]
        for _, name in imports(path)
        if name.partition(".")[0] == package
    }
    assert found == set()


def test_an_upward_import_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "engines" / "plan" / "wrong.py"
    file.parent.mkdir(parents=True)
    file.write_text("def f():\n    from ...runtime.pipeline import Pipeline\n")
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert upward(file, "engines") == [
        "engines/plan/wrong.py:2 imports disa.runtime.pipeline",
        "engines/plan/wrong.py:2 imports disa.runtime.pipeline.Pipeline",
    ]
