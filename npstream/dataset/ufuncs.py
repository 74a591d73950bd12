"""NumPy's ufuncs and operators on columns, computed one block of rows at a time."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from npstream._core.array_like import is_tensor, is_time, time_array
from npstream._core.progress import progress
from npstream._core.typing import Bools
from npstream.dataset.reductions import UFUNCS
from npstream.reading.cost_limit import check_cost
from npstream.reading.gather import KERNEL_ROWS

if TYPE_CHECKING:
    from npstream.indexing.selection import Selection
    from npstream.reading.plan import Field, Plan
    from npstream.reading.source import Source


EQUALITY: dict[np.ufunc, Callable[[Any, Any], Any]] = {
    np.equal: operator.eq,
    np.not_equal: operator.ne,
}
"""The operators for the equality ufuncs.

The operators can compare a number to text, for which the ufuncs raise.
"""

REDUCTION_METHODS = {ufunc: name for name, ufunc in UFUNCS.items()}
"""Ufunc -> the method of `Column` that equals its ``reduce``: `np.add` -> "sum"."""

_METHOD_OPTIONS: dict[str, set[str]] = {
    "sum": {"initial", "dtype"}, "prod": {"initial", "dtype"}, "min": {"initial"},
    "max": {"initial"}, "any": set(), "all": set(),
}  # fmt: skip
"""The keyword arguments of each method, without those that all methods have."""


def has_method(ufunc: np.ufunc, options: Mapping[str, Any]) -> bool:
    """Return True if a method of `Column` implements ``ufunc.reduce`` with these arguments."""
    if (method := REDUCTION_METHODS.get(ufunc)) is None:
        return False
    return options.keys() - {"axis", "out", "keepdims", "where"} <= _METHOD_OPTIONS[method]


_PLAIN_TYPES = (np.ndarray, np.memmap)
"""Array types for which ufuncs return a plain ndarray, unlike for other subclasses of ndarray."""


def defers_to(other: Any, dtype: np.dtype[Any]) -> bool:
    """Return True if an array of `dtype` would let the operand `other` implement operators.

    That is the case if `other` is a matrix, a masked or sparse array, or an object of pandas. All
    of these support arrays as operands, but not columns.
    """
    if isinstance(other, np.ndarray):
        return type(other) not in _PLAIN_TYPES
    if hasattr(other, "__pandas_priority__"):
        return not hasattr(other, "_rows_first")  # only columns have this attribute
    if hasattr(other, "__array_ufunc__") or is_tensor(other):
        return False
    # `scalars_to_numpy` converts pandas's times, so the column implements their operators. NaT,
    # which does not equal itself, is left to pandas: pandas decides if NaT is a time or a duration.
    is_converted = dtype.kind in "mM" and is_time(other) and other == other
    return getattr(other, "__array_priority__", 0) > 0 and not is_converted


def _operator(name: str) -> Callable[[Any, Any], Any]:
    """Return the method of an operator, such as "add" or "radd"."""
    mixin_method = getattr(NDArrayOperatorsMixin, f"__{name}__")
    is_reflected = name[0] == "r" and name != "rshift"
    base_name = name[1:] if is_reflected else name
    function = divmod if base_name == "divmod" else getattr(operator, f"__{base_name}__")

    def method(self: Any, other: Any) -> Any:
        if defers_to(other, self.dtype):
            array = np.asarray(self)
            return function(other, array) if is_reflected else function(array, other)
        return mixin_method(self, other)

    method.__name__ = f"__{name}__"
    return method


class Operators(NDArrayOperatorsMixin):
    """The operators of an array; see `defers_to` for operands that implement them instead."""

    __slots__ = ()

    __pandas_priority__ = 5000
    """Higher than a DataFrame's, so that pandas calls the column's operator.

    The column then reads itself, and applies the operator of pandas to the array.
    """


_BINARY = (
    "add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "divmod", "pow", "lshift",
    "rshift", "and", "xor", "or",
)  # fmt: skip
for _name in (*_BINARY, *(f"r{name}" for name in _BINARY), "lt", "le", "gt", "ge"):
    setattr(Operators, f"__{_name}__", _operator(_name))


def scalars_to_numpy(inputs: tuple[Any, ...], dtype: np.dtype[Any], kind: str) -> tuple[Any, ...]:
    """Return a ufunc's inputs with those scalars converted that NumPy would convert wrongly.

    Pandas's times and durations become NumPy's, because pandas cannot compute with a column. If the
    column were an ndarray, pandas's time would implement the operator. NumPy would convert a str or
    bytes to a dtype of fixed width, which drops NULs at the end.

    Parameters
    ----------
    inputs : tuple
    dtype : dtype
        That of the column.
    kind : str
        The kind of the column's encoding.
    """
    return tuple(_scalar_to_numpy(item, dtype, kind) for item in inputs)


def _scalar_to_numpy(item: Any, dtype: np.dtype[Any], kind: str) -> Any:
    if dtype.kind in "mM":
        is_converted = hasattr(item, "to_numpy") and getattr(item, "tzinfo", None) is None
        return time_array(item, dtype) if is_converted and is_time(item) else item
    if kind == "str" and isinstance(item, str) and item.endswith("\0"):
        return np.asarray(item, np.dtypes.StringDType())
    if kind == "bytes" and isinstance(item, bytes) and item.endswith(b"\0"):
        return np.asarray(item, object)
    return item


def blockwise_shape(inputs: Sequence[Any], options: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Return the shape of a ufunc's result if the ufunc can be computed in blocks of rows.

    Return None for arrays of other libraries, and for arguments that make rows depend on each
    other.

    Parameters
    ----------
    inputs : sequence of array_like
        The operands. Columns are the objects with an attribute ``_rows_first``, which is True if
        rows are their first axis.
    options : mapping
        Keyword arguments of the call.
    """
    if options.keys() - {"out", "dtype", "casting", "where"}:
        return None
    arrays = [*inputs, options.get("where", True)]
    if not all(_is_supported(item) for item in arrays):
        return None
    shape = np.broadcast_shapes(*(np.shape(item) for item in arrays))
    outs = [out for out in options.get("out", ()) if out is not None]
    if not all(type(out) in _PLAIN_TYPES for out in outs):
        return None
    for out in outs:
        if np.broadcast_shapes(out.shape, shape) != out.shape:
            raise ValueError(f"out has shape {out.shape}, and the result {shape}")
    if any(out.shape != shape for out in outs):
        return None
    columns = [item for item in inputs if hasattr(item, "_rows_first")]
    if not shape or 0 in shape or any(not c._rows_first for c in columns):
        return None
    return shape if any(_has_rows(c, shape) for c in columns) else None


