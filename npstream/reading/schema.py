"""The columns that the sources of a mixture have in common.

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
"""Names that a message lists."""


def common_columns(
    members: Sequence[Member], names: Sequence[tuple[str, ...]]
) -> tuple[dict[str, Field], dict[str, str]]:
    """Return the columns that all sources have, and what is wrong with each of the others.

    Parameters
    ----------
    members : sequence of Member
    names : sequence of tuple of str
        The columns of each of the views.
    """
    fields: dict[str, Field] = {}
    partial: dict[str, str] = {}
    has = [frozenset(mine) for mine in names]
    for name in dict.fromkeys(name for mine in names for name in mine):
        lacking = [m.name for m, mine in zip(members, has, strict=True) if name not in mine]
        if lacking:
            partial[name] = (
                f"column {name!r} is not common to the sources of the mixture: it is missing in "
                f"{_names_text(lacking)}"
            )
            continue
        field = members[0].source.field(name)
        others = [m for m in members if _differs(m.source.field(name), field)]
        if others:
            there = others[0].source.field(name).encoding.name
            partial[name] = (
                f"column {name!r} is {field.encoding.name!r} in source {members[0].name!r}, but "
                f"{there!r} in {_names_text([m.name for m in others])}: open them with columns= "
                "that say what its bytes mean in the same way"
            )
        else:
            fields[name] = field
    return fields, partial


def _differs(one: Field, other: Field) -> bool:
    known = (encoding_key(field.encoding) for field in (one, other))
    return len(set(known)) > 1 or one.encoding.headless != other.encoding.headless


def _names_text(names: list[str]) -> str:
    """Return names, or the first of many."""
    more = f" and {len(names) - _MAX_NAMES_SHOWN} more" if len(names) > _MAX_NAMES_SHOWN else ""
    return ", ".join(map(repr, names[:_MAX_NAMES_SHOWN])) + more
