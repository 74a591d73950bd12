"""Provide reads of a view: into arrays, as an iterator of samples, or as a map of a shard's file.

Tested in tests/dataset/test_dataset.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import chain, islice
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from npstream._core.arguments import quantity
from npstream._core.array_like import as_array, is_tensor
from npstream._core.memory import ensure_fits, is_mapped
from npstream._core.typing import AnyArray, Int64, Sample
from npstream.errors import ColumnError, FormatError, short_traceback, stop_iteration_error
from npstream.indexing.columns import Cell, as_slice
from npstream.reading.batch import Ragged
from npstream.reading.cost_limit import check_cost
from npstream.reading.sample import record_column

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from npstream.indexing.mesh import Mesh
    from npstream.indexing.selection import Selection
    from npstream.reading.gather import Lookup
    from npstream.reading.plan import Field, Plan
    from npstream.reading.source import Source

MODES = ("raise", "wrap", "clip")

MAX_VIEW_STRIDE = 64
"""The maximum stride of a view that `small_samples_view` returns: bytes from sample to sample."""

SAMPLE_BLOCK = 1 << 19
"""Bytes of samples that iteration reads at once. They fit the processor's cache."""


def load(
    source: Source,
    plan: Plan,
    ids: Int64,
    shape: tuple[int, ...],
    out: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Read columns of samples as arrays with the shape of a view.

    Parameters
    ----------
    source : Source
    plan : Plan
    ids : ndarray of int64, shape (n,)
        The rows of the samples, as row numbers of the source.
    shape : tuple of int
        The shape of the view, with n samples.
    out : mapping of str to array_like, optional
        Arrays for fixed columns. They are filled, and returned as the values of these columns.

    Raises
    ------
    ValueError, TypeError
        If `out` does not fit.
    """
    # `isinstance(out, dict)` takes a tenth of the time of `isinstance(out, Mapping)`.
    if out is not None and not isinstance(out, dict) and not isinstance(out, Mapping):
        raise TypeError(
            f"out is of type {type(out).__name__}: expected a mapping from names of columns to "
            "arrays, as in out={'x': array}"
        )
    targets: dict[str, AnyArray] = {}
    if out is not None:
        for name in out:
            targets[name] = _target(plan, name, shape, out[name])
    columns: dict[str, Any] = source.columns(plan, source.look_up(ids), targets)
    if len(shape) != 1:
        for name, column in columns.items():
            if not isinstance(column, Ragged):
                columns[name] = column.reshape(shape + column.shape[1:])
    for name, target in targets.items():
        assert out is not None
        result = out[name]
        # Only a temporary array of `_target` has no base. Other targets share the memory of `out`.
        if target is not result and target.base is None:
            np.asarray(result)[...] = columns[name]
        columns[name] = result
    return columns


def load_elements(
    source: Source,
    plan: Plan,
    selection: Selection,
    mesh: Mesh,
    block_bytes: int,
) -> AnyArray:
    """Read elements of the values of a fixed column, a block of rows at a time.

    Parameters
    ----------
    source : Source
    plan : Plan
        A plan of one column.
    selection : Selection
        The rows.
    mesh : Mesh
        The elements of each value.
    block_bytes : int
        Bytes of samples to read at once.
    """
    (field,), rows = plan.fields, selection.ravel()
    dtype, shape = field.encoding.dtype, (rows.size, *mesh.shape)
    ensure_fits(prod(shape) * dtype.itemsize, f"{quantity(rows.size, 'row')} of {field.name!r}")
    array: AnyArray = np.empty(shape, dtype)
    step, start = source.block_rows(plan, block_bytes), 0
    blocks = (rows.ids(k, k + step) for k in range(0, rows.size if array.size else 0, step))
    for ids, lookup in _read_blocks_ahead(source, plan, blocks, rows):
        positions = np.arange(len(ids))
        if not rows.step:  # read a row once, although it may occur several times
            unique, inverse = np.unique(ids, return_inverse=True)
            if len(unique) < len(ids):
                is_prefetched, lookup = lookup.is_prefetched, source.look_up(unique)
                lookup.is_prefetched = is_prefetched
                positions = inverse
        values: Any = source.columns(plan, lookup, {})[field.name]
        values = field.take_part(values)
        stop = start + len(positions)
        array[start:stop] = mesh.take(values, positions, start, selection.ndim)
        start = stop
    array = array.reshape(selection.shape + mesh.shape)
    axes = range(selection.ndim, selection.ndim + mesh.lead)
    return np.moveaxis(array, axes, range(mesh.lead))


def _read_blocks_ahead(
    source: Source, plan: Plan, blocks: Iterator[Int64], rows: Selection
) -> Iterator[tuple[Int64, Lookup]]:
    """Yield blocks of rows and their lookups, while chunks of the next blocks are fetched.

    If samples may be read in parts, nothing is fetched ahead: the read may need no chunk at all.
    """
    if source.reads_parts(plan):
        yield from ((ids, source.look_up(ids)) for ids in blocks)
        return
    is_rowwise = source.is_view_rowwise(rows, plan)
    yield from source.read_ahead(blocks, lambda ids: ids, plan, rows.step, is_rowwise)


def _target(plan: Plan, name: str, shape: tuple[int, ...], out: Any) -> AnyArray:
    """Return an array with one axis of rows to read a column into: `out`, or a temporary one."""
    if (value := plan.fixed_values.get(name)) is None:
        if name not in plan.encodings:
            raise ColumnError(name, plan.encodings)
        raise TypeError(
            f"out for column {name!r}: its values vary in size, so it is read into a new Ragged"
        )
    value_shape, dtype = value
    array = output_array(out, name, shape + value_shape, dtype)
    if not array.flags.c_contiguous:
        return np.empty((prod(shape), *value_shape), dtype)
    return array if len(shape) == 1 else array.reshape(prod(shape), *value_shape)


def iterate_samples(
    source: Source, selection: Selection, names: tuple[str, ...]
) -> Iterator[Sample]:
    """Yield the samples of a 1-d view, and read some ahead.

    Raises
    ------
    CostError
        If the rows have no constant step, and reading them would fetch more than the implicit read
        limit.
    """
    if selection.affine is None:
        plan = source.plan(names)
        check_cost(source, selection, "iterating over this view", sample_plan=plan)
    return chain.from_iterable(_SampleBlocks(source, selection, names))


class _SampleBlocks:
    """The blocks of samples of a 1-d view: each block is read at once.

    If a block cannot be read, its samples are read one by one, because damage concerns single
    samples. After an error, iteration can continue with the next sample.
    """

    def __init__(self, source: Source, selection: Selection, names: tuple[str, ...]) -> None:
        self._source, self._selection = source, selection
        self._read = partial(source.samples, names)
        self._plan = source.plan(names)
        self._step = source.estimate_read_rows(SAMPLE_BLOCK, self._plan)
        self._row = 0
        self._blocks = self._remaining_blocks()

    def __iter__(self) -> _SampleBlocks:
        return self

    def __next__(self) -> Iterator[Sample]:
        begin = self._row
        try:
            _, lookup = next(self._blocks)
            self._row += len(lookup.rows)
            return self._read(lookup)
        except StopIteration:
            raise
        except BaseException as error:
            self._row = min(begin + self._step, len(self._selection))
            self._blocks = self._remaining_blocks()
            ids = self._selection.ids(begin, self._row)
            # The damaged sample raises its FormatError again. Other errors may not repeat.
            error_to_raise = None if isinstance(error, FormatError) else error
            return _SingleSamples(self._read_one, ids, error_to_raise)

    def _read_one(self, row: Int64) -> Iterator[Sample]:
        return self._read(self._source.look_up(row))

    def _remaining_blocks(self) -> Iterator[tuple[Int64, Lookup]]:
        """Return the blocks of rows that are not read yet; the next ones are read ahead."""
        starts = range(self._row, len(self._selection), self._step)
        blocks = (self._selection.ids(start, start + self._step) for start in starts)
        is_rowwise = self._source.is_view_rowwise(self._selection, self._plan)
        step = self._selection.step
        return self._source.read_ahead(blocks, lambda ids: ids, self._plan, step, is_rowwise)


class _SingleSamples:
    """An iterator that raises `error`, if there is one, and then reads samples one by one."""

    def __init__(
        self,
        read: Callable[[Int64], Iterator[Sample]],
        ids: Int64,
        error: BaseException | None,
    ) -> None:
        self._read, self._ids, self._error = read, iter(ids), error

    def __iter__(self) -> _SingleSamples:
        return self

    def __next__(self) -> Sample:
        error, self._error = self._error, None
        with short_traceback:
            if error is not None:
                raise error
            (sample,) = self._read(np.array([next(self._ids)]))
        return sample


def apply_transform(
    function: Callable[[Any], Any], items: Iterator[Any], name: str
) -> Iterator[Any]:
    """Apply a user's function to items; errors call the function `name`.

    If the function raises, the iterator continues with the next item, as ``map`` does. But
    StopIteration is replaced by another error, because it would end a loop without notice.
    """
    return chain.from_iterable(_TransformedItems(function, items, name))


class _TransformedItems:
    """Generators of transformed items: each generator ends when the function raises."""

    def __init__(self, function: Callable[[Any], Any], items: Iterator[Any], name: str) -> None:
        self._function, self._items, self._name = function, items, name
        self._is_over = False

    def __iter__(self) -> _TransformedItems:
        return self

    def __next__(self) -> Iterator[Any]:
        if self._is_over:
            raise StopIteration
        return self._results()

    def _results(self) -> Iterator[Any]:
        function = self._function
        for item in self._items:
            try:
                result = function(item)
            except StopIteration as error:
                raise stop_iteration_error(self._name) from error
            yield result
        self._is_over = True


def load_structured(source: Source, plan: Plan, ids: Int64, shape: tuple[int, ...]) -> AnyArray:
    """Read fixed columns of samples as a structured array.

    Raises
    ------
    TypeError
        If the values of some columns vary in size; the message names the columns.
    """
    variable = [f.name for f in plan.fields if f.encoding.kind != "fixed"]
    if variable or not plan.fields:
        raise TypeError(
            f"columns of varying size make no structured array: {', '.join(variable) or 'none'}; "
            "leave them out, as in ds[[...]], or use load(), or pd.DataFrame.from_arrow(ds)"
        )
    record = np.dtype([(f.name, f.encoding.dtype, f.shape or ()) for f in plan.fields])
    ensure_fits(len(ids) * record.itemsize, f"{quantity(len(ids), 'sample')} as a structured array")
    table: AnyArray = np.empty(shape, record)
    for name, column in load(source, plan, ids, shape).items():
        table[name] = column
    return table


def output_array(out: Any, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> AnyArray:
    """Return the caller's output as an ndarray, after checking its shape, dtype and flags."""
    array: AnyArray
    if type(out) is np.ndarray:
        array = out
    else:
        # NumPy does not know every dtype of a tensor, and `np.asarray` might copy the tensor.
        is_cpu_tensor = is_tensor(out) and out.device.type == "cpu" and not out.requires_grad
        array = as_array(out) if is_cpu_tensor else np.asarray(out)
        # If NumPy made a copy, writing to it would not change `out`.
        if array is not out and (array.base is None or _is_read_only(out)):
            raise TypeError(f"out for column {name!r} is a {type(out).__name__}; expected an array")
    if array.shape != shape:
        raise ValueError(f"out for column {name!r} has shape {array.shape}; expected {shape}")
    if array.dtype != dtype:
        raise TypeError(f"out for column {name!r} has dtype {array.dtype}; expected {dtype}")
    if not array.flags.writeable:
        raise ValueError(f"out for column {name!r} is read-only")
    return array


def _is_read_only(out: Any) -> bool:
    # Datasets and columns have `_writer_input`. Their `__setitem__` only raises an error.
    return not hasattr(out, "__setitem__") or hasattr(type(out), "_writer_input")


def apply_mode(indices: ArrayLike, length: int, mode: str) -> Any:
    """Return the indices that `numpy.take` with a mode uses for an axis of `length`."""
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}: expected one of {', '.join(map(repr, MODES))}")
    array = np.asarray(indices)
    if array.dtype.kind == "b":
        raise TypeError("take expects integers, not a mask: index with it instead")
    if array.size == 0 and isinstance(indices, list | tuple):
        array = array.astype(np.int64)  # NumPy makes an empty list float64
    array = array.astype(np.int64, casting="safe")
    if length == 0 and array.size:
        raise IndexError("cannot do a non-empty take from an empty axes.")
    if mode != "raise":
        array = array % length if mode == "wrap" and length else array.clip(0, length - 1)
    return array.item() if array.ndim == 0 else array


