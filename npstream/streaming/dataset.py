"""Provide `StreamingDataset`, with the arguments, orders and states of Streaming's class."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from npstream._core.log import warn
from npstream._core.typing import Int64
from npstream.cache import cache as npstream_cache
from npstream.iteration.counter import EpochCursor
from npstream.orders.streaming.order import StreamingOrder
from npstream.orders.streaming.settings import StreamingRun
from npstream.streaming.array import Array
from npstream.streaming.base.spanner import Spanner
from npstream.streaming.base.stream import streams_registry
from npstream.streaming.base.util import bytes_to_int, number_abbrev_to_int
from npstream.streaming.epoch import iterate_epoch
from npstream.streaming.position import RunPosition, detect_world
from npstream.streaming.samples import StreamSamples
from npstream.streaming.shards import ShardInfo, ShardPreparation, shard_infos
from npstream.streaming.stream import CacheChoice, Stream, open_hooked_stream
from npstream.torch import TorchIterableDataset

if TYPE_CHECKING:
    from npstream.dataset.dataset import Dataset


class StreamingDataset(Array, TorchIterableDataset[Any]):
    """Streaming's dataset: all samples by index, and one rank's epochs by iteration.

    The samples of all ranks and workers, their order and the states are those of Streaming. A
    subclass may override `__getitem__` or `get_item`. Then iteration yields ``self[id]`` for each
    id, and the data are read ahead all the same.

    Parameters
    ----------
    streams : sequence of Stream, optional
        The streams. Give either these, or `remote` and `local`.
    remote : str, optional
        The URL or the path of the dataset. By default it is `local`.
    local : str, optional
        The directory of the dataset, or of its cache if `remote` is given.
    split : str, optional
        A subdirectory of both, such as "train".
    download_retry : int, default: 2
        Maximum retries of a request.
    download_timeout : float, default: 60
        Seconds that a request may take, including its retries.
    validate_hash : str, optional
        Name of a hash to check in each read, such as "sha1", as for ``npstream.open(verify=...)``.
        By default, the recorded hashes of fetched chunks are checked.
    keep_zip : bool, default: False
        Not used: compressed shards are decompressed to the cache.
    epoch_size : int or str, optional
        Samples in an epoch, such as "100k". By default the streams and their weights give it.
    predownload : int, optional
        Not used: npstream reads ahead by bytes. A number below `batch_size` gives a warning.
    cache_limit : int or str, optional
        Maximum bytes of the cache, such as "100gb".
    sampling_method : {"balanced", "fixed"}, default: "balanced"
        Which samples an epoch picks if it does not take all samples of a stream. With "balanced",
        each epoch picks other samples. With "fixed", all epochs pick the same.
    sampling_granularity : int, default: 1
        Consecutive samples that are picked together.
    partition_algo : {"relaxed", "orig"}, default: "relaxed"
        "relaxed" allows a run to resume on any number of nodes that divides its global batch.
    num_canonical_nodes : int, optional
        Number of sequences that the order interleaves. By default 64 for each node with "py1s" and
        "py2s", else 1 for each node.
    batch_size : int, optional
        Samples in a batch of a rank; iteration requires it.
    shuffle : bool, default: False
        Whether to shuffle the samples.
    shuffle_algo : {"py1e", "py1s", "py1br", "py2s", "naive"}, default: "py1e"
        The shuffle.
    shuffle_seed : int, default: 9176
        The seed of the order.
    shuffle_block_size : int, optional
        Samples that are shuffled together. By default
        ``max(4_000_000 // num_canonical_nodes, 262_144)``.
    batching_method : {"random", "stratified", "per_stream", "device_per_stream"}, \
default: "random"
        How batches take samples of several streams, as for `npstream.StreamingShuffle`.
    allow_unsafe_types : bool, default: False
        Whether columns may be unpickled, which can run code.
    replication : int, optional
        Number of consecutive ranks that read the same samples.
    stream_name : str, default: "stream"
        The class of the stream that `remote` and `local` describe, by its name in
        ``npstream.streaming.base.stream.streams_registry``.
    stream_config : dict, optional
        More arguments of this class.

    Raises
    ------
    ValueError
        If an argument is invalid, or `cache_limit` is too low.
    FileNotFoundError
        If a stream does not exist.
    RuntimeError
        If a stream has no samples.

    Examples
    --------
    >>> path = str(getfixture("tmp_path"))
    >>> report = npstream.write(path, {"x": np.arange(10)})
    >>> ds = StreamingDataset(local=path, batch_size=5, shuffle=True)
    >>> ds[2:4]
    [{'x': np.int64(2)}, {'x': np.int64(3)}]
    >>> [int(sample["x"]) for sample in ds]
    [8, 1, 2, 7, 5, 6, 9, 3, 0, 4]
    """

    def __init__(
        self,
        *,
        streams: Sequence[Stream] | None = None,
        remote: str | None = None,
        local: str | None = None,
        split: str | None = None,
        download_retry: int = 2,
        download_timeout: float = 60,
        validate_hash: str | None = None,
        keep_zip: bool = False,
        epoch_size: int | str | None = None,
        predownload: int | None = None,
        cache_limit: int | str | None = None,
        sampling_method: str = "balanced",
        sampling_granularity: int = 1,
        partition_algo: str = "relaxed",
        num_canonical_nodes: int | None = None,
        batch_size: int | None = None,
        shuffle: bool = False,
        shuffle_algo: str = "py1e",
        shuffle_seed: int = 9176,
        shuffle_block_size: int | None = None,
        batching_method: str = "random",
        allow_unsafe_types: bool = False,
        replication: int | None = None,
        stream_name: str = "stream",
        stream_config: dict[str, Any] | None = None,
    ) -> None:
        self.sampling_method, self.sampling_granularity = sampling_method, sampling_granularity
        self.partition_algo, self.num_canonical_nodes = partition_algo, num_canonical_nodes
        self.batch_size, self.batching_method = batch_size, batching_method
        self.shuffle, self.shuffle_algo = shuffle, shuffle_algo
        self.shuffle_seed, self.shuffle_block_size = shuffle_seed, shuffle_block_size
        self.allow_unsafe_types, self.replication = allow_unsafe_types, replication
        self.predownload = _check_predownload(predownload, batch_size)
        self.cache_limit = bytes_to_int(cache_limit) if cache_limit else None
        self.initial_physical_nodes: int | None = None
        default = {
            "remote": remote, "local": local, "split": split, "download_retry": download_retry,
            "download_timeout": download_timeout, "validate_hash": validate_hash,
            "keep_zip": keep_zip,
        }  # fmt: skip
        self.streams = _make_streams(streams, default, stream_name, stream_config)
        self.num_streams = len(self.streams)
        self._npstream_epoch_size = number_abbrev_to_int(epoch_size) if epoch_size else None
        self._npstream_order(shards=[])  # raises for invalid settings, before anything is read
        detect_world(replication)  # raises if `replication` does not fit
        datasets = _open_streams(self.streams, self.cache_limit, allow_unsafe_types)
        self._npstream_samples = StreamSamples(datasets, _shard_preparation(self.streams, datasets))
        self._npstream_ahead: dict[int, Any] = {}
        self._npstream_position = RunPosition()
        self.num_samples = self._npstream_samples.starts[-1]
        self.epoch_size = Stream.apply_weights(
            self.streams, self.samples_per_stream, self._npstream_epoch_size, shuffle_seed
        )

    # Facts about streams and shards

    @property
    def size(self) -> int:
        """The number of samples of all streams."""
        return self.num_samples

    def __len__(self) -> int:
        """Return the number of samples that a rank reads in an epoch."""
        world, _ = detect_world(self.replication)
        return -(-self.epoch_size // world.ranks)

    @property
    def samples_per_stream(self) -> Int64:
        """The number of samples of each stream."""
        return np.diff(self._npstream_samples.starts)

    @property
    def sample_offset_per_stream(self) -> Int64:
        """The number of the first sample of each stream."""
        return np.array(self._npstream_samples.starts[:-1], np.int64)

    @property
    def shards_per_stream(self) -> Int64:
        """The number of shards of each stream."""
        return np.array([len(index) for index in self._npstream_samples.indexes], np.int64)

    @property
    def shard_offset_per_stream(self) -> Int64:
        """The number of the first shard of each stream."""
        counts = self.shards_per_stream
        return np.cumsum(counts) - counts

    @property
    def stream_per_shard(self) -> Int64:
        """The number of the stream of each shard."""
        return np.repeat(np.arange(self.num_streams), self.shards_per_stream)

    @cached_property
    def samples_per_shard(self) -> Int64:
        """The number of samples of each shard."""
        return np.concatenate([np.diff(index.starts) for index in self._npstream_samples.indexes])

    @property
    def sample_offset_per_shard(self) -> Int64:
        """The number of the first sample of each shard."""
        counts = self.samples_per_shard
        return np.cumsum(counts) - counts

    @property
    def num_shards(self) -> int:
        """The number of shards of all streams."""
        return len(self.samples_per_shard)

    @cached_property
    def shards(self) -> list[ShardInfo]:
        """The shards of all streams."""
        return [shard for index in self._npstream_samples.indexes for shard in shard_infos(index)]

    @cached_property
    def spanner(self) -> Spanner:
        """The shard of each sample, and the number of the sample in it: ``ds.spanner[sample]``."""
        return Spanner(self.samples_per_shard)

    # Samples

    def get_item(self, sample_id: int, retry: int = 7) -> Any:
        """Return a sample; it is fetched if necessary.

        Parameters
        ----------
        sample_id : int
            Number of the sample, from 0 to ``size - 1``.
        retry : int, default: 7
            Not used: `download_retry` is the number of retries.

        Returns
        -------
        dict
            A new one, whose arrays are writable.

        Raises
        ------
        IndexError
            If there is no such sample.

        Examples
        --------
        >>> path = str(getfixture("tmp_path"))
        >>> report = npstream.write(path, {"x": np.arange(10)})
        >>> StreamingDataset(local=path).get_item(3)
        {'x': np.int64(3)}
        """
        sample = self._npstream_ahead.pop(sample_id, None)
        return self._npstream_samples.read_one(sample_id) if sample is None else sample

    @property
    def _npstream_reads_itself(self) -> bool:  # type: ignore[override]
        cls = type(self)
        return (
            cls.__getitem__ is StreamingDataset.__getitem__
            and cls.get_item is StreamingDataset.get_item
        )

    def _npstream_items(self, numbers: Iterable[int] | Int64) -> list[Any]:
        if not self._npstream_reads_itself:
            return super()._npstream_items(numbers)
        if isinstance(numbers, range):
            numbers = np.arange(numbers.start, numbers.stop, numbers.step)
        return list(self._npstream_samples.read(np.asarray(numbers, np.int64)))

    def prepare_shard(self, shard_id: int, blocking: bool = True) -> None:
        """Fetch a shard into the cache, unless it is there.

        Parameters
        ----------
        shard_id : int
            Number of the shard.
        blocking : bool, default: True
            Not used: this waits until the shard is there.

        Examples
        --------
        >>> path = str(getfixture("tmp_path"))
        >>> report = npstream.write(path, {"x": np.arange(10)})
        >>> StreamingDataset(local=path).prepare_shard(0)  # a local shard is there already
        """
        shard = operator.index(shard_id)
        stream, _ = self._npstream_samples.find_shard(shard)
        self.streams[stream].prepare_shard(self.shards[shard])

    def evict_shard(self, shard_id: int) -> None:
        """Remove a shard from the cache. Files of a dataset that is read in place stay.

        Parameters
        ----------
        shard_id : int
            Number of the shard.

        Examples
        --------
        >>> path = str(getfixture("tmp_path"))
        >>> report = npstream.write(path, {"x": np.arange(10)})
        >>> StreamingDataset(local=path).evict_shard(0)  # a local shard stays
        """
        self._npstream_samples.evict(operator.index(shard_id))

    @property
    def cache_usage(self) -> int:
        """The bytes on the disk of the caches of all streams."""
        return sum(npstream_cache.info(path).nbytes for path in self._npstream_samples.caches)

    # Epochs and states

    def __iter__(self) -> Iterator[Any]:
        return iterate_epoch(self)

    @property
    def next_epoch(self) -> int:
        """The number of the epoch that the next loop reads."""
        return self._npstream_position.next_cursor.epoch

    @next_epoch.setter
    def next_epoch(self, epoch: int) -> None:
        self._npstream_position.move_to(EpochCursor(operator.index(epoch)))

    def state_dict(self, num_samples: int, from_beginning: bool) -> dict[str, Any]:
        """Return a state, which Streaming can load, too.

        Parameters
        ----------
        num_samples : int
            Samples that all ranks together have used in the epoch. Replicas count as one rank.
        from_beginning : bool
            Whether `num_samples` counts from the beginning of the epoch. If False, it counts from
            where the loop began, for instance at a loaded state.

        Returns
        -------
        dict

        Examples
        --------
        >>> path = str(getfixture("tmp_path"))
        >>> report = npstream.write(path, {"x": np.arange(10)})
        >>> ds = StreamingDataset(local=path, batch_size=5)
        >>> samples = list(ds)
        >>> ds.state_dict(5, from_beginning=True)["sample_in_epoch"]
        5
        """
        cursor = self._npstream_position.current_cursor
        world, _ = detect_world(self.replication)
        offset = 0 if from_beginning else cursor.position
        return self._npstream_order(cursor=cursor).state(world, cursor.epoch, offset + num_samples)

    def load_state_dict(self, obj: Mapping[str, Any]) -> None:
        """Let the next loop begin at a state of npstream or of Streaming.

        Parameters
        ----------
        obj : mapping
            The result of `state_dict`.

        Raises
        ------
        ValueError
            If the state lacks an entry.

        Examples
        --------
        >>> path = str(getfixture("tmp_path"))
        >>> report = npstream.write(path, {"x": np.arange(10)})
        >>> ds = StreamingDataset(local=path, batch_size=5)
        >>> samples = list(ds)
        >>> ds.load_state_dict(ds.state_dict(5, from_beginning=True))
        >>> [int(sample["x"]) for sample in ds]
        [5, 6, 7, 8, 9]
        """
        world, _ = detect_world(self.replication)
        order, epoch, position = self._npstream_order().resume(obj, world)
        if obj["epoch"] < 0:  # a state from before the first epoch
            self._npstream_position.move_to(EpochCursor(0))
            return
        run = StreamingRun(*(getattr(order, name) for name in StreamingRun._fields))
        self._npstream_position.move_to(EpochCursor(epoch, position, context=run.pack()))

    def _npstream_order(
        self,
        batch_size: int | None = None,
        cursor: EpochCursor | None = None,
        shards: Sequence[Int64] | None = None,
    ) -> StreamingOrder:
        """Return the order of the epochs, with the settings of the run that `cursor` resumes."""
        if shards is None:
            shards = [np.diff(index.starts) for index in self._npstream_samples.indexes]
        names = (
            "partition_algo", "num_canonical_nodes", "initial_physical_nodes", "shuffle",
            "shuffle_algo", "shuffle_seed", "shuffle_block_size", "sampling_method",
            "sampling_granularity", "batching_method",
        )  # fmt: skip
        settings = {name: getattr(self, name) for name in names}
        if cursor is not None and cursor.context:
            settings |= StreamingRun.unpack(cursor.context)._asdict()
        weights = [stream.weight for stream in self.streams] if shards else []
        return StreamingOrder(
            shards=shards, weights=weights, epoch_size=self._npstream_epoch_size,
            batch_size=batch_size or 1, **settings,
        )  # fmt: skip


def _check_predownload(predownload: int | None, batch_size: int | None) -> int:
    if predownload is None:
        return 8 * batch_size if batch_size is not None else 64
    if batch_size is not None and predownload < batch_size:
        warnings.warn(
            f"predownload < batch_size ({predownload} < {batch_size}): give at least as many",
            stacklevel=3,
        )
    return predownload


def _make_streams(
    streams: Sequence[Stream] | None,
    default: dict[str, Any],
    stream_name: str,
    stream_config: dict[str, Any] | None,
) -> list[Stream]:
    """Return the streams, with the settings of the dataset where they have none."""
    if bool(streams) == bool(default["remote"] or default["local"]):
        raise ValueError("give either streams=, or remote= or local=, and not both")
    make_stream = streams_registry.get(stream_name)
    if not streams:
        streams = [make_stream(**{**(stream_config or {}), **default})]
    for stream in streams:
        stream.apply_default(default)
    if default["keep_zip"]:
        warn("keep_zip is not used: compressed shards are decompressed to the cache")
    return list(streams)


def _open_streams(
    streams: Sequence[Stream], cache_limit: int | None, allow_pickle: bool
) -> list[Dataset]:
    """Open the datasets of streams.

    With `cache_limit`, all streams share one cache, so that the limit holds for all of them
    together.
    """
    directories = [stream._npstream_local for stream in streams if stream.remote]
    shared = next(filter(None, directories), None) if cache_limit else None
    datasets = []
    for stream in streams:
        cache = CacheChoice(shared or stream._npstream_local, cache_limit)
        datasets.append(open_hooked_stream(stream, cache, allow_pickle))
        if not len(datasets[-1]):
            raise RuntimeError(f"{stream!r} has no samples: leave it out")
    return datasets


def _shard_preparation(
    streams: Sequence[Stream], datasets: Sequence[Dataset]
) -> ShardPreparation | None:
    """Return what calls `prepare_shard` before samples are read; None if no class overrides it."""
    hooked = [s if type(s).prepare_shard is not Stream.prepare_shard else None for s in streams]
    if not any(hooked):
        return None
    return ShardPreparation(hooked, [ds._source.index for ds in datasets])
