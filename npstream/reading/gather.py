"""Provide `gather`, which reads samples and copies each of their columns into one array.

A column is gathered in its *stored* form. That is an ndarray if all values have one size, and a
Ragged of bytes or array elements if sizes vary. It is a list for a text format, and an object array
if arrays differ in rank or dtype. `npstream.reading.decode` converts this form to the values of
batches and samples.

Tested in tests/end_to_end/test_laws.py.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from math import prod
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from npstream._core import memory
from npstream._core.arguments import quantity
from npstream._core.dtypes import storage_dtype
from npstream._core.spans import copy_spans, equal_spans
from npstream._core.typing import AnyArray, Bools, Int64
from npstream.errors import FormatError
from npstream.formats import text
from npstream.formats.encodings.encodings import DTYPE_CODES
from npstream.reading.batch import Ragged
from npstream.reading.plan import Field, Plan
from npstream.shards import kernels
from npstream.storage.deadlines import shared_deadline
from npstream.storage.traffic.events import is_reporting, report

if TYPE_CHECKING:
    from npstream.formats.index import Schema
    from npstream.formats.mds import SampleLayout
    from npstream.reading.plan import PartialRead, SampleSplit
    from npstream.shards.table import Fetcher
    from npstream.writing.shard import Bodies

RawColumn = AnyArray | Ragged | list[Any]

KERNEL_ROWS = 1 << 16
"""Rows for one kernel call. Their tables of addresses then fit the processor's cache."""

_ITEMSIZES = np.zeros(256, np.int64)
"""Dtype code of an array header -> bytes of an element; 0 for an unknown code."""

for _code, _dtype in DTYPE_CODES.items():
    _ITEMSIZES[_code] = _dtype.itemsize

_UNSIGNED_CODES = {dtype.itemsize: code for code, dtype in DTYPE_CODES.items() if dtype.kind == "u"}
"""Bytes of an element -> code of the unsigned dtype of that size."""

_COMPLEX_PARTS = 2
"""A complex number is stored as two numbers, along a last axis."""


class Lookup:
    """Row numbers of a source, and the sample number of each row. They differ in mixtures.

    Parameters
    ----------
    rows : ndarray of int64, shape (n,)
        Row numbers, as users of the source see them.
    samples : ndarray of int64, shape (n,)
        Sample numbers of the index. The same array as `rows` if the numbers are the same.
    is_prefetched : bool, default: False
        True if the pages of the samples were prefetched.
    joined_lookups : mapping of int to Lookup, default: {}
        The lookups of the same rows in joined sources, by the number of the joined source. Only
        `Source.read_ahead` fills it.
    """

    __slots__ = ("is_prefetched", "joined_lookups", "rows", "samples")

    def __init__(
        self,
        rows: Int64,
        samples: Int64,
        is_prefetched: bool = False,
        joined_lookups: Mapping[int, Lookup] = MappingProxyType({}),
    ) -> None:
        self.rows, self.samples = rows, samples
        self.is_prefetched, self.joined_lookups = is_prefetched, joined_lookups


def gather(
    fetcher: Fetcher,
    plan: Plan,
    ids: Int64,
    out: Mapping[str, AnyArray] | None = None,
    is_prefetched: bool = False,
) -> dict[str, RawColumn]:
    """Read columns of samples in their stored form.

    Parameters
    ----------
    fetcher : Fetcher
    plan : Plan
        A plan without computed columns. If it has no columns, no shard is read.
    ids : ndarray of int64, shape (n,)
        Sample numbers, in any order, with duplicates.
    out : mapping of str to ndarray, optional
        C-contiguous arrays of a fixed column's dtype and shape, to fill and return.
    is_prefetched : bool, default: False
        True if the pages of the samples were prefetched.
    """
    start = time.perf_counter() if is_reporting() else None
    if len(fetcher.index.schemas) <= 1 and not plan.is_empty:
        columns = _gather_schema(fetcher, 0, plan, ids, out or {}, is_prefetched)
    else:
        columns = _gather_schemas(fetcher, plan, ids, out or {}, is_prefetched)
    if start is not None:
        nbytes = sum(map(_array_nbytes, columns.values()))
        report("gather", time.perf_counter() - start, nbytes, fetcher.shards.root)
    return columns


