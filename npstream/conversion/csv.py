"""CSV and TSV files as a source, compressed or not."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

from npstream._core.optional import import_optional
from npstream.conversion.arrow import TableColumns
from npstream.conversion.files import FileList, SourceFile, split_extension
from npstream.conversion.source import (
    EmptySourceError,
    InputSource,
    SourceRequest,
    read_in_thread,
)
from npstream.errors import FormatError
from npstream.formats.encodings.encodings import column_type
from npstream.writing.inputs.parts import Part

__all__ = ["CsvSource"]

CSV_BLOCK = 1 << 22
"""Bytes of text that are parsed together. The first block decides the types of columns."""

_READ_BLOCK = 1 << 20
"""Bytes of text that are parsed together once the types are known.

pyarrow reads 32 blocks ahead, so short blocks need less memory. A row must fit in a block, so a
file with a longer row is parsed in blocks of `CSV_BLOCK` bytes.
"""

_PARSE_OPTIONS = ("delimiter", "quote_char", "escape_char", "newlines_in_values")
_CONVERT_OPTIONS = (
    "null_values", "strings_can_be_null", "true_values", "false_values", "decimal_point",
    "timestamp_parsers",
)  # fmt: skip
_READ_OPTIONS = ("encoding", "names", "skip_rows")

_BAD_VALUE = re.compile(
    r"In CSV column #(\d+): (?:Row #(\d+): )?CSV conversion error to (.+?): invalid value '(.*)'",
    re.DOTALL,
)
_BAD_DECIMAL = re.compile(r"In CSV column #(\d+): (?:Row #(\d+): )?(.*[Dd]ecimal.*)", re.DOTALL)
"""The message for a value of a `str_int` column that is no integer of at most 38 digits."""

_LONG_INTEGER = re.compile(r"\s*[+-]?\d{16,}\s*")
"""An integer that a float64 may round: all integers with fewer digits are exact."""


class CsvSource(InputSource):
    """Files of comma-separated values, in the natural order of their names.

    The first line has the names of the columns. The first `CSV_BLOCK` bytes of the first file with
    rows decide the types: integers, floats, booleans, dates, timestamps, or text. Files with the
    extension .tsv are separated by tabs.
    """

    kind = "csv"
    extensions = (".csv", ".tsv")
    OPTIONS: ClassVar[tuple[str, ...]] = (*_PARSE_OPTIONS, *_CONVERT_OPTIONS, *_READ_OPTIONS)

    def __init__(self, files: FileList, request: SourceRequest) -> None:
        super().__init__(files, request)
        import_optional("pyarrow", "pyarrow", "arrow", "reading CSV files")
        self._files = [file for file in self.data_files() if file.nbytes]
        self._headers = [self._read_header(file) for file in self._files]
        self._types: dict[str, Any] = {}
        if not self._files:
            raise EmptySourceError(f"{files.where}: all files are empty, without a line of names")
        first_where = self._files[0].where
        names = self.select_columns(self._headers[0], first_where)
        # A column of `fill` is written even if no file has it.
        names += [
            name
            for name in request.fill
            if name not in names and (request.columns is None or name in request.columns)
        ]
        pa = import_optional("pyarrow", "pyarrow", "arrow")
        self._types = self._column_types([n for n in names if n in self._headers[0]])
        schema = pa.schema(list(self._types.items()))
        self._columns = TableColumns(names, schema, request, first_where)
        for file, header in zip(self._files[1:], self._headers[1:], strict=True):
            fields = [pa.field(name, self._types.get(name, pa.string())) for name in header]
            self._columns.check(pa.schema(fields), file.where)
        self.columns = self._columns.encodings

    def parts(self) -> Sequence[Part]:
        """Return a part for each file that is not empty."""
        return [
            Part(file.name, partial(self._open, file, header))
            for file, header in zip(self._files, self._headers, strict=True)
        ]

    def locate(self, part: str, row: int) -> str:
        """Return the number of a row in its file, as pyarrow counts it in its messages."""
        return f"row {row + self._first_row}"

    @property
    def _first_row(self) -> int:
        """The number that pyarrow gives to the first row of values.

        It counts from 1. It also counts the line of names and skipped lines.
        """
        options = self.request.options
        return int(options.get("skip_rows", 0)) + ("names" not in options) + 1

    def _open(self, file: SourceFile, header: list[str]) -> Iterator[Any]:
        return read_in_thread(self._batches(file, header))

    def _batches(self, file: SourceFile, header: list[str]) -> Iterator[Any]:
        pa = import_optional("pyarrow", "pyarrow", "arrow")
        names = [name for name in self._columns.encodings if name in header]
        types = {name: self._types.get(name, pa.string()) for name in names}
        cast = self._columns.caster(pa.schema(list(types.items())))
        options = {"column_types": types, "include_columns": names}
        with self._arrow_errors(file, header):
            for batch in self._parsed_batches(file, options):
                yield batch if cast is None else cast(batch)

    def _parsed_batches(self, file: SourceFile, options: dict[str, Any]) -> Iterator[Any]:
        """Yield the record batches of a file, which is parsed in blocks of `_READ_BLOCK` bytes.

        If a row is longer than such a block, the file is parsed again in blocks of `CSV_BLOCK`
        bytes. Rows that were already yielded are skipped.
        """
        pa = import_optional("pyarrow", "pyarrow", "arrow")
        rows = 0
        try:
            with file.decompressed() as opened:
                for batch in self._reader(file, opened, _READ_BLOCK, **options):
                    yield batch
                    rows += len(batch)
            return
        except pa.ArrowInvalid as error:
            if "block size" not in str(error):
                raise
        with file.decompressed() as opened:
            for batch in self._reader(file, opened, **options):
                if rows < len(batch):
                    yield batch.slice(rows)
                rows = max(rows - len(batch), 0)

    def _column_types(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the Arrow type of each column.

        It follows from the encoding that the user named, or else from the first rows.
        """
        pa = import_optional("pyarrow", "pyarrow", "arrow")
        types = {
            name: _arrow_type(self.request.encodings[name])
            for name in names
            if name in self.request.encodings
        }
        inferred = [name for name in names if name not in types]
        has_rows = False
        for file, header in zip(self._files, self._headers, strict=True):
            present = [name for name in inferred if name in header]
            if not present:
                continue
            with self._arrow_errors(file, header):
                with file.decompressed() as opened:
                    reader = self._reader(file, opened, column_types={}, include_columns=present)
                    batch = next(iter(reader), None)
                if batch is not None and batch.num_rows:
                    has_rows = True
                    self._refuse_large_integers(file, header, batch)
                    types.update(zip(batch.schema.names, batch.schema.types, strict=True))
                    break
        if inferred and not has_rows and not all(name in self.request.fill for name in inferred):
            raise EmptySourceError(
                f"{self.files.where}: there are no rows after the line of names, so the types of "
                f"the columns are unknown: give them, as in columns={{{inferred[0]!r}: 'str', ...}}"
            )
        return {name: types.get(name, pa.null()) for name in names}

    def _refuse_large_integers(self, file: SourceFile, header: list[str], batch: Any) -> None:
        """Raise ValueError for integers that pyarrow reads as floats and rounds."""
        pa = import_optional("pyarrow", "pyarrow", "arrow")
        floats = [
            name
            for name, arrow_type in zip(batch.schema.names, batch.schema.types, strict=True)
            if pa.types.is_floating(arrow_type)
        ]
        if not floats:
            return
        types = dict.fromkeys(floats, pa.string())
        with file.decompressed() as opened:
            texts = next(
                iter(self._reader(file, opened, column_types=types, include_columns=floats))
            )
        for name in floats:
            for row, text in enumerate(texts.column(name).to_pylist(), self._first_row):
                if text and _LONG_INTEGER.fullmatch(text) and int(float(text)) != int(text):
                    raise ValueError(
                        f"{file.where}: row {row}: column {name!r}: a float64 would round {text}, "
                        "which exceeds int64 or is among floats: give the type, as in "
                        f"columns={{{name!r}: 'str_int', ...}}, 'float64' to round it, or 'str' to "
                        "keep the text"
                    )

    def _read_header(self, file: SourceFile) -> list[str]:
        """Return the names of a file's columns."""
        pa = import_optional("pyarrow", "pyarrow", "arrow")
        with self._arrow_errors(file, []), file.decompressed() as opened:
            reader = self._reader(file, opened, default_column_type=pa.string())
            names: list[str] = reader.schema.names
        for name in names:
            if names.count(name) > 1:
                raise ValueError(
                    f"{file.where}: two columns have the name {name!r}: give other names with "
                    "reader_options={'names': [...], 'skip_rows': 1}"
                )
        return names

    def _reader(self, file: SourceFile, opened: Any, block: int = 0, **convert_options: Any) -> Any:
        """Return pyarrow's reader of record batches of `block` bytes, by default of `CSV_BLOCK`."""
        csv = import_optional("pyarrow.csv", "pyarrow", "arrow")
        options = self.request.options
        is_tsv = split_extension(file.name)[0] == ".tsv"
        parse_options: dict[str, Any] = {
            "delimiter": "\t" if is_tsv else ",",
            "newlines_in_values": True,
            **{name: options[name] for name in _PARSE_OPTIONS if name in options},
        }
        read_options = {key: options[key] for key in ("encoding", "skip_rows") if key in options}
        if "names" in options:
            read_options["column_names"] = list(options["names"])
        convert_options.update((key, options[key]) for key in _CONVERT_OPTIONS if key in options)
        return csv.open_csv(
            opened,
            # With threads, errors of pyarrow do not have the number of the row.
            read_options=csv.ReadOptions(
                use_threads=False, block_size=min(block or CSV_BLOCK, CSV_BLOCK), **read_options
            ),
            parse_options=csv.ParseOptions(**parse_options),
            convert_options=csv.ConvertOptions(**convert_options),
        )

    @contextmanager
    def _arrow_errors(self, file: SourceFile, header: Sequence[str]) -> Iterator[None]:
        """Convert exceptions of pyarrow to errors that name the file and the column."""
        pa = import_optional("pyarrow", "pyarrow", "arrow")
        try:
            yield
        except pa.ArrowException as error:
            raise _csv_error(file, header, str(error), self.request.encodings) from error


