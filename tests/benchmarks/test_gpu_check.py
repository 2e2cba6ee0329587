"""The script for GPUs: its parts cannot harm each other, and it runs as far as a CPU goes."""

import json
import subprocess
import sys
import textwrap
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import gpu_check
from benchmarks.gpu import part as gpu_part
from benchmarks.gpu_check import ROOT, SITE, GpuCheck, Part, install, main, parts_of, targets

PROGRAM = """
    import json, os, sys, time
    kind, what = sys.argv[1:3]
    lines = sys.argv[sys.argv.index("--lines") + 1]
    with open(lines, "a") as file:
        file.write(json.dumps({"kind": kind, **json.loads(what)}) + "\\n")
    if what == '{"passed": false}':
        with open(lines, "a") as file:
            file.write('{"kind": "che')
        os.abort()
    if "hang" in what:
        time.sleep(60)
"""


@pytest.fixture
def check(tmp_path: Path) -> GpuCheck:
    program = tmp_path / "part.py"
    program.write_text(textwrap.dedent(PROGRAM))
    made = GpuCheck("cpu", 1, tmp_path / "result.json", tmp_path)
    made.program = [sys.executable, str(program)]
    return made


def test_a_part_that_crashes_or_hangs_takes_nothing_with_it(check: GpuCheck) -> None:
    def run(name: str, kind: str, content: str, seconds: float = 30) -> dict[str, object]:
        check.run(Part(name, (kind, content), seconds), {})
        written: dict[str, object] = json.loads(check.output.read_text())
        return written

    assert run("first", "check", '{"passed": true}')["passed"] is True
    run("hanging", "speed", '{"size": "hang", "batch": 1, "way": "cuda"}', 10.5)
    assert run("crashing", "check", '{"passed": false}')["passed"] is False
    run("telling", "unusable", '{"engine": "tensorrt", "reason": "not installed"}')
    check.run(Part("tensorrt", ("check", '{"passed": true}'), 30, "tensorrt"), {})
    check.end -= 60
    written = run("late", "check", '{"passed": true}')
    assert [part["outcome"].split(" ")[0].rstrip(":") for part in written["parts"]] == [  # type: ignore[attr-defined]
        *("done", "stopped", "ended", "done", "left", "left")
    ]
    assert written["unusable"] == {"tensorrt": "not installed"}
    assert "-6" in written["parts"][2]["outcome"]  # type: ignore[index]
    assert written["checks"] == [{"passed": True}, {"passed": False}]
    assert written["speeds"] == [{"size": "hang", "batch": 1, "way": "cuda"}]


def test_targets_are_of_one_run() -> None:
    def speed(batch: int, way: str, seconds: float, step: float) -> dict[str, object]:
        rest = {"seconds_per_image": seconds, "head_step_ms": step}
        return {"size": "mar_b", "batch": batch, "way": way, **rest}

    speeds = [
        speed(1, "eager", 9, 5),
        speed(1, "cuda", 0.75, 0.09),
        speed(1, "tensorrt", 1.5, 0.06),
        speed(64, "compile", 0.1, 5),
        speed(64, "cuda", 0.1, 1),
    ]
    floors = [{"size": "mar_b", "batch": 1, "seconds_per_image": 0.1, "head_step_ms": 0.02}]
    assert [found["reached"] for found in targets(speeds, floors)] == [12, None, 3]
    assert [found["reached"] for found in targets([], [])] == [None, None, None]


def test_what_the_targets_need_comes_first() -> None:
    names = [part.name for part in parts_of(False, ["cuda", "tensorrt"])]
    assert len(names) == len(set(names))
    early = names[: names.index("mar_l cuda")]
    assert {"checks cuda", "mar_b cuda", "mar_b tensorrt", "mar_b eager"} <= set(early)
    for size in ("mar_l", "mar_h"):
        assert {f"{size} cuda", f"{size} eager", f"{size} compile"} <= set(names)


