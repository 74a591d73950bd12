"""Which samples an epoch of Streaming takes, and how often: weights of streams, chosen samples.

A *stream* is one dataset of a mixture. Its weight settles how many samples an epoch takes from it;
these are spread over its shards; and where that is not all of a shard, some of it are picked.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from npstream._core.jit import kernel, u64
from npstream._core.typing import AnyArray, Bools, Int64
from npstream.orders.streaming.pcg64 import State, bounded, draw_below, draw_shuffle, seeded
from npstream.orders.streaming.runs import Pieces, number_type

SAMPLINGS = ("balanced", "fixed")
"""Whether every epoch picks other samples, or the same."""

_FEW = 10_000
"""Of so many samples, at most, NumPy always chooses by Floyd's method."""


@dataclass(frozen=True, slots=True)
class Weight:
    """How much an epoch takes of a stream, said in at most one way.

    Parameters
    ----------
    proportion : float, optional
        Its part of an epoch, relative to that of the others.
    repeat : float, optional
        How often it is read.
    choose : int, optional
        How many samples.
    """

    proportion: float | None = None
    repeat: float | None = None
    choose: int | None = None

    def __post_init__(self) -> None:
        given = [name for name in self.__slots__ if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"a stream has one weight, not {' and '.join(given)}")
        for name in given:
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)}: a weight is not negative")


def chosen(
    weights: Sequence[Weight], sizes: Int64, epoch_size: int | None, seed: int
) -> tuple[Int64, NDArray[np.float64]]:
    """Return how many samples an epoch takes of each stream, and what proportion it is meant to be.

    Weights are all proportions, and then `epoch_size` is by default that of all streams; or none
    is one, and then `epoch_size` can only be given where there are no weights at all.

    >>> chosen([Weight(proportion=3), Weight(proportion=1)], np.array([50, 60]), 100, seed=0)
    (array([75, 25]), array([0.75, 0.25]))
    """
    relative = {weight.proportion is not None for weight in weights}
    unweighted = all(weight == Weight() for weight in weights)
    if len(relative) > 1:
        raise ValueError(
            "some streams are weighted by proportion and some are not: give a proportion to all "
            "of them, or to none"
        )
    absolute = relative != {True} and epoch_size is None
    if not (absolute or unweighted or relative == {True}):
        raise ValueError(
            f"epoch_size={epoch_size} does not go with repeat or choose, which sum up to the size "
            "of an epoch"
        )
    if absolute:
        shares = np.array([_taken(*each) for each in zip(weights, sizes.tolist(), strict=True)])
    else:
        shares = sizes if unweighted else np.array([weight.proportion for weight in weights])
    if not shares.sum() > 0:
        raise ValueError("an epoch takes no sample of any stream")
    proportions = shares / shares.sum()
    counts = shares
    if not absolute:
        if epoch_size is None:
            epoch_size = int(sizes.sum())
        counts = (epoch_size * proportions).astype(np.int64)
        short = epoch_size - int(counts.sum())
        counts[np.random.default_rng(seed).choice(len(counts), short, replace=False)] += 1
    if counts[sizes == 0].any():
        raise ValueError(f"an epoch takes samples of stream {sizes.argmin()}, which has none")
    return counts, proportions


