"""Provide `write`, which writes a Dask collection as a dataset, one task for each partition."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from npstream._core.optional import import_optional
from npstream.conversion.partitions import (
    PartitionResult,
    begin_write,
    discard_partitions,
    merge_partitions,
    write_partition,
)
from npstream.errors import short_traceback
from npstream.writing.inputs.parts import PartedInput

if TYPE_CHECKING:
    from os import PathLike

    from npstream.writing.mapping import MapFunction
    from npstream.writing.writer import WriteReport

__all__ = ["check_cluster_options", "compute_partitions", "write", "write_parts"]

_SINGLE_PROCESS_OPTIONS: dict[str, Any] = {
    "mode": "x", "workers": 0, "resume": False, "rejects": None, "max_errors": None, "block": None,
}  # fmt: skip
"""Arguments of `convert` that only a write by one process can have, and their defaults."""


def write(
    path: str | PathLike[str],
    data: Any,
    *,
    client: Any = None,
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
    """Write a Dask collection as a dataset. Each partition is written by one task.

    The order of the samples is that of the partitions. Each task writes a directory of its own
    below `path`. At the end, an index joins these directories without copying them. Readers see
    the dataset only then. After a failure, all files are removed. Tasks that Dask repeats leave no
    files and no duplicate samples.

    Parameters
    ----------
    path : str or os.PathLike
        A directory that all workers share, or a URL such as ``s3://bucket/corpus``. It must not
        hold a dataset.
    data : dask.bag.Bag, dask.dataframe.DataFrame or sequence of Delayed
        A sample of a bag is a mapping from column name to value. The index of a DataFrame is not
        written. A Delayed computes a partition: anything that `npstream.write` takes.
    client : distributed.Client, optional
        The client of the cluster to use. By default Dask's current scheduler.
    columns : mapping of str to str, or list of str, optional
        The encoding of each column, as for `npstream.write`. By default each task infers the
        encodings from its partition. They must be the same for all partitions.
    map : callable, optional
        A function that is called with each sample, as for `npstream.write`.
    fill : mapping of str to object, optional
        The value of a column for samples that lack its key or have None, and for nulls in tables.
    on_error : {"raise", "skip"}, default: "raise"
        Whether a sample that cannot be encoded raises, or is left out.
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
        Options of the storage driver. They are sent to the workers.
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
        If `data` has none of these types.
    PartitionError
        If a partition cannot be written, or has other columns than the others. The message names
        the partition.
    ValueError
        If no partition has samples, and `columns` has no encodings.
    FileExistsError
        If `path` holds a dataset, or another partitioned write.
    StorageError
        If a file cannot be stored.
    MissingDependencyError
        If Dask is not installed.

    See Also
    --------
    npstream.conversion.spark.write : The same for DataFrames of Spark.

    Examples
    --------
    >>> import pytest; _ = pytest.importorskip("dask.bag")
    >>> import dask.bag
    >>> import npstream
    >>> from npstream.conversion.dask import write
    >>> squares = dask.bag.range(10, npartitions=2).map(lambda n: {"n": n, "square": n * n})
    >>> with dask.config.set(scheduler="threads"):
    ...     report = write("squares", squares)
    >>> report.samples
    10
    >>> npstream.open("squares")["square"][-3:].load()
    array([49, 64, 81])
    """
    with short_traceback:
        begin = time.perf_counter()
        partitions = _partitions(data)
        options = {
            "columns": columns, "map": map, "fill": fill, "on_error": on_error, "format": format,
            "separator": separator, "newline": newline, "sidecar": sidecar,
            "shard_size": shard_size, "shard_samples": shard_samples, "compression": compression,
            "hashes": tuple(hashes),
        }  # fmt: skip
        connection = {"storage_options": storage_options, "timeout": timeout, "retries": retries}
        return compute_partitions(path, partitions, client, connection, options, begin)


def compute_partitions(
    path: str | PathLike[str],
    partitions: Sequence[Any],
    client: Any,
    connection: Mapping[str, Any],
    options: Mapping[str, Any],
    begin: float,
) -> WriteReport:
    """Write each partition in a task of Dask, and merge the partitions.

    Parameters
    ----------
    path : str or os.PathLike
    partitions : sequence of object
        For each partition, data that `npstream.write` takes, or a Delayed that computes the data.
    client : distributed.Client or None
        None for Dask's current scheduler.
    connection : mapping
        ``storage_options``, ``timeout`` and ``retries``, as for `npstream.write`.
    options : mapping
        Other arguments of `npstream.write`.
    begin : float
        ``time.perf_counter()`` when the call began.
    """
    dask = import_optional("dask", "dask", "dask")
    started = begin_write(path, connection, options)
    try:
        task = dask.delayed(write_partition, pure=False)
        tasks = [task(started, number, each) for number, each in enumerate(partitions)]
        results = list(dask.compute(*tasks)) if client is None else _gather(client, tasks)
        return merge_partitions(started, results, begin)
    except BaseException as error:
        discard_partitions(started, error)
        raise


def check_cluster_options(options: Mapping[str, Any]) -> None:
    """Raise ValueError for an argument of `convert` that is not possible with ``client=``."""
    for name, default in _SINGLE_PROCESS_OPTIONS.items():
        if options[name] != default:
            raise ValueError(
                f"{name}={options[name]!r} is not possible with client=: leave out one of them"
            )


def write_parts(
    path: str | PathLike[str], parts: PartedInput, client: Any, options: Mapping[str, Any]
) -> WriteReport:
    """Write each part of an input in a task of a cluster, and merge the results.

    Parameters
    ----------
    path : str or os.PathLike
    parts : PartedInput
    client : distributed.Client
    options : mapping
        All other arguments of `npstream.write`. Those of `_SINGLE_PROCESS_OPTIONS` are ignored.
    """
    begin = time.perf_counter()
    delayed = import_optional("dask", "dask", "dask").delayed
    options = dict(options)
    connection = {name: options.pop(name) for name in ("storage_options", "timeout", "retries")}
    for name in (*_SINGLE_PROCESS_OPTIONS, "exclusive", "progress"):
        options.pop(name, None)
    # All tasks refer to the parts by one key. Otherwise each task would contain all parts.
    shared, select = delayed(parts, pure=False, traverse=False), delayed(_select_part, pure=False)
    partitions = [select(shared, number) for number in range(len(parts.parts))]
    return compute_partitions(path, partitions, client, connection, options, begin)


def _select_part(parts: PartedInput, number: int) -> PartedInput:
    """Return one part of an input as an input."""
    return PartedInput([parts.parts[number]])


def _gather(client: Any, tasks: Sequence[Any]) -> list[PartitionResult]:
    """Return the results of tasks, in any order. When a task fails, cancel the other tasks."""
    distributed = import_optional("distributed", "distributed", "dask")
    futures = client.compute(list(tasks))
    try:
        completed = distributed.as_completed(futures, with_results=True)
        return [result for _, result in completed]
    except BaseException:
        client.cancel(futures)
        raise


def _partitions(data: Any) -> Sequence[Any]:
    """Return a Delayed for each partition of a collection."""
    delayed = import_optional("dask.delayed", "dask", "dask").Delayed
    if isinstance(data, Sequence) and not isinstance(data, str):
        others = [type(each).__name__ for each in data if not isinstance(each, delayed)]
        if not others:
            return data
        name = f"a sequence with objects of type {others[0]}"
    else:
        name = f"an object of type {type(data).__name__}"
        is_collection = type(data).__module__.partition(".")[0] in ("dask", "dask_expr")
        if isinstance(data, delayed):
            return [data]
        if is_collection and hasattr(data, "divisions") and data.ndim == 1:
            data = data.to_frame()  # a Series of Dask
        # A dask array has `to_delayed`, too, which returns a grid of blocks.
        if is_collection and hasattr(data, "to_delayed") and not hasattr(data, "blocks"):
            return list(data.to_delayed())
    raise TypeError(
        f"data is {name}: expected a dask.bag.Bag of mappings, a dask.dataframe.DataFrame, or a "
        "sequence of Delayed"
    )
