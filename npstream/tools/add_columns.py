"""Provide `add_columns` and `remove_columns`: columns beside a dataset, which is not rewritten.

docs/design/joins.md describes the files, and how a dataset is read with them.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace as dataclass_replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from npstream._core.arguments import name_list, quantity
from npstream._core.log import log
from npstream._core.typing import Int64
from npstream.dataset.opening import open_dataset
from npstream.errors import ColumnError, StorageError, short_repr, short_traceback
from npstream.formats.added_columns import (
    COLUMNS_FOLDER,
    FORMAT,
    ColumnGroup,
    GroupPart,
    base_version,
    format_groups,
)
from npstream.formats.hashes import digest
from npstream.formats.index import INDEX
from npstream.formats.versions import COLUMNS_FILE
from npstream.joins.added import added_columns, parse_column_groups
from npstream.storage.local import LocalStore, open_store
from npstream.storage.urls import join_url
from npstream.tools.keys import PreparedTable, match_keys, reorder, to_encoding
from npstream.writing.destination import WORK
from npstream.writing.inputs.fill import check_fill
from npstream.writing.inputs.parts import open_input
from npstream.writing.inputs.recognition import as_mapping
from npstream.writing.revisions.publication import probe_conditions
from npstream.writing.tables import TableStream, table_encodings
from npstream.writing.writer import write

if TYPE_CHECKING:
    from os import PathLike

    from npstream.dataset.dataset import Dataset
    from npstream.formats.encodings.encodings import Encoding
    from npstream.formats.index import Index
    from npstream.storage.local import Store
    from npstream.writing.report import WriteReport

__all__ = ["add_columns", "remove_columns"]

Groups = tuple[ColumnGroup, ...]


def add_columns(
    url: str | PathLike[str],
    data: Any,
    *,
    key: str | None = None,
    fill: Mapping[str, Any] | None = None,
    replace: bool = False,
    columns: Mapping[str, str] | None = None,
    shard_size: int | str | None = "64MiB",
    shard_samples: int | None = None,
    compression: str | None = None,
    hashes: Iterable[str] = (),
    sidecar: bool = True,
    resume: bool = False,
    progress: bool | None = None,
    exclusive: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    timeout: float = 60.0,
    retries: int = 4,
) -> WriteReport:
    """Write columns beside a dataset, such as embeddings, scores or labels.

    `npstream.open` then reads them as columns of the dataset. The dataset itself is not rewritten:
    its fingerprint ``ds.version`` and the saved states of its iterations stay valid.

    All columns become visible at once, when the last file is stored. After any failure, nothing is
    published, and all files that were written are removed; with ``resume=True``, the stored shards
    stay for the next call. If the process is killed, or the files cannot be removed, they stay in
    the directory ``columns``, where no reader looks at them.

    Parameters
    ----------
    url : str or os.PathLike
        The directory or URL of a dataset.
    data : mapping of arrays, table, Dataset or iterable of samples
        Anything that `npstream.write` takes: one value of each new column for each sample of the
        dataset. If samples were appended to the dataset after a column was added, `data` may have
        the values of only these samples.
    key : str, optional
        A column of integers, text or bytes that is in the dataset and in `data`, without
        repetitions. Each sample gets the values with its key. By default values are in the order
        of the samples.
    fill : mapping of str to object, optional
        The value of a new column for samples whose key is not in `data`, and for missing values in
        `data`. Samples that are appended to the dataset later have this value, too.
    replace : bool, default: False
        Whether to replace columns that have the names of the new ones. If a replaced column belongs
        to the dataset itself, it is hidden. If it was added earlier, its files are removed.
    columns : mapping of str to str, optional
        The encoding of each column of `data` to write, as for `npstream.write`.
    shard_size : int, str or None, default: "64MiB"
        Maximum bytes of a shard of the columns, as for `npstream.write`.
    shard_samples : int, optional
        Maximum number of samples of a shard.
    compression : str, optional
        The codec of the shards, as for `npstream.write`. By default they are not compressed.
    hashes : iterable of str, default: ()
        Hashes to record for each file, such as ``"xxh3_64"`` and ``"sha256"``.
    sidecar : bool, default: True
        Whether to write a side-car of the columns.
    resume : bool, default: False
        Whether a later call can continue this one after its last stored shard, as for
        `npstream.write`. Its arguments and data must be the same. With `key`, data that is not a
        mapping of arrays is read again from the start, because its rows come in any order.
    progress : bool, optional
        Whether to show samples, bytes and their rate. By default they are shown in a terminal or
        notebook after a second.
    exclusive : bool, default: False
        Whether you guarantee that no other process writes to the dataset. Stores that cannot
        replace a file on a condition, such as SFTP, require it.
    storage_options : mapping, optional
        Options of the storage driver.
    timeout : float, default: 60.0
        Seconds that a request to the store may take, including all retries.
    retries : int, default: 4
        Number of retries of a request.

    Returns
    -------
    WriteReport
        The summary of the new columns.

    Raises
    ------
    ValueError
        If a column of the same name exists, unless `replace` is True or the column lacks values of
        appended samples. If `data` does not have one value for each sample: the number of values
        is wrong, or keys are missing or repeated. The message names them.
    TypeError, ColumnError
        If values cannot be stored exactly, or the keys differ in type.
    StorageError
        If the dataset cannot be read, or a file cannot be stored. If there is no dataset, the error
        is also a FileNotFoundError. With ``resume=True``, it is a FileExistsError if another
        process adds the same columns at the same time.

    See Also
    --------
    remove_columns : Removes added columns.

    Examples
    --------
    >>> import npstream
    >>> report = npstream.write("letters", {"name": list("abc")})
    >>> report = npstream.add_columns("letters", {"score": np.array([0.5, 0.25, 1.0])})
    >>> ds = npstream.open("letters")
    >>> ds[ds["score"] > 0.3]["name"].tolist()
    ['a', 'c']
    >>> scores = {"name": ["c", "a"], "rank": [1, 2]}
    >>> report = npstream.add_columns("letters", scores, key="name", fill={"rank": -1})
    >>> npstream.open("letters")["rank"].load()
    array([ 2, -1,  1])
    """
    with short_traceback:
        check_fill(fill)
        flags = (("replace", replace), ("exclusive", exclusive), ("resume", resume))
        for argument, value in flags:
            if not isinstance(value, bool):
                raise TypeError(f"{argument}={short_repr(value)}: expected True or False")
        if key is not None and not isinstance(key, str):
            raise TypeError(f"key={short_repr(key)}: expected the name of a column")
        connection = {"storage_options": storage_options, "timeout": timeout, "retries": retries}
        store = open_store(url, storage_options, timeout=timeout, retries=retries, argument="url")
        options = {
            "shard_size": shard_size, "shard_samples": shard_samples, "hashes": hashes,
            "compression": compression, "sidecar": sidecar, "progress": progress, **connection,
        }  # fmt: skip
        open_url = partial(_open, url, connection)
        with ExitStack() as stack:
            ds = stack.enter_context(open_url("", [] if key is None else [key]))
            _require_conditional_replace(store, exclusive)
            addition = _Addition(store, ds._source.index, fill or {}, replace, columns)
            addition.resume = resume
            if key is None:
                addition.set_values_by_position(data, open_url)
            else:
                addition.set_values_by_key(data, key, ds, open_url, stack)
            with _remove_parts_after_failure(store, addition):
                report = addition.write(partial(_write, url, options))
                old, new = update_groups(store, addition.change, exclusive)
        _remove_unused(store, old, new)
        return report


def remove_columns(
    url: str | PathLike[str],
    names: str | Sequence[str],
    *,
    exclusive: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    timeout: float = 60.0,
    retries: int = 4,
) -> None:
    """Remove columns that were added beside a dataset, and their files.

    Files with several columns stay until the last of these is removed. Processes that have the
    dataset open cannot read removed files any more.

    Parameters
    ----------
    url : str or os.PathLike
        The directory or URL of the dataset.
    names : str or sequence of str
        The columns. They are removed from all versions of the dataset.
    exclusive : bool, default: False
        As for `add_columns`.
    storage_options : mapping, optional
        Options of the storage driver.
    timeout : float, default: 60.0
        Seconds that a request to the store may take, including all retries.
    retries : int, default: 4
        Number of retries of a request.

    Raises
    ------
    ColumnError
        If no such column was added.
    StorageError
        If a file cannot be read, stored or removed.

    Examples
    --------
    >>> import npstream
    >>> report = npstream.write("letters", {"name": list("abc")})
    >>> report = npstream.add_columns("letters", {"score": np.array([0.5, 0.25, 1.0])})
    >>> npstream.remove_columns("letters", "score")
    >>> npstream.open("letters").columns
    ('name',)
    """
    with short_traceback:
        removed_names = [names] if isinstance(names, str) else name_list(names)
        store = open_store(url, storage_options, timeout=timeout, retries=retries, argument="url")
        _require_conditional_replace(store, exclusive)

        def change(groups: Groups) -> Groups:
            added_names = {name for group in groups for name in group.columns}
            for name in removed_names:
                if name not in added_names:
                    raise ColumnError(name, sorted(added_names), f"{store.root}: added columns: ")
            return _drop_columns(groups, removed_names)

        old, new = update_groups(store, change, exclusive)
        _remove_unused(store, old, new)


def _open(
    url: str | PathLike[str], connection: Mapping[str, Any], path: str, columns: Sequence[str]
) -> Dataset:
    """Open a dataset, or one of the small datasets that hold its added columns."""
    dataset_url = join_url(url, path) if path else url
    return open_dataset(dataset_url, columns=columns, implicit_read_limit=None, **connection)


def _write(
    url: str | PathLike[str], options: Mapping[str, Any], path: str, data: Any, **overrides: Any
) -> WriteReport:
    """Write a part of added columns; `overrides` take precedence over `options`."""
    return write(join_url(url, path), data, **{**options, **overrides})


class _Addition:
    """The columns to add: their values, and the change of the list of added columns."""

    def __init__(
        self,
        store: Store,
        index: Index,
        fill: Mapping[str, Any],
        replace: bool,
        columns: Mapping[str, str] | None,
    ) -> None:
        self._store, self._index = store, index
        self._fill, self._replace, self._columns = fill, replace, columns
        self._data: Any = None
        self._encodings: Mapping[str, str | Encoding] | None = columns
        self._names: list[str] = []
        self._extended_group: ColumnGroup | None = None
        self._options: dict[str, Any] = {}
        identity = os.urandom(6).hex()
        self.path = f"{COLUMNS_FOLDER}/{identity}"
        self.fill_path = f"{COLUMNS_FOLDER}/{identity}-fill"
        self.resume = False
        self.is_written = False  # whether this process has stored the whole part

    def set_values_by_position(self, data: Any, open_part: Callable[..., Dataset]) -> None:
        """Take values in the order of the samples; check names before any value is written."""
        names = None if self._columns is None else list(self._columns)
        fills = check_fill(self._fill)
        table, samples = open_input(data, names, fills, check=True, as_items=False)
        if table is None:
            rows = iter(samples)
            first = next(rows, None)
            if names is None:
                if first is None:
                    raise ValueError("data has no samples and no columns")
                names = list(as_mapping(first, None, 0))
            self._plan(names, open_part)
            self._data = rows if first is None else chain([first], rows)
            self._options["fill"] = self._fill or None
            return
        head = table.head if isinstance(table, TableStream) else table
        # Check the names in `fill` here: `write` would accept a name that the table lacks, and make
        # a column of it.
        self._check_fill_names(getattr(head, "available_names", head.names()))
        self._plan(names or head.names(), open_part)
        if not isinstance(table, TableStream):
            self._check_count(table.length)
        self._encodings = self._encodings or table_encodings(head)
        self._data = PreparedTable(table)

    def set_values_by_key(
        self, data: Any, key: str, ds: Dataset, open_part: Callable[..., Dataset], stack: ExitStack
    ) -> None:
        """Take values in any order, and bring them into the order of the samples."""

        def plan(names: Sequence[str]) -> Mapping[str, str | Encoding] | None:
            self._plan(names, open_part)
            return self._encodings

        def match(data_keys: Any) -> Int64:
            has_fill = set(self._names) <= self._fill.keys()
            return match_keys(key, ds[key], self._start, data_keys, has_fill)

        columns = self._columns
        if columns is not None:
            columns = {key: ds._encodings()[key], **columns}
        matched = reorder(data, key, columns, self._fill, plan, match)
        self._data, self._encodings = stack.enter_context(matched)

    def _plan(self, names: Sequence[str], open_part: Callable[..., Dataset]) -> None:
        """Decide if columns are new, or if an added group gets values of appended samples.

        Raises
        ------
        ValueError
            If a column of this name exists.
        """
        self._names = list(names)
        if not names:
            raise ValueError("data has no columns to add")
        self._check_fill_names(names)
        groups = _read_groups(self._store)
        self._extended_group = self._find_extended_group(groups)
        if self.resume:
            self.path = self._resumable_path(groups)
        self._encodings = self._columns and {name: self._columns[name] for name in names}
        if self._extended_group is None:
            return
        with open_part(self._extended_group.parts[0].path, names) as part:
            stored = part._encodings()
        for name, encoding in (self._encodings or {}).items():
            if to_encoding(encoding).name != stored[name]:
                raise ValueError(
                    f"columns: {name!r} is {encoding!r}, but the values that were added before are "
                    f"{stored[name]!r}: leave columns= out"
                )
        self._encodings = {name: stored[name] for name in names}

    def _check_fill_names(self, names: Sequence[str]) -> None:
        """Raise ValueError if `fill` names a column that is not in `names`."""
        for name in self._fill:
            if name not in names:
                raise ValueError(f"fill: data has no column {name!r}; its columns are {[*names]}")

    def _find_extended_group(self, groups: Groups) -> ColumnGroup | None:
        """Return the group that gets values of appended samples; None if the columns are new.

        Raises
        ------
        ValueError
            If a column of this name exists.
        """
        names, where, total = self._names, self._store.root, self._index.samples
        if self._replace:
            return None
        group_of, _ = added_columns(groups, self._index)
        stored = {name for schema in self._index.schemas for name in schema.names}
        if conflicts := [name for name in names if name in stored and name not in group_of]:
            raise ValueError(
                f"{where}: the dataset has a column {conflicts[0]!r}: give the new one another "
                "name, or pass replace=True to hide that of the dataset"
            )
        old_names = [name for name in names if name in group_of]
        groups_by_parts = {group_of[name].parts: group_of[name] for name in old_names}
        if not groups_by_parts:
            return None
        group = next(iter(groups_by_parts.values()))
        if group.samples == total:
            raise ValueError(
                f"{where}: the column {old_names[0]!r} was added before: pass replace=True to "
                "replace it, or remove it with npstream.remove_columns"
            )
        if len(groups_by_parts) > 1 or len(old_names) < len(names):
            raise ValueError(
                f"{where}: the added column {old_names[0]!r} lacks values of samples that were "
                "appended later: add these values alone, without other columns"
            )
        return dataclass_replace(group, columns=tuple(names))

    def _resumable_path(self, groups: Groups) -> str:
        """Return the path of the part, which is the same in a call that continues this one."""
        published = {path for group in groups for path in group.paths}
        facts = [self._index.fingerprint(), sorted(self._names), self._start]
        number = 0
        while True:
            text = json.dumps([*facts, number])
            path = f"{COLUMNS_FOLDER}/{digest('xxh3_64', text.encode())[:12]}"
            index, work = (self._store.exists(f"{path}/{name}") for name in (INDEX, WORK))
            # A complete part, which has an index and no work file, is not used: another process may
            # be about to publish it.
            if path not in published and (work or not index):
                return path
            number += 1

    @property
    def _start(self) -> int:
        """The first sample that gets a value."""
        return 0 if self._extended_group is None else self._extended_group.samples

    def _check_count(self, count: int) -> None:
        """Raise ValueError unless there is one value for each sample."""
        total, start = self._index.samples, self._start
        if count == total - start:
            return
        advice = "give one value for each sample, in their order, or name a key column with key="
        if start:
            advice = (
                f"{start:,} of them have values of {self._names[0]!r}: give {total - start:,}, or "
                f"all {total:,} with replace=True"
            )
        raise ValueError(
            f"{self._store.root}: data has {quantity(count, 'value')} of each column, and the "
            f"dataset has {quantity(total, 'sample')}: {advice}"
        )

    def write(self, write_part: Callable[..., WriteReport]) -> WriteReport:
        """Write the columns, and the values for samples that are appended later."""
        has_encodings = self._encodings is not None
        if has_encodings:
            self._write_fill(write_part)
        options = {**self._options, "resume": self.resume}
        report = write_part(self.path, self._data, columns=self._encodings, **options)
        self.is_written = True
        self._check_count(report.samples)
        if not has_encodings:
            self._encodings = report.columns
            self._write_fill(write_part)
        return report

    def _write_fill(self, write_part: Callable[..., WriteReport]) -> None:
        if not self._fill:
            return
        assert self._encodings is not None
        encodings = {name: self._encodings[name] for name in self._names if name in self._fill}
        sample = {name: self._fill[name] for name in encodings}
        write_part(
            self.fill_path, [sample], columns=encodings,
            sidecar=False, progress=False, shard_samples=None,
        )  # fmt: skip

    def change(self, groups: Groups) -> Groups:
        """Return the list of added columns with the new ones."""
        old_group, extended = self._extended_group, self._find_extended_group(groups)
        if (extended and extended.parts) != (old_group and old_group.parts):
            raise ValueError(
                f"{self._store.root}: another process has changed the added column "
                f"{self._names[0]!r} meanwhile: add the values again"
            )
        parts: tuple[GroupPart, ...] = () if extended is None else extended.parts
        parts += (GroupPart(self.path, self._index.samples - self._start),)
        group = ColumnGroup(tuple(self._names), parts, base_version(self._index))
        if self._fill:
            names = tuple(name for name in self._names if name in self._fill)
            group = dataclass_replace(group, fill=self.fill_path, fill_columns=names)
        elif extended is not None and extended.fill:
            names = tuple(name for name in self._names if name in extended.fill_columns)
            fill = extended.fill if names else ""
            group = dataclass_replace(group, fill=fill, fill_columns=names)
        if self._replace:
            group_of, _ = added_columns(groups, self._index)
            replaced = [group_of[name] for name in self._names if name in group_of]
            groups = _drop_columns(groups, self._names, replaced)
        return (*groups, group)


def _drop_columns(
    groups: Groups, names: Sequence[str], only: Sequence[ColumnGroup] | None = None
) -> Groups:
    """Return groups without some columns; if `only` is given, change only these groups."""
    remaining = []
    for group in groups:
        columns = tuple(name for name in group.columns if name not in names)
        is_kept = only is not None and not any(group is each for each in only)
        if is_kept or len(columns) == len(group.columns):
            remaining.append(group)
        elif columns:
            fill_columns = tuple(name for name in group.fill_columns if name in columns)
            fill = group.fill if fill_columns else ""
            remaining.append(
                dataclass_replace(group, columns=columns, fill=fill, fill_columns=fill_columns)
            )
    return tuple(remaining)


# The list of added columns


def _read_groups(store: Store) -> Groups:
    try:
        text = store.read(COLUMNS_FILE)
    except StorageError as error:
        if error.errno != errno.ENOENT:
            raise
        return ()
    return _parse_groups(text, store)


def _parse_groups(text: bytes, store: Store) -> Groups:
    """Return the groups in the file; raise StorageError if npstream did not write it."""
    if f'"{FORMAT}"'.encode() not in text:
        message = "npstream did not write this file, and needs its name: rename it"
        raise StorageError(errno.EEXIST, message, store.where(COLUMNS_FILE))
    return parse_column_groups(text, store.where(COLUMNS_FILE))


def update_groups(
    store: Store, change: Callable[[Groups], Groups], exclusive: bool
) -> tuple[Groups, Groups]:
    """Change the list of added columns; return the old and the new list.

    The file is replaced on the condition that it is unchanged. If another process has changed it
    meanwhile, this applies `change` to the new content.

    Parameters
    ----------
    store : LocalStore or RemoteStore
    change : callable
        Takes the groups, and returns the new ones, or raises.
    exclusive : bool
        Whether the caller guarantees that no other process changes the list.
    """
    while True:
        try:
            stored = store.read_tagged(COLUMNS_FILE)
        except StorageError as error:
            if error.errno != errno.ENOENT:
                raise
            stored = None
        old = () if stored is None else _parse_groups(stored.content, store)
        new = change(old)
        data = format_groups(new)
        try:
            if exclusive and not store.can_replace(COLUMNS_FILE):
                store.put(COLUMNS_FILE, data)
            elif stored is None:
                _create(store, data)
            else:
                store.replace(COLUMNS_FILE, data, stored)
            return old, new
        except StorageError as error:
            # EIO: an earlier attempt of this call may have succeeded, but its response was lost.
            if error.errno not in (errno.EEXIST, errno.ENOENT, errno.EIO):
                raise
            if _content(store) == data:
                return old, new
            if error.errno == errno.EIO and _content(store) == (stored and stored.content):
                raise
            log("%s changed meanwhile: changing it anew", store.where(COLUMNS_FILE))


def _content(store: Store) -> bytes | None:
    try:
        return store.read(COLUMNS_FILE)
    except StorageError as error:
        if error.errno != errno.ENOENT:
            raise
    return None


def _create(store: Store, data: bytes) -> None:
    """Store the file if it does not exist."""
    if not isinstance(store, LocalStore):
        store.create(COLUMNS_FILE, data)
        return
    with store.draft(COLUMNS_FILE, [data], os.urandom(8).hex(), []) as draft:
        draft.sync()
        try:
            draft.link()
        except OSError as error:
            message = f"{error.strerror}: cannot create this file"
            raise StorageError(error.errno, message, store.where(COLUMNS_FILE)) from error
    store.sync(store.root)


def _require_conditional_replace(store: Store, exclusive: bool) -> None:
    """Raise StorageError if columns could be lost when two processes add some at the same time."""
    if exclusive or isinstance(store, LocalStore):
        return
    can_replace = store.can_replace(COLUMNS_FILE)
    if can_replace and (store.checks_conditions or probe_conditions(store)):
        return
    raise StorageError(
        errno.EOPNOTSUPP,
        "this store cannot replace a file on the condition that it is unchanged: if two processes "
        "add columns at the same time, the columns of one could be lost; pass exclusive=True if no "
        "other process writes here",
        store.where(COLUMNS_FILE),
    )


@contextmanager
def _remove_parts_after_failure(store: Store, addition: _Addition) -> Iterator[None]:
    """Remove parts that were written if the block raises, unless they are published.

    A part that a later call can continue stays, too.
    """
    try:
        yield
    except BaseException as failure:
        try:
            published = {path for group in _read_groups(store) for path in group.paths}
            paths = [addition.fill_path]
            if not addition.resume or addition.is_written:
                paths.append(addition.path)
            for path in paths:
                if path not in published:
                    _remove_part(store, path)
        except StorageError as error:
            failure.add_note(f"files that were written could not be removed: {error}")
        raise


def _remove_unused(store: Store, old: Groups, new: Groups) -> None:
    """Remove the parts that no group has any more."""
    used = {path for group in new for path in group.paths}
    for path in sorted({path for group in old for path in group.paths} - used):
        try:
            _remove_part(store, path)
        except StorageError as error:
            log("%s is not used any more, but was not removed: %s", store.where(path), error)


def _remove_part(store: Store, path: str) -> None:
    """Remove the files of a part, the index first.

    Raises
    ------
    StorageError
        If a file cannot be removed, or the store cannot list the part.
    """
    if not store.can_list:
        reason = "this store cannot list files, so these stay; no reader looks at them"
        raise StorageError(errno.EOPNOTSUPP, reason, store.where(path))
    names = [name for name, _ in store.names(f"{path}/")]
    for name in sorted(names, key=lambda name: not name.endswith("/index.json")):
        store.remove(name)
    if isinstance(store, LocalStore):
        for folder in (f"{path}/index.columns", path, COLUMNS_FOLDER):
            store.remove_folder(store.where(folder))
