"""Queries of local datasets, against NumPy on columns in memory."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import npstream
from data import Data
from figures import SIDES, Figure, Pair, compare_and_time, figure

LOADED = "the NumPy expression on loaded columns"


def same_rows(ours: np.ndarray, reference: np.ndarray) -> None:
    assert ours.tolist() == np.flatnonzero(reference).tolist()


@figure('`ds.query("label == 3 and len(text) > 100")` on S', LOADED, factor=1.3, rounds=9)
def label_and_text(data: Data) -> Pair:
    dataset = npstream.open(data.small_dataset())
    label, text = dataset["label"].load(), dataset["text"].to_numpy()
    return Pair(
        lambda number: query_rows(dataset, "label == 3 and len(text) > 100"),
        lambda number: (label == 3) & (np.strings.str_len(text) > 100),
        same_rows,
    )


@figure('`ds.query("len(text) > 100 and label < 500")` on S', LOADED, factor=1.3, rounds=9)
def text_and_label(data: Data) -> Pair:
    dataset = npstream.open(data.small_dataset())
    label, text = dataset["label"].load(), dataset["text"].to_numpy()
    return Pair(
        lambda number: query_rows(dataset, "len(text) > 100 and label < 500"),
        lambda number: (np.strings.str_len(text) > 100) & (label < 500),
        same_rows,
    )


@figure(
    '`ds.query("label == 3 and id > 100")` on S: numbers are read from the whole rows',
    LOADED,
    factor=math.inf,
    rounds=9,
)
def numbers(data: Data) -> Pair:
    dataset = npstream.open(data.small_dataset())
    label, ids = dataset["label"].load(), dataset["id"].load()
    return Pair(
        lambda number: query_rows(dataset, "label == 3 and id > 100"),
        lambda number: (label == 3) & (ids > 100),
        same_rows,
    )


@figure(
    '`ds.query("label == 3 and id > 100")` on S: numbers are read from the whole rows',
    "a Numba loop that loads both numbers of each mapped row, and compares them: no checks",
    factor=2,
    rounds=9,
)
def numbers_of_rows(data: Data) -> Pair:
    path = data.small_dataset()
    dataset, loop = npstream.open(path), number_loop()
    files = [np.memmap(file, np.uint8, "r") for file in sorted(path.glob("shard.*.mds"))]
    # A shard begins with the number of its samples, and the offset of each sample.
    counts = [int(file[:4].view(np.uint32)[0]) for file in files]
    offsets = [f[4 : 4 + 4 * count].view(np.uint32) for f, count in zip(files, counts, strict=True)]

    def reference(number: int) -> np.ndarray:
        masks = [np.empty(count, bool) for count in counts]
        for file, begins, mask in zip(files, offsets, masks, strict=True):
            loop(np.asarray(file), np.asarray(begins), mask)
        return np.concatenate(masks)

    return Pair(lambda number: query_rows(dataset, "label == 3 and id > 100"), reference, same_rows)


def number_loop() -> Any:
    """Return a loop over rows of S: four bytes for the size of `text`, then `id` and `label`."""
    import numba

    @numba.njit(nogil=True)
    def compare(shard: Any, offsets: Any, is_match: Any) -> None:
        for k in range(offsets.size):
            label, number = np.int64(0), np.int64(0)
            for byte in range(8):
                number |= np.int64(shard[offsets[k] + 4 + byte]) << (8 * byte)
            for byte in range(4):
                label |= np.int64(shard[offsets[k] + 12 + byte]) << (8 * byte)
            is_match[k] = label == 3 and number > 100

    return compare


def query_rows(dataset: npstream.Dataset, text: str) -> np.ndarray:
    """Return the row numbers that a query selects."""
    return dataset.query(text)._selection.ids()


FIGURES = [label_and_text, text_and_label, numbers, numbers_of_rows]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.prepare.__name__)
def test_query(figure: Figure, side: str, benchmark: Any, data: Data) -> None:
    compare_and_time(figure, side, benchmark, data)
