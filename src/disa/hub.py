"""Models by name on the Hugging Face hub: hf://organisation/repository[@revision][/file].

As in the hub's own library, a revision may be refs/pr/NUMBER or refs/convert/NAME; a slash in any
other revision is written as %2F, since what follows a slash is a file.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .errors import DisaError, MissingDependency
from .optional import first_line

PREFIX = "hf://"
WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json")
CHECKPOINTS = ("*.pth", "*.pt", "*.ckpt")
TEXTS = ("*.json", "*.txt", "*.model")
NO_WEIGHTS = ("training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.bin", "scheduler.pt")
"""Files that trainers write beside the weights, with the suffixes of weights."""
_REFERENCE = re.compile(r"refs/(?:pr/\d+|convert/[\w\-]+)")
_NAME = re.compile(
    r"hf://(?P<repo>[\w.\-]+/[\w.\-]+)"
    rf"(?:@(?P<revision>{_REFERENCE.pattern}|(?:[\w.\-]|%2F)+))?(?:/(?P<file>[^\0]+))?"
)


@dataclass(frozen=True)
class HubName:
    """A file or a repository on the hub.

    Attributes:
        repo: organisation/repository.
        revision: branch, tag or commit; None for the newest.
        file: path in the repository; None for the whole repository.
    """

    repo: str
    revision: str | None = None
    file: str | None = None

    @classmethod
    def parse(cls, text: str) -> "HubName":
        """Parse hf://organisation/repository[@revision][/file].

        Raises:
            DisaError: the text does not have this form.
        """
        match = _NAME.fullmatch(text.rstrip("/"))
        if not match:
            raise DisaError(
                f"{text} is not a model name: give hf://organisation/repository, with @revision "
                "and /file if they are needed"
            )
        revision = match["revision"] and match["revision"].replace("%2F", "/")
        return cls(match["repo"], revision, match["file"])

    def __str__(self) -> str:
        revision = self.revision or ""
        if not _REFERENCE.fullmatch(revision):
            revision = revision.replace("/", "%2F")
        revision = f"@{revision}" if revision else ""
        return f"{PREFIX}{self.repo}{revision}{f'/{self.file}' if self.file else ''}"


def is_hub_name(text: str) -> bool:
    """Whether a text names something on the hub rather than a path."""
    return text.startswith(PREFIX)


def pin_plan(text: str) -> HubName:
    """Resolve a name to a plan file with its commit; nothing is downloaded.

    Raises:
        DisaError: there is no such plan, or the hub cannot be reached.
    """
    name = HubName.parse(text)
    hub = _library()
    with _fetching(name):
        info = hub.HfApi().model_info(name.repo, revision=name.revision)
        files = [sibling.rfilename for sibling in info.siblings or ()]
    plans = [file for file in files if file.endswith(".plan")]
    if name.file is None:
        if len(plans) != 1:
            held = ", ".join(plans[:5]) or "none"
            raise DisaError(
                f"{name} must contain one plan but contains {held}: add /FILE to choose one"
            )
        name = replace(name, file=plans[0])
    return replace(name, revision=info.sha)


def fetch_file(name: HubName) -> Path:
    """Fetch a file of a repository, from the local cache or from the hub.

    Raises:
        DisaError: there is no such file, or the hub cannot be reached.
    """
    hub = _library()
    with _fetching(name):
        return Path(hub.hf_hub_download(name.repo, name.file, revision=name.revision))


def fetch_checkpoint(text: str) -> Path:
    """Fetch a checkpoint: a file, or a folder with a repository's weights and related files.

    If a repository has weights as safetensors or .bin, only these are fetched; otherwise its
    PyTorch files.

    Raises:
        DisaError: the repository has no weights, or the hub cannot be reached.
    """
    name = HubName.parse(text)
    if name.file:
        return fetch_file(name)
    hub = _library()
    with _fetching(name):
        info = hub.HfApi().model_info(name.repo, revision=name.revision)
        files = [sibling.rfilename for sibling in info.siblings or ()]
        patterns = _patterns(files)
        if not patterns:
            raise DisaError(f"{name} contains no checkpoint: add /FILE to choose a file")
        folder = hub.snapshot_download(
            name.repo,
            revision=info.sha,
            allow_patterns=[*patterns, *TEXTS],
            ignore_patterns=[*NO_WEIGHTS, *(f"*/{file}" for file in NO_WEIGHTS)],
        )
    return Path(folder)


def _patterns(files: Sequence[str]) -> Sequence[str]:
    """Patterns of the files to fetch: one format of the weights, not all."""
    files = [file for file in files if file.rpartition("/")[2] not in NO_WEIGHTS]
    for patterns in (WEIGHTS[:2], WEIGHTS[2:], CHECKPOINTS):
        if any(file.endswith(patterns[0].lstrip("*")) for file in files):
            return patterns
    return [p for p in CHECKPOINTS if any(file.endswith(p.lstrip("*")) for file in files)]


def hub_origin(path: Path) -> str | None:
    """The name and commit of a file in the hub's cache; None for other files."""
    parts = path.absolute().parts
    for place, part in enumerate(parts[:-2]):
        if part.startswith("models--") and parts[place + 1] == "snapshots":
            repo = part.removeprefix("models--").replace("--", "/", 1)
            file = "/".join(parts[place + 3 :])
            return str(HubName(repo, parts[place + 2], file or None))
    return None


def _library() -> Any:
    # Turn off the library's usage reports.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingDependency("huggingface_hub", "hub") from error
    return huggingface_hub


@contextmanager
def _fetching(name: HubName) -> Iterator[None]:
    """Convert the library's exceptions to one sentence."""
    try:
        yield
    except DisaError:
        raise
    except Exception as error:  # errors of the library, of its HTTP client, and of the system
        raise DisaError(f"{name} cannot be fetched: {first_line(error)}") from error
