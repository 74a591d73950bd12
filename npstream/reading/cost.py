"""Provide `explain`, `prefetch` and `unpin`: the cost of reading a view, and its cached chunks.

Tested in tests/shards/test_remote.py.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from npstream._core.arguments import quantity, size_text
from npstream._core.progress import progress
from npstream.cache.downloads import MAX_REQUEST
from npstream.cache.ranges import CachedRanges
from npstream.errors import CostError, StorageError
from npstream.reading.plan import Plan
from npstream.shards.readahead import RemoteJob, run_as_completed
from npstream.storage.remote import READ_REQUEST_BYTES

if TYPE_CHECKING:
    from npstream._core.typing import Bools, Int64, Span
    from npstream.indexing.selection import Selection
    from npstream.reading.source import Source
    from npstream.shards.base import Chunk
    from npstream.shards.remote import RemoteShards

COUNT_ROWS = 1 << 20
"""Samples to count at once."""

CHUNKS_PER_JOB = 8
"""Chunks to fetch together."""

Transfer = tuple[int, int]
"""Bytes to fetch, and the largest number of bytes for one request."""


@dataclass(frozen=True, slots=True, repr=False)
class Cost:
    """The estimated cost of reading a view. Made by `Dataset.explain`.

    Attributes
    ----------
    samples : int
        Samples of the view.
    shards, chunks : int
        Shards and chunks with samples of the view.
    cached : int
        Those of the chunks that are local or in the cache.
    requests : int
        Requests to the store.
    nbytes : int
        Bytes to fetch. If samples vary in size and their offsets are not cached, this is estimated
        from the average size of a sample.

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

    def __repr__(self) -> str:
        return f"<Cost: {self}>"

    def _repr_html_(self) -> str:
        from npstream.rendering.html import key_value_table

        pairs = [
            ("samples", f"{self.samples:,}"),
            ("shards", f"{self.shards:,}"),
            ("chunks", f"{self.chunks:,}"),
            ("chunks in cache", f"{self.cached:,}"),
            ("requests", f"{self.requests:,}"),
            ("bytes to fetch", size_text(self.nbytes)),
        ]
        return key_value_table("Cost of reading", pairs)


class ChunkUsage:
    """The number of samples that a view has in each chunk of one dataset.

    Parameters
    ----------
    source : Source
        The source of the dataset.
    views : sequence of Selection
        Selections of samples of the dataset. Together they are the view's part of it.

    Attributes
    ----------
    source, views
        The parameters. Views without samples are left out.
    size : int
        The number of samples in `views`.
    first, last : int
        The first and the last sample in `views`.
    starts : ndarray of int64, shape (chunks + 1,)
        The first sample of each chunk, from the shard of `first` to the shard of `last`. The last
        element is the end of the last of these shards.
    """

    __slots__ = ("_counts", "first", "last", "size", "source", "starts", "views")

    def __init__(self, source: Source, views: Sequence[Selection]) -> None:
        self.source, self.views = source, [view for view in views if view.size]
        self.size = sum(view.size for view in self.views)
        bounds = [_bounds(view) for view in self.views]
        self.first = min((first for first, _ in bounds), default=0)
        self.last = max((last for _, last in bounds), default=-1)
        shards = np.searchsorted(source.index.starts, [self.first, self.last], side="right") - 1
        start, stop = (int(shards[0]), int(shards[1]) + 1) if self.size else (0, 0)
        self.starts = source.shard_chunk_starts(start, stop).astype(np.int64)
        self._counts = np.zeros(len(self.starts) - 1, np.int64)
        for view in self.views:
            self._count(view)

    def _count(self, view: Selection) -> None:
        """Count the samples of a view of the dataset."""
        if view.affine is not None:
            start, step = view.affine
            chunks = np.searchsorted(self.starts, _bounds(view), side="right") - 1
            first, last = chunks.tolist()
            counts = _affine_counts(self.starts[first : last + 2], start, step, view.size)
            self._counts[first : last + 1] += counts
            return
        for ids in _id_blocks(view):
            chunk = np.searchsorted(self.starts, ids, side="right") - 1
            self._counts += np.bincount(chunk, minlength=len(self._counts))

    def chunks(self) -> tuple[Int64, Int64, Int64]:
        """Return the chunks with samples: shard, number within the shard, number of samples."""
        touched = np.flatnonzero(self._counts)
        shard_starts = self.source.index.starts
        shards = np.searchsorted(shard_starts, self.starts[touched], side="right") - 1
        numbers = touched - np.searchsorted(self.starts, shard_starts[shards])
        return shards, numbers, self._counts[touched]

    def reads_sidecar(self, plan: Plan) -> bool:
        """Return True if the plan has one column, and it is read from the side-car."""
        return self.source.reads_sidecar(plan, self.first, self.last, self.size)