@contextmanager
def size_notes(field: Field) -> Iterator[None]:
    """Call `add_size_note` for an error that a `with` block raises."""
    try:
        yield
    except (TypeError, ValueError) as error:
        add_size_note(field, error)
        raise


def add_size_note(field: Field, error: Exception) -> None:
    """Add a note to an error that NumPy raised because a column's values vary in size."""
    encoding, is_index = field.encoding, isinstance(error, IndexError)
    # Of IndexErrors, only those for too many indices are about the size of values.
    if (
        encoding.kind != "fixed"
        and f"column {field.name!r}" not in str(error)
        and is_index == ("too many indices" in str(error))
    ):
        error.add_note(
            f"column {field.name!r} holds {encoding.name} values of varying size: use single "
            "rows, such as column[0], or the values that load() returns"
        )


def _is_supported(item: Any) -> bool:
    """Return True for a column, array, list or scalar; False for arrays of other libraries."""
    return hasattr(item, "_rows_first") or type(item) in (*_PLAIN_TYPES, list) or np.ndim(item) == 0


def _has_rows(item: Any, shape: tuple[int, ...]) -> bool:
    """Return True if each row of the result needs only the same row of an input.

    An input that is broadcast along the rows is needed whole by each block. Return False, too, if
    the result has only one row: there is nothing to divide.
    """
    return np.ndim(item) == len(shape) and np.shape(item)[0] == shape[0] != 1


def apply_in_blocks(
    function: Callable[..., Any],
    inputs: Sequence[Any],
    options: Mapping[str, Any],
    shape: tuple[int, ...],
    bounds: Iterable[tuple[int, int]],
) -> Any:
    """Call a ufunc, or its operator, on blocks of rows, and return the combined result.

    Parameters
    ----------
    function : callable
    inputs, options
        The arguments of `blockwise_shape`.
    shape : tuple of int
        The result of `blockwise_shape`.
    bounds : iterable of (int, int)
        First row of each block, and the row after its last.
    """
    arrays = [
        item if not hasattr(item, "_rows_first") or _has_rows(item, shape) else np.asarray(item)
        for item in inputs
    ]
    outs = options.get("out")
    keywords = {key: value for key, value in options.items() if key != "out"}
    results: list[Any] = list(outs) if outs else []
    for start, stop in bounds:
        rows = slice(start, stop)
        parts = [_block(item[rows]) if _has_rows(item, shape) else item for item in arrays]
        if _has_rows(options.get("where", True), shape):
            keywords["where"] = np.asarray(options["where"])[rows]
        if outs:
            keywords["out"] = tuple(None if out is None else out[rows] for out in outs)
        blocks = function(*parts, **keywords)
        is_tuple = isinstance(blocks, tuple)
        blocks = blocks if is_tuple else (blocks,)
        if start == 0 and stop >= shape[0] and not outs:
            return blocks if is_tuple else blocks[0]
        results = results or [None] * len(blocks)
        for k, block in enumerate(blocks):
            if results[k] is None:
                results[k] = np.empty(shape, block.dtype)
            if not outs or outs[k] is None:
                results[k][rows] = block
    return tuple(results) if len(results) > 1 else results[0]


