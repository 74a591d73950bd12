"""Provide the methods of datasets and columns that show them: ``repr``, HTML, and image grids.

Tested in tests/explore/test_preview.py.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

from npstream._core.arguments import integer, quantity

if TYPE_CHECKING:
    from collections.abc import Callable

    from npstream.explore.grid import ImageGrid
    from npstream.explore.preview import Preview
    from npstream.indexing.columns import Cell
    from npstream.indexing.mesh import Mesh
    from npstream.indexing.selection import Selection
    from npstream.reading.plan import Field, Plan
    from npstream.reading.source import Source

__all__ = ["ColumnDisplay", "DatasetDisplay"]


class DatasetDisplay:
    """Methods of `Dataset`."""

    __slots__ = ()

    if TYPE_CHECKING:
        _source: Source
        _selection: Selection
        _names: tuple[str, ...]
        _transform: Callable[[Any], Any] | None

    def __repr__(self) -> str:
        from npstream.explore import display

        preview = self._preview(display.TEXT_VALUES, 0)
        columns = display.column_lines(self._encodings(), self._selection.size, preview)
        lines = [self._title(), *columns]
        if self._transform is not None:
            lines.append(f"  {display.transform_note(self._transform)}")
        return "\n".join(lines) + ">"

    def _title(self) -> str:
        from npstream.explore import display

        index, members = self._source.index, self._source.members
        total = sum(member.selection.size for member in members) if members else index.samples
        return display.dataset_title(index, self._selection.shape, total)

    def _repr_html_(self) -> str:
        from npstream.explore import display
        from npstream.explore.html import dataset_html
        from npstream.explore.preview import MAX_REQUESTS, preview_size

        preview = self._preview(preview_size(self._selection.size), MAX_REQUESTS)
        note = "" if self._transform is None else display.transform_note(self._transform)
        return dataset_html(self._title(), self._encodings(), self._selection.size, preview, note)

    def _preview(self, rows: int, max_requests: int) -> Preview:
        from npstream.explore import display
        from npstream.explore.preview import preview_dataset

        names = self._names[: display.MAX_COLUMNS]
        return preview_dataset(self._source, self._selection, names, rows, max_requests)

    def _encodings(self) -> dict[str, str]:
        return {name: self._source.field(name).encoding.name for name in self._names}


class ColumnDisplay:
    """Methods of `Column`."""

    __slots__ = ()

    if TYPE_CHECKING:
        _source: Source
        _selection: Selection
        _plan: Plan
        _cell: Cell | None
        _mesh: Mesh | None

        @property
        def name(self) -> str: ...  # noqa: D102
        @property
        def shape(self) -> tuple[int, ...]: ...  # noqa: D102
        @property
        def dtype(self) -> Any: ...  # noqa: D102
        @property
        def _field(self) -> Field: ...
        def __getitem__(self, index: Any) -> Any: ...

    def __repr__(self) -> str:
        from npstream.explore import display

        preview = self._preview(display.TEXT_VALUES, 0)
        return display.column_text(self._title(), self.name, self._selection.size, preview)

    def _title(self) -> str:
        from npstream.explore import display

        field = self._field
        nbytes = None
        if field.encoding.kind == "fixed":
            nbytes = self.dtype.itemsize * prod(self.shape)
        return display.column_title(
            self.name, self.shape, self.dtype, field.encoding.stored_name, nbytes
        )

    def _repr_html_(self) -> str:
        from npstream.explore.html import column_html
        from npstream.explore.preview import MAX_REQUESTS, preview_size

        preview = self._preview(preview_size(self._selection.size), MAX_REQUESTS)
        encoding = self._field.encoding.name
        return column_html(self._title(), self.name, encoding, self._selection.size, preview)

    def _preview(self, rows: int, max_requests: int) -> Preview:
        from npstream.explore.preview import Preview, preview_column, row_labels

        mesh, selection = self._mesh, self._selection
        if mesh is not None and mesh.lead:  # the first axis is not a row axis
            return Preview([], [], {})
        try:
            part = self._first_rows(rows)
            ids = part._selection.ravel().ids().tolist()
        except Exception as error:
            return Preview([""], [], {self.name: [error]})
        load = part.load if part._selection.ndim else lambda: [part.load()]
        values, cost = preview_column(
            self._source, part._plan, part._selection.ravel(), load, max_requests
        )
        labels = row_labels(selection.shape, len(ids))
        return Preview(labels, ids, {} if cost else {self.name: values}, cost)

    def show(
        self, max_images: int = 64, *, size: int = 112, columns: int | None = None
    ) -> ImageGrid:
        """Return a grid of the column's first images, which a notebook shows.

        Values are shown if they are image files, such as JPEG and PNG, or uint8 arrays of shape
        (H, W), (H, W, C) or (C, H, W). Image files may be in a column of ``bytes``. For an image
        that cannot be read, the grid shows the error.

        Parameters
        ----------
        max_images : int, default: 64
            Read and show at most this number of images.
        size : int, default: 112
            Longest side of an image in the grid, in pixels.
        columns : int, optional
            Images in each row of the grid; by default the number that fits in 900 pixels, which is
            about the width of a notebook.

        Returns
        -------
        ImageGrid
            ``save(path)`` writes it as an image or as a page, and ``to_pil()`` returns an image.

        Raises
        ------
        TypeError
            If no value is an image.
        MissingDependencyError
            If Pillow is not installed.

        Examples
        --------
        >>> import pytest; _ = pytest.importorskip("PIL")
        >>> path = getfixture("tmp_path")
        >>> pixels = np.zeros((100, 32, 32, 3), np.uint8)
        >>> _ = npstream.write(path / "images", {"image": pixels})
        >>> npstream.open(path / "images")["image"][:8].show()
        <ImageGrid: 8 images of 'image'; a notebook shows it, .save("grid.png") writes a file>
        """
        from npstream.explore.grid import ImageGrid, holds_images
        from npstream.explore.preview import read_values, row_labels

        count = integer("max_images", max_images, 1)
        size, total = integer("size", size, 16), self._selection.size
        columns_per_row = max(1, 900 // size) if columns is None else integer("columns", columns, 1)
        part = self._first_rows(count)
        values = read_values(self._source, part._plan, part._selection.ravel(), part.load)
        encoding = self._field.encoding.name
        if values and not holds_images(values, encoding):
            for value in values:
                if isinstance(value, Exception):
                    raise value
            raise TypeError(
                f"column {self.name!r} holds {encoding} values, not images: show() takes image "
                "files and uint8 arrays of shape (H, W), (H, W, C) or (C, H, W)"
            )
        title = f"{quantity(len(values), 'image')} of {self.name!r}"
        if total > len(values):
            title += f", which has {total:,}"
        labels = row_labels(self._selection.shape, len(values))
        return ImageGrid(title, values, labels, encoding, size=size, columns=columns_per_row)

    def _first_rows(self, rows: int) -> Any:
        """Return the first rows as a column with one row axis.

        For a view without axes, a column with a mesh is returned as it is, without a row axis.
        """
        mesh, selection = self._mesh, self._selection
        if mesh is None:
            return type(self)(self._source, self._plan, selection.ravel(), self._cell)[:rows]  # type: ignore[call-arg]
        if selection.ndim == 0:
            return self
        return self[(0,) * (selection.ndim - 1)][:rows]
