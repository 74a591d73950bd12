"""Provide `ColumnDecoder`, which decodes the image columns of loads and of batches.

While a batch is used, threads decode the next one. At most one batch is decoded ahead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

import numpy as np

from npstream._core.array_like import as_array, is_array
from npstream._core.memory import BufferPool
from npstream._core.typing import AnyArray, Body, Int64
from npstream.errors import MissingDependencyError, stop_iteration_error
from npstream.reading.images.decoders import decode_image, import_decoders
from npstream.reading.images.options import (
    CHANNELS,
    ImageOptions,
    options_by_column,
    require_images,
)
from npstream.reading.images.threads import DecodeThreads, ImageStack, thread_count
from npstream.reading.load import load

if TYPE_CHECKING:
    from concurrent.futures import Future

    from npstream.indexing.selection import Selection
    from npstream.reading.gather import Lookup
    from npstream.reading.images.options import Decode
    from npstream.reading.plan import Field, Plan
    from npstream.reading.ragged import Ragged
    from npstream.reading.source import Source

__all__ = [
    "ColumnDecoder", "DecodedColumns", "decode_ahead", "decode_column", "decode_stacks",
    "load_decoded",
]  # fmt: skip

T = TypeVar("T")

_MAX_PENDING = 2
"""Maximum number of batches in decoding: the one that is yielded next, and the one after it."""


class ColumnDecoder:
    """Decodes columns of images of one source.

    Parameters
    ----------
    source : Source
        Describes the location of a damaged image.
    fields : sequence of Field
        The columns of the read.
    options : mapping of str to ImageOptions
        The options of each column.
    seed, epoch : int, default: 0
        Numbers that determine random crops, together with the position of each image.

    Raises
    ------
    MissingDependencyError
        If Pillow is not installed.
    """

    def __init__(
        self,
        source: Source,
        fields: Sequence[Field],
        options: Mapping[str, ImageOptions],
        seed: int = 0,
        epoch: int = 0,
    ) -> None:
        import_decoders()
        self._source, self._seed, self._epoch = source, seed, epoch
        self._columns = [(f, options[f.name]) for f in fields if f.name in options]
        self._buffers = {f.name: BufferPool() for f, _ in self._columns}

    def close(self) -> None:
        """Free the memory that no stack uses. Other memory is freed together with its stack."""
        for pool in self._buffers.values():
            pool.close()

    def stacks(
        self,
        columns: Mapping[str, Ragged],
        lookup: Lookup,
        positions: Int64,
        *,
        separate: bool = False,
    ) -> dict[str, ImageStack]:
        """Return an image stack for each column to decode. Nothing is decoded yet.

        Parameters
        ----------
        columns : mapping of str to Ragged
            The stored bytes.
        lookup : Lookup
            The rows of the columns.
        positions : ndarray of int64
            The numbers that determine the random crop of each row.
        separate : bool, default: False
            Whether each image is an array of its own, even if all shapes agree.
        """
        stacks = {}
        for field, options in self._columns:
            bodies = columns[field.name]
            stacks[field.name] = self._stack(field, options, bodies, lookup, positions)
            if separate:
                stacks[field.name].separate()
        return stacks

    def _stack(
        self, field: Field, options: ImageOptions, bodies: Ragged, lookup: Lookup, positions: Int64
    ) -> ImageStack:
        values, offsets = memoryview(bodies.values.data), bodies.offsets
        encoding = field.encoding.name
        all_fractions = np.zeros((2, len(positions)))
        if options.crop == "random":
            all_fractions = random_fractions(self._seed, self._epoch, positions)

        def decode(row: int, stack: ImageStack) -> AnyArray:
            body = values[offsets[row] : offsets[row + 1]]
            fractions = float(all_fractions[0, row]), float(all_fractions[1, row])
            try:
                return _decode(body, encoding, options, fractions, row, stack)
            except (MissingDependencyError, MemoryError):
                raise
            except _TransformError as error:
                cause = error.error
                cause.add_note(f"in transform= of decode, {self._where(field, lookup, row)}")
                raise cause from None
            except Exception as error:
                # Pillow may raise any exception for a damaged file.
                self._raise_damaged(field, lookup, row, error)

        is_fixed = options.fixed_size is not None and options.transform is None
        shape = (*(options.fixed_size or (0, 0)), CHANNELS[options.mode])
        return ImageStack(len(bodies), decode, shape, is_fixed, self._buffers[field.name])

    def _owner(self, field: Field, lookup: Lookup, row: int) -> tuple[Source, int]:
        """Return the source that stores a column, and the number of a sample there."""
        source = self._source
        if field.table:
            source = source.joined_sources[field.table - 1]
            lookup = lookup.joined_lookups.get(field.table) or source.look_up(lookup.rows)
        return source, int(lookup.samples[row])

    def _where(self, field: Field, lookup: Lookup, row: int) -> str:
        source, sample = self._owner(field, lookup, row)
        return f"{source.fetcher.shards.describe(sample)}: column {field.name!r}"

    def _raise_damaged(self, field: Field, lookup: Lookup, row: int, error: Exception) -> NoReturn:
        source, sample = self._owner(field, lookup, row)
        source.fetcher.raise_damaged(sample, f"column {field.name!r}: {error}", error)


class _TransformError(Exception):
    """Carries an exception of the user's function, which is not damage of an image."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def _decode(
    body: Body,
    encoding: str,
    options: ImageOptions,
    fractions: tuple[float, float],
    row: int,
    stack: ImageStack,
) -> AnyArray:
    """Decode an image, and apply the user's function if there is one.

    The result is the slot of the image in the stack, or another array if it does not fit there.
    """
    transform = options.transform
    if transform is None:
        return decode_image(
            body, encoding, options, fractions, lambda shape, dtype: stack.slot(row, shape, dtype)
        )
    pixels = decode_image(body, encoding, options, fractions, lambda shape, dtype: None)
    try:
        result = _check_result(transform(pixels))
    except StopIteration as error:
        raise _TransformError(stop_iteration_error("transform= of decode")) from error
    except Exception as error:
        raise _TransformError(error) from None
    slot = stack.slot(row, result.shape, result.dtype)
    if slot is None:
        return result
    slot[...] = result
    return slot


