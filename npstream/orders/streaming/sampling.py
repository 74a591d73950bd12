"""Provide the samples that an epoch of Streaming takes, and how often it takes each.

A *stream* is one dataset of a mixture. Its weight determines how many samples an epoch takes of it.
This number is divided among its shards. If a shard's part is not a multiple of the shard's size,
random samples of the shard are picked.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from npstream._core.jit import kernel, u64
from npstream._core.typing import AnyArray, Bools, Int64
from npstream.orders.streaming.pcg64 import (
    State,
    draw_below,
    draw_below_words,
    draw_shuffle,
    state_from_seed,
)
from npstream.orders.streaming.runs import Pieces, number_dtype

SAMPLING_METHODS = ("balanced", "fixed")
"""With "balanced", each epoch picks other samples. With "fixed", all epochs pick the same."""

_FLOYD_MAX = 10_000
"""Up to this number of samples, ``Generator.choice`` always uses Floyd's method."""


@dataclass(frozen=True, slots=True)
class Weight:
    """The weight of a stream; at most one parameter may be given.

    Parameters
    ----------
    proportion : float, optional
        The stream's part of an epoch, relative to the proportions of other streams.
    repeat : float, optional
        How often an epoch takes the stream.
    choose : int, optional
        How many samples an epoch takes of the stream.
    """

    proportion: float | None = None
    repeat: float | None = None
    choose: int | None = None

    def __post_init__(self) -> None:
        names = [name for name in self.__slots__ if getattr(self, name) is not None]
        if len(names) > 1:
            raise ValueError(f"a stream has at most one weight, not {' and '.join(names)}")
        for name in names:
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 0")


def samples_per_stream(
    weights: Sequence[Weight], sizes: Int64, epoch_size: int | None, seed: int
) -> tuple[Int64, NDArray[np.float64]]:
    """Return how many samples an epoch takes of each stream, and the stream's part of the epoch.

    There are three kinds of weights:

    - Proportions of all streams: `epoch_size` is by default the size of all streams together.
    - `repeat` or `choose` of some streams: they give the counts, and `epoch_size` must be None.
    - No weights: an epoch takes each sample once, or `epoch_size` samples in proportion to sizes.

    >>> weights = [Weight(proportion=3), Weight(proportion=1)]
    >>> samples_per_stream(weights, np.array([50, 60]), 100, seed=0)
    (array([75, 25]), array([0.75, 0.25]))
    """
    has_proportion = [weight.proportion is not None for weight in weights]
    has_no_weight = all(weight == Weight() for weight in weights)
    if any(has_proportion) and not all(has_proportion):
        raise ValueError(
            "some streams have a proportion and some do not: give a proportion to all streams, or "
            "to none"
        )
    uses_proportions = bool(has_proportion) and all(has_proportion)
    gives_counts = not uses_proportions and epoch_size is None
    if not (gives_counts or has_no_weight or uses_proportions):
        raise ValueError(
            f"epoch_size={epoch_size}: the size of an epoch is the sum of repeat and choose: leave "
            "epoch_size out"
        )
    if gives_counts:
        shares = np.array(
            [_weighted_samples(*each) for each in zip(weights, sizes.tolist(), strict=True)]
        )
    else:
        shares = sizes if has_no_weight else np.array([weight.proportion for weight in weights])
    if not shares.sum() > 0:
        raise ValueError("an epoch takes no sample of any stream")
    proportions = shares / shares.sum()
    counts = shares
    if not gives_counts:
        if epoch_size is None:
            epoch_size = int(sizes.sum())
        counts = (epoch_size * proportions).astype(np.int64)
        missing_samples = epoch_size - int(counts.sum())
        rng = np.random.default_rng(seed)
        counts[rng.choice(len(counts), missing_samples, replace=False)] += 1
    if (is_impossible := (sizes == 0) & (counts > 0)).any():
        stream = is_impossible.argmax()
        raise ValueError(f"an epoch takes samples of stream {stream}, which has none")
    return counts, proportions


