"""Replacement of missing values in samples and tables.

A value is missing if its key is missing, or if it is None, `numpy.ma.masked` or `pandas.NA`. NaN
and NaT are missing only if the column's encoding cannot store them. For example,
encodings of integers and of text cannot.

Tested in tests/writing/test_fill.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from npstream._core.array_like import is_missing
from npstream._core.memory import address_of
from npstream._core.typing import AnyArray, Bools
from npstream.formats.encodings.encodings import infer, parse
from npstream.writing.shard import Bodies, ColumnBlock

if TYPE_CHECKING:
    from npstream.formats.encodings.encodings import Encoding

__all__ = [
    "KEEP_MISSING",
    "NO_FILL",
    "Fill",
    "check_fill",
    "fill_sample",
    "is_absent",
    "keeps_nan",
]


@dataclass(frozen=True, slots=True)
class Fill:
    """The value that replaces missing values of a column; falsy if there is none."""

    value: Any = None
    is_given: bool = True

    def __bool__(self) -> bool:
        return self.is_given

    def encoding(self) -> Encoding:
        """Return the encoding of a column that has no other values."""
        return infer(self.value)

    def values(self, values: Any, target: Encoding) -> list[Any]:
        """Return Python values with missing values replaced."""
        if not self:
            return list(values)
        return [self.value if is_absent(value, target) else value for value in values]

    def block(self, block: ColumnBlock, missing: Bools, target: Encoding) -> ColumnBlock:
        """Return rows, with those in the mask `missing` replaced.

        Raises
        ------
        TypeError, ValueError
            If `target` cannot store the value.
        """
        if not missing.any():
            return block
        if not isinstance(block, np.ndarray | Bodies):
            rows = zip(block, missing.tolist(), strict=True)
            return [self.value if is_null else value for value, is_null in rows]
        body = self.body(target)
        if isinstance(block, np.ndarray):
            filled: AnyArray = block.copy()
            filled[missing] = np.frombuffer(body, target.dtype.newbyteorder("<")).reshape(
                target.shape or ()
            )
            return filled
        owner = np.frombuffer(body, np.uint8)
        address = np.where(missing, address_of(owner), block.address)
        nbytes = np.where(missing, len(body), block.nbytes)
        return Bodies(address, nbytes, (block.owner, owner))

    def check(self, name: str, target: Encoding) -> None:
        """Raise TypeError or ValueError if a column of `target` cannot store the value."""
        if not is_absent(self.value, target):
            try:
                self.body(target)
            except (TypeError, ValueError) as error:
                kind = TypeError if isinstance(error, TypeError) else ValueError
                raise kind(f"column {name!r}: {error}") from error

    def body(self, target: Encoding) -> bytes:
        """Return the encoded value."""
        try:
            return target.encode(self.value)
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"fill={self.value!r} is not a {target.name!r}: {error}") from error


NO_FILL = Fill(is_given=False)
"""A column without a fill value: missing values raise."""


class _NoneFill(Fill):
    """Makes rows under a mask None, in tables whose rows become samples and are not encoded.

    Missing values in a list of Python values, such as pandas.NA, stay as they are.
    """

    __slots__ = ()

    def encoding(self) -> Encoding:
        """Return the encoding that can hold None."""
        return parse("json")

    def values(self, values: Any, target: Encoding) -> list[Any]:
        """Return the values as a list. A missing value stays as the user gave it."""
        return list(values)

    def block(self, block: ColumnBlock, missing: Bools, target: Encoding) -> ColumnBlock:
        """Return rows, with None for those in the mask `missing`."""
        if not missing.any():
            return block
        is_encoded = isinstance(block, Bodies)
        values = block.to_list() if isinstance(block, Bodies) else block
        return [
            None if is_null else target.decode(value) if is_encoded else value
            for value, is_null in zip(values, missing.tolist(), strict=True)
        ]


class _KeepMissing(Mapping[str, Fill]):
    """The fill values of any table whose rows become samples: each column has a `_NoneFill`.

    It has no names, so it adds no column to a table. It is true, unlike an empty mapping.
    """

    def __getitem__(self, name: str) -> Fill:
        return _NoneFill()

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0

    def __bool__(self) -> bool:
        return True


KEEP_MISSING = _KeepMissing()
"""For tables whose rows `map` takes: rows under a mask become None."""


def check_fill(fill: Mapping[str, Any] | None) -> dict[str, Fill]:
    """Return the values of the argument ``fill=``, by column.

    Raises
    ------
    TypeError
        If it is not a mapping from column names.
    """
    if fill is None:
        return {}
    if not isinstance(fill, Mapping):
        raise TypeError(f"fill maps names of columns to values, as in {{'lang': ''}}; got {fill!r}")
    if wrong := [name for name in fill if not isinstance(name, str)]:
        raise TypeError(f"fill maps names of columns, which are str, to values; got {wrong[0]!r}")
    return {name: Fill(value) for name, value in fill.items()}


def is_absent(value: object, encoding: Encoding) -> bool:
    """Return True for a value that is missing in a column of `encoding`.

    Examples
    --------
    >>> from npstream.formats.encodings.encodings import column_type
    >>> nan = float("nan")
    >>> is_absent(None, column_type("float64")), is_absent(nan, column_type("float64"))
    (True, False)
    >>> is_absent(nan, column_type("str"))
    True
    """
    if is_missing(value):
        return not (type(value).__name__ == "NaTType" and encoding.dtype.kind in "mM")
    is_nan = isinstance(value, float | np.floating | np.datetime64) and value != value
    return is_nan and not keeps_nan(encoding)


def keeps_nan(encoding: Encoding) -> bool:
    """Return True for an encoding that can store NaN or NaT."""
    if encoding.kind == "fixed":
        return encoding.dtype.kind not in "iub"
    return encoding.kind in ("float_text", "object")


def fill_sample(
    sample: Mapping[str, Any], fill: Mapping[str, Fill], columns: Mapping[str, Encoding]
) -> Mapping[str, Any]:
    """Return a sample with missing values replaced; the same object if none is missing.

    Parameters
    ----------
    sample : mapping of str to object
    fill : mapping of str to Fill
    columns : mapping of str to Encoding
        The columns to write; empty until the first sample defines them.
    """
    filled = None
    for name, replacement in fill.items():
        encoding = columns.get(name)
        if name in sample:
            value = sample[name]
            if not (is_missing(value) if encoding is None else is_absent(value, encoding)):
                continue
        filled = dict(sample) if filled is None else filled
        filled[name] = replacement.value
    return sample if filled is None else filled
