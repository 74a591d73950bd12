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

_SHOWN_KEYS = 3
"""A message lists at most this many keys."""

_ARRAY_KINDS = "biufcmM"
"""Kinds of the dtypes of arrays whose rows are reordered without a copy of all values."""


@contextmanager
def reordered(
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
    columns : mapping of str to str or Encoding, optional
        The encodings of the columns to read of `data`; by default all.
    fill : mapping of str to object
        The values of samples without a row in `data`.
    plan : callable
        Takes the names of the columns without the key; returns the encodings to write them in, or
        None for those of `data`.
    match : callable
        Takes the column of keys, as an array or a Column; returns for each sample the number of its
        row, or -1 if there is none.

    Yields
    ------
    data : object
        What `npstream.write` takes, a row for each sample and without the key.
    encodings : mapping of str to str or Encoding
        The encodings to write it in.
    """
    table = _array_table(data, key, columns, fill, plan, match)
    if table is not None:
        yield table
        return
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="npstream-"))
        path = os.path.join(folder, "data")
        write(path, data, columns=columns, fill=fill or None, sidecar=False, progress=False)  # type: ignore[arg-type]
        given = stack.enter_context(open_dataset(path, allow_pickle=True))
        if key not in given:
            raise ColumnError(key, given.columns, "data: ")
        names = tuple(name for name in given.columns if name != key)
        encodings = {name: given._source.field(name).encoding.name for name in names}
        target = plan(names) or encodings
        order = match(given[key])
        members = [Member("data", given._source, Selection.all(len(given)))] if len(given) else []
        if (order < 0).any():
            path = os.path.join(folder, "fill")
            sample = {name: fill[name] for name in names}
            write(path, [sample], columns=encodings, sidecar=False, progress=False)
            filled = stack.enter_context(open_dataset(path, allow_pickle=True))
            members.append(Member("fill", filled._source, Selection.all(1)))
        fields = {name: given._source.field(name) for name in names}
        source = ConcatenatedSource(members, fields, {}) if members else given._source
        rows = np.where(order < 0, len(given), order)
        selection: Any = Selection.all(len(given) + 1).select(rows)
        yield Dataset(source, selection, names), target


def _array_table(
    data: Any,
    key: str,
    columns: Encodings | None,
    fill: Mapping[str, Any],
    plan: Callable[[Sequence[str]], Encodings | None],
    match: Callable[[Any], Int64],
) -> tuple[Any, Encodings] | None:
    """Return reordered arrays, which are read block by block; None for other data."""
    if not (isinstance(data, Mapping) and all(type(a) in _ARRAYS for a in data.values())):
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
    given = Columns({name: _array_column(array) for name, array in arrays.items()})
    own = table_encodings(given)
    if any(named_encoding(columns[name]) != own[name] for name in names if columns):
        return None
    target = plan(names) or own
    if any(named_encoding(target[name]) != own[name] for name in names):
        return None
    order = match(data[key])
    table = Columns(
        {
            name: _array_column(array, order, fill.get(name), own[name])
            for name, array in arrays.items()
        }
    )
    return PreparedTable(table), target


_ARRAYS = (np.ndarray, np.memmap)


def named_encoding(encoding: str | Encoding) -> Encoding:
    """Return an encoding that a user named."""
    return column_type(encoding) if isinstance(encoding, str) else encoding


def _array_column(
    array: AnyArray, order: Int64 | None = None, fill: Any = None, encoding: Encoding | None = None
) -> ArrayColumn:
    """Return rows of an array, in an order, as a column to write."""

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
    return ArrayColumn(read, count, array.dtype, array.shape[1:])


def _empty(array: AnyArray, rows: int) -> AnyArray:
    return np.empty((rows, *array.shape[1:]), array.dtype)


class PreparedTable:
    """A table that `npstream.write` takes.

    Parameters
    ----------
    table : InputTable or TableStream
    """

    def __init__(self, table: Any) -> None:
        self.table = table

    def _writer_input(self) -> Any:
        return self.table


def match_keys(key: str, column: Column, start: int, given: Any, is_filled: bool) -> Int64:
    """Return the row of each sample's key in the given keys, or -1 if there is none.

    Parameters
    ----------
    key : str
        The name of the key column.
    column : Column
        The keys of the dataset's samples.
    start : int
        The first sample to match.
    given : ndarray or Column
        The keys of the data's rows.
    is_filled : bool
        Whether samples without a row are permitted.

    Raises
    ------
    TypeError
        If keys are not integers, text or bytes, or differ in type.
    ValueError
        If keys are repeated, or missing, or those of no sample.
    """
    samples = _keys(column, key, "the dataset")
    rows = _keys(given, key, "data")
    if len(samples) and len(rows) and _kind(samples) != _kind(rows):
        raise TypeError(
            f"key={key!r}: the dataset has {_kind(samples)}, and data has {_kind(rows)}: convert "
            "the keys of data"
        )
    if isinstance(samples, np.ndarray) and isinstance(rows, np.ndarray):
        _refuse_repeated(_repeated_integers(samples), key, "the dataset")
        _refuse_repeated(_repeated_integers(rows), key, "data")
        order = _find_integers(samples, rows)
    else:
        samples, rows = list(samples), list(rows)
        _refuse_repeated(_repeated_values(samples), key, "the dataset")
        _refuse_repeated(_repeated_values(rows), key, "data")
        positions = {value: row for row, value in enumerate(rows)}
        order = np.array([positions.get(value, -1) for value in samples], np.int64)
    is_used = np.zeros(len(rows), bool)
    is_used[order[start:][order[start:] >= 0]] = True
    if not is_used.all():
        unused = [rows[row] for row in np.flatnonzero(~is_used)[:_SHOWN_KEYS]]
        known = np.zeros(len(rows), bool)
        known[order[order >= 0]] = True
        why = "no sample has" if not known[~is_used].all() else "only samples with values have"
        raise ValueError(
            f"key={key!r}: data has {quantity(int((~is_used).sum()), 'key')} that {why}: "
            f"{_shown(unused, int((~is_used).sum()))}: leave these rows out"
        )
    order = order[start:]
    missing = np.flatnonzero(order < 0)
    if len(missing) and not is_filled:
        keys = [samples[start + int(row)] for row in missing[:_SHOWN_KEYS]]
        raise ValueError(
            f"key={key!r}: data has no values for {quantity(len(missing), 'sample')} of the "
            f"dataset, with the keys {_shown(keys, len(missing))}: add them, or give fill= with a "
            "value for each new column"
        )
    return order


def _shown(keys: Sequence[Any], count: int) -> str:
    more = f" and {count - len(keys)} more" if count > len(keys) else ""
    return ", ".join(repr(k.item() if isinstance(k, np.generic) else k) for k in keys) + more


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


def _refuse_repeated(repeated: list[Any], key: str, where: str) -> None:
    if repeated:
        raise ValueError(
            f"key={key!r}: {where} has {quantity(len(repeated), 'key')} more than once: "
            f"{_shown(repeated[:_SHOWN_KEYS], len(repeated))}"
        )


def _find_integers(wanted: Int64, given: Int64) -> Int64:
    """Return the position in `given` of each wanted number, or -1."""
    if not len(given):
        return np.full(len(wanted), -1, np.int64)
    by_key = np.argsort(given, kind="stable")
    at = np.minimum(np.searchsorted(given, wanted, sorter=by_key), len(given) - 1)
    rows = by_key[at]
    return np.where(given[rows] == wanted, rows, -1)
