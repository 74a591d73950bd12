"""Provide arrays, bytes and entries of an index that started processes map instead of copying.

A pickle for a process that multiprocessing starts has only a handle of the memory. So a worker of a
large dataset starts without a copy of the index. Other pickles have the values themselves.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, overload

import numpy as np

from npstream._core.fork import is_spawning
from npstream._core.typing import AnyArray, Int64

_Layout: TypeAlias = "list[tuple[str, np.dtype[Any], tuple[int, ...]]]"
"""The name, dtype and shape of each array in a file."""

MIN_SHARED_BYTES = 1 << 12
"""Fewer bytes are copied: a handle of shared memory takes a file descriptor of each process."""

_ALIGNMENT = 64
"""Alignment of the arrays, in bytes: a cache line."""


class SharedArrays:
    """Arrays in one file in memory, which the pickle for a started process shares.

    Parameters
    ----------
    arrays : mapping of str to ndarray
        They are moved to the file when they are first pickled for a started process.
    shares_writes : bool, default: False
        Whether processes see what others write. By default, they write to copies of their own.

    Examples
    --------
    >>> SharedArrays({"x": np.arange(3)})["x"]
    array([0, 1, 2])
    """

    def __init__(self, arrays: Mapping[str, AnyArray], *, shares_writes: bool = False) -> None:
        self._arrays, self._shares_writes = dict(arrays), shares_writes
        self._file: int | None = None

    def __getitem__(self, name: str) -> AnyArray:
        return self._arrays[name]

    def __reduce__(self) -> tuple[Any, ...]:
        if not is_spawning() or sum(a.nbytes for a in self._arrays.values()) < MIN_SHARED_BYTES:
            return SharedArrays, (self._arrays,)
        from multiprocessing.reduction import DupFd

        self.move_to_file()
        assert self._file is not None
        return _attach, (DupFd(self._file), self._layout, self._shares_writes)

    @property
    def _layout(self) -> _Layout:
        return [(name, array.dtype, array.shape) for name, array in self._arrays.items()]

    def move_to_file(self) -> None:
        """Move the arrays to a file without a name, which exists while a process has it open.

        Forked processes share its memory, too.
        """
        if self._file is not None:
            return
        if hasattr(os, "memfd_create"):
            file = os.memfd_create("npstream", os.MFD_CLOEXEC)
        else:
            import tempfile  # takes 10 ms

            with tempfile.TemporaryFile() as temporary:
                file = os.dup(temporary.fileno())
        os.ftruncate(file, sum(_aligned(array.nbytes) for array in self._arrays.values()))
        views = _map_file(file, self._layout, mmap.MAP_SHARED)
        for name, array in self._arrays.items():
            views[name][...] = array
        self._set_file(file, views)

    def _set_file(self, file: int, views: dict[str, AnyArray]) -> None:
        self._file, self._arrays = file, views
        weakref.finalize(self, os.close, file)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


def _map_file(file: int, layout: _Layout, flags: int) -> dict[str, AnyArray]:
    """Return the arrays in a file, which is mapped with these flags."""
    sizes = [math.prod(shape) * dtype.itemsize for _, dtype, shape in layout]
    memory = mmap.mmap(file, sum(map(_aligned, sizes)), flags)
    views, offset = {}, 0
    for (name, dtype, shape), nbytes in zip(layout, sizes, strict=True):
        views[name] = np.frombuffer(memory, dtype, math.prod(shape), offset).reshape(shape)
        offset += _aligned(nbytes)
    return views


def _attach(file: Any, layout: _Layout, shares_writes: bool) -> SharedArrays:
    """Return arrays over the file of another process."""
    arrays = SharedArrays({}, shares_writes=shares_writes)
    descriptor = file.detach()
    # Numba would compile its kernels again for read-only arrays. So the map is writable, and a page
    # that is written becomes a private copy.
    flags = mmap.MAP_SHARED if shares_writes else mmap.MAP_PRIVATE
    arrays._set_file(descriptor, _map_file(descriptor, layout, flags))
    return arrays


INDEX_ARRAYS = ("starts", "nbytes", "schema_ids", "compressed", "guide")
"""The attributes of an `npstream.formats.index.Index` that are arrays over its shards."""


def reduce_index(index: Any) -> tuple[Any, ...]:
    """Return what pickle and copy store of an `npstream.formats.index.Index`.

    Indexes that differ only in the names of columns share their arrays.
    """
    state = {name: getattr(index, name) for name in type(index).__slots__}
    if not is_spawning():
        return _restore, (type(index), {**state, "_shared": None})
    owner = index.original
    if owner._shared is None:
        owner._shared = SharedArrays({name: state[name] for name in INDEX_ARRAYS})
    for name in INDEX_ARRAYS:
        del state[name]
    return _restore, (type(index), {**state, "_shared": owner._shared})


def _restore(cls: type[Any], state: Mapping[str, Any]) -> Any:
    """Return an index with these attributes."""
    index = object.__new__(cls)
    for name, value in state.items():
        setattr(index, name, value)
    if index._shared is not None:
        for name in INDEX_ARRAYS:
            setattr(index, name, index._shared[name])
    return index


class SharedBytes:
    """Bytes that a started process maps instead of copying.

    Parameters
    ----------
    body : bytes

    Examples
    --------
    >>> SharedBytes(b"index")[1:3]
    b'nd'
    """

    def __init__(self, body: bytes) -> None:
        self._arrays = SharedArrays({"bytes": np.frombuffer(body, np.uint8)})

    def __len__(self) -> int:
        return len(self._arrays["bytes"])

    def __getitem__(self, span: slice) -> bytes:
        return self._arrays["bytes"][span].tobytes()


class SharedEntries(Sequence[dict[str, Any]]):
    """Shard entries of an ``index.json`` as text in `SharedArrays`; each access parses one.

    Parameters
    ----------
    arrays : SharedArrays
        The array ``text`` has the bytes of all entries, and ``ends`` the end of each.

    Examples
    --------
    >>> SharedEntries.of([{"samples": 3}, {"samples": 5}])[1]
    {'samples': 5}
    """

    def __init__(self, arrays: SharedArrays) -> None:
        self._arrays = arrays

    @classmethod
    def of(cls, entries: Sequence[dict[str, Any]]) -> SharedEntries:
        """Return the same entries; `entries` itself if it is shared already."""
        if isinstance(entries, SharedEntries):
            return entries
        texts = [json.dumps(entry, separators=(",", ":")).encode() for entry in entries]
        ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
        return cls(SharedArrays({"text": np.frombuffer(b"".join(texts), np.uint8), "ends": ends}))

    def __len__(self) -> int:
        return len(self._ends)

    @property
    def _ends(self) -> Int64:
        return self._arrays["ends"]

    @overload
    def __getitem__(self, shard: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, shard: slice) -> Sequence[dict[str, Any]]: ...

    def __getitem__(self, shard: int | slice) -> Any:
        if isinstance(shard, slice):
            return [self[k] for k in range(*shard.indices(len(self)))]
        shard = range(len(self))[shard]
        start = int(self._ends[shard - 1]) if shard else 0
        entry: dict[str, Any] = json.loads(
            self._arrays["text"][start : int(self._ends[shard])].tobytes()
        )
        return entry
