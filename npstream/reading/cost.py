"""What reading a view would cost: shards, requests and bytes that are not here yet.

Tested in tests/shards/test_remote.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from npstream._core.arguments import quantity, size_text
from npstream._core.progress import progress
from npstream.cache.downloads import MAX_REQUEST
from npstream.cache.ranges import CachedRanges
from npstream.errors import CostError
from npstream.reading.plan import Plan
from npstream.shards.readahead import RemoteJob, run_as_completed
from npstream.storage.remote import WHOLE_REQUEST

if TYPE_CHECKING:
    from npstream._core.typing import Bools, Int64, Span
    from npstream.indexing.selection import Selection
    from npstream.reading.source import Source
    from npstream.shards.remote import RemoteShards

COUNT_ROWS = 1 << 20
"""Samples that are counted at once."""

JOB_CHUNKS = 8
"""Chunks that are fetched together."""

Transfer = tuple[int, int]
"""Bytes, and how many of them one request brings."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What reading a view would fetch. Made by `Dataset.explain`.

    Attributes
    ----------
    samples : int
        Samples of the view.
    shards, chunks : int
        Shards and chunks that they lie in.
    cached : int
        Chunks of these that are in the cache, or local.
    requests : int
        Requests to the store.
    nbytes : int
        Bytes that these bring: estimated from the average where samples vary in size, and it is
        not known yet by how much.

    Examples
    --------
    >>> cost = getfixture("example").explain()
    >>> cost.samples, cost.nbytes
    (3, 0)
    """

    samples: int
    shards: int
    chunks: int
    cached: int
    requests: int
    nbytes: int

    def __str__(self) -> str:
        return (
            f"{quantity(self.samples, 'sample')} in {quantity(self.chunks, 'chunk')} of "
            f"{quantity(self.shards, 'shard')}; in cache: {quantity(self.cached, 'chunk')}; the "
            f"rest takes {quantity(self.requests, 'request')} for {size_text(self.nbytes)}"
        )


class ChunkUsage:
    """What a view has of one dataset: how many samples in which chunks, and between which."""

    __slots__ = ("_counts", "_starts", "first", "last", "size", "source")

    def __init__(self, source: Source) -> None:
        self.source = source
        self.size = 0
        self.first, self.last = 1 << 62, -1
        self._starts = source.chunk_starts().astype(np.int64)
        self._counts = np.zeros(len(self._starts) - 1, np.int64)

    def add(self, selection: Selection) -> None:
        """Count the samples of a view of the dataset."""
        size = selection.size
        if size and selection.affine is not None:
            start, step = selection.affine
            ends = start, start + step * (size - 1)
            self._extend(min(ends), max(ends))
            first, last = np.searchsorted(self._starts, [min(ends), max(ends)], side="right")
            counts = _affine_counts(self._starts[first - 1 : last + 1], start, step, size)
            self._counts[first - 1 : last] += counts
        elif size:
            for begin in range(0, size, COUNT_ROWS):
                ids = selection.ids(begin, begin + COUNT_ROWS)
                self._extend(int(ids.min()), int(ids.max()))
                chunk = np.searchsorted(self._starts, ids, side="right") - 1
                self._counts += np.bincount(chunk, minlength=len(self._counts))
        self.size += size

    def _extend(self, first: int, last: int) -> None:
        self.first, self.last = min(self.first, first), max(self.last, last)

    def chunks(self) -> tuple[Int64, Int64, Int64]:
        """Return the chunks that are touched: their shards, numbers there, and samples."""
        touched = np.flatnonzero(self._counts)
        of_shards = self.source.index.starts
        shards = np.searchsorted(of_shards, self._starts[touched], side="right") - 1
        numbers = touched - np.searchsorted(self._starts, of_shards[shards])
        return shards, numbers, self._counts[touched]

    def reads_sidecar(self, plan: Plan) -> bool:
        """Tell whether the side-car is read, and not the samples."""
        return self.source.reads_sidecar(plan, self.first, self.last, self.size)


def chunk_usages(source: Source, selection: Selection) -> list[ChunkUsage]:
    """Return what a view has of each dataset that it touches."""
    found: dict[int, ChunkUsage] = {}
    for part, piece in source.split_by_dataset(selection):
        if id(part) not in found:
            found[id(part)] = ChunkUsage(part)
        found[id(part)].add(piece)
    return list(found.values())


def explain(source: Source, selection: Selection, plan: Plan) -> Cost:
    """Return what loading a view at once would cost."""
    plan = plan.stored
    if plan.is_empty:
        return Cost(selection.size, 0, 0, 0, 0, 0)
    costs = []
    for usage in chunk_usages(source, selection):
        if usage.reads_sidecar(plan):
            costs.append(_sidecar_cost(usage, plan.fields[0].name))
        else:
            costs.append(_shards_cost(usage, source, selection, plan))
    return _total_cost(costs)


def _total_cost(costs: list[Cost]) -> Cost:
    return Cost(*(sum(getattr(cost, f.name) for cost in costs) for f in fields(Cost)))


def _sidecar_cost(usage: ChunkUsage, column: str) -> Cost:
    """Return what loading a column out of the side-car costs."""
    files, spans = _column_files(usage, column)
    sizes = [] if files is None else files.request_bytes(spans)
    return Cost(usage.size, 0, 0, 0, len(sizes), sum(sizes))


def _column_files(usage: ChunkUsage, column: str) -> tuple[CachedRanges | None, list[Span]]:
    """Return the parts of files that hold a column of a view, and what reads them from a store."""
    remote = usage.source.remote
    assert remote is not None
    assert remote.files.sidecar is not None
    sidecar = remote.files.sidecar
    files = sidecar.store if isinstance(sidecar.store, CachedRanges) else None
    return files, sidecar.column_spans(column, usage.first, usage.last + 1)


def _shards_cost(
    usage: ChunkUsage, source: Source, selection: Selection, plan: Plan | None
) -> Cost:
    """Return what loading that part of a view of a source out of its shards costs."""
    shards, chunks, counts = usage.chunks()
    touched, remote = len(np.unique(shards)), usage.source.remote
    if remote is None:
        return Cost(usage.size, touched, len(chunks), len(chunks), 0, 0)
    found = list(zip(shards.tolist(), chunks.tolist(), strict=True))
    here = np.array([remote.files.is_cached(*chunk) for chunk in found], bool)
    is_dense = np.array(
        [
            remote.is_dense(chunk[0], count) or remote.is_hot(chunk)
            for chunk, count in zip(found, counts.tolist(), strict=True)
        ],
        bool,
    )
    requests, nbytes = 0, 0
    in_parts = np.zeros(len(found), bool)
    for runs, of_schema in _byte_ranges_by_schema(remote, plan, shards):
        ids = _ids_in(usage, source, selection, shards, chunks, ~here & of_schema)
        shard_of = np.searchsorted(remote.index.starts, ids, side="right") - 1
        ids = ids[remote.is_read_in_parts(ids, shard_of, runs)]
        in_parts |= np.isin(shards * remote.files.max_chunks + chunks, remote.chunk_keys(ids))
        more = remote.point_reader.parts_cost(ids, runs)
        requests, nbytes = requests + more[0], nbytes + more[1]
    is_dense &= ~in_parts
    # What the cache cannot hold at once is read sample by sample.
    sizes = np.where(is_dense, [remote.chunk_bytes(shard) for shard, _ in found], 0)
    limit = remote.files.cache.limit
    if limit is not None and remote.verify is not True:
        is_dense &= (np.cumsum(sizes) <= limit) | usage.source.index.compressed[shards]
    dense, sparse = ~here & is_dense, ~(here | is_dense | in_parts)
    ids = _ids_in(usage, source, selection, shards, chunks, sparse)
    for more in (_chunks_cost(remote, shards[dense], chunks[dense]), remote.point_reader.cost(ids)):
        requests, nbytes = requests + more[0], nbytes + more[1]
    return Cost(usage.size, touched, len(chunks), int(here.sum()), requests, nbytes)


def _byte_ranges_by_schema(
    remote: RemoteShards, plan: Plan | None, shards: Int64
) -> Iterator[tuple[Int64, Bools]]:
    """Yield the parts of samples that may be read instead of all, and the shards of these."""
    if plan is None:
        return
    schema_ids = remote.index.schema_ids[shards]
    for schema in np.unique(schema_ids).tolist():
        # Not the plan's own numbers of schemas, which are those of a mixture.
        partial_read = Plan(plan.fields).partial_read(schema, remote.layouts[schema])
        if partial_read is not None:
            yield partial_read.byte_ranges, schema_ids == schema


def require_affordable(source: Source, selection: Selection, what: str, plan: Plan | None) -> None:
    """Refuse a read of stored columns that would fetch more than the source's limit.

    Raises
    ------
    CostError
        With what it would cost, and the ways on.
    """
    if plan is not None and plan.is_empty:
        return
    limit = source.limit
    apart = {
        part for part in source.remotes if plan is None or part.sidecar_column_name(plan) is None
    }
    if limit is None or _max_bytes(source, selection, apart) <= limit:
        return
    found = chunk_usages(source, selection)
    cost = _total_cost(
        [_shards_cost(usage, source, selection, plan) for usage in found if usage.source in apart]
    )
    if cost.nbytes > limit:
        raise CostError(
            f"{what} would read {cost}, more than implicit_read_limit={size_text(limit)}: read "
            "with .load() or fetch ahead with .prefetch(), which say what they want; take a "
            "sample of the rows; build the dataset's side-car (npstream.build_index), which holds "
            "small columns; or open with implicit_read_limit=None"
        )


def prefetch(source: Source, selection: Selection, plan: Plan) -> None:
    """Fetch what reading a view takes into the cache: chunks, and columns of the side-car.

    Raises
    ------
    ValueError
        If the cache may not hold it all at once.
    """
    plan = plan.stored
    if plan.is_empty:
        return
    jobs: list[RemoteJob] = []
    caches, needed = {}, Counter[str]()
    for usage in chunk_usages(source, selection):
        remote = usage.source.remote
        if remote is None:
            continue
        cache = remote.files.cache
        caches[cache.directory] = cache
        for field in plan.fields:
            alone = Plan([field])
            if usage.size and usage.reads_sidecar(alone):
                files, spans = _column_files(usage, field.name)
                if files is not None:
                    needed[cache.directory] += sum(nbytes for _, _, nbytes in spans)
                    jobs.append((remote, partial(remote.fetch_column, files, spans)))
        if usage.reads_sidecar(plan):
            continue
        shards, chunks, _ = usage.chunks()
        found = list(zip(shards.tolist(), chunks.tolist(), strict=True))
        absent = [chunk for chunk in found if not remote.files.is_readable(*chunk)]
        needed[cache.directory] += sum(remote.chunk_bytes(shard) for shard, _ in found)
        groups = [absent[at : at + JOB_CHUNKS] for at in range(0, len(absent), JOB_CHUNKS)]
        jobs += [(remote, partial(remote.fetch, group)) for group in groups]
    for directory, nbytes in needed.items():
        caches[directory].require(nbytes)
    with closing(run_as_completed(jobs)) as arrivals:
        for _ in progress(jobs, "fetching"):
            next(arrivals)


def _affine_counts(starts: Int64, start: int, step: int, size: int) -> Int64:
    """Return how many of ``start + k * step``, for k below `size`, lie in each chunk."""
    if step < 0:
        start, step = start + step * (size - 1), -step
    before = np.clip(-((start - starts) // step), 0, size)
    return np.diff(before)


def _max_bytes(source: Source, selection: Selection, parts: set[Source]) -> int:
    """Return a bound, quickly, of the bytes that a view may fetch of some datasets."""
    if selection.affine is None:
        return sum(part.index.total for part in parts)
    most = 0
    for part, piece in source.split_by_dataset(selection):
        if part in parts:
            most += part.index.total
            if piece.affine is not None:
                rows = abs(piece.affine[1]) * piece.size
                most += min(
                    0, part.estimate_bytes(rows) + 2 * part.index.chunk_bytes - part.index.total
                )
    return most


def _chunks_cost(remote: RemoteShards, shards: Int64, chunks: Int64) -> tuple[int, int]:
    """Return the requests for chunks, and their bytes."""
    costs = []
    for shard in np.unique(shards).tolist():
        if remote.index.compressed[shard]:
            costs += _compressed_transfers(remote, shard)
        else:
            costs += _plain_transfers(remote, shard, chunks[shards == shard].tolist())
    requests = sum(-(-nbytes // most) for nbytes, most in costs)
    return requests, sum(nbytes for nbytes, _ in costs)


def _compressed_transfers(remote: RemoteShards, shard: int) -> list[Transfer]:
    """Return what a compressed shard takes."""
    files = remote.index.files(shard)
    stored = [files.zip_data, files.zip_meta or files.meta]
    return [(file.nbytes, WHOLE_REQUEST) for file in stored if file is not None]


def _plain_transfers(remote: RemoteShards, shard: int, chunks: list[int]) -> list[Transfer]:
    """Return what chunks of a shard take, and what stands before its samples, if it is not here."""
    meta, begin = remote.index.files(shard).meta, remote.files.recorded_begin(shard)
    pieces = [1 + chunk for chunk in chunks]
    sizes = [begin or 0, *remote.files.chunk_sizes(shard).tolist()]
    if remote.files.is_ready(shard):
        return _merged_transfers(pieces, sizes)
    if meta is not None:
        return [(meta.nbytes, MAX_REQUEST), *_merged_transfers(pieces, sizes)]
    if remote.files.is_fixed(shard):
        return _merged_transfers([0, *pieces], sizes)
    offsets = 4 * (remote.files.sample_count(shard) + 2)
    head = [(4, 4), (offsets, MAX_REQUEST)] if begin is None else [(begin, MAX_REQUEST)]
    return head + _merged_transfers(pieces, sizes)


def _merged_transfers(pieces: list[int], sizes: list[int]) -> list[Transfer]:
    """Return what pieces of a shard, rising, take when neighbors are fetched together."""
    runs: list[int] = []
    last = None
    for piece in pieces:
        if piece - 1 == last and runs[-1] + sizes[piece] <= MAX_REQUEST:
            runs[-1] += sizes[piece]
        else:
            runs.append(sizes[piece])
        last = piece
    return [(nbytes, MAX_REQUEST) for nbytes in runs]


def _ids_in(
    usage: ChunkUsage,
    source: Source,
    selection: Selection,
    shards: Int64,
    chunks: Int64,
    which: Bools,
) -> Int64:
    """Return the samples of a view that lie in some of a dataset's chunks, rising."""
    if not which.any():
        return np.empty(0, np.int64)
    pieces = (piece for part, piece in source.split_by_dataset(selection) if part is usage.source)
    return _samples_in(usage.source, pieces, shards[which], chunks[which])


def _samples_in(source: Source, pieces: Iterable[Selection], shards: Int64, chunks: Int64) -> Int64:
    """Return the samples of a dataset's views that lie in some chunks, rising."""
    starts = source.chunk_starts().astype(np.int64)
    wanted = np.searchsorted(starts, source.index.starts[shards]) + chunks
    found = []
    for piece in pieces:
        for begin in range(0, piece.size, COUNT_ROWS):
            ids = piece.ids(begin, begin + COUNT_ROWS)
            found.append(ids[np.isin(np.searchsorted(starts, ids, side="right") - 1, wanted)])
    return np.unique(np.concatenate(found))
