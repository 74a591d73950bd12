"""Builder of the side-car for an existing dataset."""

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

from npstream._core.arguments import name_list, quantity
from npstream._core.log import log
from npstream._core.progress import progress
from npstream.cache.directory import default_directory, make_directory
from npstream.dataset.missing_dataset import explain_missing_dataset
from npstream.errors import ColumnError, FormatError, IntegrityError, NpstreamError, StorageError
from npstream.formats.hashes import digest
from npstream.formats.index import INDEX, Index, check_size, parse_index
from npstream.formats.scan import scalar_columns
from npstream.formats.sidecar.sidecar import IndexDigest, Sidecar, digest_index
from npstream.formats.versions import SIDECAR_FILE
from npstream.shards.manifest import size_in_version
from npstream.storage.local import LocalStore, Store, open_store, options_for
from npstream.tools.scan import ShardScanner
from npstream.writing.sidecar import SidecarBuilder, read_pieces

if TYPE_CHECKING:
    from os import PathLike

    from npstream._core.typing import Bools

__all__ = ["build_index", "compressed_only_mask", "read_index"]

_WORK_DIRECTORY = ".index.work"
_STATE_FILE = "state.json"
_MAX_STATE_BYTES = 1 << 24
_SAVE_INTERVAL = 2.0
"""Seconds between saves of the state: an interruption loses at most about this much work."""


def build_index(
    url: str | PathLike[str],
    out: str | PathLike[str] | None = None,
    *,
    columns: Sequence[str] | None = None,
    hashes: bool = True,
    storage_options: Mapping[str, Any] | None = None,
    client: Any = None,
) -> str:
    """Build the side-car of a dataset: index arrays, hashes, statistics and scalar columns.

    This reads every shard once and checks its recorded hashes. If a call is interrupted, the next
    call continues where it stopped.

    Parameters
    ----------
    url : str or os.PathLike
        The directory that holds ``index.json``.
    out : str or os.PathLike, optional
        The directory or URL for the side-car; by default that of the index.
    columns : sequence of str, optional
        Scalar columns to store, with their minimum and maximum in each shard. The default is all
        scalar columns if every shard is in MDS format, and none otherwise.
    hashes : bool, default: True
        Whether to store a hash of each piece of a shard, so that partial reads can be verified.
    storage_options : mapping, optional
        Options of the store's driver.
    client : distributed.Client, optional
        A client of a Dask cluster, whose workers then read the shards. The workers must reach the
        path or URL. By default this process reads the shards.

    Returns
    -------
    str
        The path or URL of the side-car.

    Raises
    ------
    ColumnError
        If the dataset lacks one of `columns`.
    ValueError
        If one of `columns` is not a scalar of the same dtype in all shards.
    FormatError, IntegrityError
        If a shard is damaged.
    StorageError
        If a file cannot be read or written, or another process is building the same side-car. If
        the dataset does not exist, the error is also a FileNotFoundError.

    See Also
    --------
    verify_dataset : Check a dataset, and its side-car if it has one.

    Examples
    --------
    >>> report = npstream.write("numbers", {"x": np.arange(10)})
    >>> path = build_index("numbers")
    >>> path.endswith("index.msgpack")
    True
    """
    store = target = open_store(url, storage_options, argument="url")
    if out is not None:
        target = open_store(out, options_for(url, storage_options, out), argument="out")
    index, index_digest = read_index(store)
    dtypes = _column_dtypes(index, columns)
    compressed = compressed_only_mask(store, index)
    with _locked_work_directory(store, target, index_digest) as directory:
        sidecar_builder = SidecarBuilder(dtypes, hashes, directory)
        try:
            # The saved state is reused only if its key is equal. The index's digest alone is not
            # enough: a rewritten dataset may have an equal index, but it has another version.
            key = [store.version(INDEX), index_digest.ends_hash.hex(), hashes]
            key += [[name, dtype.str] for name, dtype in dtypes.items()]
            if hashes or dtypes:
                scanner = ShardScanner(index, store, compressed, dtypes)
                _scan_remaining(scanner, sidecar_builder, directory, key, client)
            _publish(sidecar_builder, target, index, index_digest)
        finally:
            sidecar_builder.close()
        shutil.rmtree(directory, ignore_errors=True)
    log(
        "built %s: %s, columns %s",
        target.where(SIDECAR_FILE),
        quantity(len(index), "shard"),
        ", ".join(dtypes),
    )
    return target.where(SIDECAR_FILE)


