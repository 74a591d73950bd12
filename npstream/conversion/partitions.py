"""Write the partitions of a cluster's collection, each as a dataset, and merge these datasets.

The driver calls `begin_write`, which creates the work file. Each task calls `write_partition`, in
another process or on another machine. The driver then calls `merge_partitions` or
`keep_partitions`, or `discard_partitions` after a failure. Each removes the work file.

A task may run several times: after a failure, after the loss of its worker, or as a speculative
duplicate. Each run writes to a directory of its own, with a random part in its name. Dask or Spark
returns the result of one run for each partition, and the merge uses the directories of these runs.
All other directories are removed. If a task ends after the driver has removed the work file, the
task removes its own directory.

Tested in tests/conversion/dask/test_writer.py.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from npstream.errors import PartitionError, StorageError
from npstream.storage.local import LocalStore, Store, open_store
from npstream.storage.urls import join_url, location_str
from npstream.tools.merge import merge
from npstream.writing.destination import destination
from npstream.writing.inputs.parts import PartedInput
from npstream.writing.writer import WriteReport, write

__all__ = [
    "PartitionResult",
    "PartitionedWrite",
    "begin_write",
    "discard_partitions",
    "keep_partitions",
    "merge_partitions",
    "write_partition",
]

_PREFIX = "partition."
"""The names of the partitions' directories begin with this prefix."""

_WORK = "partitions.work"
"""The file that exists while a partitioned write is in progress."""


@dataclass(frozen=True, slots=True)
class PartitionedWrite:
    """The settings of a write whose partitions other processes write.

    Attributes
    ----------
    url : str
        The directory or URL of the dataset.
    write_id : str
        The random part of all names of this write.
    connection : dict
        ``storage_options``, ``timeout`` and ``retries``, as for `write`.
    options : dict
        Other arguments of `write`.
    created_folders : list of str
        The directories that `begin_write` created.
    """

    url: str
    write_id: str
    connection: dict[str, Any]
    options: dict[str, Any]
    created_folders: list[str] = field(default_factory=list)

    def store(self) -> Store:
        """Return the store of the dataset."""
        return open_store(self.url, **self.connection)

    @property
    def prefix(self) -> str:
        """The prefix of the names of this write's directories."""
        return f"{_PREFIX}{self.write_id}."


@dataclass(frozen=True, slots=True)
class PartitionResult:
    """The result of a task that wrote a partition.

    Attributes
    ----------
    number : int
        The number of the partition, counted from 0.
    directory : str
        The name of the partition's directory; "" if the partition has no samples.
    columns : dict of str to str
        The encoding of each column.
    samples, rejected : int
        The number of samples that were written, and the number of those that were left out.
    """

    number: int
    directory: str
    columns: dict[str, str]
    samples: int
    rejected: int = 0


def begin_write(
    url: str | os.PathLike[str], connection: Mapping[str, Any], options: Mapping[str, Any]
) -> PartitionedWrite:
    """Check that a new dataset can be written to a directory or URL, and create the work file.

    Parameters
    ----------
    url : str or os.PathLike
    connection : mapping
        ``storage_options``, ``timeout`` and ``retries``, as for `write`.
    options : mapping
        Other arguments of `write`, for each partition.

    Raises
    ------
    FileExistsError
        If there is a dataset, or another partitioned write is in progress or was interrupted.
    StorageError
        If the store cannot list files. The removal of partitions needs the list.
    """
    store = open_store(url, **connection, argument="path")
    is_local = isinstance(store, LocalStore)
    path = store.root if is_local else location_str(url, "path")
    started = PartitionedWrite(path, os.urandom(6).hex(), dict(connection), dict(options))
    if not store.can_list:
        message = "a partitioned write needs a store that can list its files"
        raise StorageError(errno.EOPNOTSUPP, message, store.root)
    if store.exists(_WORK):
        message = (
            "another partitioned write is in progress, or was interrupted: if no process writes "
            f"here any more, remove this file and the directories {_PREFIX}*"
        )
        raise StorageError(errno.EEXIST, message, store.where(_WORK))
    store.make_folders(started.created_folders)  # appends the new directories to the list
    destination(store).prepare()
    store.put(_WORK, started.write_id.encode())
    return started


def write_partition(started: PartitionedWrite, number: int, data: Any) -> PartitionResult:
    """Write one partition as a dataset in a directory of its own.

    Parameters
    ----------
    started : PartitionedWrite
    number : int
        The number of the partition.
    data : object
        Any data that `write` takes.

    Returns
    -------
    PartitionResult

    Raises
    ------
    PartitionError
        If the data cannot be written, or the driver has ended the write.
    OSError
        If a file cannot be stored. Another attempt may succeed.
    """
    directory = f"{started.prefix}{number:06d}.{os.urandom(6).hex()}"
    url = join_url(started.url, directory)
    try:
        rest = _nonempty(data)
        if rest is None:
            return PartitionResult(number, "", {}, 0)
        report = write(url, rest, progress=False, **started.options, **started.connection)
    except OSError as error:
        error.add_note(f"raised while partition {number} was written")
        _remove_if_ended(started, directory)
        raise
    except Exception as error:
        _remove_if_ended(started, directory)
        raise PartitionError(number, _describe(error, data)) from error
    if _remove_if_ended(started, directory):
        raise PartitionError(number, f"{started.url}: the write has ended without this partition")
    if not report.samples:
        _remove_directories(started, [directory])
        directory = ""
    return PartitionResult(number, directory, report.columns, report.samples, report.rejected)


