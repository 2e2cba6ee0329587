from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from click.testing import CliRunner, Result
from moto.server import ThreadedMotoServer

from disa.commands.run import main
from disa.errors import DisaError, MissingDependency
from disa.runtime.outputs import lease
from disa.runtime.outputs.lock import LOCK
from disa.runtime.outputs.remote import RemoteStore
from disa.runtime.outputs.store import LocalStore, open_store

QUICK = ["--iterations", "4", "--steps", "4:2", "--engine", "cpu"]


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The URL of a bucket on a server that speaks S3."""
    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        boto3.client("s3").create_bucket(Bucket="bucket")
        yield "s3://bucket"
    server.stop()


def run(plan: Path, place: object, *options: object) -> Result:
    arguments = [plan, "-o", place, *QUICK, *options]
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def contents(place: object) -> dict[str, bytes]:
    store = open_store(str(place))
    found = {}
    for name in store.names():
        if not name.startswith(("units", "run.json")):
            with store.read(name) as file:
                found[name] = file.read()
    return found


@pytest.mark.parametrize("kind", ["png", "webdataset", "parquet", "npz"])
def test_a_bucket_is_as_a_folder(s3: str, kind: str, pixel_plan: Path, tmp_path: Path) -> None:
    options: list[object] = ["--num", 7, "--batch-size", 2, "--format", kind]
    if kind in ("webdataset", "parquet"):
        options += ["--shard-images", 5]
    result = run(pixel_plan, f"{s3}/{kind}", *options)
    assert result.exit_code == 0, result.output
    assert f"{s3}/{kind}/grid.png" in result.output
    assert run(pixel_plan, tmp_path, *options).exit_code == 0
    assert contents(f"{s3}/{kind}") == contents(tmp_path)
    again = run(pixel_plan, f"{s3}/{kind}", *options)
    assert "all 7 images exist already" in again.output
    other = run(pixel_plan, f"{s3}/{kind}", *options, "--seed", 1)
    assert "has another run (other seed)" in other.output
    replaced = run(pixel_plan, f"{s3}/{kind}", *options, "--seed", 1, "--overwrite")
    assert replaced.exit_code == 0, replaced.output
    assert contents(f"{s3}/{kind}").keys() == contents(tmp_path).keys()
    assert contents(f"{s3}/{kind}") != contents(tmp_path)


def test_a_failed_upload_leaves_nothing(s3: str) -> None:
    store = open_store(f"{s3}/failed")

    def fail() -> None:
        with store.write("a.tar") as file:
            file.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not store.exists("a.tar")
    assert list(store.names()) == []


def test_a_lease_is_held_renewed_and_ends(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(f"{s3}/lease")
    assert isinstance(store, RemoteStore)
    first = lease.Lease(store)
    with pytest.raises(DisaError, match="is being written by process"):
        lease.Lease(store)
    monkeypatch.setattr(lease, "LEASE_SECONDS", -1.0)  # as if its holder had died
    second = lease.Lease(store)
    first.release()
    assert store.exists(LOCK)
    second.release()
    assert not store.exists(LOCK)


def test_places_that_are_none(s3: str, pixel_plan: Path) -> None:
    result = run(pixel_plan, "s3://no-such-bucket/run", "--num", 1)
    assert result.exit_code == 1
    assert "cannot be written" in result.output
    assert "Traceback" not in result.output
    with pytest.raises(DisaError, match=r"xyz.*give a folder, or a URL such as s3://"):
        open_store("xyz://place")
    with pytest.raises(DisaError, match=r"gcsfs.*: install that package"):
        open_store("gs://bucket/run")
    assert isinstance(open_store("file:///tmp/x"), LocalStore)


def test_without_fsspec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "fsspec", None)
    with pytest.raises(MissingDependency, match=r"disa\[s3\]"):
        open_store("s3://bucket/run")
