"""Provide `PointReader`, which reads single samples from an object store without their chunks.

If samples vary in size, their offsets are read first. Offsets are read in aligned runs of rows if
the runs are small compared with the samples. The last runs are cached, so most later reads need no
request for offsets.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from npstream._core.lru import ENTRY_OVERHEAD, LRUCache
from npstream._core.typing import Bools, Bytes, Int64
from npstream.errors import StorageError
from npstream.formats import mds, text
from npstream.shards.base import concatenate_parts
from npstream.storage.coalesce import (
    coalesce_ranges,
    fill_coalesced,
    read_coalesced,
    transfer_cost,
)
from npstream.storage.traffic.merging import Merging

if TYPE_CHECKING:
    from npstream.formats.index import Index
    from npstream.shards.local import LocalShards
    from npstream.shards.residency import RemoteFiles
    from npstream.storage.remote import RemoteStore

MAX_SAMPLE_GAP = 1 << 9
"""Gaps of up to this many bytes between two samples are fetched with them.

If more samples are read than there are concurrent requests, larger gaps may be fetched as well: see
`npstream.storage.traffic.merging.Merging`.
"""

SAMPLES_CACHE_BYTES = 1 << 26
"""Bytes of samples to cache in memory, so that reading them again needs no request."""

PARTS_CACHE_BYTES = 1 << 24
"""Bytes of parts of samples to cache in memory."""

BUDGET_BYTES = 1 << 24
"""Bytes of samples that may be read on their own although read-ahead is fetching their chunks."""

BUDGET_SAMPLES = 1 << 10
"""Number of samples that may be read on their own although read-ahead is fetching their chunks."""

SPARSE_DIVISOR = 32
"""The first read after `reset_budget` may use the whole budget. Later reads may use it only if
they take at most 1/32 of a chunk's bytes."""

OFFSETS_RUN_ROWS = 1 << 12
"""Rows whose offsets are read together. Their 16 KiB take hardly longer than one offset."""

OFFSETS_DIVISOR = 4
"""Several runs of offsets are read if their bytes are at most 1/4 of those of the samples.

Otherwise, the offsets of each row are read alone.
"""

MAX_OFFSETS_GAP = 1 << 14
"""Gaps of up to this many bytes between offsets are fetched with them."""

OFFSETS_CACHE_BYTES = 1 << 24
"""Bytes of offsets to cache in memory."""


