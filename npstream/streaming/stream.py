"""Provide `Stream`: a dataset of a `StreamingDataset`, and its weight.

Tested in tests/streaming/test_streams.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from npstream._core.log import warn
from npstream._core.typing import Int64
from npstream.cache.directory import default_directory
from npstream.dataset.opening import DatasetOpening, copied_url, open_dataset
from npstream.formats.encodings.encodings import is_unsafe
from npstream.formats.index import INDEX
from npstream.orders.streaming import sampling
from npstream.orders.streaming.sampling import Weight
from npstream.storage.local import open_store
from npstream.storage.urls import join_url, scheme_of
from npstream.streaming.base.world import World
from npstream.streaming.partial_store import PartialCopyStore
from npstream.streaming.shards import ShardInfo, shard_infos

if TYPE_CHECKING:
    from npstream.dataset.dataset import Dataset
    from npstream.formats.index import File

DOWNLOAD_SETTINGS = ("split", "download_retry", "download_timeout", "validate_hash", "keep_zip")
"""The settings of a stream that default to those of its `StreamingDataset`."""

WEIGHT_NAMES = ("proportion", "repeat", "choose")


class CacheChoice(NamedTuple):
    """The cache of a stream's remote data.

    Attributes
    ----------
    directory : str or None
        None for npstream's own directory.
    limit : int or None
        The bytes that it may take; None for npstream's default.
    """

    directory: str | None
    limit: int | None


class Stream:
    """A dataset that a `StreamingDataset` reads, alone or with others.

    A stream is given at most one of the three weights `proportion`, `repeat` and `choose`. Its
    `StreamingDataset` then sets all three from the weights and sizes of all streams.

    Parameters
    ----------
    remote : str, optional
        The URL or the path of the dataset. By default it is `local`.
    local : str, optional
        The directory of the dataset, or of its cache if `remote` is given. By default remote data
        are cached in npstream's cache.
    split : str, optional
        A subdirectory of both, such as "train".
    proportion : float, optional
        The share of the stream in an epoch, relative to those of all other streams.
    repeat : float, optional
        How often an epoch takes the stream.
    choose : int, optional
        How many samples an epoch takes of the stream.
    download_retry : int, optional
        Maximum retries of a request; by default as for the `StreamingDataset`.
    download_timeout : float, optional
        Seconds that a request may take; by default as for the `StreamingDataset`.
    validate_hash : str, optional
        Name of a hash to check; by default as for the `StreamingDataset`.
    keep_zip : bool, optional
        Not used: compressed shards are decompressed to the cache.

    Raises
    ------
    ValueError
        If several weights are given, or a number is negative.

    Examples
    --------
    >>> from npstream.streaming import StreamingDataset
    >>> path = str(getfixture("tmp_path"))
    >>> report = npstream.write(path, {"x": np.arange(10)})
    >>> ds = StreamingDataset(streams=[Stream(local=path, repeat=2)], batch_size=5)
    >>> ds.streams[0].choose, len(ds)
    (20, 20)
    """

    proportion: float
    repeat: float
    choose: int

    def __init__(
        self,
        *,
        remote: str | None = None,
        local: str | None = None,
        split: str | None = None,
        proportion: float | None = None,
        repeat: float | None = None,
        choose: int | None = None,
        download_retry: int | None = None,
        download_timeout: float | None = None,
        validate_hash: str | None = None,
        keep_zip: bool | None = None,
    ) -> None:
        weights = {"proportion": proportion, "repeat": repeat, "choose": choose}
        given = {name: weight for name, weight in weights.items() if weight is not None}
        if len(given) > 1:
            raise ValueError(f"a stream has at most one weight, not {' and '.join(given)}")
        for name, weight in given.items():
            if not weight >= 0:
                raise ValueError(f"{name}={weight!r}: expected at least 0")
            setattr(self, name, weight)
        if download_retry is not None and download_retry < 0:
            raise ValueError(f"download_retry={download_retry!r}: expected at least 0")
        if download_timeout is not None and not download_timeout > 0:
            raise ValueError(f"download_timeout={download_timeout!r}: expected more than 0 seconds")
        self.remote, self.split = remote, split or ""
        self.local = default_directory() if local is None else local
        self.download_retry, self.download_timeout = download_retry, download_timeout
        self.validate_hash, self.keep_zip = validate_hash, keep_zip
        self._npstream_local = local
        self._npstream_weight: Weight | None = None
        self._npstream_cache = CacheChoice(local, None)
        self._npstream_dataset: Dataset | None = None

    def __repr__(self) -> str:
        places = {"remote": self.remote, "local": self._npstream_local, "split": self.split or None}
        text = ", ".join(f"{name}={place!r}" for name, place in places.items() if place is not None)
        return f"Stream({text})"

    @property
    def weight(self) -> Weight:
        """The weight that a user gave the stream, before a dataset has set all three weights."""
        if self._npstream_weight is None:
            # A subclass may give its weight as an attribute of the class.
            given = {name: getattr(self, name) for name in WEIGHT_NAMES if hasattr(self, name)}
            self._npstream_weight = Weight(**given)
        return self._npstream_weight

    def apply_default(self, default: Mapping[str, Any]) -> None:
        """Set each setting that was not given to its value in `default`.

        For `npstream.streaming` only.

        Parameters
        ----------
        default : mapping
            The settings of the `StreamingDataset`, by name.

        Raises
        ------
        ValueError
            If the stream has neither `remote` nor `local`.
        """
        if not (self.remote or self._npstream_local):
            raise ValueError(
                "a stream has neither remote nor local: give Stream(remote=...) the URL or the "
                "path of a dataset, or Stream(local=...) its directory"
            )
        self.split = self.split or default["split"] or ""
        for name in DOWNLOAD_SETTINGS[1:]:
            if getattr(self, name) is None:
                setattr(self, name, default[name])

    def get_shards(self, world: Any, allow_unsafe_types: bool) -> list[ShardInfo]:
        """Open the dataset of the stream, and return its shards.

        A subclass may prepare `local` or change `remote` before it calls this method. Its
        own `get_shards` must return the shards that this method returns.

        Parameters
        ----------
        world : npstream.streaming.base.world.World
            The ranks of this run.
        allow_unsafe_types : bool
            Whether columns may be unpickled.

        Returns
        -------
        list of ShardInfo

        Raises
        ------
        FileNotFoundError
            If the stream does not exist.
        ValueError
            If a column is pickled, and `allow_unsafe_types` is False.

        Examples
        --------
        >>> path = str(getfixture("tmp_path"))
        >>> report = npstream.write(path, {"x": np.arange(10)})
        >>> ds = npstream.streaming.StreamingDataset(streams=[Stream(local=path)])
        >>> [shard.samples for shard in ds.streams[0].get_shards(None, False)]
        [10]
        """
        self._npstream_dataset = ds = open_stream(self, self._npstream_cache, allow_unsafe_types)
        return list(shard_infos(ds._source.index))

    def prepare_shard(self, shard: ShardInfo) -> int:
        """Fetch a shard into the cache, unless it is there.

        If a subclass overrides this method, it is called in each process, once for each shard
        before its samples are read. Files that it puts in `local` are read from there.

        Parameters
        ----------
        shard : ShardInfo
            A shard of this stream.

        Returns
        -------
        int
            0. In Streaming it is the change in the bytes of the cache.

        Raises
        ------
        ValueError
            If the stream does not belong to a StreamingDataset.

        Examples
        --------
        >>> path = str(getfixture("tmp_path"))
        >>> report = npstream.write(path, {"x": np.arange(10)})
        >>> ds = npstream.streaming.StreamingDataset(streams=[Stream(local=path)])
        >>> ds.streams[0].prepare_shard(ds.shards[0])
        0
        """
        if self._npstream_dataset is None:
            raise ValueError(f"{self!r} is not open: give it to a StreamingDataset first")
        starts = self._npstream_dataset._source.index.starts
        self._npstream_dataset[int(starts[shard.number]) : int(starts[shard.number + 1])].prefetch()
        return 0

    @classmethod
    def apply_weights(
        cls,
        streams: Sequence[Stream],
        samples_per_stream: Int64,
        choose_per_epoch: int | None,
        seed: int,
    ) -> int:
        """Set the three weights of each stream, and return the number of samples in an epoch.

        Parameters
        ----------
        streams : sequence of Stream
            The streams.
        samples_per_stream : ndarray of int64
            The samples of each stream.
        choose_per_epoch : int or None
            Samples in an epoch; by default the weights and the sizes give it.
        seed : int
            Seed of the random choice of streams: the chosen streams get the samples that rounding
            leaves over.

        Returns
        -------
        int

        Examples
        --------
        >>> streams = [Stream(local="a", proportion=1), Stream(local="b", proportion=3)]
        >>> Stream.apply_weights(streams, np.array([50, 50]), 80, 0)
        80
        >>> [stream.choose for stream in streams]
        [20, 60]
        """
        weights = [stream.weight for stream in streams]
        sizes = np.asarray(samples_per_stream)
        counts, proportions = sampling.samples_per_stream(weights, sizes, choose_per_epoch, seed)
        repeats = np.asarray(counts) / sizes
        for stream, proportion, repeat, choose in zip(
            streams, proportions.tolist(), repeats.tolist(), counts.tolist(), strict=True
        ):
            stream.proportion, stream.repeat, stream.choose = proportion, repeat, choose
        return int(counts.sum())


NOT_CALLED = ("set_up_local", "_download_file", "_prepare_shard_part", "_decompress_shard_part")
"""Methods of Streaming's class that have no meaning here, so a subclass cannot override them."""


