"""Read samples from files of JSON lines. The files may be compressed.

If all columns hold numbers, booleans or text, pyarrow parses blocks of lines. Python parses other
files line by line: in a column of nested objects, Arrow would add missing keys with null.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from npstream._core.dtypes import convert_exactly
from npstream._core.optional import import_optional
from npstream.conversion.files import split_extension
from npstream.conversion.source import (
    EmptySourceError,
    InputSource,
    SourceRequest,
    read_in_thread,
)
from npstream.errors import FormatError, short_repr
from npstream.formats.encodings.encodings import column_type, infer
from npstream.writing.inputs.parts import Part

if TYPE_CHECKING:
    from npstream._core.typing import AnyArray
    from npstream.conversion.files import FileList, SourceFile

__all__ = ["JsonLinesSource"]

JSON_BLOCK = 1 << 22
"""Bytes of lines that are parsed together. The first block decides the types of columns."""

_ARROW_NAMES = {
    "int64": "int64", "uint64": "uint64", "float64": "float64", "bool": "bool_", "str": "string",
}  # fmt: skip
"""The Arrow type of each encoding that pyarrow parses without changing values."""

_VALUE_TYPES: dict[str, set[type]] = {
    "int64": {int},
    "uint64": {int},
    "float64": {int, float},
    "bool": {bool},
    "str": {str},
}
"""The Python types of the JSON values that a column of each encoding may have."""

_TYPE_NAMES = {
    bool: "true or false", int: "an integer", float: "a number", str: "text", dict: "an object",
    list: "a list", type(None): "null",
}  # fmt: skip


class JsonLinesSource(InputSource):
    """Files with a JSON object in each line, in the natural order of their names.

    The first `JSON_BLOCK` bytes of the first file with samples decide the columns and their types:
    ``"int64"``, ``"float64"``, ``"bool"``, ``"str"``, or ``"json"`` for lists and objects.
    """

    kind = "jsonl"
    extensions = (".jsonl", ".ndjson")

    def __init__(self, files: FileList, request: SourceRequest) -> None:
        super().__init__(files, request)
        self._files = [file for file in self.data_files() if file.nbytes]
        types: dict[str, set[type]] = {}
        where = files.where
        for file in self._files:
            with file.decompressed() as opened:
                for line, block in _blocks(opened):
                    types = _types_of(row for _, row in _parse(file, line, block))
                    break
            if types:
                where = file.where
                break
        fill = request.fill
        requested = request.columns
        has_encodings = all(n in request.encodings or n in fill for n in requested or ())
        if not types and not (requested and has_encodings):
            raise EmptySourceError(
                f"{files.where}: there are no samples, so the columns are unknown"
            )
        names = self.select_columns(types, where) if types else list(requested or ())
        names += [n for n in fill if n not in names and (requested is None or n in requested)]
        self._names = names
        self._first_keys = set(types)
        # Lines are parsed as the inferred encodings. The writer converts values to `columns`.
        inferred = {name: self._infer_encoding(name, types, where) for name in names}
        self.columns = {name: request.encodings.get(name) or inferred[name] for name in names}
        self._uses_arrow = all(name in types and inferred[name] in _ARROW_NAMES for name in names)
        self._inferred_encodings = inferred
        self._value_types = {
            n: _VALUE_TYPES[inferred[n]] for n in names if inferred[n] in _VALUE_TYPES
        }
        targets = {name: column_type(encoding) for name, encoding in self.columns.items()}
        self._array_dtypes = {
            name: target.dtype
            for name, target in targets.items()
            if target.kind == "ndarray" or target.shape
        }

    @classmethod
    def recognizes(cls, files: FileList) -> bool:
        """Return True for a single .json file. `recognize_kind` finds others by `extensions`."""
        return len(files.files) == 1 and split_extension(files.files[0].name)[0] == ".json"

    def parts(self) -> Sequence[Part]:
        """Return a part for each file that is not empty."""
        return [Part(file.name, partial(self._open, file)) for file in self._files]

    def locate(self, part: str, row: int) -> str:
        """Return the number of a sample's line; the file is read, as blank lines do not count."""
        file = next(file for file in self._files if file.name == part)
        for line, block in self._file_blocks(file):
            for number, text in enumerate(block.split(b"\n"), line):
                if text.strip():
                    if not row:
                        return f"line {number}"
                    row -= 1
        return ""

    def _open(self, file: SourceFile) -> Iterator[Any]:
        return read_in_thread(self._tables(file)) if self._uses_arrow else self._samples(file)

    def _infer_encoding(self, name: str, types: Mapping[str, set[type]], where: str) -> str:
        """Return the encoding by which the values of a column are parsed and checked.

        It follows from the types of the values in the first rows. Integers mixed with floats are
        "float64". The requested encoding is returned if other types are mixed, or if the types are
        unknown. It is also returned if it can hold more values than the inferred encoding.
        """
        kinds = types.get(name, set()) - {type(None)}
        requested = self.request.encodings.get(name)
        if requested in ("json", "pkl"):
            return requested  # stores values of any type
        if not kinds:
            if requested is not None:
                return requested
            if name in self.request.fill:
                return infer(self.request.fill[name]).name
            raise TypeError(
                f"{where}: column {name!r} has only null in the first rows: name its encoding, as "
                f"in columns={{{name!r}: 'json', ...}}, or leave it out"
            )
        if kinds <= {list, dict}:
            return "json"
        if kinds == {int} and requested in ("uint64", "str_int"):
            return requested  # these encodings can hold integers that int64 cannot
        if len(kinds) == 1:
            return {bool: "bool", int: "int64", float: "float64", str: "str"}[kinds.pop()]
        if kinds == {int, float}:
            return "float64"
        if requested is not None:
            return requested
        kind_names = " and ".join(sorted(_TYPE_NAMES[kind] for kind in kinds))
        raise TypeError(
            f"{where}: column {name!r} has {kind_names}: keep both with "
            f"columns={{{name!r}: 'json', ...}}, or leave it out"
        )

    def _samples(self, file: SourceFile) -> Iterator[dict[str, Any]]:
        """Yield the lines of a file as samples."""
        for line, block in self._file_blocks(file):
            for number, row in _parse(file, line, block):
                sample = {name: row[name] for name in self._names if name in row}
                self._check(file, number, row)
                for name, dtype in self._array_dtypes.items():
                    if sample.get(name) is not None:
                        sample[name] = self._array(file, number, name, sample[name], dtype)
                yield sample

    def _tables(self, file: SourceFile) -> Iterator[Any]:
        """Yield blocks of the lines of a file as Arrow tables."""
        pa = import_optional("pyarrow", "pyarrow", "arrow")
        pj = import_optional("pyarrow.json", "pyarrow", "arrow")
        types = {n: getattr(pa, _ARROW_NAMES[self._inferred_encodings[n]])() for n in self._names}
        schema = pa.schema(list(types.items()))
        unexpected = "error" if self.request.columns is None else "ignore"
        options = pj.ParseOptions(schema, unexpected_field_behavior=unexpected)
        for line, block in self._file_blocks(file):
            # pyarrow splits data that is larger than its block size, and a split could cut a line.
            # So the block size is larger than `block`.
            reading = pj.ReadOptions(use_threads=False, block_size=len(block) + 1)
            try:
                table = pj.read_json(pa.BufferReader(block), reading, options)
                is_exact = not _may_be_rounded(table)
            except pa.ArrowException:
                is_exact = False
            if not is_exact:
                table = self._parse_in_python(file, line, block, schema)
            yield table.select(self._names)

    def _parse_in_python(self, file: SourceFile, line: int, block: bytes, schema: Any) -> Any:
        """Return a table of a block that pyarrow cannot parse exactly; raise for a wrong value."""
        pa = import_optional("pyarrow", "pyarrow", "arrow")
        rows = list(_parse(file, line, block))
        for number, row in rows:
            self._check(file, number, row)
        columns = []
        for field in schema:
            values = [row.get(field.name) for _, row in rows]
            if self._inferred_encodings[field.name] == "float64":
                # `_check` raised for integers that a float64 would round.
                values = [None if value is None else float(value) for value in values]
            try:
                columns.append(pa.array(values, field.type))
            except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
                index = _find_invalid(values, field.type)
                raise ValueError(
                    f"{file.where}: line {rows[index][0]}: column {field.name!r}: "
                    f"{short_repr(values[index])} is not of the type {field.type}: {error}: name "
                    f"another encoding, as in columns={{{field.name!r}: 'json', ...}}"
                ) from error
        return pa.table(columns, schema)

    def _check(self, file: SourceFile, number: int, row: Mapping[str, Any]) -> None:
        """Raise ValueError if a value has another type than in the first rows.

        A key that the first rows lack also raises, unless ``columns=`` names the columns.
        """
        if self.request.columns is None and not self._first_keys.issuperset(row):
            raise self._unknown_key(file, number, row)
        for name, types in self._value_types.items():
            value = row.get(name)
            if type(value) is int and float in types and not _fits_float64(value):
                raise ValueError(
                    f"{file.where}: line {number}: column {name!r}: a float64 would round {value}: "
                    f"give the type, as in columns={{{name!r}: 'json', ...}}"
                )
            if value is not None and type(value) not in types:
                raise ValueError(
                    f"{file.where}: line {number}: column {name!r}: {short_repr(value)} is "
                    f"{_TYPE_NAMES[type(value)]}, and the first rows are "
                    f"{self._inferred_encodings[name]!r}: give the type, as in columns={{{name!r}: "
                    "'json', ...}"
                )

    def _array(
        self, file: SourceFile, number: int, name: str, value: Any, dtype: np.dtype[Any]
    ) -> AnyArray:
        """Return a list of numbers as an array; raise ValueError if that changes a number."""
        try:
            array = np.array(value)
            converted, changed = convert_exactly(array, dtype)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(
                f"{file.where}: line {number}: column {name!r}: {short_repr(value)} is no array of "
                f"{dtype}: {error}"
            ) from error
        if changed.any():
            raise ValueError(
                f"{file.where}: line {number}: column {name!r}: {dtype} cannot hold "
                f"{array[changed][0]}: choose another encoding in columns="
            )
        return converted

    def _unknown_key(self, file: SourceFile, number: int, row: Mapping[str, Any]) -> ValueError:
        name = next(name for name in row if name not in self._first_keys)
        return ValueError(
            f"{file.where}: line {number} has the key {name!r}, which the first rows lack: name "
            "the columns to write with columns=, or give fill= a value for it"
        )

    def _file_blocks(self, file: SourceFile) -> Iterator[tuple[int, bytes]]:
        with file.decompressed() as opened:
            yield from _blocks(opened)


