"""Make tables, columns or samples of the objects that users pass for writing.

Objects of other libraries are recognized by a protocol, or by the names of their class and
package. No library is imported for this.

Tested in tests/writing/test_inputs.py.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from itertools import chain
from typing import Any

import numpy as np

from npstream._core import array_like
from npstream._core.arguments import quantity
from npstream._core.dtypes import storage_dtype
from npstream._core.optional import import_optional
from npstream.formats.encodings.encodings import type_of_array
from npstream.writing.inputs.arrow_columns import ArrowColumn, arrow_columns
from npstream.writing.inputs.fill import NO_FILL, Fill
from npstream.writing.inputs.frames import frame_columns, series_column
from npstream.writing.inputs.hugging_face import dataset_stream
from npstream.writing.tables import (
    ArrayColumn,
    Columns,
    ConstantColumn,
    InputColumn,
    InputTable,
    ListColumn,
    RowError,
    TableStream,
    with_column,
)

__all__ = [
    "as_mapping",
    "column_of",
    "columns_of",
    "foreign_table",
    "iterate",
    "samples_of",
    "table_of",
]

_TEXT_ENCODINGS = {"U": "str", "T": "str", "S": "bytes"}
"""The encoding of each text kind of NumPy dtypes, for arrays without rows."""

_NOT_A_COLUMN = "which is several columns: write it alone, or a mapping of its columns"


def table_of(
    data: Any,
    names: Collection[str] | None = None,
    fill: Mapping[str, Fill] | None = None,
    *,
    check: bool = True,
) -> InputTable | TableStream | None:
    """Return the user's data as a table; None if it is an iterable of samples.

    Parameters
    ----------
    data : object
    names : collection of str, optional
        The columns to write; by default all.
    fill : mapping of str to Fill, optional
        Replaces missing values, by column. A column that `data` lacks has only this value.
    check : bool, default: True
        Whether to raise for missing values now, instead of when their rows are written.

    Raises
    ------
    TypeError, ValueError
        If a column cannot be written, or the columns differ in length.
    RowError
        If a value is missing.
    """
    table = _table_of(data, names, fill or {})
    if check and isinstance(table, Columns):
        table.check()
    return table


def _table_of(
    data: Any, names: Collection[str] | None, fill: Mapping[str, Fill]
) -> InputTable | TableStream | None:
    writer_input = getattr(type(data), "_writer_input", None)
    if writer_input is not None:
        table_or_column: Any = writer_input(data)
        if table_or_column is None or hasattr(table_or_column, "names"):
            return table_or_column  # type: ignore[no-any-return]
        if isinstance(table_or_column, TableStream):
            return table_or_column
        if hasattr(table_or_column, "name"):
            return Columns({table_or_column.name: table_or_column})
        raise TypeError(
            f"a {type(data).__name__} is a column without a name: write a mapping, such as "
            "{'x': it}"
        )
    if _is_a(data, "datasets", "DatasetDict", "IterableDatasetDict"):
        raise TypeError(
            f"data is a {type(data).__name__}, which is several datasets: write each to a "
            f"directory of its own, as with data[{next(iter(data), 'train')!r}]"
        )
    if isinstance(data, Mapping) and not _is_a(data, "tensordict", "TensorDictBase"):
        return columns_of(data, None, names, fill)
    table = foreign_table(data, names, fill)
    if table is None and _is_column(data):
        return _one_column(data, names, fill)
    return table


def foreign_table(
    data: Any, names: Collection[str] | None, fill: Mapping[str, Fill]
) -> InputTable | TableStream | None:
    """Return the table of another library; None if `data` is not one."""
    if _is_a(data, "pandas", "DataFrame"):
        return columns_of(frame_columns(data, names), None, names, fill)
    if _is_a(data, "polars", "LazyFrame"):
        raise TypeError(
            "data is a LazyFrame, which has no rows yet: write data.collect(), or "
            "data.collect_batches(), which does not hold all rows in memory"
        )
    if _is_a(data, "datasets", "Dataset", "IterableDataset") and hasattr(data, "select_columns"):
        return dataset_stream(data, names, fill)
    if _is_a(data, "tensordict", "TensorDictBase"):
        return columns_of(_tensor_dict(data), None, names, fill) if data.batch_size else None
    if _is_a(data, "torch", "TensorDataset"):
        return _tensors(data.tensors, names, fill)
    field_names = getattr(getattr(data, "dtype", None), "names", None)
    if field_names and getattr(data, "ndim", 1) == 1 and hasattr(data, "__getitem__"):
        return columns_of(_fields(data, field_names), None, names, fill)
    return _arrow_table(data, names, fill)


def _is_a(value: object, package: str, *names: str) -> bool:
    """Return True for an instance of a class of another package, without importing it."""
    return any(
        kind.__name__ in names and kind.__module__.partition(".")[0] == package
        for kind in type(value).__mro__
    )


def columns_of(
    data: Mapping[str, Any],
    source_encodings: Mapping[str, str] | None = None,
    names: Collection[str] | None = None,
    fill: Mapping[str, Fill] | None = None,
) -> Columns:
    """Return a mapping of columns as a table.

    Parameters
    ----------
    data : mapping of str to array or sequence
    source_encodings : mapping of str to str, optional
        The encodings of the columns in the dataset that they come from.
    names : collection of str, optional
        The columns to return; by default all.
    fill : mapping of str to Fill, optional
        Replaces missing values, by column. A column that `data` lacks has only this value.
    """
    columns = {}
    for name, values in data.items():
        if names is not None and name not in names:
            continue
        try:
            columns[name] = column_of(
                values, (source_encodings or {}).get(name), (fill or {}).get(name)
            )
        except (TypeError, ValueError, NotImplementedError) as error:
            raise with_column(name, error) from error
    return _with_constants(columns, list(data), names, fill or {})


def _with_constants(
    columns: Mapping[str, InputColumn],
    available_names: Collection[str],
    names: Collection[str] | None,
    fill: Mapping[str, Fill],
) -> Columns:
    """Return a table of `columns`, with constant columns for other names in `fill`."""
    length = next((column.length for column in columns.values()), 0)
    constants = {
        name: ConstantColumn(length, value)
        for name, value in fill.items()
        if name not in columns and (names is None or name in names)
    }
    return Columns({**columns, **constants}, available_names)


def column_of(
    values: Any, source_encoding: str | None = None, fill: Fill | None = None
) -> InputColumn:
    """Return an array of any library, or a list, as a column.

    Parameters
    ----------
    values : array or sequence
    source_encoding : str, optional
        The encoding of the column in the dataset that it comes from. It is used if it matches
        the dtype and shape.
    fill : Fill, optional
        Replaces missing values.
    """
    fill = fill or NO_FILL
    writer_input = getattr(type(values), "_writer_input", None)
    if writer_input is not None:
        column = writer_input(values)
        if hasattr(column, "length") and not hasattr(column, "names"):
            return column  # type: ignore[no-any-return]
    if isinstance(values, str | bytes | Mapping) or not _has_length(values):
        raise TypeError(
            f"it is of type {type(values).__name__}: a mapping holds columns, each an array or a "
            "list; a single sample goes into a list"
        )
    if type(values).__module__.partition(".")[0] == "pandas":
        if getattr(values, "ndim", 1) != 1:
            raise TypeError(f"it is a DataFrame, {_NOT_A_COLUMN}")
        return series_column(values, fill, _array_column)
    if array_like.is_arrow(values):
        if hasattr(values, "schema"):
            raise TypeError(f"it is a {type(values).__name__}, {_NOT_A_COLUMN}")
        return ArrowColumn(array_like.arrow_array(values), fill)
    if array_like.is_tensor(values) and (rows := array_like.tensor_rows(values)) is not None:
        return ListColumn(rows)
    if array_like.is_array(values):
        return _array_column(values, fill, source_encoding)
    return ListColumn(values, None, fill)


def _has_length(values: Any) -> bool:
    """Return True for an array with an axis, or a sequence."""
    if hasattr(values, "ndim"):
        return bool(values.ndim)
    return hasattr(values, "__len__")


def _array_column(
    values: Any, fill: Fill = NO_FILL, source_encoding: str | None = None
) -> InputColumn:
    """Return an array as a column; arrays of other libraries are read block by block."""
    is_in_memory = isinstance(values, np.ndarray) or array_like.is_tensor(values)
    if is_in_memory or not (hasattr(values, "__getitem__") and hasattr(values, "shape")):
        if isinstance(values, np.ma.MaskedArray):
            _refuse_hidden_values(values)
        values = array_like.as_array(values)
    first = array_like.as_array(values[:1])
    if storage_dtype(first.dtype) is None and first.dtype.kind in "OUST":
        return ListColumn(
            array_like.as_array(values),
            source_encoding or _TEXT_ENCODINGS.get(first.dtype.kind),
            fill,
        )
    return ArrayColumn(
        lambda start, stop: values[start:stop], values.shape[0], first.dtype, first.shape[1:],
        source_encoding, _chunk_rows(values), fill, isinstance(values, np.ndarray),
    )  # fmt: skip


def _refuse_hidden_values(values: Any) -> None:
    """Raise RowError for the first row with a value that its mask hides."""
    mask = np.ma.getmaskarray(values)
    if mask.any():
        hidden = mask.any(axis=tuple(range(1, mask.ndim)))
        try:
            array_like.as_array(values)
        except ValueError as error:
            raise RowError(int(hidden.argmax()), str(error)) from None


def _chunk_rows(values: Any) -> int:
    """Return how many rows an array of another library reads at once."""
    chunks = getattr(values, "chunks", None)
    first = chunks[0] if isinstance(chunks, tuple) and chunks else 1
    if isinstance(first, tuple):
        first = max(first, default=1)
    return first if isinstance(first, int) and first > 0 else 1


# Structured arrays, and single arrays


class _Field:
    """A field of a structured array; each block of rows is read once for all fields."""

    def __init__(self, rows: _LastRows, name: str) -> None:
        self._rows, self._name = rows, name
        kind = rows.values.dtype[name]
        self.dtype, self.shape = kind.base, (rows.values.shape[0], *kind.shape)
        self.ndim = len(self.shape)
        self.chunks = getattr(rows.values, "chunks", None)

    def __getitem__(self, rows: slice) -> Any:
        return self._rows.read(rows)[self._name]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return self[:]


class _LastRows:
    """Reads blocks of a structured array, and caches the last block."""

    def __init__(self, values: Any) -> None:
        self.values = values
        self._last: tuple[slice, Any] | None = None

    def read(self, rows: slice) -> Any:
        """Return rows as a NumPy array."""
        if self._last is None or self._last[0] != rows:
            self._last = rows, array_like.as_array(self.values[rows])
        return self._last[1]


def _fields(data: Any, names: Iterable[str]) -> dict[str, Any]:
    """Return the fields of a structured array, each as an array."""
    for name in names:
        if data.dtype[name].base.names:
            raise TypeError(
                f"column {name!r}: its values have fields of their own: write a mapping with a "
                f"column for each, such as {{'{name}.x': data[{name!r}]['x']}}, or leave it out"
            )
    if isinstance(data, np.ndarray):
        data = data if isinstance(data, np.ma.MaskedArray) else np.asarray(data)
        return {name: data[name] for name in names}
    rows = _LastRows(data)
    return {name: _Field(rows, name) for name in names}


def _is_column(data: Any) -> bool:
    """Return True for an array that is not a table."""
    return array_like.is_array(data) or _is_a(data, "polars", "Series")


def _one_column(data: Any, names: Collection[str] | None, fill: Mapping[str, Fill]) -> Columns:
    """Return a single array as the column that the user named."""
    if names is not None and len(names) == 1:
        (name,) = names
        return columns_of({name: data}, None, names, fill)
    for attribute in ("fields", "columns", "column_names"):
        if len(getattr(data, attribute, None) or ()):
            raise TypeError(
                f"data is a {type(data).__name__}, which is several columns: write a mapping of "
                f"them, {{name: data[name] for name in data.{attribute}}}"
            )
    shape = tuple(getattr(data, "shape", ()))
    description = f"a {type(data).__name__}" + (f" of shape {shape}" if shape else "")
    encoding = "..."
    # The encoding is only an example. An array of another library may not support the slice.
    with suppress(TypeError, ValueError, LookupError, RuntimeError, ImportError):
        dtype = array_like.as_array(data[:1]).dtype
        encoding = type_of_array(dtype, shape[1:]).name
    count = f", and columns= has {quantity(len(names), 'name')}" if names else ""
    raise TypeError(
        f"data is {description}, one column without a name{count}: write {{'x': data}}, or name it "
        f"with columns={{'x': {encoding!r}}}"
    )


def _tensor_dict(data: Any) -> dict[str, Any]:
    """Return the tensors of a TensorDict by name."""
    for name, value in data.items():
        if _is_a(value, "tensordict", "TensorDictBase"):
            raise TypeError(
                f"column {name!r}: it is a TensorDict of its own: make each of its tensors a "
                "column, as with data.flatten_keys('.'), or leave it out, as with data.exclude(...)"
            )
    return dict(data.items())


def _tensors(
    tensors: tuple[Any, ...], names: Collection[str] | None, fill: Mapping[str, Fill]
) -> Columns:
    """Return the tensors of torch's TensorDataset as the columns that the user named."""
    if names is None or len(names) != len(tensors):
        count = "" if names is None else f", and columns= has {quantity(len(names), 'name')}"
        raise TypeError(
            f"data is a TensorDataset of {quantity(len(tensors), 'tensor')} without names{count}: "
            "name each with columns=, or write a mapping, "
            "dict(zip(('image', 'label'), data.tensors))"
        )
    return columns_of(dict(zip(names, tensors, strict=True)), None, names, fill)


