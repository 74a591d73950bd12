"""Find and open the files of a source: paths, directories, globs and URLs.

Remote files are read by range requests through `npstream.storage`, with its retries and deadlines,
and without the cache.

Tested in tests/conversion/test_files.py.
"""

from __future__ import annotations

import difflib
import errno
import glob
import io
import lzma
import os
import re
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import Any, BinaryIO, TypeAlias, cast

from npstream._core.memory import ensure_fits, open_file
from npstream._core.optional import import_optional
from npstream._core.redaction import redact_url
from npstream.conversion.braces import expand_braces
from npstream.errors import FormatError, StorageError
from npstream.storage.local import open_store
from npstream.storage.urls import Location, is_http, local_path, location_str, scheme_of

__all__ = [
    "FileList",
    "SourceFile",
    "SourcePath",
    "find_files",
    "natural_key",
    "read_whole_files",
    "split_extension",
]

SourcePath: TypeAlias = "Location | Sequence[Location]"
"""A path or URL of a file or directory, a glob, or a list of them."""

COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}
"""The compression of a file by the last extension of its name."""

_BUFFER = 1 << 23
"""Bytes of a remote file that are read ahead together."""

_REQUEST_BYTES = 1 << 21
"""Maximum bytes of one of the concurrent range requests for a part of a remote file."""

_SIDECAR_FOLDER = "index.columns"
"""The folder of a dataset where the side-car stores columns, as .npy files."""

_WHOLE_FILE_REQUEST_BYTES = 1 << 23
"""Maximum bytes of one of the concurrent range requests for whole files."""

_SHOWN_SOURCES = 3
"""Maximum number of sources that a message names."""

