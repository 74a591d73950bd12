"""Provide `write` and `Writer`, which store samples or whole columns as a dataset."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from os import PathLike
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from npstream._core.progress import show_progress
from npstream.errors import short_repr, short_traceback, shorten
from npstream.storage.local import check_location
from npstream.writing.engine import WriterEngine
from npstream.writing.formats import check_settings
from npstream.writing.inputs.fill import KEEP_MISSING, check_fill
from npstream.writing.inputs.parts import PartedInput, open_input
from npstream.writing.report import WriteReport
from npstream.writing.resumption.session import ResumableInput
from npstream.writing.rows import (
    encode_none,
)
from npstream.writing.settings import (
    check_column_list,
    check_workers,
    hash_names,
)
from npstream.writing.tables import TableStream, sample_numbers, table_encodings

if TYPE_CHECKING:
    from npstream.formats.encodings.encodings import Encoding
    from npstream.writing.mapping import MapFunction
    from npstream.writing.tables import ArrowStream, InputTable, MapDataset, Writable

__all__ = ["WriteReport", "Writer", "write"]


def write(
    path: str | PathLike[str],
    data: Iterable[Any] | Mapping[str, Any] | Writable | ArrowStream | MapDataset | PartedInput,
    *,
    mode: str = "x",
    columns: Mapping[str, str] | Sequence[str] | None = None,
    map: MapFunction | None = None,
    workers: int = 0,
    fill: Mapping[str, Any] | None = None,
    on_error: str = "raise",
    max_errors: int | None = None,
    rejects: str | PathLike[str] | None = None,
    format: str | None = None,
    separator: str | None = None,
    newline: str | None = None,
    sidecar: bool = True,
    shard_size: int | str | None = "64MiB",
    shard_samples: int | None = None,
    compression: str | None = None,
    hashes: Iterable[str] = (),
    resume: bool = False,
    exclusive: bool = False,
    progress: bool | None = None,
    storage_options: Mapping[str, Any] | None = None,
    timeout: float = 60.0,
    retries: int = 4,
) -> WriteReport:
    """Write a dataset.

    The dataset appears as a whole. After any failure, nothing is published, and all files that
    were written are removed; with ``resume=True``, the stored shards stay for the next call.

    Parameters
    ----------
    path : str or os.PathLike
        A local directory or a URL such as ``s3://bucket/corpus``.
    data : iterable of samples, mapping of columns, table or Dataset
        One of these:

        - samples. A sample is a mapping from column name to value. It can also be a tuple of values
          in the order of `columns`.
        - a mapping from column name to a list or to an array of any library.
        - a table: a DataFrame of pandas or polars, an object with Arrow's interface for tables,
          or a structured array.
        - a Dataset of Hugging Face or torch.
        - a Dataset, view, column or Batch of npstream. Its values are copied as they are stored.
    mode : {"x", "w", "a"}, default: "x"
        What happens to a dataset that `path` holds. ``"x"`` raises FileExistsError. ``"w"``
        replaces it, and ``"a"`` appends to it; both create a new one if there is none. At any time,
        readers find either the former dataset or the new one. An append keeps the former index,
        which ``npstream.open(path, version=...)`` opens.
    columns : mapping of str to str, or list of str, optional
        The encoding of each column, such as ``"int64"``, ``"str"``, ``"ndarray:uint16:1024"``,
        ``"bool"`` or ``"datetime64[s]"``. It can also be a type such as ``int``, or a dtype.
        A list names columns whose encodings are inferred. Other columns are left out. By default
        all columns are written. Encodings are inferred from the first sample or from the types
        of the table. An append encodes samples as the dataset does; a table must have its types.
    map : callable, optional
        A function that is called with each sample or row of a table. It returns a sample, an
        iterable of samples, or None to leave the sample out. With `map`, the samples of `data`
        need not be mappings. Nulls of tables are None.
    workers : int, default: 0
        Number of processes that run `map` and encode samples; 0 for this process. The order of
        the samples is kept. Samples are pickled to send them to a process. The start methods
        "spawn" and "forkserver" also pickle `map`. Tables without `map` are written without
        worker processes.
    fill : mapping of str to object, optional
        The value of a column for samples that lack its key or have None, and for nulls in tables.
        It also replaces NaN and NaT in a column that cannot store them, such as one of integers.
    on_error : {"raise", "skip"}, default: "raise"
        Whether a sample that cannot be encoded raises, or is left out.
    max_errors : int, optional
        Number of samples that may be left out; one more raises ValueError. By default any number.
    rejects : str or os.PathLike, optional
        A local file of JSON lines that records each sample that is left out: its number in the
        input, the reason, and its shortened repr. An existing file is replaced.
    format : str, optional
        ``"mds"``, or a text format: ``"jsonl"``, ``"csv"``, ``"tsv"`` or ``"xsv"``. The
        encodings of text formats are ``"str"``, ``"int"`` and ``"float"``. By default ``"mds"``,
        and for an append the format of the dataset.
    separator : str, optional
        The text between two fields of ``"xsv"``. That format requires it, but an append can take
        it from the dataset.
    newline : str, optional
        The text after each line of a text format; a line feed by default, and for an append
        that of the dataset.
    sidecar : bool, default: True
        Whether to also write the side-car.
    shard_size : int, str or None, default: "64MiB"
        Maximum bytes of a shard before compression, less than 4 GiB; None (or 0) for a single
        shard. A larger sample is stored in a shard of its own.
    shard_samples : int, optional
        Maximum number of samples of a shard. A shard ends when either limit is reached.
    compression : str, optional
        ``"zstd"``, ``"gz"``, ``"bz2"``, ``"br"``, each also with ``":level"``, or ``"snappy"``. By
        default shards are not compressed. The default of an append is the codec of the dataset's
        last shard.
    hashes : iterable of str, default: ()
        Hashes of each file that the index records, such as ``"xxh3_64"`` and ``"sha256"``. The
        default of an append is the hashes of the dataset's last shard.
    resume : bool, default: False
        Whether a later call can continue this write. If the write fails or the process is killed,
        the stored shards are kept. A call with ``resume=True`` continues after them. Its arguments
        and data must be the same as those of the interrupted call. The call skips the samples that
        are stored. The result is that of a write that was not interrupted. Readers do not see an
        unfinished write. An interrupted append or replacement is never published twice. A call that
        has returned is complete, so the next one with ``mode="a"`` appends again.
    exclusive : bool, default: False
        Whether the caller guarantees that no other process writes to `path`. An append replaces
        the index only if no other write has changed the index. Some stores cannot check this
        condition. In these stores, ``mode="a"`` needs ``exclusive=True``, and so does ``mode="w"``
        with ``resume=True``. Other stores always check the condition.
    progress : bool, optional
        Whether to show samples, bytes and their rate on standard error, with tqdm if it is
        installed. By default they are shown in a terminal or notebook after a second.
    storage_options : mapping, optional
        Options of the storage driver, if the dataset is written to a URL.
    timeout : float, default: 60.0
        Seconds that a request to the store may take, including all retries.
    retries : int, default: 4
        Number of retries of a request.

    Returns
    -------
    WriteReport
        The summary of the written dataset.

    Raises
    ------
    TypeError, ValueError
        If a column's encoding cannot store a value exactly, or a sample has a key that the first
        sample lacks. The message names the sample and the column. If there are neither samples
        nor `columns`. If an encoding, codec, hash or size is invalid. If more than `max_errors`
        samples are left out. If the columns of an append are not those of the dataset. With
        ``resume=True``: if the arguments or the data differ from those of the interrupted write.
    ColumnError
        If a sample lacks a column.
    RuntimeError
        If a worker process was killed.
    FileExistsError
        With ``mode="x"``, if `path` holds a dataset or a part of one. A part belongs to another
        write, which is in progress or was interrupted. With ``resume=True``, a part raises only if
        its write is in progress, or was not begun with ``resume=True``. With ``resume=True`` and
        another mode: if another write with ``resume=True`` is in progress, or if the dataset was
        replaced after the interrupted write had begun to publish.
    StorageError
        If a file cannot be stored. The errno is ``EOPNOTSUPP`` if the store needs `exclusive`.
    MissingDependencyError
        If a codec, a dtype, an image or the storage driver needs a package that is not installed.

    See Also
    --------
    Writer : Writes a dataset sample by sample.

    Examples
    --------
    >>> import npstream
    >>> rows = np.arange(20, dtype=np.uint16).reshape(5, 4)
    >>> report = npstream.write("letters", {"tokens": rows, "name": list("abcde")})
    >>> report.samples, report.columns
    (5, {'tokens': 'ndarray:uint16:4', 'name': 'str'})
    >>> version = npstream.open("letters").version
    >>> report = npstream.write("letters", {"tokens": rows[:1], "name": ["f"]}, mode="a")
    >>> len(npstream.open("letters")), len(npstream.open("letters", version=version))
    (6, 5)
    """
    with short_traceback:
        if isinstance(data, str | PathLike) and not isinstance(path, str | PathLike):
            raise TypeError(
                f"path is of type {type(path).__name__}, and data is {short_repr(data)}: the path "
                "comes first, as in npstream.write(path, data)"
            )
        settings: dict[str, Any] = {
            "format": format, "separator": separator, "newline": newline, "shard_size": shard_size,
            "compression": compression, "hashes": hash_names(hashes), "mode": mode,
            "exclusive": exclusive, "on_error": on_error, "max_errors": max_errors,
            "rejects": rejects,
        }  # fmt: skip
        check_settings(settings | {"shard_samples": shard_samples, "workers": workers})
        if map is not None and not callable(map):
            raise TypeError(f"map={short_repr(map)}: expected a function of a sample")
        selection = check_column_list(columns)
        check_location(path)  # before an iterator loses its first sample
        names = columns if map is None else None
        read = partial(
            open_input, data, names, check_fill(fill) if map is None else KEEP_MISSING,
            check=on_error == "raise", as_items=map is not None, may_be_empty=mode == "a",
        )  # fmt: skip
        # A forked process cannot use the threads and storage clients of its parent. So the workers
        # start before this write creates any, and before a part of the input is opened. With
        # `resume`, the records in the store determine which part to open first.
        opens_later = isinstance(data, PartedInput) and (check_workers(workers) > 0 or resume)
        table: InputTable | TableStream | None = None
        samples: Iterable[Any] = ()
        if not opens_later:
            with sample_numbers(0):
                table, samples = read()
        encodings = _encodings(columns, selection, map, table)
        writer = Writer.__new__(Writer)
        writer._configure(encodings, fill=fill, resume=resume, **settings)
        writer._is_inferred, writer._selection = columns is None, selection
        if isinstance(data, Mapping):
            writer._weakly_typed = frozenset(
                name for name, values in data.items() if isinstance(values, list | tuple)
            )
        pool = None
        if check_workers(workers) and (table is None or map is not None):
            pool = writer._start_workers(workers, map, resume)
        try:
            source = ResumableInput.describe(data, table, map is not None) if resume else None
            if opens_later and not resume:
                table, samples = read()
            connection = storage_options, timeout, retries
            writer._connect(path, sidecar, shard_samples, *connection, source)
            with writer, show_progress(writer._shards, progress):
                if opens_later and resume and not writer._is_complete:
                    table, samples = read()
                # Tables of npstream's classes do not apply `fill`, but the encoder of rows does.
                by_rows = fill is not None and hasattr(type(data), "_writer_input")
                writer._write_input(table, samples, map, pool, by_rows)
        finally:
            if pool is not None:
                pool.stop()
        return writer.close()


def _encodings(
    columns: Mapping[str, str] | Sequence[str] | None,
    selection: Collection[str] | None,
    map: MapFunction | None,
    table: Any,
) -> Mapping[str, str | Encoding] | Sequence[str] | None:
    """Return the encodings of a table that is written without `map`; otherwise return `columns`.

    If `columns` is a mapping, it has all encodings, and is always returned.
    """
    if isinstance(columns, Mapping) or map is not None or table is None:
        return columns
    return table_encodings(table.head if isinstance(table, TableStream) else table, selection)


class Writer(WriterEngine):
    """Writes a dataset sample by sample.

    As a context manager, it publishes the dataset at the end of the block. If the block raises, it
    publishes nothing, and removes all files that were written, unless `resume` is True.

    Parameters
    ----------
    path : str or os.PathLike
        A local directory or a URL.
    columns : mapping of str to str, or list of str, optional
        The encoding of each column, or only the names of columns, as for `write`. Other keys of
        samples are ignored. By default the columns are the keys of the first sample, and their
        encodings are inferred from its values. For an append, both are by default those of the
        dataset.
    mode : {"x", "w", "a"}, default: "x"
        Write a new dataset, replace one, or append to one, as for `write`.
    fill : mapping of str to object, optional
        The value of a column for samples that lack its key or have None.
    on_error : {"raise", "skip"}, default: "raise"
        Whether a sample that cannot be encoded raises, or is left out.
    max_errors : int, optional
        Number of samples that may be left out; one more raises ValueError. By default any number.
    rejects : str or os.PathLike, optional
        A local file of JSON lines that records the samples that are left out, as for `write`.
    format : str, optional
        ``"mds"``, or a text format: ``"jsonl"``, ``"csv"``, ``"tsv"`` or ``"xsv"``. By default
        ``"mds"``, and for an append the format of the dataset.
    separator : str, optional
        The text between two fields of ``"xsv"``. That format requires it, but an append can take
        it from the dataset.
    newline : str, optional
        The text after each line of a text format; a line feed by default, and for an append
        that of the dataset.
    sidecar : bool, default: True
        Whether to also write the side-car.
    shard_size : int, str or None, default: "64MiB"
        Maximum bytes of a shard before compression, less than 4 GiB; None (or 0) for a single
        shard.
    shard_samples : int, optional
        Maximum number of samples of a shard. A shard ends when either limit is reached.
    compression : str, optional
        The codec of the shards, as for `write`. By default they are not compressed.
    hashes : iterable of str, default: ()
        Hashes of each file that the index records, as for `write`.
    resume : bool, default: False
        Whether a later Writer can continue this write if it fails or the process is killed, as for
        `write`. A Writer that continues must not get the first `input_samples` samples again.
    exclusive : bool, default: False
        Whether the caller guarantees that no other process writes to `path`, as for `write`.
    storage_options : mapping, optional
        Options of the storage driver, if the dataset is written to a URL.
    timeout : float, default: 60.0
        Seconds that a request to the store may take, including all retries.
    retries : int, default: 4
        Number of retries of a request.

    Raises
    ------
    TypeError, ValueError
        If an encoding, codec, hash or size is invalid.
    FileExistsError
        With ``mode="x"``, if `path` holds a dataset or a part of one.
    StorageError
        If the directory cannot be created, or a request to the store fails.
    MissingDependencyError
        If a codec, a dtype, an image or the storage driver needs a package that is not installed.

    See Also
    --------
    write : Writes all samples, or whole columns, at once.

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
        columns: Mapping[str, str | Encoding] | Sequence[str] | None = None,
        *,
        mode: str = "x",
        fill: Mapping[str, Any] | None = None,
        on_error: str = "raise",
        max_errors: int | None = None,
        rejects: str | PathLike[str] | None = None,
        format: str | None = None,
        separator: str | None = None,
        newline: str | None = None,
        sidecar: bool = True,
        shard_size: int | str | None = "64MiB",
        shard_samples: int | None = None,
        compression: str | None = None,
        hashes: Iterable[str] = (),
        resume: bool = False,
        exclusive: bool = False,
        storage_options: Mapping[str, Any] | None = None,
        timeout: float = 60.0,
        retries: int = 4,
    ) -> None:
        self._configure(
            columns, fill=fill, on_error=on_error, max_errors=max_errors, rejects=rejects,
            format=format, separator=separator, newline=newline, shard_size=shard_size,
            compression=compression, hashes=hashes, mode=mode, exclusive=exclusive, resume=resume,
        )  # fmt: skip
        source = ResumableInput(None, {"data": "samples of Writer.write"}) if resume else None
        self._connect(path, sidecar, shard_samples, storage_options, timeout, retries, source)

    @property
    def input_samples(self) -> int:
        """The number of samples to skip, because an interrupted write has processed them.

        It counts the samples that were stored, and those that were left out. It is 0 without
        ``resume=True``, or if no write was interrupted.

        Examples
        --------
        >>> texts = ["a", "b", "c"]
        >>> with Writer("texts", resume=True) as writer:
        ...     for text in texts[writer.input_samples :]:
        ...         writer.write({"text": text})
        """
        return 0 if self._session is None else self._session.input_samples

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
            self._discard(failure)  # an interruption can skip the cleanup in `close`
            raise
        if error is not None:
            self._discard(error)

    def write(self, sample: Mapping[str, Any] | ArrowStream) -> None:
        """Add a sample, or the rows of a Batch, Dataset or table.

        After a TypeError, ValueError or ColumnError, none of `sample` is written, and the Writer
        stays usable. There are two exceptions. The first rows of a Dataset, a Column, a stream of
        tables, or a Batch with `fill` may be written. If more than `max_errors` samples are left
        out, the Writer is closed. If a shard cannot be stored, or storing it is interrupted, the
        Writer is closed and publishes nothing. Shards are stored in the background. The error can
        therefore come from a later call.

        Parameters
        ----------
        sample : mapping of str to object, Batch, Dataset, Column or table
            A value for each column. If the Writer has the argument `columns`, other keys are
            ignored. Otherwise the columns are those of the first sample, or of the dataset for an
            append, and other keys raise.

        Raises
        ------
        TypeError, ValueError
            If a column's encoding cannot store a value exactly, a key has no column, or the
            Writer is closed.
        ColumnError
            If the sample lacks a column.
        FileExistsError
            If another write to the same `path` has begun.
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
        """Publish the dataset unless it is already published, and return its summary.

        Returns
        -------
        WriteReport
            The same object in each call.

        Raises
        ------
        ValueError
            If there are neither samples nor `columns`, or an exception closed the Writer.
        FileExistsError
            If another write to the same `path` has begun or was published.
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
                with self._discard_on_error():
                    self._publish()
                    self._finalizer.detach()
                self._open = False
                self._encode_dict = encode_none
                self._report = self._make_report()
            return self._report
