"""Train small models in orders with blocks of several sizes, and write the table of docs/orders.md.

python benchmarks/reports/shuffle_quality.py

The labels are a random function of the features. Two datasets have the same kind of samples: one is
sorted by label, so that a chunk has samples of one class only. The other is stored cluster by
cluster. All runs with one seed begin with the same weights, and take the same number of steps. Only
the order differs. The costs in the table assume that the samples have `SAMPLE_BYTES` each and are
in an object store, with `CHUNK_SAMPLES` of them in a chunk.
"""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

import npstream
from npstream._core.typing import Int64
from page import fill_in

Floats: TypeAlias = NDArray[np.float32]

FEATURES, CLASSES, HIDDEN, SEEDS = 16, 10, 16, 5
CHUNK_SAMPLES, SAMPLE_BYTES = 208, 20_000
CHUNKS = 5040
CLUSTERS = 315
SAMPLES = CHUNKS * CHUNK_SAMPLES
HELD_OUT = 1 << 15
BATCH, EPOCHS, RATE, MOMENTUM = 128, 2, 0.002, 0.9
BLOCK_DIVISORS = (16, 64, 256, 1024)
"""The sizes of blocks are the bytes of the data, divided by each of these numbers."""

CACHE_DIVISOR = 8
"""The size of the cache is the bytes of the data, divided by this number."""

