"""ONNX Runtime on a fake GPU, computing with its own CPU kernels.

The session behaves as the CUDA provider does where that is easy to get wrong: nothing is done
before somebody waits, a CUDA graph is captured after two runs of the work and replays what it
captured whatever is bound, and its scratch memory is where other outputs of the session may be.
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime
import pytest

from disa.engines.gpu.array import Stream
from disa.engines.ort.providers import CPU, Kind, Provider
from disa.engines.ort.session import PROVIDERS

from .gpu.fake_device import PATTERN, FakeDevice

NUMPY = {"tensor(float)": np.float32, "tensor(int64)": np.int64}


@dataclass(frozen=True)
class Place:
    """Where a tensor is."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


@dataclass
class FakeBinding:
    """See `onnxruntime.IOBinding`."""

    session: "FakeSession"
    inputs: dict[str, Place] = field(default_factory=dict)
    outputs: dict[str, Place | None] = field(default_factory=dict)
    made: dict[str, "FakeValue"] = field(default_factory=dict)

    def bind_input(
        self, name: str, kind: str, number: int, dtype: Any, shape: Sequence[int], address: int
    ) -> None:
        assert (kind, number) == ("cuda", 0)
        assert address % 256 == 0
        self.inputs[name] = Place(address, tuple(shape), np.dtype(dtype))

    def bind_output(
        self,
        name: str,
        kind: str,
        number: int,
        dtype: Any = None,
        shape: Sequence[int] | None = None,
        address: int | None = None,
    ) -> None:
        assert (kind, number) == ("cuda", 0)
        self.outputs[name] = None
        if address is not None and shape is not None:
            assert address % 256 == 0
            self.outputs[name] = Place(address, tuple(shape), np.dtype(dtype))

    def get_outputs(self) -> list["FakeValue"]:
        return [self.made[name] for name in self.outputs]


class FakeValue:
    """An OrtValue in the memory of a session."""

    def __init__(self, device: FakeDevice, place: Place) -> None:
        self.device, self.place = device, place

    def __del__(self) -> None:
        self.device.free(self.place.address, 0)

    def data_ptr(self) -> int:
        return self.place.address

    def shape(self) -> list[int]:
        return list(self.place.shape)

    def data_type(self) -> str:
        return next(name for name, dtype in NUMPY.items() if dtype == self.place.dtype)


class FakeSession(onnxruntime.InferenceSession):
    """A session whose provider is that of a GPU. `device` is set by `use_fake_gpu`.

    Attributes:
        refuses: message with which sessions that capture are refused.
        breaks: message with which capturing fails.
    """

    device: FakeDevice
    refuses = breaks = ""
    opened: list["FakeSession"]

    def __init__(self, *arguments: Any, capture: bool = False, **options: Any) -> None:
        if capture and self.refuses:
            raise RuntimeError(self.refuses)
        super().__init__(*arguments, **options)
        self.capture = capture
        self.captured: dict[int, tuple[dict[str, Place], dict[str, Place]]] = {}
        self.warm: set[Any] = set()
        self.replays = 0
        self.lent: weakref.WeakSet[FakeValue] = weakref.WeakSet()
        self.opened.append(self)

    def io_binding(self) -> Any:
        return FakeBinding(self)

    def run_with_iobinding(self, binding: Any, run_options: Any = None) -> None:
        assert run_options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
        number = int(run_options.get_run_config_entry("gpu_graph_id"))
        if number == -1:
            self._compute(binding.inputs, self._outputs(binding))
            return
        assert self.capture, "a session that was not told to capture"
        if number not in self.captured:
            self._capture(binding, number)
        for value in self.lent:
            place = value.place
            size = int(np.prod(place.shape)) * np.dtype(place.dtype).itemsize
            self.device.enqueue(lambda p=place, n=size: self._scribble(p, n))  # type: ignore[misc]
        self.replays += 1
        self._compute(*self.captured[number])

    def _scribble(self, place: Place, size: int) -> None:
        if self.device.regions[place.address].alive:
            self.device.bytes(place.address, size).fill(PATTERN)

    def _capture(self, binding: FakeBinding, number: int) -> None:
        if self.breaks:
            raise RuntimeError(self.breaks)
        shapes = tuple(place.shape for place in binding.inputs.values())
        assert shapes in self.warm, "memory is allocated while capturing"
        assert None not in binding.outputs.values(), "outputs of a CUDA graph need an address"
        work = dict(binding.inputs), {n: p for n, p in binding.outputs.items() if p}
        assert not {p.address for p in work[0].values()} & {p.address for p in work[1].values()}
        for _ in range(2):
            self._compute(*work)
        self.captured[number] = work

    def _outputs(self, binding: FakeBinding) -> dict[str, Place]:
        found = {}
        names = [output.name for output in self.get_outputs()]
        zeros = {n: np.zeros(p.shape, p.dtype) for n, p in binding.inputs.items()}
        results = dict(zip(names, super().run(names, zeros), strict=True))
        for name, given in binding.outputs.items():
            shape, dtype = results[name].shape, results[name].dtype
            if given is not None:
                assert (given.shape, given.dtype) == (shape, dtype)
                found[name] = given
                continue
            address = self.device.allocate(results[name].nbytes, 0)
            found[name] = Place(address, shape, dtype)
            binding.made[name] = FakeValue(self.device, found[name])
            self.lent.add(binding.made[name])
        self.warm.add(tuple(place.shape for place in binding.inputs.values()))
        return found

    def _compute(self, inputs: dict[str, Place], outputs: dict[str, Place]) -> None:
        def action() -> None:
            arrays = {n: self.device.array(p.address, p.shape, p.dtype) for n, p in inputs.items()}
            results = onnxruntime.capi.onnxruntime_inference_collection.Session.run(
                self, list(outputs), {name: array.copy() for name, array in arrays.items()}
            )
            for place, result in zip(outputs.values(), results, strict=True):
                self.device.array(place.address, place.shape, place.dtype)[...] = result

        self.device.enqueue(action)


def use_fake_gpu(monkeypatch: pytest.MonkeyPatch, **behaviour: str) -> type[FakeSession]:
    """Make an engine "device", which is "cuda" on a fake GPU; the class of its sessions."""
    gpu = FakeDevice()
    session = type("FakeSession", (FakeSession,), {"device": gpu, "opened": [], **behaviour})
    provider = Provider(
        CPU,
        arguments={"providers": [CPU]},
        stream=Stream(gpu),
        capturing={"providers": [CPU], "capture": True},
    )
    fake = Kind(lambda *_: provider, lambda _: True)
    monkeypatch.setattr("disa.engines.ort.session.PROVIDERS", {**PROVIDERS, "device": fake})
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    return session
