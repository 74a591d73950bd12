"""Searches of text and statistics of columns, against loops over loaded data and NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import npstream
from data import Data
from figures import SIDES, Figure, Pair, Unavailable, compare_and_time, figure

LOOP = "`bytes.find` as a Numba loop over the loaded text"
UNIQUE = "`np.unique(array, return_counts=True)`"
MOMENTS = "`min`, `max`, `mean`, `std` and `quantile` of the array"
PATTERN = "qzx"
ROWS_FACTOR = 10
"""Rows of the dataset of scalars, divided by the rows of S."""


def scalars(data: Data) -> npstream.Dataset:
    """Return a dataset of labels and scores, and nothing else."""
    rows = ROWS_FACTOR * data.small
    random = np.random.default_rng(5)

    def make(path: Path) -> None:
        columns = {
            "label": random.integers(0, 1000, rows, dtype=np.int32),
            "score": random.normal(size=rows).astype(np.float32),
        }
        npstream.write(path, columns)

    return npstream.open(data.path(f"scalars-{rows}", make))


def find_loop() -> Any:
    """Return a compiled loop that marks the texts that contain a pattern."""
    import numba

    @numba.njit(nogil=True)
    def find(values: Any, offsets: Any, pattern: Any, is_match: Any) -> None:
        size = pattern.size
        for k in range(offsets.size - 1):
            is_match[k] = False
            for start in range(offsets[k], offsets[k + 1] - size + 1):
                j = 0
                while j < size and values[start + j] == pattern[j]:
                    j += 1
                if j == size:
                    is_match[k] = True
                    break

    return find


@figure('`ds["text"].str.contains("qzx")` on S', LOOP, factor=1.5, rounds=9)
def contains(data: Data) -> Pair:
    text, find = npstream.open(data.small_dataset())["text"], find_loop()
    loaded, pattern = text.load(), np.frombuffer(PATTERN.encode(), np.uint8)

    def reference(number: int) -> np.ndarray:
        is_match = np.empty(len(loaded), bool)
        find(loaded.values, loaded.offsets, pattern, is_match)
        return is_match

    return Pair(lambda number: text.str.contains(PATTERN), reference, np.testing.assert_array_equal)


@figure('`ds["text"].str.contains("qzx")` on S', "`pyarrow.compute.match_substring`", rounds=9)
def contains_arrow(data: Data) -> Pair:
    try:
        import pyarrow as pa
        import pyarrow.compute as pc
    except ImportError:
        raise Unavailable("needs pyarrow") from None
    text = npstream.open(data.small_dataset())["text"]
    loaded = pa.array(data.texts(), pa.string())
    return Pair(
        lambda number: text.str.contains(PATTERN),
        lambda number: pc.match_substring(loaded, PATTERN),
        np.testing.assert_array_equal,
    )


def value_counts_pair(name: str, data: Data) -> Pair:
    column = scalars(data)[name]
    array = column.load()

    def compare(ours: Any, reference: Any) -> None:
        values, counts = reference
        order = np.argsort(ours.unique)
        np.testing.assert_array_equal(ours.unique[order], values)
        np.testing.assert_array_equal(ours.counts[order], counts)

    return Pair(
        lambda number: column.value_counts(),
        lambda number: np.unique(array, return_counts=True),
        compare,
    )


@figure("`value_counts` of 10,000,000 labels", UNIQUE, factor=1.5, rounds=5)
def label_counts(data: Data) -> Pair:
    return value_counts_pair("label", data)


@figure("`value_counts` of 10,000,000 floats", UNIQUE, factor=1.5, rounds=5)
def score_counts(data: Data) -> Pair:
    return value_counts_pair("score", data)


def description_pair(name: str, data: Data) -> Pair:
    column = scalars(data)[name]
    array = column.load()

    def reference(number: int) -> tuple[Any, ...]:
        quantiles = np.quantile(array, [0.25, 0.5, 0.75])
        return array.min(), array.max(), array.mean(), array.std(), quantiles

    def compare(ours: Any, theirs: Any) -> None:
        assert (ours.min, ours.max) == theirs[:2]
        # The sides add numbers in different orders. Quantiles are not compared: `describe` can
        # estimate them.
        np.testing.assert_allclose([ours.mean, ours.std], theirs[2:4], rtol=1e-3, atol=1e-3)

    return Pair(lambda number: column.describe(), reference, compare)


@figure("`describe` of 10,000,000 labels", MOMENTS, factor=1.5, rounds=5)
def label_description(data: Data) -> Pair:
    return description_pair("label", data)


@figure("`describe` of 10,000,000 floats", MOMENTS, factor=1.5, rounds=5)
def score_description(data: Data) -> Pair:
    return description_pair("score", data)


FIGURES = [
    contains, contains_arrow, label_counts, score_counts, label_description, score_description,
]  # fmt: skip


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.prepare.__name__)
def test_exploring(figure: Figure, side: str, benchmark: Any, data: Data) -> None:
    compare_and_time(figure, side, benchmark, data)