def _bounds(view: Selection) -> tuple[int, int]:
    """Return the least and the greatest sample of a view that has samples."""
    if view.affine is not None:
        start, step = view.affine
        ends = start, start + step * (view.size - 1)
        return min(ends), max(ends)
    bounds = [(int(ids.min()), int(ids.max())) for ids in _id_blocks(view)]
    return min(first for first, _ in bounds), max(last for _, last in bounds)


def _id_blocks(view: Selection) -> Iterator[Int64]:
    """Yield the samples of a view in blocks."""
    return (view.ids(start, start + COUNT_ROWS) for start in range(0, view.size, COUNT_ROWS))


def chunk_usages(source: Source, selection: Selection) -> list[ChunkUsage]:
    """Return the chunk usage of a view, for each dataset that has samples of it."""
    views: dict[int, tuple[Source, list[Selection]]] = {}
    for dataset, view in source.split_by_dataset(selection):
        views.setdefault(id(dataset), (dataset, []))[1].append(view)
    return [ChunkUsage(dataset, parts) for dataset, parts in views.values()]


def explain(source: Source, selection: Selection, plan: Plan) -> Cost:
    """Return the cost of loading a whole view by one read."""
    costs = []
    for part, part_plan in source.split_plan(plan.stored_plan):
        if part_plan.is_empty:
            continue
        for usage in chunk_usages(part, selection):
            if usage.reads_sidecar(part_plan):
                name = usage.source.fetcher.stored_name(part_plan.fields[0].name)
                costs.append(_sidecar_cost(usage, name))
            else:
                costs.append(_shards_cost(usage, part_plan))
    # Joined sources have the same samples, which are counted once.
    return replace(_total_cost(costs), samples=selection.size)


def _total_cost(costs: list[Cost]) -> Cost:
    return Cost(*(sum(getattr(cost, f.name) for cost in costs) for f in fields(Cost)))


def _sidecar_cost(usage: ChunkUsage, column: str) -> Cost:
    """Return the cost of loading a column from the side-car."""
    files, spans = _column_files(usage, column)
    sizes = [] if files is None else files.request_bytes(spans)
    return Cost(usage.size, 0, 0, 0, len(sizes), sum(sizes))


def _column_files(usage: ChunkUsage, column: str) -> tuple[CachedRanges | None, list[Span]]:
    """Return the files of the side-car, and the byte ranges of a view in a column's file.

    The files are None if the side-car is read without the cache.
    """
    remote = usage.source.remote
    assert remote is not None
    assert remote.files.sidecar is not None
    sidecar = remote.files.sidecar
    files = sidecar.store if isinstance(sidecar.store, CachedRanges) else None
    return files, sidecar.column_spans(column, usage.first, usage.last + 1)


def _shards_cost(usage: ChunkUsage, plan: Plan | None) -> Cost:
    """Return the cost of loading the part of a view in one dataset from its shards."""
    shards, chunks, counts = usage.chunks()
    shard_count, remote = len(np.unique(shards)), usage.source.remote
    if remote is None:
        return Cost(usage.size, shard_count, len(chunks), len(chunks), 0, 0)
    pairs = list(zip(shards.tolist(), chunks.tolist(), strict=True))
    is_cached = np.array([remote.files.is_cached(*chunk) for chunk in pairs], bool)
    is_bulk = remote.is_bulk(int(counts[~is_cached].sum()))
    is_dense = np.array(
        [
            remote.is_dense(chunk[0], count, is_bulk) or remote.is_hot(chunk)
            for chunk, count in zip(pairs, counts.tolist(), strict=True)
        ],
        bool,
    )
    costs: list[tuple[int, int]] = []  # requests and their bytes
    is_in_parts = np.zeros(len(pairs), bool)
    for byte_ranges, has_schema in _byte_ranges_by_schema(usage.source, plan, shards):
        ids = _ids_in(usage, shards, chunks, ~is_cached & has_schema)
        shard_of = np.searchsorted(remote.index.starts, ids, side="right") - 1
        ids = ids[remote.is_read_in_parts(ids, shard_of, byte_ranges)]
        is_in_parts |= np.isin(shards * remote.files.max_chunks + chunks, remote.chunk_keys(ids))
        costs.append(remote.point_reader.parts_cost(ids, byte_ranges))
    is_dense &= ~is_in_parts
    # Chunks that do not fit the cache together are read sample by sample. Compressed shards, and
    # shards that `verify=True` checks, are always read whole.
    sizes = np.where(is_dense, [remote.chunk_bytes(shard) for shard, _ in pairs], 0)
    limit = remote.files.cache.limit
    if limit is not None and remote.verify is not True:
        is_dense &= (np.cumsum(sizes) <= limit) | usage.source.index.compressed[shards]
    is_dense &= ~is_cached
    costs.append(_chunks_cost(remote, shards[is_dense], chunks[is_dense]))
    is_sparse = ~(is_cached | is_dense | is_in_parts)
    ids = _ids_in(usage, shards, chunks, is_sparse)
    costs.append(remote.point_reader.cost(ids))
    requests, nbytes = sum(count for count, _ in costs), sum(size for _, size in costs)
    return Cost(usage.size, shard_count, len(chunks), int(is_cached.sum()), requests, nbytes)


