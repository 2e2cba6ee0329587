"""Mutated files for every reader of the runtime: taken, or refused in one sentence."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from disa.bench.report import read_record
from disa.exporter.checkpoints.tokenizer import build_tokenizer, read_tokenizer
from disa.runtime.families.conditions.labels import find_class, read_labels
from disa.runtime.families.conditions.prompt import (
    EncodedPrompt,
    PromptBatch,
    Tokenizer,
    read_prompts,
)
from disa.runtime.pipeline import Pipeline
from disa.runtime.replay.reference import RecordedRun
from disa.runtime.replay.registry import replay
from disa.runtime.sampling.schedule import read_schedule

from ..conftest import GOLDEN
from ..fuzzing import BINARY, MUTATIONS, TEXT, frugal, mutants, survives
from ..tiny_tokenizer import write_vocabulary

LABELS = "goldfish, Carassius auratus\nsports car\n\nTier, Tiger\nÅström 猫\n".encode()
PROMPTS = b'["a dog", {"prompt": "a cat", "n": 3}, "\\u00e9t\\u00e9 \\ud83d\\ude00"]'
PROMPT_LINES = b'{"prompt": "a dog"}\n"a cat"\n\n{"prompt": "two birds", "tag": [1, 2]}\n'
SCHEDULE = json.dumps(
    {"format": "disa-schedule", "version": 1, "steps": [50, 40, 30, 5], "made": {"a": [1.5]}}
).encode()
RECORD = json.dumps(
    {
        "format": 1,
        "variants": [
            {"engine": "cpu", "batch_size": 1, "iterations": 4, "options": {"steps": "50:5"}}
            | {"seconds_an_image": {"median": 1.25}}
        ],
        "machine": {"processor": "x"},
        "plan": {"name": "mar_b", "precision": "fp32"},
        "threads": 2,
        "engines": {"cpu": {"runs": "ONNX Runtime"}},
    }
).encode()


def labels(path: Path) -> None:
    names = read_labels(path)
    for name in names[:3]:
        survives(lambda name=name: find_class(name, len(names), names))


READERS: dict[str, tuple[bytes, Callable[[Path], object]]] = {
    "labels.txt": (LABELS, labels),
    "prompts.json": (PROMPTS, read_prompts),
    "prompts.jsonl": (PROMPT_LINES, read_prompts),
    "prompts.txt": (LABELS, read_prompts),
    "schedule.json": (SCHEDULE, read_schedule),
    "record.json": (RECORD, read_record),
}


@pytest.mark.parametrize("name", READERS)
def test_text_files(name: str, tmp_path: Path) -> None:
    data, read = READERS[name]
    path = tmp_path / name
    path.write_bytes(data)
    assert survives(lambda: read(path))
    with frugal():
        for mutant in mutants(data, TEXT, name):
            path.write_bytes(mutant)
            survives(lambda: read(path))


@pytest.fixture(scope="module")
def tokenizer_json(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return read_tokenizer(write_vocabulary(tmp_path_factory.mktemp("text")), 200)


def test_tokenizers(tokenizer_json: bytes) -> None:
    def use(data: bytes) -> None:
        tokenizer = Tokenizer(data, 200)
        prompts = [EncodedPrompt.of(tokenizer, prompt) for prompt in ("a dog and a cat", "")]
        PromptBatch.of_prompts(prompts, guided=True).check(200)

    assert survives(lambda: use(tokenizer_json))
    with frugal():
        for mutant in mutants(tokenizer_json, TEXT, "tokenizer"):
            survives(lambda mutant=mutant: use(mutant))


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_vocabularies(name: str, tmp_path: Path) -> None:
    folder = write_vocabulary(tmp_path / "text")
    data = (folder / name).read_bytes()
    with frugal():
        for mutant in mutants(data, TEXT, name):
            (folder / name).write_bytes(mutant)
            survives(lambda: build_tokenizer(folder))


@pytest.fixture(scope="module")
def small_reference() -> bytes:
    """A recorded run without its longest arrays, which mutations would hit alone."""
    arrays = dict(np.load(GOLDEN / "mar_patch2" / "linear_cfg.npz"))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{n: a if n == "meta" else a[:2] for n, a in arrays.items()})
    return buffer.getvalue()


def test_recorded_runs(small_reference: bytes, tmp_path: Path) -> None:
    """Every array of a mutated file is read."""
    path = tmp_path / "run.npz"

    def read() -> None:
        reference = RecordedRun(path)
        for name in sorted(reference.names - {"meta"}):
            survives(lambda name=name: reference[name])

    with frugal():
        for mutant in mutants(small_reference, BINARY, "npz"):
            path.write_bytes(mutant)
            survives(read)


def test_replays(golden_plan: Callable[..., Path], tmp_path: Path) -> None:
    """Forged arrays and options in files that are in order, through the whole replay."""
    pipe = Pipeline.from_plan(golden_plan("mar_patch2"), "cpu")
    source = GOLDEN / "mar_patch2" / "linear_cfg.npz"
    with zipfile.ZipFile(source) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    path = tmp_path / "run.npz"
    names = sorted(members)
    meta = json.dumps(json.loads(str(np.load(source)["meta"]))).encode()
    with frugal():
        for index, mutant in enumerate(mutants(meta, TEXT, "meta")):
            if index >= MUTATIONS // 10:
                break
            changed = dict(members)
            if index % 2:
                buffer = io.BytesIO()
                np.save(buffer, np.array(mutant.decode("utf-8", "replace")))
                changed["meta.npy"] = buffer.getvalue()
            else:
                name = names[index // 2 % len(names)]
                changed[name] = next(mutants(members[name], BINARY, f"{name} {index}"))
            with zipfile.ZipFile(path, "w") as archive:
                for name, content in changed.items():
                    archive.writestr(name, content)
            survives(lambda: replay(pipe, path))
