"""The concatenation of several views, which maps its rows to sample ids.

Tested in tests/mixture/test_mixture.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from npstream._core.arrays import group_positions
from npstream._core.typing import Int64
from npstream.indexing.columns import as_slice

if TYPE_CHECKING:
    from npstream.indexing.selection import Selection


class Concatenation:
    """Views of several datasets, end to end; a stage of a `Selection`.

    The datasets share one numbering of samples: that of the union of their shards.

    Parameters
    ----------
    selections : sequence of Selection
        The views; none is empty.
    firsts : sequence of int
        For each view, the number of its dataset's first sample in the shared numbering.

    Attributes
    ----------
    bounds : ndarray of int64, shape (views + 1,)
        The first row of each view, then the number of rows.
    is_ascending : bool
        True if all views are affine and sample ids ascend over all rows.

    Examples
    --------
    >>> from npstream.indexing.selection import Selection
    >>> all_ = Selection.all(10)
    >>> Concatenation([all_, all_.select(slice(None, None, -3))], [0, 10]).at(np.arange(8, 14))
    array([ 8,  9, 19, 16, 13, 10])
    """

    def __init__(self, selections: Sequence[Selection], firsts: Sequence[int]) -> None:
        self.selections, self.firsts = tuple(selections), tuple(firsts)
        sizes = [selection.size for selection in self.selections]
        self.bounds: Int64 = np.array([*accumulate(sizes, initial=0)], np.int64)
        # In an affine view, row r of the concatenation is sample step * r + offset. Most views are
        # affine.
        affines = [selection.affine for selection in self.selections]
        self._nonaffine = np.array([affine is None for affine in affines])
        start_steps = [affine or (0, 1) for affine in affines]
        self._steps = np.array([step for _, step in start_steps], np.int64)
        starts = np.array([start for start, _ in start_steps], np.int64) + np.array(self.firsts)
        self._offsets = starts - self._steps * self.bounds[:-1]
        self._all_steps_1 = bool((self._steps == 1).all())
        self._any_nonaffine = bool(self._nonaffine.any())
        lasts = starts + self._steps * (np.diff(self.bounds) - 1)
        self.is_ascending = bool(
            not self._any_nonaffine and (self._steps > 0).all() and (starts[1:] > lasts[:-1]).all()
        )

    def __len__(self) -> int:
        return int(self.bounds[-1])

    def __reduce__(self) -> tuple[Any, ...]:
        return Concatenation, (self.selections, self.firsts)

    def view_numbers(self, rows: Int64) -> Int64:
        """Return the number of the view that contains each row."""
        return self.bounds.searchsorted(rows, side="right") - 1

    def at(self, rows: Int64) -> Int64:
        """Return the sample ids of rows."""
        views = self.view_numbers(rows)
        ids: Int64 = rows if self._all_steps_1 else rows * self._steps.take(views)
        ids = ids + self._offsets.take(views)
        if self._any_nonaffine:
            nonaffine_rows = np.flatnonzero(self._nonaffine.take(views))
            for number, group in group_positions(views[nonaffine_rows]):
                indices = nonaffine_rows[group]
                view_rows = rows[indices] - self.bounds[number]
                ids[indices] = self.selections[number].at(view_rows) + self.firsts[number]
        return ids

    def pieces(self, selection: Selection) -> Iterator[tuple[int, Selection]]:
        """Split an affine selection of rows by view.

        For each view that has some of the selected rows, yield two values: the number of the view,
        and the selection of the rows' samples in the view's dataset.
        """
        assert selection.affine is not None
        start, step = selection.affine
        rows = range(start, start + step * selection.size, step)
        cuts = selection.cuts(self.bounds)
        assert cuts is not None
        for k in np.flatnonzero(np.diff(cuts)).tolist():
            number = k if step > 0 else len(self.selections) - 1 - k
            first = int(self.bounds[number])
            part = rows[int(cuts[k]) : int(cuts[k + 1])]
            view_rows = range(part.start - first, part.stop - first, step)
            view_selection: Any = self.selections[number].select(as_slice(view_rows))
            yield number, view_selection
