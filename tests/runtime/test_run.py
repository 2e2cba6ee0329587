import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from disa.runtime import outputs
from disa.runtime import run as run_module
from disa.runtime.run import choose_classes, main
from disa.runtime.stats import Stats

QUICK = ["--iterations", "4", "--steps", "4:2", "--engine", "cpu"]


def run(plan: Path, folder: Path, *options: object) -> Result:
    arguments = [plan, "-o", folder, *QUICK, *options]
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def images_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("0*.png"))}


def record_of(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return record


def test_images_grid_samples_and_record(pixel_plan: Path, tmp_path: Path) -> None:
    result = run(pixel_plan, tmp_path, "--num", 12, "--seed", 5, "--npz")
    assert result.exit_code == 0, result.output
    assert "CPUExecutionProvider fp32" in result.output
    assert "grid.png" in result.output
    assert "latents" not in result.output
    assert len(images_in(tmp_path)) == 12
    first = np.asarray(Image.open(tmp_path / "000000.png"))
    assert first.shape == (8, 8)
    samples = np.load(tmp_path / "samples.npz")
    assert samples["arr_0"].shape == (12, 8, 8, 1)
    assert samples["arr_0"].dtype == np.uint8
    np.testing.assert_array_equal(samples["arr_0"][0, :, :, 0], first)
    assert samples["arr_1"].tolist() == [*range(10), 0, 1]
    assert Image.open(tmp_path / "grid.png").size[0] > 10 * 72
    record = record_of(tmp_path)
    assert record["complete"]
    assert record["request"]["seed"] == 5
    assert record["request"]["schedule"] == "linear 4:2"
    assert "CPUExecutionProvider" in record["engine"]
    assert record["stats"]["images"] == 12
    assert record["stats"]["head_calls"] == 4 + 3 + 2 + 2
    assert {"backbone", "head", "decoder", "total"} <= record["stats"]["seconds"].keys()
    assert not list(tmp_path.glob(".*"))


def test_any_batch_size_gives_the_same_images(pixel_plan: Path, tmp_path: Path) -> None:
    for size in ("1", "3", "auto"):
        assert run(pixel_plan, tmp_path / size, "--num", 5, "--batch-size", size).exit_code == 0
    alone = images_in(tmp_path / "1")
    for size in ("3", "auto"):
        for name, data in images_in(tmp_path / size).items():
            together = np.asarray(Image.open(tmp_path / size / name)).astype(int)
            single = np.asarray(Image.open(tmp_path / "1" / name)).astype(int)
            assert np.abs(together - single).max() <= 1, (name, len(data))
    assert len(set(alone.values())) == 5


def test_an_interrupted_run_goes_on(
    pixel_plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(pixel_plan, tmp_path / "whole", "--num", 6).exit_code == 0
    drawn: list[int] = []
    add = run_module.Outputs.add

    def interrupted(self: Any, index: int, *rest: Any) -> None:
        if index == 3:
            raise KeyboardInterrupt
        drawn.append(index)
        add(self, index, *rest)

    monkeypatch.setattr(run_module.Outputs, "add", interrupted)
    result = run(pixel_plan, tmp_path / "cut", "--num", 6, "--batch-size", 2)
    assert result.exit_code == 130
    assert "interrupted" in result.output
    assert not record_of(tmp_path / "cut")["complete"]
    assert len(images_in(tmp_path / "cut")) == 3
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "cut").glob("0*.png")}
    monkeypatch.setattr(
        run_module.Outputs, "add", lambda s, i, *r: (drawn.append(i), add(s, i, *r))
    )
    result = run(pixel_plan, tmp_path / "cut", "--num", 6, "--batch-size", 2)
    assert result.exit_code == 0
    assert drawn == [0, 1, 2, 3, 4, 5]
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    assert images_in(tmp_path / "cut") == images_in(tmp_path / "whole")
    assert record_of(tmp_path / "cut")["complete"]
    again = run(pixel_plan, tmp_path / "cut", "--num", 6)
    assert "were there already" in again.output
    assert drawn == [0, 1, 2, 3, 4, 5]