def _array_nbytes(column: RawColumn) -> int:
    """Return the bytes of a column's array; 0 for a list."""
    if isinstance(column, Ragged):
        return int(column.values.nbytes)
    return 0 if isinstance(column, list) else int(column.nbytes)


def _gather_schemas(
    fetcher: Fetcher,
    plan: Plan,
    ids: Int64,
    out: Mapping[str, AnyArray],
    is_prefetched: bool,
) -> dict[str, RawColumn]:
    """Read columns of samples of any number of schemas."""
    index = fetcher.index
    if plan.is_empty:  # no columns, or only parts without elements
        return {f.name: out.get(f.name, f.allocate(len(ids))) for f in plan.fields}
    shards = np.searchsorted(index.starts, ids, side="right") - 1
    schema_ids = index.schema_ids[shards]
    schemas = np.unique(schema_ids).tolist()
    if len(schemas) <= 1:
        schema = schemas[0] if schemas else 0
        return _gather_schema(fetcher, schema, plan, ids, out, is_prefetched)
    rows = [np.flatnonzero(schema_ids == schema) for schema in schemas]
    # Fixed columns are read schema by schema into one array, which then only needs reordering.
    fixed = {f.name: f.allocate(len(ids)) for f in plan.fields if f.encoding.kind == "fixed"}
    pieces, start = [], 0
    for schema, positions in zip(schemas, rows, strict=True):
        stop = start + len(positions)
        views = {name: column[start:stop] for name, column in fixed.items()}
        pieces.append(_gather_schema(fetcher, schema, plan, ids[positions], views, is_prefetched))
        start = stop
    order = np.argsort(np.concatenate(rows), kind="stable")
    return {
        f.name: _merge([p[f.name] for p in pieces], order, fixed.get(f.name), out.get(f.name))
        for f in plan.fields
    }


def _merge(
    pieces: list[RawColumn], order: Int64, column: AnyArray | None, out: AnyArray | None
) -> RawColumn:
    """Concatenate pieces, unless `column` already holds them, and put the rows in order.

    If all pieces are arrays, the result is `out`, unless that is None.
    """
    arrays = [piece for piece in pieces if isinstance(piece, np.ndarray)]
    if len(arrays) == len(pieces):
        rows_by_schema: AnyArray = np.concatenate(arrays) if column is None else column
        return rows_by_schema.take(order, 0, out, "clip")
    # A Ragged without a kind holds arrays, whose dtypes may differ between pieces.
    raggeds = [piece for piece in pieces if isinstance(piece, Ragged) and piece.kind is not None]
    if len(raggeds) == len(pieces):
        values = np.concatenate([piece.values for piece in raggeds])
        lengths = np.concatenate([piece.lengths for piece in raggeds])
        merged: Ragged = Ragged(values, _offsets_from_lengths(lengths), raggeds[0].kind)[order]
        return merged
    rows = [row for piece in pieces for row in piece]
    return [rows[k] for k in order.tolist()]


def _gather_schema(
    fetcher: Fetcher,
    schema: int,
    plan: Plan,
    ids: Int64,
    out: Mapping[str, AnyArray],
    is_prefetched: bool,
) -> dict[str, RawColumn]:
    """Read columns of samples that all have one schema."""
    layout = fetcher.layouts[schema] if fetcher.layouts else None
    if layout is None:
        return dict(read_lines(fetcher, schema, [f.name for f in plan.fields], ids))
    split = plan.split(schema, layout)
    columns: dict[str, Any] = {}
    n = len(ids)
    for f in split.fixed:
        column = out.get(f.name)
        columns[f.name] = f.allocate(n) if column is None else column
    blocks: list[tuple[Int64, int, object]] = []
    partial_read = plan.partial_read(schema, layout) if fetcher.remotes and n else None
    # If samples can be read in parts, no column varies in size, and there are no spans to gather.
    if partial_read is None or not _copy_parts(fetcher, split, partial_read, ids, columns):
        block_ids, variable = ids, len(split.variable)
        outputs: Collection[AnyArray] = columns.values()
        for start in range(0, n, KERNEL_ROWS):
            if n > KERNEL_ROWS:
                stop = start + KERNEL_ROWS
                block_ids, outputs = ids[start:stop], [c[start:stop] for c in columns.values()]
            words, owner = fetcher.read(block_ids, split.columns, variable, outputs, is_prefetched)
            blocks.append((words, len(block_ids), owner))
    for f in split.opaque:
        columns[f.name] = _rows_of_bytes(columns[f.name])
    for number, f in enumerate(split.variable, 1):
        spans = [kernels.value_spans(words, rows, number) for words, rows, _ in blocks]
        columns[f.name] = _gather_spans(_VariableColumn(fetcher, f, ids, spans), out.get(f.name))
    del blocks  # their owners kept the memory of the spans alive until here
    return columns


