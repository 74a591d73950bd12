"""The calls of the CUDA driver, with a stand-in for its library. The tests need no CUDA."""

from __future__ import annotations

import ctypes
import importlib.util

import pytest

torch = pytest.importorskip("torch")
from npstream.torch.cuda_gather import CudaDriver, find_cuda_obstacle  # noqa: E402
from npstream.torch.registry import RegistrationError  # noqa: E402

CONTEXT = 0x1234


class Library:
    """The functions of ``libcuda.so.1`` that `CudaDriver` calls."""

    def __init__(self):
        self.calls, self.contexts, self.codes, self.names = [], [], {}, {801: b"NOT_SUPPORTED"}

    def __getattr__(self, name):
        if name.startswith("do_"):
            raise AttributeError(name)

        def call(*arguments):
            values = [getattr(argument, "value", None) for argument in arguments]
            self.calls.append((name, *(value for value in values if value is not None)))
            if code := self.codes.get(name, 0):
                return code
            getattr(self, f"do_{name}", lambda *arguments: None)(*arguments)
            return 0

        return call

    def do_cuDevicePrimaryCtxRetain(self, context, device):
        context._obj.value = CONTEXT

    def do_cuCtxPushCurrent_v2(self, context):
        self.contexts.append(context.value)

    def do_cuCtxPopCurrent_v2(self, context):
        context._obj.value = self.contexts.pop()

    def do_cuMemHostRegister_v2(self, address, nbytes, flags):
        assert self.contexts == [CONTEXT]
        assert isinstance(nbytes, ctypes.c_size_t)

    def do_cuMemHostGetDevicePointer_v2(self, pointer, address, flags):
        assert self.contexts == [CONTEXT]
        pointer._obj.value = address.value + (1 << 60)

    def do_cuMemHostUnregister(self, address):
        assert self.contexts == [CONTEXT]

    def do_cuGetErrorName(self, code, text):
        if code.value in self.names:
            text._obj.value = self.names[code.value]


@pytest.fixture
def library():
    return Library()


def test_memory_is_registered_for_reads_of_the_device(library):
    driver = CudaDriver(3, library)
    assert ("cuDeviceGet", 3) in library.calls
    library.calls.clear()
    address = 0x7F00_0000_1000
    assert driver.register(address, 8192) == address + (1 << 60)
    # Portable (1), mapped for devices (2) and only read (8).
    assert library.calls == [
        ("cuCtxPushCurrent_v2", CONTEXT),
        ("cuMemHostRegister_v2", address, 8192, 1 | 2 | 8),
        ("cuMemHostGetDevicePointer_v2", address, 0),
        ("cuCtxPopCurrent_v2",),
    ]
    driver.unregister(address)
    assert library.calls[-2] == ("cuMemHostUnregister", address)
    assert not library.contexts


@pytest.mark.parametrize("name", ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain"])
def test_a_driver_that_does_not_start_names_the_function(library, name):
    library.codes[name] = 801
    with pytest.raises(RegistrationError, match=rf"{name} returned 801 \(NOT_SUPPORTED\)"):
        CudaDriver(0, library)


def test_an_error_of_registration_restores_the_context(library):
    driver = CudaDriver(0, library)
    library.codes["cuMemHostRegister_v2"] = 802
    with pytest.raises(RegistrationError, match=r"cuMemHostRegister_v2 returned 802 \(an unknown"):
        driver.register(4096, 4096)
    assert not library.contexts
    assert "cuMemHostUnregister" not in {name for name, *_ in library.calls}


def test_memory_without_an_address_for_the_device_is_unregistered(library):
    driver = CudaDriver(0, library)
    library.codes["cuMemHostGetDevicePointer_v2"] = 801
    with pytest.raises(RegistrationError, match="cuMemHostGetDevicePointer_v2"):
        driver.register(4096, 4096)
    assert ("cuMemHostUnregister", 4096) in library.calls
    assert not library.contexts


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_machine_without_the_driver_says_so(monkeypatch):
    def fail(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", fail)
    with pytest.raises(RegistrationError, match=r"cannot be loaded: libcuda\.so\.1"):
        CudaDriver(0)


def test_obstacles_are_named(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    assert find_cuda_obstacle() == "this build of torch has no CUDA"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "npstream[gpu]" in find_cuda_obstacle()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert find_cuda_obstacle() is None
