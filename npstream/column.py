"""Column: one named field of every sample of a view, as a lazily loaded array."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from npstream import display, elementwise
from npstream._typing import AnyArray, Bools
from npstream.axes import indexed_shape, split_index
from npstream.batch import Ragged
from npstream.cells import Cell
from npstream.decode import objects
from npstream.formats.encodings import view_as
from npstream.gather import Field, Plan, equal_text
from npstream.mapped import mapped_column
from npstream.reading import in_mode, load, stretches
from npstream.reductions import reduce_blocks
from npstream.selection import Selection
from npstream.source import CHUNK_BYTES, Source

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike

BLOCK_BYTES = 1 << 23
"""Bytes that reductions, comparisons and iteration read at once."""


def _reduction(name: str) -> Callable[..., Any]:
    """Return the method that ``np.<name>`` calls: it reads one block of rows at a time."""

    def method(self: Column, axis: Any = None, **options: Any) -> Any:
        blocks = self._blocks()
        return reduce_blocks(name, blocks, self.shape, self.dtype, axis, **options)

    method.__name__ = name
    method.__qualname__ = f"Column.{name}"
    method.__doc__ = f"Reduce the column, block by block, as `numpy.{name}` does."
    return method


class Column(NDArrayOperatorsMixin):
    """One column of a view: like an ndarray whose first axes are the view's, and read-only.

    Made by ``ds["name"]``. Indexing gives views and reads nothing, but for an integer, which
    reads that value. NumPy functions, operators, comparisons, `load` and iteration read. Columns
    of values that vary in shape have the view's axes alone; `load` gives them as a `Ragged`.
    """

    # The array that NumPy would have is base[final], where base is the selected rows of the
    # values' parts that `_cell` names, and `_final` is None for all of it.
    __slots__ = ("__weakref__", "_cell", "_field", "_final", "_plan", "_selection", "_source")

    def __init__(
        self,
        source: Source,
        field: Field,
        selection: Selection,
        cell: Cell | None = None,
        final: tuple[Any, ...] | None = None,
    ) -> None:
        encoding, part = field.encoding, None
        if encoding.kind == "fixed":
            assert encoding.shape is not None
            cell = Cell.whole(encoding.shape) if cell is None else cell
            run = cell.contiguous(encoding.shape, encoding.dtype.itemsize)
            part = None if run is None else (*run, cell.shape)
        self._source = source
        self._field = replace(field, part=part)
        self._selection = selection
        self._cell = cell
        self._final = final
        self._plan = Plan([self._field])

    def __reduce__(self) -> tuple[Any, ...]:
        return Column, (self._source, self._field, self._selection, self._cell, self._final)

    # What it is

    @property
    def name(self) -> str:
        """Name of the column."""
        return self._field.name

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the elements; StringDType for text, object where NumPy has no dtype."""
        return self._field.encoding.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The view's shape, then a value's."""
        base = self._base_shape
        return base if self._final is None else indexed_shape(base, self._final)

    @property
    def _base_shape(self) -> tuple[int, ...]:
        return self._selection.shape + (self._cell.shape if self._cell else ())

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the array that reading gives.

        Raises
        ------
        TypeError
            If the values vary in size: ``load().nbytes`` tells.
        """
        if self._cell is None:
            raise TypeError(
                f"the values of column {self.name!r} vary in size; what load() returns has nbytes"
            )
        return self.size * self.dtype.itemsize

    @property
    def chunks(self) -> tuple[int, ...]:
        """Shape of a chunk: about the rows that are stored together, and whole values."""
        rows, *cells = self.shape or (1,)
        return (max(1, min(self._source.rows_of(CHUNK_BYTES), rows)), *cells)[: self.ndim]

    def __len__(self) -> int:
        if not (shape := self.shape):
            raise TypeError("len() of unsized object")
        return shape[0]

    def __repr__(self) -> str:
        return display.column_text(self)

    def _repr_html_(self) -> str:
        return display.column_html(self)

    # Indexing

    def __getitem__(self, index: Any) -> Any:
        if self._final is not None:
            return np.asarray(self)[index]
        rows, cells, separable = split_index(index, self._selection.ndim, self._base_shape)
        if not separable:
            return self._index_jointly(rows, cells)
        chosen = self._selection.select(rows[0] if len(rows) == 1 else rows)
        cell = None if self._cell is None else self._cell.select(cells)
        if isinstance(chosen, int):
            return self._value(chosen, cell)
        return Column(self._source, self._field, chosen, cell)

    def _value(self, sample: int, cell: Cell | None) -> Any:
        value = self._source.reader_of(self._field)(sample)[self.name]
        if cell is None or not cell.axes:
            return value
        part = value[cell.index]
        # A copy, so that a few numbers of a long value do not keep all of it.
        return part.copy() if isinstance(part, np.ndarray) and part.size < value.size else part

    def _index_jointly(self, rows: tuple[Any, ...], cells: tuple[Any, ...]) -> Any:
        """Index rows and values at once, as NumPy broadcasts the arrays of both together."""
        if all(isinstance(item, slice) for item in rows):
            chosen = self._selection.select(rows)
            final = (slice(None),) * len(rows) + cells
            return Column(self._source, self._field, chosen, self._cell, final)
        if len(rows) > 1:
            return np.asarray(self)[(*rows, *cells)]
        if isinstance(rows[0], int):
            return np.asarray(self[[rows[0]]])[(0, *cells)]
        chosen = self._selection.select(rows[0].ravel())
        places = np.arange(chosen.size).reshape(rows[0].shape)
        return Column(self._source, self._field, chosen, self._cell, (places, *cells))

    def view(self, dtype: DTypeLike | str) -> Column:
        """Return this column with its bytes declared to mean something else.

        Parameters
        ----------
        dtype : dtype or str
            As for `numpy.ndarray.view` where values have one size; over ``bytes``, the dtype of
            the elements that they hold. Or the name of an encoding, such as
            ``"ndarray:int64:2048"``.

        Raises
        ------
        ValueError
            If the bytes of a value cannot be that.

        Examples
        --------
        >>> ds = getfixture("example")
        >>> ds["label"].view("uint8").shape
        (3, 8)
        """
        encoding = self._field.encoding
        if self._final is not None or self._cell not in (None, Cell.whole(encoding.shape or ())):
            raise ValueError("declare the whole column first, then take parts of its values")
        return Column(self._source, Field(self.name, view_as(encoding, dtype)), self._selection)

    # Reading

    def load(self, out: Any = None) -> Any:
        """Read the column.

        Parameters
        ----------
        out : array_like, optional
            The array to fill and return, of the column's shape and dtype.

        Returns
        -------
        ndarray or Ragged
            A Ragged if the values vary in size, one row a sample also of an N-d view; an object
            array if they are neither numbers nor text nor bytes.

        Examples
        --------
        >>> ds = getfixture("example")
        >>> ds["text"].load()
        <Ragged: 3 str, 3 to 5 bytes>
        """
        whole_values = self._cell is not None and self._field.part is None
        if self._final is None and not whole_values:
            return self._load_base(None if out is None else {self.name: out})
        array = self._load_base(None)
        if whole_values:
            assert self._cell is not None
            array = array[(..., *self._cell.index)]
        if self._final is not None:
            array = array[self._final]
        if out is None:
            return np.ascontiguousarray(array) if array.ndim else array
        target = np.asarray(out)
        if target.shape != array.shape or target.dtype != array.dtype:
            raise ValueError(
                f"out has shape {target.shape} and dtype {target.dtype}; "
                f"expected {array.shape} and {array.dtype}"
            )
        target[...] = array
        return out

    def _load_base(self, out: dict[str, Any] | None) -> Any:
        selection = self._selection
        return load(self._source, self._plan, selection.ids(), selection.shape, out)[self.name]

    def take(
        self,
        indices: ArrayLike,
        axis: int | None = None,
        out: AnyArray | None = None,
        mode: str = "raise",
    ) -> Any:
        """Read elements, as `numpy.take` does: along an axis, or of the ravelled column."""
        if axis is None and self.ndim == 1:
            axis = 0
        if axis == 0 and self._final is None:
            chosen = self[in_mode(indices, len(self), mode)]
            if isinstance(chosen, Column):
                return chosen.load(out)
            if out is None:
                return chosen
            out[...] = chosen
            return out
        return np.asarray(self).take(indices, axis, out, mode)  # type: ignore[call-overload]

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> AnyArray:
        if copy is False:
            if self._final is not None or self._cell is None:
                raise ValueError("Unable to avoid copy while creating an array as requested.")
            return mapped_column(self._source, self._field, self._selection, self._cell, dtype)
        if dtype is not None and np.dtype(dtype) == object and self._has_objects:
            values = self._source.values(self._plan, self._selection.ids())
            return objects(values).reshape(self._selection.shape)
        if self._field.encoding.kind == "object":
            raise TypeError(
                f"column {self.name!r} holds {self._field.encoding.name} values, for which NumPy "
                "has no dtype: use load(), or dtype=object"
            )
        column = self.load()
        if isinstance(column, Ragged):
            column = np.asarray(column, dtype).reshape(self._selection.shape)
        return column if dtype is None else column.astype(dtype, copy=False)  # type: ignore[no-any-return]

    def to_numpy(self, dtype: DTypeLike | None = None) -> AnyArray:
        """Read the column: ``np.asarray(column, dtype)``."""
        return np.asarray(self, dtype)

    def to_torch(self) -> Any:
        """Read the column as a tensor; a nested one, in jagged layout, if values vary in size."""
        column = self.load()
        if isinstance(column, Ragged):
            return column.to_torch()
        return elementwise.tensor(column)

    def astype(self, dtype: DTypeLike) -> AnyArray:
        """Read the column and convert it."""
        return np.asarray(self).astype(dtype)

    def __iter__(self) -> Iterator[Any]:
        for block in self._blocks():
            yield from block

    def _blocks(self) -> Iterator[Any]:
        """Read the column in blocks of rows, as arrays that share no memory."""
        if not self.shape:
            raise TypeError("iteration over a 0-d array")
        if self._final is not None:
            yield np.asarray(self)
            return
        inner = max(1, self._source.rows_of(BLOCK_BYTES))
        step = max(1, inner // max(1, prod(self._selection.shape[1:])))
        for start, stop in stretches(len(self), step):
            part = self[start:stop]
            yield np.asarray(part) if self._cell is not None else part._block()

    def _block(self) -> Any:
        kind = self._field.encoding.kind
        return np.asarray(self, None if kind in ("int_text", "float_text", "str") else object)

    def __contains__(self, value: object) -> bool:
        return True in (bool(np.any(block == value)) for block in self._blocks())

    # Computing

    sum = _reduction("sum")
    prod = _reduction("prod")
    min = _reduction("min")
    max = _reduction("max")
    any = _reduction("any")
    all = _reduction("all")
    mean = _reduction("mean")
    std = _reduction("std")
    var = _reduction("var")
    argmin = _reduction("argmin")
    argmax = _reduction("argmax")

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        if any(isinstance(target, Column) for target in options.get("out", ())):
            raise TypeError(
                f"column {self.name!r} is read-only: store the result of np.{ufunc.__name__} in an "
                "array"
            )
        return elementwise.apply(self, ufunc, method, inputs, options)

    def _is_text_like(self, value: Any) -> bool:
        kind = self._field.encoding.kind
        return self._final is None and (
            (kind == "str" and isinstance(value, str)) or (kind == "bytes" and isinstance(value, bytes))
        )

    def _equal_text(self, value: str | bytes) -> Bools:
        body = value.encode() if isinstance(value, str) else value
        ids = self._selection.ids()
        return equal_text(self._source.fetcher, self._plan, ids, body).reshape(self.shape)

    def __bool__(self) -> bool:
        if self.size != 1:
            raise ValueError(
                "The truth value of an array with more than one element is ambiguous. "
                "Use a.any() or a.all()"
            )
        return bool(np.asarray(self))
