"""Loading batches of random samples from warm local datasets."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import npstream
from data import TOKENS, Data
from figures import SIDES, Figure, Pair, compare_and_time, figure, warm

INDEX_ARRAYS = 64
"""Number of different index arrays: round k uses number ``k % INDEX_ARRAYS``."""


def indices(samples: int, count: int, seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.integers(0, samples, count) for _ in range(INDEX_ARRAYS)]


@figure(
    '`ds["tokens"][10,000 random].load()` on T',
    "fancy indexing of an `np.memmap` of the tokens in one file",
    factor=1.2,
)
def tokens(data: Data) -> Pair:
    dataset, flat = npstream.open(data.tokens_dataset()), data.token_map()
    warm(dataset, flat)
    column = dataset["tokens"]
    picks = indices(data.tokens, 10_000)
    return Pair(
        lambda number: column[picks[number % INDEX_ARRAYS]].load(),
        lambda number: flat[picks[number % INDEX_ARRAYS]],
        np.testing.assert_array_equal,
    )


@figure(
    "`ds[256 random].load(out=)` on T, fresh indices each time",
    '`np.take(memmap, idx, out=, mode="clip")`',
    factor=1.1,
    margin=10e-6,
)
def tokens_with_out(data: Data) -> Pair:
    dataset, flat = npstream.open(data.tokens_dataset())[["tokens"]], data.token_map()
    warm(dataset, flat)
    picks = indices(data.tokens, 256)
    ours = {"tokens": np.empty((256, TOKENS), np.uint16)}
    theirs = np.empty((256, TOKENS), np.uint16)

    def reference(number: int) -> np.ndarray:
        for pick in picks:
            np.take(flat, pick, axis=0, out=theirs, mode="clip")
        return theirs

    def load(number: int) -> np.ndarray:
        for pick in picks:
            dataset[pick].load(out=ours)
        return ours["tokens"]

    return Pair(load, reference, np.testing.assert_array_equal, calls=INDEX_ARRAYS)


@figure(
    "`ds[10,000 random].load()` on S",
    "a bare Numba gather of the same bytes into newly allocated flat buffers",
    factor=1.5,
)
def small(data: Data) -> Pair:
    return small_pair(data, small_gathers()[0])


@figure(
    "`ds[10,000 random].load()` on S",
    "the same gather with LLVM's memcpy: no format, no shards, no checks",
    factor=math.inf,
)
def small_limit(data: Data) -> Pair:
    return small_pair(data, small_gathers()[1])


def small_pair(data: Data, gather: Callable[..., None]) -> Pair:
    dataset, (file, offsets) = npstream.open(data.small_dataset()), data.small_rows()
    rows = np.asarray(np.memmap(file, np.uint8, "r"))
    warm(dataset, rows)
    picks = indices(data.small, 10_000)

    def reference(number: int) -> tuple[np.ndarray, ...]:
        pick = picks[number % INDEX_ARRAYS]
        lengths = offsets[pick + 1] - offsets[pick] - 12
        ends = np.cumsum(lengths)
        texts = np.empty(ends[-1], np.uint8)
        ids, labels = np.empty(8 * len(pick), np.uint8), np.empty(4 * len(pick), np.uint8)
        gather(rows, offsets[pick], lengths, ends - lengths, ids, labels, texts)
        return ids.view(np.int64), labels.view(np.int32), texts

    def compare(batch: Any, expected: tuple[np.ndarray, ...]) -> None:
        np.testing.assert_array_equal(batch["id"], expected[0])
        np.testing.assert_array_equal(batch["label"], expected[1])
        np.testing.assert_array_equal(batch["text"].values, expected[2])

    return Pair(lambda number: dataset[picks[number % INDEX_ARRAYS]].load(), reference, compare)


@functools.cache
def small_gathers() -> tuple[Callable[..., None], Callable[..., None]]:
    """Return the two reference kernels: plain Numba, and Numba with memcpy."""
    import numba

    from npstream._core import jit as _jit

    copy = _jit._primitives()[_jit.copy]

    @numba.njit(nogil=True)
    def assign(rows, begin, length, start, ids, labels, texts):
        for k in range(len(begin)):
            row = begin[k]
            ids[8 * k : 8 * k + 8] = rows[row : row + 8]
            labels[4 * k : 4 * k + 4] = rows[row + 8 : row + 12]
            texts[start[k] : start[k] + length[k]] = rows[row + 12 : row + 12 + length[k]]

    @numba.njit(nogil=True)
    def memcpy(rows, begin, length, start, ids, labels, texts):
        for k in range(len(begin)):
            row = rows.ctypes.data + begin[k]
            copy(ids.ctypes.data + 8 * k, row, 8)
            copy(labels.ctypes.data + 4 * k, row + 8, 4)
            copy(texts.ctypes.data + start[k], row + 12, length[k])

    return assign, memcpy


@figure(
    "`ds[10,000 random].load()` on I",
    "memcpy of the same bytes into a newly allocated array",
    factor=1.5,
)
def images(data: Data) -> Pair:
    dataset = npstream.open(data.images_dataset())
    flat = np.asarray(np.memmap(data.images_file(), np.uint8, "r"))
    warm(dataset, flat)
    lengths = data.image_lengths()
    picks = indices(data.images, min(10_000, data.images))
    # In a test, images that are picked more than once can make a batch larger than the file.
    totals = [min(int(lengths[pick].sum()), len(flat)) for pick in picks]

    def reference(number: int) -> np.ndarray:
        total = totals[number % INDEX_ARRAYS]
        target = np.empty(total, np.uint8)
        # One large copy would take twice as long, because libc then bypasses the CPU caches.
        for start in range(0, total, 1 << 22):
            np.copyto(
                target[start : start + (1 << 22)], flat[start : min(start + (1 << 22), total)]
            )
        return target

    def compare(batch: Any, _copy: np.ndarray) -> None:
        # The sides are compared in round 0, which loads `picks[0]`.
        assert batch["image"].lengths.tolist() == lengths[picks[0]].tolist()

    return Pair(lambda number: dataset[picks[number % INDEX_ARRAYS]].load(), reference, compare)


FIGURES = [tokens, tokens_with_out, small, small_limit, images]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.prepare.__name__)
def test_gather(figure: Figure, side: str, benchmark: Any, data: Data) -> None:
    compare_and_time(figure, side, benchmark, data)
