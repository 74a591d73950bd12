"""Assertions and Hypothesis strategies for testing code against NumPy.

The assertions use NumPy as the oracle and raise AssertionError. They accept Datasets, Columns and
other array-likes. Only the strategies need Hypothesis.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import numpy as np

from npstream._core.arguments import quantity
from npstream._core.optional import import_optional
from npstream._core.typing import AnyArray
from npstream.formats.encodings.encodings import Encoding, column_type
from npstream.formats.encodings.images import is_image
from npstream.reading.batch import Ragged
from npstream.reading.decode import object_array

if TYPE_CHECKING:
    from hypothesis.strategies import DrawFn, SearchStrategy

__all__ = [
    "assert_same",
    "assert_same_as_numpy",
    "assert_same_result",
    "column_values",
    "encodings",
    "indices",
    "tables",
]

Reference: TypeAlias = AnyArray | Mapping[str, AnyArray]

_SCALARS = [f"{kind}{8 * size}" for kind in ("int", "uint") for size in (1, 2, 4, 8)]
_SCALARS += ["float16", "float32", "float64", "bool", "complex64", "complex128"]
_SCALARS += ["datetime64[s]", "datetime64[D]", "timedelta64[ms]"]
_ENCODINGS = [*_SCALARS, "int", "str", "bytes", "json", "str_int", "str_float", "str_decimal"]
_ENCODINGS += ["ndarray", "ndarray:bool", "ndarray:int32", "ndarray:float64"]

_ROW_DTYPES = ["int8", "uint16", "int64", "float32", "float64"]
_INDEX_DTYPES = [np.dtype(f"{kind}{bits}") for kind in ("int", "uint") for bits in (64, 32, 16)]
_MAX_EXCESS = 2
"""An invalid index is out of bounds by at most this much."""

_MAX_ELEMENTWISE_MASK = 64
"""Hypothesis draws each element of masks up to this size; larger masks use a drawn seed."""

_MAX_MASK = 1 << 20  # elements

_NUMPY_TYPES = {int: np.int64, float: np.float64}
"""Python type in a sample -> the equivalent NumPy type in an array."""


# Assertions


def assert_same_as_numpy(
    actual: Any, reference: Reference, index: Any = ..., *, messages: bool = False
) -> tuple[Any, Any] | None:
    """Assert that indexing gives the same result as NumPy.

    Both results have the same values, dtype and shape, or both raise the same exception type.

    Parameters
    ----------
    actual : Column, Dataset or array_like
        The object to check. An array-like other than a Column needs ``shape``, ``dtype``,
        ``__getitem__`` and ``__array__``.
    reference : ndarray or mapping of str to ndarray
        The expected content of `actual`: an array, or for a Dataset one array for each column. The
        first axes of these arrays are the axes of the Dataset.
    index : object, default: Ellipsis
        Any index. An index of a Dataset applies to its axes, or names columns.
    messages : bool, default: False
        Whether the messages of exceptions must also be equal, except for NumPy's list of shapes.

    Returns
    -------
    tuple or None
        The two results, which can be indexed again; None if both raised.

    Raises
    ------
    AssertionError
        If the results differ.

    Examples
    --------
    >>> from npstream import testing
    >>> ds, labels = getfixture("example"), np.arange(3)
    >>> testing.assert_same_as_numpy(ds["label"], labels, slice(None, None, -1))[1]
    array([2, 1, 0])
    >>> testing.assert_same_as_numpy(ds["label"], labels, 3)  # both raise IndexError
    >>> testing.assert_same_as_numpy(ds[["label"]], {"label": labels}, [2, 0])[1]
    {'label': array([2, 0])}
    >>> testing.assert_same_as_numpy(ds["label"], labels + 1, slice(2))
    Traceback (most recent call last):
    AssertionError: 2 wrong values of 2, the first at (0,): 0 is not NumPy's 1
    index: slice(None, 2, None)
    """
    get = functools.partial(_index_reference, index=index, shape=np.shape(actual))
    try:
        return _assert_same_outcome(operator.itemgetter(index), get, actual, reference, messages)
    except AssertionError as error:
        error.add_note(f"index: {index!r}")
        raise


def assert_same_result(
    function: Callable[[Any], Any], actual: Any, reference: Reference, *, messages: bool = False
) -> tuple[Any, Any] | None:
    """Assert that a function gives the same result for `actual` as for a NumPy array.

    Parameters
    ----------
    function : callable
        Called with `actual`, and then with `reference`.
    actual : Column, Dataset or array_like
        The object to check.
    reference : ndarray or mapping of str to ndarray
        The expected content of `actual`.
    messages : bool, default: False
        Whether the messages of exceptions must also be equal, except for NumPy's list of shapes.

    Returns
    -------
    tuple or None
        The two results; None if both raised.

    Raises
    ------
    AssertionError
        If the results differ, or only one raises.

    Examples
    --------
    >>> from npstream import testing
    >>> column = getfixture("example")["label"]
    >>> testing.assert_same_result(np.cumsum, column, np.arange(3))
    (array([0, 1, 3]), array([0, 1, 3]))
    >>> testing.assert_same_result(lambda x: x.sum(axis=5), column, np.arange(3))  # both raise
    """
    return _assert_same_outcome(function, function, actual, reference, messages)


def assert_same(actual: Any, expected: Any) -> None:
    """Assert that two values are equal in type, dtype, shape and elements.

    Contents of Columns, Datasets, Batches and Raggeds are compared. Object arrays may hold arrays.

    Parameters
    ----------
    actual : object
        The value to check. A Column is read completely, by `numpy.asarray` and by `load`.
    expected : object
        A value of any type; for a Dataset, Batch or sample, a mapping of column names to values.

    Raises
    ------
    AssertionError
        If they differ.

    Notes
    -----
    NaN equals NaN, and NaT equals NaT. A Python int or float equals a NumPy int64 or float64,
    because samples may hold Python numbers. Rows of a `Ragged` are compared with the elements of
    an array in C order. Images in a `Ragged` are skipped, because a batch holds their stored bytes.

    Examples
    --------
    >>> from npstream import testing
    >>> ds = getfixture("example")
    >>> testing.assert_same(ds[1], {"text": "one", "label": np.int64(1)})
    >>> testing.assert_same(ds["label"], np.arange(3))
    >>> testing.assert_same(ds["label"], np.arange(3, dtype=np.int32))
    Traceback (most recent call last):
    AssertionError: dtype int64 is not NumPy's int32
    """
    if isinstance(expected, Mapping):
        _assert_same_mapping(actual, expected)
    elif not isinstance(expected, np.ndarray):
        _assert_same_value(actual, expected)
    elif isinstance(actual, Ragged):
        _assert_same_loaded(actual, expected)
    elif isinstance(actual, np.ndarray):
        _assert_same_array(actual, expected)
    elif hasattr(actual, "__array__") and not isinstance(actual, np.generic):
        _assert_same_column(actual, expected)
    else:
        _fail("type", type(actual), type(expected))


def _assert_same_outcome(
    function: Callable[[Any], Any],
    numpy_function: Callable[[Any], Any],
    actual: Any,
    reference: Reference,
    messages: bool,
) -> tuple[Any, Any] | None:
    got, want = _outcome(function, actual), _outcome(numpy_function, reference)
    if isinstance(want, Exception):
        if not isinstance(got, type(want)):
            cause = got if isinstance(got, Exception) else None
            raise AssertionError(f"{got!r}, where NumPy raises {want!r}") from cause
        if messages and _comparable_message(got) != _comparable_message(want):
            raise AssertionError(f"the message {str(got)!r} is not NumPy's {str(want)!r}") from got
        return None
    if isinstance(got, Exception):
        raise AssertionError(f"{got!r} is raised, where NumPy gives {want!r}") from got
    assert_same(got, want)
    return got, want


def _outcome(function: Callable[[Any], Any], value: Any) -> Any:
    """Return the result of a call, or the exception that it raises."""
    try:
        return function(value)
    except Exception as error:
        return error


def _comparable_message(error: Exception) -> str:
    """Return an exception's message without NumPy's list of shapes."""
    return str(error).partition(" with shapes")[0]


def _index_reference(reference: Reference, index: Any, shape: tuple[int, ...]) -> Any:
    """Index an array, or each column of a mapping whose first axes have the given shape."""
    if not isinstance(reference, Mapping) or isinstance(index, str):
        return reference[index]
    if isinstance(index, list) and index and all(isinstance(name, str) for name in index):
        return {name: reference[name] for name in index}
    size = math.prod(shape)
    rows = np.arange(size).reshape(shape)[index]
    # The Ellipsis keeps 0-d arrays: without it, a 0-d array of rows would give scalars.
    row_index = (rows, ...) if isinstance(rows, np.ndarray) else rows
    return {
        name: values.reshape(size, *values.shape[len(shape) :])[row_index]
        for name, values in reference.items()
    }


def _fail(attribute: str, actual: object, expected: object) -> NoReturn:
    raise AssertionError(f"{attribute} {actual} is not NumPy's {expected}")


def _assert_same_mapping(actual: Any, expected: Mapping[str, Any]) -> None:
    """Compare a dataset, a batch or a sample."""
    is_dataset = hasattr(actual, "columns") and hasattr(actual, "load")
    if not is_dataset and not isinstance(actual, Mapping):
        _fail("type", type(actual), type(expected))
    names = actual.columns if is_dataset else actual
    if set(names) != set(expected):
        _fail("set of columns", sorted(names), sorted(expected))
    batch = actual.load() if is_dataset else {}
    for name, value in expected.items():
        try:
            assert_same(actual[name], value)
            if is_dataset:
                _assert_same_loaded(batch[name], value)
        except AssertionError as error:
            error.add_note(f"column: {name!r}")
            raise


def _assert_same_column(actual: Any, expected: AnyArray) -> None:
    """Compare an array-like with an array; read it by `numpy.asarray` and by `load`."""
    for attribute in ("shape", "ndim", "size"):
        want = getattr(expected, attribute)
        if (got := getattr(actual, attribute, want)) != want:
            _fail(attribute, got, want)
    has_objects = expected.dtype == object
    rows = expected.flat if has_objects else ()
    # A column of variable-shape arrays has the dtype of the arrays' elements.
    if actual.dtype != expected.dtype and not (
        has_objects and all(getattr(row, "dtype", actual.dtype) == actual.dtype for row in rows)
    ):
        _fail("dtype", actual.dtype, expected.dtype)
    _assert_same_array(np.asarray(actual, object if has_objects else None), expected)
    if hasattr(actual, "load"):
        _assert_same_loaded(actual.load(), expected)


def _assert_same_loaded(loaded: Any, expected: AnyArray) -> None:
    """Compare the result of `load`, an array or a Ragged."""
    if not isinstance(loaded, Ragged) and (loaded.dtype == object or expected.dtype != object):
        _assert_same_array(loaded, expected)
    else:
        _assert_same_elements(loaded, expected)


def _assert_same_array(actual: AnyArray, expected: AnyArray) -> None:
    for attribute, got, want in (
        ("type", type(actual), type(expected)),
        ("dtype", actual.dtype, expected.dtype),
        ("shape", actual.shape, expected.shape),
    ):
        if got != want:
            _fail(attribute, got, want)
    if expected.dtype == object:
        _assert_same_elements(actual, expected)
        return
    same = np.asarray((actual == expected) | ((actual != actual) & (expected != expected)))
    if not same.all():
        first = tuple(axis.item(0) for axis in np.nonzero(~np.atleast_1d(same)))[: expected.ndim]
        wrong = quantity(int(np.count_nonzero(~same)), "wrong value")
        summary = f"{wrong} of {same.size:,}, the first at {first}"
        raise AssertionError(f"{summary}: {actual[first]} is not NumPy's {expected[first]}")


def _assert_same_elements(actual: AnyArray | Ragged, expected: AnyArray) -> None:
    rows = actual if isinstance(actual, Ragged) else actual.ravel()
    if len(rows) != expected.size:
        _fail("number of rows", len(rows), expected.size)
    for number, (got, want) in enumerate(zip(rows, expected.flat, strict=True)):
        if is_image(want) and isinstance(got, bytes):
            continue  # a batch holds the stored bytes of images
        try:
            assert_same(got, want)
        except AssertionError as error:
            error.add_note(f"element: {number} in C order")
            raise


def _assert_same_value(actual: Any, expected: Any) -> None:
    if is_image(expected) and is_image(actual):
        actual, expected = (
            (image.size, image.mode, image.tobytes()) for image in (actual, expected)
        )
    kinds = {_NUMPY_TYPES.get(type(value), type(value)) for value in (actual, expected)}
    if len(kinds) > 1:
        _fail("type", type(actual), type(expected))
    if actual != expected and (actual == actual or expected == expected):
        _fail("value", repr(actual), repr(expected))


# Strategies


def indices(shape: int | tuple[int, ...], *, allow_invalid: bool = True) -> SearchStrategy[Any]:
    """Draw indices of an array or view with a given shape.

    The strategy draws integers, slices, Ellipsis, lists, index arrays and masks of several dtypes,
    shapes and layouts, and tuples of all of these.

    Parameters
    ----------
    shape : int or tuple of int
        The shape of the array or view.
    allow_invalid : bool, default: True
        Whether to draw also indices that raise: out of bounds, with too many axes, masks of a wrong
        length, shapes that do not broadcast, slices with a step of 0.

    Returns
    -------
    SearchStrategy

    Raises
    ------
    MissingDependencyError
        If Hypothesis is not installed.

    Notes
    -----
    The strategy draws no floats. It draws no ``None`` and no single booleans, which NumPy accepts
    and npstream rejects. In a tuple, it draws no integers or index arrays for axes of length 0,
    because NumPy does not check these next to an empty mask. Masks have up to 1,048,576 elements.

    Examples
    --------
    >>> from hypothesis import given, settings
    >>> from npstream import testing
    >>> values = np.arange(12).reshape(3, 4)
    >>> @settings(max_examples=10)
    ... @given(testing.indices((3, 4), allow_invalid=False))
    ... def test_an_index_picks_elements(index):
    ...     assert np.isin(values[index], values).all()
    >>> test_an_index_picks_elements()
    """
    _hypothesis("indices")
    axes = (shape,) if isinstance(shape, int) else tuple(map(operator.index, shape))
    strategy: SearchStrategy[Any] = _indices(axes, _MAX_EXCESS if allow_invalid else 0)
    return strategy


def encodings() -> SearchStrategy[str]:
    """Draw names of encodings for the argument ``columns=`` of `npstream.write`.

    Returns
    -------
    SearchStrategy
        A strategy for encodings of numbers, booleans, dates, text, bytes, JSON, decimals, and
        arrays of fixed and variable shape, but not of images and pickles.

    Raises
    ------
    MissingDependencyError
        If Hypothesis is not installed.

    Examples
    --------
    >>> from hypothesis import find
    >>> from npstream import testing
    >>> find(testing.encodings(), lambda name: name.startswith("ndarray:int8:"))
    'ndarray:int8:1'
    """
    st, npst = _hypothesis("encodings")
    arrays = st.builds(
        lambda dtype, shape: f"ndarray:{dtype}:{','.join(map(str, shape))}",
        st.sampled_from(_SCALARS),
        npst.array_shapes(max_dims=3, max_side=4),
    )
    strategy: SearchStrategy[str] = st.sampled_from(_ENCODINGS) | arrays
    return strategy


def column_values(encoding: str, n: int) -> SearchStrategy[AnyArray]:
    """Draw the values of a column.

    Parameters
    ----------
    encoding : str
        Name of the encoding, such as ``"int32"`` or ``"ndarray:uint16:4,3"``.
    n : int
        Number of samples.

    Returns
    -------
    SearchStrategy
        A strategy for arrays of `n` values with the dtype and shape of the column. The dtype is
        object if NumPy has none for the values.

    Raises
    ------
    ValueError
        If the encoding is not one that `encodings` draws.
    MissingDependencyError
        If Hypothesis is not installed.

    Examples
    --------
    >>> from hypothesis import find
    >>> from npstream import testing
    >>> find(testing.column_values("ndarray:uint8:2", 3), lambda values: True)
    array([[0, 0],
           [0, 0],
           [0, 0]], dtype=uint8)
    """
    st, npst = _hypothesis("column_values")
    column = column_type(encoding)
    strategy: SearchStrategy[AnyArray]
    if column.kind in ("fixed", "int_text", "float_text"):
        # Hypothesis has no strategy for dtypes of other packages, such as bfloat16.
        elements = st.integers(-8, 8).map(column.dtype.type) if column.dtype.kind == "V" else None
        strategy = npst.arrays(column.dtype, (n, *(column.shape or ())), elements=elements)
    else:
        is_text = column.kind == "str"
        to_array: Any = functools.partial(np.array, dtype=column.dtype) if is_text else object_array
        strategy = st.lists(_value(column), min_size=n, max_size=n).map(to_array)
    return strategy


def tables(
    columns: SearchStrategy[str] | None = None,
    *,
    min_samples: int = 1,
    max_samples: int = 10,
    max_columns: int = 4,
) -> SearchStrategy[tuple[dict[str, AnyArray], dict[str, str]]]:
    """Draw small datasets: the values of some columns, and their encodings.

    Parameters
    ----------
    columns : SearchStrategy of str, optional
        A strategy for the encoding of a column; by default `encodings`.
    min_samples : int, default: 1
        Minimum number of samples.
    max_samples : int, default: 10
        Maximum number of samples.
    max_columns : int, default: 4
        Maximum number of columns.

    Returns
    -------
    SearchStrategy
        A strategy for tuples ``(values, columns)``, the arguments of ``npstream.write(path, values,
        columns=columns)``. The values are also the reference for `assert_same_as_numpy`.

    Raises
    ------
    MissingDependencyError
        If Hypothesis is not installed.

    Examples
    --------
    >>> import tempfile
    >>> from hypothesis import given, settings
    >>> from npstream import testing
    >>> @settings(max_examples=3)
    ... @given(testing.tables())
    ... def test_reading_returns_the_written_values(table):
    ...     values, columns = table
    ...     with tempfile.TemporaryDirectory() as directory:
    ...         npstream.write(f"{directory}/new", values, columns=columns)
    ...         with npstream.open(f"{directory}/new") as ds:
    ...             testing.assert_same_as_numpy(ds, values)
    >>> test_reading_returns_the_written_values()
    """
    _hypothesis("tables")
    names = encodings() if columns is None else columns
    strategy: SearchStrategy[tuple[dict[str, AnyArray], dict[str, str]]]
    strategy = _composite(_table)(names, min_samples, max_samples, max_columns)
    return strategy


def _hypothesis(name: str) -> tuple[Any, Any]:
    """Import Hypothesis; return `hypothesis.strategies` and `hypothesis.extra.numpy`."""
    import_optional("hypothesis", "hypothesis", "testing", f"npstream.testing.{name}")
    from hypothesis import strategies
    from hypothesis.extra import numpy

    return strategies, numpy


@functools.cache
def _composite(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the composite strategy of a function that draws."""
    return _hypothesis(function.__name__)[0].composite(function)  # type: ignore[no-any-return]


