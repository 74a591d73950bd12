"""Provide `Preview`: the first values of a view, if reading them is cheap.

A preview reads a few samples if they are local or cached, or if a few small requests suffice.
Otherwise it only holds the estimated cost. It never raises: where a value cannot be read, it holds
the exception.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from npstream.reading.plan import Plan
from npstream.rendering.cells import first_items
from npstream.rendering.text import Unread

if TYPE_CHECKING:
    from npstream._core.typing import Int64
    from npstream.indexing.selection import Selection
    from npstream.reading.cost import Cost
    from npstream.reading.plan import Field
    from npstream.reading.source import Source

__all__ = ["Preview", "preview_column", "preview_dataset", "preview_size"]

WHOLE_ROWS = 10
"""A view with at most this number of rows is shown whole."""

HEAD_ROWS = 5
"""The number of rows that are shown of a larger view."""

MAX_REQUESTS = 3
"""Maximum requests of a preview in a notebook. A ``repr`` makes no requests."""

MAX_DOWNLOAD = 8 << 20
"""Maximum bytes that a preview downloads."""

MAX_READ = 64 << 20
"""Maximum bytes that a preview reads of a column."""


@dataclass(frozen=True, slots=True)
class Preview:
    """The first rows of a view.

    Attributes
    ----------
    rows : sequence of str
        Labels of the rows in the view.
    ids : sequence of int
        The number of each of these rows in the dataset.
    columns : dict
        The values of each column: a list of the first values. A value that cannot be read is an
        exception, and one that is too large an `npstream.rendering.text.Unread`.
    cost : Cost, optional
        The estimated cost if the read is too expensive; None if the values were read.
    """

    rows: Sequence[str]
    ids: Sequence[int]
    columns: dict[str, list[Any]]
    cost: Cost | None = None


def preview_size(size: int) -> int:
    """Return the number of rows that are shown of a view with `size` rows."""
    return size if size <= WHOLE_ROWS else HEAD_ROWS


def preview_dataset(
    source: Source, selection: Selection, names: Sequence[str], rows: int, max_requests: int
) -> Preview:
    """Return the first rows of a dataset's view, or fewer if only fewer are cheap.

    Parameters
    ----------
    source : Source
    selection : Selection
    names : sequence of str
        The columns.
    rows : int
        Number of rows.
    max_requests : int
        Maximum number of requests.

    Returns
    -------
    Preview
    """
    try:
        plan = Plan([source.field(name) for name in names])
        part, cost = _cheap_part(source, selection, plan, rows, max_requests)
        ids = part.ids()
    except Exception as error:  # such as a dataset that is closed
        # One row without a label shows the error in each column.
        return Preview([""], [], {name: [error] for name in names})
    labels = row_labels(selection.shape, len(ids))
    if cost is not None:
        return Preview(labels, ids.tolist(), {}, cost)
    return Preview(labels, ids.tolist(), _read_columns(source, plan, part, ids))


def row_labels(shape: tuple[int, ...], count: int) -> list[str]:
    """Return the indices of the first rows of a view of any shape."""
    if not shape:
        return [""] * count
    indices = zip(*np.unravel_index(np.arange(count), shape), strict=True)
    return [", ".join(str(int(number)) for number in index) for index in indices]


def _cheap_part(
    source: Source, selection: Selection, plan: Plan, rows: int, max_requests: int
) -> tuple[Selection, Cost | None]:
    """Return the first rows that are cheap to read, and None.

    If not even one row is cheap, return the first `rows` rows and the cost of reading them.
    """
    flat = selection.ravel()
    first = None
    for count in sorted({rows, min(rows, 3), min(rows, 1)}, reverse=True):
        part: Any = flat.select(slice(count))
        if not is_remote(source) or not count:
            return part, None
        cost = _cost(source, part, plan)
        if _is_cheap(cost, max_requests):
            return part, None
        first = first or (part, cost)
    assert first is not None
    return first


def is_remote(source: Source) -> bool:
    """Return True if a read may need an object store."""
    return bool(source.remotes) or any(map(is_remote, source.joined_sources))


def _cost(source: Source, selection: Selection, plan: Plan) -> Cost:
    from npstream.reading.cost import explain

    return explain(source, selection, plan)


def _is_cheap(cost: Cost, max_requests: int) -> bool:
    return cost.requests <= max_requests and cost.nbytes <= MAX_DOWNLOAD


def _read_columns(source: Source, plan: Plan, part: Selection, ids: Int64) -> dict[str, list[Any]]:
    """Return the values of columns, with an exception for each value that cannot be read."""
    columns = _large_values(source, plan, part, ids)
    small = Plan([field for field in plan.fields if field.name not in columns])
    try:
        stored = source.columns(small, source.look_up(ids), {}) if small.fields else {}
        columns |= {name: first_items(stored[name], len(ids)) for name in stored}
    except Exception as error:
        for field in small.fields:
            columns[field.name] = _read_values(source, field, part, ids, error)
    return {field.name: columns[field.name] for field in plan.fields}


def _large_values(source: Source, plan: Plan, part: Selection, ids: Int64) -> dict[str, list[Any]]:
    """Return the sizes of local or cached columns whose values are too large to read."""
    # The first rows may be larger than average ones: the factor 4 is a margin.
    if source.estimate_bytes(len(ids)) <= MAX_READ // 4:
        return {}
    try:
        if is_remote(source) and _cost(source, part, plan).requests:
            return {}  # what is downloaded has a limit of its own
        bodies = source.bodies(plan, source.look_up(ids))
    except Exception:  # the read raises it again, for the damaged values only
        return {}
    sizes = {name: each.nbytes.tolist() for name, each in bodies.items()}
    return {
        name: [Unread(nbytes) for nbytes in lengths]
        for name, lengths in sizes.items()
        if sum(lengths) > MAX_READ
    }


def _read_values(
    source: Source, field: Field, part: Selection, ids: Int64, error: Exception
) -> list[Any]:
    """Read the values of a column one by one.

    `error` was raised when they were read together. If a single read needs requests, `error`
    replaces each value.
    """
    plan = Plan([field])
    try:
        if is_remote(source) and _cost(source, part, plan).requests:
            return [error] * len(ids)
    except Exception as failure:
        return [failure] * len(ids)
    values = []
    for number in range(len(ids)):
        try:
            column = source.columns(plan, source.look_up(ids[number : number + 1]), {})
            values += first_items(column[field.name], 1)
        except Exception as failure:
            values.append(failure)
    return values


def preview_column(
    source: Source,
    plan: Plan,
    part: Selection,
    load: Callable[[], Any],
    max_requests: int,
) -> tuple[list[Any], Cost | None]:
    """Return the first values of a column; if they are too expensive, none and their cost.

    Parameters
    ----------
    source : Source
    plan : Plan
        The plan that reads the column. The plan may read only a part of each value.
    part : Selection
        The rows to read, on one axis.
    load : callable
        Reads the values of the rows `part`.
    max_requests : int
        Maximum number of requests.

    Returns
    -------
    values : list
    cost : Cost or None
    """
    ids = part.ids()
    try:
        if is_remote(source) and len(ids):
            cost = _cost(source, part, plan)
            if not _is_cheap(cost, max_requests):
                return [], cost
        if large := _large_values(source, plan, part, ids):
            return next(iter(large.values())), None
    except Exception as error:
        return [error] * len(ids), None
    return read_values(source, plan, part, load), None


def read_values(source: Source, plan: Plan, part: Selection, load: Callable[[], Any]) -> list[Any]:
    """Return the values of a column, with an exception for each that cannot be read.

    Parameters
    ----------
    source : Source
    plan : Plan
        The plan that reads the column.
    part : Selection
        The rows to read, on one axis.
    load : callable
        Reads the values of the rows `part`.

    Returns
    -------
    list
    """
    ids = part.ids()
    try:
        return first_items(load(), len(ids))
    except Exception as error:
        return _read_values(source, plan.fields[0], part, ids, error)
