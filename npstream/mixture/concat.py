"""Provide `concat`: the rows of several datasets or views, one after the other.

Tested in tests/mixture/test_concat.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from npstream._core.arguments import quantity
from npstream.dataset.dataset import Dataset
from npstream.dataset.splits import chain_transforms
from npstream.errors import short_repr, short_traceback
from npstream.indexing.selection import Selection
from npstream.mixture.source import MixedSource
from npstream.reading.schema import common_columns
from npstream.reading.source import Member

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["concat"]


def concat(datasets: Iterable[Dataset]) -> Dataset:
    """Return the rows of several datasets or views, one after the other, as one Dataset.

    Nothing is read or copied. The result is indexed, iterated over, filtered and written as any
    Dataset. Datasets can be local and remote, of any formats, and may appear several times.

    Parameters
    ----------
    datasets : iterable of Dataset
        One-dimensional datasets or views with the same columns. A function that `map` added to a
        view applies to the view's samples. Empty views add no rows.

    Returns
    -------
    Dataset
        Its columns have the order of the first dataset. Closing it does not close the datasets.

    Raises
    ------
    ValueError
        If there are no datasets, if their columns differ in name or type, or if a view has several
        axes. If a column contains the names of a mixture's sources, which are not stored. If parts
        of a mixture or concatenation have functions from `map`, and a view of it is not one slice.
    TypeError
        If an item of `datasets` is not a Dataset.

    See Also
    --------
    mix : Draws samples of several datasets by weight.
    merge : Writes one dataset with the samples of several ones.

    Examples
    --------
    >>> ds = getfixture("example")
    >>> concat([ds[1:], ds.sort("label", descending=True)])["label"].load()
    array([1, 2, 2, 1, 0])
    """
    with short_traceback:
        views = _checked_views(datasets)
        names = views[0].columns
        _require_same_names(views)
        nonempty = [(number, view) for number, view in enumerate(views) if len(view)]
        if not nonempty:
            return views[0]
        members = [member for number, view in nonempty for member in _members_of(number, view)]
        fields, errors = common_columns(members, [names] * len(members))
        if errors:
            raise ValueError(next(iter(errors.values())))
        source = MixedSource(members, {name: fields[name] for name in names}, {})
        return Dataset(source, Selection.all(len(source.rows)), names)


def _checked_views(datasets: Iterable[Dataset]) -> list[Dataset]:
    if isinstance(datasets, Dataset) or not isinstance(datasets, Iterable):
        raise TypeError(
            f"concat takes a list of datasets, got {type(datasets).__name__}: write "
            "npstream.concat([a, b])"
        )
    views = list(datasets)
    if not views:
        raise ValueError("concat needs at least one dataset, as in npstream.concat([a, b])")
    for number, view in enumerate(views):
        if not isinstance(view, Dataset):
            raise TypeError(
                f"datasets[{number}] is {short_repr(view)}; expected a Dataset: open it with "
                "npstream.open"
            )
        if view.ndim != 1:
            raise ValueError(
                f"datasets[{number}] has {quantity(view.ndim, 'axis')}; expected 1: concatenate "
                "its ravel()"
            )
        view._source.fetcher.current_table()  # raises if the dataset is closed
    return views


def _require_same_names(views: list[Dataset]) -> None:
    """Raise ValueError if a dataset lacks a column of another one."""
    first = views[0].columns
    for number, view in enumerate(views):
        missing = [name for name in first if name not in view.columns]
        extra = [name for name in view.columns if name not in first]
        if not missing and not extra:
            continue
        name, owner, other = (missing[0], 0, number) if missing else (extra[0], number, 0)
        raise ValueError(
            f"datasets[{other}] has no column {name!r}, which datasets[{owner}] has: rename a "
            f"column with ds.rename({{'old': {name!r}}}), leave it out with ds.drop({name!r}), or "
            "add it with npstream.add_columns"
        )


def _members_of(number: int, view: Dataset) -> Iterator[Member]:
    """Yield the parts of one dataset: itself, or the parts of a concatenation or mixture."""
    name = f"datasets[{number}]"
    source, transform = view._source, view._transform
    computed = [column for column in view.columns if source.field(column).computation is not None]
    if computed:
        raise ValueError(
            f"column {computed[0]!r} of {name} is the name of each sample's source, which is not "
            f"stored: leave it out, as in ds.drop({computed[0]!r})"
        )
    if not isinstance(source, MixedSource):
        yield Member(name, source, view._selection, transform)
    elif view._selection.affine is not None:
        for part, selection in source.rows.pieces(view._selection):
            member = source.members[part]
            yield Member(name, member.source, selection, _chain(member.transform, transform))
    elif not source.has_transforms:
        yield Member(name, source, view._selection, transform)
    else:
        raise ValueError(
            f"{name} selects rows of a mixture or concatenation whose parts have functions of "
            "their own, from map or with_transform: call map on the result of concat instead"
        )


def _chain(
    first: Callable[[Any], Any] | None, second: Callable[[Any], Any] | None
) -> Callable[[Any], Any] | None:
    """Return a function that applies two transforms in turn; None if both are None."""
    return first if second is None else chain_transforms(first, second)
