"""Writing datasets: samples or whole columns in, a directory of shards and its index out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from npstream._core.progress import show_progress
from npstream.errors import short_traceback, shorten
from npstream.writing.engine import WriterEngine, sample_numbers
from npstream.writing.inputs.fill import check_fill
from npstream.writing.inputs.recognition import iterate, samples_of, table_of
from npstream.writing.mapping import MapFunction, rows_of
from npstream.writing.report import WriteReport
from npstream.writing.rows import (
    encode_none,
)
from npstream.writing.settings import (
    check_workers,
)
from npstream.writing.tables import TableStream, table_encodings

if TYPE_CHECKING:
    from os import PathLike

    from npstream.formats.encodings.encodings import Encoding
    from npstream.writing.tables import ArrowStream, MapDataset, Writable

__all__ = ["WriteReport", "Writer", "write"]


def write(
    path: str | PathLike[str],
    data: Iterable[Any] | Mapping[str, Any] | Writable | ArrowStream | MapDataset,
    *,
    columns: Mapping[str, str] | None = None,
    map: MapFunction | None = None,
    workers: int = 0,
    fill: Mapping[str, Any] | None = None,
    on_error: str = "raise",
    max_errors: int | None = None,
    rejects: str | PathLike[str] | None = None,
    format: str = "mds",
    separator: str | None = None,
    newline: str | None = None,
    sidecar: bool = True,
    shard_size: int | str | None = "64MiB",
    shard_samples: int | None = None,
    compression: str | None = None,
    hashes: Iterable[str] = (),
    progress: bool | None = None,
    storage_options: Mapping[str, Any] | None = None,
    timeout: float = 60.0,
    retries: int = 4,
) -> WriteReport:
    """Write a dataset.

    The dataset appears as a whole. After any failure, nothing is published, and all files that
    were written are removed.

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
        encodings that suit the first sample, or the types of the table. Types such as ``int``
        and dtypes stand for the encodings of their values.
    map : callable, optional
        Is called with each sample, or row of a table, which then need not be a mapping. It returns
        a sample, None for no sample, or an iterable of samples.
    workers : int, default: 0
        Processes that run `map` and encode samples; 0 for this process. The order of the samples
        stays. Samples are pickled to be sent to a process, and with the start methods "spawn" and
        "forkserver" `map`, too. Tables that are written without `map` do not need them.
    fill : mapping of str to object, optional
        The value of a column in samples without its key, or with None, and in tables' nulls.
    on_error : {"raise", "skip"}, default: "raise"
        Whether a sample that is refused raises, or is left out.
    max_errors : int, optional
        How many samples may be left out; one more raises ValueError. By default any number.
    rejects : str or os.PathLike, optional
        A local file of JSON lines, which is replaced: number in the input, reason and shortened
        repr of each sample that is left out.
    format : str, default: "mds"
        ``"mds"``, or text: ``"jsonl"``, ``"csv"``, ``"tsv"`` or ``"xsv"``. Columns of text are
        ``"str"``, ``"int"`` and ``"float"``.
    separator : str, optional
        The text between two fields of ``"xsv"``, which has no default.
    newline : str, optional
        The text after each line of a text format; a line feed by default.
    sidecar : bool, default: True
        Whether to write the side-car, too.
    shard_size : int, str or None, default: "64MiB"
        Bytes of a shard before compression, less than 4 GiB; None (or 0) for a single shard. A
        sample that is larger makes a shard of its own.
    shard_samples : int, optional
        Samples of a shard. A shard ends where either limit is reached.
    compression : str, optional
        ``"zstd"``, ``"gz"``, ``"bz2"``, ``"br"``, each also with ``":level"``, or ``"snappy"``. By
        default shards are not compressed.
    hashes : iterable of str, default: ()
        Hashes that the index shall record of every file, such as ``"xxh3_64"`` and ``"sha256"``.
    progress : bool, optional
        Whether to show samples, bytes and their rate on standard error, by tqdm if it is
        installed. By default in a terminal or notebook, if writing takes more than a second.
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
        column. Also if an encoding, codec, hash or size is not known, or if more samples were
        refused than `max_errors`.
    ColumnError
        If a sample lacks a column.
    RuntimeError
        If a worker process was killed.
    FileExistsError
        If there is a dataset, or a part of one: another write is under way, or was interrupted.
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
        names = columns if isinstance(columns, Mapping) and map is None else None
        fills = check_fill(fill) if map is None else {}
        samples: Iterable[Any] | TableStream = ()
        with sample_numbers(0):
            table = table_of(data, names, fills, check=on_error == "raise")
            if table is None:
                samples = iterate(data) if map is not None else samples_of(data, names, fills)
        if isinstance(samples, TableStream):
            table, samples = samples, ()
        chosen: Mapping[str, str | Encoding] | None = columns
        if columns is None and map is None and table is not None:
            chosen = table_encodings(table.head if isinstance(table, TableStream) else table)
        if table is not None and map is not None:
            samples, table = rows_of(table), None
        writer = Writer.__new__(Writer)
        writer._configure(
            chosen, fill=fill, on_error=on_error, max_errors=max_errors, rejects=rejects,
            format=format, separator=separator, newline=newline,
            shard_size=shard_size, compression=compression, hashes=hashes,
        )  # fmt: skip
        writer._is_inferred = columns is None
        pool = None
        if check_workers(workers) and table is None:
            # Before clients of the store and threads are made, which forks do not survive.
            pool = writer._start_workers(workers, map)
        try:
            writer._connect(path, sidecar, shard_samples, storage_options, timeout, retries)
            with writer, show_progress(writer._shards, progress):
                if table is not None and fill is not None and hasattr(type(data), "_to_write"):
                    writer._write_rows(table)  # npstream's own tables are not filled as columns
                elif table is not None:
                    writer._write_given(table)
                elif pool is not None:
                    writer._write_results(pool, samples)
                else:
                    writer._write_samples(samples if map is None else writer._mapped(map, samples))
        finally:
            if pool is not None:
                pool.stop()
        return writer.close()


