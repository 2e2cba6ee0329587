"""Arrays on a device, with the host's memory for the device."""

import gc

import numpy as np
import pytest

from disa.engines import device_array
from disa.engines.device_array import DeviceArray
from disa.errors import DisaError

DEVICE = ("cpu", 0)


def numbers(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
@pytest.mark.parametrize("shape", [(3,), (4, 3, 2), (0, 5), (2, 0), (1, 1)])
def test_an_array_comes_back_as_it_went(shape: tuple[int, ...], dtype: type) -> None:
    host = numbers(*shape, dtype=dtype)
    array = DeviceArray.copied(host, DEVICE)
    assert (array.shape, array.dtype, len(array)) == (shape, dtype, shape[0])
    np.testing.assert_array_equal(np.asarray(array), host)
    assert np.asarray(array).dtype == dtype


def test_copies_are_independent() -> None:
    host = numbers(3)
    array = DeviceArray.copied(host, DEVICE)
    host[:] = -1
    back = np.asarray(array)
    back[:] = -2
    np.testing.assert_array_equal(np.asarray(array), numbers(3))


def test_slices_are_views() -> None:
    array = DeviceArray.copied(numbers(5, 2), DEVICE)
    part = array[1:4]
    part[0:2] = np.full((2, 2), -1, np.float32)
    expected = numbers(5, 2)
    expected[1:3] = -1
    np.testing.assert_array_equal(np.asarray(array), expected)
    np.testing.assert_array_equal(np.asarray(part), expected[1:4])
    for index in (slice(None), slice(-2, None), slice(3, 1), slice(7, 9), 0, -1):
        np.testing.assert_array_equal(np.asarray(array[index]), expected[index])


def test_a_view_keeps_its_memory() -> None:
    view = DeviceArray.copied(numbers(1000), DEVICE)[10:20].reshape(5, 2)
    gc.collect()
    DeviceArray.copied(np.full(1000, -1, np.float32), DEVICE)
    np.testing.assert_array_equal(np.asarray(view), numbers(1000)[10:20].reshape(5, 2))


def test_parts_are_set_from_other_arrays_on_the_device() -> None:
    array = DeviceArray.empty((4, 3), np.float32, DEVICE)
    array[:] = DeviceArray.copied(numbers(2, 2, 3), DEVICE).reshape(4, 3)
    array[2] = array[0]
    array[4:] = numbers(0, 3)
    np.testing.assert_array_equal(np.asarray(array), numbers(4, 3)[[0, 1, 0, 3]])


def test_reshape_is_a_view() -> None:
    array = DeviceArray.copied(numbers(6, 2), DEVICE)
    view = array.reshape((3, -1))
    assert view.shape == (3, 4)
    view[1] = np.zeros(4, np.float32)
    expected = numbers(6, 2)
    expected[2:4] = 0
    np.testing.assert_array_equal(np.asarray(array), expected)
    assert array.reshape(-1).shape == (12,)
    assert array[0:0].reshape(0, 7).shape == (0, 7)
    for shape in [(5, 2), (-1, 5), (-2, -6)]:
        with pytest.raises(DisaError, match="cannot be given the shape"):
            array.reshape(*shape)


def test_what_does_not_fit_is_refused() -> None:
    array = DeviceArray.empty((4, 3), np.float32, DEVICE)
    for values in (numbers(2, 2), numbers(2, 3, dtype=np.int64), numbers(2, 3).astype(np.float64)):
        with pytest.raises(DisaError, match="cannot be set to an array of"):
            array[0:2] = values
    with pytest.raises(DisaError, match="neighbouring rows only"):
        array[::2]
    with pytest.raises(IndexError):
        array[4]


def test_nothing_is_kept_that_nobody_uses() -> None:
    array = DeviceArray.copied(numbers(8), DEVICE)
    for i in range(8):
        np.asarray(array[i : i + 1])
        array[i : i + 1].value  # noqa: B018
    del array
    gc.collect()
    assert device_array._lent == {}


def test_it_speaks_dlpack() -> None:
    array = DeviceArray.copied(numbers(3, 2), DEVICE)
    np.testing.assert_array_equal(np.from_dlpack(array[1:]), numbers(3, 2)[1:])
