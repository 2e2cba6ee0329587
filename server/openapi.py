"""The OpenAPI description that /docs shows."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from .images.schema import ImageRequest, request_type
from .service import Service

GENERATIONS = "/v1/images/generations"


def describe_api(app: FastAPI, service: Service) -> dict[str, Any]:
    """The OpenAPI description, with the request body of each loaded model."""
    description = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    loaded = [worker.model.family.Options for worker in service.workers.values() if worker.model]
    kinds = {request_type(options) for options in loaded} or {ImageRequest}
    schemas = [kind.model_json_schema() for kind in sorted(kinds, key=lambda kind: kind.__name__)]
    schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
    description["paths"][GENERATIONS]["post"]["requestBody"] = {
        "required": True,
        "content": {"application/json": {"schema": schema}},
    }
    return description
