"""From sample numbers to bytes in memory.

A *table* says where the resident shards lie; kernels read it without the GIL. Shards come into a
table when they are first touched and never leave it: to evict, a new table takes its place, and
the old one, which holds its maps and buffers, dies with the last call that reads through it.
"""

from __future__ import annotations

import mmap
import resource
import threading
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np

from npstream import kernels, memory
from npstream._typing import Bytes, Int64
from npstream.errors import FormatError, IntegrityError
from npstream.formats import mds, text
from npstream.formats.compression import decompress
from npstream.formats.hashes import digest, fastest
from npstream.formats.index import File, Index
from npstream.store import LocalStore

Verify = bool | str


@dataclass(frozen=True, slots=True)
class Region:
    """A shard in memory: its bytes, its offsets (uint32, over its own or its meta file's bytes),
    where its samples begin, and their stride (0 if their sizes vary)."""

    data: Bytes
    offsets: np.ndarray[Any, np.dtype[np.uint32]]
    begin: int
    stride: int

    @property
    def place(self) -> tuple[int, int, int, int, int]:
        """The shard's row in the table that kernels read."""
        address = memory.address_of(self.data)
        return address, memory.address_of(self.offsets), self.begin, len(self.data), self.stride


@dataclass(slots=True)
class Table:
    """Where the resident shards lie (see `npstream.kernels`), and what keeps them there."""

    place: Int64
    regions: dict[int, Region] = field(default_factory=dict)
    owned: dict[int, int] = field(default_factory=dict)  # buffers, not maps: shard -> bytes


@dataclass(frozen=True, slots=True)
class Split:
    """How to take samples apart: the arguments of `npstream.kernels.split`, without addresses."""

    nvariable: int
    nfixed: int
    fixed: Int64
    variable: Int64