def test_wheels_in_pieces_are_installed(tmp_path: Path) -> None:
    name = "tiny_thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(tmp_path / name, "w") as wheel:
        wheel.writestr("tiny_thing.py", "VALUE = 7\n")
        info = "tiny_thing-1.0.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-thing\nVersion: 1.0")
        tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any"
        wheel.writestr(f"{info}/WHEEL", tags)
        wheel.writestr(f"{info}/RECORD", "")
    data = (tmp_path / name).read_bytes()
    wheels, work = tmp_path / "carried", tmp_path / "work"
    wheels.mkdir()
    work.mkdir()
    for index, start in enumerate(range(0, len(data), 100)):
        (wheels / f"{name}.{index:02}").write_bytes(data[start : start + 100])
    (wheels / "broken-1.0-py3-none-any.whl").write_bytes(b"no wheel")
    outcomes = install(wheels, work)
    assert outcomes[name] == "done"
    assert "ERROR: Wheel 'broken' located at" in outcomes["broken-1.0-py3-none-any.whl"]
    assert (work / SITE / "tiny_thing.py").read_text() == "VALUE = 7\n"


def test_a_folder_of_bad_wheels_ends_in_a_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad-1.0-py3-none-any.whl").write_bytes(b"no wheel")
    output = tmp_path / "new" / "result.json"
    arguments = ["--device", "cpu", "--quick", "--minutes", "0", "--wheels", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["gpu_check", *arguments, "-o", str(output)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    parts = json.loads(output.read_text())["parts"]
    assert parts[0]["part"] == "wheel bad-1.0-py3-none-any.whl"
    assert {part["outcome"] for part in parts[1:]} == {"left out: no time"}


def test_no_package_is_needed_to_begin_with() -> None:
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import benchmarks.gpu_check"
    subprocess.run([sys.executable, "-I", "-S", "-c", program], check=True)


def test_a_part_waits_for_its_plan(check: GpuCheck, monkeypatch: pytest.MonkeyPatch) -> None:
    content = json.dumps({"passed": True, "hang": 1})
    monkeypatch.setattr(gpu_check, "EXPORTS", Part("exports", ("check", content), 60))
    check.begin_exports({})
    part = Part("late", ("check", '{"passed": true}'), 30, plan="late.plan")
    timer = threading.Timer(0.5, (check.folder / "late.plan").touch)
    timer.start()
    check.run(part, {})
    assert check.parts[-1]["outcome"] == "done"
    assert check.parts[-1]["seconds"] >= 0.5
    check.end_exports()
    assert check.parts[-1] | {"seconds": 0} == {
        "part": "exports",
        "outcome": "stopped: time limit",
        "seconds": 0,
    }
    # What was exported tells nothing of whether checks passed.
    assert check.write()["passed"] is True
    check.exports = None
    check.run(Part("checks x", ("check", '{"passed": false}'), 30), {})
    check.lines.pop()
    assert check.write()["passed"] is False


@pytest.mark.parametrize("part", [("machine",), ("engine", "tiny", "cpu"), ("eager", "tiny")])
def test_parts_run_on_a_cpu(part: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "machine.json").write_text('{"bytes_per_second": 1e9, "flops": 1e9}')
    lines = tmp_path / "lines.jsonl"
    options = ["--device", "cpu", "--folder", str(tmp_path), "--lines", str(lines)]
    result = CliRunner().invoke(gpu_part.main, [*part, *options, "--seconds", "3600"])
    assert result.exit_code == 0, result.output
    kinds = [json.loads(line)["kind"] for line in lines.read_text().splitlines()]
    expected = {
        "machine": ["about", "machine"],
        "engine": ["floor", "speed", "floor", "speed"],
        "eager": ["speed", "speed"],
    }
    assert kinds == expected[part[0]], lines.read_text()


@pytest.mark.parametrize("broken", [False, True])
def test_graphs_are_compared_with_plain_steps(
    broken: bool,
    golden_plan: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from benchmarks.gpu import parity
    from tests.engines.fake_onnxruntime import use_fake_gpu

    use_fake_gpu(monkeypatch, breaks="CUDA failure 900" if broken else "")
    monkeypatch.setattr("disa.engines.open.ENGINES", ("device",))
    monkeypatch.setattr(parity, "plan_of", lambda name, precision, _: golden_plan(name))
    found = parity.graph_against_plain("device", "fp32", tmp_path)
    assert found.passed is not broken
    assert ("CUDA failure 900" if broken else "replayed=") in found.detail