# Arrow


def _arrow_table(
    data: Any, names: Collection[str] | None, fill: Mapping[str, Fill]
) -> InputTable | TableStream | None:
    """Return the table of an object with Arrow's interfaces; None if `data` is not one."""
    if _is_a(data, "pyarrow", "Table", "RecordBatch"):
        return _arrow_columns(data, names, fill)
    if _is_a(data, "pyarrow", "Dataset"):
        names = None if names is None else [*names]
        columns = names and [name for name in data.schema.names if name in names]
        # By default pyarrow prefetches 16 batches of each of 4 files, without a memory limit.
        data = data.scanner(columns=columns, batch_readahead=2, fragment_readahead=1)
    if _is_a(data, "pyarrow", "Scanner"):
        return _reader_stream(data.to_reader(), names, fill)
    if _is_a(data, "pyarrow", "RecordBatchReader"):
        return _reader_stream(data, names, fill)
    if not array_like.is_arrow(data):
        return None
    pa = import_optional("pyarrow", "pyarrow", "arrow", "writing this table")
    if _is_a(data, "polars", "DataFrame"):
        _refuse_objects(data)
        return _arrow_columns(pa.table(data), names, fill)  # no copy
    if hasattr(data, "__arrow_c_stream__"):
        try:
            reader = pa.RecordBatchReader.from_stream(data)
        except pa.ArrowInvalid as error:
            if "non-struct" in str(error):
                return None  # `data` is a column, not a table
            raise TypeError(
                f"data is a {type(data).__name__} with a column of a type that pyarrow does not "
                f"know: {error}: cast that column, or leave it out of data"
            ) from error
        return _reader_stream(reader, names, fill)
    array = pa.array(data)
    if not pa.types.is_struct(array.type):
        return None
    batch = pa.RecordBatch.from_struct_array(array)
    return _arrow_columns(batch, names, fill)


