"""From sample numbers to columns: read, split and gather, one allocation a column.

A column is gathered *as stored*: an ndarray where all values take the same bytes, a Ragged of
bytes or array elements where they vary, a list where the format is text, an object array where
arrays differ in rank or dtype. `npstream.reading.decode` makes of that what batches and samples
hold.

Tested in tests/end_to_end/test_laws.py.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

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
from npstream.reading.plan import Field, PartialRead, Plan, SampleSplit
from npstream.shards import kernels
from npstream.storage.deadlines import shared_deadline
from npstream.writing.shard import Bodies

if TYPE_CHECKING:
    from npstream.shards.table import Fetcher

RawColumn = AnyArray | Ragged | list[Any]

KERNEL_ROWS = 1 << 16
"""Rows a kernel call, so that its tables of addresses stay in the processor's cache."""

_ITEMSIZES = np.zeros(256, np.int64)
for _code, _dtype in DTYPE_CODES.items():
    _ITEMSIZES[_code] = _dtype.itemsize
_UNSIGNED = {dtype.itemsize: code for code, dtype in DTYPE_CODES.items() if dtype.kind == "u"}
_COMPLEX_PARTS = 2
"""Numbers that store a complex one, along an axis of their own."""


class Lookup(NamedTuple):
    """Rows of a source, and what they are in the index.

    Attributes
    ----------
    rows : ndarray of int64, shape (n,)
        The numbers by which a source's users know its samples.
    samples : ndarray of int64, shape (n,)
        The numbers by which the index knows them; `rows` itself where these are the same.
    is_prefetched : bool, default: False
        Whether the pages that the samples lie in were asked for.
    """

    rows: Int64
    samples: Int64
    is_prefetched: bool = False


def gather(
    fetcher: Fetcher,
    plan: Plan,
    ids: Int64,
    out: Mapping[str, AnyArray] | None = None,
    is_prefetched: bool = False,
) -> dict[str, RawColumn]:
    """Read columns of samples, as stored.

    Parameters
    ----------
    fetcher : Fetcher
    plan : Plan
        Of columns that are stored. If it has none, no shard is touched.
    ids : ndarray of int64, shape (n,)
        Sample numbers, in any order, duplicates kept.
    out : mapping of str to ndarray, optional
        C-contiguous arrays of a fixed column's dtype and shape, to be filled and returned.
    is_prefetched : bool, default: False
        Whether the pages that the samples lie in were asked for.
    """
    index = fetcher.index
    if plan.is_empty:
        return {f.name: (out or {}).get(f.name, f.allocate(len(ids))) for f in plan.fields}
    if len(index.schemas) <= 1:
        return _gather_schema(fetcher, 0, plan, ids, out or {}, is_prefetched)
    shards = np.searchsorted(index.starts, ids, side="right") - 1
    schema_ids = index.schema_ids[shards]
    present = np.unique(schema_ids).tolist()
    if len(present) <= 1:
        schema = present[0] if present else 0
        return _gather_schema(fetcher, schema, plan, ids, out or {}, is_prefetched)
    rows = [np.flatnonzero(schema_ids == schema) for schema in present]
    # Those of one size are read end to end, so that no more than their order remains to be made.
    fixed = {f.name: f.allocate(len(ids)) for f in plan.fields if f.encoding.kind == "fixed"}
    pieces, start = [], 0
    for schema, mine in zip(present, rows, strict=True):
        stop = start + len(mine)
        parts = {name: whole[start:stop] for name, whole in fixed.items()}
        pieces.append(_gather_schema(fetcher, schema, plan, ids[mine], parts, is_prefetched))
        start = stop
    order = np.argsort(np.concatenate(rows), kind="stable")
    return {
        f.name: _merge([piece[f.name] for piece in pieces], order, fixed.get(f.name))
        for f in plan.fields
    }