def chosen_per_shard(sizes: Int64, choose: int, granularity: int, seed: int) -> Int64:
    """Spread the samples that are taken of a stream over its shards.

    All of every shard is taken as often as that is possible. What remains is taken of shards at
    random, `granularity` samples at a time.
    """
    times, rest = divmod(choose, max(int(sizes.sum()), 1))
    counts = sizes * times
    if rest:
        picks = -(-sizes // granularity)
        # The last pick of a shard is short. But before a shard of no samples, and so no picks,
        # Streaming takes it for a whole one.
        last = (sizes - 1) % granularity + 1
        last[:-1][sizes[1:] == 0] = granularity
        is_small = len(sizes) <= 1 << 15
        order = np.empty(int(picks.sum()), np.uint16 if is_small else np.uint32)
        _pick.for_size(order.size)(seeded(seed), picks, last, granularity, rest, order, counts)
    return counts


@dataclass(frozen=True, eq=False)
class Picks:
    """The samples that an epoch takes, in units that are shuffled as one.

    A unit is all of a shard, in order, or what was picked of it. What is picked is drawn when it
    is first needed.

    Parameters
    ----------
    shards : list of ndarray
        For each stream, the samples of each shard.
    taken : list of int
        How many samples are taken of each stream.
    granularity : int
    shard_seed, sample_seed : int
        What shards, and what samples of them, are drawn from.

    Examples
    --------
    >>> picks = Picks([np.array([3, 5])], [11], granularity=2, shard_seed=0, sample_seed=0)
    >>> picks.units.sizes, picks.ids(np.arange(11))
    (array([3, 5, 3]), array([0, 1, 2, 3, 4, 5, 6, 7, 5, 6, 7]))
    """

    shards: list[Int64]
    taken: list[int]
    granularity: int
    shard_seed: int
    sample_seed: int

    @property
    def size(self) -> int:
        """How many samples are taken."""
        return sum(self.taken)

    @functools.cached_property
    def sizes(self) -> Int64:
        """Samples of each shard, through all streams."""
        return np.concatenate(self.shards)

    @functools.cached_property
    def counts(self) -> Int64:
        """How many samples are taken of each shard: all, as often as possible, and then some."""
        counts = [
            chosen_per_shard(sizes, choose, self.granularity, self.shard_seed)
            for sizes, choose in zip(self.shards, self.taken, strict=True)
        ]
        return np.concatenate(counts)

    @functools.cached_property
    def units(self) -> Pieces:
        """What is shuffled as one: the ids of its samples."""
        state = seeded(self.sample_seed)
        sizes, begins = self.sizes, self.sizes.cumsum() - self.sizes
        times, rest = np.divmod(self.counts, np.maximum(sizes, 1))
        (parts,) = rest.nonzero()
        ends = rest.cumsum()
        # There is room for one more than are picked; see below.
        picks = np.empty(int(ends[-1]) + 1, number_type(int(sizes.sum())))
        most = int(sizes[parts].max(initial=0))
        _choose.for_size(picks.size)(
            state, sizes[parts], rest[parts], begins[parts], np.zeros(most, bool), picks
        )
        # All of a shard comes first, then what was picked of it.
        repeats = times + (rest > 0)
        last = repeats.cumsum()[parts] - 1
        units, starts = sizes.repeat(repeats), begins.repeat(repeats)
        units[last] = rest[parts]
        starts[last] = (ends - rest)[parts] - ends[-1]
        return Pieces.laid(units, starts, picks[:-1])

    def ids(self, numbers: Int64) -> Int64:
        """Return the ids of samples, counted through the units."""
        if np.array_equal(self.counts, self.sizes):
            return numbers
        ids = np.empty_like(numbers)
        units = self.units
        _look_up.for_size(ids.size)(numbers, units.offsets, units.begins, units.picks, ids)
        return ids


def _taken(weight: Weight, size: int) -> int:
    """Return how many samples are taken of a stream that is weighted by itself."""
    if weight.choose is not None:
        return weight.choose
    return size if weight.repeat is None else int(weight.repeat * size)


@kernel
def _pick(
    state: State,
    picks: Int64,
    last: Int64,
    granularity: int,
    rest: int,
    order: AnyArray,
    counts: Int64,
) -> None:
    """Take picks in random order, until nothing of the rest is left.

    What is shuffled is, for each pick, twice its shard, and 1 more if it is the shard's last.
    """
    at = 0
    for shard in range(picks.size):
        for _ in range(picks[shard]):
            order[at] = 2 * shard
            at += 1
        if picks[shard]:
            order[at - 1] += 1
    draw_shuffle(state, order, 0, order.size)
    left = rest
    for k in range(order.size):
        shard = int(order[k]) >> 1
        taken = min(last[shard] if order[k] & 1 else granularity, left)
        counts[shard] += taken
        left -= taken
        if left == 0:
            return


@kernel
def _choose(
    state: State, sizes: Int64, counts: Int64, begins: Int64, chosen: Bools, picks: AnyArray
) -> None:
    """Choose samples of each shard as ``Generator.choice`` does; write their ids, in order."""
    at = 0
    for k in range(sizes.size):
        size, count = sizes[k], counts[k]
        if size > _FEW and count > size // 50:
            _shuffle_tail(state, size, count, chosen)
        else:
            _choose_few(state, size, count, chosen)
        end = at + count
        for number in range(size):
            picks[at] = begins[k] + number  # which the next one replaces unless it was chosen
            at += chosen[number]
            chosen[number] = False
        at = end


@kernel
def _choose_few(state: State, size: int, count: int, chosen: Bools) -> None:
    """Choose numbers below a size by Floyd's method; their order is drawn, but does not matter."""
    hi, lo, inc_hi, inc_lo = u64(state[0]), u64(state[1]), u64(state[2]), u64(state[3])
    spare, has_spare = u64(state[4]), u64(state[5])
    if size == count:  # the first is drawn from one
        chosen[0] = True
    for last in range(max(size - count, 1), size):
        hi, lo, spare, has_spare, drawn = bounded(
            hi, lo, inc_hi, inc_lo, spare, has_spare, last + 1
        )
        chosen[last if chosen[drawn] else drawn] = True
    for bound in range(count, 1, -1):
        hi, lo, spare, has_spare, drawn = bounded(hi, lo, inc_hi, inc_lo, spare, has_spare, bound)
    state[0], state[1], state[4], state[5] = hi, lo, spare, has_spare


@kernel
def _shuffle_tail(state: State, size: int, count: int, chosen: Bools) -> None:
    """Choose numbers below a size by shuffling them, from the end, as far as that is needed."""
    numbers = np.arange(size)
    for i in range(size - 1, max(size - count, 1) - 1, -1):
        drawn = draw_below(state, i + 1)
        numbers[i], numbers[drawn] = numbers[drawn], numbers[i]
    for i in range(size - count, size):
        chosen[numbers[i]] = True


@kernel
def _look_up(numbers: Int64, offsets: Int64, begins: Int64, picks: AnyArray, ids: Int64) -> None:
    """Write the ids of samples that are counted through units."""
    unit = 0
    for k in range(numbers.size):
        if not offsets[unit] <= numbers[k] < offsets[unit + 1]:
            unit = int(np.searchsorted(offsets, numbers[k], "right")) - 1
        number = begins[unit] + numbers[k] - offsets[unit]
        ids[k] = number if begins[unit] >= 0 else int(picks[number + picks.size])
