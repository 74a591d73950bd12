"""Train a small model with several sample orders, and write the table of docs/orders.md.

python benchmarks/reports/convergence.py

The model predicts each byte of the source files of Python's standard library from the bytes before
it. The files are stored in the order of their paths, so a shard holds a few files of one package.
For such data, the order of the samples matters.
"""

from __future__ import annotations

import json
import math
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

import npstream
import torch
from npstream._core.typing import Int64
from npstream.orders.streaming.order import StreamingOrder
from npstream.orders.streaming.partition import World
from page import fill_in

Samples: TypeAlias = NDArray[np.uint8]
Losses: TypeAlias = NDArray[np.float64]

CONTEXT = 8
"""Bytes of the model's input."""

SAMPLE = 40
"""Bytes of a sample. The model predicts all bytes after the first `CONTEXT`."""

HEAD = """\
| order | final validation loss, bits a byte | more than the full permutation's, seed by seed |
|---|---|---|
"""


@dataclass(frozen=True)
class Task:
    """Sizes of the data, the model and the training."""

    samples: int = 1 << 14
    held_out: int = 1 << 11
    shard_bytes: int = 900
    batch: int = 64
    epochs: int = 2
    hidden: int = 64
    seeds: int = 5

    @property
    def steps(self) -> int:
        return self.epochs * self.samples // self.batch


class Data:
    """The dataset of a task, and its validation samples."""

    def __init__(self, task: Task, directory: Path) -> None:
        trained, self.held_out = sources(task)
        npstream.write(directory, {"bytes": trained}, shard_size=task.shard_bytes)
        self.ds = npstream.open(directory)
        shards = json.loads((directory / "index.json").read_text())["shards"]
        self.shards = np.array([shard["samples"] for shard in shards])
        self.nbytes = sum(shard["raw_data"]["bytes"] for shard in shards)

    def full(self, task: Task, seed: int, epoch: int) -> Int64:
        """Return the full permutation."""
        return self.ds.order(seed, epoch, block=None)[:]

    def native(self, task: Task, seed: int, epoch: int) -> Int64:
        """Return npstream's order with blocks of 1/16 of the data."""
        return self.ds.order(seed, epoch, block=self.nbytes // 16, lanes=4)[:]

    def py1e(self, task: Task, seed: int, epoch: int) -> Int64:
        """Return Streaming's order with blocks of 1/16 of the samples."""
        order = StreamingOrder(
            shards=[self.shards],
            batch_size=task.batch,
            num_canonical_nodes=1,
            shuffle=True,
            shuffle_seed=seed,
            shuffle_block_size=task.samples // 16,
        ).epoch(epoch, World(1, 1))
        return order.ids(0, 0, range(order.batches)).reshape(-1)

    def stored(self, task: Task, seed: int, epoch: int) -> Int64:
        """Return the stored order."""
        return np.arange(task.samples)


ORDERS = {
    "full permutation": Data.full,
    "npstream, blocks of 1/16, 4 lanes": Data.native,
    "py1e, blocks of 1/16": Data.py1e,
    "no shuffle": Data.stored,
}


def sources(task: Task) -> tuple[Samples, Samples]:
    """Return training samples in the order of paths, and validation samples of every tenth file."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [file for file in sorted(root.rglob("*.py")) if "site-packages" not in file.parts]
    texts = [file.read_bytes() for file in files]
    held_out = b"".join(texts[::10])
    del texts[::10]
    return spaced_samples(b"".join(texts), task.samples), spaced_samples(held_out, task.held_out)


def spaced_samples(text: bytes, count: int) -> Samples:
    """Return `count` samples of a text, evenly spaced."""
    starts = np.linspace(0, len(text) - SAMPLE, count).astype(np.int64)
    return np.lib.stride_tricks.sliding_window_view(np.frombuffer(text, np.uint8), SAMPLE)[starts]


class Model(torch.nn.Module):
    """A network with one hidden layer over the previous bytes."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(256, 16)
        self.hidden = torch.nn.Linear(16 * CONTEXT, hidden)
        self.out = torch.nn.Linear(hidden, 256)

    def loss(self, samples: torch.Tensor) -> torch.Tensor:
        """Return the mean loss over all bytes that have a complete context."""
        windows = samples.unfold(1, CONTEXT + 1, 1).reshape(-1, CONTEXT + 1).int()
        context = self.embedding(windows[:, :-1]).flatten(1)
        scores = self.out(torch.relu(self.hidden(context)))
        return torch.nn.functional.cross_entropy(scores, windows[:, -1].long())


def train(data: Data, task: Task, order: str, seed: int) -> float:
    """Train a model initialized from `seed`; return the validation loss in bits."""
    torch.manual_seed(seed)
    model = Model(task.hidden)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.1, task.steps)
    for epoch in range(task.epochs):
        rows = ORDERS[order](data, task, seed, epoch)
        for start in range(0, task.samples, task.batch):
            samples = data.ds["bytes"][rows[start : start + task.batch]].to_numpy()
            optimizer.zero_grad()
            model.loss(torch.from_numpy(samples)).backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        return model.loss(torch.from_numpy(data.held_out)).item() / math.log(2)


def losses(data: Data, task: Task, order: str) -> Losses:
    """Return the final losses of all seeds."""
    return np.array([train(data, task, order, seed) for seed in range(task.seeds)])


def main() -> None:
    torch.set_num_threads(1)  # faster for such a small model
    task, table = Task(), HEAD
    with tempfile.TemporaryDirectory(prefix="npstream-convergence-") as directory:
        data = Data(task, Path(directory) / "data")
        for order in ORDERS:
            start = time.perf_counter()
            final = losses(data, task, order)
            if order == "full permutation":
                full = final
            line = f"| {order} | {mean_text(final)} | {mean_text(final - full)} |\n"
            print(line.rstrip(), f"{time.perf_counter() - start:.1f} s", flush=True)
            table += line
    header = (
        f"{task.samples:,} samples of {SAMPLE} bytes in {len(data.shards)} shards, {task.epochs} "
        f"epochs of {task.samples // task.batch} batches, {task.seeds} seeds; mean and standard "
        "deviation.\n"
    )
    fill_in("orders.md", "convergence.py", f"{header}\n{table}")


def mean_text(values: Losses) -> str:
    """Format the mean and the standard deviation."""
    return f"{values.mean():.3f} ± {values.std(ddof=1):.3f}"


if __name__ == "__main__":
    main()
