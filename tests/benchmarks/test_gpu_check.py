"""The script for GPUs: its parts cannot harm each other, and it runs as far as a CPU goes."""

import json
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks import gpu_check
from benchmarks.gpu import packages
from benchmarks.gpu import part as gpu_part
from benchmarks.gpu_check import ROOT, GpuCheck, Part, main, parts_of, targets

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


def test_a_part_that_crashes_after_its_end_is_done(check: GpuCheck) -> None:
    assert isinstance(check.program[1], str)
    with Path(check.program[1]).open("a") as program:
        program.write('open(lines, "a").write(json.dumps({"kind": "end"}) + "\\n")\nos.abort()\n')
    check.run(Part("checks x", ("check", '{"passed": true}'), 30), {})
    assert check.parts[-1]["outcome"].startswith("done, but its process ended with -6")
    assert check.write()["passed"] is True


def test_a_check_that_is_stopped_keeps_what_was_reported(
    check: GpuCheck, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = subprocess.Popen.wait

    def stopped(process: Any, timeout: float | None = None) -> int:
        while timeout is not None:
            # The file exists before its first line is complete.
            if any(path.read_text().endswith("\n") for path in check.folder.glob("*.jsonl")):
                raise SystemExit
        return wait(process)

    monkeypatch.setattr(subprocess.Popen, "wait", stopped)
    with pytest.raises(SystemExit):
        check.run(Part("one", ("check", '{"passed": true}'), 30), {})
    written = json.loads(check.output.read_text())
    assert written["parts"][0]["outcome"] == "stopped: the whole check was stopped"
    assert written["checks"] == [{"passed": True}]


def test_missing_packages_are_named_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "NEEDED", {"json": "json", "no_such_module": "such"})
    output = tmp_path / "result.json"
    monkeypatch.setattr(sys, "argv", ["gpu_check", "-o", str(output)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    (part,) = json.loads(output.read_text())["parts"]
    assert part["outcome"] == "missing: such"


REHEARSED = """
    import json, sys
    from pathlib import Path
    name, what = sys.argv[1:3]
    folder, lines = (sys.argv[sys.argv.index(key) + 1] for key in ("--folder", "--lines"))

    def report(kind, **content):
        with open(lines, "a") as file:
            file.write(json.dumps({"kind": kind, **content}) + "\\n")

    if name == "machine":
        report("about", gpu="a GPU")
        report("unusable", engine="tensorrt", reason="it cannot be imported")
        report("machine", flops=1)
    if name == "exports":
        from benchmarks.gpu_check import golden_plan, random_plan
        for size in what.split(","):
            (Path(folder) / random_plan(size, "fp16")).touch()
        for model in sys.argv[3].split(","):
            (Path(folder) / golden_plan(model, "fp32")).touch()
    if name == "checks":
        report("check", engine=what, passed=True)
    if name in ("engine", "eager", "compile"):
        way = sys.argv[3] if name == "engine" else name
        for batch in (1, 64):
            report("floor", size=what, batch=batch, seconds_per_image=0.1, head_step_ms=0.02)
            seconds = 9 if name == "eager" else 0.5
            report("speed", size=what, batch=batch, way=way, seconds_per_image=seconds,
                   head_step_ms=0.03)
    report("end")
"""


def test_the_whole_check_is_rehearsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program, output = tmp_path / "part.py", tmp_path / "result.json"
    program.write_text(textwrap.dedent(REHEARSED))
    monkeypatch.setattr(gpu_check, "PROGRAM", (str(program),))
    monkeypatch.setattr(sys, "argv", ["gpu_check", "-o", str(output)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0, capsys.readouterr().out
    record = json.loads(output.read_text())
    outcomes = {part["part"]: part["outcome"] for part in record["parts"]}
    left = {name for name, outcome in outcomes.items() if outcome != "done"}
    assert left == {name for name in outcomes if name.endswith(" tensorrt")}
    assert outcomes.keys() == {p.name for p in parts_of(False, gpu_check.ENGINES)} | {"exports"}
    assert record["passed"]
    assert [target["reached"] for target in record["targets"]] == [18, 18, 1.5]
    ways = {(s["size"], s["way"]) for s in record["speeds"]}
    assert ways >= {(size, way) for size in gpu_check.SIZES for way in ("cuda", "eager", "compile")}


def test_an_engine_with_a_defect_is_left_out_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(engine: str, folder: Path) -> str:
        raise TypeError("factory function returned nullptr")

    monkeypatch.setattr("benchmarks.gpu.parity.unusable", fail)
    lines = tmp_path / "lines.jsonl"
    runner = gpu_part.PartRunner("cpu", tmp_path, 60, lines)
    with pytest.raises(TypeError, match="nullptr"):
        runner.checks("tensorrt", "fp32", "mar")
    (line,) = map(json.loads, lines.read_text().splitlines())
    assert (line["kind"], line["engine"]) == ("unusable", "tensorrt")
    assert "nullptr" in line["reason"]


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
    assert kinds.pop() == "end"
    expected = {
        "machine": ["about", "machine"],
        "engine": ["floor", "speed", "floor", "speed"],
        "eager": ["speed", "speed"],
    }
    assert [kind for kind in kinds if kind != "unusable"] == expected[part[0]], lines.read_text()


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