def _arrow_columns(table: Any, names: Collection[str] | None, fill: Mapping[str, Fill]) -> Columns:
    return _with_constants(arrow_columns(table, fill, names), table.schema.names, names, fill)


def _refuse_objects(frame: Any) -> None:
    """Raise for columns that polars does not export, or exports as memory addresses."""
    for name, dtype in frame.schema.items():
        if str(dtype) == "Object":
            raise TypeError(
                f"column {name!r}: no encoding follows from polars's Object: cast it, or write "
                "{..., name: list(frame[name])}, a mapping of all columns"
            )
        if str(dtype) in ("Int128", "UInt128"):
            raise TypeError(
                f"column {name!r}: no encoding follows from polars's {dtype}: cast it to pl.Int64, "
                "which refuses larger values, or to pl.String"
            )


def _reader_stream(
    reader: Any, names: Collection[str] | None, fill: Mapping[str, Fill]
) -> TableStream:
    """Return the record batches of a reader as a stream."""

    def table(batch: Any) -> InputTable:
        return _arrow_columns(batch, names, fill)

    head = table(reader.schema.empty_table())
    return TableStream(head, (table(batch) for batch in reader))


# Samples


def samples_of(
    data: Any,
    names: Collection[str] | None,
    fill: Mapping[str, Fill] | None = None,
    may_be_empty: bool = False,
) -> Iterable[Any] | TableStream:
    """Return the user's data as samples, or as a stream if they are tables.

    Parameters
    ----------
    data : iterable, or object with ``__len__`` and ``__getitem__``
    names : collection of str, optional
        The columns to write. They name the values of tuples in order.
    fill : mapping of str to Fill, optional
    may_be_empty : bool, default: False
        Whether there may be no samples although `names` is None, as in an append.

    Raises
    ------
    TypeError
        If `data` cannot be read as samples or tables.
    ValueError
        If there are no samples, `names` is None, and `may_be_empty` is False.
    """
    samples = iterate(data)
    for first in samples:
        all_samples = chain([first], samples)
        if type(first) is dict or hasattr(type(first), "_writer_input"):
            return all_samples
        if isinstance(first, str) and hasattr(data, "columns"):
            raise TypeError(
                f"data is of type {type(data).__name__}, which yields names of columns and not "
                "samples: write a mapping of its columns, {name: data[name] for name in "
                "data.columns}"
            )
        table = foreign_table(first, names, fill or {})
        if table is None:
            return _named_samples(all_samples, names)
        head = table.head if isinstance(table, TableStream) else table
        return TableStream(head, _tables(table, samples, names, fill or {}))
    if names is None and not may_be_empty:
        raise ValueError(
            "no samples and no columns=: the columns of the dataset are unknown (an iterator can "
            "be read only once)"
        )
    return ()


