"""The user's function from a sample to samples, and the place of an exception in user code.

Tested in tests/writing/test_workers.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from npstream.errors import stop_iteration_error
from npstream.writing.inputs.recognition import table_of
from npstream.writing.shard import Bodies, ColumnBlock
from npstream.writing.tables import GivenTable, RowError, TableStream, table_encodings

if TYPE_CHECKING:
    from npstream.formats.encodings.encodings import Encoding

__all__ = ["MapFunction", "Position", "mapped", "noted", "rows_of", "watched"]

MapFunction: TypeAlias = "Callable[[Any], Mapping[str, Any] | Iterable[Mapping[str, Any]] | None]"

_ROWS = 256
"""Rows of a table that become samples at once."""


@dataclass(slots=True)
class Position:
    """The number of the sample of the input that is being written."""

    number: int = 0


def rows_of(
    table: GivenTable | TableStream, reject: Callable[[RowError], None] | None = None
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table as samples.

    Parameters
    ----------
    table : GivenTable or TableStream
    reject : callable, optional
        Is given the error of each row that the table cannot give, which is then left out.
    """
    if isinstance(table, TableStream):
        encodings = table_encodings(table.head)
        for each in table.tables:
            yield from _rows(each, encodings, reject)
    else:
        yield from _rows(table, table_encodings(table), reject)


def _rows(
    table: GivenTable,
    encodings: Mapping[str, Encoding],
    reject: Callable[[RowError], None] | None,
) -> Iterator[dict[str, Any]]:
    start = end = 0
    while start < table.length:
        bounds = [(k, min(k + _ROWS, table.length)) for k in range(start, table.length, _ROWS)]
        if start < end:
            bounds = [(start, end)]  # the rows before one that is left out
        try:
            for block in table.blocks(bounds, encodings):
                columns = [_values(part, encodings[name]) for name, part in block.items()]
                for row in zip(*columns, strict=True):
                    start += 1
                    yield dict(zip(block, row, strict=True))
        except RowError as error:
            if reject is None:
                raise error.at(0) from error.__cause__
            end = error.row
            if start == end:
                reject(error)
                start += 1


def _values(part: ColumnBlock, encoding: Encoding) -> Iterable[Any]:
    return map(encoding.decode, part.to_list()) if isinstance(part, Bodies) else part


def watched(samples: Iterable[Any], position: Position) -> Iterator[Any]:
    """Yield samples, keep their number, and note it on an exception of the iterator."""
    given = iter(samples)
    number = 0
    while True:
        try:
            sample = next(given)
        except StopIteration:
            return
        except Exception as error:
            raise noted(error, f"raised by data, which was to give sample {number}") from None
        position.number = number
        yield sample
        number += 1


def mapped(function: MapFunction, sample: Any, number: int) -> Iterator[Any]:
    """Yield the samples that a user's function makes of sample `number`."""
    try:
        result = function(sample)
        if result is None:
            return
        if isinstance(result, Mapping) and not hasattr(type(result), "_to_write"):
            results: Iterator[Any] = iter((result,))
        elif hasattr(type(result), "_to_write") and (table := table_of(result)) is not None:
            results = rows_of(table)
        elif isinstance(result, str | bytes | np.ndarray) or not hasattr(result, "__iter__"):
            raise TypeError(
                f"map= returned a {type(result).__name__}; expected a mapping from column name to "
                "value, None, or an iterable of mappings"
            )
        else:
            results = iter(result)
    except StopIteration:
        raise noted(stop_iteration_error("map="), f"in map=, sample {number} of data") from None
    except Exception as error:
        raise noted(error, f"in map=, sample {number} of data") from None
    while True:
        try:
            one = next(results)
        except StopIteration:
            return
        except Exception as error:
            raise noted(error, f"in map=, sample {number} of data") from None
        yield one


def noted(error: Exception, note: str) -> Exception:
    """Return an exception with a note of the place."""
    error.add_note(note)
    return error
