"""Memory of decoded images is used again once no array needs it."""

from __future__ import annotations

import gc

import numpy as np
import pytest

import npstream
from npstream._core.memory import address_of
from npstream.reading.images.buffers import BufferPool

BYTE = np.dtype(np.uint8)
SIZE = 3 << 20


def test_memory_is_used_again_after_the_last_view():
    pool = BufferPool()
    array = pool.empty(SIZE, BYTE)
    view, address = array.reshape(3, 1 << 20)[1:, ::2], address_of(array)
    del array
    gc.collect()
    other = pool.empty(SIZE, BYTE)
    assert not np.shares_memory(view, other)
    del view
    gc.collect()
    assert address_of(pool.empty(SIZE, BYTE)) == address


def test_a_smaller_array_fits_and_a_much_smaller_one_does_not():
    pool = BufferPool()
    address = address_of(pool.empty(SIZE, BYTE))
    smaller = pool.empty(SIZE * 3 // 16, np.dtype(np.float32))
    assert smaller.dtype == np.float32
    assert smaller.nbytes < SIZE
    assert address_of(smaller) == address
    smaller[:] = 1
    del smaller
    half = pool.empty(SIZE // 3, BYTE)
    assert half.base is not None
    assert half.nbytes == SIZE // 3


def test_tensors_keep_the_memory(torch):
    pool = BufferPool()
    tensor = torch.from_numpy(pool.empty(SIZE, BYTE))
    tensor[:] = 7
    pool.empty(SIZE, BYTE)[:] = 0
    assert tensor.min() == 7


def test_a_closed_pool_keeps_no_memory():
    pool = BufferPool()
    array = pool.empty(SIZE, BYTE)
    pool.close()
    del array
    assert not pool._free
    array = pool.empty(SIZE, BYTE)
    array[:] = 1
    del array
    assert not pool._free


@pytest.fixture
def noise(tmp_path):
    """Images of 48 KB, of which each has another value."""
    Image = pytest.importorskip("PIL.Image")
    samples = ({"image": Image.new("L", (240, 200), k)} for k in range(200))
    npstream.write(tmp_path / "ds", samples, columns={"image": "png"})
    return npstream.open(tmp_path / "ds")


def test_batches_that_are_kept_do_not_change(noise):
    # 32 images of 48,000 bytes: every batch has memory of the pool.
    kept = []
    for step, batch in enumerate(noise.iter(0, 1, batch_size=32, decode={"image": {"mode": "L"}})):
        if step % 2 == 0:
            kept.append(batch)
        for old in kept:
            assert (old["image"] == old.ids.reshape(-1, 1, 1, 1)).all()
    assert len(kept) == 4


def test_a_loop_uses_few_buffers(noise):
    options = {"image": {"mode": "L"}}
    addresses = [
        address_of(batch["image"]) for batch in noise.iter(0, 1, batch_size=32, decode=options)
    ]
    assert len(addresses) == 7
    assert len(set(addresses)) <= 3
