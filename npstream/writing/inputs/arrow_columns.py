"""Arrow tables and arrays as columns to write.

Numbers and text are read from Arrow's buffers, block by block. Values become Python objects only if
they are stored as JSON, or if the user chose an encoding that needs a conversion of text or bytes.

Tested in tests/writing/test_arrow_tables.py.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from npstream._core import array_like
from npstream._core.arguments import quantity
from npstream._core.dtypes import convert_exactly
from npstream._core.memory import address_of
from npstream._core.optional import import_optional
from npstream._core.typing import AnyArray, Bools, Int64
from npstream.formats.encodings.encodings import Encoding, column_type, parse, type_of_array
from npstream.writing.inputs.fill import NO_FILL, Fill
from npstream.writing.shard import Bodies, ColumnBlock, bodies_of_rows
from npstream.writing.tables import Bounds, RowError, convert_rows, missing_advice, nan_mask

__all__ = ["ArrowColumn", "arrow_encoding"]

_LEAVE_OUT = "or leave the column out: columns= names those to write"


class ArrowColumn:
    """An Arrow array, read from its buffers block by block.

    Parameters
    ----------
    array : pyarrow.Array or pyarrow.ChunkedArray
    fill : Fill
        Replaces nulls. It also replaces NaN and NaT if the target encoding cannot store them.
    source_encoding : str, optional
        The encoding of the column; by default that of the Arrow type.
    """

    def __init__(
        self, array: Any, fill: Fill = NO_FILL, source_encoding: str | None = None
    ) -> None:
        self.length = len(array)
        self.row_bytes: int | None = _total_bytes(array) // max(self.length, 1)
        self.chunk = 1
        self._array, self._fill, self._source_encoding = array, fill, source_encoding
        self._arrow_type = plain_type(array.type)
        self.is_array = _is_array(self._arrow_type)

    def encoding(self) -> Encoding:
        """Return the encoding of the Arrow type."""
        if self._source_encoding is not None:
            return column_type(self._source_encoding)
        if self._fill and import_optional("pyarrow.types", "pyarrow", "arrow").is_null(
            self._arrow_type
        ):
            return self._fill.encoding()
        return arrow_encoding(self._arrow_type)

    def check(self) -> None:
        """Raise RowError if there are nulls and no fill.

        The nulls of a nested type do not raise, because JSON can store them.
        """
        if not self._fill and not _is_nested(self._arrow_type) and self._array.null_count:
            raise _null_error(self._array, self._array.null_count)

    def blocks(self, bounds: Bounds, target: Encoding) -> Iterator[ColumnBlock]:
        """Yield blocks of rows: arrays, encoded values or Python values."""
        for start, stop in bounds:
            part = self._array.slice(start, stop - start)
            try:
                yield self._block(plain(part), target)
            except RowError as error:
                error.row += start
                raise

    def _block(self, part: Any, target: Encoding) -> ColumnBlock:
        missing = _nulls(part)
        if missing.any() and not self._fill:
            if target.kind != "object" or not _is_nested(self._arrow_type):
                raise _null_error(part, int(missing.sum()))
            missing[:] = False  # JSON has a null
        rows = _convert(part, missing, target, self._fill)
        return self._fill.block(rows, missing, target) if self._fill else rows


def arrow_encoding(arrow_type: Any) -> Encoding:
    """Return the encoding of an Arrow type.

    Raises
    ------
    TypeError
        If there is none.
    """
    types = import_optional("pyarrow.types", "pyarrow", "arrow")
    arrow_type = plain_type(arrow_type)
    if (text := _text_encoding(arrow_type)) is not None:
        return parse(text)
    if _is_ragged(arrow_type):
        return column_type(f"ndarray:{_empty_array(arrow_type.value_type).dtype.name}")
    if _is_array(arrow_type):
        empty = _empty_array(arrow_type)
        return type_of_array(empty.dtype, empty.shape[1:])
    if _is_nested(arrow_type):
        if (leaf := _first_non_json_type(arrow_type)) is not None:
            fix = "cast its values to a type that JSON supports"
            if types.is_struct(arrow_type):
                fix = "make each field a column of its own, as with table.flatten()"
            raise TypeError(
                f"Arrow's {arrow_type} would become JSON, which cannot store {leaf}: {fix}, "
                f"{_LEAVE_OUT}"
            )
        return parse("json")
    if types.is_time(arrow_type) or types.is_interval(arrow_type):
        raise TypeError(
            f"no encoding follows from Arrow's {arrow_type}: cast the column to int64 or string, "
            f"{_LEAVE_OUT}"
        )
    raise TypeError(
        f"no encoding follows from Arrow's {arrow_type}: cast the column to a type of numbers, "
        f"text or bytes, {_LEAVE_OUT}"
    )


def plain_type(arrow_type: Any) -> Any:
    """Return the type of an array after `plain` has decoded it.

    Dictionaries and run-end encodings become their values, and list views become lists. Tensors
    stay. Of the other extension types, ``arrow.bool8`` becomes bool, and the rest become their
    storage types. All other types stay.
    """
    pa = import_optional("pyarrow", "pyarrow", "arrow")
    types = pa.types
    while True:
        if types.is_dictionary(arrow_type) or types.is_run_end_encoded(arrow_type):
            arrow_type = arrow_type.value_type
        elif types.is_list_view(arrow_type) or types.is_large_list_view(arrow_type):
            return pa.large_list(arrow_type.value_type)
        elif isinstance(arrow_type, pa.BaseExtensionType) and not _is_tensor(arrow_type):
            if getattr(arrow_type, "extension_name", "") == "arrow.bool8":
                return pa.bool_()
            arrow_type = arrow_type.storage_type
        else:
            return arrow_type


def plain(array: Any) -> Any:
    """Return an Arrow array as one chunk of `plain_type`."""
    pa = import_optional("pyarrow", "pyarrow", "arrow")
    if isinstance(array, pa.ChunkedArray):
        array = _one_chunk(array)
    while isinstance(array, pa.ExtensionArray) and not _is_tensor(array.type):
        is_bool = getattr(array.type, "extension_name", "") == "arrow.bool8"
        array = array.storage.cast(pa.bool_()) if is_bool else array.storage
    array = array_like.decode_arrow(array)
    return _one_chunk(array) if isinstance(array, pa.ChunkedArray) else array


def _one_chunk(array: Any) -> Any:
    """Return a chunked array as one array; a single chunk is not copied."""
    return array.chunk(0) if array.num_chunks == 1 else array.combine_chunks()


def _total_bytes(array: Any) -> int:
    """Return the approximate bytes of an Arrow array after its dictionaries and views are expanded.

    ``array.nbytes`` counts a dictionary once, and counts all data of views for each slice.
    """
    pa = import_optional("pyarrow", "pyarrow", "arrow")
    if isinstance(array, pa.ChunkedArray):
        return sum(map(_total_bytes, array.chunks))
    arrow_type = array.type
    if pa.types.is_dictionary(arrow_type):
        return len(array) * _mean_bytes(array.dictionary)
    if pa.types.is_run_end_encoded(arrow_type):
        return len(array) * _mean_bytes(array.values)
    if pa.types.is_string_view(arrow_type) or pa.types.is_binary_view(arrow_type):
        return int(_bodies(array, _nulls(array)).nbytes.sum())
    if pa.types.is_list_view(arrow_type) or pa.types.is_large_list_view(arrow_type):
        lengths = array.value_lengths().fill_null(0).to_numpy()
        return int(lengths.sum()) * _mean_bytes(array.values)
    return int(array.nbytes)


def _mean_bytes(array: Any) -> int:
    return _total_bytes(array) // max(len(array), 1)


def _is_nested(arrow_type: Any) -> bool:
    """Return True for a type whose values become JSON."""
    types = import_optional("pyarrow.types", "pyarrow", "arrow")
    nested = types.is_struct(arrow_type) or types.is_map(arrow_type) or _is_list(arrow_type)
    return bool(nested or types.is_fixed_size_list(arrow_type)) and not (
        _is_ragged(arrow_type) or _is_array(arrow_type)
    )


def _is_list(arrow_type: Any) -> bool:
    types = import_optional("pyarrow.types", "pyarrow", "arrow")
    return bool(types.is_list(arrow_type) or types.is_large_list(arrow_type))


def _first_non_json_type(arrow_type: Any) -> Any:
    """Return the first type within a nested type that JSON cannot store, or None."""
    types = import_optional("pyarrow.types", "pyarrow", "arrow")
    arrow_type = plain_type(arrow_type)
    for k in range(arrow_type.num_fields):
        if (leaf := _first_non_json_type(arrow_type.field(k).type)) is not None:
            return leaf
    if arrow_type.num_fields or types.is_boolean(arrow_type) or types.is_null(arrow_type):
        return None
    is_json_type = (
        types.is_integer(arrow_type)
        or types.is_floating(arrow_type)
        or _text_encoding(arrow_type) == "str"
    )
    return None if is_json_type else arrow_type


def _text_encoding(arrow_type: Any) -> str | None:
    """Return the name of the encoding for text, bytes or decimals; None for other types."""
    types = import_optional("pyarrow.types", "pyarrow", "arrow")
    if (
        types.is_string(arrow_type)
        or types.is_large_string(arrow_type)
        or types.is_string_view(arrow_type)
    ):
        return "str"
    if types.is_decimal(arrow_type):
        return "str_decimal"
    binary = (
        types.is_binary(arrow_type)
        or types.is_large_binary(arrow_type)
        or types.is_binary_view(arrow_type)
    )
    return "bytes" if binary or types.is_fixed_size_binary(arrow_type) else None


def _is_ragged(arrow_type: Any) -> bool:
    """Return True if rows are arrays of numbers that vary in length."""
    return _is_list(arrow_type) and array_like.is_arrow_number(arrow_type.value_type)


def _is_array(arrow_type: Any) -> bool:
    """Return True if rows are numbers, or arrays of numbers that all have one shape."""
    types = import_optional("pyarrow.types", "pyarrow", "arrow")
    while types.is_fixed_size_list(arrow_type):
        arrow_type = arrow_type.value_type
    return _is_tensor(arrow_type) or array_like.is_arrow_number(arrow_type)


def _is_tensor(arrow_type: Any) -> bool:
    """Return True for the type of arrays of one shape."""
    return isinstance(
        arrow_type, import_optional("pyarrow", "pyarrow", "arrow").FixedShapeTensorType
    )


def _empty_array(arrow_type: Any) -> AnyArray:
    """Return an empty array with the NumPy dtype and row shape of an Arrow type."""
    pa = import_optional("pyarrow", "pyarrow", "arrow")
    return array_like.arrow_numbers(pa.nulls(0, arrow_type))


def _nulls(array: Any) -> Bools:
    if not array.null_count:
        return np.zeros(len(array), bool)
    return np.array(array.is_null().to_numpy(zero_copy_only=False))


def _null_error(array: Any, count: int) -> RowError:
    pa = import_optional("pyarrow", "pyarrow", "arrow")
    row = array.is_null().index(True).as_py()
    kind = "f" if pa.types.is_floating(array.type) else ""
    if pa.types.is_date(array.type) or pa.types.is_timestamp(array.type):
        kind = "M"
    return RowError(
        row,
        f"{quantity(count, 'null')} in {quantity(len(array), 'value')}; this is the first: "
        f"{missing_advice(kind)}",
    )


def _convert(part: Any, missing: Bools, target: Encoding, fill: Fill) -> ColumnBlock:
    """Return rows for the encoding `target`; missing rows have arbitrary values.

    If there is a fill, rows with NaN or NaT that `target` cannot store are added to `missing`.
    """
    arrow_type = part.type
    text = _text_encoding(arrow_type)
    is_integer_text = target.name == "str_int" and getattr(arrow_type, "scale", None) == 0
    if text == "str_decimal" and (target.name == text or is_integer_text):
        pa = import_optional("pyarrow", "pyarrow", "arrow")
        return _bodies(part.cast(pa.string()), missing)
    if text is not None and (target.name == text or (text == "bytes" and target.kind == "image")):
        if text == "str":
            _check_text(part)
        return _bodies(part, missing)
    if _is_ragged(arrow_type) and not target.headless:
        if target.kind == "ndarray":
            return _ragged(part, missing, target)
        if target.kind == "fixed" and target.shape:
            return _equal_shapes(part, missing, target)
    if text is None and not _is_ragged(arrow_type) and _is_array(arrow_type):
        numbers = _numbers(part, missing)
        if fill and (nan_rows := nan_mask(numbers, target)) is not None:
            missing |= nan_rows
            numbers = np.where(missing, numbers.dtype.type(0), numbers)
        if target.kind == "fixed" and numbers.shape[1:] == target.shape:
            return _convert_exactly(numbers, target)
        return convert_rows(numbers, target)
    return _python_values(part)


def _python_values(array: Any) -> list[Any]:
    """Return Python values, with maps as dicts."""
    try:
        return array.to_pylist(maps_as_pydicts="strict")  # type: ignore[no-any-return]
    except (KeyError, ValueError) as error:
        for row, value in enumerate(array):
            try:
                value.as_py(maps_as_pydicts="strict")
            except (KeyError, ValueError):
                raise RowError(
                    row,
                    "its keys or fields have one name twice, and a dict cannot: rename one, "
                    "or leave the column out: columns= names those to write",
                ) from error
        raise


def _convert_exactly(numbers: AnyArray, target: Encoding) -> ColumnBlock:
    """Convert scalars or arrays to the dtype of `target`; raise RowError if a value changes."""
    if numbers.dtype == target.dtype or numbers.ndim == 1:
        return convert_rows(numbers, target)
    try:
        converted, wrong = convert_exactly(numbers, target.dtype)
    except TypeError:
        return convert_rows(numbers, target)
    _check_exact(numbers, wrong, np.arange(len(numbers) + 1) * numbers[:1].size, target)
    return converted


def _check_exact(elements: AnyArray, wrong: Bools, offsets: Int64, target: Encoding) -> None:
    if wrong.any():
        element = int(wrong.reshape(-1).argmax())
        row = int(np.searchsorted(offsets, element, side="right")) - 1
        value = elements.reshape(-1)[element]
        raise RowError(row, f"{target.name!r} cannot hold {value}: choose {elements.dtype}")


def _numbers(array: Any, missing: Bools) -> AnyArray:
    """Return an Arrow array as a NumPy array; nulls get arbitrary values."""
    pa = import_optional("pyarrow", "pyarrow", "arrow")
    if _is_tensor(array.type):
        shape = tuple(array.type.shape)
        if array.type.permutation not in (None, list(range(len(shape)))):
            return array_like.arrow_numbers(array)
        array = array.storage
        return _numbers(array, missing).reshape(len(array), *shape)
    shape = ()
    rows = len(array)
    while pa.types.is_fixed_size_list(array.type):
        size = array.type.list_size
        shape += (size,)
        array = array.values.slice(array.offset * size, len(array) * size)
    if shape and array.null_count:
        _check_elements(array, np.arange(rows + 1) * (len(array) // max(rows, 1)), missing)
    return _without_nulls(array).reshape(rows, *shape)


def _without_nulls(array: Any) -> AnyArray:
    """Return numbers as a NumPy array; nulls get arbitrary values."""
    if array.null_count:
        pa = import_optional("pyarrow", "pyarrow", "arrow")
        buffers = [None, *array.buffers()[1:]]
        array = pa.Array.from_buffers(array.type, len(array), buffers, 0, array.offset)
    return array.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def _check_elements(elements: Any, offsets: Int64, missing: Bools) -> None:
    """Raise if a row that is not missing has a null element."""
    null_elements = np.flatnonzero(_nulls(elements))
    rows = np.searchsorted(offsets, null_elements, side="right") - 1
    rows = rows[~missing[rows]]
    if len(rows):
        raise RowError(
            int(rows[0]),
            "its list has a null, and arrays cannot: fill it in, as with "
            "pyarrow.compute.fill_null of the list's values, or leave the sample out",
        )


def _check_text(array: Any) -> None:
    """Raise ValueError if text is not UTF-8."""
    types = import_optional("pyarrow.types", "pyarrow", "arrow")
    if not types.is_string_view(array.type):
        _, offsets_buffer, data = array.buffers()
        dtype = np.dtype(np.int64 if types.is_large_string(array.type) else np.int32)
        offsets = _offsets(offsets_buffer, dtype, array.offset, len(array))
        if data is None or offsets[0] == offsets[-1]:
            return
        if np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]].max() < 0x80:
            return  # ASCII: this test is ten times faster than pyarrow's check of each value
    array.validate(full=True)


def _bodies(array: Any, missing: Bools) -> Bodies:
    """Return text or bytes by their addresses in Arrow's buffers."""
    types = import_optional("pyarrow.types", "pyarrow", "arrow")
    arrow_type, first, count = array.type, array.offset, len(array)
    buffers = array.buffers()
    if types.is_string_view(arrow_type) or types.is_binary_view(arrow_type):
        return _views(array, buffers, missing)
    if types.is_fixed_size_binary(arrow_type):
        width = arrow_type.byte_width
        address = buffers[1].address + width * (first + np.arange(count, dtype=np.int64))
        return Bodies(address, np.full(count, width, np.int64), array)
    large = types.is_large_string(arrow_type) or types.is_large_binary(arrow_type)
    offsets = _offsets(buffers[1], np.dtype(np.int64 if large else np.int32), first, count)
    nbytes, data = np.diff(offsets), buffers[2]
    offsets += 0 if data is None else data.address
    return Bodies(offsets[:-1], nbytes, array)


