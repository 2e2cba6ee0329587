"""The server on many GPUs and machines, behind Ray Serve.

    serve run disa.server.ray:app plan=/srv/plans/mar_b.plan max_replicas=8

There are three deployments: the replicas, each with a GPU and a whole server except its sockets;
a front, which forwards each request to a replica; and one process that stores the images of
answers with URLs.
"""

from typing import Any

from ray import cluster_resources, is_initialized, serve
from ray.serve.config import AutoscalingConfig

from ..errors import InvalidRequest
from ..workers.ray_resources import CPU_ENGINES
from .replicas.arguments import Arguments
from .replicas.front import LONGER_SECONDS, Front
from .replicas.replica import Replica
from .replicas.results import SharedResults

FRONT_REQUESTS = 10_000


def app(arguments: Arguments) -> serve.Application:
    """Build the application; Ray Serve calls this with the arguments of `serve run`.

    Raises:
        DisaError: an argument is not valid, or a plan does not exist.
    """
    settings = arguments.settings()
    gpus = _cluster_gpus() if arguments.engine not in CPU_ENGINES else 0
    results = serve.deployment(name="results", num_replicas=1, ray_actor_options={"num_cpus": 0})(
        SharedResults
    )
    replicas = serve.deployment(
        name="replicas",
        # The replica itself refuses images that do not fit into its queue, as disa-serve does.
        max_ongoing_requests=settings.max_connections,
        graceful_shutdown_timeout_s=settings.drain_timeout,
        ray_actor_options=_resources(arguments, gpus),
        **_scaling(arguments, settings.max_images, gpus),
    )(Replica)
    front = serve.deployment(
        name="front",
        num_replicas=arguments.fronts,
        max_ongoing_requests=FRONT_REQUESTS,
        graceful_shutdown_timeout_s=settings.drain_timeout + LONGER_SECONDS,
        ray_actor_options={"num_cpus": 0},
    )(Front)
    serving = replicas.bind(
        arguments.plans(),
        arguments.engine,
        arguments.threads,
        settings,
        arguments.api_key_file,
        results.bind(settings),
    )
    return front.bind(serving, settings)


def _resources(arguments: Arguments, gpus: int) -> dict[str, float]:
    """The resources that Ray reserves for a replica."""
    own_gpus = (1 if gpus else 0) if arguments.gpus is None else arguments.gpus
    own_cpus = (arguments.threads or 1) if arguments.cpus is None else arguments.cpus
    return {"num_gpus": own_gpus, "num_cpus": own_cpus}


def _scaling(arguments: Arguments, max_images: int, gpus: int) -> dict[str, Any]:
    """The number of replicas, as arguments of `serve.deployment`."""
    least, most = arguments.min_replicas, arguments.max_replicas or max(gpus, 1)
    if least > most:
        raise InvalidRequest(f"min_replicas is {least} and max_replicas {most}: swap them")
    if least == most:
        return {"num_replicas": most}
    scaling = AutoscalingConfig(
        min_replicas=least,
        max_replicas=most,
        target_ongoing_requests=arguments.target_requests or max_images,
        upscale_delay_s=arguments.upscale_delay,
        downscale_delay_s=arguments.downscale_delay,
    )
    return {"autoscaling_config": scaling}


def _cluster_gpus() -> int:
    return int(cluster_resources().get("GPU", 0)) if is_initialized() else 0