def _byte_ranges_by_schema(
    source: Source, plan: Plan | None, shards: Int64
) -> Iterator[tuple[Int64, Bools]]:
    """Yield, for each schema, the byte ranges to read of a sample, and the schema's shards.

    The schema's shards are a mask of `shards`. Schemas whose samples are read whole are left out.
    """
    if plan is None:
        return
    schema_ids = source.index.schema_ids[shards]
    for schema in np.unique(schema_ids).tolist():
        # A plan caches its partial reads by schema number. The caller's plan may use the numbers of
        # a mixture, which differ from those of this dataset, so a new plan is needed.
        partial_read = Plan(plan.fields).partial_read(schema, source.fetcher.layouts[schema])
        if partial_read is not None:
            yield partial_read.byte_ranges, schema_ids == schema


def require_affordable(
    parts: Sequence[tuple[Source, Plan | None]],
    selection: Selection,
    operation: str,
    limit: int | None,
) -> None:
    """Raise CostError if a read of stored columns would fetch more than `limit` bytes.

    Parameters
    ----------
    parts : sequence of (Source, Plan or None)
        A source and each of its joined sources that is read, with the columns to read; None for
        all columns.
    selection : Selection
    operation : str
        The operation that reads, as the subject of the error message.
    limit : int or None
        The maximum number of bytes.

    Raises
    ------
    CostError
        With the estimated cost and the alternatives.
    """
    if limit is None:
        return
    parts = [(part, plan) for part, plan in parts if plan is None or not plan.is_empty]
    # The datasets whose shards are read. Only a plan of one column can be read from a side-car.
    shard_datasets = [
        {
            dataset
            for dataset in part.remotes
            if plan is None or not dataset.sidecar_column_name(plan)
        }
        for part, plan in parts
    ]
    pairs = list(zip(parts, shard_datasets, strict=True))
    if sum(_max_bytes(part, selection, datasets) for (part, _), datasets in pairs) <= limit:
        return
    costs = [
        _total_cost(
            [
                _shards_cost(usage, plan)
                for usage in chunk_usages(part, selection)
                if usage.source in datasets
            ]
        )
        for (part, plan), datasets in pairs
    ]
    # Joined sources have the same samples, which are counted once.
    samples = max(cost.samples for cost in costs)
    cost = replace(_total_cost(costs), samples=samples)
    if cost.nbytes > limit:
        raise CostError(
            f"{operation} would read {cost}, more than implicit_read_limit={size_text(limit)}: "
            "read with .load() or fetch ahead with .prefetch(), which have no limit; take a "
            "sample of the rows; build the dataset's side-car (npstream.build_index), which holds "
            "small columns; or open with implicit_read_limit=None"
        )