def test_more_images_continue_a_run(pixel_plan: Path, tmp_path: Path) -> None:
    assert run(pixel_plan, tmp_path, "--num", 10).exit_code == 0
    before = images_in(tmp_path)
    assert run(pixel_plan, tmp_path, "--num", 12).exit_code == 0
    after = images_in(tmp_path)
    assert len(after) == 12
    assert before.items() <= after.items()
    assert record_of(tmp_path)["stats"]["images"] == 12


def test_another_run_is_not_mixed_in(pixel_plan: Path, tmp_path: Path) -> None:
    assert run(pixel_plan, tmp_path, "--num", 2).exit_code == 0
    before = images_in(tmp_path)
    for change in (["--seed", 1], ["--cfg", 2], ["--class", 3], ["--sampler", "ddim"]):
        result = run(pixel_plan, tmp_path, "--num", 2, *change)
        assert result.exit_code == 1, change
        assert "holds another run" in result.output
        assert images_in(tmp_path) == before
    assert run(pixel_plan, tmp_path, "--num", 2, "--seed", 1, "--overwrite").exit_code == 0
    assert images_in(tmp_path) != before


def test_fewer_images_keep_the_record_of_all(pixel_plan: Path, tmp_path: Path) -> None:
    assert run(pixel_plan, tmp_path, "--num", 6, "--class", 3).exit_code == 0
    assert run(pixel_plan, tmp_path, "--num", 2, "--class", 3).exit_code == 0
    assert record_of(tmp_path)["conditions"] == [3] * 6
    assert record_of(tmp_path)["complete"]
    result = run(pixel_plan, tmp_path, *["--class", 3] * 4, *["--class", 5] * 2)
    assert result.exit_code == 1
    assert "other classes" in result.output
    (tmp_path / "000005.png").unlink()
    assert run(pixel_plan, tmp_path, "--num", 2, "--class", 3).exit_code == 0
    assert not record_of(tmp_path)["complete"]


def test_a_long_run_has_its_first_images_on_the_grid(
    pixel_plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs, "GRID_IMAGES", 3)
    assert run(pixel_plan, tmp_path / "long", "--num", 5, "--class", 3).exit_code == 0
    assert run(pixel_plan, tmp_path / "short", "--num", 3, "--class", 3).exit_code == 0
    assert (tmp_path / "long/grid.png").read_bytes() == (tmp_path / "short/grid.png").read_bytes()


def test_a_damaged_image_is_told(pixel_plan: Path, tmp_path: Path) -> None:
    assert run(pixel_plan, tmp_path, "--num", 3).exit_code == 0
    image = tmp_path / "000001.png"
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 2])
    result = run(pixel_plan, tmp_path, "--num", 3)
    assert result.exit_code == 1
    assert f"{image} is damaged: delete it" in result.output
    Image.new("L", (9, 8)).save(image)
    result = run(pixel_plan, tmp_path, "--num", 3, "--npz")
    assert result.exit_code == 1
    assert f"{image} has another size" in result.output
    assert not list(tmp_path.glob("*.npz")) + list(tmp_path.glob(".*"))
    image.unlink()
    assert run(pixel_plan, tmp_path, "--num", 3, "--npz").exit_code == 0
    assert image.read_bytes() == whole


