"""Names and texts use the words of the field, one for each thing (CONTRIBUTING.md)."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = (
    *("exporter", "runtime", "engines", "calibration", "server"),
    *("src", "benchmarks", "demo", "docs"),
)
PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
WORDS = {
    "generate or sample an image": (
        r"\bdraws? (an? |the )?images?\b|\bdrawn images?\b|\bimages?( are| is)? drawn\b"
    ),
    "fix": r"\bmend(s|ed|ing)?\b",
    "unused": r"needless",
    "again": r"\banew\b",
    "untrusted": r"\bstrangers?\b",
    "observer, caller": r"\bwhoever\b",
}
"""The word to use, and what it replaces."""


def texts() -> list[Path]:
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.*")]
    files += [ROOT / page for page in PAGES]
    return sorted(
        path
        for path in files
        if path.suffix in {".py", ".md", ".js", ".html"} and "_build" not in path.parts
    )


@pytest.mark.parametrize("word", WORDS)
def test_one_word_for_each_thing(word: str) -> None:
    files = texts()
    assert len(files) > 200
    replaced = re.compile(WORDS[word], re.IGNORECASE)
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in files
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if replaced.search(line)
    ]
    assert not found, f"say {word!r}: " + "; ".join(found)