# Strategies are cached: Hypothesis validates a strategy on the first draw, which takes longer than
# the draw itself.
@functools.lru_cache(256)
def _indices(shape: tuple[int, ...], excess: int) -> Any:
    st, npst = _hypothesis("indices")
    kinds = [npst.basic_indices(shape, allow_newaxis=False), st.just(...)]
    kinds += [_composite(_tuple_index)(shape, excess)]
    if shape:
        n = shape[0]
        kinds += [_integers(n, excess), _slices(n, excess), _index_arrays(n, None, excess)]
        kinds += [st.just([])] + [
            _masks(axes, excess) for axes in {shape[:1], shape} if _fits(axes)
        ]
    if len(shape) > 1 and 0 not in shape:
        kinds.append(npst.integer_array_indices(shape))
    strategy = st.one_of(kinds)
    return strategy if excess else strategy.filter(functools.partial(_is_valid, shape))


@functools.lru_cache(256)
def _integers(n: int, excess: int) -> Any:
    st, _ = _hypothesis("indices")
    return st.integers(-n - excess, n - 1 + excess) if n + excess else st.nothing()


@functools.lru_cache(256)
def _slices(n: int, excess: int) -> Any:
    st, _ = _hypothesis("indices")
    bound = st.none() | st.integers(-n - 2, n + 1)
    steps = st.integers(-3, 3) | st.integers(-n - 2, n + 1)
    return st.builds(slice, bound, bound, st.none() | (steps if excess else steps.filter(bool)))


