"""Match the rows of a table with the samples of a dataset, by a key column.

Tested in tests/tools/test_add_columns.py.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from npstream._core.arguments import quantity
from npstream._core.typing import AnyArray, Int64
from npstream.dataset.dataset import Dataset
from npstream.dataset.opening import open_dataset
from npstream.errors import ColumnError
from npstream.formats.encodings.encodings import Encoding, column_type
from npstream.indexing.selection import Selection
from npstream.joins.concatenated import ConcatenatedSource
from npstream.reading.source import Member
from npstream.writing.tables import ArrayColumn, Columns, table_encodings
from npstream.writing.writer import write

if TYPE_CHECKING:
    from npstream.dataset.column import Column

Encodings = Mapping[str, "str | Encoding"]

_MAX_LISTED_KEYS = 3
"""Maximum number of keys that a message lists."""

_ARRAY_KINDS = "biufcmM"
"""Kinds of the dtypes of arrays whose rows are reordered without a copy of all values."""


@contextmanager
def reorder(
    data: Any,
    key: str,
    columns: Encodings | None,
    fill: Mapping[str, Any],
    plan: Callable[[Sequence[str]], Encodings | None],
    match: Callable[[Any], Int64],
) -> Iterator[tuple[Any, Encodings]]:
    """Bring data into the order of a dataset's samples.

    Parameters
    ----------
    data : object
        Anything that `npstream.write` takes, with the key column.
    key : str
        The name of the key column.
    columns : mapping of str to str or Encoding, optional
        The columns of `data` to read, and their encodings; by default all columns.
    fill : mapping of str to object
        The values of samples without a row in `data`.
    plan : callable
        Takes the names of all columns except the key. Returns the encodings in which to write these
        columns, or None for the encodings of `data`.
    match : callable
        Takes the key column of `data`, as an array or a Column. Returns for each sample the number
        of its row in `data`, or -1 if there is none.

    Yields
    ------
    data : object
        An input for `npstream.write`, with one row for each sample and without the key column.
    encodings : mapping of str to str or Encoding
        The encodings in which to write the columns.
    """
    table = _array_table(data, key, columns, fill, plan, match)
    if table is not None:
        yield table
        return
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="npstream-"))
        path = os.path.join(folder, "data")
        write(path, data, columns=columns, fill=fill or None, sidecar=False, progress=False)  # type: ignore[arg-type]
        ds = stack.enter_context(open_dataset(path, allow_pickle=True))
        if key not in ds:
            raise ColumnError(key, ds.columns, "data: ")
        names = tuple(name for name in ds.columns if name != key)
        encodings = {name: ds._source.field(name).encoding.name for name in names}
        target = plan(names) or encodings
        order = match(ds[key])
        members = [Member("data", ds._source, Selection.all(len(ds)))] if len(ds) else []
        if (order < 0).any():
            path = os.path.join(folder, "fill")
            sample = {name: fill[name] for name in names}
            write(path, [sample], columns=encodings, sidecar=False, progress=False)
            fill_ds = stack.enter_context(open_dataset(path, allow_pickle=True))
            members.append(Member("fill", fill_ds._source, Selection.all(1)))
        fields = {name: ds._source.field(name) for name in names}
        source = ConcatenatedSource(members, fields, {}) if members else ds._source
        # The sample of fill values, if there is one, follows the rows of the data.
        rows = np.where(order < 0, len(ds), order)
        selection: Any = Selection.all(len(ds) + 1).select(rows)
        yield Dataset(source, selection, names), target


def _array_table(
    data: Any,
    key: str,
    columns: Encodings | None,
    fill: Mapping[str, Any],
    plan: Callable[[Sequence[str]], Encodings | None],
    match: Callable[[Any], Int64],
) -> tuple[Any, Encodings] | None:
    """Return arrays in the order of the samples, as a table that is read block by block.

    Return None if `data` is no mapping of arrays, or if an encoding would convert their values.
    """
    if not (isinstance(data, Mapping) and all(type(a) in _ARRAY_TYPES for a in data.values())):
        return None
    if key not in data:
        raise ColumnError(key, data, "data: ")
    names = [name for name in (data if columns is None else columns) if name != key]
    arrays = {}
    for name in names:
        if name not in data:
            raise ColumnError(name, data, "data: ")
        arrays[name] = array = data[name]
        if not array.ndim or array.dtype.kind not in _ARRAY_KINDS:
            return None
    lengths = {name: len(array) for name, array in data.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns differ in length: {lengths}")
    encodings = table_encodings(
        Columns({name: _array_column(array) for name, array in arrays.items()})
    )
    if any(to_encoding(columns[name]) != encodings[name] for name in names if columns):
        return None
    target = plan(names) or encodings
    if any(to_encoding(target[name]) != encodings[name] for name in names):
        return None
    order = match(data[key])
    table = Columns(
        {
            name: _array_column(array, order, fill.get(name), encodings[name])
            for name, array in arrays.items()
        }
    )
    return PreparedTable(table), target


_ARRAY_TYPES = (np.ndarray, np.memmap)


def to_encoding(encoding: str | Encoding) -> Encoding:
    """Return the encoding with a given name; return an Encoding unchanged."""
    return column_type(encoding) if isinstance(encoding, str) else encoding


def _array_column(
    array: AnyArray, order: Int64 | None = None, fill: Any = None, encoding: Encoding | None = None
) -> ArrayColumn:
    """Return the rows `order` of an array as a column to write; by default all rows.

    A row -1 stands for the value `fill`.
    """

    def read(start: int, stop: int) -> AnyArray:
        if order is None:
            return array[start:stop]
        rows = order[start:stop]
        block: AnyArray = array[np.maximum(rows, 0)] if len(array) else _empty(array, len(rows))
        if (missing := rows < 0).any():
            assert encoding is not None
            value = np.frombuffer(encoding.encode(fill), encoding.dtype.newbyteorder("<"))
            block[missing] = value.reshape(array.shape[1:])
        return block

    count = len(array) if order is None else len(order)
    return ArrayColumn(read, count, array.dtype, array.shape[1:], is_stable=True)


def _empty(array: AnyArray, rows: int) -> AnyArray:
    return np.empty((rows, *array.shape[1:]), array.dtype)


class PreparedTable:
    """Wraps a table in the internal form, so that `npstream.write` accepts it as data.

    Parameters
    ----------
    table : InputTable or TableStream
        The table in the form that the writer reads.
    """

    def __init__(self, table: Any) -> None:
        self.table = table

    def _writer_input(self) -> Any:
        return self.table


def match_keys(key: str, column: Column, start: int, data_keys: Any, has_fill: bool) -> Int64:
    """Find the row of `data_keys` that has the key of a sample, for each sample from `start` on.

    Return -1 for a sample whose key is not in `data_keys`.

    Parameters
    ----------
    key : str
        The name of the key column.
    column : Column
        The keys of all samples of the dataset.
    start : int
        The first sample to match. The samples before it already have values.
    data_keys : ndarray or Column
        The keys of the data's rows.
    has_fill : bool
        Whether samples without a row are permitted, because they get fill values.

    Raises
    ------
    TypeError
        If keys are not integers, text or bytes, or differ in type.
    ValueError
        If keys are repeated or missing, or if the data has a key that no sample from `start`
        on has.
    """
    samples = _keys(column, key, "the dataset")
    rows = _keys(data_keys, key, "data")
    if len(samples) and len(rows) and _kind(samples) != _kind(rows):
        raise TypeError(
            f"key={key!r}: the dataset has {_kind(samples)}, and data has {_kind(rows)}: convert "
            "the keys of data"
        )
    if isinstance(samples, np.ndarray) and isinstance(rows, np.ndarray):
        _require_unique(_repeated_integers(samples), key, "the dataset")
        _require_unique(_repeated_integers(rows), key, "data")
        order = _find_integers(samples, rows)
    else:
        samples, rows = list(samples), list(rows)
        _require_unique(_repeated_values(samples), key, "the dataset")
        _require_unique(_repeated_values(rows), key, "data")
        positions = {value: row for row, value in enumerate(rows)}
        order = np.array([positions.get(value, -1) for value in samples], np.int64)
    is_unused = np.ones(len(rows), bool)
    is_unused[order[start:][order[start:] >= 0]] = False
    if is_unused.any():
        # Samples before `start` have values. Their keys are listed only if there are no others.
        is_unknown = np.ones(len(rows), bool)
        is_unknown[order[order >= 0]] = False
        is_listed = is_unknown if is_unknown.any() else is_unused
        reason = "that no sample has" if is_unknown.any() else "of samples that already have values"
        count = int(is_listed.sum())
        unused = [rows[row] for row in np.flatnonzero(is_listed)[:_MAX_LISTED_KEYS]]
        raise ValueError(
            f"key={key!r}: data has {quantity(count, 'key')} {reason}: "
            f"{_list_keys(unused, count)}: leave these rows out"
        )
    order = order[start:]
    missing = np.flatnonzero(order < 0)
    if len(missing) and not has_fill:
        keys = [samples[start + int(row)] for row in missing[:_MAX_LISTED_KEYS]]
        raise ValueError(
            f"key={key!r}: data has no values for {quantity(len(missing), 'sample')} of the "
            f"dataset, with the keys {_list_keys(keys, len(missing))}: add them, or give fill= "
            "with a value for each new column"
        )
    return order


def _list_keys(keys: Sequence[Any], count: int) -> str:
    """Return the reprs of keys, and how many of `count` keys are not listed."""
    suffix = f" and {count - len(keys)} more" if count > len(keys) else ""
    return ", ".join(repr(k.item() if isinstance(k, np.generic) else k) for k in keys) + suffix


def _kind(keys: Any) -> str:
    if isinstance(keys, np.ndarray) or isinstance(keys[0], int):
        return "integers"
    return "text" if isinstance(keys[0], str) else "bytes"


def _keys(values: Any, key: str, where: str) -> Any:
    """Return keys as an array of int64, or as a list of Python values of one type.

    Raises
    ------
    TypeError
        If they are not integers, text or bytes.
    """
    dtype = np.dtype(values.dtype)
    if values.ndim == 1 and dtype.kind in "iu":
        array = np.asarray(values)
        if dtype != np.uint64 or not (array > np.iinfo(np.int64).max).any():
            return array.astype(np.int64, copy=False)
        return array.tolist()
    if values.ndim == 1 and dtype.kind in "UTSO":
        keys = list(values) if dtype.kind == "O" or not isinstance(values, np.ndarray) else None
        keys = values.tolist() if keys is None else keys
        types = {type(value) for value in keys}
        if len(types) <= 1 and types <= {str, bytes, int}:
            return keys
    raise TypeError(
        f"key={key!r}: the column holds {dtype} in {where}; keys are integers, text or bytes, one "
        "a sample"
    )


def _repeated_integers(keys: Int64) -> list[Any]:
    ordered = np.sort(keys)
    repeated: list[Any] = np.unique(ordered[1:][ordered[1:] == ordered[:-1]]).tolist()
    return repeated


def _repeated_values(keys: list[Any]) -> list[Any]:
    if len(set(keys)) == len(keys):
        return []
    return [value for value, count in Counter(keys).items() if count > 1]


def _require_unique(repeated: list[Any], key: str, where: str) -> None:
    """Raise ValueError if there are repeated keys."""
    if repeated:
        raise ValueError(
            f"key={key!r}: {where} has {quantity(len(repeated), 'key')} more than once: "
            f"{_list_keys(repeated[:_MAX_LISTED_KEYS], len(repeated))}"
        )


def _find_integers(numbers: Int64, values: Int64) -> Int64:
    """Return, for each of `numbers`, the row of `values` that holds it, or -1 if none does."""
    if not len(values):
        return np.full(len(numbers), -1, np.int64)
    sorter = np.argsort(values, kind="stable")
    positions = np.searchsorted(values, numbers, sorter=sorter)
    rows = sorter[np.minimum(positions, len(values) - 1)]
    return np.where(values[rows] == numbers, rows, -1)
