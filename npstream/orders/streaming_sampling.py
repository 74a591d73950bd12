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

from npstream._jit import kernel
from npstream._typing import AnyArray, Int64
from npstream.orders.pcg64 import seeded, shuffle
from npstream.orders.streaming_runs import number_type

SAMPLINGS = ("balanced", "fixed")
"""Whether every epoch picks other samples, or the same."""


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
        ends = (-(-sizes // granularity)).cumsum()
        # The last pick of a shard is short. But before a shard of no samples, and so no picks,
        # Streaming takes it for a whole one.
        last = (sizes - 1) % granularity + 1
        last[:-1][sizes[1:] == 0] = granularity
        picks = np.arange(ends[-1], dtype=number_type(int(ends[-1])))
        shuffle.sized(picks.size)(seeded(seed), picks, 0, picks.size)
        _pick.sized(picks.size)(picks, ends, last, granularity, rest, counts)
    return counts


@dataclass(frozen=True, eq=False)
class Picks:
    """The samples that an epoch takes, numbered by the units that are shuffled as one.

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
    >>> picks.units, picks.ids(np.arange(11))
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

    @property
    def units(self) -> Int64:
        """Samples in each unit."""
        return self._units[0]

    def ids(self, numbers: Int64) -> Int64:
        """Return the ids of samples, counted through the shards, from their numbers."""
        if np.array_equal(self.counts, self.sizes):
            return numbers
        units, begins, picks = self._units
        ends = units.cumsum()
        unit = ends.searchsorted(numbers, "right")
        ids = begins[unit] + numbers - (ends - units)[unit]
        picked = ids < 0
        ids[picked] = picks[ids[picked]]
        return ids

    @functools.cached_property
    def _units(self) -> tuple[Int64, Int64, AnyArray]:
        """Samples of each unit; the id of its first one, or its place from the end of the picks.

        The last result are the picks: all samples that are taken of shards in part.
        """
        rng = np.random.default_rng(self.sample_seed)
        sizes, begins = self.sizes, self.sizes.cumsum() - self.sizes
        times, rest = np.divmod(self.counts, np.maximum(sizes, 1))
        (parts,) = rest.nonzero()
        ends = rest.cumsum()
        picks = np.empty(ends[-1], number_type(int(sizes.sum())))
        for shard in parts.tolist():
            some = rng.choice(int(sizes[shard]), int(rest[shard]), replace=False)
            picks[ends[shard] - len(some) : ends[shard]] = begins[shard] + np.sort(some)
        # All of a shard comes first, then what was picked of it.
        repeats = times + (rest > 0)
        last = repeats.cumsum()[parts] - 1
        units, starts = sizes.repeat(repeats), begins.repeat(repeats)
        units[last] = rest[parts]
        starts[last] = (ends - rest)[parts] - ends[-1]
        return units, starts, picks


def _taken(weight: Weight, size: int) -> int:
    """Return how many samples are taken of a stream that is weighted by itself."""
    if weight.choose is not None:
        return weight.choose
    return size if weight.repeat is None else int(weight.repeat * size)


@kernel
def _pick(
    picks: AnyArray, ends: Int64, last: Int64, granularity: int, rest: int, counts: Int64
) -> None:
    """Take picks, in their order, until nothing of the rest is left."""
    left = rest
    for k in range(picks.size):
        pick = int(picks[k])
        shard = np.searchsorted(ends, pick, "right")
        size = last[shard] if pick == ends[shard] - 1 else granularity
        counts[shard] += min(size, left)
        left -= min(size, left)
        if left == 0:
            return