class PointReader:
    """Reads single samples with range requests, and caches the last ones in memory.

    Parameters
    ----------
    shards : LocalShards
    files : RemoteFiles
        The dataset's files in the disk cache.
    store : RemoteStore
    """

    def __init__(self, shards: LocalShards, files: RemoteFiles, store: RemoteStore) -> None:
        self._shards = shards
        self._files = files
        self._store = store
        self._samples_cache = LRUCache(SAMPLES_CACHE_BYTES)
        self._parts_cache = LRUCache(PARTS_CACHE_BYTES)
        self._offsets = OffsetsCache(shards, store)
        self._budget_bytes = self._budget_samples = 0
        self._is_first_read = False

    def reset_budget(self) -> None:
        """Let the next samples be read on their own, although their chunks are being fetched."""
        self._budget_bytes, self._budget_samples = BUDGET_BYTES, BUDGET_SAMPLES
        self._is_first_read = True

    def within_budget(self, samples: int, nbytes: int, chunk_bytes: int) -> bool:
        """Return True, and charge the budget, if samples are read on their own.

        Otherwise the caller waits for their chunk, which is being fetched.

        Parameters
        ----------
        samples, nbytes : int
            The number of samples, and their bytes.
        chunk_bytes : int
            The bytes of their chunk.
        """
        if not (self._is_first_read or SPARSE_DIVISOR * nbytes <= chunk_bytes):
            return False
        if self._budget_bytes < nbytes or self._budget_samples < samples:
            return False
        self._budget_bytes -= nbytes
        self._budget_samples -= samples
        return True

    def read(self, ids: Int64, shard_of: Int64) -> tuple[Int64, Int64, list[object]]:
        """Return the address and length of samples in memory, and the owners of that memory."""
        unique, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
        shards = shard_of[first]
        parts = self._samples_cache.get(unique.tolist())
        absent = np.array([k for k, part in enumerate(parts) if part is None], np.int64)
        if absent.size:
            self._is_first_read = False
            fetched = self._fetch(unique[absent], shards[absent])
            self._samples_cache.put(unique[absent].tolist(), fetched)
            for k, part in zip(absent.tolist(), fetched, strict=True):
                parts[k] = part
        bodies = [part for part in parts if part is not None]
        address, nbytes, buffer = concatenate_parts(bodies, self._shards.guard_nbytes[shards])
        return address[inverse], nbytes[inverse], [buffer]

    @property
    def _merging(self) -> Merging:
        """Which neighboring samples are fetched by one request."""
        return self._store.traffic.merging(MAX_SAMPLE_GAP)

    @property
    def is_extended(self) -> bool:
        """True while a read-ahead has enlarged the samples cache."""
        return self._samples_cache.is_extended

    def extend(self, nbytes: int) -> None:
        """Enlarge the samples cache by `nbytes`, or shrink it if negative."""
        self._samples_cache.extend(nbytes)

    def lacks(self, ids: Int64) -> Bools:
        """Return True for samples that are not in the samples cache."""
        return np.array(self._samples_cache.are_absent(ids.tolist()), bool)

    def cost(self, ids: Int64) -> tuple[int, int]:
        """Estimate the requests, and their bytes, of reading samples in ascending order."""
        ids = ids[~np.isin(ids, np.array(self._samples_cache.keys(), np.int64))]
        if not ids.size:
            return 0, 0
        index = self._shards.index
        shard_of = np.searchsorted(index.starts, ids, side="right") - 1
        rows = ids - index.starts[shard_of]
        begins, ends, is_known, _ = self._known_bounds(ids, shard_of)
        # If one sample of a shard has unknown bounds, use estimates for all samples of this shard.
        # Otherwise the bounds might not ascend.
        is_estimated = np.isin(shard_of, shard_of[~is_known])
        sizes = index.nbytes[shard_of] // (index.starts[shard_of + 1] - index.starts[shard_of])
        begins = np.where(is_estimated, rows * sizes, begins - self._shards.guard_nbytes[shard_of])
        ends = np.where(is_estimated, begins + sizes, ends)
        *_, lengths = coalesce_ranges(shard_of, begins, ends, self._merging)
        requests, nbytes = len(lengths), int(lengths.sum())
        if not is_known.all():
            offsets_requests, offsets_nbytes = _offsets_cost(
                index, shard_of[~is_known], rows[~is_known]
            )
            return requests + offsets_requests, nbytes + offsets_nbytes
        return requests, nbytes

    # Parts of samples of one size

    def lacks_parts(self, ids: Int64, byte_ranges: Int64) -> Bools:
        """Return True for samples with a part that is not in memory.

        Parameters
        ----------
        ids : ndarray of int64, shape (n,)
        byte_ranges : ndarray of int64, shape (k, 2)
            The first byte of each part within a sample, and the byte after its last.
        """
        is_missing = np.array(self._parts_cache.are_absent(_part_keys(ids, byte_ranges)), bool)
        is_missing[is_missing] = self.lacks(ids[is_missing])
        return is_missing

    def part_costs_by_chunk(
        self, ids: Int64, byte_ranges: Int64, chunk_of: Int64, chunks: int
    ) -> tuple[Int64, Int64, Int64]:
        """Estimate, for each chunk, the cost of reading its samples in part and as a whole.

        Parameters
        ----------
        ids : ndarray of int64, shape (n,)
            Samples of one size, ascending, that are not in memory.
        byte_ranges : ndarray of int64, shape (k, 2)
            The parts to read of each sample.
        chunk_of : ndarray of int64, shape (n,)
            The chunk of each sample, in [0, chunks).
        chunks : int
            The number of chunks.

        Returns
        -------
        cost, nbytes, whole_cost : ndarray of int64, shape (chunks,)
            The cost of reading the parts, their bytes, and the cost of reading whole samples, as
            `npstream.storage.coalesce.transfer_cost` computes costs.
        """
        begins, ends = self._bounds_of(ids)
        part_chunk_of = np.repeat(chunk_of, len(byte_ranges))
        requests, nbytes = _requests_by_chunk(
            part_chunk_of, *_part_bounds(begins, byte_ranges), chunks
        )
        whole_cost = transfer_cost(*_requests_by_chunk(chunk_of, begins, ends, chunks))
        return transfer_cost(requests, nbytes), nbytes, whole_cost

    def parts_cost(self, ids: Int64, byte_ranges: Int64) -> tuple[int, int]:
        """Return the requests, and their bytes, of reading parts of samples in ascending order."""
        ids = ids[self.lacks_parts(ids, byte_ranges)]
        if not ids.size:
            return 0, 0
        begins, _ = self._bounds_of(ids)
        shard_of = np.repeat(self._shard_of(ids), len(byte_ranges))
        *_, lengths = coalesce_ranges(shard_of, *_part_bounds(begins, byte_ranges), self._merging)
        return len(lengths), int(lengths.sum())

    def read_parts(self, ids: Int64, byte_ranges: Int64) -> Bytes:
        """Read parts of samples in ascending order; a row of the result has the parts of a sample.

        Returns
        -------
        ndarray of uint8, shape (n, bytes of the parts of a sample)
        """
        sizes = byte_ranges[:, 1] - byte_ranges[:, 0]
        rows = np.empty((len(ids), int(sizes.sum())), np.uint8)
        keys = _part_keys(ids, byte_ranges)
        absent = []
        cached, samples = self._parts_cache.get(keys), self._samples_cache.get(ids.tolist())
        for k, (part, sample) in enumerate(zip(cached, samples, strict=True)):
            if part is None and sample is not None:
                part = b"".join(sample[begin:end] for begin, end in byte_ranges.tolist())
            if part is None:
                absent.append(k)
            else:
                rows[k] = np.frombuffer(part, np.uint8)
        if absent:
            out = (
                rows
                if len(absent) == len(rows)
                else np.empty((len(absent), rows.shape[1]), np.uint8)
            )
            self._is_first_read = False
            self._fetch_parts(ids[absent], byte_ranges, out)
            if out is not rows:
                rows[absent] = out
            # Put only the last parts that fit: the cache would evict all earlier ones at once.
            max_entries = PARTS_CACHE_BYTES // (ENTRY_OVERHEAD + rows.shape[1])
            last = absent[max(len(absent) - max_entries, 0) :]
            self._parts_cache.put([keys[k] for k in last], [rows[k].tobytes() for k in last])
        return rows

    def _fetch_parts(self, ids: Int64, byte_ranges: Int64, out: Bytes) -> None:
        """Fetch parts of samples in ascending order into `out`."""
        shards, shard_of = self._shards, self._shard_of(ids)
        begins, ends = self._bounds_of(ids)
        rows = ids - shards.index.starts[shard_of]
        for run in _shard_slices(shard_of):
            shards.check_bounds(int(shard_of[run.start]), rows[run], begins[run], ends[run])
        file_of = np.repeat(shard_of, len(byte_ranges))
        spans = _part_bounds(begins, byte_ranges)
        fill_coalesced(self._store, self._name, file_of, *spans, self._merging, out.reshape(-1))

    def _shard_of(self, ids: Int64) -> Int64:
        return np.searchsorted(self._shards.index.starts, ids, side="right") - 1

    def _bounds_of(self, ids: Int64) -> tuple[Int64, Int64]:
        """Return where samples of one size begin and end in their shards."""
        index, shard_of = self._shards.index, self._shard_of(ids)
        stride = self._files.strides[index.schema_ids[shard_of]]
        # The samples are the last bytes of a shard, so count from its end.
        begins = index.nbytes[shard_of] - (index.starts[shard_of + 1] - ids) * stride
        return begins, begins + stride

    def _known_bounds(self, ids: Int64, shard_of: Int64) -> tuple[Int64, Int64, Bools, Bools]:
        """Return where ascending samples begin and end, if no request is needed for that.

        Returns
        -------
        begins, ends : ndarray of int64, shape (n,)
        is_known, is_cached : ndarray of bool, shape (n,)
            True where the bounds are known, and True where they come from the offsets cache.
        """
        begins, ends = np.empty((2, len(ids)), np.int64)
        rows = ids - self._shards.index.starts[shard_of]
        needs_offsets = np.zeros(len(ids), bool)
        for run in _shard_slices(shard_of):
            bounds = self._files.row_bounds(int(shard_of[run.start]), rows[run])
            if bounds is None:
                needs_offsets[run] = True
            else:
                begins[run], ends[run] = bounds
        is_cached = np.zeros(len(ids), bool)
        if needs_offsets.any():
            begins[needs_offsets], ends[needs_offsets], is_cached[needs_offsets] = (
                self._offsets.look_up(shard_of[needs_offsets], rows[needs_offsets])
            )
        return begins, ends, ~needs_offsets | is_cached, is_cached

    def _fetch(self, ids: Int64, shard_of: Int64) -> list[bytes]:
        """Fetch samples in ascending order, each with its guard bytes; see `text.guard_nbytes`."""
        begins, ends, is_known, is_cached = self._known_bounds(ids, shard_of)
        if not is_known.all():
            is_unknown = ~is_known
            begins[is_unknown], ends[is_unknown] = self._read_offsets(
                ids[is_unknown], shard_of[is_unknown]
            )
        # Cached offsets may be outdated: their shards may have been replaced since.
        cached = np.flatnonzero(is_cached)
        try:
            parts = self._fetch_at(ids, shard_of, begins, ends)
        except StorageError:
            self._evict_offsets(ids[cached], shard_of[cached])
            raise
        wrong = cached[[not self._is_sample(shard_of[k], parts[k]) for k in cached]]
        if wrong.size:
            ids, shard_of = ids[wrong], shard_of[wrong]
            self._evict_offsets(ids, shard_of)
            bounds = self._read_offsets(ids, shard_of)
            for k, part in zip(wrong, self._fetch_at(ids, shard_of, *bounds), strict=True):
                parts[k] = part
        return parts

    def _evict_offsets(self, ids: Int64, shard_of: Int64) -> None:
        self._offsets.evict(shard_of, ids - self._shards.index.starts[shard_of])

    def _read_offsets(self, ids: Int64, shard_of: Int64) -> tuple[Int64, Int64]:
        return self._offsets.read(shard_of, ids - self._shards.index.starts[shard_of])

    def _fetch_at(self, ids: Int64, shard_of: Int64, begins: Int64, ends: Int64) -> list[bytes]:
        """Fetch samples in ascending order; raise FormatError if their bounds are impossible."""
        shards = self._shards
        rows = ids - shards.index.starts[shard_of]
        for run in _shard_slices(shard_of):
            shards.check_bounds(int(shard_of[run.start]), rows[run], begins[run], ends[run])
        overlaps = (shard_of[1:] == shard_of[:-1]) & (begins[1:] < ends[:-1])
        if overlaps.any():
            sample = int(ids[1 + overlaps.argmax()])
            shards.raise_damaged(sample, "its offsets do not fit the shard")
        begins = begins - shards.guard_nbytes[shard_of]
        return read_coalesced(self._store, self._name, shard_of, begins, ends, self._merging)

    def _name(self, shard: int) -> str:
        return self._shards.index.files(shard).data.name

    def _is_sample(self, shard: int, part: bytes) -> bool:
        """Return True if bytes, with their guard, look like a sample of a shard."""
        schema = self._shards.index.schema_ids[shard]
        layout = self._shards.layouts[schema]
        if layout is None:
            return text.is_complete_line(self._shards.index.schemas[schema], part)
        return mds.has_consistent_sizes(layout, part)


