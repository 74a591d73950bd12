"""Single samples, and iteration, on warm local datasets."""

from __future__ import annotations

import mmap
import struct
from collections import deque
from typing import Any

import numpy as np
import pytest

import npstream
from data import Data
from figures import SIDES, Figure, Pair, compare_and_time, figure, warm

CALLS = 1000


def picks(samples: int) -> list[list[int]]:
    """Return the random ids for 16 rounds, as Python ints."""
    generator = np.random.default_rng(0)
    return [generator.integers(0, samples, CALLS).tolist() for _ in range(16)]


def compare_samples(ours: list[dict[str, Any]], reference: list[dict[str, Any]]) -> None:
    assert len(ours) == len(reference)
    for left, right in zip(ours, reference, strict=True):
        assert left.keys() == right.keys()
        for name, value in right.items():
            np.testing.assert_array_equal(left[name], value)
            assert type(left[name]) is type(value)


@figure(
    "`ds[i]` at random on T",
    "the same dict built by hand from a mapped file, arrays copied",
    factor=2,
    limit=4e-6,
)
def tokens(data: Data) -> Pair:
    dataset, records = npstream.open(data.tokens_dataset()), data.records()
    warm(dataset, records)
    ids, rows = np.asarray(records["id"]), np.asarray(records["tokens"])
    rounds = picks(data.tokens)
    return Pair(
        lambda number: [dataset[i] for i in rounds[number % 16]],
        lambda number: [{"id": ids[i], "tokens": rows[i].copy()} for i in rounds[number % 16]],
        compare_samples,
        calls=CALLS,
    )


def small_reader(data: Data) -> Any:
    """Return a function that builds one sample of S by hand."""
    file, offsets = data.small_rows()
    starts, unpack, make_label = offsets.tolist(), struct.Struct("<qi").unpack_from, np.int32
    with file.open("rb") as opened:
        rows = mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ)
    np.frombuffer(rows, np.uint8).max()  # touches all pages, so that no measurement loads one

    def read(i: int) -> dict[str, Any]:
        start = starts[i]
        number, label = unpack(rows, start)
        text = rows[start + 12 : starts[i + 1]].decode()
        return {"id": number, "label": make_label(label), "text": text}

    return read


@figure(
    "`ds[i]` at random on S",
    "the same dict built by hand from a mapped file",
    factor=2,
)
def small(data: Data) -> Pair:
    dataset, read = npstream.open(data.small_dataset()), small_reader(data)
    warm(dataset)
    rounds = picks(data.small)
    return Pair(
        lambda number: [dataset[i] for i in rounds[number % 16]],
        lambda number: [read(i) for i in rounds[number % 16]],
        compare_samples,
        calls=CALLS,
    )


@figure(
    "iterating samples, S",
    "a Python loop that builds the same dicts, a NumPy scalar for `label`",
    factor=2.5,
    rounds=5,
)
def iterate_samples(data: Data) -> Pair:
    samples = min(100_000, data.small)
    dataset, read = npstream.open(data.small_dataset())[:samples], small_reader(data)
    warm(dataset)

    def last(samples: Any) -> dict[str, Any]:
        return deque(samples, maxlen=1)[0]

    return Pair(
        lambda number: last(dataset),
        lambda number: last(read(i) for i in range(samples)),
        lambda ours, theirs: compare_samples([ours], [theirs]),
        calls=samples,
    )


@figure(
    "iterating batches of 256, T (tokens and id), shuffled",
    "`memmap[perm[k:k+256]]` of a packed record array {id, tokens} in one file",
    factor=1.5,
    rounds=5,
)
def batches(data: Data) -> Pair:
    dataset, records = npstream.open(data.tokens_dataset()), data.records()
    warm(dataset, records)
    shuffled = dataset.shuffle(0, block=None)
    order = shuffled["id"].load()

    def ours(number: int) -> int:
        return sum(int(b["id"][0]) for b in shuffled.iter(0, 1, batch_size=256, last="short"))

    def reference(number: int) -> int:
        starts = range(0, len(order), 256)
        return sum(int(records[order[start : start + 256]]["id"][0]) for start in starts)

    def compare(left: int, right: int) -> None:
        assert left == right

    return Pair(ours, reference, compare, calls=-(-data.tokens // 256))


@figure(
    "iterating batches of 256, T (tokens and id), in order",
    "slices `memmap[k:k+256]` of a packed record array {id, tokens} in one file, each column of "
    "a slice copied into an array of its own, as a batch holds it",
    factor=1.5,
    rounds=5,
)
def batches_in_order(data: Data) -> Pair:
    dataset, records = npstream.open(data.tokens_dataset()), data.records()
    warm(dataset, records)
    iteration = dataset.iter(0, 1, batch_size=256, last="short")

    def ours(number: int) -> int:
        return sum(int(batch["id"][0]) for batch in iteration)

    def reference(number: int) -> int:
        total = 0
        for start in range(0, data.tokens, 256):
            rows = records[start : start + 256]
            batch = {name: np.ascontiguousarray(rows[name]) for name in ("id", "tokens")}
            total += int(batch["id"][0])
        return total

    def compare(left: int, right: int) -> None:
        assert left == right

    return Pair(ours, reference, compare, calls=-(-data.tokens // 256))


FIGURES = [tokens, small, iterate_samples, batches, batches_in_order]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.prepare.__name__)
def test_samples(figure: Figure, side: str, benchmark: Any, data: Data) -> None:
    compare_and_time(figure, side, benchmark, data)
