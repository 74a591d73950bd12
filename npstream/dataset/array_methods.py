"""The ndarray methods of columns, with ndarray's signatures, and the conversion to a dask array.

Methods that return a new array in NumPy read the column. So do `reshape` and `transpose`, which
return views in NumPy but cannot be lazy here. Reductions read one block of rows at a time.

Tested in tests/dataset/test_array_methods.py.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import numpy as np

from npstream._core.typing import AnyArray
from npstream.dataset.reductions import reduce_blocks
from npstream.dataset.ufuncs import apply_in_blocks, blockwise_shape
from npstream.errors import refuse_deletion, short_traceback

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike

    from npstream.indexing.selection import Selection
    from npstream.reading.source import Source

F = TypeVar("F", bound=Callable[..., Any])

_PARAMETERS = {
    "args": ("int or tuple of int", "The position; not needed if there is only one element."),
    "axes": ("int or tuple of int", "The order of the axes; by default the reverse."),
    "axis": ("int or tuple of int", "The axes to reduce; by default all."),
    "b": ("array_like", "The other array."),
    "casting": ("str", "Which conversions are allowed, as for `numpy.can_cast`."),
    "copy": ("bool", "Whether to always return a new array."),
    "correction": ("float", "An alias of `ddof`."),
    "ddof": ("float", "The divisor is the number of elements minus this."),
    "decimals": ("int", "Digits after the decimal point."),
    "dtype": ("dtype", "The dtype of the result; by default NumPy's choice."),
    "initial": ("scalar", "An initial value for the reduction; by default none."),
    "keepdims": ("bool", "Whether to keep reduced axes, with length 1."),
    "kind": ("str", "The algorithm, as for `numpy.sort`; by default NumPy's choice."),
    "max": ("array_like", "Upper limits; by default none."),
    "mean": ("ndarray", "The mean, if known; by default it is computed."),
    "min": ("array_like", "Lower limits; by default none."),
    "options": ("Any", "Further arguments of NumPy's function."),
    "order": ("str", 'The order in memory: "C", "F", "A" or "K".'),
    "out": ("ndarray", "The array to fill and return; by default a new one."),
    "repeats": ("int or array_like of int", "Number of repetitions of each element."),
    "shape": ("int or tuple of int", "The new shape; one length may be -1."),
    "stable": ("bool", "Whether equal elements keep their order; by default, `kind` decides."),
    "subok": ("bool", "Accepted for compatibility with NumPy, without effect."),
    "where": ("array_like of bool", "The elements to include."),
}
"""Type and description of each parameter of the methods, by name."""

_FLAT_AXIS = ("int", "The axis; by default the only axis of the ravelled column.")
"""Type and description of an `axis` whose default ravels the column."""


def add_sections(
    returns: str, example: str, result: str, raises: str = "", **parameters: tuple[str, str]
) -> Callable[[F], F]:
    """Return a decorator that adds numpydoc's sections to the summary of a method.

    Parameters
    ----------
    returns : str
        The type of the method's result.
    example : str
        A call of the method, on a column of 0, 1 and 2.
    result : str
        The output of the example.
    raises : str, default: ""
        The exception that the method itself raises, and its condition, as in "TypeError: If ..."
    **parameters : tuple of str
        Type and description of parameters that differ from `_PARAMETERS`.
    """

    def decorate(method: F) -> F:
        descriptions = _PARAMETERS | parameters
        _, *method_parameters = inspect.signature(method).parameters.values()
        lines = [inspect.getdoc(method) or ""]
        if method_parameters:
            lines += _section("Parameters")
        for parameter in method_parameters:
            kind, description = descriptions[parameter.name]
            bare = parameter.replace(annotation=parameter.empty, default=parameter.empty)
            name = str(bare)  # includes the stars of *args and **kwargs
            lines += [f"{name} : {kind}{_default(parameter)}", f"    {description}"]
        lines += [*_section("Returns"), returns]
        if raises:
            error, _, condition = raises.partition(": ")
            lines += [*_section("Raises"), error, f"    {condition}"]
        lines += [*_section("Examples"), f'>>> getfixture("example")["label"].{example}', result]
        method.__doc__ = "\n".join(lines) + "\n"
        return method

    return decorate


def _section(name: str) -> list[str]:
    return ["", name, "-" * len(name)]


def _default(parameter: inspect.Parameter) -> str:
    value = parameter.default
    if value is parameter.empty:
        return ""
    if value is None:
        return ", optional"
    return f', default: "{value}"' if isinstance(value, str) else f", default: {value!r}"


_DEFAULTS = {
    "dtype": None, "keepdims": False, "initial": None, "where": True, "ddof": 0, "mean": None
}  # fmt: skip
"""The default of each option of a reduction; `_reduce` passes only other values to NumPy.

