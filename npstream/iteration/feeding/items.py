"""Provide `ItemMaker`, which reads a piece of an epoch and makes its batches or samples.

Tested in tests/iteration/feeding/test_feed.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from npstream._core.memory import BufferPool
from npstream.errors import stop_iteration_error
from npstream.iteration.failures.record import UserError
from npstream.iteration.feeding.threads import result_bytes
from npstream.reading.batch import Batch, Ragged
from npstream.storage.deadlines import shared_deadline

if TYPE_CHECKING:
    from npstream._core.typing import AnyArray
    from npstream.iteration.failures.guard import Piece, SampleGuard
    from npstream.reading.gather import Lookup
    from npstream.reading.plan import Field, Plan
    from npstream.reading.source import Source

__all__ = [
    "AnyPlacer",
    "ItemMaker",
    "MadeItems",
    "TransformItems",
    "Transforms",
    "apply_transforms",
    "transform_items",
]

Transforms: TypeAlias = "Sequence[tuple[str, Callable[[Any], Any]]]"
"""Functions to apply to each item, one after the other, each with its name in messages."""


class AnyPlacer(Protocol):
    """Makes tensors of items; `npstream.torch.device` has the placers."""

    def gather(
        self, source: Source, plan: Plan, lookup: Lookup, batch_size: int
    ) -> list[dict[str, Any]]:
        """Return, for each batch, the columns that a device gathers; [] if it gathers none."""

    def outputs(self, fields: Iterable[Field], rows: int) -> tuple[dict[str, AnyArray], Any]:
        """Return arrays for reading columns of fixed size, and the buffer that holds the arrays."""

    def give_back(self, buffer: Any, items: list[Any]) -> None:
        """Let the buffer of `outputs` be used again, once `items` are copied to the device."""

    def place(self, item: Any, buffer: Any = None) -> Any:
        """Make tensors of an item's arrays, and return an object for `receive`."""

    def receive(self, item: Any) -> Any:
        """Return the item of an object that `place` returned. The loop's thread calls this."""


TransformItems: TypeAlias = "Callable[[list[Any]], tuple[list[Any], Exception | None]]"
"""Returns the transformed items before the first failure, and its error."""


def apply_transforms(transforms: Transforms, item: Any) -> Any:
    """Return an item after all transforms; raise UserError if one of them raises."""
    for name, transform in transforms:
        try:
            item = transform(item)
        except StopIteration as error:
            # It would end a loop without notice.
            replacement = stop_iteration_error(name)
            replacement.__cause__ = error
            raise UserError(name, replacement) from error
        except Exception as error:
            raise UserError(name, error) from error
    return item


def transform_items(transforms: Transforms, items: list[Any]) -> tuple[list[Any], Exception | None]:
    """Return the transformed items before the first failure, and its error.

    Parameters
    ----------
    transforms : sequence of (str, callable)
    items : list
    """
    results: list[Any] = []
    for item in items:
        try:
            results.append(apply_transforms(transforms, item))
        except UserError as error:
            return results, error
    return results, None


class MadeItems:
    """The items of a piece, up to the first one that cannot be made. They can be taken once.

    Parameters
    ----------
    items : list
    error : Exception or None
        The error of the item that cannot be made.

    Attributes
    ----------
    nbytes : int
        About how many bytes the items have.
    """

    __slots__ = ("_items", "error", "nbytes")

    def __init__(self, items: list[Any], error: Exception | None) -> None:
        self.error = error
        self.nbytes = sum(map(result_bytes, items))
        items.reverse()
        self._items = items

    def take(self) -> Iterator[Any]:
        """Yield the items, and drop each from memory. Then raise the error, if there is one."""
        while self._items:
            yield self._items.pop()
        if self.error is not None:
            raise self.error


