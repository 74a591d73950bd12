"""How datasets and columns show themselves: one screen, no surprises.

Tested in tests/dataset/test_dataset.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from npstream._core.arguments import quantity, size_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from npstream.formats.index import Index

MAX_ROWS = 5
MAX_COLUMNS = 24
WIDTH = 60


def dataset_text(index: Index, shape: tuple[int, ...], encodings: Mapping[str, str]) -> str:
    """Return a dataset's columns and extent.

    Parameters
    ----------
    index : Index
    shape : tuple of int
        Of the view.
    encodings : mapping of str to str
        The columns of the view.
    """
    samples = quantity(shape[0], "sample") if len(shape) == 1 else f"samples of shape {shape}"
    stored = f"{quantity(len(index), 'shard')}, {size_text(int(index.nbytes.sum()))}"
    lines = [f"<npstream.Dataset: {samples} of {index.samples:,} in {stored}, {index.where}"]
    return "\n".join(lines + _column_lines(encodings)) + ">"


def _column_lines(encodings: Mapping[str, str]) -> list[str]:
    shown = list(encodings.items())[:MAX_COLUMNS]
    width = min(WIDTH, max((len(name) for name, _ in shown), default=0))
    lines = [f"  {clipped(name):{width}}  {encoding}" for name, encoding in shown]
    if len(encodings) > MAX_COLUMNS:
        lines.append(f"  ... and {quantity(len(encodings) - MAX_COLUMNS, 'more column')}")
    return lines


def mixture_text(
    samples: int,
    encodings: Mapping[str, str],
    sources: Sequence[tuple[str, int, float]],
    changes: int | None,
) -> str:
    """Return a mixture's columns, and its sources with their shares.

    Parameters
    ----------
    samples : int
    encodings : mapping of str to str
        The columns.
    sources : sequence of tuple
        The name of each source, its number of samples, and its share of what is drawn.
    changes : int, optional
        The position from which on other shares hold.
    """
    lines = [
        f"<npstream.Mixture: {quantity(samples, 'sample')} of {quantity(len(sources), 'source')}"
    ]
    lines += _column_lines(encodings)
    width = min(WIDTH, max(len(name) for name, *_ in sources[:MAX_COLUMNS]))
    lines += [
        f"  {clipped(name):{width}}  {share:7.2%} of what is drawn, {quantity(size, 'sample')}"
        for name, size, share in sources[:MAX_COLUMNS]
    ]
    if len(sources) > MAX_COLUMNS:
        lines.append(f"  ... and {quantity(len(sources) - MAX_COLUMNS, 'more source')}")
    if changes is not None:
        lines.append(f"  and other shares from position {changes:,} on")
    return "\n".join(lines) + ">"


def dataset_html(text: str, columns: Mapping[str, Sequence[Any]]) -> str:
    """Return a table of a dataset's first rows.

    Parameters
    ----------
    text : str
        What the dataset is, as `dataset_text` says it.
    columns : mapping of str to sequence
        The values of the first rows.
    """
    head = "".join(f"<th>{escape(clipped(name))}</th>" for name in columns)
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
    """Return a column's name, shape, dtype and encoding."""
    return f"<npstream.Column {name!r}: shape {shape}, dtype {dtype}, stored as {stored}>"


def column_html(text: str, values: Sequence[Any]) -> str:
    """Return a column's description and first values."""
    items = "".join(f"<li>{escape(value_text(value))}</li>" for value in values)
    return f"<div>{escape(text.strip('<>'))}<ol start='0'>{items}</ol></div>"


def escape(text: str) -> str:
    """Return text as HTML shows it."""
    import html

    return html.escape(text)


def value_text(value: Any) -> str:
    """Return a value on one short line."""
    if isinstance(value, np.ndarray):
        inner = np.array2string(value, threshold=6, edgeitems=3, separator=" ")
        text = f"{value.dtype}{list(value.shape)} {' '.join(inner.split())}"
    else:
        short = value[: WIDTH + 1] if isinstance(value, str | bytes) else value
        text = str(short) if isinstance(value, str | np.generic) else repr(short)
    return clipped(text)


def clipped(text: str) -> str:
    """Return a text, or as much of it as fits."""
    return text if len(text) <= WIDTH else text[: WIDTH - 3] + "..."