def _part_keys(ids: Int64, byte_ranges: Int64) -> list[tuple[int, bytes]]:
    """Return the cache key of each sample's parts."""
    ranges = byte_ranges.tobytes()
    return [(sample, ranges) for sample in ids.tolist()]


def _part_bounds(begins: Int64, byte_ranges: Int64) -> tuple[Int64, Int64]:
    """Return where the parts of samples begin and end, given where the samples begin."""
    first, stop = byte_ranges.T
    return (begins[:, None] + first).ravel(), (begins[:, None] + stop).ravel()


def _requests_by_chunk(
    chunk_of: Int64, begins: Int64, ends: Int64, chunks: int
) -> tuple[Int64, Int64]:
    """Return the number of requests for byte ranges of each chunk, and their bytes."""
    if not len(chunk_of):
        return np.zeros(chunks, np.int64), np.zeros(chunks, np.int64)
    first_ranges, *_, lengths = coalesce_ranges(chunk_of, begins, ends, Merging(MAX_SAMPLE_GAP))
    requests = np.bincount(chunk_of[first_ranges], minlength=chunks)
    nbytes = np.zeros(chunks, np.int64)
    np.add.at(nbytes, chunk_of[first_ranges], lengths)
    return requests, nbytes


def _shard_slices(shard_of: Int64) -> list[slice]:
    """Return a slice for each shard of ascending samples."""
    edges = np.flatnonzero(shard_of[1:] != shard_of[:-1]) + 1
    return [slice(a, b) for a, b in pairwise([0, *edges.tolist(), len(shard_of)])]