def prefetch(source: Source, selection: Selection, plan: Plan, pin: bool = False) -> None:
    """Fetch chunks, and columns of the side-car, into the cache to read a view later.

    Parameters
    ----------
    source : Source
    selection : Selection
    plan : Plan
    pin : bool, default: False
        Whether the cache keeps these chunks and columns until `unpin`.

    Raises
    ------
    ValueError
        If the cache cannot hold all these chunks and columns at once.
    StorageError
        If `pin` is True, and a file cannot be written or the cache did not keep all the chunks.
    """
    jobs: list[RemoteJob] = []
    caches, bytes_by_cache = {}, Counter[str]()
    targets = list(_cached_parts(source, selection, plan))
    for target in targets:
        remote, cache = target.remote, target.remote.files.cache
        caches[cache.directory] = cache
        for files, _, spans in target.columns:
            bytes_by_cache[cache.directory] += sum(nbytes for _, _, nbytes in spans)
            jobs.append((remote, partial(remote.fetch_column, files, spans)))
        absent = [chunk for chunk in target.chunks if not remote.files.is_readable(*chunk)]
        nbytes = sum(remote.chunk_bytes(shard) for shard, _ in target.chunks)
        bytes_by_cache[cache.directory] += nbytes
        starts = range(0, len(absent), CHUNKS_PER_JOB)
        groups = [absent[start : start + CHUNKS_PER_JOB] for start in starts]
        jobs += [(remote, partial(remote.fetch_chunks, group)) for group in groups]
    for directory, nbytes in bytes_by_cache.items():
        caches[directory].require(nbytes)
    if pin:
        _pin(targets)
    with closing(run_as_completed(jobs)) as completed:
        for _ in progress(jobs, "fetching"):
            next(completed)
    for target in targets if pin else ():
        cached_files = target.remote.files
        if not all(cached_files.is_readable(*chunk) for chunk in target.chunks):
            reason = "some chunks of the view were not kept: other reads fill the cache"
            raise StorageError(errno.ENOSPC, reason, cached_files.cache.directory)


def unpin(source: Source, selection: Selection, plan: Plan) -> None:
    """Unpin the files that `prefetch` has pinned for a view, so that the cache may evict them."""
    for target in _cached_parts(source, selection, plan):
        target.remote.files.unpin(target.chunks)
        for files, name, _ in target.columns:
            files.pin(name, False)


class _CachedPart(NamedTuple):
    """The chunks and side-car columns of one remote dataset that a read of a view needs.

    Attributes
    ----------
    remote : RemoteShards
    chunks : list of Chunk
    columns : list of (CachedRanges, str, list of Span)
        The columns that are read from the side-car: the side-car's files, the name of the column's
        file, and byte ranges of it.
    """

    remote: RemoteShards
    chunks: list[Chunk]
    columns: list[tuple[CachedRanges, str, list[Span]]]


def _cached_parts(source: Source, selection: Selection, plan: Plan) -> Iterator[_CachedPart]:
    """Yield the chunks and side-car columns of each remote dataset that a read of a view needs."""
    usages = [
        (usage, part_plan)
        for part, part_plan in source.split_plan(plan.stored_plan)
        if not part_plan.is_empty
        for usage in chunk_usages(part, selection)
    ]
    for usage, part_plan in usages:
        remote = usage.source.remote
        if remote is None:
            continue
        columns = []
        for field in part_plan.fields:
            if usage.size and usage.reads_sidecar(Plan([field])):
                name = usage.source.fetcher.stored_name(field.name)
                files, spans = _column_files(usage, name)
                if files is not None and spans:
                    columns.append((files, spans[0][0], spans))
        chunks: list[Chunk] = []
        if not usage.reads_sidecar(part_plan):
            shard_numbers, chunk_numbers, _ = usage.chunks()
            chunks = list(zip(shard_numbers.tolist(), chunk_numbers.tolist(), strict=True))
        yield _CachedPart(remote, chunks, columns)


def _pin(targets: list[_CachedPart]) -> None:
    """Check that the caches can hold all pinned files, then pin the files of `targets`.

    Raises
    ------
    ValueError
        If a cache cannot hold all its pinned files.
    StorageError
        If a file cannot be pinned.
    """
    groups: dict[str, list[_CachedPart]] = {}
    for target in targets:
        groups.setdefault(target.remote.files.cache.directory, []).append(target)
    for group in groups.values():
        nbytes = sum(t.remote.files.pinned_disk_bytes(t.chunks) for t in group)
        nbytes += sum(size for t in group for *_, spans in t.columns for _, _, size in spans)
        keys = {k for t in group for chunk in t.chunks for k in t.remote.files.unit_keys(*chunk)}
        group[0].remote.files.cache.require_pinned(nbytes, keys)
    for target in targets:
        files = target.remote.files
        is_pinned = files.pin(target.chunks)
        is_pinned &= all(column_files.pin(name, True) for column_files, name, _ in target.columns)
        if not is_pinned:
            raise StorageError(
                errno.ENOSPC, "a file cannot be pinned: it cannot be written", files.cache.directory
            )


