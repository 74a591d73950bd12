"""Reading single samples out of an object store, without the chunks that they lie in.

Where samples vary in size, their offsets are read first: if that takes few bytes, in runs of rows,
each of the same rows always. The last runs are kept, so most samples that are read later are found
without a request.
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
from npstream.storage.coalesce import fill_merged, merged, read_merged, transfer_cost

if TYPE_CHECKING:
    from npstream.formats.index import Index
    from npstream.shards.local import LocalShards
    from npstream.shards.residency import RemoteFiles
    from npstream.storage.local import Store
    from npstream.storage.remote import RemoteStore

MAX_SAMPLE_GAP = 1 << 9
"""Bytes between two samples that are fetched rather than skipped."""

SAMPLES_CACHE_BYTES = 1 << 26
"""Bytes of samples that are kept in memory, so that reading them again costs nothing."""

PARTS_CACHE_BYTES = 1 << 24
"""Bytes of parts of samples that are kept in memory."""

BUDGET_BYTES = 1 << 24
"""Bytes of samples that are read exactly while their chunks are coming, rather than waited for."""

BUDGET_SAMPLES = 1 << 10
"""And how many samples these may be."""

SPARSE_FRACTION = 32
"""After the first read, only samples that are one part in so many of their chunk, or less."""

OFFSETS_RUN_ROWS = 1 << 12
"""Rows whose offsets are read together. Their 16 KiB take a server hardly longer than 8 bytes."""

OFFSETS_FRACTION = 4
"""Several runs are read if they take one part in so many of the bytes of the samples, or less."""

MAX_OFFSETS_GAP = 1 << 14
"""Bytes between offsets that are fetched rather than skipped."""

OFFSETS_CACHE_BYTES = 1 << 24
"""Bytes of offsets that are kept in memory."""


class PointReader:
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
        self._kept = Recent(SAMPLES_CACHE_BYTES)
        self._parts = Recent(PARTS_CACHE_BYTES)
        self._offsets = OffsetsCache(shards, store)
        self._budget_bytes = self._budget_samples = 0
        self._is_first_read = False

    def reset_budget(self) -> None:
        """Let the next samples be read exactly, also while their chunks are coming."""
        self._budget_bytes, self._budget_samples, self._is_first_read = (
            BUDGET_BYTES,
            BUDGET_SAMPLES,
            True,
        )

    def within_budget(self, samples: int, nbytes: int, chunk: int) -> bool:
        """Tell whether samples whose chunk is coming are read exactly, and not waited for.

        Parameters
        ----------
        samples, nbytes : int
            How many they are, and their bytes.
        chunk : int
            The bytes of their chunk.
        """
        if not (self._is_first_read or SPARSE_FRACTION * nbytes <= chunk):
            return False
        if self._budget_bytes < nbytes or self._budget_samples < samples:
            return False
        self._budget_bytes -= nbytes
        self._budget_samples -= samples
        return True

    def read(self, ids: Int64, shard_of: Int64) -> tuple[Int64, Int64, list[object]]:
        """Return where samples lie in memory, their lengths, and what holds them there."""
        wanted, first, which = np.unique(ids, return_index=True, return_inverse=True)
        shards = shard_of[first]
        parts = self._kept.get(wanted.tolist())
        absent = np.array([k for k, part in enumerate(parts) if part is None], np.int64)
        if absent.size:
            self._is_first_read = False
            fetched = self._fetch(wanted[absent], shards[absent])
            self._kept.put(wanted[absent].tolist(), fetched)
            for k, part in zip(absent.tolist(), fetched, strict=True):
                parts[k] = part
        bodies = [part for part in parts if part is not None]
        address, nbytes, arena = concatenate_parts(bodies, self._shards.guards[shards])
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
        return np.array(self._kept.missing(ids.tolist()), bool)

    def cost(self, ids: Int64) -> tuple[int, int]:
        """Return the requests that reading samples, rising, takes, and their bytes, about."""
        ids = ids[~np.isin(ids, np.array(self._kept.keys(), np.int64))]
        if not ids.size:
            return 0, 0
        index = self._shards.index
        shard_of = np.searchsorted(index.starts, ids, side="right") - 1
        rows = ids - index.starts[shard_of]
        begins, ends, is_known, _ = self._known_bounds(ids, shard_of)
        estimated = np.isin(shard_of, shard_of[~is_known])  # so that all of a shard are in order
        sizes = index.nbytes[shard_of] // (index.starts[shard_of + 1] - index.starts[shard_of])
        begins = np.where(estimated, rows * sizes, begins - self._shards.guards[shard_of])
        ends = np.where(estimated, begins + sizes, ends)
        *_, lengths = merged(shard_of, begins, ends, MAX_SAMPLE_GAP)
        requests, nbytes = len(lengths), int(lengths.sum())
        if not is_known.all():
            more = _offsets_cost(index, shard_of[~is_known], rows[~is_known])
            requests, nbytes = requests + more[0], nbytes + more[1]
        return requests, nbytes

    # Parts of samples of one size

    def lacks_parts(self, ids: Int64, runs: Int64) -> Bools:
        """Return of which samples some parts are not in memory.

        Parameters
        ----------
        ids : ndarray of int64, shape (n,)
        runs : ndarray of int64, shape (k, 2)
            The first byte in a sample of each part, and the one after its last.
        """
        lacks = np.array(self._parts.missing(_part_keys(ids, runs)), bool)
        lacks[lacks] = self.lacks(ids[lacks])
        return lacks

    def part_costs_by_chunk(
        self, ids: Int64, runs: Int64, chunk_of: Int64, chunks: int
    ) -> tuple[Int64, Int64, Int64]:
        """Return what it takes to read samples of some chunks in part, and as a whole.

        Parameters
        ----------
        ids : ndarray of int64, shape (n,)
            Samples of one size, rising, that are not in memory.
        runs : ndarray of int64, shape (k, 2)
            The bytes in each sample to read.
        chunk_of : ndarray of int64, shape (n,)
            The chunk that each sample lies in, from 0 up to `chunks`.
        chunks : int

        Returns
        -------
        cost, nbytes, whole : ndarray of int64, shape (chunks,)
            The cost of reading the parts, their bytes, and the cost of reading the samples.
        """
        begins, ends = self._bounds_of(ids)
        file_of = np.repeat(chunk_of, len(runs))
        requests, nbytes = _requests_per_file(file_of, *_part_bounds(begins, runs), chunks)
        whole = transfer_cost(*_requests_per_file(chunk_of, begins, ends, chunks))
        return transfer_cost(requests, nbytes), nbytes, whole

    def parts_cost(self, ids: Int64, runs: Int64) -> tuple[int, int]:
        """Return the requests that reading parts of samples, rising, takes, and their bytes."""
        ids = ids[self.lacks_parts(ids, runs)]
        if not ids.size:
            return 0, 0
        begins, _ = self._bounds_of(ids)
        shard_of = np.repeat(self._shard_of(ids), len(runs))
        *_, lengths = merged(shard_of, *_part_bounds(begins, runs), MAX_SAMPLE_GAP)
        return len(lengths), int(lengths.sum())

    def read_parts(self, ids: Int64, runs: Int64) -> Bytes:
        """Return parts of samples, rising: for each sample its parts, end to end.

        Returns
        -------
        ndarray of uint8, shape (n, bytes of the parts of a sample)
        """
        sizes = runs[:, 1] - runs[:, 0]
        rows = np.empty((len(ids), int(sizes.sum())), np.uint8)
        keys = _part_keys(ids, runs)
        absent = []
        found, samples = self._parts.get(keys), self._kept.get(ids.tolist())
        for k, (part, sample) in enumerate(zip(found, samples, strict=True)):
            if part is None and sample is not None:
                part = b"".join(sample[begin:end] for begin, end in runs.tolist())
            if part is None:
                absent.append(k)
            else:
                rows[k] = np.frombuffer(part, np.uint8)
        if absent:
            fetched = rows if len(absent) == len(rows) else rows[absent]
            self._is_first_read = False
            self._fetch_parts(ids[absent], runs, fetched)
            if fetched is not rows:
                rows[absent] = fetched
            most = PARTS_CACHE_BYTES // (EACH + rows.shape[1])
            last = absent[max(len(absent) - most, 0) :]
            self._parts.put([keys[k] for k in last], [rows[k].tobytes() for k in last])
        return rows

    def _fetch_parts(self, ids: Int64, runs: Int64, out: Bytes) -> None:
        """Fetch parts of samples, rising."""
        shards, shard_of = self._shards, self._shard_of(ids)
        begins, ends = self._bounds_of(ids)
        rows = ids - shards.index.starts[shard_of]
        for run in _shard_slices(shard_of):
            shards.check_bounds(int(shard_of[run.start]), rows[run], begins[run], ends[run])
        file_of = np.repeat(shard_of, len(runs))
        spans = _part_bounds(begins, runs)
        fill_merged(self._store, self._name, file_of, *spans, MAX_SAMPLE_GAP, out.reshape(-1))

    def _shard_of(self, ids: Int64) -> Int64:
        return np.searchsorted(self._shards.index.starts, ids, side="right") - 1

    def _bounds_of(self, ids: Int64) -> tuple[Int64, Int64]:
        """Return where samples of one size begin and end in their shards."""
        index, shard_of = self._shards.index, self._shard_of(ids)
        stride = self._files.strides[index.schema_ids[shard_of]]
        begins = index.nbytes[shard_of] - (index.starts[shard_of + 1] - ids) * stride
        return begins, begins + stride

    def _known_bounds(self, ids: Int64, shard_of: Int64) -> tuple[Int64, Int64, Bools, Bools]:
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
        for run in _shard_slices(shard_of):
            found = self._files.row_bounds(int(shard_of[run.start]), rows[run])
            if found is None:
                unknown[run] = True
            else:
                begins[run], ends[run] = found
        was_read = np.zeros(len(ids), bool)
        if unknown.any():
            begins[unknown], ends[unknown], was_read[unknown] = self._offsets.look_up(
                shard_of[unknown], rows[unknown]
            )
        return begins, ends, ~unknown | was_read, was_read

    def _fetch(self, ids: Int64, shard_of: Int64) -> list[bytes]:
        """Fetch samples, rising, each with its guard."""
        begins, ends, is_known, was_read = self._known_bounds(ids, shard_of)
        if not is_known.all():
            unknown = ~is_known
            begins[unknown], ends[unknown] = self._read_offsets(ids[unknown], shard_of[unknown])
        # Since the others were read, their shards may have been replaced by another version.
        old = np.flatnonzero(was_read)
        try:
            parts = self._fetch_at(ids, shard_of, begins, ends)
        except StorageError:
            self._evict_offsets(ids[old], shard_of[old])
            raise
        wrong = old[[not self._is_sample(shard_of[k], parts[k]) for k in old]]
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
        """Fetch samples, rising, from where they lie, unless that cannot be."""
        shards = self._shards
        rows = ids - shards.index.starts[shard_of]
        for run in _shard_slices(shard_of):
            shards.check_bounds(int(shard_of[run.start]), rows[run], begins[run], ends[run])
        falls = (shard_of[1:] == shard_of[:-1]) & (begins[1:] < ends[:-1])
        if falls.any():
            shards.raise_damaged(int(ids[1 + falls.argmax()]), "its offsets do not fit the shard")
        begins = begins - shards.guards[shard_of]
        return read_merged(self._store, self._name, shard_of, begins, ends, MAX_SAMPLE_GAP)

    def _name(self, shard: int) -> str:
        return self._shards.index.files(shard).data.name

    def _is_sample(self, shard: int, part: bytes) -> bool:
        """Tell whether bytes, with their guard, look like a sample of a shard."""
        schema = self._shards.index.schema_ids[shard]
        layout = self._shards.layouts[schema]
        if layout is None:
            return text.is_complete_line(self._shards.index.schemas[schema], part)
        return mds.has_consistent_sizes(layout, part)


def _part_keys(ids: Int64, runs: Int64) -> list[tuple[int, bytes]]:
    """Return what the parts of samples are kept by."""
    which = runs.tobytes()
    return [(sample, which) for sample in ids.tolist()]


def _part_bounds(begins: Int64, runs: Int64) -> tuple[Int64, Int64]:
    """Return where the parts of samples begin and end, given where the samples begin."""
    begin, end = runs.T
    return (begins[:, None] + begin).ravel(), (begins[:, None] + end).ravel()


def _requests_per_file(
    file_of: Int64, begins: Int64, ends: Int64, files: int
) -> tuple[Int64, Int64]:
    """Return the requests for parts of each of some files, and the bytes that they bring."""
    if not len(file_of):
        return np.zeros(files, np.int64), np.zeros(files, np.int64)
    heads, *_, lengths = merged(file_of, begins, ends, MAX_SAMPLE_GAP)
    requests = np.bincount(file_of[heads], minlength=files)
    nbytes = np.zeros(files, np.int64)
    np.add.at(nbytes, file_of[heads], lengths)
    return requests, nbytes


def _shard_slices(shard_of: Int64) -> list[slice]:
    """Return the runs of samples, rising, that are of one shard."""
    edges = np.flatnonzero(shard_of[1:] != shard_of[:-1]) + 1
    return [slice(a, b) for a, b in pairwise([0, *edges.tolist(), len(shard_of)])]


@dataclass(frozen=True, slots=True)
class OffsetRuns:
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


class OffsetsCache:
    """The offsets of shards whose samples vary in size.

    Parameters
    ----------
    shards : LocalShards
    store : Store
    """

    def __init__(self, shards: LocalShards, store: Store) -> None:
        self._shards = shards
        self._store = store
        self._kept = Recent(OFFSETS_CACHE_BYTES)

    def look_up(self, shard_of: Int64, rows: Int64) -> tuple[Int64, Int64, Bools]:
        """Return where rows, rising, begin and end, and for which of them that is in memory."""
        begins, ends = np.empty((2, len(rows)), np.int64)
        numbers, _, run_of = _group_by_run(shard_of, rows)
        found = self._kept.get(numbers.tolist())
        here = np.array([part is not None for part in found], bool)[run_of]
        if here.any():
            parts = [b"" if part is None else part for part in found]
            first = _first_row(numbers)
            begins[here], ends[here] = _look_up_bounds(parts, first, run_of[here], rows[here])
        return begins, ends, here

    def evict(self, shard_of: Int64, rows: Int64) -> None:
        """Keep the offsets of some rows no longer."""
        numbers, _, _ = _group_by_run(shard_of, rows)
        self._kept.drop(numbers.tolist())

    def read(self, shard_of: Int64, rows: Int64) -> tuple[Int64, Int64]:
        """Read where rows, rising, begin and end."""
        runs, run_of = offset_runs(self._shards.index, shard_of, rows)
        parts = read_merged(
            self._store, self._name, runs.shard_of, runs.begins, runs.ends, gap=MAX_OFFSETS_GAP
        )
        if runs.numbers is not None:
            for k, part in enumerate(parts):
                self._check(runs, k, part)
            self._kept.put(runs.numbers.tolist(), parts)
        return _look_up_bounds(parts, runs.first, run_of, rows)

    def _name(self, shard: int) -> str:
        files = self._shards.index.files(shard)
        return (files.meta or files.data).name

    def _check(self, runs: OffsetRuns, k: int, part: bytes) -> None:
        """Raise unless all rows of a run lie within their shard, one after the other.

        Where they do not, a row may be another one than was asked for, and fit all the same.
        """
        words = np.frombuffer(part, "<u4").astype(np.int64)
        rows = np.arange(runs.first[k], runs.stop[k])
        self._shards.check_bounds(int(runs.shard_of[k]), rows, words[:-1], words[1:])


def offset_runs(index: Index, shard_of: Int64, rows: Int64) -> tuple[OffsetRuns, Int64]:
    """Return the runs whose offsets are read for rows, rising, and which one each row is in."""
    numbers, head, run_of = _group_by_run(shard_of, rows)
    counts = index.starts[shard_of + 1] - index.starts[shard_of]
    first = _first_row(numbers)
    runs = OffsetRuns(
        shard_of[head], first, np.minimum(first + OFFSETS_RUN_ROWS, counts[head]), numbers
    )
    nbytes = (index.nbytes[shard_of] // counts).sum()  # of the samples, about
    if len(numbers) > 1 and OFFSETS_FRACTION * (runs.ends - runs.begins).sum() > nbytes:
        return OffsetRuns(shard_of, rows, rows + 1, None), np.arange(len(rows))
    return runs, run_of


def _offsets_cost(index: Index, shard_of: Int64, rows: Int64) -> tuple[int, int]:
    """Return the requests for the offsets of rows, rising, and their bytes."""
    runs, _ = offset_runs(index, shard_of, rows)
    *_, lengths = merged(runs.shard_of, runs.begins, runs.ends, MAX_OFFSETS_GAP)
    return len(lengths), int(lengths.sum())


def _group_by_run(shard_of: Int64, rows: Int64) -> tuple[Int64, Int64, Int64]:
    """Return the numbers of the runs that rows, rising, are in, the first row there, and which."""
    numbers = shard_of << 32 | rows // OFFSETS_RUN_ROWS
    is_first = np.ones(len(numbers), bool)
    is_first[1:] = numbers[1:] != numbers[:-1]
    head = np.flatnonzero(is_first)
    return numbers[head], head, np.cumsum(is_first) - 1


def _first_row(numbers: Int64) -> Int64:
    """Return the first row of runs."""
    return (numbers & 0xFFFFFFFF) * OFFSETS_RUN_ROWS


def _look_up_bounds(
    parts: list[bytes], first: Int64, run_of: Int64, rows: Int64
) -> tuple[Int64, Int64]:
    """Look rows up in the offsets of the runs that they are in."""
    words = np.frombuffer(b"".join(parts), "<u4")
    lengths = np.array([len(part) // 4 for part in parts], np.int64)
    at = (np.cumsum(lengths) - lengths - first)[run_of] + rows
    return words[at].astype(np.int64), words[at + 1].astype(np.int64)
