from benchmarks.official import rates


def test_every_precision_has_a_rate() -> None:
    found = rates.matrix_rates(threads=1, size=64)
    assert found.keys() == {"fp32", "bf16", "int8"}
    # Between a slow core and a thousand fast ones, in operations a second.
    assert all(1e7 < rate < 1e15 for rate in found.values())