def _offsets(buffer: Any, dtype: np.dtype[Any], first: int, count: int) -> Int64:
    if buffer is None or not buffer.size:
        return np.zeros(count + 1, np.int64)
    return np.frombuffer(buffer, dtype)[first : first + count + 1].astype(np.int64)


def _views(array: Any, buffers: list[Any], missing: Bools) -> Bodies:
    """Return text or bytes of Arrow's view types by their addresses.

    A view is four int32. The first is the length of the value. A value of up to 12 bytes follows in
    the view. For a longer value, the view then has its first 4 bytes, the number of a buffer, and
    the value's offset in that buffer.
    """
    first, count = array.offset, len(array)
    if not count:
        return Bodies(np.empty(0, np.int64), np.empty(0, np.int64), array)
    views = np.frombuffer(buffers[1], np.int32).reshape(-1, 4)[first : first + count]
    nbytes = np.where(missing, 0, views[:, 0]).astype(np.int64)
    address = address_of(views) + 16 * np.arange(count, dtype=np.int64) + 4
    if (is_external := nbytes > 12).any():
        buffer_addresses = np.array([0 if b is None else b.address for b in buffers[2:]], np.int64)
        buffer_numbers = np.where(is_external, views[:, 2], 0)
        external_address = buffer_addresses[buffer_numbers] + views[:, 3]
        address = np.where(is_external, external_address, address)
    return Bodies(address, nbytes, (array, views))


