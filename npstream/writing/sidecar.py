"""Provide `SidecarBuilder`, which collects the content of a side-car in temporary files.

Tested in tests/tools/test_index_builder.py.
"""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from npstream._core.typing import AnyArray, Body
from npstream.errors import StorageError
from npstream.formats.chunks import chunk_counts
from npstream.formats.hashes import Hasher, digest, hasher
from npstream.formats.index import INDEX, parse_index
from npstream.formats.scan import ScanResult
from npstream.formats.sidecar.blocks import HASH_BLOCK, xxh3
from npstream.formats.sidecar.catalog import smallest_uint
from npstream.formats.sidecar.sidecar import (
    ColumnFile,
    IndexDigest,
    Sidecar,
    digest_index,
    encode_sidecar,
    npy_header,
)
from npstream.formats.statistics import decode_statistics, encode_statistics, merge_statistics
from npstream.formats.versions import SIDECAR_FILE

if TYPE_CHECKING:
    from npstream.formats.index import Index
    from npstream.formats.statistics import ColumnStatistics

__all__ = ["SidecarBuilder", "column_files"]

_MAX_NAME = 200
"""Maximum characters of a column's quoted name in a file name."""

_HEADS, _PIECES, _BOUNDS, _VALUES = range(4)
"""The numbers of the temporary files that grow with each shard."""

_READ_BYTES = 1 << 20

_READ_SAMPLES = 1 << 20
"""Approximate maximum samples whose values are read from a side-car at a time."""

_HASH = "xxh3_128"


def column_files(columns: Mapping[str, np.dtype[Any]], write_id: str = "") -> list[ColumnFile]:
    """Return the files of columns. Their names are unique in file systems that ignore case, too.

    Parameters
    ----------
    columns : mapping of str to dtype
    write_id : str
        The unique part of the file names of a write.

    Examples
    --------
    >>> [column.file for column in column_files({"a/b": np.dtype("<i2")})]
    ['index.columns/a%2Fb.npy']
    """
    files, used = [], set()
    for number, (name, dtype) in enumerate(columns.items()):
        base = quote(name, safe="")[:_MAX_NAME]
        if base.lower() in used:
            base += f"~{number}"
        used.add(base.lower())
        files.append(ColumnFile(name, dtype, f"index.columns/{write_id}{base}.npy"))
    return files


