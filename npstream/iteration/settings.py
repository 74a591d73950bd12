"""The settings of an iteration, as `npstream.Dataset.iter` takes them, checked.

Tested in tests/iteration/test_iteration.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from npstream._core.arguments import counted, integer
from npstream.iteration.partition import LAST_BATCH_MODES

if TYPE_CHECKING:
    from npstream.orders.order import Shuffle
    from npstream.orders.streaming.settings import StreamingShuffle

VIEW_TRANSFORM = "the transform of the view"
"""What errors call what `npstream.Dataset.with_transform` was given."""


@dataclass(frozen=True, kw_only=True)
class IterationSettings:
    """What `npstream.Dataset.iter` was given; its documentation says what each setting means.

    Numbers are checked and converted. Whether rank and world fit what runs is for later: they may
    have to be looked up.
    """

    rank: int | None = None
    world: int | None = None
    batch_size: int | None = None
    global_batch_size: int | None = None
    batched: bool = True
    shuffle: bool | str | Shuffle | StreamingShuffle = False
    seed: int = 0
    epoch: int = 0
    epoch_size: int | float | str | None = None
    last: str = "repeat"
    ranks_per_node: int | None = None
    replication: int = 1
    transform: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        if (self.rank is None) != (self.world is None):
            raise ValueError(f"rank={self.rank!r} and world={self.world!r}: give both, or neither")
        if not isinstance(self.batched, bool):
            raise TypeError(f"batched={self.batched!r}: expected True or False")
        if self.last not in LAST_BATCH_MODES:
            raise ValueError(
                f"last={self.last!r}: expected 'repeat', 'drop' (torch's drop_last=True) or 'short'"
            )
        if self.transform is not None and not callable(self.transform):
            raise TypeError(f"transform={self.transform!r}: expected a function, or None")
        for name, least in _LEAST.items():
            number = getattr(self, name)
            if number is not None or getattr(type(self), name) is not None:
                object.__setattr__(self, name, integer(name, number, least))

    @property
    def yields_batches(self) -> bool:
        """Whether Batches are yielded, not samples."""
        return self.batched and (self.batch_size is not None or self.global_batch_size is not None)

    @property
    def epoch_samples(self) -> int | None:
        """`epoch_size` as a number of samples; None for those of the view."""
        return counted("epoch_size", self.epoch_size)


_LEAST = {
    "batch_size": 1,
    "global_batch_size": 1,
    "seed": None,
    "epoch": 0,
    "ranks_per_node": 1,
    "replication": 1,
}
"""The least value of each setting that is an integer; None for any."""