def iterate(data: Any) -> Iterator[Any]:
    """Return an iterator over the samples of `data`."""
    if isinstance(data, str | bytes | os.PathLike):
        raise TypeError(
            f"data is of type {type(data).__name__}, a name instead of samples: open it first, as "
            "with pandas.read_csv, or write files with npstream.convert(source, url)"
        )
    loader = getattr(sys.modules.get("torch.utils.data"), "DataLoader", None)
    if loader is not None and isinstance(data, loader):
        raise TypeError(
            "data is a DataLoader, which yields batches and not samples: write its dataset, "
            "data.dataset"
        )
    is_map_style = hasattr(type(data), "__getitem__") and hasattr(type(data), "__len__")
    if is_map_style and not hasattr(type(data), "__iter__"):
        # `iter` would read until IndexError, which a map-style dataset of torch need not raise.
        return (data[k] for k in range(len(data)))
    try:
        return iter(data)
    except TypeError:
        raise TypeError(
            f"data is of type {type(data).__name__}: expected samples, each a mapping; a mapping "
            "from the names of columns to arrays; or a table"
        ) from None


def _tables(
    first: InputTable | TableStream,
    others: Iterator[Any],
    names: Collection[str] | None,
    fill: Mapping[str, Fill],
) -> Iterator[InputTable]:
    """Yield the first table, then those of the remaining items."""
    for table in chain([first], (_next_table(item, names, fill) for item in others)):
        if isinstance(table, TableStream):
            yield from table.tables
        else:
            yield table


