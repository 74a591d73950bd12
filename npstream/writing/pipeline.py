"""Provide `ShardPipeline`, which groups encoded samples into shards and stores them.

The caller appends samples. Threads compress and store a finished shard while the next one is
filled. Results are collected in the order of the shards.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from npstream._core.memory import ensure_fits, huge_empty
from npstream._core.typing import AnyArray, Body, Bytes, Int64
from npstream.formats.chunks import CHUNK_BYTES, chunk_counts, piece_rows
from npstream.formats.compression import compress_pieces, parse_compression
from npstream.formats.scan import Scan, ScanResult, scalar_columns
from npstream.writing.shard import Bodies, FileSummary, ShardFormat, StoredFile
from npstream.writing.sidecar import SidecarBuilder

if TYPE_CHECKING:
    from concurrent.futures import Future

    from npstream.formats.sidecar.sidecar import Sidecar
    from npstream.writing.destination import Destination
    from npstream.writing.resumption.session import ResumeSession

__all__ = ["ShardPipeline"]

_BLOCK_BYTES = 1 << 20
"""Approximate bytes of rows that are joined at a time, while they are in the processor's cache."""


@dataclass(frozen=True, slots=True)
class _StoredShard:
    """The index entry of a stored shard, and the scan for the side-car, if there is one."""

    entry: dict[str, Any]
    scan: ScanResult | None


