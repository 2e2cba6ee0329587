"""How a cluster is divided among the workers."""

from types import SimpleNamespace
from typing import Any

import pytest

from disa.errors import DisaError
from disa.workers.job import Job
from disa.workers.ray_resources import Share, largest_share, share


def cluster(*nodes: dict[str, int]) -> Any:
    """A module `ray` that is connected to these nodes, and to one that is dead."""
    alive = [{"Alive": True, "Resources": node} for node in nodes]
    dead = {"Alive": False, "Resources": {"CPU": 64, "GPU": 8}}
    return SimpleNamespace(nodes=lambda: [*alive, dead])


@pytest.mark.parametrize(
    ("cores", "workers", "size"),
    [([8], 2, 4), ([8], 3, 2), ([4, 4], 3, 2), ([3, 3], 4, 1), ([2], 3, 0), ([], 1, 0)],
)
def test_shares_of_cores(cores: list[int], workers: int, size: int) -> None:
    assert largest_share(cores, workers) == size


@pytest.mark.parametrize(
    ("job", "count", "expected"),
    [
        (Job("x"), None, Share(3, 1, 1, None)),
        (Job("x", threads=2), 2, Share(2, 1, 1, 2)),
        (Job("x", engine="cpu"), None, Share(2, 0, 4, 4)),
        (Job("x", engine="openvino"), 3, Share(3, 0, 4, 4)),
        (Job("x", engine="cpu", threads=1), 12, Share(12, 0, 1, 1)),
    ],
)
def test_a_gpu_for_each_worker_or_shares_of_the_cores(
    job: Job, count: int | None, expected: Share
) -> None:
    assert share(cluster({"CPU": 8, "GPU": 2}, {"CPU": 4, "GPU": 1}), job, count) == expected


@pytest.mark.parametrize(
    ("job", "count", "complaint"),
    [
        (Job("x"), 4, "4 workers need a GPU each, and there are 3"),
        (Job("x", engine="cpu"), 13, "13 workers of 1 threads do not fit"),
        (Job("x", engine="cpu", threads=8), 2, "machines of 8, 4 cores"),
    ],
)
def test_clusters_that_are_too_small(job: Job, count: int, complaint: str) -> None:
    with pytest.raises(DisaError, match=complaint):
        share(cluster({"CPU": 8, "GPU": 2}, {"CPU": 4, "GPU": 1}), job, count)
