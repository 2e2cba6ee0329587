import numpy as np

from disa.calibration.measurement.isotonic import falling


def test_the_nearest_values_that_fall() -> None:
    np.testing.assert_allclose(falling(np.array([3.0, 1, 2, 2, 0])), [3, 5 / 3, 5 / 3, 5 / 3, 0])
    np.testing.assert_allclose(falling(np.array([1.0, 2, 3])), [2, 2, 2])
