"""The native order: cost of sequential rows, of a start in the middle, and of `find`."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import npstream
from data import Data
from figures import SIDES, Figure, Pair, compare_and_time, figure
from npstream.orders.chunks import shard_chunks
from npstream.orders.order import Order, Shuffle

MIB = 1 << 20
BILLION = 10**9


def sequence(block: int) -> Any:
    """Return a figure's function for an epoch of 10,000,000 rows in chunks of 2,000."""

    def prepare(data: Data) -> Pair:
        n = 10 * data.small
        chunks = np.append(np.arange(0, n, 2000), n)

        def compare(ours: np.ndarray, theirs: np.ndarray) -> None:
            assert np.array_equal(np.sort(ours), np.sort(theirs))

        return Pair(
            lambda number: Order(n, chunks, number, block=block, lanes=8)[:],
            lambda number: np.random.default_rng(number).permutation(n),
            compare,
            calls=n,
        )

    return prepare


def billion_rows(shards: int, epoch: int = 7) -> Order:
    """Return the order of 10^9 rows in shards of 64 MiB, with default settings."""
    starts = np.linspace(0, BILLION, shards + 1).astype(np.int64)
    nbytes = np.full(shards, 64 * MIB)
    chunks = functools.partial(shard_chunks, starts, nbytes, np.zeros(shards, bool), 4 * MIB)
    settings = Shuffle().resolve(shards * 64 * MIB)
    lanes = settings.lanes or 1
    # The samples of a block in each lane; `settings.block` has the bytes of a block in all lanes.
    block = -(-int(settings.block or 0) * BILLION // (shards * 64 * MIB * lanes))
    return Order(BILLION, chunks, 0, epoch, block=block, lanes=lanes)


def first_batch(shards: int) -> Any:
    """Return a figure's function for the first batch of an epoch resumed at 90 %."""

    def prepare(data: Data) -> Pair:
        start = BILLION // 10 * 9
        return Pair(
            lambda number: billion_rows(shards, number)[start : start + 256],
            lambda number: None,
            lambda ours, theirs: None,
        )

    return prepare


PERMUTATION = "`np.random.Generator.permutation`"
IN_SEQUENCE = "10,000,000 rows in the native order, blocks of {}, for one row"

FIGURES = [
    figure(IN_SEQUENCE.format("2^10"), PERMUTATION, factor=0.1)(sequence(1 << 10)),
    figure(IN_SEQUENCE.format("2^15"), PERMUTATION, factor=0.1)(sequence(1 << 15)),
    figure(IN_SEQUENCE.format("2^20 + 1"), PERMUTATION, factor=0.5)(sequence((1 << 20) + 1)),
    figure(
        "first batch of epoch 7 from 90 % on, 10^9 samples in 20,000 shards",
        "nothing",
        margin=0.020,
    )(first_batch(20_000)),
    # A shard of 64 MiB has 16 chunks.
    figure("the same in 1,000,000 chunks", "nothing", margin=0.020)(first_batch(62_500)),
]


@figure("`order.find` of 1,000 rows, 10^9 samples in 20,000 shards", "nothing", margin=0.050)
def find_rows(data: Data) -> Pair:
    order = billion_rows(20_000)
    rows = np.random.default_rng(0).integers(0, BILLION, 1000)
    return Pair(lambda number: order.find(rows), lambda number: None, lambda ours, theirs: None)


FIGURES.append(find_rows)


@figure("provenance of a step, 10^9 samples in 1,000 shards", "nothing", margin=0.020)
def provenance(data: Data) -> Pair:
    ds = npstream.open(data.path("billion", make_index))
    batches = ds.iter(0, 8, batch_size=256, shuffle=True)
    iterator = iter(batches)
    state = batches.state_dict()
    del iterator
    return Pair(
        lambda number: ds.provenance(state, steps=340 + number),  # another step in each round
        lambda number: None,
        lambda ours, theirs: None,
    )


def make_index(path: Path) -> None:
    """Write the index of a dataset of 10^9 samples, without its shards."""
    npstream.write(path, {"x": np.zeros(1, np.int64)}, sidecar=False)
    index = json.loads((path / "index.json").read_text())
    (shard,) = index["shards"]
    samples = BILLION // 1000
    shard["samples"] = samples
    shard["raw_data"]["bytes"] += (samples - 1) * (8 + 4)
    index["shards"] = [
        {**shard, "raw_data": {**shard["raw_data"], "basename": f"shard.{number:05}.mds"}}
        for number in range(1000)
    ]
    (path / "index.json").write_text(json.dumps(index))


FIGURES.append(provenance)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.title)
def test_order(figure: Figure, side: str, benchmark: Any, data: Data) -> None:
    compare_and_time(figure, side, benchmark, data)
