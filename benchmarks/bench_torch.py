"""Iteration by `ds.iter` and DataLoader, and resumption in the middle of an epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import npstream
from data import TOKENS, Data
from figures import SIDES, Figure, Pair, compare_and_time, figure, warm

torch = pytest.importorskip("torch")
BATCH = 256


@figure(
    "one epoch of T by `ds.iter(shuffle=True)`, for a batch of 256",
    "`memmap[perm[k:k+256]]` of a packed record array {id, tokens} in one file",
    factor=1.3,
    rounds=5,
)
def epoch(data: Data) -> Pair:
    dataset, records = npstream.open(data.tokens_dataset()), data.records()
    warm(dataset, records)
    batches = dataset.iter(0, 1, batch_size=BATCH, shuffle=True, last="short")
    order = dataset.order(0)[:]

    def ours(number: int) -> int:
        batches.set_epoch(0)
        return sum(int(batch["id"][0]) for batch in batches)

    def reference(number: int) -> int:
        starts = range(0, len(order), BATCH)
        return sum(int(records[order[start : start + BATCH]]["id"][0]) for start in starts)

    return Pair(ours, reference, equal, calls=-(-data.tokens // BATCH))


class ConstantDataset(torch.utils.data.IterableDataset):
    """Yields the same batch again and again, so that only DataLoader's own cost is measured."""

    def __init__(self, batches: int) -> None:
        self.batches = batches
        self.batch = {
            "id": np.arange(BATCH),
            "tokens": np.zeros((BATCH, TOKENS), np.uint16),
        }

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = torch.utils.data.get_worker_info()
        for _ in range(worker.id, self.batches, worker.num_workers):
            yield self.batch


@figure(
    "one epoch of T by `ds.iter(shuffle=True)` under DataLoader, 2 workers, for a batch of 256",
    "an IterableDataset that yields the same arrays, ready made",
    factor=1.2,
    rounds=5,
)
def dataloader_epoch(data: Data) -> Pair:
    dataset = npstream.open(data.tokens_dataset())
    warm(dataset)
    batches = dataset.iter(0, 1, batch_size=BATCH, shuffle=True, last="drop")
    count = len(batches)
    loaders = [
        torch.utils.data.DataLoader(source, batch_size=None, num_workers=2, persistent_workers=True)
        for source in (batches, ConstantDataset(count))
    ]
    return Pair(
        lambda number: sum(len(batch["id"]) for batch in loaders[0]),
        lambda number: sum(len(batch["id"]) for batch in loaders[1]),
        equal,
        calls=count,
    )


@figure(
    "going on at 90 % of an epoch of T: `load_state_dict` to the first batch",
    "the first batch of a fresh epoch",
    factor=1.5,
)
def resumption(data: Data) -> Pair:
    dataset = npstream.open(data.tokens_dataset())
    warm(dataset)
    state = {
        **dataset.iter(0, 1, batch_size=BATCH, shuffle=True).state_dict(),
        "position": data.tokens // 10 * 9,
    }

    def ours(number: int) -> int:
        batches = dataset.iter(0, 1, batch_size=BATCH, shuffle=True)
        batches.load_state_dict(state)
        return len(next(iter(batches)))

    def reference(number: int) -> int:
        return len(next(iter(dataset.iter(0, 1, batch_size=BATCH, shuffle=True))))

    return Pair(ours, reference, equal)


def equal(left: int, right: int) -> None:
    assert left == right


FIGURES = [epoch, dataloader_epoch, resumption]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.prepare.__name__)
def test_torch(figure: Figure, side: str, benchmark: Any, data: Data) -> None:
    compare_and_time(figure, side, benchmark, data)
