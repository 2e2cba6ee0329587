import zipfile
from pathlib import Path

from benchmarks.gpu.packages import SITE, install


def write_wheel(folder: Path, package: str, module: str) -> Path:
    """A wheel with one module."""
    path = folder / f"{package}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(module, "VALUE = 7\n")
        info, name = f"{package}-1.0.dist-info", package.replace("_", "-")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0")
        tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any"
        wheel.writestr(f"{info}/WHEEL", tags)
        wheel.writestr(f"{info}/RECORD", "")
    return path


def test_wheels_in_pieces_are_installed(tmp_path: Path) -> None:
    wheels, work = tmp_path / "carried", tmp_path / "work"
    wheels.mkdir()
    work.mkdir()
    whole = write_wheel(tmp_path, "tiny_thing", "tiny_thing.py")
    data = whole.read_bytes()
    for index, start in enumerate(range(0, len(data), 100)):
        (wheels / f"{whole.name}.{index:02}").write_bytes(data[start : start + 100])
    (wheels / "broken-1.0-py3-none-any.whl").write_bytes(b"no wheel")
    outcomes = install(wheels, work)
    assert outcomes[whole.name] == "done"
    assert "ERROR: Wheel 'broken' located at" in outcomes["broken-1.0-py3-none-any.whl"]
    assert (work / SITE / "tiny_thing.py").read_text() == "VALUE = 7\n"


def test_wheels_with_a_common_namespace_are_all_there(tmp_path: Path) -> None:
    wheels, work = tmp_path / "carried", tmp_path / "work"
    wheels.mkdir()
    work.mkdir()
    for part in ("bindings", "pathfinder"):
        write_wheel(wheels, f"space_{part}", f"space/{part}.py")
    assert set(install(wheels, work).values()) == {"done"}
    assert {path.name for path in (work / SITE / "space").iterdir()} == {
        "bindings.py",
        "pathfinder.py",
    }
