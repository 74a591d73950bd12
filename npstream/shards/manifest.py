"""Reading the index of a dataset, once per machine, and its side-car if there is one.

Tested in tests/cache/test_ranges.py.
"""

from __future__ import annotations

import errno
import os
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, TypeVar

from npstream._core.log import log
from npstream.errors import FormatError, IntegrityError, StorageError
from npstream.formats.index import INDEX, Index, check_size, parse_index
from npstream.shards.snapshot import Snapshot, identity_of
from npstream.storage.local import LocalStore
from npstream.storage.versions import Version

if TYPE_CHECKING:
    from npstream.cache.cache import ShardCache
    from npstream.formats.sidecar.sidecar import IndexDigest, Sidecar
    from npstream.storage.local import Store

T = TypeVar("T")

UNREACHABLE = {
    *(errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE, errno.ETIMEDOUT, errno.EIO),
    *(errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH),
}
"""What errors say if a store does not answer."""

LARGE_INDEX = 1 << 22
"""An index of more bytes is not read if there is a side-car that tells all of it."""

LARGE_SIDECAR = 1 << 26
"""A side-car of more bytes is read by range."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """An index, what tells its file from others and other versions, and its side-car, if any."""

    index: Index
    identity: str
    sidecar: Sidecar | None
    snapshot: Snapshot


def read_manifest(
    store: Store,
    cache: ShardCache | None = None,
    sidecar_store: Store | None = None,
    version: str | None = None,
    strict: bool = False,
) -> Manifest:
    """Read the index of a dataset.

    Parameters
    ----------
    store : LocalStore or RemoteStore
    cache : ShardCache, optional
        Where a remote one is kept for as long as it does not change.
    sidecar_store : LocalStore or RemoteStore, optional
        Where the side-car lies, if not beside the index.
    version : str, optional
        The fingerprint of the index, if not the newest is wanted.
    strict : bool
        Raise an error if the store refuses to give the side-car. By default the side-car then
        counts as absent, with a warning.

    Raises
    ------
    FormatError
    StorageError
        If there is no index, or the version was not kept.
    """
    found = _read_named(store, cache, sidecar_store, INDEX, strict)
    if version is None or found.index.fingerprint() == version:
        return found
    name = _versioned_name(version)
    _require_version(store, name, version, found.index)
    return _read_named(store, cache, sidecar_store, name, strict)


def _versioned_name(version: str) -> str:
    """Return the name of an index that was replaced."""
    if not version.isalnum():
        raise ValueError(f"version={version!r}: expected the fingerprint of an index")
    return f"index.{version}.json"


def _require_version(store: Store, name: str, version: str, newest: Index) -> None:
    if not store.exists(name):
        raise StorageError(
            errno.ENOENT,
            f"version={version!r} of this dataset was not kept; the newest is "
            f"{newest.fingerprint()!r}",
            store.where(name),
        )


def _read_named(
    store: Store, cache: ShardCache | None, sidecar_store: Store | None, name: str, strict: bool
) -> Manifest:
    open_sidecar: Callable[[], Sidecar | None] = partial(
        _open_sidecar, sidecar_store or store, cache
    )
    if is_wanted := cache is not None or sidecar_store is not None:
        open_sidecar = _run_in_thread(
            open_sidecar
        )  # so that all takes two round trips, and not four
    if not strict:
        open_sidecar = partial(_none_if_denied, open_sidecar, sidecar_store or store)
    index_version = _version(store, cache, name, is_index=True)
    sidecar = None
    nbytes = size_in_version(index_version) or 0
    if nbytes > LARGE_INDEX and (sidecar := open_sidecar()) is not None:
        mark = _read_mark(store, cache, name, nbytes, index_version)
        if sidecar.mark.matches(mark):
            try:
                identity = _hash(mark.ends + index_version.encode())
                index = sidecar.index(store.where(name))
                return Manifest(index, identity, sidecar, Snapshot(name, index_version))
            except (FormatError, IntegrityError) as error:
                log("reading without a side-car: %s", error)
                sidecar = None
    check_size(nbytes, store.where(name))
    text = _read_cached(store, cache, name, index_version)
    if is_wanted and nbytes <= LARGE_INDEX:
        sidecar = open_sidecar()
    if sidecar is not None:
        from npstream.formats.sidecar.sidecar import digest_index

        if not sidecar.mark.matches(mark_of(text, index_version, store.root)):
            log("%s is not of this index: reading without it", sidecar.where)
            sidecar = None
    identity = identity_of(text, index_version) if cache else ""
    snapshot = Snapshot(name, index_version, identity)
    return Manifest(parse_index(text, store.where(name)), identity, sidecar, snapshot)


def _run_in_thread(work: Callable[[], T]) -> Callable[[], T]:
    """Begin work in a thread; return what waits for its result, or raises what it raised."""
    ended: SimpleQueue[T | BaseException] = SimpleQueue()

    def run() -> None:
        try:
            ended.put(work())
        except BaseException as error:
            ended.put(error)

    def result() -> T:
        found = ended.get()
        if isinstance(found, BaseException):
            raise found
        return found

    threading.Thread(target=run, name="npstream-open", daemon=True).start()
    return result


def size_in_version(version: str) -> int | None:
    """Return the size of a file in bytes from its version, or None if the store does not tell."""
    size = version.partition(":")[0]
    return int(size) if size.isdecimal() else None


def _version(store: Store, cache: ShardCache | None, name: str, is_index: bool = False) -> str:
    """Return the version of a file: the last that the cache knows if the store is unreachable.

    Raises
    ------
    StorageError
        If there is no such file, or the cache knows no version of it.
    """
    if cache is None:
        return store.version(name)
    key = _key(store, name, "version")
    kept = cache.fetch(key)
    try:
        version = store.version(name)
    except StorageError as error:
        is_absent = error.errno in (errno.ENOENT, errno.EACCES)
        if is_absent and kept != b"" and (kept or not is_index):
            cache.store(key, b"")
        if error.errno not in UNREACHABLE or kept is None:
            raise
        if not kept:
            code = errno.ENOENT
            raise StorageError(code, os.strerror(code), store.where(name)) from error
        version = kept.decode()
        if is_index:
            warnings.warn(
                f"the store cannot be reached, so the dataset is read as the cache knows it, and "
                f"may have been replaced meanwhile: {error}",
                RuntimeWarning,
                stacklevel=6,
            )
    else:
        if kept != version.encode():
            cache.store(key, version.encode())
    return version


def _read_cached(
    store: Store,
    cache: ShardCache | None,
    name: str,
    version: str,
    read: Callable[[], bytes] | None = None,
) -> bytes:
    """Return a file of a known version, or what `read` reads of it, out of the cache if it can."""
    nbytes = size_in_version(version)
    if cache is None:
        return store.read(name, nbytes) if read is None else read()
    key = _key(store, name, version if read is None else f"{version} ends")
    is_exact = not isinstance(version, Version) or version.is_exact
    text = cache.fetch(key) if is_exact else None
    if text is None:
        text = store.read(name, nbytes) if read is None else read()
        cache.store(key, text)
    return text


def _key(store: Store, name: str, what: str) -> str:
    return _hash(repr((store.identity, name, what)).encode())


def _hash(text: bytes) -> str:
    from npstream.formats.hashes import digest

    return digest("xxh3_128", text)


def _open_sidecar(store: Store, cache: ShardCache | None) -> Sidecar | None:
    """Open a side-car, if there is one that is whole."""
    from npstream.formats.sidecar.sidecar import NAME, Sidecar

    try:
        version = _version(store, cache, NAME)
        if cache is None or isinstance(store, LocalStore):
            return Sidecar(store)
        from npstream.cache.ranges import CachedRanges

        is_large = (size_in_version(version) or 0) > LARGE_SIDECAR
        held = {} if is_large else {NAME: _read_cached(store, cache, NAME, version)}
        # With its hash, as versions may be coarse, and columns belong to one side-car.
        whole = f"{version}:{_hash(held[NAME])}" if held else version
        return Sidecar(CachedRanges(store, cache, whole, held))
    except StorageError as error:
        if error.errno != errno.ENOENT:
            raise
    except (FormatError, IntegrityError) as error:
        log("reading without a side-car: %s", error)
    return None


def _none_if_denied(open_sidecar: Callable[[], Sidecar | None], store: Store) -> Sidecar | None:
    """Return a side-car, or None if it may not be read."""
    try:
        return open_sidecar()
    except StorageError as error:
        if error.errno != errno.EACCES:
            raise
    warn_sidecar_denied(store, stacklevel=7)
    return None


def warn_sidecar_denied(store: Store, stacklevel: int) -> None:
    """Warn that a side-car may not be read.

    Amazon and Google answer so for an absent file if the user may not list the bucket.
    """
    from npstream.formats.sidecar.sidecar import NAME

    warnings.warn(
        f"{store.where(NAME)}: permission denied, so this optional file counts as absent: chunks "
        "are not verified, and columns are read from the shards. If there is such a file, permit "
        "to read it; if there is none, permit to list the bucket (Permissions in docs/stores.md)",
        RuntimeWarning,
        stacklevel=stacklevel,
    )


def _read_mark(
    store: Store, cache: ShardCache | None, name: str, nbytes: int, version: str
) -> Mark:
    """Return the mark of an index that is too large to be read for that."""
    from npstream.formats.sidecar.sidecar import ENDS, make_mark

    spans = [(name, 0, ENDS), (name, nbytes - ENDS, ENDS)]
    ends = _read_cached(store, cache, name, version, lambda: b"".join(store.ranges(spans)))
    return make_mark(nbytes, ends[:ENDS], ends[ENDS:], version, store.root)
