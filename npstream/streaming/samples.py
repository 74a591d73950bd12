"""Provide `StreamSamples`, which reads the samples of several datasets by one numbering.

Streams may have different columns. A sample of `npstream.mix` has only the columns that all its
datasets have.

Tested in tests/streaming/test_streams.py.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from npstream._core.arguments import quantity
from npstream._core.arrays import group_positions
from npstream._core.typing import Int64, Sample
from npstream.iteration.feeding.eviction import EvictionPlan
from npstream.mixture.source import MixedSource
from npstream.reading.schema import common_columns
from npstream.reading.source import Member
from npstream.shards.locality import ReadOrder

if TYPE_CHECKING:
    from npstream.dataset.dataset import Dataset
    from npstream.formats.index import Index
    from npstream.iteration.counter import EpochCursor
    from npstream.iteration.feeding.eviction import EpochReads
    from npstream.reading.gather import Lookup
    from npstream.reading.source import Reader, Source
    from npstream.shards.locality import EvictionOrder
    from npstream.streaming.shards import ShardPreparation

PIECE_BYTES = 1 << 22
"""Bytes of samples that are read together."""

MAX_READ_SAMPLES = 1 << 13
"""Samples that are read together, at most."""


class EpochWork(Protocol):
    """What `StreamSamples.begin_eviction` needs of the part of an epoch that a rank reads."""

    @property
    def cursor(self) -> EpochCursor:
        """Where the loop began."""

    @property
    def run_text(self) -> str:
        """Text that identifies the order; it is the same in all processes of a run."""

    def epoch_reads(self, number: int) -> EpochReads:
        """Return what the ranks of this node read in an epoch."""


class StreamSamples:
    """The samples of datasets, one dataset after the other.

    Parameters
    ----------
    datasets : sequence of Dataset
        Whole datasets, none empty.
    preparation : ShardPreparation, optional
        Called with the numbers of samples before they are read.

    Attributes
    ----------
    starts : list of int
        Number of the first sample of each dataset, followed by the number of all samples.
    """

    def __init__(
        self, datasets: Sequence[Dataset], preparation: ShardPreparation | None = None
    ) -> None:
        self.datasets, self._preparation = tuple(datasets), preparation
        self.starts = [*accumulate(map(len, self.datasets), initial=0)]
        self._make_source()

    def _make_source(self) -> None:
        """Join the sources. The joined source reads the samples if all have the same columns."""
        self._readers: list[Reader] | None = None
        self._evictions: tuple[str, EvictionPlan] | None = None
        # Streaming's samples have their columns in alphabetical order.
        self._columns = [tuple(sorted(ds.columns)) for ds in self.datasets]
        self._source: Source = self.datasets[0]._source
        self._names = self._columns[0]
        self._has_same_columns = True
        if len(self.datasets) == 1:
            return
        members = [Member(str(k), ds._source, ds._selection) for k, ds in enumerate(self.datasets)]
        fields, errors = common_columns(members, self._columns)
        self._source = MixedSource(members, fields, errors)
        self._names = tuple(fields)
        self._has_same_columns = all(columns == self._names for columns in self._columns)

    def __getstate__(self) -> tuple[tuple[Dataset, ...], ShardPreparation | None]:
        return self.datasets, self._preparation

    def __setstate__(self, state: tuple[tuple[Dataset, ...], ShardPreparation | None]) -> None:
        StreamSamples.__init__(self, *state)

    @property
    def indexes(self) -> list[Index]:
        """The index of each dataset."""
        return [ds._source.index for ds in self.datasets]

    def find_shard(self, shard: int) -> tuple[int, int]:
        """Return the dataset of a shard, and the number of the shard in it.

        Raises
        ------
        IndexError
            If there is no such shard.
        """
        number = shard
        for dataset, index in enumerate(self.indexes):
            if 0 <= number < len(index):
                return dataset, number
            number -= len(index)
        raise IndexError(f"there is no shard of the number {shard}")

    @property
    def caches(self) -> set[str]:
        """The directories that cache remote datasets."""
        remotes = [ds._source.remote for ds in self.datasets]
        return {remote.files.cache.directory for remote in remotes if remote is not None}

    def evict(self, shard: int) -> None:
        """Remove the cached files of a shard, which is numbered over all datasets."""
        dataset, number = self.find_shard(shard)
        if (remote := self.datasets[dataset]._source.remote) is not None:
            files = remote.files
            chunks = range(int(files.chunks[number]))
            files.cache.evict({key for chunk in chunks for key in files.unit_keys(number, chunk)})

    def read_one(self, number: int) -> Sample:
        """Return one sample."""
        readers = self._readers
        if readers is None:
            sources = [ds._source for ds in self.datasets]
            pairs = zip(sources, self._columns, strict=True)
            readers = [source.reader(columns) for source, columns in pairs]
            self._readers = readers
        starts = self.starts
        if not 0 <= number < starts[-1]:
            raise IndexError(
                f"index {number} is out of bounds for a dataset of {quantity(starts[-1], 'sample')}"
            )
        if self._preparation is not None:
            self._preparation.prepare(np.array([number]))
        if len(readers) == 1:
            return readers[0](number)
        stream = bisect_right(starts, number) - 1
        return readers[stream](number - starts[stream])

    def read(self, numbers: Int64) -> Iterator[Sample]:
        """Yield samples; the next ones are fetched meanwhile."""
        step = self.samples_per_read
        pieces = (numbers[first : first + step] for first in range(0, len(numbers), step))
        for _, lookup in self.read_ahead(pieces):
            yield from self.samples(lookup)

    @property
    def samples_per_read(self) -> int:
        """Number of samples to read together."""
        return min(MAX_READ_SAMPLES, self._source.estimate_rows(PIECE_BYTES))

    def read_ahead(
        self, pieces: Iterable[Int64], is_rowwise: bool = False
    ) -> Iterator[tuple[Int64, Lookup]]:
        """Yield the numbers of samples with their lookups; the next pieces are fetched meanwhile.

        Parameters
        ----------
        pieces : iterable of ndarray of int64
            Numbers of samples that are read together.
        is_rowwise : bool, default: False
            Whether samples are fetched one by one: the result of the method `is_rowwise`.
        """
        plan = self._source.plan(self._names)
        if self._preparation is not None:
            pieces = map(self._prepare, pieces)
        return self._source.read_ahead(pieces, _identity, plan, is_rowwise=is_rowwise)

    def _prepare(self, numbers: Int64) -> Int64:
        assert self._preparation is not None
        self._preparation.prepare(numbers)
        return numbers

    def is_rowwise(self, first_numbers: Callable[[int], Int64], fraction: float) -> bool:
        """Return True if the cache cannot hold the chunks of an order.

        Parameters
        ----------
        first_numbers : callable
            Takes n, and returns the first n numbers of the order.
        fraction : float
            The approximate fraction of a chunk's samples that the order reads.
        """
        order = ReadOrder(first_numbers, fraction)
        return self._source.is_rowwise(order, self._source.plan(self._names))

    def begin_eviction(self, work: EpochWork) -> list[EvictionOrder]:
        """Tell caches that cannot hold all data when an epoch and the next one use each chunk.

        Returns
        -------
        list of EvictionOrder
            One for each dataset that does not fit its cache. The caller advances and ends them.
        """
        text = work.run_text
        if self._evictions is None or self._evictions[0] != text:

            def run_text() -> str:
                return repr((text, [index.fingerprint for index in self.indexes]))

            plan = EvictionPlan(self._source, self._source.plan(self._names), run_text)
            self._evictions = text, plan
        return self._evictions[1].begin(work.cursor.epoch, work.epoch_reads)

    def samples(self, lookup: Lookup) -> Iterable[Sample]:
        """Read the samples of a lookup of `read_ahead`."""
        if self._has_same_columns:
            return self._source.samples(self._names, lookup)
        result: list[Any] = [None] * len(lookup.rows)
        streams = np.searchsorted(self.starts, lookup.rows, side="right") - 1
        positions = np.arange(len(streams))
        for stream, rows in group_positions(streams):
            ds = self.datasets[stream]
            numbers = ds._source.look_up(lookup.rows[rows] - self.starts[stream])
            samples = ds._source.samples(self._columns[stream], numbers)
            for position, sample in zip(positions[rows].tolist(), samples, strict=True):
                result[position] = sample
        return result


def _identity(numbers: Int64) -> Int64:
    return numbers
