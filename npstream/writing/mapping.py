"""Call the user's `map` function, and add the sample's number to exceptions in user code.

Tested in tests/writing/test_workers.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from npstream.errors import stop_iteration_error
from npstream.writing.inputs.recognition import table_of
from npstream.writing.shard import Bodies, ColumnBlock
from npstream.writing.tables import InputTable, RowError, TableStream, table_encodings

if TYPE_CHECKING:
    from npstream.formats.encodings.encodings import Encoding

__all__ = [
    "MapFunction",
    "Position",
    "apply_map",
    "batch_function",
    "table_rows",
    "track_position",
    "with_note",
]

MapFunction: TypeAlias = "Callable[[Any], Mapping[str, Any] | Iterable[Mapping[str, Any]] | None]"

_BLOCK_ROWS = 256
"""Rows of a table that are converted to samples together."""


@dataclass(slots=True)
class Position:
    """The position of the sample that is being written.

    Attributes
    ----------
    number : int
        The number of the input sample.
    output : int
        The number of this output among the outputs of `map=` for the input sample, from 0.
    """

    number: int = 0
    output: int = 0


def table_rows(
    table: InputTable | TableStream, reject: Callable[[RowError], None] | None = None
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table as samples.

    Parameters
    ----------
    table : InputTable or TableStream
    reject : callable, optional
        Called with the error of each row that cannot be converted. The row is left out. By default
        the error is raised.
    """
    if isinstance(table, TableStream):
        encodings = table_encodings(table.head)
        for part in table.tables:
            yield from _rows(part, encodings, reject)
    else:
        yield from _rows(table, table_encodings(table), reject)


def _rows(
    table: InputTable,
    encodings: Mapping[str, Encoding],
    reject: Callable[[RowError], None] | None,
) -> Iterator[dict[str, Any]]:
    # A block with a row that cannot be converted raises before any of its rows is yielded. The rows
    # before that row are then read as a block of their own.
    start = end = 0
    while start < table.length:
        bounds = [
            (k, min(k + _BLOCK_ROWS, table.length)) for k in range(start, table.length, _BLOCK_ROWS)
        ]
        if start < end:
            bounds = [(start, end)]  # the rows before the one that cannot be converted
        try:
            for block in table.blocks(bounds, encodings):
                columns = [_values(part, encodings[name]) for name, part in block.items()]
                for row in zip(*columns, strict=True):
                    start += 1
                    yield dict(zip(block, row, strict=True))
        except RowError as error:
            if reject is None:
                raise error.sample_error(0) from error.__cause__
            end = error.row
            if start == end:
                reject(error)
                start += 1


def _values(part: ColumnBlock, encoding: Encoding) -> Iterable[Any]:
    return map(encoding.decode, part.to_list()) if isinstance(part, Bodies) else part


def track_position(samples: Iterable[Any], position: Position, number: int = 0) -> Iterator[Any]:
    """Yield samples, and set ``position.number`` to the number of each.

    `number` is the number of the first sample. An exception of the iterator gets a note with the
    number of the sample that did not come.
    """
    iterator = iter(samples)
    while True:
        try:
            sample = next(iterator)
        except StopIteration:
            return
        except Exception as error:
            raise with_note(error, f"raised by data, instead of sample {number}") from None
        position.number = number
        yield sample
        number += 1


def batch_function(function: MapFunction, samples: Sequence[Any]) -> MapFunction:
    """Return the function to call with each of these samples, in their order.

    A function with a method `for_batch` computes the results of all samples at once.
    """
    for_batch: Callable[[Sequence[Any]], MapFunction] | None = getattr(function, "for_batch", None)
    return function if for_batch is None else for_batch(samples)


def apply_map(function: MapFunction, sample: Any, number: int) -> Iterator[Any]:
    """Yield the samples that the user's function returns for sample `number`."""
    try:
        result = function(sample)
        if result is None:
            return
        if isinstance(result, Mapping) and not hasattr(type(result), "_writer_input"):
            results: Iterator[Any] = iter((result,))
        elif hasattr(type(result), "_writer_input") and (table := table_of(result)) is not None:
            results = table_rows(table)
        elif isinstance(result, str | bytes | np.ndarray) or not hasattr(result, "__iter__"):
            raise TypeError(
                f"map= returned a {type(result).__name__}; expected a mapping from column name to "
                "value, None, or an iterable of mappings"
            )
        else:
            results = iter(result)
    except StopIteration:
        raise with_note(stop_iteration_error("map="), f"in map=, sample {number} of data") from None
    except Exception as error:
        raise with_note(error, f"in map=, sample {number} of data") from None
    while True:
        try:
            mapped_sample = next(results)
        except StopIteration:
            return
        except Exception as error:
            raise with_note(error, f"in map=, sample {number} of data") from None
        yield mapped_sample


def with_note(error: Exception, note: str) -> Exception:
    """Add a note to an exception, and return it."""
    error.add_note(note)
    return error