def _next_table(
    item: Any, names: Collection[str] | None, fill: Mapping[str, Fill]
) -> InputTable | TableStream:
    table = foreign_table(item, names, fill)
    if table is None:
        raise TypeError(
            f"data yields a {type(item).__name__} after tables: give tables only, or samples only"
        )
    return table


def _named_samples(samples: Iterable[Any], names: Collection[str] | None) -> Iterator[Any]:
    """Yield samples as mappings; `names` name the values of tuples."""
    for number, sample in enumerate(samples):
        try:
            named_sample = as_mapping(sample, names, number)
        except TypeError:
            named_sample = sample  # the writer raises the error, or leaves the sample out
        yield named_sample


def as_mapping(sample: Any, names: Collection[str] | None, number: int) -> Any:
    """Return a sample as a mapping, if its values have names; otherwise the sample itself.

    Parameters
    ----------
    sample : object
    names : collection of str, optional
        The names of the values in tuples and lists. If there is one name, it also names a sample
        that is an array.
    number : int
        The number of the sample, for messages.

    Raises
    ------
    TypeError
        If it is a tuple or list, and `names` does not name each value.
    """
    if _is_a(sample, "tensordict", "TensorDictBase"):
        return _tensor_dict(sample)
    if isinstance(sample, Mapping) or hasattr(type(sample), "_writer_input"):
        return sample
    if hasattr(sample, "_asdict"):  # a named tuple
        return sample._asdict()
    if is_dataclass(sample) and not isinstance(sample, type):
        return {field.name: getattr(sample, field.name) for field in fields(sample)}
    if isinstance(sample, np.void) and sample.dtype.names:
        return {name: sample[name] for name in sample.dtype.names}
    if isinstance(sample, tuple | list):
        if names is None or len(names) != len(sample):
            count = "" if names is None else f", and columns= has {quantity(len(names), 'name')}"
            raise TypeError(
                f"sample {number} is a {type(sample).__name__} of "
                f"{quantity(len(sample), 'value')} without names{count}: name each with columns=, "
                "as in columns={'image': 'jpeg', 'label': 'int64'}, or give mappings"
            )
        return dict(zip(names, sample, strict=True))
    if names is not None and len(names) == 1 and array_like.is_array(sample):
        return dict.fromkeys(names, sample)
    return sample
