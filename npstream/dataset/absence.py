"""The error of a place without a dataset: what is there instead, and what to do."""

from __future__ import annotations

import difflib
import errno
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from npstream._core.arguments import quantity
from npstream.errors import StorageError
from npstream.formats.index import INDEX
from npstream.storage.local import LocalStore

if TYPE_CHECKING:
    from npstream.storage.local import Store

__all__ = ["explain_absence"]

_MOST_FOLDERS = 64
"""Directories that are looked into: an error does not read a whole disk."""

_DEPTH = 3

_SHOWN = 3
"""Names that a message shows."""

_TABLE = "write it as one, npstream.write('new', dict({read}({name!r})))"

_TEXT = "pathlib.Path({name!r}).read_text()"

_READERS = {
    ".csv": _TABLE.replace("{read}", "pandas.read_csv"),
    ".tsv": _TABLE.replace("{read}", "pandas.read_table"),
    ".parquet": _TABLE.replace("{read}", "pandas.read_parquet"),
    ".feather": _TABLE.replace("{read}", "pandas.read_feather"),
    ".arrow": _TABLE.replace("{read}", "pandas.read_feather"),
    ".npz": _TABLE.replace("{read}", "numpy.load"),
    ".npy": "write it as one, npstream.write('new', {{'x': numpy.load({name!r}, mmap_mode='r')}})",
    ".json": f"write its samples, npstream.write('new', json.loads({_TEXT}))",
    ".jsonl": f"write its lines, npstream.write('new', map(json.loads, {_TEXT}.splitlines()))",
}
"""How a file of another format becomes a dataset; `name` is the file's."""

_IMAGES = frozenset((".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff"))

_SHARDS = (".mds", ".mds.zstd", ".mds.gz", ".mds.bz2", ".mds.br", ".mds.snappy")


def explain_absence(
    error: StorageError, store: Store, split: str | None = None
) -> StorageError | None:
    """Return an error that says what is there instead of an index; None if that is not absent.

    Parameters
    ----------
    error : StorageError
        What reading the index raised.
    store : LocalStore or RemoteStore
        The directory, or URL.
    split : str, optional
        The directory below the dataset's that the user named.
    """
    place = store.where(INDEX)
    if error.errno not in (errno.ENOENT, errno.ENOTDIR) or error.filename != place:
        return None
    found = _local(store) if isinstance(store, LocalStore) else _remote(store)
    if split is not None:
        found = f"split={split!r}: {found}"
    reason = os.strerror(error.errno or errno.ENOENT)
    return StorageError(error.errno, f"{reason}: no dataset is here; {found}", place)


def _local(store: LocalStore) -> str:
    """Say what a path is instead of a dataset's directory."""
    root = store.root
    if os.path.isfile(root):
        return _file(root)
    if not os.path.isdir(root):
        return _missing(root)
    try:
        names = [name.rstrip("/") for name in store.entries()]
    except StorageError as error:
        return f"what is there cannot be listed ({os.strerror(error.errno or errno.EIO)})"
    return _directory(root, names, list(_datasets_below(root)))


def _remote(store: Store) -> str:
    """Say what a URL is instead of a dataset's, if the store may be asked."""
    parent, _, last = store.root.rpartition("/")
    if last == INDEX:
        return _of_index(parent)
    names: list[str] = []
    try:
        if not store.can_list:
            return "look whether the URL is that of the directory which holds index.json"
        names = store.entries()
    except StorageError as error:
        if error.errno != errno.ENOENT:
            return f"what is there cannot be listed ({os.strerror(error.errno or errno.EIO)})"
    if not names:
        return "nothing is stored under this URL: check the names of the bucket and of the path"
    folders = [name.rstrip("/") for name in names if name.endswith("/")][:_MOST_FOLDERS]
    datasets: list[str] = []
    with suppress(StorageError):
        there = store.exist_many([f"{folder}/{INDEX}" for folder in folders])
        datasets = [folder for folder, is_one in zip(folders, there, strict=True) if is_one]
    return _directory(store.root, [name.rstrip("/") for name in names], datasets)