@functools.lru_cache(256)
def _index_arrays(n: int, shape: tuple[int, ...] | None, excess: int) -> Any:
    """Return a strategy for integer arrays and lists; if `shape` is None, of several shapes."""
    st, npst = _hypothesis("indices")
    shapes = [(0,), (1,), (5,), (40,), (2, 3), (0, 4), (2, 1, 2)] if shape is None else [shape]

    def arrays(excess: int) -> Any:
        low, high = -n - excess, n - 1 + excess
        if low > high:  # no valid index exists
            return st.just(np.zeros(0 if shape is None else shape, np.int64))
        return st.one_of(
            npst.arrays(
                dtype,
                st.sampled_from(shapes),
                elements=st.integers(0 if dtype.kind == "u" else low, high),
            )
            for dtype in _INDEX_DTYPES
            if np.iinfo(dtype).max > high
        )

    # Mostly within bounds, so that few indices raise.
    strategy = st.one_of([arrays(0)] * 3 + [arrays(excess)])
    forms = [np.asarray, np.asfortranarray, np.ndarray.tolist]
    return st.builds(lambda form, array: form(array), st.sampled_from(forms), strategy)


@functools.lru_cache(256)
def _masks(shape: tuple[int, ...], excess: int) -> Any:
    """Return a strategy for masks; if `excess` is not 0, some have a wrong length."""
    st, npst = _hypothesis("indices")
    if math.prod(shape) > _MAX_ELEMENTWISE_MASK:
        return _composite(_large_mask)(shape, excess)
    masks = npst.arrays(np.bool_, shape)
    if excess and shape[0]:
        wrong = [npst.arrays(np.bool_, (shape[0] + extra, *shape[1:])) for extra in (1, -1)]
        masks = st.one_of([masks] * 4 + wrong)
    # An empty list would be an integer index, not a mask.
    return st.builds(
        lambda as_list, mask: mask.tolist() if as_list and mask.size else mask, st.booleans(), masks
    )


