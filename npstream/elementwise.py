"""NumPy's ufuncs on columns, one block of rows at a time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from npstream._typing import AnyArray


def is_blockwise(
    ufunc: np.ufunc,
    method: str,
    inputs: tuple[Any, ...],
    options: dict[str, Any],
    column: type,
) -> bool:
    """Tell whether a ufunc takes each element of one column on its own, beside mere numbers."""
    others = [item for item in inputs if not isinstance(item, column)]
    return (
        (method, ufunc.nout, ufunc.signature, options) == ("__call__", 1, None, {})
        and len(others) == len(inputs) - 1
        and all(np.ndim(item) == 0 for item in others)
    )


def joined(parts: Iterable[AnyArray], rows: int) -> AnyArray:
    """Put blocks of rows together, of which there is at least one."""
    result: AnyArray | None = None
    start = 0
    for part in parts:
        if result is None:
            result = np.empty((rows, *part.shape[1:]), part.dtype)
        result[start : start + len(part)] = part
        start += len(part)
    assert result is not None
    return result
