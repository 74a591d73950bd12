"""Provide `LocalDataset`, which reads samples of a dataset in a local directory by index.

Tested in tests/streaming/test_local.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np

from npstream._core.typing import Int64
from npstream.dataset.opening import open_dataset
from npstream.streaming.array import Array
from npstream.streaming.samples import StreamSamples
from npstream.streaming.shards import ShardInfo, shard_infos
from npstream.torch import TorchDataset


class LocalDataset(Array, TorchDataset[Any]):
    """A dataset in a local directory, for torch's DataLoader and its samplers.

    As in Streaming, columns may be pickled. Loading a pickle can run code, so open only data that
    you trust.

    Parameters
    ----------
    local : str
        The directory of the dataset.
    split : str, optional
        A subdirectory of `local` to read instead of it, such as "train".

    Raises
    ------
    FileNotFoundError
        If there is no dataset.

    Examples
    --------
    >>> path = str(getfixture("tmp_path"))
    >>> report = npstream.write(path, {"x": np.arange(10)})
    >>> ds = LocalDataset(path)
    >>> len(ds), ds[-1]
    (10, {'x': np.int64(9)})
    """

    def __init__(self, local: str, split: str | None = None) -> None:
        self.local, self.split = local, split or ""
        ds = open_dataset(os.path.expanduser(local), split=split or None, allow_pickle=True)
        self._npstream_samples = StreamSamples([ds])
        self.num_samples = len(ds)

    def __len__(self) -> int:
        """Return the number of samples."""
        return self.num_samples

    @property
    def size(self) -> int:
        """The number of samples."""
        return self.num_samples

    @cached_property
    def shards(self) -> list[ShardInfo]:
        """The shards."""
        return list(shard_infos(self._npstream_samples.indexes[0]))

    def get_item(self, sample_id: int) -> Any:
        """Return a sample.

        Parameters
        ----------
        sample_id : int
            Number of the sample, from 0 to ``size - 1``.

        Returns
        -------
        dict
            A new dict, whose arrays are writable.

        Raises
        ------
        IndexError
            If there is no such sample.

        Examples
        --------
        >>> path = str(getfixture("tmp_path"))
        >>> report = npstream.write(path, {"x": np.arange(10)})
        >>> LocalDataset(path).get_item(3)
        {'x': np.int64(3)}
        """
        return self._npstream_samples.read_one(sample_id)

    @property
    def _npstream_reads_itself(self) -> bool:  # type: ignore[override]
        """Whether no subclass overrides how samples are read."""
        cls = type(self)
        return cls.__getitem__ is LocalDataset.__getitem__ and cls.get_item is LocalDataset.get_item

    def _npstream_items(self, numbers: Iterable[int] | Int64) -> list[Any]:
        if not self._npstream_reads_itself:
            return super()._npstream_items(numbers)
        if isinstance(numbers, range):
            numbers = np.arange(numbers.start, numbers.stop, numbers.step)
        return list(self._npstream_samples.read(np.asarray(numbers, np.int64)))