NumPy treats some of these values differently if they are passed: ``np.sum([], initial=None)``
raises.
"""


class ArrayLikeColumn(Protocol):
    """The attributes of a column that the methods use."""

    @property
    def name(self) -> str:
        """Name of the column."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the elements."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the column."""

    @property
    def size(self) -> int:
        """Number of elements."""

    @property
    def _source(self) -> Source:
        """The dataset that the column belongs to."""

    @property
    def _selection(self) -> Selection:
        """The rows of the column."""

    def _scalar(self) -> Any:
        """Read the only element."""

    def _array(self) -> AnyArray:
        """Read the column as an array; its dtype is object if NumPy has none for the values."""

    def _flat_rows(self) -> Any:
        """Return the column as a lazy 1-d column if its values are scalars; else None."""

    def _blocks(self, purpose: str | None = None) -> Iterator[AnyArray]:
        """Read the column in blocks of rows; show progress under the title `purpose`, if given."""

    def _bounds(self, purpose: str) -> Iterator[tuple[int, int]]:
        """Yield the first row of each block and the row after its last; show progress."""


class ArrayMethods:
    """Methods that a column shares with an ndarray."""

    __slots__ = ()
    __delitem__ = refuse_deletion

    @add_sections("ndarray or scalar", "sum()", "np.int64(3)")
    def sum(
        self,
        axis: int | tuple[int, ...] | None = None,
        dtype: DTypeLike | None = None,
        out: AnyArray | None = None,
        keepdims: bool = False,
        initial: Any = None,
        where: ArrayLike = True,
    ) -> Any:
        """Return the sum of elements, as `numpy.sum` does."""
        options = {"dtype": dtype, "keepdims": keepdims, "initial": initial, "where": where}
        return _reduce(self, "sum", axis, out, options)

    @add_sections("ndarray or scalar", "prod()", "np.int64(0)")
    def prod(
        self,
        axis: int | tuple[int, ...] | None = None,
        dtype: DTypeLike | None = None,
        out: AnyArray | None = None,
        keepdims: bool = False,
        initial: Any = None,
        where: ArrayLike = True,
    ) -> Any:
        """Return the product of elements, as `numpy.prod` does."""
        options = {"dtype": dtype, "keepdims": keepdims, "initial": initial, "where": where}
        return _reduce(self, "prod", axis, out, options)

    @add_sections("ndarray or scalar", "min()", "np.int64(0)")
    def min(
        self,
        axis: int | tuple[int, ...] | None = None,
        out: AnyArray | None = None,
        keepdims: bool = False,
        initial: Any = None,
        where: ArrayLike = True,
    ) -> Any:
        """Return the least element, as `numpy.min` does."""
        options = {"keepdims": keepdims, "initial": initial, "where": where}
        return _reduce(self, "min", axis, out, options)

    @add_sections("ndarray or scalar", "max()", "np.int64(2)")
    def max(
        self,
        axis: int | tuple[int, ...] | None = None,
        out: AnyArray | None = None,
        keepdims: bool = False,
        initial: Any = None,
        where: ArrayLike = True,
    ) -> Any:
        """Return the greatest element, as `numpy.max` does."""
        options = {"keepdims": keepdims, "initial": initial, "where": where}
        return _reduce(self, "max", axis, out, options)

    @add_sections("ndarray or scalar", "any()", "np.True_")
    def any(
        self,
        axis: int | tuple[int, ...] | None = None,
        out: AnyArray | None = None,
        keepdims: bool = False,
        *,
        where: ArrayLike = True,
    ) -> Any:
        """Return True if any element is true, as `numpy.any` does; stop at a true one."""
        return _reduce(self, "any", axis, out, {"keepdims": keepdims, "where": where})

    @add_sections("ndarray or scalar", "all()", "np.False_")
    def all(
        self,
        axis: int | tuple[int, ...] | None = None,
        out: AnyArray | None = None,
        keepdims: bool = False,
        *,
        where: ArrayLike = True,
    ) -> Any:
        """Return True if all elements are true, as `numpy.all` does; stop at a false one."""
        return _reduce(self, "all", axis, out, {"keepdims": keepdims, "where": where})

    @add_sections("ndarray or scalar", "mean()", "np.float64(1.0)")
    def mean(
        self,
        axis: int | tuple[int, ...] | None = None,
        dtype: DTypeLike | None = None,
        out: AnyArray | None = None,
        keepdims: bool = False,
        *,
        where: ArrayLike = True,
    ) -> Any:
        """Return the mean of elements, as `numpy.mean` does."""
        options = {"dtype": dtype, "keepdims": keepdims, "where": where}
        return _reduce(self, "mean", axis, out, options)

    @add_sections("ndarray or scalar", "std(ddof=1)", "np.float64(1.0)")
    def std(
        self,
        axis: int | tuple[int, ...] | None = None,
        dtype: DTypeLike | None = None,
        out: AnyArray | None = None,
        ddof: float = 0,
        keepdims: bool = False,
        *,
        where: ArrayLike = True,
        mean: AnyArray | None = None,
        correction: float | None = None,
    ) -> Any:
        """Return the standard deviation of elements, as `numpy.std` does."""
        options = _moment_options(dtype, ddof, keepdims, where, mean, correction)
        return _reduce(self, "std", axis, out, options)

    @add_sections("ndarray or scalar", "var(ddof=1)", "np.float64(1.0)")
    def var(
        self,
        axis: int | tuple[int, ...] | None = None,
        dtype: DTypeLike | None = None,
        out: AnyArray | None = None,
        ddof: float = 0,
        keepdims: bool = False,
        *,
        where: ArrayLike = True,
        mean: AnyArray | None = None,
        correction: float | None = None,
    ) -> Any:
        """Return the variance of elements, as `numpy.var` does."""
        options = _moment_options(dtype, ddof, keepdims, where, mean, correction)
        return _reduce(self, "var", axis, out, options)

    @add_sections(
        "ndarray or scalar",
        "argmin()",
        "np.int64(0)",
        axis=_FLAT_AXIS,
    )
    def argmin(
        self, axis: int | None = None, out: AnyArray | None = None, *, keepdims: bool = False
    ) -> Any:
        """Return the position of the least element, as `numpy.argmin` does."""
        return _reduce(self, "argmin", axis, out, {"keepdims": keepdims})

    @add_sections(
        "ndarray or scalar",
        "argmax()",
        "np.int64(2)",
        axis=_FLAT_AXIS,
    )
    def argmax(
        self, axis: int | None = None, out: AnyArray | None = None, *, keepdims: bool = False
    ) -> Any:
        """Return the position of the greatest element, as `numpy.argmax` does."""
        return _reduce(self, "argmax", axis, out, {"keepdims": keepdims})

    # Conversions and other functions

    @add_sections(
        "ndarray",
        "astype(bool)",
        "array([False,  True,  True])",
        raises="TypeError: If `casting` does not allow the conversion.",
    )
    def astype(
        self: ArrayLikeColumn,
        dtype: DTypeLike,
        order: str = "K",
        casting: str = "unsafe",
        subok: bool = True,
        copy: bool = True,
    ) -> AnyArray:
        """Read the column and convert it, as `numpy.ndarray.astype` does."""
        if not np.can_cast(self.dtype, dtype, casting=cast("Any", casting)):
            raise TypeError(
                f"Cannot cast array data from {self.dtype!r} to {np.dtype(dtype)!r} according to "
                f"the rule {casting!r}"
            )
        # For dtype object the column itself makes the objects, because NumPy has no dtype for some
        # values. NumPy converts to any other dtype.
        array = np.asarray(self, np.dtype(dtype) if np.dtype(dtype) == object else None)
        return array.astype(dtype, cast("Any", order), cast("Any", casting), subok, copy=False)

    @add_sections("ndarray", "copy()", "array([0, 1, 2])")
    def copy(self: ArrayLikeColumn, order: str = "C") -> AnyArray:
        """Read the column."""
        return np.asarray(self._array(), order=cast("Any", order))

    @add_sections("ndarray", "flatten()", "array([0, 1, 2])")
    def flatten(self: ArrayLikeColumn, order: str = "C") -> AnyArray:
        """Read the column as an array with one axis."""
        return self._array().reshape(-1, order=cast("Any", order))

    @add_sections(
        "Column or ndarray",
        "reshape(1, -1)",
        "array([[0, 1, 2]])",
        raises="ValueError: If the sizes differ, or `copy` is False and a copy is needed.",
    )
    def reshape(
        self: ArrayLikeColumn, *shape: Any, order: str = "C", copy: bool | None = None
    ) -> Any:
        """Read the column in another shape, as `numpy.ndarray.reshape` does."""
        new_shape = shape[0] if len(shape) == 1 else shape
        # A placeholder without memory resolves a length of -1 and raises if the sizes differ.
        result_shape = np.broadcast_to(np.False_, self.shape).reshape(new_shape).shape
        if result_shape == self.shape and not copy:
            return self
        if copy is False:
            raise ValueError("Unable to avoid creating a copy while reshaping.")
        return self._array().reshape(result_shape, order=cast("Any", order))

    @add_sections("Column or ndarray", "ravel().shape", "(3,)")
    def ravel(self: ArrayLikeColumn, order: str = "C") -> Any:
        """Return the column with one axis: a lazy column if values are scalars, else an array."""
        if len(self.shape) == 1:
            return self
        flat = self._flat_rows() if order in ("C", "K") else None
        return self._array().reshape(-1, order=cast("Any", order)) if flat is None else flat

    @add_sections("Column or ndarray", "transpose().shape", "(3,)")
    def transpose(self: ArrayLikeColumn, *axes: Any) -> Any:
        """Read the column with permuted axes, as `numpy.ndarray.transpose` does."""
        # A placeholder without memory raises for invalid axes before the column is read.
        np.broadcast_to(np.False_, self.shape).transpose(*axes)
        return self if len(self.shape) < 2 else self._array().transpose(*axes)

    @property
    def T(self: ArrayLikeColumn) -> Any:
        """The column with its axes in reverse order: itself if it has one axis, else an array."""
        return self if len(self.shape) < 2 else self._array().T

    @add_sections("list", "tolist()", "[0, 1, 2]")
    def tolist(self: ArrayLikeColumn) -> Any:
        """Read the column as nested lists of Python values."""
        return self._array().tolist()

    def to_dask(self: ArrayLikeColumn) -> Any:
        """Return a lazy dask array whose blocks hold the rows of one or more shards.

        Each block is read when Dask computes it. A slice of the array reads only its rows.

        Returns
        -------
        dask.array.Array
            With the shape and dtype of the column.

        Raises
        ------
        TypeError
            If the values vary in size or are not numbers. `Dataset.to_dask_dataframe` reads text.
        ValueError
            If the view has several axes of rows.
        MissingDependencyError
            If dask is not installed.

        Examples
        --------
        >>> import pytest; _ = pytest.importorskip("dask.array")
        >>> int(getfixture("example")["label"].to_dask().max().compute(scheduler="threads"))
        2
        """
        from npstream.dataset.export import to_dask_array

        with short_traceback:
            return to_dask_array(self, self._source, self._selection)

    @add_sections("ndarray", "repeat(2)", "array([0, 0, 1, 1, 2, 2])", axis=_FLAT_AXIS)
    def repeat(self: ArrayLikeColumn, repeats: ArrayLike, axis: int | None = None) -> AnyArray:
        """Read the column and repeat its elements, as `numpy.repeat` does."""
        return self._array().repeat(cast("Any", repeats), axis)

    @add_sections("ndarray", "clip(1)", "array([1, 1, 2])")
    def clip(
        self: ArrayLikeColumn,
        min: ArrayLike | None = None,
        max: ArrayLike | None = None,
        out: AnyArray | None = None,
        **options: Any,
    ) -> AnyArray:
        """Read the column with its elements limited, as `numpy.clip` does."""
        limits = [limit for limit in (min, max) if limit is not None]

        def clip_rows(rows: AnyArray, *row_limits: Any, **keywords: Any) -> Any:
            # `row_limits` are the rows of `limits`, which does not contain None.
            next_limits = iter(row_limits)
            lower = None if min is None else next(next_limits)
            upper = None if max is None else next(next_limits)
            return np.clip(rows, lower, upper, **keywords)

        options |= {} if out is None else {"out": (out,)}
        clipped: AnyArray = _apply_by_rows(self, "clip", clip_rows, limits, options)
        return clipped

    @add_sections("ndarray", "round()", "array([0, 1, 2])")
    def round(self: ArrayLikeColumn, decimals: int = 0, out: AnyArray | None = None) -> AnyArray:
        """Read the column with its elements rounded, as `numpy.round` does."""

        def round_rows(rows: AnyArray, out: Any = (None,)) -> Any:
            return np.round(rows, decimals, out[0])  # `out` is a tuple, as for ufuncs

        options = {} if out is None else {"out": (out,)}
        rounded: AnyArray = _apply_by_rows(self, "round", round_rows, [], options)
        return rounded

    @add_sections("ndarray", "cumsum()", "array([0, 1, 3])", axis=_FLAT_AXIS)
    def cumsum(
        self: ArrayLikeColumn,
        axis: int | None = None,
        dtype: DTypeLike | None = None,
        out: AnyArray | None = None,
    ) -> AnyArray:
        """Read the column and return its cumulative sum, as `numpy.cumsum` does."""
        total: AnyArray = np.cumsum(self._array(), axis, cast("Any", dtype), cast("Any", out))
        return total

    @add_sections(
        "ndarray",
        "argsort()",
        "array([0, 1, 2])",
        axis=("int", "The axis; None ravels the column."),
        order=("str or list of str", "Fields to compare; columns have none."),
    )
    def argsort(
        self: ArrayLikeColumn,
        axis: int | None = -1,
        kind: Any = None,
        order: Any = None,
        *,
        stable: bool | None = None,
    ) -> AnyArray:
        """Read the column and return the positions that sort it, as `numpy.argsort` does."""
        return np.argsort(self._array(), axis, kind, order, stable=stable)

    @add_sections("tuple of ndarray", "nonzero()", "(array([1, 2]),)")
    def nonzero(self: ArrayLikeColumn) -> tuple[AnyArray, ...]:
        """Return the positions of nonzero elements, as `numpy.nonzero` does."""
        if self.dtype.kind in "biufc" and self.shape:
            return cast("AnyArray", np.not_equal(cast("Any", self), 0)).nonzero()
        return self._array().nonzero()

    @add_sections("ndarray or scalar", "dot([1, 10, 100])", "np.int64(210)")
    def dot(self: ArrayLikeColumn, b: ArrayLike, out: AnyArray | None = None) -> Any:
        """Return the dot product with another array, as `numpy.dot` does."""
        return np.dot(cast("Any", self), b, *(() if out is None else (out,)))

    @add_sections("scalar", "item(2)", "2")
    def item(self: ArrayLikeColumn, *args: Any) -> Any:
        """Read one element as a Python value, as `numpy.ndarray.item` does."""
        # A placeholder without memory raises for an invalid position before the column is read.
        np.broadcast_to(np.False_, self.shape).item(*args)
        position = args[0] if len(args) == 1 else args or 0
        index = position if isinstance(position, tuple) else _unravel(position, self.shape)
        value = cast("Any", self)[index]
        return value.item() if isinstance(value, np.ndarray | np.generic) else value

    def to_numpy(self: ArrayLikeColumn, dtype: DTypeLike | None = None) -> AnyArray:
        """Read the column: ``np.asarray(column, dtype)``.

        Parameters
        ----------
        dtype : dtype, optional
            Dtype of the result; by default the column's.

        Returns
        -------
        ndarray

        Raises
        ------
        TypeError
            If NumPy has no dtype for the values: read them with ``dtype=object``.

        Examples
        --------
        >>> getfixture("example")["label"].to_numpy(np.float32)
        array([0., 1., 2.], dtype=float32)
        """
        return np.asarray(self, dtype)

    # Conversions to Python scalars

    def __bool__(self: ArrayLikeColumn) -> bool:
        if self.size != 1:
            raise ValueError(
                "The truth value of an array with more than one element is ambiguous. "
                "Use a.any() or a.all()"
            )
        return bool(np.asarray(self))

    def __int__(self: ArrayLikeColumn) -> int:
        return int(self._scalar())

    def __float__(self: ArrayLikeColumn) -> float:
        return float(self._scalar())

    def __complex__(self: ArrayLikeColumn) -> complex:
        return complex(self._scalar())

    def __index__(self: ArrayLikeColumn) -> int:
        if self.shape:
            raise TypeError("only integer scalar arrays can be converted to a scalar index")
        return operator.index(np.asarray(self))

    def _scalar(self: ArrayLikeColumn) -> Any:
        """Read the only element; raise TypeError if the column has axes, as NumPy does."""
        if self.shape:
            raise TypeError("only 0-dimensional arrays can be converted to Python scalars")
        return np.asarray(self)[()]

    def __dlpack__(self: ArrayLikeColumn, **options: Any) -> Any:
        """Read the column and export the array, as `numpy.ndarray.__dlpack__` does."""
        return np.asarray(self).__dlpack__(**options)

    def __dlpack_device__(self: ArrayLikeColumn) -> tuple[int, int]:
        return 1, 0  # DLPack's kDLCPU


def _unravel(flat: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    size = int(np.prod(shape, dtype=np.int64))
    return tuple(int(k) for k in np.unravel_index(flat % size, shape)) if shape else ()


def _moment_options(
    dtype: Any, ddof: float, keepdims: bool, where: Any, mean: Any, correction: float | None
) -> dict[str, Any]:
    options = {"dtype": dtype, "ddof": ddof, "keepdims": keepdims, "where": where, "mean": mean}
    return options if correction is None else options | {"correction": correction}


def _reduce(column: Any, name: str, axis: Any, out: Any, options: dict[str, Any]) -> Any:
    """Reduce a column by a NumPy function, one block of rows at a time."""
    keywords = {
        key: value
        for key, value in options.items()
        if key not in _DEFAULTS or value is not _DEFAULTS[key]
    }
    if not column.shape:
        return getattr(np, name)(np.asarray(column), axis, out=out, **keywords)
    blocks = column._blocks(f"{name} of {column.name!r}")
    with short_traceback:
        return reduce_blocks(name, blocks, column.shape, column.dtype, axis, out=out, **keywords)


def _apply_by_rows(
    column: Any, name: str, function: Any, others: list[Any], options: dict[str, Any]
) -> Any:
    """Apply an elementwise function to a column, one block of rows at a time."""
    shape = blockwise_shape([column, *others], options)
    if shape is None:
        return function(np.asarray(column), *others, **options)
    bounds = column._bounds(f"{name} of {column.name!r}")
    return apply_in_blocks(function, [column, *others], options, shape, bounds)