def test_plans_without_pixels_give_latents(golden_plan: Any, tmp_path: Path) -> None:
    result = run(golden_plan("mar_patch2"), tmp_path, "--num", 2)
    assert result.exit_code == 0
    assert "these are latents" in result.output
    assert np.load(tmp_path / "000001.npy").shape == (4, 16, 16)
    assert not (tmp_path / "grid.png").exists()


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (["--num", 0], 2, "--num"),
        (["--num", -3], 2, "--num"),
        (["--class", "boat"], 1, "did you mean 'coat'"),
        (["--class", 10], 1, "classes 0 to 9"),
        (["--class", "-1"], 1, "classes 0 to 9"),
        (["--prompt", "a dog"], 1, "draws classes"),
        (["--iterations", 17], 1, "more than the 16 tokens"),
        (["--iterations", 0], 2, "--iterations"),
        (["--steps", "5:50"], 1, "above the upper"),
        (["--steps", "many"], 1, "UPPER:LOWER"),
        (["--steps", "1:1"], 1, "from 2 to 1000"),
        (["--strategy", "quadratic"], 2, "linear"),
        (["--cfg", "nan"], 1, "guidance scale"),
        (["--cfg", 0], 1, "guidance scale"),
        (["--cfg", 1000], 1, "below 1000, not 1000"),
        (["--cfg", "inf"], 1, "guidance scale"),
        (["--labels", __file__], 1, "the model has 10 classes"),
        (["--temperature", -1], 1, "temperature"),
        (["--size", 512], 1, "no option size"),
        (["--batch-size", 0], 2, "batch-size"),
        (["--seed", -1], 2, "--seed"),
        (["--labels", "missing.txt"], 1, "missing.txt"),
        (["--engine", "gpu"], 2, "--engine"),
    ],
)
def test_bad_options_are_one_sentence(
    options: list[object], code: int, told: str, pixel_plan: Path, tmp_path: Path
) -> None:
    result = run(pixel_plan, tmp_path / "out", *options)
    assert result.exit_code == code
    assert told in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_unwritable_places(pixel_plan: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here already")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/outputs")):
        result = run(pixel_plan, folder, "--num", 1)
        assert result.exit_code == 1
        assert "cannot be written" in result.output
        assert "-o" in result.output
    assert (tmp_path / "file").read_text() == "here already"


def test_no_space_left(pixel_plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    result = run(pixel_plan, tmp_path, "--num", 1)
    assert result.exit_code == 1
    assert "No space left on device" in result.output
    assert not list(tmp_path.glob("*.png")) + list(tmp_path.glob(".*"))


def test_numbers_that_are_not_finite(
    pixel_plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = run_module.Pipeline.draw

    def overflowing(*given: Any, **options: Any) -> Any:
        images, latents = draw(*given, **options)
        latents[1, 0, 0, 0] = np.nan
        return images, latents

    monkeypatch.setattr(run_module.Pipeline, "draw", overflowing)
    result = run(pixel_plan, tmp_path, "--num", 2)
    assert result.exit_code == 1
    assert "image 1 came out as numbers that are not finite" in result.output
    assert list(images_in(tmp_path)) == ["000000.png"]


def test_damaged_plans(pixel_plan: Path, tmp_path: Path) -> None:
    whole = pixel_plan.read_bytes()
    for name, data in {
        "empty": b"",
        "text": b"hello",
        "cut": whole[: len(whole) // 2],
        "tail": whole[len(whole) // 2 :],
    }.items():
        (tmp_path / name).write_bytes(data)
        result = run(tmp_path / name, tmp_path / "out", "--num", 1)
        assert result.exit_code == 1
        assert name in result.output
        assert "Traceback" not in result.output
    assert run(tmp_path / "missing.plan", tmp_path / "out").exit_code == 1
    assert not (tmp_path / "out").exists()


def test_images_without_a_record_are_kept(pixel_plan: Path, tmp_path: Path) -> None:
    (tmp_path / "000000.png").write_bytes(b"mine")
    result = run(pixel_plan, tmp_path, "--num", 1)
    assert result.exit_code == 1
    assert "run.json" in result.output
    record = {"request": {}, "conditions": [0], "stats": Stats().to_json()}
    for content in (
        "{",
        "[]",
        "[" * 100_000,
        json.dumps({**record, "request": 3}),
        json.dumps({**record, "conditions": 3}),
        json.dumps({**record, "stats": {"seconds": "much"}}),
        json.dumps({**record, "stats": {**Stats().to_json(), "images": [1]}}),
    ):
        (tmp_path / "run.json").write_text(content)
        result = run(pixel_plan, tmp_path, "--num", 1)
        assert result.exit_code == 1
        assert "run.json is damaged" in result.output
    assert (tmp_path / "000000.png").read_bytes() == b"mine"


def test_classes_are_spread() -> None:
    assert choose_classes(64, [], 10, None) == [i % 10 for i in range(64)]
    spread = choose_classes(64, [], 1000, None)
    assert len(set(spread)) == 64
    assert max(spread) > 950
    assert choose_classes(5, ["3", "7"], 10, None) == [3, 7, 3, 7, 3]
    assert choose_classes(None, ["3", "7"], 10, None) == [3, 7]
