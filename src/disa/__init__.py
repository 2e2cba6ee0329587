"""disa: diffusion step annealing for autoregressive image models, in production.

`Pipeline` draws images from a plan; `export` makes a plan from a checkpoint. Both are
imported when first used, so that a machine that only runs plans needs no PyTorch.
"""

from typing import TYPE_CHECKING, Any

from .errors import DisaError, MissingDependency

if TYPE_CHECKING:
    from .exporter.export import export
    from .runtime.pipeline import Pipeline

__version__ = "0.1.0"
__all__ = ["DisaError", "MissingDependency", "Pipeline", "__version__", "export"]


def __getattr__(name: str) -> Any:
    if name == "Pipeline":
        from .runtime.pipeline import Pipeline

        return Pipeline
    if name == "export":
        try:
            from .exporter.export import export
        except ImportError as error:
            raise MissingDependency(error.name or "torch", "export") from error
        return export
    raise AttributeError(f"module 'disa' has no attribute {name!r}")
