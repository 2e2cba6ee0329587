"""Without a driver every call fails inside CUDA, so arguments are what is tested here."""

import numpy as np
import pytest
from cuda.bindings import runtime

from disa.engines.gpu.device import CudaDevice, CudaError, present

NO_DRIVER = 35


@pytest.fixture
def device() -> CudaDevice:
    if int(runtime.cudaGetDeviceCount()[0]) != NO_DRIVER:
        pytest.fail("this test is for machines without a driver; run `make gpu-check` here")
    device = object.__new__(CudaDevice)
    device._cuda, device._pooled = runtime, True
    return device


def test_a_machine_without_a_driver_has_no_gpu() -> None:
    if int(runtime.cudaGetDeviceCount()[0]) == NO_DRIVER:
        assert present() is None
        with pytest.raises(CudaError, match="install or update the NVIDIA driver"):
            CudaDevice()


def test_a_machine_without_the_drivers_library_has_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(index: int) -> tuple[object, ...]:
        raise RuntimeError("Failed to dlopen libcuda.so.1")

    monkeypatch.setattr(runtime, "cudaSetDevice", fail)
    assert present() is None


CALLS = {
    "create_stream": (),
    "allocate": (16, 0),
    "free": (4096, 0),
    "allocate_host": (16,),
    "upload": (4096, np.zeros(4, np.float32), 0),
    "download": (np.zeros(4, np.float32), 4096, 0),
    "copy": (4096, 8192, 16, 0),
    "copy_rows": ((4096, 64), (8192, 32), 16, 4, 0),
    "clear": (4096, 16, 0),
    "synchronize": (0,),
    "create_event": (),
    "record": (runtime.cudaEvent_t(0), 0),
    "wait": (runtime.cudaEvent_t(0),),
    "elapsed": (runtime.cudaEvent_t(0), runtime.cudaEvent_t(0)),
    "begin_capture": (0,),
    "end_capture": (0,),
    "launch": (runtime.cudaGraphExec_t(0), 0),
    "destroy_graph": (runtime.cudaGraphExec_t(0),),
}


@pytest.mark.parametrize("call", CALLS)
def test_every_call_reaches_cuda(device: CudaDevice, call: str) -> None:
    with pytest.raises(CudaError) as raised:
        getattr(device, call)(*CALLS[call])
    assert raised.value.code == NO_DRIVER


def test_a_capture_is_abandoned_whatever_the_stream_did(device: CudaDevice) -> None:
    device.abandon_capture(0)
    assert int(runtime.cudaGetLastError()[0]) in (0, NO_DRIVER)


@pytest.mark.parametrize("call", ["allocate", "free"])
def test_devices_without_memory_pools(device: CudaDevice, call: str) -> None:
    device._pooled = False
    with pytest.raises(CudaError, match=r"cudaMalloc:|cudaFree:"):
        getattr(device, call)(*CALLS[call])


def test_running_out_of_memory_is_told() -> None:
    error = CudaError("cudaMallocAsync", 2, "cudaErrorMemoryAllocation")
    assert "use a smaller --batch-size" in str(error)
