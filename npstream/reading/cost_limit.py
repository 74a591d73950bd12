"""The limit of reads that nobody asked for by name.

Tested in tests/shards/test_residency.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from npstream.indexing.selection import Selection
    from npstream.reading.plan import Plan
    from npstream.reading.source import Source


def check_cost(source: Source, selection: Selection, what: str, plan: Plan | None = None) -> None:
    """Refuse a read that nobody asked for by name if it would fetch too much.

    Parameters
    ----------
    source : Source
    selection : Selection
    what : str
        What reads, for the message.
    plan : Plan, optional
        The columns, by default all.

    Raises
    ------
    CostError
        With what it would cost, and the ways on.
    """
    stored = None if plan is None else plan.stored
    if all(
        stored is not None and part.sidecar_column_name(stored) is not None
        for part in source.remotes
    ):
        return
    from npstream.reading.cost import require_affordable

    require_affordable(source, selection, what, stored)
