"""Files of NumPy as sources: ``.npy``, also compressed or in parts, and ``.npz``.

A local ``.npy`` file that is not compressed is memory-mapped. Other files are read from the first
row to the last. An array in Fortran order that cannot be memory-mapped is loaded as a whole.
"""

from __future__ import annotations

import lzma
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, cast

import numpy as np

from npstream._core.arguments import quantity
from npstream._core.memory import ensure_fits
from npstream.conversion.arrays.source import ArraySource, StoredArray
from npstream.conversion.files import SourceFile, split_extension
from npstream.errors import FormatError, StorageError

if TYPE_CHECKING:
    from npstream._core.typing import AnyArray

__all__ = ["NpySource", "NpzSource"]

_STEP = 1 << 20
"""Bytes of one read, when rows of a file that cannot seek are skipped."""

_NUMBER = re.compile(r"[-_. ]*\d+(?:[-_. ]?of[-_. ]?\d+)?$")
"""The number of a file at the end of its name, such as ``-00001-of-00008``."""


class _DecompressionError(Exception):
    """The bytes of a compressed file are damaged.

    The decompressors raise OSError and LZMAError, and a failed read of the store also is an
    OSError. This class distinguishes damage from failed reads.
    """


_DAMAGE = (ValueError, EOFError, zipfile.BadZipFile, zlib.error, _DecompressionError)
"""The exceptions of reading a damaged file."""


class NpyArray:
    """An array in the ``.npy`` format: a file, or a member of an ``.npz`` file. A `StoredArray`.

    Parameters
    ----------
    where : str
        The file, for messages.
    open : callable
        Opens the file for reading bytes.
    path : str, optional
        The path of a local file that is not compressed. It is memory-mapped.

    Raises
    ------
    FormatError
        If the file does not have the ``.npy`` format.
    ValueError
        If it has Python objects, which only pickle reads.
    """

    text: str | None = None
    ragged: np.dtype[Any] | None = None
    chunk = 1

    def __init__(self, where: str, open: Callable[[], Any], path: str | None = None) -> None:
        self._file: Any = None
        self.where = where
        self._open = open
        self._path = path
        self._position = 0
        self._whole: AnyArray | None = None
        with open() as file:
            counted = _CountedReads(file)
            self.shape, self._is_fortran, self.dtype = _read_header(counted, where)
            self._header_bytes = counted.nbytes
        if self.dtype.hasobject:
            raise ValueError(
                f"{where}: its values are Python objects (dtype {self.dtype}), which are pickled "
                "and could run code: save an array of numbers or text, or load it yourself and "
                "pass it to npstream.write"
            )
        self._row_bytes = self.dtype.itemsize * int(np.prod(self.shape[1:], dtype=np.int64))

    def read(self, start: int, stop: int) -> Any:
        """Return rows."""
        if self._whole is not None:
            return self._whole[start:stop]
        # An empty array cannot be memory-mapped.
        if self._path is not None and self._row_bytes * self.shape[0]:
            try:
                self._whole = np.load(self._path, mmap_mode="r", allow_pickle=False)
            except ValueError as error:
                raise self._damage_error(str(error)) from error
            return self._whole[start:stop]
        if self._is_fortran and len(self.shape) > 1:
            # The values of a row are spread over the whole file, so all of it is read.
            nbytes = self._row_bytes * self.shape[0]
            ensure_fits(nbytes, f"reading {self.where}, an array in Fortran order,")
            body = np.frombuffer(self._bytes(0, nbytes), self.dtype)
            self._whole = body.reshape(self.shape[::-1]).transpose()
            return self._whole[start:stop]
        block = self._bytes(start * self._row_bytes, (stop - start) * self._row_bytes)
        return np.frombuffer(block, self.dtype).reshape(stop - start, *self.shape[1:])

    def _bytes(self, start: int, nbytes: int) -> bytes:
        """Return `nbytes` bytes, from byte `start` of the array's values.

        The file cannot seek back. For an earlier position, it is opened again.
        """
        if not nbytes:
            return b""
        if self._file is None or start < self._position:
            self.close()
            self._file = self._open()
            self._skip(self._header_bytes)
            self._position = 0
        self._skip(start - self._position)
        self._position = start
        pieces = bytearray()
        while len(pieces) < nbytes:
            piece = self._read(nbytes - len(pieces))
            if not piece:
                missing = quantity(nbytes - len(pieces), "byte")
                raise self._damage_error(f"it ends {missing} too early")
            pieces += piece
        self._position += nbytes
        if self._position == self._row_bytes * self.shape[0]:
            self.close()
        return bytes(pieces)

    def _read(self, nbytes: int) -> bytes:
        assert self._file is not None
        try:
            return bytes(self._file.read(nbytes))
        except _DAMAGE as error:
            raise self._damage_error(str(error)) from error

    def _skip(self, nbytes: int) -> None:
        assert self._file is not None
        if nbytes and self._file.seekable():
            self._file.seek(nbytes, os.SEEK_CUR)
            return
        while nbytes > 0:
            if not (piece := self._read(min(nbytes, _STEP))):
                raise self._damage_error("it ends too early")
            nbytes -= len(piece)

    def _damage_error(self, reason: str) -> FormatError:
        return FormatError(f"{self.where}: cannot be read as an array of NumPy: {reason}")

    def close(self) -> None:
        """Close the file, if it is open."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __del__(self) -> None:
        self.close()


class _CountedReads:
    """A file that counts the bytes it reads, because a compressed file has no `tell`."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.nbytes = 0

    def read(self, nbytes: int) -> bytes:
        """Read from the file."""
        body = self._file.read(nbytes)
        self.nbytes += len(body)
        return body