def _find_invalid(values: Sequence[Any], arrow_type: Any) -> int:
    """Return the index of the first value that an Arrow type cannot hold."""
    pa = import_optional("pyarrow", "pyarrow", "arrow")
    for index, value in enumerate(values):
        try:
            pa.scalar(value, arrow_type)
        except (pa.ArrowException, OverflowError, UnicodeEncodeError):
            return index
    return 0


def _fits_float64(number: int) -> bool:
    """Return True if a float64 has exactly the value of `number`."""
    try:
        return int(float(number)) == number
    except OverflowError:
        return False


def _may_be_rounded(table: Any) -> bool:
    """Return True if a column of floats may have integers that a float64 rounded."""
    pc = import_optional("pyarrow.compute", "pyarrow", "arrow")
    for column in table.columns:
        if str(column.type) == "double":
            largest = pc.max(pc.abs(column)).as_py()
            if largest is not None and largest >= 2**53:
                return True
    return False


def _types_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, set[type]]:
    types: dict[str, set[type]] = {}
    for row in rows:
        for name, value in row.items():
            types.setdefault(name, set()).add(type(value))
    return types


def _blocks(opened: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield blocks of whole lines, each with the number of its first line."""
    line, partial_line = 1, bytearray()
    while chunk := opened.read(JSON_BLOCK):
        if line == 1 and not partial_line:
            chunk = chunk.removeprefix(b"\xef\xbb\xbf")  # a byte order mark
        end = chunk.rfind(b"\n") + 1
        if end:
            block = bytes(partial_line) + chunk[:end]
            yield line, block
            line += block.count(b"\n")
            partial_line = bytearray()
        partial_line += chunk[end:]
    if partial_line:
        yield line, bytes(partial_line)


def _parse(file: SourceFile, line: int, block: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of lines, each with the number of its line; blank lines are left out."""
    for number, text in enumerate(block.split(b"\n"), line):
        if not text.strip():
            continue
        try:
            row = json.loads(text.decode())
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{file.where}: line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            hint = ""
            if number == 1 and isinstance(row, list):
                hint = (
                    "; the file is one JSON list: read it with json.load, and pass the list to "
                    "npstream.write"
                )
            raise FormatError(
                f"{file.where}: line {number} is {_TYPE_NAMES[type(row)]} and not an object{hint}"
            )
        yield number, row
