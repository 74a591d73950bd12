"""Provide `Ragged`: rows of different lengths in one allocation.

Tested in tests/reading/test_batch.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from npstream._core import optional
from npstream._core.arguments import quantity, size_text
from npstream._core.memory import address_of, ensure_fits
from npstream._core.spans import copy_spans
from npstream._core.typing import AnyArray, Int64
from npstream.errors import FormatError, NpstreamError
from npstream.formats.encodings.encodings import Encoding, column_type, parse, type_of_array

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike

    from npstream.writing.tables import RaggedColumn

_TEXT = np.dtypes.StringDType()

_REPR_CHARACTERS = 48  # maximum characters of the values in a repr
_MAX_ROWS_SHOWN = 10  # rows in HTML

KINDS = ("str", "bytes", "image")
"""Possible meanings of the bytes of a row. The kind is None if rows are arrays."""


class Ragged:
    """Rows of different lengths in one allocation.

    Row i is ``values[offsets[i]:offsets[i + 1]]``. A Ragged is indexed like a 1-d array:

    - An integer returns a row: a view of an array, or ``str`` or ``bytes``, depending on `kind`.
    - A slice without a step returns a view, whose offsets need not begin at 0.
    - Any other index copies its rows into a new Ragged.

    ``==`` compares the identity of two objects, not their rows.

    Parameters
    ----------
    values : array_like, 1-d
        The elements of all rows, one row after the other. Not of an object dtype.
    offsets : array_like of int, shape (n + 1,)
        The position in `values` of each row's first element, then the end of the last row.
        Ascending.
    kind : {"str", "bytes", "image"}, optional
        The meaning of rows of uint8: UTF-8, bytes or encoded images. By default rows are arrays.
    shapes : array_like of int, shape (n, ndim), optional
        The shape of each row, if rows are not 1-d.
    encoding : str, optional
        The stored encoding of the rows, such as ``"jpeg"``. `npstream.write` then uses it again.

    Examples
    --------
    >>> r = Ragged([1, 2, 3, 4, 5, 6], [0, 2, 2, 6])
    >>> r
    <Ragged: 3 rows of int64, lengths 0 to 4: [1 2], [], [3 4 5 6]>
    >>> r[-1]
    array([3, 4, 5, 6])
    >>> r[[2, 0]].pad(-1)
    array([[ 3,  4,  5,  6],
           [ 1,  2, -1, -1]])
    """

    __slots__ = ("encoding", "kind", "offsets", "shapes", "values")

    values: AnyArray
    offsets: Int64
    kind: str | None
    shapes: Int64 | None
    encoding: str | None

    def __init__(
        self,
        values: ArrayLike,
        offsets: ArrayLike,
        kind: str | None = None,
        shapes: ArrayLike | None = None,
        encoding: str | None = None,
    ) -> None:
        self.encoding = encoding
        self.values = np.asarray(values)
        self.offsets = _as_int64(offsets, "offsets")
        self.kind = kind
        self.shapes = None if shapes is None else _as_int64(shapes, "shapes")
        self._check()
        # Rows are copied by address, so the elements must be contiguous.
        self.values = np.ascontiguousarray(self.values)

    def _check(self) -> None:
        """Raise an error unless values, offsets, kind and shapes fit each other."""
        values, offsets, shapes = self.values, self.offsets, self.shapes
        if self.kind not in (None, *KINDS):
            raise ValueError(f"kind {self.kind!r}: must be None or one of {', '.join(KINDS)}")
        if values.dtype.hasobject or (self.kind is not None and values.dtype != np.uint8):
            raise TypeError(
                f"values of dtype {values.dtype}: must be uint8 where there is a kind, "
                "and otherwise anything but objects and strings"
            )
        if values.ndim != 1 or offsets.ndim != 1 or len(offsets) == 0:
            raise ValueError("values and offsets must be 1-d, offsets one longer than the rows")
        is_descending = (offsets[1:] < offsets[:-1]).any()
        if is_descending or offsets[0] < 0 or offsets[-1] > len(values):
            raise ValueError(
                f"offsets must ascend, between 0 and the {quantity(len(values), 'value')}"
            )
        if shapes is None:
            return
        if self.kind is not None or shapes.ndim != 2 or len(shapes) != len(self):
            raise ValueError(f"shapes must be ({len(self)}, ndim), and only arrays have them")
        # In floats, products do not wrap around. They are exact for all sizes that memory can hold.
        sizes = shapes.prod(axis=1, dtype=np.float64)
        if (shapes < 0).any() or (sizes != self.lengths).any():
            raise ValueError("shapes must have as many elements as their rows")

    @classmethod
    def from_list(cls, rows: Iterable[Any], kind: str | None = None) -> Ragged:
        """Copy rows into one allocation.

        Parameters
        ----------
        rows : iterable of array_like, str or bytes
            Text, bytes, or arrays of the same number of axes. Arrays get a common dtype, as in
            `np.concatenate`.
        kind : {"str", "bytes", "image"}, optional
            The meaning of ``bytes``; by default the type of the first row decides.

        Returns
        -------
        Ragged

        Raises
        ------
        ValueError
            If arrays have different numbers of axes.
        TypeError
            If some rows are text or bytes, and others are arrays.

        Examples
        --------
        >>> Ragged.from_list(["one", "two", "three"])
        <Ragged: 3 str, 3 to 5 bytes: 'one', 'two', 'three'>
        """
        rows = list(rows)
        if kind is None and rows and isinstance(rows[0], str | bytes):
            kind = "str" if isinstance(rows[0], str) else "bytes"
        if kind is not None:
            bodies = [row.encode() if isinstance(row, str) else row for row in rows]
            values = np.frombuffer(bytearray().join(bodies), np.uint8)
            offsets = optional.offsets_from_lengths([len(body) for body in bodies])
            if offsets[-1] != len(values):  # `len` of another buffer may not count bytes
                raise TypeError(f"rows must be str or bytes to be {kind!r}")
            return cls(values, offsets, kind)
        arrays = [np.asarray(row) for row in rows]
        ranks = {array.ndim for array in arrays} or {1}
        if len(ranks) > 1:
            raise ValueError(f"rows of {sorted(ranks)} axes: all must have the same number")
        # The dtype of an empty list, float64 in NumPy, does not count.
        dtypes = {a.dtype for a in arrays if a.size} or {a.dtype for a in arrays}
        flat = [array.ravel() for array in arrays if array.size]
        values = np.concatenate([np.empty(0, np.result_type(*dtypes or [float])), *flat])
        rank = ranks.pop()
        shapes = None if rank == 1 else np.array([array.shape for array in arrays], np.int64)
        offsets = optional.offsets_from_lengths([array.size for array in arrays])
        return cls(values, offsets, shapes=shapes)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def shape(self) -> tuple[int]:
        """The number of rows, as a tuple."""
        return (len(self),)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of a row's elements."""
        return self.values.dtype

    @property
    def lengths(self) -> Int64:
        """The number of elements of each row."""
        return np.diff(self.offsets)

    @property
    def nbytes(self) -> int:
        """The number of bytes of all rows' elements."""
        return int(self.offsets[-1] - self.offsets[0]) * self.dtype.itemsize

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice) and index.step in (None, 1):
            start, stop, _ = index.indices(len(self))
            stop = max(start, stop)
            shapes = None if self.shapes is None else self.shapes[start:stop]
            return self._with_rows(self.values, self.offsets[start : stop + 1], shapes)
        # NumPy indexes the offsets, so errors are NumPy's own.
        starts, stops = self.offsets[:-1][index], self.offsets[1:][index]
        if starts.ndim == 0:
            return self._row(self.values[starts:stops], index)
        if starts.ndim > 1:
            raise IndexError(
                f"the index has {quantity(starts.ndim, 'axis')}, and a Ragged one: ravel it"
            )
        lengths = stops - starts
        offsets = optional.offsets_from_lengths(lengths)
        ensure_fits(
            int(offsets[-1]) * self.dtype.itemsize, f"copying {quantity(len(lengths), 'row')}"
        )
        values = np.empty(offsets[-1], self.dtype)
        _copy_rows(self.values, starts, lengths, values, offsets[:-1])
        return self._with_rows(values, offsets, None if self.shapes is None else self.shapes[index])

    def __iter__(self) -> Iterator[Any]:
        # Slicing a memoryview is several times faster than slicing an array.
        values: Any = self.values if self.kind is None else self.values.data
        for i, (start, stop) in enumerate(pairwise(self.offsets.tolist())):
            yield self._row(values[start:stop], i)

    def _row(self, elements: Any, i: Any) -> Any:
        """Return the elements of row i in the form of its kind and shape."""
        if self.kind is None:
            return elements if self.shapes is None else elements.reshape(self.shapes[i])
        if self.kind != "str":
            return bytes(elements)
        try:
            return str(elements, "utf-8")
        except UnicodeDecodeError as error:
            raise FormatError(f"row {i} is not UTF-8: {error}; read it as 'bytes'") from None

    def _with_rows(self, values: AnyArray, offsets: Int64, shapes: Int64 | None) -> Ragged:
        """Return other rows as a Ragged of the same kind and encoding, without checking them."""
        rows = Ragged.__new__(Ragged)
        rows.values, rows.offsets, rows.kind, rows.shapes = values, offsets, self.kind, shapes
        rows.encoding = self.encoding
        return rows

    def _packed(self) -> tuple[AnyArray, Int64]:
        """Return the elements of only these rows, and offsets that begin at 0."""
        first, last = int(self.offsets[0]), int(self.offsets[-1])
        return self.values[first:last], self.offsets - first if first else self.offsets

    def __reduce__(self) -> tuple[Any, ...]:
        # Like that of an ndarray, the pickle of a slice does not contain the other rows.
        return Ragged, (*self._packed(), self.kind, self.shapes, self.encoding)

    def __repr__(self) -> str:
        from npstream.rendering.cells import first_values_text

        values = first_values_text(self, _REPR_CHARACTERS) if len(self) else ""
        return f"<Ragged: {len(self)} {self._summary()}{': ' if values else ''}{values}>"

    def _repr_html_(self) -> str:
        from npstream.rendering.cells import first_items, rows_table

        count = min(len(self), _MAX_ROWS_SHOWN)
        title = f"Ragged: {len(self):,} {self._summary()}, {size_text(self.nbytes)}"
        return rows_table(
            title,
            {"row": [str(row) for row in range(count)]},
            {"values": first_items(self, count)},
            {"values": self.kind or str(self.dtype)},
            {"values": self.encoding or ""},
            f"... {quantity(len(self), 'row')}" if count < len(self) else "",
        )

    def _summary(self) -> str:
        """Return kind or dtype, and lengths, for a repr."""
        type_text = self.kind or f"rows of {self.dtype}"
        if self.shapes is not None:
            return f"{type_text}, {self.shapes.shape[1]}-d"
        if len(self) == 0:
            return type_text
        span = f"{self.lengths.min()} to {self.lengths.max()}"
        return f"{type_text}, {span} bytes" if self.kind else f"{type_text}, lengths {span}"

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> AnyArray:
        dtypes: dict[str | None, DTypeLike] = {"str": np.dtypes.StringDType(), "bytes": object}
        is_object = dtype is not None and np.dtype(dtype).kind == "O"
        if self.kind not in dtypes and not is_object:
            raise TypeError(
                f"{len(self)} {self._summary()}: such rows fit only an ndarray of objects: use "
                "pad(), to_list() or dtype=object"
            )
        if copy is False:
            raise ValueError("Unable to avoid copy while creating an array as requested.")
        if self.kind in dtypes:
            return np.array(self.to_list(), dtypes[self.kind] if dtype is None else dtype)
        out = np.empty(len(self), object)
        for i, row in enumerate(self):
            out[i] = row  # `out[:] = rows` would broadcast rows of equal length
        return out

    def _writer_input(self) -> RaggedColumn:
        """Return the rows in the form of `npstream.writing.tables`."""
        from npstream.writing.tables import RaggedColumn

        self._check_text()
        return RaggedColumn(
            self.values, self.offsets, self._stored_encoding(), self.shapes,
            lambda start, stop: list(self[start:stop]),
        )  # fmt: skip

    def _stored_encoding(self) -> Encoding | None:
        """Return the encoding to write the rows with; None for images of an unknown format."""
        if self.encoding is not None:
            with suppress(ValueError, NpstreamError):
                encoding = column_type(self.encoding)
                kind = "ndarray" if self.kind is None else self.kind
                if encoding.kind == kind and encoding.dtype in (object, self.dtype, _TEXT):
                    return encoding
        if self.kind is None:
            type_of_array(self.dtype, ())  # raises if the dtype cannot be stored
            return column_type(f"ndarray:{self.dtype.name}")
        if self.kind != "image":
            return parse(self.kind)
        header = bytes(self[0][:8]) if len(self) else b""
        formats = {b"\xff\xd8\xff": "jpeg", b"\x89PNG\r\n\x1a\n": "png"}
        names = (name for magic, name in formats.items() if header.startswith(magic))
        return next(map(parse, names), None)

    def to_list(self) -> list[Any]:
        """Return the rows: arrays over the same memory, ``str``, or ``bytes``.

        Returns
        -------
        list

        Raises
        ------
        FormatError
            If a row of text is not UTF-8.

        Examples
        --------
        >>> Ragged([1, 2, 3], [0, 2, 3]).to_list()
        [array([1, 2]), array([3])]
        """
        return list(self)

    def pad(
        self,
        value: Any = 0,
        length: int | Sequence[int] | None = None,
        *,
        side: Literal["right", "left"] = "right",
        truncate: bool = False,
    ) -> AnyArray:
        """Return the rows in one array, padded to the same length.

        Parameters
        ----------
        value : scalar, default: 0
            The fill value.
        length : int or sequence of int, optional
            The length of each axis of the rows; by default the greatest length of the axis in any
            row.
        side : {"right", "left"}, default: "right"
            The side to pad.
        truncate : bool, default: False
            Cut off longer rows at the end, instead of raising ValueError.

        Returns
        -------
        ndarray, shape ``(n, length)`` or ``(n, *length)``

        Raises
        ------
        ValueError
            If a row is longer than `length`, or if `side` or `length` is invalid.
        OverflowError
            If the dtype cannot hold `value`.
        MemoryError
            If the array takes more memory than is free.

        Examples
        --------
        >>> Ragged.from_list([[1, 2, 3], [4]]).pad(0, 2, side="left", truncate=True)
        array([[1, 2],
               [0, 4]])
        """
        if side not in ("right", "left"):
            raise ValueError(f"side {side!r}: must be 'right' or 'left'")
        shapes = self.lengths[:, None] if self.shapes is None else self.shapes
        padded = _padded_shape(shapes, length, truncate)
        nbytes = math.prod(padded) * len(self) * self.dtype.itemsize
        ensure_fits(nbytes, f"padding {quantity(len(self), 'row')} to {padded}")
        # `np.full` of NumPy 2.0 wraps a number that does not fit the dtype; `np.asarray` raises.
        out = np.full((len(self), *padded), np.asarray(value, self.dtype), self.dtype)
        target = np.array(padded, np.int64)
        sizes = np.minimum(shapes, target)
        begin = target - sizes if side == "left" else np.zeros_like(sizes)
        if len(padded) == 1:
            positions = np.arange(len(self)) * padded[0] + begin[:, 0]
            _copy_rows(self.values, self.offsets[:-1], sizes[:, 0], out, positions)
            return out
        bounds = zip(self, sizes.tolist(), begin.tolist(), (begin + sizes).tolist(), strict=True)
        for i, (row, size, start, stop) in enumerate(bounds):
            out[i, ...][tuple(map(slice, start, stop))] = row[tuple(map(slice, size))]
        return out

    def to_arrow(self) -> Any:
        """Return a pyarrow LargeList, LargeString or LargeBinary array over the same memory.

        Further axes of the rows become nested lists. The lists of an axis have a fixed size if the
        axis has the same length in all rows.

        Returns
        -------
        pyarrow.Array

        Raises
        ------
        MissingDependencyError
            If pyarrow is not installed.
        FormatError
            If a row of text is not UTF-8.

        Examples
        --------
        >>> Ragged.from_list(["one", "two"]).to_arrow().type
        DataType(large_string)
        """
        return self._to_arrow(regular=True)

    def _to_arrow(self, regular: bool) -> Any:
        """Return a pyarrow array; if `regular`, constant axes become lists of a fixed size."""
        if self.kind is None:
            return optional.to_arrow(*self._arrow_levels(regular))
        self._check_text()
        return optional.text_to_arrow(*self._packed(), self.kind == "str")

    def __arrow_c_array__(self, requested_schema: Any = None) -> Any:
        return self.to_arrow().__arrow_c_array__(requested_schema)

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return optional.arrow_stream(self.to_arrow(), requested_schema)

    def to_awkward(self) -> Any:
        """Return an awkward array over the same memory: lists, strings or bytestrings.

        Returns
        -------
        awkward.Array

        Raises
        ------
        MissingDependencyError
            If awkward is not installed.
        FormatError
            If a row of text is not UTF-8.

        Examples
        --------
        >>> Ragged.from_list([[1, 2, 3], [4]]).to_awkward()
        <Array [[1, 2, 3], [4]] type='2 * var * int64'>
        """
        if self.kind is None:
            return optional.to_awkward(*self._arrow_levels())
        self._check_text()
        return optional.text_to_awkward(*self._packed(), self.kind == "str")

    def to_torch(self, padding: Any = None, length: int | Sequence[int] | None = None) -> Any:
        """Return a nested tensor in jagged layout over the same memory, or a padded tensor.

        Text and images become their bytes.

        Parameters
        ----------
        padding : scalar, optional
            Return a tensor padded with this value, see `pad`, instead of a nested one.
        length : int or sequence of int, optional
            The length of each axis to pad to, as for `pad`.

        Returns
        -------
        torch.Tensor

        Raises
        ------
        ValueError
            If `length` is given without `padding`.
        MissingDependencyError
            If torch is not installed.

        Examples
        --------
        >>> import pytest; _ = pytest.importorskip("torch")
        >>> Ragged.from_list([[1, 2, 3], [4]]).to_torch(padding=0)
        tensor([[1, 2, 3],
                [4, 0, 0]])
        """
        if padding is not None:
            return optional.import_npstream_torch().to_tensor(self.pad(padding, length))
        if length is not None:
            raise ValueError("length without padding: pass padding=, the value to fill with")
        return optional.to_nested(*self._arrow_levels())

    def _arrow_levels(self, regular: bool = True) -> tuple[AnyArray, optional.Levels]:
        """Return the values, and the list levels of the rows for Arrow, awkward and torch.

        If `regular`, a further axis of the same length in all rows becomes a level of a fixed size.
        """
        values, offsets = self._packed()
        return values, optional.ragged_levels(offsets, self.shapes, regular)

    def _check_text(self) -> None:
        """Raise FormatError if a row is not UTF-8, without decoding row by row."""
        if self.kind != "str":
            return
        values, offsets = self._packed()
        first_bytes = values[offsets[offsets < len(values)]]
        try:
            str(values.data, "utf-8")
            is_valid = not (first_bytes & 0xC0 == 0x80).any()  # no row begins inside a character
        except UnicodeDecodeError:
            is_valid = False
        if not is_valid:
            self.to_list()  # raises an error that names the row


