"""Datasets whose samples contain their own ids, and views of these datasets."""

from __future__ import annotations

import numpy as np

import npstream

COLUMNS = {"id": "int64", "x": "ndarray:float32:3", "text": "str", "tokens": "ndarray:int32"}


def make_rows(first, n):
    """Return samples whose columns follow from the sample's id."""
    return [
        {
            "id": i,
            "x": np.arange(i, i + 3, dtype=np.float32),
            "text": f"<{i}>" * (i % 5),
            "tokens": np.arange(i % 7 + 1, dtype=np.int32) + i,
        }
        for i in range(first, first + n)
    ]


def write(path, first=0, n=120, columns=COLUMNS, **options):
    rows = [{name: row[name] for name in columns} for row in make_rows(first, n)]
    npstream.write(path, rows, columns=columns, shard_size=2500, **options)
    return npstream.open(path)


def views_of(a, b, c, d):
    """Return views of datasets of 120, 80, 60 and 40 samples, and the ids of their samples.

    The ids of the datasets begin at 0, 1000, 2000 and 3000.
    """
    views = {
        "first": a[::-2],
        "packed": b,
        "masked": a[MASK],
        "remote": c[5:],
        "listed": d[[7, 7, 3, 39, 0]],
        "shuffled": c.shuffle(1),
        "tail": a[100:],
    }
    shuffled = 2000 + c.order(1)[:]
    ids = [np.arange(120)[::-2], 1000 + np.arange(80), np.flatnonzero(MASK), 2005 + np.arange(55)]
    ids += [np.array([3007, 3007, 3003, 3039, 3000]), shuffled, np.arange(100, 120)]
    return views, ids


def assert_batch(batch, ids):
    """Assert that a batch has the values of the samples with these ids."""
    assert batch["id"].tolist() == list(ids)
    np.testing.assert_array_equal(batch["x"], np.add.outer(ids, np.arange(3)))
    assert list(batch["text"]) == [f"<{i}>" * (i % 5) for i in ids]
    for row, i in zip(batch["tokens"], ids, strict=True):
        np.testing.assert_array_equal(row, np.arange(i % 7 + 1) + i)


def assert_sample(sample, i):
    (expected,) = make_rows(int(i), 1)
    assert sample.keys() == expected.keys()
    np.testing.assert_equal(sample, expected)


MASK = np.random.default_rng(0).random(120) < 0.6
