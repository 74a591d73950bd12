"""Column: one named field of all samples of a view, as a lazily loaded array."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from math import prod
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.lib.array_utils import normalize_axis_index

from npstream._core.arguments import quantity
from npstream._core.array_like import as_array, is_tensor
from npstream._core.arrays import normalize_indices
from npstream._core.optional import arrow_stream, import_npstream_torch
from npstream._core.progress import progress
from npstream._core.typing import AnyArray
from npstream.dataset import ufuncs as elementwise
from npstream.dataset.array_methods import ArrayMethods
from npstream.dataset.display_methods import ColumnDisplay
from npstream.dataset.statistics_methods import StatisticsMethods
from npstream.errors import read_only_error, short_repr, short_traceback, shorten
from npstream.formats.encodings.encodings import is_unsafe
from npstream.indexing.columns import Cell, split_index
from npstream.reading.batch import Ragged
from npstream.reading.cost_limit import check_cost
from npstream.reading.decode import object_array
from npstream.reading.images.methods import ImageMethods
from npstream.reading.load import apply_mode, load, load_elements, map_column, output_array
from npstream.reading.plan import Field, Plan

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike

    from npstream.indexing.mesh import Mesh
    from npstream.indexing.selection import Selection
    from npstream.reading.cost import Cost
    from npstream.reading.source import Source
    from npstream.reading.stored import StoredColumn
    from npstream.writing.tables import ArrayColumn

READ_BYTES = 1 << 23
"""Bytes that reductions, comparisons and iteration read at once."""

_NO_DTYPE = ("image", "ndarray", "object")
"""Kinds of columns whose values NumPy can hold only as objects."""


class Column(ColumnDisplay, ArrayMethods, ImageMethods, StatisticsMethods, elementwise.Operators):
    """One column of a view: a lazy, read-only array whose first axes are the view's.

    Made by `Dataset`, as ``ds["name"]``. An integer index reads one value; any other index returns
    a view and reads nothing. NumPy functions, operators, comparisons, `load` and iteration read. If
    values vary in shape, the column has only the view's axes, and `load` returns a `Ragged`.

    Examples
    --------
    >>> label = getfixture("example")["label"]
    >>> label
    <npstream.Column 'label': shape (3,), dtype int64, stored as int64, 24 bytes
      0, 1, 2>
    >>> label[::2].load()
    array([0, 2])
    >>> label > 0
    array([False,  True,  True])
    """

    # `_cell` is the part of each value that is read; None if values vary in size. `_mesh` selects
    # elements of that part; None selects all elements.
    __slots__ = ("__weakref__", "_cell", "_mesh", "_plan", "_selection", "_shape", "_source")

    def __init__(
        self,
        source: Source,
        plan: Plan,
        selection: Selection,
        cell: Cell | None = None,
        mesh: Mesh | None = None,
    ) -> None:
        self._source = source
        self._plan = plan
        self._selection = selection
        self._cell = cell
        self._mesh = mesh
        if mesh is not None:
            self._shape = mesh.result_shape(selection.shape)
        else:
            self._shape = selection.shape if cell is None else selection.shape + cell.shape

    @classmethod
    def _from_plan(cls, source: Source, plan: Plan, selection: Selection) -> Column:
        """Return the only column of a plan, with whole values.

        Parameters
        ----------
        source : Source
            The dataset's source.
        plan : Plan
            The plan to read the column.
        selection : Selection
            The rows.

        Returns
        -------
        Column
        """
        encoding = plan.fields[0].encoding
        cell = Cell.whole(encoding.shape or ()) if encoding.kind == "fixed" else None
        return cls(source, plan, selection, cell)

    def __reduce__(self) -> tuple[Any, ...]:
        return Column, (self._source, self._plan, self._selection, self._cell, self._mesh)

    # Attributes

    @property
    def _field(self) -> Field:
        return self._plan.fields[0]

    @property
    def name(self) -> str:
        """Name of the column."""
        return self._field.name

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the elements: StringDType for text, and object if NumPy has no dtype."""
        return self._field.encoding.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The view's shape, followed by a value's."""
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
        """Bytes of the array that `load` returns; raises TypeError if values vary in size."""
        if self._cell is None:
            raise TypeError(
                f"the values of column {self.name!r} vary in size: use the nbytes of load()"
            )
        return self.size * self.dtype.itemsize

    @property
    def chunks(self) -> tuple[int, ...]:
        """Shape of a chunk: about the number of rows in a stored chunk, with whole values."""
        rows, *cells = self.shape or (1,)
        return (
            max(1, min(self._source.estimate_rows(self._source.index.chunk_bytes), rows)),
            *cells,
        )[: self.ndim]

    def __len__(self) -> int:
        if not self._shape:
            raise TypeError("len() of unsized object")
        return self._shape[0]

    # Indexing

    def __setitem__(self, index: Any, value: Any) -> NoReturn:
        raise read_only_error(f"ds[{self.name!r}][{short_repr(index)}]")

    def __getitem__(self, index: Any) -> Any:
        try:
            mesh, cell = self._mesh, self._cell
            if mesh is not None and mesh.lead:
                return self._index_leading_cells(index, mesh)
            rows, cells, separable = split_index(index, self._selection.ndim, self.shape)
            if not separable:  # NumPy would not index the rows first, then the values
                return self._index_jointly(rows, cells)
            selected = self._selection.select(rows[0] if len(rows) == 1 else rows)
            if mesh is not None:
                return self._apply_mesh(selected, mesh.select(*self._pad_index(rows, cells)))
            if cell is not None and cells:
                cell = cell.select(cells)
            if isinstance(selected, int):
                return self._value(selected, cell)
            return Column(self._source, self._cell_plan(cell), selected, cell)
        except Exception as error:
            elementwise.add_size_note(self._field, error)
            shorten(error)
            raise

    def __getitems__(self, rows: list[int]) -> list[Any]:
        """Return several rows at once; ``torch.utils.data.DataLoader(column)`` calls this."""
        return list(self[np.asarray(rows, np.int64)])

    def _index_jointly(self, rows: tuple[Any, ...], cells: tuple[Any, ...]) -> Any:
        """Index rows and values together: NumPy broadcasts the arrays of both indices."""
        selection, mesh = self._selection, self._mesh
        if mesh is None:
            assert self._cell is not None
            from npstream.indexing.mesh import Mesh

            mesh = Mesh.whole(selection.ndim, self._cell.shape)
        rows, cells = self._pad_index(rows, cells)
        if all(isinstance(item, slice) for item in rows):
            return self._apply_mesh(selection.select((..., *rows)), mesh.select(rows, cells))
        positions, mesh = mesh.select_jointly(rows, cells, selection.shape)
        column = self._apply_mesh(selection.ravel().select(positions), mesh)
        # An index with an integer for each row axis selects one value. So the result is read at
        # once, even if the index has an array for an axis of the value.
        return column.load() if all(isinstance(item, int) for item in rows) else column

    def _index_leading_cells(self, index: Any, mesh: Mesh) -> Any:
        """Index a column whose first axes are axes of the values, and not the row axes."""
        rows, cells, separable = split_index(index, self.ndim, self.shape)
        items = (*rows, *cells)
        if not separable or any(not isinstance(item, int | slice) for item in items):
            return np.asarray(self)[index]
        items += (slice(None),) * (self.ndim - len(items))
        stop = mesh.lead + self._selection.ndim
        rows, cells = items[mesh.lead : stop], items[: mesh.lead] + items[stop:]
        return self._apply_mesh(self._selection.select(rows), mesh.select(rows, cells))

    def _apply_mesh(self, selected: int | Selection, mesh: Mesh) -> Any:
        """Return a column of the mesh's elements, or for one sample, read these elements."""
        assert self._cell is not None
        part, mesh = mesh.bounding_cell()
        cell = self._cell.select(part.index)
        if isinstance(selected, int):
            values = np.asarray(self._value(selected, cell))
            return mesh.take(values[None], np.zeros(1, np.int64), 0, 0)[0].copy()[()]
        # Only remote shards are read in byte ranges that leave out unneeded elements.
        elements = mesh.positions(cell) if self._source.remotes else None
        field = self._field.restrict(cell, elements)
        return Column(self._source, Plan([field]), selected, cell, mesh)

    def _pad_index(
        self, rows: tuple[Any, ...], cells: tuple[Any, ...]
    ) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Return an index with one item for each axis of the rows and of the values."""
        axes = self._selection.ndim
        items = tuple(item for item in rows if item is not Ellipsis)
        items += (slice(None),) * (axes - len(items)) + cells
        items += (slice(None),) * (self.ndim - len(items))
        return items[:axes], items[axes:]

    def _cell_plan(self, cell: Cell | None) -> Plan:
        """Return the plan that reads the part `cell` of each value."""
        if cell is None or cell is self._cell:
            return self._plan
        return Plan([self._field.restrict(cell)])

    def _value(self, sample_id: int, cell: Cell | None) -> Any:
        """Read one value, or a part of it."""
        is_part = cell is not self._cell or self._field.part is not None
        if cell is not None and is_part and not self._source.is_resident(sample_id):
            field = self._field.restrict(cell)
            column = load(self._source, Plan([field]), np.array([sample_id]), (1,))[self.name]
            return field.take_part(column)[0].copy()[()]
        value = self._source.value_reader(self._field)(sample_id)[self.name]
        if cell is None or not cell.axes:
            return value
        part = value[cell.index]
        # Copy a small part, so that it does not keep the whole value in memory.
        return part.copy() if isinstance(part, np.ndarray) and part.size < value.size else part

    def view(self, dtype: DTypeLike | str) -> Column:
        """Return this column with its bytes reinterpreted as another dtype or encoding.

        Parameters
        ----------
        dtype : dtype or str
            A dtype, or the name of an encoding, such as ``"ndarray:int64:2048"``. If values have
            one size, a dtype is used as by `numpy.ndarray.view`. If they vary in size, as with
            ``bytes``, it is the dtype of the elements of each value.

        Returns
        -------
        Column

        Raises
        ------
        ValueError
            If the bytes of a value do not fit `dtype`, if the column has only a part of each value,
            or if decoding the new encoding can run code.

        Examples
        --------
        >>> ds = getfixture("example")
        >>> ds["text"].view("uint8")[0]
        array([122, 101, 114, 111], dtype=uint8)
        """
        if self._mesh is not None or self._field.part is not None:
            raise ValueError("call view() on the whole column, then take parts of its values")
        field = self._field.view(dtype)
        if is_unsafe(field.encoding.name) and field.encoding != self._field.encoding:
            raise ValueError(f"{dtype!r} can run code: declare it with open(allow_pickle=True)")
        return Column._from_plan(self._source, Plan([field]), self._selection)

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
            A Ragged if the values vary in size: one row per sample, and no other axes of rows, even
            for an N-d view. An object array if the values are not numbers, text or bytes.

        Raises
        ------
        ValueError, TypeError
            If `out` does not have the column's shape or dtype.
        MemoryError
            Before reading, if the result needs more memory than is free.

        Examples
        --------
        >>> ds = getfixture("example")
        >>> ds["text"].load()
        <Ragged: 3 str, 3 to 4 bytes: 'zero', 'one', 'two'>
        """
        with short_traceback:
            field = self._field
            if field.is_read_exactly and self._mesh is None:
                return self._load(None if out is None else {self.name: out})
            target = None if out is None else output_array(out, self.name, self.shape, self.dtype)
            array = (
                field.take_part(self._load(None))
                if self._mesh is None
                else self._elements(self._mesh)
            )
            if target is None:
                return np.asarray(array, order="C")
            target[...] = array
            return out

    def _load(self, out: dict[str, Any] | None) -> Any:
        selection = self._selection
        return load(self._source, self._plan, selection.ids(), selection.shape, out)[self.name]

    def _elements(self, mesh: Mesh) -> AnyArray:
        plan, selection = self._plan, self._selection
        return load_elements(self._source, plan, selection, mesh, READ_BYTES)

    def take(
        self,
        indices: ArrayLike,
        axis: int | None = None,
        out: AnyArray | None = None,
        mode: str = "raise",
    ) -> Any:
        """Read elements along an axis or of the ravelled column, as `numpy.take` does.

        Parameters
        ----------
        indices : array_like of int
            Positions of the elements.
        axis : int, optional
            The axis along which to take; by default the column is ravelled.
        out : ndarray, optional
            The array to fill and return; by default a new one.
        mode : {"raise", "wrap", "clip"}, default: "raise"
            How to treat an index that is out of bounds.

        Returns
        -------
        ndarray, Ragged or scalar
            A Ragged if the values vary in size.

        Raises
        ------
        IndexError
            If an index is out of bounds, and `mode` is "raise".

        Examples
        --------
        >>> getfixture("example")["label"].take([2, -3])
        array([2, 0])
        """
        if axis is None:
            positions = apply_mode(indices, self.size, mode)
            index: Any = np.asarray(positions)
            if self.ndim != 1:
                index = np.unravel_index(normalize_indices(positions, self.size), self.shape)
            selected = self[index]
        else:
            axis = normalize_axis_index(axis, self.ndim)
            selected = self[(slice(None),) * axis + (apply_mode(indices, self.shape[axis], mode),)]
        if isinstance(selected, Column):
            return selected.load(out)
        if out is None:
            return selected
        out[...] = selected
        return out

    def explain(self) -> Cost:
        """Return the cost of `load` with the present cache, such as the bytes to download.

        Returns
        -------
        Cost

        Examples
        --------
        >>> getfixture("example")["label"].explain().nbytes
        0
        """
        from npstream.reading.cost import explain

        return explain(self._source, self._selection, self._plan)

    def prefetch(self) -> None:
        """Fetch the chunks of this column's rows into the cache, as `Dataset.prefetch` does.

        Raises
        ------
        ValueError
            If the cache cannot hold them all at once.

        Examples
        --------
        >>> getfixture("example")["label"].prefetch()  # a local dataset needs no download
        """
        from npstream.reading.cost import prefetch

        prefetch(self._source, self._selection, self._plan)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> AnyArray:
        with short_traceback:
            if copy is False:
                if self._mesh is not None or self._cell is None:
                    raise ValueError("Unable to avoid copy while creating an array as requested.")
                return map_column(self._source, self._field, self._selection, self._cell, dtype)
            check_cost(
                self._source, self._selection, f"column {self.name!r} as an array", self._plan
            )
            return self._as_array(dtype)

    def _as_array(self, dtype: DTypeLike | None = None) -> AnyArray:
        """Read the column without checking the cost; raise TypeError if NumPy has no dtype."""
        encoding, selection = self._field.encoding, self._selection
        if dtype is not None and np.dtype(dtype) == object and self._holds_objects:
            values = self._source.values(self._plan, self._source.look_up(selection.ids()))
            return object_array(values).reshape(selection.shape)
        if encoding.kind in _NO_DTYPE:
            raise TypeError(
                f"column {self.name!r} holds {encoding.name} values, of varying size or type, and "
                "no array has such rows: use load(), or dtype=object"
            )
        column = self.load()
        if isinstance(column, Ragged):
            column = np.asarray(column, dtype).reshape(selection.shape)
        return column if dtype is None else column.astype(dtype, copy=False)  # type: ignore[no-any-return]

    @property
    def _holds_objects(self) -> bool:
        """Whether the values vary in size or are Python integers, which may fit no NumPy dtype."""
        return self._cell is None or self._field.encoding.name == "int"

    def to_torch(self) -> Any:
        """Read the column as a tensor; a nested jagged tensor if values vary in size.

        Returns
        -------
        torch.Tensor

        Raises
        ------
        MissingDependencyError
            If torch is not installed.

        Examples
        --------
        >>> import pytest; _ = pytest.importorskip("torch")
        >>> getfixture("example")["label"].to_torch()
        tensor([0, 1, 2])
        """
        column = self.load()
        if isinstance(column, Ragged):
            return column.to_torch()
        return import_npstream_torch().to_tensor(column)

    def __iter__(self) -> Iterator[Any]:
        if not self.shape:
            raise TypeError("iteration over a 0-d array")
        return chain.from_iterable(self[a:b]._rows() for a, b in self._bounds())

    def __reversed__(self) -> Iterator[Any]:
        return iter(self[::-1])

    def _rows(self) -> Iterable[Any]:
        """Read the rows, each as an integer index returns it."""
        if self.ndim == 1 and self._mesh is None and self._holds_objects:
            return self._source.values(self._plan, self._source.look_up(self._selection.ids()))
        return self._block()

    @property
    def _rows_first(self) -> bool:
        """Whether rows are the first axis, so that the column can be read in blocks of rows."""
        return bool(self._selection.ndim) and (self._mesh is None or not self._mesh.lead)

    def _bounds(self, purpose: str | None = None) -> Iterator[tuple[int, int]]:
        """Yield the bounds of blocks of rows; show progress if there is a `purpose`."""
        check_cost(self._source, self._selection, purpose or f"column {self.name!r}", self._plan)
        length, rows = len(self), len(self)
        if self.size and self._rows_first:
            rows = self._source.block_rows(self._plan, READ_BYTES)
            rows //= max(1, prod(self._selection.shape[1:]))
        starts = range(0, length, max(1, rows)) or range(1)  # without rows, one empty block
        for start in starts if purpose is None else progress(starts, purpose):
            yield start, min(start + starts.step, length)

    def _blocks(self, purpose: str | None = None) -> Iterator[AnyArray]:
        """Read the column in blocks of rows; raise TypeError if NumPy has no dtype for it."""
        for start, stop in self._bounds(purpose):
            yield self[start:stop]._as_array()

    def _block(self) -> AnyArray:
        """Read the column without checking the cost, as objects if NumPy has no dtype."""
        return self._as_array(object if self._field.encoding.kind in _NO_DTYPE else None)

    def _array(self) -> AnyArray:
        """Read the column as an array; its dtype is object if NumPy has none for the values."""
        return np.asarray(self, object if self._field.encoding.kind in _NO_DTYPE else None)

    def _flat_rows(self) -> Column | None:
        """Return the column as a lazy 1-d column if its values are scalars; else None."""
        if self.ndim != self._selection.ndim or self._mesh is not None:
            return None
        return Column(self._source, self._plan, self._selection.ravel(), self._cell)

    def __contains__(self, value: object) -> bool:
        if self._field.encoding.kind in _NO_DTYPE:
            items = chain.from_iterable(self[a:b]._block().flat for a, b in self._bounds())
            return any(elementwise.is_same(item, value) for item in items)
        if not self.shape:
            raise TypeError("argument of type 'Column' without axes is not iterable")
        return any(bool(np.any(self[a:b] == value)) for a, b in self._bounds())

    # Writing

    def _writer_input(self) -> StoredColumn | ArrayColumn:
        """Return this column in the form that `npstream.writing.tables` writes."""
        from npstream.reading.stored import StoredColumn, StoredTable
        from npstream.writing.tables import ArrayColumn

        if not self._shape:
            raise TypeError(f"column {self.name!r} is a single value, not one value a sample")
        field, is_whole = self._field, self._mesh is None and self._field.part is None
        if is_whole and self._selection.ndim == 1:
            return StoredColumn(StoredTable(self._source, self._selection, (field,)), self.name)
        if self._cell is None:
            raise ValueError(
                f"column {self.name!r} has {quantity(self.ndim, 'axis')}, and values that vary in "
                "size: take the column of a view with one axis, such as ds.ravel()"
            )
        rows_lead = self._mesh is None or not self._mesh.lead
        array = None if rows_lead else self.load()
        chunk = self.chunks[0]

        def read(start: int, stop: int) -> Any:
            return self[start:stop].load() if array is None else array[start:stop]

        return ArrayColumn(read, len(self), self.dtype, self.shape[1:], None, chunk)

    # Computing

    def __array_function__(
        self, func: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        from npstream.dataset.array_functions import apply

        with elementwise.size_notes(self._field):
            return apply(func, args, kwargs, Column)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        outputs = inputs[:1] if method == "at" else options.get("out", ())
        if any(isinstance(output, Column) for output in outputs):
            raise TypeError(
                f"a column is read-only: store the result of np.{ufunc.__name__} in an array"
            )
        if any(map(is_tensor, inputs)):
            return self._apply_to_tensors(getattr(ufunc, method), inputs, options)
        with elementwise.size_notes(self._field):
            return self._apply(ufunc, method, getattr(ufunc, method), inputs, options)

    def __eq__(self, other: object) -> Any:
        return self._compare(np.equal, other)

    def __ne__(self, other: object) -> Any:
        return self._compare(np.not_equal, other)

    __hash__ = None  # type: ignore[assignment]

    def _compare(self, ufunc: np.ufunc, other: Any) -> Any:
        """Apply ``==`` or ``!=``; unlike the ufuncs, they can compare numbers with text."""
        if getattr(other, "__array_ufunc__", ufunc) is None:
            return NotImplemented
        function = elementwise.EQUALITY[ufunc]
        if elementwise.defers_to(other, self.dtype):
            return function(np.asarray(self), other)
        if is_tensor(other):
            return self._apply_to_tensors(function, (self, other), {})
        with elementwise.size_notes(self._field):
            return self._apply(ufunc, "__call__", function, (self, other), {})

    def _apply_to_tensors(
        self, function: Callable[..., Any], inputs: tuple[Any, ...], options: dict[str, Any]
    ) -> Any:
        """Apply a function with tensors converted to arrays, and return a tensor."""
        arrays = [as_array(item) if is_tensor(item) else item for item in inputs]
        result = function(*arrays, **options)
        tensor = next(item for item in inputs if is_tensor(item))
        if not isinstance(result, np.ndarray):
            return result
        if result.dtype != np.bool_ and any(getattr(item, "requires_grad", 0) for item in inputs):
            raise TypeError(f"NumPy has no gradients: compute with {self.name!r}.to_torch()")
        return import_npstream_torch().to_tensor(result).to(tensor.device)

    def _apply(
        self,
        ufunc: np.ufunc,
        method: str,
        function: Callable[..., Any],
        inputs: tuple[Any, ...],
        options: dict[str, Any],
    ) -> Any:
        """Apply a ufunc, or its operator, one block of rows at a time if possible."""
        text = elementwise.text_operand(ufunc, inputs, options, self._field.encoding.kind)
        if method == "__call__" and text is not None:
            equal = elementwise.equals_text(text, self._source, self._plan, self._selection)
            return equal if ufunc is np.equal else ~equal
        inputs = elementwise.scalars_to_numpy(inputs, self.dtype, self._field.encoding.kind)
        result = self._apply_in_blocks(ufunc, method, function, inputs, options)
        if result is not NotImplemented:
            return result
        arrays = [np.asarray(item) if isinstance(item, Column) else item for item in inputs]
        return function(*arrays, **options)

    def _apply_in_blocks(
        self,
        ufunc: np.ufunc,
        method: str,
        function: Callable[..., Any],
        inputs: tuple[Any, ...],
        options: dict[str, Any],
    ) -> Any:
        """Apply a ufunc in blocks of rows; return NotImplemented if it needs all rows at once."""
        purpose = f"{ufunc.__name__} of {self.name!r}"
        if method == "reduce" and self._rows_first and elementwise.has_method(ufunc, options):
            outs = options.pop("out", (None,))
            axis = options.pop("axis", 0)
            return getattr(self, elementwise.REDUCTION_METHODS[ufunc])(axis, out=outs[0], **options)
        if method != "__call__":
            return NotImplemented
        if ufunc is np.matmul and not options:
            left, right = inputs
            return elementwise.matrix_product(left, right, lambda c: c._bounds(purpose))
        if ufunc.signature is not None:
            return NotImplemented
        shape = elementwise.blockwise_shape(inputs, options)
        if shape is None:
            return NotImplemented
        columns = (item for item in inputs if isinstance(item, Column))
        with_all_rows = next(c for c in columns if c.ndim == len(shape) and len(c) == shape[0])
        return elementwise.apply_in_blocks(
            function, inputs, options, shape, with_all_rows._bounds(purpose)
        )

    def __arrow_c_array__(self, requested_schema: Any = None) -> Any:
        return self._arrow_array().__arrow_c_array__(requested_schema)

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return arrow_stream(self._arrow_array(), requested_schema)

    def _arrow_array(self) -> Any:
        """Read the column as a pyarrow array of its rows."""
        from npstream.reading.arrow import to_arrow_array
        from npstream.reading.arrow_stream import arrow_field

        if not self.shape or (self._cell is None and self.ndim != 1):
            raise ValueError(
                f"column {self.name!r} of shape {self.shape} has no rows along one axis: take the "
                "column of a view with one axis, such as ds.ravel()"
            )
        column, field = self, arrow_field(self._field)
        if field is not self._field:
            column = Column(self._source, Plan([field]), self._selection)
        check_cost(self._source, self._selection, f"column {self.name!r} for Arrow", column._plan)
        return to_arrow_array(self.name, column.load())
