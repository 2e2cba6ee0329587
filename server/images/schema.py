"""The body of a request: OpenAI's fields, additional fields, and the options of the family."""

import math
from collections.abc import Mapping
from dataclasses import Field as DataclassField
from dataclasses import fields
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, ValidationError, create_model

from ..http.errors import ApiError

MAX_PROMPT = 32_000
MAX_SEED = 2**63 - 1
MAX_INDEX = 2**31 - 1
MAX_IMAGES = 10

Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Seeds = Annotated[list[Seed], Field(fail_fast=True)]
"""Validation ends at the first wrong seed: describing a body full of them takes seconds."""


class ImageRequest(BaseModel):
    """Fields that every model accepts; null is the same as leaving a field out."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: str | None = Field(
        None, max_length=MAX_PROMPT, description="What to generate; a class by name or number."
    )
    model: str | None = Field(None, max_length=200, description="By default the first model.")
    n: int | None = Field(None, ge=1, le=MAX_IMAGES, description="Images; 1 by default.")
    size: str | None = Field(
        None, max_length=40, description="WIDTHxHEIGHT, or auto, which is the model's own size."
    )
    response_format: Literal["b64_json", "url"] | None = Field(
        None, description="Images in the answer (the default), or URLs to fetch them from."
    )
    output_format: Literal["png", "jpeg", "webp"] | None = Field(
        None, description="png by default."
    )
    output_compression: int | None = Field(
        None, ge=0, le=100, description="Quality of jpeg and webp; 100 by default."
    )
    stream: StrictBool | None = Field(None, description="Answer with server-sent events.")
    partial_images: int | None = Field(
        None, ge=0, le=3, description="Previews of each image while it is generated; with stream."
    )
    class_label: int | str | None = Field(
        None, description="A class by number or name, instead of the prompt."
    )
    seed: Seed | Seeds | None = Field(
        None, description="One seed for all images, which then differ by index, or a list."
    )
    first_image: int | None = Field(
        None, ge=0, le=MAX_INDEX, description="Index of the first image in its seed's sequence."
    )
    progress: StrictBool | None = Field(
        None, description="Events image_generation.progress after each AR iteration; with stream."
    )
    quality: str | None = Field(None, max_length=40, description="Ignored.")
    style: str | None = Field(None, max_length=40, description="Ignored.")
    moderation: str | None = Field(None, max_length=40, description="Ignored.")
    background: Literal["opaque", "auto"] | None = Field(
        None, description="Ignored: images are opaque."
    )
    user: str | None = Field(None, max_length=512, description="Ignored.")


def request_type(options: type[Any]) -> type[ImageRequest]:
    """The request type of a family with these options (a dataclass).

    Options that are files on the server are left out.
    """
    return _request_type(options)  # type: ignore[arg-type]


@cache
def _request_type(options: Any) -> type[ImageRequest]:
    extra: dict[str, Any] = {
        each.name: _field(each)
        for each in fields(options)
        if each.name not in ImageRequest.model_fields and each.metadata.get("kind") is not Path
    }
    name = f"{options.__name__.removesuffix('Options')}ImageRequest"
    return create_model(name, __base__=ImageRequest, **extra)


def option_names(options: type[Any]) -> list[str]:
    """The names of the options that a request may set."""
    own = set(ImageRequest.model_fields) - {"size"}
    return [
        each.name
        for each in fields(options)
        if each.name not in own and each.metadata.get("kind") is not Path
    ]


def describe_options(options: type[Any], defaults: Any) -> list[dict[str, Any]]:
    """Describe the options for the web page: name, help, default, choices and limits."""
    described = []
    for each in fields(options):
        if each.name in option_names(options):
            about, limits = each.metadata, each.metadata.get("limits")
            default = getattr(defaults, each.name)
            described.append(
                {
                    "name": each.name,
                    "help": about.get("help"),
                    "kind": _kind(each).__name__ if not about.get("choices") else "choice",
                    "choices": about.get("choices"),
                    "low": limits.low if limits and math.isfinite(limits.low) else None,
                    "high": limits.high if limits and math.isfinite(limits.high) else None,
                    "default": default if isinstance(default, int | float) else str(default),
                }
            )
    return described


def parse(content: Mapping[str, Any], kind: type[ImageRequest]) -> ImageRequest:
    """Parse a request from a JSON object.

    Raises:
        ApiError: 400, with the name of the first wrong field.
    """
    # Pydantic would describe all of them, and there may be tens of thousands.
    unknown = next((name for name in content if name not in kind.model_fields), None)
    if unknown is not None:
        raise _unknown(unknown[:100], kind)
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise _as_api_error(error) from None


def _unknown(param: str, kind: type[ImageRequest]) -> ApiError:
    near = get_close_matches(param, kind.model_fields, n=1)
    hint = f": did you mean {near[0]}?" if near else ""
    message = f"there is no parameter {param!r} for this model{hint}"
    return ApiError(400, message, "unknown_parameter", param)


def _as_api_error(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False, include_input=False)[0]
    param = str(first["loc"][0])[:100] if first["loc"] else None
    reason = first["msg"][:1].lower() + first["msg"][1:]
    return ApiError(400, f"{param}: {reason}", "invalid_value", param)


def _field(each: "DataclassField[Any]") -> tuple[Any, Any]:
    about = each.metadata
    description = f"{about.get('help', '')} By default the plan's value.".strip()
    if about.get("choices"):
        return Literal[tuple(about["choices"])] | None, Field(None, description=description)
    kind = _kind(each)
    if kind is str:
        return str | int | None, Field(None, description=description)
    bounds: dict[str, Any] = {}
    if limits := about.get("limits"):
        low, high = ("gt", "lt") if limits.open else ("ge", "le")
        bounds = {low: limits.low}
        if math.isfinite(limits.high):
            bounds[high] = limits.high
    return Annotated[kind, Field(**bounds)] | None, Field(None, description=description)


def _kind(each: "DataclassField[Any]") -> type[Any]:
    kind: type[Any] = each.metadata.get("kind", str)
    return kind