def _affine_counts(starts: Int64, start: int, step: int, size: int) -> Int64:
    """Return how many of the numbers start + k * step, for k below `size`, lie in each chunk."""
    if step < 0:
        start, step = start + step * (size - 1), -step
    preceding_counts = np.clip(-((start - starts) // step), 0, size)  # numbers below each start
    return np.diff(preceding_counts)


def _max_bytes(source: Source, selection: Selection, datasets: set[Source]) -> int:
    """Return a cheap upper bound of the bytes that a view may fetch from some datasets."""
    if selection.affine is None:
        return sum(dataset.index.total_nbytes for dataset in datasets)
    bound = 0
    for dataset, view in source.split_by_dataset(selection):
        if dataset in datasets:
            total = dataset.index.total_nbytes
            if view.affine is not None:
                # The samples that the view spans, and the rest of its first and its last chunk.
                rows = abs(view.affine[1]) * view.size
                total = min(total, dataset.estimate_bytes(rows) + 2 * dataset.index.chunk_bytes)
            bound += total
    return bound


def _chunks_cost(remote: RemoteShards, shards: Int64, chunks: Int64) -> tuple[int, int]:
    """Return the number of requests for chunks, and their bytes."""
    transfers = []
    for shard in np.unique(shards).tolist():
        if remote.index.compressed[shard]:
            transfers += _compressed_transfers(remote, shard)
        else:
            transfers += _plain_transfers(remote, shard, chunks[shards == shard].tolist())
    requests = sum(-(-nbytes // max_bytes) for nbytes, max_bytes in transfers)
    return requests, sum(nbytes for nbytes, _ in transfers)


def _compressed_transfers(remote: RemoteShards, shard: int) -> list[Transfer]:
    """Return the transfers for a compressed shard."""
    files = remote.index.files(shard)
    stored = [files.zip_data, files.zip_meta or files.meta]
    return [(file.nbytes, READ_REQUEST_BYTES) for file in stored if file is not None]


def _plain_transfers(remote: RemoteShards, shard: int, chunks: list[int]) -> list[Transfer]:
    """Return the transfers for chunks of a shard, and for its header if that is not cached."""
    meta, begin = remote.index.files(shard).meta, remote.files.recorded_begin(shard)
    # Piece 0 is the header of the shard, and piece k + 1 is chunk k.
    pieces = [1 + chunk for chunk in chunks]
    sizes = [begin or 0, *remote.files.chunk_sizes(shard).tolist()]
    if remote.files.is_ready(shard):
        return _merged_transfers(pieces, sizes)
    if meta is not None:
        return [(meta.nbytes, MAX_REQUEST), *_merged_transfers(pieces, sizes)]
    if remote.files.is_fixed(shard):
        return _merged_transfers([0, *pieces], sizes)
    # The header begins with the number of samples, an offset for each sample, and the end of the
    # last sample, 4 bytes each. If the begin of the samples is not recorded, the first offset is
    # requested before the header, because it is this begin.
    offsets = 4 * (remote.files.sample_count(shard) + 2)
    header = [(4, 4), (offsets, MAX_REQUEST)] if begin is None else [(begin, MAX_REQUEST)]
    return header + _merged_transfers(pieces, sizes)


def _merged_transfers(pieces: list[int], sizes: list[int]) -> list[Transfer]:
    """Return the transfers for ascending pieces of a shard; neighbors are fetched together."""
    runs: list[int] = []
    last = None
    for piece in pieces:
        if piece - 1 == last and runs[-1] + sizes[piece] <= MAX_REQUEST:
            runs[-1] += sizes[piece]
        else:
            runs.append(sizes[piece])
        last = piece
    return [(nbytes, MAX_REQUEST) for nbytes in runs]


def _ids_in(usage: ChunkUsage, shards: Int64, chunks: Int64, is_chosen: Bools) -> Int64:
    """Return the samples of a view in those chunks of a dataset that `is_chosen` selects.

    The samples ascend.
    """
    if not is_chosen.any():
        return np.empty(0, np.int64)
    first_chunks = np.searchsorted(usage.starts, usage.source.index.starts[shards[is_chosen]])
    chosen = first_chunks + chunks[is_chosen]
    samples = []
    for view in usage.views:
        for ids in _id_blocks(view):
            chunk_of = np.searchsorted(usage.starts, ids, side="right") - 1
            samples.append(ids[np.isin(chunk_of, chosen)])
    return np.unique(np.concatenate(samples))
