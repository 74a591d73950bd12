"""The error for a path or URL without a dataset: it describes the directory and gives a fix."""

from __future__ import annotations

import difflib
import errno
import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from npstream._core.arguments import quantity
from npstream.errors import StorageError
from npstream.formats.index import INDEX
from npstream.shards.snapshot import MEMORY_ADVICE, is_in_memory
from npstream.storage.local import LocalStore

if TYPE_CHECKING:
    from npstream.storage.local import Store

__all__ = ["explain_missing_dataset"]

_MAX_FOLDERS = 64
"""Maximum directories to search, so that an error does not read a whole disk."""

_MAX_DEPTH = 3
"""Maximum levels of directories to search."""

_MAX_NAMES = 3
"""Maximum names that a message lists."""

_READ_TEXT = "pathlib.Path({path!r}).read_text()"

_READ_CODE = {
    ".feather": ("pandas", "pandas.read_feather({path!r})"),
    ".arrow": ("pandas", "pandas.read_feather({path!r})"),
    ".json": ("json, pathlib", f"json.loads({_READ_TEXT})"),
}
"""Suffixes of files that `npstream.convert` does not read.

For each suffix, the modules to import, and code that reads a file so that `npstream.write` can
write it.
"""

_IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff"))

_CONVERTIBLE = _IMAGE_SUFFIXES | {
    ".csv",
    ".tsv",
    ".parquet",
    ".jsonl",
    ".npy",
    ".npz",
    ".h5",
    ".hdf5",
    ".tar",
}
"""Suffixes of files that `npstream.convert` reads."""

_SHARD_SUFFIXES = (".mds", ".mds.zstd", ".mds.gz", ".mds.bz2", ".mds.br", ".mds.snappy")


def explain_missing_dataset(
    error: StorageError, store: Store, split: str | None = None
) -> StorageError | None:
    """Return an error that describes a directory without an index.

    Return None if `error` has another cause than a missing index.

    Parameters
    ----------
    error : StorageError
        The error that reading the index raised.
    store : LocalStore or RemoteStore
        The store of the directory or URL.
    split : str, optional
        The argument `split` of `open_dataset`.
    """
    path = store.where(INDEX)
    if error.errno not in (errno.ENOENT, errno.ENOTDIR) or error.filename != path:
        return None
    description = (
        _describe_local(store) if isinstance(store, LocalStore) else _describe_remote(store)
    )
    if split is not None:
        description = f"split={split!r}: {description}"
    reason = os.strerror(error.errno or errno.ENOENT)
    if store.root.endswith(f"/{INDEX}"):  # the user gave the path of the index
        path = store.root
    return StorageError(error.errno, f"{reason}: no dataset is here; {description}", path)


def _describe_local(store: LocalStore) -> str:
    """Describe a local path that is not a dataset's directory."""
    root = store.root
    if os.path.isfile(root):
        return _describe_file(root)
    if os.path.islink(root) and not os.path.exists(root):
        return f"it is a link to {os.readlink(root)!r}, which does not exist"
    if not os.path.exists(root):
        return _describe_missing(root)
    if not os.path.isdir(root):
        return f"it is a device, pipe or socket, and a dataset is a directory with an {INDEX}"
    try:
        names = [name.rstrip("/") for name in store.entries()]
    except StorageError as error:
        return _describe_unlistable(error)
    return _describe_directory(root, names, list(_find_datasets(root)))


def _describe_remote(store: Store) -> str:
    """Describe a URL without a dataset, by its contents if the store can list them."""
    parent, _, last = store.root.rpartition("/")
    if last == INDEX:
        return _describe_index(parent)
    names: list[str] = []
    try:
        if not store.can_list:
            return "check that this is the URL of the directory that holds index.json"
        names = store.entries()
    except StorageError as error:
        if error.errno != errno.ENOENT:
            return _describe_unlistable(error)
    if not names and is_in_memory(store):
        return (
            "this process has stored nothing under this URL, and memory:// data exist only in the "
            f"process that wrote them: {MEMORY_ADVICE}"
        )
    if not names:
        return "nothing is stored under this URL: check the names of the bucket and of the path"
    folders = [name.rstrip("/") for name in names if name.endswith("/")][:_MAX_FOLDERS]
    datasets: list[str] = []
    with suppress(StorageError):
        exist = store.exist_many([f"{folder}/{INDEX}" for folder in folders])
        datasets = [folder for folder, exists in zip(folders, exist, strict=True) if exists]
    return _describe_directory(store.root, [name.rstrip("/") for name in names], datasets)


def _describe_unlistable(error: StorageError) -> str:
    return f"its files cannot be listed ({os.strerror(error.errno or errno.EIO)})"


