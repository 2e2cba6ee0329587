"""Connects to Ray and divides its resources among the workers."""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..errors import DisaError, MissingDependency
from ..optional import first_line
from .job import Job

OBJECT_STORE_BYTES = 256 << 20
"""Results do not pass through Ray, so its object store stays almost empty."""
CPU_ENGINES = ("cpu", "openvino")


@contextmanager
def connect(address: str | None, count: int | None, threads: int | None) -> Iterator[Any]:
    """Yield the module `ray`, connected to a cluster or started on this machine.

    Raises:
        DisaError: no cluster answers at the address.
        MissingDependency: Ray is not installed.
    """
    # Turn off Ray's usage reports.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise MissingDependency("ray", "ray") from error
    quiet: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "configure_logging": True,
    }
    try:
        if address is None:
            cores = max(len(os.sched_getaffinity(0)), (count or 1) * (threads or 1))
            ray.init(
                "local",
                num_cpus=cores,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                **quiet,
            )
        else:
            ray.init(address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = "on this machine" if address is None else f"at {address}"
        raise DisaError(f"there is no Ray cluster {where}: {first_line(error)}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


@dataclass(frozen=True)
class Share:
    """The resources of each worker.

    Attributes:
        workers: number of workers.
        gpus: GPUs of a worker, 0 or 1.
        cpus: cores that Ray reserves for a worker.
        threads: threads of a worker; None for no limit.
    """

    workers: int
    gpus: int
    cpus: int
    threads: int | None


def share(ray: Any, job: Job, count: int | None) -> Share:
    """A GPU for each worker if there are GPUs, otherwise equal shares of the cores.

    Args:
        count: number of workers; None for one a GPU or one a machine.

    Raises:
        DisaError: there are too few GPUs or cores.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    if gpus and job.engine not in CPU_ENGINES:
        if count and count > gpus:
            raise DisaError(f"{count} workers need a GPU each, and there are {gpus}: use fewer")
        return Share(count or gpus, 1, 1, job.threads)
    cores = [int(node.get("CPU", 0)) for node in nodes]
    count = count or sum(1 for each in cores if each)
    threads = job.threads or largest_share(cores, count)
    if not count or not threads or sum(each // threads for each in cores) < count:
        raise DisaError(
            f"{count} workers of {threads or 1} threads do not fit into machines of "
            f"{', '.join(map(str, cores))} cores: use fewer --workers or --threads"
        )
    return Share(count, 0, threads, threads)


def largest_share(cores: Sequence[int], workers: int) -> int:
    """The largest number of cores that each worker can have; 0 if there are too few.

    Args:
        cores: number of cores of each machine.
        workers: number of workers.
    """
    for size in range(max(cores, default=0), 0, -1):
        if sum(each // size for each in cores) >= workers:
            return size
    return 0
