"""Aliases of types that several modules use.

Tested in tests/dataset/test_types.py.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

AnyArray: TypeAlias = NDArray[Any]
Body: TypeAlias = bytes | memoryview
Bools: TypeAlias = NDArray[np.bool_]
Bytes: TypeAlias = NDArray[np.uint8]
Int64: TypeAlias = NDArray[np.int64]
Sample: TypeAlias = dict[str, Any]
Shape: TypeAlias = tuple[int, ...]
Span: TypeAlias = tuple[str, int, int]
"""A byte range of a file: the file's name, the first byte, and the number of bytes."""
