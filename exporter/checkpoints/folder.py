"""Checkpoint folders, and indexes of models that are split into several files."""

import json
import re
from pathlib import Path
from typing import Any

from ...errors import DisaError
from ...files import read_text
from .tensor_names import looks_averaged

MAX_INDEX_BYTES = 16 << 20
MAX_FILES = 1024
TOKEN = re.compile(r"[\w.\-]{1,200}")

TRAINING = "checkpoint-last.pth"
# Names used by transformers, diffusers, accelerate, and the official training code of MAR.
WEIGHTS = (
    "model.safetensors.index.json",
    "model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "diffusion_pytorch_model.bin",
    "pytorch_model.pt",
    TRAINING,
)
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
# DeepSpeed's file with the complete weights of a data-parallel run.
DEEPSPEED_STATES = "mp_rank_00_model_states.pt"


def weights_in_folder(folder: Path) -> Path:
    """Find the file or index with the weights in a folder of a known layout.

    Raises:
        DisaError: there is none, or there are, or may be, averaged weights beside it.
    """
    found = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    found = found or _deepspeed(folder)
    if found is not None and found.name != TRAINING and (folder / TRAINING).is_file():
        raise DisaError(
            f"{folder}: it has both {found.name} and {TRAINING}, which usually has the averaged "
            "weights: name the file to export instead of this folder"
        )
    averages = _averages(folder)
    registered = sorted(path.name for path in folder.glob("custom_checkpoint_*.pkl"))
    if found is not None and not averages and not registered:
        return found
    if averages:
        names = ", ".join(path.name[:60] for path in averages[:4])
        raise DisaError(
            f"{folder}: it has averaged weights ({names}), which evaluation uses: name the file "
            "or folder to export instead of this folder"
        )
    if registered:
        raise DisaError(
            f"{folder}: accelerate's file {registered[0]} has objects registered by the training "
            "code, perhaps averaged weights: name that file, or the file with the weights, instead"
        )
    raise DisaError(
        f"{folder}: it is a folder without {WEIGHTS[1]} or another known file of "
        "weights: name the file in it"
    )


def _averages(folder: Path) -> list[Path]:
    """Files with weights, and folders, whose names indicate an average."""
    return [
        path
        for path in sorted(folder.iterdir())
        if looks_averaged(path.stem) and (path.suffix in SUFFIXES or path.is_dir())
    ]


def _deepspeed(folder: Path) -> Path | None:
    """DeepSpeed's file with the complete weights; stage 3 splits every tensor over several
    files."""
    places = [folder, folder / "pytorch_model"]
    latest = folder / "latest"
    if latest.is_file():
        name = read_text(latest, 1 << 10).strip()
        if not TOKEN.fullmatch(name) or name in {".", ".."}:
            raise DisaError(f"{latest}: it does not contain the name of a folder beside it")
        places.insert(0, folder / name)
    for place in places:
        if (place / DEEPSPEED_STATES).is_file():
            return place / DEEPSPEED_STATES
        if any(place.glob("zero_pp_rank_*_model_states.pt")):
            raise DisaError(
                f"{place}: DeepSpeed split every tensor over several files: join them with "
                "its zero_to_fp32.py, and use the result"
            )
    return None


def read_index(index: Path) -> list[Path]:
    """The files that an index lists, all in its folder.

    Raises:
        DisaError: the index is damaged, or a file is missing or outside the folder.
    """
    weight_map = _weight_map(index)
    files = [index.parent / name for name in sorted(set(weight_map.values()))]
    if len(files) > MAX_FILES:
        raise DisaError(f"{index}: it lists {len(files)} files: no model has so many")
    for path in files:
        if not path.is_file():
            raise DisaError(
                f"{index}: it lists {path.name}, which is not beside it: fetch all files"
            )
    return files


def listed_tensors(index: Path) -> dict[str, str]:
    """The file of each tensor that an index lists."""
    return _weight_map(index)


def _weight_map(index: Path) -> dict[str, str]:
    try:
        document: Any = json.loads(read_text(index, MAX_INDEX_BYTES))
    except (ValueError, RecursionError) as error:
        raise DisaError(f"{index}: it is not valid JSON: fetch it again") from error
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise DisaError(f"{index}: it has no weight_map with the file of each tensor")
    for name in weight_map.values():
        if not isinstance(name, str) or not _is_plain_name(name):
            raise DisaError(
                f"{index}: it refers to {str(name)[:80]!r}, but only files beside it are opened"
            )
    return weight_map


def _is_plain_name(name: str) -> bool:
    return name not in {"", ".", ".."} and name.isprintable() and not set(name) & set("/\\\0")
