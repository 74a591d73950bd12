"""Zarr arrays and groups as a source, of versions 2 and 3 of the format."""

from __future__ import annotations

import asyncio
import errno
import functools
import os
import weakref
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar
from zipfile import BadZipFile, ZipFile

import numpy as np

from npstream._core.optional import import_optional
from npstream.conversion.arrays.source import ArraySource, StoredArray
from npstream.errors import FormatError, MissingDependencyError, StorageError
from npstream.storage.local import open_store

if TYPE_CHECKING:
    from npstream.conversion.files import FileList, SourceFile

__all__ = ["ZarrSource"]

_METADATA = ("zarr.json", ".zgroup", ".zarray")
"""Names of metadata files.

Version 3 has the first for groups and arrays. Version 2 has the second for groups, and the third
for arrays.
"""

_PURPOSE = "reading Zarr arrays"


class ZarrArray:
    """An array of Zarr."""

    def __init__(self, where: str, array: Any) -> None:
        self.where = where
        self._array = array
        self.dtype: np.dtype[Any] = np.dtype(array.dtype)
        self.shape: tuple[int, ...] = tuple(array.shape)
        stored = getattr(array, "shards", None) or array.chunks
        self.chunk: int = stored[0] if stored else 1
        self.ragged: np.dtype[Any] | None = None
        self.text = (
            "str" if self.dtype.kind in "UT" else "bytes" if self.dtype.kind == "S" else None
        )
        if self.dtype.hasobject and self.dtype.kind == "O":
            self.text, self.ragged = _object_type(array)

    def read(self, start: int, stop: int) -> Any:
        """Return rows."""
        with _zarr_errors(self.where):
            return np.asarray(self._array[start:stop])


def _object_type(array: Any) -> tuple[str | None, np.dtype[Any] | None]:
    """Return the attributes `text` and `ragged` for an array of objects.

    Version 2 of the format stores objects with a filter that names their type. Both results are
    None for other objects, such as pickles; `array_fields` refuses them.
    """
    for item in getattr(array, "filters", None) or ():
        codec = str(getattr(item, "codec_id", ""))
        if codec == "vlen-utf8":
            return "str", None
        if codec == "vlen-bytes":
            return "bytes", None
        if codec == "vlen-array":
            return None, np.dtype(item.dtype)
    return None, None


class ZarrSource(ArraySource):
    """An array of Zarr, or a group of arrays. Each array is a column.

    The option ``group`` is the path of the group or array to read; by default the root. The arrays
    of groups within the group have names such as ``"inner/x"``.
    """

    kind = "zarr"
    OPTIONS: ClassVar[tuple[str, ...]] = ("group",)
    column_hint = "[...], or a group of them with reader_options={'group': ...}"

    @classmethod
    def recognizes(cls, files: FileList) -> bool:
        """Return True for a directory with the metadata of an array or group, or ``*.zarr.zip``."""
        if files.root is None:
            return len(files.files) == 1 and files.files[0].name.endswith(".zarr.zip")
        if "zarr.json" in files.names():
            return True
        store = open_store(files.root, dict(files.options) or None, argument="source")
        # Listings leave out hidden files, so each file of version 2 needs a request. A remote
        # directory without the extension .zarr is taken to be no Zarr, to save the requests.
        is_likely = store.is_local or files.root.partition("?")[0].rstrip("/").endswith(".zarr")
        return is_likely and any(store.exist_many(_METADATA[1:]))

    def _named_arrays(self) -> Iterable[tuple[str, str, Mapping[str, StoredArray]]]:
        files = self.files
        if files.root is None and len(files.files) != 1:
            raise ValueError(
                f"{files.where}: Zarr arrays and groups are directories or zip files: give a "
                "single one"
            )
        zarr = _import_zarr()
        name = str(self.request.options.get("group", "")).strip("/")
        with _zarr_errors(files.where):
            item = zarr.open(_store(files), mode="r", path=name)
        if isinstance(item, zarr.Array):
            stem = name.rpartition("/")[2] or _stem(files.where)
            yield name, files.where, {stem: ZarrArray(files.where, item)}
            return
        with _zarr_errors(files.where):
            members = sorted(
                (path, value)
                for path, value in item.members(max_depth=None)
                if isinstance(value, zarr.Array)
            )
        arrays: dict[str, StoredArray] = {
            path: ZarrArray(f"{files.where}/{path}", value) for path, value in members
        }
        yield name, files.where, arrays


def _stem(where: str) -> str:
    name = os.path.basename(where.partition("?")[0].rstrip("/"))
    return name.removesuffix(".zip").removesuffix(".zarr") or "x"


def _import_zarr() -> Any:
    zarr = import_optional("zarr", "zarr", "sources", _PURPOSE)
    if not hasattr(zarr, "abc") and int(str(zarr.__version__).partition(".")[0]) < 3:
        raise MissingDependencyError(
            f"{_PURPOSE}, with zarr {zarr.__version__},", "zarr>=3", "sources"
        )
    return zarr