def _describe_file(path: str) -> str:
    """Describe a file, and advise which directory to open or how to write a dataset."""
    folder, name = os.path.split(path)
    if name == INDEX:
        return _describe_index(folder)
    if os.path.isfile(os.path.join(folder, INDEX)):
        return f"it is a file of the dataset in {folder!r}: give that directory"
    if name.endswith(_SHARD_SUFFIXES):
        return (
            f"it is a shard without an {INDEX}: give the directory that holds shards and index, "
            "or write the dataset anew"
        )
    return (
        f"it is a file, and a dataset is a directory of shards with an {INDEX}: "
        f"{_advise_write(path)}"
    )


def _describe_index(folder: str) -> str:
    return f"give the directory that holds {INDEX}, {folder!r}, not the file"


def _advise_write(path: str, is_directory: bool = False) -> str:
    """Return advice on how to write a dataset from a file, or from a directory of such files."""
    suffix = os.path.splitext(path)[1]
    if suffix.lower() in _CONVERTIBLE:
        if is_directory:
            path = f"{glob.escape(os.path.dirname(path))}/*{suffix}"
        return f"to write one: import npstream; npstream.convert({path!r}, 'new')"
    modules, code = _READ_CODE.get(suffix.lower(), ("", ""))
    if not code:
        return "npstream.write writes a dataset, from samples, arrays or tables"
    return (
        f"to write one: import npstream, {modules}; npstream.write('new', {code.format(path=path)})"
    )


def _describe_missing(root: str) -> str:
    """Describe a path that does not exist: its first missing name, and a similar name."""
    parent, name = os.path.split(root)
    while not os.path.isdir(parent):
        if os.path.isfile(parent):
            return _describe_file(parent)
        parent, name = os.path.split(parent)
    missing = f"there is no {name!r} in {parent!r}"
    similar: list[str] = []
    with suppress(OSError):
        similar = difflib.get_close_matches(name, os.listdir(parent), n=1)
    if similar:
        return f"{missing}: did you mean {similar[0]!r}?"
    if os.path.isfile(os.path.join(parent, INDEX)):
        return f"{missing}, which is itself a dataset: open {parent!r}"
    if datasets := list(_find_datasets(parent)):
        return f"{missing}, which holds the datasets {_list_names(datasets)}"
    return f"{missing}: check the path; a relative path starts from {os.getcwd()!r}"


def _find_datasets(root: str) -> Iterator[str]:
    """Yield the datasets in a directory, as relative paths, level by level."""
    folders, searched = [root], 0
    for _ in range(_MAX_DEPTH):
        subfolders: list[str] = []
        for folder in folders:
            if searched >= _MAX_FOLDERS:
                return
            searched += 1
            with suppress(OSError), os.scandir(folder) as entries:
                subfolders += sorted(entry.path for entry in entries if entry.is_dir())
        folders = []
        for folder in subfolders[:_MAX_FOLDERS]:
            if os.path.isfile(os.path.join(folder, INDEX)):
                yield os.path.relpath(folder, root)
            else:
                folders.append(folder)


def _describe_directory(root: str, names: Sequence[str], datasets: Sequence[str]) -> str:
    """Describe the contents of a directory without an index."""
    if datasets:
        return (
            f"it holds the datasets {_list_names(datasets)}: give split={datasets[0]!r}, or the "
            f"path {root + '/' + datasets[0]!r}"
        )
    if not names:
        return "the directory is empty: npstream.write writes a dataset"
    if f"{INDEX}.work" in names:
        return (
            f"a write is under way, or was interrupted: {INDEX} is stored last; to continue "
            "that write, repeat its call with resume=True"
        )
    if any(name == f"{INDEX}.lock" or name.startswith(f".{INDEX}") for name in names):
        return f"a write is under way, or was interrupted: {INDEX} is stored last"
    shards = [name for name in names if name.endswith(_SHARD_SUFFIXES)]
    if shards:
        count = quantity(len(shards), "shard")
        return (
            f"it holds {count} ({_list_names(shards)}), but no {INDEX} to list them: the write or "
            "copy is under way, or was interrupted; copy the rest, or write the dataset anew"
        )
    suffixes = Counter(os.path.splitext(name.lower())[1] for name in names)
    # Prefer the formats with specific advice, and among them the most frequent.
    supported = _READ_CODE.keys() | _CONVERTIBLE
    suffix = max(suffixes, key=lambda each: (each in supported, suffixes[each]))
    example = next(name for name in names if name.lower().endswith(suffix))
    return (
        f"the directory holds {_list_names(names)}, and a dataset is a directory of shards with an "
        f"{INDEX}: {_advise_write(root + '/' + example, is_directory=True)}"
    )


def _list_names(names: Sequence[str]) -> str:
    """Return the first names as text, and the number of the others."""
    first = ", ".join(map(repr, names[:_MAX_NAMES]))
    more = len(names) - _MAX_NAMES
    return f"{first} and {more:,} more" if more > 0 else first
