"""Datasets and views are cut into chunks as `npstream.orders.chunks` describes."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from npstream.indexing.mask import BLOCK_BITS, Mask
from npstream.indexing.selection import MAX_MASK_AS_POSITIONS, Selection
from npstream.orders.chunks import shard_chunks, view_chunks
from npstream.orders.permutation import Permutation

MIB = 1 << 20

shards = st.lists(
    st.tuples(st.integers(0, 40), st.integers(0, 20 * MIB), st.booleans()), max_size=10
)


def shard_arrays(shards):
    """Return the starts of shards, their bytes, and whether each is one chunk."""
    samples, nbytes, is_chunk = map(np.array, zip(*shards, strict=True)) if shards else ([],) * 3
    starts = np.concatenate([[0], np.cumsum(samples, dtype=np.int64)])
    return starts, np.array(nbytes, np.int64), np.array(is_chunk, bool)


@given(shards)
def test_shards_are_cut_by_rows(shards):
    starts, nbytes, is_chunk = shard_arrays(shards)
    want = [0]
    for first, (samples, size, is_one_chunk) in zip(starts.tolist(), shards, strict=False):
        count = 1 if is_one_chunk else max(1, -(-size // (4 * MIB)))
        count = min(count, samples)
        want += [first + i * samples // count for i in range(1, count + 1)]
    assert shard_chunks(starts, nbytes, is_chunk, 4 * MIB).tolist() == want


@pytest.mark.usefixtures("kernel_mode")
def test_compiled_and_plain_kernels_cut_shards_alike():
    shards = [(7, 11 * MIB, False), (0, 5, False), (9, 30 * MIB, True)]
    starts, nbytes, is_chunk = shard_arrays(shards)
    assert shard_chunks(starts, nbytes, is_chunk, 4 * MIB).tolist() == [0, 2, 4, 7, 16]


# Views. N is large enough for masks that are stored as bits.

N = 3 * MAX_MASK_AS_POSITIONS
CHUNKS = np.unique([0, 5, 6, *range(100, N, 700), N])
MASK = np.random.default_rng(0).random(N) < 0.5


def everything():
    return Selection.all(N)


MONOTONE = {
    "all": everything,
    "slice": lambda: everything().select(slice(50, 9000)),
    "steps": lambda: everything().select(slice(3, None, 1500)),
    "backwards": lambda: everything().select(slice(None, None, -1)),
    "steps back": lambda: everything().select(slice(N - 2, 7, -9)),
    "one": lambda: everything().select(slice(7, 8)),
    "none": lambda: everything().select(slice(0, 0)),
    "mask": lambda: everything().select(MASK),
    "mask of a slice": lambda: everything().select(slice(10, N - 10)).select(MASK[20:]),
    "slice of a mask": lambda: everything().select(MASK).select(slice(30, 9000, 7)),
    "mask backwards": lambda: everything().select(MASK).select(slice(None, None, -1)),
    "few": lambda: everything().select(MASK & (np.arange(N) % 97 == 0)),
    "rising ids": lambda: everything().select([1, 2, 2, 650, 9000]),
    "falling ids": lambda: everything().select([9000, 650, 650, 2]),
    "rising table": lambda: everything().select(np.arange(120).reshape(3, 40)),
}

SCATTERED = {
    "ids": lambda: everything().select(np.random.default_rng(0).integers(0, N, 5000)),
    "slices": lambda: everything().select(np.r_[900:2000, 0:700]),
    "permuted": lambda: everything().permute(Permutation(N, 1)),
    "part of permuted": lambda: everything().permute(Permutation(N, 1)).select(slice(9, 90)),
}


@pytest.mark.usefixtures("kernel_mode")
@pytest.mark.parametrize("view", MONOTONE)
def test_chunks_of_monotonic_views_follow_the_chunks_of_the_dataset(view):
    selection = MONOTONE[view]()
    chunk = np.searchsorted(CHUNKS, selection.ids(), side="right") - 1
    runs = np.flatnonzero(np.diff(chunk, prepend=-1))
    got = view_chunks(CHUNKS, selection)
    assert np.array_equal(np.unique(got), [*runs, selection.size])
    assert (np.diff(got) >= 0).all()


@pytest.mark.parametrize("view", SCATTERED)
def test_chunks_of_unsorted_views_have_one_length(view):
    selection = SCATTERED[view]()
    chunks = view_chunks(CHUNKS, selection)
    length = N // (len(CHUNKS) - 1)
    assert np.array_equal(chunks[:-1], np.arange(0, selection.size, length))
    assert chunks[-1] == selection.size


@given(st.lists(st.integers(0, 3 * BLOCK_BITS - 1), max_size=80), st.data())
def test_ranks_count_the_positions_below(positions, data):
    domain = data.draw(st.integers(max(positions, default=0) + 1, 3 * BLOCK_BITS))
    mask = Mask.from_positions([np.array(positions, np.int64)], domain)
    limits = np.array(data.draw(st.lists(st.integers(0, domain), max_size=20)), np.int64)
    want = np.searchsorted(np.unique(positions), limits)
    assert np.array_equal(mask.rank(limits), want)


@pytest.mark.usefixtures("kernel_mode")
def test_compiled_and_plain_kernels_count_ranks_alike():
    ends = np.arange(N + 1)
    assert np.array_equal(Mask.from_bools(MASK).rank(ends), np.append(0, np.cumsum(MASK)))
