"""Conversion of arrays for optional libraries (torch, pyarrow, awkward), without copying.

Rows of varying shapes are described by *levels*, one for each axis of a row, outermost first. A
level is an int if all lists along the axis have that length. Otherwise it is the array of the
lists' offsets. The first level is always an array of offsets.

Tested in tests/reading/test_batch.py.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from npstream._core.typing import AnyArray, Int64
from npstream.errors import MissingDependencyError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Levels: TypeAlias = "list[int | Int64]"


def import_npstream_torch() -> Any:
    """Return `npstream.torch`, the only package that imports torch."""
    return import_optional("npstream.torch", "torch", "torch")


def offsets_from_lengths(lengths: ArrayLike) -> Int64:
    """Return the offsets of rows with these lengths: each row's start, then the last row's end."""
    lengths = np.asarray(lengths, np.int64)
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def ragged_levels(offsets: Int64, shapes: Int64 | None, regular: bool = True) -> Levels:
    """Return the levels of rows, given their `shapes` and `offsets`.

    The first offset is 0. If `shapes` is None, rows are one-dimensional. If `regular` is False,
    every level is an array of offsets.
    """
    if shapes is None:
        return [offsets]
    levels: Levels = []
    for axis, lengths in enumerate(shapes.T):
        longest = int(lengths.max(initial=0))
        if regular and axis and (lengths == longest).all():
            levels.append(longest)
        else:
            lists = np.repeat(lengths, shapes[:, :axis].prod(axis=1))
            levels.append(offsets_from_lengths(lists))
    return levels


def to_arrow(values: AnyArray, levels: Levels) -> Any:
    """Return rows as a pyarrow array of lists; a constant axis becomes a list of fixed size."""
    pa = import_optional("pyarrow", "pyarrow", "arrow")

    def make_fixed_lists(content: Any, size: int, lists: int) -> Any:
        # FixedSizeListArray.from_arrays cannot infer the number of lists if their size is 0.
        list_type = pa.list_(content.type, size)
        return pa.Array.from_buffers(list_type, lists, [None], children=[content])

    def make_varying_lists(content: Any, offsets: Int64) -> Any:
        return pa.LargeListArray.from_arrays(pa.array(offsets), content)

    return _nest(levels, pa.array(values), make_fixed_lists, make_varying_lists)


def text_to_arrow(values: AnyArray, offsets: Int64, is_text: bool) -> Any:
    """Return rows of bytes as a pyarrow array of large strings, or of large binaries."""
    pa = import_optional("pyarrow", "pyarrow", "arrow")
    row_type = pa.large_string() if is_text else pa.large_binary()
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(values)]
    return pa.Array.from_buffers(row_type, len(offsets) - 1, buffers)


def arrow_stream(array: Any, requested_schema: Any) -> Any:
    """Return a pyarrow array as an Arrow stream of one chunk."""
    pa = import_optional("pyarrow", "pyarrow", "arrow")
    return pa.chunked_array([array]).__arrow_c_stream__(requested_schema)


def to_awkward(values: AnyArray, levels: Levels) -> Any:
    """Return rows as an awkward array; a constant axis becomes a regular one."""
    ak = import_optional("awkward", "awkward", "awkward")

    def make_varying_lists(content: Any, offsets: Int64) -> Any:
        return ak.contents.ListOffsetArray(ak.index.Index64(offsets), content)

    content = ak.contents.NumpyArray(values)
    return ak.Array(_nest(levels, content, ak.contents.RegularArray, make_varying_lists))


def text_to_awkward(values: AnyArray, offsets: Int64, is_text: bool) -> Any:
    """Return rows of bytes as an awkward array of strings, or of bytestrings."""
    ak = import_optional("awkward", "awkward", "awkward")
    element, row = ("char", "string") if is_text else ("byte", "bytestring")
    content = ak.contents.NumpyArray(values, parameters={"__array__": element})
    return ak.Array(
        ak.contents.ListOffsetArray(
            ak.index.Index64(offsets), content, parameters={"__array__": row}
        )
    )


def to_nested(values: AnyArray, levels: Levels) -> Any:
    """Return rows as a nested torch tensor in jagged layout; only the first axis may vary."""
    torch = import_npstream_torch()
    if not levels:
        return torch.to_tensor(values)
    offsets, *inner = levels
    if not all(isinstance(level, int) for level in inner):
        raise ValueError(
            "rows differ along more than their first axis, which jagged tensors cannot: "
            "pad them (padding=0), or convert row by row"
        )
    lists = int(offsets[-1])  # type: ignore[index]
    return torch.to_nested_tensor(values.reshape(lists, *inner), offsets)


def _nest(
    levels: Levels,
    content: Any,
    make_fixed_lists: Callable[[Any, int, int], Any],
    make_varying_lists: Callable[[Any, Int64], Any],
    lists: int = 0,
) -> Any:
    """Wrap flat content in one list type per level; `lists` is the number of outermost lists."""
    if not levels:
        return content
    level, *inner = levels
    if isinstance(level, int):
        nested = _nest(inner, content, make_fixed_lists, make_varying_lists, lists * level)
        return make_fixed_lists(nested, level, lists)
    nested = _nest(inner, content, make_fixed_lists, make_varying_lists, int(level[-1]))
    return make_varying_lists(nested, level)


def import_optional(module: str, package: str, extra: str, purpose: str = "this conversion") -> Any:
    """Import a module of an optional package, or raise MissingDependencyError for `purpose`."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise MissingDependencyError(purpose, package, extra) from None
