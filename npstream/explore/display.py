"""Text representations of datasets, mixtures and columns, at most one screen long.

Tested in tests/dataset/test_dataset.py.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from npstream._core.arguments import quantity, size_text
from npstream.rendering.text import WIDTH, printable_name, truncate, value_text, values_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from npstream.explore.preview import Preview
    from npstream.formats.index import Index

__all__ = [
    "MAX_COLUMNS", "TEXT_VALUES", "column_lines", "column_text", "column_title", "dataset_title",
    "mixture_text", "mixture_title", "transform_note", "truncate", "value_text",
]  # fmt: skip

TEXT_VALUES = 3
"""Values of a column that a text representation reads."""

MAX_COLUMNS = 24
"""Columns, or sources of a mixture, that are shown."""

LINE_WIDTH = 79
"""Characters of a line."""

MIN_VALUES_WIDTH = 12
"""Characters of the shortest list of values that is shown."""


def dataset_title(index: Index, shape: tuple[int, ...], total: int) -> str:
    """Return the first line of the ``repr`` of a dataset: its size.

    Parameters
    ----------
    index : Index
    shape : tuple of int
        Shape of the view.
    total : int
        Number of samples that the view selects from. A concatenation can have the samples of
        `index` several times, or only some of them.

    Returns
    -------
    str
    """
    samples = quantity(shape[0], "sample") if len(shape) == 1 else f"samples of shape {shape}"
    stored = f"{quantity(len(index), 'shard')}, {size_text(int(index.nbytes.sum()))}"
    where = printable_name(str(index.where))
    return f"<npstream.Dataset: {samples} of {total:,} in {stored}, {where}"


def transform_note(transform: Callable[[Any], Any]) -> str:
    """Return the note about the transform of a dataset's samples."""
    name = getattr(transform, "__qualname__", type(transform).__qualname__)
    return f"samples, not columns, pass through the transform {truncate(printable_name(name))}"


def column_lines(
    encodings: Mapping[str, str], samples: int, preview: Preview | None = None
) -> list[str]:
    """Return a line for each column: its name, its encoding and its first values.

    Parameters
    ----------
    encodings : mapping of str to str
        The name and encoding of each column.
    samples : int
        The number of samples of the view.
    preview : Preview, optional
        The first values.

    Returns
    -------
    list of str
    """
    columns = list(islice(encodings.items(), MAX_COLUMNS))
    names = [truncate(printable_name(name)) for name, _ in columns]
    name_width = max(map(len, names), default=0)
    encoding_width = max((len(encoding) for _, encoding in columns), default=0)
    lines = []
    for shown, (name, encoding) in zip(names, columns, strict=True):
        line = f"  {shown:{name_width}}  {encoding}"
        if preview is not None and name in preview.columns:
            line = f"  {shown:{name_width}}  {encoding:{encoding_width}}  "
            if (remaining := LINE_WIDTH - len(line)) >= MIN_VALUES_WIDTH:
                is_all = len(preview.ids) == samples
                line += values_text(preview.columns[name], is_all, remaining)
        lines.append(line.rstrip())
    if len(encodings) > MAX_COLUMNS:
        lines.append(f"  ... and {quantity(len(encodings) - MAX_COLUMNS, 'more column')}")
    if preview is not None and preview.cost is not None:
        lines.append(f"  {cost_note(preview)}")
    return lines


def cost_note(preview: Preview) -> str:
    """Return a note that no values are shown, with the estimated cost of reading them."""
    cost = preview.cost
    assert cost is not None
    return (
        f"values are not shown: to read {quantity(cost.samples, 'sample')} takes "
        f"{quantity(cost.requests, 'request')} for {size_text(cost.nbytes)}"
    )


def mixture_title(samples: int, sources: int) -> str:
    """Return the first line of the ``repr`` of a mixture: its size."""
    return f"<npstream.Mixture: {quantity(samples, 'sample')} of {quantity(sources, 'source')}"


def mixture_text(
    samples: int,
    encodings: Mapping[str, str],
    sources: Sequence[tuple[str, int, float]],
    shares_end: int | None,
    preview: Preview | None = None,
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
    shares_end : int, optional
        The position in the order of samples at which the shares change. The shares in `sources`
        are those before this position.
    preview : Preview, optional
        The first values of the columns.
    """
    lines = [mixture_title(samples, len(sources))]
    lines += column_lines(encodings, samples, preview)
    width = min(WIDTH, max(len(name) for name, *_ in sources[:MAX_COLUMNS]))
    lines += [
        f"  {truncate(name):{width}}  {share:7.2%} of drawn samples, {quantity(size, 'sample')}"
        for name, size, share in sources[:MAX_COLUMNS]
    ]
    if len(sources) > MAX_COLUMNS:
        lines.append(f"  ... and {quantity(len(sources) - MAX_COLUMNS, 'more source')}")
    if shares_end is not None:
        lines.append(f"  and other shares from position {shares_end:,} on")
    return "\n".join(lines) + ">"


def column_title(
    name: str, shape: tuple[int, ...], dtype: Any, encoding: str, nbytes: int | None
) -> str:
    """Return the first line of the ``repr`` of a column: name, shape, dtype, encoding and size.

    Parameters
    ----------
    name : str
    shape : tuple of int
        Shape of the column.
    dtype : dtype
        Dtype of its elements.
    encoding : str
        The stored encoding.
    nbytes : int or None
        Bytes of the loaded column; None if its values vary in size.

    Returns
    -------
    str
    """
    size = "" if nbytes is None else f", {size_text(nbytes)}"
    return f"<npstream.Column {name!r}: shape {shape}, dtype {dtype}, stored as {encoding}{size}"


def column_text(title: str, name: str, size: int, preview: Preview) -> str:
    """Return the ``repr`` of a column: its title and its first values.

    Parameters
    ----------
    title : str
        From `column_title`.
    name : str
    size : int
        Samples of the column's view.
    preview : Preview

    Returns
    -------
    str
    """
    if preview.cost is not None:
        return f"{title}\n  {cost_note(preview)}>"
    values = preview.columns.get(name, [])
    if not values:
        return f"{title}>"
    return f"{title}\n  {values_text(values, len(values) == size, LINE_WIDTH - 3)}>"
