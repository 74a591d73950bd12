"""The native order: lanes of chunks, shuffled in staggered blocks.

The samples of an epoch lie in lanes (see `npstream.orders.layout`), which the order interleaves:
position p is element ``p // lanes`` of lane ``p % lanes``. Each lane is cut into blocks, whose
samples are permuted (see `npstream.orders.blocks`). First blocks differ in length, so that lanes
turn to their next blocks, and to the chunks that these need, in turn and not all at once.

Lanes depend on the seed alone, not on the epoch: who reads certain lanes needs the same chunks in
every epoch. An order depends on nothing but its arguments, and is part of what can be reproduced:
`VERSION` stands in the state of a run, and tests hold orders to recorded values.
"""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from npstream._typing import AnyArray, Int64
from npstream.orders.blocks import Cache, find, look_up
from npstream.orders.layout import Layout, lay_out, slots_of
from npstream.orders.permutation import SMALL, make_key, out_of_bounds
from npstream.selection import Selection
from npstream.sizes import parse_size

VERSION = 1
"""Names the order that this module computes; it may not change without it."""

LANES = (1, 2, 4, 8, 24, 48, 96, 192, 480, 960)
"""Default numbers of lanes: of each, most numbers of nodes below it are divisors."""

LEAST_BLOCK = 1 << 24
"""Bytes of a block in one lane, at least, where the number of lanes is chosen: four chunks."""

_RUN, _EPOCH = 2, 3
"""Levels of the keys by which chunks are dealt to lanes, and by which an epoch is permuted."""


@dataclass(frozen=True, slots=True)
class Shuffle:
    """Settings of the native order.

    Parameters
    ----------
    block : int, str or None
        Bytes of data that are shuffled together, over all lanes; about what stays in memory or in
        the cache while the order is read. "auto" is a 64th of the data, but at least 1 GiB and at
        most 64 GiB. None shuffles all samples at once.
    lanes : int, optional
        Sequences of chunks that the order interleaves. A node reads just its own chunks if the
        number of nodes divides it. By default 1 if all data fit into a block, else the largest of
        1, 2, 4, 8, 24, 48, 96, 192, 480 and 960 that leaves 16 MiB of the block to each lane.

    Examples
    --------
    >>> Shuffle().resolve(10**12)
    Shuffle(block=15625000000, lanes=480)
    """

    block: int | str | None = "auto"
    lanes: int | None = None

    def __post_init__(self) -> None:
        if self.block not in (None, "auto"):
            if isinstance(self.block, bool) or parse_size(self.block) < 1:
                raise ValueError(f"block={self.block!r}: expected a size, 'auto' or None")
            object.__setattr__(self, "block", parse_size(self.block))
        if self.lanes is not None:
            lanes = _integer("lanes", self.lanes)
            if lanes < 1 or (self.block is None and lanes > 1):
                ...
