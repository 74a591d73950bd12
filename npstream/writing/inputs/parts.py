"""Provide `PartedInput`, an input made of parts, such as files, that are opened one at a time.

A resumed write continues in the middle of the parts, and does not open the earlier ones.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from npstream._core.arguments import quantity
from npstream.writing.inputs.recognition import iterate, samples_of, table_of
from npstream.writing.mapping import table_rows
from npstream.writing.tables import Bounds, InputTable, RowError, StoredSamples, TableStream

if TYPE_CHECKING:
    from npstream.formats.encodings.encodings import Encoding
    from npstream.writing.inputs.fill import Fill
    from npstream.writing.shard import ColumnBlock, ShardFormat

__all__ = [
    "Part",
    "PartedInput",
    "TableTail",
    "open_input",
    "row_count",
    "skip_items",
    "skip_rows",
    "skip_samples",
]


@dataclass(frozen=True, slots=True)
class Part:
    """A part of an input.

    Attributes
    ----------
    name : str
        Identifies the part among all parts, such as the path of its file.
    open : callable
        Returns the content: anything that `npstream.write` takes, such as an iterable of samples,
        a table or a reader of tables. It is called when the part's first sample is needed.
    samples : int or None
        The number of samples, if it is known. Reading raises ValueError if the content has another
        number of samples.
    """

    name: str
    open: Callable[[], Any]
    samples: int | None = None


class PartedInput:
    """Parts that are written one after another.

    All parts hold samples, or all hold tables. A part without samples may be either. A part is
    opened when its first sample is needed. Before that, the previous part's content is dropped.

    Parameters
    ----------
    parts : iterable of Part
        Their names must be unique.
    description : mapping of str to str, optional
        Settings that also determine the samples of the parts. The keys are their names in
        messages. A write resumes only with the same description.

    Attributes
    ----------
    parts : tuple of Part
    description : dict of str to str
    samples : int or None
        The number of samples of all parts, if it is known.

    Raises
    ------
    ValueError
        If two parts have the same name.

    Examples
    --------
    >>> import npstream
    >>> from npstream.writing.inputs.parts import Part, PartedInput
    >>> parts = [Part("a", lambda: [{"x": 1}, {"x": 2}]), Part("b", lambda: [{"x": 3}])]
    >>> npstream.write("numbers", PartedInput(parts)).samples
    3
    """

    def __init__(self, parts: Iterable[Part], description: Mapping[str, str] | None = None) -> None:
        self.parts = tuple(parts)
        self.description = dict(description or {})
        self._numbers = {part.name: number for number, part in enumerate(self.parts)}
        if len(self._numbers) < len(self.parts):
            names = [part.name for part in self.parts]
            duplicate = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"two parts of the input have the name {duplicate!r}")
        counts = [part.samples for part in self.parts]
        self.samples = None if None in counts else sum(count or 0 for count in counts)
        self._first_position = (0, 0)  # the first part to open, and how many samples of it to skip
        # A tuple for each opened part: the number of the first sample that is read from it, the
        # number of the part, and how many of its samples are skipped. `position` drops the tuples
        # of earlier parts.
        self._starts: list[tuple[int, int, int]] = []
        self._samples_read = 0

    def seek(self, position: tuple[str, int], number: int = 0) -> None:
        """Start at a position, without opening the parts before it; call it before `read`.

        Parameters
        ----------
        position : tuple of (str, int)
            The name of a part, and how many of its samples to skip. It is what `position` returned.
        number : int, default: 0
            The number of the sample at `position`.

        Raises
        ------
        ValueError
            If no part has that name.
        """
        name, offset = position
        if name not in self._numbers:
            raise ValueError(
                f"the input has no part {name!r}; its {quantity(len(self.parts), 'part')} begin "
                f"with {[part.name for part in self.parts[:3]]}"
            )
        self._first_position = self._numbers[name], int(offset)
        self._starts = []
        self._samples_read = number  # the samples before this one count as read

    def position(self, number: int) -> tuple[str, int]:
        """Return the position of a sample that was read.

        It is the name of its part, and the number of samples before it in this part. The next call
        may not ask for an earlier sample, since only the positions of later ones are kept.

        Parameters
        ----------
        number : int
            The number of the sample among all of the input.
        """
        entry = bisect_right(self._starts, number, key=lambda start: start[0]) - 1
        if entry < 0 or number >= self._samples_read:
            raise ValueError(f"sample {number} was not read, or its position was dropped")
        del self._starts[:entry]
        first, part, offset = self._starts[0]
        return self.parts[part].name, offset + number - first

    def read(
        self,
        names: Collection[str] | None = None,
        fill: Mapping[str, Fill] | None = None,
        *,
        check: bool = True,
        as_items: bool = False,
        may_be_empty: bool = False,
    ) -> TableStream | Iterator[Any]:
        """Return the parts as one stream of tables, or as one iterator over samples.

        This opens the first part that is not empty.

        Parameters
        ----------
        names, fill, check
            As for `npstream.writing.inputs.recognition.table_of`.
        as_items : bool, default: False
            Whether to leave the items of iterable parts unchanged. By default items that are tables
            become one stream of tables, and items that are tuples become mappings.
        may_be_empty : bool, default: False
            Whether there may be no samples although `names` is None, as in an append.

        Raises
        ------
        TypeError, ValueError
            If there are no samples and `names` is None, or `write` does not take a part's content.
        """
        contents = self._contents(names, fill or {}, check, as_items)
        first = next(contents, None)
        if first is None:
            if names is None and not as_items and not may_be_empty:
                raise ValueError(
                    "no samples and no columns=: the columns of the dataset are unknown (the input "
                    f"has {quantity(len(self.parts), 'part')})"
                )
            return iter(())
        all_contents = _chain([first], contents)
        if isinstance(first, TableStream):
            return TableStream(_Head(first.head), self._tables(all_contents))
        return self._samples(all_contents, as_items)

    def _contents(
        self,
        names: Collection[str] | None,
        fill: Mapping[str, Fill],
        check: bool,
        as_items: bool,
    ) -> Iterator[TableStream | Iterator[Any]]:
        """Open the parts one at a time, and yield the content of each that has samples."""
        holds_tables: bool | None = None  # None until a part has samples
        first, offset = self._first_position
        for number in range(first, len(self.parts)):
            part = self.parts[number]
            self._starts.append((self._samples_read, number, offset))
            begin = self._samples_read - offset
            try:
                content = _open(part.open(), names, fill, check, as_items, offset)
            except Exception as error:
                sample = self._samples_read
                error.add_note(f"in part {part.name!r} of the input, before sample {sample}")
                raise
            offset = 0
            if content is not None:
                is_table = isinstance(content, TableStream)
                if holds_tables is not None and is_table != holds_tables:
                    raise TypeError(
                        f"part {part.name!r} of the input has {_KINDS[is_table]}, and the parts "
                        f"before it have {_KINDS[holds_tables]}: give one of them in all parts"
                    )
                holds_tables = is_table
                yield content
            del content  # before the next part is opened
            count = self._samples_read - begin
            if part.samples is not None and count != part.samples:
                raise ValueError(
                    f"part {part.name!r} of the input has {quantity(count, 'sample')}; it should "
                    f"have {part.samples:,}"
                )

    def _tables(self, contents: Iterable[Any]) -> Iterator[InputTable]:
        for content in contents:
            with self._error_context():
                for table in content.tables:
                    self._samples_read += table.length
                    yield table
                    del table
            del content  # before the next part is opened

    def _samples(self, contents: Iterable[Any], as_items: bool) -> Iterator[Any]:
        for content in contents:
            with self._error_context():
                for sample in content:
                    is_one = as_items or type(sample) is dict
                    self._samples_read += 1 if is_one else row_count(sample)
                    yield sample
            del content  # before the next part is opened

    @contextmanager
    def _error_context(self) -> Iterator[None]:
        """Add the part and the sample to an exception of the content."""
        try:
            yield
        except Exception as error:
            part = self.parts[self._starts[-1][1]]
            error.add_note(
                f"raised by part {part.name!r} of the input, instead of sample {self._samples_read}"
            )
            raise


def _chain(first: list[Any], others: Iterator[Any]) -> Iterator[Any]:
    """Yield the only item of the list `first`, and then the others.

    In contrast to `itertools.chain`, this does not keep a reference to the first item.
    """
    yield first.pop()
    yield from others


_KINDS = {True: "tables", False: "samples"}


def open_input(
    data: Any,
    names: Collection[str] | None,
    fill: Mapping[str, Fill],
    *,
    check: bool,
    as_items: bool,
    may_be_empty: bool = False,
) -> tuple[InputTable | TableStream | None, Iterable[Any]]:
    """Return the user's data as a table, or as samples.

    The result is a pair. For a table, it is the table and an empty tuple. For samples, it is None
    and the samples. The parameters are those of `PartedInput.read` and `samples_of`.
    """
    if isinstance(data, PartedInput):
        content: Any = data.read(
            names, fill, check=check, as_items=as_items, may_be_empty=may_be_empty
        )
    else:
        table = table_of(data, names, fill, check=check)
        if table is not None:
            return table, ()
        content = iterate(data) if as_items else samples_of(data, names, fill, may_be_empty)
    return (content, ()) if isinstance(content, TableStream) else (None, content)


def _open(
    data: Any,
    names: Collection[str] | None,
    fill: Mapping[str, Fill],
    check: bool,
    as_items: bool,
    offset: int,
) -> TableStream | Iterator[Any] | None:
    """Return the content of a part after `offset` samples; None if there is nothing."""
    content: Any = table_of(data, names, fill, check=check)
    if content is not None and fill and not as_items and hasattr(type(data), "_writer_input"):
        content = table_rows(content)  # these columns do not apply `fill`
    elif content is None and as_items:
        content = iterate(data)
    elif content is None:
        items = iterate(data)
        for first in items:
            content = samples_of(chain([first], items), names, fill)
            break
        else:
            return None
    elif not isinstance(content, TableStream):
        content = TableStream(content, iter((content,)))
    if isinstance(content, TableStream):
        return TableStream(content.head, skip_rows(content.tables, offset))
    return skip_items(content, offset) if as_items else skip_samples(content, offset)


def skip_items(items: Iterable[Any], count: int) -> Iterator[Any]:
    """Return an iterator that has passed over the first items.

    Examples
    --------
    >>> list(skip_items("abcd", 2))
    ['c', 'd']
    """
    iterator = iter(items)
    deque(islice(iterator, count), maxlen=0)
    return iterator


def skip_samples(samples: Iterable[Any], count: int) -> Iterator[Any]:
    """Return an iterator that has passed over the first samples.

    An item may have several samples, such as a Batch. If the last sample to skip is within such an
    item, the iterator begins with the later rows of this item.
    """
    iterator = iter(samples)
    for sample in iterator if count else ():
        rows = 1 if type(sample) is dict else row_count(sample)
        if rows > count:
            table: Any = table_of(sample)
            return chain([TableTail(table, count)], iterator)
        count -= rows
        if not count:
            break
    return iterator


def row_count(sample: Any) -> int:
    """Return the number of samples in an item of the data, which may be a Batch or a Dataset."""
    if not hasattr(type(sample), "_writer_input"):
        return 1
    table = table_of(sample)
    return 1 if table is None or isinstance(table, TableStream) else table.length


def skip_rows(tables: Iterable[InputTable], count: int) -> Iterator[InputTable]:
    """Yield tables without their first `count` rows."""
    for table in tables:
        if count < table.length or not count:
            yield TableTail(table, count) if count else table
            count = 0
        else:
            count -= table.length
        del table  # before the next one is read


class _Head:
    """The encodings of a table, without its rows: the first part does not stay in memory."""

    def __init__(self, table: InputTable) -> None:
        self.length, self.chunk, self.has_array_blocks = 0, 1, False
        self.row_bytes: int | None = None
        self.available_names: Collection[str] = getattr(table, "available_names", table.names())
        self._encodings: dict[str, Encoding | Exception] = {}
        for name in table.names():
            try:
                self._encodings[name] = table.encoding(name)
            except Exception as error:
                self._encodings[name] = error

    def names(self) -> list[str]:
        return list(self._encodings)

    def encoding(self, name: str) -> Encoding:
        encoding = self._encodings[name]
        if isinstance(encoding, Exception):
            raise encoding
        return encoding

    def blocks(
        self, bounds: Bounds, target: Mapping[str, Encoding]
    ) -> Iterator[dict[str, ColumnBlock]]:
        return iter(())

    def stored_samples(self, bounds: Bounds, layout: ShardFormat) -> None:
        return None


class TableTail:
    """The rows of a table after the first ones.

    Parameters
    ----------
    table : InputTable
    start : int
        The number of rows that are left out.
    """

    def __init__(self, table: InputTable, start: int) -> None:
        self.length = table.length - start
        self.row_bytes, self.chunk = table.row_bytes, table.chunk
        self.has_array_blocks = table.has_array_blocks
        self._table, self._start = table, start

    @property
    def available_names(self) -> Collection[str]:
        """All column names of the user's table, for error messages."""
        names: Collection[str] = getattr(self._table, "available_names", self._table.names())
        return names

    def _writer_input(self) -> TableTail:
        """Return this table. A Writer calls this if `skip_samples` yields the table as an item."""
        return self

    def names(self) -> list[str]:
        """Return the names of the columns, in order."""
        return self._table.names()

    def encoding(self, name: str) -> Encoding:
        """Return the encoding that keeps a column as it is."""
        return self._table.encoding(name)

    def blocks(
        self, bounds: Bounds, target: Mapping[str, Encoding]
    ) -> Iterator[dict[str, ColumnBlock]]:
        """Yield blocks of rows of the columns in `target`."""
        try:
            yield from self._table.blocks(self._table_bounds(bounds), target)
        except RowError as error:
            error.row -= self._start
            raise

    def stored_samples(self, bounds: Bounds, layout: ShardFormat) -> StoredSamples | None:
        """Return the rows as samples of a shard format; None if they must be encoded."""
        return self._table.stored_samples(self._table_bounds(bounds), layout)

    def _table_bounds(self, bounds: Bounds) -> Bounds:
        """Return the bounds of the same rows in the whole table."""
        return ((start + self._start, stop + self._start) for start, stop in bounds)
