"""From sample numbers to bytes in memory.

A *table* says where the resident shards lie; kernels read it without the GIL. Shards come into a
table when they are first touched and never leave it: to evict, a new table takes its place, and
the old one, which holds its maps and buffers, dies with the last call that reads through it.
"""

from __future__ import annotations

import os
import threading
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from npstream import kernels, memory, pages
from npstream._typing import Int64
from npstream.shards import Region, Shards, Verify

if TYPE_CHECKING:
    from npstream.formats.index import Index
    from npstream.store import LocalStore


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
        self.shards = Shards(index, store, verify)
        self.layouts = self.shards.layouts
        self._start()

    def _start(self) -> None:
        self.renew_locks()
        _fetchers.add(self)
        self._cold = pages.Coldness()
        self._announced: tuple[Int64, ...] = ()
        self._lookup = (self.index.starts, self.index.guide, self.index.shift)
        self.table: Table | None = Table(np.zeros((max(len(self.index), 1), 7), np.int64))

    def renew_locks(self) -> None:
        """Replace the locks, which a thread that a forked process does not have may have held."""
        self._lock = threading.RLock()
        self._publish = threading.Lock()

    def __getstate__(self) -> tuple[Index, LocalStore, Verify]:
        return self.index, self.store, self.shards.verify

    def __setstate__(self, state: tuple[Index, LocalStore, Verify]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def close(self) -> None:
        """Let go of every map and buffer; calls that are reading finish first."""
        with self._lock:
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

    def read(self, ids: Int64, how: Split, fixed: Int64) -> tuple[Int64, object]:
        """Copy the fixed columns of MDS samples, and find the bytes of variable ones.

        Parameters
        ----------
        ids : ndarray of int64, shape (n,)
        how : Split
        fixed : ndarray of int64
            ``how.fixed``, with the addresses of the outputs.

        Returns
        -------
        spans : ndarray of int64, shape (variable columns, 2, n)
            Address and length of each value.
        held : object
            What must be referred to while the addresses are in use.
        """
        n = len(ids)
        spans = np.empty((len(how.variable), 2, n), np.int64)
        announced = any(ids is asked for asked in self._announced)
        if announced or self._cold.warm:
            table = self.current()
            address, nbytes = np.empty(n, np.int64), np.empty(n, np.int64)
            code = kernels.read.sized(n)(
                ids, *self._lookup, table.place, address, nbytes,
                how.nvariable, how.nfixed, fixed, how.variable, spans,
            )  # fmt: skip
            if not announced:
                self._cold.observe(n)
            if code == 0:
                return spans, table
        address, nbytes, held = self.locate(ids)
        self._cold.prepare(address, nbytes)
        code = kernels.split.sized(n)(
            address, nbytes, how.nvariable, how.nfixed, fixed, how.variable, spans
        )
        if code < 0:
            self.damaged(int(ids[-1 - code]), "the sizes of its columns do not add up to its own")
        return spans, held

    def prefetch(self, ids: Int64) -> None:
        """Ask for the pages of samples, if pages have been missing, while others are read.

        A read of the same array of ids then does not ask again. The last two are remembered: who
        reads ahead asks for the next one before this one is read.
        """
        if self._cold.expected:
            address, nbytes, _held = self.locate(ids)
            self._cold.prepare(address, nbytes)
            self._announced = (*self._announced[-1:], ids)

    def region(self, shard: int) -> Region:
        """Return a shard in memory, brought there if need be."""
        table = self.current()
        region = table.regions.get(shard)
        if region is None:
            region = self._ensure(np.array([shard])).regions.get(shard)
        return self.shards.open([shard])[shard] if region is None else region

    def damaged(self, sample: int, what: str, cause: Exception | None = None) -> NoReturn:
        """Raise FormatError for a sample, saying where it is stored."""
        self.shards.damaged(sample, what, cause)

    # Bringing shards in

    def _ensure(self, shards: Int64) -> Table:
        """Bring shards into the table, as far as maps and memory allow, and return it."""
        with self._lock:
            table = self.current()
            missing = [shard for shard in shards.tolist() if shard not in table.regions]
            owned = {s: n for s in missing if (n := self.shards.buffered(s))}
            table = self._make_room(table, sum(owned.values()))
            room = _budget(table) - sum(table.owned.values())
            maps = memory.map_budget()
            admitted = []
            for shard in missing:
                if owned.get(shard, 0) > room or (shard not in owned and maps < 2):
                    continue  # its samples are borrowed instead, one shard after the other
                admitted.append(shard)
                if shard in owned:
                    room -= owned[shard]
                else:
                    maps -= 2
            fresh = self.shards.open(admitted)
            for shard, region in fresh.items():
                table.regions[shard] = region
                if shard in owned:
                    table.owned[shard] = owned[shard]
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

    def _borrow(self, ids: Int64, address: Int64, nbytes: Int64) -> list[object]:
        """Read the samples of shards that cannot stay, and fill in where they now lie."""
        absent = np.flatnonzero(address == 0)
        shard_of = nbytes[absent]
        held: list[object] = []
        for shard in np.unique(shard_of).tolist():
            samples = absent[shard_of == shard]
            parts, guard = self.shards.samples(shard, ids[samples] - self.index.starts[shard])
            arena = np.frombuffer(b"".join(parts), np.uint8)
            lengths = np.array([len(part) for part in parts], np.int64)
            address[samples] = memory.address_of(arena) + np.cumsum(lengths) - lengths + guard
            nbytes[samples] = lengths - guard
            held.append(arena)
        return held


_fetchers: weakref.WeakSet[Fetcher] = weakref.WeakSet()


def _renew_locks() -> None:
    for fetcher in _fetchers:
        fetcher.renew_locks()


os.register_at_fork(after_in_child=_renew_locks)


def _budget(table: Table) -> int:
    """Return the bytes that decompressed shards may take: a quarter of what would be free."""
    return (memory.available() + sum(table.owned.values())) // 4
