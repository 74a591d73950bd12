"""Columns that are given to a writer: their encodings, and their rows in blocks.

A table is anything with rows in several columns, whoever holds them: arrays of any library, lists,
or what npstream itself has read or would read. Classes of npstream take part by a method
``_to_write``; see `Writable`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import tee
from math import prod
from typing import Any, Protocol, TypeAlias

import numpy as np

from npstream._core import array_like as foreign
from npstream._core.arguments import quantity
from npstream._core.dtypes import convert_exactly, invalid_bool_byte, storage_dtype
from npstream._core.optional import import_optional
from npstream._core.typing import AnyArray, Int64
from npstream.errors import MissingDependencyError, NpstreamError
from npstream.formats.encodings.encodings import Encoding, column_type, infer, parse, type_of_array
from npstream.writing.shard import Bodies, ColumnBlock, bodies_of_rows

Bounds: TypeAlias = "Iterable[tuple[int, int]]"
"""The first row of each block, and the one after its last; blocks follow each other."""


class GivenColumn(Protocol):
    """A column that is to be written.

    ``row_bytes`` is about what a row takes, if that is known; ``chunk`` is how many rows are read
    at once where they come from, if they are not in memory.
    """

    length: int
    row_bytes: int | None
    chunk: int

    def encoding(self) -> Encoding:
        """Return the encoding that keeps the column as it is."""

    def blocks(self, bounds: Bounds, wanted: Encoding) -> Iterator[ColumnBlock]:
        """Yield blocks of rows, as far as possible in the form that an encoding stores."""


class GivenTable(Protocol):
    """Columns of one length that are to be written; see `GivenColumn`.

    ``is_arrays`` is True if all of them come as arrays, or as values that no array can hold.
    """

    length: int
    row_bytes: int | None
    chunk: int
    is_arrays: bool

    def names(self) -> list[str]:
        """Return the names of the columns, in order."""

    def encoding(self, name: str) -> Encoding:
        """Return the encoding that keeps a column as it is."""

    def blocks(
        self, bounds: Bounds, wanted: Mapping[str, Encoding]
    ) -> Iterator[dict[str, ColumnBlock]]:
        """Yield blocks of rows of the columns that are wanted."""


class Writable(Protocol):
    """A class of npstream whose rows can be written."""

    def _to_write(self) -> GivenColumn | GivenTable | None:
        """Return a column, or a table; None for samples that are to be written one by one."""


def table_of(data: Any) -> GivenTable | None:
    """Return what is given to a writer as a table; None if it has samples, one by one.

    Raises
    ------
    TypeError, ValueError
        If it is neither, or its columns differ in length.
    """
    own = getattr(type(data), "_to_write", None)
    if own is not None:
        given: Any = own(data)
        if given is None or hasattr(given, "names"):
            return given  # type: ignore[no-any-return]
        if hasattr(given, "name"):
            return Columns({given.name: given})
        raise TypeError(
            f"a {type(data).__name__} is a column without a name: write a mapping, such as "
            "{'x': it}"
        )
    if not isinstance(data, Mapping):
        return None
    return columns_of(data)


def check_first(data: Any, first: Any) -> None:
    """Say of a table of another library, which is no samples, how it is written."""
    if isinstance(first, Mapping) or hasattr(type(first), "_to_write"):
        return
    names = [name for name in ("column_names", "columns") if hasattr(data, name)]
    if getattr(getattr(data, "dtype", None), "names", None):
        names.append("dtype.names")
    if names:
        raise TypeError(
            f"data is of type {type(data).__name__}, which holds no samples: write a mapping of "
            f"its columns, {{name: data[name] for name in data.{names[0]}}}"
        )


def columns_of(data: Mapping[str, Any], known: Mapping[str, str] | None = None) -> Columns:
    """Return a mapping of columns as a table; `known` is the encodings that they had."""
    columns = {}
    for name, values in data.items():
        try:
            columns[name] = column_of(values, (known or {}).get(name))
        except (TypeError, ValueError, NotImplementedError) as error:
            raise named(name, error) from error
    return Columns(columns)


def named(column: object, error: Exception) -> Exception:
    """Return an exception that says which column it is about."""
    if isinstance(error, MissingDependencyError):
        return error
    kind = ValueError if isinstance(error, ValueError) else TypeError
    return kind(f"column {column!r}: {error}")


_SEVERAL = "which is several columns: write a mapping of these, such as dict(frame) of pandas's"


def column_of(values: Any, known: str | None = None) -> GivenColumn:
    """Return an array of any library, or a list, as a column.

    Parameters
    ----------
    values : array or sequence
    known : str, optional
        The encoding that the column had where it was read, which holds if it still fits.
    """
    own = getattr(type(values), "_to_write", None)
    if own is not None and hasattr(given := own(values), "length") and not hasattr(given, "names"):
        return given  # type: ignore[no-any-return]
    if isinstance(values, str | bytes | Mapping) or not _has_length(values):
        raise TypeError(
            f"it is of type {type(values).__name__}: a mapping holds columns, each an array or a "
            "list; a single sample goes into a list"
        )
    if type(values).__module__.partition(".")[0] == "pandas":
        if getattr(values, "ndim", 1) != 1:
            raise TypeError(f"it is a DataFrame, {_SEVERAL}")
        return _pandas_column(values)
    if foreign.is_arrow(values):
        if hasattr(values, "schema"):
            raise TypeError(f"it is a {type(values).__name__}, {_SEVERAL}")
        return ArrowColumn(foreign.arrow_array(values))
    if foreign.is_tensor(values) and (rows := foreign.tensor_rows(values)) is not None:
        return ListColumn(rows)
    if foreign.is_array(values):
        return _array_column(values, known)
    return ListColumn(values)


def _has_length(values: Any) -> bool:
    """Return True for what has rows: an array with an axis, or a sequence."""
    if hasattr(values, "ndim"):
        return bool(values.ndim)
    return hasattr(values, "__len__")


_TEXT = {"U": "str", "T": "str", "S": "bytes"}
"""The encodings of NumPy's kinds of text, which matter where there are no rows."""


