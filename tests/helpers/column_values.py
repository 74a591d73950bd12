"""A dataset of four shards with a column of each encoding, and its values."""

from __future__ import annotations

import decimal

import numpy as np
from dataset_files import objects, write_shards
from PIL import Image

SIZES = (5, 0, 7, 1)
N = sum(SIZES)
RNG = np.random.default_rng(0)
VALUES = {
    "label": np.arange(N) % 4,
    "small": np.arange(N, dtype=np.int8),
    "score": RNG.normal(size=N).astype(np.float32),
    "tokens": np.arange(N * 12, dtype=np.uint16).reshape(N, 4, 3),
    "number": np.arange(N) * 10**12,
    "text": np.array(["", "ab", "é", "text", "ab"] * 3, np.dtypes.StringDType())[:N],
    "data": objects([b"", b"ab", b"\xff", b"text"] * 4)[:N],
    "ragged": objects(np.arange(1 + i % 3, dtype=np.int32) for i in range(N)),
    "any": objects(np.ones(1 + i % 2, [np.int8, float][i % 2]) for i in range(N)),
    "json": objects([{"i": i}, [i, i], "x", None][i % 4] for i in range(N)),
    "image": objects(Image.new("L", (i + 1, 2), i) for i in range(N)),
    "str_int": np.arange(N) ** 5,
    "str_float": np.arange(N) / 7,
    "decimal": objects(decimal.Decimal(i) / 8 for i in range(N)),
}
COLUMNS = {
    "label": "int64",
    "small": "int8",
    "score": "float32",
    "tokens": "ndarray:uint16:4,3",
    "number": "int",
    "text": "str",
    "data": "bytes",
    "ragged": "ndarray:int32",
    "any": "ndarray",
    "json": "json",
    "image": "png",
    "str_int": "str_int",
    "str_float": "str_float",
    "decimal": "str_decimal",
}

FIXED = ("label", "small", "score", "tokens", "number")
NUMBERS = (*FIXED, "str_int", "str_float")
RAGGED = ("text", "data", "ragged", "image")
OBJECTS = ("ragged", "any", "json", "image", "decimal")
"""Columns whose values have no NumPy dtype."""


def write_columns(path):
    """Write the values in four shards; one of them is empty."""
    values = VALUES | {
        "str_int": VALUES["str_int"].tolist(),
        "str_float": VALUES["str_float"].tolist(),
    }
    write_shards(path, values, SIZES, COLUMNS)
    return path
