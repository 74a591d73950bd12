"""Making the side-car of a dataset that has none."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from npstream._core.arguments import quantity
from npstream._core.log import log
from npstream._core.progress import progress
from npstream.cache.directory import default_directory, prepare
from npstream.dataset.absence import explain_absence
from npstream.errors import ColumnError, FormatError, IntegrityError, NpstreamError, StorageError
from npstream.formats.hashes import digest
from npstream.formats.index import INDEX, Index, check_size, parse_index
from npstream.formats.scan import scalar_columns
from npstream.formats.sidecar.sidecar import NAME, IndexDigest, Sidecar, digest_index
from npstream.shards.manifest import size_in_version
from npstream.storage.local import LocalStore, Store, open_store, options_for
from npstream.tools.scan import Reading
from npstream.writing.sidecar import Spool, pieces_of

if TYPE_CHECKING:
    from os import PathLike

    from npstream._core.typing import Bools

__all__ = ["build_index", "index_of", "packed_shards"]

_WORK = ".index.work"
_STATE = "state.json"
_STATE_BYTES = 1 << 24
_SAVED_EVERY = 2.0
"""Seconds of work that an interruption may cost."""


def build_index(
    url: str | PathLike[str],
    out: str | PathLike[str] | None = None,
    *,
    columns: Sequence[str] | None = None,
    hashes: bool = True,
    storage_options: Mapping[str, Any] | None = None,
) -> str:
    """Make the side-car of a dataset: its index as arrays, hashes, statistics and scalar columns.

    Every shard is read once; recorded hashes are checked on the way. What was done when the work
    was interrupted is not done again.

    Parameters
    ----------
    url : str or os.PathLike
        The directory that holds ``index.json``.
    out : str or os.PathLike, optional
        Where to put the side-car, if not beside the index: a directory, or a URL.
    columns : sequence of str, optional
        The scalar columns whose values, and least and greatest in each shard, it is to hold; by
        default all of fixed size in MDS shards.
    hashes : bool, default: True
        Whether it is to hold the hash of each piece.
    storage_options : mapping, optional
        Options of the store's driver.

    Returns
    -------
    str
        Where the side-car is.

    Raises
    ------
    FormatError, IntegrityError
        If a shard is damaged.
    StorageError
        If a file cannot be read or written, or another process is making the same side-car. If
        there is no dataset, the error is also a FileNotFoundError.

    See Also
    --------
    verify_dataset : Checks a dataset, and its side-car if it has one.

    Examples
    --------
    >>> report = npstream.write("numbers", {"x": np.arange(10)})
    >>> place = build_index("numbers")
    >>> place.endswith("index.msgpack")
    True
    """
    store = target = open_store(url, storage_options, argument="url")
    if out is not None:
        target = open_store(out, options_for(url, storage_options, out), argument="out")
    index, index_digest = index_of(store)
    wanted = _columns(index, columns)
    packed = packed_shards(store, index)
    with _work(store, target, index_digest) as directory:
        spool = Spool(wanted, hashes, directory)
        try:
            # By its version, too: the same index, written anew, may be of other shards.
            key = [store.version(INDEX), index_digest.ends_hash.hex(), hashes]
            key += [[name, dtype.str] for name, dtype in wanted.items()]
            if hashes or wanted:
                _read(Reading(index, store, packed, wanted), spool, directory, key)
            _publish(spool, target, index, index_digest)
        finally:
            spool.close()
        shutil.rmtree(directory, ignore_errors=True)
    log(
        "made %s: %s, columns %s",
        target.where(NAME),
        quantity(len(index), "shard"),
        ", ".join(wanted),
    )
    return target.where(NAME)


def index_of(store: Store) -> tuple[Index, IndexDigest]:
    """Read the index of a dataset, and what tells it from others."""
    try:
        sign = store.version(INDEX)
    except StorageError as error:
        if (absence := explain_absence(error, store)) is not None:
            raise absence from None
        raise
    version, nbytes = "" if store.is_local else sign, size_in_version(sign)
    check_size(nbytes or 0, store.where(INDEX))
    text = store.read(INDEX, nbytes)
    index_digest = digest_index(text, version, "" if store.is_local else store.root)
    return parse_index(text, store.where(INDEX)), index_digest


def packed_shards(store: Store, index: Index) -> Bools:
    """Return which shards are stored compressed, and not as they are, too."""
    packed = index.compressed.copy()
    shards = np.flatnonzero(packed)
    found = store.sizes(map(index.name, shards.tolist()))
    for shard, size in zip(shards.tolist(), found, strict=True):
        if isinstance(size, StorageError) and size.errno != errno.EACCES:
            raise size
        packed[shard] = not isinstance(size, int)
    return packed


def _columns(index: Index, names: Sequence[str] | None) -> dict[str, np.dtype[Any]]:
    """Return the columns that the side-car is to hold."""
    known = scalar_columns(index.schemas)
    if names is None:
        return known if all(schema.format == "mds" for schema in index.schemas) else {}
    if isinstance(names, str):
        raise TypeError(f"columns={names!r}: expected a list of names, [{names!r}]")
    every = {name for schema in index.schemas for name in schema.names}
    for name in names:
        if name not in every:
            raise ColumnError(name, every)
        if name not in known:
            raise ValueError(
                f"column {name!r} is no scalar of one dtype in all shards; {sorted(known)} are"
            )
    return {name: known[name] for name in names}


def _read(reading: Reading, spool: Spool, directory: str, key: list[Any]) -> None:
    """Read the shards that were not read when the work was interrupted."""
    index = reading.index
    done = spool.cut(index, *_done(directory, key, len(index)))
    saved = time.monotonic()
    for group in progress(reading.groups(range(done, len(index))), "making the side-car"):
        for shard, found in reading.shards(group):
            if isinstance(found, NpstreamError):
                raise found
            spool.add(found)
            done = shard + 1
        if time.monotonic() - saved > _SAVED_EVERY:
            _save(directory, key, done, spool.sync())
            saved = time.monotonic()


def _publish(spool: Spool, target: Store, index: Index, index_digest: IndexDigest) -> None:
    """Store the columns, and then what refers to them; a side-car of this index is kept until then.

    Its columns have the same values, so it stays valid while they are stored again.
    """
    kept = _kept_columns(target, index_digest)
    made: list[str] = []
    try:
        if isinstance(target, LocalStore):
            target.put_all(_noted(spool.finish(index), made))
        else:
            for name, file in spool.finish(index):
                made.append(name)
                target.put(name, file.name)
        target.put(NAME, b"".join(spool.sidecar(index, index_digest)))
    except BaseException:
        with suppress(StorageError):
            if _kept_columns(target, index_digest) == kept:  # else only the answer was lost
                for name in set(made) - kept:
                    target.remove(name)
        raise


def _noted(
    files: Iterable[tuple[str, IO[bytes]]], made: list[str]
) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Yield the names and contents of files, and add each name to a list."""
    for name, file in files:
        made.append(name)
        yield name, pieces_of(file)


