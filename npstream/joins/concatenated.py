"""Provide `ConcatenatedSource`, which reads the samples of several views like those of one dataset.

Its rows are those of the first view, then those of the second, and so on. One look-up converts rows
to *union ids*, the ids of samples in the union of all datasets. The union is read like one dataset.
Tested in tests/mixture/test_mixture.py.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from npstream._core.arrays import Rows, group_positions
from npstream._core.typing import AnyArray, Int64, Sample
from npstream.indexing.concatenation import Concatenation
from npstream.indexing.selection import Selection
from npstream.orders.chunks import view_chunks
from npstream.reading.plan import Field, Plan
from npstream.reading.source import Member, Reader, Source, T
from npstream.shards.table import Fetcher
from npstream.shards.union import ShardUnion

if TYPE_CHECKING:
    from npstream.formats.index import Index
    from npstream.reading.batch import Ragged
    from npstream.reading.gather import Lookup
    from npstream.shards.base import Shards
    from npstream.shards.remote import RemoteShards

LOOKUP_ROWS = 1 << 20
"""Number of rows that are converted to union ids together."""


class ConcatenatedSource(Source):
    """The samples of several views, one view after the other.

    Parameters
    ----------
    members : sequence of Member
        The views, none empty. Views of the same source share its loaded shards. The transforms of
        the views are not applied.
    fields : mapping of str to Field
        The columns, which all views have with the same declaration.
    column_errors : mapping of str to str
        For each other column, an error message that says why it cannot be read.
    joined : sequence of Source
        Sources with the same rows and other columns: `joined_sources` of `Source`.

    Attributes
    ----------
    rows : Concatenation
        The first row of each view, and the map from rows to union ids.
    """

    __slots__ = ("_datasets", "_members", "_remotes", "_total_bytes", "rows")

    def __init__(
        self,
        members: Sequence[Member],
        fields: Mapping[str, Field],
        column_errors: Mapping[str, str],
        joined: Sequence[Source] = (),
    ) -> None:
        self._members = tuple(members)
        sources = {id(member.source): member.source for member in self._members}
        counts = [len(source.datasets) for source in sources.values()]
        self._datasets = tuple(ds for source in sources.values() for ds in source.datasets)
        union = ShardUnion(
            [shards for ds in self._datasets for shards in ds.shard_parts],
            [index for ds in self._datasets for index in ds.shard_indexes],
        )
        self._remotes = [dataset for dataset in self._datasets if dataset.remote is not None]
        limits = [dataset.limit for dataset in self._remotes if dataset.limit is not None]
        # For each source, the number of its first dataset in `_datasets`.
        first_datasets = dict(zip(sources, accumulate(counts, initial=0), strict=False))
        self.rows = Concatenation(
            [member.source.to_sample_numbers(member.selection) for member in self._members],
            [union.first_samples[first_datasets[id(m.source)]] for m in self._members],
        )
        limit = min(limits, default=None)
        super().__init__(Fetcher(union), fields, column_errors, limit, joined)
        self._total_bytes = sum(map(self.member_bytes, range(len(self._members))))

    def __reduce__(self) -> tuple[Any, ...]:
        arguments = self._members, self.fields, self.column_errors, self.joined_sources
        return ConcatenatedSource, arguments

    def renamed(self, names: Mapping[str, str]) -> ConcatenatedSource:
        """Return a source of the same samples, with other names of columns."""
        source: ConcatenatedSource = super().renamed(names)  # type: ignore[assignment]
        stored = {old: new for old, new in names.items() if not self.fields[old].computation}
        sources = {id(m.source): m.source for m in self._members}
        new_sources = {key: old_source.renamed(stored) for key, old_source in sources.items()}
        source._members = tuple(
            member._replace(source=new_sources[id(member.source)]) for member in self._members
        )
        source._datasets = tuple(ds for new in new_sources.values() for ds in new.datasets)
        source._remotes = [ds for ds in source._datasets if ds.remote is not None]
        return source

    @property
    def members(self) -> tuple[Member, ...]:
        """The views."""
        return self._members

    @property
    def datasets(self) -> tuple[Source, ...]:
        """The sources of the views' datasets, in the order of their samples in the union."""
        return self._datasets

    @property
    def shard_indexes(self) -> Sequence[Index]:
        """The index of each of `shard_parts`, with the names of columns in this source."""
        return [index for dataset in self._datasets for index in dataset.shard_indexes]

    @property
    def shard_parts(self) -> Sequence[Shards[RemoteShards]]:
        """The shards of each dataset, in the order of their samples in the union."""
        return self._shards.parts

    def member_bytes(self, number: int) -> int:
        """Return the estimated bytes of a view's samples."""
        member = self._members[number]
        return member.source.estimate_bytes(member.selection.size)

    def member_chunks(self, number: int) -> AnyArray:
        """Return the position in a view at which each chunk begins, then the size of the view."""
        member = self._members[number]
        return view_chunks(member.source.chunk_starts(), member.selection)

    # Reading

    def sample_ids(self, rows: Int64) -> Int64:
        """Return the union ids of rows."""
        return self.rows.at(rows)

    def read_ahead(
        self,
        items: Iterable[T],
        rows_of: Callable[[T], Int64],
        plan: Plan,
        step: int = 0,
        is_rowwise: bool = False,
    ) -> Iterator[tuple[T, Lookup]]:
        """Yield items and the lookups of their rows, while the next items are fetched.

        Union ids may be out of order although rows are in order. Then this passes 0 as `step`,
        which means that samples are not in order.
        """
        step = step if self.rows.is_ascending else 0
        return super().read_ahead(items, rows_of, plan, step, is_rowwise)

    def _sidecar_column(
        self, plan: Plan, lookup: Lookup, out: Mapping[str, AnyArray]
    ) -> dict[str, AnyArray | Ragged] | None:
        """Read the only column of a plan from each dataset, if side-cars have it, otherwise None.

        Only the datasets can read their side-cars.
        """
        ids = lookup.samples
        if not len(ids) or not any(dataset.sidecar_column_name(plan) for dataset in self.remotes):
            return None
        (field,) = plan.fields
        column = out[field.name] if field.name in out else field.allocate(len(ids))

        def read(number: int, rows: Rows) -> None:
            dataset = self._datasets[number]
            dataset_lookup = dataset.look_up(ids[rows] - self._shards.first_samples[number])
            column[rows] = dataset.columns(Plan(plan.fields), dataset_lookup, {})[field.name]

        self._shards.for_each_part(self._group_by_dataset(ids), read)
        return {field.name: column}

    @property
    def _shards(self) -> ShardUnion:
        shards: Any = self.fetcher.shards
        return shards  # type: ignore[no-any-return]

    def _group_by_dataset(self, ids: Int64) -> Iterator[tuple[int, Rows]]:
        """Yield the number of each dataset, with the indices of its samples in `ids`."""
        return group_positions(np.searchsorted(self._shards.first_samples, ids, side="right") - 1)

    def reader(self, names: tuple[str, ...]) -> Reader:
        """Return a function that reads one sample with these columns, given its row."""
        plan = self.plan(names)
        return RowReader(self, self._own_reader(plan), self._column_adder(plan))

    def value_reader(self, field: Field) -> Reader:
        """Return a function that reads one value of a column, given its row.

        `field` may have another encoding than this source's column of the same name.
        """
        read = super().value_reader(field)
        is_stored = field.computation is None and not field.table
        return RowReader(self, read) if is_stored else read

    # Costs of reading, and locations of samples

    @property
    def remotes(self) -> list[Source]:
        """The datasets that are in object stores."""
        return self._remotes

    def split_by_dataset(self, selection: Selection) -> Iterator[tuple[Source, Selection]]:
        """Yield each dataset that a selection of rows reads, with the selection of its samples.

        Datasets are in any order. A dataset may occur several times.
        """
        # Without nested concatenations, each view is a selection of one dataset.
        is_flat = all(len(member.source.datasets) == 1 for member in self._members)
        if selection.affine is not None and is_flat:
            for number, piece in self.rows.pieces(selection):
                yield self._members[number].source, piece
            return
        for begin in range(0, selection.size, LOOKUP_ROWS):
            union_ids = self.rows.at(selection.ids(begin, begin + LOOKUP_ROWS))
            for number, rows in self._group_by_dataset(union_ids):
                dataset = self._datasets[number]
                ids = union_ids[rows] - self._shards.first_samples[number]
                samples: Any = Selection.all(dataset.index.samples).select(ids)
                yield dataset, samples

    def sidecar_column_name(self, plan: Plan) -> str | None:
        """Return None: only the datasets have side-cars."""
        return None

    def to_sample_numbers(self, selection: Selection) -> Selection:
        """Convert a selection of rows to a selection of union ids."""
        return selection.map_ids(self.rows, self.index.samples)

    def estimate_bytes(self, samples: int) -> int:
        """Return the bytes of `samples` average samples."""
        return self._total_bytes * samples // len(self.rows)

    def estimate_rows(self, nbytes: int) -> int:
        """Return how many average samples take about `nbytes`, at least 1."""
        return max(1, nbytes * len(self.rows) // max(self._total_bytes, 1))

    def chunk_starts(self) -> AnyArray:
        """Return the first row of each chunk of the views, then the number of rows."""
        sources = {id(member.source): member.source for member in self._members}
        starts = {key: source.chunk_starts() for key, source in sources.items()}
        dtype = np.int32 if len(self.rows) < 1 << 31 else np.int64
        bounds = self.rows.bounds
        chunks = [
            view_chunks(starts[id(m.source)], m.selection)[:-1].astype(dtype, copy=False) + first
            for m, first in zip(self._members, bounds.astype(dtype), strict=False)
        ]
        return np.concatenate([*chunks, bounds[-1:].astype(dtype)])


class RowReader:
    """Reads one sample, or one of its values, given its row.

    Parameters
    ----------
    source : ConcatenatedSource
    read : callable
        Reads the sample with a union id, or its value.
    complete : callable, optional
        Adds joined and computed columns to the sample of a row.
    """

    def __init__(
        self,
        source: ConcatenatedSource,
        read: Reader,
        complete: Callable[[Sample, int], Sample] | None = None,
    ) -> None:
        self.members = source.members
        self.bounds = source.rows.bounds.tolist()
        self._selections = source.rows.selections
        self._firsts = source.rows.firsts
        self._read = read
        self._complete = complete

    def __call__(self, row: int) -> Any:
        """Return the sample of a row, or its value."""
        number = bisect_right(self.bounds, row) - 1
        sample_id: Any = self._selections[number].select(row - self.bounds[number])
        sample = self._read(sample_id + self._firsts[number])
        return sample if self._complete is None else self._complete(sample, row)


class PartsSource(ConcatenatedSource):
    """The source of a group of added columns whose rows are stored in several parts.

    `close` also closes the sources of the parts.

    Parameters
    ----------
    members : sequence of Member
        The parts in the order of their rows. If no part stores the last rows, the last member
        repeats the sample of the fill values for them.
    fields : mapping of str to Field
        The columns of the group, which all parts have.
    """

    __slots__ = ()

    def __init__(self, members: Sequence[Member], fields: Mapping[str, Field]) -> None:
        super().__init__(members, fields, {})
        self._shards.root = members[0].source.fetcher.shards.root  # for messages

    def __reduce__(self) -> tuple[Any, ...]:
        return PartsSource, (self.members, self.fields)

    def close(self) -> None:
        """Release the memory of this source and of its parts."""
        super().close()
        for source in self.datasets:
            source.close()