def _merge(pieces: list[RawColumn], order: Int64, joined: AnyArray | None) -> RawColumn:
    """Put the pieces of a column, which may be joined already, in order."""
    arrays = [piece for piece in pieces if isinstance(piece, np.ndarray)]
    if len(arrays) == len(pieces):
        whole: AnyArray = np.concatenate(arrays) if joined is None else joined
        return whole[order]
    texts = [piece for piece in pieces if isinstance(piece, Ragged) and piece.kind is not None]
    if len(texts) == len(pieces):
        values = np.concatenate([piece.values for piece in texts])
        lengths = np.concatenate([piece.lengths for piece in texts])
        merged: Ragged = Ragged(values, _offsets_from_lengths(lengths), texts[0].kind)[order]
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
    layout = fetcher.layouts[schema] if fetcher.layouts else None
    if layout is None:
        return dict(read_lines(fetcher, schema, [f.name for f in plan.fields], ids))
    split = plan.split(schema, layout)
    columns: dict[str, Any] = {}
    blocks: list[Int64] = []
    held: list[object] = []  # the spans are in use until the end
    fixed = split.arguments.fixed.copy()
    for place, f in enumerate(split.fixed):
        column = out.get(f.name)
        if column is None:
            column = f.allocate(len(ids))
        columns[f.name] = column
        fixed[place, 3] = memory.writable_address(column)
    partial_read = plan.partial_read(schema, layout) if fetcher.remotes and len(ids) else None
    # If parts of samples are read, no column varies in size.
    if partial_read is None or not _copy_parts(fetcher, split, partial_read, ids, columns):
        for start in range(0, len(ids), KERNEL_ROWS):
            part = ids[start : start + KERNEL_ROWS]
            spans, holder = fetcher.read(part, split.arguments, fixed, is_prefetched)
            blocks.append(spans)
            held.append(holder)
            if len(part) < len(ids):
                fixed[:, 3] += len(part) * fixed[:, 2]
    for f in split.opaque:
        columns[f.name] = _rows_of_bytes(columns[f.name])
    for place, f in enumerate(split.variable):
        values = _VariableColumn(fetcher, f, ids, [block[place] for block in blocks])
        columns[f.name] = _gather_spans(values, out.get(f.name))
    del held
    return columns


def _copy_parts(
    fetcher: Fetcher,
    split: SampleSplit,
    partial_read: PartialRead,
    ids: Int64,
    columns: dict[str, AnyArray],
) -> bool:
    """Copy columns of one size if some samples are read in part, as that is cheaper.

    The other samples are read whole, after that.

    Returns
    -------
    bool
        False if none is read in part. Nothing is copied then.
    """
    is_left = np.ones(len(ids), bool)
    with shared_deadline():
        parts = fetcher.read_parts(ids, partial_read.byte_ranges)
        if not parts:
            return False
        for rows, which, values in parts:
            is_left[rows] = False
            in_order = len(rows) == len(values) == len(ids) and bool((np.diff(which) == 1).all())
            for name, pieces in partial_read.copies.items():
                target = columns[name].reshape(len(ids), -1).view(np.uint8)
                for at, to, nbytes in pieces:
                    found = values[:, at : at + nbytes]
                    if in_order:  # no copy on the way
                        target[:, to : to + nbytes] = found
                    else:
                        target[rows, to : to + nbytes] = found[which]
        rows = np.flatnonzero(is_left)
        for start in range(0, len(rows), KERNEL_ROWS):
            chosen, fixed = rows[start : start + KERNEL_ROWS], split.arguments.fixed.copy()
            block = {f.name: f.allocate(len(chosen)) for f in split.fixed}
            for place, f in enumerate(split.fixed):
                fixed[place, 3] = memory.writable_address(block[f.name])
            fetcher.read(ids[chosen], split.arguments, fixed)
            for name, column in block.items():
                columns[name][chosen] = column
    return True


def _rows_of_bytes(column: AnyArray) -> Ragged:
    """Return values of one size whose meaning is not an array's as rows of bytes."""
    n, size = column.shape
    return Ragged(column.reshape(-1), np.arange(n + 1, dtype=np.int64) * size, "bytes")


