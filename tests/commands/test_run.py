import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from disa.commands.run import main
from disa.runtime.outputs import run_folder
from disa.runtime.outputs.store import LocalStore
from disa.runtime.pipeline import Pipeline
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
    written: list[str] = []
    write = LocalStore.write

    def interrupted(self: LocalStore, name: str) -> Any:
        if name == "000003.png":
            raise KeyboardInterrupt
        return write(self, name)

    monkeypatch.setattr(LocalStore, "write", interrupted)
    result = run(pixel_plan, tmp_path / "cut", "--num", 6, "--batch-size", 2)
    assert result.exit_code == 130
    assert "interrupted" in result.output
    assert not record_of(tmp_path / "cut")["complete"]
    assert len(images_in(tmp_path / "cut")) == 3
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "cut").glob("0*.png")}

    def noted(self: LocalStore, name: str) -> Any:
        written.append(name)
        return write(self, name)

    monkeypatch.setattr(LocalStore, "write", noted)
    result = run(pixel_plan, tmp_path / "cut", "--num", 6, "--batch-size", 2)
    assert result.exit_code == 0
    images = [name for name in written if name.startswith("0")]
    assert images == ["000003.png", "000004.png", "000005.png"]
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    assert images_in(tmp_path / "cut") == images_in(tmp_path / "whole")
    assert record_of(tmp_path / "cut")["complete"]
    written.clear()
    again = run(pixel_plan, tmp_path / "cut", "--num", 6)
    assert "all 6 images exist already" in again.output
    assert set(written) == {"run.json", "grid.png"}


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
        assert "has another run" in result.output
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
    monkeypatch.setattr(run_folder, "GRID_IMAGES", 3)
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
        (["--prompt", "a dog"], 1, "takes classes"),
        (["--iterations", 17], 1, "more than the 16 tokens"),
        (["--iterations", 0], 2, "--iterations"),
        (["--steps", "5:50"], 1, "above the upper"),
        (["--steps", "many"], 1, "UPPER:LOWER"),
        (["--steps", "1:1"], 1, "from 2 to 1000"),
        (["--strategy", "quadratic"], 2, "linear"),
        (["--cfg", "nan"], 2, "guidance scale must be above 0"),
        (["--cfg", 0], 2, "guidance scale"),
        (["--cfg", 1000], 2, "below 1000, not 1000"),
        (["--cfg", "inf"], 2, "guidance scale"),
        (["--labels", __file__], 1, "the model has 10 classes"),
        (["--temperature", -1], 2, "temperature"),
        (["--temperature", "nan"], 2, "0 to 10, not nan"),
        (["--tolerance", "nan"], 2, "0 to 10, not nan"),
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
    whole = Pipeline.generate

    def overflowing(*given: Any, **options: Any) -> Any:
        outputs = whole(*given, **options)
        outputs[1] = replace(outputs[1], finite=False)
        return outputs

    monkeypatch.setattr(Pipeline, "generate", overflowing)
    result = run(pixel_plan, tmp_path, "--num", 2)
    assert result.exit_code == 1
    assert "image 1 has values that are not finite" in result.output
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


@pytest.mark.parametrize("kind", ["jpeg", "webp", "webdataset", "parquet", "npz"])
def test_formats(kind: str, pixel_plan: Path, tmp_path: Path) -> None:
    options = ["--num", 5, "--batch-size", 2, "--format", kind]
    result = run(pixel_plan, tmp_path, *options)
    assert result.exit_code == 0, result.output
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
    images = {
        "jpeg": {f"00000{index}.jpg" for index in range(5)},
        "webp": {f"00000{index}.webp" for index in range(5)},
        "webdataset": {"000000.tar"},
        "parquet": {"data/000000.parquet"},
        "npz": {"samples.npz"},
    }
    assert written == images[kind] | {"run.json", "units.jsonl", "grid.png"}
    assert record_of(tmp_path)["complete"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--format", "jpeg", "--image-type", "png"], "leave out --image-type"),
        (["--format", "parquet", "--npz"], "--npz is for image files"),
        (["--shard-images", 5], "--shard-images is for webdataset"),
        (["--quality", 50], "PNG is lossless"),
        (["--format", "npz", "--image-type", "jpeg"], "npz holds pixels"),
        (["--prompt-file", __file__], "takes classes"),
    ],
)
def test_options_that_exclude_each_other(
    options: list[object], told: str, pixel_plan: Path, tmp_path: Path
) -> None:
    result = run(pixel_plan, tmp_path / "out", *options)
    assert result.exit_code == 1
    assert told in result.output
    assert not (tmp_path / "out").exists()


def test_latents_have_no_npz(golden_plan: Any, tmp_path: Path) -> None:
    result = run(golden_plan("mar_patch2"), tmp_path, "--num", 1, "--npz")
    assert result.exit_code == 1
    assert "which cannot be written as npz" in result.output


def test_a_part_of_a_longer_run(pixel_plan: Path, tmp_path: Path) -> None:
    assert run(pixel_plan, tmp_path / "whole", "--num", 12, "--batch-size", 4).exit_code == 0
    options = ["--num", 4, "--first-image", 8, "--batch-size", 4]
    assert run(pixel_plan, tmp_path / "part", *options).exit_code == 0
    part = images_in(tmp_path / "part")
    assert list(part) == [f"{index:06d}.png" for index in range(8, 12)]
    assert part.items() <= images_in(tmp_path / "whole").items()


def test_rows_have_their_own_seeds(pixel_plan: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("index,class,seed\n2,5,1\n0,3,7\n4,5,1\n")
    result = run(pixel_plan, tmp_path / "rows", "--rows", rows, "--batch-size", 1)
    assert result.exit_code == 0, result.output
    for seed, index, label in ((1, 2, 5), (7, 0, 3), (1, 4, 5)):
        options = ["--first-image", index, "--num", 1, "--class", label, "--seed", seed]
        assert run(pixel_plan, tmp_path / "one", *options, "--overwrite").exit_code == 0
        assert images_in(tmp_path / "one").items() <= images_in(tmp_path / "rows").items()
    assert record_of(tmp_path / "rows")["seeds"] == [1, 7, 1]


def test_a_folder_of_the_first_version_goes_on(pixel_plan: Path, tmp_path: Path) -> None:
    assert run(pixel_plan, tmp_path, "--num", 10).exit_code == 0
    record = record_of(tmp_path)
    del record["layout"], record["first_image"]
    record["request"]["iterations"] = record["request"].pop("num_iterations")
    (tmp_path / "run.json").write_text(json.dumps(record, indent=1))
    (tmp_path / "units.jsonl").unlink()
    before = images_in(tmp_path)
    result = run(pixel_plan, tmp_path, "--num", 11)
    assert result.exit_code == 0, result.output
    assert "1 image in" in result.output
    assert before.items() < images_in(tmp_path).items()
    assert record_of(tmp_path)["stats"]["images"] == 11
