"""Reading single samples out of an object store, without the chunks that they lie in.

Tested in tests/shards/test_offsets.py.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from npstream._core.lru import Recent
from npstream._core.typing import Bools, Int64
from npstream.errors import StorageError
from npstream.formats import mds, text
from npstream.shards.base import laid_out
from npstream.shards.offsets import Offsets
from npstream.storage.coalesce import read_merged

if TYPE_CHECKING:
    from npstream.shards.local import LocalShards
    from npstream.shards.residency import RemoteFiles
    from npstream.storage.remote import RemoteStore

GAP = 1 << 9
"""Bytes between two samples that are fetched rather than skipped."""

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
    shards : LocalShards
    files : RemoteFiles
        What is in the cache.
    store : RemoteStore
    """

    def __init__(self, shards: LocalShards, files: RemoteFiles, store: RemoteStore) -> None:
        self._shards = shards
        self._files = files
        self._store = store
        self._kept = Recent(KEPT)
        self._offsets = Offsets(shards, store)
        self._hurried = self._hurried_reads = 0
        self._is_first = False

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
        parts = self._kept.get(wanted.tolist())
        absent = np.array([k for k, part in enumerate(parts) if part is None], np.int64)
        if absent.size:
            self._is_first = False
            fetched = self._fetch(wanted[absent], shards[absent])
            self._kept.put(wanted[absent].tolist(), fetched)
            for k, part in zip(absent.tolist(), fetched, strict=True):
                parts[k] = part
        bodies = [part for part in parts if part is not None]
        address, nbytes, arena = laid_out(bodies, self._shards.guards[shards])
        return address[which], nbytes[which], [arena]

    @property
    def is_extended(self) -> bool:
        """Whether somebody fetches samples ahead, to be kept until they are read."""
        return self._kept.is_extended

    def extend(self, nbytes: int) -> None:
        """Keep so many more bytes of samples, or fewer."""
        self._kept.extend(nbytes)

    def lacks(self, ids: Int64) -> Bools:
        """Return which samples are not in memory."""
        return np.array(self._kept.lacks(ids.tolist()), bool)

    def absent(self, ids: Int64) -> Int64:
        """Return those samples that are not in memory."""
        return ids[~np.isin(ids, np.array(self._kept.numbers(), np.int64))]

    def places(self, ids: Int64, shard_of: Int64) -> tuple[Int64, Int64, Bools, Bools]:
        """Return where samples, rising, begin and end, as far as that takes no request.

        Returns
        -------
        begins, ends : ndarray of int64, shape (n,)
        is_known, was_read : ndarray of bool, shape (n,)
            For which samples that is known, and for which of these it is since some earlier read.
        """
        begins, ends = np.empty((2, len(ids)), np.int64)
        rows = ids - self._shards.index.starts[shard_of]
        unknown = np.zeros(len(ids), bool)
        for run in _runs(shard_of):
            found = self._files.row_bounds(int(shard_of[run.start]), rows[run])
            if found is None:
                unknown[run] = True
            else:
                begins[run], ends[run] = found
        was_read = np.zeros(len(ids), bool)
        if unknown.any():
            begins[unknown], ends[unknown], was_read[unknown] = self._offsets.kept(
                shard_of[unknown], rows[unknown]
            )
        return begins, ends, ~unknown | was_read, was_read

    def _fetch(self, ids: Int64, shard_of: Int64) -> list[bytes]:
        """Fetch samples, rising, each with its guard."""
        begins, ends, is_known, was_read = self.places(ids, shard_of)
        if not is_known.all():
            unknown = ~is_known
            begins[unknown], ends[unknown] = self._read_offsets(ids[unknown], shard_of[unknown])
        # Since the others were read, their shards may have been replaced by another version.
        old = np.flatnonzero(was_read)
        try:
            parts = self._fetch_at(ids, shard_of, begins, ends)
        except StorageError:
            self._forget(ids[old], shard_of[old])
            raise
        wrong = old[[not self._is_sample(shard_of[k], parts[k]) for k in old]]
        if wrong.size:
            ids, shard_of = ids[wrong], shard_of[wrong]
            self._forget(ids, shard_of)
            bounds = self._read_offsets(ids, shard_of)
            for k, part in zip(wrong, self._fetch_at(ids, shard_of, *bounds), strict=True):
                parts[k] = part
        return parts

    def _forget(self, ids: Int64, shard_of: Int64) -> None:
        self._offsets.forget(shard_of, ids - self._shards.index.starts[shard_of])

    def _read_offsets(self, ids: Int64, shard_of: Int64) -> tuple[Int64, Int64]:
        return self._offsets.read(shard_of, ids - self._shards.index.starts[shard_of])

    def _fetch_at(self, ids: Int64, shard_of: Int64, begins: Int64, ends: Int64) -> list[bytes]:
        """Fetch samples, rising, from where they lie, unless that cannot be."""
        shards = self._shards
        rows = ids - shards.index.starts[shard_of]
        for run in _runs(shard_of):
            shards.check_bounds(int(shard_of[run.start]), rows[run], begins[run], ends[run])
        falls = (shard_of[1:] == shard_of[:-1]) & (begins[1:] < ends[:-1])
        if falls.any():
            shards.damaged(int(ids[1 + falls.argmax()]), "its offsets do not fit the shard")
        begins = begins - shards.guards[shard_of]
        return read_merged(self._store, self._name, shard_of, begins, ends, GAP)

    def _name(self, shard: int) -> str:
        return self._shards.index.files(shard).data.name

    def _is_sample(self, shard: int, part: bytes) -> bool:
        """Tell whether bytes, with their guard, look like a sample of a shard."""
        schema = self._shards.index.schema_of[shard]
        layout = self._shards.layouts[schema]
        if layout is None:
            return text.is_line(self._shards.index.schemas[schema], part)
        return mds.adds_up(layout, part)


def _runs(shard_of: Int64) -> list[slice]:
    """Return the runs of samples, rising, that are of one shard."""
    edges = np.flatnonzero(shard_of[1:] != shard_of[:-1]) + 1
    return [slice(a, b) for a, b in pairwise([0, *edges.tolist(), len(shard_of)])]
