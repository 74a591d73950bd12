"""Provide `MixedSource`, which reads the samples of several views like those of one dataset.

Each view is one source of a mixture. The rows of a `MixedSource` are those of the first view, then
those of the second, and so on. One look-up converts rows to *union ids*, the ids of samples in the
union of all datasets. The union is read like one dataset.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from npstream._core.arrays import Rows, group_positions
from npstream._core.typing import AnyArray, Bools, Int64, Sample
from npstream.errors import ColumnError, stop_iteration_error
from npstream.formats.encodings.encodings import parse
from npstream.indexing.concatenation import Concatenation
from npstream.indexing.selection import Selection
from npstream.iteration.pickling import require_importable
from npstream.orders.chunks import view_chunks
from npstream.reading.batch import Ragged
from npstream.reading.plan import Field, Plan
from npstream.reading.source import Member, Reader, Source, T
from npstream.shards.table import Fetcher
from npstream.shards.union import ShardUnion

if TYPE_CHECKING:
    from npstream.reading.gather import Lookup

SOURCE = "source"
"""Name of the computed column with the name of each row's source."""

LOOKUP_ROWS = 1 << 20
"""Number of rows that are converted to union ids together."""


class SourceNames:
    """The name of each row's source: a `npstream.reading.plan.Computation`.

    Parameters
    ----------
    names : sequence of str
        The name of each view.
    rows : Concatenation
        The views.
    """

    __slots__ = ("_bounds", "_column", "_names", "_rows")

    def __init__(self, names: Sequence[str], rows: Concatenation) -> None:
        self._names, self._rows = tuple(names), rows
        self._column: Ragged = Ragged.from_list(self._names, "str")
        self._bounds = rows.bounds.tolist()

    def __reduce__(self) -> tuple[Any, ...]:
        return SourceNames, (self._names, self._rows)

    def column(self, rows: Int64) -> Ragged:
        """Return the names at rows, as text."""
        names: Ragged = self._column[self._rows.view_numbers(rows)]
        return names

    def value(self, row: int) -> str:
        """Return the name at one row."""
        return self._names[bisect_right(self._bounds, row) - 1]

    def equal(self, rows: Int64, text: bytes) -> Bools:
        """Return True for rows whose source has the name `text`, which is in UTF-8."""
        equal = np.array([name.encode() == text for name in self._names])
        return equal[self._rows.view_numbers(rows)]