class ShardPipeline:
    """Groups encoded samples into shards, and stores them in the background.

    Only one thread may call its methods. If one of them raises, a shard may be lost: the caller
    must remove all files that were written.

    Parameters
    ----------
    destination : Destination
    shard_samples : int, optional
        Maximum number of samples of a shard.
    sidecar : bool, default: True
        Whether to gather the parts of the side-car.

    Attributes
    ----------
    rows : list of bytes
        The last encoded samples. The caller appends to it, and adds the sample's size and
        `sample_bytes` to `nbytes`.
    nbytes : int
        Bytes of the shard that is being filled.
    soft_limit : int
        If the next sample would make `nbytes` exceed this, the caller must first call `reserve`.
    sample_bytes : int
        Bytes that the shard stores for each sample in addition to its own bytes.
    entries : list of dict
        The index entries of the stored shards, in order.
    sidecar_builder : SidecarBuilder or None
        Collects the side-car; None before the first shard, or without a side-car.
    """

    def __init__(
        self,
        destination: Destination,
        shard_samples: int | None = None,
        *,
        sidecar: bool = True,
    ) -> None:
        self.rows: list[bytes] = []
        self.nbytes = 0
        self.soft_limit = 0
        self.sample_bytes = 0
        self.entries: list[dict[str, Any]] = []
        self.sidecar_builder: SidecarBuilder | None = None
        self.shard_samples = shard_samples
        self._destination = destination
        self._has_sidecar = sidecar
        # The columns of the side-car; None for all scalar columns of the layout.
        self._sidecar_columns: dict[str, np.dtype[Any]] | None = None
        self._is_claimed = False
        self._layout: ShardFormat | None = None
        # The blocks of the shard that is being filled, without `rows`: their contents, the sizes of
        # their samples, and the number of their samples.
        self._blocks: list[Body | Bodies] = []
        self._sizes: list[Int64] = []
        self._samples = 0
        self._joined_bytes = 0  # `nbytes` when `rows` was last empty
        # The earlier shards, which are stored or being stored.
        self._submitted_samples = 0
        self._submitted_bytes = 0
        self._shards = 0
        self._pending: deque[Future[_StoredShard]] = deque()
        self._session: ResumeSession | None = None

    def restore(self, session: ResumeSession, layout: ShardFormat | None) -> None:
        """Record the progress in `session`, and continue after the shards that it has stored."""
        self._session = session
        for record in session.records():
            self.entries.append(record.entry)
            self._shards += 1
            self._submitted_samples += record.entry["samples"]
            self._submitted_bytes += record.entry["raw_data"]["bytes"]
            if layout is not None and not session.is_published:
                self._layout = layout
                self._has_sidecar = record.scan is not None
            if record.scan is not None and layout is not None:
                # An append keeps the columns that the dataset's side-car had when it began.
                self._sidecar_columns = {n: v.dtype for n, v in record.scan.columns.items()}
                if self.sidecar_builder is None:
                    self.sidecar_builder = self._new_sidecar_builder()
                self.sidecar_builder.add(record.scan)
        if layout is not None:
            self.start(layout)

    @property
    def samples(self) -> int:
        """The number of samples so far."""
        return self._submitted_samples + self._samples + len(self.rows)

    @property
    def total_bytes(self) -> int:
        """The bytes of all shards so far, before compression."""
        return self._submitted_bytes + self.nbytes

    @property
    def layout(self) -> ShardFormat:
        """The format of all shards, which `start` sets before the first sample."""
        assert self._layout is not None
        return self._layout

    def start(self, layout: ShardFormat) -> None:
        """Set the format of the shards."""
        self._layout = layout
        self.sample_bytes = layout.sample_bytes
        if not self._samples and not self.rows:
            self._begin_shard()

    def _begin_shard(self) -> None:
        self.nbytes = self._joined_bytes = self.layout.empty_bytes
        self._set_soft_limit(self.nbytes, 0)

    def _set_soft_limit(self, nbytes: int, samples: int) -> None:
        """Set `soft_limit` for a shard of `nbytes` bytes and `samples` samples."""
        soft_limit = min(self.layout.max_bytes, nbytes + _BLOCK_BYTES)
        if self.shard_samples is not None:
            # `remaining` samples are one more than the shard can still take. Even if all have the
            # minimum size, they exceed `soft_limit`. So the caller calls `reserve` in time.
            remaining = self.shard_samples - samples + 1
            soft_limit = min(soft_limit, nbytes + remaining * self.layout.min_sample_bytes - 1)
        self.soft_limit = soft_limit

    def reserve(self, nbytes: int) -> None:
        """Store the shard if it cannot take another sample that adds `nbytes` to it."""
        if self.nbytes - self._joined_bytes >= _BLOCK_BYTES:
            self._join_rows()
        samples = self._samples + len(self.rows)
        is_large = self.layout.size_limit and self.nbytes + nbytes > self.layout.max_bytes
        if samples and (is_large or samples == self.shard_samples):
            self.flush()
            samples = 0
        self._set_soft_limit(self.nbytes + nbytes, samples + 1)

    def _join_rows(self) -> None:
        """Join the last samples into one block."""
        if rows := self.rows:
            self._sizes.append(np.fromiter(map(len, rows), np.int64, len(rows)))
            self._blocks.append(b"".join(rows))
            self._samples += len(rows)
            rows.clear()
        self._joined_bytes = self.nbytes

    @property
    def keeps_bodies(self) -> bool:
        """Whether `add_rows` takes Bodies, which are copied only when their shard is stored."""
        return self._destination.is_local and self.layout.compression is None

    def check_rows(self, nbytes: Int64) -> None:
        """Raise ValueError if a shard cannot hold the next samples; `nbytes` has their sizes."""
        layout = self.layout
        # With a size limit, a sample that does not fit starts a new shard.
        begin = layout.empty_bytes if layout.size_limit else self.nbytes
        if begin + int(nbytes.sum()) + self.sample_bytes * len(nbytes) > layout.max_bytes:
            costs = nbytes + self.sample_bytes
            ends = costs if layout.size_limit else np.cumsum(costs)
            layout.check_ends(begin + ends, self.samples)

    def add_rows(self, data: Bytes | Bodies, nbytes: Int64) -> None:
        """Add encoded samples, contiguous or as Bodies; `nbytes` has the size of each."""
        self._join_rows()
        row, count, limit = 0, len(nbytes), self.layout.max_bytes
        cost = int(nbytes.sum()) + self.sample_bytes * count
        fits = self.shard_samples is None or self._samples + count <= self.shard_samples
        if count and fits and self.nbytes + cost <= limit:
            self._add_block(data if isinstance(data, Bodies) else data.data, nbytes, cost)
            row = count
        else:
            ends = np.concatenate([[0], np.cumsum(nbytes)])
            total_costs = ends + self.sample_bytes * np.arange(len(ends))
        while row < count:
            max_cost = int(total_costs[row]) + limit - self.nbytes
            stop = int(np.searchsorted(total_costs, max_cost, side="right")) - 1
            if stop <= row and self._samples and self.layout.size_limit:
                self.flush()
                continue
            stop = max(stop, row + 1)
            if self.shard_samples is not None:
                if self._samples == self.shard_samples:
                    self.flush()
                    continue
                stop = min(stop, row + self.shard_samples - self._samples)
            if isinstance(data, Bodies):
                block: Body | Bodies = data.part(row, stop)
            else:
                block = data[int(ends[row]) : int(ends[stop])].data
            cost = int(total_costs[stop] - total_costs[row])
            self._add_block(block, nbytes[row:stop], cost)
            row = stop
        self._joined_bytes = self.nbytes
        self._set_soft_limit(self.nbytes, self._samples)

    def _add_block(self, block: Body | Bodies, nbytes: Int64, cost: int) -> None:
        """Add samples to the shard, which then has `cost` more bytes."""
        self._blocks.append(block)
        self._sizes.append(nbytes)
        self._samples += len(nbytes)
        self.nbytes += cost

    def flush(self) -> None:
        """Store the samples of the last shard, if there are any."""
        self._join_rows()
        if not self._samples:
            return
        sizes, blocks = np.concatenate(self._sizes), self._blocks
        last_row = b"" if self._session is None else _tail(blocks[-1], int(sizes[-1]))
        ends = np.cumsum(sizes, out=sizes)
        self._sizes, self._blocks, self._samples = [], [], 0
        pieces, meta = _pieces(self.layout.head(ends), blocks), self.layout.meta(ends)
        self._store(pieces, len(ends), self.nbytes, meta=meta, last_row=last_row)
        self._begin_shard()

    def extend_sidecar(self, sidecar: Sidecar | None) -> None:
        """Collect only the columns of `sidecar`, which the new shards extend; None for no side-car.

        Parameters
        ----------
        sidecar : Sidecar or None
            The side-car of the dataset to which the shards are appended.
        """
        if sidecar is None:
            self._has_sidecar = False
        else:
            self._sidecar_columns = {n: column.dtype for n, column in sidecar.columns.items()}

    def begin(self) -> None:
        """Claim the destination once, before the first file is stored."""
        if not self._is_claimed:
            self._destination.begin()
            self._is_claimed = True

    def _new_sidecar_builder(self) -> SidecarBuilder:
        schema, columns = self.layout.schema, self._sidecar_columns
        if columns is None:
            columns = scalar_columns([schema]) if schema.format == "mds" else {}
        return SidecarBuilder(columns, hashed=True, write_id=self._destination.write_id)

    def _store(
        self,
        pieces: Iterable[Body],
        samples: int,
        nbytes: int,
        *,
        meta: bytes | None = None,
        last_row: Body = b"",
    ) -> None:
        """Store a shard in the background.

        Parameters
        ----------
        pieces : iterable of bytes-like
            The content of the shard. If the shard is stored locally without compression, a piece
            may be valid only until the next one is requested.
        samples, nbytes : int
            The number of samples of the shard, and its bytes before compression.
        meta : bytes, optional
            The content of the shard's second file, if the format has one.
        last_row : bytes-like
            The bytes of the shard's last sample, for a write that can resume.
        """
        number, scan = self._new_shard(samples, nbytes, meta, None)
        record = self._recorder(number, last_row)
        compressed = self.layout.compression is not None
        self._limit_pending(self._destination.max_parallel(compressed) - 1)
        job: Future[ScanResult] | None = None
        if scan is not None and not compressed and isinstance(pieces, list):
            # All pieces stay in memory, so another thread scans them while they are stored.
            job = self._destination.submit_scan(_scan_pieces, scan, pieces)
        arguments = self._destination, self.layout, number, samples, job or scan, meta, pieces
        self._submit(record, _store_shard, *arguments)

    def store_records(
        self,
        blocks: Iterable[Mapping[str, AnyArray]],
        samples: int,
        nbytes: int,
        *,
        is_last: bool,
        is_stable: bool = False,
        last_row: Body = b"",
    ) -> None:
        """Store a shard of fixed columns, given as blocks of arrays.

        In a local directory, without compression, this thread writes the file piece by piece, so
        that no shard is in memory. The file is synced to the disk in the background, unless
        `is_last` says that no other shard of the same table follows. If `is_stable` is True, there
        is one column, and its arrays stay unchanged, so that the scan may read them later.
        """
        if not self._destination.is_local or self.layout.compression is not None:
            content = _join_records(self.layout, blocks, samples, nbytes)
            self._store([content], samples, nbytes, last_row=last_row)
            return
        number, scan = self._new_shard(samples, nbytes, None, self._destination.submit_scan)
        record = self._recorder(number, last_row)
        self._limit_pending(1)
        name = self.layout.name(number, self._destination.write_id)
        summary = FileSummary(name, self.layout.hashes)
        if scan is None:
            pieces = self.layout.records(blocks, samples)
        elif is_stable:
            pieces = scan.tee(self.layout.records(blocks, samples), is_stable=True)
        else:
            pieces = scan.tee(self.layout.records(blocks, samples, scan.allocate))
        publish = self._destination.write_draft(name, summary.tee(pieces))
        entry = self.layout.entry(samples, StoredFile(summary), None)
        if is_last:
            stored = _publish_draft(publish, entry, scan, self._first_pending())
            record(stored)
            self.finish()
            self._collect(stored)
        else:
            self._submit(record, _publish_draft, publish, entry, scan)

    def chunk_bounds(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Return the rows of each chunk of a shard that has the rows `start` to `stop`.

        The scan of a shard does not copy a block that is a chunk.
        """
        samples = stop - start
        sample_bytes = sum(encoding.size or 0 for encoding in self.layout.columns.values())
        nbytes = self.layout.empty_bytes + samples * (sample_bytes + self.sample_bytes)
        counts = chunk_counts(
            np.array([samples]), np.array([nbytes]), np.array([False]), CHUNK_BYTES
        )
        return pairwise((start + piece_rows(samples, int(counts[0]))).tolist())

    def _new_shard(
        self,
        samples: int,
        nbytes: int,
        meta: bytes | None,
        submit: Callable[..., Future[None]] | None,
    ) -> tuple[int, Scan | None]:
        """Return the number and the scan of the next shard."""
        # A forked process must not store shards: it has copies of its parent's futures, and shares
        # the open files of the side-car.
        self._destination.check_process()
        self.begin()
        if self._has_sidecar and self.sidecar_builder is None:
            self.sidecar_builder = self._new_sidecar_builder()
        number, self._shards = self._shards, self._shards + 1
        self._submitted_samples += samples
        self._submitted_bytes += nbytes
        if self.sidecar_builder is None:
            return number, None
        return number, Scan(
            self.layout.schema,
            samples,
            self.sidecar_builder.dtypes,
            compressed=self.layout.compression is not None,
            meta=meta,
            statistics_dtypes=self.layout.annotations.dtypes,
            submit=submit,
        )

    def _recorder(self, number: int, last_row: Body) -> Callable[[_StoredShard], None]:
        """Return a function that records shard `number` for a resume, once the shard is stored.

        `_new_shard` has already counted the shard.
        """
        session = self._session
        if session is None:
            return _record_nothing
        checkpoint = session.checkpoint(self._submitted_samples, last_row)

        def record(stored: _StoredShard) -> None:
            session.record(number, stored.entry, checkpoint, stored.scan)

        return record

    def _submit(
        self,
        record: Callable[[_StoredShard], None],
        job: Callable[..., _StoredShard],
        *arguments: Any,
    ) -> None:
        """Run a job that stores a shard in the background, and then record the shard."""
        first = self._first_pending()
        self._pending.append(self._destination.submit(_run_job, record, job, *arguments, first))

    def _first_pending(self) -> Future[_StoredShard] | None:
        """Return the dataset's first shard if the next one must wait for it; otherwise None.

        A file of the first shard claims a local directory. So the files of other shards get their
        names only after that file has its name.
        """
        needs_no_wait = self.entries or not self._pending or not self._destination.is_local
        return None if needs_no_wait else self._pending[0]

    def _limit_pending(self, count: int) -> None:
        """Wait until at most `count` shards are being stored, and collect those that are stored."""
        while self._pending and (len(self._pending) > count or self._pending[0].done()):
            self._collect(self._pending.popleft().result())

    def finish(self) -> None:
        """Wait until all shards are stored."""
        self._destination.check_process()
        while self._pending:
            self._collect(self._pending.popleft().result())

    def _collect(self, stored: _StoredShard) -> None:
        """Record a stored shard; callers pass shards in order."""
        if self.sidecar_builder is not None and stored.scan is not None:
            self.sidecar_builder.add(stored.scan)
        self.entries.append(stored.entry)

    def close(self) -> None:
        """Drop all samples and unfinished shards, and close the side-car's files."""
        self.rows.clear()
        self._blocks, self._sizes = [], []
        self._pending.clear()
        if self.sidecar_builder is not None:
            self.sidecar_builder.close()


def _store_shard(
    destination: Destination,
    layout: ShardFormat,
    number: int,
    samples: int,
    scan: Scan | Future[ScanResult] | None,
    meta: bytes | None,
    pieces: Iterable[Body],
    first: Future[_StoredShard] | None,
) -> _StoredShard:
    """Compress and store a shard. If `first` is given, wait for that shard to be stored.

    `scan` scans the pieces, unless it is the future of a scan in another thread.
    """
    if layout.compression is not None:
        pieces = [b"".join(pieces)]  # a single piece, so that the scan does not copy it
    if isinstance(scan, Scan):
        pieces = scan.tee(pieces)
    name, meta_file = layout.name(number, destination.write_id), None
    data = _store_file(destination, layout, name, pieces, first)
    if meta is not None:
        meta_file = _store_file(destination, layout, f"{name}.meta", [meta], None)
    entry = layout.entry(samples, data, meta_file)
    if scan is None:
        return _StoredShard(entry, None)
    return _StoredShard(entry, scan.finish() if isinstance(scan, Scan) else scan.result())


def _scan_pieces(scan: Scan, pieces: list[Body]) -> ScanResult:
    """Scan the content of a shard."""
    for piece in pieces:
        scan.feed(piece)
    return scan.finish()


def _tail(block: Body | Bodies, nbytes: int) -> Body:
    """Return the last sample of a block, which has `nbytes` bytes."""
    if isinstance(block, Bodies):
        return block.part(len(block) - 1, len(block)).to_list()[0]
    return memoryview(block)[len(block) - nbytes :]


def _record_nothing(stored: _StoredShard) -> None:
    """Do nothing, as the write cannot resume."""


def _run_job(
    record: Callable[[_StoredShard], None], job: Callable[..., _StoredShard], *arguments: Any
) -> _StoredShard:
    """Store a shard, and record it."""
    stored = job(*arguments)
    record(stored)
    return stored


def _publish_draft(
    publish: Callable[[Future[_StoredShard] | None], None],
    entry: dict[str, Any],
    scan: Scan | None,
    first: Future[_StoredShard] | None,
) -> _StoredShard:
    """Give a draft its name. If `first` is given, wait for that shard to be stored."""
    publish(first)
    return _StoredShard(entry, None if scan is None else scan.finish())


def _join_records(
    layout: ShardFormat, blocks: Iterable[Mapping[str, AnyArray]], samples: int, nbytes: int
) -> memoryview:
    """Return the content of a shard of fixed columns."""
    ensure_fits(nbytes, "a shard")
    content = huge_empty(nbytes, np.uint8).data
    end = 0

    def allocate(size: int) -> memoryview:
        return content[end : end + size]

    for piece in layout.records(blocks, samples, allocate):
        if not end:  # the first piece is the head, which has its own memory
            content[: len(piece)] = piece
        end += len(piece)
    return content


def _store_file(
    destination: Destination,
    layout: ShardFormat,
    name: str,
    pieces: Iterable[Body],
    first: Future[_StoredShard] | None,
) -> StoredFile:
    """Compress and store a file of a shard."""
    file = raw = FileSummary(name, layout.hashes)
    pieces, zipped = raw.tee(pieces), None
    compression = parse_compression(layout.compression)
    if compression is not None and layout.compression is not None:
        packed = compress_pieces(b"".join(pieces), layout.compression)
        file = zipped = FileSummary(f"{name}.{compression.extension}", layout.hashes)
        pieces = zipped.tee(packed)
    destination.put(file.name, pieces if first is None else _wait_at_end(pieces, first))
    return StoredFile(raw, zipped)


def _pieces(head: Body, blocks: list[Body | Bodies]) -> Iterable[Body]:
    """Return the content of a shard.

    If all blocks are Bodies, their samples are copied chunk by chunk, when a chunk is requested.
    Otherwise Bodies are copied at once.
    """
    bodies = [block for block in blocks if isinstance(block, Bodies)]
    if bodies and len(bodies) == len(blocks):
        return _copied_pieces(head, Bodies.concatenate(bodies))
    return [head, *(b.copy().data if isinstance(b, Bodies) else b for b in blocks)]


def _copied_pieces(head: Body, samples: Bodies) -> Iterator[Body]:
    """Yield the head of a shard, then copies of its chunks; each overwrites the one before."""
    yield head
    ends = np.concatenate([[0], np.cumsum(samples.nbytes)])
    count, nbytes, is_compressed = (
        np.array([len(samples)]),
        ends[-1:] + len(head),
        np.array([False]),
    )
    (chunks,) = chunk_counts(count, nbytes, is_compressed, CHUNK_BYTES).tolist()
    # `Scan.tee` reads a piece that is a whole chunk in place, and copies any other piece.
    rows = piece_rows(len(samples), chunks)
    buffer = huge_empty(int(np.diff(ends[rows]).max()), np.uint8)
    for start, stop in pairwise(rows.tolist()):
        yield samples.part(start, stop).copy(buffer).data


def _wait_at_end(pieces: Iterable[Body], first: Future[_StoredShard]) -> Iterator[Body]:
    """Yield the pieces of a file, and then wait for the first shard.

    The file gets its name after the last piece, and so only after the first shard has its name.
    """
    yield from pieces
    first.result()
