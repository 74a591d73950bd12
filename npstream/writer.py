"""Writing datasets: samples or whole columns in, a directory of MDS shards and its index out."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeGuard

import numpy as np

from npstream._typing import AnyArray, Body
from npstream.errors import ColumnError
from npstream.formats.arrays import DTYPES
from npstream.formats.compression import compress, parse_compression
from npstream.formats.encodings import Encoding, infer
from npstream.formats.hashes import digest
from npstream.formats.mds_encode import ShardFormat, Tally, cells
from npstream.formats.scalars import scalar_columns
from npstream.formats.scan import Scan
from npstream.publish import new_place
from npstream.sizes import parse_size
from npstream.spool import Spool, sidecar_files

if TYPE_CHECKING:
    from os import PathLike

__all__ = ["WriteReport", "Writer", "write"]


@dataclass(frozen=True, slots=True)
class WriteReport:
    """What was written.

    Attributes
    ----------
    path : str
        The dataset's directory or URL.
    columns : dict of str to str
        The encoding of each column, in stored order.
    samples, shards : int
        How many of them.
    raw_bytes, stored_bytes : int
        Bytes of all shards, before and after compression.
    seconds : float
        Time from the Writer's creation to the index's publication.
    """

    path: str
    columns: dict[str, str]
    samples: int
    shards: int
    raw_bytes: int
    stored_bytes: int
    seconds: float


def write(
    path: str | PathLike[str],
    data: Iterable[Mapping[str, Any]] | Mapping[str, Any],
    *,
    columns: Mapping[str, str] | None = None,
    shard_size: int | str | None = "64MiB",
    compression: str | None = None,
    hashes: Iterable[str] = (),
    storage_options: Mapping[str, Any] | None = None,
) -> WriteReport:
    """Write a dataset.

    It appears as a whole: whatever fails, nothing is published, and what was written is removed.

    Parameters
    ----------
    path : str or os.PathLike
        A local directory or a URL such as ``s3://bucket/corpus``; it must not hold a dataset.
    data : iterable of mappings, or mapping
        Samples, each a mapping from column name to value; or columns, a mapping from name to an
        array or list. NumPy arrays whose rows all have one size are written as fast as the disk
        takes them.
    columns : mapping of str to str, optional
        The encoding of each column, such as ``"int64"``, ``"str"``, ``"ndarray:uint16:1024"``;
        other columns are left out. By default all, with the encodings that suit the first
        sample, or the arrays.
    shard_size : int, str or None
        Bytes of a shard before compression, less than 4 GiB; None (or 0) for a single shard. A
        sample that is larger makes a shard of its own.
    compression : str, optional
        ``"zstd"``, ``"gz"``, ``"bz2"``, ``"br"``, each also with ``":level"``, or ``"snappy"``.
    hashes : iterable of str
        Hashes that the index shall record of every file, such as ``"xxh3_64"`` and ``"sha256"``.
    storage_options : mapping, optional
        Options of the driver, if the dataset is written to a URL.

    Returns
    -------
    WriteReport

    See Also
    --------
    Writer : The same, sample by sample.

    Examples
    --------
    >>> import npstream
    >>> rows = np.arange(20, dtype=np.uint16).reshape(5, 4)
    >>> report = npstream.write("letters", {"tokens": rows, "name": list("abcde")})
    >>> report.samples, report.columns
    (5, {'name': 'str', 'tokens': 'ndarray:uint16:4'})
    """
    with Writer(
        path, columns, shard_size=shard_size, compression=compression, hashes=hashes,
        storage_options=storage_options,
    ) as writer:  # fmt: skip
        if isinstance(data, Mapping):
            writer._write_table(data)
        else:
            for sample in data:
                writer.write(sample)
    return writer.close()


class Writer:
    """Writes a dataset sample by sample.

    As a context manager it publishes the dataset at the end of the block; a block left by an
    exception publishes nothing, and removes what was written.

    Parameters
    ----------
    path, columns, shard_size, compression, hashes, storage_options
        As for `write`.

    Examples
    --------
    >>> with Writer("numbers", {"text": "str", "label": "uint8"}) as writer:
    ...     for label, text in enumerate(["zero", "one"]):
    ...         writer.write({"text": text, "label": label})
    >>> writer.close().samples
    2
    """

    def __init__(
        self,
        path: str | PathLike[str],
        columns: Mapping[str, str] | None = None,
        *,
        shard_size: int | str | None = "64MiB",
        compression: str | None = None,
        hashes: Iterable[str] = (),
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        self._start = time.perf_counter()
        parse_compression(compression)
        self._settings = (_size_limit(shard_size), compression, _hash_names(hashes))
        self._format = None if columns is None else self._new_format(columns)
        self._directory = new_place(path, storage_options)
        self._entries: list[dict[str, Any]] = []
        self._written = 0
        self._rows: list[bytes] = []
        self._nbytes = 0
        self._open = True
        self._report: WriteReport | None = None
        self._spool: Spool | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        elif self._open:
            self._discard()

    def write(self, sample: Mapping[str, Any]) -> None:
        """Add a sample; keys that are no columns are ignored.

        A sample that is refused with an exception is as if it had not been given.
        """
        self._check_open()
        number = self._written + len(self._rows)
        if not isinstance(sample, Mapping):
            raise TypeError(
                f"sample {number} is of type {type(sample).__name__}; "
                "expected a mapping from column name to value"
            )
        if self._format is None:
            inferred = {name: _infer(name, value) for name, value in sample.items()}
            self._format = self._new_format(inferred)
        row = self._format.encode(sample, number)
        nbytes, limit = len(row) + 4, self._format.size_limit
        if self._rows and limit and self._nbytes + nbytes > limit:
            self._flush()
        if not self._rows:
            self._nbytes = self._format.empty
        self._format.check_end(self._nbytes + nbytes, number)
        self._rows.append(row)
        self._nbytes += nbytes

    def close(self) -> WriteReport:
        """Publish the dataset, unless that is done, and say what was written."""
        if self._report is None:
            self._check_open()
            if self._rows:
                self._flush()
            index = {"shards": self._entries, "version": 2}
            text = json.dumps(index, sort_keys=True).encode()
            with self._all_or_nothing():
                if self._spool is not None:
                    for name, parts in sidecar_files(self._spool, text):
                        self._directory.put(name, parts)
                self._directory.publish(text)
            self._open = False
            self._report = self._make_report()
        return self._report

    def _new_format(self, columns: Mapping[str, str]) -> ShardFormat:
        if not columns:
            raise ValueError("a dataset has at least one column; columns is empty")
        for name, encoding in columns.items():
            if not isinstance(name, str) or not isinstance(encoding, str):
                raise TypeError(f"columns maps names to encodings, both str; got {columns!r}")
        return ShardFormat(columns, *self._settings)

    def _check_open(self) -> None:
        if not self._open:
            raise ValueError("this Writer is closed: it published its dataset, or failed and left")

    def _write_table(self, table: Mapping[str, Any]) -> None:
        """Write columns of a common length."""
        samples = _table_length(table)
        if not samples:
            return
        if self._format is None:
            inferred = {name: _infer_column(name, values) for name, values in table.items()}
            self._format = self._new_format(inferred)
        columns = self._format.columns
        for name in columns:
            if name not in table:
                raise ColumnError(name, table)
        fields = {name for name in columns if _is_field(table[name], columns[name])}
        if len(fields) == len(columns):
            self._write_records([table[name] for name in columns], samples)
            return
        values = [
            cells(table[name], columns[name]) if name in fields else table[name] for name in columns
        ]
        for row in zip(*values, strict=True):
            self.write(dict(zip(columns, row, strict=True)))

    def _write_records(self, columns: list[AnyArray], samples: int) -> None:
        """Write fixed columns, with no Python per sample."""
        assert self._format is not None
        sizes = [encoding.size or 0 for encoding in self._format.columns.values()]
        each = sum(sizes) + 4
        per_shard = samples
        if self._format.size_limit:
            room = self._format.size_limit - self._format.empty
            per_shard = min(samples, max(1, room // each))
        self._format.check_end(self._format.empty + per_shard * each, per_shard - 1)
        for start in range(0, samples, per_shard):
            part = [column[start : start + per_shard] for column in columns]
            self._store(self._format.records(part), len(part[0]))

    def _flush(self) -> None:
        """Store the rows as a shard."""
        assert self._format is not None
        sizes = np.fromiter(map(len, self._rows), np.int64, len(self._rows))
        shard = b"".join([self._format.head(np.cumsum(sizes)), *self._rows])
        self._rows.clear()
        self._store([shard], len(sizes))

    def _store(self, pieces: Iterable[Body], samples: int) -> None:
        """Store a shard; each piece is used before the next is asked for."""
        assert self._format is not None
        compression, hashes = self._format.compression, self._format.hashes
        number = len(self._entries)
        if self._spool is None:
            self._spool = Spool(scalar_columns([self._format.schema]), hashed=True)
        scan = Scan(self._format.schema, samples, self._spool.dtypes, whole=bool(compression))
        pieces = scan.watch(pieces)
        raw = Tally(self._format.name(number), hashes)
        stored = None
        with self._all_or_nothing():
            if compression is None:
                self._directory.put(raw.name, raw.watch(pieces))
            else:
                shard = bytearray()
                for piece in raw.watch(pieces):
                    shard += piece
                stored = Tally(self._format.name(number, compression), hashes)
                packed = compress(memoryview(shard), compression)
                self._directory.put(stored.name, stored.watch([packed]))
            self._spool.add(scan.finish())
            self._entries.append(self._format.entry(samples, raw, stored))
            self._written += samples

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Give the dataset up if the block fails, which may have lost a shard."""
        try:
            yield
        except BaseException:
            self._discard()
            raise

    def _discard(self) -> None:
        self._open = False
        if self._spool is not None:
            self._spool.close()
        self._rows.clear()
        self._directory.remove()

    def _make_report(self) -> WriteReport:
        raw = [entry["raw_data"] for entry in self._entries]
        stored = [entry["zip_data"] or entry["raw_data"] for entry in self._entries]
        columns = {} if self._format is None else self._format.columns
        return WriteReport(
            path=self._directory.path,
            columns={name: encoding.name for name, encoding in columns.items()},
            samples=self._written,
            shards=len(self._entries),
            raw_bytes=sum(file["bytes"] for file in raw),
            stored_bytes=sum(file["bytes"] for file in stored),
            seconds=time.perf_counter() - self._start,
        )


