"""Models by name, against a server that answers as the hub does."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from disa.errors import DisaError
from disa.hub import HubName, fetch_checkpoint, hub_origin

COMMIT, OLD = "a" * 40, "b" * 40
REVISIONS = {"main": COMMIT, COMMIT: COMMIT, "v1": OLD, OLD: OLD, "refs%2Fpr%2F1": OLD}
PATIENCE = {"HF_HUB_ETAG_TIMEOUT": "60", "HF_HUB_DOWNLOAD_TIMEOUT": "60"}
"""Seconds, for a machine that is busy."""
QUICK = ["--iterations", "4", "--steps", "4:2", "--engine", "cpu", "--num", "2"]


class Hub(ThreadingHTTPServer):
    """Repositories by name: files by name. `asked` has what was downloaded."""

    def __init__(self, repositories: dict[str, dict[str, bytes]]) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.repositories, self.asked = repositories, []
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Answers(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = self.path.partition("?")[0].strip("/").split("/")
        if path[0] == "api":
            repo = "/".join(path[2:4])
            kind, revision = path[4:6] if len(path) > 5 else ("", "main")
            files = self.server.repositories.get(repo)
            commit = REVISIONS.get(revision)
            if files is None or commit is None:
                return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
            if kind == "tree":
                content: Any = [
                    {"type": "file", "path": name, "size": len(data), "oid": commit}
                    for name, data in files.items()
                ]
            else:
                siblings = [{"rfilename": name} for name in files]
                content = {"id": repo, "sha": commit, "siblings": siblings}
            return self._send(200, json.dumps(content).encode(), {}, body)
        repo, revision, name = "/".join(path[:2]), path[3], "/".join(path[4:])
        data = self.server.repositories.get(repo, {}).get(name)
        if data is None or revision not in REVISIONS:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, body)
        if body:
            self.server.asked.append(name)
        tag = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": REVISIONS[revision]}
        return self._send(200, data, tag, body)

    def _send(self, code: int, data: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)


@pytest.fixture
def hub(pixel_plan: Path, pixel_checkpoint: Path) -> Iterator[Hub]:
    plan = pixel_plan.read_bytes()
    server = Hub(
        {
            "org/plans": {"README.md": b"#", "tiny.plan": plan},
            "org/many": {"a.plan": plan, "b.plan": plan},
            "org/checkpoint": {"pixels.pth": pixel_checkpoint.read_bytes(), "photo.png": b"1"},
            "org/both": {"m.safetensors": b"s", "m.bin": b"b", "config.json": b"{}", "x.pt": b"p"},
            "org/trainer": {
                "m.pth": b"p",
                "training_args.bin": b"t",
                "old/training_args.bin": b"t",
                "optimizer.pt": b"o",
                "config.json": b"{}",
            },
        }
    )
    yield server
    server.shutdown()


def command(hub: Hub, home: Path, name: str, *arguments: object) -> "subprocess.CompletedProcess":
    """Run a command in a process of its own: the library reads its settings when imported."""
    port = hub.server_address[1]
    settings = {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(home), **PATIENCE}
    code = f"from disa.commands.{name} import main; main(prog_name='disa-{name}')"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
    )


def test_a_plan_is_fetched_once_and_its_commit_recorded(hub: Hub, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = command(hub, tmp_path, "run", "hf://org/plans", "-o", out, *QUICK)
    assert done.returncode == 0, done.stderr
    record = json.loads((out / "run.json").read_text())
    assert record["plan_source"] == f"hf://org/plans@{COMMIT}/tiny.plan"
    old = command(hub, tmp_path, "run", "hf://org/plans@v1/tiny.plan", "-o", out, *QUICK)
    assert "2 images exist already" in old.stdout
    assert json.loads((out / "run.json").read_text())["plan_source"].split("@")[1][:40] == OLD
    assert hub.asked == ["tiny.plan"]  # the same bytes at both commits


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("hf://org/many", "contains a.plan, b.plan"),
        ("hf://org/nothing", "cannot be fetched"),
        ("hf://org/plans@v9/tiny.plan", "cannot be fetched"),
        ("hf://org", "is not a model name"),
    ],
)
def test_names_that_are_nothing(name: str, told: str, hub: Hub, tmp_path: Path) -> None:
    done = command(hub, tmp_path, "run", name, "-o", tmp_path / "out", *QUICK)
    assert done.returncode == 1
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert hub.asked == []


def test_a_checkpoint_is_exported(hub: Hub, tmp_path: Path) -> None:
    plan = tmp_path / "tiny.plan"
    name = "hf://org/checkpoint/pixels.pth"
    done = command(hub, tmp_path, "export", name, "-o", plan, "--no-check")
    assert done.returncode == 0, done.stderr
    from disa.engines.plan.plan import Plan

    with Plan.open(plan) as opened:
        source = opened.manifest.raw["source"]
    assert source["hub"] == f"hf://org/checkpoint@{COMMIT}/pixels.pth"
    assert hub.asked == ["pixels.pth"]
    wrong = command(hub, tmp_path, "export", "hf://org/checkpoint/other.pth", "-o", plan)
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("disa-export: hf://org/checkpoint/other.pth cannot be fetched")


@pytest.mark.parametrize(
    ("repo", "fetched"),
    [
        ("org/both", ["config.json", "m.safetensors"]),
        # What a trainer writes beside the weights is none.
        ("org/trainer", ["config.json", "m.pth"]),
    ],
)
def test_one_form_of_the_weights_is_fetched(
    repo: str, fetched: list[str], hub: Hub, tmp_path: Path
) -> None:
    code = f"from disa.hub import fetch_checkpoint; print(fetch_checkpoint('hf://{repo}'))"
    port = hub.server_address[1]
    settings = {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(tmp_path), **PATIENCE}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=True,
    )
    folder = Path(done.stdout.strip().splitlines()[-1])
    assert sorted(path.name for path in folder.iterdir()) == fetched
    assert sorted(hub.asked) == fetched
    weights = fetched[-1]
    assert hub_origin(folder / weights) == f"hf://{repo}@{COMMIT}/{weights}"
    assert hub_origin(tmp_path / "m.safetensors") is None


@pytest.mark.parametrize(
    ("revision", "file", "text"),
    [
        ("refs/pr/1", None, "hf://a/b@refs/pr/1"),
        ("refs/pr/12", "c/d.plan", "hf://a/b@refs/pr/12/c/d.plan"),
        ("refs/convert/parquet", "c.plan", "hf://a/b@refs/convert/parquet/c.plan"),
        ("feature/new", None, "hf://a/b@feature%2Fnew"),
        ("feature", "new", "hf://a/b@feature/new"),
        ("refs", "heads/main", "hf://a/b@refs/heads/main"),
    ],
)
def test_revisions_with_slashes(revision: str, file: str | None, text: str) -> None:
    name = HubName("a/b", revision, file)
    assert HubName.parse(text) == name
    assert str(name) == text


def test_a_plan_of_a_pull_request(hub: Hub, tmp_path: Path) -> None:
    name = "hf://org/plans@refs/pr/1"
    done = command(hub, tmp_path, "run", name, "-o", tmp_path / "out", *QUICK)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["plan_source"] == f"hf://org/plans@{OLD}/tiny.plan"


def test_names() -> None:
    for text in ("hf://a/b", "hf://a/b@v1", "hf://a/b/c/d.plan", "hf://a/b@v1/c.plan"):
        assert str(HubName.parse(text)) == text
    for text in ("hf://", "hf://a", "hf:///b", "hf://a/b@/c", "hf://a b/c"):
        with pytest.raises(DisaError, match="is not a model name"):
            HubName.parse(text)
    with pytest.raises(DisaError):
        fetch_checkpoint("hf://x")
