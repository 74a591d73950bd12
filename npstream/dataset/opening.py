"""The function that opens a dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from npstream._core.arguments import name_list, parse_seconds, parse_size, quantity
from npstream._core.log import log
from npstream.dataset.dataset import Dataset
from npstream.errors import StorageError, short_repr, short_traceback
from npstream.formats.hashes import HASHES
from npstream.indexing.selection import Selection
from npstream.joins.added import open_joined, start_reading_groups
from npstream.reading.schema import open_source
from npstream.shards.opening import open_cache, open_shards
from npstream.shards.table import Fetcher
from npstream.storage.local import open_store, options_for
from npstream.storage.traffic.events import report_block
from npstream.storage.urls import join_url, local_path, location_str, scheme_of

if TYPE_CHECKING:
    import os

    from npstream.reading.source import Source
    from npstream.shards.base import Verify
    from npstream.shards.opening import CacheSettings
    from npstream.storage.local import Store


def open_dataset(
    url: str | os.PathLike[str],
    *,
    split: str | None = None,
    columns: Sequence[str] | Mapping[str, Any] | None = None,
    cache: str | os.PathLike[str] | None = None,
    cache_limit: int | str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    index: str | os.PathLike[str] | None = None,
    version: str | None = None,
    verify: Verify = "auto",
    allow_pickle: bool = False,
    timeout: float = 60.0,
    retries: int = 4,
    hedge: bool = True,
    outage: float | str = 0,
    implicit_read_limit: int | str | None = "1GiB",
    copy: bool = False,
) -> Dataset:
    """Open a dataset. This reads only the dataset's index.

    Parameters
    ----------
    url : str or os.PathLike
        The directory that contains ``index.json``: a local path, or a URL such as
        ``s3://bucket/corpus``.
    split : str, optional
        A subdirectory to open instead, such as "train".
    columns : sequence of str, or mapping of str to dtype or str, optional
        A sequence selects columns. A mapping declares a dtype or an encoding for the bytes of some
        columns, such as ``{"tokens": "ndarray:int64:2048"}``, and selects all columns.
    cache : str or os.PathLike, optional
        The directory that caches chunks of remote datasets. By default the environment variable
        ``NPSTREAM_CACHE``, or else the user's cache directory.
    cache_limit : int or str, optional
        Maximum bytes of the cache, such as "100GB". "auto" leaves a tenth of the disk
        free, at most 10 GB. By default the environment variable ``NPSTREAM_CACHE_LIMIT``, or else
        "auto".
    storage_options : mapping, optional
        Options of the store's fsspec driver.
    index : str or os.PathLike, optional
        The directory or URL of the dataset's side-car. By default, the directory of the index.
        `storage_options` also apply to a side-car with the same scheme, and for HTTP, the same
        host.
    version : str, optional
        The fingerprint of the index to read. By default, the newest index is read.
    verify : bool or str, default: "auto"
        The recorded hashes to check. "auto" checks the hashes of decompressed shards and of fetched
        chunks. The name of a hash, such as "sha1", checks this hash everywhere, also of mapped
        files and cached chunks. True checks any recorded hash everywhere, and fetches whole chunks
        instead of single samples. False checks none.
    allow_pickle : bool, default: False
        Whether columns may be unpickled, which can run code.
    timeout : float, default: 60.0
        Seconds that a request to the store may take, including all retries.
    retries : int, default: 4
        Maximum retries of a request.
    hedge : bool, default: True
        Whether a range request that takes more than 3 times the recent median is sent again, at
        most twice. The first answer is used. This adds at most 3 % of the requests.
    outage : float or str, default: 0
        How long reads wait for a store that does not answer any more, after `timeout` and
        `retries`: a number of seconds, or text such as "10min", "90s" or "1h".
    implicit_read_limit : int, str or None, default: "1GiB"
        Maximum bytes that an implicit read, such as a comparison, fetches. A read that would fetch
        more raises `CostError`. None sets no limit.
    copy : bool, default: False
        Whether to read a local path as if it were remote: chunks that are read are copied to the
        cache, within its limit. This brings data from a network file system to a local disk.

    Returns
    -------
    Dataset

    Raises
    ------
    FormatError
        If the index does not follow the format.
    StorageError
        If the index cannot be read. If it does not exist, the error is also a FileNotFoundError.
    ValueError
        If the limit of the cache is too small for any read; the message has the smallest limit. If
        `verify` is not a known hash. If a column is pickled and `allow_pickle` is False.
    TypeError
        If `columns` is a single name.
    MissingDependencyError
        If the store's driver, or a column's dtype, needs a package that is not installed.

    Examples
    --------
    >>> import npstream
    >>> path = getfixture("tmp_path") / "numbers"
    >>> report = npstream.write(path, {"x": np.arange(10)})
    >>> npstream.open(path)[3]
    {'x': np.int64(3)}
    """
    with short_traceback:
        if isinstance(url, list | tuple | Mapping):
            raise TypeError(
                f"url is of type {type(url).__name__}: open takes one dataset; open each, and join "
                "them with npstream.mix({'a': npstream.open(...), 'b': npstream.open(...)})"
            )
        if isinstance(columns, str):
            name_list(columns)  # raises TypeError for a single name
        if not isinstance(verify, bool) and verify != "auto" and verify not in HASHES:
            raise ValueError(
                f"verify={verify!r}: expected True, False, 'auto' or one of {', '.join(HASHES)}"
            )
        limit = parse_size(implicit_read_limit, "implicit_read_limit")
        _check_arguments(
            cache_limit, version, {"allow_pickle": allow_pickle, "hedge": hedge, "copy": copy}
        )
        if cache is not None:
            cache = local_path(cache, "cache")
        root = url if split is None else join_url(url, split)
        limits: Any = {
            "timeout": timeout,
            "retries": retries,
            "hedge": hedge,
            "outage": parse_seconds("outage", outage),
        }
        if copy and scheme_of(location_str(root, "url")) in ("", "file"):
            root = copied_url(root)
        store = open_store(root, storage_options, **limits, argument="url")
        sidecar_store = None
        if index is not None:
            index = location_str(index, "index")
            options = options_for(url, storage_options, index)
            sidecar_store = open_store(index, options, **limits, argument="index")
        opening = DatasetOpening(
            store,
            sidecar_store,
            (cache, cache_limit),
            verify,
            columns,
            allow_pickle,
            limit,
            version,
        )
        return opening.open_dataset(split)


def copied_url(path: str | os.PathLike[str]) -> str:
    """Return a URL of a local path, whose files are fetched and cached as those of a store."""
    return f"local://{local_path(path, 'url')}"


class DatasetOpening(NamedTuple):
    """The arguments of a call of `npstream.open`, checked and with stores instead of URLs.

    Parameters
    ----------
    store, sidecar_store : LocalStore or RemoteStore
        The store of the index, and that of the side-car if it is not next to the index.
    cache_settings : CacheSettings
        The arguments `cache` and `cache_limit` of the call.
    verify, columns, allow_pickle, limit
        As for `open_dataset`; `limit` is ``implicit_read_limit`` in bytes.
    version : str, optional
        The version that the call named.
    renames : tuple of mapping
        Names of columns -> new names, for `Source.renamed`, in the order of the calls.
    """

    store: Store
    sidecar_store: Store | None
    cache_settings: CacheSettings
    verify: Verify
    columns: Sequence[str] | Mapping[str, Any] | None
    allow_pickle: bool
    limit: int | None
    version: str | None = None
    renames: tuple[Mapping[str, str], ...] = ()

    def renamed(self, names: Mapping[str, str]) -> DatasetOpening:
        """Return an opening whose sources are renamed as by `Source.renamed`."""
        return self._replace(renames=(*self.renames, dict(names)))

    def open_dataset(self, split: str | None = None) -> Dataset:
        """Open the version that the call named; `split` is that of the call, for messages."""
        try:
            with report_block("open", self.store.root):
                source, names = self.open(self.version)
        except StorageError as error:
            from npstream.dataset.missing_dataset import explain_missing_dataset

            explanation = explain_missing_dataset(error, self.store, split)
            if explanation is not None:
                raise explanation from None
            raise
        return Dataset(source, Selection.all(source.index.samples), names)

    def open(self, version: str | None = None) -> tuple[Source, tuple[str, ...]]:
        """Open a version with the call's other arguments; return its source and its columns."""
        store, settings, verify = self.store, self.cache_settings, self.verify
        shard_cache = open_cache(store, settings)
        read_groups = start_reading_groups(store, shard_cache)
        shards = open_shards(store, shard_cache, verify, self.sidecar_store, version)
        fetcher = Fetcher(shards)
        arguments = self.columns, self.allow_pickle, self.limit
        if groups := read_groups():

            def open_part(path: str) -> Fetcher:
                part = store.folder(path)
                return Fetcher(open_shards(part, open_cache(part, settings), verify))

            source, names = open_joined(fetcher, groups, open_part, *arguments)
        else:
            source, names = open_source(fetcher, *arguments)
        source.opening = self._replace(version=version, renames=())
        index = shards.index
        log(
            "opened %s: version %s, %s in %s, columns %s, verify=%r",
            index.where, index.fingerprint, quantity(index.samples, "sample"),
            quantity(len(index), "shard"), ", ".join(names), verify,
        )  # fmt: skip
        for renamed_to in self.renames:
            source = source.renamed(renamed_to)
            names = tuple(source.fields)
        return source, names


def _check_arguments(cache_limit: Any, version: Any, flags: Mapping[str, Any]) -> None:
    """Raise TypeError or ValueError for an invalid argument, even if only remote data use it."""
    if cache_limit != "auto":
        parse_size(cache_limit, "cache_limit")
    if version is not None and not isinstance(version, str):
        raise TypeError(
            f"version={short_repr(version)}: expected the fingerprint of an index, as ds.version"
        )
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise TypeError(f"{name}={short_repr(flag)}: expected True or False")