class ItemMaker:
    """Reads pieces of an epoch, and makes their items. Threads may share it.

    Parameters
    ----------
    source : Source
    names : tuple of str
        The columns.
    batch_size : int or None
        Samples in a batch; None to make samples.
    encodings : mapping of str to str
        The stored encoding of each column.
    transform : callable, optional
        Returns the transformed items before the first failure, and its error.
    guard : SampleGuard, optional
        Leaves out or replaces samples that cannot be read; by default their errors are raised.
    placer : AnyPlacer, optional
        Makes tensors of the items; by default they stay arrays.
    pools : defaultdict of str to BufferPool, optional
        The memory of each column of fixed size; by default it is new.
    """

    def __init__(
        self,
        source: Source,
        names: tuple[str, ...],
        batch_size: int | None,
        encodings: Mapping[str, str],
        transform: TransformItems | None,
        guard: SampleGuard | None = None,
        placer: AnyPlacer | None = None,
        pools: defaultdict[str, BufferPool] | None = None,
    ) -> None:
        self._placer, self._pools = placer, defaultdict(BufferPool) if pools is None else pools
        # A transform could keep the arrays of a buffer that is used again.
        self._reads_into_buffers = (
            placer is not None and batch_size is not None and guard is None and transform is None
        )
        self._source, self._names, self._batch_size = source, names, batch_size
        self._plan, self._encodings = source.plan(names), encodings
        self._transform, self._guard = transform, guard

    def __call__(self, read: tuple[Piece, Lookup]) -> MadeItems:
        """Make the items of a piece.

        If a piece cannot be read, its items are read one by one, because damage concerns single
        samples, and the first items may be in the cache. A piece of one item is read again only by
        the guard.
        """
        with shared_deadline():
            items, error = self._read_piece(*read)
        if self._transform is not None:
            items, raised_by_user = self._transform(items)
            error = raised_by_user or error
        if self._placer is not None and not self._reads_into_buffers:
            items = [self._placer.place(item) for item in items]
        return MadeItems(items, error)

    def _read_piece(self, piece: Piece, lookup: Lookup) -> tuple[list[Any], Exception | None]:
        """Return the items of a piece before the first that cannot be read, and its error."""
        try:
            return self._read(piece, lookup), None
        except Exception as raised:
            step = self._batch_size or 1
            if len(piece[0]) <= step and self._guard is None:
                raise
            items, error = self._read_one_by_one(piece, step)
            if error is None and self._guard is None:  # only the read of all items together fails
                raise raised from None
            return items, error

    def _read_one_by_one(self, piece: Piece, step: int) -> tuple[list[Any], Exception | None]:
        """Return the items before the first that cannot be read, and its error."""
        items: list[Any] = []
        for start in range(0, len(piece[0]), step):
            rows = slice(start, start + step)
            ids, repeated, positions = piece[0][rows], piece[1][rows], piece[2][rows]
            part, lookup = (ids, repeated, positions), self._source.look_up(ids)
            try:
                if self._guard is None:
                    items += self._read(part, lookup)
                else:
                    items += self._guard.read(self._read, part, lookup)
            except Exception as error:
                return items, error
        return items, None

    def _read(self, piece: Piece, lookup: Lookup) -> list[Any]:
        if self._batch_size is None:
            return list(self._source.samples(self._names, lookup))
        if not self._reads_into_buffers:
            return self._read_batches(piece, lookup, self._plan, {})
        assert self._placer is not None
        gathered = self._placer.gather(self._source, self._plan, lookup, self._batch_size)
        plan = self._plan
        if gathered:
            plan = self._source.plan(tuple(n for n in self._names if n not in gathered[0]))
        out, buffer = self._placer.outputs(plan.fields, len(piece[0]))
        items: list[Any] = []
        try:
            batches = self._read_batches(piece, lookup, plan, out)
            for batch, columns in zip(batches, gathered, strict=False):
                _add_columns(batch, columns, self._names)
            items.extend(self._placer.place(batch, buffer) for batch in batches)
        finally:
            self._placer.give_back(buffer, items)
        return items

    def _read_batches(
        self, piece: Piece, lookup: Lookup, plan: Plan, out: Mapping[str, AnyArray]
    ) -> list[Batch]:
        arrays = {
            f.name: f.allocate(len(lookup.rows), self._pools[f.name])
            for f in plan.fields
            if f.encoding.kind == "fixed" and f.computation is None and f.name not in out
        }
        columns = self._source.columns(plan, lookup, {**arrays, **out})
        ids, repeated, _ = piece
        assert self._batch_size is not None
        if len(ids) <= self._batch_size:
            return [Batch(columns, ids, repeated, encodings=self._encodings)]
        return [
            Batch(
                {name: _rows(column, start, stop) for name, column in columns.items()},
                ids[start:stop],
                repeated[start:stop],
                encodings=self._encodings,
            )
            for start in range(0, len(ids), self._batch_size)
            for stop in (start + self._batch_size,)
        ]


def _add_columns(batch: Batch, columns: Mapping[str, Any], names: tuple[str, ...]) -> None:
    """Add columns to a batch, and put all of its columns in the order of `names`."""
    columns = {**columns, **batch}
    batch.clear()
    batch.update({name: columns[name] for name in names})


def _rows(column: Any, start: int, stop: int) -> Any:
    """Return some rows of a column, over the same memory."""
    rows = column[start:stop]
    if isinstance(rows, Ragged):
        values, offsets = rows._packed()
        rows = rows._with_rows(values, offsets, rows.shapes)
    return rows
