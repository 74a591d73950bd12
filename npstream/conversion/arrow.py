"""Choose the encodings of Arrow columns, and cast columns before they are written.

Tested in tests/conversion/test_parquet.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from npstream._core.optional import import_optional
from npstream.errors import NpstreamError
from npstream.formats.encodings.encodings import column_type, infer
from npstream.writing.inputs.arrow_columns import ArrowColumn, plain_type
from npstream.writing.inputs.fill import NO_FILL, Fill

if TYPE_CHECKING:
    from npstream.conversion.source import SourceRequest

__all__ = ["TABLE_BYTES", "TableColumns"]

TABLE_BYTES = 1 << 22
"""Approximate size in bytes of each record batch that a source reads."""


class TableColumns:
    """The columns to write from a source that reads Arrow tables.

    Parameters
    ----------
    names : iterable of str
        The columns to write, in order.
    schema : pyarrow.Schema
        The schema of the first table. Columns that it lacks get the values of ``fill=``.
    request : SourceRequest
        Its encodings take precedence over the types of the schema. A ``fill=`` value gives the
        encoding of a column that the schema lacks, or that has only nulls.
    where : str
        The first file, for messages.

    Attributes
    ----------
    encodings : dict of str to str
        The encoding of each column, by name.

    Raises
    ------
    TypeError
        If no encoding follows from a type.
    ValueError
        If two columns of the schema have the same name.
    """

    def __init__(
        self, names: Iterable[str], schema: Any, request: SourceRequest, where: str
    ) -> None:
        self._request = request
        self._where = where
        _refuse_repeated(schema, where)
        self.encodings = {name: self._encoding(name, schema, where) for name in names}

    def check(self, schema: Any, where: str) -> None:
        """Raise if a later table needs other columns or encodings than the first one.

        Raises
        ------
        ValueError
            The message names the file and the column.
        """
        names = schema.names
        _refuse_repeated(schema, where)
        for name, encoding in self.encodings.items():
            if name not in names:
                if name in self._request.fill:
                    continue
                raise ValueError(
                    f"{where}: there is no column {name!r}, which {self._where} has: give fill= a "
                    "value for it, or leave it out with columns="
                )
            later = self._encoding(name, schema, where)
            if later != encoding and not _is_null(schema.field(name).type):
                raise ValueError(
                    f"{where}: column {name!r} is of type {schema.field(name).type}, written as "
                    f"{later!r}, and {encoding!r} in {self._where}: name one encoding for both, "
                    f"as in columns={{{name!r}: {later!r}, ...}}, or leave the column out"
                )
        if self._request.columns is None:
            for name in names:
                if name not in self.encodings:
                    raise ValueError(
                        f"{where}: column {name!r} is not in {self._where}: name the columns to "
                        "write with columns=, or give fill= a value for it"
                    )

    def _encoding(self, name: str, schema: Any, where: str) -> str:
        if name in self._request.encodings:
            return self._request.encodings[name]
        fill = self._fill(name)
        if name not in schema.names:
            return infer(fill.value).name
        arrow_type = schema.field(name).type
        try:
            if _is_null(arrow_type) and not fill:
                raise TypeError(
                    "it has only nulls: give fill= a value for it, or leave the column out: "
                    "columns= names those to write"
                )
            if fix := _cast_hint(name, arrow_type):
                raise TypeError(f"no encoding follows from Arrow's {arrow_type}: {fix}")
            empty = import_optional("pyarrow", "pyarrow", "arrow").nulls(0, arrow_type)
            return ArrowColumn(empty, fill).encoding().name
        except NpstreamError:
            raise
        except TypeError as error:
            raise TypeError(f"{where}: column {name!r}: {error}") from error

    def _fill(self, name: str) -> Fill:
        fill = self._request.fill
        return Fill(fill[name]) if name in fill else NO_FILL

    def caster(self, schema: Any) -> Callable[[Any], Any] | None:
        """Return a function that casts columns of a batch; None if no column needs a cast."""
        types = {
            name: target
            for name in schema.names
            if name in self._request.encodings
            and (target := _cast_type(schema.field(name).type, self._request.encodings[name]))
        }
        return None if not types else lambda batch: _cast(batch, types)


def _refuse_repeated(schema: Any, where: str) -> None:
    """Raise ValueError if two columns have the same name."""
    for name, count in Counter(schema.names).items():
        if count > 1:
            raise ValueError(f"{where}: {count} columns have the name {name!r}: rename them")


def _is_null(arrow_type: Any) -> bool:
    return bool(import_optional("pyarrow.types", "pyarrow", "arrow").is_null(arrow_type))


def _cast_hint(name: str, arrow_type: Any) -> str:
    """Return what an error message advises for a column whose encoding the user must name.

    Return "" if an encoding follows from the type.
    """
    types = import_optional("pyarrow.types", "pyarrow", "arrow")
    alternative = "or leave the column out: columns= names those to write"
    arrow_type = plain_type(arrow_type)
    if types.is_timestamp(arrow_type) and arrow_type.tz is not None:
        example = f"columns={{{name!r}: 'datetime64[{arrow_type.unit}]', ...}}"
        return f"{example} stores UTC, {alternative}"
    if types.is_time(arrow_type):
        return f"columns={{{name!r}: 'str', ...}} stores text, {alternative}"
    return ""


def _cast_type(arrow_type: Any, encoding: str) -> Any:
    """Return the type to cast a column to before it is written; None to leave it as it is."""
    pa = import_optional("pyarrow", "pyarrow", "arrow")
    arrow_type = plain_type(arrow_type)
    if pa.types.is_timestamp(arrow_type) and arrow_type.tz is not None:
        if column_type(encoding).dtype.kind == "M":
            return pa.timestamp(arrow_type.unit)  # stored times are UTC; the cast keeps them
        return pa.string() if encoding == "str" else None
    if pa.types.is_time(arrow_type) or (
        encoding == "str" and (pa.types.is_date(arrow_type) or pa.types.is_timestamp(arrow_type))
    ):
        return pa.string() if encoding == "str" else None
    return None


def _cast(batch: Any, types: Mapping[str, Any]) -> Any:
    for name, target in types.items():
        index = batch.schema.get_field_index(name)
        batch = batch.set_column(index, name, batch.column(index).cast(target))
    return batch