def _padded_shape(
    shapes: Int64, length: int | Sequence[int] | None, truncate: bool
) -> tuple[int, ...]:
    """Return the common shape to pad rows to, given the shape of each row."""
    longest = shapes.max(axis=0, initial=0)
    if length is None:
        return tuple(longest.tolist())
    padded = tuple(np.atleast_1d(length).tolist())
    if len(padded) != len(longest):
        raise ValueError(
            f"length {length}: rows have {quantity(len(longest), 'axis')}, each needs its own"
        )
    if not truncate and (longest > padded).any():
        row = int((shapes > padded).any(axis=1).argmax())
        raise ValueError(
            f"row {row} is longer than {length}: its shape is {tuple(shapes[row].tolist())}; "
            "pad to a greater length, or pass truncate=True"
        )
    return padded


def _copy_rows(
    source: AnyArray, starts: Int64, lengths: Int64, out: AnyArray, positions: Int64
) -> None:
    """Copy ``source[starts[k]:][:lengths[k]]`` to the flat position ``positions[k]`` of `out`."""
    size = source.itemsize
    copy = copy_spans.for_size(len(starts))
    copy(address_of(source) + starts * size, lengths * size, positions * size, address_of(out))


def _as_int64(array_like: ArrayLike, name: str) -> Int64:
    """Return an integer argument as int64; errors call it `name`."""
    array = np.asarray(array_like)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} of dtype {array.dtype}: must be integers")
    return array.astype(np.int64, copy=False)
