"""Which samples an epoch of Streaming takes, and how often: weights of streams, chosen samples.

A *stream* is one dataset of a mixture. Its weight settles how many samples an epoch takes from it;
these are spread over its shards; and where that is not all of a shard, some of it are picked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npstream._typing import Bools, Int64


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
) -> Int64:
    """Return how many samples an epoch takes from each stream, of so many each.

    >>> chosen([Weight(proportion=3), Weight(proportion=1)], np.array([50, 60]), 100, seed=0)
    array([75, 25])
    """
    relative = [weight.proportion is not None for weight in weights]
    if any(relative) and not all(relative):
        raise ValueError(
            "some streams are weighted by proportion and some are not: give all of them a "
            "proportion, or none"
        )
    unweighted = all(weight == Weight() for weight in weights)
    if not all(relative):
        if epoch_size is None:
            return np.array([_absolute(*each) for each in zip(weights, sizes.tolist(), strict=True)])
        if not unweighted:
            raise ValueError(
                f"epoch_size={epoch_size} goes with streams weighted by proportion, or not at "
                "all: with repeat or choose, their sum is the size"
            )
    if epoch_size is None:
        epoch_size = int(sizes.sum())
    shares = sizes if unweighted else np.array([weight.proportion for weight in weights])
    counts: Int64 = (epoch_size * (shares / shares.sum())).astype(np.int64)
    short = epoch_size - int(counts.sum())
    counts[np.random.default_rng(seed).choice(len(counts), short, replace=False)] += 1
    return counts


def chosen_per_shard(sizes: Int64, choose: int, granularity: int, seed: int) -> Int64:
    """Spread the samples that are taken from a stream over its shards.

    All of every shard is taken as often as that is possible. What remains is taken from shards at
    random, `granularity` samples at a time.
    """
    size = int(sizes.sum())
    if not size:
        if choose:
            raise ValueError(f"{choose} samples are chosen from a stream that has none")
        return np.zeros_like(sizes)
    times, rest = divmod(choose, size)
    counts = sizes * times
    if not rest:
        return counts
    per_shard = -(-sizes // granularity)
    shard = np.arange(len(sizes)).repeat(per_shard)
    # The last pick of a shard is short. A shard of no samples has none, and Streaming makes that
    # of the shard before it a whole one.
    picks = np.full(len(shard), granularity)
    picks[per_shard.cumsum() - 1] = (sizes - 1) % granularity + 1
    order = np.random.default_rng(seed).permutation(len(picks))
    before = picks[order].cumsum() - picks[order]
    np.add.at(counts, shard[order], np.clip(rest - before, 0, picks[order]))
    return counts


@dataclass(frozen=True, slots=True)
class Picks:
    """The samples that an epoch takes, numbered through units that are shuffled as one.

    A unit is all of a shard, in order, or some of it. So its samples have successive ids from
    ``begins`` on; where ``picked``, they are those of ``ids`` from there on.
    """

    units: Int64
    begins: Int64
    picked: Bools
    ids: Int64

    def at(self, numbers: Int64) -> Int64:
        """Return the ids of samples by their number."""
        ends = self.units.cumsum()
        unit = ends.searchsorted(numbers, "right")
        found = numbers - (ends - self.units)[unit] + self.begins[unit]
        part = self.picked[unit]
        found[part] = self.ids[found[part]]
        return found


def resampled(sizes: Int64, counts: Int64, seed: int) -> Picks:
    """Take so many samples of each shard: all of them as often as possible, and some at random."""
    rng = np.random.default_rng(seed)
    begins = sizes.cumsum() - sizes
    times, rest = np.divmod(counts, np.maximum(sizes, 1))
    ids = [
        begin + np.sort(rng.choice(size, few, replace=False))
        for begin, size, few in zip(begins.tolist(), sizes.tolist(), rest.tolist(), strict=True)
        if few
    ]
    # A shard's repeats come first, then what was picked from it.
    repeats = times + (rest > 0)
    shard = np.arange(len(sizes)).repeat(repeats)
    picked = np.zeros(len(shard), bool)
    picked[repeats.cumsum()[rest > 0] - 1] = True
    units = np.where(picked, rest[shard], sizes[shard])
    starts = begins[shard]
    starts[picked] = (rest.cumsum() - rest)[rest > 0]
    return Picks(units, starts, picked, np.concatenate([np.empty(0, np.int64), *ids]))


def _absolute(weight: Weight, size: int) -> int:
    """Return how many samples are taken of a stream that is weighted by itself."""
    if weight.choose is not None:
        return weight.choose
    return size if weight.repeat is None else int(weight.repeat * size)