def _copy_parts(
    fetcher: Fetcher,
    split: SampleSplit,
    partial_read: PartialRead,
    ids: Int64,
    columns: dict[str, AnyArray],
) -> bool:
    """Copy fixed columns, if it is cheaper to read some samples in parts.

    Samples that are not read in parts are then read whole.

    Returns
    -------
    bool
        False if no sample is read in parts. Nothing is copied then.
    """
    is_missing = np.ones(len(ids), bool)
    with shared_deadline():
        results = fetcher.read_parts(ids, partial_read.byte_ranges)
        if not results:
            return False
        # Row rows[k] of `parts` has the byte ranges of sample ids[positions[k]].
        for positions, rows, parts in results:
            is_missing[positions] = False
            has_all_rows = len(positions) == len(parts) == len(ids)
            is_in_order = has_all_rows and bool((np.diff(rows) == 1).all())
            for name, copies in partial_read.copies.items():
                target = columns[name].reshape(len(ids), -1).view(np.uint8)
                for source_byte, target_byte, nbytes in copies:
                    values = parts[:, source_byte : source_byte + nbytes]
                    if is_in_order:  # avoids a copy of `values`
                        target[:, target_byte : target_byte + nbytes] = values
                    else:
                        target[positions, target_byte : target_byte + nbytes] = values[rows]
        missing = np.flatnonzero(is_missing)
        for start in range(0, len(missing), KERNEL_ROWS):
            positions = missing[start : start + KERNEL_ROWS]
            block = {f.name: f.allocate(len(positions)) for f in split.fixed}
            fetcher.read(ids[positions], split.columns, 0, block.values())
            for name, column in block.items():
                columns[name][positions] = column
    return True


def _rows_of_bytes(column: AnyArray) -> Ragged:
    """Return opaque values of one size, such as text, as a Ragged of bytes."""
    n, size = column.shape
    return Ragged(column.reshape(-1), np.arange(n + 1, dtype=np.int64) * size, "bytes")


class _VariableColumn:
    """The spans of a variable column's values, in blocks of rows, before they are copied.

    Attributes
    ----------
    fetcher : Fetcher
    field : Field
    ids : ndarray of int64, shape (n,)
        The samples of the values.
    spans : list of ndarray of int64, shape (2, rows)
        Addresses and lengths, for each block.
    """

    __slots__ = ("fetcher", "field", "ids", "spans")

    def __init__(self, fetcher: Fetcher, field: Field, ids: Int64, spans: list[Int64]) -> None:
        self.fetcher, self.field, self.ids, self.spans = fetcher, field, ids, spans

    @property
    def lengths(self) -> Int64:
        """The number of bytes of each value."""
        return np.concatenate([nbytes for _, nbytes in self.spans] or [np.empty(0, np.int64)])

    def allocate(self, elements: int, dtype: np.dtype[Any]) -> AnyArray:
        """Return a new array for `elements` elements, or raise MemoryError."""
        nbytes, rows = elements * dtype.itemsize, len(self.ids)
        memory.ensure_fits(nbytes, "rows ({:,}) of column {!r}", rows, self.field.name)
        return np.empty(elements, dtype)

    def copy(self, offsets: Int64, destination: AnyArray) -> None:
        """Copy each value to its byte offset in `destination`."""
        start, base = 0, memory.address_of(destination)
        for address, nbytes in self.spans:
            stop = start + len(address)
            copy = copy_spans.for_size(len(address))
            copy(address, nbytes, offsets[start:stop], base)
            start = stop

    def raise_if(self, is_wrong: AnyArray, reason: str) -> None:
        """Raise FormatError for the first row where `is_wrong` is True."""
        if is_wrong.any():
            k = int(is_wrong.argmax())
            nbytes = int(self.lengths[k])
            self.fetcher.raise_damaged(
                int(self.ids[k]),
                f"column {self.field.name!r} has {quantity(nbytes, 'byte')}; {reason}",
            )


