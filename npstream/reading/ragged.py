"""Rows of different lengths in one allocation.

Tested in tests/reading/test_batch.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from npstream._core import optional as exchange
from npstream._core.arguments import quantity
from npstream._core.memory import address_of, ensure_fits
from npstream._core.spans import copy_spans
from npstream._core.typing import AnyArray, Int64
from npstream.errors import FormatError, NpstreamError
from npstream.formats.encodings.encodings import Encoding, column_type, parse, type_of_array
from npstream.writing.tables import RowsColumn

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike

_TEXT = np.dtypes.StringDType()

KINDS = ("str", "bytes", "image")
"""What the bytes of a Ragged may stand for; None where its rows are arrays."""


class Ragged:
    """Rows of different lengths in one allocation.

    Row i is ``values[offsets[i]:offsets[i + 1]]``. Rows are indexed as the elements of a 1-d array
    are: an integer gives a row, as a view of an array, or the ``str`` or ``bytes`` that `kind`
    says; a slice without a step gives a view, whose offsets need not begin at 0; any other index
    copies its rows into a new Ragged. ``==`` is identity.

    Parameters
    ----------
    values : array_like, 1-d
        The elements of all rows, one row after the other; not of an object dtype.
    offsets : array_like of int, shape (n + 1,)
        Where rows begin and end among the elements, ascending.
    kind : {"str", "bytes", "image"}, optional
        What a row is: UTF-8, bytes or an encoded image in elements of uint8; by default an array.
    shapes : array_like of int, shape (n, ndim), optional
        The shape of each row, where rows are not 1-d.
    encoding : str, optional
        How the rows were stored, such as ``"jpeg"``, for `npstream.write` to store them so again.

    Examples
    --------
    >>> r = Ragged([1, 2, 3, 4, 5, 6], [0, 2, 2, 6])
    >>> r
    <Ragged: 3 rows of int64, lengths 0 to 4>
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
        # Rows are gathered by address, so their elements must lie side by side.
        self.values = np.ascontiguousarray(self.values)

    def _check(self) -> None:
        """Hold the parts to each other, which gathering relies on."""
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
        descending = (offsets[1:] < offsets[:-1]).any()
        if descending or offsets[0] < 0 or offsets[-1] > len(values):
            raise ValueError(
                f"offsets must ascend, between 0 and the {quantity(len(values), 'value')}"
            )
        if shapes is None:
            return
        if self.kind is not None or shapes.ndim != 2 or len(shapes) != len(self):
            raise ValueError(f"shapes must be ({len(self)}, ndim), and only arrays have them")
        # As floats, products do not wrap around, and are exact up to any size of a row.
        sizes = shapes.prod(axis=1, dtype=np.float64)
        if (shapes < 0).any() or (sizes != self.lengths).any():
            raise ValueError("shapes must have as many elements as their rows")

    @classmethod
    def from_list(cls, rows: Iterable[Any], kind: str | None = None) -> Ragged:
        """Copy rows into one allocation.

        Parameters
        ----------
        rows : iterable of array_like, str or bytes
            Arrays with one number of axes, which get a common dtype as in `np.concatenate`; or
            text, or bytes.
        kind : {"str", "bytes", "image"}, optional
            What ``bytes`` stand for; by default the first row says it.

        Returns
        -------
        Ragged

        Raises
        ------
        ValueError
            If arrays have different numbers of axes.
        TypeError
            If some rows are text or bytes, and others are not.

        Examples
        --------
        >>> Ragged.from_list(["one", "two", "three"])
        <Ragged: 3 str, 3 to 5 bytes>
        """
        rows = list(rows)
        if kind is None and rows and isinstance(rows[0], str | bytes):
            kind = "str" if isinstance(rows[0], str) else "bytes"
        if kind is not None:
            bodies = [row.encode() if isinstance(row, str) else row for row in rows]
            values = np.frombuffer(bytearray().join(bodies), np.uint8)
            offsets = exchange.offsets_from_lengths([len(body) for body in bodies])
            if offsets[-1] != len(values):  # of another buffer, len counts no bytes
                raise TypeError(f"rows must be str or bytes to be {kind!r}")
            return cls(values, offsets, kind)
        arrays = [np.asarray(row) for row in rows]
        ranks = {array.ndim for array in arrays} or {1}
        if len(ranks) > 1:
            raise ValueError(f"rows of {sorted(ranks)} axes: all must have the same number")
        # An empty list says nothing of its dtype, though NumPy makes it float64.
        dtypes = {a.dtype for a in arrays if a.size} or {a.dtype for a in arrays}
        filled = [array.ravel() for array in arrays if array.size]
        values = np.concatenate([np.empty(0, np.result_type(*dtypes or [float])), *filled])
        rank = ranks.pop()
        shapes = None if rank == 1 else np.array([array.shape for array in arrays], np.int64)
        return cls(
            values, exchange.offsets_from_lengths([array.size for array in arrays]), shapes=shapes
        )

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
        """The bytes that the elements of all rows take."""
        return int(self.offsets[-1] - self.offsets[0]) * self.dtype.itemsize

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice) and index.step in (None, 1):
            start, stop, _ = index.indices(len(self))
            stop = max(start, stop)
            shapes = None if self.shapes is None else self.shapes[start:stop]
            return self._with(self.values, self.offsets[start : stop + 1], shapes)
        # NumPy indexes the offsets, and so raises its own exceptions.
        starts, stops = self.offsets[:-1][index], self.offsets[1:][index]
        if starts.ndim == 0:
            return self._row(self.values[starts:stops], index)
        if starts.ndim > 1:
            raise IndexError(
                f"the index has {quantity(starts.ndim, 'axis')}, and a Ragged one: ravel it"
            )
        lengths = stops - starts
        offsets = exchange.offsets_from_lengths(lengths)
        ensure_fits(
            int(offsets[-1]) * self.dtype.itemsize, f"copying {quantity(len(lengths), 'row')}"
        )
        values = np.empty(offsets[-1], self.dtype)
        _copy_rows(self.values, starts, lengths, values, offsets[:-1])
        return self._with(values, offsets, None if self.shapes is None else self.shapes[index])

    def __iter__(self) -> Iterator[Any]:
        # A memoryview is sliced several times faster than an array.
        values: Any = self.values if self.kind is None else self.values.data
        for i, (start, stop) in enumerate(pairwise(self.offsets.tolist())):
            yield self._row(values[start:stop], i)

    def _row(self, elements: Any, i: Any) -> Any:
        if self.kind is None:
            return elements if self.shapes is None else elements.reshape(self.shapes[i])
        if self.kind != "str":
            return bytes(elements)
        try:
            return str(elements, "utf-8")
        except UnicodeDecodeError as error:
            raise FormatError(f"row {i} is not UTF-8: {error}; read it as 'bytes'") from None

    def _with(self, values: AnyArray, offsets: Int64, shapes: Int64 | None) -> Ragged:
        """Return rows of the same kind, without checking what fits by construction."""
        rows = Ragged.__new__(Ragged)
        rows.values, rows.offsets, rows.kind, rows.shapes = values, offsets, self.kind, shapes
        rows.encoding = self.encoding
        return rows

    def _packed(self) -> tuple[AnyArray, Int64]:
        """Return the elements of these rows alone, and offsets that begin at 0."""
        first, last = int(self.offsets[0]), int(self.offsets[-1])
        return self.values[first:last], self.offsets - first if first else self.offsets

    def __reduce__(self) -> tuple[Any, ...]:
        # Like an ndarray's, the copy or pickle of a slice leaves the other rows behind.
        return Ragged, (*self._packed(), self.kind, self.shapes, self.encoding)

    def __repr__(self) -> str:
        return f"<Ragged: {len(self)} {self._summary()}>"

    def _summary(self) -> str:
        what = self.kind or f"rows of {self.dtype}"
        if self.shapes is not None:
            return f"{what}, {self.shapes.shape[1]}-d"
        if len(self) == 0:
            return what
        span = f"{self.lengths.min()} to {self.lengths.max()}"
        return f"{what}, {span} bytes" if self.kind else f"{what}, lengths {span}"

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> AnyArray:
        text: dict[str | None, DTypeLike] = {"str": np.dtypes.StringDType(), "bytes": object}
        objects = dtype is not None and np.dtype(dtype).kind == "O"
        if self.kind not in text and not objects:
            raise TypeError(
                f"{self!r} has no ndarray but one of objects: use pad(), to_list() or dtype=object"
            )
        if copy is False:
            raise ValueError("Unable to avoid copy while creating an array as requested.")
        if self.kind in text:
            return np.array(self.to_list(), text[self.kind] if dtype is None else dtype)
        out = np.empty(len(self), object)
        for i, row in enumerate(self):
            out[i] = row  # assigned together, rows of one length would spread over an axis
        return out

    def _to_write(self) -> RowsColumn:
        """Return the rows as `npstream.writing.tables` takes them."""
        self._check_text()
        return RowsColumn(
            self.values, self.offsets, self._stored_as(), self.shapes,
            lambda start, stop: list(self[start:stop]),
        )  # fmt: skip

    def _stored_as(self) -> Encoding | None:
        """Return how the rows are stored; None if they are images of which nothing tells it."""
        if self.encoding is not None:
            with suppress(ValueError, NpstreamError):
                known = column_type(self.encoding)
                own = "ndarray" if self.kind is None else self.kind
                if known.kind == own and known.dtype in (object, self.dtype, _TEXT):
                    return known
        if self.kind is None:
            type_of_array(self.dtype, ())  # says whether there are such arrays
            return column_type(f"ndarray:{self.dtype.name}")
        if self.kind != "image":
            return parse(self.kind)
        first = bytes(self[0][:8]) if len(self) else b""
        names = {b"\xff\xd8\xff": "jpeg", b"\x89PNG\r\n\x1a\n": "png"}
        return next((parse(name) for start, name in names.items() if first.startswith(start)), None)

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
        """Return the rows in one array, filled up to the same length.

        Parameters
        ----------
        value : scalar, default: 0
            What to fill with.
        length : int or sequence of int, optional
            The length of each axis of the rows; by default that of the longest.
        side : {"right", "left"}, default: "right"
            Where to fill.
        truncate : bool, default: False
            Cut off the ends of longer rows, instead of raising ValueError.

        Returns
        -------
        ndarray, shape (n, length) or (n, *length)

        Raises
        ------
        ValueError
            If a row is longer than `length`, or an argument is none of these.
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
        # `np.full` of NumPy 2.0 wraps a number that the dtype cannot hold; `np.asarray` raises.
        out = np.full((len(self), *padded), np.asarray(value, self.dtype), self.dtype)
        room = np.array(padded, np.int64)
        kept = np.minimum(shapes, room)
        begin = room - kept if side == "left" else np.zeros_like(kept)
        if len(padded) == 1:
            at = np.arange(len(self)) * padded[0] + begin[:, 0]
            _copy_rows(self.values, self.offsets[:-1], kept[:, 0], out, at)
            return out
        places = zip(self, kept.tolist(), begin.tolist(), (begin + kept).tolist(), strict=True)
        for i, (row, size, start, stop) in enumerate(places):
            out[i, ...][tuple(map(slice, start, stop))] = row[tuple(map(slice, size))]
        return out

    def to_arrow(self) -> Any:
        """Return a pyarrow LargeList, LargeString or LargeBinary array over the same memory.

        Further axes of the rows are nested lists, of a fixed size where all rows have the same.

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
        """Return a pyarrow array; `regular` makes lists of a fixed size of constant axes."""
        if self.kind is None:
            return exchange.to_arrow(*self._arrow_levels(regular))
        self._check_text()
        return exchange.text_to_arrow(*self._packed(), self.kind == "str")

    def __arrow_c_array__(self, requested_schema: Any = None) -> Any:
        return self.to_arrow().__arrow_c_array__(requested_schema)

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return exchange.arrow_stream(self.to_arrow(), requested_schema)

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
            return exchange.to_awkward(*self._arrow_levels())
        self._check_text()
        return exchange.text_to_awkward(*self._packed(), self.kind == "str")

    def to_torch(self, padding: Any = None, length: int | Sequence[int] | None = None) -> Any:
        """Return a nested tensor in jagged layout over the same memory, or a padded one.

        Text and images give their bytes.

        Parameters
        ----------
        padding : scalar, optional
            Fill up with this value (see `pad`) rather than nest.
        length : int or sequence of int, optional
            The length to fill up to; by default that of the longest row.

        Returns
        -------
        torch.Tensor

        Raises
        ------
        ValueError
            If there is a length and no padding.
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
            return exchange.import_npstream_torch().tensor(self.pad(padding, length))
        if length is not None:
            raise ValueError("length is what to fill rows up to: say with which padding=")
        return exchange.to_nested(*self._arrow_levels())

    def _arrow_levels(self, regular: bool = True) -> tuple[AnyArray, exchange.Levels]:
        values, offsets = self._packed()
        return values, exchange.ragged_levels(offsets, self.shapes, regular)

    def _check_text(self) -> None:
        """Raise FormatError where a row is not UTF-8, without decoding row by row."""
        if self.kind != "str":
            return
        values, offsets = self._packed()
        first_bytes = values[offsets[offsets < len(values)]]
        try:
            str(values.data, "utf-8")
            valid = not (first_bytes & 0xC0 == 0x80).any()  # no row begins inside a character
        except UnicodeDecodeError:
            valid = False
        if not valid:
            self.to_list()  # raises, and names the row


def _padded_shape(
    shapes: Int64, length: int | Sequence[int] | None, truncate: bool
) -> tuple[int, ...]:
    """Return the shape that rows of these shapes are padded to."""
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


def _copy_rows(source: AnyArray, starts: Int64, lengths: Int64, out: AnyArray, at: Int64) -> None:
    """Copy elements ``source[starts[k]:][:lengths[k]]`` to the flat position ``at[k]`` of `out`."""
    size = source.itemsize
    copy = copy_spans.for_size(len(starts))
    copy(address_of(source) + starts * size, lengths * size, at * size, address_of(out))


def _as_int64(array_like: ArrayLike, name: str) -> Int64:
    array = np.asarray(array_like)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} of dtype {array.dtype}: must be integers")
    return array.astype(np.int64, copy=False)
