from pathlib import Path

import pytest

from demo.pages import fill_placeholders, new_figure, save_figure
from disa.errors import DisaError


def test_every_placeholder_is_filled(tmp_path: Path) -> None:
    template = tmp_path / "page.md"
    template.write_text("<!-- count --> images\n\n<!-- table -->\n")
    text = fill_placeholders(template, {"count": "5", "table": "| a |"})
    assert text == "5 images\n\n| a |\n"
    with pytest.raises(DisaError, match=r"page.md has no placeholder <!-- machine -->"):
        fill_placeholders(template, {"count": "5", "machine": "x"})


def test_a_figure_is_written_without_a_display(tmp_path: Path) -> None:
    figure = new_figure(2, 1)
    figure.subplots().plot([1, 2])
    save_figure(figure, tmp_path / "images" / "a.png")
    assert (tmp_path / "images" / "a.png").read_bytes().startswith(b"\x89PNG")