@dataclass(frozen=True, slots=True)
class OffsetRuns:
    """Runs of rows whose offsets are read, ascending.

    Run k has the rows ``first[k]`` to ``stop[k]`` of shard ``shard_of[k]``. ``keys`` are the cache
    keys of the runs; None for runs of a single row, which are not cached.

    The file begins with the number of rows and the offsets, as uint32. Row i has the offsets i and
    i + 1.
    """

    shard_of: Int64
    first: Int64
    stop: Int64
    keys: Int64 | None

    @property
    def begins(self) -> Int64:
        """Where the offsets of each run begin in the shard's file."""
        return 4 + 4 * self.first

    @property
    def ends(self) -> Int64:
        """Where the offsets of each run end in the shard's file, with the end of the last row."""
        return 4 + 4 * (self.stop + 1)


class OffsetsCache:
    """Reads the offsets of samples that vary in size, and caches the last runs in memory.

    Parameters
    ----------
    shards : LocalShards
    store : RemoteStore
    """

    def __init__(self, shards: LocalShards, store: RemoteStore) -> None:
        self._shards = shards
        self._store = store
        self._cache = LRUCache(OFFSETS_CACHE_BYTES)

    def look_up(self, shard_of: Int64, rows: Int64) -> tuple[Int64, Int64, Bools]:
        """Return where ascending rows begin and end, and True for rows that are cached."""
        begins, ends = np.empty((2, len(rows)), np.int64)
        keys, _, run_of = _group_by_run(shard_of, rows)
        runs = self._cache.get(keys.tolist())
        is_cached = np.array([run is not None for run in runs], bool)[run_of]
        if is_cached.any():
            parts = [b"" if run is None else run for run in runs]
            begins[is_cached], ends[is_cached] = _look_up_bounds(
                parts, _first_row(keys), run_of[is_cached], rows[is_cached]
            )
        return begins, ends, is_cached

    def evict(self, shard_of: Int64, rows: Int64) -> None:
        """Remove the runs of some rows from the cache."""
        keys, _, _ = _group_by_run(shard_of, rows)
        self._cache.drop(keys.tolist())

    def read(self, shard_of: Int64, rows: Int64) -> tuple[Int64, Int64]:
        """Read where ascending rows begin and end, and cache the runs."""
        runs, run_of = offset_runs(self._shards.index, shard_of, rows)
        merging = self._store.traffic.merging(MAX_OFFSETS_GAP)
        parts = read_coalesced(
            self._store, self._name, runs.shard_of, runs.begins, runs.ends, merging
        )
        if runs.keys is not None:
            for k, part in enumerate(parts):
                self._check(runs, k, part)
            self._cache.put(runs.keys.tolist(), parts)
        return _look_up_bounds(parts, runs.first, run_of, rows)

    def _name(self, shard: int) -> str:
        files = self._shards.index.files(shard)
        return (files.meta or files.data).name

    def _check(self, runs: OffsetRuns, k: int, part: bytes) -> None:
        """Raise FormatError unless all rows of run k lie within the shard, in ascending order.

        Without this check, damaged offsets could return the bytes of another row.
        """
        words = np.frombuffer(part, "<u4").astype(np.int64)
        rows = np.arange(runs.first[k], runs.stop[k])
        self._shards.check_bounds(int(runs.shard_of[k]), rows, words[:-1], words[1:])