def _array_column(values: Any, known: str | None = None) -> GivenColumn:
    """Return an array as a column; one that is no NumPy array is read block by block."""
    is_here = isinstance(values, np.ndarray) or foreign.is_tensor(values)
    if is_here or not (hasattr(values, "__getitem__") and hasattr(values, "shape")):
        values = foreign.as_array(values)
    first = foreign.as_array(values[:1])
    if storage_dtype(first.dtype) is None and first.dtype.kind in "OUST":
        return ListColumn(foreign.as_array(values), known or _TEXT.get(first.dtype.kind))
    return ArrayColumn(
        lambda start, stop: values[start:stop], values.shape[0], first.dtype, first.shape[1:],
        known, _chunk_rows(values),
    )  # fmt: skip


def _pandas_column(values: Any) -> GivenColumn:
    """Return a Series, Index or array of pandas as a column."""
    dtype = values.dtype
    if hasattr(dtype, "pyarrow_dtype"):
        pa = import_optional("pyarrow", "pyarrow", "arrow")
        return ArrowColumn(pa.array(values))
    number = dtype if isinstance(dtype, np.dtype) else getattr(dtype, "numpy_dtype", None)
    is_text = dtype.name in ("str", "string")
    if is_text or hasattr(dtype, "numpy_dtype") or hasattr(dtype, "categories"):
        _refuse_missing(values)
    if hasattr(dtype, "categories"):
        return column_of(values.astype(dtype.categories.dtype))
    if hasattr(dtype, "subtype") and hasattr(dtype, "fill_value"):
        number = dtype.subtype  # of a sparse array
    if number is not None and number.kind != "O":
        return _array_column(values.to_numpy(dtype=number))
    return ListColumn(values.tolist(), "str" if is_text and not len(values) else None)


def _refuse_missing(values: Any) -> None:
    missing = np.asarray(values.isna())
    if missing.any():
        raise ValueError(
            f"{quantity(int(missing.sum()), 'missing value')} of {len(values):,}, the first in row "
            f"{int(missing.argmax())}: fill them in, as with .fillna(...), or leave their "
            "samples out, as with .dropna()"
        )


class ListColumn:
    """Values of Python, any of which may be of any type."""

    def __init__(self, values: Any, known: str | None = None) -> None:
        self.length = len(values)
        self.row_bytes: int | None = None
        self.chunk = 1
        self._values = values
        self._known = known

    def encoding(self) -> Encoding:
        """Return the encoding that suits the first value, or that the column had."""
        if self._known is not None:
            known = column_type(self._known)
            if known.kind in ("object", "ndarray") or not self.length:
                return known
        if not self.length:
            raise ValueError("it has no values to tell its encoding: name that in columns=")
        return infer(self._values[0])

    def blocks(self, bounds: Bounds, wanted: Encoding) -> Iterator[ColumnBlock]:
        """Yield the values, to be encoded one by one."""
        for start, stop in bounds:
            yield list(self._values[start:stop])


