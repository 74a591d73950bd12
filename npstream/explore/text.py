"""Search and comparison of text in columns: `contains`, `startswith`, `isin`, ....

They are as fast as ``==``: the kernels compare bytes in the shards, without copying or decoding
them. This is correct because arguments and values are both UTF-8. In UTF-8, text `a` contains text
`b` exactly if the bytes of `a` contain the bytes of `b`.

Tested in tests/explore/test_text.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from npstream._core import spans
from npstream._core.jit import MASK_BYTES
from npstream._core.memory import address_of
from npstream._core.progress import progress
from npstream._core.typing import AnyArray, Bools, Bytes, Int64
from npstream.reading.cost_limit import check_cost
from npstream.reading.gather import KERNEL_ROWS, SpanFunction, apply_to_ragged, apply_to_spans
from npstream.reading.ragged import Ragged

if TYPE_CHECKING:
    from npstream._core.jit import Kernel
    from npstream.indexing.selection import Selection
    from npstream.reading.gather import Lookup
    from npstream.reading.plan import Plan
    from npstream.reading.source import Source

__all__ = [
    "apply_to_rows",
    "byte_counts",
    "character_counts",
    "equals_any",
    "has_end",
    "has_part",
    "stored_texts",
    "text_bytes",
]

TEXT_KINDS: dict[str, type] = {"str": str, "bytes": bytes}
"""The kinds of columns of text, and the type of their values."""

TEXT_TYPES = (str, bytes)
"""The types of values of columns of text."""


def text_bytes(value: Any, kind: str, name: str) -> bytes:
    """Return an argument in the form in which a column stores its values: as bytes.

    Parameters
    ----------
    value : str or bytes
        The argument, such as a text to search for.
    kind : {"str", "bytes"}
        The kind of the column.
    name : str
        The column's name, for the message.

    Raises
    ------
    TypeError
        If the value does not have the type of the column's values.
    """
    if not isinstance(value, TEXT_KINDS[kind]):
        raise TypeError(
            f"column {name!r} holds {kind}, and the argument is {value!r:.60} "
            f"({type(value).__name__}): pass {kind}"
        )
    return _encode(value)


def _encode(value: Any) -> bytes:
    # A str with surrogates is not valid UTF-8. It occurs in no value, but must not raise.
    return value.encode(errors="surrogatepass") if isinstance(value, str) else bytes(value)


def stored_texts(values: Iterable[Any], kind: str) -> list[bytes]:
    """Return the stored bytes of the values whose type fits `kind`, and drop the other values."""
    return [_encode(value) for value in values if isinstance(value, TEXT_KINDS[kind])]


def apply_to_rows(
    function: SpanFunction,
    dtype: type,
    source: Source,
    plan: Plan,
    selection: Selection,
    purpose: str,
) -> AnyArray:
    """Call a function on the values of a column of text or bytes, one block of rows at a time.

    Parameters
    ----------
    function : callable
        Takes the addresses and sizes of a block of values, and an array that it fills with results.
    dtype : type
        The dtype of the results.
    source : Source
    plan : Plan
        A plan of one column.
    selection : Selection
        The rows.
    purpose : str
        The operation, for the progress bar and messages, such as ``"contains"``.

    Returns
    -------
    ndarray
        Of the selection's shape.
    """
    check_cost(source, selection, purpose, plan)
    results: AnyArray = np.empty(selection.size, dtype)
    for start in progress(range(0, selection.size, KERNEL_ROWS), purpose):
        rows = source.look_up(selection.ids(start, start + KERNEL_ROWS))
        _apply(source, plan, rows, function, results[start : start + KERNEL_ROWS])
    shaped: AnyArray = results.reshape(selection.shape)[()]
    return shaped


def _apply(
    source: Source, plan: Plan, rows: Lookup, function: SpanFunction, results: AnyArray
) -> None:
    """Call a function on the values of rows of a column that is stored, joined or computed."""
    (field,) = plan.fields
    if field.computation is not None:
        column = field.computation.column(rows.rows)
        assert isinstance(column, Ragged)
        apply_to_ragged(column, function, results)
        return
    # A plan of one column has at most one joined part: the column is joined or not.
    for joined, part, joined_rows in source.joined_parts(plan, rows):
        _apply(joined, part, joined_rows, function, results)
        return
    apply_to_spans(source.fetcher, plan, rows.samples, function, results)


def has_part(pattern: bytes) -> SpanFunction:
    """Return a function that tests which values contain the bytes `pattern`."""
    body = _as_array(pattern)

    def search(address: Int64, nbytes: Int64, matches: Bools) -> None:
        kernel = _choose_kernel(spans.search_spans, nbytes)
        kernel(address, nbytes, address_of(body), len(pattern), matches)

    return search


def has_end(patterns: Iterable[bytes], at_end: bool) -> SpanFunction:
    """Return a function that tests which values start with one of `patterns`.

    With `at_end`, it tests which values end with one of them.
    """
    bodies = [(_as_array(pattern), len(pattern)) for pattern in patterns]

    def compare(address: Int64, nbytes: Int64, matches: Bools) -> None:
        kernel = spans.match_ends.for_size(len(matches))
        block = matches  # the first pattern needs no second array
        matches[:] = False
        for number, (body, size) in enumerate(bodies):
            if number == 1:
                block = np.empty(len(matches), bool)
            kernel(address, nbytes, address_of(body), size, at_end, block)
            matches |= block

    return compare


def equals_any(values: Iterable[bytes]) -> SpanFunction:
    """Return a function that tests which values equal one of `values`."""
    ordered = sorted(set(values), key=lambda value: (len(value), value))
    sizes = np.array([len(value) for value in ordered], np.int64)
    body = _as_array(b"".join(ordered))
    begins = address_of(body) + np.cumsum(sizes) - sizes

    def compare(address: Int64, nbytes: Int64, matches: Bools) -> None:
        assert len(body)  # `begins` are addresses in `body`: this reference keeps it in memory
        spans.match_any_span.for_size(len(matches))(address, nbytes, begins, sizes, matches)

    return compare


def character_counts(address: Int64, nbytes: Int64, lengths: Int64) -> None:
    """Set `lengths` to the number of code points of each UTF-8 value."""
    _choose_kernel(spans.count_characters, nbytes)(address, nbytes, lengths)


def byte_counts(address: Int64, nbytes: Int64, lengths: Int64) -> None:
    """Set `lengths` to the number of bytes of each value."""
    lengths[:] = nbytes


def _choose_kernel(kernel: Kernel[..., Any], nbytes: Int64) -> Any:
    """Return the faster function of a kernel, compiled or plain, by the bytes that it examines."""
    # One step of the kernels examines up to `MASK_BYTES` bytes.
    return kernel.for_size(len(nbytes) + int(nbytes.sum()) // MASK_BYTES)


def _as_array(pattern: bytes) -> Bytes:
    """Return bytes as an array that has an address, even if `pattern` is empty."""
    return np.frombuffer(pattern or b"\0", np.uint8)