def row_ranges(n: int, step: int) -> Iterator[tuple[int, int]]:
    """Yield the start and stop of consecutive ranges of `step` rows; the last may be shorter."""
    for start in range(0, n, step):
        yield start, min(start + step, n)


def map_column(
    source: Source, field: Field, selection: Selection, cell: Cell, dtype: Any
) -> AnyArray:
    """Return a fixed column as a read-only array over the file of one shard.

    The file stays mapped while the array lives, even after the dataset is closed.

    Raises
    ------
    ValueError
        If no such array exists. The rows must be evenly spaced within one uncompressed shard. All
        columns of the shard must have a fixed size, and `dtype` must be that of the column.
    """
    encoding = field.encoding
    copy_error = ValueError("Unable to avoid copy while creating an array as requested.")
    views = [*islice(source.split_by_dataset(selection), 2)]
    if len(views) != 1:
        raise copy_error
    ((source, selection),) = views
    affine = selection.affine
    if affine is None or selection.size == 0 or (dtype is not None and dtype != encoding.dtype):
        raise copy_error
    if field.computation is not None:
        raise copy_error
    index = source.index
    start, step = affine
    last = start + step * (selection.size - 1)
    shards = np.searchsorted(index.starts, [start, last], side="right") - 1
    shard = int(shards[0])
    layout = source.fetcher.layouts[index.schema_ids[shard]]
    if shards[1] != shard or layout is None or not layout.stride:
        raise copy_error
    loaded = source.fetcher.loaded_shard(shard)
    if loaded is None or not (is_mapped(loaded.data) and loaded.resident.all()):
        raise copy_error
    column = record_column(loaded, layout, field)
    row = start - int(index.starts[shard])
    rows = range(row, row + step * selection.size, step)
    return column[(as_slice(rows), *cell.index)]


def small_samples_view(
    source: Source, field: Field, selection: Selection, cell: Cell | None
) -> AnyArray | None:
    """Return a column of numbers as `map_column` does if samples are small, otherwise None.

    For samples of more than 64 bytes, a copy of the column is better. Each pass over the file reads
    a cache line for each sample. Passes over the copy read only the column.
    """
    encoding = field.encoding
    if selection.ndim != 1 or cell is None or encoding.kind != "fixed":
        return None
    if encoding.dtype.kind not in "iufmM":
        return None
    try:
        column = map_column(source, field, selection, cell, None)
    except ValueError:
        return None
    return column if abs(column.strides[0]) <= MAX_VIEW_STRIDE else None
