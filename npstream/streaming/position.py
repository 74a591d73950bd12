"""Provide `RunPosition`: which epoch a run reads, and from which sample on.

Tested in tests/streaming/test_states.py.
"""

from __future__ import annotations

import os
from typing import Any

from npstream._core.fork import is_spawning
from npstream.iteration.counter import EpochCounter, EpochCursor
from npstream.iteration.ranks import begin_loop, detect_ranks
from npstream.orders.streaming.partition import World
from npstream.orders.streaming.settings import RUN_BYTES


class RunPosition:
    """The epoch of the current loop and that of the next one, shared with DataLoader workers."""

    def __init__(self) -> None:
        self._counter = EpochCounter(0, RUN_BYTES)
        self._counter.share()  # workers may start at any time
        self._has_begun = False

    def __getstate__(self) -> dict[str, Any]:
        # Only a process that is being spawned continues the loop. Any other copy begins its first
        # loop at the next epoch.
        return {**self.__dict__, "_has_begun": self._has_begun and is_spawning()}

    def begin(self) -> EpochCursor:
        """Begin a loop, in this process or in a worker; return where it begins."""
        worker, workers = begin_loop()
        self._has_begun = True
        return self._counter.advance_worker(worker, workers) if workers else self._counter.advance()

    def move_to(self, cursor: EpochCursor) -> None:
        """Let the next loop begin at `cursor`."""
        self._has_begun = False
        self._counter.set(cursor, pinned=False)

    @property
    def next_cursor(self) -> EpochCursor:
        """Where the next loop begins."""
        return self._counter.next_cursor()

    @property
    def current_cursor(self) -> EpochCursor:
        """Where the current loop began; epoch -1 before the first loop."""
        if self._counter.worker_iterations:
            return self._counter.last_worker_cursor()
        if self._has_begun:
            return self._counter.current_cursor()
        cursor = self._counter.next_cursor()
        if cursor.context:  # a state was loaded
            return cursor
        return cursor._replace(epoch=cursor.epoch - 1, position=0)


def detect_world(replication: int | None) -> tuple[World, int]:
    """Return the ranks of this run and the rank of this process; replicas count as one rank.

    As in Streaming, there is one rank on each node unless ``LOCAL_WORLD_SIZE`` is set.
    """
    per_node = None if "LOCAL_WORLD_SIZE" in os.environ else 1
    ranks = detect_ranks(per_node)
    world = World(ranks.world // ranks.per_node, ranks.per_node).merge_replicas(replication)
    return world, ranks.rank // (replication or 1)