def merge_partitions(
    started: PartitionedWrite, results: Iterable[PartitionResult], begin: float
) -> WriteReport:
    """Publish the dataset of all partitions, in the order of their numbers.

    Parameters
    ----------
    started : PartitionedWrite
    results : iterable of PartitionResult
        One for each partition, in any order.
    begin : float
        ``time.perf_counter()`` when the write began.

    Raises
    ------
    PartitionError
        If a partition has other columns than the first one that has samples.
    ValueError
        If no partition has samples, and `write` was called without the encodings of the columns.
    """
    results = sorted(results, key=lambda result: result.number)
    written = [result for result in results if result.directory]
    if written:
        _check_columns(written)
        urls = [join_url(started.url, result.directory) for result in written]
        sidecar = None if started.options.get("sidecar", True) else False
        report = merge(urls, started.url, sidecar=sidecar, **started.connection)
    else:
        options = started.options
        if not isinstance(options.get("columns"), Mapping):
            raise ValueError(
                f"{started.url}: no partition has samples: pass columns= with the encoding of each "
                "column to write an empty dataset"
            )
        report = write(started.url, [], progress=False, **options, **started.connection)
    _remove_others(started, [result.directory for result in written])
    rejected = sum(result.rejected for result in results)
    return replace(report, seconds=time.perf_counter() - begin, rejected=rejected)


def keep_partitions(started: PartitionedWrite, results: Iterable[PartitionResult]) -> list[str]:
    """End a write without an index of all partitions: each is a dataset of its own.

    Returns
    -------
    list of str
        The directories or URLs of the partitions that have samples, in the order of their numbers.
    """
    directories = [r.directory for r in sorted(results, key=lambda r: r.number) if r.directory]
    _remove_others(started, directories)
    return [join_url(started.url, directory) for directory in directories]


def discard_partitions(started: PartitionedWrite, error: BaseException) -> None:
    """Remove all files of a write that failed; add a note to `error` if the removal fails, too."""
    try:
        _remove_others(started, [])
        _remove_created_folders(started)
    except StorageError as failure:
        error.add_note(f"files of the partitions could not be removed: {failure}")


def _describe(error: Exception, data: Any) -> str:
    """Return the type, message and notes of an error, and the names of the input's parts."""
    notes = [str(error), *getattr(error, "__notes__", ())]
    if isinstance(data, PartedInput):
        notes += [f"in {part.name!r}" for part in data.parts if part.name not in notes[0]]
    return f"{type(error).__name__}: {'; '.join(notes)}"


def _nonempty(data: Any) -> Any:
    """Return the data, or None if it certainly has no samples.

    The check takes the first sample of an iterator, so the result is then another iterator that
    begins with this sample.
    """
    if isinstance(data, PartedInput):
        return data
    if isinstance(data, Mapping):
        return data if any(len(values) for values in data.values()) else None
    if hasattr(type(data), "__len__"):
        return data if len(data) else None
    if hasattr(type(data), "__next__") and not hasattr(type(data), "__arrow_c_stream__"):
        first = next(data, data)
        return None if first is data else chain([first], data)
    return data


def _check_columns(results: Sequence[PartitionResult]) -> None:
    """Raise PartitionError for the first partition with other columns than the first result."""
    first = results[0]
    for result in results[1:]:
        if result.columns != first.columns:
            raise PartitionError(
                result.number,
                f"its columns are {result.columns}, but those of partition {first.number} are "
                f"{first.columns}: pass columns= with the encoding of each column",
            )


def _remove_if_ended(started: PartitionedWrite, directory: str) -> bool:
    """Remove a partition, and the directory of the write, if the driver has ended the write.

    Returns
    -------
    bool
        Whether the driver has ended the write.
    """
    if _work_content(started) == started.write_id:
        return False
    _remove_directories(started, [directory])
    _remove_created_folders(started)
    return True


def _work_content(started: PartitionedWrite) -> str:
    try:
        return bytes(started.store().read(_WORK)).decode()
    except FileNotFoundError:
        return ""


def _remove_others(started: PartitionedWrite, directories: Collection[str]) -> None:
    """End the write: remove the work file, then the partitions outside `directories`."""
    store = started.store()
    if _work_content(started) == started.write_id:
        store.remove(_WORK)
    kept = set(directories)
    found = {name.partition("/")[0] for name, _ in store.names(started.prefix)}
    if isinstance(store, LocalStore):  # `names` yields files, so it misses empty directories
        entries = (entry.rstrip("/") for entry in store.entries())
        found |= {entry for entry in entries if entry.startswith(started.prefix)}
    _remove_directories(started, found - kept)


def _remove_directories(started: PartitionedWrite, directories: Iterable[str]) -> None:
    """Remove the files of partitions, and then their directories.

    The index is removed first, so that no index names files that are gone.
    """
    store = started.store()
    for directory in directories:
        names = [name for name, _ in store.names(f"{directory}/")]
        for name in sorted(names, key=lambda name: not name.endswith("/index.json")):
            store.remove(name)
        if isinstance(store, LocalStore):
            for folder in _folders(directory, names):
                store.remove_folder(store.where(folder))


def _remove_created_folders(started: PartitionedWrite) -> None:
    """Remove the directories that `begin_write` created, if they are empty."""
    store = started.store()
    for folder in reversed(started.created_folders):
        store.remove_folder(folder)


def _folders(directory: str, names: Iterable[str]) -> Iterator[str]:
    """Yield a directory and the ones inside it, the innermost first."""
    inner = {name.rpartition("/")[0] for name in names} | {directory}
    return iter(sorted(inner, key=len, reverse=True))
