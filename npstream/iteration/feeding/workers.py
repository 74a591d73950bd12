"""Provide `TransformProcesses`, which apply transforms in worker processes.

Items and results are pickled into memory files. The files have no names, so a process that is
killed leaves nothing behind. The descriptor of a file goes through a socket. The bytes of arrays
are copied into the file once, and the other process maps them.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import signal
import socket
import struct
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from npstream._core.array_like import as_array
from npstream._core.optional import import_npstream_torch
from npstream.iteration.failures.record import UserError
from npstream.iteration.feeding.items import Transforms, transform_items
from npstream.iteration.pickling import require_importable

if TYPE_CHECKING:
    import threading

__all__ = ["TransformProcesses", "receive_value", "send_value"]

_ALIGNMENT = 64
"""Alignment, in bytes, of arrays in a memory file: a cache line."""

_NUMBER = struct.Struct("<q")

_STOP_SECONDS = 0.3
"""Seconds to wait for a process to end by itself, before it is killed."""


class TransformProcesses:
    """A pool of processes that apply transforms. Each call uses one process exclusively.

    Processes are started with the method "spawn", as threads of this process may hold locks.

    Parameters
    ----------
    transforms : sequence of (str, callable)
    count : int
        The number of processes.

    Raises
    ------
    RuntimeError
        In a worker of a DataLoader, which cannot start processes.
    TypeError
        If a new process could not import a transform.
    """

    def __init__(self, transforms: Transforms, count: int) -> None:
        import multiprocessing

        if multiprocessing.current_process().daemon:
            raise RuntimeError(
                f"transform_workers={count} in a worker of a DataLoader, which cannot start "
                "processes: leave out one of the two"
            )
        self._idle: SimpleQueue[_Process] = SimpleQueue()
        self._processes: list[_Process] = []
        self._is_closed = False
        try:
            for _ in range(count):
                process = _Process(_ImportableTransforms(transforms))
                self._processes.append(process)
                self._idle.put(process)
        except BaseException:
            self.close()
            raise

    def __call__(self, items: list[Any]) -> tuple[list[Any], Exception | None]:
        """Return the transformed items before the first failure, and its error."""
        process = self._idle.get()
        try:
            result: tuple[list[Any], Exception | None] = process.call(items)
            return result
        finally:
            self._idle.put(process)

    def close(self, threads: list[threading.Thread] | None = None) -> None:
        """End the processes; threads that wait for them get an error.

        `threads` is not used. `map_ahead` passes it to each of its `stop` functions.
        """
        if self._is_closed:
            return
        self._is_closed = True
        for process in self._processes:
            process.disconnect()
        for process in self._processes:
            process.end()


class _Process:
    """A worker process, and the socket to it."""

    def __init__(self, transforms: _ImportableTransforms) -> None:
        import multiprocessing

        self._socket, remote = socket.socketpair()
        try:
            self._process = multiprocessing.get_context("spawn").Process(
                target=_serve, args=(remote, transforms), name="npstream-transform", daemon=True
            )
            self._process.start()
        except BaseException:
            self._socket.close()
            raise
        finally:
            remote.close()

    def call(self, items: list[Any]) -> Any:
        try:
            send_value(self._socket, items)
            return receive_value(self._socket)
        except (EOFError, BrokenPipeError, ConnectionError):
            self._process.join(_STOP_SECONDS)
            raise RuntimeError(
                "a process of transform_workers= has ended, with the exit code "
                f"{self._process.exitcode}: it may have been killed because memory ran "
                "out; give fewer workers or smaller batches"
            ) from None

    def disconnect(self) -> None:
        """Let the process end, and let a thread that waits for it continue."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        """Wait for the process, and kill it if it is still in a transform."""
        self._process.join(_STOP_SECONDS)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        self._socket.close()


class _ImportableTransforms:
    """Transforms whose pickling raises TypeError if a new process could not import one of them."""

    def __init__(self, transforms: Transforms) -> None:
        self.transforms = list(transforms)

    def __getstate__(self) -> dict[str, Any]:
        for name, transform in self.transforms:
            require_importable(name, transform)
        return self.__dict__


def _serve(connection: socket.socket, importable: _ImportableTransforms) -> None:
    """Transform items until the other end of the connection is closed."""
    # Ctrl-C reaches all processes of a terminal. The parent process ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(EOFError, BrokenPipeError, ConnectionError):
        while True:
            items = receive_value(connection)
            results, error = transform_items(importable.transforms, items)
            if isinstance(error, UserError):
                error = _portable(error)
            try:
                send_value(connection, (results, error))
            except (BrokenPipeError, ConnectionError):
                return
            except Exception as cause:
                refusal = TypeError(
                    "the result of a transform cannot be sent from a process of "
                    f"transform_workers=: {cause}; return arrays, or give threads= instead"
                )
                send_value(connection, ([], UserError("transform=", refusal)))
            del items, results, error


def _portable(error: UserError) -> UserError:
    """Return an error that another process can unpickle, with its traceback as a note."""
    raised = error.error
    text = "".join(traceback.format_exception(raised))
    raised.add_note(f"in a process of transform_workers=:\n{text}")
    try:
        pickle.loads(pickle.dumps(raised))
    except Exception:  # an exception of a user may be of a class that cannot be pickled
        replacement = RuntimeError(f"{type(raised).__name__}: {raised}")
        replacement.add_note(f"in a process of transform_workers=:\n{text}")
        return UserError(error.name, replacement)
    return error


class _Pickler(pickle.Pickler):
    """Pickles tensors as arrays, whose bytes are not copied into the pickle."""

    def reducer_override(self, value: Any) -> Any:
        torch: Any = sys.modules.get("torch")
        if torch is not None and type(value) is torch.Tensor:
            return _to_tensor, (as_array(value),)
        return NotImplemented


def _to_tensor(array: Any) -> Any:
    return import_npstream_torch().to_tensor(array)


def send_value(connection: socket.socket, value: Any) -> None:
    """Send a value to the process at the other end of a Unix socket.

    Parameters
    ----------
    connection : socket
    value : Any
    """
    buffers: list[pickle.PickleBuffer] = []
    head = io.BytesIO()
    _Pickler(head, protocol=5, buffer_callback=buffers.append).dump(value)
    parts = [head.getbuffer(), *(buffer.raw() for buffer in buffers)]
    table = _NUMBER.pack(len(parts)) + b"".join(_NUMBER.pack(part.nbytes) for part in parts)
    total = _aligned(len(table)) + sum(_aligned(part.nbytes) for part in parts)
    descriptor = _memory_file(total)
    try:
        with mmap.mmap(descriptor, total) as memory:
            memory[: len(table)] = table
            begin = _aligned(len(table))
            for part in parts:
                memory[begin : begin + part.nbytes] = part
                begin += _aligned(part.nbytes)
        socket.send_fds(connection, [_NUMBER.pack(total)], [descriptor])
    finally:
        os.close(descriptor)


def receive_value(connection: socket.socket) -> Any:
    """Receive a value that `send_value` sent. Its arrays are views of the received memory.

    Parameters
    ----------
    connection : socket

    Raises
    ------
    EOFError
        If the other end is closed.
    """
    message, descriptors, _, _ = socket.recv_fds(connection, _NUMBER.size, 1)
    if not descriptors:
        raise EOFError
    try:
        (total,) = _NUMBER.unpack(message)
        memory = memoryview(mmap.mmap(descriptors[0], total))
    finally:
        os.close(descriptors[0])
    (count,) = _NUMBER.unpack_from(memory)
    begin = _aligned(_NUMBER.size * (1 + count))
    parts = []
    for number in range(count):
        (nbytes,) = _NUMBER.unpack_from(memory, _NUMBER.size * (1 + number))
        parts.append(memory[begin : begin + nbytes])
        begin += _aligned(nbytes)
    return pickle.loads(parts[0], buffers=parts[1:])


def _memory_file(nbytes: int) -> int:
    """Return the descriptor of a file without a name, which is in memory on Linux."""
    create: Callable[..., int] | None = getattr(os, "memfd_create", None)
    if create is not None:
        descriptor = create("npstream-transform")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    try:
        os.ftruncate(descriptor, nbytes)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT
