"""The pages written by hand: links lead somewhere, and quoted messages and options exist."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from disa.commands import bench, calibrate, evaluate, export, inspect, run, serve, verify

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY", "CHANGELOG")),
    *sorted(DOCS.glob("*.md")),
]
SOURCES = ("exporter", "runtime", "engines", "calibration", "server", "src")
COMMANDS: dict[str, click.Command] = {
    f"disa-{module.__name__.rpartition('.')[2]}": module.main
    for module in (bench, calibrate, evaluate, export, inspect, run, serve, verify)
}
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as MyST and GitHub make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    wrong = []
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if re.match(r"https?:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name) if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    assert wrong == []


def test_every_page_is_in_the_table_of_contents() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    listed = re.findall(r"^([a-z-]+)$", index, re.MULTILINE)
    assert sorted(listed) == sorted(page.stem for page in DOCS.glob("*.md") if page.stem != "index")


def command_lines(page: Path) -> Iterator[str]:
    """The commands of disa in a page's blocks of code, continued lines joined."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in text.splitlines():
        if line.startswith(("    disa-", "       disa-", "disa-")):
            yield line.partition(" #")[0].strip()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_options_in_commands_exist(page: Path) -> None:
    for line in command_lines(page):
        name, *_ = line.split()
        if name.rstrip(":") != name or name not in COMMANDS:
            continue
        known = {flag for option in COMMANDS[name].params for flag in option.opts}
        for flag in re.findall(r"(?<![\w-])(--?[a-z][a-z0-9-]*)", line.removeprefix(name)):
            assert flag in known, line


def messages() -> Iterator[str]:
    """All literal parts of the texts in the sources."""
    for folder in SOURCES:
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def test_the_explained_messages_exist() -> None:
    page = (DOCS / "errors.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    texts = list(messages())
    assert len(quoted) > 10
    assert [words for words in quoted if not any(words in text for text in texts)] == []
