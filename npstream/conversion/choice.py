"""Provide `Choice`: the arguments of `convert` that select columns and samples.

A column can have one name in the source and another in the dataset. `Choice` translates them.

Tested in tests/conversion/test_convert.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from npstream.conversion.source import SourceRequest
from npstream.conversion.transform import Condition, PartTransform
from npstream.errors import ColumnError
from npstream.explore.expression import Expression
from npstream.formats.encodings.encodings import column_type, encoding_of_type
from npstream.writing.inputs.fill import KEEP_MISSING
from npstream.writing.tables import parse_column
from npstream.writing.text import parse_text_type

if TYPE_CHECKING:
    from npstream.formats.encodings.encodings import Encoding
    from npstream.writing.inputs.fill import Fill
    from npstream.writing.mapping import MapFunction

__all__ = ["Choice", "ColumnChoice", "parse_times"]

ColumnChoice: TypeAlias = "Mapping[str, str | None] | Iterable[str]"
"""The columns to write: their names, or a mapping from names to encodings."""

_TEXT_TYPES = {"float": "float64"}
"""Encoding that only text formats have -> the encoding that is requested from the source."""


class Choice:
    """The arguments of `convert` that select columns and samples.

    Attributes
    ----------
    as_samples : bool
        Whether rows of tables become samples when a part is opened. `map` and the tokenizer take
        samples.
    maps_parts : bool
        Whether `map` is called when a part is opened, and not by `write`.
    may_be_empty : bool
        Whether a source without samples is accepted, although its columns are unknown.
    row_fill : mapping of str to Fill
        Replaces missing values in rows of tables that become samples. With `map`, a missing value
        becomes None instead.
    """

    def __init__(
        self,
        columns: ColumnChoice | None,
        rename: Mapping[str, str] | None,
        where: Expression | Condition | None,
        map: MapFunction | None,
        fill: Mapping[str, Any] | None,
    ) -> None:
        self.map = map
        self.as_samples = map is not None
        self.maps_parts = False
        self.may_be_empty = False
        self.row_fill: Mapping[str, Fill] = {} if map is None else KEEP_MISSING
        self.where = where
        self.fill = dict(fill or {})
        self.rename = dict(rename or {})
        if len(set(self.rename.values())) < len(self.rename):
            raise ValueError(f"rename={self.rename}: two columns get the same name")
        self._old_names = {new: old for old, new in self.rename.items()}
        if isinstance(columns, str):
            raise TypeError(f"columns={columns!r} is a text: give a list of names")
        self.columns: dict[str, str | None] | None = None
        if isinstance(columns, Mapping):
            self.columns = dict(columns)
        elif columns is not None:
            self.columns = dict(_unique_names(columns))
        if map is not None and self.columns is not None and None in self.columns.values():
            raise TypeError(
                "columns= describes what map= returns, and needs an encoding for each column, as "
                "in columns={'text': 'str'}"
            )
        for name, encoding in (self.columns or {}).items():
            if encoding is not None and self.columns is not None:
                self.columns[name] = encoding_of_type(encoding) or encoding

    def check(self, format: str | None, mode: str) -> None:
        """Raise ValueError for an encoding that the format of the shards does not support.

        An append without `format` uses the format of the dataset, which may be a text format. In
        that case `write` checks the encodings that only text formats have.
        """
        is_append = format is None and mode == "a"
        for name, encoding in (self.columns or {}).items():
            if encoding is not None and not (is_append and encoding in _TEXT_TYPES):
                if format in ("mds", None):
                    parse_column(name, encoding)
                else:
                    parse_text_type(encoding)

    def old_name(self, name: str) -> str:
        """Return the source's name of a column; `name` is its name in the dataset."""
        return self._old_names.get(name, name)

    def request(self, reader_options: Mapping[str, Any] | None) -> SourceRequest:
        """Return the request to the source, with the column names of the source."""
        old = self.old_name
        options = dict(reader_options or {})
        if self.map is not None:
            return SourceRequest(options=options, is_mapped=True)
        fill = {old(name): value for name, value in self.fill.items()}
        encodings = {
            old(name): _TEXT_TYPES.get(encoding, encoding)
            for name, encoding in (self.columns or {}).items()
            if encoding is not None
        }
        names = None
        if self.columns is not None and not (self.where and not isinstance(self.where, Expression)):
            used = self.where.columns if isinstance(self.where, Expression) else ()
            names = tuple(dict.fromkeys([old(name) for name in [*self.columns, *used]]))
        return SourceRequest(names, encodings, fill, options)

    def description(self) -> dict[str, str]:
        """Return the arguments that decide which samples are written, as text by argument name.

        A write resumes only if they are the same as before.
        """
        where = self.where.text if isinstance(self.where, Expression) else "a function"
        return {
            "where=": "None" if self.where is None else where,
            "rename=": json.dumps(self.rename, sort_keys=True),
        }

    def transform(self) -> PartTransform:
        """Return the transform of the parts."""
        names = None if self.columns is None or self.map is not None else tuple(self.columns)
        return PartTransform(names, self.rename, self.where)

    def encodings(
        self, source_encodings: Mapping[str, str] | None, is_encoded: bool = False
    ) -> dict[str, str | Encoding] | None:
        """Return the encodings to write; None if the first sample decides.

        Encodings that the user named are strings. The others are of type Encoding. If any is of
        type Encoding, `write` encodes values of type `bytes`. If `is_encoded` is True, all
        encodings are strings. Then `write` stores `bytes` unchanged.

        Parameters
        ----------
        source_encodings : mapping of str to str or None
            The encodings of the source, by its column names.
        is_encoded : bool
            Whether values of type `bytes` in the source are encoded values.
        """
        if self.map is not None or source_encodings is None:
            by_user = {name: each for name, each in (self.columns or {}).items() if each}
            if by_user and self.columns is not None and len(by_user) < len(self.columns):
                raise TypeError(
                    "columns= names the encodings of some columns, and those of this source are "
                    "known only from its samples: name all, or none"
                )
            return dict(by_user) or None
        renamed = {self.rename.get(old, old): each for old, each in source_encodings.items()}
        if len(renamed) < len(source_encodings):
            clash = next(new for old, new in self.rename.items() if new in source_encodings)
            raise ValueError(f"rename= makes two columns of the name {clash!r}: rename both")
        columns = dict.fromkeys(renamed) if self.columns is None else self.columns
        for name in columns:
            if name not in renamed:
                if name in self.rename:
                    raise ColumnError.saying(
                        f"no column {name!r}: rename= calls it {self.rename[name]!r}, and all "
                        "other arguments use the new names"
                    )
                raise ColumnError(name, list(renamed))
        return {
            name: encoding or (renamed[name] if is_encoded else column_type(renamed[name]))
            for name, encoding in columns.items()
        }


def parse_times(
    fill: Mapping[str, Any], encodings: Mapping[str, str | Encoding] | None
) -> dict[str, Any]:
    """Return the values of ``fill=``, with text such as "2026-11-29" or "NaT" parsed as dates.

    Only text for columns of dates and durations is parsed. Text that is no date stays as it is, and
    the writer refuses it.
    """
    parsed = dict(fill)
    for name, value in fill.items():
        encoding = (encodings or {}).get(name)
        if encoding is None or not isinstance(value, str):
            continue
        target = column_type(encoding) if isinstance(encoding, str) else encoding
        if target.kind != "fixed" or target.dtype.kind not in "mM":
            continue
        if value == "NaT":
            parsed[name] = np.array(value, target.dtype)[()]
        elif target.dtype.kind == "M" and value[:1].isdigit():
            with suppress(ValueError):
                parsed[name] = np.datetime64(value)
    return parsed


def _unique_names(names: Iterable[str]) -> dict[str, None]:
    """Return names as the keys of a dict; raise ValueError for one that is repeated."""
    columns: dict[str, None] = {}
    for name in names:
        if name in columns:
            raise ValueError(f"columns= has {name!r} twice: name each column once")
        columns[name] = None
    return columns
