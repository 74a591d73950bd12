"""Provide `gather_values`, a Triton kernel that copies values from addresses into a tensor.

No other module imports Triton. With ``TRITON_INTERPRET=1``, the kernel runs on CPU tensors.

Values may begin at any byte, and a device can load a word only from an address that is a multiple
of its size. So the kernel loads the aligned words that a value overlaps, each once, and stores
their bytes. The bus transfers wide, consecutive loads. The byte-wide stores go to the memory of the
device, which is far faster than the bus.

Tested in tests/torch/test_gather_kernel.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import triton
import triton.language as tl

if TYPE_CHECKING:
    import torch

__all__ = ["gather_values"]

MAX_WORDS = 512
"""Maximum number of words of 8 bytes that a program loads at once."""


@triton.jit  # type: ignore[untyped-decorator]
def _copy_value(  # type: ignore[no-untyped-def]
    addresses, output, offset, nbytes, PASSES: tl.constexpr, WORDS: tl.constexpr
):
    """Copy one value: the `nbytes` bytes that are `offset` bytes after an address.

    Program k copies value k to the bytes of `output` from ``k * nbytes`` on. It loads `WORDS` words
    at once, `PASSES` times.
    """
    row = tl.program_id(0).to(tl.int64)
    begin = tl.load(addresses + row) + offset
    shift = begin % 8  # the bytes of the first word that are before the value
    words = (begin - shift).to(tl.pointer_type(tl.uint64))
    target = output + row * nbytes - shift
    within_word = tl.arange(0, 8)
    for k in range(PASSES):
        number = k * WORDS + tl.arange(0, WORDS)
        word = tl.load(words + number, mask=8 * number < nbytes + shift, other=0)
        place = 8 * number[:, None] + within_word[None, :]
        byte = (word[:, None] >> (8 * within_word[None, :]).to(tl.uint64)).to(tl.uint8)
        tl.store(target + place, byte, mask=(place >= shift) & (place < nbytes + shift))


def gather_values(addresses: torch.Tensor, offset: int, output: torch.Tensor) -> None:
    """Copy the value of each row into a tensor.

    Parameters
    ----------
    addresses : Tensor of int64, shape (n,)
        The address of each row, on the device of `output`.
    offset : int
        The first byte of the value within a row.
    output : Tensor of uint8, shape (n, nbytes)
        A contiguous tensor that receives the values.
    """
    rows, nbytes = output.shape
    if not output.numel():
        return
    # A value overlaps the largest number of words if it begins at the last byte of a word.
    overlapped = (nbytes + 14) // 8
    words = min(MAX_WORDS, triton.next_power_of_2(overlapped))
    kernel: Any = _copy_value
    kernel[(rows,)](addresses, output, offset, nbytes, PASSES=-(-overlapped // words), WORDS=words)
