"""Select, rename and filter the samples or tables of a part of a source.

NumPy evaluates an expression for a whole table, or for a group of samples.

Tested in tests/conversion/test_convert.py.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from npstream._core.optional import import_optional
from npstream._core.typing import Bools
from npstream.dataset.dataset import Dataset
from npstream.errors import is_own_frame
from npstream.explore.expression import Expression, parse
from npstream.writing.inputs.bad_value import bad_value_in
from npstream.writing.inputs.recognition import as_mapping, iterate

if TYPE_CHECKING:
    from npstream.conversion.source import InputSource

__all__ = ["Condition", "PartTransform", "is_arrow_table", "parse_condition"]

Condition: TypeAlias = "Callable[[dict[str, Any]], object]"
"""A function that returns True for a sample to keep."""

_GROUP = 64
"""Maximum number of samples that are filtered together."""

_SAMPLE = re.compile(r"sample (\d+): ")
"""The beginning of an error message about a sample."""

_KEPT_GROUPS = 4
"""Number of filtered tables, or groups of samples, whose rows `PartTransform.place` finds."""

_IMMUTABLE = {bool, int, float, complex, str, bytes, type(None), *np.sctypeDict.values()} - {
    np.void
}
"""Types of values that an iterator cannot change after it has yielded them."""


def parse_condition(where: str | Condition | None) -> Expression | Condition | None:
    """Return a parsed expression, or the user's function.

    Raises
    ------
    ValueError
        If the text is no expression.
    TypeError
        If `where` is neither a text nor callable.
    """
    if where is None or callable(where):
        return where
    if not isinstance(where, str):
        raise TypeError(
            f"where= of type {type(where).__name__}: expected a text, such as 'label == 3', or a "
            "function from a sample to True or False"
        )
    return parse(where)


class PartTransform:
    """Selects, renames and filters samples and tables.

    Parameters
    ----------
    columns : tuple of str, optional
        The names of the columns to keep, after they are renamed; by default all.
    rename : mapping of str to str
        The new name of each renamed column, by its name in the source.
    where : Expression or callable, optional
        The condition of the samples to keep. It uses the new names.

    Attributes
    ----------
    may_reuse : bool
        Whether the source may change a value and yield it again, as an iterator of the user may.
    keeps_incomplete : bool
        Whether a table or sample that lacks a requested column keeps all its columns. Then the
        writer selects the columns, and its error names those that exist.
    """

    def __init__(
        self,
        columns: tuple[str, ...] | None,
        rename: Mapping[str, str],
        where: Expression | Condition | None,
    ) -> None:
        self.may_reuse = self.keeps_incomplete = False
        self.columns = columns
        self.rename = dict(rename)
        self.where = where
        self._rows_read = self._rows_kept = 0
        # The last masks of `where`, each with the numbers of rows read and kept before it.
        self._masks: deque[tuple[int, int, Bools]] = deque(maxlen=_KEPT_GROUPS)

    def place(
        self,
        message: str,
        part: str,
        position: Callable[[int], tuple[str, int]],
        source: InputSource,
    ) -> str:
        """Return the place in its file of the sample that an error message names.

        Parameters
        ----------
        message : str
            It begins with the number of the sample; otherwise the place is unknown.
        part : str
            The part that was opened last.
        position : callable
            `PartedInput.position`.
        source : InputSource
            The source of the parts.

        Returns
        -------
        str
            Such as ", line 7"; "" if the place is unknown.
        """
        match = _SAMPLE.match(message)
        if match is None:
            return ""
        try:
            name, row = position(int(match[1]))
        except ValueError:  # only the positions of later samples are known
            return ""
        source_row = self._source_row(row)
        if name != part or source_row is None:
            return ""
        place = source.locate(name, source_row)
        return f", {place}" if place else ""

    def _source_row(self, row: int) -> int | None:
        """Return the row before the filter of a row of the part that was opened last.

        Return None if `where` was evaluated for it too long ago, or not for a group of rows.
        """
        if self.where is None:
            return row
        for read, kept, mask in self._masks:
            if 0 <= row - kept < np.count_nonzero(mask):
                return read + int(np.flatnonzero(mask)[row - kept])
        return None

    def _keep_mask(self, mask: Bools) -> Bools:
        """Record a mask for `_source_row`, and return it."""
        self._masks.append((self._rows_read, self._rows_kept, mask))
        self._rows_read += len(mask)
        self._rows_kept += int(np.count_nonzero(mask))
        return mask

    def new_name(self, name: str) -> str:
        """Return the name that a column of the source gets."""
        return self.rename.get(name, name)

    @property
    def is_identity(self) -> bool:
        """True if nothing changes."""
        return self.columns is None and not self.rename and self.where is None

    def apply(self, data: Any) -> Any:
        """Transform the content of a part: a table, or an iterator of tables or samples."""
        self._rows_read = self._rows_kept = 0
        self._masks.clear()
        if self.is_identity:
            return data
        if isinstance(data, Dataset):
            return self._dataset(data)
        if is_arrow_table(data):
            return self._table(data)
        if isinstance(data, Mapping):
            return self._arrays(data)
        if fields := getattr(getattr(data, "dtype", None), "names", None):
            return self._arrays({name: data[name] for name in fields})
        if hasattr(type(data), "__arrow_c_stream__"):
            pa = import_optional("pyarrow", "pyarrow", "arrow")
            data = pa.RecordBatchReader.from_stream(data)
        return self._items(iterate(data))

    def _items(self, items: Iterator[Any]) -> Iterator[Any]:
        for first in items:
            whole = chain([first], items)
            if is_arrow_table(first):
                yield from map(self._table, whole)
            else:
                yield from self._samples(whole)

    def _table(self, table: Any) -> Any:
        """Return an Arrow table or record batch with the rows and columns to keep."""
        names = [self.new_name(name) for name in table.schema.names]
        if self.rename:
            table = table.rename_columns(names)
        if self.where is not None:
            columns = {name: table.column(name) for name in names}
            mask = self._keep_mask(self._mask(columns, table.to_pylist))
            if not mask.all():
                table = _filter_table(table, mask)
        kept = self._kept_names(names)
        return table if kept is None else table.select(kept)

    def _kept_names(self, names: Collection[str]) -> list[str] | None:
        """Return the columns to keep of those in `names`; None for all."""
        if self.columns is None:
            return None
        kept = [name for name in self.columns if name in names]
        return None if self.keeps_incomplete and len(kept) < len(self.columns) else kept

    def _mask(self, columns: Any, rows: Callable[[], Iterable[Any]]) -> Bools:
        """Return True for each row to keep.

        `columns` has the values of all rows by column. `rows` returns the rows as samples.
        """
        if isinstance(self.where, Expression):
            return self.where.evaluate(columns)
        assert self.where is not None
        return np.array([_is_kept(self.where, row) for row in rows()], bool)

    def _dataset(self, dataset: Dataset) -> Any:
        """Return a view of a dataset, or a mapping of columns if they are renamed.

        The writer copies the stored bytes of a view, without decoding.
        """
        if self.rename:
            return self._arrays({name: dataset[name] for name in dataset.columns})
        if self.where is not None:
            dataset = dataset[self._mask(dataset, lambda: dataset)]
        return dataset if self.columns is None else dataset[list(self.columns)]

    def _arrays(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        renamed = {self.new_name(name): values for name, values in arrays.items()}
        if self.where is not None:

            def rows() -> Iterator[dict[str, Any]]:
                for values in zip(*renamed.values(), strict=True):
                    yield dict(zip(renamed, values, strict=True))

            mask = self._mask(renamed, rows)
            renamed = {
                name: values[mask]
                if hasattr(values, "dtype")
                else [value for value, keep in zip(values, mask, strict=True) if keep]
                for name, values in renamed.items()
            }
        kept = self._kept_names(renamed)
        return renamed if kept is None else {name: renamed[name] for name in kept}

    def _samples(self, samples: Iterator[Any]) -> Iterator[dict[str, Any]]:
        for group in self._groups(samples):
            selected: Iterable[dict[str, Any]] = group
            if self.where is not None:
                selected = self._filter_group(group)
            for sample in selected:
                kept = self._kept_names(sample)
                yield sample if kept is None else {name: sample[name] for name in kept}

    def _groups(self, samples: Iterator[Any]) -> Iterator[list[dict[str, Any]]]:
        """Yield samples with new names, in groups for which `where` is evaluated together."""
        group: list[dict[str, Any]] = []
        for number, sample in enumerate(samples):
            renamed = self._rename_keys(sample, number)
            group.append(renamed)
            # The iterator may change a mutable value in its next step. So a sample with such a
            # value ends its group.
            if (
                self.where is None
                or len(group) == _GROUP
                or (self.may_reuse and not _IMMUTABLE.issuperset(map(type, renamed.values())))
            ):
                yield group
                group = []
        if group:
            yield group

    def _filter_group(self, samples: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield the samples to keep, and those that the writer refuses for a bad value."""
        assert self.where is not None
        bad_values = [bad_value_in(sample) for sample in samples]
        good = [sample for sample, bad in zip(samples, bad_values, strict=True) if bad is None]
        mask = np.ones(len(samples), bool)
        if good:
            mask[[bad is None for bad in bad_values]] = self._mask(
                _columns_of(good, self.where), lambda: good
            )
        self._keep_mask(mask)
        for sample, bad, is_kept in zip(samples, bad_values, mask.tolist(), strict=True):
            if is_kept:
                # With the bad value in all columns, the writer refuses the sample, even if the
                # column that has it is not written.
                yield sample if bad is None else dict.fromkeys(sample, bad)

    def _rename_keys(self, sample: Any, number: int) -> dict[str, Any]:
        mapping = as_mapping(sample, None, number)
        if not isinstance(mapping, Mapping):
            raise TypeError(
                f"sample {number} of the source is of type {type(sample).__name__}: convert "
                "needs samples that are mappings, such as {'text': 'to be'}"
            )
        return {self.new_name(name): value for name, value in mapping.items()}


