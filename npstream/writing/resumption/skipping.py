"""Provide `skip_input`, which passes over the input that an interrupted write has stored.

Tested in tests/writing/resumption/test_resume.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

from npstream.errors import ColumnError
from npstream.writing.inputs.parts import LaterRows, skip_items, skip_rows, skip_samples
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
    """Return the data after the last sample that is stored, which is checked.

    Parameters
    ----------
    session : ResumeSession
    table : InputTable, TableStream or None
        The data, if it is a table.
    samples : iterable
        The data, if it is not a table.
    is_mapped : bool
        Whether the data is for `map=`. What is returned then begins with the last sample that is
        stored, as some results for it may not be stored.
    by_rows : bool
        Whether the rows of a table are encoded one by one.

    Returns
    -------
    tuple of (InputTable, TableStream or None, iterable)
        The remaining data, as a table or as samples.

    Raises
    ------
    ValueError
        If the data is shorter than what is stored, or the last sample that is stored differs.
    """
    assert session.last is not None
    number = session.last.number
    skipped = 0 if session.has_parts else number  # parts begin at the sample
    if isinstance(table, TableStream):
        tables: Iterator[InputTable]
        tables = (part for part in skip_rows(table.tables, skipped) if part.length)
        if not is_mapped:
            with sample_numbers(number):
                part = next(tables, None)
            if part is not None:
                tables = chain([_check_row(session, part, by_rows)], tables)
        return TableStream(table.head, tables), ()
    if table is not None:
        if number >= table.length:
            raise session.missing_input_error()
        table = LaterRows(table, number)
        return (table if is_mapped else _check_row(session, table, by_rows)), ()
    if is_mapped:
        return None, skip_items(samples, skipped)
    rest = skip_samples(samples, skipped)
    for sample in rest:
        if hasattr(type(sample), "_writer_input") and (rows := table_of(sample)) is not None:
            assert not isinstance(rows, TableStream)
            return None, chain([_check_row(session, rows, by_rows)], rest)
        session.check_sample(sample)
        return None, rest
    raise session.missing_input_error()


def _check_row(session: ResumeSession, table: InputTable, by_rows: bool) -> InputTable:
    """Check that the first row is the last sample that is stored; return the rows after it."""
    assert session.last is not None
    number = session.last.number
    for name in session.layout.columns:
        if name not in table.names():
            given = getattr(table, "given", table.names())
            raise ColumnError(name, given, f"sample {number}: ")
    if by_rows:
        session.check_sample(next(table_rows(table)))
    else:
        with sample_numbers(number):
            session.check_row(packed_row(table, session.layout, 0))
    return LaterRows(table, 1)


def packed_row(table: InputTable, layout: ShardFormat, row: int) -> bytes:
    """Return the bytes of a row of a table."""
    for block in table.blocks([(row, row + 1)], layout.columns):
        return layout.pack(block, row)[0].tobytes()
    raise ValueError(f"row {row} of the table is missing: its length has changed")
