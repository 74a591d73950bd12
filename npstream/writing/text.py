"""Provide the encoding of samples as JSONL, CSV, TSV and XSV shards.

A shard is a file of lines and a file of offsets, as in `npstream.formats.text`. XSV, which includes
CSV and TSV here, has no quotes or escapes. A field that would be read back differently therefore
raises.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from npstream._core.typing import Bytes, Int64
from npstream.errors import MissingDependencyError
from npstream.formats.encodings import arrays, objects
from npstream.formats.encodings.encodings import own_encoding
from npstream.formats.index import Schema
from npstream.formats.text import CASTS
from npstream.writing.shard import Bodies, ColumnBlock, ShardFormat, ShardOptions, StoredFile
from npstream.writing.tables import is_utf8_text

if TYPE_CHECKING:
    from npstream.formats.encodings.encodings import Encoding


__all__ = ["TEXT_FORMATS", "TextFormat", "TextOptions", "infer_text_type", "parse_text_type"]

TEXT_FORMATS = {"jsonl": "json", "csv": "csv", "tsv": "tsv", "xsv": "xsv"}
"""The name of each format in the index, by its public name."""

SEPARATORS = {"csv": ",", "tsv": "\t"}

_MDS_ENCODINGS = {"str": "str", "int": "str_int", "float": "str_float"}
"""The MDS encoding of each text encoding. Its bytes are those of a field of XSV."""

_EMPTY_INDEX_COLUMNS = {"str": ("str", None), "int": ("int", 8), "float": ("float64", 8)}
"""The MDS encoding and size of each text encoding, for an index without shards."""

_DOUBLE = np.dtype(np.float64)


@dataclass(frozen=True, slots=True)
class TextOptions:
    """The settings of text shards.

    Parameters
    ----------
    format : str
        One of `TEXT_FORMATS`.
    separator : str, optional
        Text between two fields; required for XSV, fixed for CSV and TSV. JSONL has none.
    newline : str, optional
        Text after each line; a line feed by default.

    Raises
    ------
    ValueError
        If the format does not allow the separator or newline.
    TypeError
        If a separator or newline is not a str.
    """

    format: str
    separator: str | None = None
    newline: str | None = None

    def __post_init__(self) -> None:
        separator = self.separator
        newline = "\n" if self.newline is None else self.newline
        if self.format == "xsv" and not separator:
            raise ValueError("format='xsv' needs separator=, the text between two fields")
        if self.format != "xsv" and separator not in (None, SEPARATORS.get(self.format)):
            raise ValueError(
                f"separator={separator!r}: format={self.format!r} has a fixed separator; "
                "choose format='xsv'"
            )
        for option, text in (("separator", separator), ("newline", newline)):
            if not isinstance(text, str | None):
                raise TypeError(f"{option} must be a str; got {type(text).__name__}")
            if text and not is_utf8_text(text):
                raise ValueError(f"{option}={text!r} has surrogates, which UTF-8 cannot encode")
        if not newline or (self.format == "jsonl" and newline.strip("\r\n\t")):
            expected = "\\n, \\r and \\t only" if self.format == "jsonl" else "at least a character"
            raise ValueError(f"newline={newline!r}: expected {expected}")
        separator = separator or SEPARATORS.get(self.format, "")
        if separator and (separator in newline or newline in separator):
            raise ValueError(f"separator={separator!r} and newline={newline!r} contain each other")
        object.__setattr__(self, "separator", separator)
        object.__setattr__(self, "newline", newline)


def parse_text_type(name: str) -> Encoding:
    """Return a text encoding by its name in ``columns=``.

    Examples
    --------
    >>> parse_text_type("float").kind
    'float_text'
    """
    if name not in CASTS:
        raise ValueError(f"unknown encoding {name!r}: columns of text are {', '.join(CASTS)}")
    encoding = copy(own_encoding(_MDS_ENCODINGS[name]))
    encoding.name = name
    return encoding


def infer_text_type(encoding: Encoding) -> Encoding:
    """Return the text encoding for values whose MDS encoding is `encoding`.

    Examples
    --------
    >>> infer_text_type(own_encoding("uint8")).name, infer_text_type(own_encoding("float16")).name
    ('int', 'float')
    """
    kinds = {"str": "str", "int_text": "int", "float_text": "float"}
    name = kinds.get(encoding.kind)
    if encoding.kind == "fixed" and encoding.shape == () and not encoding.annotated_dtype:
        name = {"i": "int", "u": "int", "f": "float"}.get(encoding.dtype.kind)
    if name is None:
        raise TypeError(
            f"values of {encoding.name!r} cannot be stored as text: convert them and name 'str', "
            "'int' or 'float' in columns=, leave the column out, or write format='mds'"
        )
    return parse_text_type(name)


class TextFormat(ShardFormat):
    """The format of text shards.

    Parameters
    ----------
    columns : mapping of str to Encoding
        The columns in the caller's order, with encodings from `parse_text_type`.
    options : ShardOptions
        The settings of the files.
    text : TextOptions
        The settings of the lines.
    """

    def __init__(
        self, columns: Mapping[str, Encoding], options: ShardOptions, text: TextOptions
    ) -> None:
        assert text.separator is not None
        assert text.newline is not None
        self.text = text
        self._is_json = text.format == "jsonl"
        self._separator, self._newline = text.separator, text.newline
        super().__init__(TEXT_FORMATS[text.format], columns, options, self._field_of)
        # The index itself names these encodings, so its `Annotations` need no dtypes.
        self.annotations = self.annotations._replace(dtypes={})
        names = tuple(self.columns)
        encodings = tuple(encoding.name for encoding in self.columns.values())
        self.schema = Schema(self._name, names, encodings, (), self._newline, self._separator)
        if self._is_json:
            self._entry["columns"] = dict(zip(names, encodings, strict=True))
            parts = [f"{_escape_percent(json.dumps(name))}: %s" for name in names]
            template = "{" + ", ".join(parts) + "}"
        else:
            self._entry |= {"column_encodings": list(encodings), "column_names": list(names)}
            if self._name == "xsv":
                self._entry["separator"] = self._separator
            template = _escape_percent(self._separator).join(["%s"] * len(names))
        self._entry["newline"] = self._newline
        self._template = template + _escape_percent(self._newline)
        self._configuration = json.dumps(self._entry, sort_keys=True).encode()
        self._header = b"" if self._is_json else self._header_line(names).encode()
        self.uncounted_bytes = len(self._header)
        self.min_sample_bytes = len(self._newline.encode())

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.columns_in_order, self.options, self.text)

    @property
    def empty_schema(self) -> Schema:
        """The MDS schema for an index without shards, which cannot record a text format."""
        kinds = [_EMPTY_INDEX_COLUMNS[encoding.name] for encoding in self.columns.values()]
        return Schema(
            "mds", self.schema.names, tuple(name for name, _ in kinds), tuple(n for _, n in kinds)
        )

    def _header_line(self, names: tuple[str, ...]) -> str:
        for name in names:
            if problem := self._conflict(name):
                raise ValueError(f"column {name!r}: its name {problem}")
        if (column := self._first_misread_column(names)) is not None:
            raise ValueError(
                f"the first line of a shard could not be read back, because of column "
                f"{names[column]!r}: choose another name, or another separator"
            )
        return self._separator.join(names) + self._newline

    def encode(self, sample: Mapping[str, Any], number: int) -> bytes:
        """Return the line of a sample; `number` is for messages."""
        fields: list[str] = []
        for name, encode in self.encoders.items():
            try:
                fields.append(encode(sample[name]))
            except (MemoryError, MissingDependencyError):
                raise
            except Exception as error:
                raise self.encode_error(sample, name, number, error) from error
        return self._line(tuple(fields), number)

    def pack(self, columns: Mapping[str, ColumnBlock], number: int) -> tuple[Bytes, Int64]:
        """Join columns to lines; encoded values are decoded first."""
        fields = []
        for name, encoding in self.columns.items():
            part: Any = columns[name]
            if isinstance(part, Bodies):
                part = map(encoding.decode, part.to_list())
            elif isinstance(part, np.ndarray):
                part = part.tolist()
            fields.append(self.bodies(name, part, number))
        rows = zip(*fields, strict=True)
        lines = [self._line(row, sample) for sample, row in enumerate(rows, number)]
        nbytes = np.fromiter(map(len, lines), np.int64, len(lines))
        return np.frombuffer(b"".join(lines), np.uint8), nbytes

    def head(self, ends: Int64) -> bytes:
        """Return the line of column names for XSV; empty for JSONL."""
        return self._header

    def meta(self, ends: Int64) -> bytes:
        """Return the offsets of the lines, and the configuration."""
        begin = len(self._header)
        words = np.empty(len(ends) + 2, "<u4")
        words[:2] = len(ends), begin
        np.add(ends, begin, out=words[2:], casting="unsafe")
        return words.tobytes() + self._configuration

    def entry(self, samples: int, data: StoredFile, meta: StoredFile | None) -> dict[str, Any]:
        """Return the entry of a shard and its files in the index."""
        assert meta is not None
        return super().entry(samples, data, None) | meta.entry("meta")

    # Fields: values as text

    def _field_of(self, encoding: Encoding) -> Callable[[Any], str]:
        """Return the function that converts a value of a column to text, or raises."""
        if self._is_json:
            return _JSON_FIELDS[encoding.name]
        return partial(self._plain_field, _PLAIN_FIELDS[encoding.name])

    def _plain_field(self, convert: Callable[[Any], str], value: Any) -> str:
        field = convert(value)
        if self._separator in field or self._newline in field:
            raise ValueError(f"it {self._conflict(field)}")
        return field

    def _conflict(self, field: str) -> str:
        """Return a message if a field contains the separator or newline; otherwise ""."""
        for option, text in (("separator", self._separator), ("newline", self._newline)):
            if text in field:
                return f"contains the {option} {text!r}, and {self._name} has no quotes: {_FIX}"
        return ""

    def _line(self, fields: tuple[str, ...], number: int) -> bytes:
        """Return the line of `fields`.

        A separator or newline of several characters may also appear across the end of a field and
        the separator after it.
        """
        is_simple = self._is_json or (len(self._separator) == 1 == len(self._newline))
        if not is_simple and (column := self._first_misread_column(fields)) is not None:
            name = list(self.columns)[column]
            raise ValueError(
                f"sample {number}: column {name!r} cannot take {fields[column]!r}: with what "
                f"follows it, it would be read as another separator or newline: {_FIX}"
            )
        return (self._template % fields).encode()

    def _first_misread_column(self, fields: tuple[str, ...]) -> int | None:
        """Return the first column whose field would be read back differently, or None."""
        separator, newline = self._separator, self._newline
        text = separator.join(fields)
        if text.split(separator) == list(fields) and (text + newline).find(newline) == len(text):
            return None
        for column in range(len(fields) - 1):
            beginning = separator.join(fields[: column + 1]) + separator
            is_readable = beginning.split(separator) == [*fields[: column + 1], ""]
            if not is_readable or newline in beginning:
                return column
        return len(fields) - 1


_FIX = "choose another separator (format='xsv'), format='jsonl' or format='mds'"


def _escape_percent(text: str) -> str:
    """Escape text for a template of the operator ``%``."""
    return text.replace("%", "%%")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a str, got {type(value).__name__}")
    value.encode()  # raises for surrogates, which some readers do not return unchanged
    return str(value)


def _int(value: Any) -> str:
    return objects.encode_str_int(value).decode()


def _double(value: Any) -> float:
    return value if type(value) is float else float(arrays.exact_scalar(_DOUBLE, value))


def _json_text(value: Any) -> str:
    return json.dumps(_text(value))


def _json_float(value: Any) -> str:
    return json.dumps(_double(value))


def _plain_float(value: Any) -> str:
    return str(_double(value))


_JSON_FIELDS: dict[str, Callable[[Any], str]] = {
    "str": _json_text,
    "int": _int,
    "float": _json_float,
}
_PLAIN_FIELDS: dict[str, Callable[[Any], str]] = {"str": _text, "int": _int, "float": _plain_float}