def _fits(shape: tuple[int, ...]) -> bool:
    return math.prod(shape) <= _MAX_MASK


def _large_mask(draw: DrawFn, shape: tuple[int, ...], excess: int) -> Any:
    st, _ = _hypothesis("indices")
    if excess:
        shape = (shape[0] + draw(st.sampled_from([0, 0, 0, 0, 1, -1])), *shape[1:])
    density = draw(st.sampled_from([0, 0.01, 0.1, 0.5, 0.9, 1]))
    return np.random.default_rng(draw(st.integers(0, 2**32))).random(shape) < density


def _tuple_index(draw: DrawFn, shape: tuple[int, ...], excess: int) -> tuple[Any, ...]:
    """Draw an integer, a slice, an array or a mask for each of some axes."""
    st, npst = _hypothesis("indices")
    common = draw(st.sampled_from([(1,), (3,), (2, 3)]))
    # At most one item is out of bounds: the order in which NumPy checks items is not specified.
    # `invalid` is the number of this item. If it is 9, one item is added, perhaps one too many.
    invalid = draw(st.integers(0, 9)) if excess else -1
    items: list[Any] = []
    axis = 0
    while axis < len(shape) and draw(st.integers(0, 4)):
        # For an axis of length 0, NumPy does not check integers next to an empty mask.
        kinds = ["slice", "mask", "integer", "slice", "array", "array"][: 6 if shape[axis] else 2]
        kind = draw(st.sampled_from(kinds))
        width = draw(st.integers(1, len(shape) - axis)) if kind == "mask" else 1
        item_excess = excess if len(items) == invalid else 0
        if kind == "integer":
            items.append(draw(_integers(shape[axis], item_excess)))
        elif kind == "array":
            part = draw(npst.broadcastable_shapes(common, max_dims=len(common)))
            items.append(draw(_index_arrays(shape[axis], part, item_excess)))
        elif kind == "mask" and _fits(shape[axis : axis + width]):
            items.append(draw(_masks(shape[axis : axis + width], item_excess)))
        else:
            items.append(draw(_slices(shape[axis], 0)))
            width = 1
        axis += width
    if draw(st.integers(0, 2)) == 0:
        items.insert(draw(st.integers(0, len(items))), ...)
    if invalid == 9:
        items.append(draw(st.sampled_from([0, slice(None), [0], ...])))
    return tuple(items)


