"""Provide `Batch`, the columns of some samples."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from npstream._core import optional
from npstream._core.arguments import quantity, size_text
from npstream._core.typing import Bools, Int64
from npstream.errors import ColumnError, short_repr
from npstream.reading.ragged import Ragged

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from npstream.writing.tables import Columns

__all__ = ["Batch", "Ragged"]

_MAX_COLUMNS_SHOWN = 20  # columns in a repr
_MAX_ROWS_SHOWN = 10  # rows in HTML
_LINE_WIDTH = 79  # characters of a line in a repr
_MIN_VALUES_WIDTH = 12  # characters of the shortest list of values in a repr

_INT64 = np.dtype(np.int64)  # NumPy takes a dtype in less time than a type


class Batch(dict[str, Any]):
    """The columns of some samples: a dict with an array or a Ragged for each column.

    A batch has the ids of its samples. Copies, pickles and torch's conversions keep them. A batch
    that is made from columns alone has no ids: the property `ids` then raises AttributeError.

    Parameters
    ----------
    columns : mapping of str to ndarray or Ragged, or iterable of pairs, default: ()
        The values of each column.
    ids : array_like of int, optional
        The sample ids, in the shape of the view that was read.
    repeated : array_like of bool, optional
        True for padding: samples that are read a second time to fill the batch. By default none.
    encodings : mapping of str to str, optional
        The stored encoding of each column. `npstream.write` then uses it again.

    Examples
    --------
    >>> batch = Batch({"x": np.ones((2, 3)), "text": Ragged.from_list(["a", "bcd"])}, [7, 3])
    >>> batch
    <Batch: 2 samples, 52 bytes>
      x     float64 (2, 3)               [1. 1. 1.], [1. 1. 1.]
      text  Ragged, 2 str, 1 to 3 bytes  'a', 'bcd'
    >>> batch.ids
    array([7, 3])
    """

    __slots__ = ("__dict__", "__weakref__", "_encodings", "_ids", "_repeated")

    def __init__(
        self,
        columns: Mapping[str, Any] | Iterable[tuple[str, Any]] = (),
        ids: ArrayLike | None = None,
        repeated: ArrayLike | None = None,
        *,
        encodings: Mapping[str, str] | None = None,
    ) -> None:
        dict.update(self, columns)  # `self.update` would take longer, because of `__getattr__`
        self._encodings = encodings
        self._ids = None if ids is None else np.asarray(ids, _INT64)
        self._repeated = None if repeated is None else np.asarray(repeated, np.bool_)

    def __missing__(self, key: Any) -> NoReturn:
        if isinstance(key, str):
            raise ColumnError(key, self)
        raise KeyError(
            f"batch[{short_repr(key)}]: a Batch is a dict of columns: index a column, as in "
            f"batch[{next(iter(self), 'name')!r}][0]"
        )

    if not TYPE_CHECKING:  # with `__getattr__`, type checkers would accept any name

        def __getattr__(self, name: str) -> Any:
            if name in self:
                raise AttributeError(
                    f"'Batch' object has no attribute {name!r}; it is a column: write "
                    f"batch[{name!r}]",
                    name=name, obj=self,
                )  # fmt: skip
            return object.__getattribute__(self, name)  # raises the AttributeError of Python

    @property
    def ids(self) -> Int64:
        """The sample ids, in the shape of the view that was read."""
        if self._ids is None:
            raise AttributeError("this batch was made from columns alone: it has no sample ids")
        return self._ids

    @property
    def n(self) -> int:
        """The number of rows."""
        if self._ids is not None:
            return len(self._ids) if self._ids.ndim else 1
        return len(next(iter(self.values()), ()))

    @property
    def repeated(self) -> Bools:
        """True for padding: samples that are read a second time to fill the batch."""
        if self._repeated is None:
            return np.zeros(self.ids.shape, np.bool_)
        return self._repeated

    def copy(self) -> Batch:
        """Return a batch of the same arrays.

        Returns
        -------
        Batch

        Examples
        --------
        >>> batch = Batch({"x": np.arange(2)}, ids=[5, 6])
        >>> copied = batch.copy()
        >>> copied["x"] is batch["x"], copied.ids
        (True, array([5, 6]))
        """
        return copy.copy(self)

    def to_torch(self) -> Batch:
        """Return the batch with tensors over the same memory.

        Arrays in a Ragged become nested tensors in jagged layout. Rows of ``bytes`` and images
        become nested tensors of their bytes. A list of arrays becomes a list of tensors. Text,
        dates and arrays of objects, for which torch has no type, stay unchanged.

        Returns
        -------
        Batch

        Examples
        --------
        >>> import pytest; _ = pytest.importorskip("torch")
        >>> Batch({"x": np.arange(3)}, ids=[5, 6, 7]).to_torch()["x"]
        tensor([0, 1, 2])
        """
        torch = optional.import_npstream_torch()
        tensors = self.copy()
        for name, column in self.items():
            if isinstance(column, Ragged):
                if column.kind != "str" and torch.has_dtype(column.dtype):
                    tensors[name] = column.to_torch()
            elif isinstance(column, np.ndarray) and torch.has_dtype(column.dtype):
                tensors[name] = torch.to_tensor(column)
            elif isinstance(column, list) and all(isinstance(row, np.ndarray) for row in column):
                tensors[name] = [torch.to_tensor(row) for row in column]
        return tensors

    def to(self, device: Any, **options: Any) -> Batch:
        """Return the batch with its numeric columns as tensors on a device.

        Trainers call this method to move a batch. The batch keeps its `ids`. A Ragged is not moved,
        nor is a list of arrays.

        Parameters
        ----------
        device : torch.device, str or int
            The target device.
        **options : Any
            Further arguments of ``torch.Tensor.to``.

        Returns
        -------
        Batch

        Examples
        --------
        >>> import pytest; _ = pytest.importorskip("torch")
        >>> moved = Batch({"x": np.arange(3)}, ids=[5, 6, 7]).to("meta", non_blocking=True)
        >>> moved["x"].device, moved.ids
        (device(type='meta'), array([5, 6, 7]))
        """
        torch = optional.import_npstream_torch()
        moved = self.copy()
        for name, column in self.items():
            if isinstance(column, np.ndarray) and torch.has_dtype(column.dtype):
                column = torch.to_tensor(column)
            if hasattr(column, "to"):
                moved[name] = column.to(device, **options)
        return moved

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        if self._ids is not None and self._ids.ndim != 1:
            raise ValueError(
                f"a batch of shape {self._ids.shape} is not a table: load the ravel() of the view"
            )
        from npstream.reading.arrow import record_batch

        return record_batch(self, self._encodings).__arrow_c_stream__(requested_schema)

    def _writer_input(self) -> Columns:
        """Return the batch in the form of `npstream.writing.tables`."""
        from npstream.writing.inputs.recognition import columns_of

        if self._repeated is not None and self._repeated.any():
            raise ValueError(
                f"this batch repeats {quantity(int(self._repeated.sum()), 'row')} to be full, "
                "which would be written twice: iterate with last='short' or 'drop'"
            )
        return columns_of(self, self._encodings)

    def __repr__(self) -> str:
        from npstream.rendering.cells import first_values_text
        from npstream.rendering.text import printable_name, truncate

        lines = [f"<{self._title()}>"]
        names = list(islice(self, _MAX_COLUMNS_SHOWN))
        labels = [truncate(printable_name(str(name))) for name in names]
        types = [_describe(self[name]) for name in names]
        widths = max(map(len, labels), default=0), max(map(len, types), default=0)
        for name, label, kind in zip(names, labels, types, strict=True):
            line = f"  {label:{widths[0]}}  {kind:{widths[1]}}  "
            if (max_characters := _LINE_WIDTH - len(line)) >= _MIN_VALUES_WIDTH:
                line += first_values_text(self[name], max_characters)
            lines.append(line.rstrip())
        if len(self) > len(names):
            lines.append(f"  ... and {quantity(len(self) - len(names), 'more column')}")
        return "\n".join(lines)

    def _title(self) -> str:
        """Return the number of samples and their bytes, for a repr."""
        sizes = [getattr(column, "nbytes", None) for column in self.values()]
        nbytes = sum(size for size in sizes if isinstance(size, int))
        return f"Batch: {quantity(self._row_count(), 'sample')}, {size_text(nbytes)}"

    def _row_count(self) -> int:
        """Return `n`, or 0 if the first column is an object without a length."""
        try:
            return self.n
        except TypeError:
            return 0

    def _repr_html_(self) -> str:
        from npstream.rendering.cells import first_items, rows_table

        rows = self._row_count()
        count = min(rows, _MAX_ROWS_SHOWN)
        names = list(islice(self, _MAX_COLUMNS_SHOWN))
        indices = {"row": [str(row) for row in range(count)]}
        if self._ids is not None and rows:
            indices["id"] = [
                str(number) for number in self._ids.reshape(rows, -1)[:count, 0].tolist()
            ]
        columns = {name: first_items(self[name], count) for name in names}
        footer = []
        if count < rows:
            footer.append(f"... {quantity(rows, 'row')}")
        if self._repeated is not None and self._repeated.any():
            repeats = quantity(int(self._repeated.sum()), "row")
            footer.append(f"{repeats} repeated to fill the batch")
        if len(names) < len(self):
            footer.append(f"{quantity(len(self) - len(names), 'more column')} are not shown")
        return rows_table(
            self._title(),
            indices,
            {str(name): values for name, values in columns.items()},
            {str(name): _describe(self[name]) for name in names},
            {str(name): getattr(self[name], "encoding", None) or "" for name in names},
            "; ".join(footer),
        )


def _describe(column: Any) -> str:
    """Return dtype and shape of a column for a repr."""
    if isinstance(column, Ragged):
        return f"Ragged, {len(column)} {column._summary()}"
    if isinstance(column, list):
        return f"list of {quantity(len(column), type(column[0]).__name__ if column else 'value')}"
    return (
        f"{getattr(column, 'dtype', type(column).__name__)} {tuple(getattr(column, 'shape', ()))}"
    )
