"""Health checks and metrics: liveness, readiness, and Prometheus."""

from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from .scheduling.worker import State
from .service import Service


def make_router(service: Service) -> APIRouter:
    """The routes that need no key: health and metrics."""
    router = APIRouter()

    @router.head("/health/live", include_in_schema=False)
    @router.get("/health/live")
    async def live() -> JSONResponse:
        """Status 503 if the thread of a model has ended unexpectedly: restart the server."""
        dead = [
            name
            for name, worker in service.workers.items()
            if not worker.alive and not service.draining
        ]
        return JSONResponse({"status": "dead" if dead else "alive"}, 503 if dead else 200)

    @router.head("/health/ready", include_in_schema=False)
    @router.head("/health", include_in_schema=False)
    @router.get("/health/ready")
    @router.get("/health")
    async def ready() -> JSONResponse:
        """Status 503 until all models are warmed up, and while the server shuts down."""
        models = {name: model_state(service, name) for name in service.workers}
        not_ready = [m for m in models.values() if m["state"] is not State.READY]
        state = "draining" if service.draining else "loading" if not_ready else "ready"
        return JSONResponse(
            {"status": state, "models": models},
            200 if state == "ready" else 503,
            headers={} if state == "ready" else {"retry-after": "5"},
        )

    @router.get("/metrics")
    async def metrics() -> Response:
        """The metrics in Prometheus' text format."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    return router


def model_state(service: Service, name: str) -> dict[str, Any]:
    """The state of a model for clients: state, number of images, warm-up and failure."""
    worker = service.workers[name]
    state: dict[str, Any] = {
        "state": worker.state,
        "running": worker.running,
        "waiting": len(worker.queue),
    }
    if worker.warmed:
        state["warmed_up_images"] = list(worker.warmed.images)
    if worker.failure:
        state["failure"] = worker.failure
    return state
