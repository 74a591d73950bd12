"""Text shards (JSONL, CSV, TSV, XSV): lines in a data file, their offsets in a meta file.

::

    data   [XSV only: the columns' names, joined by the separator, newline]
           line[0 .. n - 1]     each with its newline
    meta   u32 n, u32 offset[n + 1] (absolute, in data), JSON configuration

A JSONL line is an object that maps the shard's columns to values. An XSV line is the values joined
by the separator, without quoting or escapes. CSV and TSV are XSV with a fixed separator. The
encodings are ``str``, ``int`` and ``float``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from npstream._core.arguments import quantity
from npstream._core.typing import Bytes
from npstream.errors import FormatError
from npstream.formats.heads import check_ascending, check_configuration

if TYPE_CHECKING:
    from npstream.formats.index import Schema

CASTS: dict[str, Callable[[Any], Any]] = {"str": str, "int": int, "float": float}
"""Encoding of a text column -> function that converts an XSV field to a value."""

Parser = Callable[[bytes], dict[str, Any]]


def guard_nbytes(schema: Schema) -> int:
    """Return the number of guard bytes of a line: the bytes of the newline before an XSV line.

    Readers check the guard bytes. Otherwise, a damaged offset could cut off the start of an XSV
    line unnoticed. JSONL lines need no guard, because they start with a brace.
    """
    return len(schema.newline.encode()) if schema.format in ("csv", "tsv", "xsv") else 0


def is_complete_line(schema: Schema, line: bytes) -> bool:
    """Return True if `line`, which starts with its guard bytes, looks like one whole line."""
    newline, guard_bytes = schema.newline.encode(), guard_nbytes(schema)
    begin = newline if guard_bytes else b"{"
    return line.startswith(begin) and line.find(newline, guard_bytes) == len(line) - len(newline)


def check_text_head(
    schema: Schema, data: Bytes, meta: Bytes, samples: int, nbytes: int | None = None
) -> int:
    """Check a text shard's files against the index and return the offset of its first line.

    Parameters
    ----------
    schema : Schema
    data, meta : ndarray of uint8
        The whole files. Of `data`, the bytes before the first line are enough.
    samples : int
        Number of samples according to the index.
    nbytes : int, optional
        Bytes of the whole data file; by default the length of `data`.

    Raises
    ------
    FormatError
        If the meta file contradicts the index or the size of the data file.
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
    check_ascending(words[1:])
    check_configuration(schema, meta[head:])
    return begin


def parser(schema: Schema, names: Sequence[str]) -> Parser:
    """Return a function that parses one line into the values of the columns `names`.

    The function raises `FormatError` if the line does not follow the schema.
    """
    if schema.format == "json":
        return _json_parser(schema, names)
    return _xsv_parser(schema, names)


def parse_together(schema: Schema, lines: bytes, count: int) -> dict[str, list[Any]] | None:
    """Parse all lines in one call, which is several times faster than line by line.

    Unlike `parser`, this does not check each line. It may return wrong values for a damaged line.

    Parameters
    ----------
    schema : Schema
    lines : bytes
        Consecutive lines, each with its newline.
    count : int
        The expected number of lines.

    Returns
    -------
    dict of str to list, or None
        For each column, its value in each line. None if the lines must be parsed one by one: they
        are damaged, or the separator or the newline has several characters.
    """
    newline, separator = schema.newline.encode(), schema.separator.encode()
    if len(newline) != 1 or len(separator) > 1 or lines.count(newline) != count or not count:
        return None
    try:
        if schema.format == "json":
            records = json.loads(b"[" + lines[:-1].replace(newline, b",") + b"]")
            if len(records) != count:
                return None
            return {
                name: [_json_value(record, name, encoding) for record in records]
                for name, encoding in zip(schema.names, schema.encodings, strict=True)
            }
        fields = lines[:-1].replace(newline, separator).decode().split(schema.separator)
        width = len(schema.names)
        if len(fields) != count * width:
            return None
        return {
            name: list(map(CASTS[encoding], fields[k::width]))
            for k, (name, encoding) in enumerate(zip(schema.names, schema.encodings, strict=True))
        }
    except (ValueError, TypeError, RecursionError):
        return None


def _json_parser(schema: Schema, names: Sequence[str]) -> Parser:
    encodings = dict(zip(schema.names, schema.encodings, strict=True))
    # The objects have the stored names of columns, even if the columns are renamed.
    keys = dict(zip(schema.names, schema.keys or schema.names, strict=True))

    def parse(line: bytes) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except RecursionError:
            raise FormatError("JSON is nested too deeply") from None
        if not isinstance(record, dict):
            raise FormatError(f"the line holds {type(record).__name__}; expected an object")
        return {name: _json_value(record, keys[name], encodings[name]) for name in names}

    return parse


def _json_value(record: dict[str, Any], name: str, encoding: str) -> Any:
    if name not in record:
        raise FormatError(f"the line has no {name!r}")
    value = record[name]
    if encoding != "str" and isinstance(value, int):
        try:
            # A float column may hold integers. An int column may hold ``true``: a bool is an int,
            # so Streaming's writer accepts it.
            return CASTS[encoding](value)
        except OverflowError as error:
            raise FormatError(f"column {name!r}: {error}") from None
    if type(value) is not CASTS[encoding]:
        raise FormatError(f"column {name!r}: {value!r} is not of type {encoding}")
    return value


def _xsv_parser(schema: Schema, names: Sequence[str]) -> Parser:
    newline, separator = schema.newline, schema.separator
    positions = {name: schema.names.index(name) for name in names}
    casts = {name: CASTS[schema.encodings[position]] for name, position in positions.items()}

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
        return {name: casts[name](fields[position]) for name, position in positions.items()}

    return parse
