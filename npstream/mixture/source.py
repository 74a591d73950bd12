"""What a mixture reads from: the samples of several views as those of one source.

Samples are numbered as rows of the views, laid end to end. One look-up turns rows into samples of
the joined datasets, which are read as those of one are.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from npstream._core.arrays import Rows, grouped
from npstream._core.typing import AnyArray, Bools, Int64, Sample
from npstream.errors import ColumnError, stopped
from npstream.indexing.concatenation import Concatenation
from npstream.indexing.selection import Selection
from npstream.orders.chunks import view_chunks
from npstream.reading.batch import Ragged
from npstream.reading.gather import Field, Plan
from npstream.reading.source import Member, Reader, Source, T
from npstream.shards.table import Fetcher
from npstream.shards.union import ShardUnion
from npstream.writing.shard import Bodies

if TYPE_CHECKING:
    from npstream.shards.locality import ReadOrder

SOURCE = "source"
"""The column that says which source a sample is of."""

BLOCK = 1 << 20
"""Samples that are looked up at once."""


class MixedSource(Source):
    """The samples of several views, by their rows when the views are laid end to end.

    Parameters
    ----------
    members : sequence of Member
        None of the views is empty. Those of one source share all that is in memory.
    fields : mapping of str to Field
        The columns that all of them have, with one meaning; and `SOURCE`, if it is to be made.
    partial : mapping of str to str
        What is wrong with each of the others.
    names_sources : bool
        Whether column `SOURCE` is made, of the names of the sources.

    Attributes
    ----------
    rows : Concatenation
        Where each view begins, and which joined samples rows are.
    """

    __slots__ = (
        "_has_transforms",
        "_known",
        "_members",
        "_names",
        "_parts",
        "_remotes",
        "_total",
        "names_sources",
        "rows",
    )  # fmt: skip

    def __init__(
        self,
        members: Sequence[Member],
        fields: Mapping[str, Field],
        partial: Mapping[str, str],
        names_sources: bool = False,
    ) -> None:
        self._members = tuple(members)
        self.names_sources = names_sources
        parts = {id(member.source): member.source for member in self.members}
        self._parts = tuple(parts.values())
        joined = ShardUnion([part.fetcher.shards for part in self._parts])
        self._remotes = [part for part in self._parts if part.remote is not None]
        limits = [part.limit for part in self._remotes if part.limit is not None]
        super().__init__(Fetcher(joined), fields, partial, min(limits, default=None))
        firsts = dict(zip(parts, joined.first_samples, strict=False))
        self.rows = Concatenation(
            [member.selection for member in self.members],
            [firsts[id(member.source)] for member in self.members],
        )
        self._total = sum(map(self.member_bytes, range(len(self.members))))
        self._has_transforms = any(member.transform is not None for member in self.members)
        self._names: Ragged = Ragged.from_list([member.name for member in self.members], "str")
        self._known: tuple[Int64, Int64] = (_NONE, _NONE)

    def __reduce__(self) -> tuple[Any, ...]:
        return MixedSource, (self.members, self.fields, self.partial, self.names_sources)

    @property
    def members(self) -> tuple[Member, ...]:
        """The views that the mixture is made of."""
        return self._members

    def field(self, name: str) -> Field:
        """Return the column of that name, or say why there is none."""
        if name in self.partial and name not in self.fields:
            raise ColumnError.saying(self.partial[name])
        return super().field(name)

    def member_bytes(self, number: int) -> int:
        """Return the bytes of a view's samples, about."""
        member = self.members[number]
        return member.source.bytes_of(member.selection.size)

    def member_chunks(self, number: int) -> AnyArray:
        """Return the first row, in a view, of each chunk of it, then the number of rows."""
        member = self.members[number]
        return view_chunks(member.source.chunk_starts(), member.selection)

    # Reading

    def _stored(self, ids: Int64) -> Int64:
        """Return the joined samples at rows."""
        rows, stored = self._known
        return stored if rows is ids else self.rows.at(ids)

    def ahead(
        self,
        pieces: Iterable[T],
        ids_of: Callable[[T], Int64],
        step: int = 0,
        is_rowwise: bool = False,
    ) -> Iterator[T]:
        """Yield pieces of work, as `npstream.shards.table.Fetcher.ahead` does."""
        looked_up = ((piece, self.rows.at(ids_of(piece))) for piece in pieces)
        step = step if self.rows.rises else 0
        for piece, stored in self.fetcher.ahead(looked_up, itemgetter(1), step, is_rowwise):
            self._known = ids_of(piece), stored  # which will be read next
            yield piece

    def _stored_order(self, order: ReadOrder) -> ReadOrder:
        return order._replace(first=lambda n: self.rows.at(order.first(n)))

    def _named(self, names: Iterable[str]) -> tuple[tuple[str, ...], bool]:
        """Return the columns that are stored, and whether that of the sources is wanted, too."""
        wanted = tuple(names)
        if not self.names_sources or SOURCE not in wanted:
            return wanted, False
        return tuple(name for name in wanted if name != SOURCE), True

    def _is_made(self, plan: Plan) -> bool:
        """Tell whether a plan is that of the column of the sources."""
        if not self.names_sources or [f.name for f in plan.fields] != [SOURCE]:
            return False
        if plan.fields[0].encoding.kind != "str":
            raise ValueError(f"column {SOURCE!r} is made, not stored: its bytes mean its text")
        return True

    def columns(
        self, plan: Plan, ids: Int64, out: Mapping[str, AnyArray]
    ) -> dict[str, AnyArray | Ragged]:
        """Read columns of samples as a batch holds them."""
        if self._is_made(plan):
            return {SOURCE: self._names_at(ids)}
        columns = self._read(self._stored_plan(plan), self._stored(ids), out)
        if len(columns) == len(plan.fields):
            return columns
        columns[SOURCE] = self._names_at(ids)
        return {f.name: columns[f.name] for f in plan.fields}

    def _stored_plan(self, plan: Plan) -> Plan:
        """Return how to read those of some columns that are stored."""
        stored, is_named = self._named(f.name for f in plan.fields)
        return self.plan(stored) if is_named else plan

    def _names_at(self, ids: Int64) -> Ragged:
        found: Ragged = self._names[self.rows.which(ids)]
        return found

    def _read(
        self, plan: Plan, stored: Int64, out: Mapping[str, AnyArray]
    ) -> dict[str, AnyArray | Ragged]:
        """Read columns of joined samples."""
        one = len(plan.fields) == 1 and len(stored) > 0
        if not (one and any(part.scalars(plan) for part in self.remotes)):
            return self._gathered(plan, stored, out)
        # Some values may be in side-cars, which their datasets know how to read.
        (field,) = plan.fields
        column = out[field.name] if field.name in out else field.allocate(len(stored))

        def read(number: int, rows: Rows) -> None:
            mine = stored[rows] - self._shards.first_samples[number]
            values = self._parts[number].columns(Plan(plan.fields), mine, {})
            column[rows] = values[field.name]

        self._shards.each(self._by_part(stored), read)
        return {field.name: column}

    @property
    def _shards(self) -> ShardUnion:
        shards: Any = self.fetcher.shards
        return shards  # type: ignore[no-any-return]

    def _by_part(self, stored: Int64) -> Iterator[tuple[int, Rows]]:
        """Yield the number of each dataset that joined samples are of, and which are."""
        return grouped(np.searchsorted(self._shards.first_samples, stored, side="right") - 1)

    def samples(self, names: tuple[str, ...], ids: Int64) -> Iterator[Any]:
        """Read samples, all at once, and yield them as their sources' transforms make them."""
        stored, is_named = self._named(names)
        samples = super().samples(stored, self._stored(ids))
        if not (is_named or self.has_transforms):
            return samples
        whose = map(self.members.__getitem__, self.rows.which(ids).tolist())
        # Not a generator, which would end where a transform raises.
        return map(_finished, samples, whose, repeat(names if is_named else None))

    def values(self, plan: Plan, ids: Int64) -> list[Any]:
        """Read one column of samples as samples hold it."""
        if self._is_made(plan):
            return [self.members[number].name for number in self.rows.which(ids).tolist()]
        return super().values(plan, self._stored(ids))

    def bodies(self, plan: Plan, ids: Int64) -> dict[str, Bodies]:
        """Find columns of samples as they are stored, to be copied."""
        if self._is_made(plan):
            return {SOURCE: self._name_bodies(ids)}
        found = super().bodies(self._stored_plan(plan), self._stored(ids))
        if len(found) == len(plan.fields):
            return found
        found[SOURCE] = self._name_bodies(ids)
        return {f.name: found[f.name] for f in plan.fields}

    def _name_bodies(self, ids: Int64) -> Bodies:
        names = self._names_at(ids)
        return Bodies.of(names.values, names.offsets)

    def equal(self, plan: Plan, ids: Int64, text: bytes) -> Bools:
        """Compare a column of text with one, where it lies."""
        if self._is_made(plan):
            equal = np.array([member.name.encode() == text for member in self.members])
            return equal[self.rows.which(ids)]
        return super().equal(plan, self._stored(ids), text)

    def reader(self, names: tuple[str, ...]) -> Reader:
        """Return what reads one sample with these columns, as its source's transform makes it."""
        stored, is_named = self._named(names)
        read = self._kept_reader(stored) if stored else _nothing
        finish = names if is_named else None
        return _RowReader(self, lambda sample, at: _finished(read(sample), at, finish))

    def reader_of(self, field: Field) -> Reader:
        """Return what reads one value of a column, which may be redeclared."""
        if self._is_made(Plan([field])):
            return _RowReader(self, lambda _, member: {SOURCE: member.name})
        read = super().reader_of(field)
        return _RowReader(self, lambda sample, _: read(sample))

    @property
    def has_transforms(self) -> bool:
        """Whether samples are passed through functions, before those of a view."""
        return self._has_transforms

    # What reading costs, and where samples are stored

    def stored_plan(self, plan: Plan) -> Plan | None:
        """Return a plan as one of what is stored; None for the column of the sources."""
        return None if self._is_made(plan) else self._stored_plan(plan)

    @property
    def remotes(self) -> list[Source]:
        """Those of the datasets that samples come from which are in object stores."""
        return self._remotes

    def pieces(self, selection: Selection) -> Iterator[tuple[Source, Selection]]:
        """Yield the datasets that a view's samples come from, and which ones; in any order."""
        if selection.affine is not None:
            for number, mine in self.rows.pieces(selection):
                yield self.members[number].source, mine
            return
        for begin in range(0, selection.size, BLOCK):
            stored = self.rows.at(selection.ids(begin, begin + BLOCK))
            for number, rows in self._by_part(stored):
                part = self._parts[number]
                ids = stored[rows] - self._shards.first_samples[number]
                chosen: Any = Selection.all(part.index.samples).select(ids)
                yield part, chosen

    def scalars(self, plan: Plan) -> str | None:
        """Return None: only the datasets themselves have side-cars."""
        return None

    def locate(self, ids: int | Int64) -> tuple[Any, Any]:
        """Return the shard of a sample and its row there; of several samples, in their shape."""
        if isinstance(ids, int):
            return super().locate(int(self.rows.at(np.array([ids]))[0]))
        return super().locate(self.rows.at(ids))

    def stored(self, selection: Selection) -> Selection:
        """Return a view as one of what the index counts."""
        return selection.over(self.rows, self.index.samples)

    def bytes_of(self, samples: int) -> int:
        """Return the bytes of so many average samples."""
        return self._total * samples // len(self.rows)

    def rows_of(self, nbytes: int) -> int:
        """Return how many average samples take about `nbytes`, at least one."""
        return max(1, nbytes * len(self.rows) // max(self._total, 1))

    def chunk_starts(self) -> AnyArray:
        """Return the first row of each chunk of the views, then the number of rows."""
        starts = {id(part): part.chunk_starts() for part in self._parts}
        dtype = np.int32 if len(self.rows) < 1 << 31 else np.int64
        bounds = self.rows.bounds
        chunks = [
            view_chunks(starts[id(m.source)], m.selection)[:-1].astype(dtype, copy=False) + first
            for m, first in zip(self.members, bounds.astype(dtype), strict=False)
        ]
        return np.concatenate([*chunks, bounds[-1:].astype(dtype)])


_NONE: Int64 = np.empty(0, np.int64)


class _RowReader:
    """Reads one sample, by its row."""

    def __init__(self, source: MixedSource, read: Callable[[int, Member], Any]) -> None:
        self._members = source.members
        self._bounds = source.rows.bounds.tolist()
        self._firsts = source.rows.firsts
        self._read = read

    def __call__(self, row: int) -> Any:
        number = bisect_right(self._bounds, row) - 1
        member = self._members[number]
        sample: Any = member.selection.select(row - self._bounds[number])
        return self._read(sample + self._firsts[number], member)


def _nothing(sample: int) -> Sample:
    return {}


def _finished(sample: Sample, member: Member, names: tuple[str, ...] | None) -> Any:
    """Return a sample of a source with its name, if that is among names, as transformed."""
    if names is not None:
        sample = {name: member.name if name == SOURCE else sample[name] for name in names}
    if member.transform is None:
        return sample
    try:
        return member.transform(sample)
    except StopIteration as error:
        raise stopped(f"the transform of source {member.name!r}") from error
