"""Encoders of samples, shared by a writer and its worker processes.

`compile_encoder` generates a function without a loop over columns and without chains of type
checks. The function encodes only values whose bytes need no further check. For other values it
returns None, and the caller uses `ShardFormat.encode`, which may raise the error for users.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Container, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from npstream._core.dtypes import NUMBERS
from npstream.errors import ColumnError, short_repr
from npstream.formats.encodings.arrays import MAX_NDIM, shape_head
from npstream.writing.inputs.fill import Fill, fill_sample, is_absent

if TYPE_CHECKING:
    from npstream.formats.encodings.encodings import Encoding
    from npstream.writing.shard import ShardFormat

__all__ = [
    "SampleEncoder",
    "check_mapping",
    "check_names",
    "compile_encoder",
    "encode_none",
    "refuse_unknown_columns",
]

_INTEGERS = frozenset((int, *(d.type for d in NUMBERS.values() if d.kind in "iu")))
_STRUCT_CODES = {
    **{"int8": "b", "int16": "h", "int32": "i", "int64": "q"},
    **{"uint8": "B", "uint16": "H", "uint32": "I", "uint64": "Q"},
    **{"float16": "e", "float32": "f", "float64": "d", "bool": "?"},
}
_NUMBERS = frozenset(NUMBERS.values())
_MAX_CACHED_HEADS = 1 << 12
"""Maximum number of shapes in a column's cache of heads."""


class _HeadCache(dict[tuple[int, ...], bytes]):
    """A cache of encoded array heads by shape."""

    def __missing__(self, shape: tuple[int, ...]) -> bytes:
        if not 0 < len(shape) <= MAX_NDIM or 0 in shape:
            raise ValueError(f"no array of shape {shape} can be stored")
        if len(self) >= _MAX_CACHED_HEADS:
            self.clear()
        head = self[shape] = shape_head(shape)
        return head


class _FunctionSource:
    """Collects the source code of a function, and the objects that it uses as globals.

    In the code, ``v0`` is the value of column 0, and ``b0`` its encoded bytes.
    """

    def __init__(self) -> None:
        self.names: dict[str, Any] = {"join": b"".join, "ndarray": np.ndarray}
        self.checks: list[str] = []  # the function returns None if one is true
        self.bodies: list[str] = []  # statements that assign encoded bytes
        self.parts: list[str] = []  # expressions of the sample's bytes, in order
        self._codes = ""
        self._values: list[str] = []

    def add_global(self, kind: str, value: Any) -> str:
        """Add an object to the function's globals, and return its name."""
        name = f"{kind}{len(self.names)}"
        self.names[name] = value
        return name

    def add_number(self, code: str, value: str) -> None:
        """Add a number; one `struct` packs all consecutive numbers."""
        self._codes += code
        self._values.append(value)

    def add_part(self, expression: str) -> None:
        """Add an expression whose value is bytes."""
        self.pack_numbers()
        self.parts.append(expression)

    def pack_numbers(self) -> None:
        """Add the pending numbers as one part."""
        if self._codes:
            pack = self.add_global("pack", struct.Struct(f"<{self._codes}").pack)
            self.parts.append(f"{pack}({', '.join(self._values)})")
        self._codes, self._values = "", []