def open_hooked_stream(stream: Stream, cache: CacheChoice, allow_pickle: bool) -> Dataset:
    """Open the dataset of a stream, by its `get_shards` if its class overrides that.

    Raises
    ------
    TypeError
        If the class overrides methods that are not called, or `get_shards` returns other shards.
    """
    name = type(stream).__name__
    for method in NOT_CALLED:
        if hasattr(type(stream), method):
            raise TypeError(
                f"{name} has a method {method}, which npstream does not call: override "
                "prepare_shard, or give the stream a remote= that npstream.open can read"
            )
    if type(stream).get_shards is Stream.get_shards:
        stream._npstream_dataset = open_stream(stream, cache, allow_pickle)
        return stream._npstream_dataset
    stream._npstream_cache, earlier = cache, stream._npstream_dataset
    shards, ds = stream.get_shards(World.detect(), allow_pickle), stream._npstream_dataset
    if ds is None or ds is earlier or list(shards) != list(shard_infos(ds._source.index)):
        raise TypeError(
            f"{name}.get_shards returned other shards than Stream.get_shards: npstream can read "
            "only whole datasets with an index.json; call super().get_shards and return its result"
        )
    return ds


def open_stream(stream: Stream, cache: CacheChoice, allow_pickle: bool) -> Dataset:
    """Open the dataset of a stream whose settings are complete, and check for pickled columns."""
    ds = _open_dataset(stream, cache)
    fields = ds._source.fields
    pickled = [name for name in ds.columns if is_unsafe(fields[name].encoding.name)]
    if pickled and not allow_pickle:
        raise ValueError(
            f"{stream!r}: column {pickled[0]!r} is pickled, and loading it can run code: give "
            "StreamingDataset allow_unsafe_types=True if you trust the data"
        )
    return ds


