"""Provide written JSONL, CSV, TSV and XSV shards: a file of lines and a file of offsets each.

`npstream.formats.text` describes the files. Nothing is quoted or escaped in XSV, so a value
that would be read back as something else is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from npstream._core.typing import Bytes, Int64
from npstream.errors import MissingDependencyError
from npstream.formats.encodings import arrays, objects
from npstream.formats.encodings.encodings import parse
from npstream.formats.index import Schema
from npstream.formats.text import CASTS
from npstream.writing.shard import Bodies, ColumnBlock, ShardFormat, ShardOptions, StoredFile
from npstream.writing.tables import has_utf8_name

if TYPE_CHECKING:
    from npstream.formats.encodings.encodings import Encoding


__all__ = ["TEXT_FORMATS", "TextFormat", "TextOptions", "infer_text_type", "parse_text_type"]

TEXT_FORMATS = {"jsonl": "json", "csv": "csv", "tsv": "tsv", "xsv": "xsv"}
"""The names of the formats for users -> their names in the index."""

SEPARATORS = {"csv": ",", "tsv": "\t"}

_BODIES = {"str": "str", "int": "str_int", "float": "str_float"}
"""The encodings of text columns, and the MDS encodings whose bodies are the fields of XSV."""

_MDS = {"str": ("str", None), "int": ("int", 8), "float": ("float64", 8)}
"""The MDS columns that an index without shards records instead, and their sizes."""

_DOUBLE = np.dtype(np.float64)


@dataclass(frozen=True, slots=True)
class TextOptions:
    """The settings of text shards.

    Parameters
    ----------
    format : str
        One of `TEXT_FORMATS`.
    separator : str, optional
        Text between the fields of XSV; the other formats have theirs.
    newline : str, optional
        Text after each line; a line feed by default.

    Raises
    ------
    ValueError
        If the format has no such separator or newline.
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
                f"separator={separator!r}: format={self.format!r} has no choice of it; "
                "choose format='xsv'"
            )
        for option, text in (("separator", separator), ("newline", newline)):
            if not isinstance(text, str | None):
                raise TypeError(f"{option} must be a str; got {type(text).__name__}")
            if text and not has_utf8_name(text):
                raise ValueError(f"{option}={text!r} has surrogates, which UTF-8 has not")
        if not newline or (self.format == "jsonl" and newline.strip("\r\n\t")):
            expected = "\\n, \\r and \\t only" if self.format == "jsonl" else "at least a character"
            raise ValueError(f"newline={newline!r}: expected {expected}")
        separator = separator or SEPARATORS.get(self.format, "")
        if separator and (separator in newline or newline in separator):
            raise ValueError(f"separator={separator!r} and newline={newline!r} contain each other")
        object.__setattr__(self, "separator", separator)
        object.__setattr__(self, "newline", newline)


def parse_text_type(name: str) -> Encoding:
    """Return a column of text shards by the name that ``columns=`` takes.

    Examples
    --------
    >>> parse_text_type("float").kind
    'float_text'
    """
    if name not in CASTS:
        raise ValueError(f"unknown encoding {name!r}: columns of text are {', '.join(CASTS)}")
    return replace(parse(_BODIES[name]), name=name, stored_name=_BODIES[name])


