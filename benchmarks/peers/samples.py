"""Samples that all packages write and read.

This module needs only NumPy, so that it works in the environment of each package. T and S are here
the first samples of the datasets T and S of `benchmarks/data.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

TOKENS = 1024
RECORD = np.dtype([("id", "<i8"), ("tokens", "<u2", TOKENS)])

Sample = dict[str, Any]


@dataclass(frozen=True)
class Samples:
    """Samples of one kind: "T" or "S".

    Parameters
    ----------
    kind : str
        "T" for ``{"id": int, "tokens": uint16 array of 1024}``, and "S" for
        ``{"id": int, "label": int, "text": str}``.
    directory : Path
        The directory that has the files of `benchmarks/data.py`.
    count : int
        The number of samples.
    """

    kind: str
    directory: Path
    count: int

    def __iter__(self) -> Iterator[Sample]:
        return map(self.__getitem__, range(self.count))

    def __getitem__(self, number: int) -> Sample:
        if self.kind == "T":
            record = map_records(self.directory)[number]
            return {"id": number, "tokens": np.array(record["tokens"])}
        rows, offsets = map_rows(self.directory)
        row = rows[offsets[number] : offsets[number + 1]].tobytes()
        label = int.from_bytes(row[8:12], "little")
        return {"id": number, "label": label, "text": row[12:].decode()}


@functools.cache
def map_records(directory: Path) -> np.memmap:
    """Memory-map the rows of T."""
    (path,) = directory.glob("T-*.records")
    return np.memmap(path, RECORD, "r")


@functools.cache
def map_rows(directory: Path) -> tuple[np.memmap, list[int]]:
    """Memory-map the rows of S, and return their offsets."""
    (path,) = directory.glob("S-*.rows")
    return np.memmap(path / "rows", np.uint8, "r"), np.load(path / "offsets.npy").tolist()


def stack(samples: list[Sample]) -> dict[str, Any]:
    """Make a batch of samples: arrays of numbers, and lists of texts."""
    columns = {name: [sample[name] for sample in samples] for name in samples[0]}
    return {
        name: values if isinstance(values[0], str) else np.stack(values)
        for name, values in columns.items()
    }


def check_batch(kind: str, batch: dict[str, Any], count: int) -> None:
    """Raise unless a batch has the form that all packages must return."""
    assert len(batch["id"]) == count, len(batch["id"])
    if kind == "T":
        tokens = batch["tokens"]
        assert isinstance(tokens, np.ndarray), type(tokens)
        assert (tokens.shape, tokens.dtype) == ((count, TOKENS), np.uint16), tokens.dtype
    else:
        assert len(batch["label"]) == count
        texts = batch["text"]
        assert isinstance(texts, list), type(texts)
        assert all(isinstance(text, str) for text in texts)
