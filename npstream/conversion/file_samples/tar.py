"""Read the members of a tar file as a stream, without extracting them to disk.

At a damaged header, `tarfile` stops without an error. It does the same if a file is truncated
between two members. `read_members` raises in both cases. It also raises for a member whose content
is not in the tar, such as a link.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, cast

from npstream._core.arguments import quantity
from npstream._core.memory import ensure_fits
from npstream.conversion.file_samples.types import MAX_BYTES
from npstream.errors import FormatError, short_repr

__all__ = ["read_members"]

_BUFFER = 1 << 16
"""Bytes of the buffer of `tarfile`. Each read copies the rest of the buffer, so it is small."""

_MAX_HEADER = 1 << 20
"""Maximum bytes of an extended header, which holds a long name or attributes."""

_EXTENDED = frozenset(
    (
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.SOLARIS_XHDTYPE,
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
    )
)

_END_OF_FILE = (
    tarfile.EmptyHeaderError,  # type: ignore[attr-defined]
    tarfile.TruncatedHeaderError,  # type: ignore[attr-defined]
)
"""Exceptions of `tarfile` for a file that ends before or within a header."""

_DAMAGE = (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError)
"""Exceptions of `tarfile` for a damaged file. `_Reader` converts those of codecs to `TarError`."""


def read_members(
    file: BinaryIO, where: str, is_wanted: Callable[[str], bool] = lambda name: True
) -> Iterator[tuple[str, bytes]]:
    """Yield the name and content of each file in a tar.

    Parameters
    ----------
    file : binary file
        Opened at the start of the tar, with a method ``peek``. The tar may be compressed with
        gzip, bzip2, xz or zstd.
    where : str
        The tar, for messages.
    is_wanted : callable, optional
        Called with the name of each file. If it returns False, the file is skipped.

    Raises
    ------
    FormatError
        If the tar is damaged or truncated, has a member that is a link, a device or sparse, or has
        a name that leads out of its directory. The message names the tar and the member.
    """
    context = ""
    try:
        archive = _open(file)
        while (info := archive.next()) is not None:
            cast("Any", archive).members.clear()  # `tarfile` would keep them all
            context = f"member {short_repr(info.name)}: "
            if not info.isdir():
                _check_member(info)
                if is_wanted(info.name):
                    body = _read(archive, info)
                    yield info.name, body
                    del body  # frees the content before the next member is read
            context = f"after member {short_repr(info.name)}: "
        _check_end(archive)
    except _StorageFailure as error:
        raise error.cause from None
    except _DAMAGE as error:
        raise FormatError(f"{where}: {context}{_reason(error)}") from error


def _open(file: BinaryIO) -> _Archive:
    reader: Any = _Reader(file)
    try:
        return _Archive.open(fileobj=reader, mode="r|", bufsize=_BUFFER)
    except tarfile.TarError as error:
        raise ValueError(f"not a tar file: {error}") from error


def _read(archive: _Archive, info: tarfile.TarInfo) -> bytes:
    ensure_fits(info.size, "member {!r} of a tar", info.name)
    member = archive.extractfile(info)
    body = b"" if member is None else member.read()
    if len(body) != info.size:
        raise EOFError(f"only {len(body):,} of {quantity(info.size, 'byte')}")
    return body


class _Archive(tarfile.TarFile):
    """A tar file that knows whether its end was reached."""

    has_end = False


class _Member(tarfile.TarInfo):
    """The header of a member. Its sizes are checked before `tarfile` uses them."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0:
            raise tarfile.ReadError(f"a negative size, {header.size:,}")
        if header.type in _EXTENDED and header.size > _MAX_HEADER:
            raise tarfile.ReadError(f"an extended header of {quantity(header.size, 'byte')}")
        return header

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> _Member:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            cast("_Archive", archive).has_end = True
            raise
        except tarfile.HeaderError as error:
            # For most of these errors `TarFile.next` would end the archive without an exception, so
            # raise another error. If a file ends at offset 0, it is not a truncated tar.
            is_end = isinstance(error, _END_OF_FILE) and archive.offset
            raise tarfile.ReadError("the tar is truncated" if is_end else str(error)) from error


_Archive.tarinfo = _Member


class _StorageFailure(Exception):
    """Wraps an exception of the storage, so that it is not taken for damage of the tar."""

    def __init__(self, cause: BaseException) -> None:
        self.cause = cause


class _Storage:
    """The stored file, for the codecs, which raise OSError for damaged data.

    A failed read raises `_StorageFailure`, so that it is not taken for damage.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        try:
            return self._file.read(size)
        except Exception as error:
            raise _StorageFailure(error) from error


class _Reader:
    """The decompressed bytes of a file, for `tarfile`."""

    def __init__(self, file: BinaryIO) -> None:
        try:
            start = cast("Any", file).peek(6)
        except Exception as error:
            raise _StorageFailure(error) from error
        stored: Any = _Storage(file)
        self._errors: tuple[type[Exception], ...] = (OSError, EOFError)
        if start.startswith(b"\x1f\x8b"):
            self._errors += (zlib.error,)
            self._file: Any = gzip.GzipFile(fileobj=stored)
        elif start.startswith(b"BZh"):
            self._file = bz2.BZ2File(stored)
        elif start.startswith(b"\xfd7zXZ\0"):
            self._errors += (lzma.LZMAError,)
            self._file = lzma.LZMAFile(stored)  # noqa: SIM115
        elif start.startswith(b"\x28\xb5\x2f\xfd"):
            zstd = _zstd()
            self._errors += (zstd.ZstdError,)
            self._file = zstd.ZstdFile(stored)
        else:
            self._errors = ()
            self._file = stored

    def read(self, size: int) -> bytes:
        try:
            return self._file.read(size)  # type: ignore[no-any-return]
        except self._errors as error:
            raise tarfile.ReadError(f"its compressed data are damaged: {error}") from error


def _zstd() -> Any:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd


def _check_member(info: tarfile.TarInfo) -> None:
    """Raise ValueError unless a member is a regular file with a valid path and size.

    The path must not lead out of the directory of extraction.
    """
    if info.issym() or info.islnk():
        kind = "symbolic" if info.issym() else "hard"
        raise ValueError(
            f"a {kind} link to {short_repr(info.linkname)}, whose content is not in the tar: store "
            "the file itself, as with tar --dereference --hard-dereference"
        )
    if info.issparse():
        raise ValueError("a sparse file: store it without tar's option --sparse")
    if not info.isreg():
        raise ValueError("a device or a pipe, and no file")
    if info.name.startswith("/") or ".." in info.name.split("/"):
        raise ValueError("its path leads out of the directory: store relative paths without '..'")
    if not info.name.isprintable() and _has_surrogates(info.name):
        raise ValueError("its name is not UTF-8")
    if not 0 <= info.size <= MAX_BYTES:
        raise ValueError(
            f"{quantity(info.size, 'byte')}, and a shard can store at most {MAX_BYTES:,}"
        )


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _check_end(archive: _Archive) -> None:
    """Raise EOFError unless the archive has its end mark, and only zeros follow."""
    if not archive.has_end:
        raise EOFError("the tar ends without the mark of its end: it is truncated")
    stream = cast("Any", archive.fileobj)
    while block := stream.read(_BUFFER):
        if block.count(0) != len(block):
            raise EOFError(
                "data follow after the end of the tar: tars that were joined are not read, so "
                "give them as several files"
            )


def _reason(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "its extended headers are nested too deeply"
    return str(error) or type(error).__name__
