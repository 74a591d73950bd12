"""Simulate the reads of one node in shuffled epochs, and write the table of docs/orders.md.

python benchmarks/reports/orders.py [--only WORD]

The simulation reads no data. The order of samples determines which data must be fetched and cached,
and how well samples are mixed. All shards have 64 MiB, and each shard is one class, which is the
hardest case. Streaming's orders fetch and cache whole shards; npstream's orders use chunks.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from npstream._core.typing import Int64
from npstream.orders.order import Order, Shuffle
from npstream.orders.streaming.order import StreamingOrder
from npstream.orders.streaming.partition import World
from page import fill_in

MIB = 1 << 20
CHUNK, SHARD = 4 * MIB, 64 * MIB

HEAD = """\
| scene | order | first batch MiB | burst | ahead MiB | resident MiB | spread | neighbors |
|---|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Scene:
    """A dataset of samples of one size, and the nodes that read it."""

    name: str
    nbytes: int
    sample: int
    """Bytes of a sample."""
    batch: int
    """Samples of a node in a batch."""
    nodes: int = 1

    @property
    def per_shard(self) -> int:
        return SHARD // self.sample

    @property
    def shards(self) -> int:
        return max(1, self.nbytes // (self.per_shard * self.sample))

    @property
    def samples(self) -> int:
        return self.shards * self.per_shard

    @property
    def batches(self) -> int:
        return self.samples // (self.nodes * self.batch)

    def cuts(self, unit: int) -> Int64:
        """Return the first row of each unit of `unit` bytes in a shard."""
        units = SHARD // unit
        return np.arange(units) * self.per_shard // units

    def bounds(self, unit: int) -> Int64:
        """Return the first sample of each unit of all shards, followed by the number of samples."""
        starts = np.add.outer(np.arange(self.shards) * self.per_shard, self.cuts(unit))
        return np.append(starts.reshape(-1), self.samples)


@dataclass(frozen=True)
class Figures:
    """The measured properties of an order for one node of a scene; see docs/orders.md."""

    first: float
    burst: float
    ahead: float
    resident: float
    spread: float
    neighbors: float

    def row(self) -> str:
        burst = "-" if math.isnan(self.burst) else f"{self.burst:.1f}"
        return (
            f"{self.first:.0f} | {burst} | {self.ahead:.0f} | {self.resident:.0f} "
            f"| {self.spread:.2f} | {self.neighbors:.2f}"
        )


def native(scene: Scene, settings: Shuffle, unit: int = CHUNK) -> Int64:
    """Return the samples of node 0 in npstream's order of units, one row for each batch."""
    settings = settings.resolve(scene.nbytes)
    lanes = settings.lanes or 1
    block = -(-int(settings.block or scene.nbytes) // (scene.sample * lanes))
    order = Order(scene.samples, scene.bounds(unit), seed=0, epoch=1, block=block, lanes=lanes)
    mine = np.arange(scene.batches * scene.batch) * scene.nodes
    return order.at(mine).reshape(scene.batches, scene.batch)


def streaming(scene: Scene, algorithm: str, lanes: int | None, block: int | None) -> Int64:
    """Return the samples of node 0 in an order of Streaming, one row for each batch."""
    order = StreamingOrder(
        shards=[np.full(scene.shards, scene.per_shard)],
        batch_size=scene.batch,
        num_canonical_nodes=lanes,
        shuffle=True,
        shuffle_algo=algorithm,
        shuffle_block_size=block,
    )
    return order.epoch(1, World(scene.nodes, 1)).ids(0, 0, range(scene.batches))


def figures(scene: Scene, samples: Int64, unit: int) -> Figures:
    """Measure the cost of reading samples, one row for each batch, in units of `unit` bytes."""
    batches, batch = samples.shape
    shard = samples // scene.per_shard
    cuts = scene.cuts(unit)
    within = np.searchsorted(cuts, np.arange(scene.per_shard), side="right") - 1
    # Number of the unit of each sample, over all shards.
    piece = shard * len(cuts) + within[samples % scene.per_shard]
    step = np.repeat(np.arange(batches), batch)
    # The MiB that each batch is the first to use, and the MiB that it is the last to use.
    touched, first = np.unique(piece, return_index=True)
    begin = np.bincount(step[first], minlength=batches) * (unit / MIB)
    last = np.zeros(int(touched[-1]) + 1, np.int64)
    last[piece.reshape(-1)] = step  # repeated indices keep the last value
    end = np.bincount(last[touched], minlength=batches) * (unit / MIB)
    fetched = np.cumsum(begin)
    used = np.arange(1, batches + 1) * (batch * scene.sample / MIB)
    middle = slice(batches // 10, -(batches // 10))
    mean = begin[middle].mean()
    counts = np.bincount(shard.reshape(-1))
    chance = (counts * (counts - 1.0)).sum() / (samples.size * (samples.size - 1.0))
    return Figures(
        first=begin[0],
        burst=np.quantile(begin[middle], 0.99) / mean if mean else math.nan,
        ahead=(fetched - used)[middle].max(),
        resident=(fetched - np.cumsum(end) + end)[middle].max(),
        spread=spread(shard, scene.shards),
        neighbors=np.mean(np.diff(shard.reshape(-1)) == 0) / chance,
    )


def spread(shard: Int64, shards: int, draws: int = 8) -> float:
    """Return the standard deviation of batch means, relative to a perfect shuffle."""
    ratios = []
    for seed in range(draws):
        classes = np.random.default_rng(seed).standard_normal(shards)
        ratios.append(classes[shard].mean(axis=1).var() / (classes.var() / shard.shape[1]))
    return math.sqrt(np.mean(ratios))


SCENES = {
    "a": Scene("400 MB, 2 KB rows, 1 node, 256 a batch", 400 * 10**6, 2048, 256),
    "b": Scene("248 GB, 30 KB rows, 1 node, 2048 a batch", 248 * 10**9, 30_000, 2048),
    "c": Scene("10 TB, 30 KB rows, 64 nodes, 2048 a node", 10**13, 30_000, 2048, 64),
    "d": Scene("10 TB, 16 KB rows, 64 nodes, 32 a node", 10**13, 16_384, 32, 64),
    "e": Scene("246 GB, 16 KB rows, 1 node, 256 a batch", 246 * 10**9, 16_384, 256),
}

ROWS: list[tuple[str, str, Callable[[Scene], Int64], int]] = []
"""Scene, order, function that returns the samples of node 0, and bytes of a unit."""


def add_native(
    scene: str, block: str = "auto", lanes: int | None = None, unit: int = CHUNK
) -> None:
    settings = Shuffle(block, lanes)
    title = "default" if settings == Shuffle() else f"{block} in {lanes} lanes"
    title += ", whole shards" * (unit == SHARD)
    ROWS.append((scene, title, lambda scene: native(scene, settings, unit), unit))


def add_streaming(
    scene: str, algorithm: str, lanes: int | None = None, block: int | None = None
) -> None:
    title = algorithm if block is None else f"{algorithm}, blocks of {block:,} samples"
    ROWS.append((scene, title, lambda scene: streaming(scene, algorithm, lanes, block), SHARD))


add_native("a")
add_native("a", "1GiB", 64)
add_streaming("a", "py1e")
add_native("b")
add_native("b", "1GiB", 64)
add_native("b", "8GiB", 64)
add_native("b", "16GiB", 64)
add_native("b", "8GiB", 64, unit=SHARD)
add_streaming("b", "py1e", 1, 1_000_000)
add_streaming("b", "py1e", 1, 1 << 18)
add_streaming("b", "py1br", 1, 1 << 18)
add_native("c")
add_native("c", "16GiB", 256)
add_native("c", "16GiB", 960)
add_native("c", unit=SHARD)
add_streaming("c", "py1e", 64, 1 << 18)
add_streaming("c", "py1br", 64, 1 << 18)
add_native("d")
add_native("d", "16GiB", 960)
add_streaming("d", "py1e", 64, 1 << 18)
add_native("e")
add_native("e", "1GiB", 64)
add_native("e", "4GiB", 256)
add_streaming("e", "py1e", 1, 1_000_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="rows that begin with this; print only")
    only = parser.parse_args().only
    table = HEAD
    for scene, title, samples, unit in ROWS:
        if not f"{scene}: {title}".startswith(only):
            continue
        start = time.perf_counter()
        result = figures(SCENES[scene], samples(SCENES[scene]), unit)
        line = f"| {scene} | {title} | {result.row()} |\n"
        print(line.rstrip(), f"{time.perf_counter() - start:.1f} s", flush=True)
        table += line
    if not only:
        legend = "".join(f"- {name}: {scene.name}\n" for name, scene in SCENES.items())
        fill_in("orders.md", "orders.py", f"{legend}\n{table}")


if __name__ == "__main__":
    main()