class SidecarBuilder:
    """Collects the scans of shards in files, and builds a side-car from them.

    The number of files does not depend on the number of columns. Four files grow with each shard:

    - the offset of the first sample, and the hash of the meta file
    - the hashes of the pieces of the data file, which `npstream.formats.chunks` defines
    - the bounds of each column
    - the values of each column

    `finish` reuses a fifth file for the content of each column's final file.

    Parameters
    ----------
    columns : mapping of str to dtype
        The scalar columns.
    hashed : bool
        Whether to fill the first two of the files, which have the offsets and the hashes.
    directory : str, optional
        The directory of the files, which are created if they do not exist. By default they are
        temporary files.
    write_id : str
        The unique part of the names of the columns' files.

    Attributes
    ----------
    dtypes : dict of str to dtype
        The parameter `columns`.
    columns : list of ColumnFile
        The columns, and their files in the side-car.
    """

    def __init__(
        self,
        columns: Mapping[str, np.dtype[Any]],
        hashed: bool,
        directory: str | None = None,
        write_id: str = "",
    ) -> None:
        self._files: list[IO[bytes]] = []
        self.dtypes = dict(columns)
        self.columns = column_files(columns, write_id)
        self._hashed, self._directory = hashed, directory
        self._bounds_dtype = np.dtype([("", c.dtype) for c in self.columns for _ in ("min", "max")])
        self._value_bytes = sum(column.dtype.itemsize for column in self.columns)  # of a sample
        self._hashes: dict[str, AnyArray] = {}
        try:
            for name in ("heads", "pieces", "bounds", "values"):
                with self._storage_errors():
                    self._files.append(_open(directory, name))
        except BaseException:
            self.close()
            raise
        self._heads, self._pieces, self._bounds_file, self._values = self._files
        self._hashers = [hasher(_HASH) for _ in range(4)]
        self._statistics: dict[str, ColumnStatistics] = {}
        self._shards = 0
        self._snapshots: list[int] = []  # the numbers of shards whose statistics are in files

    def __del__(self) -> None:
        self.close()

    def add(self, scan: ScanResult) -> None:
        """Add the result of the scan of the next shard."""
        if not self._shards:
            self._statistics = dict(scan.statistics)
        else:
            merge_statistics(self._statistics, scan.statistics)
        self._shards += 1
        with self._storage_errors():
            if self._hashed:
                self._write(_HEADS, np.array([scan.begin, scan.meta], "<u8").tobytes())
                self._write(_PIECES, scan.pieces.astype("<u8").tobytes())
            for column in self.columns:
                values = scan.columns[column.name]
                for bound in bounds(values):
                    self._write(_BOUNDS, bound.tobytes())
                self._write(_VALUES, values.view(np.uint8).data)
            for file in self._files:
                file.flush()  # or a forked process would write its copy of the buffers at exit

    def _write(self, file: int, body: Body) -> None:
        self._hashers[file].update(body)
        self._files[file].write(body)

    def sync(self) -> list[str]:
        """Flush the files to the disk; return the hash of each, and that of the statistics."""
        with self._storage_errors():
            for file in self._files:
                file.flush()
                os.fsync(file.fileno())
        return [*(hasher.hexdigest() for hasher in self._hashers), self._sync_statistics()]

    def _sync_statistics(self) -> str:
        """Return the hash of the statistics so far. If there is a directory, also store them.

        They are stored in a separate file, which is on the disk when this returns.
        """
        body = encode_statistics(self._statistics)
        if self._directory is not None:
            with self._storage_errors():
                with open(self._snapshot(self._shards), "wb") as file:
                    file.write(body)
                    file.flush()
                    os.fsync(file.fileno())
                # The previous file is kept until the caller has recorded the hash of this one.
                for old in self._snapshots[:-1]:
                    os.unlink(self._snapshot(old))
            self._snapshots = [*self._snapshots[-1:], self._shards]
        return digest(_HASH, body)

    def _snapshot(self, shards: int) -> str:
        """Return the path of the statistics of the first `shards` shards."""
        assert self._directory is not None
        return os.path.join(self._directory, f"statistics.{shards}")

    def _read_snapshot(self, shards: int, expected: str) -> dict[str, ColumnStatistics] | None:
        """Return the statistics of the first `shards` shards; None without an intact file."""
        try:
            with open(self._snapshot(shards), "rb") as file:
                body = file.read()
            return decode_statistics(body) if digest(_HASH, body) == expected else None
        except (OSError, ValueError):
            return None

    def truncate(self, index: Index, shards: int, digests: Sequence[str] = ()) -> int:
        """Truncate the files to the first `shards` shards, and return the number of shards.

        The number is 0 if the files are shorter or do not have the hashes `digests`, which `sync`
        returned.
        """
        ends = [
            16 * shards if self._hashed else 0,
            8 * int(_piece_counts(index)[:shards].sum()) if self._hashed else 0,
            shards * self._bounds_dtype.itemsize,
            int(index.starts[shards]) * self._value_bytes,
        ]
        files_and_ends = list(zip(self._files, ends, strict=False))
        with self._storage_errors():
            self._hashers = [_hash_start(file, end) for file, end in files_and_ends]
            current = [hasher.hexdigest() for hasher in self._hashers]
            statistics: dict[str, ColumnStatistics] | None = {}
            if shards:
                statistics = self._read_snapshot(shards, digests[-1]) if digests else None
                if current != list(digests[:-1]) or statistics is None:
                    return self.truncate(index, 0)
            for file, end in files_and_ends:
                file.truncate(end)
                file.seek(end)
        self._shards, self._statistics = shards, statistics or {}
        self._snapshots = [shards] if shards else []
        return shards

    def finish(self, index: Index) -> Iterator[tuple[str, IO[bytes]]]:
        """Yield the name and the content of each column's file.

        The content is an open file at position 0. The next iteration overwrites it.
        """
        with self._storage_errors(), _open(self._directory, "column") as file:
            for name, pieces in self.column_contents(index):
                file.seek(0)
                file.truncate()
                file.writelines(pieces)
                file.flush()
                file.seek(0)
                yield name, file

    def column_contents(self, index: Index) -> Iterator[tuple[str, Iterator[Body]]]:
        """Yield the name of each column's file, and the pieces of its content.

        Each piece must be used before the next one is requested, and all pieces before the next
        column.
        """
        counts = np.diff(index.starts)
        preceding_bytes = 0  # of a sample's values in the columns before
        for column in self.columns:
            begins = index.starts[:-1] * self._value_bytes + counts * preceding_bytes
            preceding_bytes += column.dtype.itemsize
            spans = zip(begins.tolist(), (counts * column.dtype.itemsize).tolist(), strict=True)
            yield column.file, self._column_pieces(column, index.samples, spans)

    def _column_pieces(
        self, column: ColumnFile, samples: int, spans: Iterable[tuple[int, int]]
    ) -> Iterator[Body]:
        """Yield the content of a column's file, and record the hash of each block.

        `spans` has the first byte and the size of each shard's values.
        """
        yield npy_header(column.dtype, samples)
        block, filled, hashes = memoryview(bytearray(HASH_BLOCK)), 0, []
        for begin, nbytes in spans:
            with self._storage_errors():
                self._values.seek(begin)
            while nbytes:
                with self._storage_errors():
                    target = block[filled : filled + nbytes]
                    count = self._values.readinto(target)  # type: ignore[attr-defined]
                    if not count:
                        raise OSError(errno.EIO, "a temporary file was truncated")
                nbytes -= count
                filled += count
                if filled == HASH_BLOCK:
                    hashes.append(xxh3(block))
                    yield block
                    filled = 0
        if filled:
            hashes.append(xxh3(block[:filled]))
            yield block[:filled]
        self._hashes[f"column/{column.name}"] = np.array(hashes, np.uint64)

    def append_to(
        self, new_index: Index, sidecar: Sidecar, index: Index, write_id: str
    ) -> SidecarBuilder:
        """Return a builder that holds the shards of a side-car, and then those of this builder.

        No shard is read. Columns that the side-car lacks are left out.

        Parameters
        ----------
        new_index : Index
            The index of the shards that were added to this builder.
        sidecar : Sidecar
        index : Index
            The index to which the side-car belongs.
        write_id : str
            The unique part of the names of the columns' files.
        """
        columns = {
            name: column.dtype
            for name, column in sidecar.columns.items()
            if self.dtypes.get(name) == column.dtype
        }
        result = SidecarBuilder(columns, self._hashed and sidecar.has_hashes, write_id=write_id)
        try:
            for scan in chain(sidecar_scans(sidecar, index, columns), self._scans(new_index)):
                result.add(scan)
            result._statistics = sidecar.statistics()
            merge_statistics(result._statistics, self._statistics)
        except BaseException:
            result.close()
            raise
        return result

    def _scans(self, index: Index) -> Iterator[ScanResult]:
        """Yield the scan of each added shard, without the statistics."""
        with self._storage_errors():
            heads, pieces = (
                _content(file, np.dtype("<u8")) for file in (self._heads, self._pieces)
            )
        ends = np.cumsum(_piece_counts(index)).tolist()
        for shard, (begin, meta) in enumerate(heads.reshape(-1, 2).tolist()):
            start, stop = index.starts[shard : shard + 2].tolist()
            with self._storage_errors():
                self._values.seek(start * self._value_bytes)
                values = {
                    column.name: np.frombuffer(
                        self._values.read((stop - start) * column.dtype.itemsize), column.dtype
                    )
                    for column in self.columns
                }
            hashes = pieces[ends[shard - 1] if shard else 0 : ends[shard]]
            yield ScanResult(begin, hashes, meta, values)

    def sidecar(self, index: Index, index_digest: IndexDigest) -> Iterator[Body]:
        """Return the pieces of the side-car.

        Call it after all calls of `add`, and after the result of `finish` or `column_contents` was
        used up.
        """
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
            ranges = _content(self._bounds_file, self._bounds_dtype)
            for k, column in enumerate(self.columns):
                sections[f"min/{column.name}"] = ranges[f"f{2 * k}"]
                sections[f"max/{column.name}"] = ranges[f"f{2 * k + 1}"]
        return encode_sidecar(index, index_digest, self.columns, sections)

    @contextmanager
    def _storage_errors(self) -> Iterator[None]:
        """Convert an OSError of these files to a StorageError."""
        try:
            yield
        except OSError as error:
            directory, fix = self._directory, ""
            if directory is None:
                directory, fix = tempfile.gettempdir(), "; TMPDIR names another directory for them"
            message = f"{error.strerror}: cannot store parts of the side-car{fix}"
            raise StorageError(error.errno, message, directory) from error

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            with suppress(OSError):  # a full disk, which `add` has reported
                file.close()


