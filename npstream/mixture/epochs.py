"""Provide the epochs of a mixture, for all kinds of batches."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from npstream._core.arguments import integer, quantity
from npstream.iteration.partition import BalancedPartition, Partition, to_unskipped_position
from npstream.iteration.ranks import Ranks
from npstream.iteration.settings import IterationSettings
from npstream.iteration.state import (
    SETTINGS_HASH,
    make_state,
    read_cursor,
    require_keys,
    require_within_epoch,
)
from npstream.mixture.run import (
    BATCHINGS,
    COSTS_OF_ANOTHER_MIXTURE,
    Batches,
    MixtureRun,
    assign_lanes,
    load_run,
    new_run,
    resolve_shuffle,
    resume_run,
    with_fingerprints,
)
from npstream.mixture.stream import EpochOrder, MixtureOrder
from npstream.orders.order import Shuffle, shuffle_with_block

if TYPE_CHECKING:
    from npstream._core.typing import AnyArray, Int64
    from npstream.iteration.counter import EpochCursor
    from npstream.mixture.shares import MixtureSpec
    from npstream.orders.balance import RowCosts

CONTEXT_BYTES = 1 << 20
"""Maximum bytes of a compressed `MixtureRun`, which workers of a resumed iteration receive."""

_ROWS_PER_SOURCE, _MIN_LOOKUP_ROWS = 8, 1 << 14
"""Rows to look up together: the first number times the sources, but at least the second number."""


BatchSizes: TypeAlias = "int | Mapping[str, int] | None"
"""Samples in a batch: one number for all sources, or a number for each source, by name."""


@dataclass(frozen=True, kw_only=True)
class MixtureSettings(IterationSettings):
    """The parameters of `npstream.Mixture.iter`, which documents them.

    Parameters
    ----------
    batches : Batches
        The batch size of each source. `batch_size` and `global_batch_size` are the largest sizes.
    """

    batching: str = "random"
    batches: Batches = field(default_factory=Batches)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batching not in BATCHINGS:
            expected = ", ".join(map(repr, BATCHINGS))
            raise ValueError(f"batching={self.batching!r}: expected {expected}")
        if self.batching != "random" and not self.batches.sizes:
            raise ValueError(f"batching={self.batching!r}: give batch_size or global_batch_size")


class MixtureEpochs:
    """Maps positions in epochs to rows of a mixture, as `npstream.iteration.epochs.Epochs` does.

    Parameters
    ----------
    spec : MixtureSpec
    settings : MixtureSettings
        Each pass through a source has its own order if `shuffle` is True or a Shuffle. An epoch has
        `epoch_size` samples. The default is the number of samples of all sources, rounded down to
        a multiple of the number of lanes. If batches must not be split, any size is rounded
        down to whole batches.
    """

    context_bytes = CONTEXT_BYTES

    def __init__(self, spec: MixtureSpec, settings: MixtureSettings) -> None:
        shuffle = settings.shuffle
        if not isinstance(shuffle, bool | Shuffle):
            raise TypeError(f"shuffle={shuffle!r}: expected False, True or an npstream.Shuffle")
        self._spec = spec
        self._shuffle = Shuffle() if shuffle is True else shuffle or None
        if self._shuffle is not None and self._shuffle.block == 0:
            self._shuffle = None
        self._seed, self._epoch_size = settings.seed, settings.epoch_samples
        self._batching, self._batches = settings.batching, settings.batches
        self._costs = settings.balance
        self._last_order: tuple[Any, MixtureRun, MixtureOrder] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last_order": None}

    def merge_replicas(self, ranks: Ranks, replication: int) -> Ranks:
        """Return ranks in which each `replication` consecutive ranks count as one."""
        return ranks.merge_replicas(replication)

    @property
    def is_view_order(self) -> bool:
        """False: epochs do not read the view in its own order."""
        return False

    @property
    def epoch_size_keeps_order(self) -> bool:
        """True: `epoch_size` changes only where epochs end, not the order of samples."""
        return True

    def needs_state(self, ranks: Ranks) -> bool:
        """Return False: all ranks are valid, also before a state is loaded."""
        return False

    def nodes_per_chunk(self, nodes: int) -> int:
        """Return how many of `nodes` nodes read each chunk.

        The result is the average over the sources, weighted by their bytes. A source with one lane
        counts as 1: all nodes read it, but such sources are usually small. The result is also 1 for
        balanced batches. They make all nodes read every chunk, with any number of lanes, so a
        warning about the lanes would not help.
        """
        if self._costs is not None:
            return 1
        block, lanes = resolve_shuffle(self._spec, self._shuffle)
        sources = assign_lanes(
            self._spec, range(len(self._spec.names)), self._shuffle, block, lanes
        )
        times = [
            nodes // math.gcd(nodes, source.lanes) if source.lanes > 1 else 1 for source in sources
        ]
        return round(np.average(times, weights=[max(nbytes, 1) for nbytes in self._spec.nbytes]))

    def chunk_share(self, nodes: int) -> float:
        """Return the smallest fraction of a chunk's samples that one of `nodes` nodes reads."""
        return 1 / nodes

    def with_block(self, nbytes: int) -> tuple[MixtureEpochs, str] | None:
        """Return epochs with blocks of `nbytes`, and this setting as text; None if not shuffled."""
        if self._shuffle is None:
            return None
        other = copy(self)
        other._shuffle, text = shuffle_with_block(nbytes, self._shuffle.stratified)
        return other, text

    def part(self, cursor: EpochCursor, ranks: Ranks, batch_size: int, last: str) -> Partition:
        """Return the part of this rank in the epoch, from the cursor on."""
        run, stream = self._stream(cursor.context, ranks)
        cuts = [cursor.position, *(cut for gap in cursor.gaps for cut in gap)]
        if any(cut % run.grain for cut in cuts if cut < run.size and self._batching != "random"):
            raise ValueError(
                f"position {cursor.position}, or an end of the skipped ranges {cursor.gaps}, is "
                f"within a batch: with batching={self._batching!r} an iteration resumes between "
                f"batches of {quantity(run.grain, 'position')}"
            )
        order = EpochOrder(stream, run.stream_position(cursor.epoch, 0), run.size)
        # The last batch repeats only samples of the current mixture.
        mixture_start = run.stretches[run.since].start * run.width
        repeat_start = max(mixture_start - run.stream_position(cursor.epoch, 0), 0)
        size, start, repeat_start = (
            to_unskipped_position(position, cursor.gaps)
            for position in (run.size, cursor.position, repeat_start)
        )
        # The grain is 1 with "random", a batch of one rank with "device_per_stream", and otherwise
        # a global batch.
        unit = 1
        if self._batching == "device_per_stream":
            unit = batch_size = run.grain
        elif self._batching != "random":
            batch_size = run.grain // ranks.world
        make: Any = Partition
        if self._costs is not None:
            make = partial(BalancedPartition, costs=partial(_costs_at, order, self._costs))
        # Batches of different sizes are looked up one by one: a look-up leaves out the rows that
        # smaller batches lack, so the bounds of several batches would be lost.
        part: Partition = make(
            size, ranks.rank, ranks.world, batch_size, last, ranks.world // ranks.per_node, start,
            unit, repeat_start=repeat_start, gaps=cursor.gaps, rows=order.at,
            lookup_samples=_lookup_rows(order) if run.is_even else 1,
        )  # fmt: skip
        return part

    def order(self, epoch: int) -> EpochOrder:
        """Return the order of an epoch of a new run."""
        run, stream = self._stream(b"", Ranks(0, 1, 1))
        if not run.is_even:
            raise ValueError(
                "batch sizes that differ by source: an order of samples needs batches of one size"
            )
        return EpochOrder(stream, run.stream_position(epoch, 0), run.size)

    def state(self, cursor: EpochCursor, ranks: Ranks) -> dict[str, Any]:
        """Return the state of an iteration at `cursor`."""
        run, _ = self._stream(cursor.context, ranks)
        return {
            **make_state(self._state_settings, cursor),
            "mixture": with_fingerprints(run, self._spec).to_json(),
        }

    def load_cursor(self, state: Mapping[str, Any], ranks: Ranks) -> EpochCursor:
        """Return the cursor of a state; raise ValueError if it is from other data or settings."""
        if isinstance(state, Mapping) and "mixture" not in state and "fingerprint" in state:
            raise ValueError("the state is of an iteration over one dataset, and this is a mixture")
        require_keys(state, ("mixture",))
        if state.get("balance") == COSTS_OF_ANOTHER_MIXTURE and self._costs is not None:
            # The state's hash covers the costs of the former mixture, so it is not compared.
            state = {**state, "balance": self._state_settings["balance"], SETTINGS_HASH: None}
        cursor = read_cursor(state, lambda _: self._state_settings)
        fresh_run, _ = self._stream(b"", ranks)
        run = resume_run(load_run(state), fresh_run, self._spec)
        require_within_epoch(cursor, run.size)
        if run == with_fingerprints(fresh_run, self._spec):
            return cursor
        return cursor._replace(context=zlib.compress(json.dumps(run.to_json()).encode()))

    @property
    def _state_settings(self) -> dict[str, Any]:
        """Return the settings that positions depend on, without the run."""
        shuffle = None
        if self._shuffle is not None:
            block, lanes = self._shuffle.block, self._shuffle.lanes
            shuffle = {"order": "mixture", "block": block, "lanes": lanes}
            if self._shuffle.stratified:
                shuffle["stratified"] = True
        settings = {"seed": self._seed, "shuffle": shuffle, "epoch_size": self._epoch_size}
        return settings if self._costs is None else settings | {"balance": self._cost_identity}

    @cached_property
    def _cost_identity(self) -> dict[str, Any]:
        """The value of "balance" in states: a hash of the costs."""
        assert self._costs is not None
        return {"hash": self._costs.identity()}

    def _stream(self, context: bytes, ranks: Ranks) -> tuple[MixtureRun, MixtureOrder]:
        """Return a run and its stream: the run in `context`, or a new run if `context` is empty."""
        key, cached = (context, ranks.world), self._last_order
        if cached is None or cached[0] != key:
            if context:
                run = MixtureRun.from_json(json.loads(zlib.decompress(context)))
            else:
                run = new_run(
                    self._spec,
                    self._shuffle,
                    self._batching,
                    self._batches,
                    self._epoch_size,
                    ranks,
                )
            names, starts = self._spec.names, np.cumsum([0, *self._spec.sizes]).tolist()
            chunks_of = dict(zip(names, self._spec.chunks, strict=True))
            start_of = dict(zip(names, starts, strict=False))
            stream = MixtureOrder(
                run.course(self._seed),
                [chunks_of.get(source.name) for source in run.sources],
                [start_of.get(source.name, 0) for source in run.sources],
                self._shuffle is not None and self._shuffle.stratified,
            )
            self._last_order = cached = key, run, stream
        return cached[1:]


