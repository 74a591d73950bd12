"""Reading a mixture, compared with reading the same amount from one dataset."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import npstream
from data import Data
from figures import SIDES, Figure, Pair, compare_and_time, figure, warm

SOURCES = 8
BATCH = 256
BATCHES = 64
"""Batches in one measured call."""


def repeat_epochs(ds: npstream.Dataset) -> Iterator[npstream.Batch]:
    """Yield shuffled batches, epoch after epoch."""
    epochs = ds.iter(0, 1, batch_size=BATCH, shuffle=True)
    return itertools.chain.from_iterable(epochs for _ in itertools.count())


def mix_slices(datasets: list[npstream.Dataset]) -> npstream.Mixture:
    """Mix a different eighth of each dataset. Each dataset is T, so the mixture has T's samples."""
    n = len(datasets[0])
    return npstream.mix(
        {
            str(number): ds[n * number // SOURCES : n * (number + 1) // SOURCES]
            for number, ds in enumerate(datasets)
        }
    )


def mixture_pair(data: Data, mixed: npstream.Mixture) -> Pair:
    dataset = npstream.open(data.tokens_dataset())
    warm(dataset, data.token_map())
    mixed[:1].load()  # the cost of the first read is not measured
    tokens = data.token_map()
    ours, theirs = repeat_epochs(mixed), repeat_epochs(dataset)

    def read(batches: Iterator[npstream.Batch]) -> list[npstream.Batch]:
        return list(itertools.islice(batches, BATCHES))

    def compare(ours: list[Any], theirs: list[Any]) -> None:
        for batch in [*ours, *theirs]:
            assert batch.n == BATCH
            np.testing.assert_array_equal(batch["id"], batch.ids)
            np.testing.assert_array_equal(batch["tokens"], tokens[batch.ids])

    return Pair(lambda _: read(ours), lambda _: read(theirs), compare, calls=BATCHES)


@figure(
    "shuffled batches of 256 from a mixture of 8 views of T",
    "the same from T alone",
    factor=1.3,
)
def views(data: Data) -> Pair:
    return mixture_pair(data, mix_slices([npstream.open(data.tokens_dataset())] * SOURCES))


@figure(
    "shuffled batches of 256 from a mixture of 8 views of T, each opened on its own",
    "the same from T alone",
    factor=1.3,
)
def datasets(data: Data) -> Pair:
    return mixture_pair(
        data, mix_slices([npstream.open(data.tokens_dataset()) for _ in range(SOURCES)])
    )


FIGURES = [views, datasets]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.prepare.__name__)
def test_mixture_reading(figure: Figure, side: str, benchmark: Any, data: Data) -> None:
    compare_and_time(figure, side, benchmark, data)
