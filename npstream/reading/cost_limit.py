"""Provide `check_cost`, the limit of implicit reads.

Tested in tests/shards/test_residency.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from npstream.indexing.selection import Selection
    from npstream.reading.plan import Plan
    from npstream.reading.source import Source


def check_cost(
    source: Source,
    selection: Selection,
    what: str,
    plan: Plan | None = None,
    whole: Plan | None = None,
) -> None:
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
    whole : Plan, optional
        Without `plan`: columns whose samples are read whole, from the sources that store them.

    Raises
    ------
    CostError
        With the estimated cost and the alternatives.
    """
    sources = [source, *source.joined] if whole is None else source.sources_of(whole)
    parts: list[tuple[Source, Plan | None]] = [(part, None) for part in sources]
    if plan is not None:
        parts = [*source.split_plan(plan.stored)]
    if all(
        stored is not None and dataset.sidecar_column_name(stored) is not None
        for part, stored in parts
        for dataset in part.remotes
    ):
        return
    from npstream.reading.cost import require_affordable

    require_affordable(parts, selection, what, source.limit)
