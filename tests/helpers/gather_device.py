"""A stand-in for a CUDA device that gathers rows from registered memory.

The stand-in does its work in order, but only when something waits for an event. A race on a real
device is an error here: a read of memory that is not registered any more, a copy from a buffer
that is used again, or a use of tensors before they have their values.
"""

from __future__ import annotations

import ctypes
import mmap
import threading

import torch
from npstream.torch.registry import RegistrationError

WRONG = 99
"""Value of all bytes of a tensor until the stand-in has done the copy."""

SHIFT = 1 << 50
"""Device addresses minus host addresses. A test fails if code mixes them up."""


class RegisteredMemory:
    """Registered pages, by the rules of CUDA."""

    def __init__(self, read=ctypes.string_at):
        self.pages, self.max_nbytes, self.registrations, self.error = {}, 0, 0, None
        self._read = read

    @property
    def nbytes(self):
        return sum(self.pages.values())

    def register(self, address, nbytes):
        if self.error is not None:
            raise RegistrationError(self.error)
        assert address % mmap.PAGESIZE == nbytes % mmap.PAGESIZE == 0 < nbytes
        for begin, size in self.pages.items():
            if address < begin + size and begin < address + nbytes:
                raise RegistrationError("CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED")
        self.pages[address] = nbytes
        self.registrations += 1
        self.max_nbytes = max(self.max_nbytes, self.nbytes)
        return address + SHIFT

    def unregister(self, address):
        del self.pages[address]

    def read(self, device_address, nbytes):
        address = device_address - SHIFT
        assert any(
            begin <= address and address + nbytes <= begin + size
            for begin, size in self.pages.items()
        ), "the device reads memory that is not registered"
        return self._read(address, nbytes)


class Event:
    """An event of the stand-in's stream."""

    def __init__(self, device, position):
        self._device, self._position = device, position

    def query(self):
        return self._device.position >= self._position

    def synchronize(self):
        self._device.run(self._position)


class GatherDevice:
    """The stand-in, with the methods of `npstream.torch.gather_columns.GatherBackend`."""

    def __init__(self, memory=None):
        self.device = torch.device("cpu", 0)
        self.memory = RegisteredMemory() if memory is None else memory
        self.work, self.position, self.gathered = [], 0, []
        self.reads, self.error, self.is_wrong = [], None, False
        self._pinned = []
        self._lock = threading.RLock()

    def run(self, stop):
        """Do the work up to a position."""
        with self._lock:
            while self.position < stop:
                self.work[self.position]()
                self.position += 1

    def _start(self, function):
        with self._lock:
            self.work.append(function)

    def pinned(self, nbytes):
        memory = torch.empty(nbytes, dtype=torch.uint8)
        self._pinned.append((memory.data_ptr(), memory.data_ptr() + nbytes, memory))
        return memory

    def send(self, sources):
        for source in sources:
            begin, end = source.data_ptr(), source.data_ptr() + source.nbytes
            assert not source.nbytes or any(a <= begin and end <= b for a, b, _ in self._pinned)
        copies = [torch.full_like(source, WRONG) for source in sources]
        for copy, source in zip(copies, sources, strict=True):
            self._start(lambda copy=copy, source=source: copy.copy_(source))
        return copies, self.record_event()

    def receive(self, copies, event):
        event.synchronize()

    def record_event(self):
        with self._lock:
            return Event(self, len(self.work))

    def gather(self, addresses, columns):
        if self.error is not None:
            raise self.error
        outputs = [
            torch.full((len(addresses), column.nbytes), WRONG, dtype=torch.uint8)
            for column in columns
        ]
        self.gathered.append([column.name for column in columns])
        for column, output in zip(columns, outputs, strict=True):
            self._start(lambda column=column, output=output: self._copy(addresses, column, output))
        return outputs

    def _copy(self, addresses, column, output):
        for row, address in enumerate(addresses.tolist()):
            value = self.memory.read(address + column.offset, column.nbytes)
            output[row] = torch.frombuffer(bytearray(value), dtype=torch.uint8)
        if self.is_wrong:
            output += 1
