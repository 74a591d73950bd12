"""What a side-car holds beyond the index, put down in files while shards are read or written.

Tested in tests/tools/test_index_builder.py.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from npstream._core.typing import AnyArray, Body
from npstream.errors import StorageError
from npstream.formats.chunks import chunk_counts
from npstream.formats.hashes import Hasher, digest, hasher
from npstream.formats.index import INDEX, parse_index
from npstream.formats.sidecar.blocks import HASH_BLOCK, xxh3
from npstream.formats.sidecar.catalog import smallest_uint
from npstream.formats.sidecar.sidecar import (
    NAME,
    NPY_HEADER_BYTES,
    ColumnFile,
    IndexDigest,
    digest_index,
    encode_sidecar,
    npy_header,
)
from npstream.formats.statistics import decode_statistics, encode_statistics, merge_statistics

if TYPE_CHECKING:
    from npstream.formats.index import Index
    from npstream.formats.scan import ScanResult
    from npstream.formats.statistics import ColumnStatistics

__all__ = ["Spool", "column_files"]

_LONGEST = 200
_COPIED = 1 << 20
_HASH = "xxh3_128"


def column_files(columns: Mapping[str, np.dtype[Any]], mark: str = "") -> list[ColumnFile]:
    """Name the files of columns, differently also where upper and lower case are the same.

    Parameters
    ----------
    columns : mapping of str to dtype
    mark : str
        What tells the files from those of other writes.

    Examples
    --------
    >>> [column.file for column in column_files({"a/b": np.dtype("<i2")})]
    ['index.columns/a%2Fb.npy']
    """
    files, taken = [], set()
    for number, (name, dtype) in enumerate(columns.items()):
        base = quote(name, safe="")[:_LONGEST]
        if base.lower() in taken:
            base += f"~{number}"
        taken.add(base.lower())
        files.append(ColumnFile(name, dtype, f"index.columns/{mark}{base}.npy"))
    return files


class Spool:
    """Files that grow by every shard, and become a side-car in the end.

    There are four, however many columns: where samples begin, and hashes of meta files; hashes of
    pieces; bounds of the columns; and their values, those of one shard after another.

    Parameters
    ----------
    columns : mapping of str to dtype
        The scalar columns.
    hashed : bool
        Whether hashes of pieces are kept.
    directory : str, optional
        Where the files are, or come to be; by default they have no names, and vanish.
    mark : str
        What the names of the columns' files begin with.

    Attributes
    ----------
    dtypes : dict of str to dtype
        The columns, as given.
    columns : list of ColumnFile
        The columns, and the files that hold them in the end.
    """

    def __init__(
        self,
        columns: Mapping[str, np.dtype[Any]],
        hashed: bool,
        directory: str | None = None,
        mark: str = "",
    ) -> None:
        self._files: list[IO[bytes]] = []
        self.dtypes = dict(columns)
        self.columns = column_files(columns, mark)
        self._hashed, self._directory = hashed, directory
        self._bounds = np.dtype([("", c.dtype) for c in self.columns for _ in ("min", "max")])
        self._hashes: dict[str, AnyArray] = {}
        try:
            for name in ("heads", "pieces", "bounds", "values", "column"):
                with self._reporting():
                    self._files.append(_open(directory, name))
        except BaseException:
            self.close()
            raise
        self._heads, self._pieces, self._ranges, self._values, self._column = self._files
        self._hashers = [hasher(_HASH) for _ in range(4)]
        self._statistics: dict[str, ColumnStatistics] = {}
        self._shards = 0
        self._snapshots: list[int] = []

    def __del__(self) -> None:
        self.close()

    def add(self, found: ScanResult) -> None:
        """Add the result of the scan of the next shard."""
        if not self._shards:
            self._statistics = dict(found.statistics)
        else:
            merge_statistics(self._statistics, found.statistics)
        self._shards += 1
        with self._reporting():
            if self._hashed:
                self._write(0, np.array([found.begin, found.meta], "<u8").tobytes())
                self._write(1, found.pieces.astype("<u8").tobytes())
            for column in self.columns:
                values = found.columns[column.name]
                for bound in bounds(values):
                    self._write(2, bound.tobytes())
                self._write(3, values.tobytes())
            for file in self._files:
                file.flush()  # else a forked process that ends would write its buffers, too

    def _write(self, number: int, body: bytes) -> None:
        self._hashers[number].update(body)
        self._files[number].write(body)

    def sync(self) -> list[str]:
        """Flush the files to the disk, and return the hash of each."""
        with self._reporting():
            for file in self._files:
                file.flush()
                os.fsync(file.fileno())
        return [*(hasher.hexdigest() for hasher in self._hashers), self._sync_statistics()]

    def _sync_statistics(self) -> str:
        """Bring the statistics so far to the disk, in a file of their own; return its hash."""
        body = encode_statistics(self._statistics)
        if self._directory is not None:
            with self._reporting():
                with open(self._snapshot(self._shards), "wb") as file:
                    file.write(body)
                    file.flush()
                    os.fsync(file.fileno())
                # The one before stays until the caller has recorded this one.
                for old in self._snapshots[:-1]:
                    os.unlink(self._snapshot(old))
            self._snapshots = [*self._snapshots[-1:], self._shards]
        return digest(_HASH, body)

    def _snapshot(self, shards: int) -> str:
        """Return the path of the statistics of the first shards."""
        assert self._directory is not None
        return os.path.join(self._directory, f"statistics.{shards}")

    def _read_snapshot(self, shards: int, known: str) -> dict[str, ColumnStatistics] | None:
        """Return the statistics of the first shards; None if they are not there."""
        try:
            with open(self._snapshot(shards), "rb") as file:
                body = file.read()
            return decode_statistics(body) if digest(_HASH, body) == known else None
        except (OSError, ValueError):
            return None

    def cut(self, index: Index, shards: int, digests: Sequence[str] = ()) -> int:
        """Forget all but the first shards, and return how many are left.

        That is none if the files do not hold them, or have other hashes than `sync` returned.
        """
        row = sum(column.dtype.itemsize for column in self.columns)
        ends = [shards * self._bounds.itemsize, int(index.starts[shards]) * row]
        ends = [16 * shards, 8 * int(_pieces(index)[:shards].sum()), *ends]
        if not self._hashed:
            ends[:2] = 0, 0
        kept = list(zip(self._files, ends, strict=False))
        with self._reporting():
            self._hashers = [_hash_of(file, end) for file, end in kept]
            found = [hasher.hexdigest() for hasher in self._hashers]
            statistics: dict[str, ColumnStatistics] | None = {}
            if shards:
                statistics = self._read_snapshot(shards, digests[-1]) if digests else None
                if found != list(digests[:-1]) or statistics is None:
                    return self.cut(index, 0)
            for file, end in kept:
                file.truncate(end)
                file.seek(end)
        self._shards, self._statistics = shards, statistics or {}
        self._snapshots = [shards] if shards else []
        return shards

    def finish(self, index: Index) -> Iterator[tuple[str, IO[bytes]]]:
        """Yield the name and the content of each column's file, one after the other.

        The content is a file at its start, which the next one overwrites.
        """
        counts = np.diff(index.starts)
        row = sum(column.dtype.itemsize for column in self.columns)
        before = 0
        for column in self.columns:
            begins = index.starts[:-1] * row + counts * before
            before += column.dtype.itemsize
            with self._reporting():
                self._column.seek(0)
                self._column.truncate()
                self._column.write(npy_header(column.dtype, index.samples))
                for begin, count in zip(begins.tolist(), counts.tolist(), strict=True):
                    self._values.seek(begin)
                    self._column.write(self._values.read(count * column.dtype.itemsize))
                self._column.flush()
            self._hashes[f"column/{column.name}"] = _block_hashes(self._column)
            self._column.seek(0)
            yield column.file, self._column

    def sidecar(self, index: Index, mark: IndexDigest) -> Iterator[Body]:
        """Return the parts of the side-car, once every shard was added and `finish` has run."""
        sections = dict(self._hashes)
        if self._statistics:
            body = encode_statistics(self._statistics)
            sections["statistics"] = np.frombuffer(body, np.uint8)
        if self._hashed:
            heads = _content(self._heads, np.dtype("<u8")).reshape(-1, 2)
            sections["begins"] = smallest_uint(heads[:, 0])
            if any(schema.format != "mds" for schema in index.schemas):
                sections["metas"] = heads[:, 1]
            sections["pieces"] = _content(self._pieces, np.dtype("<u8"))
        if self.columns:
            ranges = _content(self._ranges, self._bounds)
            for k, column in enumerate(self.columns):
                sections[f"min/{column.name}"] = ranges[f"f{2 * k}"]
                sections[f"max/{column.name}"] = ranges[f"f{2 * k + 1}"]
        return encode_sidecar(index, mark, self.columns, sections)

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        """Raise an OSError of these files as a StorageError."""
        try:
            yield
        except OSError as error:
            place, mend = self._directory, ""
            if place is None:
                place, mend = tempfile.gettempdir(), "; TMPDIR names another directory for them"
            what = f"{error.strerror}: cannot store parts of the side-car{mend}"
            raise StorageError(error.errno, what, place) from error

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            with suppress(OSError):  # a full disk, which `add` has reported
                file.close()


def sidecar_files(spool: Spool, text: bytes) -> Iterator[tuple[str, Iterator[Body]]]:
    """Yield the names and contents of the files that go with an index, and close the spool."""
    index = parse_index(text, INDEX, trusted=True)
    for name, file in spool.finish(index):
        yield name, pieces_of(file)
    yield NAME, spool.sidecar(index, digest_index(text))
    spool.close()


def pieces_of(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the content of a file, from where it stands."""
    while piece := file.read(_COPIED):
        yield piece


