"""Opening a dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from npstream._core.arguments import parse_size, quantity
from npstream._core.log import log
from npstream.dataset.absence import explain_absence
from npstream.dataset.dataset import Dataset
from npstream.errors import StorageError, short_traceback
from npstream.formats.hashes import HASHES
from npstream.indexing.selection import Selection
from npstream.reading.source import open_source
from npstream.shards.local import LocalShards
from npstream.shards.manifest import read_manifest
from npstream.shards.table import Fetcher
from npstream.storage.local import LocalStore, open_store, options_for
from npstream.storage.urls import join_url, local_path

if TYPE_CHECKING:
    import os

    from npstream.shards.base import Verify
    from npstream.storage.local import Store
    from npstream.storage.remote import RemoteStore


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
    implicit_read_limit: int | str | None = "1GiB",
) -> Dataset:
    """Open a dataset; only its index is read.

    Parameters
    ----------
    url : str or os.PathLike
        The directory that holds ``index.json``: a local one, or a URL such as
        ``s3://bucket/corpus``.
    split : str, optional
        A directory below it, such as "train".
    columns : sequence of str, or mapping of str to dtype or str, optional
        A sequence: the columns to have. A mapping: what the bytes of those columns mean, as a
        dtype or an encoding, such as ``{"tokens": "ndarray:int64:2048"}``; others stay.
    cache : str or os.PathLike, optional
        The directory where parts of a remote dataset are kept; by default what
        ``NPSTREAM_CACHE`` says, or else this user's place for caches.
    cache_limit : int or str, optional
        The bytes that this directory may take, such as "100GB"; "auto" leaves a tenth of the
        disk free. By default what ``NPSTREAM_CACHE_LIMIT`` says, or else "auto".
    storage_options : mapping, optional
        Options of the store's fsspec driver.
    index : str or os.PathLike, optional
        Where the dataset's side-car is, if it is not beside its index. `storage_options` are for
        it, too, if it has the same scheme, and on the web the same host.
    version : str, optional
        The fingerprint of the index to read, if it is not the newest.
    verify : bool or str, default: "auto"
        Which recorded hashes to check: "auto", those of shards that are decompressed, and of
        chunks that are fetched; True, also those of files that are mapped and of what is in the
        cache, and single samples are not fetched without their chunks; False, none; or the name
        of the hash to check in both.
    allow_pickle : bool, default: False
        Whether columns may be unpickled, which can run code.
    timeout : float, default: 60.0
        Seconds that a request to the store may take, with all its attempts.
    retries : int, default: 4
        How often a request is tried again.
    implicit_read_limit : int, str or None, default: "1GiB"
        The bytes that an implicit read, such as a comparison, may fetch; beyond them it raises
        `CostError`. None for any number.

    Returns
    -------
    Dataset

    Raises
    ------
    FormatError
        If the index does not follow the format.
    StorageError
        If the index cannot be read. If there is none, the error is also a FileNotFoundError.
    ValueError
        If the limit of the cache is less than any read needs; it says the least that would do.
        Also if `verify` is no such hash, or a column is pickled and `allow_pickle` is False.
    TypeError
        If `columns` is one name.
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
        if isinstance(columns, str):
            raise TypeError(f"columns={columns!r}: expected a list of names, [{columns!r}]")
        if not isinstance(verify, bool) and verify != "auto" and verify not in HASHES:
            raise ValueError(
                f"verify={verify!r}: expected True, False, 'auto' or one of {', '.join(HASHES)}"
            )
        limit = parse_size(implicit_read_limit)
        if cache is not None:
            cache = local_path(cache, "cache")
        where = url if split is None else join_url(url, split)
        store = open_store(where, storage_options, timeout=timeout, retries=retries, argument="url")
        aside = None
        if index is not None:
            options = options_for(url, storage_options, index)
            aside = open_store(index, options, timeout=timeout, retries=retries, argument="index")
        try:
            if isinstance(store, LocalStore):
                found = read_manifest(store, None, aside, version, verify is True)
                shards = LocalShards(found.index, store, verify, found.snapshot)
            else:
                shards = _open_remote(store, verify, (cache, cache_limit), aside, version)
        except StorageError as error:
            if (absence := explain_absence(error, store, split)) is not None:
                raise absence from None
            raise
        fetcher = Fetcher(shards)
        opened = shards.index
        if isinstance(verify, str) and verify != "auto" and len(opened):
            shards.require_hash(verify)
        source, names = open_source(fetcher, columns, allow_pickle, limit)
        log(
            "opened %s: version %s, %s in %s, columns %s, verify=%r",
            opened.where, opened.fingerprint, quantity(opened.samples, "sample"),
            quantity(len(opened), "shard"), ", ".join(names), verify,
        )  # fmt: skip
        return Dataset(source, Selection.all(opened.samples), names)


def _open_remote(
    store: RemoteStore,
    verify: Verify,
    kept: tuple[str | os.PathLike[str] | None, int | str | None],
    aside: Store | None,
    version: str | None,
) -> LocalShards:
    """Open the shards of a remote dataset; `kept` is the cache's directory and its limit."""
    from npstream.cache.cache import ShardCache
    from npstream.shards.remote import RemoteShards
    from npstream.shards.residency import RemoteFiles

    cache = ShardCache(*kept, store.timeout)
    found = read_manifest(store, cache, aside, version, verify is True)
    files = RemoteFiles(
        found.index, store.identity, cache, found.identity, found.sidecar,
        strict=verify not in (False, "auto"),
    )  # fmt: skip
    if cache.limit is not None:
        cache.require(files.least())
        cache.trim()
    return RemoteShards(store, files, verify, found.snapshot)