def _gather_spans(values: _VariableColumn, out: AnyArray | None) -> RawColumn:
    """Gather the values of a variable column in the form of its encoding."""
    encoding, lengths = values.field.encoding, values.lengths
    if encoding.kind == "fixed":
        return _gather_declared_fixed(values, lengths, out)
    if encoding.kind == "ndarray" and not encoding.headless:
        return _gather_arrays(values)
    offsets = _offsets_from_lengths(lengths)
    if encoding.kind == "ndarray":
        return _gather_elements(values, lengths, offsets, encoding.dtype)
    data = values.allocate(int(offsets[-1]), np.dtype(np.uint8))
    values.copy(offsets, data)
    return Ragged(data, offsets, encoding.kind if encoding.kind in _RAGGED_KINDS else "bytes")


_RAGGED_KINDS = ("str", "bytes", "image")
"""Kinds of encodings that a Ragged of bytes also has. Other encodings are gathered as "bytes"."""


def _gather_declared_fixed(
    values: _VariableColumn, lengths: Int64, out: AnyArray | None
) -> AnyArray:
    """Gather a column that is stored with variable size but declared as fixed."""
    field, encoding = values.field, values.field.encoding
    assert encoding.size is not None
    values.raise_if(lengths != encoding.size, f"{encoding.name!r} takes {encoding.size}")
    first, stop = (field.part.first, field.part.stop) if field.part else (0, encoding.size)
    values.spans = [
        np.stack((address + first, np.full_like(address, stop - first)))
        for address, _ in values.spans
    ]
    column = field.allocate(len(lengths)) if out is None else out
    values.copy(np.arange(len(lengths), dtype=np.int64) * (stop - first), column)
    return column


