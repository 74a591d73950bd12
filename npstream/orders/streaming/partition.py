"""Provide Streaming's partition of an epoch's samples among nodes and ranks, without arrays.

Samples are cut into equal lanes ("canonical nodes"). The *sequence* takes one sample of each lane
in turn. Nodes take samples of the sequence in turn, and the ranks of a node take its samples in
turn. The batches with the same number, one of each rank, form a global batch. Its samples are
consecutive in the sequence. DataLoader workers take the batches of their rank in turn.

A *slot* numbers a sample of a rank's batch, over all batches, nodes and ranks of an epoch:
``((batch * nodes + node) * ranks + rank) * batch_size + offset``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from npstream._core.arguments import quantity
from npstream._core.jit import kernel
from npstream._core.typing import Int64

PARTITION_ALGORITHMS = ("orig", "relaxed")


@dataclass(frozen=True, slots=True)
class World:
    """The processes of a run: the number of nodes, and of ranks on each node.

    >>> World(2, 8).merge_replicas(2)
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
        """Number of ranks on all nodes."""
        return self.nodes * self.ranks_per_node

    def node_and_rank(self, rank: int) -> tuple[int, int]:
        """Return the node of a rank, and the rank's number on this node."""
        return divmod(rank, self.ranks_per_node)

    def merge_replicas(self, replication: int | None) -> World:
        """Return the world in which each `replication` consecutive ranks count as one."""
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
    """Return the first sample of each of `lanes` lanes, then the number of samples."""
    return np.arange(lanes + 1) * size // lanes


