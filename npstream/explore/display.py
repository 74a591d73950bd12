"""Text and HTML representations of datasets, mixtures and columns, at most one screen long.

Tested in tests/dataset/test_dataset.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from npstream._core.arguments import quantity, size_text
from npstream.rendering.html import escape

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from npstream.formats.index import Index

MAX_ROWS = 5
"""Rows that HTML shows."""

MAX_COLUMNS = 24
"""Columns, or sources of a mixture, that are shown."""

WIDTH = 60
"""Characters of a name or value that are shown."""


def dataset_text(
    index: Index,
    shape: tuple[int, ...],
    encodings: Mapping[str, str],
    transform: Callable[[Any], Any] | None,
) -> str:
    """Return the ``repr`` of a dataset: its size and its columns.

    Parameters
    ----------
    index : Index
    shape : tuple of int
        Shape of the view.
    encodings : mapping of str to str
        The name and encoding of each column of the view.
    transform : callable, optional
        The transform of the view's samples.
    """
    samples = quantity(shape[0], "sample") if len(shape) == 1 else f"samples of shape {shape}"
    stored = f"{quantity(len(index), 'shard')}, {size_text(int(index.nbytes.sum()))}"
    lines = [f"<npstream.Dataset: {samples} of {index.samples:,} in {stored}, {index.where}"]
    lines += _column_lines(encodings)
    if transform is not None:
        name = getattr(transform, "__qualname__", type(transform).__qualname__)
        lines.append(f"  samples, not columns, pass through the transform {truncate(name)}")
    return "\n".join(lines) + ">"


def _column_lines(encodings: Mapping[str, str]) -> list[str]:
    columns = list(encodings.items())[:MAX_COLUMNS]
    width = min(WIDTH, max((len(name) for name, _ in columns), default=0))
    lines = [f"  {truncate(name):{width}}  {encoding}" for name, encoding in columns]
    if len(encodings) > MAX_COLUMNS:
        lines.append(f"  ... and {quantity(len(encodings) - MAX_COLUMNS, 'more column')}")
    return lines


def mixture_text(
    samples: int,
    encodings: Mapping[str, str],
    sources: Sequence[tuple[str, int, float]],
    changes: int | None,
) -> str:
    """Return the ``repr`` of a mixture: its columns, and its sources with their shares.

    Parameters
    ----------
    samples : int
        Number of samples of all sources.
    encodings : mapping of str to str
        The name and encoding of each column.
    sources : sequence of tuple
        The name of each source, its number of samples, and its share of the drawn samples.
    changes : int, optional
        The first position with other shares.
    """
    lines = [
        f"<npstream.Mixture: {quantity(samples, 'sample')} of {quantity(len(sources), 'source')}"
    ]
    lines += _column_lines(encodings)
    width = min(WIDTH, max(len(name) for name, *_ in sources[:MAX_COLUMNS]))
    lines += [
        f"  {truncate(name):{width}}  {share:7.2%} of drawn samples, {quantity(size, 'sample')}"
        for name, size, share in sources[:MAX_COLUMNS]
    ]
    if len(sources) > MAX_COLUMNS:
        lines.append(f"  ... and {quantity(len(sources) - MAX_COLUMNS, 'more source')}")
    if changes is not None:
        lines.append(f"  and other shares from position {changes:,} on")
    return "\n".join(lines) + ">"


def dataset_html(text: str, columns: Mapping[str, Sequence[Any]]) -> str:
    """Return an HTML table of a dataset's first rows.

    Parameters
    ----------
    text : str
        The dataset's ``repr``, from `dataset_text`.
    columns : mapping of str to sequence
        The values of the first rows.
    """
    head = "".join(f"<th>{escape(truncate(name))}</th>" for name in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(value_text(value))}</td>" for value in row) + "</tr>"
        for row in zip(*columns.values(), strict=True)
    )
    caption = escape(text.splitlines()[0].strip("<>"))
    return (
        f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table>"
    )


def column_text(name: str, shape: tuple[int, ...], dtype: Any, stored: str) -> str:
    """Return the ``repr`` of a column: its name, shape, dtype and encoding."""
    return f"<npstream.Column {name!r}: shape {shape}, dtype {dtype}, stored as {stored}>"


def column_html(text: str, values: Sequence[Any]) -> str:
    """Return a column's ``repr`` and first values as HTML."""
    items = "".join(f"<li>{escape(value_text(value))}</li>" for value in values)
    return f"<div>{escape(text.strip('<>'))}<ol start='0'>{items}</ol></div>"


def value_text(value: Any) -> str:
    """Return a value as one line of at most `WIDTH` characters."""
    if isinstance(value, np.ndarray):
        inner = np.array2string(value, threshold=6, edgeitems=3, separator=" ")
        text = f"{value.dtype}{list(value.shape)} {' '.join(inner.split())}"
    else:
        short = value[: WIDTH + 1] if isinstance(value, str | bytes) else value
        text = str(short) if isinstance(value, str | np.generic) else repr(short)
    return truncate(text)


def truncate(text: str) -> str:
    """Return text, truncated to `WIDTH` characters."""
    return text if len(text) <= WIDTH else text[: WIDTH - 3] + "..."
