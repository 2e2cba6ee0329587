from disa.recent import Recent


def test_the_least_recently_used_entry_is_disposed_of() -> None:
    disposed: list[str] = []
    recent = Recent(2, disposed.append)
    made = []

    def make(name: str) -> str:
        made.append(name)
        return name

    for name in ("a", "b", "a", "c"):
        assert recent.get(name, lambda name=name: make(name)) == name  # type: ignore[misc]
    assert made == ["a", "b", "c"]
    assert disposed == ["b"]
    assert sorted(recent.values()) == ["a", "c"]


def test_entries_have_a_weight() -> None:
    disposed: list[str] = []
    recent = Recent(5, disposed.append, len)
    for name in ("aaa", "b", "c", "dd", "aaa"):
        assert recent.get(name, lambda name=name: name) == name  # type: ignore[misc]
    assert disposed == ["aaa", "b", "c"]
    assert sorted(recent.values()) == ["aaa", "dd"]
    assert recent.get("too heavy", lambda: "too heavy") == "too heavy"
    assert recent.values() == ["too heavy"]