def compile_encoder(
    layout: ShardFormat,
    sample: Mapping[str, Any],
    *,
    only_columns: bool = False,
    filled_columns: Container[str] = (),
) -> Callable[[dict[str, Any]], bytes | None]:
    """Return a function that encodes samples with the same types of values as `sample`.

    The function returns None for other samples.

    Parameters
    ----------
    layout : ShardFormat
    sample : mapping of str to object
    only_columns : bool, default: False
        Whether the function returns None for a sample with a key that is not a column.
    filled_columns : container of str
        Columns with a fill value. The function returns None if the value of such a column is
        missing, even if the encoding can store missing values.
    """
    columns, inferred = layout.columns, layout.inferred
    source = _FunctionSource()
    lookups = []
    for k, encoding in enumerate(columns.values()):
        if encoding.size is None:
            source.add_number("I", f"len(b{k})")
    for k, (name, encoding) in enumerate(columns.items()):
        lookups.append(f"v{k} = sample[{source.add_global('key', name)}]")
        value = sample.get(name)
        if not (_add_number(source, k, encoding, value) or _add_array(source, k, encoding, value)):
            is_filled = name in filled_columns
            _add_bytes(source, k, encoding, layout.encoders[name], value, inferred, is_filled)
    source.pack_numbers()
    if only_columns:
        source.checks.append(f"len(sample) != {len(columns)}")
    lines = [*lookups]
    if source.checks:
        lines += [f"if {' or '.join(source.checks)}:", " return None"]
    lines += source.bodies
    parts = source.parts
    lines.append(
        f"return {' + '.join(parts)}" if len(parts) <= 2 else f"return join(({', '.join(parts)}))"
    )
    text = (
        "\n  ".join(["def encode(sample):\n try:", *lines]) + "\n except Exception:\n  return None"
    )
    exec(compile(text, "<npstream row encoder>", "exec"), source.names)
    function: Callable[[dict[str, Any]], bytes | None] = source.names["encode"]
    return function


def _add_number(source: _FunctionSource, k: int, encoding: Encoding, value: Any) -> bool:
    """Add a column of numbers if `struct` either stores `value` exactly or raises.

    Return False if the column was not added.
    """
    dtype = encoding.dtype
    code = _STRUCT_CODES.get(dtype.name)
    if encoding.kind != "fixed" or encoding.shape != () or code is None:
        return False
    value_type = type(value)
    if dtype.kind in "iu" and value_type in _INTEGERS:
        types = _INTEGERS
    elif dtype.kind == "b" and value_type in (bool, np.bool_):
        types = frozenset((bool, np.bool_))
    elif code == "d" and value_type in (float, np.float64):
        types = frozenset((float, np.float64))
    elif dtype.kind == "f" and value_type is float:
        types = frozenset((float,))
    elif dtype.kind == "f" and value_type is dtype.type:
        # `struct` would pass the value through a double, which changes some NaNs.
        source.checks.append(f"type(v{k}) is not {source.add_global('type', value_type)}")
        source.add_part(f"v{k}.tobytes()")
        return True
    else:
        return False
    source.checks.append(f"type(v{k}) not in {source.add_global('types', types)}")
    source.add_number(code, f"v{k}")
    return True


def _add_array(source: _FunctionSource, k: int, encoding: Encoding, value: Any) -> bool:
    """Add a column of arrays if every bit pattern of the dtype is valid.

    Return False if the column was not added.
    """
    dtype, shape = encoding.dtype, encoding.shape
    if type(value) is not np.ndarray or dtype not in _NUMBERS or encoding.headless:
        return False
    if encoding.kind not in ("fixed", "ndarray") or shape == ():
        return False
    source.checks.append(
        f"type(v{k}) is not ndarray or v{k}.dtype != {source.add_global('dtype', dtype)}"
    )
    if shape is not None:
        source.checks.append(f"v{k}.shape != {source.add_global('shape', shape)}")
        source.add_part(f"v{k}.tobytes()")
        return True
    source.bodies.append(
        f"b{k} = {source.add_global('heads', _HeadCache())}[v{k}.shape] + v{k}.tobytes()"
    )
    source.add_part(f"b{k}")
    return True


def _add_bytes(
    source: _FunctionSource,
    k: int,
    encoding: Encoding,
    encode: Callable[[Any], bytes],
    value: Any,
    inferred: bool,
    is_filled: bool,
) -> None:
    """Add a column of text or encoded values; call `encode` for any other column."""
    is_varying = encoding.size is None
    if is_varying and type(value) is bytes and (encoding.kind == "bytes" or not inferred):
        source.checks.append(f"type(v{k}) is not bytes")
        source.bodies.append(f"b{k} = v{k}")
    elif encoding.kind == "str" and type(value) is str:
        source.checks.append(f"type(v{k}) is not str")
        source.bodies.append(f"b{k} = v{k}.encode()")
    else:
        if is_filled:
            check = source.add_global("check", partial(is_absent, encoding=encoding))
            source.checks.append(f"{check}(v{k})")
        source.bodies.append(f"b{k} = {source.add_global('encode', encode)}(v{k})")
    source.add_part(f"b{k}")


