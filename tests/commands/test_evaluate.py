import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from disa.commands import evaluate as evaluate_module
from disa.commands.evaluate import main
from disa.commands.run import main as run_main
from disa.evaluation.features import ImageFeatures

QUICK = ["--iterations", "4", "--steps", "4:2", "--engine", "cpu"]


class Means:
    """Stands in for a network: mean and deviation of the pixels."""

    name, width = "means", 2

    def __call__(self, images: np.ndarray) -> ImageFeatures:
        flat = images.reshape(len(images), -1)
        features = np.stack([flat.mean(1), flat.std(1)], 1).astype(np.float32)
        return ImageFeatures(features, logits=features, classes=np.zeros(len(images), np.int64))

    def describe(self) -> dict[str, Any]:
        return {"features": self.name}


@pytest.fixture(autouse=True)
def _small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate_module, "_open_features", lambda *_: Means())


def generate(plan: Path, folder: Path, *options: object) -> None:
    arguments = [plan, "-o", folder, *QUICK, *options]
    result = CliRunner().invoke(run_main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output


def evaluate(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def against_other(runs: Path) -> list[object]:
    return ["--reference", runs / "other"]


@pytest.fixture(scope="module")
def runs(pixel_plan: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same twelve images in every format, and in two parts."""
    folder = tmp_path_factory.mktemp("runs")
    for kind in ("png", "webp", "webdataset", "parquet", "npz"):
        options = ["--num", 12, "--batch-size", 4, "--format", kind]
        generate(pixel_plan, folder / kind, *options)
    for first in (0, 8):
        options = ["--num", 8 if not first else 4, "--first-image", first, "--batch-size", 4]
        generate(pixel_plan, folder / f"part-{first}", *options)
    generate(pixel_plan, folder / "other", "--num", 12, "--seed", 1)
    return folder


def test_every_format_gives_the_same(runs: Path, tmp_path: Path) -> None:
    found = []
    for kind in ("png", "webp", "webdataset", "parquet", "npz"):
        output = tmp_path / f"{kind}.json"
        result = evaluate(runs / kind, "--reference", runs / "other", "-o", output, "--json")
        assert result.exit_code == 0, result.output
        content = json.loads(output.read_text())
        assert content == json.loads(result.output)
        found.append(content["metrics"])
    result = evaluate(runs / "part-0", runs / "part-8", "--reference", runs / "other", "--json")
    found.append(json.loads(result.output)["metrics"])
    assert found == [found[0]] * 6
    assert found[0].keys() >= {"frechet_distance", "inception_score_mean", "accuracy"}
    assert found[0]["accuracy"] == pytest.approx(2 / 12)
    content = json.loads((tmp_path / "png.json").read_text())
    assert content["generated"]["request"]["seed"] == 0
    assert content["generated"]["images"] == 12
    assert content["network"] == {"features": "means"}


def test_the_reference_may_be_images_in_an_npz(runs: Path) -> None:
    results = [
        json.loads(evaluate(runs / "png", "--reference", place, "--json").output)["metrics"]
        for place in (runs / "png", runs / "npz" / "samples.npz")
    ]
    assert results[0] == results[1]
    assert results[0]["frechet_distance"] == pytest.approx(0, abs=1e-6)
    shown = evaluate(runs / "png", "--reference", runs / "png")
    assert "12 images" in shown.output
    assert "Fréchet distance  " in shown.output


def test_the_order_of_parts_does_not_count(runs: Path) -> None:
    """The Inception score is of splits, and a shell lists part-10 before part-2."""
    orders = [("part-0", "part-8"), ("part-8", "part-0")]
    found = [
        json.loads(
            evaluate(*(runs / part for part in order), *against_other(runs), "--json").output
        )
        for order in orders
    ]
    assert found[0] == found[1]


def test_the_number_of_images_is_checked(runs: Path) -> None:
    for places, images, told in (
        (["part-8"], 4, None),
        (["part-0", "part-8"], 12, None),
        (["part-0"], 12, "the runs have 8 images (images 0 to 7), not the 12 of --images"),
    ):
        places_of = [runs / place for place in places]
        result = evaluate(*places_of, *against_other(runs), "--images", images)
        assert (result.exit_code == 0) == (told is None), result.output
        assert (told or f"{images} images") in " ".join(result.output.split())


def test_few_images_are_told(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers of both sides are always shown, the note only if there are few."""
    shown = evaluate(runs / "part-8", *against_other(runs)).output
    assert "4 images, compared with 12 images\n" in shown
    assert "Note" not in shown
    monkeypatch.setattr(Means, "width", 4)
    shown = evaluate(runs / "part-8", *against_other(runs)).output
    assert "\nNote: 4 generated images are few for 4 features" in shown
    content = json.loads(evaluate(runs / "part-8", *against_other(runs), "--json").output)
    assert content["note"].startswith("4 generated images are few")


def test_statistics_have_no_number_of_images(runs: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "stats.npz", mu=np.zeros(2), sigma=np.eye(2))
    shown = evaluate(runs / "png", "--reference", tmp_path / "stats.npz").output
    assert "12 images, compared with statistics\n" in shown


def test_the_engines_of_all_parts_are_named(runs: Path, tmp_path: Path) -> None:
    for part in ("part-0", "part-8"):
        shutil.copytree(runs / part, tmp_path / part)
    record = tmp_path / "part-8" / "run.json"
    content = json.loads(record.read_text())
    first, content["engine"] = content["engine"], "another engine"
    record.write_text(json.dumps(content))
    for parts in (["part-0"], ["part-0", "part-8"]):
        result = evaluate(*(tmp_path / part for part in parts), *against_other(runs), "--json")
        engines = json.loads(result.output)["generated"]["engine"]
        assert engines == " and ".join([first, "another engine"][: len(parts)])


def test_latents_are_told(golden_plan: Any, runs: Path, tmp_path: Path) -> None:
    generate(golden_plan("mar_patch2"), tmp_path, "--num", 2)
    result = evaluate(tmp_path, *against_other(runs))
    assert result.exit_code == 1
    assert "contains latents: export the plan with --vae" in result.output


@pytest.mark.parametrize(
    ("output", "code", "told"),
    [
        ("missing/fid.json", 1, "cannot be written: No such file"),
        (".", 1, "it is a folder"),
        ("reference.npz", 2, "reference.npz is read: give another file for -o"),
        ("run.json", 2, "run.json is the record of a run: give another file for -o"),
    ],
)
def test_an_unusable_output_is_told_before_the_work(
    output: str, code: int, told: str, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(evaluate_module, "Runs", never)
    np.savez(tmp_path / "reference.npz", mu=np.zeros(2), sigma=np.eye(2))
    (tmp_path / "run.json").write_text("{}")
    before = (tmp_path / "reference.npz").read_bytes()
    reference = ["--reference", tmp_path / "reference.npz"]
    result = evaluate(runs / "png", *reference, "-o", tmp_path / output)
    assert result.exit_code == code
    assert told in " ".join(result.output.split())
    assert (tmp_path / "reference.npz").read_bytes() == before
    assert (tmp_path / "run.json").read_text() == "{}"


def test_a_result_that_cannot_be_written_is_shown(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("disa.files.os.replace", full)
    result = evaluate(runs / "png", *against_other(runs), "-o", tmp_path / "fid.json")
    assert result.exit_code == 1
    assert "Fréchet distance  " in result.output
    assert "fid.json cannot be written: No space left" in result.output


def test_mixed_and_incomplete_runs_are_refused(
    runs: Path, pixel_plan: Path, tmp_path: Path
) -> None:
    reference = ["--reference", runs / "other"]
    generate(pixel_plan, tmp_path / "run", "--num", 3)
    refused = [
        ([runs / "png", runs / "other"], "other seed"),
        ([runs / "part-0", runs / "part-0"], "another of the runs has too"),
        ([tmp_path], r"it is not a run of disa"),
    ]
    for places, told in refused:
        result = evaluate(*places, *reference)
        assert result.exit_code == 1
        assert told in result.output
    image = tmp_path / "run" / "000001.png"
    (tmp_path / "run" / "000003.png").write_bytes(image.read_bytes())
    assert "is not an image of the run" in evaluate(tmp_path / "run", *reference).output
    (tmp_path / "run" / "000003.png").rename(image)
    record = tmp_path / "run" / "run.json"
    record.write_text(record.read_text().replace('"complete": true', '"complete": false'))
    assert "is not complete (3 of 3 images exist)" in evaluate(tmp_path / "run", *reference).output
    image.unlink()
    assert "is not complete (2 of 3 images exist)" in evaluate(tmp_path / "run", *reference).output


@pytest.mark.parametrize("damage", ["text", "empty", "objects", "shape", "nan"])
def test_damaged_references(damage: str, runs: Path, tmp_path: Path) -> None:
    path = tmp_path / "stats.npz"
    match damage:
        case "text":
            path.write_text("hello")
        case "empty":
            np.savez(path)
        case "objects":
            np.savez(path, mu=np.array([{}, {}]), sigma=np.eye(2), allow_pickle=True)
        case "shape":
            np.savez(path, mu=np.zeros(3), sigma=np.eye(3))
        case "nan":
            np.savez(path, mu=np.full(2, np.nan), sigma=np.eye(2))
    result = evaluate(runs / "png", "--reference", path)
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    assert "stats.npz" in result.output


def test_weights_are_asked_for(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    result = evaluate(runs / "png", "--reference", runs / "other")
    assert result.exit_code == 1
    assert "--inception FILE" in result.output


@pytest.mark.parametrize("option", [("--device", "cuda"), ("--inception", "weights.pth")])
def test_options_of_inception_are_not_for_the_demo(option: tuple[str, str], tmp_path: Path) -> None:
    result = evaluate(tmp_path, "--reference", tmp_path, "--features", "demo", *option)
    assert result.exit_code == 2
    assert f"leave out {option[0]}" in result.output
