"""What a checkpoint of a run in one of Streaming's orders holds of the run."""

from __future__ import annotations

from typing import NamedTuple


class RunOf(NamedTuple):
    """What one of Streaming's orders keeps of the run that a state is of, wherever that goes on."""

    num_canonical_nodes: int
    shuffle_seed: int
    initial_physical_nodes: int | None
