"""Provide `refreshed_source`, which opens another version of a dataset, such as an appended one.

An append keeps the shards of a dataset, and adds shards after them. So after appends, each version
begins with the samples of the versions before it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from npstream._core.arguments import quantity
from npstream._core.log import log, warn
from npstream.errors import FormatError, StorageError, short_repr
from npstream.formats.added_columns import shards_digest
from npstream.formats.index import INDEX, parse_index
from npstream.shards.manifest import start_thread
from npstream.storage.local import LocalStore

if TYPE_CHECKING:
    from npstream.formats.index import Index
    from npstream.indexing.selection import Selection
    from npstream.reading.source import Source
    from npstream.shards.local import LocalShards

__all__ = ["begins_with", "refreshed_source", "warn_of_newer_versions"]


def refreshed_source(source: Source, selection: Selection, version: str | None) -> Source:
    """Return the source of another version of a dataset.

    Parameters
    ----------
    source : Source
        The dataset.
    selection : Selection
        The view to refresh. It must have all samples of the dataset, in the dataset's order.
    version : str or None
        The version to open; None for the newest.

    Returns
    -------
    Source
        `source` itself if it has that version.

    Raises
    ------
    TypeError
        If `version` is neither a string nor None.
    ValueError
        If the view lacks samples or has another order, if `source` joins several datasets, or if
        the samples were replaced.
    StorageError
        If the index of that version cannot be read.
    """
    if version is not None and not isinstance(version, str):
        raise TypeError(
            f"version={short_repr(version)}: expected the fingerprint of an index, as ds.version"
        )
    if source.opening is None:
        raise ValueError(
            "refresh() of several datasets in one, such as a mixture: refresh each of them, and "
            "make the mixture or concatenation again"
        )
    if not selection.is_whole:
        raise ValueError(
            f"refresh() of a view of {quantity(selection.size, 'sample')} in another order than "
            "the dataset's, or without all its samples: it would lack the appended samples; "
            "refresh the whole dataset, and select from the result"
        )
    source.fetcher.current_table()  # raises if the dataset is closed
    if version == source.index.fingerprint() or (version is None and is_unchanged(source)):
        return source
    refreshed, _ = source.opening.open(version)
    if refreshed.index.fingerprint() == source.index.fingerprint():
        return source
    shorter, longer = sorted((source.index, refreshed.index), key=len)
    if not begins_with(longer, shorter):
        raise ValueError(
            f"{source.index.where}: version {refreshed.index.fingerprint()!r} does not have the "
            f"samples of version {source.index.fingerprint()!r}, which other samples have "
            "replaced: open the dataset anew"
        )
    return refreshed


def begins_with(index: Index, former: Index) -> bool:
    """Return True if the shards of `index` begin with all shards of `former`."""
    shards = len(former)
    return shards <= len(index) and shards_digest(index.original, shards) == shards_digest(
        former.original, shards
    )


def is_unchanged(source: Source) -> bool:
    """Return True if a dataset's newest index is certainly the one that was opened.

    Return False also if this is not known, for instance because the store does not answer.
    """
    shards: LocalShards = source.fetcher.shards  # type: ignore[assignment]
    snapshot = shards.snapshot
    if snapshot is None or snapshot.name != INDEX:
        return False
    try:
        current = shards.store.version(INDEX)
    except StorageError:
        return False
    # Two indexes written within one second may have the same version, which is then not exact.
    return current == snapshot.version and getattr(current, "is_exact", True)


def warn_of_newer_versions(source: Source, reported: set[str]) -> None:
    """Log a warning if a dataset has a newer version than the one that a resumed run reads.

    A thread checks a dataset in an object store, because the run must not wait for the store.
    Datasets whose version the user named are not checked.

    Parameters
    ----------
    source : Source
        The dataset, or the mixture, of the run.
    reported : set of str
        The versions of index files that earlier checks have seen. They cause no further warning.
        Each check adds the version that it sees.
    """
    for dataset in source.datasets:
        if dataset.opening is None or dataset.opening.version is not None:
            continue
        shards: LocalShards = dataset.fetcher.shards  # type: ignore[assignment]
        warn_once = partial(_warn_of_newer_version, shards, reported)
        if isinstance(shards.store, LocalStore):
            warn_once()
        else:
            start_thread(warn_once)


def _warn_of_newer_version(shards: LocalShards, reported: set[str]) -> None:
    """Log a warning if a dataset no longer has the index that was opened."""
    store, snapshot, index = shards.store, shards.snapshot, shards.index
    try:
        current = store.version(INDEX)
        if snapshot is None or current in (snapshot.version, *reported):
            return
        reported.add(current)
        newest = parse_index(store.read(INDEX), store.where(INDEX))
    except (StorageError, FormatError) as error:
        log("cannot see whether there is a newer version: %s", error)
        return
    if newest.fingerprint() != index.fingerprint():
        warn(
            "%s has version %r with %s now. This run goes on with version %r and %s, which it "
            "opened; call refresh() of the dataset, and iterate over the result, to read the newer "
            "version",
            index.where, newest.fingerprint(), quantity(newest.samples, "sample"),
            index.fingerprint(), quantity(index.samples, "sample"),
        )  # fmt: skip