def _open_dataset(stream: Stream, cache: CacheChoice) -> Dataset:
    """Open the dataset of a stream whose settings are complete.

    If Streaming has downloaded all files to `local`, they are read in place. If it has downloaded
    only some of them, bytes are read from these files, and all other bytes from `remote`. Both are
    cached in `cache`.
    """
    settings: dict[str, Any] = {
        "verify": stream.validate_hash or "auto", "allow_pickle": True,
        "timeout": stream.download_timeout, "retries": stream.download_retry,
        "implicit_read_limit": None,
    }  # fmt: skip
    local, remote = stream._npstream_local, stream.remote
    directory = None if local is None else os.path.join(os.path.expanduser(local), stream.split)
    if remote is None or remote == local:
        assert directory is not None
        return open_dataset(directory, **settings)
    url: str = join_url(remote, stream.split) if stream.split else remote
    if directory is not None and os.path.isfile(os.path.join(directory, INDEX)):
        ds = open_dataset(directory, **settings)
        if _has_all_files(ds, directory):
            return ds
        if _has_same_index(url, directory):
            return _open_partial_copy(url, directory, cache, settings)
    # A path without a local directory is read in place; Streaming would copy it.
    copy = local is not None
    return open_dataset(url, cache=cache.directory, cache_limit=cache.limit, copy=copy, **settings)


def _has_all_files(ds: Dataset, directory: str) -> bool:
    """Return True if each shard has its files, compressed or not, in a directory."""
    index = ds._source.index

    def has(files: tuple[File | None, ...]) -> bool:
        paths = [os.path.join(directory, file.name) for file in files if file is not None]
        return all(map(os.path.isfile, paths))

    return all(
        has((files.data, files.meta)) or (files.zip_data and has((files.zip_data, files.zip_meta)))
        for files in map(index.files, range(len(index)))
    )


def _has_same_index(url: str, directory: str) -> bool:
    """Return True if the index in a directory is that of a URL or path."""
    with open(os.path.join(directory, INDEX), "rb") as file:
        is_same = open_store(url).read(INDEX) == file.read()
    if not is_same:
        warn("%s has the files of another version of %s: they are not used", directory, url)
    return is_same


def _open_partial_copy(
    url: str, directory: str, cache: CacheChoice, settings: dict[str, Any]
) -> Dataset:
    """Open a dataset, some of whose files are in a directory."""
    if scheme_of(url) in ("", "file"):
        url = copied_url(url)
    limits = settings["timeout"], settings["retries"]
    store = PartialCopyStore(directory, url, None, *limits)
    opening = DatasetOpening(
        store, None, (cache.directory, cache.limit), settings["verify"], None,
        settings["allow_pickle"], None,
    )  # fmt: skip
    return opening.open_dataset()
