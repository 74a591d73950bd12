"""Writing datasets: samples or whole columns in, a directory of MDS shards and its index out."""

from __future__ import annotations

import json
import threading
import time
import weakref
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from npstream._core.arguments import parse_size, quantity
from npstream._core.typing import AnyArray, Body, Bytes, Int64
from npstream.errors import ColumnError, short_traceback
from npstream.formats.compression import compress, parse_compression
from npstream.formats.encodings.encodings import Encoding
from npstream.formats.hashes import digest
from npstream.formats.index import ANNOTATIONS_KEY
from npstream.formats.scan import Scan, scalar_columns
from npstream.storage.local import open_store
from npstream.writing.destination import destination
from npstream.writing.inputs.recognition import foreign_table, samples_of, table_of
from npstream.writing.shard import Bodies, ColumnBlock, FileSummary, ShardFormat
from npstream.writing.sidecar import Spool, sidecar_files
from npstream.writing.tables import (
    GivenTable,
    RowError,
    TableStream,
    has_utf8_name,
    infer_column,
    parse_column,
    table_encodings,
)

if TYPE_CHECKING:
    from os import PathLike

    from npstream.writing.destination import Destination
    from npstream.writing.tables import ArrowStream, MapDataset, Writable

__all__ = ["WriteReport", "Writer", "write"]

BLOCK_BYTES = 1 << 23
"""Bytes of a table that are put together at once."""

BLOCK_ROWS = 1 << 16
"""Rows of it, so that the kernels' tables of addresses stay in the processor's cache."""

FIRST_ROWS = 64
"""Rows of the first block, where nothing tells how large rows are."""


