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
from npstream.formats.index import INDEX
from npstream.orders.streaming.sampling import Weight, samples_per_stream
from npstream.storage.local import open_store
from npstream.storage.urls import join_url, scheme_of
from npstream.streaming.partial_store import PartialCopyStore

if TYPE_CHECKING:
    from npstream.dataset.dataset import Dataset
    from npstream.formats.index import File

DOWNLOAD_SETTINGS = ("split", "download_retry", "download_timeout", "validate_hash", "keep_zip")
"""The settings of a stream that default to those of its `StreamingDataset`."""

WEIGHT_NAMES = ("proportion", "repeat", "choose")


class Stream:
    """A dataset that a `StreamingDataset` reads, alone or with others.

    A `StreamingDataset` sets all three weights of its streams: `proportion`, `repeat` and `choose`.

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
        Not used: npstream keeps compressed shards compressed in the cache.

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

    def __repr__(self) -> str:
        places = {"remote": self.remote, "local": self._npstream_local, "split": self.split or None}
        text = ", ".join(f"{name}={place!r}" for name, place in places.items() if place is not None)
        return f"Stream({text})"

    @property
    def weight(self) -> Weight:
        """The weight that a user gave the stream, before a dataset has set all three weights."""
        if self._npstream_weight is None:
            given = {name: vars(self)[name] for name in WEIGHT_NAMES if name in vars(self)}
            self._npstream_weight = Weight(**given)
        return self._npstream_weight

    def apply_default(self, default: Mapping[str, Any]) -> None:
        """Replace settings that were not given by those of a `StreamingDataset`.

        For `npstream.streaming` only.

        Parameters
        ----------
        default : mapping
            The settings by name.

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


def open_stream(stream: Stream, cache: CacheChoice, allow_pickle: bool) -> Dataset:
    """Open the dataset of a stream whose settings are complete.

    If Streaming has downloaded all files to `local`, they are read in place. If it has downloaded
    only some of them, the data that are read are cached in `local`. They are then read from the
    downloaded files if these have them, and otherwise from `remote`.
    """
    settings: dict[str, Any] = {
        "verify": stream.validate_hash or "auto", "allow_pickle": allow_pickle,
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


def apply_weights(
    streams: Sequence[Stream], sizes: Int64, epoch_size: int | None, seed: int
) -> int:
    """Set the three weights of each stream, and return the number of samples in an epoch.

    Parameters
    ----------
    streams : sequence of Stream
    sizes : ndarray of int64
        The samples of each stream.
    epoch_size : int, optional
        Samples in an epoch; by default the weights and the sizes give it.
    seed : int
        Seed of the random choice of streams: the chosen streams get the samples that rounding
        leaves over.
    """
    weights = [stream.weight for stream in streams]
    counts, proportions = samples_per_stream(weights, sizes, epoch_size, seed)
    repeats = np.asarray(counts) / sizes
    for stream, proportion, repeat, choose in zip(
        streams, proportions.tolist(), repeats.tolist(), counts.tolist(), strict=True
    ):
        stream.proportion, stream.repeat, stream.choose = proportion, repeat, choose
    return int(counts.sum())
