"""Load the obstore library, also in forked processes, and stop its threads when a process exits.

obstore runs its requests in threads, which do not survive a fork: in the child, its requests would
wait for ever. A loaded library starts these threads only once. So a child of a process that has
used obstore loads a second copy of the library, which has state of its own.

obstore's threads deliver results by calling Python. If the interpreter ends meanwhile, Python
before 3.14 ends such a thread in a way that aborts the process. So `_stop_workers` blocks the
threads first.

Tested in tests/storage/engines/test_obstore.py.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import Callable
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader
from importlib.util import find_spec, module_from_spec, spec_from_loader
from pathlib import Path
from shutil import copyfileobj
from typing import Any, NamedTuple
from weakref import WeakSet

from npstream._core.log import log

__all__ = ["ForkError", "Library", "is_installed", "is_stopped", "load_library", "register_loop"]


class Library(NamedTuple):
    """The functions and classes of obstore that npstream uses.

    Attributes
    ----------
    get_async, head_async, put_async : callable
    stores
        The module with the classes of stores.
    """

    get_async: Callable[..., Any]
    head_async: Callable[..., Any]
    put_async: Callable[..., Any]
    stores: Any


class ForkError(Exception):
    """obstore cannot be loaded in a process that was forked from one that uses it."""


_libraries: dict[int, Library] = {}
"""The library of this process, by process id; a parent's entry stays after a fork."""

_users: set[int] = set()
"""The ids of the processes that began to load obstore: this process, and its parents."""


_stopped: set[int] = set()
"""The id of this process if `_stop_workers` was called; a parent's entry stays after a fork."""

_traps: list[Any] = []
"""The uploads that `_stop_workers` began, which must not be garbage-collected."""

_loops: WeakSet[asyncio.AbstractEventLoop] = WeakSet()
"""The event loops that await results of obstore."""

_DRAIN_ROUNDS = 10
"""Iterations of an event loop to wait for: the handling of a result takes a few."""

_THREAD_NAME = "tokio-rt-worker"

_STOP_TIMEOUT = 1.0
"""Seconds to wait for each thread.

There may be fewer threads than `_max_workers` returns, so a wait without a limit might never end.
"""


def is_installed() -> bool:
    """Return True if obstore is installed."""
    return find_spec("obstore") is not None


def load_library() -> Library:
    """Return obstore for this process.

    Raises
    ------
    ForkError
        If a parent of this process has used obstore, and the system cannot load a second copy.
    """
    pid = os.getpid()
    if (library := _libraries.get(pid)) is not None:
        return library
    is_child_of_user = bool(_users - {pid})
    # Add the process before the import. A child that is forked during the import inherits a
    # locked import lock, so it must not import obstore.
    _users.add(pid)
    if is_child_of_user:
        library = _load_copy()
    else:
        package, stores = import_module("obstore"), import_module("obstore.store")
        library = Library(package.get_async, package.head_async, package.put_async, stores)
    if not _libraries:  # a forked process inherits the registration
        atexit.register(_stop_workers)
    return _libraries.setdefault(pid, library)


def is_stopped() -> bool:
    """Return True if this process exits, so that obstore sends no more requests."""
    return os.getpid() in _stopped


def register_loop() -> None:
    """Register the running event loop, which awaits results of obstore."""
    _loops.add(asyncio.get_running_loop())


def _stop_workers() -> None:
    """Block the threads of obstore for ever, so that none of them calls Python again."""
    pid = os.getpid()
    if (library := _libraries.get(pid)) is None:
        return
    _stopped.add(pid)
    entered, forever = threading.Semaphore(0), threading.Lock()
    forever.acquire()
    store, count = library.stores.MemoryStore(), _max_workers()

    async def start() -> None:
        for _ in range(count):
            # A thread of obstore iterates over the body, and so calls `_Trap.__next__`.
            trap = _Trap(entered, forever)
            _traps.append(library.put_async(store, "trap", trap, use_multipart=True))

    try:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(start())
        loop.close()
        for _ in range(count):
            if not entered.acquire(timeout=_STOP_TIMEOUT):
                break
        _drain_loops()
    except Exception as error:  # the process exits all the same
        log("the threads of obstore were not blocked at exit: %s", error)


def _drain_loops() -> None:
    """Wait until the event loops have handled the results that had arrived.

    The loops call obstore, which calls Python. So the interpreter could end the loops' threads in
    the same way as those of obstore.
    """
    for loop in [loop for loop in _loops if loop.is_running()]:
        for _ in range(_DRAIN_ROUNDS):
            handled = threading.Event()
            loop.call_soon_threadsafe(handled.set)
            if not handled.wait(_STOP_TIMEOUT):
                break


class _Trap:
    """An iterator that never returns.

    Parameters
    ----------
    entered : Semaphore
        Counts the threads that do not return.
    forever : Lock
        A lock that is never released.
    """

    def __init__(self, entered: threading.Semaphore, forever: threading.Lock) -> None:
        self._entered, self._forever = entered, forever

    def __iter__(self) -> _Trap:
        return self

    def __next__(self) -> bytes:
        self._entered.release()
        self._forever.acquire()
        raise StopIteration


def _max_workers() -> int:
    """Return an upper bound of the number of threads that deliver results."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    names = [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]
    threads = names.count(_THREAD_NAME)
    return min(cores, threads) if names else cores


def _load_copy() -> Library:
    """Load a second copy of obstore's extension module.

    The system loads a library once for each file, so this needs a copy of the file. The copy is in
    memory, and its memory is freed when the process ends.
    """
    if not hasattr(os, "memfd_create"):
        raise ForkError("a process that had begun to use obstore was forked")
    source = _extension_file()
    descriptor = os.memfd_create("obstore")  # stays open: a traceback may read the file
    with source.open("rb") as file, os.fdopen(descriptor, "wb", closefd=False) as copy:
        copyfileobj(file, copy, 1 << 22)
    # The import system is not used: its locks may be held by a thread of the parent.
    loader = ExtensionFileLoader("obstore._obstore", f"/proc/self/fd/{descriptor}")
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    try:
        module: Any = module_from_spec(spec)
        loader.exec_module(module)
    except ImportError as error:
        raise ForkError(f"obstore cannot be loaded again: {error}") from error
    return Library(module.get_async, module.head_async, module.put_async, module._store)


def _extension_file() -> Path:
    """Return the file of obstore's extension module."""
    spec = find_spec("obstore")
    for folder in (spec.submodule_search_locations if spec else None) or ():
        for suffix in EXTENSION_SUFFIXES:
            if (file := Path(folder, f"_obstore{suffix}")).is_file():
                return file
    raise ForkError("the file of obstore was not found")