def _kept_columns(target: Store, index_digest: IndexDigest) -> set[str]:
    """Return the columns' files of a side-car of this index; remove one of another."""
    try:
        sidecar = Sidecar(target)
        if sidecar.index_digest.matches(index_digest):
            return {column.file for column in sidecar.columns.values()}
    except FileNotFoundError:
        return set()
    except (FormatError, IntegrityError) as error:
        log("it is replaced: %s", error)
    target.remove(NAME)
    return set()


# The state of the work


@contextmanager
def _work(store: Store, target: Store, index_digest: IndexDigest) -> Iterator[str]:
    """Make the directory of the unfinished work, which only one process has at a time."""
    if isinstance(target, LocalStore):
        directory = os.path.join(target.root, _WORK)
    else:
        place = digest("xxh3_128", repr((store.root, target.root, index_digest.ends_hash)).encode())
        prepare(default_directory())
        directory = os.path.join(default_directory(), "building", place)
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        lock = os.open(
            os.path.join(directory, "lock"),
            os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW,
            0o600,
        )
    except OSError as error:
        mend = "name a directory that can be written to, as out="
        raise StorageError(error.errno, f"{error.strerror}: {mend}", directory) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StorageError(
                error.errno, "another process is making this side-car", directory
            ) from error
        _remove_others(directory)
        yield directory
    finally:
        os.close(lock)


def _remove_others(directory: str) -> None:
    """Remove what cannot be a file of the work: directories, links, and what cannot be written."""
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path)
                elif not (
                    entry.is_file(follow_symlinks=False)
                    and os.access(entry.path, os.R_OK | os.W_OK)
                ):
                    os.unlink(entry.path)
    except OSError as error:
        raise StorageError(
            error.errno, f"{error.strerror}: remove it by hand", error.filename
        ) from error


def _done(directory: str, key: list[Any], most: int) -> tuple[int, list[str]]:
    """Return how many shards were read for a side-car of this kind, and the files' hashes then."""
    try:
        with open(os.path.join(directory, _STATE), "rb") as file:
            state = json.loads(file.read(_STATE_BYTES))
        done, digests = state["done"], state["digests"]
        if state["key"] == key and type(done) is int and type(digests) is list:
            return min(max(done, 0), most), digests
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        pass  # there is none, it is damaged, or of another release
    return 0, []


def _save(directory: str, key: list[Any], done: int, digests: list[str]) -> None:
    path = os.path.join(directory, _STATE)
    try:
        with open(f"{path}.tmp", "w") as file:
            json.dump({"key": key, "done": done, "digests": digests}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(f"{path}.tmp", path)
    except OSError as error:
        raise StorageError(
            error.errno, f"{error.strerror}: cannot save how far the work is", path
        ) from error
