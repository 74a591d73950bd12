"""Streaming's order py1e, of one node and of a mixture, compared with the whole order in NumPy.

python benchmarks/bench_streaming_orders.py [samples]

prints a table of time and memory, measured in separate runs. The default of 10**8 samples takes
some minutes; 10**7 samples are enough for a quick check.
"""

from __future__ import annotations

import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from data import Data
from figures import SIDES, Figure, Pair, compare_and_time, figure
from npstream._core import jit as _jit
from npstream.orders.streaming.batching import Samples
from npstream.orders.streaming.order import Epoch, StreamingOrder
from npstream.orders.streaming.partition import World, lane_bounds
from npstream.orders.streaming.sampling import Weight

Spans = list[tuple[int, int]]

SHARD = 1000
"""Samples in a shard."""

NODES = 8

LANES = (1, 8, 64)


def numpy_lanes(units: list[int], lanes: int, seed: int) -> list[Spans]:
    """Return the spans of samples in each lane, before an epoch shuffles them."""
    ends = np.cumsum(units).tolist()
    spans = [(end - size, end) for size, end in zip(units, ends, strict=True)]
    np.random.default_rng(seed).shuffle(spans)
    return split_spans(spans, [sum(units) * (lane + 1) // lanes for lane in range(lanes)])


def split_spans(spans: Spans, stops: list[int]) -> list[Spans]:
    """Split consecutive spans at the positions `stops`."""
    lanes: list[Spans] = [[] for _ in stops]
    lane, position = 0, 0
    for begin, end in spans:
        while position + end - begin > stops[lane]:
            remaining = stops[lane] - position
            if remaining:
                lanes[lane].append((begin, begin + remaining))
            begin, position, lane = begin + remaining, position + remaining, lane + 1
        lanes[lane].append((begin, end))
        position += end - begin
    return lanes


def numpy_py1e(
    units: list[int], lanes: int, seed: int, epoch: int, block_size: int
) -> np.ndarray[Any, Any]:
    """Return the order of py1e as Streaming's `get_shuffle_py1e` computes it, in plain NumPy."""
    lane_spans = numpy_lanes(units, lanes, seed)
    rng = np.random.default_rng(seed + epoch)
    for spans in lane_spans:
        rng.shuffle(spans)
    return np.concatenate([_numpy_lane(spans, rng, block_size) for spans in lane_spans])


def _numpy_lane(spans: Spans, rng: np.random.Generator, block_size: int) -> np.ndarray[Any, Any]:
    parts = [np.arange(begin, end) for begin, end in spans]
    for part in parts:
        rng.shuffle(part)
    samples = np.concatenate(parts)
    positions = np.arange(len(samples), dtype=np.float64)
    start = 0
    for part in parts:
        size = len(part)
        width = rng.integers(int(0.75 * block_size), int(1.25 * block_size))
        reach = max((width - size) / 2, 0)
        left, right = max(-reach, -start), min(reach, len(samples) - start - size)
        positions[start : start + size] += rng.uniform(left, right, size)
        start += size
    return samples[np.argsort(positions)]


def node_epoch(samples: int, lanes: int) -> Epoch:
    """Return the epoch of 8 nodes with one rank each."""
    order = StreamingOrder(
        shards=[np.full(samples // SHARD, SHARD)],
        batch_size=256,
        num_canonical_nodes=lanes,
        shuffle=True,
    )
    return order.epoch(0, World(NODES, 1))


def node_ids(samples: int, lanes: int) -> Iterator[np.ndarray[Any, Any]]:
    """Yield the sample ids of the first node, batch by batch."""
    epoch = node_epoch(samples, lanes)
    return epoch.read(0, 0, range(epoch.batches))


def node_rows(samples: int, lanes: int) -> list[np.ndarray[Any, Any]]:
    """Return the rows of the first node, lane by lane.

    This is the cost of the shuffle alone: the rows are not arranged in batches.
    """
    batching = node_epoch(samples, lanes).batching
    assert isinstance(batching, Samples)
    assert batching.shuffle is not None
    order = batching.shuffle.order(batching.picks.units)
    bounds = lane_bounds(samples, lanes).tolist()
    parts = []
    for lane in range(0, lanes, NODES):
        for start in range(bounds[lane], bounds[lane + 1], order.lookup_size):
            rows = order.rows(start, min(start + order.lookup_size, bounds[lane + 1]))
            # With fewer lanes than nodes, the nodes take the rows of a lane in turn. The copy lets
            # the rows of the other nodes be freed.
            parts.append(rows if lanes >= NODES else rows[-start % NODES :: NODES].copy())
    return parts


def numpy_order(samples: int, lanes: int) -> np.ndarray[Any, Any]:
    """Return the order of all samples; NumPy cannot compute the part of one node alone."""
    block_size = max(4_000_000 // lanes, 1 << 18)  # Streaming's default
    seed = StreamingOrder.shuffle_seed
    return numpy_py1e([SHARD] * (samples // SHARD), lanes, seed, 0, block_size)


def select_node(order: np.ndarray[Any, Any], lanes: int) -> np.ndarray[Any, Any]:
    """Return the first node's samples of an order whose lanes have equal sizes."""
    sequence = order.reshape(lanes, -1).T.reshape(-1)
    return sequence[::NODES]


def py1e(lanes: int) -> Figure:
    """Return the figure for a number of canonical nodes."""

    @figure(
        f"one of {NODES} nodes' ids of an epoch, py1e, {lanes} canonical nodes",
        "the whole order in NumPy",
        factor=0.2,
        rounds=1,
    )
    def prepare(data: Data) -> Pair:
        # One tenth of the full size, which takes a minute per round.
        samples = data.small * 10 // (SHARD * NODES * lanes) * (SHARD * NODES * lanes)
        samples = max(samples, SHARD * NODES * lanes)

        def compare(ours: np.ndarray[Any, Any], reference: np.ndarray[Any, Any]) -> None:
            np.testing.assert_array_equal(ours, select_node(reference, lanes))

        return Pair(
            lambda _: np.concatenate(list(node_ids(samples, lanes))),
            lambda _: numpy_order(samples, lanes),
            compare,
        )

    return prepare


PROPORTIONS = (0.4, 0.3, 0.2, 0.1)

STREAMS = (0.1, 0.2, 0.3, 0.4)
"""Sizes of the streams, relative to the samples of an epoch."""


def mixed_order(shards: list[np.ndarray[Any, Any]], samples: int) -> StreamingOrder:
    """Return the order of streams with proportions, for one rank."""
    return StreamingOrder(
        shards=shards,
        weights=[Weight(proportion=proportion) for proportion in PROPORTIONS],
        epoch_size=samples,
        batch_size=256,
        shuffle=True,
    )


def numpy_mixed(shards: list[np.ndarray[Any, Any]], samples: int) -> np.ndarray[Any, Any]:
    """Return the ids of `mixed_order` as Streaming computes them, in plain NumPy."""
    seed, counts = StreamingOrder.shuffle_seed, []
    for sizes, proportion in zip(shards, PROPORTIONS, strict=True):
        counts.append(numpy_sampling(sizes, round(samples * proportion), seed))
    units, ids = numpy_resample(np.concatenate(shards), np.concatenate(counts), seed)
    # One rank of one canonical node reads all positions in order.
    shuffled: np.ndarray[Any, Any] = ids[numpy_py1e(units, 1, seed, 0, 4_000_000)]
    return shuffled


def numpy_sampling(sizes: np.ndarray[Any, Any], choose: int, seed: int) -> np.ndarray[Any, Any]:
    """Return how many samples each shard contributes; the remainder is drawn sample by sample."""
    repeats, remainder = divmod(choose, int(sizes.sum()))
    order = np.random.default_rng(seed).permutation(int(sizes.sum())) if remainder else np.arange(0)
    shard_numbers = np.repeat(np.arange(len(sizes)), sizes)
    counts: np.ndarray[Any, Any] = sizes * repeats
    return counts + np.bincount(shard_numbers[order[:remainder]], minlength=len(sizes))


def numpy_resample(
    sizes: np.ndarray[Any, Any], counts: np.ndarray[Any, Any], seed: int
) -> tuple[list[int], np.ndarray[Any, Any]]:
    """Return the sizes of the units of drawn samples, and the ids of these samples."""
    rng, units, ids, first = np.random.default_rng(seed), [], [], 0
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        repeats, remainder = divmod(count, size)
        units += [size] * repeats
        ids += [np.arange(first, first + size)] * repeats
        if remainder:
            units.append(remainder)
            ids.append(np.sort(first + rng.choice(size, remainder, replace=False)))
        first += size
    return units, np.concatenate(ids)


@figure(
    f"ids of an epoch of {len(STREAMS)} streams in proportions, py1e, random batching",
    "the same in NumPy",
    factor=0.333,
    rounds=3,
)
def mixture(data: Data) -> Pair:
    samples = max(data.small // SHARD, 1) * SHARD * 10
    shards = [np.full(round(samples * part) // SHARD, SHARD) for part in STREAMS]

    def ids() -> np.ndarray[Any, Any]:
        epoch = mixed_order(shards, samples).epoch(0, World(1, 1))
        return np.concatenate(list(epoch.read(0, 0, range(epoch.batches))))

    return Pair(
        lambda _: ids(), lambda _: numpy_mixed(shards, samples), np.testing.assert_array_equal
    )


FIGURES = [*(py1e(lanes) for lanes in LANES), mixture]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("figure", FIGURES, ids=[*(f"{lanes} lanes" for lanes in LANES), "mixture"])
def test_streaming_orders(figure: Figure, side: str, benchmark: Any, data: Data) -> None:
    compare_and_time(figure, side, benchmark, data)


def cost(run: Callable[[], Any]) -> tuple[float, float, float]:
    """Return the elapsed seconds, CPU seconds and peak bytes of a call."""
    start, cpu_start = time.perf_counter(), time.process_time()
    run()
    elapsed, cpu = time.perf_counter() - start, time.process_time() - cpu_start
    tracemalloc.start()
    run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return elapsed, cpu, peak


def main(samples: int) -> None:
    _jit.always_compile()
    for batch in node_ids(SHARD * NODES * 64, 64):  # compiles
        del batch
    print("| lanes | side | s | CPU s | GB |\n|---|---|---|---|---|")
    for lanes in LANES:
        for side, run in {
            "numpy": lambda lanes=lanes: numpy_order(samples, lanes),
            "npstream, node's rows": lambda lanes=lanes: node_rows(samples, lanes),
            "npstream, first batch": lambda lanes=lanes: next(node_ids(samples, lanes)),
            "npstream, node's ids": lambda lanes=lanes: sum(map(len, node_ids(samples, lanes))),
        }.items():
            elapsed, cpu, peak = cost(run)
            print(
                f"| {lanes} | {side} | {elapsed:.2f} | {cpu:.2f} | {peak / 1e9:.3f} |", flush=True
            )


if __name__ == "__main__":
    main(int(float(sys.argv[1])) if len(sys.argv) > 1 else 10**8)
