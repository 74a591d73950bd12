"""Provide `check_cost`, the limit of implicit reads.

Tested in tests/shards/test_residency.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from npstream.indexing.selection import Selection
    from npstream.reading.plan import Plan
    from npstream.reading.source import Source


def check_cost(source: Source, selection: Selection, what: str, plan: Plan | None = None) -> None:
    """Raise CostError if an implicit read would fetch more than the source's limit.

    Implicit reads are comparisons, reductions, `np.asarray` and iteration over a permuted view.
    Explicit reads (`load`, `take`, `prefetch`, `iter`) are not limited.

    Parameters
    ----------
    source : Source
    selection : Selection
    what : str
        What reads, as the subject of the error message.
    plan : Plan, optional
        The columns to read; by default all.

    Raises
    ------
    CostError
        With the estimated cost and the alternatives.
    """
    stored = None if plan is None else plan.stored
    if all(
        stored is not None and part.sidecar_column_name(stored) is not None
        for part in source.remotes
    ):
        return
    from npstream.reading.cost import require_affordable

    require_affordable(source, selection, what, stored)
