"""Provide `Source`, an opened dataset: its index, its columns, and reads of its samples.

All views of a dataset share one source. Its pickle has the index and the settings, but no memory
maps of files.
"""

from __future__ import annotations

import errno
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np

from npstream._core.dtypes import invalid_bool_byte
from npstream._core.typing import AnyArray, Bools, Int64, Sample
from npstream.errors import ColumnError, FormatError, StorageError
from npstream.formats.index import locate_samples
from npstream.orders.chunks import shard_chunks, view_chunks
from npstream.reading.decode import batch_column, sample_values
from npstream.reading.gather import (
    Lookup,
    column_bodies,
    equal_text,
    find_bodies,
    find_samples,
    gather,
)
from npstream.reading.plan import Field, Plan
from npstream.reading.sample import SampleReader
from npstream.shards.table import RenamedFetcher

if TYPE_CHECKING:
    from npstream.formats.index import Index
    from npstream.indexing.selection import Selection
    from npstream.orders.order import RowOrder, Shuffle
    from npstream.reading.batch import Ragged
    from npstream.shards.base import Shards
    from npstream.shards.locality import ReadOrder
    from npstream.shards.remote import RemoteShards
    from npstream.shards.table import Fetcher
    from npstream.storage.traffic.record import ReadStats
    from npstream.writing.shard import Bodies

T = TypeVar("T")

Reader: TypeAlias = Callable[[int], Sample]
"""Reads a sample, given its row."""

MAX_PART_ROWS = 1 << 8
"""Reads of parts of samples are enlarged up to this number of rows."""

MAX_SIDECAR_SPREAD = 16
"""Beyond a chunk, a read may read this number of side-car values for each value that it needs."""


class Member(NamedTuple):
    """One source of a mixture: a view, and its name in the mixture."""

    name: str
    source: Source
    selection: Selection
    transform: Callable[[Sample], Any] | None = None


class Opening(Protocol):
    """The arguments of the call of `npstream.open` that opened a dataset."""

    @property
    def version(self) -> str | None:
        """The version that the call named; None for the newest."""

    def open(self, version: str | None = None) -> tuple[Source, tuple[str, ...]]:
        """Open a version with the same other arguments; return its source and its columns."""

    def renamed(self, names: Mapping[str, str]) -> Opening:
        """Return an opening whose sources are renamed as by `Source.renamed`."""


