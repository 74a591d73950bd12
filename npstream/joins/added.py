"""Provide `open_joined`, which opens a dataset together with the columns that were added to it.

Added columns are stored in groups. A group has one or more parts, and each part is a dataset of its
own. A group with several parts is read as their concatenation. The source of each group becomes one
of the `joined_sources` of the dataset's source.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from npstream._core.arguments import quantity
from npstream._core.log import log
from npstream.errors import ColumnError, FormatError, StorageError
from npstream.formats.versions import COLUMNS_FILE
from npstream.indexing.selection import Selection
from npstream.reading.schema import encoding_key, open_source
from npstream.reading.source import Member, Source
from npstream.shards.manifest import read_optional, start_thread

if TYPE_CHECKING:
    from npstream.cache.cache import ShardCache
    from npstream.formats.added_columns import ColumnGroup
    from npstream.formats.index import Index
    from npstream.reading.plan import Field
    from npstream.shards.table import Fetcher
    from npstream.storage.local import Store

_ColumnsArgument = Sequence[str] | Mapping[str, Any] | None
"""The argument `columns` of `npstream.open`."""


def start_reading_groups(
    store: Store, cache: ShardCache | None
) -> Callable[[], tuple[ColumnGroup, ...]]:
    """Start to read which columns were added; return a function that waits for the result.

    A remote file is read in a thread, so that its requests overlap with those for the index.
    """
    read = partial(read_column_groups, store, cache)
    wait = read if cache is None else start_thread(read)

    def groups() -> tuple[ColumnGroup, ...]:
        try:
            return wait()
        except StorageError as error:
            if error.errno != errno.EACCES:
                raise
            # Amazon and Google deny access to an absent file if the user may not list the bucket.
            log("%s: permission denied, so there are no added columns", store.where(COLUMNS_FILE))
            return ()

    return groups


def read_column_groups(store: Store, cache: ShardCache | None = None) -> tuple[ColumnGroup, ...]:
    """Return the groups of added columns of a dataset."""
    parse = partial(parse_column_groups, where=store.where(COLUMNS_FILE))
    return read_optional(store, cache, COLUMNS_FILE, parse) or ()


def parse_column_groups(text: bytes, where: str) -> tuple[ColumnGroup, ...]:
    """Return the groups in a file; none if npstream did not write it."""
    from npstream.formats.added_columns import FORMAT, parse_groups

    if f'"{FORMAT}"'.encode() not in text:
        log("%s is not a list of added columns: reading without it", where)
        return ()
    return parse_groups(text, where)


def added_columns(
    groups: Sequence[ColumnGroup], index: Index
) -> tuple[dict[str, ColumnGroup], dict[str, str]]:
    """Return the group of each added column that fits an index, and errors for the other columns.

    Parameters
    ----------
    groups : sequence of ColumnGroup
        The groups from the oldest to the newest. If several groups have a column, the newest group
        that fits is used.
    index : Index
        The index of the version of the dataset that is opened.

    Returns
    -------
    group_of : dict of str to ColumnGroup
        The group of each column.
    errors : dict of str to str
        For each column that was added only to other versions, an error message.
    """
    group_of: dict[str, ColumnGroup] = {}
    errors: dict[str, str] = {}
    for group in reversed(groups):
        names = [name for name in group.columns if name not in group_of]
        if not names:
            continue
        if group.applies_to(index):
            group_of |= dict.fromkeys(names, group)
            continue
        for name in names:
            errors.setdefault(
                name,
                f"{index.where}: column {name!r} was added to version {group.base.fingerprint} of "
                f"the dataset, and this is version {index.fingerprint()}, which does not begin "
                "with the same shards: add the column to this version with npstream.add_columns",
            )
    order = [name for group in groups for name in group.columns if group_of.get(name) is group]
    return {name: group_of[name] for name in order}, {
        name: message for name, message in errors.items() if name not in group_of
    }


def open_joined(
    fetcher: Fetcher,
    groups: Sequence[ColumnGroup],
    open_part: Callable[[str], Fetcher],
    columns: _ColumnsArgument,
    allow_pickle: bool,
    limit: int | None,
) -> tuple[Source, tuple[str, ...]]:
    """Open a dataset's source, and the sources of added columns.

    Parameters
    ----------
    fetcher : Fetcher
        The fetcher of the dataset's own shards.
    groups : sequence of ColumnGroup
    open_part : callable
        Takes the path of a part, and returns its fetcher.
    columns, allow_pickle, limit
        As for `npstream.reading.schema.open_source`.

    Returns
    -------
    source : Source
    names : tuple of str
        The columns of a sample.
    """
    index = fetcher.index
    group_of, errors = added_columns(groups, index)
    if columns is not None:
        _check_names(columns, index, group_of, errors)
    dataset_columns = _restrict(columns, lambda name: name not in group_of)
    source, dataset_names = open_source(fetcher, dataset_columns, allow_pickle, limit)
    names = tuple(dict.fromkeys([*dataset_names, *group_of]))
    if columns is not None and not isinstance(columns, Mapping):
        names = tuple(columns)
        if len(set(names)) != len(names):
            raise ValueError(f"a column is listed twice in {list(names)}")
    group_names: dict[int, list[str]] = {}
    for name in names:
        if name in group_of:
            group_names.setdefault(groups.index(group_of[name]), []).append(name)
    for number, added_names in group_names.items():
        _require_values(groups[number], added_names, index)
    group_fetchers = _open_groups(
        [groups[number] for number in group_names], index.samples, open_part
    )
    fields: dict[str, Field] = dict(source.fields)
    joined: list[Source] = []
    for (number, added_names), fetchers in zip(group_names.items(), group_fetchers, strict=True):
        part_columns = _restrict(columns, added_names.__contains__) or added_names
        arguments = part_columns, allow_pickle, limit
        added = _group_source(groups[number], index, fetchers, added_names, arguments)
        joined.append(added)
        fields |= {name: added.field(name)._replace(table=len(joined)) for name in added_names}
    column_errors = {**source.column_errors, **errors}
    return Source(fetcher, fields, column_errors, limit, joined), names


def _check_names(
    columns: Sequence[str] | Mapping[str, Any],
    index: Index,
    group_of: Mapping[str, ColumnGroup],
    errors: Mapping[str, str],
) -> None:
    """Raise ColumnError for a name that neither the dataset nor an added column has."""
    stored = {name: None for schema in index.schemas for name in schema.names}
    for name in columns:
        if name not in stored and name not in group_of:
            if name in errors:
                raise ColumnError.saying(errors[name])
            raise ColumnError(name, [*stored, *group_of])


def _restrict(columns: _ColumnsArgument, keeps: Callable[[str], bool]) -> _ColumnsArgument:
    """Return the argument `columns` with only the names that `keeps` accepts."""
    if columns is None:
        return None
    if isinstance(columns, Mapping):
        return {name: declared for name, declared in columns.items() if keeps(name)}
    return [name for name in columns if keeps(name)]


def _require_values(group: ColumnGroup, names: Sequence[str], index: Index) -> None:
    """Raise an error unless all samples of the dataset have values of the columns `names`.

    Raises
    ------
    ColumnError
        If samples were appended after the columns were added, and a column has no fill value.
    FormatError
        If there are more values than samples.
    """
    samples, total = group.samples, index.samples
    if samples > total:
        raise FormatError(
            f"{index.where}: {COLUMNS_FILE} lists {quantity(samples, 'value')} of column "
            f"{names[0]!r} for {quantity(total, 'sample')}"
        )
    unfilled = [name for name in names if name not in group.fill_columns]
    if samples < total and unfilled:
        raise ColumnError.saying(
            f"{index.where}: the added column {unfilled[0]!r} has values for {samples:,} of "
            f"{quantity(total, 'sample')}; {quantity(total - samples, 'sample')} came later: add "
            f"their values with npstream.add_columns(url, {{{unfilled[0]!r}: values of the new "
            "samples}), or open without the column, with columns="
        )


def _open_groups(
    groups: Sequence[ColumnGroup], total: int, open_part: Callable[[str], Fetcher]
) -> list[list[Fetcher]]:
    """Open the parts of each group, all at once.

    If samples lack values and the group has fill values, its last fetcher is that of the fill
    values.
    """
    paths = [
        [part.path for part in group.parts]
        + ([group.fill] if group.samples < total and group.fill else [])
        for group in groups
    ]
    count = sum(map(len, paths))
    start: Callable[..., Callable[[], Fetcher]] = start_thread if count > 1 else lambda work: work
    waits = [[start(partial(open_part, path)) for path in group_paths] for group_paths in paths]
    return [[wait() for wait in group_waits] for group_waits in waits]


def _group_source(
    group: ColumnGroup,
    index: Index,
    fetchers: Sequence[Fetcher],
    names: Sequence[str],
    arguments: tuple[_ColumnsArgument, bool, int | None],
) -> Source:
    """Return the source of a group's columns, which has a row for each sample of the dataset."""
    sources = []
    for fetcher in fetchers:
        source, _ = open_source(fetcher, *arguments)
        sources.append(source)
    for part, source in zip(group.parts, sources, strict=False):  # without the fill values
        if source.index.samples != part.samples:
            raise FormatError(
                f"{source.index.where}: {quantity(source.index.samples, 'sample')}; the "
                f"dataset's {COLUMNS_FILE} says {part.samples:,}"
            )
    fields = {name: sources[0].field(name) for name in names}
    if len(sources) == 1:
        return Source(fetchers[0], fields, {}, arguments[2])
    for source in sources[1:]:
        for name, field in fields.items():
            other = source.field(name).encoding
            if encoding_key(other) != encoding_key(field.encoding):
                raise FormatError(
                    f"{source.index.where}: column {name!r} is {other.name!r}, but "
                    f"{field.encoding.name!r} in {sources[0].index.where}"
                )
    # Imported here, because most datasets have no added columns, or groups of one part.
    from npstream.joins.concatenated import PartsSource

    members = [
        Member(part.path, source, Selection.all(part.samples))
        for part, source in zip(group.parts, sources, strict=False)
        if part.samples
    ]
    if missing := index.samples - group.samples:
        rows: Any = Selection.all(1).select(np.zeros(missing, np.int64))
        members.append(Member(group.fill, sources[-1], rows))
    return PartsSource(members, fields)