def _store(files: FileList) -> Any:
    """Return a store of Zarr that reads the files."""
    if files.root is None:
        return _remote_store_class()(_ZipMembers(files.files[0]))
    store = open_store(files.root, dict(files.options) or None, argument="source")
    return store.root if store.is_local else _remote_store_class()(store)


@contextmanager
def _zarr_errors(where: str) -> Iterator[None]:
    """Convert exceptions of Zarr to errors that name the array."""
    try:
        yield
    except (StorageError, MissingDependencyError):
        raise
    except (ValueError, TypeError, KeyError, RuntimeError, OSError, BadZipFile) as error:
        raise FormatError(f"{where}: cannot be read as Zarr: {error}") from error


class _ZipMembers:
    """The members of a zip file, with the methods of a store that `_RemoteFiles` needs.

    If all members are below one directory, such as ``x.zarr/``, this directory is the root.
    """

    def __init__(self, file: SourceFile) -> None:
        opened = file.open()
        weakref.finalize(self, opened.close)
        self._zip = ZipFile(opened)
        self._where = file.where
        paths = [info.filename for info in self._zip.infolist() if not info.is_dir()]
        folders = {path.partition("/")[0] + "/" for path in paths}
        is_inside = len(folders) == 1 and not any(name in paths for name in _METADATA)
        self._folder = folders.pop() if is_inside else ""

    def where(self, name: str) -> str:
        return f"{self._where}/{name}"

    def read(self, name: str) -> bytes:
        try:
            return self._zip.read(self._folder + name)
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name) from None

    def size(self, name: str) -> int:
        return len(self.read(name))

    def ranges(self, spans: Iterable[tuple[str, int, int]]) -> list[bytes]:
        return [self.read(name)[start : start + nbytes] for name, start, nbytes in spans]

    def exists(self, name: str) -> bool:
        return self._folder + name in self._zip.NameToInfo

    def names(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        for info in self._zip.infolist():
            if info.filename.startswith(self._folder + prefix) and not info.is_dir():
                yield info.filename[len(self._folder) :], info.file_size


@functools.cache
def _remote_store_class() -> Any:
    """Return the class of a read-only store of Zarr over a `RemoteStore`, or over a zip file."""
    abc = import_optional("zarr.abc.store", "zarr", "sources", _PURPOSE)
    return type("RemoteZarrStore", (_RemoteFiles, abc.Store), {"__init__": _init_store})


def _init_store(self: Any, store: Any) -> None:
    """Initialize a `RemoteZarrStore`, whose class exists only when zarr is imported."""
    super(type(self), self).__init__(read_only=True)
    self.store = store


class _RemoteFiles:
    """The methods of a Zarr store that reads the files below a URL, or the members of a zip file.

    `_remote_store_class` adds Zarr's base class, so that zarr is imported only when it is used.
    """

    supports_writes = supports_deletes = supports_partial_writes = False
    supports_listing = True
    store: Any

    def with_read_only(self, read_only: bool = False) -> Any:
        return type(self)(self.store)  # type: ignore[call-arg]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and other.store is self.store

    def __hash__(self) -> int:
        return id(self.store)

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        body = await asyncio.to_thread(self._get, key, byte_range)
        return None if body is None else prototype.buffer.from_bytes(body)

    def _get(self, key: str, byte_range: Any) -> bytes | None:
        try:
            if byte_range is None:
                return bytes(self.store.read(key))
            if hasattr(byte_range, "start"):
                start, stop = byte_range.start, byte_range.end
            else:
                stop = self.store.size(key)
                is_suffix = hasattr(byte_range, "suffix")
                start = max(stop - byte_range.suffix, 0) if is_suffix else byte_range.offset
            return bytes(self.store.ranges([(key, start, stop - start)])[0])
        except FileNotFoundError:
            return None

    async def get_partial_values(self, prototype: Any, key_ranges: Any) -> list[Any]:
        return [await self.get(key, prototype, each) for key, each in key_ranges]

    async def exists(self, key: str) -> bool:
        return bool(await asyncio.to_thread(self.store.exists, key))

    async def set(self, key: str, value: Any) -> None:
        raise StorageError(errno.EROFS, "a source is only read", self.store.where(key))

    async def delete(self, key: str) -> None:
        raise StorageError(errno.EROFS, "a source is only read", self.store.where(key))

    async def list(self) -> AsyncIterator[str]:
        for name in await asyncio.to_thread(self._names, ""):
            yield name

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        for name in await asyncio.to_thread(self._names, prefix):
            yield name

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        folder = f"{prefix.rstrip('/')}/" if prefix else ""
        names = await asyncio.to_thread(self._names, folder)
        for name in dict.fromkeys(name[len(folder) :].partition("/")[0] for name in names):
            yield name

    def _names(self, prefix: str) -> Any:
        return [name for name, _ in self.store.names(prefix)]
