"""The routes of the images API."""

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from ..http.body import read_json
from ..http.disconnect import ClientDisconnected, until_disconnect
from ..http.errors import CLIENT_CLOSED_REQUEST, ApiError, as_api_error
from ..http.logs import facts
from ..http.sse import EventStream
from ..service import Service
from .generation import collect, stream
from .job import Job
from .models import describe, summary
from .validation import ValidatedRequest, validate_request


def make_router(service: Service, check_key: Callable[[Request], None]) -> APIRouter:
    """The routes under /v1."""
    router = APIRouter(prefix="/v1")
    keyed = [Depends(check_key)]

    @router.post("/images/generations", dependencies=keyed, response_model=None)
    async def generate_images(request: Request) -> Response:
        """Generate images; the response or the stream of events has the format of OpenAI's API."""
        settings = service.settings
        body = await read_json(request, settings.max_body, settings.body_seconds)
        checked = validate_request(body, service.workers)
        log_facts = facts(request.scope)
        log_facts.update(
            model=checked.worker.name, images=len(checked.images), stream=checked.stream
        )
        job = submit(checked, settings.request_timeout)
        if checked.stream:
            return EventStream(stream(job, log_facts))

        async def store_file(file: bytes) -> str:
            result_id = await service.results.add(file, checked.encoding.media_type)
            return service.url(request, f"/v1/images/{result_id}")

        try:
            content = await until_disconnect(request.receive, collect(job, store_file, log_facts))
        except ClientDisconnected:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        finally:
            job.cancel()
        return JSONResponse(content)

    @router.get("/images/{result_id}")
    async def get_image(result_id: str) -> Response:
        """Fetch an image of an answer with URLs. The id cannot be guessed, so no key is needed."""
        result = await service.results.get(result_id)
        if result is None:
            raise not_found(result_id)
        return Response(
            result.data,
            media_type=result.media_type,
            headers={"cache-control": "private, no-store", "x-content-type-options": "nosniff"},
        )

    @router.delete("/images/{result_id}", dependencies=keyed)
    async def delete_image(result_id: str) -> Response:
        """Delete an image of an answer with URLs."""
        if not await service.results.delete(result_id):
            raise not_found(result_id)
        return JSONResponse({"id": result_id, "object": "image", "deleted": True})

    @router.get("/models", dependencies=keyed)
    async def list_models() -> dict[str, Any]:
        """The models that are served."""
        return {"object": "list", "data": [summary(w) for w in service.workers.values()]}

    @router.get("/models/{name:path}", dependencies=keyed)
    async def get_model(name: str) -> dict[str, Any]:
        """A model, with its options and class names once it is loaded."""
        worker = service.workers.get(name)
        if worker is None:
            raise ApiError(404, f"there is no model {name[:100]!r}", "model_not_found", "model")
        return describe(worker)

    return router


def submit(request: ValidatedRequest, seconds: float) -> Job:
    """Submit the images of a request.

    Args:
        seconds: time limit of the request.

    Raises:
        ApiError: the queue is full or closed.
    """
    try:
        return Job(request, seconds)
    except Exception as error:
        raise as_api_error(error, request.worker.retry_after()) from error


def not_found(result_id: str) -> ApiError:
    """The error for an image that is not stored."""
    message = f"there is no image {result_id[:60]!r}: it has expired or never existed"
    return ApiError(404, message, "not_found")
