"""Reading the index of a dataset, once per machine, and its side-car if there is one."""

from __future__ import annotations

import errno
import threading
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, TypeVar

from npstream._log import log
from npstream.errors import FormatError, IntegrityError, StorageError
from npstream.formats.index import Index, parse_index

if TYPE_CHECKING:
    from npstream.cache import Cache
    from npstream.formats.sidecar import Mark, Sidecar
    from npstream.store import Span, Store

T = TypeVar("T")

INDEX = "index.json"

LARGE = 1 << 22
"""An index of more bytes is not read if there is a side-car that tells all of it."""

LARGE_SIDECAR = 1 << 26
"""A side-car of more bytes is read by range."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """An index, what tells its file from others and other versions, and its side-car, if any."""

    index: Index
    identity: str
    sidecar: Sidecar | None


def read_manifest(
    store: Store,
    cache: Cache | None = None,
    aside: Store | None = None,
    version: str | None = None,
    strict: bool = False,
) -> Manifest:
    """Read the index of a dataset.

    Parameters
    ----------
    store : LocalStore or RemoteStore
    cache : Cache, optional
        Where a remote one is kept for as long as it does not change.
    aside : LocalStore or RemoteStore, optional
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
    found = _read(store, cache, aside, INDEX, strict)
    if version is None or found.index.fingerprint() == version:
        return found
    name = _kept(version)
    _require(store, name, version, found.index)
    return _read(store, cache, aside, name, strict)


def _kept(version: str) -> str:
    """Return the name of an index that was replaced."""
    if not version.isalnum():
        raise ValueError(f"version={version!r}: expected the fingerprint of an index")
    return f"index.{version}.json"


def _require(store: Store, name: str, version: str, newest: Index) -> None:
    if not store.exists(name):
        raise StorageError(
            errno.ENOENT,
            f"version={version!r} of this dataset was not kept; the newest is "
            f"{newest.fingerprint()!r}",
            store.where(name),
        )


def _read(
    store: Store, cache: Cache | None, aside: Store | None, name: str, strict: bool
) -> Manifest:
    opened: Callable[[], Sidecar | None] = partial(_open_sidecar, aside or store, cache)
    if is_wanted := cache is not None or aside is not None:
        opened = _meanwhile(opened)  # so that all takes two round trips, and not four
    if not strict:
        opened = partial(_unless_refused, opened, aside or store)
    sign = store.version(name)
    sidecar = None
    nbytes = size_in_version(sign) or 0
    if nbytes > LARGE and (sidecar := opened()) is not None:
        mark = _mark(store, name, nbytes, sign)
        if sidecar.mark.matches(mark):
            try:
                identity = _hash(mark.ends + sign.encode())
                return Manifest(sidecar.index(store.where(name)), identity, sidecar)
            except (FormatError, IntegrityError) as error:
                log("reading without a side-car: %s", error)
                sidecar = None
    text = _through(store, cache, name, sign)
    if is_wanted and nbytes <= LARGE:
        sidecar = opened()
    if sidecar is not None:
        from npstream.formats.sidecar import mark_of

        if not sidecar.mark.matches(mark_of(text, sign, store.root)):
            log("%s is not of this index: reading without it", sidecar.where)
            sidecar = None
    # Where the index has no hashes, it may say the same of other shards, in the same words.
    identity = _hash(text + sign.encode()) if cache else ""
    return Manifest(parse_index(text, store.where(name)), identity, sidecar)


def _meanwhile(work: Callable[[], T]) -> Callable[[], T]:
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


def _through(store: Store, cache: Cache | None, name: str, version: str) -> bytes:
    """Return a file of a known version, out of the cache if it is there."""
    nbytes = size_in_version(version)
    if cache is None:
        return store.read(name, nbytes)
    key = _hash(repr((store.identity, name, version)).encode())
    text = cache.fetch(key)
    if text is None:
        text = store.read(name, nbytes)
        cache.store(key, text)
    return text


def _hash(text: bytes) -> str:
    from npstream.formats.hashes import digest

    return digest("xxh3_128", text)


def _open_sidecar(store: Store, cache: Cache | None) -> Sidecar | None:
    """Open a side-car, if there is one that is whole."""
    from npstream.formats.sidecar import NAME, Sidecar

    try:
        version = store.version(NAME)
        if store.is_local or (size_in_version(version) or 0) > LARGE_SIDECAR:
            return Sidecar(store)
        return Sidecar(_Held(store, NAME, _through(store, cache, NAME, version)))
    except StorageError as error:
        if error.errno != errno.ENOENT:
            raise
    except (FormatError, IntegrityError) as error:
        log("reading without a side-car: %s", error)
    return None


def _unless_refused(opened: Callable[[], Sidecar | None], store: Store) -> Sidecar | None:
    """Return a side-car, or None if it may not be read."""
    try:
        return opened()
    except StorageError as error:
        if error.errno != errno.EACCES:
            raise
    warn_of_refused(store, stacklevel=7)
    return None


def warn_of_refused(store: Store, stacklevel: int) -> None:
    """Warn that a side-car may not be read.

    Amazon and Google answer so for an absent file to whoever may not list the bucket.
    """
    from npstream.formats.sidecar import NAME

    warnings.warn(
        f"{store.where(NAME)}: permission denied, so this optional file counts as absent: chunks "
        "are not verified, and columns are read from the shards. If there is such a file, permit "
        "to read it; if there is none, permit to list the bucket (Permissions in docs/stores.md)",
        RuntimeWarning,
        stacklevel=stacklevel,
    )


def _mark(store: Store, name: str, nbytes: int, version: str) -> Mark:
    """Return the mark of an index that is too large to be read for that."""
    from npstream.formats.sidecar import ENDS, make_mark

    head, tail = store.ranges([(name, 0, ENDS), (name, nbytes - ENDS, ENDS)])
    return make_mark(nbytes, head, tail, version, store.root)


class _Held:
    """A store whose side-car is in memory."""

    def __init__(self, store: Store, name: str, text: bytes) -> None:
        self._store = store
        self._name = name
        self._text = text

    def ranges(self, spans: Iterable[Span]) -> list[bytes]:
        """Return parts of files."""
        wanted = list(spans)
        others = iter(self._store.ranges(span for span in wanted if span[0] != self._name))
        return [
            self._text[begin : begin + nbytes] if name == self._name else next(others)
            for name, begin, nbytes in wanted
        ]

    def size(self, name: str) -> int:
        """Return the bytes of a file."""
        return len(self._text) if name == self._name else self._store.size(name)

    def where(self, name: str) -> str:
        """Return the place of a file, for messages."""
        return self._store.where(name)