def _check_result(result: Any) -> AnyArray:
    """Return the result of the user's function; raise TypeError if it is no array of numbers."""
    if not is_array(result):
        raise TypeError(f"it returned a {type(result).__name__}: expected an array")
    array = as_array(result)
    if array.dtype.kind not in "biufcV":
        raise TypeError(f"it returned an array of {array.dtype}: expected numbers")
    return array


def random_fractions(seed: int, epoch: int, positions: Int64) -> AnyArray:
    """Return two numbers in [0, 1) for each position, shape (2, n).

    They depend only on seed, epoch and position, so the number of ranks and workers does not change
    them. SplitMix64 hashes seed, epoch, position and axis, one after the other.
    """
    key = _mix(_mix(np.array([seed % 2**64], np.uint64)) ^ np.uint64(epoch % 2**64))
    hashed = _mix(key ^ positions.astype(np.uint64))
    axes = np.array([[1], [2]], np.uint64)
    fractions: AnyArray = (_mix(hashed ^ _mix(axes)) >> np.uint64(11)) * 2.0**-53
    return fractions


def _mix(values: AnyArray) -> AnyArray:
    """Return SplitMix64's hash of integers of 64 bits."""
    mixed: AnyArray = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


@dataclass(slots=True)
class DecodedColumns:
    """The decoded columns of some rows: complete, or up to the first row that failed.

    Attributes
    ----------
    stacks : dict of str to ImageStack
        The images of each column.
    rows : int
        The number of rows before the first row that failed; all rows if none failed.
    error : BaseException or None
        The error of the first row that failed.
    """

    stacks: dict[str, ImageStack]
    rows: int
    error: BaseException | None

    def errors(self) -> dict[int, BaseException]:
        """Return the error of each row that failed.

        If the stacks do not decode past errors, rows after the first error may not be decoded.
        """
        return {row: error for stack in self.stacks.values() for row, error in stack.errors.items()}

    def arrays(self) -> dict[str, AnyArray | list[AnyArray]]:
        """Return the images of each column; raise the error, if there is one."""
        if self.error is not None:
            raise self.error
        return {name: stack.result() for name, stack in self.stacks.items()}

    def lists(self) -> dict[str, list[AnyArray]]:
        """Return the images of each column before the first row that failed."""
        return {name: stack.images(self.rows) for name, stack in self.stacks.items()}


def _wait(stacks: dict[str, ImageStack], futures: Sequence[Future[None]]) -> DecodedColumns:
    """Wait for the threads; return the decoded columns up to the first row that failed."""
    for future in futures:
        future.result()
    failed = [first for stack in stacks.values() if (first := stack.first_error())]
    if not failed:
        rows = next((stack.count for stack in stacks.values()), 0)
        return DecodedColumns(stacks, rows, None)
    row, error = min(failed, key=itemgetter(0))
    return DecodedColumns(stacks, row, error)