_COMPILE_AFTER = 16
"""Samples that the general encoder encodes before an encoder is compiled for their types."""


class SampleEncoder:
    """Encodes samples one by one.

    Parameters
    ----------
    layout : ShardFormat
    only_columns : bool
        Whether a sample with a key that is not a column raises.
    fill : mapping of str to Fill
        Values of columns for samples that lack them.

    Attributes
    ----------
    layout : ShardFormat
        The parameter.
    fast : callable
        Returns the bytes of a dict, or None if the caller must use `encode`. `encode` replaces
        this function once it has compiled a better one.

    Raises
    ------
    TypeError, ValueError
        If a column cannot hold its value in `fill`.
    ColumnError
        If `fill` names an unknown column.
    """

    def __init__(self, layout: ShardFormat, only_columns: bool, fill: Mapping[str, Fill]) -> None:
        self.layout = layout
        self.fast: Callable[[dict[str, Any]], bytes | None] = encode_none
        self._only_columns = only_columns
        self._fill = fill
        self._count = 0
        self._compile_at = _COMPILE_AFTER
        for name, value in fill.items():
            if name not in layout.columns:
                raise ColumnError(name, layout.columns, "fill: ")
            try:
                layout.bodies(name, [value.value], 0)
            except (TypeError, ValueError) as error:
                kind = TypeError if isinstance(error, TypeError) else ValueError
                raise kind(f"fill: {str(error).removeprefix('sample 0: ')}") from error

    def encode(self, sample: Any, number: int) -> bytes:
        """Return the bytes of a sample; `number` is for messages."""
        check_mapping(sample, number)
        if self._only_columns and len(sample) > len(self.layout.columns):
            refuse_unknown_columns(self.layout.columns, sample, number)
        if self._fill:
            sample = fill_sample(sample, self._fill, self.layout.columns)
            row = self.fast(sample) if type(sample) is dict else None
            if row is not None:
                return row
        row = self.layout.encode(sample, number)
        self._count += 1
        if self._count == self._compile_at and self.layout.has_fast_encoder:
            # Samples of other types still come here. After 16 times as many samples, an encoder is
            # compiled again, for the types of a later sample.
            self._compile_at *= _COMPILE_AFTER
            self.fast = compile_encoder(
                self.layout, sample, only_columns=self._only_columns, filled_columns=self._fill
            )
        return row


def encode_none(sample: dict[str, Any]) -> None:
    """Return None, so that the caller uses the general encoder."""


def check_mapping(sample: Any, number: int) -> None:
    """Raise TypeError unless a sample is a mapping."""
    if not isinstance(sample, Mapping):
        raise TypeError(
            f"sample {number} is of type {type(sample).__name__}; "
            "expected a mapping from column name to value"
        )


def check_names(sample: Mapping[Any, Any], number: int) -> None:
    """Raise TypeError unless the keys of the first sample are text."""
    for name in sample:
        if not isinstance(name, str):
            raise TypeError(
                f"sample {number} has the key {short_repr(name)}, of type {type(name).__name__}: "
                "the name of a column is a str; rename it, as in {'x': ...}"
            )


def refuse_unknown_columns(columns: Mapping[str, Any], names: Iterable[Any], number: int) -> None:
    """Raise ValueError if a name is not a column."""
    if unknown := [name for name in names if name not in columns]:
        # Sample 0 defines the columns, except in an append: there the dataset defines them.
        reference = "the first sample" if number else "the dataset"
        raise ValueError(
            f"sample {number} has {unknown[0]!r}, which {reference} lacks, so there is no "
            "column for it: name all columns in columns=, and give every sample all of them; "
            "or leave that key out"
        )