def bounds(values: AnyArray) -> tuple[AnyArray, AnyArray]:
    """Return bounds of a shard's values, as `Sidecar.shard_range` describes them.

    Examples
    --------
    >>> bounds(np.array([3, 1])), bounds(np.array([1, np.nan]))
    ((np.int64(1), np.int64(3)), (np.float64(-inf), np.float64(inf)))
    """
    if not len(values):
        return values.dtype.type(0), values.dtype.type(0)
    least, most = values.min(), values.max()
    if values.dtype.kind == "f" and np.isnan(least):
        least, most = (values.dtype.type(bound) for bound in (-np.inf, np.inf))
    return least, most


def _hash_of(file: IO[bytes], nbytes: int) -> Hasher:
    """Return the hash of the first bytes of a file, or of all if it has fewer."""
    found = hasher(_HASH)
    file.seek(0)
    while nbytes and (body := file.read(min(nbytes, _COPIED))):
        found.update(body)
        nbytes -= len(body)
    return found


def _open(directory: str | None, name: str) -> IO[bytes]:
    if directory is None:
        return tempfile.TemporaryFile(prefix="npstream-")
    path = os.path.join(directory, name)
    return open(path, "r+b" if os.path.exists(path) else "x+b")


def _content(file: IO[bytes], dtype: np.dtype[Any]) -> AnyArray:
    file.seek(0)
    return np.frombuffer(file.read(), dtype)


def _pieces(index: Index) -> AnyArray:
    """Return the number of pieces of each shard."""
    samples = np.diff(index.starts)
    return chunk_counts(samples, index.nbytes, index.compressed, index.chunk_bytes) + 1


def _block_hashes(file: IO[bytes]) -> AnyArray:
    file.seek(NPY_HEADER_BYTES)
    return np.fromiter(map(xxh3, iter(lambda: file.read(HASH_BLOCK), b"")), np.uint64)