class ArrayColumn:
    """Rows of an array, which may be read from elsewhere block by block.

    Parameters
    ----------
    read : callable
        Returns rows ``start`` to ``stop``.
    length : int
    dtype, shape
        Of a row.
    known : str, optional
        The encoding that the column had where it was read.
    chunk : int
        Rows that are read at once.
    """

    def __init__(
        self,
        read: Callable[[int, int], Any],
        length: int,
        dtype: np.dtype[Any],
        shape: tuple[int, ...],
        known: str | None = None,
        chunk: int = 1,
    ) -> None:
        self.length = length
        self.row_bytes: int | None = dtype.itemsize * prod(shape)
        self.chunk = chunk
        self._read = read
        self._dtype = dtype.newbyteorder("=")
        self._shape = shape
        self._known = known

    def encoding(self) -> Encoding:
        """Return the encoding of the dtype and the shape of a row."""
        if self._known is not None and (known := self._fitting(self._known)) is not None:
            return known
        return type_of_array(self._dtype, self._shape)

    def _fitting(self, name: str) -> Encoding | None:
        """Return the encoding that the column had, if it is one of such rows."""
        with suppress(ValueError, NpstreamError):
            known = column_type(name)
            fits = known.dtype == self._dtype and (known.shape or ()) == self._shape
            if fits and known.kind in ("fixed", "int_text", "float_text"):
                return known
        return None

    def blocks(self, bounds: Bounds, wanted: Encoding) -> Iterator[ColumnBlock]:
        """Yield blocks of the array in an encoding's dtype."""
        for start, stop in bounds:
            block = foreign.as_array(self._read(start, stop))
            if len(block) != stop - start:
                raise ValueError(f"rows {start} to {stop} are {len(block)}: its length has changed")
            yield rows_as(block, wanted)


def _chunk_rows(values: Any) -> int:
    """Return how many rows an array of another library reads at once."""
    chunks = getattr(values, "chunks", None)
    first = chunks[0] if isinstance(chunks, tuple) and chunks else 1
    if isinstance(first, tuple):
        first = max(first, default=1)
    return first if isinstance(first, int) and first > 0 else 1


def rows_as(block: AnyArray, wanted: Encoding) -> ColumnBlock:
    """Return rows in the dtype of an encoding, or else as values to be encoded one by one.

    Only numbers are converted; arrays must have the dtype and shape that the encoding says.
    """
    if wanted.kind != "fixed" or block.shape[1:] != wanted.shape:
        return list(block)
    if block.dtype.newbyteorder("=") == wanted.dtype:
        return block if invalid_bool_byte(block) is None else list(block)
    if not wanted.shape:
        with suppress(TypeError):
            converted, wrong = convert_exactly(block, wanted.dtype)
            if not wrong.any():
                return converted
    return list(block)


class RowsColumn:
    """Rows that vary in length and lie in one array.

    Parameters
    ----------
    elements : ndarray, 1-d
        Numbers; or the bytes of values that are encoded already.
    offsets : ndarray of int64, shape (n + 1,)
    encoding : Encoding or None
        The column's. None, for encoded values, if nothing tells it.
    shapes : ndarray of int64, shape (n, ndim), optional
    values : callable
        Returns rows ``start`` to ``stop``, to be encoded otherwise.
    """

    def __init__(
        self,
        elements: AnyArray,
        offsets: Int64,
        encoding: Encoding | None,
        shapes: Int64 | None,
        values: Callable[[int, int], Sequence[Any]],
    ) -> None:
        self.length = len(offsets) - 1
        nbytes = int(offsets[-1] - offsets[0]) * elements.itemsize
        self.row_bytes: int | None = nbytes // max(self.length, 1)
        self.chunk = 1
        self._elements, self._offsets, self._shapes = elements, offsets, shapes
        self._encoding = encoding
        self._values = values

    def encoding(self) -> Encoding:
        """Return the encoding that was given."""
        if self._encoding is None:
            raise TypeError(
                "nothing tells what its images are: name 'jpeg', 'png' or 'pil' in columns="
            )
        return self._encoding

    def blocks(self, bounds: Bounds, wanted: Encoding) -> Iterator[ColumnBlock]:
        """Yield encoded rows, or values if another encoding is wanted."""
        for start, stop in bounds:
            offsets = self._offsets[start : stop + 1]
            if wanted.kind == "ndarray" and not wanted.headless and self._holds_arrays:
                shapes = None if self._shapes is None else self._shapes[start:stop]
                yield bodies_of_rows(self._elements, offsets, shapes, wanted, start)
            elif self._encoding is not None and wanted.stored_name == self._encoding.stored_name:
                yield Bodies.of(self._elements, offsets)
            else:
                yield self._values(start, stop)

    @property
    def _holds_arrays(self) -> bool:
        return self._encoding is not None and self._encoding.kind == "ndarray"


