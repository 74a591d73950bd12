"""The rows of several views, one view after the other, as numbers of joined samples.

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
    """Views of joined datasets, laid end to end; a stage of a `Selection`.

    Parameters
    ----------
    selections : sequence of Selection
        The views; none is empty.
    firsts : sequence of int
        The joined number of the first sample of the dataset that each is a view of.

    Attributes
    ----------
    bounds : ndarray of int64, shape (views + 1,)
        The first row of each view, then the number of rows.

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
        # Of most views, row r is sample step * r + offset.
        known = [selection.affine for selection in self.selections]
        self._others = np.array([affine is None for affine in known])
        lines = [affine or (0, 1) for affine in known]
        self._steps = np.array([step for _, step in lines], np.int64)
        starts = np.array([start for start, _ in lines], np.int64) + np.array(self.firsts)
        self._offsets = starts - self._steps * self.bounds[:-1]
        self._is_shifted = bool((self._steps == 1).all())
        self._has_others = bool(self._others.any())
        lasts = starts + self._steps * (np.diff(self.bounds) - 1)
        self.rises = bool(
            not self._has_others and (self._steps > 0).all() and (starts[1:] > lasts[:-1]).all()
        )

    def __len__(self) -> int:
        return int(self.bounds[-1])

    def __reduce__(self) -> tuple[Any, ...]:
        return Concatenation, (self.selections, self.firsts)

    def which(self, rows: Int64) -> Int64:
        """Return the numbers of the views that rows are of."""
        return self.bounds.searchsorted(rows, side="right") - 1

    def at(self, rows: Int64) -> Int64:
        """Return the samples at rows."""
        which = self.which(rows)
        ids: Int64 = rows if self._is_shifted else rows * self._steps.take(which)
        ids = ids + self._offsets.take(which)
        if self._has_others:
            others = np.flatnonzero(self._others.take(which))
            for number, found in group_positions(which[others]):
                mine = others[found]
                view_rows = rows[mine] - self.bounds[number]
                ids[mine] = self.selections[number].at(view_rows) + self.firsts[number]
        return ids

    def pieces(self, selection: Selection) -> Iterator[tuple[int, Selection]]:
        """Yield the views that evenly spaced rows are of, and which of their samples they are."""
        assert selection.affine is not None
        start, step = selection.affine
        rows = range(start, start + step * selection.size, step)
        cuts = selection.cuts(self.bounds)
        assert cuts is not None
        for at in np.flatnonzero(np.diff(cuts)).tolist():
            number = at if step > 0 else len(self.selections) - 1 - at
            first = int(self.bounds[number])
            mine = rows[int(cuts[at]) : int(cuts[at + 1])]
            of_view = range(mine.start - first, mine.stop - first, step)
            chosen: Any = self.selections[number].select(as_slice(of_view))
            yield number, chosen