def _ragged(array: Any, missing: Bools, target: Encoding) -> Bodies:
    """Return lists of numbers as encoded arrays."""
    elements, offsets = _elements(array, missing)
    lengths = np.diff(offsets)
    if (empty := (lengths == 0) & ~missing).any():
        raise RowError(
            int(empty.argmax()),
            "cannot store an array of shape (0,): it must have an element; choose 'json' in "
            "columns=, which stores any list, or leave the sample out",
        )
    if target.dtype not in (object, elements.dtype):
        converted, wrong = convert_exactly(elements, target.dtype)
        _check_exact(elements, wrong, offsets, target)
        elements = converted
    if not missing.any():
        return bodies_of_rows(elements, offsets, None, target)
    # Missing rows have no elements, so the remaining rows are contiguous.
    present = np.flatnonzero(~missing)
    bodies = bodies_of_rows(elements, np.append(offsets[present], offsets[-1]), None, target)
    address, nbytes = np.zeros((2, len(missing)), np.int64)
    address[present], nbytes[present] = bodies.address, bodies.nbytes
    return Bodies(address, nbytes, bodies)


def _elements(array: Any, missing: Bools) -> tuple[AnyArray, Int64]:
    """Return the elements of all lists, and the offset of each list."""
    pa = import_optional("pyarrow", "pyarrow", "arrow")
    dtype = np.dtype(np.int64 if pa.types.is_large_list(array.type) else np.int32)
    offsets = _offsets(array.buffers()[1], dtype, array.offset, len(array))
    if (np.diff(offsets)[missing] != 0).any():  # null lists may have elements
        return _elements(_compact(array), missing)
    first, last = int(offsets[0]), int(offsets[-1])
    values, offsets = plain(array.values[first:last]), offsets - first
    if values.null_count:
        _check_elements(values, offsets, missing)
    return _without_nulls(values), offsets


