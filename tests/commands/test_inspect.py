import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from disa.commands.inspect import main
from disa.engines.plan.plan import Plan, PlanWriter

from ..engines.tiny_graphs import HEAD_ENGINE, head, write_plan


def inspect(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_a_plan_is_shown(plan_path: Path) -> None:
    result = inspect(plan_path)
    assert result.exit_code == 0
    for text in (
        "family     mar",
        "model      class_num 3, mlp_ratio 4.0",
        "tokens     count 16, channels 4",
        "defaults   steps 50:5, guidance_scale 2.5",
        "classes    3: bag, boot, coat",
        "made from  file tiny.pth",
        "no TensorRT engines: runs on ONNX Runtime",
    ):
        assert text in result.output.splitlines()
    row = next(line for line in result.output.splitlines() if line.startswith("head"))
    assert row.split("  ")[-1] == "next_x float32[rows, 4]"
    assert "x float32[rows, 4]" in row
    assert "checksums" not in result.output


def test_engines_are_shown(plan_path: Path) -> None:
    with Plan.open(plan_path) as plan, PlanWriter.extend(plan) as writer:
        writer.add_engine(HEAD_ENGINE, bytes(2_000_000))
    rows = [line for line in inspect(plan_path).output.splitlines() if "sm_89" in line]
    assert [cell.strip() for cell in rows[0].split("  ") if cell] == [
        "head",
        "tensorrt 10.16.1",
        "fp16",
        "sm_89 sm_120",
        "2 MB",
        "x 1x4 to 64x4",
    ]
    described = json.loads(inspect(plan_path, "--layers", "--json").output)["layers"]
    assert len(described) == 1


def test_json_is_the_manifest_and_more(plan_path: Path) -> None:
    shown = json.loads(inspect(plan_path, "--json", "--check").output)
    with Plan.open(plan_path) as plan:
        raw = dict(plan.manifest.raw)
        extra = {"path": str(plan_path), "bytes": plan.size, "checked": True}
    assert shown == {**raw, **extra}


def test_check_tells_a_sound_plan_from_a_damaged_one(plan_path: Path, plan_bytes: bytes) -> None:
    assert "all 5 checksums match" in inspect(plan_path, "--check").output
    at = plan_bytes.index(head().data)
    plan_path.write_bytes(plan_bytes[:at] + b"\xff" + plan_bytes[at + 1 :])
    assert inspect(plan_path).exit_code == 0
    for arguments in (["--check"], ["--check", "--json"]):
        result = inspect(plan_path, *arguments)
        assert result.exit_code == 1
        assert "the checksum of graphs/head.data does not match" in result.stderr
        assert result.stdout == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no plan at"),
        (b"", "is not a plan or is damaged: it is too short"),
        (b"PK\x03\x04" + bytes(200), "is not a plan or is damaged"),
    ],
)
def test_what_is_no_plan_is_one_sentence(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "a.plan"
    if content is not None:
        path.write_bytes(content)
    result = inspect(path)
    assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (1, "", 1)
    assert message in result.stderr


def test_long_and_broken_text_stays_on_its_line(tmp_path: Path) -> None:
    path = write_plan(tmp_path / "a.plan", [head()], name="two\nlines", class_names=["x" * 256])
    lines = inspect(path).output.splitlines()
    assert "name       two lines" in lines
    assert max(map(len, lines)) < 500


def test_help_has_examples() -> None:
    assert "disa-inspect engines/mar_b.plan --check" in inspect("--help").output