def _read_header(file: Any, where: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return the shape, whether the order is Fortran's, and the dtype."""
    try:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            return np.lib.format.read_array_header_1_0(file)
        if version in ((2, 0), (3, 0)):
            # Version 3 differs only in the encoding of field names: UTF-8 instead of Latin-1.
            shape, is_fortran, dtype = np.lib.format.read_array_header_2_0(file)
            return shape, is_fortran, _utf8_fields(dtype) if version == (3, 0) else dtype
    except _DAMAGE as error:
        raise FormatError(f"{where}: not an array of NumPy (.npy): {error}") from error
    raise FormatError(f"{where}: version {version} of the .npy format is unknown")


def _utf8_fields(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Decode the field names of a dtype as UTF-8; NumPy decoded them as Latin-1."""
    if dtype.names is None:
        return dtype
    names = [name.encode("latin1").decode("utf8") for name in dtype.names]
    formats = [_utf8_fields(dtype[name]) for name in dtype.names]
    offsets = [dtype.fields[name][1] for name in dtype.names]  # type: ignore[index]
    return np.dtype(
        {"names": names, "formats": formats, "offsets": offsets, "itemsize": dtype.itemsize}
    )


class _Decompressed:
    """The content of a compressed file, read from its start to its end."""

    def __init__(self, file: SourceFile) -> None:
        self._stack = ExitStack()
        self._content = self._stack.enter_context(file.decompressed())

    def read(self, nbytes: int) -> bytes:
        """Read from the file."""
        try:
            return self._content.read(nbytes)
        except StorageError:
            raise
        except (OSError, lzma.LZMAError) as error:
            raise _DecompressionError(str(error)) from error

    def seekable(self) -> bool:
        """Return False."""
        return False

    def close(self) -> None:
        """Close the file."""
        self._stack.close()

    def __enter__(self) -> _Decompressed:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class NpyFiles:
    """The concatenation of the arrays of several files."""

    text: str | None = None
    ragged: np.dtype[Any] | None = None
    chunk = 1

    def __init__(self, arrays: Sequence[NpyArray]) -> None:
        self._arrays = arrays
        first = arrays[0]
        self.where, self.dtype = first.where, first.dtype
        for array in arrays:
            if not array.shape:
                raise ValueError(
                    f"{array.where}: it is a single value, and an array of rows has an axis for "
                    "them: leave the file out"
                )
            if (array.dtype, array.shape[1:]) != (first.dtype, first.shape[1:]):
                raise ValueError(
                    f"{array.where}: its rows have dtype {array.dtype} and shape "
                    f"{array.shape[1:]}, and those of {first.where} dtype {first.dtype} and shape "
                    f"{first.shape[1:]}: files whose names differ by a number only are the rows of "
                    "one column; reader_options={'numbered': 'columns'} makes each a column"
                )
        self._starts = np.cumsum([0, *(array.shape[0] for array in arrays)])
        self.shape = (int(self._starts[-1]), *first.shape[1:])

    def read(self, start: int, stop: int) -> Any:
        """Return rows."""
        pieces = []
        for array, first in zip(self._arrays, self._starts.tolist(), strict=False):
            begin, end = max(start - first, 0), min(stop - first, array.shape[0])
            if begin < end:
                pieces.append(array.read(begin, end))
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces) if pieces else self._arrays[0].read(0, 0)


class NpySource(ArraySource):
    """Arrays in ``.npy`` files. Each is a column, named like its file.

    Files whose names differ only by a number at the end, such as ``x-0.npy`` and ``x-1.npy``, are
    the rows of one column. With ``numbered="columns"`` each is a column.
    """

    kind = "npy"
    extensions = (".npy",)
    OPTIONS: ClassVar[tuple[str, ...]] = ("numbered",)

    def _named_arrays(self) -> Iterable[tuple[str, str, Mapping[str, StoredArray]]]:
        numbered = self.request.options.get("numbered", "rows")
        if numbered not in ("rows", "columns"):
            raise ValueError(
                f"reader_options={{'numbered': {numbered!r}}}: expected 'rows' or 'columns'"
            )
        groups: dict[str, list[NpyArray]] = {}
        files = self.data_files()
        for file in files:
            name = _column_name(file, numbered == "rows" and len(files) > 1)
            is_plain = split_extension(file.name)[1] is None
            array = NpyArray(
                file.where,
                file.open if is_plain else partial(_Decompressed, file),
                file.path if is_plain else None,
            )
            groups.setdefault(name, []).append(array)
        if numbered == "columns":
            for name, arrays in groups.items():
                if len(arrays) > 1:
                    raise ValueError(
                        f"{arrays[0].where} and {arrays[1].where} are both column {name!r}: "
                        "rename a file, or convert them apart"
                    )
        yield "arrays", self.files.where, {name: NpyFiles(group) for name, group in groups.items()}


def _column_name(file: SourceFile, drops_number: bool) -> str:
    stem = re.sub(r"\.npy(\.\w+)?$", "", os.path.basename(file.name), flags=re.IGNORECASE)
    if drops_number:
        # If the whole name is a number, as in 00001.npy, the column has the name "x".
        stem = _NUMBER.sub("", stem) or "x"
    return stem


class NpzSource(ArraySource):
    """Arrays in ``.npz`` files. Each is a column, named like the array in its file.

    The rows of several files follow one another.
    """

    kind = "npz"
    extensions = (".npz",)

    def _named_arrays(self) -> Iterator[tuple[str, str, Mapping[str, StoredArray]]]:
        for file in self.data_files():
            archive = _Archive(file)
            requested = self.request.columns
            arrays: dict[str, StoredArray] = {}
            for member in archive.members:
                name = member.removesuffix(".npy")
                # `NpyArray` raises for an array of objects, so only requested ones are opened.
                if requested is None or _is_requested(name, requested, len(archive.members)):
                    arrays[name] = archive.array(member)
            names = {member.removesuffix(".npy") for member in archive.members}
            if not arrays:
                self.select_columns(names, file.where)  # raises for unknown names
            yield file.name, file.where, arrays


def _is_requested(name: str, requested: Iterable[str], array_count: int) -> bool:
    """Return True if an array of an archive has a requested column.

    A column is an array, or a field of a structured array. The name of a field is
    ``array.field``, or ``field`` if the archive has only one array.
    """
    return array_count == 1 or any(
        name == column or column.startswith(f"{name}.") for column in requested
    )


class _Archive:
    """An ``.npz`` file, which is a ZIP archive."""

    def __init__(self, file: SourceFile) -> None:
        self._file = file
        archive = self._open_zip()
        self.members = [name for name in archive.namelist() if name.endswith(".npy")]
        encrypted = [info.filename for info in archive.infolist() if info.flag_bits & 1]
        # `ZipFile.close` does not close a file that was passed to it.
        if archive.fp is not None:
            archive.fp.close()
        if encrypted:
            raise FormatError(f"{file.where}: {encrypted[0]!r} is encrypted")

    def _open_zip(self) -> zipfile.ZipFile:
        file = self._file.open()
        try:
            return zipfile.ZipFile(file)
        except zipfile.BadZipFile as error:
            file.close()
            raise FormatError(f"{self._file.where}: not an .npz file: {error}") from error

    def array(self, member: str) -> NpyArray:
        """Return an array."""
        return NpyArray(f"{self._file.where}/{member}", lambda: self._open_member(member))

    def _open_member(self, member: str) -> BinaryIO:
        archive = self._open_zip()
        try:
            return cast("BinaryIO", _Member(archive, archive.open(member)))
        except (zipfile.BadZipFile, NotImplementedError) as error:
            if archive.fp is not None:
                archive.fp.close()
            raise FormatError(f"{self._file.where}/{member}: {error}") from error


class _Member:
    """A member of an archive. Closing it also closes the file of the archive."""

    def __init__(self, archive: zipfile.ZipFile, member: Any) -> None:
        self._file, self._member = archive.fp, member
        self.read, self.seek, self.tell = member.read, member.seek, member.tell
        self.seekable = member.seekable

    def __enter__(self) -> _Member:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the member and the file."""
        self._member.close()
        if self._file is not None:
            self._file.close()