def _compact(array: Any) -> Any:
    """Return lists without the elements of null lists."""
    pa = import_optional("pyarrow", "pyarrow", "arrow")
    lengths = array.value_lengths().fill_null(0).to_numpy()
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return pa.LargeListArray.from_arrays(pa.array(offsets), array.flatten())


def _equal_shapes(array: Any, missing: Bools, target: Encoding) -> ColumnBlock:
    """Return lists of numbers as arrays of the shape of `target`."""
    elements, offsets = _elements(array, missing)
    shape = target.shape or ()
    size = int(np.prod(shape))
    lengths = np.diff(offsets)
    if (wrong_length := (lengths != size) & ~missing).any():
        row = int(wrong_length.argmax())
        raise RowError(
            row,
            f"its list has {quantity(int(lengths[row]), 'element')}, and {target.name!r} takes "
            f"{size:,}: choose 'ndarray:{target.dtype}' in columns=, which takes any number, or "
            "leave the sample out",
        )
    rows = np.zeros((len(missing), size), elements.dtype)
    rows[~missing] = elements.reshape(-1, size)
    return _convert_exactly(rows.reshape(-1, *shape), target)


def arrow_columns(
    table: Any, fill: Mapping[str, Fill], names: Collection[str] | None = None
) -> dict[str, ArrowColumn]:
    """Return the columns of a pyarrow Table or RecordBatch, all or those in `names`.

    Raises
    ------
    ValueError
        If two columns have one name.
    """
    columns: dict[str, ArrowColumn] = {}
    for name, array in zip(table.schema.names, table.columns, strict=True):
        if names is not None and name not in names:
            continue
        if name in columns:
            raise ValueError(
                f"column {name!r}: two columns have this name: rename one, as with "
                "table.rename_columns(...), or drop it"
            )
        try:
            columns[name] = ArrowColumn(array, fill.get(name, NO_FILL))
        except TypeError as error:
            raise TypeError(f"column {name!r}: {error}") from error
    return columns
