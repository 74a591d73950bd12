"""Provide `read_manifest`, which reads the index of a dataset and opens its side-car.

A remote index is cached, so one process of a machine reads it and the others find it in the cache.
"""

from __future__ import annotations

import errno
import os
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from npstream._core.log import log
from npstream.errors import FormatError, IntegrityError, StorageError
from npstream.formats.index import INDEX, Index, check_size, parse_index
from npstream.formats.versions import SIDECAR_FILE, sidecar_in_head, version_name, version_of_name
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
"""Error numbers of a store that does not answer."""

_ATTEMPTS = 10
"""How many times a read of an index is tried. An append may replace the index during a try."""

_MAX_VERSIONS = 20
"""The most versions that a message lists."""

SMALL_FILE = 1 << 16
"""Files up to this many bytes are read by the request that finds their version."""

LARGE_INDEX = 1 << 22
"""An index of more bytes is not read if the side-car holds its content."""

LARGE_SIDECAR = 1 << 26
"""A side-car of more bytes is read by range requests."""


class Manifest:
    """An index, its identity, its side-car if there is one, and its snapshot.

    The identity differs between index files, and between the versions of an index file. It may be
    empty if there is no cache.
    """

    __slots__ = ("identity", "index", "sidecar", "snapshot")

    def __init__(
        self, index: Index, identity: str, sidecar: Sidecar | None, snapshot: Snapshot
    ) -> None:
        self.index, self.identity, self.sidecar, self.snapshot = index, identity, sidecar, snapshot


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
        The cache for a remote index. An entry is valid until the version of the file changes.
    sidecar_store : LocalStore or RemoteStore, optional
        The store of the side-car, if it is not next to the index.
    version : str, optional
        The fingerprint of an older index to read; by default the newest index.
    strict : bool
        Raise an error if the store denies access to the side-car. By default, warn and continue
        without a side-car.

    Raises
    ------
    FormatError
    StorageError
        If there is no index, or no index of that version.
    ValueError
        If `version` is not a fingerprint.
    """
    newest = _read_index_file(store, cache, sidecar_store, INDEX, strict)
    if version is None or newest.index.fingerprint() == version:
        return newest
    if version_of_name(name := version_name(version)) is None:
        raise ValueError(f"version={version!r}: expected the fingerprint of an index")
    if not store.exists(name):
        raise _missing_version(store, name, version, newest.index)
    return _read_index_file(store, cache, sidecar_store, name, strict)


def kept_versions(store: Store) -> list[str]:
    """Return the versions of a dataset, besides the newest, whose index is kept.

    Raises
    ------
    StorageError
        If the store cannot be listed.
    """
    names = store.entries()
    return [version for name in names if (version := version_of_name(name)) is not None]


def _missing_version(store: Store, name: str, version: str, newest: Index) -> StorageError:
    """Return the error for a version that has no index in the store."""
    versions = ""
    with suppress(StorageError):  # the listing may be forbidden
        if store.can_list:
            kept = ", ".join(map(repr, kept_versions(store)[:_MAX_VERSIONS])) or "none"
            versions = f", and the former ones that were kept: {kept}"
    return StorageError(
        errno.ENOENT,
        f"version={version!r} of this dataset was not kept; the newest is "
        f"{newest.fingerprint()!r}{versions}",
        store.where(name),
    )


def _read_index_file(
    store: Store, cache: ShardCache | None, sidecar_store: Store | None, name: str, strict: bool
) -> Manifest:
    """Read the index file `name`. The content of a large index may come from the side-car."""
    opener = _SidecarOpener(store, cache, sidecar_store, strict)
    version = _version(store, cache, name, is_index=True)
    for _ in range(_ATTEMPTS - 1):
        try:
            return _read_version(store, cache, opener, name, version)
        except (FormatError, StorageError) as error:
            # Do not retry if the store does not answer. But EIO may also mean a short response.
            if isinstance(error, StorageError) and error.errno in UNREACHABLE - {errno.EIO}:
                raise
            # An append may have replaced the file between the two requests.
            before, version = version, _version(store, cache, name, is_index=True)
            if version == before:
                raise
    return _read_version(store, cache, opener, name, version)


def _read_version(
    store: Store, cache: ShardCache | None, opener: _SidecarOpener, name: str, version: str
) -> Manifest:
    """Read a version of an index file."""
    # A side-car may record the version of index.json. Kept copies of that file have other versions.
    recorded_version = version if name == INDEX else ""
    sidecar = None
    nbytes = size_in_version(version) or 0
    if nbytes > LARGE_INDEX:
        sidecar = opener.open_default()
        ends = _read_ends(store, cache, name, nbytes, version)
        index_digest = _digest_ends(ends, nbytes, recorded_version, store.root)
        if sidecar is None or not sidecar.index_digest.matches(index_digest):
            sidecar = opener.open_by_name(sidecar_in_head(ends)) or sidecar
        if sidecar is not None and sidecar.index_digest.matches(index_digest):
            try:
                identity = _hash(index_digest.ends_hash + version.encode())
                index = sidecar.index(store.where(name))
                snapshot = Snapshot(name, version, "", os.getpid())
                return Manifest(index, identity, sidecar, snapshot)
            except (FormatError, IntegrityError) as error:
                log("reading without a side-car: %s", error)
                sidecar = None
    check_size(nbytes, store.where(name))
    text = _read_cached(store, cache, name, version)
    index = parse_index(text, store.where(name))
    if opener.is_used and nbytes <= LARGE_INDEX:
        sidecar = opener.choose(opener.open_default(), index, text, recorded_version)
    elif sidecar is not None:
        log("%s does not belong to this index: reading without it", sidecar.where)
        sidecar = None
    identity = identity_of(text, version) if cache else ""
    snapshot = Snapshot(name, version, identity, os.getpid())
    return Manifest(index, identity, sidecar, snapshot)


class _SidecarOpener:
    """Opens the side-car of an index: by its default name, or by the name in the index.

    Parameters
    ----------
    store : LocalStore or RemoteStore
        The store of the index.
    cache : ShardCache or None
    sidecar_store : LocalStore or RemoteStore, optional
        The store of the side-car, if it is not next to the index.
    strict : bool
        Raise an error if the store denies access to the side-car.

    Attributes
    ----------
    is_used : bool
        False if reading the dataset does not need the side-car.
    """

    def __init__(
        self, store: Store, cache: ShardCache | None, sidecar_store: Store | None, strict: bool
    ) -> None:
        self._store, self._cache, self._strict = store, cache, strict
        self._has_sidecar_store = sidecar_store is not None
        self.is_used = cache is not None or self._has_sidecar_store
        default_store = sidecar_store or store
        open_default: Callable[[], Sidecar | None] = partial(
            _open_sidecar, default_store, cache, SIDECAR_FILE
        )
        if self.is_used:  # in a thread, so that opening takes two round trips instead of four
            open_default = start_thread(open_default)
        if not strict:
            open_default = partial(_none_if_denied, open_default, default_store)
        self.open_default = open_default

    def open_by_name(self, name: str) -> Sidecar | None:
        """Open the side-car that the index names; return None if it names none.

        Also return None if the side-car has a store of its own.
        """
        if not name or self._has_sidecar_store:
            return None
        open_sidecar = partial(_open_sidecar, self._store, self._cache, name)
        return open_sidecar() if self._strict else _none_if_denied(open_sidecar, self._store)

    def choose(
        self, sidecar: Sidecar | None, index: Index, text: bytes, version: str
    ) -> Sidecar | None:
        """Return the side-car that belongs to an index: `sidecar`, or one that the index names."""
        from npstream.formats.sidecar.sidecar import digest_index

        digest = digest_index(text, version, self._store.root)
        if sidecar is None or not sidecar.index_digest.matches(digest):
            sidecar = self.open_by_name(index.annotations.sidecar) or sidecar
        if sidecar is not None and not sidecar.index_digest.matches(digest):
            log("%s does not belong to this index: reading without it", sidecar.where)
            sidecar = None
        return sidecar


def read_optional(
    store: Store, cache: ShardCache | None, name: str, parse: Callable[[bytes], T]
) -> T | None:
    """Read and parse a small file of a dataset; return None if it does not exist."""
    before = ""
    while True:
        try:
            version = _version(store, cache, name)
        except StorageError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        try:
            return parse(_read_cached(store, cache, name, version))
        except (FormatError, StorageError):
            # The file may have been replaced between the two requests.
            if version == before:
                raise
            before = version


def start_thread(work: Callable[[], T]) -> Callable[[], T]:
    """Start work in a thread; return a function that waits for and returns its result."""
    from queue import SimpleQueue

    results: SimpleQueue[T | BaseException] = SimpleQueue()

    def run() -> None:
        try:
            results.put(work())
        except BaseException as error:
            results.put(error)

    def wait() -> T:
        result = results.get()
        results.put(result)  # for the next call
        if isinstance(result, BaseException):
            raise result
        return result

    threading.Thread(target=run, name="npstream-open", daemon=True).start()
    return wait


def size_in_version(version: str) -> int | None:
    """Return the size in bytes that a file version contains, or None if it contains none."""
    size = version.partition(":")[0]
    return int(size) if size.isdecimal() else None


def _version(store: Store, cache: ShardCache | None, name: str, is_index: bool = False) -> str:
    """Return the version of a file: the last cached one if the store is unreachable.

    Raises
    ------
    StorageError
        If there is no such file, if access is denied, or if the store is unreachable and no version
        is cached.
    """
    if cache is None:
        return store.version(name)
    key = _key(store, name, "version")
    if (cached := cache.load(key)) is None:
        with cache.fetch_lock(key):
            if (cached := cache.load(key)) is None:
                return _read_new(store, cache, name, is_index)
    try:
        version = store.version(name)
    except StorageError as error:
        # The cache records an absent file with b"". It records an absent index only if a version
        # of the index was cached before.
        is_absent = error.errno in (errno.ENOENT, errno.EACCES)
        if is_absent and cached != b"" and (cached or not is_index):
            cache.store(key, b"")
        if error.errno not in UNREACHABLE or cached is None:
            raise
        if not cached:
            code = errno.ENOENT
            raise StorageError(code, os.strerror(code), store.where(name)) from error
        version = cached.decode()
        if is_index:
            warnings.warn(
                f"the store cannot be reached, so the dataset is read as the cache knows it, and "
                f"may have been replaced meanwhile: {error}",
                RuntimeWarning,
                stacklevel=8,
            )
    else:
        if cached != version.encode():
            cache.store(key, version.encode())
    return version


def _read_new(store: Store, cache: ShardCache, name: str, is_index: bool) -> str:
    """Return the version of a file that the cache does not know, and cache a small file."""
    key = _key(store, name, "version")
    try:
        if isinstance(store, LocalStore):
            version, text = store.version(name), b""
        else:
            version, text = store.read_start(name, SMALL_FILE)
    except StorageError as error:
        if error.errno in (errno.ENOENT, errno.EACCES) and not is_index:
            cache.store(key, b"")
        raise
    if text and len(text) == size_in_version(version):
        cache.store(_key(store, name, version), text)
    cache.store(key, version.encode())
    return version


def _read_cached(
    store: Store,
    cache: ShardCache | None,
    name: str,
    version: str,
    read: Callable[[], bytes] | None = None,
) -> bytes:
    """Return a file, or the part of it that `read` returns, from the cache or from the store.

    Cached bytes are not returned if `Version.is_exact` is False: the file may have been replaced by
    one with the same version.
    """
    nbytes = size_in_version(version)
    if cache is None:
        return store.read(name, nbytes) if read is None else read()
    key = _key(store, name, version if read is None else f"{version} ends")
    is_exact = not isinstance(version, Version) or version.is_exact
    text = cache.load(key) if is_exact else None
    if text is not None:
        return text
    with cache.fetch_lock(key):  # another process may be reading the file
        text = cache.load(key) if is_exact else None
        if text is None:
            text = store.read(name, nbytes) if read is None else read()
            cache.store(key, text)
    return text


def _key(store: Store, name: str, entry: str) -> str:
    """Return a file's cache key.

    `entry` is "version"; or for the content, a version; or for the ends, a version and " ends".
    """
    return _hash(repr((store.identity, name, entry)).encode())


def _hash(text: bytes) -> str:
    from npstream.formats.hashes import digest

    return digest("xxh3_128", text)


def _open_sidecar(store: Store, cache: ShardCache | None, name: str) -> Sidecar | None:
    """Open a side-car; return None if it is absent or damaged."""
    from npstream.formats.sidecar.sidecar import Sidecar

    try:
        version = _version(store, cache, name)
        if cache is None or isinstance(store, LocalStore):
            return Sidecar(store, name)
        from npstream.cache.ranges import CachedRanges

        is_large = (size_in_version(version) or 0) > LARGE_SIDECAR
        files = {} if is_large else {name: _read_cached(store, cache, name, version)}
        # Two side-cars may have the same version. Their column files differ, so the key of these
        # files also has the hash of the side-car.
        key = f"{version}:{_hash(files[name])}" if files else version
        return Sidecar(CachedRanges(store, cache, key, files), name)
    except StorageError as error:
        if error.errno != errno.ENOENT:
            raise
    except (FormatError, IntegrityError) as error:
        log("reading without a side-car: %s", error)
    return None


def _none_if_denied(open_sidecar: Callable[[], Sidecar | None], store: Store) -> Sidecar | None:
    """Return the result of `open_sidecar`, or warn and return None if access is denied."""
    try:
        return open_sidecar()
    except StorageError as error:
        if error.errno != errno.EACCES:
            raise
    warn_sidecar_denied(store, stacklevel=10)
    return None


def warn_sidecar_denied(store: Store, stacklevel: int) -> None:
    """Warn that the store denies access to the side-car.

    Amazon and Google deny access to an absent file if the user may not list the bucket.
    """
    warnings.warn(
        f"{store.where(SIDECAR_FILE)}: permission denied, so this optional file counts as absent: "
        "chunks are not verified, and columns are read from the shards. If there is such a file, "
        "permit to read it; if there is none, permit to list the bucket (Permissions in "
        "docs/stores.md)",
        RuntimeWarning,
        stacklevel=stacklevel,
    )


def _read_ends(
    store: Store, cache: ShardCache | None, name: str, nbytes: int, version: str
) -> bytes:
    """Return the first and last bytes of an index file, from which its digest is computed."""
    from npstream.formats.sidecar.sidecar import END_BYTES

    spans = [(name, 0, END_BYTES), (name, nbytes - END_BYTES, END_BYTES)]
    return _read_cached(store, cache, name, version, lambda: b"".join(store.ranges(spans)))


def _digest_ends(ends: bytes, nbytes: int, version: str, url: str) -> IndexDigest:
    """Return the digest of an index file from its first and last bytes."""
    from npstream.formats.sidecar.sidecar import END_BYTES, digest_index_ends

    return digest_index_ends(nbytes, ends[:END_BYTES], ends[END_BYTES:], version, url)
