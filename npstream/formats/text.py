"""JSONL and CSV, TSV and XSV shards: lines of text in one file, their offsets in another.

::

    data   [XSV only: the columns' names, joined by the separator, newline]
           line[0 .. n - 1]     each with its newline
    meta   u32 n, u32 offset[n + 1] (absolute, in data), JSON configuration

A JSONL line is an object of the shard's columns; an XSV line is their values joined by the
separator, with no quoting and no escapes. The encodings are ``str``, ``int`` and ``float``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from npstream._core.arguments import quantity
from npstream._core.typing import Bytes
from npstream.errors import FormatError
from npstream.formats.index import check_ascent, check_configuration

if TYPE_CHECKING:
    from npstream.formats.index import Schema

CASTS: dict[str, Callable[[Any], Any]] = {"str": str, "int": int, "float": float}
"""The encodings of text columns, and what makes a value of an XSV field."""

Parser = Callable[[bytes], dict[str, Any]]


def guard(schema: Schema) -> int:
    """Return how many bytes before a line are checked: the newline that ends the line before.

    Without that, damaged offsets could cut the head off an XSV line unnoticed.
    """
    return len(schema.newline.encode()) if schema.format in ("csv", "tsv", "xsv") else 0


def is_line(schema: Schema, line: bytes) -> bool:
    """Tell whether bytes, preceded by `guard` others, look like one whole line."""
    newline, before = schema.newline.encode(), guard(schema)
    begin = newline if before else b"{"
    return line.startswith(begin) and line.find(newline, before) == len(line) - len(newline)


def lines_begin(
    schema: Schema, data: Bytes, meta: Bytes, samples: int, nbytes: int | None = None
) -> int:
    """Check a text shard's files against the index and return where its lines begin.

    Parameters
    ----------
    schema : Schema
    data, meta : ndarray of uint8
        The whole files; of the data, what stands before the lines will do.
    samples : int
        How many samples the index says there are.
    nbytes : int, optional
        Bytes of all data, if `data` is a part of them.

    Raises
    ------
    FormatError
        If the meta file does not agree with the index or the data's size.
    """
    nbytes = len(data) if nbytes is None else nbytes
    head = 4 * (samples + 2)
    if len(meta) < head:
        raise FormatError(
            f"{quantity(len(meta), 'byte')} of meta; {quantity(samples, 'sample')} need {head:,}"
        )
    words = meta[:head].view("<u4")
    count, begin, end = int(words[0]), int(words[1]), int(words[-1])
    if count != samples:
        raise FormatError(
            f"{quantity(count, 'sample')} in the meta file; the index says {samples:,}"
        )
    if end != nbytes and samples:
        raise FormatError(f"lines end at byte {end} of {nbytes}")
    header = b""
    if schema.format != "json":
        header = (schema.separator.join(schema.names) + schema.newline).encode()
    if begin != len(header) or data[:begin].tobytes() != header:
        raise FormatError(f"{quantity(begin, 'byte')} before the first line; expected {header!r}")
    check_ascent(words[1:])
    check_configuration(schema, meta[head:])
    return begin


def parser(schema: Schema, names: Sequence[str]) -> Parser:
    """Return a function that turns one line into the values of the columns `names`.

    It raises FormatError where the line does not follow the schema.
    """
    if schema.format == "json":
        return _json_parser(schema, names)
    return _xsv_parser(schema, names)


def _json_parser(schema: Schema, names: Sequence[str]) -> Parser:
    kinds = dict(zip(schema.names, schema.encodings, strict=True))

    def parse(line: bytes) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except RecursionError:
            raise FormatError("JSON is nested too deeply") from None
        if not isinstance(record, dict):
            raise FormatError(f"the line holds {type(record).__name__}; expected an object")
        return {name: _json_value(record, name, kinds[name]) for name in names}

    return parse


def _json_value(record: dict[str, Any], name: str, kind: str) -> Any:
    if name not in record:
        raise FormatError(f"the line has no {name!r}")
    value = record[name]
    if kind != "str" and isinstance(value, int):
        try:
            return CASTS[kind](value)  # Streaming's writer takes bools for ints, and stores true
        except OverflowError as error:
            raise FormatError(f"column {name!r}: {error}") from None
    if type(value) is not CASTS[kind]:
        raise FormatError(f"column {name!r}: {value!r} is no {kind}")
    return value


def _xsv_parser(schema: Schema, names: Sequence[str]) -> Parser:
    newline, separator = schema.newline, schema.separator
    places = {name: schema.names.index(name) for name in names}
    casts = {name: CASTS[schema.encodings[place]] for name, place in places.items()}

    def parse(line: bytes) -> dict[str, Any]:
        text = line.decode()
        if not text.endswith(newline):
            raise FormatError(f"the line does not end in the newline {newline!r}")
        text = text[: -len(newline)]
        if newline in text:
            raise FormatError(f"the newline {newline!r} within the line")
        fields = text.split(separator)
        if len(fields) != len(schema.names):
            raise FormatError(f"{quantity(len(fields), 'field')}; expected {len(schema.names)}")
        return {name: casts[name](fields[place]) for name, place in places.items()}

    return parse
