"""The one door to torch.

Nothing else imports torch, and lower modules come here by name, when they are asked for a tensor.
"""

from __future__ import annotations

import torch

from npstream._typing import AnyArray, Int64


def tensor(array: AnyArray) -> torch.Tensor:
    """Return a tensor over an array's memory, or over a copy's if the array is read-only."""
    # Torch knows no read-only tensors: it would warn, and let the write through.
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def nested(values: AnyArray, offsets: Int64) -> torch.Tensor:
    """Return the nested tensor, in jagged layout, of rows ``values[offsets[i]:offsets[i + 1]]``."""
    return torch.nested.nested_tensor_from_jagged(tensor(values), tensor(offsets))