def _csv_error(
    file: SourceFile, header: Sequence[str], message: str, encodings: Mapping[str, str]
) -> ValueError:
    """Return the error to raise for the message of an exception of pyarrow."""
    match = _BAD_VALUE.search(message)
    if match is None and (bad_decimal := _BAD_DECIMAL.search(message)) is not None:
        number, row, reason = bad_decimal.groups()
        return ValueError(
            f"{file.where}: row {row}: column {header[int(number)]!r}: {reason}: a column of the "
            "type 'str_int' takes integers of at most 38 digits: name another type in columns=, "
            "such as 'str'"
        )
    if match is None:
        hint = ": give reader_options={'encoding': ...}" if "UTF8" in message else ""
        return FormatError(f"{file.where}: cannot be read as CSV: {message}{hint}")
    number, row, arrow_type, value = match.groups()
    name = header[int(number)] if int(number) < len(header) else f"#{number}"
    where = f"{file.where}: row {row}: column {name!r}" if row else f"{file.where}: column {name!r}"
    if name in encodings:
        return ValueError(
            f"{where}: {value!r} is not of the type {encodings[name]!r} in columns=: choose "
            "another one, such as 'str'"
        )
    return ValueError(
        f"{where}: {value!r} is not of the type {arrow_type}, which the first rows have: give the "
        f"type, as in columns={{{name!r}: 'str', ...}}"
    )


def _arrow_type(encoding: str) -> Any:
    """Return the Arrow type with which to read a column of an encoding that the user named."""
    pa = import_optional("pyarrow", "pyarrow", "arrow")
    target = column_type(encoding)
    if target.name == "str_int":
        return pa.decimal128(38, 0)
    if target.kind == "int_text":
        return pa.int64()
    if target.kind == "bytes":
        return pa.binary()
    if target.kind not in ("fixed", "float_text") or target.shape:
        return pa.string()
    dtype = target.dtype
    if dtype.kind == "M":
        unit = dtype.name.partition("[")[2].rstrip("]")
        return pa.date32() if unit == "D" else pa.timestamp(unit)
    if dtype.kind in "iufb" and dtype.itemsize <= 8 and dtype.name != "float16":
        return pa.from_numpy_dtype(dtype)
    return pa.float64() if dtype.kind == "f" else pa.string()
