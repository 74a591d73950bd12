"""Provide `write`, which writes a DataFrame of Spark as a dataset, one task for each partition."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

from npstream._core.optional import import_optional
from npstream.conversion.partitions import (
    PartitionedWrite,
    PartitionResult,
    begin_write,
    discard_partitions,
    keep_partitions,
    merge_partitions,
    write_partition,
)
from npstream.conversion.spark.types import column_encodings
from npstream.errors import PartitionError, short_traceback

if TYPE_CHECKING:
    from os import PathLike

    from npstream.writing.mapping import MapFunction
    from npstream.writing.writer import WriteReport

__all__ = ["write"]

T = TypeVar("T")

_RESULT = "number int, directory string, columns map<string,string>, samples bigint, " + (
    "rejected bigint, error string"
)
"""The schema of the rows that the tasks return. ``error`` is null if the partition was written."""


def write(
    path: str | PathLike[str],
    dataframe: Any,
    *,
    columns: Mapping[str, str] | Sequence[str] | None = None,
    map: MapFunction | None = None,
    fill: Mapping[str, Any] | None = None,
    on_error: str = "raise",
    format: str | None = None,
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
) -> WriteReport:
    """Write a DataFrame of Spark as a dataset. Each partition is written by one task.

    The order of the rows is that of the partitions. Each task writes a directory of its own below
    `path`. At the end, an index joins these directories without copying them. Readers see the
    dataset only then. After a failure, all files are removed. Failed, repeated and speculative
    tasks leave no files and no duplicate rows.

    Parameters
    ----------
    path : str or os.PathLike
        A directory that all executors share, or a URL such as ``s3://bucket/corpus``. It must not
        hold a dataset.
    dataframe : pyspark.sql.DataFrame
        The rows to write. `dataframe.repartition` and `coalesce` choose the number of partitions.
    columns : mapping of str to str, or list of str, optional
        The encoding of each column. A list names columns whose encodings follow from Spark's types.
        Other columns are left out. By default all columns are written, with the encodings that
        `column_encodings` returns. With `map`, these are the columns of the results of `map`, and
        by default the encodings are inferred from the results.
    map : callable, optional
        A function that is called with each row as a mapping, as for `npstream.write`.
    fill : mapping of str to object, optional
        The value of a column for rows that have null there.
    on_error : {"raise", "skip"}, default: "raise"
        Whether a row that cannot be encoded raises, or is left out.
    format : str, optional
        ``"mds"`` (the default), ``"jsonl"``, ``"csv"``, ``"tsv"`` or ``"xsv"``.
    separator : str, optional
        The text between two fields of ``"xsv"``.
    newline : str, optional
        The text after each line of a text format; a line feed by default.
    sidecar : bool, default: True
        Whether to also write the side-car.
    shard_size : int, str or None, default: "64MiB"
        Maximum bytes of a shard before compression. A partition has at least one shard, so
        partitions should not be smaller than this.
    shard_samples : int, optional
        Maximum number of samples of a shard.
    compression : str, optional
        The codec of the shards, such as ``"zstd"``. By default shards are not compressed.
    hashes : iterable of str, default: ()
        Hashes that the index records for each file, such as ``"xxh3_64"``.
    storage_options : mapping, optional
        Options of the storage driver. They are sent to the executors.
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
    TypeError
        If no encoding follows from the type of a column.
    ColumnError
        If the DataFrame lacks a column.
    PartitionError
        If a partition cannot be written. The message names the partition.
    ValueError
        If no partition has samples, and `map` is used without encodings in `columns`.
    FileExistsError
        If `path` holds a dataset, or another partitioned write.
    StorageError
        If a file cannot be stored.
    MissingDependencyError
        If pyspark is not installed.

    See Also
    --------
    npstream.conversion.dask.write : The same for collections of Dask.
    """
    with short_traceback:
        import_optional("pyspark", "pyspark", "spark")
        if map is None:
            columns = column_encodings(dataframe, columns)
            if list(columns) != dataframe.columns:
                dataframe = dataframe.select(*(f"`{name}`" for name in columns))
        options = {
            "columns": columns, "map": map, "fill": fill, "on_error": on_error, "format": format,
            "separator": separator, "newline": newline, "sidecar": sidecar,
            "shard_size": shard_size, "shard_samples": shard_samples, "compression": compression,
            "hashes": tuple(hashes),
        }  # fmt: skip
        connection = {"storage_options": storage_options, "timeout": timeout, "retries": retries}
        return write_dataframe(path, dataframe, connection, options)


def write_dataframe(
    path: str | PathLike[str],
    dataframe: Any,
    connection: Mapping[str, Any],
    options: Mapping[str, Any],
    samples_of: Callable[[Any], Iterable[Any]] | None = None,
) -> WriteReport:
    """Write each partition of a DataFrame with the function `npstream.write`.

    Parameters
    ----------
    path : str or os.PathLike
    dataframe : pyspark.sql.DataFrame
    connection : mapping
        ``storage_options``, ``timeout`` and ``retries``.
    options : mapping
        The other arguments of `npstream.write`.
    samples_of : callable, optional
        Takes the Arrow RecordBatchReader of a partition, and returns the samples to write. By
        default the rows are written.
    """
    begin = time.perf_counter()

    def merge(started: PartitionedWrite, results: list[PartitionResult]) -> WriteReport:
        return merge_partitions(started, results, begin)

    return _write_partitions(path, dataframe, connection, options, samples_of, merge)


def write_separate_datasets(
    path: str | PathLike[str],
    dataframe: Any,
    connection: Mapping[str, Any],
    options: Mapping[str, Any],
    samples_of: Callable[[Any], Iterable[Any]] | None = None,
) -> list[str]:
    """Write each partition of a DataFrame as `write_dataframe`, without an index of all of them.

    Returns
    -------
    list of str
        The directories or URLs of the partitions that have samples.
    """
    return _write_partitions(path, dataframe, connection, options, samples_of, keep_partitions)


def _write_partitions(
    path: str | PathLike[str],
    dataframe: Any,
    connection: Mapping[str, Any],
    options: Mapping[str, Any],
    samples_of: Callable[[Any], Iterable[Any]] | None,
    end: Callable[[PartitionedWrite, list[PartitionResult]], T],
) -> T:
    """Write the partitions of a DataFrame; return what `end` returns for the results of tasks."""
    started = begin_write(path, connection, options)
    try:
        rows = dataframe.mapInArrow(_task(started, samples_of), _RESULT).collect()
        return end(started, list(_results(rows)))
    except BaseException as error:
        discard_partitions(started, error)
        raise


def _results(rows: Iterable[Any]) -> Iterator[PartitionResult]:
    """Yield the results of tasks; raise PartitionError for a task that failed."""
    for row in sorted(rows, key=lambda row: row.number):
        if row.error is not None:
            raise PartitionError(row.number, row.error)
        columns = {name.partition(":")[2]: row.columns[name] for name in sorted(row.columns)}
        yield PartitionResult(row.number, row.directory, columns, row.samples, row.rejected)


def _task(
    started: PartitionedWrite, samples_of: Callable[[Any], Iterable[Any]] | None
) -> Callable[[Iterator[Any]], Iterator[Any]]:
    """Return the function that each task calls with the record batches of its partition."""

    def write_batches(batches: Iterator[Any]) -> Iterator[Any]:
        import pyarrow as pa
        from pyspark import TaskContext

        context: Any = TaskContext.get()
        number = context.partitionId()
        first = next(batches, None)
        error = None
        if first is None:
            result = PartitionResult(number, "", {}, 0)
        else:
            reader = pa.RecordBatchReader.from_batches(first.schema, chain([first], batches))
            try:
                data = reader if samples_of is None else samples_of(reader)
                result = write_partition(started, number, data)
            # Bad data: if the task raised the error, Spark would retry the task. So it returns the
            # error.
            except PartitionError as failure:
                result, error = PartitionResult(number, "", {}, 0), failure.reason
        # A map has no order, so the keys begin with the positions of the columns.
        columns = {
            f"{position:06d}:{name}": encoding
            for position, (name, encoding) in enumerate(result.columns.items())
        }
        row = {
            "number": number, "directory": result.directory, "columns": list(columns.items()),
            "samples": result.samples, "rejected": result.rejected, "error": error,
        }  # fmt: skip
        types = [
            ("number", pa.int32()), ("directory", pa.string()),
            ("columns", pa.map_(pa.string(), pa.string())), ("samples", pa.int64()),
            ("rejected", pa.int64()), ("error", pa.string()),
        ]  # fmt: skip
        yield pa.RecordBatch.from_pylist([row], pa.schema(types))

    return write_batches