def _block(rows: Any) -> Any:
    """Return rows as an array; read them if they are a column."""
    return rows._block() if hasattr(rows, "_rows_first") else rows


def matrix_product(left: Any, right: Any, bounds: Callable[[Any], Iterable[Any]]) -> Any:
    """Multiply a column and a matrix, or two columns, one block of the column's rows at a time.

    Parameters
    ----------
    left, right : ndarray or Column
    bounds : callable
        Takes a column and returns the bounds of its blocks of rows.

    Returns
    -------
    ndarray or scalar
        NotImplemented if the product cannot be computed in blocks.
    """
    if not (_is_supported(left) and _is_supported(right)):
        return NotImplemented
    left, right = (x if hasattr(x, "_rows_first") else np.asarray(x) for x in (left, right))
    shapes = np.shape(left), np.shape(right)
    if not all(shapes) or any(0 in shape for shape in shapes):
        return NotImplemented
    # The product sums over the last axis of `left` and the second-to-last axis of `right`, or over
    # the only axis of `right`. These axes must have equal lengths.
    lengths = shapes[0][-1], shapes[1][-2:][0]
    if lengths[0] != lengths[1]:
        # Raises NumPy's exception before the column is read.
        np.matmul(np.empty((0, lengths[0]), left.dtype), np.empty((lengths[1], 0), right.dtype))
    if len(shapes[1]) > 2:
        return NotImplemented
    if getattr(left, "_rows_first", False) and len(shapes[0]) > 1:
        return _product_by_rows(left, right, bounds(left))
    if getattr(right, "_rows_first", False):
        return _sum_of_products(left, right, bounds(right))
    if getattr(left, "_rows_first", False):
        return _sum_of_products(left, right, bounds(left))
    return NotImplemented


def _product_by_rows(left: Any, right: Any, bounds: Iterable[Any]) -> Any:
    """Multiply each block of rows by the whole right matrix."""
    right = np.asarray(right)
    products = (np.matmul(left[start:stop]._block(), right) for start, stop in bounds)
    first = next(products)
    if len(first) == len(left):
        return first
    result = np.empty((len(left), *first.shape[1:]), first.dtype)
    start = 0
    for product in chain([first], products):
        result[start : start + len(product)] = product
        start += len(product)
    return result


def _sum_of_products(left: Any, right: Any, bounds: Iterable[Any]) -> Any:
    """Return the sum of the products of blocks along the contracted axis."""
    total: Any = None
    for start, stop in bounds:
        part = np.matmul(_block(left[..., start:stop]), _block(right[start:stop]))
        total = part if total is None else np.add(total, part)
    return total


def text_operand(
    ufunc: np.ufunc, inputs: tuple[Any, ...], options: Mapping[str, Any], kind: str
) -> bytes | None:
    """Return the bytes of the text that ``==`` or ``!=`` compares with a column of text.

    Return None for other calls. `kind` is the kind of the column's encoding.
    """
    expected: Any = {"str": str, "bytes": bytes}.get(kind)
    if expected is None or ufunc not in EQUALITY or options:
        return None
    for item in inputs:
        if isinstance(item, expected):
            # A str with surrogates is not valid UTF-8. It equals no value, but must not raise.
            return item.encode(errors="surrogatepass") if isinstance(item, str) else bytes(item)
    return None


def equals_text(text: bytes, source: Source, plan: Plan, selection: Selection) -> Bools:
    """Compare each value of a column of text to `text`, without decoding the values."""
    check_cost(source, selection, "comparing text", plan)
    equal = np.empty(selection.size, bool)
    for start in progress(range(0, selection.size, KERNEL_ROWS), "comparing text"):
        samples = source.look_up(selection.ids(start, start + KERNEL_ROWS))
        equal[start : start + KERNEL_ROWS] = source.equal(plan, samples, text)
    return equal.reshape(selection.shape)[()]


def is_same(left: Any, right: Any) -> bool:
    """Return True if two values are equal; arrays must be equal in all elements."""
    return np.array_equal(left, right) if isinstance(left, np.ndarray) else bool(left == right)