def infer_text_type(encoding: Encoding) -> Encoding:
    """Return the column of text shards for values that MDS shards would store in `encoding`.

    Examples
    --------
    >>> infer_text_type(parse("uint8")).name, infer_text_type(parse("float16")).name
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
    """Shards of lines of text.

    Parameters
    ----------
    columns : mapping of str to Encoding
        The columns in the order in which they were given, as `parse_text_type` returns them.
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
        self.annotations = replace(self.annotations, dtypes={})
        names = tuple(self.columns)
        encodings = tuple(encoding.name for encoding in self.columns.values())
        self.schema = Schema(self._name, names, encodings, (), self._newline, self._separator)
        if self._is_json:
            self._facts["columns"] = dict(zip(names, encodings, strict=True))
            parts = [f"{_escaped(json.dumps(name))}: %s" for name in names]
            template = "{" + ", ".join(parts) + "}"
        else:
            self._facts |= {"column_encodings": list(encodings), "column_names": list(names)}
            if self._name == "xsv":
                self._facts["separator"] = self._separator
            template = _escaped(self._separator).join(["%s"] * len(names))
        self._facts["newline"] = self._newline
        self._template = template + _escaped(self._newline)
        self._configuration = json.dumps(self._facts, sort_keys=True).encode()
        self._header = b"" if self._is_json else self._header_line(names).encode()
        self.uncounted_bytes = len(self._header)
        self.min_sample_bytes = len(self._newline.encode())

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.given_columns, self.options, self.text)

    @property
    def empty_schema(self) -> Schema:
        """The MDS schema that an index without shards records: it has no other format to name."""
        kinds = [_MDS[encoding.name] for encoding in self.columns.values()]
        return Schema(
            "mds", self.schema.names, tuple(name for name, _ in kinds), tuple(n for _, n in kinds)
        )

    def _header_line(self, names: tuple[str, ...]) -> str:
        for name in names:
            if problem := self._problem(name):
                raise ValueError(f"column {name!r}: its name {problem}")
        if (column := self._misread(names)) is not None:
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
                raise self.refusal(sample, name, number, error) from error
        return self._line(tuple(fields), number)

    def pack(self, columns: Mapping[str, ColumnBlock], number: int) -> tuple[Bytes, Int64]:
        """Put columns together as lines; encoded values are decoded first."""
        fields = []
        for name, encoding in self.columns.items():
            part: Any = columns[name]
            if isinstance(part, Bodies):
                part = map(encoding.decode, part.to_list())
            elif isinstance(part, np.ndarray):
                part = part.tolist()
            fields.append(self.bodies(name, part, number))
        rows = zip(*fields, strict=True)
        lines = [self._line(row, at) for at, row in enumerate(rows, number)]
        nbytes = np.fromiter(map(len, lines), np.int64, len(lines))
        return np.frombuffer(b"".join(lines), np.uint8), nbytes

    def head(self, ends: Int64) -> bytes:
        """Return the line of names of XSV; JSONL has none."""
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
        return super().entry(samples, data, None) | meta.facts("meta")

    # Fields: values as text

    def _field_of(self, encoding: Encoding) -> Callable[[Any], str]:
        """Return the function that turns a value of a column into text, or raises."""
        if self._is_json:
            return _JSON_FIELDS[encoding.name]
        return partial(self._plain_field, _PLAIN_FIELDS[encoding.name])

    def _plain_field(self, convert: Callable[[Any], str], value: Any) -> str:
        field = convert(value)
        if self._separator in field or self._newline in field:
            raise ValueError(f"it {self._problem(field)}")
        return field

    def _problem(self, field: str) -> str:
        """Say which text that has a meaning in XSV is in a field; empty if none is."""
        for what, text in (("separator", self._separator), ("newline", self._newline)):
            if text in field:
                return f"contains the {what} {text!r}, and {self._name} has no quotes: {_MEND}"
        return ""

    def _line(self, fields: tuple[str, ...], number: int) -> bytes:
        """Return a line; a separator or newline may also arise where two fields meet."""
        is_simple = self._is_json or (len(self._separator) == 1 == len(self._newline))
        if not is_simple and (column := self._misread(fields)) is not None:
            name = list(self.columns)[column]
            raise ValueError(
                f"sample {number}: column {name!r} cannot take {fields[column]!r}: with what "
                f"follows it, it would be read as another separator or newline: {_MEND}"
            )
        return (self._template % fields).encode()

    def _misread(self, fields: tuple[str, ...]) -> int | None:
        """Return the first column whose field would be read back otherwise."""
        separator, newline = self._separator, self._newline
        text = separator.join(fields)
        if text.split(separator) == list(fields) and (text + newline).find(newline) == len(text):
            return None
        for column in range(len(fields)):
            first = separator.join(fields[: column + 1])
            if column < len(fields) - 1:
                followed = (first + separator).split(separator)
                if followed != [*fields[: column + 1], ""] or newline in first + separator:
                    return column
        return len(fields) - 1


_MEND = "choose another separator (format='xsv'), format='jsonl' or format='mds'"


def _escaped(text: str) -> str:
    """Return text as a part of a template for the operator ``%``."""
    return text.replace("%", "%%")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a str, got {type(value).__name__}")
    value.encode()  # refuses surrogates, which not every reader gives back
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
