"""Provide the checked settings of an iteration: the parameters of `npstream.Dataset.iter`.

Tested in tests/iteration/test_iteration.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from npstream._core.arguments import integer, parse_count, parse_size
from npstream.iteration.partition import LAST_BATCH_MODES

if TYPE_CHECKING:
    from npstream.orders.balance import RowCosts
    from npstream.orders.order import Shuffle
    from npstream.orders.streaming.settings import StreamingShuffle
    from npstream.orders.valid import RowMask
    from npstream.reading.images.options import Decode

ERROR_MODES = ("raise", "skip", "replace")
"""What an iteration does with samples that cannot be read."""

VIEW_TRANSFORM = "the transform of the view"
"""Name, in errors, of the function that `npstream.Dataset.with_transform` was given."""


@dataclass(frozen=True, kw_only=True)
class IterationSettings:
    """The parameters of `npstream.Dataset.iter`, which documents them.

    Numbers are checked and converted. Ranks are checked later, because they may have to be
    detected.
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
    decode: Decode = False
    transform: Callable[[Any], Any] | None = None
    threads: int | None = None
    prefetch: int | str | None = None
    transform_workers: int = 0
    to: str | None = None
    device: Any = None
    gather: str | None = None
    valid: RowMask | None = None
    balance: RowCosts | None = None
    buckets: int | None = None
    on_error: str = "raise"
    max_errors: int | None = None

    def __post_init__(self) -> None:
        if (self.rank is None) != (self.world is None):
            hint = f"; did you mean batch_size={self.rank!r}?" if self.world is None else ""
            raise ValueError(
                f"rank={self.rank!r} and world={self.world!r}: give both, or neither{hint}"
            )
        if not isinstance(self.batched, bool):
            raise TypeError(f"batched={self.batched!r}: expected True or False")
        if self.last not in LAST_BATCH_MODES:
            raise ValueError(
                f"last={self.last!r}: expected 'repeat', 'drop' (torch's drop_last=True) or 'short'"
            )
        if self.transform is not None and not callable(self.transform):
            raise TypeError(f"transform={self.transform!r}: expected a function, or None")
        if self.to not in (None, "torch"):
            raise ValueError(f"to={self.to!r}: expected 'torch', or None for NumPy arrays")
        self._check_balance()
        self._check_errors()
        self._check_gather()
        for name, minimum in _MINIMUM.items():
            number = getattr(self, name)
            if name == "prefetch" and isinstance(number, str):
                continue
            # None is valid only where it is the default.
            if number is not None or getattr(type(self), name) is not None:
                object.__setattr__(self, name, integer(name, number, minimum))
        _ = self.prefetch_limit  # raises if it is no size
        for name, count in (
            ("threads", self.threads),
            ("transform_workers", self.transform_workers),
        ):
            if count and not isinstance(self.prefetch, str) and self.prefetch == 0:
                raise ValueError(
                    f"{name}={count} with prefetch=0: they make batches ahead; give a larger "
                    f"prefetch, or {name}=0"
                )

    def _check_gather(self) -> None:
        """Raise ValueError unless `gather` fits the other settings."""
        if self.gather is None:
            return
        if self.gather != "device":
            raise ValueError(
                f"gather={self.gather!r}: expected 'device', or None to gather on the CPU"
            )
        if self.device is None:
            raise ValueError("gather='device' needs a device: give device='cuda', too")
        if not self.yields_batches:
            raise ValueError(
                "gather='device' gathers batches, and this iteration yields samples: give "
                "batch_size= without batched=False"
            )
        for name, limit in (("threads", self.threads), ("prefetch", self.prefetch_limit)):
            if limit in (0, (0,)):
                raise ValueError(
                    f"gather='device' with {name}={getattr(self, name)!r}: threads start the work "
                    f"of the device ahead of the loop; leave {name} out"
                )

    @property
    def prefetch_limit(self) -> int | tuple[int] | None:
        """`prefetch` as a number of batches, or as bytes in a tuple; None for the default."""
        if isinstance(self.prefetch, str):
            nbytes = parse_size(self.prefetch, "prefetch")
            assert nbytes is not None
            return (nbytes,)
        return self.prefetch

    def _check_balance(self) -> None:
        """Raise ValueError unless `balance` and `buckets` fit the other settings."""
        if self.balance is None:
            if self.buckets is not None:
                raise ValueError(f"buckets={self.buckets}: give balance= the costs of samples, too")
            return
        if self.batch_size is None and self.global_batch_size is None:
            raise ValueError("balance= balances batches: give batch_size or global_batch_size")
        if self.buckets is None and not self.yields_batches:
            raise ValueError(
                "balance= divides the samples of a batch among ranks, and batched=False yields "
                "samples: leave batched out, or give buckets="
            )

    @property
    def yields_batches(self) -> bool:
        """Whether the iteration yields Batches, not samples."""
        return self.batched and (self.batch_size is not None or self.global_batch_size is not None)

    def _check_errors(self) -> None:
        """Raise ValueError unless `on_error` and `max_errors` fit the other settings."""
        if self.on_error not in ERROR_MODES:
            expected = ", ".join(map(repr, ERROR_MODES))
            raise ValueError(f"on_error={self.on_error!r}: expected {expected}")
        if self.max_errors is not None and self.on_error == "raise":
            raise ValueError(
                f"max_errors={self.max_errors}: the first error is raised; give on_error='skip' or "
                "on_error='replace', too"
            )
        if self.on_error == "replace" and not self.yields_batches and self.transform_workers:
            raise ValueError(
                f"transform_workers={self.transform_workers} with on_error='replace' and without "
                "batches: a sample whose transform raises is replaced where it was read; leave "
                "transform_workers out, or give batch_size="
            )
        if self.on_error == "skip" and not self.yields_batches:
            raise ValueError(
                "on_error='skip' makes batches shorter, and this iteration yields samples, so that "
                "ranks would differ in their number: give on_error='replace', or batch_size= "
                "without batched=False"
            )

    def for_first(self, samples: int) -> IterationSettings:
        """Return the settings for an iteration over the first samples of the view."""
        return replace(
            self,
            valid=self.valid and self.valid.first(samples),
            balance=self.balance and self.balance.first(samples),
        )

    @property
    def epoch_samples(self) -> int | None:
        """`epoch_size` as a number of samples; None for the size of the view."""
        return parse_count("epoch_size", self.epoch_size)


_MINIMUM = {
    "batch_size": 1,
    "global_batch_size": 1,
    "seed": None,
    "epoch": 0,
    "ranks_per_node": 1,
    "replication": 1,
    "threads": 0,
    "prefetch": 0,
    "transform_workers": 0,
    "buckets": 1,
    "max_errors": 0,
}
"""The minimum of each integer setting; None without a minimum."""