@dataclass(frozen=True, slots=True)
class WriteReport:
    """What was written: what `write` and `Writer.close` return.

    Attributes
    ----------
    path : str
        The dataset's directory or URL.
    columns : dict of str to str
        The encoding of each column, as ``columns=`` takes it, in the order they were given in.
    samples : int
        Number of samples.
    shards : int
        Number of shards.
    raw_bytes : int
        Bytes of all shards before compression.
    stored_bytes : int
        Bytes of all shards as they are stored.
    seconds : float
        Time from the Writer's creation to the index's publication.

    Examples
    --------
    >>> report = write("squares", {"square": np.arange(10) ** 2}, compression="zstd")
    >>> report.samples, report.shards, report.stored_bytes < report.raw_bytes
    (10, 1, True)
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
    data: Iterable[Any] | Mapping[str, Any] | Writable | ArrowStream | MapDataset,
    *,
    columns: Mapping[str, str] | None = None,
    shard_size: int | str | None = "64MiB",
    compression: str | None = None,
    hashes: Iterable[str] = (),
    storage_options: Mapping[str, Any] | None = None,
    timeout: float = 60.0,
    retries: int = 4,
) -> WriteReport:
    """Write a dataset.

    It appears as a whole: whatever fails, nothing is published, and what was written is removed.

    Parameters
    ----------
    path : str or os.PathLike
        A local directory or a URL such as ``s3://bucket/corpus``; it must not hold a dataset.
    data : iterable of samples, mapping of columns, table or Dataset
        Samples, each a mapping from column name to value, or a tuple that `columns` names. Or a
        mapping from column name to a list, or to an array of any library. Or a table: a DataFrame
        of pandas or polars, what lends Arrow's tables, a structured array. Or a Dataset of Hugging
        Face or torch. Or a Dataset, view, column or Batch of npstream, whose values are copied as
        they are stored.
    columns : mapping of str to str, optional
        The encoding of each column, such as ``"int64"``, ``"str"``, ``"ndarray:uint16:1024"``,
        ``"bool"``, ``"datetime64[s]"``; other columns are left out. By default all, with the
        encodings that suit the first sample, or the types of the table.
    shard_size : int, str or None, default: "64MiB"
        Bytes of a shard before compression, less than 4 GiB; None (or 0) for a single shard. A
        sample that is larger makes a shard of its own.
    compression : str, optional
        ``"zstd"``, ``"gz"``, ``"bz2"``, ``"br"``, each also with ``":level"``, or ``"snappy"``. By
        default shards are not compressed.
    hashes : iterable of str, default: ()
        Hashes that the index shall record of every file, such as ``"xxh3_64"`` and ``"sha256"``.
    storage_options : mapping, optional
        Options of the driver, if the dataset is written to a URL.
    timeout : float, default: 60.0
        Seconds that a request to the store may take, with all its attempts.
    retries : int, default: 4
        How often a request is tried again.

    Returns
    -------
    WriteReport
        What was written, and where.

    Raises
    ------
    TypeError, ValueError
        If a value is not one that its column's encoding holds exactly, a sample has a key that
        the first one lacks, or nothing says which columns there are. The message names sample and
        column. Also if an encoding, codec, hash or size is not known.
    ColumnError
        If a sample lacks a column.
    FileExistsError
        If there is a dataset, or a part of one: another write is under way, or was cut off.
    StorageError
        If a file cannot be stored.
    MissingDependencyError
        If a codec, a dtype, images or the store's driver need a package that is not installed.

    See Also
    --------
    Writer : The same, sample by sample.

    Examples
    --------
    >>> import npstream
    >>> rows = np.arange(20, dtype=np.uint16).reshape(5, 4)
    >>> report = npstream.write("letters", {"tokens": rows, "name": list("abcde")})
    >>> report.samples, report.columns
    (5, {'tokens': 'ndarray:uint16:4', 'name': 'str'})
    """
    with short_traceback:
        names = columns if isinstance(columns, Mapping) else None
        with _sample_numbers(0):
            table = table_of(data, names)
            samples = samples_of(data, names) if table is None else ()
        if isinstance(samples, TableStream):
            table = samples
        chosen: Mapping[str, str | Encoding] | None = columns
        if columns is None and table is not None:
            chosen = table_encodings(table.head if isinstance(table, TableStream) else table)
        with Writer(
            path, chosen, shard_size=shard_size, compression=compression, hashes=hashes,
            storage_options=storage_options, timeout=timeout, retries=retries,
        ) as writer:  # fmt: skip
            writer._is_inferred = columns is None
            if isinstance(table, TableStream):
                writer._write_stream(table)
            elif table is not None:
                writer._write_table(table)
            else:
                assert not isinstance(samples, TableStream)
                for sample in samples:
                    writer._write(sample)
        return writer.close()


class Writer:
    """Writes a dataset sample by sample.

    As a context manager it publishes the dataset at the end of the block; a block left by an
    exception publishes nothing, and removes what was written.

    Parameters
    ----------
    path : str or os.PathLike
        A local directory or a URL; it must not hold a dataset.
    columns : mapping of str to str, optional
        The encoding of each column; other keys of samples are ignored. By default the columns are
        the keys of the first sample, with the encodings that suit its values.
    shard_size : int, str or None, default: "64MiB"
        Bytes of a shard before compression, less than 4 GiB; None (or 0) for a single shard.
    compression : str, optional
        The codec of the shards, as for `write`. By default they are not compressed.
    hashes : iterable of str, default: ()
        Hashes that the index shall record of every file.
    storage_options : mapping, optional
        Options of the driver, if the dataset is written to a URL.
    timeout : float, default: 60.0
        Seconds that a request to the store may take, with all its attempts.
    retries : int, default: 4
        How often a request is tried again.

    Raises
    ------
    TypeError, ValueError
        If an encoding, codec, hash or size is not known.
    FileExistsError
        If there is a dataset, or a part of one.
    StorageError
        If the directory cannot be made, or the store cannot be asked.
    MissingDependencyError
        If a codec, a dtype, images or the store's driver need a package that is not installed.

    See Also
    --------
    write : All samples, or whole columns, at once.

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
        columns: Mapping[str, str | Encoding] | None = None,
        *,
        shard_size: int | str | None = "64MiB",
        compression: str | None = None,
        hashes: Iterable[str] = (),
        storage_options: Mapping[str, Any] | None = None,
        timeout: float = 60.0,
        retries: int = 4,
    ) -> None:
        self._start = time.perf_counter()
        parse_compression(compression)
        self._settings = (_size_limit(shard_size), compression, _hash_names(hashes))
        self._format = None if columns is None else self._new_format(columns)
        self._is_inferred = columns is None
        store = open_store(path, storage_options, timeout=timeout, retries=retries)
        self._destination = destination(store)
        # Also when this Writer is given up without a word.
        self._given_up = weakref.finalize(self, _remove, self._destination)
        self._destination.prepare()
        self._entries: list[dict[str, Any]] = []
        self._written = 0
        self._rows: list[Body] = []
        self._sizes: list[int] = []
        self._nbytes = 0
        self._row_bytes = 0
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
        if error is None:
            self.close()
        elif self._open:
            self._discard(error)

    def write(self, sample: Mapping[str, Any] | ArrowStream) -> None:
        """Add a sample, or the rows of a Batch, Dataset or table.

        A sample, Batch or table that is refused with an exception is as if it had not been given.
        An exception of storing a shard, and an interruption meanwhile, closes the Writer: nothing
        is published.

        Parameters
        ----------
        sample : mapping of str to object, Batch, Dataset, Column or table
            A value for each column. If columns were named to the Writer, other keys are ignored;
            if not, the columns are the keys of the first sample, and others are refused.

        Raises
        ------
        TypeError, ValueError
            If a value is not one that its column's encoding holds exactly, there is a key without
            a column, or the Writer is closed.
        ColumnError
            If the sample lacks a column.
        FileExistsError
            If another write has begun here.
        StorageError
            If a shard cannot be stored.

        Examples
        --------
        >>> with Writer("letters") as writer:
        ...     writer.write({"letter": "a"})
        ...     writer.write(npstream.Batch({"letter": ["b", "c"]}))
        >>> writer.close().samples
        3
        """
        with short_traceback:
            self._write(sample)

    def _write(self, sample: Any) -> None:
        self._check_open()
        number = self._written + len(self._sizes)
        if type(sample) is not dict and hasattr(type(sample), "_to_write"):
            table = table_of(sample)
            if table is not None:
                assert not isinstance(table, TableStream)
                self._write_table(table, at_once=isinstance(sample, Mapping))
                return
        if not isinstance(sample, Mapping) and self._write_foreign(sample, number):
            return
        if not isinstance(sample, Mapping):
            raise TypeError(
                f"sample {number} is of type {type(sample).__name__}; "
                "expected a mapping from column name to value"
            )
        layout = self._format
        if layout is None:
            layout = self._new_format({name: infer_column(name, sample[name]) for name in sample})
        elif self._is_inferred and len(sample) > len(layout.columns):
            self._refuse_surplus(layout.columns, sample, number)
        row = layout.encode(sample, number)
        self._format = layout
        nbytes, limit = len(row) + 4, self._format.size_limit
        if self._rows and limit and self._nbytes + nbytes > limit:
            self._flush()
        if not self._rows:
            self._nbytes = self._format.empty
        self._format.check_end(self._nbytes + nbytes, number)
        try:
            self._rows.append(row)
            self._sizes.append(len(row))
            self._nbytes += nbytes
        except BaseException as error:  # an interruption, which may have come in between
            self._discard(error)
            raise

    def _refuse_surplus(self, columns: Container[str], names: Iterable[Any], number: int) -> None:
        """Raise if there are names of which no column was made."""
        if surplus := [name for name in names if name not in columns]:
            raise ValueError(
                f"sample {number} has {surplus[0]!r}, which the first sample lacks, so there is no "
                "column for it: name all columns in columns=, and give every sample all of them; "
                "or leave that key out"
            )

    def close(self) -> WriteReport:
        """Publish the dataset, unless that is done, and say what was written.

        Returns
        -------
        WriteReport

        Raises
        ------
        ValueError
            If nothing says what the dataset holds, or the Writer was closed by an exception.
        FileExistsError
            If another write has begun, or published, here.
        StorageError
            If a file cannot be stored.

        Examples
        --------
        >>> writer = Writer("one")
        >>> writer.write({"x": 1})
        >>> writer.close().columns
        {'x': 'int'}
        """
        with short_traceback:
            if self._report is None:
                self._check_open()
                with self._all_or_nothing():
                    self._publish()
                    self._given_up.detach()
                self._open = False
                self._report = self._make_report()
            return self._report

    def _publish(self) -> None:
        """Store what is left of the samples, and then the index."""
        if self._format is None:
            raise ValueError("no samples, and no columns=: nothing says what the dataset holds")
        if self._rows:
            self._flush()
        index: dict[str, Any] = {"shards": self._entries, "version": 2}
        if self._format.annotations or not self._entries:
            schema = None if self._entries else self._format.schema
            index[ANNOTATIONS_KEY] = self._format.annotations.document(schema)
        text = json.dumps(index, sort_keys=True).encode()
        if self._spool is None:
            self._destination.begin()
            self._destination.publish(text, ())
        else:
            self._destination.publish(text, sidecar_files(self._spool, text))

    def _new_format(self, columns: Any) -> ShardFormat:
        if not isinstance(columns, Mapping):
            raise TypeError(f"columns maps names to encodings; got {columns!r}")
        if not columns:
            raise ValueError("a dataset has at least one column; columns is empty")
        parsed = {}
        for name, encoding in columns.items():
            if not isinstance(name, str) or not isinstance(encoding, str | Encoding):
                shown = encoding.name if isinstance(encoding, Encoding) else encoding
                raise TypeError(
                    f"columns maps names to encodings, both str; got {name!r}: {shown!r}"
                )
            if not has_utf8_name(name):
                raise ValueError(f"column {name!r}: its name has surrogates, which UTF-8 has not")
            parsed[name] = parse_column(name, encoding) if isinstance(encoding, str) else encoding
        inferred = any(isinstance(encoding, Encoding) for encoding in columns.values())
        return ShardFormat(parsed, *self._settings, inferred=inferred)

    def _check_open(self) -> None:
        if not self._open:
            raise ValueError(
                "this Writer is closed: it published its dataset, or failed and left; open another "
                "npstream.Writer, for another directory"
            )

    def _write_foreign(self, data: Any, number: int) -> bool:
        """Write a table of another library all at once; return False if it is none."""
        columns = self._format.columns if self._format and not self._is_inferred else None
        with _sample_numbers(number):
            table = foreign_table(data, columns, {})
        if isinstance(table, TableStream):
            self._write_stream(table, at_once=True)
        elif table is not None:
            self._write_table(table, at_once=True)
        return table is not None

    def _write_stream(self, stream: TableStream, at_once: bool = False) -> None:
        """Write tables one after another."""
        if self._format is None:
            self._format = self._new_format(table_encodings(stream.head))
        while True:
            with _sample_numbers(self._written + len(self._sizes)):
                table = next(stream.tables, None)
            if table is None:
                return
            self._write_table(table, at_once, as_records=False)

    def _write_table(
        self, table: GivenTable, at_once: bool = False, as_records: bool = True
    ) -> None:
        """Write columns of a common length, block by block, or all or nothing of them.

        Arrays of fixed columns make shards of their own, unless `as_records` is False.
        """
        with _sample_numbers(self._written + len(self._sizes)):
            self._write_columns(table, at_once, as_records)

    def _write_columns(self, table: GivenTable, at_once: bool, as_records: bool) -> None:
        names, number = table.names(), self._written + len(self._sizes)
        layout = self._format or self._new_format(table_encodings(table))
        columns = layout.columns
        if self._is_inferred:
            self._refuse_surplus(columns, names, number)
        for name in columns:
            if name not in names:
                where = f"sample {number}: " if number else ""
                raise ColumnError(name, getattr(table, "given", names), where)
        fixed = all(encoding.kind == "fixed" for encoding in columns.values())
        if not at_once:
            self._format = layout
            if fixed and table.is_arrays and as_records:
                self._write_records(table)
                return
        bounds = [(0, table.length)] if at_once else self._bounds(table, 0, table.length)
        for block in table.blocks(bounds, columns) if table.length else ():
            number = self._written + len(self._sizes)
            packed = {
                name: part
                if isinstance(part, np.ndarray | Bodies)
                else layout.bodies(name, part, number)
                for name, part in block.items()
            }
            samples = layout.pack(packed, number)
            self._format = layout
            self._append(*samples)

    def _bounds(self, table: GivenTable, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield where blocks of a table begin and end, of about `BLOCK_BYTES` each."""
        while start < stop:
            nbytes = table.row_bytes or self._row_bytes
            rows = min(BLOCK_BYTES // nbytes, BLOCK_ROWS) if nbytes else FIRST_ROWS
            end = -(-(start + max(rows, 1)) // table.chunk) * table.chunk
            yield start, min(end, stop)
            start = end

    def _write_records(self, table: GivenTable) -> None:
        """Write arrays of fixed columns, with no Python per sample."""
        assert self._format is not None
        if self._rows:
            self._flush()
        layout, samples = self._format, table.length
        each = sum(encoding.size or 0 for encoding in layout.columns.values()) + 4
        per_shard = samples
        if layout.size_limit:
            per_shard = min(samples, max(1, (layout.size_limit - layout.empty) // each))
        layout.check_end(layout.empty + per_shard * each, self._written + per_shard - 1)
        for start in range(0, samples, max(per_shard, 1)):
            stop = min(start + per_shard, samples)
            blocks = self._arrays(table, start, stop)
            self._store(layout.records(blocks, stop - start), stop - start)

    def _arrays(self, table: GivenTable, start: int, stop: int) -> Iterator[dict[str, AnyArray]]:
        """Yield rows of fixed columns as arrays of their dtypes."""
        assert self._format is not None
        number = self._written
        for block in table.blocks(self._bounds(table, start, stop), self._format.columns):
            yield {name: self._array(name, part, number) for name, part in block.items()}
            number += len(next(iter(block.values())))

    def _array(self, name: str, part: ColumnBlock, number: int) -> AnyArray:
        """Return rows of a fixed column as an array; values are encoded, or refused, one by one."""
        assert self._format is not None
        if isinstance(part, np.ndarray):
            return part
        assert not isinstance(part, Bodies)
        encoding = self._format.columns[name]
        body = b"".join(self._format.bodies(name, part, number))
        values = np.frombuffer(body, encoding.dtype.newbyteorder("<"))
        return values.reshape(-1, *(encoding.shape or ()))

    def _append(self, data: Bytes, nbytes: Int64) -> None:
        """Add samples that lie back to back, and store the shards that they fill."""
        assert self._format is not None
        ends = np.concatenate([[0], np.cumsum(nbytes)])
        costs = ends + 4 * np.arange(len(ends))
        self._row_bytes = -(-len(data) // max(len(nbytes), 1))
        number = self._written + len(self._sizes)
        if self._format.size_limit:  # a sample that does not fit begins a shard
            self._format.check_ends(self._format.empty + np.diff(costs), number)
        else:
            begin = self._nbytes if self._rows else self._format.empty
            self._format.check_ends(begin + costs[1:], number)
        with self._all_or_nothing():
            self._append_checked(data, nbytes, ends, costs)

    def _append_checked(self, data: Bytes, nbytes: Int64, ends: Int64, costs: Int64) -> None:
        """Add samples, given where each ends, and where it would with what the head says of it."""
        assert self._format is not None
        limit = self._format.most
        row, count = 0, len(nbytes)
        while row < count:
            if not self._rows:
                self._nbytes = self._format.empty
            room = int(costs[row]) + limit - self._nbytes
            stop = int(np.searchsorted(costs, room, side="right")) - 1
            if stop <= row and self._rows and self._format.size_limit:
                self._flush()
                continue
            stop = max(stop, row + 1)
            self._rows.append(data[int(ends[row]) : int(ends[stop])].data)
            self._sizes += nbytes[row:stop].tolist()
            self._nbytes += int(costs[stop] - costs[row])
            row = stop

    def _flush(self) -> None:
        """Store the rows as a shard."""
        assert self._format is not None
        with self._all_or_nothing():
            sizes = np.array(self._sizes, np.int64)
            head, rows = self._format.head(np.cumsum(sizes)), self._rows
            self._rows, self._sizes = [], []
            if len(rows) == len(sizes):
                rows = [b"".join(rows)]
            self._store([head, *rows], len(sizes))

    def _store(self, pieces: Iterable[Body], samples: int) -> None:
        """Store a shard; each piece is used before the next is asked for."""
        assert self._format is not None
        compression, hashes = self._format.compression, self._format.hashes
        number = len(self._entries)
        with self._all_or_nothing():
            if self._spool is None:
                self._destination.begin()
                columns = scalar_columns([self._format.schema])
                self._spool = Spool(columns, hashed=True, mark=self._destination.mark)
            mark = self._destination.mark
            scan = Scan(
                self._format.schema, samples, self._spool.dtypes, compressed=bool(compression)
            )
            pieces = scan.tee(pieces)
            raw = FileSummary(self._format.name(number, mark=mark), hashes)
            stored = None
            if compression is None:
                self._destination.put(raw.name, raw.watch(pieces))
            else:
                shard = bytearray()
                for piece in raw.watch(pieces):
                    shard += piece
                stored = FileSummary(self._format.name(number, compression, mark), hashes)
                packed = compress(memoryview(shard), compression)
                self._destination.put(stored.name, stored.watch([packed]))
            self._spool.add(scan.finish())
            self._entries.append(self._format.entry(samples, raw, stored))
            self._written += samples

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Give the dataset up if the block fails, which may have lost a shard."""
        try:
            yield
        except BaseException as error:
            self._discard(error)
            raise

    def _discard(self, error: BaseException) -> None:
        if not self._open:
            return
        self._open = False
        if self._spool is not None:
            self._spool.close()
        self._rows.clear()
        if left := self._destination.remove():
            error.add_note(left)
        self._given_up.detach()

    def _make_report(self) -> WriteReport:
        raw = [entry["raw_data"] for entry in self._entries]
        stored = [entry["zip_data"] or entry["raw_data"] for entry in self._entries]
        assert self._format is not None
        columns = self._format.columns
        given = self._format.annotations.order or columns
        return WriteReport(
            path=self._destination.path,
            columns={name: columns[name].name for name in given},
            samples=self._written,
            shards=len(self._entries),
            raw_bytes=sum(file["bytes"] for file in raw),
            stored_bytes=sum(file["bytes"] for file in stored),
            seconds=time.perf_counter() - self._start,
        )


@contextmanager
def _sample_numbers(first: int) -> Iterator[None]:
    """Raise errors of a table's rows by numbers of samples; its first row is sample `first`."""
    try:
        yield
    except RowError as error:
        raise error.at(first) from error.__cause__


def _remove(place: Destination) -> None:
    """Remove what a Writer made that nobody closed, and wait in no thread that has other work."""
    if threading.current_thread() is threading.main_thread():
        place.remove()
    else:
        threading.Thread(target=place.remove, name="npstream-remove").start()


def _size_limit(shard_size: int | str | None) -> int | None:
    limit = parse_size(shard_size)
    if limit and limit >= 2**32:
        raise ValueError(
            f"shard_size {shard_size!r} is {quantity(limit, 'byte')}: it must be less than 4 GiB "
            "(2**32), as the offsets in a shard are uint32"
        )
    return limit or None


def _hash_names(hashes: Iterable[str]) -> list[str]:
    names = [hashes] if isinstance(hashes, str) else list(hashes)
    for name in names:
        digest(name, b"")  # refuses an unknown one
    return names
