"""How datasets and columns show themselves: one screen, no surprises."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from npstream.sizes import size_text

if TYPE_CHECKING:
    from npstream.column import Column
    from npstream.dataset import Dataset
    from npstream.mixture import Mixture

ROWS = 5
COLUMNS = 24
WIDTH = 60


def dataset_text(ds: Dataset) -> str:
    """Return a dataset's columns and extent; nothing is read."""
    index = ds._source.index
    shape = f"{len(ds):,} samples" if ds.ndim == 1 else f"samples of shape {ds.shape}"
    stored = f"{len(index):,} shards, {size_text(int(index.nbytes.sum()))}"
    lines = [f"<npstream.Dataset: {shape} of {index.samples:,} in {stored}, {index.where}"]
    return "\n".join(lines + _column_lines(ds)) + ">"


def _column_lines(ds: Dataset) -> list[str]:
    shown = {name: ds._source.field(name).encoding.name for name in ds.columns[:COLUMNS]}
    width = min(WIDTH, max(map(len, shown), default=0))
    lines = [f"  {clipped(name):{width}}  {encoding}" for name, encoding in shown.items()]
    if len(ds.columns) > COLUMNS:
        lines.append(f"  ... and {len(ds.columns) - COLUMNS} more columns")
    return lines


def mixture_text(mix: Mixture) -> str:
    """Return a mixture's columns, and its sources with their shares; nothing is read."""
    lines = [f"<npstream.Mixture: {len(mix):,} samples of {len(mix.names):,} sources"]
    lines += _column_lines(mix)
    _, shares = mix._of.schedule[0]
    facts = [*zip(mix.names, mix._of.sizes, shares, strict=True)]
    width = min(WIDTH, max(len(name) for name, *_ in facts[:COLUMNS]))
    lines += [
        f"  {clipped(name):{width}}  {share:7.2%} of what is drawn, {size:,} samples"
        for name, size, share in facts[:COLUMNS]
    ]
    if len(facts) > COLUMNS:
        lines.append(f"  ... and {len(facts) - COLUMNS:,} more sources")
    if len(mix._of.schedule) > 1:
        lines.append(f"  and other shares from position {mix._of.schedule[1][0]:,} on")
    return "\n".join(lines) + ">"


def dataset_html(ds: Dataset) -> str:
    """Return a table of a dataset's first rows, which are read."""
    names = list(ds.columns[:COLUMNS])
    first = ds.ravel()[:ROWS]
    columns = [[first[name][row] for row in range(len(first))] for name in names]
    head = "".join(f"<th>{escape(clipped(name))}</th>" for name in names)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(value_text(value))}</td>" for value in row) + "</tr>"
        for row in zip(*columns, strict=True)
    )
    caption = escape(repr(ds).splitlines()[0].strip("<>"))
    return (
        f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table>"
    )


def column_text(column: Column) -> str:
    """Return a column's name, shape and dtype; nothing is read."""
    return (
        f"<npstream.Column {column.name!r}: shape {column.shape}, dtype {column.dtype}, "
        f"stored as {column._field.encoding.stored}>"
    )


def column_html(column: Column) -> str:
    """Return a column's description and first values, which are read."""
    shown = min(ROWS, len(column)) if column.ndim else 0
    values = "".join(f"<li>{escape(value_text(column[row]))}</li>" for row in range(shown))
    return f"<div>{escape(column_text(column).strip('<>'))}<ol start='0'>{values}</ol></div>"


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