def sidecar_files(
    sidecar_builder: SidecarBuilder, text: bytes
) -> Iterator[tuple[str, Iterator[Body]]]:
    """Yield the names and contents of the side-car's files, and close the builder."""
    index = parse_index(text, INDEX, trusted=True)
    yield from sidecar_builder.column_contents(index)
    yield SIDECAR_FILE, sidecar_builder.sidecar(index, digest_index(text))
    sidecar_builder.close()


def revised_sidecar_files(
    sidecar_builder: SidecarBuilder,
    text: bytes,
    name: str,
    new_document: Mapping[str, Any],
    sidecar: Sidecar | None,
    index: Index | None,
    write_id: str,
) -> Iterator[tuple[str, Iterator[Body]]]:
    """Yield the names and contents of the files of a side-car that is stored under `name`.

    Parameters
    ----------
    sidecar_builder : SidecarBuilder
        Describes the new shards.
    text : bytes
        The content of the new index.
    name : str
        The file name of the side-car.
    new_document : mapping
        The document of an index of the new shards only.
    sidecar, index : Sidecar and Index, optional
        The side-car and the index of the shards before the new ones.
    write_id : str
        The unique part of the names of the columns' files.
    """
    revised = parse_index(text, INDEX, trusted=True)
    builder = sidecar_builder
    if sidecar is not None and index is not None:
        new_index = parse_index(json.dumps(new_document).encode(), INDEX, trusted=True)
        builder = sidecar_builder.append_to(new_index, sidecar, index, write_id)
    try:
        yield from builder.column_contents(revised)
        yield name, builder.sidecar(revised, digest_index(text))
    finally:
        if builder is not sidecar_builder:
            builder.close()