def _file(path: str) -> str:
    """Say how a file is opened, or becomes a dataset."""
    folder, name = os.path.split(path)
    if name == INDEX:
        return _of_index(folder)
    if os.path.isfile(os.path.join(folder, INDEX)):
        return f"it is a file of the dataset in {folder!r}: give that directory"
    if name.endswith(_SHARDS):
        return (
            f"it is a shard, which an {INDEX} has to list: give the directory that holds both, "
            "or write the dataset anew"
        )
    return f"it is a file, and a dataset is a directory of shards with an {INDEX}: {_reader(path)}"


def _of_index(folder: str) -> str:
    return f"give the directory that holds {INDEX}, {folder!r}, not the file"


def _reader(name: str) -> str:
    suffix = os.path.splitext(name.lower())[1]
    if suffix in _IMAGES:
        return (
            "npstream.write('new', ({'image': PIL.Image.open(file)} for file in files)) makes one"
        )
    return _READERS.get(suffix, "npstream.write('new', samples) makes one").format(name=name)


def _missing(root: str) -> str:
    """Say how far a path exists, and which name is like the first that does not."""
    parent, name = os.path.split(root)
    while not os.path.isdir(parent):
        if os.path.isfile(parent):
            return _file(parent)
        parent, name = os.path.split(parent)
    said = f"there is no {name!r} in {parent!r}"
    near: list[str] = []
    with suppress(OSError):
        near = difflib.get_close_matches(name, os.listdir(parent), n=1)
    if near:
        return f"{said}: did you mean {near[0]!r}?"
    if os.path.isfile(os.path.join(parent, INDEX)):
        return f"{said}, which is a dataset itself: open that"
    if datasets := list(_datasets_below(parent)):
        return f"{said}, which holds the datasets {_listed(datasets)}"
    return f"{said}: check the path; a relative one begins at {os.getcwd()!r}"


def _datasets_below(root: str) -> Iterator[str]:
    """Yield the datasets in a directory, as paths that begin there, those above others first."""
    folders, looked = [root], 0
    for _ in range(_DEPTH):
        below: list[str] = []
        for folder in folders:
            if looked >= _MOST_FOLDERS:
                return
            looked += 1
            with suppress(OSError), os.scandir(folder) as entries:
                below += sorted(entry.path for entry in entries if entry.is_dir())
        folders = []
        for folder in below[:_MOST_FOLDERS]:
            if os.path.isfile(os.path.join(folder, INDEX)):
                yield os.path.relpath(folder, root)
            else:
                folders.append(folder)


def _directory(root: str, names: Sequence[str], datasets: Sequence[str]) -> str:
    """Say what a directory holds that has no index."""
    if datasets:
        return (
            f"it holds the datasets {_listed(datasets)}: give split={datasets[0]!r}, or the path "
            f"{root + '/' + datasets[0]!r}"
        )
    if not names:
        return "the directory is empty: npstream.write(path, samples) writes a dataset"
    if any(name == f"{INDEX}.lock" or name.startswith(f".{INDEX}") for name in names):
        return f"a write is under way, or was cut off: {INDEX} is stored last"
    shards = [name for name in names if name.endswith(_SHARDS)]
    if shards:
        count = quantity(len(shards), "shard")
        return (
            f"it holds {count} ({_listed(shards)}), but no {INDEX} to list them: the write or copy "
            "was cut off, or is under way; copy the rest, or write the dataset anew"
        )
    suffixes = Counter(os.path.splitext(name.lower())[1] for name in names)
    suffix = max(suffixes, key=lambda kind: (kind in _READERS or kind in _IMAGES, suffixes[kind]))
    example = next(name for name in names if name.lower().endswith(suffix))
    return (
        f"the directory holds {_listed(names)}, and a dataset is a directory of shards with an "
        f"{INDEX}: {_reader(root + '/' + example)}"
    )


def _listed(names: Sequence[str]) -> str:
    """Return a few of some names, and how many more there are."""
    shown = ", ".join(map(repr, names[:_SHOWN]))
    more = len(names) - _SHOWN
    return f"{shown} and {more:,} more" if more > 0 else shown
