"""How Streaming deals an epoch's samples out to nodes, ranks and workers: arithmetic, no arrays.

Samples are cut into as many equal lanes ("canonical nodes") as the run was given, and a sequence
takes one of each lane in turn. Nodes take turns at the sequence, and ranks at what their node
took. Batch t of each rank goes to worker ``t % workers``. So all batches t together, the global
batch, are one run of the sequence.

A *slot* is a place in a batch of a rank. Slots are numbered batch after batch, through nodes,
ranks and places in the batch: slot ``((t * nodes + node) * ranks + rank) * batch_size + place``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from npstream._typing import Int64

ALGORITHMS = ("orig", "relaxed")


@dataclass(frozen=True, slots=True)
class World:
    """The processes of a run: nodes, ranks of each, and loader workers of each rank.

    >>> World(2, 8, 4).replicated(2)
    World(nodes=1, ranks_per_node=8, workers=4)
    """

    nodes: int
    ranks_per_node: int
    workers: int = 1

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if (number := getattr(self, name)) < 1:
                raise ValueError(f"{name}={number}: expected at least 1")

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node

    def replicated(self, replication: int | None) -> World:
        """Return the world in which so many successive ranks count as one."""
        if replication is None:
            return self
        if replication < 1:
            raise ValueError(f"replication={replication}: expected at least 1")
        if self.ranks % replication:
            raise ValueError(f"replication={replication} does not divide {self.ranks} ranks")
        ranks = self.ranks // replication
        if ranks % self.ranks_per_node:
            return World(1, ranks, self.workers)
        return World(ranks // self.ranks_per_node, self.ranks_per_node, self.workers)


@dataclass(frozen=True, slots=True)
class Partition:
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
    >>> part = Partition(size=10, lanes=2, world=World(2, 1), batch_size=2)
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
                f"num_canonical_nodes={self.lanes} and {self.world.nodes} nodes: one must be a "
                "multiple of the other"
            )
        if not self._cycles and self._filler and self._filler_from < 0:
            raise ValueError(
                f"{self.size} samples in num_canonical_nodes={self.lanes} lanes are too few for "
                f"{self.world.nodes} nodes: use as many lanes as nodes"
            )

    @property
    def samples(self) -> int:
        """Samples that each rank reads, some of them repeated to make these equal."""
        return -(-self._per_node // self.world.ranks_per_node)

    @property
    def batches(self) -> int:
        """Batches of each rank, with empty ones where some workers have one less."""
        workers = self.world.workers
        return -(-self.samples // (self.batch_size * workers)) * workers

    def positions(self, slots: Int64) -> Int64:
        """Return the positions in the epoch of what stands in slots, or -1."""
        nodes, ranks = self.world.nodes, self.world.ranks_per_node
        rest, place = np.divmod(slots, self.batch_size)
        rest, rank = np.divmod(rest, ranks)
        batch, node = np.divmod(rest, nodes)
        sample = batch * self.batch_size + place
        positions = self._positions(self._repeated(sample * ranks + rank) * nodes + node)
        return np.where(sample < self.samples, positions, -1)

    def _repeated(self, nth: Int64) -> Int64:
        """Return which sample of a node stands in for those beyond its last."""
        ranks, own = self.world.ranks_per_node, self._per_node
        short = -own % ranks
        if not short:
            return nth
        again = nth - ranks - short + 1 if ranks + short - 1 <= own else nth % max(own, 1)
        return np.where(nth < own, nth, again)

    def _positions(self, nth: Int64) -> Int64:
        """Return the positions of what the sequence has after those dropped."""
        row, lane = np.divmod(nth + self._dropped, self.lanes)
        if self._cycles:
            return (lane * (self._rows + self._filler) + row) % self.size
        # Where lanes are cut to be shared by nodes, earlier rows are repeated to fill them up.
        row = np.where(row < self._rows, row, row - self._rows + self._filler_from)
        start, stop = (lane + np.arange(2)[:, None]) * self.size // self.lanes
        return start + np.minimum(row, stop - start - 1)

    @property
    def _per_node(self) -> int:
        """Samples that each node takes."""
        left = self.lanes * (self._rows + self._filler) - self._dropped
        return max(left, 0) // self.world.nodes

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


def make_partition(
    algorithm: str,
    size: int,
    lanes: int,
    world: World,
    batch_size: int,
    drop_first: int = 0,
    initial_nodes: int | None = None,
) -> Partition:
    """Return the partition of that name; its slots are numbered the same in `world`.

    "relaxed" lets a run go on with a number of nodes that does not go with its lanes: it is
    partitioned for the nodes that it started with, and that many ranks have larger batches.
    """
    if algorithm not in ALGORITHMS:
        raise ValueError(f"partition_algo={algorithm!r}: expected one of {', '.join(ALGORITHMS)}")
    if drop_first > size + world.ranks - size % world.ranks:
        raise ValueError(
            f"sample_in_epoch={drop_first}: so many samples were read, and the epoch has {size}"
        )
    unequal = lanes % world.nodes and world.nodes % lanes
    if algorithm == "relaxed" and initial_nodes is not None and unequal:
        batch_size, rest = divmod(world.nodes * batch_size, initial_nodes)
        if rest:
            raise ValueError(
                f"the global batch of {world.nodes} nodes cannot be shared by the "
                f"initial_physical_nodes={initial_nodes}: use another batch_size"
            )
        world = World(initial_nodes, world.ranks_per_node, world.workers)
    return Partition(size, lanes, world, batch_size, drop_first)