class MixedSource(Source):
    """The samples of several views, one view after the other.

    Parameters
    ----------
    members : sequence of Member
        The views, none empty. Views of the same dataset share its memory.
    fields : mapping of str to Field
        The columns that all views have, with the same declaration.
    column_errors : mapping of str to str
        For each other column, an error message that says why it cannot be read.
    names_sources : bool, default: False
        Whether there is a column `SOURCE`, of the names of the sources.

    Attributes
    ----------
    rows : Concatenation
        The first row of each view, and the map from rows to union ids.
    """

    __slots__ = (
        "_datasets",
        "_has_transforms",
        "_members",
        "_remotes",
        "_total_bytes",
        "rows",
    )  # fmt: skip

    def __init__(
        self,
        members: Sequence[Member],
        fields: Mapping[str, Field],
        column_errors: Mapping[str, str],
        names_sources: bool = False,
    ) -> None:
        self._members = tuple(members)
        datasets = {id(member.source): member.source for member in self.members}
        self._datasets = tuple(datasets.values())
        union = ShardUnion([dataset.fetcher.shards for dataset in self._datasets])
        self._remotes = [dataset for dataset in self._datasets if dataset.remote is not None]
        limits = [dataset.limit for dataset in self._remotes if dataset.limit is not None]
        firsts = dict(zip(datasets, union.first_samples, strict=False))
        self.rows = Concatenation(
            [member.selection for member in self.members],
            [firsts[id(member.source)] for member in self.members],
        )
        if names_sources:
            names = SourceNames([member.name for member in self.members], self.rows)
            fields = {**fields, SOURCE: Field(SOURCE, parse("str"), computation=names)}
        super().__init__(Fetcher(union), fields, column_errors, min(limits, default=None))
        self._total_bytes = sum(map(self.member_bytes, range(len(self.members))))
        self._has_transforms = any(member.transform is not None for member in self.members)

    def __reduce__(self) -> tuple[Any, ...]:
        for member in self.members:
            require_importable(f"the transform of source {member.name!r}", member.transform)
        stored = {name: f for name, f in self.fields.items() if f.computation is None}
        return MixedSource, (
            self.members,
            stored,
            self.column_errors,
            len(stored) < len(self.fields),  # `SOURCE` is the only computed column
        )

    @property
    def members(self) -> tuple[Member, ...]:
        """The views that the mixture is made of."""
        return self._members

    def field(self, name: str) -> Field:
        """Return the column of that name; the error says why some views lack it."""
        if name in self.column_errors and name not in self.fields:
            raise ColumnError.saying(self.column_errors[name])
        return super().field(name)

    def member_bytes(self, number: int) -> int:
        """Return the estimated bytes of a view's samples."""
        member = self.members[number]
        return member.source.estimate_bytes(member.selection.size)

    def member_chunks(self, number: int) -> AnyArray:
        """Return the first position of each chunk of a view in this view, then the view's size."""
        member = self.members[number]
        return view_chunks(member.source.chunk_starts(), member.selection)

    # Reading

    def sample_ids(self, rows: Int64) -> Int64:
        """Return the union ids of rows."""
        return self.rows.at(rows)

    def read_ahead(
        self,
        items: Iterable[T],
        rows_of: Callable[[T], Int64],
        step: int = 0,
        is_rowwise: bool = False,
    ) -> Iterator[tuple[T, Lookup]]:
        """Yield items and the lookups of their rows, while the next items are fetched.

        Union ids may be out of order although rows are in order. Then this passes 0 as `step`.
        """
        return super().read_ahead(items, rows_of, step if self.rows.is_ascending else 0, is_rowwise)

    def _stored_columns(
        self, plan: Plan, lookup: Lookup, out: Mapping[str, AnyArray]
    ) -> dict[str, AnyArray | Ragged]:
        """Read stored columns: a single column from each dataset, if side-cars may have it."""
        ids = lookup.samples
        is_single = len(plan.fields) == 1 and len(ids) > 0
        if not (is_single and any(dataset.sidecar_column_name(plan) for dataset in self.remotes)):
            return self._batch_columns(plan, lookup, out)
        # Values may be in side-cars, which only the datasets themselves can read.
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

    def samples(self, names: tuple[str, ...], lookup: Lookup) -> Iterator[Any]:
        """Read samples together, and yield them after the transforms of their sources."""
        samples = super().samples(names, lookup)
        if not self.has_transforms:
            return samples
        members = map(self.members.__getitem__, self.rows.view_numbers(lookup.rows).tolist())
        # A generator would end after a transform raises; map continues.
        return map(_transform, samples, members)

    def reader(self, names: tuple[str, ...]) -> Reader:
        """Return a reader of one sample with these columns; it applies the source's transform."""
        plan = self.plan(names)
        return _RowReader(self, self._stored_reader(plan), plan if plan.computed else None)

    def value_reader(self, field: Field) -> Reader:
        """Return a function that reads one value of a column, which may be redeclared."""
        read = super().value_reader(field)
        return read if field.computation is not None else _ValueReader(self, read)

    @property
    def has_transforms(self) -> bool:
        """Whether sources have transforms, which apply before that of a view."""
        return self._has_transforms

    # Costs of reading, and locations of samples

    @property
    def remotes(self) -> list[Source]:
        """The datasets that are in object stores."""
        return self._remotes

    def split_by_dataset(self, selection: Selection) -> Iterator[tuple[Source, Selection]]:
        """Yield each dataset that a selection of rows reads, in any order.

        The second value is the selection of this dataset's samples.
        """
        if selection.affine is not None:
            for number, chosen in self.rows.pieces(selection):
                yield self.members[number].source, chosen
            return
        for begin in range(0, selection.size, LOOKUP_ROWS):
            stored = self.rows.at(selection.ids(begin, begin + LOOKUP_ROWS))
            for number, rows in self._group_by_dataset(stored):
                dataset = self._datasets[number]
                ids = stored[rows] - self._shards.first_samples[number]
                samples: Any = Selection.all(dataset.index.samples).select(ids)
                yield dataset, samples

    def sidecar_column_name(self, plan: Plan) -> str | None:
        """Return None: a mixture has no side-car, only its datasets have."""
        return None

    def stored(self, selection: Selection) -> Selection:
        """Convert a selection of rows to a selection of union ids."""
        return selection.through(self.rows, self.index.samples)

    def estimate_bytes(self, samples: int) -> int:
        """Return the bytes of `samples` average samples."""
        return self._total_bytes * samples // len(self.rows)

    def estimate_rows(self, nbytes: int) -> int:
        """Return how many average samples take about `nbytes`, at least 1."""
        return max(1, nbytes * len(self.rows) // max(self._total_bytes, 1))

    def chunk_starts(self) -> AnyArray:
        """Return the first row of each chunk of the views, then the number of rows."""
        starts = {id(dataset): dataset.chunk_starts() for dataset in self._datasets}
        dtype = np.int32 if len(self.rows) < 1 << 31 else np.int64
        bounds = self.rows.bounds
        chunks = [
            view_chunks(starts[id(m.source)], m.selection)[:-1].astype(dtype, copy=False) + first
            for m, first in zip(self.members, bounds.astype(dtype), strict=False)
        ]
        return np.concatenate([*chunks, bounds[-1:].astype(dtype)])


class _ValueReader:
    """Reads one value, by its row."""

    def __init__(self, source: MixedSource, read: Reader) -> None:
        self._members = source.members
        self._bounds = source.rows.bounds.tolist()
        self._firsts = source.rows.firsts
        self._read = read

    def __call__(self, row: int) -> Any:
        number = bisect_right(self._bounds, row) - 1
        sample_id: Any = self._members[number].selection.select(row - self._bounds[number])
        return self._read(sample_id + self._firsts[number])


class _RowReader(_ValueReader):
    """Reads one sample, by its row.

    `plan` is the plan of all columns if some are computed, else None.
    """

    def __init__(self, source: MixedSource, read: Reader, plan: Plan | None) -> None:
        super().__init__(source, read)
        self._plan = plan

    def __call__(self, row: int) -> Any:
        number = bisect_right(self._bounds, row) - 1
        member = self._members[number]
        sample_id: Any = member.selection.select(row - self._bounds[number])
        sample = self._read(sample_id + self._firsts[number])
        if self._plan is not None:
            sample = self._plan.add_computed(sample, row)
        return sample if member.transform is None else _transform(sample, member)


def _transform(sample: Sample, member: Member) -> Any:
    """Apply the transform of a sample's source to the sample."""
    if member.transform is None:
        return sample
    try:
        return member.transform(sample)
    except StopIteration as error:
        raise stop_iteration_error(f"the transform of source {member.name!r}") from error
