"""Provide `CudaGatherBackend`, whose kernels read memory of the host that CUDA has registered.

This module has not run on a GPU yet. Its calls are tested with a stand-in for the driver, and its
kernel with Triton's interpreter. `GatherPlacer` compares the first rows of each loop with those
that the processor reads.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from npstream._core.optional import import_optional
from npstream.torch.device import CudaBackend
from npstream.torch.gather_columns import GatherError
from npstream.torch.registry import RegistrationError

if TYPE_CHECKING:
    from npstream.torch.gather_columns import ColumnBytes
    from npstream.torch.registry import DeviceMemory

__all__ = ["CudaDriver", "CudaGatherBackend", "find_cuda_obstacle"]

_PORTABLE, _DEVICEMAP, _READ_ONLY = 1, 2, 8
"""Flags of ``cuMemHostRegister``: valid in all contexts, mapped for devices, and read-only."""


def find_cuda_obstacle() -> str | None:
    """Return why this process cannot gather with CUDA; None if no reason is known."""
    if torch.version.cuda is None:
        return "this build of torch has no CUDA"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install 'npstream[gpu]')"
    return None


class CudaDriver:
    """Registers memory of the host, by functions of the CUDA driver.

    torch offers functions of the CUDA runtime for this. But the runtime remembers the error of a
    failed registration. The next call of torch would raise this error, although that call succeeds.

    Parameters
    ----------
    device : int
        The number of the device.
    library : object, optional
        An object with the functions of the driver; by default ``libcuda.so.1``.

    Raises
    ------
    RegistrationError
        If the driver cannot be used.
    """

    def __init__(self, device: int, library: Any = None) -> None:
        if library is None:
            try:
                library = ctypes.CDLL("libcuda.so.1")
            except OSError as error:
                raise RegistrationError(f"the CUDA driver cannot be loaded: {error}") from error
        self._library = library
        self._context, handle = ctypes.c_void_p(), ctypes.c_int()
        self._call("cuInit", ctypes.c_uint(0))
        self._call("cuDeviceGet", ctypes.byref(handle), ctypes.c_int(device))
        # torch uses this context, too.
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), handle)

    def register(self, address: int, nbytes: int) -> int:
        """Register whole pages; return their address for the device."""
        pointer = ctypes.c_uint64()
        with self._current_context():
            flags = ctypes.c_uint(_PORTABLE | _DEVICEMAP | _READ_ONLY)
            begin = ctypes.c_void_p(address)
            self._call("cuMemHostRegister_v2", begin, ctypes.c_size_t(nbytes), flags)
            try:
                self._call(
                    "cuMemHostGetDevicePointer_v2", ctypes.byref(pointer), begin, ctypes.c_uint(0)
                )
            except BaseException:
                self._call("cuMemHostUnregister", begin)
                raise
        return pointer.value

    def unregister(self, address: int) -> None:
        """Unregister the pages that were registered at an address."""
        with self._current_context():
            self._call("cuMemHostUnregister", ctypes.c_void_p(address))

    @contextmanager
    def _current_context(self) -> Iterator[None]:
        """Make torch's context current during a block: in this thread, it may not be so yet."""
        self._call("cuCtxPushCurrent_v2", self._context)
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    def _call(self, name: str, *arguments: Any) -> None:
        """Call a function of the driver; raise RegistrationError if it fails."""
        code = getattr(self._library, name)(*arguments)
        if code:
            text = ctypes.c_char_p()
            self._library.cuGetErrorName(ctypes.c_int(code), ctypes.byref(text))
            reason = text.value.decode() if text.value else "an unknown error"
            raise RegistrationError(f"{name} returned {code} ({reason})")


class CudaGatherBackend(CudaBackend):
    """Copies to a CUDA device, and gathers from registered memory, on one side stream.

    Parameters
    ----------
    device : torch.device

    Attributes
    ----------
    memory : DeviceMemory
        Registers memory for the device.

    Raises
    ------
    RuntimeError
        As `CudaBackend` does, or if the driver cannot be used.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.memory: DeviceMemory = CudaDriver(self.device.index)

    def gather(self, addresses: torch.Tensor, columns: Sequence[ColumnBytes]) -> list[torch.Tensor]:
        """Start the copies of the values of some rows; return a tensor for each column."""
        with torch.cuda.stream(self._stream):
            outputs = [
                torch.empty(len(addresses), column.nbytes, dtype=torch.uint8, device=self.device)
                for column in columns
            ]
            try:
                kernels = import_optional("npstream.torch.gather_kernel", "triton", "gpu")
                for column, output in zip(columns, outputs, strict=True):
                    kernels.gather_values(addresses, column.offset, output)
            except Exception as error:
                raise GatherError(f"Triton failed: {type(error).__name__}: {error}") from error
        return outputs

    def record_event(self) -> Any:
        """Return an event that completes after all copies that were started so far."""
        with torch.cuda.stream(self._stream):
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(self._stream)
        return event