class Fetcher:
    """The shards of one dataset, brought into memory as they are touched.

    Parameters
    ----------
    index : Index
    store : LocalStore
    verify : bool or str
        "auto" checks the recorded hash of what is decompressed, True also that of mapped files,
        the name of a hash that one; False none.
    """

    def __init__(self, index: Index, store: LocalStore, verify: Verify = "auto") -> None:
        self.index = index
        self.store = store
        self.verify = verify
        self.layouts = [mds.layout(s) if s.format == "mds" else None for s in index.schemas]
        self._start()

    def _start(self) -> None:
        self._lock = threading.RLock()
        self._publish = threading.Lock()
        self._cold = _Coldness()
        self._lookup = (self.index.starts, self.index.guide, self.index.shift)
        self.table: Table | None = Table(np.zeros((max(len(self.index), 1), 5), np.int64))

    def __getstate__(self) -> tuple[Index, LocalStore, Verify]:
        return self.index, self.store, self.verify

    def __setstate__(self, state: tuple[Index, LocalStore, Verify]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def close(self) -> None:
        """Let go of every map and buffer; calls that are reading finish first."""
        self.table = None

    def current(self) -> Table:
        """Return the table to read through; the caller holds it while it does."""
        if (table := self.table) is None:
            raise ValueError(f"{self.store.root}: the dataset is closed; open it again")
        return table

    def locate(self, ids: Int64) -> tuple[Int64, Int64, object]:
        """Find the bytes of samples.

        Returns
        -------
        address, nbytes : ndarray of int64, shape (n,)
            Where each sample lies, and its length.
        held : object
            What must be referred to while the addresses are in use.
        """
        address, nbytes = np.empty((2, len(ids)), np.int64)
        table = self.current()
        locate = kernels.locate.sized(len(ids))
        code = locate(ids, *self._lookup, table.place, address, nbytes)
        held: list[object] = [table]
        if code > 0:
            table = self._ensure(np.unique(nbytes[address == 0]))
            held = [table]
            code = locate(ids, *self._lookup, table.place, address, nbytes)
        if code > 0:
            held += self._borrow(ids, address, nbytes)
        elif code < 0:
            self.damaged(int(ids[-1 - code]), "its offsets do not fit the shard")
        return address, nbytes, held

    def read(self, ids: Int64, how: Split, addresses: Int64) -> tuple[Int64, object]:
        """Copy the fixed columns of MDS samples, and find the bytes of variable ones.

        Parameters
        ----------
        ids : ndarray of int64, shape (n,)
        how : Split
        addresses : ndarray of int64
            Where each column of ``how.fixed`` is to go.

        Returns
        -------
        spans : ndarray of int64, shape (variable columns, 2, n)
            Address and length of each value.
        held : object
            What must be referred to while the addresses are in use.
        """
        n = len(ids)
        fixed = how.fixed.copy()
        fixed[:, 3] = addresses
        spans = np.empty((len(how.variable), 2, n), np.int64)
        columns = (how.nvariable, how.nfixed, fixed, how.variable, spans)
        advise = self._cold.advise()
        if not advise:
            table = self.current()
            address, nbytes = np.empty((2, n), np.int64)
            read = kernels.read.sized(n)
            code = read(ids, *self._lookup, table.place, address, nbytes, *columns)
            self._cold.observe(n)
            if code == 0:
                return spans, table
        address, nbytes, held = self.locate(ids)
        if advise:
            _prefetch(address, nbytes)
        code = kernels.split.sized(n)(address, nbytes, *columns)
        if code < 0:
            self.damaged(int(ids[-1 - code]), "the sizes of its columns do not add up to its own")
        return spans, held

    def prefetch(self, ids: Int64) -> None:
        """Ask for the pages of samples that will be read soon, if pages have been missing."""
        if self._cold.expected:
            address, nbytes, _held = self.locate(ids)
            _prefetch(address, nbytes)

    def region(self, shard: int) -> Region:
        """Return a shard in memory, brought there if need be."""
        table = self.current()
        region = table.regions.get(shard)
        if region is None:
            region = self._ensure(np.array([shard])).regions.get(shard)
        return self._open(shard) if region is None else region

    def damaged(self, sample: int, what: str, cause: Exception | None = None) -> NoReturn:
        """Raise FormatError for a sample, saying where it is stored."""
        raise FormatError(f"{self.describe(sample)}: {what}") from cause

    def require_hash(self, name: str) -> None:
        """Raise ValueError unless the index records the hash that is to be checked."""
        files = self.index.files(0)
        recorded = sorted(files.data.hashes)
        if name not in recorded:
            raise ValueError(
                f"verify={name!r}, but {self.index.where} records {recorded or 'no hashes'}"
            )

    def describe(self, sample: int) -> str:
        """Say where a sample is stored, for messages."""
        shard = int(np.searchsorted(self.index.starts, sample, side="right")) - 1
        row = sample - int(self.index.starts[shard])
        where = self.store.where(self.index.name(shard))
        return f"{where} (shard {shard}): sample {row} (sample {sample} of the dataset)"

    # Bringing shards in

    def _ensure(self, shards: Int64) -> Table:
        """Bring shards into the table, as far as maps and memory allow, and return it."""
        with self._lock:
            table = self.current()
            missing = [shard for shard in shards.tolist() if shard not in table.regions]
            owned = {s: n for s in missing if (n := self._buffered(s))}
            table = self._make_room(table, sum(owned.values()))
            room = _budget(table) - sum(table.owned.values())
            maps = memory.map_budget()
            fresh: dict[int, Region] = {}
            for shard in missing:
                if owned.get(shard, 0) > room or (shard not in owned and maps < 2):
                    continue  # its samples are borrowed instead, one shard after the other
                fresh[shard] = self._open(shard)
                if shard in owned:
                    room -= owned[shard]
                    table.owned[shard] = owned[shard]
                else:
                    maps -= 2
            for shard, region in fresh.items():
                table.regions[shard] = region
                table.place[shard, 1:] = region.place[1:]
            with self._publish:
                pass  # releasing a lock orders the stores above before those below
            for shard, region in fresh.items():
                table.place[shard, 0] = region.place[0]
            return table

    def _make_room(self, table: Table, nbytes: int) -> Table:
        """Return a table with room for `nbytes` of buffers: the oldest leave, if they must."""
        if not (nbytes and table.owned):
            return table
        excess = sum(table.owned.values()) + nbytes - _budget(table)
        if excess <= 0:
            return table
        table = Table(table.place.copy(), dict(table.regions), dict(table.owned))
        for shard in list(table.owned):
            if excess > 0:
                excess -= table.owned.pop(shard)
                del table.regions[shard]
                table.place[shard] = 0
        self.table = table
        return table

    def _buffered(self, shard: int) -> int:
        """Return the bytes of memory that a shard takes beside maps: 0 unless it is compressed."""
        files = self.index.files(shard)
        if files.zip_data is None or self.store.exists(files.data.name):
            return 0
        return files.data.nbytes + (files.meta.nbytes if files.meta else 0)

    def _borrow(self, ids: Int64, address: Int64, nbytes: Int64) -> list[object]:
        """Read the samples of shards that cannot stay, and fill in where they now lie."""
        absent = np.flatnonzero(address == 0)
        shard_of = nbytes[absent]
        held: list[object] = []
        for shard in np.unique(shard_of).tolist():
            samples = absent[shard_of == shard]
            parts, guard = self._samples(shard, ids[samples] - self.index.starts[shard])
            arena = np.frombuffer(b"".join(parts), np.uint8)
            lengths = np.array([len(part) for part in parts], np.int64)
            address[samples] = memory.address_of(arena) + np.cumsum(lengths) - lengths + guard
            nbytes[samples] = lengths - guard
            held.append(arena)
        return held

    def _samples(self, shard: int, rows: Int64) -> tuple[list[bytes], int]:
        """Read samples of one shard, each with as many bytes before it as are returned too."""
        files, first = self.index.files(shard), int(self.index.starts[shard])
        count = int(self.index.starts[shard + 1]) - first
        schema = self.index.schemas[self.index.schema_of[shard]]
        layout = self.layouts[self.index.schema_of[shard]]
        guard, low = text.guard(schema), 0 if files.meta else 4 * (count + 2)
        region = self._open(shard) if self._buffered(shard) else None
        if region is not None:
            begins, ends = region.offsets[rows].astype(np.int64), region.offsets[rows + 1]
        elif layout is not None and layout.stride:
            begins = files.data.nbytes - (count - rows) * layout.stride
            ends = begins + layout.stride
        else:
            head = (files.meta or files.data).name
            pairs = b"".join(self.store.ranges(head, [(4 + 4 * row, 8) for row in rows.tolist()]))
            begins, ends = np.frombuffer(pairs, "<u4").reshape(-1, 2).T.astype(np.int64)
        wrong = (begins < max(low, guard)) | (ends < begins) | (ends > files.data.nbytes)
        if wrong.any():
            self.damaged(first + int(rows[wrong.argmax()]), "its offsets do not fit the shard")
        begins = begins - guard
        spans = list(zip(begins.tolist(), (ends - begins).tolist(), strict=True))
        if region is not None:
            return [region.data[at : at + nbytes].tobytes() for at, nbytes in spans], guard
        return self.store.ranges(files.data.name, spans), guard

    def _open(self, shard: int) -> Region:
        """Map or decompress a shard's files, and check them against the index."""
        files = self.index.files(shard)
        number = int(self.index.schema_of[shard])
        schema, layout = self.index.schemas[number], self.layouts[number]
        samples = int(self.index.starts[shard + 1] - self.index.starts[shard])
        data = self._load(files.data, files.zip_data, files.compression)
        try:
            if layout is not None:
                begin = mds.samples_begin(data, samples, layout.stride)
                head, stride = data, layout.stride
            else:
                assert files.meta is not None  # the index is checked for it
                head, stride = self._load(files.meta, files.zip_meta, files.compression), 0
                begin = text.lines_begin(schema, data, head, samples)
        except FormatError as error:
            where = self.store.where(files.data.name)
            raise FormatError(f"{where} (shard {shard}): {error}") from None
        if not stride and isinstance(head.base, memory.Map):
            memory.will_need(head[: 4 * (samples + 2)])
        return Region(data, head[4 : 4 * (samples + 2)].view("<u4"), begin, stride)

    def _load(self, raw: File, zipped: File | None, compression: str | None) -> Bytes:
        """Return a file's bytes: the stored file mapped, or else the compressed one unpacked."""
        if zipped is None or self.store.exists(raw.name):
            data = self.store.map(raw.name)
            if len(data) != raw.nbytes:
                raise FormatError(
                    f"{self.store.where(raw.name)}: {len(data)} bytes; "
                    f"the index says {raw.nbytes}"
                )
            self._verify(data, raw, self.verify != "auto")
            return data
        if compression is None:
            raise FormatError(
                f"{self.store.where(zipped.name)}: compressed, but the index names no compression"
            )
        packed = self.store.read(zipped.name)
        memory.ensure_fits(raw.nbytes, f"decompressing {self.store.where(zipped.name)}")
        # What the recorded hash of the content covers need not be hashed before, too.
        self._verify(packed, zipped, self.verify != "auto" or not raw.hashes)
        try:
            data = np.frombuffer(decompress(packed, compression, raw.nbytes), np.uint8)
        except FormatError as error:
            raise FormatError(f"{self.store.where(zipped.name)}: {error}") from error
        self._verify(data, raw, True)
        return data

    def _verify(self, data: Bytes | bytes, file: File, wanted: bool) -> None:
        """Compare a file's recorded hash with its bytes'."""
        if not self.verify or not wanted:
            return
        name = self.verify if isinstance(self.verify, str) and self.verify != "auto" else None
        name = name or fastest(file.hashes)
        if name is None:
            return
        if name not in file.hashes:
            raise IntegrityError(
                f"{self.store.where(file.name)}: the index records no {name}, which verify= asks for"
            )
        if (found := digest(name, data)) != file.hashes[name]:
            raise IntegrityError(
                f"{self.store.where(file.name)}: its {name} is {found}; "
                f"the index says {file.hashes[name]}"
            )


class _Coldness:
    """Whether pages should be asked for before they are read.

    That costs a system call a row and saves most of the time of a page fault, so it pays on cold
    data only. The process's count of major faults tells: a read that was not announced and
    faulted makes the next ones announced, for twice as many reads each time in a row.
    """

    def __init__(self) -> None:
        self._announce = self._streak = 4
        self._faults = _major_faults()

    @property
    def expected(self) -> bool:
        """Whether the next read will be announced."""
        return self._announce > 0

    def advise(self) -> bool:
        """Count a read; tell whether it is to be announced."""
        if self._announce:
            self._announce -= 1
            if not self._announce:
                self._faults = _major_faults()
            return True
        return False

    def observe(self, rows: int) -> None:
        """Take note of what a read of `rows` rows that was not announced has done."""
        faults = _major_faults()
        if faults - self._faults > rows >> 6:
            self._streak = min(2 * self._streak, 1 << 12)
            self._announce = self._streak
        else:
            self._streak = 4
        self._faults = faults


def _major_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


def _prefetch(address: Int64, nbytes: Int64) -> None:
    """Ask for the pages of spans, neighbours merged."""
    if (address[1:] < address[:-1]).any():
        order = np.argsort(address)
        address, nbytes = address[order], nbytes[order]
    kernels.prefetch.sized(len(address))(address, nbytes, mmap.PAGESIZE, _GAP)


_GAP = 1 << 14
"""Bytes between two rows that are read rather than skipped."""


def _budget(table: Table) -> int:
    """Return the bytes that decompressed shards may take: a quarter of what would be free."""
    return (memory.available() + sum(table.owned.values())) // 4