def sidecar_scans(
    sidecar: Sidecar, index: Index, columns: Mapping[str, np.dtype[Any]]
) -> Iterator[ScanResult]:
    """Yield the scan of each shard, read from the side-car instead of the shard.

    The statistics are left out.

    Parameters
    ----------
    sidecar : Sidecar
    index : Index
        The index to which it belongs.
    columns : mapping of str to dtype
        The columns to read, which are some of the side-car's.
    """
    starts = index.starts.tolist()
    first = 0
    while first < len(index):
        # Columns are read for several shards at once, as each read may be a request.
        end = int(np.searchsorted(index.starts, starts[first] + _READ_SAMPLES, side="right")) - 1
        stop = min(max(end, first + 1), len(index))
        values = {name: sidecar.column(name, starts[first], starts[stop]) for name in columns}
        for shard in range(first, stop):
            rows = slice(starts[shard] - starts[first], starts[shard + 1] - starts[first])
            hashes = sidecar.piece_hashes(shard)
            yield ScanResult(
                sidecar.first_offset(shard) or 0,
                np.empty(0, np.uint64) if hashes is None else hashes,
                sidecar.meta_hash(shard) or 0,
                {name: column[rows] for name, column in values.items()},
            )
        first = stop


def read_pieces(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the content of a file from its current position."""
    while piece := file.read(_READ_BYTES):
        yield piece


def bounds(values: AnyArray) -> tuple[AnyArray, AnyArray]:
    """Return the minimum and maximum of a shard's values for `Sidecar.shard_range`.

    They are 0 without values, and -inf and inf if a value is NaN.

    Examples
    --------
    >>> bounds(np.array([3, 1])), bounds(np.array([1, np.nan]))
    ((np.int64(1), np.int64(3)), (np.float64(-inf), np.float64(inf)))
    """
    if not len(values):
        return values.dtype.type(0), values.dtype.type(0)
    low, high = values.min(), values.max()
    if values.dtype.kind == "f" and np.isnan(low):
        low, high = (values.dtype.type(bound) for bound in (-np.inf, np.inf))
    return low, high


def _hash_start(file: IO[bytes], nbytes: int) -> Hasher:
    """Return a hasher of the first `nbytes` of a file, or of the whole file if it is shorter."""
    result = hasher(_HASH)
    file.seek(0)
    while nbytes and (body := file.read(min(nbytes, _READ_BYTES))):
        result.update(body)
        nbytes -= len(body)
    return result


def _open(directory: str | None, name: str) -> IO[bytes]:
    if directory is None:
        return tempfile.TemporaryFile(prefix="npstream-")
    path = os.path.join(directory, name)
    return open(path, "r+b" if os.path.exists(path) else "x+b")


def _content(file: IO[bytes], dtype: np.dtype[Any]) -> AnyArray:
    file.seek(0)
    return np.frombuffer(file.read(), dtype)


def _piece_counts(index: Index) -> AnyArray:
    """Return the number of pieces of each shard."""
    samples = np.diff(index.starts)
    return chunk_counts(samples, index.nbytes, index.compressed, index.chunk_bytes) + 1
