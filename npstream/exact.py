"""Reading single samples out of an object store, without the chunks that they lie in."""

from __future__ import annotations

import threading
from collections import OrderedDict
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from npstream._typing import Int64
from npstream.shards import laid_out

if TYPE_CHECKING:
    from npstream.remote import RemoteStore
    from npstream.remote_shards import RemoteShards

GAP = 1 << 9
"""Bytes between two samples that are fetched rather than skipped."""

OFFSETS_GAP = 1 << 14
"""The same between offsets, which lie close together: fewer requests for few bytes more."""

KEPT = 1 << 26
"""Bytes of samples that are kept in memory, so that reading them again costs nothing."""

HURRIED = 1 << 24
"""Bytes of samples that are read exactly while their chunks are coming, rather than waited for."""

HURRIED_READS = 1 << 10
"""And how many samples these may be."""

LITTLE = 32
"""After the first read, only samples that are one part in so many of their chunk, or less."""


class ExactRows:
    """Samples that were fetched one by one, the last of which are kept.

    Parameters
    ----------
    shards : RemoteShards
    store : RemoteStore
    """

    def __init__(self, shards: RemoteShards, store: RemoteStore) -> None:
        self._shards = shards
        self._store = store
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        self._nbytes = self._hurried = self._hurried_reads = 0
        self._is_first = False
        self.renew_locks()

    def renew_locks(self) -> None:
        """Replace the lock, which a thread that a forked process does not have may have held."""
        self._lock = threading.Lock()

    def hurry(self) -> None:
        """Let the next samples be read exactly, also while their chunks are coming."""
        self._hurried, self._hurried_reads, self._is_first = HURRIED, HURRIED_READS, True

    def may_spend(self, samples: int, nbytes: int, chunk: int) -> bool:
        """Tell whether samples whose chunk is coming are read exactly, and not waited for.

        Parameters
        ----------
        samples, nbytes : int
            How many they are, and their bytes.
        chunk : int
            The bytes of their chunk.
        """
        if not (self._is_first or LITTLE * nbytes <= chunk):
            return False
        if self._hurried < nbytes or self._hurried_reads < samples:
            return False
        self._hurried -= nbytes
        self._hurried_reads -= samples
        return True

    def read(self, ids: Int64, shard_of: Int64) -> tuple[Int64, Int64, list[object]]:
        """Return where samples lie in memory, their lengths, and what holds them there."""
        wanted, first, which = np.unique(ids, return_index=True, return_inverse=True)
        shards = shard_of[first]
        parts = self._remembered(wanted.tolist())
        absent = np.array([k for k, part in enumerate(parts) if part is None], np.int64)
        if absent.size:
            self._is_first = False
            fetched = self._fetch(wanted[absent], shards[absent])
            self._remember(wanted[absent].tolist(), fetched)
            for k, part in zip(absent.tolist(), fetched, strict=True):
                parts[k] = part
        bodies = [part for part in parts if part is not None]
        address, nbytes, arena = laid_out(bodies, self._shards.guards[shards])
        return address[which], nbytes[which], [arena]

    def _fetch(self, ids: Int64, shard_of: Int64) -> list[bytes]:
        """Fetch samples, rising, each with its guard."""
        begins, ends = self._bounds(ids, shard_of)
        return self._ranges(shard_of, begins - self._shards.guards[shard_of], ends)

    def _bounds(self, ids: Int64, shard_of: Int64) -> tuple[Int64, Int64]:
        """Return where samples, rising, begin and end in their shards' files."""
        begins, ends = np.empty((2, len(ids)), np.int64)
        shards = self._shards
        rows = ids - shards.index.starts[shard_of]
        unknown = np.zeros(len(ids), bool)
        edges = np.flatnonzero(shard_of[1:] != shard_of[:-1]) + 1
        runs = [slice(a, b) for a, b in pairwise([0, *edges.tolist(), len(ids)])]
        for run in runs:
            found = shards.files.row_bounds(int(shard_of[run.start]), rows[run])
            if found is None:
                unknown[run] = True
            else:
                begins[run], ends[run] = found
        if unknown.any():
            at = 4 + 4 * rows[unknown]
            pairs = b"".join(self._ranges(shard_of[unknown], at, at + 8, offsets=True))
            begins[unknown], ends[unknown] = np.frombuffer(pairs, "<u4").reshape(-1, 2).T
        for run in runs:
            shards.check_bounds(int(shard_of[run.start]), rows[run], begins[run], ends[run])
        return begins, ends

    def _ranges(
        self, shard_of: Int64, begins: Int64, ends: Int64, offsets: bool = False
    ) -> list[bytes]:
        """Fetch parts of shards' data, or of the files with their offsets; rising."""
        gap = OFFSETS_GAP if offsets else GAP
        heads, run, starts, lengths = merged(shard_of, begins, ends, gap)
        files = map(self._shards.index.files, shard_of[heads].tolist())
        names = [(f.meta or f.data if offsets else f.data).name for f in files]
        fetched = self._store.ranges(zip(names, starts.tolist(), lengths.tolist(), strict=True))
        base = starts[run]
        within = zip(run.tolist(), (begins - base).tolist(), (ends - base).tolist(), strict=True)
        return [fetched[number][begin:end] for number, begin, end in within]

    def _remembered(self, ids: list[int]) -> list[bytes | None]:
        with self._lock:
            for sample in ids:
                if sample in self._kept:
                    self._kept.move_to_end(sample)
            return [self._kept.get(sample) for sample in ids]

    def _remember(self, ids: list[int], parts: list[bytes]) -> None:
        with self._lock:
            for sample, part in zip(ids, parts, strict=True):
                if sample not in self._kept:
                    self._kept[sample] = part
                    self._nbytes += len(part)
            while self._nbytes > KEPT:
                self._nbytes -= len(self._kept.popitem(last=False)[1])


def merged(
    file_of: Int64, begins: Int64, ends: Int64, gap: int
) -> tuple[Int64, Int64, Int64, Int64]:
    """Merge parts of files, rising, where they overlap or are no further apart than a gap.

    Returns
    -------
    heads : ndarray of int64, shape (requests,)
        The first part of each request.
    run : ndarray of int64, shape (parts,)
        The request that each part is in.
    starts, lengths : ndarray of int64, shape (requests,)
        The bytes to request.

    Examples
    --------
    >>> begins = np.array([0, 100, 9000, 50])
    >>> merged(np.array([0, 0, 0, 1]), begins, begins + 10, 90)[1]
    array([0, 0, 1, 2])
    """
    apart = (file_of[1:] != file_of[:-1]) | (begins[1:] > ends[:-1] + gap)
    heads = np.flatnonzero(np.append(True, apart))
    sizes = np.diff(np.append(heads, len(file_of)))
    starts = begins[heads]
    return heads, np.repeat(np.arange(len(heads)), sizes), starts, ends[heads + sizes - 1] - starts
