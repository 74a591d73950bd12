"""The native order of mixtures: cost of the first batch in the middle of an epoch."""

from __future__ import annotations

import functools
import tracemalloc
from typing import Any

import numpy as np
import pytest

from data import Data
from figures import SIDES, Figure, Pair, compare_and_time, figure
from npstream._core.typing import Int64
from npstream.mixture.epochs import MixtureEpochs, MixtureSettings
from npstream.mixture.shares import MixtureSpec, make_schedule
from npstream.orders.chunks import shard_chunks
from npstream.orders.order import Order, Shuffle

MIB = 1 << 20
PER_SHARD, SHARDS = 10**5, 10**5
"""Samples in a shard of 64 MiB, and number of shards: 10^10 samples, 6.7 TB in total."""

SAMPLES = PER_SHARD * SHARDS
BATCH = np.arange(SAMPLES // 10 * 9, SAMPLES // 10 * 9 + 256)
"""The positions of a batch of 256 samples after 90 % of an epoch."""


def chunk_function(shards: int) -> Any:
    """Return a function that returns the chunks of `shards` shards."""
    starts = np.arange(shards + 1) * PER_SHARD
    nbytes = np.full(shards, 64 * MIB)
    return functools.partial(shard_chunks, starts, nbytes, np.zeros(shards, bool), 4 * MIB)


def mixture_reader(smallest: float) -> Any:
    """Return a function that computes `BATCH` for 1,000 sources that together have all shards.

    Relative to the mean, the smallest source has the size `smallest`, and the largest has
    ``2 - smallest``.
    """
    counts = np.linspace(smallest, 2 - smallest, 1000) * SHARDS / 1000
    shards = np.diff(np.round(np.cumsum([0, *counts])).astype(int)).tolist()
    names = tuple(f"source {number}" for number in range(1000))
    sizes = tuple(count * PER_SHARD for count in shards)
    spec = MixtureSpec(
        names=names,
        sizes=sizes,
        nbytes=tuple(count * 64 * MIB for count in shards),
        chunks=tuple(map(chunk_function, shards)),
        fingerprints=(str,) * 1000,  # orders do not call these functions
        schedule=make_schedule(names, sizes),
    )

    def read(seed: int) -> Int64:
        settings = MixtureSettings(shuffle=True, seed=seed)
        return MixtureEpochs(spec, settings).order(0).at(BATCH)

    return read


def read_one_dataset(seed: int) -> Int64:
    """Return `BATCH` for one dataset with all shards, with default settings."""
    settings = Shuffle().resolve(SHARDS * 64 * MIB)
    lanes = settings.lanes or 1
    # The samples of a block in each lane; `settings.block` has the bytes of a block in all lanes.
    block = -(-int(settings.block or 0) * SAMPLES // (SHARDS * 64 * MIB * lanes))
    return Order(SAMPLES, chunk_function(SHARDS), seed, block=block, lanes=lanes).at(BATCH)


def compare(ours: Int64, theirs: Int64) -> None:
    assert len(np.unique(ours)) == len(np.unique(theirs)) == len(BATCH)


def first_batch(smallest: float) -> Any:
    return lambda data: Pair(mixture_reader(smallest), read_one_dataset, compare)


def memory(data: Data) -> Pair:
    def peak(read: Any) -> Any:
        def measure_peak(number: int) -> float:
            tracemalloc.start()
            read(number)
            _, peak_bytes = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            return float(peak_bytes)

        return measure_peak

    return Pair(
        peak(mixture_reader(0.5)),
        peak(read_one_dataset),
        lambda ours, theirs: None,
        returns_value=True,
    )


TITLE = "first batch of 1,000 sources{}, 10^10 samples in all, from 90 % of an epoch on"
ONE_DATASET = "one dataset of that size"

FIGURES = [
    figure(TITLE.format(" of one size"), ONE_DATASET, factor=3)(first_batch(1.0)),
    figure(
        TITLE.format(", the largest three times the smallest"), ONE_DATASET, factor=3
    )(first_batch(0.5)),
    figure(
        "memory that takes", ONE_DATASET, factor=np.inf, limit=100e6, rounds=3,
        format_value=lambda nbytes: f"{nbytes / 1e6:.3g} MB",
    )(memory),
]  # fmt: skip


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.title)
def test_mixture_order(figure: Figure, side: str, benchmark: Any, data: Data) -> None:
    compare_and_time(figure, side, benchmark, data)
