"""Who shares a view: the number of this process, and of all, from what is given or what runs.

Tested in tests/iteration/test_iteration.py.
"""

from __future__ import annotations

import os
import sys
from typing import Any, NamedTuple

from npstream._core.arguments import integer
from npstream._core.optional import torch_door

_LAUNCHERS = [
    ("SLURM_PROCID", "SLURM_NTASKS"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
]
"""By which launchers other than torchrun say the rank and the number of ranks."""


class Ranks(NamedTuple):
    """The number of a process among ranks, and how many there are, in all and on each node."""

    rank: int
    world: int
    per_node: int

    def merge_replicas(self, replication: int) -> Ranks:
        """Return the ranks that are left if several in a row are one, as to what they read."""
        if self.world % replication:
            raise ValueError(f"replication={replication} does not divide world={self.world}")
        per_node = max(1, self.per_node // replication)
        if self.per_node % replication and replication % self.per_node:
            raise ValueError(
                f"replication={replication} neither divides ranks_per_node={self.per_node} nor is "
                "a multiple of it: ranks that read the same are to be on the same nodes"
            )
        return Ranks(self.rank // replication, self.world // replication, per_node)


def detect_ranks(per_node: int | None) -> Ranks:
    """Return what torch.distributed says, or else the environment, or else that we are alone."""
    rank, world = torch_ranks() or launcher_ranks()
    if per_node is None:
        per_node = _environment_integer("LOCAL_WORLD_SIZE", world)
    return make_ranks(rank, world, per_node)


def torch_ranks() -> tuple[int, int] | None:
    """Return the rank and the number of ranks of torch.distributed, if it is initialized."""
    known: tuple[int, int] | None = None
    if "torch" in sys.modules:
        known = torch_door().rank_and_world()
    return known


def launcher_ranks() -> tuple[int, int]:
    """Return the rank and the number of ranks that a launcher says, or else 0 of 1."""
    said = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if said == (None, None):
        return 0, 1
    try:
        rank, world = map(int, said)  # type: ignore[arg-type]
        return make_ranks(rank, world, None)[:2]
    except (TypeError, ValueError):
        raise ValueError(
            "the environment says RANK={} and WORLD_SIZE={}: expected a number below another, or "
            "neither; or give rank= and world=".format(*said)
        ) from None


def unread_launcher_warning(ranks: Ranks) -> str | None:
    """Return a warning if only variables that are not looked at say that there are other ranks."""
    if ranks.world > 1 or torch_ranks() is not None or "WORLD_SIZE" in os.environ:
        return None
    for rank, world in _LAUNCHERS:
        said = {name: value for name in (rank, world) if (value := os.environ.get(name))}
        if said.get(rank, "0").strip() == "0" and said.get(world, "1").strip() == "1":
            continue
        seen = " and ".join(f"{name}={value}" for name, value in said.items())
        return (
            f"the environment says {seen}, which is not looked at, and no RANK and WORLD_SIZE: "
            f"this process reads all samples, as rank 0 of 1. Give rank=int(os.environ[{rank!r}]) "
            f"and world=int(os.environ[{world!r}]), or initialize torch.distributed before; or "
            "give rank=0 and world=1, if it is to read all"
        )
    return None


def make_ranks(rank: Any, world: Any, per_node: int | None) -> Ranks:
    """Return numbers that make sense together; by default, all ranks are on one node."""
    world = integer("world", world, 1)
    rank = integer("rank", rank, 0)
    if rank >= world:
        raise ValueError(f"rank={rank} of world={world}: ranks are numbered from 0")
    if per_node is None:
        per_node = world
    if world % per_node:
        raise ValueError(
            f"ranks_per_node={per_node} does not divide world={world}: every node is to have as "
            "many ranks; ranks_per_node=1 will do for any"
        )
    return Ranks(rank, world, per_node)


def this_worker() -> tuple[int, int]:
    """Return the number of the worker that this process is, and of all workers: 0 if it is none."""
    worker: tuple[int, int] = torch_door().worker() if "torch" in sys.modules else (0, 0)
    return worker


def _environment_integer(name: str, default: int) -> int:
    said = os.environ.get(name)
    if said is None:
        return default
    if not said.isdecimal() or int(said) < 1:
        raise ValueError(f"the environment says {name}={said}: expected a number from 1 on")
    return int(said)
