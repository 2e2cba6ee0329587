"""The code that the demo's pages and plots share."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from disa.errors import DisaError, MissingDependency


def new_figure(width: float, height: float) -> Any:
    """A matplotlib figure that needs no display; sizes in inches.

    Raises:
        MissingDependency: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependency("matplotlib", "plot") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, path: Path, dpi: int = 100) -> None:
    """Write a figure as an image file, in a folder that is created if necessary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi)


def fill_placeholders(template: Path, parts: Mapping[str, str]) -> str:
    """The text of a template with each placeholder `<!-- NAME -->` replaced.

    Args:
        parts: texts by the names of their placeholders.

    Raises:
        DisaError: a placeholder is missing.
    """
    text = template.read_text()
    for name, part in parts.items():
        placeholder = f"<!-- {name} -->"
        if placeholder not in text:
            raise DisaError(
                f"{template} has no placeholder {placeholder}: add it where that part belongs"
            )
        text = text.replace(placeholder, part)
    return text