HEAD = """\
| stored | block | requests | memory MiB | variance | of labels | logistic regression | network |
|---|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Task:
    """A random function from features to probabilities of labels, and the clusters of features."""

    centers: Any = field(default_factory=lambda: _normal(1, CLUSTERS, FEATURES))
    linear: Any = field(default_factory=lambda: _normal(2, FEATURES, CLASSES) / 2)
    inner: Any = field(default_factory=lambda: _normal(3, FEATURES, FEATURES) / 2)
    outer: Any = field(default_factory=lambda: _normal(4, FEATURES, CLASSES))

    def samples(self, count: int, seed: int, by: str) -> tuple[Floats, Int64]:
        """Return features and labels, sorted by ``"label"`` or by ``"cluster"``."""
        rng = np.random.default_rng(seed)
        cluster = np.sort(rng.integers(0, len(self.centers), count))
        x = 0.7 * self.centers[cluster] + 0.7 * rng.standard_normal((count, FEATURES))
        scores = x @ self.linear + np.tanh(x @ self.inner) @ self.outer
        y = (scores + rng.gumbel(size=scores.shape)).argmax(axis=1)
        if by == "label":
            order = np.lexsort((rng.random(count), y))
            x, y = x[order], y[order]
        return x.astype(np.float32), y


def _normal(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).standard_normal(shape)


class Models:
    """One model for each seed, trained at the same time: a regression, or one hidden layer."""

    def __init__(self, has_hidden: bool) -> None:
        sizes = [FEATURES, HIDDEN, CLASSES] if has_hidden else [FEATURES, CLASSES]
        rng = np.random.default_rng(0)
        self.weights: list[Floats] = []
        for rows, columns in itertools.pairwise(sizes):
            weights = rng.standard_normal((SEEDS, rows, columns)) / np.sqrt(rows)
            self.weights += [weights.astype(np.float32), np.zeros((SEEDS, 1, columns), np.float32)]
        self._velocity = [np.zeros_like(weights) for weights in self.weights]

    def scores(self, x: Floats) -> tuple[Floats | None, Floats]:
        """Return the hidden values, if any, and the scores of the classes."""
        if len(self.weights) == 2:
            return None, x @ self.weights[0] + self.weights[1]
        hidden = np.maximum(x @ self.weights[0] + self.weights[1], 0)
        return hidden, hidden @ self.weights[2] + self.weights[3]

    def step(self, x: Floats, y: Int64, rate: float) -> None:
        """Take a step of stochastic gradient descent with momentum, on a batch for each seed."""
        hidden, scores = self.scores(x)
        slope = np.exp(scores - scores.max(axis=2, keepdims=True))
        slope /= slope.sum(axis=2, keepdims=True)
        slope[np.arange(SEEDS)[:, None], np.arange(BATCH), y] -= 1
        slope /= BATCH
        gradients = []
        if hidden is not None:
            gradients = [hidden.swapaxes(1, 2) @ slope, slope.sum(axis=1, keepdims=True)]
            slope = (slope @ self.weights[2].swapaxes(1, 2)) * (hidden > 0)
        gradients = [x.swapaxes(1, 2) @ slope, slope.sum(axis=1, keepdims=True), *gradients]
        for weights, velocity, gradient in zip(
            self.weights, self._velocity, gradients, strict=True
        ):
            velocity *= MOMENTUM
            velocity += gradient
            weights -= rate * velocity

    def losses(self, x: Floats, y: Int64) -> NDArray[np.float64]:
        """Return the mean loss of each model."""
        _, scores = self.scores(x[None])
        scores = scores.astype(np.float64)
        top = scores.max(axis=2)
        total = top + np.log(np.exp(scores - top[..., None]).sum(axis=2))
        losses: NDArray[np.float64] = (total - scores[:, np.arange(len(y)), y]).mean(axis=1)
        return losses


def train(models: Models, x: Floats, y: Int64, orders: Callable[[int], Int64]) -> None:
    """Train the models; `orders` returns the rows of an epoch, for each seed."""
    steps, done = EPOCHS * (SAMPLES // BATCH), 0
    for epoch in range(EPOCHS):
        rows = orders(epoch)
        for start in range(0, SAMPLES - BATCH + 1, BATCH):
            batch = rows[:, start : start + BATCH]
            models.step(x[batch], y[batch], RATE * (1 - done / steps))
            done += 1


def open_index(directory: Path) -> npstream.Dataset:
    """Return a dataset that has only an index: neither orders nor costs need its shards."""
    shard = {
        "column_encodings": [f"ndarray:uint8:{SAMPLE_BYTES}"], "column_names": ["x"],
        "column_sizes": [SAMPLE_BYTES], "compression": None, "format": "mds", "hashes": [],
        "samples": CHUNK_SAMPLES, "size_limit": 1 << 26, "version": 2, "zip_data": None,
    }  # fmt: skip
    nbytes = 1024 + CHUNK_SAMPLES * SAMPLE_BYTES
    shards = [
        {**shard, "raw_data": {"basename": f"shard.{k:05}.mds", "bytes": nbytes, "hashes": {}}}
        for k in range(CHUNKS)
    ]
    (directory / "index.json").write_text(json.dumps({"shards": shards, "version": 2}))
    return npstream.open(directory)


def lines(ds: npstream.Dataset) -> Iterator[str]:
    """Yield the lines of the table."""
    task, nbytes = Task(), int(ds.shards["bytes"].sum())
    settings = [
        npstream.Shuffle(None),
        *(
            npstream.Shuffle(nbytes // divisor, stratified=stratified)
            for stratified in (False, True)
            for divisor in BLOCK_DIVISORS
        ),
        npstream.Shuffle(0),
    ]
    costs = ds.shuffle_costs(BATCH, settings, cache_limit=nbytes // CACHE_DIVISOR)
    for by in ("label", "cluster"):
        x, y = task.samples(SAMPLES, 5, by)
        held_out = task.samples(HELD_OUT, 6, by)
        full: list[NDArray[np.float64]] = []
        for number, (setting, cost) in enumerate(zip(settings, costs, strict=True)):
            cells = []
            for has_hidden in (False, True):
                models = Models(has_hidden)
                train(models, x, y, lambda epoch: _orders(ds, epoch, setting))  # noqa: B023
                losses = models.losses(*held_out)
                if number == 0:
                    full.append(losses)
                low, high = full[has_hidden].min(), full[has_hidden].max()
                mark = "inside" if low <= losses.mean() <= high else "outside"
                cells.append(f"{losses.mean():.4f} ± {losses.std(ddof=1):.4f}, {mark}")
            variance = ds.shuffle_costs(BATCH, [setting], by=y)[0].variance
            name = (
                "all" if cost.block is None else f"1/{nbytes // cost.block}" if cost.block else "0"
            )
            name += ", stratified" if cost.stratified else ""
            yield (
                f"| by {by} | {name} | {cost.requests:,} | {cost.memory >> 20:,} | "
                f"{cost.variance:.1f} | {variance:.1f} | {cells[0]} | {cells[1]} |\n"
            )


def _orders(ds: npstream.Dataset, epoch: int, setting: npstream.Shuffle) -> Int64:
    """Return the rows of an epoch for each seed."""
    block, stratified = setting.block, setting.stratified
    orders = [ds.order(seed, epoch, block=block, stratified=stratified) for seed in range(SEEDS)]
    return np.stack([np.asarray(order) for order in orders])


def main() -> None:
    start, table = time.perf_counter(), HEAD
    with tempfile.TemporaryDirectory(prefix="npstream-shuffle-") as directory:
        for line in lines(open_index(Path(directory))):
            print(line.rstrip(), f"{time.perf_counter() - start:.0f} s", flush=True)
            table += line
    header = (
        f"{SAMPLES:,} samples of {SAMPLE_BYTES:,} bytes in {CHUNKS:,} chunks, batches of {BATCH}, "
        f"{EPOCHS} epochs, {SEEDS} seeds, a cache of an eighth of the data.\n"
    )
    fill_in("orders.md", "shuffle_quality.py", f"{header}\n{table}")


if __name__ == "__main__":
    main()
