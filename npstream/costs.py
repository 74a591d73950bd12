"""What reading a view would cost: shards, requests and bytes that are not here yet."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from npstream import exact
from npstream.ahead import fetch_groups
from npstream.downloads import MAX_REQUEST
from npstream.errors import CostError
from npstream.formats.blocks import BLOCK as BLOCK_BYTES
from npstream.formats.blocks import REQUEST as VALUES_REQUEST
from npstream.formats.pieces import CHUNK_BYTES
from npstream.progress import progress
from npstream.remote import WHOLE_REQUEST
from npstream.sizes import size_text

if TYPE_CHECKING:
    from npstream._typing import Int64
    from npstream.remote_shards import RemoteShards
    from npstream.selection import Selection
    from npstream.source import Source

BLOCK = 1 << 20
"""Samples that are counted at once."""

GROUP = 8
"""Chunks that are fetched together."""

Transfer = tuple[int, int]
"""Bytes, and how many of them one request brings."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What reading a view would fetch.

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
        Bytes that these bring: reckoned from the average where samples vary in size.
    """

    samples: int
    shards: int
    chunks: int
    cached: int
    requests: int
    nbytes: int

    def __str__(self) -> str:
        return (
            f"{self.samples:,} samples in {self.chunks:,} chunks of {self.shards:,} shards; "
            f"{self.cached:,} chunks are here, the rest takes {self.requests:,} requests for "
            f"{size_text(self.nbytes)}"
        )


def explain(source: Source, selection: Selection) -> Cost:
    """Return what loading a view at once would cost."""
    shards, chunks, counts = chunks_of(source, selection)
    touched, remote = len(np.unique(shards)), source.remote
    if remote is None:
        return Cost(selection.size, touched, len(chunks), len(chunks), 0, 0)
    found = zip(shards.tolist(), chunks.tolist(), strict=True)
    here = np.array([is_here(remote, chunk) for chunk in found], bool)
    is_dense = np.array(
        [remote.is_dense(s, n) for s, n in zip(shards.tolist(), counts.tolist(), strict=True)], bool
    )
    dense, sparse = ~here & is_dense, ~here & ~is_dense
    requests, nbytes = _of_chunks(remote, shards[dense], chunks[dense])
    if sparse.any():
        more = _of_samples(remote, _samples_in(source, selection, shards[sparse], chunks[sparse]))
        requests, nbytes = requests + more[0], nbytes + more[1]
    return Cost(selection.size, touched, len(chunks), int(here.sum()), requests, nbytes)


def explain_values(selection: Selection, run: tuple[int, int], itemsize: int) -> Cost:
    """Return what loading a column out of the side-car costs, from one sample to another."""
    begin, end = run[0] * itemsize // BLOCK_BYTES, -(-(run[1] + 1) * itemsize // BLOCK_BYTES)
    nbytes = min(end * BLOCK_BYTES, selection.source * itemsize) - begin * BLOCK_BYTES
    return Cost(selection.size, 0, 0, 0, -(-nbytes // VALUES_REQUEST), nbytes)


def bounds_of(selection: Selection) -> tuple[int, int]:
    """Return the first and the last sample, by number, of a view that has some."""
    if selection.affine is not None:
        start, step = selection.affine
        ends = start, start + step * (selection.size - 1)
        return min(ends), max(ends)
    first, last = 1 << 62, 0
    for begin in range(0, selection.size, BLOCK):
        ids = selection.ids(begin, begin + BLOCK)
        first, last = min(first, int(ids.min())), max(last, int(ids.max()))
    return first, last


def gate(source: Source, selection: Selection, what: str) -> None:
    """Refuse a read that nobody asked for by name if it would fetch too much.

    Raises
    ------
    CostError
        With what it would cost, and the ways on.
    """
    limit = source.limit
    if limit is None or source.remote is None or _most(source, selection) <= limit:
        return
    cost = explain(source, selection)
    if cost.nbytes > limit:
        raise CostError(
            f"{what} would read {cost}, more than implicit_read_limit={size_text(limit)}: read "
            "with .load() or fetch ahead with .prefetch(), which say what they want; take a "
            "sample of the rows; build the dataset's side-car (npstream.build_index), which holds "
            "small columns; or open with implicit_read_limit=None"
        )


def prefetch(source: Source, selection: Selection) -> None:
    """Fetch the chunks that a view touches into the cache.

    Raises
    ------
    ValueError
        If the cache may not hold them all at once.
    """
    remote = source.remote
    if remote is None:
        return
    shards, chunks, _ = chunks_of(source, selection)
    found = list(zip(shards.tolist(), chunks.tolist(), strict=True))
    absent = [chunk for chunk in found if not is_here(remote, chunk)]
    remote.files.cache.require(sum(remote.chunk_bytes(shard) for shard, _ in found))
    groups = [absent[at : at + GROUP] for at in range(0, len(absent), GROUP)]
    with closing(fetch_groups(remote, groups)) as arrivals:
        for _ in progress(groups, "fetching"):
            next(arrivals)


def chunks_of(source: Source, selection: Selection) -> tuple[Int64, Int64, Int64]:
    """Return the chunks that a view touches: their shards, numbers there, and samples of it."""
    starts = source.chunk_starts().astype(np.int64)
    if selection.affine is not None:
        counts = _affine_counts(starts, *selection.affine, selection.size)
    else:
        counts = np.zeros(len(starts) - 1, np.int64)
        for begin in range(0, selection.size, BLOCK):
            chunk = np.searchsorted(starts, selection.ids(begin, begin + BLOCK), side="right") - 1
            counts += np.bincount(chunk, minlength=len(counts))
    touched = np.flatnonzero(counts)
    of_shards = source.index.starts
    shards = np.searchsorted(of_shards, starts[touched], side="right") - 1
    return shards, touched - np.searchsorted(starts, of_shards[shards]), counts[touched]


def is_here(remote: RemoteShards, chunk: tuple[int, int]) -> bool:
    """Tell whether a chunk is in the cache, and make no file for it there."""
    shard, number = chunk
    return remote.files.peek(shard) is not None and remote.files.is_here(shard, number)


def _affine_counts(starts: Int64, start: int, step: int, size: int) -> Int64:
    """Return how many of ``start + k * step``, for k below `size`, lie in each chunk."""
    if step < 0:
        start, step = start + step * (size - 1), -step
    before = np.clip(-((start - starts) // step), 0, size)
    return np.diff(before)


def _most(source: Source, selection: Selection) -> int:
    """Return a bound, quickly, of the bytes that a view may fetch."""
    index = source.index
    if selection.affine is None:
        return index.total
    rows = abs(selection.affine[1]) * selection.size
    return min(index.total, rows * index.total // max(index.samples, 1) + 2 * CHUNK_BYTES)


def _of_chunks(remote: RemoteShards, shards: Int64, chunks: Int64) -> tuple[int, int]:
    """Return the requests for chunks, and their bytes."""
    costs = []
    for shard in np.unique(shards).tolist():
        if remote.index.compressed[shard]:
            costs += _of_packed(remote, shard)
        else:
            costs += _of_plain(remote, shard, chunks[shards == shard].tolist())
    requests = sum(-(-nbytes // most) for nbytes, most in costs)
    return requests, sum(nbytes for nbytes, _ in costs)


def _of_packed(remote: RemoteShards, shard: int) -> list[Transfer]:
    """Return what a compressed shard takes."""
    files = remote.index.files(shard)
    stored = [files.zip_data, files.zip_meta or files.meta]
    return [(file.nbytes, WHOLE_REQUEST) for file in stored if file is not None]


def _of_plain(remote: RemoteShards, shard: int, chunks: list[int]) -> list[Transfer]:
    """Return what chunks of a shard take, and what stands before its samples, if it is not here."""
    meta, begin = remote.index.files(shard).meta, remote.files.known_begin(shard)
    pieces = [1 + chunk for chunk in chunks]
    sizes = [begin or 0, *remote.files.sizes(shard).tolist()]
    if remote.files.peek(shard) is not None and remote.files.is_ready(shard):
        return _of_runs(pieces, sizes)
    if meta is not None:
        return [(meta.nbytes, MAX_REQUEST), *_of_runs(pieces, sizes)]
    if remote.files.is_fixed(shard):
        return _of_runs([0, *pieces], sizes)
    offsets = 4 * (remote.files.count(shard) + 2)
    head = [(4, 4), (offsets, MAX_REQUEST)] if begin is None else [(begin, MAX_REQUEST)]
    return head + _of_runs(pieces, sizes)


def _of_runs(pieces: list[int], sizes: list[int]) -> list[Transfer]:
    """Return what pieces of a shard, rising, take when neighbours are fetched together."""
    runs: list[int] = []
    last = None
    for piece in pieces:
        if piece - 1 == last and runs[-1] + sizes[piece] <= MAX_REQUEST:
            runs[-1] += sizes[piece]
        else:
            runs.append(sizes[piece])
        last = piece
    return [(nbytes, MAX_REQUEST) for nbytes in runs]


def _samples_in(source: Source, selection: Selection, shards: Int64, chunks: Int64) -> Int64:
    """Return the samples of a view that lie in some chunks, rising."""
    starts = source.chunk_starts().astype(np.int64)
    wanted = np.searchsorted(starts, source.index.starts[shards]) + chunks
    found = []
    for begin in range(0, selection.size, BLOCK):
        ids = selection.ids(begin, begin + BLOCK)
        found.append(ids[np.isin(np.searchsorted(starts, ids, side="right") - 1, wanted)])
    return np.unique(np.concatenate(found))


def _of_samples(remote: RemoteShards, ids: Int64) -> tuple[int, int]:
    """Return the requests for samples that are read exactly, and their bytes."""
    index, files = remote.index, remote.files
    shard_of = np.searchsorted(index.starts, ids, side="right") - 1
    rows = ids - index.starts[shard_of]
    sizes = index.nbytes[shard_of] // (index.starts[shard_of + 1] - index.starts[shard_of])
    stride = files.strides[index.schema_of[shard_of]]
    begins = rows * np.where(stride, stride, sizes)
    *_, lengths = exact.merged(
        shard_of, begins, begins + np.where(stride, stride, sizes), exact.GAP
    )
    requests, nbytes = len(lengths), int(lengths.sum())
    shards = np.unique(shard_of[stride == 0]).tolist()
    unknown = [s for s in shards if files.peek(s) is None or files.offsets(s) is None]
    lost = np.isin(shard_of, unknown)
    if lost.any():
        at = 4 + 4 * rows[lost]
        *_, lengths = exact.merged(shard_of[lost], at, at + 8, exact.OFFSETS_GAP)
        requests, nbytes = requests + len(lengths), nbytes + int(lengths.sum())
    return requests, nbytes