_GLOB = re.compile(r"[*?[]")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of a source.

    Attributes
    ----------
    name : str
        The path relative to the source, with slashes. In a list of sources, it is the whole path
        or URL without secrets. Messages and `resume` use it.
    nbytes : int
        The size of the stored file in bytes. For a compressed file, it is the compressed size.
    path : str or None
        The local path; None for a remote file.
    """

    name: str
    nbytes: int
    path: str | None
    _store: Any = field(default=None, repr=False)  # a RemoteStore
    _key: str = field(default="", repr=False)  # the name in the store

    @property
    def where(self) -> str:
        """The path, or the URL without secrets, for messages."""
        return self.path if self.path is not None else str(self._store.where(self._key))

    def open(self, *, buffered: bool = True) -> BinaryIO:
        """Open the file for reading bytes. The returned file can seek.

        Parameters
        ----------
        buffered : bool, default: True
            Whether to read a remote file ahead. Choose False for a reader that requests the byte
            ranges that it needs, such as pyarrow's reader of Parquet files.
        """
        if self.path is not None:
            return open(self.path, "rb")
        raw = _RemoteFile(self._store, self._key, self.nbytes)
        if not buffered:
            return cast("BinaryIO", raw)
        return io.BufferedReader(raw, max(min(_BUFFER, self.nbytes), 1))

    @contextmanager
    def decompressed(self) -> Iterator[BinaryIO]:
        """Open the file like `open`, decompressed if its name ends in .gz, .bz2, .xz or .zst.

        If the name has such an ending, the returned file may be unable to seek.

        Raises
        ------
        FormatError
            If it is damaged.
        """
        codec = split_extension(self.name)[1]
        with self.open() as file:
            if codec is None:
                yield file
                return
            try:
                with _decoder(file, codec, self.where) as decoded:
                    yield decoded
            except (OSError, EOFError, lzma.LZMAError) as error:
                # An error with `errno` comes from reading the file, not from damaged data.
                if isinstance(error, StorageError) or getattr(error, "errno", None) is not None:
                    raise
                raise FormatError(f"{self.where}: cannot be decompressed: {error}") from error


def _decoder(file: BinaryIO, codec: str, where: str) -> BinaryIO:
    if codec == "xz":
        return cast("BinaryIO", lzma.open(file))
    pa = import_optional("pyarrow", "pyarrow", "arrow", f"reading {where}")
    return cast("BinaryIO", pa.CompressedInputStream(pa.PythonFile(file, "r"), codec))


def read_whole_files(files: Sequence[SourceFile]) -> list[bytes]:
    """Return the content of files. Files of a store are requested concurrently.

    Raises
    ------
    StorageError
        If a file cannot be read.
    """
    bodies: list[bytes] = []
    for store, group in groupby(files, key=lambda file: file._store):
        if store is None:
            bodies += map(_read_local, group)
            continue
        members = list(group)
        spans = [
            (file._key, start, min(_WHOLE_FILE_REQUEST_BYTES, file.nbytes - start))
            for file in members
            for start in range(0, file.nbytes, _WHOLE_FILE_REQUEST_BYTES)
        ]
        pieces = iter(store.ranges(spans))
        for file in members:
            count = -(-file.nbytes // _WHOLE_FILE_REQUEST_BYTES)
            bodies.append(b"".join(islice(pieces, count)))
    return bodies


def _read_local(file: SourceFile) -> bytes:
    assert file.path is not None
    ensure_fits(file.nbytes, "reading {}", file.path)
    try:
        with open(open_file(file.path), "rb", buffering=0) as opened:
            return opened.readall()
    except OSError as error:
        raise StorageError(error.errno, error.strerror, file.path) from error


class _RemoteFile(io.RawIOBase):
    """A file of a RemoteStore, read by concurrent range requests."""

    def __init__(self, store: Any, key: str, nbytes: int) -> None:
        self._store, self._key, self._nbytes, self._position = store, key, nbytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._nbytes}[whence]
        if start + offset < 0:
            raise ValueError(f"cannot seek to {start + offset}, before the start of the file")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        start = self._position
        stop = min(start + len(buffer), self._nbytes)
        if stop <= start:
            return 0
        starts = range(start, stop, _REQUEST_BYTES)
        spans = [(self._key, first, min(_REQUEST_BYTES, stop - first)) for first in starts]
        body = b"".join(self._store.ranges(spans))
        buffer[: len(body)] = body
        self._position += len(body)
        return len(body)


@dataclass(frozen=True)
class FileList:
    """The files of a source, in the order in which they are read.

    Attributes
    ----------
    where : str
        The source, without secrets, for messages.
    files : tuple of SourceFile
    root : str or None
        The directory, if the source is one; it may be a URL with secrets.
    options : mapping
        The options of the storage driver.
    """

    where: str
    files: tuple[SourceFile, ...]
    root: str | None = field(repr=False, default=None)
    options: Mapping[str, Any] = field(repr=False, default_factory=dict)

    def names(self) -> set[str]:
        """Return the names of all files."""
        return {file.name for file in self.files}

    def with_extensions(self, extensions: Collection[str]) -> tuple[SourceFile, ...]:
        """Return the files whose names have one of the extensions.

        An extension of a compression at the end of a name, such as .gz, is ignored. The files in
        the side-car of a dataset are left out.
        """
        return tuple(
            file
            for file in self.files
            if split_extension(file.name)[0] in extensions
            and _SIDECAR_FOLDER not in file.name.split("/")
        )


def split_extension(name: str) -> tuple[str, str | None]:
    """Return the extension of a file name in lower case, and its compression.

    Examples
    --------
    >>> split_extension("train/a.csv.gz"), split_extension("B.Parquet"), split_extension("c.gz")
    (('.csv', 'gzip'), ('.parquet', None), ('', 'gzip'))
    """
    stem, extension = os.path.splitext(name.lower())
    if (codec := COMPRESSIONS.get(extension)) is not None:
        return os.path.splitext(stem)[1], codec
    return extension, None


def natural_key(name: str) -> list[list[tuple[int, int, str]]]:
    """Return the sort key of a path: numbers in names are compared as numbers.

    Examples
    --------
    >>> sorted(["part-10", "part-9", "b/1", "b/part"], key=natural_key)
    ['b/1', 'b/part', 'part-9', 'part-10']
    """
    return [
        [(0, int(text), text) if text.isdecimal() else (1, 0, text) for text in _split_digits(part)]
        for part in name.split("/")
    ]


def _split_digits(part: str) -> list[str]:
    """Split text into runs of digits and the text between them."""
    return [text for text in re.split(r"([0-9]+)", part) if text]


def find_files(source: SourcePath, options: Mapping[str, Any] | None = None) -> FileList:
    """Find the files of a source.

    The files of a directory or glob are in the natural order of their names: ``part-9`` comes
    before ``part-10``. Files and directories whose names start with a dot are left out, unless a
    local glob has the dot.

    Parameters
    ----------
    source : path, URL, or a sequence of them
        A file, a directory with all directories below it, or a glob with ``*``, ``?``, ``[...]``
        and ``**``. The files of a sequence keep its order. ``{000..003}`` and ``{a,b}`` stand for
        a sequence.
    options : mapping, optional
        The options of the storage driver of URLs.

    Raises
    ------
    StorageError
        If there is no such file or directory, or a glob matches none.
    ValueError
        If `source` is an empty list or names a file twice, if the server cannot list a directory,
        or if `options` are given for a local path.
    """
    options = options or {}
    if isinstance(source, str | os.PathLike):
        expanded = _expand(source)
        if expanded == [location_str(source, "source")]:
            return _find(source, options)
    else:
        expanded = [name for each in source for name in _expand(each)]
    if not expanded:
        raise ValueError("source is an empty list: give the paths of files or directories")
    lists = _find_all(expanded, options)
    files = tuple(
        SourceFile(file.where, file.nbytes, file.path, file._store, file._key)
        for file_list in lists
        for file in file_list.files
    )
    _check_unique(files)
    where = ", ".join(file_list.where for file_list in lists[:_SHOWN_SOURCES])
    if len(lists) > _SHOWN_SOURCES:
        where += f" and {len(lists) - _SHOWN_SOURCES:,} more"
    return FileList(where, files, None, options)


def _expand(source: Location) -> list[str]:
    """Expand the braces of a path, unless a local file has exactly this path."""
    text = location_str(source, "source")
    if not scheme_of(text) and os.path.exists(text):
        return [text]
    return expand_braces(text)


def _find_all(texts: Sequence[str], options: Mapping[str, Any]) -> list[FileList]:
    """Return the files of each source.

    The sizes of remote files in one directory are requested together. `_find` finds the other
    sources: local paths, globs, HTTP URLs, directories, and files whose size is unknown.
    """
    remote: dict[int, FileList] = {}
    groups: dict[str, list[int]] = {}
    for number, text in enumerate(texts):
        folder, _, name = text.rpartition("/")
        is_plain = name and not is_http(text) and _GLOB.search(text) is None
        # The folder of a URL such as s3://bucket ends with ":/"; the URL names no file.
        if is_plain and scheme_of(text) not in ("", "file") and not folder.endswith(":/"):
            groups.setdefault(folder, []).append(number)
    for folder, numbers in groups.items():
        store: Any = open_store(folder, options, argument="source")
        names = [texts[number].rpartition("/")[2] for number in numbers]
        for number, name, size in zip(numbers, names, store.sizes(names), strict=True):
            if isinstance(size, int) and size >= 0:
                file = SourceFile(name, size, None, store, name)
                remote[number] = FileList(redact_url(texts[number]), (file,), None, options)
    return [
        remote[number] if number in remote else _find(text, options)
        for number, text in enumerate(texts)
    ]


def _check_unique(files: Iterable[SourceFile]) -> None:
    seen: set[str] = set()
    for file in files:
        if file.name in seen:
            raise ValueError(f"{file.name} is named twice in source: leave one out")
        seen.add(file.name)


def _find(source: Location, options: Mapping[str, Any]) -> FileList:
    text = location_str(source, "source")
    if scheme_of(text) in ("", "file"):
        if options:
            raise ValueError(f"source_options are for remote stores; {text!r} is local")
        return _find_local(text)
    return _find_remote(text, options)


def _find_local(text: str) -> FileList:
    path = local_path(text, "source")
    if os.path.isfile(path):
        return FileList(path, (_local_file(path, os.path.dirname(path)),))
    if os.path.isdir(path):
        return FileList(path, tuple(_local_files(path, path)), path)
    if _GLOB.search(path) is None:
        folder, name = os.path.split(path)
        similar: list[str] = []
        with suppress(OSError):
            similar = difflib.get_close_matches(name, os.listdir(folder), n=1)
        hint = f", did you mean {similar[0]!r}?" if similar else ""
        raise StorageError(errno.ENOENT, f"no such file or directory: source{hint}", path)
    root = _fixed_root(path)
    files: dict[str, SourceFile] = {}
    for match in sorted(glob.glob(path, recursive=True)):
        is_directory = os.path.isdir(match)
        matched = _local_files(match, root) if is_directory else [_local_file(match, root)]
        files.update((file.name, file) for file in matched)
    if not files:
        raise StorageError(errno.ENOENT, "no file matches: source", path)
    return FileList(path, _sorted(files.values()))


def _sorted(files: Iterable[SourceFile]) -> tuple[SourceFile, ...]:
    return tuple(sorted(files, key=lambda file: natural_key(file.name)))


def _local_file(path: str, root: str) -> SourceFile:
    name = os.path.relpath(path, root).replace(os.sep, "/")
    return SourceFile(name, os.stat(path).st_size, path)


def _local_files(directory: str, root: str) -> Iterator[SourceFile]:
    """Yield the files of a directory in natural order, without hidden files."""
    prefix = os.path.relpath(directory, root).replace(os.sep, "/")
    return _walk(directory, "" if prefix == "." else f"{prefix}/", ())


def _walk(
    directory: str, prefix: str, parents: tuple[tuple[int, int], ...]
) -> Iterator[SourceFile]:
    """Yield the files of a directory and of all directories below it.

    `parents` has the device and inode of each directory above it.
    """
    try:
        status = os.stat(directory)
        if (identity := (status.st_dev, status.st_ino)) in parents:
            return  # a link made a directory contain itself
        with os.scandir(directory) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
        visible.sort(key=lambda entry: natural_key(entry.name))
        for entry in visible:
            if entry.is_dir():
                yield from _walk(entry.path, f"{prefix}{entry.name}/", (*parents, identity))
                continue
            status = entry.stat()
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "neither a file nor a directory", entry.path)
            yield SourceFile(prefix + entry.name, status.st_size, entry.path)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(error.errno, error.strerror, error.filename) from error


def _fixed_root(pattern: str) -> str:
    """Return the directory in front of the first component of a glob that has a wildcard."""
    match = _GLOB.search(pattern)
    return pattern[: match.start() if match else None].rpartition("/")[0] or "/"


def _find_remote(text: str, options: Mapping[str, Any]) -> FileList:
    where = redact_url(text)
    # The query of an HTTP URL, such as a signature, belongs to every request. It is not a path.
    base, question_mark, query = text.partition("?") if is_http(text) else (text, "", "")
    suffix = question_mark + query
    address, _slash, path = base.partition("://")[2].partition("/")
    match = _GLOB.search(path)
    if match is None and not base.endswith("/"):
        folder, _, name = base.rpartition("/")
        if path:
            store: Any = open_store(folder + suffix, options, argument="source")
            if store.exists(name):
                file = SourceFile(name, store.size(name), None, store, name)
                return FileList(where, (file,), None, options)
    scheme = base.partition("://")[0]
    root = _fixed_root(f"/{path}").strip("/") if match else path.strip("/")
    url = f"{scheme}://{address}" + (f"/{root}" if root else "")
    store = open_store(url + suffix, options, argument="source")
    if not store.can_list:
        raise ValueError(
            f"{where}: this server does not list its files: name each file in a list of URLs"
        )
    pattern = None if match is None else _glob_regex(path[len(root) :].lstrip("/"))
    files = [
        SourceFile(key, nbytes, None, store, key)
        for key, nbytes in store.names()
        if not any(part.startswith(".") for part in key.split("/"))
        and (pattern is None or pattern.fullmatch(key))
    ]
    if not files:
        reason = "no such file or directory" if match is None else "no file matches"
        raise StorageError(errno.ENOENT, f"{reason}: source", where)
    return FileList(where, _sorted(files), None if match else url + suffix, options)


def _glob_regex(pattern: str) -> re.Pattern[str]:
    """Return the regular expression of a glob.

    A glob can match a directory. The expression also matches all paths below it.
    """
    text = ""
    for part in re.split(r"(\*\*/|\*\*|\*|\?|\[[^]]+\])", pattern):
        if part == "**/":
            text += "(?:.*/)?"
        elif part == "**":
            text += ".*"
        elif part == "*":
            text += "[^/]*"
        elif part == "?":
            text += "[^/]"
        elif part.startswith("[") and part.endswith("]"):
            text += f"[{'^' * (part[1] in '!^')}{re.escape(part[1:-1].lstrip('!^'))}]".replace(
                r"\-", "-"
            )
        else:
            text += re.escape(part)
    return re.compile(f"{text}(?:/.*)?")
