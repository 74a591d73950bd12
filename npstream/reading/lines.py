"""Samples that are lines of text: JSONL, CSV, TSV and XSV, parsed one by one.

Tested in tests/formats/test_text.py.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from npstream.errors import FormatError
from npstream.formats import text

if TYPE_CHECKING:
    from npstream._core.typing import Int64
    from npstream.shards.table import Fetcher


def read_lines(
    fetcher: Fetcher, schema: int, names: Sequence[str], ids: Int64
) -> dict[str, list[Any]]:
    """Read columns of samples, all of one schema, as lists of their values.

    Parameters
    ----------
    fetcher : Fetcher
    schema : int
        The number of the schema in the index.
    names : sequence of str
        The columns.
    ids : ndarray of int64, shape (n,)
    """
    columns: dict[str, list[Any]] = {name: [] for name in names}
    if len(ids) == 0:
        return columns
    address, nbytes, held = fetcher.locate(ids)
    parse = line_parser(fetcher, schema, names)
    guard = text.guard(fetcher.index.schemas[schema])
    for sample, at, length in zip(ids.tolist(), address.tolist(), nbytes.tolist(), strict=True):
        values = parse(sample, ctypes.string_at(at - guard, length + guard))
        for name, column in columns.items():
            column.append(values[name])
    del held  # the addresses were in use until here
    return columns


def line_parser(
    fetcher: Fetcher, schema: int, names: Sequence[str]
) -> Callable[[int, bytes], dict[str, Any]]:
    """Return a function that parses a sample's line, preceded by `text.guard` bytes."""
    layout = fetcher.index.schemas[schema]
    parse = text.parser(layout, names)
    newline = layout.newline.encode()[: text.guard(layout)]

    def checked(sample: int, line: bytes) -> dict[str, Any]:
        try:
            if not line.startswith(newline):
                raise FormatError("it does not begin where a line ends")
            return parse(line[len(newline) :])
        except ValueError as error:
            fetcher.damaged(sample, str(error), error)

    return checked