def is_arrow_table(data: Any) -> bool:
    """Return True for a table or record batch of pyarrow."""
    kind = type(data)
    return kind.__module__.startswith("pyarrow.") and kind.__name__ in ("Table", "RecordBatch")


def _filter_table(table: Any, mask: Bools) -> Any:
    """Return an Arrow table with the rows for which `mask` is True."""
    # pyarrow cannot filter columns of string views, which polars makes.
    pa = import_optional("pyarrow", "pyarrow", "arrow")
    for number, each in enumerate(table.schema):
        if pa.types.is_string_view(each.type) or pa.types.is_binary_view(each.type):
            is_text = pa.types.is_string_view(each.type)
            plain = table.column(number).cast(pa.large_string() if is_text else pa.large_binary())
            table = table.set_column(number, each.name, plain)
    return table.filter(pa.array(mask))


def _columns_of(samples: list[dict[str, Any]], where: Expression | Condition) -> dict[str, Any]:
    """Return the columns that an expression uses; a missing key is None."""
    if not isinstance(where, Expression):
        return {}
    existing = dict.fromkeys(name for sample in samples for name in sample)
    where.check(existing)
    return {
        name: [sample.get(name) for sample in samples] for name in where.columns if name in existing
    }


def _is_kept(where: Condition, sample: dict[str, Any]) -> bool:
    try:
        return bool(where(sample))
    except Exception as error:
        frame = error.__traceback__ and error.__traceback__.tb_next
        if frame is not None and not is_own_frame(frame):  # the user's function raised it
            error.add_note(f"in where=, for the sample {list(sample)}")
        raise
