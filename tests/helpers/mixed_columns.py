"""A small dataset of several shards with one column of each kind, and its values."""

from __future__ import annotations

import numpy as np
from dataset_files import objects

SIZES = (4, 0, 6, 1)
"""Samples of each shard."""

N = sum(SIZES)

VALUES = {
    "label": np.arange(N) % 4,
    "number": np.arange(N) * 10**12,
    "tokens": np.arange(N * 6, dtype=np.uint16).reshape(N, 3, 2),
    "text": [f"text {i}" * (i % 3) for i in range(N)],
    "data": [bytes(range(i)) for i in range(N)],
    "ragged": objects(np.arange(1 + i % 3, dtype=np.int32) for i in range(N)),
    "meta": [{"i": i} for i in range(N)],
}

COLUMNS = {
    "label": "int64",
    "number": "int",
    "tokens": "ndarray:uint16:3,2",
    "text": "str",
    "data": "bytes",
    "ragged": "ndarray:int32",
    "meta": "json",
}


def check_sample(sample, i):
    assert list(sample) == list(COLUMNS)
    assert type(sample["label"]) is np.int64
    assert type(sample["number"]) is int
    assert sample["tokens"].dtype == np.uint16
    for name, value in sample.items():
        assert np.array_equal(value, VALUES[name][i])
        assert isinstance(value, np.ndarray) == isinstance(VALUES[name][i], np.ndarray)


def ids_of(ds):
    return ds.load().ids


def label(sample):
    return sample["label"]
