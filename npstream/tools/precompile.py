"""Ahead-of-time compilation of all kernels.

Tested in tests/test_main.py.
"""

from __future__ import annotations

import os
from itertools import product
from tempfile import TemporaryDirectory

import numpy as np

from npstream._core import jit as _jit
from npstream._core.spans import join_columns
from npstream.dataset.opening import open_dataset
from npstream.formats.scan import find_columns
from npstream.formats.sketches import sort_keys
from npstream.formats.statistics import sum_integers, sum_small
from npstream.indexing.selection import Selection
from npstream.orders.order import full_order
from npstream.orders.permutation import Permutation
from npstream.orders.streaming.order import StreamingOrder
from npstream.orders.streaming.partition import World
from npstream.orders.streaming.shuffle import SHUFFLE_ALGORITHMS
from npstream.reading.images.resize import resize_pixels
from npstream.writing.writer import write


def precompile() -> None:
    """Compile all kernels now, into Numba's cache.

    After this, the first large read of a process takes about one second instead of several. Numba's
    cache is the directory in ``NUMBA_CACHE_DIR`` if that is set. Otherwise it is in the directory
    of npstream if that is writable, or else in the user's cache directory.

    Examples
    --------
    >>> import npstream
    >>> npstream.precompile()
    """
    precompile_reads()
    # With this length, the order is not computed as a table, and the mask is stored as bits. Both
    # have kernels of their own.
    large = Selection.all(1 << 17)
    order = full_order(len(large), 0)
    order.find(order[:])
    permutation = Permutation(len(large), 0)
    permutation.find(permutation.at(np.arange(2)))
    masked = large.select(np.arange(len(large)) % 2 == 0)
    assert isinstance(masked, Selection)
    masked.at(np.arange(len(masked)))
    join_columns(0, np.zeros((1, 3), np.int64), 0)
    _precompile_scans()
    _precompile_streaming()
    for width in (1, 9):  # each has its own kernel
        image, out = np.zeros((1, width, 4), np.uint8), np.zeros((1, 1, 3), np.uint8)
        resize_pixels(image, (0, 0, width, 1), out)


def precompile_reads() -> None:
    """Compile the kernels of loads and of npstream's own orders, which most programs use."""
    _jit.always_compile()
    rows = [np.zeros((1, 2), np.int32) for _ in range(4)]
    data = {"fixed": np.arange(4), "text": list("abcd"), "array": rows}
    columns = {"fixed": "int64", "text": "str", "array": "ndarray:int32"}
    # Numba compiles a kernel for the argument types of its first call.
    with TemporaryDirectory() as directory:
        path = os.path.join(directory, "data")
        write(path, data, columns=columns)
        with open_dataset(path) as ds:
            ds.shuffle(0).load()
            _ = ds["text"] == "a"


def _precompile_scans() -> None:
    """Compile the kernels that scan a shard while it is written."""
    # Only the types of the arguments matter, not their values.
    empty, output = np.zeros((0, 0), np.int64), np.zeros(5, np.int64)
    find_columns(0, output[:1], np.zeros((0, 3), np.int64), 0, empty, empty)
    sum_integers(np.zeros(1, np.int64), output)
    for name in ("uint32", "uint64"):
        sort_keys(np.zeros(1, name), np.zeros(1, name))
    for dtype in (np.uint8, np.int8, np.uint16, np.int16):
        sum_small(np.zeros(1, dtype), 0, 0, 1, 1, output)


def _precompile_streaming() -> None:
    """Compile the kernels of Streaming's orders: compute every kind of order once.

    Each kind has an epoch of the 64 samples, and an epoch of 90 samples, which repeats some.
    """
    world = World(1, 1)
    for algorithm, shuffle in (*product(SHUFFLE_ALGORITHMS, [True]), ("naive", False)):
        for epoch_size in (None, 90):
            order = StreamingOrder(
                shards=[np.full(8, 8)], batch_size=4, epoch_size=epoch_size, shuffle=shuffle,
                shuffle_algo=algorithm, shuffle_block_size=8, num_canonical_nodes=2,
            )  # fmt: skip
            epoch = order.epoch(0, world)
            epoch.ids(0, 0, range(epoch.batches))
