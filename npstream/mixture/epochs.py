"""The samples of a mixture, epoch after epoch, however its batches are drawn."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from npstream._core.arguments import integer, quantity
from npstream.iteration.partition import Partition, to_unskipped_position
from npstream.iteration.ranks import Ranks
from npstream.iteration.settings import IterationSettings
from npstream.iteration.state import make_state, read_cursor, require_keys
from npstream.mixture.run import (
    BATCHINGS,
    Batches,
    MixtureRun,
    adopt_run,
    lay_out_sources,
    new_run,
    resolve_shuffle,
    run_in,
    with_fingerprints,
)
from npstream.mixture.stream import EpochOrder, MixtureOrder
from npstream.orders.order import Shuffle

if TYPE_CHECKING:
    from npstream.iteration.counter import EpochCursor
    from npstream.mixture.shares import MixtureOf

CONTEXT_BYTES = 1 << 20
"""Bytes of what workers can be told of the run that a state is of, compressed."""

_EACH, _LEAST = 8, 1 << 14
"""Rows of each source that are looked up at once, on average, and of all, at least."""


Sizes: TypeAlias = "int | Mapping[str, int] | None"
"""Samples of a batch: as many for all sources, or for each, by name."""


@dataclass(frozen=True, kw_only=True)
class MixtureSettings(IterationSettings):
    """What `npstream.Mixture.iter` was given; its documentation says what each setting means.

    Parameters
    ----------
    batches : Batches
        Sizes of batches of each source. `batch_size` and `global_batch_size` are the largest ones.
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
    """Rows of a mixture at positions of epochs, as `Epochs` has those of a view.

    Parameters
    ----------
    of : MixtureOf
    settings : MixtureSettings
        Each pass through a source has an order of its own if `shuffle` is True or a Shuffle. An
        epoch has `epoch_size` samples, by default those of all sources, but for what is left of a
        row of lanes. Where batches must not be split, it is rounded down to whole ones.
    """

    context_bytes = CONTEXT_BYTES

    def __init__(self, of: MixtureOf, settings: MixtureSettings) -> None:
        shuffle = settings.shuffle
        if not isinstance(shuffle, bool | Shuffle):
            raise TypeError(f"shuffle={shuffle!r}: expected False, True or an npstream.Shuffle")
        self._of = of
        self._settings = Shuffle() if shuffle is True else shuffle or None
        self._seed, self._epoch_size = settings.seed, settings.epoch_samples
        self._batching, self._batches = settings.batching, settings.batches
        self._last_order: tuple[Any, MixtureRun, MixtureOrder] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last_order": None}

    def merge_replicas(self, ranks: Ranks, replication: int) -> Ranks:
        """Return the ranks that are left if several in a row are one, as to what they read."""
        return ranks.merge_replicas(replication)

    @property
    def is_stored_order(self) -> bool:
        """Whether epochs are in the order of the view: they never are."""
        return False

    @property
    def epoch_size_keeps_order(self) -> bool:
        """Whether `epoch_size` changes no order, but only where epochs end."""
        return True

    def needs_state(self, ranks: Ranks) -> bool:
        """Tell whether these ranks will do only after a state was loaded: any always do."""
        return False

    def nodes_per_chunk(self, nodes: int) -> int:
        """Return how many nodes read a chunk that one could read alone, on average over bytes.

        Sources of one lane are small, as a rule, and all nodes read them.
        """
        block, lanes = resolve_shuffle(self._of, self._settings)
        sources = lay_out_sources(
            self._of, range(len(self._of.names)), self._settings, block, lanes
        )
        times = [
            nodes // math.gcd(nodes, source.lanes) if source.lanes > 1 else 1 for source in sources
        ]
        return round(np.average(times, weights=[max(nbytes, 1) for nbytes in self._of.nbytes]))

    def chunk_share(self, nodes: int) -> float:
        """Return which part of a chunk's samples one of several nodes reads, at least."""
        return 1 / nodes

    def with_block(self, nbytes: int) -> tuple[MixtureEpochs, str] | None:
        """Return epochs with another block, and how to set it; None if there is no shuffle."""
        if self._settings is None:
            return None
        other = copy(self)
        other._settings = Shuffle(nbytes)
        return other, f"shuffle=npstream.Shuffle(block={nbytes})"

    def part(self, cursor: EpochCursor, ranks: Ranks, batch_size: int, last: str) -> Partition:
        """Return a rank's part of what is left of an epoch."""
        run, stream = self._stream(cursor.context, ranks)
        cuts = [cursor.position, *(cut for gap in cursor.gaps for cut in gap)]
        if any(cut % run.grain for cut in cuts if cut < run.size and self._batching != "random"):
            raise ValueError(
                f"position {cursor.position} of the epoch, of which {cursor.gaps} are left out, is "
                f"within a batch: with batching={self._batching!r} an iteration goes on between "
                f"batches, which take {quantity(run.grain, 'position')}"
            )
        stretch = EpochOrder(stream, run.reached(cursor.epoch, 0), run.size)
        begun = max(run.stretches[run.since].start * run.width - run.reached(cursor.epoch, 0), 0)
        size, start, first = (
            to_unskipped_position(at, cursor.gaps) for at in (run.size, cursor.position, begun)
        )
        unit = 1
        if self._batching == "device_per_stream":
            unit = batch_size = run.grain
        elif self._batching != "random":
            batch_size = run.grain // ranks.world
        return Partition(
            size, ranks.rank, ranks.world, batch_size, last, ranks.world // ranks.per_node, start,
            unit, repeat_start=first, gaps=cursor.gaps, rows=stretch.at,
            block=_rows_at_once(stretch) if run.is_even else 1,
        )  # fmt: skip

    def order(self, epoch: int) -> EpochOrder:
        """Return the order of an epoch, of a run that no state was loaded into."""
        run, stream = self._stream(b"", Ranks(0, 1, 1))
        if not run.is_even:
            raise ValueError("batches that differ in size by source have no order of samples")
        return EpochOrder(stream, run.reached(epoch, 0), run.size)

    def state(self, cursor: EpochCursor, ranks: Ranks) -> dict[str, Any]:
        """Return a state, which does not depend on the ranks."""
        run, _ = self._stream(cursor.context, ranks)
        return {
            **make_state(self._state_settings, cursor),
            "mixture": with_fingerprints(run, self._of).as_json(),
        }

    def load_cursor(self, state: Mapping[str, Any], ranks: Ranks) -> EpochCursor:
        """Return where a state says to go on, with any ranks."""
        if isinstance(state, Mapping) and "mixture" not in state and "fingerprint" in state:
            raise ValueError("the state is of an iteration over one dataset, and this is a mixture")
        require_keys(state, ("mixture",))
        cursor = read_cursor(state, lambda _: self._state_settings)
        own, _ = self._stream(b"", ranks)
        run = adopt_run(run_in(state), own, self._of)
        if run == with_fingerprints(own, self._of):
            return cursor
        return cursor._replace(context=zlib.compress(json.dumps(run.as_json()).encode()))

    @property
    def _state_settings(self) -> dict[str, Any]:
        """Return what positions depend on, but for the run."""
        shuffle = None
        if self._settings is not None:
            block, lanes = self._settings.block, self._settings.lanes
            shuffle = {"order": "mixture", "block": block, "lanes": lanes}
        return {"seed": self._seed, "shuffle": shuffle, "epoch_size": self._epoch_size}

    def _stream(self, context: bytes, ranks: Ranks) -> tuple[MixtureRun, MixtureOrder]:
        """Return the run of a cursor's context, or a new one if that is empty; and its stream."""
        key, held = (context, ranks.world), self._last_order
        if held is None or held[0] != key:
            if context:
                run = MixtureRun.of_json(json.loads(zlib.decompress(context)))
            else:
                run = new_run(
                    self._of, self._settings, self._batching, self._batches, self._epoch_size, ranks
                )
            firsts = np.cumsum([0, *self._of.sizes]).tolist()
            here = {
                name: stored
                for name, *stored in zip(self._of.names, self._of.chunks, firsts, strict=False)
            }
            chunks, rows = zip(*(here.get(s.name, (None, 0)) for s in run.sources), strict=True)
            self._last_order = held = key, run, MixtureOrder(run.course(self._seed), chunks, rows)
        return held[1:]