def load_decoded(
    source: Source,
    plan: Plan,
    ids: Int64,
    shape: tuple[int, ...],
    out: Mapping[str, Any] | None,
    decode: Decode,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Read columns as `npstream.reading.load.load` does, and decode some of them.

    Returns
    -------
    columns : dict
        The columns by name. Images are an array, or a list of arrays if their shapes differ.
    encodings : dict of str to str
        The stored encodings of the columns that are not decoded.
    """
    options = options_by_column(decode, plan.fields)
    decoder = ColumnDecoder(source, plan.fields, options)
    columns = load(source, plan, ids, shape, out)
    columns |= _decode_load(decoder, columns, source.look_up(ids), shape)
    return columns, {name: e for name, e in plan.encodings.items() if name not in options}


def decode_column(
    source: Source, plan: Plan, selection: Selection, options: ImageOptions, seed: int
) -> Any:
    """Read and decode the only column of a plan."""
    (field,) = plan.fields
    require_images(field)
    decoder = ColumnDecoder(source, plan.fields, {field.name: options}, seed)
    ids, shape = selection.ids(), selection.shape
    columns = load(source, plan, ids, shape)
    return _decode_load(decoder, columns, source.look_up(ids), shape)[field.name]


def _decode_load(
    decoder: ColumnDecoder, columns: Mapping[str, Any], lookup: Lookup, shape: tuple[int, ...]
) -> dict[str, Any]:
    """Decode the columns of one load; the position of a row is its number in the load."""
    stacks = decoder.stacks(columns, lookup, np.arange(len(lookup.rows)))
    decoded = decode_stacks(stacks, thread_count()).arrays()
    return {
        name: images.reshape(shape + images.shape[1:]) if isinstance(images, np.ndarray) else images
        for name, images in decoded.items()
    }


def decode_stacks(stacks: dict[str, ImageStack], threads: int) -> DecodedColumns:
    """Decode the images of each column, and wait for them."""
    pool = DecodeThreads(threads)
    try:
        return _wait(stacks, pool.start([*stacks.values()]))
    finally:
        for stack in stacks.values():
            stack.cancel()
        pool.close()


@dataclass(slots=True)
class _Pending(Generic[T]):
    """An item whose images are being decoded."""

    item: T
    stacks: dict[str, ImageStack]
    futures: list[Future[None]]


def decode_ahead(
    items: Iterator[T], stacks_of: Callable[[T], dict[str, ImageStack]], threads: int
) -> Iterator[tuple[T, DecodedColumns]]:
    """Yield items with their decoded columns, while threads decode the images of the next item.

    An error of `items` is raised after the items before it. When the iterator ends, is closed or is
    freed, the threads stop.

    Parameters
    ----------
    items : iterator
        The items, for example batches with their stored images.
    stacks_of : callable
        Returns the images of an item.
    threads : int
        The number of threads.
    """
    pool = DecodeThreads(threads)
    pending: deque[_Pending[T]] = deque()
    error: Exception | None = None
    is_over = False
    try:
        while True:
            if pool.is_inherited:
                pool = DecodeThreads(threads)
                pending = deque(_restart(pool, item) for item in pending)
            while not is_over and len(pending) < _MAX_PENDING:
                try:
                    item = next(items)
                    stacks = stacks_of(item)
                except StopIteration:
                    is_over = True
                except Exception as raised:
                    error, is_over = raised, True
                else:
                    pending.append(_Pending(item, stacks, pool.start([*stacks.values()])))
            if not pending:
                break
            first = pending[0]
            decoded = _wait(first.stacks, first.futures)
            pending.popleft()
            yield first.item, decoded
            del first, decoded  # do not keep a batch in memory that the caller has freed
        if error is not None:
            raise error
    finally:
        for item_ahead in pending:
            for stack in item_ahead.stacks.values():
                stack.cancel()
        pool.close()


def _restart(pool: DecodeThreads, pending: _Pending[T]) -> _Pending[T]:
    """Decode the images of an item again, in a forked process without its parent's threads."""
    stacks = {name: stack.copy_undecoded() for name, stack in pending.stacks.items()}
    return _Pending(pending.item, stacks, pool.start([*stacks.values()]))
