"""Folders and .npz files as sets of images."""

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from disa.errors import DisaError
from disa.evaluation.image_sets import ImageFiles, NpzImages, Runs
from disa.runtime.outputs.layout import Layout
from disa.runtime.outputs.record import RunRecord
from disa.runtime.outputs.selection import Selection
from disa.runtime.outputs.store import LocalStore

from .images import write_images


def test_a_folder_is_read_with_its_sub_folders(tmp_path: Path) -> None:
    write_images(tmp_path / "b", 2, 0)
    write_images(tmp_path / "b" / "a", 1, 1)
    (tmp_path / "b" / "notes.txt").write_text("no image")
    images = ImageFiles(tmp_path / "b")
    assert images.count == 3
    assert [image.shape for image in images] == [(32, 40, 3)] * 3
    (tmp_path / "empty").mkdir()
    with pytest.raises(DisaError, match="has no images"):
        ImageFiles(tmp_path / "empty")


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    write_images(tmp_path / "b", 2, 0)
    (tmp_path / "b" / "001.png").write_bytes(b"no png")
    with pytest.raises(DisaError, match=r"001\.png"):
        list(ImageFiles(tmp_path / "b"))


def test_images_of_a_data_set_are_not_to_be_deleted(tmp_path: Path) -> None:
    write_images(tmp_path / "b", 2, 0)
    (tmp_path / "b" / "001.png").write_bytes(b"no png")
    with pytest.raises(DisaError, match=r"001\.png is damaged: replace it"):
        list(ImageFiles(tmp_path / "b"))


def test_folders_may_be_links(tmp_path: Path) -> None:
    """A subset of the classes of a data set is made of links."""
    for name in ("cats", "dogs", "cows"):
        write_images(tmp_path / name, 2, 0)
    subset = write_images(tmp_path / "subset", 1, 0)
    for name in ("cats", "dogs"):
        (subset / name).symlink_to(tmp_path / name)
    (tmp_path / "cats" / "all").symlink_to(subset)  # A way back is not taken.
    (subset / "again").symlink_to(tmp_path / "dogs")
    assert ImageFiles(subset).count == 1 + 2 + 2 + 2


def test_a_folder_that_cannot_be_read_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "b", 1, 0)
    closed = write_images(tmp_path / "b" / "closed", 1, 0)
    listed = Path.iterdir

    def refused(self: Path) -> Iterator[Path]:
        if self == closed:
            raise PermissionError(13, "Permission denied", str(self))
        return listed(self)

    monkeypatch.setattr(Path, "iterdir", refused)
    with pytest.raises(DisaError, match="closed cannot be read: Permission denied"):
        ImageFiles(tmp_path / "b")


def test_the_grid_of_a_run_is_not_an_image(tmp_path: Path) -> None:
    for name in ("part-0", "part-1"):
        write_images(tmp_path / "runs" / name, 2, 0)
        write_images(tmp_path / "runs" / name / "more", 1, 1).joinpath("000.png").rename(
            tmp_path / "runs" / name / "grid.png"
        )
    (tmp_path / "runs" / "part-0" / "run.json").touch()
    assert ImageFiles(tmp_path / "runs").count == 2 + 2 + 1


def test_images_of_several_sizes_are_refused(tmp_path: Path) -> None:
    """Each would be stretched to a square in its own way."""
    write_images(tmp_path / "b", 2, 0)
    with Image.open(tmp_path / "b" / "001.png") as image:
        image.convert("L").save(tmp_path / "b" / "002.png")  # Grey ones may be among them.
        image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "b" / "003.png")
    images = iter(ImageFiles(tmp_path / "b"))
    assert [next(images).shape for _ in range(3)] == [(32, 40, 3), (32, 40, 3), (32, 40, 1)]
    with pytest.raises(DisaError, match=r"003\.png has 32x40 pixels, .* have another size: crop"):
        next(images)