class Source:
    """The samples of a dataset, by row number.

    Methods that read several samples take a `Lookup`, from `look_up` or `read_ahead`, because the
    sample numbers of the index may differ from the row numbers.

    Parameters
    ----------
    fetcher : Fetcher
    fields : mapping of str to Field
        The columns that all shards have with the same meaning, and the computed columns.
    column_errors : mapping of str to str
        An error message for each other column.
    limit : int, optional
        The bytes that an implicit read may fetch; by default any number.
    joined_sources : sequence of Source
        Sources with the same rows and other columns. ``Field.table`` of a column is the position
        of its source here, counted from 1. A joined source has no joined sources.
    opening : Opening, optional
        How the dataset was opened; by default unknown, as for a mixture.
    """

    __slots__ = (
        "_plans", "_readers", "column_errors", "fetcher", "fields", "joined_sources", "limit",
        "opening",
    )  # fmt: skip

    def __init__(
        self,
        fetcher: Fetcher,
        fields: Mapping[str, Field],
        column_errors: Mapping[str, str],
        limit: int | None = None,
        joined_sources: Sequence[Source] = (),
        opening: Opening | None = None,
    ) -> None:
        self.fetcher = fetcher
        self.fields = fields
        self.column_errors = column_errors
        self.limit = limit
        self.joined_sources = tuple(joined_sources)
        self.opening = opening
        self._readers: dict[tuple[str, ...], SampleReader] = {}
        self._plans: dict[tuple[str, ...], Plan] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        arguments = self.fetcher, self.fields, self.column_errors, self.limit, self.joined_sources
        return Source, (*arguments, self.opening)

    def close(self) -> None:
        """Release all maps and buffers; calls that are reading finish first."""
        self.fetcher.close()
        for source in self.joined_sources:
            source.close()
        for reader in list(self._readers.values()):
            reader.release()

    def renamed(self, names: Mapping[str, str]) -> Source:
        """Return a source of the same samples, with other names of columns.

        It shares the loaded shards, so that closing either source closes both.

        Parameters
        ----------
        names : mapping of str to str
            Name of a column here -> new name, which may be the same. Other columns are left out.
        """
        source = copy_attributes(self)
        source._readers, source._plans = {}, {}
        tables: dict[int, dict[str, str]] = {}
        for old, new in names.items():
            if (field := self.field(old)).computation is None:
                tables.setdefault(field.table, {})[old] = new
        source.fetcher = RenamedFetcher(self.fetcher, tables.get(0, {}))
        source.joined_sources = tuple(
            joined_source.renamed(tables.get(number, {}))
            for number, joined_source in enumerate(self.joined_sources, 1)
        )
        source.fields = {new: self.field(old)._replace(name=new) for old, new in names.items()}
        source.column_errors = {
            name: text for name, text in self.column_errors.items() if name not in source.fields
        }
        source.opening = self.opening and self.opening.renamed(names)
        return source

    @property
    def members(self) -> tuple[Member, ...]:
        """The views of a mixture; empty for a dataset."""
        return ()

    @property
    def datasets(self) -> tuple[Source, ...]:
        """The sources of single datasets that this source reads, in the order of their samples."""
        return (self,)

    @property
    def index(self) -> Index:
        """The index of the dataset's shards."""
        return self.fetcher.index

    @property
    def remote(self) -> RemoteShards | None:
        """The dataset's shards if they are in an object store, otherwise None."""
        remotes = self.fetcher.remotes
        return remotes[0].shards if remotes else None

    def field(self, name: str) -> Field:
        """Return a column by name, or raise an error that says why there is none."""
        try:
            return self.fields[name]
        except KeyError:
            if name in self.column_errors:
                raise FormatError(self.column_errors[name]) from None
            raise ColumnError(name, self.fields) from None

    def reader(self, names: tuple[str, ...]) -> Reader:
        """Return a function that reads one sample with these columns, given its row."""
        plan = self.plan(names)
        read, add_columns = self._own_reader(plan), self._column_adder(plan)
        return read if add_columns is None else lambda row: add_columns(read(row), row)

    def _own_reader(self, plan: Plan) -> Reader:
        """Return a function that reads one sample's columns from the source's own shards."""
        if not plan.own_plan.fields and not plan.has_only_own_columns:
            return _read_no_columns
        return self._cached_reader(tuple(f.name for f in plan.own_plan.fields)).read

    def _column_adder(self, plan: Plan) -> Callable[[Sample, int], Sample] | None:
        """Return a function that adds joined and computed columns to the sample of a row."""
        if plan.has_only_own_columns:
            return None
        readers = [
            self.joined_sources[number - 1].reader(tuple(f.name for f in joined_plan.fields))
            for number, joined_plan in plan.joined_plans.items()
        ]

        def add_columns(sample: Sample, row: int) -> Sample:
            for read in readers:
                sample |= read(row)
            return plan.add_computed(sample, row)

        return add_columns

    def _cached_reader(self, names: tuple[str, ...]) -> SampleReader:
        reader = self._readers.get(names)
        if reader is None:
            fields = [self.field(name) for name in names]
            # Threads must share one reader, so that `close` releases it.
            reader = self._readers.setdefault(names, self._make_reader(fields))
        return reader

    def value_reader(self, field: Field) -> Reader:
        """Return a function that reads one value of a column; `field` may have another encoding."""
        if (computed := field.computation) is not None:
            return lambda row: {field.name: computed.value(row)}
        if field.table:
            return self.joined_sources[field.table - 1].value_reader(field._replace(table=0))
        if self.field(field.name).encoding is field.encoding:
            return self._cached_reader((field.name,)).read
        return self._make_reader([field]).read

    def _make_reader(self, fields: list[Field]) -> SampleReader:
        return SampleReader(self.fetcher, Plan(fields))

    def plan(self, names: tuple[str, ...]) -> Plan:
        """Return the plan for reads of several samples with these columns."""
        plan = self._plans.get(names)
        if plan is None:
            plan = self._plans[names] = Plan([self.field(name) for name in names])
        return plan

    def sample_ids(self, rows: Int64) -> Int64:
        """Return the sample numbers of rows in the index."""
        return rows

    def look_up(self, rows: Int64) -> Lookup:
        """Return rows together with their sample numbers, for reads of them."""
        return Lookup(rows, self.sample_ids(rows))

    def columns(
        self, plan: Plan, lookup: Lookup, out: Mapping[str, AnyArray]
    ) -> dict[str, AnyArray | Ragged]:
        """Read columns of samples, in the form of a batch's columns."""
        if plan.has_only_own_columns:
            return self._own_columns(plan, lookup, out)
        columns = self._own_columns(plan.own_plan, lookup, out)
        for source, joined_plan, joined_lookup in self.joined_parts(plan, lookup):
            columns |= source.columns(joined_plan, joined_lookup, out)
        for f in plan.fields:
            if f.computation is not None:
                column = f.computation.column(lookup.rows)
                target = out.get(f.name)
                columns[f.name] = batch_column(self.fetcher, f, column, lookup.samples, target)
        return {f.name: columns[f.name] for f in plan.fields}

    def joined_parts(self, plan: Plan, lookup: Lookup) -> Iterator[tuple[Source, Plan, Lookup]]:
        """Yield the joined sources of a plan, each with its plan and its lookup of the rows."""
        for number, joined_plan in plan.joined_plans.items():
            source = self.joined_sources[number - 1]
            joined_lookup = lookup.joined_lookups.get(number) or source.look_up(lookup.rows)
            yield source, joined_plan, joined_lookup

    def _own_columns(
        self, plan: Plan, lookup: Lookup, out: Mapping[str, AnyArray]
    ) -> dict[str, AnyArray | Ragged]:
        """Read columns of the source's own shards, or a single column from side-cars."""
        fetcher, samples = self.fetcher, lookup.samples
        if fetcher.remotes and (column := self._sidecar_column(plan, lookup, out)) is not None:
            return column
        stored = gather(fetcher, plan, samples, out, lookup.is_prefetched)
        columns = {}
        for f in plan.fields:
            name = f.name
            columns[name] = batch_column(fetcher, f, stored[name], samples, out.get(name))
        return columns

    def _sidecar_column(
        self, plan: Plan, lookup: Lookup, out: Mapping[str, AnyArray]
    ) -> dict[str, AnyArray | Ragged] | None:
        """Read the only column of a plan from the side-car; None if that is not cheaper."""
        ids, name = lookup.samples, self.sidecar_column_name(plan)
        if name is None or not len(ids):
            return None
        first, last = int(ids.min()), int(ids.max())
        if not self.reads_sidecar(plan, first, last, len(ids)):
            return None
        values = self._sidecar_values(plan.fields[0], first, last + 1)
        if values is None:
            return None
        # All positions exist; "clip" avoids a copy of `out`.
        return {name: np.take(values, ids - first, out=out.get(name), mode="clip")}

    def _sidecar_values(self, field: Field, first: int, stop: int) -> AnyArray | None:
        """Read a slice of a side-car column; return None, with a warning, if it cannot be read."""
        remote = self.remote
        assert remote is not None
        sidecar = remote.files.sidecar
        assert sidecar is not None
        name = self.fetcher.stored_name(field.name)
        try:
            values = remote.sidecar_column(name, first, stop).view(field.encoding.dtype)
        except StorageError as error:
            if error.errno not in (errno.ENOENT, errno.EACCES):
                raise
            warnings.warn(
                f"column {field.name!r} is read from the shards, as its file in the side-car "
                f"cannot be read: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
            sidecar.drop_column(name)
            return None
        if (byte := invalid_bool_byte(values)) is not None:
            where = sidecar.where
            raise FormatError(f"{where}: column {field.name!r}: the byte {byte} is not a bool")
        return values

    def samples(self, names: tuple[str, ...], lookup: Lookup) -> Iterator[Sample]:
        """Read samples at once, and yield them."""
        plan = self.plan(names)
        columns = self.value_lists(plan, lookup) if plan.fields else {}
        return self.make_samples(plan, columns, lookup)

    def make_samples(
        self, plan: Plan, columns: Mapping[str, list[Any]], lookup: Lookup
    ) -> Iterator[Sample]:
        """Yield samples, given the values of each column."""
        if not plan.fields:  # shards may have no column in common
            return ({} for _ in lookup.samples)
        names = [f.name for f in plan.fields]
        values = [columns[name] for name in names]
        return (dict(zip(names, row, strict=True)) for row in zip(*values, strict=True))

    def values(self, plan: Plan, lookup: Lookup) -> list[Any]:
        """Read one column of samples, in the form of a sample's values."""
        (field,) = plan.fields
        return self.value_lists(plan, lookup)[field.name]

    def value_lists(self, plan: Plan, lookup: Lookup) -> dict[str, list[Any]]:
        """Read columns of samples, each as a list of values of samples."""
        columns = _own_value_lists(self.fetcher, plan.own_plan, lookup)
        if plan.has_only_own_columns:
            return columns
        for source, joined_plan, joined_lookup in self.joined_parts(plan, lookup):
            columns |= source.value_lists(joined_plan, joined_lookup)
        for f in plan.fields:
            if f.computation is not None:
                column = f.computation.column(lookup.rows)
                columns[f.name] = sample_values(self.fetcher, f, column, lookup.samples)
        return columns

    def bodies(self, plan: Plan, lookup: Lookup) -> dict[str, Bodies]:
        """Locate the stored bytes of columns, for a writer to copy."""
        bodies = find_bodies(self.fetcher, plan.own_plan, lookup.samples)
        for source, joined_plan, joined_lookup in self.joined_parts(plan, lookup):
            bodies |= source.bodies(joined_plan, joined_lookup)
        for name, computation in plan.computed.items():
            bodies[name] = column_bodies(computation.column(lookup.rows))
        return bodies

    def whole_samples(self, lookup: Lookup) -> Bodies:
        """Locate the stored bytes of whole samples, for a writer to copy."""
        return find_samples(self.fetcher, lookup.samples)

    def equal(self, plan: Plan, lookup: Lookup, text: bytes) -> Bools:
        """Return True where a column of text or bytes equals `text`."""
        (field,) = plan.fields
        if field.computation is not None:
            return field.computation.equal(lookup.rows, text)
        for source, joined_plan, joined_lookup in self.joined_parts(plan, lookup):
            return source.equal(joined_plan, joined_lookup, text)  # the only column is joined
        return equal_text(self.fetcher, plan, lookup.samples, text)

    def read_ahead(
        self,
        items: Iterable[T],
        rows_of: Callable[[T], Int64],
        plan: Plan,
        step: int = 0,
        is_rowwise: bool = False,
    ) -> Iterator[tuple[T, Lookup]]:
        """Yield items and the lookups of their rows, while the next items are fetched.

        `plan` has the columns that are read later. `rows_of` returns the rows of an item. The other
        parameters are those of `npstream.shards.table.Fetcher.read_ahead`. Reads of an item take
        its lookup, so that its rows are looked up once.
        """
        pairs: Iterator[tuple[T, Lookup]]
        pairs = ((item, self.look_up(rows_of(item))) for item in items)
        if self.reads_own_shards(plan):
            pairs = self._read_own_ahead(pairs, step, is_rowwise)
        for number in plan.joined_plans:
            pairs = self._read_joined_ahead(number, pairs, step, is_rowwise)
        return pairs

    def reads_own_shards(self, plan: Plan) -> bool:
        """Return True if a plan has columns of the source's own shards, or no stored columns."""
        return plan.has_only_own_columns or bool(plan.own_plan.fields) or not plan.joined_plans

    def _read_own_ahead(
        self, pairs: Iterator[tuple[T, Lookup]], step: int, is_rowwise: bool
    ) -> Iterator[tuple[T, Lookup]]:
        results = self.fetcher.read_ahead(pairs, _samples_of, step, is_rowwise)
        for (item, lookup), is_prefetched in results:
            lookup.is_prefetched = is_prefetched
            yield item, lookup

    def _read_joined_ahead(
        self, number: int, pairs: Iterator[tuple[T, Lookup]], step: int, is_rowwise: bool
    ) -> Iterator[tuple[T, Lookup]]:
        source = self.joined_sources[number - 1]
        # Read-ahead fetches whole samples, so their columns do not matter.
        sample_plan = Plan(list(source.fields.values()))
        for (item, lookup), joined_lookup in source.read_ahead(
            pairs, _rows_of_pair, sample_plan, step, is_rowwise
        ):
            lookup.joined_lookups = {**lookup.joined_lookups, number: joined_lookup}
            yield item, lookup

    def is_rowwise(
        self,
        order: ReadOrder,
        plan: Plan,
        suggest: Callable[[Callable[[ReadOrder], bool]], str] | None = None,
    ) -> bool:
        """Return True if an order of rows is read sample by sample, see `locality.is_rowwise`."""
        if not self.remotes:
            return False
        from npstream.shards import locality

        sources = self.sources_of(plan)
        if len(sources) == 1:
            (source,) = sources
            sample_order = order._replace(prefix=lambda n: source.sample_ids(order.prefix(n)))
            return locality.is_rowwise(source.fetcher.shards, sample_order, suggest)
        from npstream.shards.union import ShardUnion

        # Each row is read from every source, so the sources' sample numbers alternate in the union.
        union = ShardUnion([shards for source in sources for shards in source.shard_parts])
        firsts = [0, *accumulate(source.index.samples for source in sources)]

        def prefix(n: int) -> Int64:
            rows = order.prefix(-(-n // len(sources)))
            ids = [s.sample_ids(rows) + first for s, first in zip(sources, firsts, strict=False)]
            return np.stack(ids, axis=1).ravel()

        return locality.is_rowwise(union, order._replace(prefix=prefix), suggest)

    @property
    def shard_parts(self) -> Sequence[Shards[RemoteShards]]:
        """The shards of each dataset, in the order of their sample numbers in the index."""
        return (self.fetcher.shards,)

    def is_view_rowwise(self, selection: Selection, plan: Plan) -> bool:
        """Return True if a view is read sample by sample when it is read in its order."""
        if selection.step or not self.remotes:
            return False
        from npstream.shards.locality import ReadOrder

        fraction = min(1.0, selection.size / max(self.index.samples, 1))
        order = ReadOrder(lambda n: selection.ids(0, min(n, selection.size)), fraction)
        return self.is_rowwise(order, plan)

    @property
    def shard_indexes(self) -> Sequence[Index]:
        """The index of each of `shard_parts`, with the names of columns in this source."""
        return (self.index,)

    @property
    def has_transforms(self) -> bool:
        """True if the source itself transforms samples, before any transform of a view."""
        return False

    # Costs

    @property
    def remotes(self) -> list[Source]:
        """The sources of the datasets that are in object stores."""
        return [] if self.remote is None else [self]

    def read_stats(self) -> ReadStats:
        """Return the statistics of this process's reads from the stores of this source."""
        from npstream.storage.traffic.record import total_stats

        sources = [part for source in self.remotes for part in (source, *source.joined_sources)]
        remotes = [source.remote for source in (*sources, *self.joined_sources)]
        return total_stats(remote.traffic for remote in remotes if remote is not None)

    def split_by_dataset(self, selection: Selection) -> Iterator[tuple[Source, Selection]]:
        """Yield each dataset of a view, in any order, with the part of the view in it."""
        yield self, selection

    def sidecar_column_name(self, plan: Plan) -> str | None:
        """Return the name of a plan's only column if the side-car has it, otherwise None."""
        if len(plan.fields) != 1 or (remote := self.remote) is None or not remote.files.sidecar:
            return None
        (field,) = plan.fields
        if field.computation is not None:
            return None
        column = remote.files.sidecar.columns.get(self.fetcher.stored_name(field.name))
        if column is None or field.encoding.kind != "fixed" or field.encoding.shape != ():
            return None
        dtype = field.encoding.dtype
        # The side-car has the bytes of MDS values, so they can be declared as another dtype.
        is_viewable = dtype.itemsize == column.dtype.itemsize and self._is_mds
        return field.name if is_viewable or dtype == column.dtype else None

    @property
    def _is_mds(self) -> bool:
        return all(schema.format == "mds" for schema in self.index.schemas)

    def reads_sidecar(self, plan: Plan, first: int, last: int, count: int) -> bool:
        """Return True if `count` values, from `first` to `last`, are read from the side-car."""
        # A range of up to a chunk's bytes is read even for few values. Values count as 8 bytes.
        is_close = last - first < max(MAX_SIDECAR_SPREAD * count, self.index.chunk_bytes // 8)
        return count > 0 and is_close and self.sidecar_column_name(plan) is not None

    # Locations and sizes

    def locate(self, ids: int | Int64) -> tuple[Any, Any]:
        """Return the shard of each row of this source, and its sample's number in the shard."""
        if isinstance(ids, int):
            return locate_samples(self.index, int(self.sample_ids(np.array([ids]))[0]))
        return locate_samples(self.index, self.sample_ids(ids))

    def to_sample_numbers(self, selection: Selection) -> Selection:
        """Convert a selection of rows to a selection of sample numbers."""
        return selection

    def estimate_bytes(self, samples: int) -> int:
        """Return the bytes of `samples` samples of average size."""
        return self.index.total_nbytes * samples // max(self.index.samples, 1)

    def estimate_rows(self, nbytes: int) -> int:
        """Return how many samples of average size have about `nbytes`, at least one."""
        return max(1, nbytes * self.index.samples // max(self.index.total_nbytes, 1))

    def estimate_read_rows(self, nbytes: int, plan: Plan) -> int:
        """Return how many samples can be read at once in about `nbytes`, at least one.

        Unlike `estimate_rows`, it counts the bytes of the joined sources that the plan reads.
        """
        if not plan.joined_plans:
            return self.estimate_rows(nbytes)
        return max(1, nbytes * self.index.samples // max(self.estimate_read_bytes(plan), 1))

    def estimate_read_bytes(self, plan: Plan) -> int:
        """Return the bytes of all samples, in all sources that a read of these columns needs."""
        samples = self.index.samples
        return sum(s.estimate_bytes(samples) for s in self.sources_of(plan))

    def sources_of(self, plan: Plan) -> list[Source]:
        """Return the sources that a plan reads: this one, joined sources, or both."""
        return [source for source, _ in self.split_plan(plan)]

    def split_plan(self, plan: Plan) -> list[tuple[Source, Plan]]:
        """Return the sources that a plan reads, each with the plan of its stored columns."""
        parts: list[tuple[Source, Plan]] = []
        if self.reads_own_shards(plan):
            parts.append((self, plan.own_plan))
        for number, joined_plan in plan.joined_plans.items():
            parts.append((self.joined_sources[number - 1], joined_plan))
        return parts

    def column(self, name: str) -> tuple[Source, Plan]:
        """Return the source that has a column, and the plan to read only that column."""
        if table := self.field(name).table:
            return self.joined_sources[table - 1].column(name)
        return self, self.plan((name,))

    def block_rows(self, plan: Plan, nbytes: int) -> int:
        """Return how many rows to read at once: as many whole samples as have about `nbytes`.

        If remote samples are read in parts, the number is larger, so that more requests run
        concurrently.
        """
        rows = self.estimate_rows(nbytes)
        if not self.reads_parts(plan):
            return rows
        part_bytes = sum(
            f.part.stop - f.part.first if f.part else f.encoding.size or 0 for f in plan.fields
        )
        return max(rows, min(MAX_PART_ROWS, nbytes // max(part_bytes, 1)))

    def reads_parts(self, plan: Plan) -> bool:
        """Return True if remote samples may be read in parts for these columns."""
        if not self.remotes:
            return False
        layouts = enumerate(self.fetcher.layouts)
        return any(plan.partial_read(schema, layout) is not None for schema, layout in layouts)

    def is_resident(self, row: int) -> bool:
        """Return True if a row is in memory, so that neither the cache nor a store is needed."""
        if not self.remotes:
            return True
        sample = int(self.sample_ids(np.array([row]))[0]) if self.members else row
        return self.fetcher.is_resident(sample)

    def chunk_starts(self) -> AnyArray:
        """Return the first sample of each stored chunk, followed by the number of samples."""
        return self.shard_chunk_starts(0, len(self.index))

    def shard_chunk_starts(self, start: int, stop: int) -> AnyArray:
        """Return the first sample of each chunk of some shards, followed by the end of the last."""
        index, shards = self.index, slice(start, stop)
        bounds, nbytes = index.starts[start : stop + 1], index.nbytes[shards]
        return shard_chunks(bounds, nbytes, index.compressed[shards], index.chunk_bytes)


def adapt_transform(
    transform: Callable[[Sample], Any] | None, names: Mapping[str, str]
) -> Callable[[Sample], Any] | None:
    """Adapt a transform to samples whose columns `Source.renamed` has renamed."""
    if transform is None or all(old == new for old, new in names.items()):
        return transform
    old_names = {new: old for old, new in names.items()}
    return partial(_apply_to_old_names, transform, old_names)


def _apply_to_old_names(
    transform: Callable[[Sample], Any], old_names: Mapping[str, str], sample: Sample
) -> Any:
    return transform({old_names[name]: value for name, value in sample.items()})


def copy_attributes(source: T) -> T:
    """Return a new object of the same class with the same attributes."""
    copied = object.__new__(type(source))
    for cls in type(source).__mro__:
        for name in getattr(cls, "__slots__", ()):
            setattr(copied, name, getattr(source, name))
    return copied


def _samples_of(item: tuple[Any, Lookup]) -> Int64:
    return item[1].samples


def _rows_of_pair(pair: tuple[Any, Lookup]) -> Int64:
    return pair[1].rows


def _own_value_lists(fetcher: Fetcher, plan: Plan, lookup: Lookup) -> dict[str, list[Any]]:
    """Read columns from shards, each as a list of values of samples."""
    stored = gather(fetcher, plan, lookup.samples, is_prefetched=lookup.is_prefetched)
    return {f.name: sample_values(fetcher, f, stored[f.name], lookup.samples) for f in plan.fields}


def _read_no_columns(sample: int) -> Sample:
    return {}


def view_order(
    source: Source, selection: Selection, settings: Shuffle, seed: int, epoch: int = 0
) -> RowOrder:
    """Return the order of an epoch of a flattened view.

    All samples are assumed to have the average size of the dataset's samples.
    """
    from npstream.orders.order import Order, SequentialOrder, full_order
    from npstream.orders.permutation import make_key

    n = selection.size
    nbytes = source.estimate_bytes(n)
    settings = settings.resolve(nbytes)
    if settings.block is None:
        return full_order(n, seed, epoch)
    if settings.block == 0:
        make_key(seed, epoch)  # raises for a seed or an epoch that is no integer
        return SequentialOrder(n)
    lanes = settings.lanes or 1
    block = max(-(-int(settings.block) * n // max(nbytes * lanes, 1)), 1)
    chunks, stratified = partial(_chunks_of, source, selection), settings.stratified
    return Order(n, chunks, seed, epoch, block=block, lanes=lanes, stratified=stratified)


def _chunks_of(source: Source, selection: Selection) -> AnyArray:
    return view_chunks(source.chunk_starts(), selection)
