import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from disa.commands.run import main

from ..conftest import ExportGolden

QUICK = ["--iterations", "3", "--steps", "3:2", "--engine", "cpu", "--size", "64x48"]


def run(plan: Path, folder: Path, *options: object) -> Result:
    arguments = [plan, "-o", folder, *QUICK, *options]
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def record_of(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return record


def test_prompts_and_files_are_drawn_in_turn(text_plan: Path, tmp_path: Path) -> None:
    lines, listed = tmp_path / "prompts.txt", tmp_path / "prompts.json"
    lines.write_text("a red bird\n\na blue boat\n")
    listed.write_text(json.dumps(["a red bird", {"prompt": "a blue boat", "id": 7}]))
    for name, file in (("a", lines), ("b", listed)):
        result = run(text_plan, tmp_path / name, "--prompt", "a dog", "--prompt-file", file)
        assert result.exit_code == 0, result.output
        assert "3 images" in result.output
        assert record_of(tmp_path / name)["conditions"] == ["a dog", "a red bird", "a blue boat"]
    names = [f"{index:06d}.npy" for index in range(3)]
    assert sorted(path.name for path in (tmp_path / "a").glob("*.npy")) == names
    for name in names:
        drawn = np.load(tmp_path / "a" / name)
        assert drawn.shape == (16, 3, 4)
        np.testing.assert_array_equal(drawn, np.load(tmp_path / "b" / name))
    more = run(text_plan, tmp_path / "a", "--num", 4, "--prompt", "a dog", "--prompt-file", lines)
    assert more.exit_code == 0, more.output
    assert "1 image in" in more.output
    assert record_of(tmp_path / "a")["conditions"][3] == "a dog"
    first, fourth = (np.load(tmp_path / "a" / f"{index:06d}.npy") for index in (0, 3))
    assert np.abs(first - fourth).max() > 0.1


def test_the_prompt_reaches_the_image(text_plan: Path, tmp_path: Path) -> None:
    for name in ("a dog", "a cat"):
        assert run(text_plan, tmp_path / name, "--prompt", name).exit_code == 0
    dog, cat = (np.load(tmp_path / name / "000000.npy") for name in ("a dog", "a cat"))
    assert np.linalg.norm(dog - cat) > 1e-4 * np.linalg.norm(dog)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "give --prompt TEXT or --prompt-file FILE"),
        (["--prompt", "  "], "a prompt is empty"),
        (["--class", "3"], "takes prompts, not classes: use --prompt"),
        (["--prompt", "a dog", "--size", "100"], "multiple of 16"),
        (["--prompt", "a dog", "--size", "big"], "width x height"),
        (["--prompt", "a dog", "--guidance-interval", "0.5"], "no option guidance_interval"),
        (["--prompt", "a dog", "--iterations", "13"], "more than the 12 tokens"),
        (["--prompt", "a " * 3000], "tokens, but at most 2048 are supported"),
        (["--prompt-file", "absent.txt"], "cannot be read"),
    ],
)
def test_what_cannot_be_drawn(
    text_plan: Path, tmp_path: Path, options: list[str], told: str
) -> None:
    result = run(text_plan, tmp_path / "out", *options)
    assert result.exit_code == 1
    assert told in result.output
    assert not (tmp_path / "out" / "000000.npy").exists()


def test_a_plan_without_a_tokenizer(golden_plan: ExportGolden, tmp_path: Path) -> None:
    result = run(golden_plan("harmon"), tmp_path / "out", "--prompt", "a dog")
    assert result.exit_code == 1
    assert "has no tokenizer" in result.output
    assert not (tmp_path / "out").exists()


def test_folders_of_geneval(text_plan: Path, tmp_path: Path) -> None:
    file, folder = tmp_path / "evaluation_metadata.jsonl", tmp_path / "out"
    lines = [{"tag": "counting", "prompt": "two dogs"}, {"tag": "colors", "prompt": "a red cat"}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = ["--format", "geneval", "--per-prompt", 2, "--prompt-file", file]
    result = run(text_plan, folder, *options)
    assert result.exit_code == 0, result.output
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    images = {f"{prompt:05d}/samples/{image:05d}.npy" for prompt in (0, 1) for image in (0, 1)}
    metadata = {f"{prompt:05d}/metadata.jsonl" for prompt in (0, 1)}
    assert found == images | metadata | {"run.json", "units.jsonl"}
    for prompt, line in enumerate(lines):
        assert json.loads((folder / f"{prompt:05d}/metadata.jsonl").read_text()) == line
    assert "4 images exist already" in run(text_plan, folder, *options).output
    one = [*options[:2], "--overwrite", "--prompt", "a dog"]
    assert run(text_plan, folder, *one).exit_code == 0
    assert not (folder / "00001").exists()


def test_geneval_needs_prompts(pixel_plan: Path, tmp_path: Path) -> None:
    arguments = [pixel_plan, "-o", tmp_path, "--format", "geneval"]
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 1
    assert "give --prompt-file" in result.output
