"""Column: one named field of every sample of a view, as a lazily loaded array."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.array_utils import normalize_axis_index
from numpy.lib.mixins import NDArrayOperatorsMixin

from npstream._core.array_like import as_array, is_tensor
from npstream._core.optional import torch_door
from npstream._core.progress import progress
from npstream._core.typing import AnyArray
from npstream.dataset import ufuncs as elementwise
from npstream.explore import display
from npstream.formats.encodings.encodings import is_unsafe, view_as
from npstream.indexing.cells import Cell
from npstream.indexing.columns import indexed_shape, split_index
from npstream.reading.batch import Ragged
from npstream.reading.decode import objects
from npstream.reading.gate import gate
from npstream.reading.gather import Field, Plan
from npstream.reading.load import array_of, in_mode, load
from npstream.reading.mapped import mapped_column
from npstream.reading.stored import StoredColumn, StoredTable
from npstream.writing.tables import ArrayColumn

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike

    from npstream.indexing.selection import Selection
    from npstream.reading.cost import Cost
    from npstream.reading.source import Source

BLOCK_BYTES = 1 << 23
"""Bytes that reductions, comparisons and iteration read at once."""

_NO_DTYPE = ("image", "ndarray", "object")
"""Kinds of columns that make arrays of objects only."""


class Column(NDArrayOperatorsMixin):
    """One column of a view: like an ndarray whose first axes are the view's, and read-only.

    Made by ``ds["name"]``. Indexing gives views and reads nothing, but for an integer, which
    reads that value. NumPy functions, operators, comparisons, `load` and iteration read. Columns
    of values that vary in shape have the view's axes alone; `load` gives them as a `Ragged`.
    """

    # The array that NumPy would have is base[final]: base holds, of the selected samples, the parts
    # of values that `_cell` names, and `_final` is None for all of it.
    __slots__ = ("__weakref__", "_cell", "_final", "_plan", "_selection", "_shape", "_source")

    def __init__(
        self,
        source: Source,
        plan: Plan,
        selection: Selection,
        cell: Cell | None = None,
        final: tuple[Any, ...] | None = None,
    ) -> None:
        self._source = source
        self._plan = plan
        self._selection = selection
        self._cell = cell
        self._final = final
        base = selection.shape if cell is None else selection.shape + cell.shape
        self._shape = base if final is None else indexed_shape(base, final)

    @classmethod
    def of(cls, source: Source, plan: Plan, selection: Selection) -> Column:
        """Return the whole of a plan's only column."""
        encoding = plan.fields[0].encoding
        cell = Cell.whole(encoding.shape or ()) if encoding.kind == "fixed" else None
        return cls(source, plan, selection, cell)

    def __reduce__(self) -> tuple[Any, ...]:
        return Column, (self._source, self._plan, self._selection, self._cell, self._final)

    # What it is

    @property
    def _field(self) -> Field:
        return self._plan.fields[0]

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
        return self._shape

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
        """Bytes of the array that reading gives; raises TypeError if values vary in size."""
        if self._cell is None:
            raise TypeError(
                f"the values of column {self.name!r} vary in size; what load() returns has nbytes"
            )
        return self.size * self.dtype.itemsize

    @property
    def chunks(self) -> tuple[int, ...]:
        """Shape of a chunk: about the rows that are stored together, and whole values."""
        rows, *cells = self.shape or (1,)
        return (max(1, min(self._source.rows_of(self._source.index.chunk_bytes), rows)), *cells)[
            : self.ndim
        ]

    def __len__(self) -> int:
        if not self._shape:
            raise TypeError("len() of unsized object")
        return self._shape[0]

    def __repr__(self) -> str:
        stored = self._field.encoding.stored
        return display.column_text(self.name, self.shape, self.dtype, stored)

    def _repr_html_(self) -> str:
        shown = min(display.ROWS, len(self)) if self.ndim else 0
        return display.column_html(repr(self), [self[row] for row in range(shown)])

    # Indexing

    def __getitem__(self, index: Any) -> Any:
        if self._final is not None:
            return np.asarray(self)[index]
        rows, cells, separable = split_index(index, self._selection.ndim, self.shape)
        if not separable:
            return self._index_jointly(rows, cells)
        chosen = self._selection.select(rows[0] if len(rows) == 1 else rows)
        cell, plan = self._cell, self._plan
        if cell is not None and cells:
            cell = cell.select(cells)
        if isinstance(chosen, int):
            return self._value(chosen, cell)
        if cell is not None and cell is not self._cell:
            plan = Plan([self._field.cut(cell)])
        return Column(self._source, plan, chosen, cell)

    def _index_jointly(self, rows: tuple[Any, ...], cells: tuple[Any, ...]) -> Any:
        """Index rows and values at once, as NumPy broadcasts the arrays of both together."""
        chosen: Any = self._selection
        final = (*rows, *cells)
        if all(isinstance(item, slice) for item in rows):
            chosen = chosen.select((..., *rows))
            final = (*[slice(None)] * len(rows), *cells)
        elif all(isinstance(item, int) for item in rows):
            value = self._value(chosen.select(rows), self._cell)
            # Rows of one sample, as a number beside an array decides where the array's axes go.
            return value[(None,) * len(rows)][(*[0] * len(rows), *cells)]
        elif len(rows) == 1:
            picked = chosen.select(rows[0])
            chosen = picked.ravel()
            final = (np.arange(picked.size).reshape(picked.shape), *cells)
        return Column(self._source, self._plan, chosen, self._cell, final)

    def _value(self, sample: int, cell: Cell | None) -> Any:
        value = self._source.reader_of(self._field)(sample)[self.name]
        if cell is None or not cell.axes:
            return value
        part = value[cell.index]
        # A copy, so that a few numbers of a long value do not keep all of it.
        return part.copy() if isinstance(part, np.ndarray) and part.size < value.size else part

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
        >>> ds["text"].view("uint8")[0]
        array([122, 101, 114, 111], dtype=uint8)
        """
        if self._final is not None or self._cut or self._field.part is not None:
            raise ValueError("declare the whole column first, then take parts of its values")
        encoding = view_as(self._field.encoding, dtype)
        if is_unsafe(encoding.name) and encoding != self._field.encoding:
            raise ValueError(f"{dtype!r} can run code: declare it with open(allow_pickle=True)")
        return Column.of(self._source, Plan([Field(self.name, encoding)]), self._selection)

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
        <Ragged: 3 str, 3 to 4 bytes>
        """
        cut = self._cut
        if not cut and self._final is None:
            return self._load(None if out is None else {self.name: out})
        target = None if out is None else array_of(out, self.name, self.shape, self.dtype)
        array = self._load(None)[(..., *cut)]
        array = array if self._final is None else array[self._final]
        if target is None:
            return np.asarray(array, order="C")
        target[...] = array
        return out

    @property
    def _cut(self) -> tuple[Any, ...]:
        """What remains to be taken of the values once they are read; () for all."""
        field, cell = self._field, self._cell
        if cell is None or field.part is not None or cell == Cell.whole(field.shape or ()):
            return ()
        return cell.index

    def _load(self, out: dict[str, Any] | None) -> Any:
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
        column = self
        if axis is not None:
            axis = normalize_axis_index(axis, self.ndim)
        elif self.ndim == self._selection.ndim and self._final is None:
            column, axis = Column(self._source, self._plan, self._selection.ravel(), self._cell), 0
        if axis != 0 or self._final is not None:
            return np.asarray(self).take(indices, axis, out, mode)  # type: ignore[call-overload]
        chosen = column[in_mode(indices, len(column), mode)]
        if isinstance(chosen, Column):
            return chosen.load(out)
        if out is None:
            return chosen
        out[...] = chosen
        return out

    def explain(self) -> Cost:
        """Return what `load` of this column would fetch now, such as its ``nbytes``."""
        from npstream.reading.cost import explain

        return explain(self._source, self._selection, self._plan)

    def prefetch(self) -> None:
        """Fetch the chunks of this column's rows into the cache, as `Dataset.prefetch` does."""
        from npstream.reading.cost import prefetch

        prefetch(self._source, self._selection, self._plan)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> AnyArray:
        if copy is False:
            if self._final is not None or self._cell is None:
                raise ValueError("Unable to avoid copy while creating an array as requested.")
            return mapped_column(self._source, self._field, self._selection, self._cell, dtype)
        gate(self._source, self._selection, f"column {self.name!r} as an array", self._plan)
        return self._as_array(dtype)

    def _as_array(self, dtype: DTypeLike | None = None) -> AnyArray:
        """Read the column, or a block of one that has passed the gate."""
        encoding, selection = self._field.encoding, self._selection
        if dtype is not None and np.dtype(dtype) == object and self._holds_objects:
            values = self._source.values(self._plan, selection.ids())
            return objects(values).reshape(selection.shape)
        if encoding.kind in _NO_DTYPE:
            raise TypeError(
                f"column {self.name!r} holds {encoding.name} values, for which NumPy has no dtype: "
                "use load(), or dtype=object"
            )
        column = self.load()
        if isinstance(column, Ragged):
            column = np.asarray(column, dtype).reshape(selection.shape)
        return column if dtype is None else column.astype(dtype, copy=False)  # type: ignore[no-any-return]

    @property
    def _holds_objects(self) -> bool:
        """Whether samples hold what no array of numbers does; integers may have any size."""
        return self._cell is None or self._field.encoding.name == "int"

    def to_numpy(self, dtype: DTypeLike | None = None) -> AnyArray:
        """Read the column: ``np.asarray(column, dtype)``."""
        return np.asarray(self, dtype)

    def to_torch(self) -> Any:
        """Read the column as a tensor; a nested one, in jagged layout, if values vary in size."""
        column = self.load()
        if isinstance(column, Ragged):
            return column.to_torch()
        return torch_door().tensor(column)

    def astype(self, dtype: DTypeLike) -> AnyArray:
        """Read the column and convert it."""
        return np.asarray(self, dtype)

    def __iter__(self) -> Iterator[Any]:
        if not self.shape:
            raise TypeError("iteration over a 0-d array")
        return chain.from_iterable(map(Column._rows, self._parts()))

    def _rows(self) -> Iterable[Any]:
        """Read the rows, each as an index gives it."""
        if self.ndim == 1 and self._final is None and self._holds_objects:
            return self._source.values(self._plan, self._selection.ids())
        return self._block()

    def _parts(self, purpose: str | None = None) -> Iterator[Column]:
        """Yield the column in blocks of rows; show the progress of what has a purpose."""
        gate(self._source, self._selection, purpose or f"column {self.name!r}", self._plan)
        if self._final is not None or not self.size or not self.shape:
            yield self
            return
        rows = self._source.rows_of(BLOCK_BYTES) // max(1, prod(self._selection.shape[1:]))
        starts = range(0, len(self), max(1, rows))
        for start in starts if purpose is None else progress(starts, purpose):
            yield self[start : start + starts.step]

    def _block(self) -> AnyArray:
        """Read the column as an array, if need be of objects."""
        return self._as_array(object if self._field.encoding.kind in _NO_DTYPE else None)

    def __contains__(self, value: object) -> bool:
        if self._field.encoding.kind in _NO_DTYPE:
            items = chain.from_iterable(part._block().flat for part in self._parts())
            return any(elementwise.is_same(item, value) for item in items)
        return any(bool(np.any(part == value)) for part in self._parts())

    # Writing

    def _to_write(self) -> StoredColumn | ArrayColumn:
        """Return this column as `npstream.writing.tables` takes it."""
        if not self._shape:
            raise TypeError(f"column {self.name!r} is one value, and not one a sample")
        field, whole = self._field, self._final is None and not self._cut
        if whole and field.part is None and self._selection.ndim == 1:
            return StoredColumn(StoredTable(self._source, self._selection, (field,)), self.name)
        if self._cell is None:
            raise ValueError(
                f"column {self.name!r} has {self.ndim} axes, and values that vary in size: "
                "take it of a view with one axis, as ravel() gives"
            )
        array = self.load() if self._final is not None else None
        chunk = self.chunks[0]

        def read(start: int, stop: int) -> Any:
            return self[start:stop].load() if array is None else array[start:stop]

        return ArrayColumn(read, len(self), self.dtype, self.shape[1:], None, chunk)

    # Computing

    sum = elementwise.reduction("sum")
    prod = elementwise.reduction("prod")
    min = elementwise.reduction("min")
    max = elementwise.reduction("max")
    any = elementwise.reduction("any")
    all = elementwise.reduction("all")
    mean = elementwise.reduction("mean")
    std = elementwise.reduction("std")
    var = elementwise.reduction("var")
    argmin = elementwise.reduction("argmin")
    argmax = elementwise.reduction("argmax")

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        written = inputs[:1] if method == "at" else options.get("out", ())
        if any(isinstance(target, Column) for target in written):
            raise TypeError(
                f"a column is read-only: store the result of np.{ufunc.__name__} in an array"
            )
        if any(map(is_tensor, inputs)):
            return self._with_tensors(getattr(ufunc, method), inputs, options)
        return self._apply(ufunc, method, getattr(ufunc, method), inputs, options)

    def __eq__(self, other: object) -> Any:
        return self._compare(np.equal, other)

    def __ne__(self, other: object) -> Any:
        return self._compare(np.not_equal, other)

    __hash__ = None  # type: ignore[assignment]

    def _compare(self, ufunc: np.ufunc, other: Any) -> Any:
        """Compare as the operators do, which call a number and a text unequal."""
        if getattr(other, "__array_ufunc__", ufunc) is None:
            return NotImplemented
        function = elementwise.EQUALITY[ufunc]
        if is_tensor(other):
            return self._with_tensors(function, (self, other), {})
        return self._apply(ufunc, "__call__", function, (self, other), {})

    def _with_tensors(
        self, function: Callable[..., Any], inputs: tuple[Any, ...], options: dict[str, Any]
    ) -> Any:
        """Apply a function to tensors as to arrays, and return a tensor."""
        arrays = [as_array(item) if is_tensor(item) else item for item in inputs]
        result = function(*arrays, **options)
        tensor = next(item for item in inputs if is_tensor(item))
        if not isinstance(result, np.ndarray):
            return result
        if result.dtype != np.bool_ and any(getattr(item, "requires_grad", 0) for item in inputs):
            raise TypeError(f"NumPy has no gradients: compute with {self.name!r}.to_torch()")
        return torch_door().tensor(result).to(tensor.device)

    def _apply(
        self,
        ufunc: np.ufunc,
        method: str,
        function: Callable[..., Any],
        inputs: tuple[Any, ...],
        options: dict[str, Any],
    ) -> Any:
        """Apply a ufunc, or the operator that stands for it, one block of rows at a time."""
        inputs = elementwise.plain_times(inputs, self.dtype)
        if not elementwise.is_blockwise(ufunc, method, inputs, options, self):
            arrays = [np.asarray(item) if isinstance(item, Column) else item for item in inputs]
            return function(*arrays, **options)
        text = elementwise.compared_text(ufunc, inputs, self._field.encoding.kind)
        if text is not None:
            equal = elementwise.equal_to(text, self._source, self._plan, self._selection)
            return equal if ufunc is np.equal else ~equal
        blocks = map(Column._block, self._parts(f"{ufunc.__name__} of {self.name!r}"))
        return elementwise.blockwise(function, inputs, self, blocks)

    def __bool__(self) -> bool:
        if self.size != 1:
            raise ValueError(
                "The truth value of an array with more than one element is ambiguous. "
                "Use a.any() or a.all()"
            )
        return bool(np.asarray(self))
