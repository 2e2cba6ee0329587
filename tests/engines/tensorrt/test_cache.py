import os
import sys
from pathlib import Path

import pytest

from disa.cache_folder import cache_folder
from disa.engines.tensorrt.cache import EngineCache, cache_key, save, timing_cache


def test_an_engine_is_found_again(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "new" / "folder")
    key = cache_key({"a": 1})
    assert cache.find(key) is None
    cache.store(key, b"engine", {"seconds": 2.5})
    found = cache.find(key)
    assert found is not None
    assert (found[0].read_bytes(), found[1]) == (b"engine", {"seconds": 2.5})


def test_keys_differ_with_every_part() -> None:
    parts = {"graph": "a", "weights": ["b"], "profile": {"x": [1, 2]}}
    keys = [cache_key(parts)] + [cache_key({**parts, name: "other"}) for name in parts]
    assert len(set(keys)) == 4
    assert cache_key(dict(reversed(parts.items()))) == keys[0]


@pytest.mark.parametrize("damage", [b"enginf", b"engin", b""])
def test_a_damaged_engine_counts_as_absent(tmp_path: Path, damage: bytes) -> None:
    cache = EngineCache(tmp_path)
    cache.store("k", b"engine", {}).write_bytes(damage)
    assert cache.find("k") is None


@pytest.mark.parametrize("note", ["", "[]", "{}", '{"sha256": 1}', "null"])
def test_a_damaged_note_counts_as_absent(tmp_path: Path, note: str) -> None:
    cache = EngineCache(tmp_path)
    cache.store("k", b"engine", {})
    (tmp_path / "k.json").write_text(note)
    assert cache.find("k") is None


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path, limit=25)
    for age, key in enumerate("abc"):
        os.utime(cache.store(key, b"0123456789"[: 5 + age], {}), (age, age))
    assert cache.find("a") is not None
    cache.store("d", b"01234567", {})
    assert [key for key in "abcd" if cache.find(key)] == ["a", "c", "d"]
    assert not list(tmp_path.glob("b.*"))


def test_an_engine_larger_than_the_limit_is_kept_until_the_next(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path, limit=2)
    cache.store("k", b"engine", {})
    assert cache.find("k") is not None


def test_nothing_half_written_stays(tmp_path: Path) -> None:
    EngineCache(tmp_path).store("k", b"engine", {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["k.engine", "k.json"]


def test_where_caches_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISA_CACHE", "/somewhere")
    assert cache_folder() == Path("/somewhere")
    monkeypatch.delenv("DISA_CACHE")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/disa")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_folder() == Path("/home/me/.cache/disa")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_folder() == Path("/home/me/Library/Caches/disa")
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", "/local")
    assert cache_folder() == Path("/local/disa")


def test_timings_belong_to_a_version_and_a_gpu(cache: Path) -> None:
    path = timing_cache("tensorrt", "10.16", "NVIDIA L4/x")
    assert path == cache / "timing" / "tensorrt-10.16-NVIDIA_L4_x.cache"
    assert save(path, b"timings") == ""
    assert path.read_bytes() == b"timings"
    assert "cannot be written" in save(path / "no folder", b"")
