"""Provide the stream of a mixture: the source and row at each position, and the inverse.

The stream is endless. It draws *units*: samples, or whole batches if each batch is of one source.
Patterns interleave the units of sources in blocks with exact counts (see
`npstream.mixture.patterns`). A superblock of `lanes` blocks shares a pattern. Unit u is in lane
``u % lanes``. The counts change at the beginning of each *phase*, which can be any unit. The draws
before a phase, of each source in each lane, are counted from the patterns of earlier phases.

Every source has its own lanes and blocks, independent of weights, and an `Order` for each pass
through it. Suppose that a source has C lanes, and the stream has k * C lanes. Then the lanes c,
c + C, c + 2 * C and so on of the stream share lane c of the source. Draw m of lane l of the stream
is draw ``m * k + l // C`` of the source's lane. Consider a node that reads every P-th lane of the
stream. If P divides C, the node reads only every P-th lane of the source. Pass p of a lane with E
elements is its draws ``p * E`` to ``(p + 1) * E - 1``, with each element once.
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
from npstream.mixture.passes import Passes, Stored, find_passes
from npstream.mixture.patterns import Pattern, count_draws, find_places, look_up_draws, make_pattern
from npstream.orders.order import ORDER_VERSION, RowOrder
from npstream.orders.permutation import make_key

STREAM_VERSION = (1, PATTERN_VERSION, ORDER_VERSION)
"""Version of the streams; it must change whenever this module computes other streams."""

_STREAM_IDENTITY = "<MixtureOrder: {} sources, {}>"
_EPOCH_IDENTITY = "<EpochOrder: {} positions from {} on, {}>"

MIN_PATTERN_REPEATS = 16
"""Minimum number of blocks that share a pattern: to draw a pattern takes longer than to use it."""

_ZERO = np.zeros(1, np.int64)

_PATTERN = 4
"""The argument `level` of `make_key` for patterns."""


class Phase(NamedTuple):
    """The units of each source in a block, from unit `start` on; counts may be 0."""

    start: int
    counts: tuple[int, ...]


class Course(NamedTuple):
    """The settings that a stream depends on, without the chunks of its sources.

    The names of this class, of `Phase` and `Stored`, and of their fields are part of
    `MixtureOrder.identity`, so they must not change.

    Parameters
    ----------
    seed : int
    lanes : int
        Lanes of the stream: a multiple of each source's lanes. It is coprime to the units of a
        block, or divides them.
    sources : tuple of Stored
    phases : tuple of Phase
        The first starts at 0.
    batches : tuple of int, optional
        Samples in a unit of each source; by default 1.
    across : bool
        Whether a unit takes samples from all lanes of its source in turn, instead of from one lane.
    """

    seed: int
    lanes: int
    sources: tuple[Stored, ...]
    phases: tuple[Phase, ...]
    batches: tuple[int, ...] | None = None
    across: bool = False


class _DrawCounts(NamedTuple):
    """The numbers of draws of each source in each lane, at the start of a phase.

    `total` counts the draws before the phase. A phase can start in the middle of a row of `lanes`
    units, but its patterns begin with this row. So the patterns have draws before the start, and
    `offset` is `total` minus these. A draw's number in the patterns, plus `offset`, is its number
    in the stream.
    """

    total: Int64
    offset: Int64


class _Buffers:
    """Cached patterns, counts and passes.

    A look-up removes its buffers from the order, so that no two threads use the same ones.
    """

    def __init__(self, order: MixtureOrder) -> None:
        self.patterns: dict[tuple[int, int], Pattern] = {}
        self.counts: dict[int, _DrawCounts] = {}
        course = order.course
        self.passes = Passes(course.seed, course.sources, order.chunks, order.stratified)


class MixtureOrder:
    """The stream of a mixture: rows of the concatenation of its sources, by position.

    Parameters
    ----------
    course : Course
    chunks : sequence of callable or None
        Each returns the bounds of a source's chunks; None for sources that were removed.
    firsts : sequence of int
        The first row of each source in the concatenation; any number for removed sources.
    stratified : bool, default: False
        Whether the passes through the sources are stratified; see `npstream.orders.order.Shuffle`.

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
        stratified: bool = False,
    ) -> None:
        self.course, self.chunks, self._firsts = course, tuple(chunks), tuple(firsts)
        self.stratified = stratified
        self._free_buffers: deque[_Buffers] = deque(maxlen=1)

    def __reduce__(self) -> tuple[Any, ...]:
        return MixtureOrder, (self.course, self.chunks, self._firsts, self.stratified)

    def __repr__(self) -> str:
        return f"<MixtureOrder: {quantity(len(self.chunks), 'source')}, {self._digest()}>"

    def identity(self) -> str:
        """Return the str that identifies this order in saved states; it must never change."""
        return _STREAM_IDENTITY.format(len(self.chunks), self._digest())

    def _digest(self) -> str:
        text = repr((STREAM_VERSION, self.course)) + (", stratified" if self.stratified else "")
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the order uses now."""
        return sum(
            buffers.passes.nbytes
            + sum(array.nbytes for count in buffers.counts.values() for array in count)
            + sum(pattern.nbytes for pattern in buffers.patterns.values())
            for buffers in list(self._free_buffers)
        )

    @cached_property
    def width(self) -> int:
        """Positions of a unit: the number of samples of the largest unit."""
        return max(self.course.batches or (1,))

    def at(self, positions: Int64) -> Int64:
        """Return the rows at positions, in the same shape; -1 after the end of a smaller unit."""
        flat = _check(positions)
        if not flat.size:
            return np.empty_like(flat)
        buffers = self._acquire()
        units, offsets = np.divmod(flat, self.width) if self.width > 1 else (flat, _ZERO)
        sources, lanes, numbers = self._draws(buffers, units)
        passes, places = np.empty((2, flat.size), np.int64)
        find_passes.for_size(2 * flat.size)(
            sources, lanes, numbers, offsets, self._source_table,
            self.course.lanes, self.course.across, passes, places,
        )  # fmt: skip
        rows = buffers.passes.rows(sources, passes, places)
        rows += self._first_rows[sources]
        if self.course.batches is not None:
            rows[offsets >= self._batches[sources]] = -1
        self._free_buffers.append(buffers)
        return rows.reshape(np.shape(positions))

    def find(self, rows: Int64, passes: int | Int64 = 0) -> Int64:
        """Return the positions of rows in the given passes through their sources."""
        flat = _check(rows)
        number = np.broadcast_to(_check(passes), flat.shape)
        buffers = self._acquire()
        sources = self._sources_of(flat)
        lane, draw = buffers.passes.find_draws(sources, flat - self._first_rows[sources], number)
        lanes, numbers, offsets = self._to_stream(sources, lane, draw)
        units = self._units(buffers, sources, lanes, numbers)
        self._free_buffers.append(buffers)
        return (units * self.width + offsets).reshape(np.shape(rows))

    # Sources and their lanes

    @cached_property
    def _first_rows(self) -> Int64:
        return np.array(self._firsts, np.int64)

    @cached_property
    def _batches(self) -> Int64:
        return np.array(self.course.batches or [1] * len(self.chunks), np.int64)

    @cached_property
    def _source_table(self) -> Int64:
        """Return the samples, the lanes, and the samples in a unit of each source."""
        samples = [source.samples for source in self.course.sources]
        return np.stack([np.array(samples, np.int64), self._lanes, self._batches], axis=1)

    @cached_property
    def _lanes(self) -> Int64:
        return np.array([source.lanes for source in self.course.sources], np.int64)

    def _sources_of(self, rows: Int64) -> Int64:
        """Return the sources of rows of the concatenation."""
        present = [number for number, chunks in enumerate(self.chunks) if chunks is not None]
        present.sort(key=self._firsts.__getitem__)
        ends = np.cumsum([self.course.sources[number].samples for number in present])
        if rows.size and rows.max() >= ends[-1]:
            raise IndexError(
                f"{rows.max()} is out of bounds for a mixture of {quantity(ends[-1], 'row')}"
            )
        return np.array(present)[np.searchsorted(ends, rows, side="right")]

    def _to_stream(self, sources: Int64, lane: Int64, draw: Int64) -> tuple[Int64, Int64, Int64]:
        """Return where each draw is in the stream, as three arrays.

        They contain the lane of the stream, the number of the unit among the units of its source in
        this lane, and the number of the sample in the unit.
        """
        source_lanes = self._lanes[sources]
        size = self._batches[sources]
        if self.course.across:
            numbers, offsets = np.divmod(draw * source_lanes + lane, size)
            return np.zeros_like(numbers), numbers, offsets
        numbers, offsets = np.divmod(draw, size)
        # A lane group has consecutive lanes of the stream, one for each lane of the source.
        numbers, lane_group = np.divmod(numbers, self.course.lanes // source_lanes)
        return lane_group * source_lanes + lane, numbers, offsets

    # Units and draws

    def _draws(self, buffers: _Buffers, units: Int64) -> tuple[Int64, Int64, Int64]:
        """Return the source, the lane and the draw number of each unit.

        The number counts the draws of this source in this lane.
        """
        sources, numbers = np.empty_like(units), np.empty_like(units)
        lanes = units % self.course.lanes
        phases = np.searchsorted(self._starts, units, side="right") - 1
        for phase, in_phase in group_positions(phases):
            places = units[in_phase] - self._row_start(phase)
            source, draw = np.empty_like(places), np.empty_like(places)
            for number, in_pattern in group_positions(
                places // (self._repeats * self._superblock_units(phase))
            ):
                pattern, pattern_places = self._pattern(buffers, phase, number), places[in_pattern]
                result = np.empty((2, pattern_places.size), np.int64)
                look_up_draws.for_size(4 * pattern_places.size)(pattern_places, pattern, *result)
                source[in_pattern], draw[in_pattern] = result
            if phase:
                draw += self._counts_before(buffers, phase).offset[source, lanes[in_phase]]
            sources[in_phase], numbers[in_phase] = source, draw
        return sources, lanes, numbers

    def _units(self, buffers: _Buffers, sources: Int64, lanes: Int64, numbers: Int64) -> Int64:
        """Return the units of draws of sources in lanes: the inverse of `_draws`."""
        phases = np.zeros_like(sources)
        for phase in range(1, len(self.course.phases)):
            phases[self._counts_before(buffers, phase).total[sources, lanes] <= numbers] = phase
        units = np.empty_like(sources)
        for phase, in_phase in group_positions(phases):
            source, lane, draw = sources[in_phase], lanes[in_phase], numbers[in_phase]
            if phase:
                draw = draw - self._counts_before(buffers, phase).offset[source, lane]
            superblocks, draw = np.divmod(draw, self._counts[phase][source])
            places = np.empty_like(draw)
            for number, in_pattern in group_positions(superblocks // self._repeats):
                pattern = self._pattern(buffers, phase, number)
                place = np.empty_like(draw[in_pattern])
                find_places.for_size(4 * place.size)(
                    source[in_pattern], lane[in_pattern], draw[in_pattern], pattern, place
                )
                places[in_pattern] = place
            units[in_phase] = (
                self._row_start(phase) + superblocks * self._superblock_units(phase) + places
            )
        return units

    @cached_property
    def _starts(self) -> Int64:
        return np.array([phase.start for phase in self.course.phases], np.int64)

    @cached_property
    def _counts(self) -> list[Int64]:
        return [np.array(phase.counts, np.int64) for phase in self.course.phases]

    def _superblock_units(self, phase: int) -> int:
        """Return the number of units in a superblock."""
        return sum(self.course.phases[phase].counts) * self.course.lanes

    def _row_start(self, phase: int) -> int:
        """Return the first unit of the row of lanes in which a phase starts."""
        start = self.course.phases[phase].start
        return start - start % self.course.lanes

    def _split_units(self, phase: int, units: Any) -> tuple[Any, Any]:
        """Return the superblocks of units in a phase, and the places of the units in them."""
        superblocks, places = divmod(units - self._row_start(phase), self._superblock_units(phase))
        return superblocks, places

    @cached_property
    def _repeats(self) -> int:
        """Number of consecutive superblocks with the same pattern."""
        return -(-MIN_PATTERN_REPEATS // self.course.lanes)

    def _pattern(self, buffers: _Buffers, phase: int, number: int) -> Pattern:
        """Return pattern `number` of a phase."""
        pattern = buffers.patterns.pop((phase, number), None)
        if pattern is None:
            start = self.course.phases[phase].start
            key = make_key(self.course.seed, start, number, _PATTERN)
            pattern = make_pattern(self._counts[phase], self.course.lanes, key)
            while len(buffers.patterns) > 1:
                del buffers.patterns[next(iter(buffers.patterns))]
        buffers.patterns[phase, number] = pattern
        return pattern

    def _counts_before(self, buffers: _Buffers, phase: int) -> _DrawCounts:
        """Return the counts of draws before a phase, from those of the last cached phase."""
        cached = max((number for number in buffers.counts if number <= phase), default=0)
        zeros = np.zeros((len(self.chunks), self.course.lanes), np.int64)
        count = buffers.counts.pop(cached, None) or _DrawCounts(zeros, zeros)
        for number in range(cached, phase):
            stop = self.course.phases[number + 1].start
            total = count.offset + self._count_draws(buffers, number, stop)
            count = _DrawCounts(total, total - self._count_draws(buffers, number + 1, stop))
        while len(buffers.counts) > 1:
            del buffers.counts[next(iter(buffers.counts))]
        buffers.counts[phase] = count
        return count

    def _count_draws(self, buffers: _Buffers, phase: int, stop: int) -> Int64:
        """Count the draws before unit `stop`, from the beginning of the phase's row of lanes on."""
        superblock, place = self._split_units(phase, stop)
        counts = np.zeros((len(self.chunks), self.course.lanes), np.int64)
        if place:
            pattern = self._pattern(buffers, phase, superblock // self._repeats)
            count_draws.for_size(pattern.length + counts.size)(pattern, place, counts)
        counts += superblock * self._counts[phase][:, None]
        return counts

    def _acquire(self) -> _Buffers:
        with suppress(IndexError):
            return self._free_buffers.pop()
        return _Buffers(self)


class EpochOrder(RowOrder):
    """The order of an epoch of a mixture: a range of its stream.

    Parameters
    ----------
    stream : MixtureOrder
    start, length : int
        The first position of the range, and its length.
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
        """Return the str that identifies this order in saved states; it must never change."""
        return _EPOCH_IDENTITY.format(self._length, self._start, self.stream.identity())

    def __reduce__(self) -> tuple[Any, ...]:
        return EpochOrder, (self.stream, self._start, self._length)

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the stream uses now."""
        return self.stream.nbytes

    def at(self, positions: Int64) -> Int64:
        """Return the rows at `positions`, in the same shape."""
        flat = _check(positions)
        if flat.size and flat.max() >= self._length:
            raise IndexError(
                f"{flat.max()} is out of bounds for {quantity(self._length, 'position')}"
            )
        return self.stream.at(flat + self._start).reshape(np.shape(positions))

    def find(self, rows: Int64, passes: int | Int64 = 0) -> Int64:
        """Return the positions of rows in the given passes through their sources.

        Positions count from the beginning of this epoch. They can be negative or after its end,
        because passes through sources do not end with epochs.
        """
        return self.stream.find(rows, passes) - self._start


def _check(numbers: Any) -> Int64:
    """Return numbers as a flat int64 array; raise IndexError if one is negative."""
    flat = np.asarray(numbers).astype(np.int64, "C", casting="same_kind", copy=False).reshape(-1)
    if flat.size and flat.min() < 0:
        raise IndexError(f"{flat.min()} is out of bounds: positions and rows count from 0")
    return flat