def samples_per_shard(sizes: Int64, choose: int, granularity: int, seed: int) -> Int64:
    """Divide the samples that an epoch takes of a stream among its shards.

    Each shard is taken ``choose // sizes.sum()`` times as a whole. The remaining samples are taken
    of random shards, `granularity` samples at a time.
    """
    times, remainder = divmod(choose, max(int(sizes.sum()), 1))
    counts = sizes * times
    if remainder:
        pick_counts = -(-sizes // granularity)
        # The last pick of a shard may be short. But if the next shard is empty, Streaming takes the
        # full granularity. This copies its behavior.
        last_sizes = (sizes - 1) % granularity + 1
        last_sizes[:-1][sizes[1:] == 0] = granularity
        is_small = len(sizes) <= 1 << 15
        order = np.empty(int(pick_counts.sum()), np.uint16 if is_small else np.uint32)
        state = state_from_seed(seed)
        _pick.for_size(order.size)(
            state, pick_counts, last_sizes, granularity, remainder, order, counts
        )
    return counts


@dataclass(frozen=True, eq=False)
class Picks:
    """The samples that an epoch takes, in units for a shuffle.

    A unit is a whole shard, in order, or the samples that were picked of a shard. Random numbers
    are drawn on first use.

    Parameters
    ----------
    shards : list of ndarray
        For each stream, the number of samples of each shard.
    stream_samples : list of int
        The number of samples that the epoch takes of each stream.
    granularity : int
        Maximum number of samples that are picked of a random shard at a time.
    shard_seed, sample_seed : int
        Seeds for the choice of shards, and of samples in a shard.

    Examples
    --------
    >>> picks = Picks([np.array([3, 5])], [11], granularity=2, shard_seed=0, sample_seed=0)
    >>> picks.units.sizes, picks.ids(np.arange(11))
    (array([3, 5, 3]), array([0, 1, 2, 3, 4, 5, 6, 7, 5, 6, 7]))
    """

    shards: list[Int64]
    stream_samples: list[int]
    granularity: int
    shard_seed: int
    sample_seed: int

    @property
    def size(self) -> int:
        """Number of samples that the epoch takes."""
        return sum(self.stream_samples)

    @functools.cached_property
    def sizes(self) -> Int64:
        """Number of samples of each shard, in all streams."""
        return np.concatenate(self.shards)

    @functools.cached_property
    def counts(self) -> Int64:
        """Number of samples that the epoch takes of each shard."""
        counts = [
            samples_per_shard(sizes, choose, self.granularity, self.shard_seed)
            for sizes, choose in zip(self.shards, self.stream_samples, strict=True)
        ]
        return np.concatenate(counts)

    @functools.cached_property
    def units(self) -> Pieces:
        """The ids of the samples of each unit."""
        state = state_from_seed(self.sample_seed)
        sizes, begins = self.sizes, self.sizes.cumsum() - self.sizes
        times, picked_samples = np.divmod(self.counts, np.maximum(sizes, 1))
        (picked_shards,) = picked_samples.nonzero()
        ends = picked_samples.cumsum()
        # `_choose` writes one element beyond the last pick.
        picks = np.empty(int(ends[-1]) + 1, number_dtype(int(sizes.sum())))
        is_chosen = np.zeros(int(sizes[picked_shards].max(initial=0)), bool)
        _choose.for_size(picks.size)(
            state,
            sizes[picked_shards],
            picked_samples[picked_shards],
            begins[picked_shards],
            is_chosen,
            picks,
        )
        # The whole shard comes first, as often as it is taken, then the samples picked of it.
        repeats = times + (picked_samples > 0)
        last = repeats.cumsum()[picked_shards] - 1
        unit_sizes, starts = sizes.repeat(repeats), begins.repeat(repeats)
        unit_sizes[last] = picked_samples[picked_shards]
        # A negative start is an index of `picks`, from the end; see `Pieces`.
        starts[last] = (ends - picked_samples)[picked_shards] - ends[-1]
        return Pieces.concatenate(unit_sizes, starts, picks[:-1])

    def ids(self, numbers: Int64) -> Int64:
        """Return the ids of samples, which are numbered from the first unit to the last."""
        if np.array_equal(self.counts, self.sizes):
            return numbers
        ids = np.empty_like(numbers)
        units = self.units
        _look_up.for_size(ids.size)(numbers, units.offsets, units.begins, units.picks, ids)
        return ids


def _weighted_samples(weight: Weight, size: int) -> int:
    """Return the number of samples that an epoch takes of a stream without a proportion."""
    if weight.choose is not None:
        return weight.choose
    return size if weight.repeat is None else int(weight.repeat * size)


@kernel
def _pick(
    state: State,
    pick_counts: Int64,
    last_sizes: Int64,
    granularity: int,
    remainder: int,
    order: AnyArray,
    counts: Int64,
) -> None:
    """Add picks, in random order, to the counts of shards, until `remainder` samples are taken.

    `order` is a buffer for the shuffled picks. A pick is encoded as twice its shard, plus 1 for the
    last pick of the shard. ``last_sizes`` are the numbers of samples of these last picks.
    """
    index = 0
    for shard in range(pick_counts.size):
        for _ in range(pick_counts[shard]):
            order[index] = 2 * shard
            index += 1
        if pick_counts[shard]:
            order[index - 1] += 1
    draw_shuffle(state, order, 0, order.size)
    missing_samples = remainder
    for k in range(order.size):
        shard = int(order[k]) >> 1
        samples = min(last_sizes[shard] if order[k] & 1 else granularity, missing_samples)
        counts[shard] += samples
        missing_samples -= samples
        if missing_samples == 0:
            return


@kernel
def _choose(
    state: State, sizes: Int64, counts: Int64, begins: Int64, is_chosen: Bools, picks: AnyArray
) -> None:
    """Choose samples of each shard like ``Generator.choice``; write their sorted ids."""
    index = 0
    for k in range(sizes.size):
        size, count = sizes[k], counts[k]
        if size > _FLOYD_MAX and count > size // 50:
            _shuffle_tail(state, size, count, is_chosen)
        else:
            _choose_few(state, size, count, is_chosen)
        end = index + count
        for number in range(size):
            picks[index] = begins[k] + number  # the next number overwrites it if it is not chosen
            index += is_chosen[number]
            is_chosen[number] = False
        index = end


@kernel
def _choose_few(state: State, size: int, count: int, is_chosen: Bools) -> None:
    """Choose `count` numbers below `size` by Floyd's method.

    NumPy then shuffles them. The result does not depend on that, but the state does.
    """
    hi, lo, inc_hi, inc_lo = u64(state[0]), u64(state[1]), u64(state[2]), u64(state[3])
    spare, has_spare = u64(state[4]), u64(state[5])
    if size == count:  # the first draw has only one possible result, and uses no random bits
        is_chosen[0] = True
    for limit in range(max(size - count, 1), size):
        hi, lo, spare, has_spare, number = draw_below_words(
            hi, lo, inc_hi, inc_lo, spare, has_spare, limit + 1
        )
        is_chosen[limit if is_chosen[number] else number] = True
    for bound in range(count, 1, -1):
        hi, lo, spare, has_spare, number = draw_below_words(
            hi, lo, inc_hi, inc_lo, spare, has_spare, bound
        )
    state[0], state[1], state[4], state[5] = hi, lo, spare, has_spare


@kernel
def _shuffle_tail(state: State, size: int, count: int, is_chosen: Bools) -> None:
    """Choose `count` numbers below `size` by a partial Fisher-Yates shuffle from the end."""
    numbers = np.arange(size)
    for i in range(size - 1, max(size - count, 1) - 1, -1):
        j = draw_below(state, i + 1)
        numbers[i], numbers[j] = numbers[j], numbers[i]
    for i in range(size - count, size):
        is_chosen[numbers[i]] = True


@kernel
def _look_up(numbers: Int64, offsets: Int64, begins: Int64, picks: AnyArray, ids: Int64) -> None:
    """Write the ids of the samples with `numbers`; see `Picks.ids`."""
    unit = 0
    for k in range(numbers.size):
        if not offsets[unit] <= numbers[k] < offsets[unit + 1]:
            unit = int(np.searchsorted(offsets, numbers[k], "right")) - 1
        number = begins[unit] + numbers[k] - offsets[unit]
        ids[k] = number if begins[unit] >= 0 else int(picks[number + picks.size])
