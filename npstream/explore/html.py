"""HTML representations of datasets and columns for notebooks, and `table`, which they use."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from npstream._core.arguments import quantity
from npstream.explore.display import MAX_COLUMNS, cost_note
from npstream.rendering.cells import rows_table, type_text
from npstream.rendering.html import table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from npstream.explore.preview import Preview

__all__ = ["column_html", "dataset_html", "table"]


def dataset_html(
    title: str, encodings: Mapping[str, str], size: int, preview: Preview, note: str = ""
) -> str:
    """Return an HTML table of a dataset's first rows.

    Parameters
    ----------
    title : str
        From `npstream.explore.display.dataset_title`.
    encodings : mapping of str to str
        The name and encoding of each column.
    size : int
        Number of samples of the view.
    preview : Preview
        The first rows.
    note : str, default: ""
        A further note under the table.

    Returns
    -------
    str
    """
    shown = dict(islice(encodings.items(), MAX_COLUMNS))
    notes = []
    if len(preview.rows) < size or preview.cost is not None:
        notes.append(f"... {quantity(size, 'row')}")
    if len(encodings) > len(shown):
        notes.append(f"{quantity(len(encodings) - len(shown), 'more column')} are not shown")
    if preview.cost is not None:
        notes.append(cost_note(preview))
    if note:
        notes.append(note)
    return _preview_table(title, shown, preview, "; ".join(notes))


def column_html(title: str, name: str, encoding: str, size: int, preview: Preview) -> str:
    """Return an HTML table of a column's first values.

    Parameters
    ----------
    title : str
        From `npstream.explore.display.column_title`.
    name : str
    encoding : str
    size : int
        Number of samples of the column's view.
    preview : Preview

    Returns
    -------
    str
    """
    return dataset_html(title, {name: encoding}, size, preview)


def _preview_table(title: str, encodings: Mapping[str, str], preview: Preview, footer: str) -> str:
    labels, ids = list(preview.rows), [str(number) for number in preview.ids]
    indices = {"row": labels}
    if ids != labels and len(ids) == len(labels):
        indices["id"] = ids
    # A title is the first line of a `repr`, which begins with "<".
    types = {name: type_text(encoding) for name, encoding in encodings.items()}
    return rows_table(title.removeprefix("<"), indices, preview.columns, types, encodings, footer)
