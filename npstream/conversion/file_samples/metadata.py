"""Read the metadata of the files of a folder: ``metadata.csv`` or ``metadata.jsonl``.

The format is that of Hugging Face's `datasets`. The value ``file_name`` of each row is the path of
a file, relative to the folder of the metadata. The other values become columns.

Tested in tests/conversion/file_samples/test_folder.py.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from npstream._core.arguments import quantity
from npstream.errors import FormatError, short_repr
from npstream.formats.encodings.encodings import infer

if TYPE_CHECKING:
    from npstream.conversion.files import FileList, SourceFile

__all__ = ["METADATA_NAMES", "Metadata", "read_metadata"]

METADATA_NAMES = ("metadata.csv", "metadata.jsonl")

FILE_NAME = "file_name"

_INTEGER = re.compile(r"0|-?[1-9][0-9]*")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]*)?([eE][+-]?[0-9]+)?")
"""Text that becomes a number. Text such as "007" or "1_000" does not match, and stays text."""


class Metadata:
    """The rows of all metadata files. Each row describes one file, whose path is its key.

    Parameters
    ----------
    where : str
        The paths or URLs of the metadata files, for messages.
    rows : mapping of str to mapping
        Path of a file -> the values of its row, by column.

    Attributes
    ----------
    columns : dict of str to str
        The encoding of each column.
    """

    def __init__(self, where: str, rows: Mapping[str, Mapping[str, Any]]) -> None:
        self.where = where
        self._rows = rows
        names = dict.fromkeys(name for row in rows.values() for name in row)
        self.columns = {
            name: _encoding([row.get(name) for row in rows.values()], f"{where}: {name!r}")
            for name in names
        }

    def check(self, paths: Collection[str], other_columns: Iterable[str]) -> None:
        """Raise ValueError if a row's path is not in `paths`, or a column is in `other_columns`."""
        files = set(paths)
        for path in self._rows:
            if path not in files:
                raise ValueError(f"{self.where}: {short_repr(path)} is not among the files")
        for name in other_columns:
            if name in self.columns:
                raise ValueError(
                    f"{self.where}: column {name!r} is also a column of the files: rename it"
                )

    def row(self, path: str) -> Mapping[str, Any] | None:
        """Return the values of a file; None if it has no row."""
        return self._rows.get(path)


def read_metadata(files: FileList) -> Metadata | None:
    """Return the metadata of a folder; None if there are none.

    Raises
    ------
    FormatError
        If a metadata file cannot be parsed, has no column ``file_name``, or names a file twice.
    """
    rows: dict[str, Mapping[str, Any]] = {}
    sources = [file for file in files.files if file.name.rpartition("/")[2] in METADATA_NAMES]
    for file in sources:
        folder, slash, name = file.name.rpartition("/")
        parse = _csv_rows if name.endswith(".csv") else _json_rows
        for number, row in enumerate(parse(file)):
            path = row.pop(FILE_NAME, None)
            if not isinstance(path, str):
                raise FormatError(
                    f"{file.where}: row {number} has no {FILE_NAME!r}, the path of its file"
                )
            if (path := folder + slash + path.removeprefix("./")) in rows:
                raise FormatError(f"{file.where}: row {number}: {short_repr(path)} has two rows")
            rows[path] = row
    return Metadata(", ".join(file.where for file in sources), rows) if sources else None


def _read_text(file: SourceFile) -> str:
    with file.open() as opened:
        body = opened.read()
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(f"{file.where}: not UTF-8: {error}") from error


def _json_rows(file: SourceFile) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(_read_text(file).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{file.where}: line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise FormatError(f"{file.where}: line {number} is {short_repr(row)}, and no object")
        yield row


def _csv_rows(file: SourceFile) -> Iterator[dict[str, Any]]:
    """Yield the rows. Each column has either text or numbers, see `_number_type`.

    In a column of numbers, an empty text becomes None.
    """
    reader = csv.DictReader(io.StringIO(_read_text(file), newline=""), strict=True)
    try:
        rows = list(reader)
    except csv.Error as error:
        raise FormatError(f"{file.where}: line {reader.line_num}: {error}") from error
    names = reader.fieldnames or []
    if len(set(names)) < len(names):
        raise FormatError(f"{file.where}: two columns have one name: {names}")
    for number, row in enumerate(rows):
        if None in row or None in row.values():
            raise FormatError(
                f"{file.where}: row {number} has not the {quantity(len(names), 'value')} of the "
                "first line"
            )
    number_types = {name: _number_type([row[name] for row in rows]) for name in names}
    for row in rows:
        yield {name: _convert(text, number_types[name]) for name, text in row.items()}


def _convert(text: str, number_type: type[int] | type[float] | None) -> str | float | None:
    if number_type is None:
        return text
    return number_type(text) if text else None


def _number_type(texts: Iterable[str]) -> type[int] | type[float] | None:
    """Return int if all texts are integers, float if all are numbers, else None.

    Empty texts are ignored. If all texts are empty, return None.
    """
    filled = [text for text in texts if text]
    if not filled or not all(map(_NUMBER.fullmatch, filled)):
        return None
    return int if all(map(_INTEGER.fullmatch, filled)) else float


def _encoding(values: Iterable[Any], where: str) -> str:
    """Return the encoding of a column of JSON values; int and float become float."""
    names = {_infer_encoding(value, where) for value in values if value is not None}
    if names == {"int", "float64"}:
        return "float64"
    if len(names) > 1:
        raise FormatError(f"{where} has values of several types: {', '.join(sorted(names))}")
    return names.pop() if names else "json"


def _infer_encoding(value: Any, where: str) -> str:
    try:
        return infer(value).name
    except TypeError as error:
        raise FormatError(f"{where}: {error}") from error
