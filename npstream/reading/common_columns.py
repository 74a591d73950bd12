"""Provide `common_columns`: the columns that all sources of a mixture have.

Tested in tests/mixture/test_mixture.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from npstream.reading.source import encoding_key

if TYPE_CHECKING:
    from npstream.reading.plan import Field
    from npstream.reading.source import Member

_MAX_NAMES_SHOWN = 3
"""A message lists at most this many names."""


def common_columns(
    members: Sequence[Member], names: Sequence[tuple[str, ...]]
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
        without = [m.name for m, c in zip(members, column_sets, strict=True) if name not in c]
        if without:
            column_errors[name] = (
                f"column {name!r} is not common to the sources of the mixture: it is missing in "
                f"{_names_text(without)}"
            )
            continue
        field = members[0].source.field(name)
        others = [m for m in members if _differs(m.source.field(name), field)]
        if others:
            other = others[0].source.field(name).encoding.name
            column_errors[name] = (
                f"column {name!r} is {field.encoding.name!r} in source {members[0].name!r}, but "
                f"{other!r} in {_names_text([m.name for m in others])}: open them with columns= "
                "that declare the same meaning of its bytes"
            )
        else:
            fields[name] = field
    return fields, column_errors


def _differs(field: Field, other: Field) -> bool:
    same = encoding_key(field.encoding) == encoding_key(other.encoding)
    return not same or field.encoding.headless != other.encoding.headless


def _names_text(names: list[str]) -> str:
    """Return the names as text, shortened if there are many."""
    more = f" and {len(names) - _MAX_NAMES_SHOWN} more" if len(names) > _MAX_NAMES_SHOWN else ""
    return ", ".join(map(repr, names[:_MAX_NAMES_SHOWN])) + more