def test_images_of_an_npz_are_read_one_by_one(tmp_path: Path) -> None:
    stack = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), np.uint8)
    np.savez(tmp_path / "a.npz", arr_0=stack)
    images = NpzImages(tmp_path / "a.npz")
    assert images.count == 3
    np.testing.assert_array_equal(np.stack(list(images)), stack)
    assert images.describe() == {"file": str(tmp_path / "a.npz"), "images": 3}


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 4, 4, 3)),
        np.zeros((4, 4, 3), np.uint8),
        np.asfortranarray(np.zeros((2, 4, 4, 3), np.uint8)),
    ],
)
def test_arrays_that_are_not_images(array: np.ndarray, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", arr_0=array)
    with pytest.raises(DisaError, match="no arr_0 with uint8 images"):
        NpzImages(tmp_path / "a.npz")


def write_npz(path: Path, member: bytes, method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr("arr_0.npy", member)


def member_of(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def test_an_npz_that_ends_too_early(tmp_path: Path) -> None:
    member = member_of(np.zeros((4, 8, 8, 3), np.uint8))
    write_npz(tmp_path / "b.npz", member[:-100])
    with pytest.raises(DisaError, match="ends too early"):
        NpzImages(tmp_path / "b.npz")
    write_npz(tmp_path / "b.npz", member[:-100], zipfile.ZIP_DEFLATED)
    data = bytearray((tmp_path / "b.npz").read_bytes())
    size = data.index(b"PK\x01\x02") + 24  # Of the member, in the table of contents.
    data[size : size + 4] = len(member).to_bytes(4, "little")
    (tmp_path / "b.npz").write_bytes(data)
    with pytest.raises(DisaError, match="ends too early"):
        list(NpzImages(tmp_path / "b.npz"))


@pytest.mark.parametrize("shape", [(2, -4, -4, 3), (-2, 4, 4, 3), (2, 0, 4, 3), (0, 4, 4, 3)])
def test_an_npz_with_a_forged_shape(shape: tuple[int, ...], tmp_path: Path) -> None:
    with (
        zipfile.ZipFile(tmp_path / "a.npz", "w") as file,
        file.open("arr_0.npy", "w") as member,
    ):
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(member, header)
        member.write(bytes(2 * 4 * 4 * 3))
    with pytest.raises(DisaError, match="no arr_0 with uint8 images"):
        NpzImages(tmp_path / "a.npz")


def test_an_npz_that_numpy_does_not_write(tmp_path: Path) -> None:
    member = member_of(np.zeros((2, 4, 4, 3), np.uint8))
    write_npz(tmp_path / "b.npz", member, zipfile.ZIP_LZMA)
    with pytest.raises(DisaError, match="another method than NumPy's"):
        NpzImages(tmp_path / "b.npz")


def write_run(folder: Path, first: int, count: int, complete: bool = True) -> str:
    """A run whose record lists `count` images from `first` on; all of them exist."""
    selection = Selection.of_seed([0] * count, 0, first)
    store = LocalStore(folder)
    RunRecord({"seed": 0}, selection, Layout(), "an engine", complete).save(store)
    for index in selection.indices:
        Image.new("RGB", (4, 4)).save(folder / f"{index:06d}.png")
    return str(folder)


def test_a_part_between_two_others_may_not_be_missing(tmp_path: Path) -> None:
    parts = [write_run(tmp_path / f"part-{first}", first, 5) for first in (10, 0, 5)]
    assert Runs(parts).count == 15
    assert Runs(parts[:1]).count == 5  # One part may be evaluated by itself.
    with pytest.raises(
        DisaError,
        match=r"have 10 of 15 images: the part from image 5 to 9 .* --first-image 5 --num 5",
    ):
        Runs(parts[:2])


def test_the_first_part_may_not_be_missing(tmp_path: Path) -> None:
    parts = [write_run(tmp_path / f"part-{first}", first, 5) for first in (5, 10)]
    with pytest.raises(
        DisaError,
        match=r"have 10 of 15 images: the part from image 0 to 4 is missing: .* --first-image 0 "
        r"--num 5; if these are all, give --images 10$",
    ):
        Runs(parts)
    assert Runs(parts, 10).count == 10
    assert Runs(parts[:1]).count == 5


def test_the_last_part_may_not_be_missing(tmp_path: Path) -> None:
    parts = [write_run(tmp_path / f"part-{first}", first, 5) for first in (0, 5)]
    told = r"have 10 images \(images 0 to 9\), not the {} of --images: {}"
    with pytest.raises(DisaError, match=told.format(15, "give the runs of all parts")):
        Runs(parts, 15)
    with pytest.raises(DisaError, match=told.format(5, "leave out those of other parts")):
        Runs(parts, 5)
    assert Runs(parts, 10).count == 10


@pytest.mark.parametrize("lost", ["000000.tar", "000001.tar", "000002.tar"])
def test_no_shard_may_be_missing(lost: str, tmp_path: Path) -> None:
    layout, store = Layout("webdataset", shard_images=2), LocalStore(tmp_path)
    selection = Selection.of_seed([0] * 5, 0)
    RunRecord({"seed": 0}, selection, layout, "an engine", True).save(store)
    for shard in range(3):
        (tmp_path / f"{shard:06d}.tar").touch()
    assert Runs([str(tmp_path)]).count == 5
    (tmp_path / lost).unlink()
    with pytest.raises(DisaError, match=r"is not complete \([34] of 5 images exist\)"):
        Runs([str(tmp_path)])


def test_a_run_that_is_incomplete(tmp_path: Path) -> None:
    parts = [write_run(tmp_path / f"part-{first}", first, 5) for first in (0, 5)]
    (tmp_path / "part-5" / "000007.png").unlink()
    for opened in (lambda: Runs(parts), lambda: ImageFiles(tmp_path)):
        with pytest.raises(DisaError, match=r"part-5 is not complete \(4 of 5 images exist\)"):
            opened()


def test_a_run_that_did_not_end(tmp_path: Path) -> None:
    parts = [write_run(tmp_path / "part-0", 0, 5, complete=False)]
    for opened in (lambda: Runs(parts), lambda: ImageFiles(tmp_path)):
        with pytest.raises(DisaError, match=r"part-0 is not complete \(5 of 5 images exist\)"):
            opened()


def test_a_folder_that_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(DisaError, match="it is not a run of disa"):
        Runs([str(tmp_path)])
