"""Provide `MixedSource`, which reads the samples of several views like those of one dataset.

Each view is one source of a mixture. `ConcatenatedSource` reads them. A `MixedSource` adds the
names and the transforms of the sources.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from npstream._core.typing import Bools, Int64, Sample
from npstream.errors import ColumnError, stop_iteration_error
from npstream.formats.encodings.encodings import own_encoding
from npstream.iteration.pickling import require_importable
from npstream.joins.concatenated import ConcatenatedSource, RowReader
from npstream.reading.batch import Ragged
from npstream.reading.plan import Field
from npstream.reading.source import Member, Reader, Source, adapt_transform

if TYPE_CHECKING:
    from npstream.indexing.concatenation import Concatenation
    from npstream.reading.gather import Lookup
    from npstream.reading.plan import Plan

SOURCE = "source"
"""Name of the computed column with the name of each row's source."""


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


class MixedSource(ConcatenatedSource):
    """The samples of several views, one view after the other.

    Parameters
    ----------
    members : sequence of Member
        The views, none empty. Views of the same dataset share its memory.
    fields : mapping of str to Field
        The columns that all views have, with the same declaration.
    column_errors : mapping of str to str
        For each other column, an error message that says why it cannot be read.
    names_column : str, optional
        Name of a computed column with the names of the sources; by default there is none.
    """

    __slots__ = ("_has_transforms",)

    def __init__(
        self,
        members: Sequence[Member],
        fields: Mapping[str, Field],
        column_errors: Mapping[str, str],
        names_column: str | None = None,
    ) -> None:
        fields, joined = _join_members(members, fields)
        super().__init__(members, fields, column_errors, joined)
        self._has_transforms = any(member.transform is not None for member in members)
        if names_column is not None:
            names = SourceNames([member.name for member in members], self.rows)
            computed = Field(names_column, own_encoding("str"), computation=names)
            self.fields = {**fields, names_column: computed}

    def __reduce__(self) -> tuple[Any, ...]:
        for member in self.members:
            require_importable(f"the transform of source {member.name!r}", member.transform)
        stored = {name: f for name, f in self.fields.items() if f.computation is None}
        computed = [name for name in self.fields if name not in stored]
        return MixedSource, (
            self.members,
            stored,
            self.column_errors,
            next(iter(computed), None),  # the names of the sources are the only computed column
        )

    def renamed(self, names: Mapping[str, str]) -> MixedSource:
        """Return a source of the same samples, with other names of columns.

        The transforms of the views take samples with the old names.
        """
        source: MixedSource = super().renamed(names)  # type: ignore[assignment]
        source._members = tuple(
            member._replace(transform=adapt_transform(member.transform, names))
            for member in source._members
        )
        return source

    def field(self, name: str) -> Field:
        """Return the column of that name, or raise an error that says why some views lack it."""
        if name in self.column_errors and name not in self.fields:
            raise ColumnError.saying(self.column_errors[name])
        return super().field(name)

    def make_samples(
        self, plan: Plan, columns: Mapping[str, list[Any]], lookup: Lookup
    ) -> Iterator[Any]:
        """Make samples from columns of values, apply the sources' transforms, and yield them."""
        samples = super().make_samples(plan, columns, lookup)
        if not self.has_transforms:
            return samples
        members = map(self.members.__getitem__, self.rows.view_numbers(lookup.rows).tolist())
        # A generator would end after a transform raises; map continues.
        return map(_transform, samples, members)

    def reader(self, names: tuple[str, ...]) -> Reader:
        """Return a reader of one sample with these columns; it applies the source's transform."""
        read: Any = super().reader(names)
        return _TransformReader(read) if self._has_transforms else read

    @property
    def has_transforms(self) -> bool:
        """Whether sources have transforms. These run before the transform of a mixture's view."""
        return self._has_transforms


def _join_members(
    members: Sequence[Member], fields: Mapping[str, Field]
) -> tuple[dict[str, Field], list[Source]]:
    """Return the columns of a mixture, and its joined sources.

    One view may store a column in its own shards, and another view may store the same column in a
    joined source. Two columns are read together if every view stores both in the same place. The
    place is a table number: 0 for the view's own shards, and k + 1 for its joined source k.
    """
    mixed_fields: dict[str, Field] = {}
    groups: dict[tuple[int, ...], dict[str, Field]] = {(0,) * len(members): mixed_fields}
    for name, field in fields.items():
        tables = tuple(member.source.field(name).table for member in members)
        groups.setdefault(tables, {})[name] = field._replace(table=0)
    joined: list[Source] = []
    for tables, group in groups.items():
        if group is mixed_fields:
            continue
        views = [
            Member(m.name, m.source.joined_sources[table - 1] if table else m.source, m.selection)
            for m, table in zip(members, tables, strict=True)
        ]
        joined.append(ConcatenatedSource(views, group, {}))
        mixed_fields |= {name: field._replace(table=len(joined)) for name, field in group.items()}
    return {name: mixed_fields[name] for name in fields}, joined


class _TransformReader:
    """Reads one sample, and applies the transform of its source."""

    def __init__(self, read: RowReader) -> None:
        self._members, self._bounds = read.members, read.bounds
        self._read = read

    def __call__(self, row: int) -> Any:
        member = self._members[bisect_right(self._bounds, row) - 1]
        return _transform(self._read(row), member)


def _transform(sample: Sample, member: Member) -> Any:
    """Apply the transform of a sample's source to the sample."""
    if member.transform is None:
        return sample
    try:
        return member.transform(sample)
    except StopIteration as error:
        raise stop_iteration_error(f"the transform of source {member.name!r}") from error