def _size_limit(shard_size: int | str | None) -> int | None:
    limit = parse_size(shard_size)
    if limit and limit >= 2**32:
        raise ValueError(
            f"shard_size {shard_size!r} is {limit} bytes: it must be less than 4 GiB (2**32), "
            "as the offsets in a shard are uint32"
        )
    return limit or None


def _hash_names(hashes: Iterable[str]) -> list[str]:
    names = [hashes] if isinstance(hashes, str) else list(hashes)
    for name in names:
        digest(name, b"")  # refuses an unknown one
    return names


def _infer(name: str, value: Any) -> str:
    """Return the encoding that suits a value of a column."""
    try:
        return infer(value)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"column {name!r}: {error}") from error


def _infer_column(name: str, values: Any) -> str:
    """Return the encoding that suits a column, which is not empty."""
    if not isinstance(values, np.ndarray) or values.dtype.name not in DTYPES:
        return _infer(name, next(iter(values)))
    dtype, shape = values.dtype.name, values.shape[1:]
    return f"ndarray:{dtype}:{','.join(map(str, shape))}" if shape else dtype


def _table_length(table: Mapping[str, Any]) -> int:
    """Return the length that all columns must have."""
    lengths = {}
    for name, values in table.items():
        if isinstance(values, str | bytes | Mapping) or not hasattr(values, "__len__"):
            raise TypeError(
                f"column {name!r} is of type {type(values).__name__}: a mapping holds columns, "
                "each an array or a list; a single sample goes into a list"
            )
        lengths[name] = len(values)
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns differ in length: {lengths}")
    return next(iter(lengths.values()), 0)


def _is_field(values: Any, encoding: Encoding) -> TypeGuard[AnyArray]:
    """Tell whether copying a column into a record's field does what its encoding would do.

    Where it does not, the values are encoded one by one, and refused if need be.
    """
    if not isinstance(values, np.ndarray) or encoding.kind != "fixed":
        return False
    source, target = values.dtype.newbyteorder("="), encoding.dtype
    if values.shape[1:] != encoding.shape:
        return False
    if source == target:
        return True
    if source.kind in "iu" and target.kind in "iu" and not encoding.shape:
        limits = np.iinfo(target)
        return limits.min <= int(values.min()) and int(values.max()) <= limits.max
    return source.kind == target.kind == "f" and not encoding.shape