class ArrowColumn:
    """An Arrow array, whose buffers are read block by block."""

    def __init__(self, array: Any) -> None:
        self._types = import_optional("pyarrow.types", "pyarrow", "arrow")
        array = foreign.decode_arrow(array)
        self.length = len(array)
        self.row_bytes: int | None = array.nbytes // max(self.length, 1)
        self.chunk = 1
        self._array = array
        foreign.check_nulls(array)

    def encoding(self) -> Encoding:
        """Return the encoding of the Arrow type, or that of its first value."""
        kind = self._array.type
        if (text := self._text) is not None:
            return parse(text)
        if self._is_list:
            return column_type(f"ndarray:{self._empty(kind.value_type).dtype.name}")
        if self._is_array:
            empty = self._empty(kind)
            return type_of_array(empty.dtype, empty.shape[1:])
        return ListColumn(self._array[:1].to_pylist()).encoding()

    @property
    def _text(self) -> str | None:
        """The encoding of text or bytes; None of anything else."""
        kind, types = self._array.type, self._types
        if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
            return "str"
        binary = types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)
        return "bytes" if binary or types.is_fixed_size_binary(kind) else None

    @property
    def _is_list(self) -> bool:
        """Whether rows are arrays of numbers that vary in length."""
        kind, types = self._array.type, self._types
        is_list = types.is_list(kind) or types.is_large_list(kind)
        return is_list and foreign.is_arrow_number(kind.value_type)

    @property
    def _is_array(self) -> bool:
        """Whether rows are numbers, or arrays of them of one shape."""
        kind = self._array.type
        while self._types.is_fixed_size_list(kind):
            kind = kind.value_type
        return hasattr(kind, "shape") or foreign.is_arrow_number(kind)

    def _empty(self, kind: Any) -> AnyArray:
        """Return no rows of a type, in NumPy's dtype."""
        pa = import_optional("pyarrow", "pyarrow", "arrow")
        return foreign.arrow_numbers(pa.nulls(0, kind))

    def blocks(self, bounds: Bounds, wanted: Encoding) -> Iterator[ColumnBlock]:
        """Yield blocks of rows out of the buffers, or as values of Python."""
        text = self._text
        for start, stop in bounds:
            part = self._array.slice(start, stop - start)
            if hasattr(part, "combine_chunks"):
                part = part.combine_chunks()
            if text is not None and wanted.name == text:
                yield Bodies.of(*foreign.arrow_rows(part, is_text=True))
            elif self._is_list and wanted.kind == "ndarray" and not wanted.headless:
                elements, offsets = foreign.arrow_rows(part, is_text=False)
                yield bodies_of_rows(elements, offsets, None, wanted, start)
            elif text is None and not self._is_list and self._is_array:
                yield rows_as(foreign.arrow_numbers(part), wanted)
            else:
                yield part.to_pylist()


class Columns:
    """A table whose columns are given one by one.

    Raises
    ------
    ValueError
        If they differ in length.
    """

    def __init__(self, columns: Mapping[str, GivenColumn]) -> None:
        lengths = {name: column.length for name, column in columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"columns differ in length: {lengths}")
        self.length = next(iter(lengths.values()), 0)
        sizes = [column.row_bytes for column in columns.values()]
        self.row_bytes = None if None in sizes else sum(size or 0 for size in sizes)
        self.chunk = max((column.chunk for column in columns.values()), default=1)
        self.is_arrays = all(isinstance(column, ArrayColumn) for column in columns.values())
        self._columns = dict(columns)

    def names(self) -> list[str]:
        """Return the names of the columns, in order."""
        return list(self._columns)

    def encoding(self, name: str) -> Encoding:
        """Return the encoding that keeps a column as it is."""
        return self._columns[name].encoding()

    def blocks(
        self, bounds: Bounds, wanted: Mapping[str, Encoding]
    ) -> Iterator[dict[str, ColumnBlock]]:
        """Yield blocks of rows of the columns that are wanted."""
        each = tee(bounds, len(wanted))
        parts = [
            _located(name, self._columns[name].blocks(mine, encoding))
            for mine, (name, encoding) in zip(each, wanted.items(), strict=True)
        ]
        for row in zip(*parts, strict=True):
            yield dict(zip(wanted, row, strict=True))


def _located(name: str, blocks: Iterator[ColumnBlock]) -> Iterator[ColumnBlock]:
    """Yield the blocks of a column, whose exceptions name it."""
    try:
        yield from blocks
    except NpstreamError:
        raise
    except (TypeError, ValueError) as error:
        raise named(name, error) from error