@dataclass(frozen=True, slots=True)
class StreamingPartition:
    """The sample in each slot, by Streaming's partition "orig".

    Parameters
    ----------
    size : int
        Samples in the epoch.
    lanes : int
        A multiple or a divisor of the number of nodes.
    world : World
    batch_size : int
        Samples of each rank in a batch.
    drop_first : int
        Samples at the beginning of the epoch that are already read.

    Examples
    --------
    >>> part = StreamingPartition(size=10, lanes=2, world=World(2, 1), batch_size=2)
    >>> part.positions(np.arange(12)).reshape(-1, 2, 2)  # batch, rank, offset
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
        if not self._is_cyclic and self._filler and self._filler_source < 0:
            raise ValueError(
                f"{quantity(self.size, 'sample')} in num_canonical_nodes={self.lanes} lanes are "
                f"too few for {quantity(self.world.nodes, 'node')}: give "
                f"num_canonical_nodes={self.world.nodes}"
            )

    @property
    def samples(self) -> int:
        """Number of samples of each rank; some are repeated, so that all ranks have this number."""
        return -(-self._per_node // self.world.ranks_per_node)

    @property
    def batches(self) -> int:
        """Number of batches of each rank."""
        return -(-self.samples // self.batch_size)

    def positions(self, slots: Int64) -> Int64:
        """Return the positions in the epoch of the samples in slots, or -1 for empty slots."""
        positions = np.empty_like(slots)
        _positions.for_size(slots.size)(
            slots,
            positions,
            lane_bounds(self.size, self.lanes),
            (self.world.nodes, self.world.ranks_per_node, self.batch_size),
            (self.samples, self._per_node, self._dropped),
            (self._rows, self._filler, self._filler_source, self._is_cyclic),
        )
        return positions

    @property
    def length(self) -> int:
        """Number of samples in the sequence, with those that are repeated to make lanes equal."""
        return self.lanes * (self._rows + self._filler)

    @property
    def _per_node(self) -> int:
        """Number of samples of each node."""
        return max(self.length - self._dropped, 0) // self.world.nodes

    @property
    def _dropped(self) -> int:
        """`drop_first`, rounded down so that all nodes drop the same number of samples."""
        return self.drop_first - self.drop_first % self.world.nodes

    @property
    def _rows(self) -> int:
        """Number of samples in the longest lane."""
        return -(-self.size // self.lanes)

    @property
    def _nodes_per_lane(self) -> int:
        """Number of nodes that share a lane; 0 if a node has several lanes."""
        return self.world.nodes // self.lanes

    @property
    def _filler(self) -> int:
        """Rows that are added so that all nodes that share a lane get the same number."""
        return -self._rows % self._nodes_per_lane if self._nodes_per_lane else 0

    @property
    def _filler_source(self) -> int:
        """The first of the consecutive rows that the added rows repeat."""
        return self._rows - self._filler - self._nodes_per_lane + 1

    @property
    def _is_cyclic(self) -> bool:
        """Whether there are too few samples for the lanes; then lanes repeat the whole epoch."""
        return self.size < self.lanes or (self.size == self.lanes and self.lanes < self.world.nodes)


def max_sample_in_epoch(size: int, world: World) -> int:
    """Return the maximum `sample_in_epoch` from which Streaming resumes."""
    return size + world.ranks - size % world.ranks


def is_relaxed(algorithm: str, lanes: int, world: World, initial_nodes: int | None) -> bool:
    """Return True if batches are made for `initial_nodes` nodes, and divided among other nodes."""
    does_not_fit = lanes % world.nodes and world.nodes % lanes
    return algorithm == "relaxed" and initial_nodes is not None and bool(does_not_fit)


def make_partition(
    algorithm: str,
    size: int,
    lanes: int,
    world: World,
    batch_size: int,
    drop_first: int = 0,
    initial_nodes: int | None = None,
) -> StreamingPartition:
    """Return the partition of an epoch of `size` samples among the ranks of `world`.

    "relaxed" lets a run resume on a number of nodes that does not fit its lanes. Then the partition
    is made for `initial_nodes` nodes, with another batch size of a rank. The size of a global
    batch, and so its range of slots, stays the same as in `world`.

    Raises
    ------
    ValueError
        If `algorithm` is unknown, the numbers do not fit each other, or `drop_first` is too large.
    """
    if algorithm not in PARTITION_ALGORITHMS:
        raise ValueError(
            f"partition_algo={algorithm!r}: expected one of {', '.join(PARTITION_ALGORITHMS)}"
        )
    if initial_nodes is not None and is_relaxed(algorithm, lanes, world, initial_nodes):
        batch_size, remainder = divmod(world.nodes * batch_size, initial_nodes)
        if remainder:
            raise ValueError(
                f"the global batch of {quantity(world.nodes, 'node')} cannot be divided among "
                f"initial_physical_nodes={initial_nodes} nodes: use another batch_size"
            )
        world = World(initial_nodes, world.ranks_per_node)
    partition = StreamingPartition(size, lanes, world, batch_size, drop_first)
    if not 0 <= drop_first <= max(max_sample_in_epoch(size, world), partition.length):
        raise ValueError(
            f"sample_in_epoch={drop_first}: expected a number of samples in an epoch of "
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
    """Write the positions of the samples in slots, or -1; see `StreamingPartition.positions`."""
    nodes, ranks, batch_size = world
    samples, per_node, dropped = counts
    rows, filler, filler_source, is_cyclic = layout
    lanes = bounds.size - 1
    repeated = -per_node % ranks
    # A rank's next sample is `ranks * nodes` samples later in the sequence: `row_step` rows and
    # `lane_step` lanes.
    row_step = ranks * nodes // lanes
    lane_step = ranks * nodes - row_step * lanes
    # `fast_steps` is the number of next slots whose samples are found without divisions.
    row, lane, fast_steps = 0, 0, 0
    for k in range(slots.size):
        if fast_steps > 0 and slots[k] == slots[k - 1] + 1:
            fast_steps -= 1
            row += row_step
            lane += lane_step
            if lane >= lanes:
                lane -= lanes
                row += 1
            positions[k] = min(bounds[lane] + row, bounds[lane + 1] - 1)
            continue
        fast_steps = 0
        rank_batch = slots[k] // batch_size
        offset = slots[k] - rank_batch * batch_size
        batch = rank_batch // (ranks * nodes)
        global_rank = rank_batch - batch * (ranks * nodes)
        node = global_rank // ranks
        sample = batch * batch_size + offset
        if sample >= samples:
            positions[k] = -1
            continue
        # Number of the sample among those of its node.
        node_index = sample * ranks + global_rank - node * ranks
        # Number of the rank's next samples in the same batch that are not repeated ones.
        next_samples = min(
            batch_size - 1 - offset, samples - 1 - sample, (per_node - 1 - node_index) // ranks
        )
        # The last `repeated` samples of a node repeat earlier ones, so that all its ranks have the
        # same number. As in Streaming, these are `ranks + repeated - 1` samples earlier, or, if the
        # node has too few samples, its first ones.
        if node_index >= per_node:
            if ranks + repeated <= per_node + 1:
                node_index += 1 - ranks - repeated
            else:
                node_index %= per_node
        sequence_index = node_index * nodes + node + dropped
        row = sequence_index // lanes
        lane = sequence_index - row * lanes
        if is_cyclic:
            positions[k] = (lane * (rows + filler) + row) % bounds[lanes]
            continue
        # Rows that fill up a shared lane repeat earlier rows. If a lane is one row shorter than
        # others, its last row is repeated.
        if row >= rows:
            row += filler_source - rows
        elif next_samples > 0:
            last_fast_index = rows * lanes - 1
            fast_steps = min(next_samples, (last_fast_index - sequence_index) // (ranks * nodes))
        positions[k] = min(bounds[lane] + row, bounds[lane + 1] - 1)