@dataclass(slots=True)
class _VariableColumn:
    """The values of a variable column, found in blocks of rows, not yet gathered."""

    fetcher: Fetcher
    field: Field
    ids: Int64
    spans: list[Int64]  # of shape (2, rows): addresses, lengths

    @property
    def lengths(self) -> Int64:
        """Bytes of each value."""
        return np.concatenate([nbytes for _, nbytes in self.spans] or [np.empty(0, np.int64)])

    def allocate(self, elements: int, dtype: np.dtype[Any]) -> AnyArray:
        """Return a new array for the elements of all values."""
        nbytes, rows = elements * dtype.itemsize, len(self.ids)
        memory.ensure_fits(nbytes, "rows ({:,}) of column {!r}", rows, self.field.name)
        return np.empty(elements, dtype)

    def copy(self, offsets: Int64, destination: AnyArray) -> None:
        """Copy each value to its offset, in bytes."""
        start, base = 0, memory.address_of(destination)
        for address, nbytes in self.spans:
            stop = start + len(address)
            copy = copy_spans.for_size(len(address))
            copy(address, nbytes, offsets[start:stop], base)
            start = stop

    def raise_if(self, wrong: AnyArray, what: str) -> None:
        """Raise FormatError for the first row that is wrong, if any is."""
        if wrong.any():
            k = int(wrong.argmax())
            nbytes = int(self.lengths[k])
            self.fetcher.raise_damaged(
                int(self.ids[k]),
                f"column {self.field.name!r} has {quantity(nbytes, 'byte')}; {what}",
            )


def _gather_spans(values: _VariableColumn, out: AnyArray | None) -> RawColumn:
    """Gather the values of a variable column in the form that its encoding asks for."""
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
    return Ragged(data, offsets, encoding.kind if encoding.kind in _TEXT_KINDS else "bytes")


_TEXT_KINDS = ("str", "bytes", "image")


def _gather_declared_fixed(
    values: _VariableColumn, lengths: Int64, out: AnyArray | None
) -> AnyArray:
    """Gather a column that is stored as variable and was declared to be fixed."""
    field, encoding = values.field, values.field.encoding
    assert encoding.size is not None
    values.raise_if(lengths != encoding.size, f"{encoding.name!r} takes {encoding.size}")
    first, last = (field.part.first, field.part.stop) if field.part else (0, encoding.size)
    values.spans = [
        np.stack((at + first, np.full_like(at, last - first))) for at, _ in values.spans
    ]
    column = field.allocate(len(lengths)) if out is None else out
    values.copy(np.arange(len(lengths), dtype=np.int64) * (last - first), column)
    return column


