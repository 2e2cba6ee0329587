import numpy as np
import pytest

from disa.calibration.quantization.graph_session import scales_of
from disa.calibration.quantization.ranges import Magnitudes
from disa.errors import DisaError


def counted(*arrays: object) -> Magnitudes:
    magnitudes = Magnitudes()
    for array in arrays:
        magnitudes.add(np.asarray(array, np.float32))
    return magnitudes


def squared_error(values: np.ndarray, largest: float) -> float:
    step = largest / 127
    return float(np.square(np.clip(np.round(values / step), -127, 127) * step - values).mean())


def test_the_largest_magnitude_and_all_values_are_counted() -> None:
    found = counted([1.0, -3.0], [[2.0], [0.0]])
    assert found.largest == 3.0
    assert found.counts.sum() == 4
    assert not counted([0.0]).seen
    assert counted([]).integer_range() == 1.0


def test_an_even_distribution_is_not_clipped() -> None:
    assert counted(np.linspace(-5, 5, 10_001)).integer_range() == 5.0


@pytest.mark.parametrize("kind", ["normal", "heavy", "outlier", "gelu"])
def test_the_range_has_the_least_squared_error(kind: str) -> None:
    rng = np.random.default_rng(1)
    values = rng.standard_normal(100_000)
    if kind == "heavy":
        values = values**3
    elif kind == "outlier":
        values[7] = 60
    elif kind == "gelu":
        values = np.where(values > 0, 3 * values, 0.1 * values)
    chosen = counted(values * 1e-3).integer_range() / 1e-3
    tried = np.geomspace(0.05, 1, 200) * np.abs(values).max()
    best = min(squared_error(values, largest) for largest in tried)
    assert squared_error(values, chosen) < 1.05 * best
    if kind != "gelu":
        assert chosen < 0.9 * np.abs(values).max()


def test_parts_may_be_counted_in_any_order() -> None:
    values = np.random.default_rng(2).standard_normal(1000)
    assert counted(values).integer_range() == counted(values[500:], values[:500]).integer_range()


def test_scales() -> None:
    found = {"x": counted([2.0, -4.0]), "nothing": counted([0.0])}
    assert scales_of(found, 448.0, False, "head") == {"x": 4 / 448, "nothing": 1 / 448}
    with pytest.raises(DisaError, match="x in the graph head was not finite"):
        scales_of({"x": counted([1.0, np.nan])}, 127.0, True, "head")
