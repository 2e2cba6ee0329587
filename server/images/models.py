"""Descriptions of a model for clients."""

from typing import Any

from ..scheduling.worker import Worker
from .schema import describe_options


def summary(worker: Worker) -> dict[str, Any]:
    """A model in the format of OpenAI's list of models."""
    return {
        "id": worker.name,
        "object": "model",
        "created": worker.created,
        "owned_by": "disa",
        "state": worker.state,
    }


def describe(worker: Worker) -> dict[str, Any]:
    """A model with its options and class names; only the summary while it is being loaded."""
    model, warmed = worker.model, worker.warmed
    if model is None or warmed is None:
        return summary(worker)
    defaults = model.family.options({})
    return {
        **summary(worker),
        "family": model.family_name,
        "engine": model.engine,
        "precision": model.precision,
        "takes": "prompt" if model.family.classes is None else "class",
        "classes": model.family.classes,
        "class_names": list(model.class_names) if model.class_names else None,
        "size": f"{warmed.width}x{warmed.height}",
        "options": describe_options(model.family.Options, defaults),
    }
