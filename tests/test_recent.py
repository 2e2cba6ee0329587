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