def _costs_at(order: EpochOrder, costs: RowCosts, positions: Int64) -> AnyArray:
    """Return the costs of the samples at positions in an epoch."""
    return costs.at(order.at(positions))


def _lookup_rows(order: EpochOrder) -> int:
    """Return how many rows to look up together: each source has a cost per look-up."""
    return max(_MIN_LOOKUP_ROWS, _ROWS_PER_SOURCE * len(order.stream.chunks))


def batches_of_run(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the batching of a state's run, and the batch sizes that `settings_of_run` lacks.

    The names are those of the parameters of `Mixture.iter`.
    """
    if "mixture" not in state:  # orders of MosaicML Streaming have no run
        return {}
    run = load_run(state)
    if run.sizes is None:
        return {"batching": run.batching}
    sizes = {
        source.name: size or run.grain
        for source, size in zip(run.sources, run.sizes, strict=True)
        if source.name in run.active_sources
    }
    if run.batching == "device_per_stream":
        return {"batching": run.batching, "batch_size": sizes, "global_batch_size": None}
    if run.is_even:
        return {"batching": run.batching}
    return {"batching": run.batching, "global_batch_size": sizes}


def mixture_settings(
    names: Sequence[str],
    batching: str,
    batch_size: BatchSizes,
    global_batch_size: BatchSizes,
    **others: Any,
) -> MixtureSettings:
    """Return settings with the batch size of each source.

    Parameters
    ----------
    names : sequence of str
        Names of the sources.
    batching, batch_size, global_batch_size
        As `npstream.Mixture.iter` takes them.
    **others
        The other settings.
    """
    # With batched=False, torch makes the batches. It makes only batches of one size, and puts
    # samples of different sources into the same batch.
    needs_batches = batching == "device_per_stream"
    batches = Batches()
    largest: dict[str, Any] = {}
    for key, size in {"batch_size": batch_size, "global_batch_size": global_batch_size}.items():
        if size is None:
            continue
        if isinstance(size, Mapping):
            needs_batches = True
            if batching not in ("per_stream", "device_per_stream"):
                raise ValueError(
                    f"{key}={size!r}: batch sizes can differ by source only if each batch is of "
                    "one source: give batching='per_stream' or 'device_per_stream'"
                )
            if set(size) != set(names):
                raise ValueError(
                    f"{key}={size!r}: expected a size for each of {', '.join(map(repr, names))}"
                )
        else:
            size = dict.fromkeys(names, size)
        sizes = tuple(integer(key, size[name], 1) for name in names)
        largest[key] = max(sizes)
        batches = Batches(sizes, key == "global_batch_size")
    settings = MixtureSettings(batching=batching, batches=batches, **largest, **others)
    if needs_batches and not settings.batched:
        raise ValueError(
            "batched=False: torch cannot make the batches of batching='device_per_stream', or "
            "batches whose size differs by source: leave batched out"
        )
    return settings


def refuse_settings(
    batching: str, on_error: str, valid: Any, balance: Any, buckets: Any, sizes: list[BatchSizes]
) -> None:
    """Raise ValueError for settings that no mixture has, or that do not fit the batches.

    Parameters
    ----------
    batching, on_error, valid, balance, buckets
        As `npstream.Mixture.iter` takes them.
    sizes : list of BatchSizes
        The batch sizes.
    """
    if valid is not None:
        raise ValueError(
            "valid= is not for mixtures, whose rows are drawn: leave rows of a source out before, "
            "as in npstream.mix({'a': ds[mask]})"
        )
    if buckets is not None:
        raise ValueError(
            f"buckets={buckets} is not for mixtures: samples of similar cost are often of one "
            "source, so that batches would not have the shares of the sources; give balance= alone"
        )
    if balance is not None and batching == "device_per_stream":
        raise ValueError(
            "balance= with batching='device_per_stream': each rank's batch is of one source, so "
            "that ranks cannot exchange samples; give batching='per_stream'"
        )
    if balance is not None and any(isinstance(size, Mapping) for size in sizes):
        raise ValueError(
            "balance= with batch sizes that differ by source: give one size for all sources"
        )
    if on_error == "replace" and batching in ("per_stream", "device_per_stream"):
        raise ValueError(
            f"on_error='replace' with batching={batching!r}: the replacement may be of another "
            "source; give on_error='skip'"
        )
