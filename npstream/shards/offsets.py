"""Where samples lie in their shards: their offsets, of which the last ones read are kept.

Where that takes few bytes, they are read in runs of rows, each of the same rows always, so that
most samples that are read later, one by one, are found without a request.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from npstream._core.lru import Recent
from npstream._core.typing import Bools, Int64
from npstream.storage.coalesce import merged, read_merged

if TYPE_CHECKING:
    from npstream.formats.index import Index
    from npstream.shards.local import LocalShards
    from npstream.storage.local import Store

ROWS = 1 << 12
"""Rows of a run. Their 16 KiB take a server hardly longer than the 8 bytes of one."""

FRACTION = 4
"""Several runs are read if they take one part in so many of the bytes of the samples, or less."""

GAP = 1 << 14
"""Bytes between offsets that are fetched rather than skipped."""

KEPT = 1 << 24
"""Bytes of offsets that are kept in memory."""


@dataclass(frozen=True, slots=True)
class Runs:
    """Runs of rows whose offsets are read, rising.

    Run k has rows ``first[k]`` to ``stop[k]`` of shard ``shard_of[k]``. ``numbers`` are what runs
    are kept by; there are none if these are single rows, which are not kept.
    """

    shard_of: Int64
    first: Int64
    stop: Int64
    numbers: Int64 | None

    @property
    def begins(self) -> Int64:
        """Where their offsets begin in the shards' files."""
        return 4 + 4 * self.first

    @property
    def ends(self) -> Int64:
        """Where they end, with that of the end of the last row."""
        return 8 + 4 * self.stop


class Offsets:
    """The offsets of shards whose samples vary in size.

    Parameters
    ----------
    shards : LocalShards
    store : Store
    """

    def __init__(self, shards: LocalShards, store: Store) -> None:
        self._shards = shards
        self._store = store
        self._kept = Recent(KEPT)

    def kept(self, shard_of: Int64, rows: Int64) -> tuple[Int64, Int64, Bools]:
        """Return where rows, rising, begin and end, and for which of them that is in memory."""
        begins, ends = np.empty((2, len(rows)), np.int64)
        numbers, _, run_of = _grouped(shard_of, rows)
        found = self._kept.get(numbers.tolist())
        here = np.array([part is not None for part in found], bool)[run_of]
        if here.any():
            parts = [b"" if part is None else part for part in found]
            first = _first_row(numbers)
            begins[here], ends[here] = _picked(parts, first, run_of[here], rows[here])
        return begins, ends, here

    def forget(self, shard_of: Int64, rows: Int64) -> None:
        """Keep the offsets of some rows no longer."""
        numbers, _, _ = _grouped(shard_of, rows)
        self._kept.drop(numbers.tolist())

    def read(self, shard_of: Int64, rows: Int64) -> tuple[Int64, Int64]:
        """Read where rows, rising, begin and end."""
        runs, run_of = runs_of(self._shards.index, shard_of, rows)
        parts = read_merged(self._store, self._name, runs.shard_of, runs.begins, runs.ends, gap=GAP)
        if runs.numbers is not None:
            for k, part in enumerate(parts):
                self._check(runs, k, part)
            self._kept.put(runs.numbers.tolist(), parts)
        return _picked(parts, runs.first, run_of, rows)

    def _name(self, shard: int) -> str:
        files = self._shards.index.files(shard)
        return (files.meta or files.data).name

    def _check(self, runs: Runs, k: int, part: bytes) -> None:
        """Raise unless all rows of a run lie within their shard, one after the other.

        Where they do not, a row may be another one than was asked for, and fit all the same.
        """
        words = np.frombuffer(part, "<u4").astype(np.int64)
        rows = np.arange(runs.first[k], runs.stop[k])
        self._shards.check_bounds(int(runs.shard_of[k]), rows, words[:-1], words[1:])


def runs_of(index: Index, shard_of: Int64, rows: Int64) -> tuple[Runs, Int64]:
    """Return the runs whose offsets are read for rows, rising, and which one each row is in."""
    numbers, head, run_of = _grouped(shard_of, rows)
    counts = index.starts[shard_of + 1] - index.starts[shard_of]
    first = _first_row(numbers)
    runs = Runs(shard_of[head], first, np.minimum(first + ROWS, counts[head]), numbers)
    nbytes = (index.nbytes[shard_of] // counts).sum()  # of the samples, about
    if len(numbers) > 1 and FRACTION * (runs.ends - runs.begins).sum() > nbytes:
        return Runs(shard_of, rows, rows + 1, None), np.arange(len(rows))
    return runs, run_of


def cost(index: Index, shard_of: Int64, rows: Int64) -> tuple[int, int]:
    """Return the requests for the offsets of rows, rising, and their bytes."""
    runs, _ = runs_of(index, shard_of, rows)
    *_, lengths = merged(runs.shard_of, runs.begins, runs.ends, GAP)
    return len(lengths), int(lengths.sum())


def _grouped(shard_of: Int64, rows: Int64) -> tuple[Int64, Int64, Int64]:
    """Return the numbers of the runs that rows, rising, are in, the first row there, and which."""
    numbers = shard_of << 32 | rows // ROWS
    is_first = np.ones(len(numbers), bool)
    is_first[1:] = numbers[1:] != numbers[:-1]
    head = np.flatnonzero(is_first)
    return numbers[head], head, np.cumsum(is_first) - 1


def _first_row(numbers: Int64) -> Int64:
    """Return the first row of runs."""
    return (numbers & 0xFFFFFFFF) * ROWS


def _picked(parts: list[bytes], first: Int64, run_of: Int64, rows: Int64) -> tuple[Int64, Int64]:
    """Look rows up in the offsets of the runs that they are in."""
    words = np.frombuffer(b"".join(parts), "<u4")
    lengths = np.array([len(part) // 4 for part in parts], np.int64)
    at = (np.cumsum(lengths) - lengths - first)[run_of] + rows
    return words[at].astype(np.int64), words[at + 1].astype(np.int64)
