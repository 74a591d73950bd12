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
    operation: str,
    plan: Plan | None = None,
    sample_plan: Plan | None = None,
) -> None:
    """Raise CostError if an implicit read would fetch more than the source's limit.

    Implicit reads are, for example, comparisons, reductions, `np.asarray`, Arrow streams, and
    iteration over a permuted view. Explicit reads (`load`, `take`, `prefetch`, `iter`) are not
    limited. Reads of local datasets, and of one column that the side-car holds, are not either.

    Parameters
    ----------
    source : Source
    selection : Selection
    operation : str
        The operation that reads, as the subject of the error message.
    plan : Plan, optional
        The columns to read; by default all.
    sample_plan : Plan, optional
        The columns of the samples to read, if `plan` is not given. The bytes of whole samples are
        counted, but only in the sources that store these columns.

    Raises
    ------
    CostError
        With the estimated cost and the alternatives.
    """
    sources = [source, *source.joined_sources]
    if sample_plan is not None:
        sources = source.sources_of(sample_plan)
    parts: list[tuple[Source, Plan | None]] = [(part, None) for part in sources]
    if plan is not None:
        parts = [*source.split_plan(plan.stored_plan)]
    if all(
        stored_plan is not None and dataset.sidecar_column_name(stored_plan) is not None
        for part, stored_plan in parts
        for dataset in part.remotes
    ):
        return
    from npstream.reading.cost import require_affordable

    require_affordable(parts, selection, operation, source.limit)
