"""The stream of a mixture: which row of which source each position draws, and back.

The stream is endless. What is drawn at once is a *unit*: a sample, or a batch where each is of one
source. Units are interleaved by patterns (see `npstream.mixture.patterns`), in blocks that hold
exact counts; as many blocks as there are lanes share a pattern. Unit u is of lane ``u % lanes``.
From a *phase* to the next the counts change, at any unit; those drawn before, of each source and in
each lane, are counted by the patterns that were cut off.

Every source has lanes and blocks of its own, which do not depend on weights: an `Order` for each
pass. If the source has C lanes, of which ``lanes`` is k times as many, lanes c, c + C, c + 2 C, ...
of the stream take turns with lane c of the source: draw m of lane l is draw ``m * k + l // C``
there, and so on through pass after pass. So who reads every P-th lane of the stream reads every
P-th lane of each source whose lanes P divides. A source of E elements in a lane has each of them
once among its draws ``p * E`` to ``(p + 1) * E`` there: that is its pass p.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from npstream._core.arguments import quantity
from npstream._core.arrays import group_positions
from npstream._core.typing import AnyArray, Int64
from npstream.mixture.interleave import PATTERN_VERSION
from npstream.mixture.passes import Passes, Stored, spread
from npstream.mixture.patterns import Pattern, draws, make_pattern, places_of, tally
from npstream.orders.order import ORDER_VERSION, RowOrder
from npstream.orders.permutation import make_key

STREAM_VERSION = (1, PATTERN_VERSION, ORDER_VERSION)
"""Names the streams that this module computes; they may not change without it."""

_STREAM_IDENTITY = "<MixtureOrder: {} sources, {}>"
_EPOCH_IDENTITY = "<EpochOrder: {} positions from {} on, {}>"

REPEATS = 16
"""Blocks that share a pattern, at least: to draw one takes longer than to look its units up."""

_NOUGHT = np.zeros(1, np.int64)

_PATTERN = 4
"""Level of the keys of patterns."""


class Phase(NamedTuple):
    """From which unit on blocks have so many units of each source, which may be none."""

    start: int
    counts: tuple[int, ...]


class Course(NamedTuple):
    """What a stream depends on, but for the chunks of its sources.

    Parameters
    ----------
    seed, lanes : int
        Lanes of the stream are a multiple of each source's; they have no factor in common with
        the units of a block, or divide them.
    sources : tuple of Stored
    phases : tuple of Phase
        The first starts at 0.
    batches : tuple of int, optional
        Samples in a unit of each source, by default 1.
    across : bool
        Whether a unit takes samples from all lanes of its source in turn, not from one.
    """

    seed: int
    lanes: int
    sources: tuple[Stored, ...]
    phases: tuple[Phase, ...]
    batches: tuple[int, ...] | None = None
    across: bool = False


class _Count(NamedTuple):
    """Draws before a phase, of each source in each lane; and before the row in which it starts."""

    before: Int64
    base: Int64


class _Kept:
    """What was computed last. Whoever looks rows up takes it away, so no two threads use it."""

    def __init__(self, order: MixtureOrder) -> None:
        self.patterns: dict[tuple[int, int], Pattern] = {}
        self.counts: dict[int, _Count] = {}
        self.passes = Passes(order.course.seed, order.course.sources, order.chunks)


class MixtureOrder:
    """The stream of a mixture: rows of the concatenation of its sources, by position.

    Parameters
    ----------
    course : Course
    chunks : sequence of callable or None
        What returns the bounds of each source's chunks; None for sources that are gone.
    firsts : sequence of int
        The row of the concatenation that is each source's first; any for those that are gone.

    Examples
    --------
    >>> sources = (Stored("a", 3, 1, 0), Stored("b", 5, 1, 0))
    >>> course = Course(seed=0, lanes=1, sources=sources, phases=(Phase(0, (1, 3)),))
    >>> order = MixtureOrder(course, [lambda: np.array([0, 3]), lambda: np.array([0, 5])], [0, 3])
    >>> rows = order.at(np.arange(8))
    >>> rows
    array([...])
    >>> np.array_equal(order.find(rows[:4]), np.arange(4))
    True
    """

    def __init__(
        self,
        course: Course,
        chunks: Sequence[Callable[[], AnyArray] | None],
        firsts: Sequence[int],
    ) -> None:
        self.course, self.chunks, self._firsts = course, tuple(chunks), tuple(firsts)
        self._kept: deque[_Kept] = deque(maxlen=1)

    def __reduce__(self) -> tuple[Any, ...]:
        return MixtureOrder, (self.course, self.chunks, self._firsts)

    def __repr__(self) -> str:
        return f"<MixtureOrder: {quantity(len(self.chunks), 'source')}, {self._digest()}>"

    def identity(self) -> str:
        """Return the text by which saved states know this order; it never changes."""
        return _STREAM_IDENTITY.format(len(self.chunks), self._digest())

    def _digest(self) -> str:
        text = repr((STREAM_VERSION, self.course))
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the order holds by now."""
        return sum(
            kept.passes.nbytes
            + sum(array.nbytes for count in kept.counts.values() for array in count)
            + sum(pattern.nbytes for pattern in kept.patterns.values())
            for kept in list(self._kept)
        )

    @cached_property
    def width(self) -> int:
        """Positions of a unit, as many as the samples of the largest."""
        return max(self.course.batches or (1,))

    def at(self, positions: Int64) -> Int64:
        """Return the rows drawn at positions, in their shape; -1 where a unit has no more."""
        flat = _checked(positions)
        if not flat.size:
            return np.empty_like(flat)
        kept = self._take()
        units, offsets = np.divmod(flat, self.width) if self.width > 1 else (flat, _NOUGHT)
        sources, lanes, numbers = self._draws(kept, units)
        passes, places = np.empty((2, flat.size), np.int64)
        spread.for_size(2 * flat.size)(
            sources, lanes, numbers, offsets, self._facts, self.course.lanes, self.course.across,
            passes, places,
        )  # fmt: skip
        rows = kept.passes.rows(sources, passes, places)
        rows += self._first_rows[sources]
        if self.course.batches is not None:
            rows[offsets >= self._batches[sources]] = -1
        self._kept.append(kept)
        return rows.reshape(np.shape(positions))

    def find(self, rows: Int64, passes: int | Int64 = 0) -> Int64:
        """Return the positions at which rows are drawn in passes of their sources."""
        flat = _checked(rows)
        number = np.broadcast_to(_checked(passes), flat.shape)
        kept = self._take()
        sources = self._sources_of(flat)
        lane, draw = kept.passes.draws(sources, flat - self._first_rows[sources], number)
        lanes, numbers, offsets = self._gather(sources, lane, draw)
        units = self._units(kept, sources, lanes, numbers)
        self._kept.append(kept)
        return (units * self.width + offsets).reshape(np.shape(rows))

    # Sources and their lanes

    @cached_property
    def _first_rows(self) -> Int64:
        return np.array(self._firsts, np.int64)

    @cached_property
    def _batches(self) -> Int64:
        return np.array(self.course.batches or [1] * len(self.chunks), np.int64)

    @cached_property
    def _facts(self) -> Int64:
        """Return the samples of each source, its lanes, and its samples in a unit."""
        samples = [source.samples for source in self.course.sources]
        return np.stack([np.array(samples, np.int64), self._lanes, self._batches], axis=1)

    @cached_property
    def _lanes(self) -> Int64:
        return np.array([source.lanes for source in self.course.sources], np.int64)

    def _sources_of(self, rows: Int64) -> Int64:
        """Return the sources of rows of the concatenation."""
        here = [number for number, chunks in enumerate(self.chunks) if chunks is not None]
        here.sort(key=self._firsts.__getitem__)
        ends = np.cumsum([self.course.sources[number].samples for number in here])
        if rows.size and rows.max() >= ends[-1]:
            raise IndexError(
                f"{rows.max()} is out of bounds for a mixture of {quantity(ends[-1], 'row')}"
            )
        return np.array(here)[np.searchsorted(ends, rows, side="right")]

    def _gather(self, sources: Int64, lane: Int64, draw: Int64) -> tuple[Int64, Int64, Int64]:
        """Return the lane of the stream, the unit's number there, and the sample's in the unit."""
        own = self._lanes[sources]
        size = self._batches[sources]
        if self.course.across:
            numbers, offsets = np.divmod(draw * own + lane, size)
            return np.zeros_like(numbers), numbers, offsets
        numbers, offsets = np.divmod(draw, size)
        numbers, turns = np.divmod(numbers, self.course.lanes // own)
        return turns * own + lane, numbers, offsets

    # Units and draws

    def _draws(self, kept: _Kept, units: Int64) -> tuple[Int64, Int64, Int64]:
        """Return the sources of units, their lanes, and which of the draws there they are."""
        sources, numbers = np.empty_like(units), np.empty_like(units)
        lanes = units % self.course.lanes
        phases = np.searchsorted(self._starts, units, side="right") - 1
        for phase, mine in group_positions(phases):
            places = units[mine] - self._row_start(phase)
            source, draw = np.empty_like(places), np.empty_like(places)
            for number, these in group_positions(places // (self._repeats * self._span(phase))):
                pattern, at = self._pattern(kept, phase, number), places[these]
                found = np.empty((2, at.size), np.int64)
                draws.for_size(4 * at.size)(at, pattern, *found)
                source[these], draw[these] = found
            if phase:
                draw += self._count(kept, phase).base[source, lanes[mine]]
            sources[mine], numbers[mine] = source, draw
        return sources, lanes, numbers

    def _units(self, kept: _Kept, sources: Int64, lanes: Int64, numbers: Int64) -> Int64:
        """Return the units that are draws of sources in lanes: `_draws` inverted."""
        phases = np.zeros_like(sources)
        for phase in range(1, len(self.course.phases)):
            phases[self._count(kept, phase).before[sources, lanes] <= numbers] = phase
        units = np.empty_like(sources)
        for phase, here in group_positions(phases):
            source, lane, draw = sources[here], lanes[here], numbers[here]
            if phase:
                draw = draw - self._count(kept, phase).base[source, lane]
            superblocks, draw = np.divmod(draw, self._counts[phase][source])
            places = np.empty_like(draw)
            for number, these in group_positions(superblocks // self._repeats):
                pattern, place = self._pattern(kept, phase, number), np.empty_like(draw[these])
                places_of.for_size(4 * place.size)(
                    source[these], lane[these], draw[these], pattern, place
                )
                places[these] = place
            units[here] = self._row_start(phase) + superblocks * self._span(phase) + places
        return units

    @cached_property
    def _starts(self) -> Int64:
        return np.array([phase.start for phase in self.course.phases], np.int64)

    @cached_property
    def _counts(self) -> list[Int64]:
        return [np.array(phase.counts, np.int64) for phase in self.course.phases]

    def _span(self, phase: int) -> int:
        """Return the units of a superblock."""
        return sum(self.course.phases[phase].counts) * self.course.lanes

    def _row_start(self, phase: int) -> int:
        """Return the first unit of the row of lanes in which a phase starts."""
        start = self.course.phases[phase].start
        return start - start % self.course.lanes

    def _places(self, phase: int, units: Any) -> tuple[Any, Any]:
        """Return the superblocks of units in a phase, and their places there."""
        superblocks, places = divmod(units - self._row_start(phase), self._span(phase))
        return superblocks, places

    @cached_property
    def _repeats(self) -> int:
        """Superblocks in a row that have the same pattern."""
        return -(-REPEATS // self.course.lanes)

    def _pattern(self, kept: _Kept, phase: int, number: int) -> Pattern:
        """Return the pattern of number `number` in a phase."""
        pattern = kept.patterns.pop((phase, number), None)
        if pattern is None:
            start = self.course.phases[phase].start
            key = make_key(self.course.seed, start, number, _PATTERN)
            pattern = make_pattern(self._counts[phase], self.course.lanes, key)
            while len(kept.patterns) > 1:
                del kept.patterns[next(iter(kept.patterns))]
        kept.patterns[phase, number] = pattern
        return pattern

    def _count(self, kept: _Kept, phase: int) -> _Count:
        """Count draws before a phase."""
        known = max((number for number in kept.counts if number <= phase), default=0)
        nothing = np.zeros((len(self.chunks), self.course.lanes), np.int64)
        count = kept.counts.pop(known, None) or _Count(nothing, nothing)
        for number in range(known, phase):
            stop = self.course.phases[number + 1].start
            before = count.base + self._tally(kept, number, stop)
            count = _Count(before, before - self._tally(kept, number + 1, stop))
        while len(kept.counts) > 1:
            del kept.counts[next(iter(kept.counts))]
        kept.counts[phase] = count
        return count

    def _tally(self, kept: _Kept, phase: int, stop: int) -> Int64:
        """Count draws from the row on in which a phase starts, up to a unit."""
        superblock, place = self._places(phase, stop)
        counts = np.zeros((len(self.chunks), self.course.lanes), np.int64)
        if place:
            pattern = self._pattern(kept, phase, superblock // self._repeats)
            tally.for_size(pattern.length + counts.size)(pattern, place, counts)
        counts += superblock * self._counts[phase][:, None]
        return counts

    def _take(self) -> _Kept:
        with suppress(IndexError):
            return self._kept.pop()
        return _Kept(self)


class EpochOrder(RowOrder):
    """A stretch of a mixture's stream: the order of an epoch of the mixture.

    Parameters
    ----------
    stream : MixtureOrder
    start, length : int
        The stretch.
    """

    def __init__(self, stream: MixtureOrder, start: int, length: int) -> None:
        self.stream = stream
        self._start, self._length = start, length

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        length = quantity(self._length, "position")
        return f"<EpochOrder: {length} from {self._start} on, {self.stream!r}>"

    def identity(self) -> str:
        """Return the text by which saved states know this order; it never changes."""
        return _EPOCH_IDENTITY.format(self._length, self._start, self.stream.identity())

    def __reduce__(self) -> tuple[Any, ...]:
        return EpochOrder, (self.stream, self._start, self._length)

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the stream holds by now."""
        return self.stream.nbytes

    def at(self, positions: Int64) -> Int64:
        """Return the rows at positions, in the shape of `positions`."""
        flat = _checked(positions)
        if flat.size and flat.max() >= self._length:
            raise IndexError(
                f"{flat.max()} is out of bounds for {quantity(self._length, 'position')}"
            )
        return self.stream.at(flat + self._start).reshape(np.shape(positions))

    def find(self, rows: Int64, passes: int | Int64 = 0) -> Int64:
        """Return the positions of rows in passes of their sources, counted from the first here.

        They may be negative, or beyond the last, as passes through sources are not cut where
        epochs are.
        """
        return self.stream.find(rows, passes) - self._start


def _checked(numbers: Any) -> Int64:
    """Return numbers, none of them negative, in one row."""
    flat = np.asarray(numbers).astype(np.int64, "C", casting="same_kind", copy=False).reshape(-1)
    if flat.size and flat.min() < 0:
        raise IndexError(f"{flat.min()} is out of bounds: positions and rows count from 0")
    return flat
