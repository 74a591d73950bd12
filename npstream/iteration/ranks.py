"""Provide the rank of this process and the number of ranks, as given or as detected.

Tested in tests/iteration/test_iteration.py.
"""

from __future__ import annotations

import os
import sys
from typing import Any, NamedTuple

from npstream._core.arguments import integer
from npstream._core.optional import import_npstream_torch
from npstream.reading.images.threads import thread_count

_LAUNCHERS = [
    ("SLURM_PROCID", "SLURM_NTASKS"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
]
"""Environment variables for rank and number of ranks of launchers other than torchrun."""


class Ranks(NamedTuple):
    """The rank of a process, the number of ranks, and the number of ranks on each node."""

    rank: int
    world: int
    per_node: int

    def merge_replicas(self, replication: int) -> Ranks:
        """Return ranks in which each `replication` consecutive ranks count as one."""
        if self.world % replication:
            raise ValueError(f"replication={replication} does not divide world={self.world}")
        per_node = max(1, self.per_node // replication)
        if self.per_node % replication and replication % self.per_node:
            raise ValueError(
                f"replication={replication} neither divides ranks_per_node={self.per_node} nor is "
                "a multiple of it: ranks that read the same samples must be on the same nodes"
            )
        return Ranks(self.rank // replication, self.world // replication, per_node)


def detect_ranks(per_node: int | None) -> Ranks:
    """Return the ranks of torch.distributed, or else of the environment, or else rank 0 of 1.

    By default, `per_node` is LOCAL_WORLD_SIZE of the environment, or else the number of ranks.
    """
    rank, world = torch_ranks() or launcher_ranks()
    if per_node is None:
        per_node = _environment_integer("LOCAL_WORLD_SIZE", world)
    return make_ranks(rank, world, per_node)


def torch_ranks() -> tuple[int, int] | None:
    """Return the rank and the number of ranks of torch.distributed, if it is initialized."""
    ranks: tuple[int, int] | None = None
    if "torch" in sys.modules:  # otherwise torch.distributed cannot be initialized
        ranks = import_npstream_torch().rank_and_world()
    return ranks


def launcher_ranks() -> tuple[int, int]:
    """Return rank and number of ranks from RANK and WORLD_SIZE, or 0 and 1 without these."""
    values = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if values == (None, None):
        return 0, 1
    try:
        rank, world = map(int, values)  # type: ignore[arg-type]
        return make_ranks(rank, world, None)[:2]
    except (TypeError, ValueError):
        raise ValueError(
            "the environment has RANK={} and WORLD_SIZE={}: expected a rank below the world size, "
            "or neither; or give rank= and world=".format(*values)
        ) from None


def unread_launcher_warning(ranks: Ranks) -> str | None:
    """Return a warning if a launcher started several ranks, but npstream cannot detect them.

    Such a launcher sets only variables that npstream does not read, those of `_LAUNCHERS`.
    """
    if ranks.world > 1 or torch_ranks() is not None or "WORLD_SIZE" in os.environ:
        return None
    for rank, world in _LAUNCHERS:
        values = {name: value for name in (rank, world) if (value := os.environ.get(name))}
        # Without these variables, or if they say rank 0 of 1, there is nothing to warn of.
        if values.get(rank, "0").strip() == "0" and values.get(world, "1").strip() == "1":
            continue
        variables = " and ".join(f"{name}={value}" for name, value in values.items())
        return (
            f"the environment has {variables}, which npstream does not read, and neither RANK nor "
            "WORLD_SIZE: this process reads all samples, as rank 0 of 1. Give "
            f"rank=int(os.environ[{rank!r}]) and world=int(os.environ[{world!r}]), or initialize "
            "torch.distributed first; or give rank=0 and world=1 to read all samples"
        )
    return None


def make_ranks(rank: Any, world: Any, per_node: int | None) -> Ranks:
    """Return `Ranks`, or raise if they are invalid. If `per_node` is None, there is one node."""
    world = integer("world", world, 1)
    rank = integer("rank", rank, 0)
    if rank >= world:
        raise ValueError(f"rank={rank} of world={world}: ranks are numbered from 0")
    if per_node is None:
        per_node = world
    if world % per_node:
        raise ValueError(
            f"ranks_per_node={per_node} does not divide world={world}: every node must have the "
            "same number of ranks; ranks_per_node=1 is always valid"
        )
    return Ranks(rank, world, per_node)


def this_worker() -> tuple[int, int]:
    """Return the number of this DataLoader worker and of all workers; (0, 0) outside of workers."""
    worker: tuple[int, int] = (
        import_npstream_torch().worker_and_workers() if "torch" in sys.modules else (0, 0)
    )
    return worker


def begin_loop() -> tuple[int, int]:
    """Return `this_worker()` when a loop begins, and prepare the exit of a spawned worker."""
    worker, workers = this_worker()
    if workers:
        import_npstream_torch().exit_before_finalizing()
    return worker, workers


def decoding_threads(per_node: int | None) -> int:
    """Return the number of threads that decode images in this process.

    The ranks and the workers of a machine share its processors.
    """
    return thread_count(machine_ranks(per_node) * max(1, this_worker()[1]))


def machine_ranks(per_node: int | None) -> int:
    """Return how many ranks share this machine.

    By default, `per_node` is LOCAL_WORLD_SIZE of the environment, or else 1.
    """
    return _environment_integer("LOCAL_WORLD_SIZE", 1) if per_node is None else per_node


def _environment_integer(name: str, default: int) -> int:
    value = os.environ.get(name)
    if value is None:
        return default
    if not value.isdecimal() or int(value) < 1:
        raise ValueError(f"the environment has {name}={value}: expected an integer of at least 1")
    return int(value)