def _gather_elements(
    values: _VariableColumn,
    lengths: Int64,
    offsets: Int64,
    dtype: np.dtype[Any],
    shapes: Int64 | None = None,
) -> Ragged:
    """Gather rows of array elements as a Ragged."""
    values.raise_if(
        lengths % dtype.itemsize != 0,
        f"that is not a multiple of {dtype.itemsize}, the bytes of {dtype}",
    )
    elements = values.allocate(int(offsets[-1]) // dtype.itemsize, dtype)
    values.copy(offsets, elements)
    return Ragged(elements, offsets // dtype.itemsize, None, shapes)


def _gather_arrays(values: _VariableColumn) -> RawColumn:
    """Gather arrays with headers: as a Ragged if ranks and dtypes agree, otherwise as objects."""
    encoding, n = values.field.encoding, len(values.ids)
    has_code = int(encoding.dtype == object)  # headers then begin with the code of a dtype
    item_dtype = storage_dtype(encoding.dtype) or encoding.dtype
    # Without a stored code, only the size of an element matters to the kernel.
    codes = np.full(n, 0 if has_code else _UNSIGNED_CODES[item_dtype.itemsize], np.int64)
    header_sizes, ndims = np.zeros((2, n), np.int64)
    start = 0
    for address, nbytes in values.spans:
        stop = start + len(address)
        status = kernels.read_array_headers.for_size(len(address))(
            address, nbytes, has_code, _ITEMSIZES,
            codes[start:stop], header_sizes[start:stop], ndims[start:stop],
        )  # fmt: skip
        if status < 0:
            is_wrong = np.arange(n) == start - 1 - status  # status is -1 - k for row k of the block
            values.raise_if(is_wrong, f"they are not an array of {encoding.name!r}")
        start = stop
    if n == 0:
        offsets = _offsets_from_lengths(header_sizes)
        return np.empty(0, object) if has_code else Ragged(np.empty(0, encoding.dtype), offsets)
    if (codes != codes[0]).any() or (ndims != ndims[0]).any():
        return _gather_objects(values)
    shapes = None
    if ndims[0] > 1 or encoding.dtype.kind == "c":
        shapes = np.empty((n, int(ndims[0])), np.int64)
        address = np.concatenate([addresses for addresses, _ in values.spans])
        kernels.read_array_shapes.for_size(n)(address, has_code, shapes)
        if encoding.dtype.kind == "c":
            is_wrong = (shapes[:, -1] != _COMPLEX_PARTS) | (ndims == 1)
            values.raise_if(is_wrong, f"{encoding.dtype} takes a last axis of {_COMPLEX_PARTS}")
            shapes = shapes[:, :-1] if ndims[0] > 2 else None
    # From here on, the spans hold the elements only, without the headers.
    start = 0
    for span in values.spans:
        stop = start + span.shape[1]
        span[0] += header_sizes[start:stop]
        span[1] -= header_sizes[start:stop]
        start = stop
    lengths = values.lengths
    dtype = DTYPE_CODES[int(codes[0])] if has_code else encoding.dtype
    return _gather_elements(values, lengths, _offsets_from_lengths(lengths), dtype, shapes)


def _gather_objects(values: _VariableColumn) -> AnyArray:
    """Decode arrays one by one, because they differ in dtype or rank."""
    column = np.empty(len(values.ids), object)
    decode = values.field.encoding.decode
    row = 0
    for block in values.spans:
        for address, nbytes in block.T.tolist():
            column[row] = decode(ctypes.string_at(address, nbytes))
            row += 1
    return column


def find_bodies(fetcher: Fetcher, plan: Plan, ids: Int64) -> dict[str, Bodies]:
    """Locate the stored bytes of columns, for a writer to copy.

    Parameters
    ----------
    fetcher : Fetcher
    plan : Plan
        A plan of whole columns, none of them computed. If it has no columns, no shard is read.
    ids : ndarray of int64, shape (n,)
        Sample numbers, in any order, with duplicates.
    """
    from npstream.writing.shard import Bodies

    index = fetcher.index
    if not plan.fields:
        return {}
    if len(index.schemas) <= 1:
        return _find_schema_bodies(fetcher, 0, plan, ids)
    schema_ids = index.schema_ids[np.searchsorted(index.starts, ids, side="right") - 1]
    owners: list[object] = []
    spans = {field.name: np.empty((2, len(ids)), np.int64) for field in plan.fields}
    for schema in np.unique(schema_ids).tolist():
        rows = np.flatnonzero(schema_ids == schema)
        for name, part in _find_schema_bodies(fetcher, schema, plan, ids[rows]).items():
            spans[name][:, rows] = part.address, part.nbytes
            owners.append(part.owner)
    return {name: Bodies(address, nbytes, owners) for name, (address, nbytes) in spans.items()}


def _find_schema_bodies(fetcher: Fetcher, schema: int, plan: Plan, ids: Int64) -> dict[str, Bodies]:
    """Locate the stored bytes of columns of samples that all have one schema."""
    from npstream.writing.shard import Bodies

    layout = fetcher.layouts[schema] if fetcher.layouts else None
    if layout is None:
        return _encode_lines(fetcher, schema, plan, ids)
    address, nbytes, owner = fetcher.locate_and_prefetch(ids)
    sizes = _read_sizes(fetcher, layout, ids, address, nbytes)
    encodings = {field.name: field.encoding for field in plan.fields}
    bodies, body_address = {}, address + 4 * layout.nvariable
    for name, column in layout.columns.items():
        if column.size is None:
            size = sizes[:, column.variable_before].astype(np.int64)
        else:
            size = np.full(len(ids), column.size, np.int64)
        if name in encodings:
            bodies[name] = Bodies(body_address, size, owner)
        body_address = body_address + size
    _check_sizes(fetcher, ids, body_address != address + nbytes)
    for name, encoding in encodings.items():
        if encoding.size is not None:
            begin, size = bodies[name].address, bodies[name].nbytes
            values = _VariableColumn(fetcher, Field(name, encoding), ids, [np.stack((begin, size))])
            values.raise_if(size != encoding.size, f"{encoding.name!r} takes {encoding.size}")
    return {name: bodies[name] for name in encodings}


def _read_sizes(
    fetcher: Fetcher, layout: SampleLayout, ids: Int64, address: Int64, nbytes: Int64
) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """Return the sizes of the variable columns of samples, shape (n, variable columns)."""
    _check_sizes(fetcher, ids, nbytes < 4 * layout.nvariable + layout.fixed_nbytes)
    sizes = np.empty((len(ids), layout.nvariable), "<u4")
    header = np.full(len(ids), 4 * layout.nvariable, np.int64)
    offsets = header * np.arange(len(ids))
    copy_spans.for_size(len(ids))(address, header, offsets, memory.address_of(sizes))
    return sizes


def find_samples(fetcher: Fetcher, ids: Int64) -> Bodies:
    """Locate whole samples, for a writer to copy; check that the sizes of columns add up.

    Lines of text are checked to be whole lines.

    Parameters
    ----------
    fetcher : Fetcher
    ids : ndarray of int64, shape (n,)
        Sample numbers, in any order, with duplicates.
    """
    from npstream.writing.shard import Bodies

    index = fetcher.index
    address, nbytes, owner = fetcher.locate_and_prefetch(ids)
    schema_ids = index.schema_ids[np.searchsorted(index.starts, ids, side="right") - 1]
    for schema in np.unique(schema_ids).tolist():
        rows = slice(None) if len(index.schemas) == 1 else np.flatnonzero(schema_ids == schema)
        row_ids, begins, lengths = ids[rows], address[rows], nbytes[rows]
        layout = fetcher.layouts[schema]
        if layout is None:
            _check_lines(fetcher, index.schemas[schema], row_ids, begins, lengths)
        else:
            sizes = _read_sizes(fetcher, layout, row_ids, begins, lengths)
            total = sizes.sum(axis=1, dtype=np.int64) + 4 * layout.nvariable + layout.fixed_nbytes
            _check_sizes(fetcher, row_ids, total != lengths)
    return Bodies(address, nbytes, owner)


def _check_lines(
    fetcher: Fetcher, schema: Schema, ids: Int64, address: Int64, nbytes: Int64
) -> None:
    """Raise FormatError unless each span is one whole line."""
    guard = text.guard_nbytes(schema)  # bytes of the newline before an XSV line; 0 for JSONL
    for sample, begin, length in zip(ids.tolist(), address.tolist(), nbytes.tolist(), strict=True):
        if not text.is_complete_line(schema, ctypes.string_at(begin - guard, length + guard)):
            fetcher.raise_damaged(sample, "it is not one whole line")


def _check_sizes(fetcher: Fetcher, ids: Int64, is_wrong: Bools) -> None:
    """Raise FormatError for the first sample where `is_wrong` is True."""
    if is_wrong.any():
        sample = int(ids[int(is_wrong.argmax())])
        fetcher.raise_damaged(sample, "the sizes of its columns do not add up to its length")


def _encode_lines(fetcher: Fetcher, schema: int, plan: Plan, ids: Int64) -> dict[str, Bodies]:
    """Encode columns of samples that are lines of text."""
    from npstream.writing.shard import Bodies

    bodies = {}
    for name, values in read_lines(fetcher, schema, [f.name for f in plan.fields], ids).items():
        encode = next(f.encoding.encode for f in plan.fields if f.name == name)
        encoded = []
        for sample, value in zip(ids.tolist(), values, strict=True):
            try:
                encoded.append(encode(value))
            except (ValueError, OverflowError) as error:
                where = fetcher.shards.describe(sample)
                raise type(error)(f"{where}: column {name!r}: {error}") from None
        bodies[name] = Bodies.from_list(encoded)
    return bodies


def column_bodies(column: AnyArray | Ragged) -> Bodies:
    """Return the stored bytes of a gathered column's rows, for a writer to copy."""
    from npstream.writing.shard import Bodies

    if isinstance(column, Ragged):
        return Bodies.from_offsets(column.values, column.offsets)
    rows = np.ascontiguousarray(column)
    size = rows.dtype.itemsize * prod(rows.shape[1:])
    offsets = np.arange(len(rows) + 1, dtype=np.int64) * size
    return Bodies.from_offsets(rows.reshape(-1).view(np.uint8), offsets)


def equal_text(fetcher: Fetcher, plan: Plan, ids: Int64, value: bytes) -> Bools:
    """Return True where the bytes of a stored column equal `value`; see `apply_to_spans`."""
    equal = np.zeros(len(ids), bool)
    pattern = np.frombuffer(value, np.uint8)

    def compare(address: Int64, nbytes: Int64, block: Bools) -> None:
        kernel = equal_spans.for_size(len(block))
        kernel(address, nbytes, memory.address_of(pattern), len(pattern), block)

    apply_to_spans(fetcher, plan, ids, compare, equal)
    return equal


SpanFunction = Callable[[Int64, Int64, Any], None]
"""Takes the addresses and the sizes of values, and the array of their results to fill."""


def apply_to_spans(
    fetcher: Fetcher, plan: Plan, ids: Int64, function: SpanFunction, results: AnyArray
) -> None:
    """Call a function on the bytes of a stored column of text or bytes.

    The bytes are not copied if the dataset has only one schema, and its format is MDS.

    Parameters
    ----------
    fetcher : Fetcher
    plan : Plan
        A plan of one column.
    ids : ndarray of int64, shape (n,)
        Sample numbers, in any order, with duplicates.
    function : callable
        A `SpanFunction`, called for each block of rows.
    results : ndarray, shape (n,)
        The results to fill.
    """
    layout = fetcher.layouts[0] if len(fetcher.layouts) == 1 else None
    for start in range(0, len(ids), KERNEL_ROWS):
        block_ids = ids[start : start + KERNEL_ROWS]
        block = results[start : start + KERNEL_ROWS]
        if layout is not None:
            words, owner = fetcher.read(block_ids, plan.split(0, layout).columns, 1)
            address, nbytes = kernels.value_spans(words, len(block_ids), 1)
            function(address, nbytes, block)
            del owner  # the addresses were in use until here
        else:
            apply_to_ragged(_as_ragged(*gather(fetcher, plan, block_ids).values()), function, block)


def apply_to_ragged(column: Ragged, function: SpanFunction, results: AnyArray) -> None:
    """Call a function on the bytes of a column's rows; see `apply_to_spans`."""
    function(memory.address_of(column.values) + column.offsets[:-1], column.lengths, results)


def _as_ragged(column: RawColumn) -> Ragged:
    if isinstance(column, Ragged):
        return column
    return Ragged.from_list([text.encode("utf-8", "surrogatepass") for text in column])


def _offsets_from_lengths(lengths: Int64) -> Int64:
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def read_lines(
    fetcher: Fetcher, schema: int, names: Sequence[str], ids: Int64
) -> dict[str, list[Any]]:
    """Read columns of samples that are lines of text, as lists of values.

    Parameters
    ----------
    fetcher : Fetcher
    schema : int
        The schema of all samples, by its number in the index.
    names : sequence of str
        The columns.
    ids : ndarray of int64, shape (n,)
    """
    columns: dict[str, list[Any]] = {name: [] for name in names}
    if len(ids) == 0:
        return columns
    address, nbytes, owner = fetcher.locate(ids)
    parse = line_parser(fetcher, schema, names)
    guard = text.guard_nbytes(fetcher.index.schemas[schema])
    for sample, begin, length in zip(ids.tolist(), address.tolist(), nbytes.tolist(), strict=True):
        values = parse(sample, ctypes.string_at(begin - guard, length + guard))
        for name, column in columns.items():
            column.append(values[name])
    del owner  # the addresses were in use until here
    return columns


def line_parser(
    fetcher: Fetcher, schema: int, names: Sequence[str]
) -> Callable[[int, bytes], dict[str, Any]]:
    """Return a function that parses a sample, given its number and its line.

    The line begins with its guard bytes, see `text.guard_nbytes`: for XSV the newline that ends the
    previous line, for JSONL none.
    """
    text_schema = fetcher.index.schemas[schema]
    parse = text.parser(text_schema, names)
    guard_bytes = text_schema.newline.encode()[: text.guard_nbytes(text_schema)]

    def parse_checked(sample: int, line: bytes) -> dict[str, Any]:
        try:
            if not line.startswith(guard_bytes):
                raise FormatError("it does not begin where a line ends")
            return parse(line[len(guard_bytes) :])
        except ValueError as error:
            fetcher.raise_damaged(sample, str(error), error)

    return parse_checked