def read_index(store: Store) -> tuple[Index, IndexDigest]:
    """Read the index of a dataset, and return it with its digest."""
    try:
        store_version = store.version(INDEX)
    except StorageError as error:
        if (explanation := explain_missing_dataset(error, store)) is not None:
            raise explanation from None
        raise
    nbytes = size_in_version(store_version)
    check_size(nbytes or 0, store.where(INDEX))
    text = store.read(INDEX, nbytes)
    # A local digest has no version, so that it also matches the index in a copy of the dataset. A
    # copy has another modification time, which is a part of the version.
    version, url = ("", "") if store.is_local else (store_version, store.root)
    return parse_index(text, store.where(INDEX)), digest_index(text, version, url)


def compressed_only_mask(store: Store, index: Index) -> Bools:
    """Return the mask of shards that have a compressed file, but no uncompressed one."""
    compressed = index.compressed.copy()
    shards = np.flatnonzero(compressed)
    sizes = store.sizes(map(index.name, shards.tolist()))
    for shard, size in zip(shards.tolist(), sizes, strict=True):
        # S3 reports EACCES for a missing file if the user may not list the bucket.
        if isinstance(size, StorageError) and size.errno != errno.EACCES:
            raise size
        compressed[shard] = not isinstance(size, int)
    return compressed


def _column_dtypes(index: Index, names: Sequence[str] | None) -> dict[str, np.dtype[Any]]:
    """Return the columns to store in the side-car, with their dtypes."""
    scalars = scalar_columns(index.schemas)
    if names is None:
        return scalars if all(schema.format == "mds" for schema in index.schemas) else {}
    names = name_list(names)
    all_columns = {name for schema in index.schemas for name in schema.names}
    for name in names:
        if name not in all_columns:
            raise ColumnError(name, all_columns)
        if name not in scalars:
            raise ValueError(
                f"column {name!r} is not a scalar of the same dtype in all shards; "
                f"{sorted(scalars)} are"
            )
    return {name: scalars[name] for name in names}


def _scan_remaining(
    scanner: ShardScanner,
    sidecar_builder: SidecarBuilder,
    directory: str,
    key: list[Any],
    client: Any,
) -> None:
    """Scan all shards, or only the remaining ones if an interrupted call has scanned some."""
    index = scanner.index
    saved_shards, digests = _load_state(directory, key, len(index))
    # The builder keeps the results of these shards only if its files have these digests. Otherwise
    # it keeps none, and all shards are scanned.
    shards_done = sidecar_builder.truncate(index, saved_shards, digests)
    last_save = time.monotonic()
    groups = scanner.groups(range(shards_done, len(index)))
    results = scanner.scan_groups(groups, client)
    for _ in progress(groups, "building the side-car"):
        for shard, result in next(results):
            if isinstance(result, NpstreamError):
                raise result
            sidecar_builder.add(result)
            shards_done = shard + 1
        if time.monotonic() - last_save > _SAVE_INTERVAL:
            _save_state(directory, key, shards_done, sidecar_builder.sync())
            last_save = time.monotonic()


