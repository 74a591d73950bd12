"""How Streaming deals an epoch's samples out to nodes and ranks: arithmetic, no arrays.

Samples are cut into as many equal lanes ("canonical nodes") as the run was given, and a sequence
takes one of each lane in turn. Nodes take turns at the sequence, and ranks at what their node
took. All ranks' batches with the same number, the global batch, are one run of the sequence, and
loader workers take turns at the batches of their rank.

A *slot* is a place in a batch of a rank. Slots are numbered batch after batch, through nodes,
ranks and places in the batch: ``((batch * nodes + node) * ranks + rank) * batch_size + place``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from npstream._core.arguments import quantity
from npstream._core.jit import kernel
from npstream._core.typing import Int64

PARTITIONS = ("orig", "relaxed")


@dataclass(frozen=True, slots=True)
class World:
    """The processes of a run: nodes, and ranks of each.

    >>> World(2, 8).replicated(2)
    World(nodes=1, ranks_per_node=8)
    """

    nodes: int
    ranks_per_node: int

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if (number := getattr(self, name)) < 1:
                raise ValueError(f"{name}={number}: expected at least 1")

    @property
    def ranks(self) -> int:
        """Ranks of all nodes."""
        return self.nodes * self.ranks_per_node

    def place(self, rank: int) -> tuple[int, int]:
        """Return the node of a rank, and its number there."""
        return divmod(rank, self.ranks_per_node)

    def replicated(self, replication: int | None) -> World:
        """Return the world in which so many successive ranks count as one."""
        if replication is None:
            return self
        if replication < 1:
            raise ValueError(f"replication={replication}: expected at least 1")
        if self.ranks % replication:
            raise ValueError(
                f"replication={replication} does not divide {quantity(self.ranks, 'rank')}"
            )
        ranks = self.ranks // replication
        if ranks % self.ranks_per_node:
            return World(1, ranks)
        return World(ranks // self.ranks_per_node, self.ranks_per_node)


def lane_bounds(size: int, lanes: int) -> Int64:
    """Return where each of the lanes begins among so many samples, and where the last one ends."""
    return np.arange(lanes + 1) * size // lanes


@dataclass(frozen=True, slots=True)
class StreamingPartition:
    """Which sample stands in each slot: Streaming's partition "orig".

    Parameters
    ----------
    size : int
        Samples in the epoch.
    lanes : int
        Of which the number of nodes is a multiple or a divisor.
    world : World
    batch_size : int
        Samples of each rank in a batch.
    drop_first : int
        Samples at the beginning that were read before.

    Examples
    --------
    >>> part = StreamingPartition(size=10, lanes=2, world=World(2, 1), batch_size=2)
    >>> part.positions(np.arange(12)).reshape(-1, 2, 2)  # batch, rank, place
    array([[[ 0,  1],
            [ 5,  6]],
           [[ 2,  3],
            [ 7,  8]],
           [[ 4, -1],
            [ 9, -1]]])
    """

    size: int
    lanes: int
    world: World
    batch_size: int
    drop_first: int = 0

    def __post_init__(self) -> None:
        if self.lanes % self.world.nodes and self.world.nodes % self.lanes:
            raise ValueError(
                f"num_canonical_nodes={self.lanes} and {quantity(self.world.nodes, 'node')}: one "
                "must be a multiple of the other"
            )
        if not self._cycles and self._filler and self._filler_from < 0:
            raise ValueError(
                f"{quantity(self.size, 'sample')} in num_canonical_nodes={self.lanes} lanes are "
                f"too few for {quantity(self.world.nodes, 'node')}: use as many lanes as nodes"
            )

    @property
    def samples(self) -> int:
        """Samples that each rank reads, some of them repeated to make these equal."""
        return -(-self._per_node // self.world.ranks_per_node)

    @property
    def batches(self) -> int:
        """Batches of each rank."""
        return -(-self.samples // self.batch_size)

    def positions(self, slots: Int64) -> Int64:
        """Return the positions in the epoch of what stands in slots, or -1."""
        positions = np.empty_like(slots)
        _positions.for_size(slots.size)(
            slots,
            positions,
            lane_bounds(self.size, self.lanes),
            (self.world.nodes, self.world.ranks_per_node, self.batch_size),
            (self.samples, self._per_node, self._dropped),
            (self._rows, self._filler, self._filler_from, self._cycles),
        )
        return positions

    @property
    def length(self) -> int:
        """Samples in the sequence, those included that come twice to make lanes equal."""
        return self.lanes * (self._rows + self._filler)

    @property
    def _per_node(self) -> int:
        """Samples that each node takes."""
        return max(self.length - self._dropped, 0) // self.world.nodes

    @property
    def _dropped(self) -> int:
        return self.drop_first - self.drop_first % self.world.nodes

    @property
    def _rows(self) -> int:
        """Samples in the longest lane."""
        return -(-self.size // self.lanes)

    @property
    def _sharing(self) -> int:
        """Nodes that share a lane."""
        return self.world.nodes // self.lanes

    @property
    def _filler(self) -> int:
        """Rows that are added so that the nodes that share a lane get equally many."""
        return -self._rows % self._sharing if self._sharing else 0

    @property
    def _filler_from(self) -> int:
        return self._rows - self._filler - self._sharing + 1

    @property
    def _cycles(self) -> bool:
        """Whether samples are too few for the lanes, and just follow one another."""
        return self.size < self.lanes or (self.size == self.lanes and self.lanes < self.world.nodes)


def most_read(size: int, world: World) -> int:
    """Return how many samples of an epoch can have been read, where Streaming resumes."""
    return size + world.ranks - size % world.ranks


def is_relaxed(algorithm: str, lanes: int, world: World, initial_nodes: int | None) -> bool:
    """Tell whether batches are those of another number of nodes, cut into equal parts."""
    unequal = lanes % world.nodes and world.nodes % lanes
    return algorithm == "relaxed" and initial_nodes is not None and bool(unequal)


def make_partition(
    algorithm: str,
    size: int,
    lanes: int,
    world: World,
    batch_size: int,
    drop_first: int = 0,
    initial_nodes: int | None = None,
) -> StreamingPartition:
    """Return the partition of that name; its slots are numbered the same in `world`.

    "relaxed" lets a run go on with a number of nodes that does not go with its lanes: it is
    partitioned for the nodes that it started with, and that many ranks have larger batches.
    """
    if algorithm not in PARTITIONS:
        raise ValueError(f"partition_algo={algorithm!r}: expected one of {', '.join(PARTITIONS)}")
    if initial_nodes is not None and is_relaxed(algorithm, lanes, world, initial_nodes):
        batch_size, rest = divmod(world.nodes * batch_size, initial_nodes)
        if rest:
            raise ValueError(
                f"the global batch of {quantity(world.nodes, 'node')} cannot be shared by the "
                f"initial_physical_nodes={initial_nodes}: use another batch_size"
            )
        world = World(initial_nodes, world.ranks_per_node)
    partition = StreamingPartition(size, lanes, world, batch_size, drop_first)
    if not 0 <= drop_first <= max(most_read(size, world), partition.length):
        raise ValueError(
            f"sample_in_epoch={drop_first}: expected what was read of an epoch of "
            f"{quantity(size, 'sample')}"
        )
    return partition


@kernel
def _positions(
    slots: Int64,
    positions: Int64,
    bounds: Int64,
    world: tuple[int, int, int],
    counts: tuple[int, int, int],
    layout: tuple[int, int, int, bool],
) -> None:
    """Write the positions of what stands in slots, or -1."""
    nodes, ranks, batch_size = world
    samples, per_node, dropped = counts
    rows, filler, filler_from, cycles = layout
    lanes = bounds.size - 1
    missing = -per_node % ranks
    more_rows = ranks * nodes // lanes
    more_lanes = ranks * nodes - more_rows * lanes
    row, lane, left = 0, 0, 0
    for k in range(slots.size):
        if left > 0 and slots[k] == slots[k - 1] + 1:
            # The rank's next sample, without the divisions.
            left -= 1
            row += more_rows
            lane += more_lanes
            if lane >= lanes:
                lane -= lanes
                row += 1
            positions[k] = min(bounds[lane] + row, bounds[lane + 1] - 1)
            continue
        left = 0
        rest = slots[k] // batch_size
        place = slots[k] - rest * batch_size
        batch = rest // (ranks * nodes)
        rest -= batch * (ranks * nodes)
        node = rest // ranks
        sample = batch * batch_size + place
        if sample >= samples:
            positions[k] = -1
            continue
        # The samples of the rank's node, where some come twice if ranks would differ.
        nth = sample * ranks + rest - node * ranks
        following = min(batch_size - 1 - place, samples - 1 - sample, (per_node - 1 - nth) // ranks)
        if nth >= per_node:
            nth = nth - ranks - missing + 1 if ranks + missing <= per_node + 1 else nth % per_node
        # The sequence that nodes take turns at.
        nth = nth * nodes + node + dropped
        row = nth // lanes
        lane = nth - row * lanes
        if cycles:
            positions[k] = (lane * (rows + filler) + row) % bounds[lanes]
            continue
        # Rows that fill up lanes shared by nodes are earlier ones. Lanes may differ by a sample.
        if row >= rows:
            row += filler_from - rows
        elif following > 0:
            left = min(following, (rows * lanes - 1 - nth) // (ranks * nodes))
        positions[k] = min(bounds[lane] + row, bounds[lane + 1] - 1)
