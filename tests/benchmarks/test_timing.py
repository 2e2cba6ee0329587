from itertools import accumulate

from benchmarks.timing import least


def test_the_least_of_the_tries_without_the_first_call() -> None:
    calls = []
    readings = iter(accumulate([0, 3, 1, 2, 1, 5]))  # Tries of 3, 2 and 5 seconds.

    assert least(lambda: calls.append(None), lambda: next(readings), tries=3) == 2
    assert len(calls) == 4