def _is_valid(shape: tuple[int, ...], index: Any) -> bool:
    """Return True if NumPy accepts the index."""
    return not isinstance(
        _outcome(operator.itemgetter(index), np.broadcast_to(np.int8(0), shape)), Exception
    )


def _value(encoding: Encoding) -> Any:
    """Return a strategy for one value of a variable-size encoding."""
    st, npst = _hypothesis("column_values")
    if encoding.kind == "ndarray":
        dtypes = st.sampled_from(_ROW_DTYPES) if encoding.dtype == object else encoding.dtype
        shapes = npst.array_shapes(max_dims=2, max_side=4)
        return npst.arrays(dtypes, shapes)
    json = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5)
    strategies = {
        "str": st.text(max_size=8),
        "bytes": st.binary(max_size=8),
        "str_decimal": st.decimals(allow_nan=False, allow_infinity=False),
        "json": st.recursive(
            json | st.floats(allow_nan=False, allow_infinity=False),
            lambda item: (
                st.lists(item, max_size=3) | st.dictionaries(st.text(max_size=5), item, max_size=3)
            ),
            max_leaves=4,
        ),
    }
    if encoding.name not in strategies:
        raise ValueError(
            f"there is no strategy for values of encoding {encoding.name!r}: draw them with your "
            f"own strategy, or use an array encoding or one of {', '.join(_ENCODINGS)}"
        )
    return strategies[encoding.name]


def _table(
    draw: DrawFn, encoding_names: Any, min_samples: int, max_samples: int, max_columns: int
) -> tuple[dict[str, AnyArray], dict[str, str]]:
    """Draw the values and the encodings of columns."""
    st, _ = _hypothesis("tables")
    names = st.text("abcdefgh_é 0123", min_size=1, max_size=4)
    columns = draw(st.dictionaries(names, encoding_names, min_size=1, max_size=max_columns))
    n = draw(st.integers(min_samples, max_samples))
    return {name: draw(column_values(columns[name], n)) for name in columns}, columns