def _gather_elements(
    values: _VariableColumn,
    lengths: Int64,
    offsets: Int64,
    dtype: np.dtype[Any],
    shapes: Int64 | None = None,
) -> Ragged:
    """Gather rows of array elements into one array of them."""
    values.raise_if(lengths % dtype.itemsize != 0, f"that is no multiple of {dtype}")
    elements = values.allocate(int(offsets[-1]) // dtype.itemsize, dtype)
    values.copy(offsets, elements)
    return Ragged(elements, offsets // dtype.itemsize, None, shapes)


def _gather_arrays(values: _VariableColumn) -> RawColumn:
    """Gather arrays that say their own shape, and maybe dtype: a Ragged where they agree."""
    encoding, n = values.field.encoding, len(values.ids)
    typed = int(encoding.dtype == object)
    number = storage_dtype(encoding.dtype) or encoding.dtype
    # All numbers of one size have their heads read alike.
    codes = np.full(n, 0 if typed else _UNSIGNED[number.itemsize], np.int64)
    heads, ndims = np.zeros((2, n), np.int64)
    start = 0
    for address, nbytes in values.spans:
        stop = start + len(address)
        code = kernels.read_array_headers.for_size(len(address))(
            address, nbytes, typed, _ITEMSIZES,
            codes[start:stop], heads[start:stop], ndims[start:stop],
        )  # fmt: skip
        if code < 0:
            wrong = np.arange(n) == start - 1 - code
            values.raise_if(wrong, f"they are no array of {encoding.name!r}")
        start = stop
    if n == 0:
        return (
            np.empty(0, object)
            if typed
            else Ragged(np.empty(0, encoding.dtype), _offsets_from_lengths(heads))
        )
    if (codes != codes[0]).any() or (ndims != ndims[0]).any():
        return _gather_objects(values)
    shapes = None
    if ndims[0] > 1 or encoding.dtype.kind == "c":
        shapes = np.empty((n, int(ndims[0])), np.int64)
        address = np.concatenate([at for at, _ in values.spans])
        kernels.read_array_shapes.for_size(n)(address, typed, shapes)
        if encoding.dtype.kind == "c":
            wrong = (shapes[:, -1] != _COMPLEX_PARTS) | (ndims == 1)
            values.raise_if(wrong, f"{encoding.dtype} takes a last axis of {_COMPLEX_PARTS}")
            shapes = shapes[:, :-1] if ndims[0] > _COMPLEX_PARTS else None
    start = 0
    for span in values.spans:
        stop = start + span.shape[1]
        span[0] += heads[start:stop]
        span[1] -= heads[start:stop]
        start = stop
    lengths = values.lengths
    dtype = DTYPE_CODES[int(codes[0])] if typed else encoding.dtype
    return _gather_elements(values, lengths, _offsets_from_lengths(lengths), dtype, shapes)


def _gather_objects(values: _VariableColumn) -> AnyArray:
    """Decode arrays that differ in dtype or rank one by one."""
    column = np.empty(len(values.ids), object)
    decode = values.field.encoding.decode
    row = 0
    for block in values.spans:
        for address, nbytes in block.T.tolist():
            column[row] = decode(ctypes.string_at(address, nbytes))
            row += 1
    return column


def find_bodies(fetcher: Fetcher, plan: Plan, ids: Int64) -> dict[str, Bodies]:
    """Find columns of samples as they are stored, to be copied.

    Parameters
    ----------
    fetcher : Fetcher
    plan : Plan
        Of whole columns that are stored. If it has none, no shard is touched.
    ids : ndarray of int64, shape (n,)
        Sample numbers, in any order, duplicates kept.
    """
    index = fetcher.index
    if not plan.fields:
        return {}
    if len(index.schemas) <= 1:
        return _find_schema_bodies(fetcher, 0, plan, ids)
    schema_ids = index.schema_ids[np.searchsorted(index.starts, ids, side="right") - 1]
    held: list[object] = []
    spans = {field.name: np.empty((2, len(ids)), np.int64) for field in plan.fields}
    for schema in np.unique(schema_ids).tolist():
        rows = np.flatnonzero(schema_ids == schema)
        for name, part in _find_schema_bodies(fetcher, schema, plan, ids[rows]).items():
            spans[name][:, rows] = part.address, part.nbytes
            held.append(part.held)
    return {name: Bodies(address, nbytes, held) for name, (address, nbytes) in spans.items()}


def _find_schema_bodies(fetcher: Fetcher, schema: int, plan: Plan, ids: Int64) -> dict[str, Bodies]:
    layout = fetcher.layouts[schema] if fetcher.layouts else None
    if layout is None:
        return _encode_lines(fetcher, schema, plan, ids)
    address, nbytes, held = fetcher.locate_and_prefetch(ids)
    _check_sizes(fetcher, ids, nbytes < 4 * layout.nvariable + layout.nfixed)
    sizes = np.empty((len(ids), layout.nvariable), "<u4")
    head = np.full(len(ids), 4 * layout.nvariable, np.int64)
    copy_spans.for_size(len(ids))(
        address, head, head * np.arange(len(ids)), memory.address_of(sizes)
    )
    wanted = {field.name: field.encoding for field in plan.fields}
    found, at = {}, address + head
    for name, place in layout.columns.items():
        if place.size is None:
            size = sizes[:, place.variable_before].astype(np.int64)
        else:
            size = np.full(len(ids), place.size, np.int64)
        if name in wanted:
            found[name] = Bodies(at, size, held)
        at = at + size
    _check_sizes(fetcher, ids, at != address + nbytes)
    for name, encoding in wanted.items():
        if encoding.size is not None:
            _VariableColumn(
                fetcher, Field(name, encoding), ids, [np.stack((address, found[name].nbytes))]
            ).raise_if(
                found[name].nbytes != encoding.size, f"{encoding.name!r} takes {encoding.size}"
            )
    return {name: found[name] for name in wanted}


def _check_sizes(fetcher: Fetcher, ids: Int64, wrong: Bools) -> None:
    """Raise FormatError for the first sample whose parts do not fit."""
    if wrong.any():
        sample = int(ids[int(wrong.argmax())])
        fetcher.raise_damaged(sample, "the sizes of its columns do not add up to its own")


def _encode_lines(fetcher: Fetcher, schema: int, plan: Plan, ids: Int64) -> dict[str, Bodies]:
    """Encode columns of samples that are lines of text."""
    found = {}
    for name, values in read_lines(fetcher, schema, [f.name for f in plan.fields], ids).items():
        encode = next(f.encoding.encode for f in plan.fields if f.name == name)
        bodies = []
        for sample, value in zip(ids.tolist(), values, strict=True):
            try:
                bodies.append(encode(value))
            except (ValueError, OverflowError) as error:
                where = fetcher.shards.describe(sample)
                raise type(error)(f"{where}: column {name!r}: {error}") from None
        found[name] = Bodies.of_list(bodies)
    return found


def column_bodies(column: AnyArray | Ragged) -> Bodies:
    """Return the rows of a gathered column as what is stored of them, to be copied."""
    if isinstance(column, Ragged):
        return Bodies.of(column.values, column.offsets)
    rows = np.ascontiguousarray(column)
    size = rows.dtype.itemsize * prod(rows.shape[1:])
    ends = np.arange(len(rows) + 1, dtype=np.int64) * size
    return Bodies.of(rows.reshape(-1).view(np.uint8), ends)


def equal_text(fetcher: Fetcher, plan: Plan, ids: Int64, value: bytes) -> Bools:
    """Compare the bytes of one stored column's values with `value`, without copying them."""
    equal = np.zeros(len(ids), bool)
    wanted = np.frombuffer(value, np.uint8)
    layout = fetcher.layouts[0] if len(fetcher.layouts) == 1 else None
    for start in range(0, len(ids), KERNEL_ROWS):
        part = ids[start : start + KERNEL_ROWS]
        held: object
        if layout is not None:
            how = plan.split(0, layout).arguments
            found, held = fetcher.read(part, how, how.fixed)
            address, nbytes = found[0]
        else:
            column = _as_ragged(*gather(fetcher, plan, part).values())
            held = column
            address, nbytes = memory.address_of(column.values) + column.offsets[:-1], column.lengths
        equal_spans.for_size(len(part))(
            address,
            nbytes,
            memory.address_of(wanted),
            len(wanted),
            equal[start : start + KERNEL_ROWS],
        )
        del held  # the addresses were in use until here
    return equal


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
    """Read columns of samples, all of one schema, as lists of their values.

    Parameters
    ----------
    fetcher : Fetcher
    schema : int
        The number of the schema in the index.
    names : sequence of str
        The columns.
    ids : ndarray of int64, shape (n,)
    """
    columns: dict[str, list[Any]] = {name: [] for name in names}
    if len(ids) == 0:
        return columns
    address, nbytes, held = fetcher.locate(ids)
    parse = line_parser(fetcher, schema, names)
    guard = text.guard(fetcher.index.schemas[schema])
    for sample, at, length in zip(ids.tolist(), address.tolist(), nbytes.tolist(), strict=True):
        values = parse(sample, ctypes.string_at(at - guard, length + guard))
        for name, column in columns.items():
            column.append(values[name])
    del held  # the addresses were in use until here
    return columns


def line_parser(
    fetcher: Fetcher, schema: int, names: Sequence[str]
) -> Callable[[int, bytes], dict[str, Any]]:
    """Return a function that parses a sample's line, preceded by `text.guard` bytes."""
    layout = fetcher.index.schemas[schema]
    parse = text.parser(layout, names)
    newline = layout.newline.encode()[: text.guard(layout)]

    def checked(sample: int, line: bytes) -> dict[str, Any]:
        try:
            if not line.startswith(newline):
                raise FormatError("it does not begin where a line ends")
            return parse(line[len(newline) :])
        except ValueError as error:
            fetcher.raise_damaged(sample, str(error), error)

    return checked
