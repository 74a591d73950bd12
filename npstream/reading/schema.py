"""Provide `open_source`, which finds the columns of an index, and `common_columns` of views.

Tested in tests/mixture/test_mixture.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from npstream.errors import FormatError, MissingDependencyError
from npstream.formats.encodings.encodings import (
    Encoding,
    is_unsafe,
    own_encoding,
    parse,
    with_dtype,
    with_size,
)
from npstream.formats.text import CASTS
from npstream.reading.plan import Field
from npstream.reading.source import Source

if TYPE_CHECKING:
    from npstream.formats.index import Schema
    from npstream.reading.source import Member
    from npstream.shards.table import Fetcher

_TEXT_ENCODINGS = {"str": "str", "int": "int", "float": "float64"}

_MAX_NAMES_SHOWN = 3
"""A message lists at most this many names."""


def common_columns(
    members: Sequence[Member],
    names: Sequence[tuple[str, ...]],
) -> tuple[dict[str, Field], dict[str, str]]:
    """Return the columns that all sources have, and an error message for each other column.

    Parameters
    ----------
    members : sequence of Member
    names : sequence of tuple of str
        The columns of each view.
    """
    fields: dict[str, Field] = {}
    column_errors: dict[str, str] = {}
    column_sets = [frozenset(columns) for columns in names]
    for name in dict.fromkeys(name for columns in names for name in columns):
        incomplete = [m.name for m, c in zip(members, column_sets, strict=True) if name not in c]
        if incomplete:
            column_errors[name] = (
                f"column {name!r} is not common to the sources of the mixture: it is missing in "
                f"{_names_text(incomplete)}"
            )
            continue
        field = members[0].source.field(name)
        differing = [m for m in members if _differs(m.source.field(name), field)]
        if differing:
            encoding_name = differing[0].source.field(name).encoding.name
            column_errors[name] = (
                f"column {name!r} is {field.encoding.name!r} in source {members[0].name!r}, but "
                f"{encoding_name!r} in {_names_text([m.name for m in differing])}: open them with "
                "columns= that declare the same meaning of its bytes"
            )
        else:
            fields[name] = field
    return fields, column_errors


def _differs(field: Field, other: Field) -> bool:
    has_same_key = encoding_key(field.encoding) == encoding_key(other.encoding)
    return not has_same_key or field.encoding.headless != other.encoding.headless


def _names_text(names: list[str]) -> str:
    """Return the names as text, shortened if there are many."""
    suffix = f" and {len(names) - _MAX_NAMES_SHOWN} more" if len(names) > _MAX_NAMES_SHOWN else ""
    return ", ".join(map(repr, names[:_MAX_NAMES_SHOWN])) + suffix


def open_source(
    fetcher: Fetcher,
    columns: Sequence[str] | Mapping[str, Any] | None,
    allow_pickle: bool,
    limit: int | None = None,
) -> tuple[Source, tuple[str, ...]]:
    """Return the source of an index, with the columns that the user selected or redeclared.

    Parameters
    ----------
    fetcher : Fetcher
    columns : sequence of str or mapping of str, optional
        The names of the columns to read. Or a mapping from names of columns to the encoding or
        dtype as which they are read; other columns are then read as they are stored. By default all
        columns.
    allow_pickle : bool
        Whether pickled columns may be read. Loading them can run code.
    limit : int, optional
        The bytes that an implicit read may fetch; by default any number.

    Returns
    -------
    source : Source
    names : tuple of str
        The columns of a sample.
    """
    where = fetcher.index.where
    fields: dict[str, Field] = {}
    column_errors: dict[str, str] = {}
    for number, schema in enumerate(fetcher.index.schemas):
        new_fields = schema_fields(schema, where)
        if number == 0:
            fields = new_fields
            continue
        shard = int(np.argmax(fetcher.index.schema_ids == number))
        for name in fields.keys() | new_fields.keys():
            if name not in new_fields or name not in fields:
                verb = "does not have" if name not in new_fields else "has"
                column_errors[name] = (
                    f"{where}: not all shards have column {name!r}: shard {shard} {verb} it"
                )
                continue
            old_encoding, new_encoding = fields[name].encoding, new_fields[name].encoding
            if encoding_key(new_encoding) != encoding_key(old_encoding):
                column_errors[name] = (
                    f"{where}: column {name!r} is {new_encoding.name!r} in shard {shard}, "
                    f"but {old_encoding.name!r} before it"
                )
        fields = {name: f for name, f in fields.items() if name not in column_errors}
    source = Source(fetcher, fields, column_errors, limit)
    order = fetcher.index.annotations.order
    names = tuple(dict.fromkeys([*(name for name in order if name in fields), *fields]))
    declarations: Mapping[str, Any] = columns if isinstance(columns, Mapping) else {}
    if columns is not None and not isinstance(columns, Mapping):
        names = tuple(source.field(name).name for name in columns)
        if len(set(names)) != len(names):
            raise ValueError(f"a column is listed twice in {list(names)}")
    for name, dtype in fetcher.index.annotations.dtypes.items():
        # Other columns are not needed, and their dtype may need a package that is not installed.
        if name in names and name not in declarations:
            fields[name] = Field(name, _annotated_encoding(fields[name], dtype, where))
    for name, meaning in declarations.items():
        fields[name] = source.field(name).view(meaning)
    unsafe = [name for name in names if is_unsafe(fields[name].encoding.name)]
    if unsafe and not allow_pickle:
        raise ValueError(
            f"{where}: column {unsafe[0]!r} is pickled, and loading it can run code: open with "
            "allow_pickle=True if you trust the data, or leave it out with columns="
        )
    return source, names


def schema_fields(schema: Schema, where: str) -> dict[str, Field]:
    """Return the columns of a schema, after checking their encodings and sizes."""
    fields = {}
    for name, encoding, size in zip(
        schema.names, schema.encodings, schema.sizes or [None] * len(schema.names), strict=True
    ):
        if schema.format != "mds":
            if encoding not in CASTS:
                raise FormatError(
                    f"{where}: column {name!r} has encoding {encoding!r}; "
                    f"{schema.format} columns are {', '.join(CASTS)}"
                )
            fields[name] = Field(name, own_encoding(_TEXT_ENCODINGS[encoding]))
            continue
        try:
            parsed = with_size(parse(encoding), size)
        except ValueError as error:
            raise FormatError(f"{where}: column {name!r}: {error}") from error
        if parsed.size != size:
            raise FormatError(
                f"{where}: column {name!r} of encoding {encoding!r} has size {size}; "
                f"its values take {parsed.size or 'different sizes'}"
            )
        fields[name] = Field(name, parsed)
    return fields


def _annotated_encoding(stored: Field, dtype: str, where: str) -> Encoding:
    """Return the encoding of a column with the dtype that the index records for it."""
    try:
        return with_dtype(stored.encoding, dtype)
    except ValueError as error:
        raise FormatError(f"{where}: column {stored.name!r}: {error}") from None
    except MissingDependencyError as error:
        alternative = (
            "leave the column out with columns=, or read it as it is stored with "
            f"columns={{{stored.name!r}: {stored.encoding.name!r}}}"
        )
        raise MissingDependencyError(
            f"{where}: column {stored.name!r} of dtype {dtype}", "ml_dtypes", "dtypes", alternative
        ) from error


def encoding_key(encoding: Encoding) -> tuple[Any, ...]:
    """Return a key that is equal for two encodings whose values form one column."""
    # Values of other kinds depend on the encoding itself, such as "jpeg" or "json".
    is_name_redundant = encoding.kind in ("fixed", "int_text", "float_text", "str", "bytes")
    return encoding.kind, encoding.dtype, encoding.shape, "" if is_name_redundant else encoding.name
