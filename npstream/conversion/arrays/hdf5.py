"""HDF5 files as a source: each dataset is a column."""

from __future__ import annotations

import gc
import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

import numpy as np

from npstream._core.optional import import_optional
from npstream.conversion.arrays.source import ArraySource, StoredArray
from npstream.errors import FormatError, StorageError

if TYPE_CHECKING:
    from npstream.conversion.files import SourceFile

__all__ = ["Hdf5Source"]

_PURPOSE = "reading HDF5 files"


class Hdf5Array:
    """A dataset of an HDF5 file, as a `StoredArray`."""

    def __init__(self, where: str, dataset: Any) -> None:
        h5py = import_optional("h5py", "h5py", "sources", _PURPOSE)
        self.where = f"{where}{dataset.name}"
        self._dataset = dataset
        self.dtype: np.dtype[Any] = dataset.dtype
        self.shape: tuple[int, ...] = dataset.shape if dataset.shape is not None else ()
        self.chunk: int = dataset.chunks[0] if dataset.chunks else 1
        self.text: str | None = None
        self.ragged: np.dtype[Any] | None = None
        if (info := h5py.check_string_dtype(self.dtype)) is not None:
            # h5py stores NumPy's bytes as text of a fixed size, declared as ASCII.
            is_bytes = info.length is not None and info.encoding == "ascii"
            self.text = "bytes" if is_bytes else "str"
            self._rows = dataset if is_bytes else dataset.asstr()
            return
        self._rows = dataset
        element = h5py.check_vlen_dtype(self.dtype)
        if element is not None and not np.dtype(element).hasobject:
            self.ragged = np.dtype(element)

    def read(self, start: int, stop: int) -> Any:
        """Return rows."""
        with _hdf5_errors(self.where):
            return self._rows[start:stop]


class Hdf5Source(ArraySource):
    """Datasets of HDF5 files. Each dataset is a column.

    The option ``group`` names the group or dataset to read; by default the root group. The name of
    a column is the path of its dataset below this group, such as ``"x"`` or ``"inner/x"``. The rows
    of several files follow one another.
    """

    kind = "hdf5"
    extensions = (".h5", ".hdf5", ".hdf", ".he5", ".nc4")
    OPTIONS: ClassVar[tuple[str, ...]] = ("group",)
    column_hint = "[...], or a group of them with reader_options={'group': '/...'}"

    def _named_arrays(self) -> Iterator[tuple[str, str, Mapping[str, StoredArray]]]:
        for file in self.data_files():
            with _hdf5_errors(file.where):
                item = _open_item(file, self.request.options.get("group", "/"))
                arrays = _datasets(item, file.where)
            yield file.name, file.where, arrays


class _FileWithoutCollection(io.RawIOBase):
    """A remote file, during whose reads Python collects no cyclic garbage.

    h5py reads a file under a lock, which it also takes to free its objects. The requests run in
    another thread. If that thread collected objects of h5py, it would wait for the lock forever.

    Parameters
    ----------
    file : file object
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def readinto(self, buffer: Any) -> int:
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            return int(self._file.readinto(buffer))  # type: ignore[attr-defined]
        finally:
            if was_enabled:
                gc.enable()


def _open_item(file: SourceFile, name: str) -> Any:
    """Return a group or dataset of a file, which stays open."""
    h5py = import_optional("h5py", "h5py", "sources", _PURPOSE)
    path = file.path if file.path is not None else _FileWithoutCollection(file.open())
    opened = h5py.File(path, "r")
    item = opened.get(name)
    if item is None:
        groups: list[str] = []
        opened.visititems(lambda key, value: groups.append(f"/{key}"))
        raise ValueError(
            f"{file.where}: there is no group {name!r}; it has {', '.join(groups[:20]) or 'none'}"
        )
    return item


def _datasets(item: Any, where: str) -> dict[str, StoredArray]:
    """Return the datasets of a group by name, or only the item if it is a dataset."""
    h5py = import_optional("h5py", "h5py", "sources", _PURPOSE)
    if isinstance(item, h5py.Dataset):
        return {item.name.rpartition("/")[2]: Hdf5Array(where, item)}
    arrays: dict[str, StoredArray] = {}

    def add(name: str, value: Any) -> None:
        if isinstance(value, h5py.Dataset):
            arrays[name] = Hdf5Array(where, value)

    item.visititems(add)
    return arrays


@contextmanager
def _hdf5_errors(where: str) -> Iterator[None]:
    """Convert exceptions of HDF5 to errors that name the file."""
    try:
        yield
    except StorageError:
        raise
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where}: a text is not UTF-8: {error}: name its encoding 'bytes' in columns=, or "
            "leave it out"
        ) from error
    except (OSError, RuntimeError, KeyError) as error:
        raise FormatError(
            f"{where}: cannot be read as HDF5: {error} (a filter of other packages may need "
            "import hdf5plugin)"
        ) from error