class Writer(WriterEngine):
    """Writes a dataset sample by sample.

    As a context manager, it publishes the dataset at the end of the block. If the block raises, it
    publishes nothing, and removes all files that were written.

    Parameters
    ----------
    path : str or os.PathLike
        A local directory or a URL; it must not hold a dataset.
    columns : mapping of str to str, optional
        The encoding of each column; other keys of samples are ignored. By default the columns are
        the keys of the first sample, with the encodings that suit its values.
    fill : mapping of str to object, optional
        The value of a column in samples that have no such key, or None there.
    on_error : {"raise", "skip"}, default: "raise"
        Whether a sample that is refused raises, or is left out.
    max_errors : int, optional
        How many samples may be left out; one more raises ValueError. By default any number.
    rejects : str or os.PathLike, optional
        A local file of JSON lines that records the samples that are left out, as for `write`.
    format : str, default: "mds"
        ``"mds"``, or text: ``"jsonl"``, ``"csv"``, ``"tsv"`` or ``"xsv"``, as for `write`.
    separator : str, optional
        The text between two fields of ``"xsv"``, which has no default.
    newline : str, optional
        The text after each line of a text format; a line feed by default.
    sidecar : bool, default: True
        Whether to write the side-car, too.
    shard_size : int, str or None, default: "64MiB"
        Bytes of a shard before compression, less than 4 GiB; None (or 0) for a single shard.
    shard_samples : int, optional
        Samples of a shard. A shard ends where either limit is reached.
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
        fill: Mapping[str, Any] | None = None,
        on_error: str = "raise",
        max_errors: int | None = None,
        rejects: str | PathLike[str] | None = None,
        format: str = "mds",
        separator: str | None = None,
        newline: str | None = None,
        sidecar: bool = True,
        shard_size: int | str | None = "64MiB",
        shard_samples: int | None = None,
        compression: str | None = None,
        hashes: Iterable[str] = (),
        storage_options: Mapping[str, Any] | None = None,
        timeout: float = 60.0,
        retries: int = 4,
    ) -> None:
        self._configure(
            columns, fill=fill, on_error=on_error, max_errors=max_errors, rejects=rejects,
            format=format, separator=separator, newline=newline,
            shard_size=shard_size, compression=compression, hashes=hashes,
        )  # fmt: skip
        self._connect(path, sidecar, shard_samples, storage_options, timeout, retries)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self.close()
        except BaseException as failure:
            self._discard(failure)  # after an interruption, when `close` has not done that
            raise
        if error is not None:
            self._discard(error)

    def write(self, sample: Mapping[str, Any] | ArrowStream) -> None:
        """Add a sample, or the rows of a Batch, Dataset or table.

        A sample, Batch or table that is refused with an exception is as if it had not been given.
        An exception of storing a shard, and an interruption meanwhile, closes the Writer: nothing
        is published. Shards are stored in the background, so a later call may raise.

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
        try:
            self._write(sample)
        except BaseException as error:
            shorten(error)
            raise

    def close(self) -> WriteReport:
        """Publish the dataset, unless it is published already, and return a summary.

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
                self._encode_dict = encode_none
                self._report = self._make_report()
            return self._report
