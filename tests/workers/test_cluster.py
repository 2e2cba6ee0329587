"""Ray itself. Starting it takes seconds, so the tests are few and share a cluster."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from click.testing import CliRunner
from ray.cluster_utils import Cluster

from disa.commands.run import main
from disa.errors import DisaError
from disa.workers.cluster import RayWorkers, _Slot

pytestmark = pytest.mark.ray  # Its driver leaves handlers and threads behind.

ENGINE = ["--engine", "cpu", "--threads", "1"]
QUICK = [*ENGINE, "--iterations", "4", "--steps", "4:2"]
SLOW = [*ENGINE, "--iterations", "16", "--steps", "60:30", "--batch-size", "4"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster of two nodes of this machine, with a core and with two."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # A node that was taken away is noticed in seconds, not in half a minute.
        patch.setenv("RAY_health_check_period_ms", "500")
        patch.setenv("RAY_health_check_failure_threshold", "3")
        store = 80 << 20
        cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 2, "object_store_memory": store},
        )
        cluster.second = cluster.add_node(num_cpus=1, object_store_memory=store)
        yield cluster
        cluster.shutdown()


def run(plan: Path, folder: Path, *options: object) -> Any:
    arguments = [plan, "-o", folder, *options]
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result


def images_in(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in ("run.json", "units.jsonl"):
            found[path.relative_to(folder).as_posix()] = path.read_bytes()
    return found


@pytest.mark.parametrize(("workers", "kind"), [(1, "png"), (2, "webdataset"), (3, "npz")])
def test_any_number_of_workers_gives_the_same_bytes(
    cluster: Cluster, workers: int, kind: str, pixel_plan: Path, tmp_path: Path
) -> None:
    options = [*QUICK, "--num", 14, "--batch-size", 2, "--format", kind]
    address = ["--ray-address", cluster.address, "--workers", workers]
    run(pixel_plan, tmp_path / "alone", *options)
    run(pixel_plan, tmp_path / "many", *options, *address)
    assert images_in(tmp_path / "many") == images_in(tmp_path / "alone")
    record = json.loads((tmp_path / "many" / "run.json").read_text())
    assert record["complete"]
    assert record["stats"]["images"] == 14


def test_a_worker_that_dies_while_it_checks_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = RayWorkers.__new__(RayWorkers)
    actor = SimpleNamespace(check_prompts=SimpleNamespace(remote=lambda prompts: "handle"))
    workers._slots = [_Slot(actor), _Slot(actor, "host:7")]

    def dead(handle: object) -> None:
        raise ray.exceptions.ActorDiedError

    workers._ray = SimpleNamespace(get=dead, exceptions=ray.exceptions)
    with pytest.raises(DisaError, match="worker host:7 died while it checked the prompts"):
        workers.check_prompts(["a dog"])


def lines(folder: Path) -> list[dict[str, Any]]:
    try:
        text = (folder / "units.jsonl").read_text()
    except FileNotFoundError:
        return []
    whole = text[: text.rfind("\n") + 1]
    return [json.loads(line) for line in whole.splitlines() if line]


def wait_for_units(folder: Path, count: int, process: "subprocess.Popen[bytes]") -> list[int]:
    """Wait until so many units are done; the workers' processes, latest first."""
    end = time.monotonic() + 120
    while len(lines(folder)) < count:
        assert process.poll() is None, "the run ended before it could be disturbed"
        assert time.monotonic() < end
        time.sleep(0.02)
    workers = [int(line["worker"].rpartition(":")[2]) for line in reversed(lines(folder))]
    return list(dict.fromkeys(workers))


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def test_deaths_of_workers_driver_and_node_lose_nothing(
    cluster: Cluster, pixel_plan: Path, tmp_path: Path
) -> None:
    options = [*SLOW, "--num", 200, "--format", "webdataset", "--shard-images", 60]
    run(pixel_plan, tmp_path / "alone", *options)
    folder = tmp_path / "many"
    address = ["--ray-address", cluster.address, "--workers", 3]
    arguments = map(str, [pixel_plan, "-o", folder, *options, *address])
    command = [sys.executable, "-c", "from disa.commands.run import main; main()", *arguments]

    driver = subprocess.Popen(command)
    for units in (2, 5):
        victim = next(filter(alive, wait_for_units(folder, units, driver)))
        os.kill(victim, signal.SIGKILL)
    before = len(lines(folder))
    wait_for_units(folder, before + 3, driver)
    driver.kill()
    assert driver.wait() == -signal.SIGKILL

    driver = subprocess.Popen(command)
    wait_for_units(folder, len(lines(folder)) + 3, driver)
    cluster.remove_node(cluster.second, allow_graceful=False)
    assert driver.wait(timeout=300) == 0
    assert images_in(folder) == images_in(tmp_path / "alone")
    assert json.loads((folder / "run.json").read_text())["complete"]