def _rows_at_once(stretch: EpochOrder) -> int:
    """Return how many rows are worth looking up at once: to go to a source takes long."""
    return max(_LEAST, _EACH * len(stretch.stream.chunks))


def mixture_settings(
    names: Sequence[str],
    batching: str,
    batch_size: Sizes,
    global_batch_size: Sizes,
    **others: Any,
) -> MixtureSettings:
    """Return settings with the sizes of batches of each source.

    Parameters
    ----------
    names : sequence of str
        Names of the sources.
    batching, batch_size, global_batch_size
        As `npstream.Mixture.iter` takes them.
    **others
        The other settings.
    """
    batches, has_own = Batches(), batching == "device_per_stream"
    largest: dict[str, Any] = {}
    for key, size in {"batch_size": batch_size, "global_batch_size": global_batch_size}.items():
        if size is None:
            continue
        if isinstance(size, Mapping):
            has_own = True
            if batching not in ("per_stream", "device_per_stream"):
                raise ValueError(
                    f"{key}={size!r}: batches of one source each, as with batching='per_stream' or "
                    "'device_per_stream', may differ in size"
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
    if has_own and not settings.batched:
        raise ValueError(
            "batched=False: batches of the device's own source, or of a source's own size, are "
            "made here"
        )
    return settings
