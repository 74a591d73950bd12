"""Provide `World`: the nodes, ranks and workers of a run.

Tested in tests/streaming/test_util.py.
"""

from __future__ import annotations

from typing import Any

from npstream.iteration.ranks import this_worker
from npstream.streaming.position import detect_world

__all__ = ["World"]


class World:
    """The nodes, ranks and workers of a run, and the place of this process among them.

    An attribute such as `rank_of_node` is the number of this process's rank among those of its
    node. All numbers start at 0.

    Parameters
    ----------
    num_nodes, ranks_per_node, workers_per_rank : int
        The numbers of nodes, of ranks on each node, and of DataLoader workers of each rank.
    worker : int
        The number of this worker among those of all ranks.

    Examples
    --------
    >>> world = World(num_nodes=2, ranks_per_node=8, workers_per_rank=4, worker=37)
    >>> world.node, world.rank, world.rank_of_node, world.worker_of_rank, world.num_ranks
    (1, 9, 1, 1, 16)
    """

    def __init__(
        self, num_nodes: int, ranks_per_node: int, workers_per_rank: int, worker: int
    ) -> None:
        workers_per_node = ranks_per_node * workers_per_rank
        self.num_nodes, self.is_multinode = num_nodes, num_nodes > 1
        self.node, self.worker_of_node = divmod(worker, workers_per_node)
        self.rank, self.worker_of_rank = divmod(worker, workers_per_rank)
        self.num_ranks, self.ranks_per_node = num_nodes * ranks_per_node, ranks_per_node
        self.rank_of_node = self.rank % ranks_per_node
        self.worker, self.num_workers = worker, num_nodes * workers_per_node
        self.workers_per_node, self.workers_per_rank = workers_per_node, workers_per_rank
        self.is_leader, self.is_local_leader = worker == 0, self.worker_of_node == 0

    @classmethod
    def detect(cls) -> World:
        """Return the world of this process.

        Returns
        -------
        World

        Examples
        --------
        >>> World.detect().num_ranks
        1
        """
        world, rank = detect_world(None)
        worker, workers = this_worker()
        workers = max(workers, 1)  # a process without DataLoader workers counts as one worker
        return cls(world.nodes, world.ranks_per_node, workers, rank * workers + worker)

    def replicate(self, replication: int) -> World:
        """Return a world in which each `replication` consecutive ranks count as one.

        Parameters
        ----------
        replication : int
            A number that divides the number of ranks.

        Returns
        -------
        World

        Raises
        ------
        ValueError
            If `replication` does not divide the number of ranks.

        Examples
        --------
        >>> World(2, 8, 1, 9).replicate(2).rank
        4
        """
        from npstream.orders.streaming.partition import World as PartitionWorld

        world = PartitionWorld(self.num_nodes, self.ranks_per_node).merge_replicas(replication)
        rank = self.rank // replication
        worker = rank * self.workers_per_rank + self.worker_of_rank
        return World(world.nodes, world.ranks_per_node, self.workers_per_rank, worker)

    def to_json(self) -> dict[str, Any]:
        """Return the attributes by name.

        Returns
        -------
        dict

        Examples
        --------
        >>> World(1, 2, 1, 1).to_json()["rank"]
        1
        """
        return dict(vars(self))