def _publish(
    sidecar_builder: SidecarBuilder, target: Store, index: Index, index_digest: IndexDigest
) -> None:
    """Store the column files first, and then the side-car that refers to them.

    An existing side-car of the same index stays valid meanwhile: the new column files have the same
    values as the old ones.
    """
    existing = _remove_outdated_sidecar(target, index_digest)
    names: list[str] = []
    try:
        if isinstance(target, LocalStore):
            target.put_all(_recording_names(sidecar_builder.finish(index), names))
        else:
            for name, file in sidecar_builder.finish(index):
                names.append(name)
                target.put(name, file.name)
        target.put(SIDECAR_FILE, b"".join(sidecar_builder.sidecar(index, index_digest)))
    except BaseException:
        with suppress(StorageError):
            # Keep the column files if the new side-car, which refers to them, is in the store. Even
            # a failed request may have stored it.
            if _remove_outdated_sidecar(target, index_digest) == existing:
                for name in set(names) - existing:
                    target.remove(name)
        raise


def _recording_names(
    files: Iterable[tuple[str, IO[bytes]]], names: list[str]
) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Yield the names and contents of files, and append each name to `names`."""
    for name, file in files:
        names.append(name)
        yield name, read_pieces(file)


def _remove_outdated_sidecar(target: Store, index_digest: IndexDigest) -> set[str]:
    """Remove a side-car that is damaged or describes another index.

    Return the column files of a valid side-car, or an empty set if there is none.
    """
    try:
        sidecar = Sidecar(target)
        if sidecar.index_digest.matches(index_digest):
            return {column.file for column in sidecar.columns.values()}
    except FileNotFoundError:
        return set()
    except (FormatError, IntegrityError) as error:
        log("replacing a damaged side-car: %s", error)
    target.remove(SIDECAR_FILE)
    return set()


# State of an unfinished build


@contextmanager
def _locked_work_directory(store: Store, target: Store, index_digest: IndexDigest) -> Iterator[str]:
    """Create and lock the working directory of a build; raise if another process holds the lock.

    The directory is in the target directory. For a remote target, it is in npstream's default cache
    directory on this machine.
    """
    if isinstance(target, LocalStore):
        directory = os.path.join(target.root, _WORK_DIRECTORY)
    else:
        key = repr((store.root, target.root, index_digest.ends_hash))
        make_directory(default_directory())
        directory = os.path.join(default_directory(), "building", digest("xxh3_128", key.encode()))
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        lock = os.open(
            os.path.join(directory, "lock"),
            os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW,
            0o600,
        )
    except OSError as error:
        advice = "pass a writable directory as out="
        raise StorageError(error.errno, f"{error.strerror}: {advice}", directory) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StorageError(
                error.errno, "another process is building this side-car", directory
            ) from error
        _remove_foreign_entries(directory)
        yield directory
    finally:
        os.close(lock)


def _remove_foreign_entries(directory: str) -> None:
    """Remove entries that a build cannot have made: directories, links, and unwritable files.

    Opening them for writing would fail, or would change files outside the directory.
    """
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


def _load_state(directory: str, key: list[Any], shards: int) -> tuple[int, list[str]]:
    """Return the number of scanned shards, and the hashes of the builder's files.

    Return 0 and no hashes if there is no valid state with this key.
    """
    try:
        with open(os.path.join(directory, _STATE_FILE), "rb") as file:
            state = json.loads(file.read(_MAX_STATE_BYTES))
        shards_done, digests = state["done"], state["digests"]
        if state["key"] == key and type(shards_done) is int and type(digests) is list:
            return min(max(shards_done, 0), shards), digests
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        pass  # the state is missing, damaged, or from another release
    return 0, []


def _save_state(directory: str, key: list[Any], shards_done: int, digests: list[str]) -> None:
    path = os.path.join(directory, _STATE_FILE)
    try:
        with open(f"{path}.tmp", "w") as file:
            json.dump({"key": key, "done": shards_done, "digests": digests}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(f"{path}.tmp", path)
    except OSError as error:
        raise StorageError(
            error.errno, f"{error.strerror}: cannot save the state of the build", path
        ) from error
