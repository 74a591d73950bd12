"""Provide `skip_input`, which passes over the input that an interrupted write has stored.

Tested in tests/writing/resumption/test_resume.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

from npstream.errors import ColumnError
from npstream.writing.inputs.parts import TableTail, skip_items, skip_rows, skip_samples
from npstream.writing.inputs.recognition import table_of
from npstream.writing.mapping import table_rows
from npstream.writing.tables import InputTable, TableStream, sample_numbers

if TYPE_CHECKING:
    from npstream.writing.resumption.session import ResumeSession
    from npstream.writing.shard import ShardFormat

__all__ = ["packed_row", "skip_input"]


def skip_input(
    session: ResumeSession,
    table: InputTable | TableStream | None,
    samples: Iterable[Any],
    is_mapped: bool,
    by_rows: bool,
) -> tuple[InputTable | TableStream | None, Iterable[Any]]:
    """Return the data after the last sample that is stored.

    The last stored sample is read again, and compared with the stored row.

    Parameters
    ----------
    session : ResumeSession
    table : InputTable, TableStream or None
        The data, if it is a table.
    samples : iterable
        The data, if it is not a table.
    is_mapped : bool
        Whether the data is for `map=`. The remaining data then begins with the last stored sample,
        because some of its outputs may not be stored.
    by_rows : bool
        Whether the rows of a table are encoded one by one.

    Returns
    -------
    table : InputTable, TableStream or None
        The remaining data, if it is a table.
    samples : iterable
        The remaining data, if it is not a table.

    Raises
    ------
    ValueError
        If the data is shorter than what is stored, or the last sample that is stored differs.
    """
    assert session.last is not None
    number = session.last.number
    # `PartedInput.seek` has already skipped the samples before this one.
    count = 0 if session.has_parts else number
    if isinstance(table, TableStream):
        tables: Iterator[InputTable]
        remaining_tables = skip_rows(table.tables, count)
        tables = (remaining for remaining in remaining_tables if remaining.length)
        if not is_mapped:
            with sample_numbers(number):
                first = next(tables, None)
            if first is not None:
                tables = chain([_check_row(session, first, by_rows)], tables)
        return TableStream(table.head, tables), ()
    if table is not None:
        if number >= table.length:
            raise session.missing_input_error()
        table = TableTail(table, number)
        return (table if is_mapped else _check_row(session, table, by_rows)), ()
    if is_mapped:
        return None, skip_items(samples, count)
    remaining = skip_samples(samples, count)
    for sample in remaining:
        if hasattr(type(sample), "_writer_input") and (batch := table_of(sample)) is not None:
            assert not isinstance(batch, TableStream)
            return None, chain([_check_row(session, batch, by_rows)], remaining)
        session.check_sample(sample)
        return None, remaining
    raise session.missing_input_error()


def _check_row(session: ResumeSession, table: InputTable, by_rows: bool) -> InputTable:
    """Check that the first row is the last sample that is stored; return the rows after it."""
    assert session.last is not None
    number = session.last.number
    for name in session.layout.columns:
        if name not in table.names():
            available = getattr(table, "available_names", table.names())
            raise ColumnError(name, available, f"sample {number}: ")
    if by_rows:
        session.check_sample(next(table_rows(table)))
    else:
        with sample_numbers(number):
            session.check_row(packed_row(table, session.layout, 0))
    return TableTail(table, 1)


def packed_row(table: InputTable, layout: ShardFormat, row: int) -> bytes:
    """Return the bytes of a row of a table."""
    for block in table.blocks([(row, row + 1)], layout.columns):
        return layout.pack(block, row)[0].tobytes()
    raise ValueError(f"row {row} of the table is missing: its length has changed")
