"""Provide `StreamSamples`, which reads the samples of several datasets by one numbering.

Streams may have different columns. A sample of `npstream.mix` has only the columns that all its
datasets have.

Tested in tests/streaming/test_streams.py.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from npstream._core.arguments import quantity
from npstream._core.arrays import group_positions
from npstream._core.typing import Int64, Sample
from npstream.mixture.source import MixedSource
from npstream.reading.schema import common_columns
from npstream.reading.source import Member
from npstream.shards.locality import ReadOrder

if TYPE_CHECKING:
    from npstream.dataset.dataset import Dataset
    from npstream.formats.index import Index
    from npstream.reading.gather import Lookup
    from npstream.reading.source import Reader, Source

PIECE_BYTES = 1 << 22
"""Bytes of samples that are read together."""

MAX_READ_SAMPLES = 1 << 13
"""Samples that are read together, at most."""


class StreamSamples:
    """The samples of datasets, one dataset after the other.

    Parameters
    ----------
    datasets : sequence of Dataset
        Whole datasets, none empty.

    Attributes
    ----------
    starts : list of int
        Number of the first sample of each dataset, followed by the number of all samples.
    """

    def __init__(self, datasets: Sequence[Dataset]) -> None:
        self.datasets = tuple(datasets)
        self.starts = [*accumulate(map(len, self.datasets), initial=0)]
        self._make_source()

    def _make_source(self) -> None:
        """Join the sources. The joined source reads the samples if all have the same columns."""
        self._readers: list[Reader] | None = None
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

    def __getstate__(self) -> tuple[Dataset, ...]:
        return self.datasets

    def __setstate__(self, datasets: tuple[Dataset, ...]) -> None:
        self.datasets = datasets
        self.starts = [*accumulate(map(len, datasets), initial=0)]
        self._make_source()

    @property
    def indexes(self) -> list[Index]:
        """The index of each dataset."""
        return [ds._source.index for ds in self.datasets]

    def shard_view(self, shard: int) -> Dataset:
        """Return the samples of a shard, which is numbered over all datasets."""
        dataset, number = self._find_shard(shard)
        starts = dataset._source.index.starts
        return dataset[int(starts[number]) : int(starts[number + 1])]

    def _find_shard(self, shard: int) -> tuple[Dataset, int]:
        """Return the dataset of a shard, and the number of the shard in it."""
        number = shard
        for ds, index in zip(self.datasets, self.indexes, strict=True):
            if 0 <= number < len(index):
                return ds, number
            number -= len(index)
        raise IndexError(f"there is no shard of the number {shard}")

    @property
    def caches(self) -> set[str]:
        """The directories that cache remote datasets."""
        remotes = [ds._source.remote for ds in self.datasets]
        return {remote.files.cache.directory for remote in remotes if remote is not None}

    def evict(self, shard: int) -> None:
        """Remove the cached files of a shard, which is numbered over all datasets."""
        dataset, number = self._find_shard(shard)
        if (remote := dataset._source.remote) is not None:
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
        return self._source.read_ahead(pieces, _identity, plan, is_rowwise=is_rowwise)

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
