"""Provide `EvictionPlan`, which tells caches when an iteration uses each chunk.

Tested in tests/shards/test_eviction_order.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from npstream.cache.priority import MAX_GROUPS
from npstream.formats.hashes import digest
from npstream.shards.locality import ChunkUses, EvictionOrder, split_large_datasets

if TYPE_CHECKING:
    from npstream._core.typing import Int64
    from npstream.reading.plan import Plan
    from npstream.reading.source import Source
    from npstream.shards.base import RemotePart
    from npstream.shards.remote import RemoteShards

MAX_SAMPLED_RANKS = 32
"""Maximum number of ranks of a machine whose reads are simulated.

The simulation shows if the cache can hold the chunks, and when the chunks are used.
"""

RANK_SLACK = 16
"""A chunk is kept for at most this number of global batches after its last use.

Other ranks of the machine may still read it.
"""

MIN_USE_SAMPLES = 1 << 20
"""Minimum number of samples of an epoch that are looked up to find when its chunks are used."""

SAMPLES_PER_CHUNK = 32
"""Minimum number of samples that are looked up for each chunk, on average."""


class EpochReads(NamedTuple):
    """What the ranks of this machine read in an epoch.

    Attributes
    ----------
    size, global_batch : int
        Number of positions in the epoch, and in a global batch.
    samples : int
        Number of samples that the ranks of this machine read.
    sample_batches : callable
        Takes a step, and yields the rows and the positions of every `step`-th batch of the ranks.
    """

    size: int
    global_batch: int
    samples: int
    sample_batches: Callable[[int], Iterator[tuple[Int64, Int64]]]


class EvictionPlan:
    """The order in which caches evict chunks, if they cannot hold all data of an iteration.

    Parameters
    ----------
    source : Source
        The source that the iteration reads.
    plan : Plan
        The columns that are read.
    run_text : callable
        Returns text that identifies the run's order of samples. All processes of the run return the
        same text, so that they share one group of the cache.
    """

    def __init__(self, source: Source, plan: Plan, run_text: Callable[[], str]) -> None:
        self._source, self._plan, self._run_text = source, plan, run_text
        self._orders: list[EvictionOrder] = []
        self._uses: dict[int, list[ChunkUses]] = {}

    def begin(self, epoch: int, reads_of: Callable[[int], EpochReads]) -> list[EvictionOrder]:
        """Tell the caches when this epoch and the next one use each chunk.

        Parameters
        ----------
        epoch : int
            Number of the epoch that begins.
        reads_of : callable
            Takes the number of an epoch, and returns what is read in it.

        Returns
        -------
        list of EvictionOrder
            One for each dataset that does not fit its cache. The caller advances and ends them.
        """
        datasets = large_datasets(self._source, self._plan)
        if not datasets:
            return []
        if not self._orders:
            group = int(digest("xxh3_64", self._run_text().encode()), 16) % MAX_GROUPS
            self._orders = [EvictionOrder(part.shards, group) for _, part in datasets]
        current, uses = reads_of(epoch), {}
        for number in (epoch, epoch + 1):
            reads = current if number == epoch else reads_of(number)
            uses[number] = self._uses.get(number) or _chunk_uses(reads, datasets)
        self._uses = uses
        slack = min(RANK_SLACK * current.global_batch, current.size >> 8)
        for k, order in enumerate(self._orders):
            order.begin(epoch, current.size, uses[epoch][k], uses[epoch + 1][k], slack)
        return self._orders


def large_datasets(source: Source, plan: Plan) -> list[tuple[Source, RemotePart[RemoteShards]]]:
    """Return the datasets that do not fit their cache."""
    sources = source.sources_of(plan)
    pairs = [(source, part) for source in sources for part in source.fetcher.shards.remotes]
    split = split_large_datasets(part for _, part in pairs)
    return [(source, part) for source, part in pairs if part in split]


def _chunk_uses(
    reads: EpochReads, datasets: list[tuple[Source, RemotePart[RemoteShards]]]
) -> list[ChunkUses]:
    """Return when an epoch uses the chunks of each dataset."""
    chunks = sum(int(part.shards.files.chunks.sum()) for _, part in datasets)
    step = max(1, reads.samples // max(MIN_USE_SAMPLES, SAMPLES_PER_CHUNK * chunks))
    return [
        ChunkUses.find(
            part,
            (
                (source.sample_ids(rows), positions)
                for rows, positions in reads.sample_batches(step)
            ),
            is_complete=step == 1,
        )
        for source, part in datasets
    ]
