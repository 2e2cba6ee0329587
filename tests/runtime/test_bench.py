import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from disa.engines.plan import Plan
from disa.errors import DisaError
from disa.runtime import bench
from disa.runtime.bench import main
from disa.runtime.bench_machine import matrix_rate, peak_memory, read_bandwidth, write_product_plan
from disa.runtime.bench_measure import floor, summarise
from disa.runtime.bench_report import compare, read_record, summary, write_record
from disa.runtime.bench_variant import parse_engines, parse_numbers, parse_step_counts, variants
from disa.runtime.bench_work import Call, Work
from disa.runtime.bench_worker import Draw


def draw(total: float, **parts: float) -> Draw:
    return Draw({**parts, "noise": 0.1, "total": total}, 1.0, 7, 14, 1 << 20)


@pytest.fixture(scope="module")
def record(pixel_plan: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One run of the command over four variants."""
    output = tmp_path_factory.mktemp("bench") / "record.json"
    options = ["--engine", "cpu", "--batch-size", "2,1", "--steps", "3:2,2:2", "--threads", "1"]
    options += ["--iterations", "3", "--repeat", "2", "--warmup", "1", "--json", str(output)]
    result = CliRunner().invoke(main, [str(pixel_plan), *options])
    assert result.exit_code == 0, result.output
    assert "GFLOP/s" in result.output
    return read_record(output)


def test_a_record_says_what_was_measured(record: dict[str, Any]) -> None:
    measured = [
        (entry["batch_size"], entry["options"]["steps"], entry["head_calls"])
        for entry in record["variants"]
    ]
    assert measured == [(1, "3:2", 7), (1, "2:2", 6), (2, "3:2", 7), (2, "2:2", 6)]
    assert record["machine"].keys() >= {"processor", "cores", "load", "load_after"}
    assert record["versions"].keys() >= {"python", "disa", "numpy", "onnxruntime"}
    engine = record["engines"]["cpu"]
    assert "CPUExecutionProvider" in engine["runs"]
    assert 0 < engine["load_seconds"] < engine["first_image_seconds"]


def test_the_parts_make_up_the_whole(record: dict[str, Any]) -> None:
    for entry in record["variants"]:
        assert len(entry["seconds_an_image"]["all"]) == 2
        assert entry["parts"].keys() == {"backbone", "head", "decoder", "host"}
        parts = sum(entry["parts"].values())
        assert parts == pytest.approx(entry["seconds_an_image"]["median"], rel=0.2)
        assert entry["images_a_second"] == pytest.approx(1 / entry["seconds_an_image"]["median"])
        assert entry["peak_memory_bytes"] > 10 << 20
        assert 0 < entry["floor"]["seconds_an_image"] < entry["seconds_an_image"]["median"]
        assert 0 < entry["near_floor"] < 1


def test_figures_are_an_image() -> None:
    draws = [
        draw(10, backbone=4, head=2),
        draw(2, backbone=1, head=0.5),
        draw(4, head=2, backbone=1),
    ]
    result = summarise(draws, draws[1:], batch=2)
    assert result["seconds_an_image"]["all"] == [1.0, 2.0]
    assert result["seconds_an_image"]["median"] == 1.5
    assert result["seconds_an_image"]["p90"] == pytest.approx(1.9)
    assert result["parts"] == {"backbone": 0.5, "head": 0.625, "host": 0.375}
    assert result["images_a_second"] == pytest.approx(1 / 1.5)
    assert result["cpu_seconds_an_image"] == 0.5


def test_the_floor_is_the_longer_of_arithmetic_and_memory() -> None:
    work = Work()
    work.add("backbone", Call(flops=100, weight_bytes=1))
    work.add("head", Call(flops=1, weight_bytes=30), times=2)
    least = floor(work, rate=10, bandwidth=3, batch=2)
    assert least is not None
    assert least["parts"] == {"backbone": 5, "head": 10}
    assert least["seconds_an_image"] == 15
    assert (least["flops_an_image"], least["weight_bytes_an_image"]) == (51, 30.5)
    assert floor(None, 10, 3, 2) is None
    assert floor(work, None, 3, 2) is None


def test_records_are_compared(record: dict[str, Any]) -> None:
    slower = copy.deepcopy(record)
    for entry in slower["variants"]:
        entry["seconds_an_image"]["median"] *= 2
    assert compare(slower, record).count("2.00x") == 4
    slower["variants"] = slower["variants"][:1]
    assert compare(slower, record).count("2.00x") == 1
    slower["machine"]["processor"], slower["plan"]["name"] = "Abacus", "other"
    assert "another machine: Abacus" in compare(slower, record)
    assert "another plan: other" in compare(slower, record)
    slower["variants"][0]["batch_size"] = 64
    with pytest.raises(DisaError, match="no variant in common"):
        compare(slower, record)


def test_a_family_without_a_floor_is_still_shown(record: dict[str, Any]) -> None:
    without = copy.deepcopy(record)
    without["variants"][0] |= {"floor": None, "near_floor": None, "peak_memory_bytes": None}
    without["engines"]["cpu"]["matrix_rate"] = None
    assert "GFLOP/s" not in summary(without)
    assert len(summary(without).splitlines()) == len(summary(record).splitlines())


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "is not JSON"),
        ("[]", "no record"),
        ('{"format": 99}', "no record"),
        ('{"format": 1}', "damaged: it lacks 'variants'"),
        ('{"format": 1, "variants": [{}]}', "damaged"),
    ],
)
def test_what_is_no_record(tmp_path: Path, content: str, complaint: str) -> None:
    path = tmp_path / "old.json"
    path.write_text(content)
    with pytest.raises(DisaError, match=complaint):
        read_record(path)


def test_a_record_with_an_absurd_number(tmp_path: Path, record: dict[str, Any]) -> None:
    absurd = copy.deepcopy(record)
    absurd["variants"][0]["seconds_an_image"]["median"] = 10**400
    write_record(absurd, tmp_path / "absurd.json")
    with pytest.raises(DisaError, match="damaged"):
        read_record(tmp_path / "absurd.json")


def test_a_record_is_written_whole_or_not(tmp_path: Path, record: dict[str, Any]) -> None:
    path = tmp_path / "new.json"
    write_record(record, path)
    assert read_record(path) == json.loads(json.dumps(record))
    with pytest.raises(DisaError, match="cannot be written"):
        write_record(record, tmp_path / "nowhere" / "new.json")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ([], "nothing to measure"),
        (["--shapes", "mar_b"], "add --random-weights"),
        (["--shapes", "mar_z", "--random-weights"], "no shapes named mar_z"),
        (["x.plan", "--shapes", "mar_b"], "leave out --shapes"),
        (["x.plan"], "there is no plan at x.plan"),
        (["x.plan", "--engine", "abacus"], "no engine abacus"),
        (["x.plan", "--batch-size", "1,0"], "the batch size '0' is not a whole number"),
        (["x.plan", "--batch-size", "1,,2"], "empty entry"),
        (["x.plan", "--batch-size", "1,1"], "twice"),
        (["x.plan", "--iterations", "-3"], "number of iterations '-3'"),
        (["x.plan", "--steps", "5:50"], "x.plan"),
        (["x.plan", "--steps", "many"], "steps are UPPER:LOWER"),
        (["x.plan", "--compare", "none.json"], "none.json cannot be read"),
        (["x.plan", "--json", "nowhere/new.json"], "nowhere/new.json cannot be written"),
        (["x.plan", "--json", "/proc/new.json"], "/proc/new.json cannot be written"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(
    options: list[str], complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    result = CliRunner().invoke(main, options)
    assert result.exit_code == 1
    assert complaint in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_worker_passes_its_complaint_on(pixel_plan: Path) -> None:
    result = CliRunner().invoke(main, [str(pixel_plan), "--iterations", "65", "--engine", "cpu"])
    assert result.exit_code == 1
    assert "65 iterations are more than the" in result.output


def test_random_weights_are_measured(
    pixel_plan: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        "disa.exporter.random_weights.random_plan", lambda shapes, report: pixel_plan
    )
    assert bench.choose_plan(None, "mar_b", True) == pixel_plan


def test_variants_are_all_combinations() -> None:
    found = variants(["cpu", "auto"], [8, 1], ["50:5", "9:2"], [None], {"cfg": 2.0, "size": None})
    assert len(found) == 8
    assert [variant.batch_size for variant in found] == [1] * 4 + [8] * 4
    assert found[0].options == {"cfg": 2.0, "steps": "50:5"}
    assert parse_numbers("1, 8", "batch size", 9) == [1, 8]
    assert parse_step_counts(None) == []
    assert parse_engines("cpu,openvino") == ["cpu", "openvino"]


def test_the_machine_is_measured(tmp_path: Path) -> None:
    assert 1e7 < matrix_rate("cpu", 1, size=128) < 1e15
    assert 1e6 < read_bandwidth(1, size=1 << 20) < 1e13
    before = peak_memory()
    assert before is not None
    held = np.ones(64 << 20, np.uint8)
    after = peak_memory()
    assert after is not None
    assert after >= before
    del held


def test_the_product_graph_is_onnx(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    write_product_plan(tmp_path / "product.plan")
    with Plan.open(tmp_path / "product.plan") as plan:
        plan.check()
        model = onnx.load_from_string(bytes(plan.read(plan.graph("product").onnx)))
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node] == ["MatMul"]