def offset_runs(index: Index, shard_of: Int64, rows: Int64) -> tuple[OffsetRuns, Int64]:
    """Return the runs of offsets to read for ascending rows, and the run of each row."""
    keys, first_index, run_of = _group_by_run(shard_of, rows)
    counts = index.starts[shard_of + 1] - index.starts[shard_of]
    first = _first_row(keys)
    stop = np.minimum(first + OFFSETS_RUN_ROWS, counts[first_index])
    runs = OffsetRuns(shard_of[first_index], first, stop, keys)
    sample_bytes = (index.nbytes[shard_of] // counts).sum()
    if len(keys) > 1 and OFFSETS_DIVISOR * (runs.ends - runs.begins).sum() > sample_bytes:
        return OffsetRuns(shard_of, rows, rows + 1, None), np.arange(len(rows))
    return runs, run_of


def _offsets_cost(index: Index, shard_of: Int64, rows: Int64) -> tuple[int, int]:
    """Return the requests for the offsets of ascending rows, and their bytes."""
    runs, _ = offset_runs(index, shard_of, rows)
    *_, lengths = coalesce_ranges(runs.shard_of, runs.begins, runs.ends, Merging(MAX_OFFSETS_GAP))
    return len(lengths), int(lengths.sum())


def _group_by_run(shard_of: Int64, rows: Int64) -> tuple[Int64, Int64, Int64]:
    """Group ascending rows by run.

    Returns the keys of the runs, the index of the first row of each, and the run of each row.
    """
    keys = shard_of << 32 | rows // OFFSETS_RUN_ROWS
    is_first = np.ones(len(keys), bool)
    is_first[1:] = keys[1:] != keys[:-1]
    first_index = np.flatnonzero(is_first)
    return keys[first_index], first_index, np.cumsum(is_first) - 1


def _first_row(keys: Int64) -> Int64:
    """Return the first row of the run of each key."""
    return (keys & 0xFFFFFFFF) * OFFSETS_RUN_ROWS


def _look_up_bounds(
    parts: list[bytes], first: Int64, run_of: Int64, rows: Int64
) -> tuple[Int64, Int64]:
    """Look up where rows begin and end in the offsets of their runs."""
    words = np.frombuffer(b"".join(parts), "<u4")
    lengths = np.array([len(part) // 4 for part in parts], np.int64)
    indices = (np.cumsum(lengths) - lengths - first)[run_of] + rows
    return words[indices].astype(np.int64), words[indices + 1].astype(np.int64)
