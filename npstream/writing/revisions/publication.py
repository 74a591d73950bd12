"""Provide destinations that replace a dataset, or append to it, in one atomic step.

The names of all new files are unique to this write, so no file of another version changes. The
index is replaced on the condition that it is unchanged. If another write was first, this write
builds its index again from the other write's index. Its shards do not change.

docs/design/writing.md says why no write is lost, and what remains after every failure.

Tested in tests/writing/test_publication.py.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
from abc import abstractmethod
from collections.abc import Callable, Container, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from npstream._core.log import log
from npstream._core.typing import Body
from npstream.errors import FormatError, IntegrityError, StorageError
from npstream.formats.index import INDEX
from npstream.formats.versions import version_name, version_of_name
from npstream.storage.local import LocalStore
from npstream.writing.destination import Destination, LocalDestination, RemoteDestination
from npstream.writing.revisions.base import Base, check_columns, former_files, new_document
from npstream.writing.sidecar import revised_sidecar_files

if TYPE_CHECKING:
    from npstream.storage.local import Store
    from npstream.storage.remote import RemoteStore
    from npstream.writing.shard import ShardFormat
    from npstream.writing.sidecar import SidecarBuilder

__all__ = [
    "LocalRevision",
    "RemoteRevision",
    "RevisedIndex",
    "Revision",
    "publish_shards",
    "revision",
]


class RevisedIndex(NamedTuple):
    """A new index, and the files that belong to this index only.

    Attributes
    ----------
    text : bytes
        The content of the index file.
    files : iterable of (str, iterable of bytes-like)
        Names and contents of the side-car's files.
    """

    text: bytes
    files: Iterable[tuple[str, Iterable[Body]]]


_MAX_UNCHANGED = 3
"""Maximum retries if the store refuses to replace the index, although the index is unchanged."""

Revise: TypeAlias = Callable[[Base | None, str], RevisedIndex]
"""Returns the new index, given the existing dataset and a unique part for file names."""


def revision(store: Store, mode: str, exclusive: bool) -> Revision:
    """Return the destination of a write that replaces the dataset in `store`, or appends to it.

    Parameters
    ----------
    store : LocalStore or RemoteStore
    mode : {"w", "a"}
    exclusive : bool
        Whether the caller guarantees that no other process writes there.
    """
    kind = LocalRevision if isinstance(store, LocalStore) else RemoteRevision
    return kind(store, mode, exclusive)


class Revision(Destination):
    """A destination that may hold a dataset.

    Parameters
    ----------
    store : LocalStore or RemoteStore
    mode : {"w", "a"}
        Replace the dataset, or append to it.
    exclusive : bool
        Whether the caller guarantees that no other process writes there.

    Attributes
    ----------
    mode : str
        The parameter.
    base : Base or None
        The dataset that is here; None if there is none.
    """

    def __init__(self, store: Any, mode: str, exclusive: bool) -> None:
        super().__init__(store)
        self.mode = mode
        self.base: Base | None = None
        self._is_exclusive_writer = exclusive
        self._needs_condition = mode == "a"
        self._has_conditional_replace = True
        self._may_be_published = False
        self._kept_base: Base | None = None  # the former dataset whose index this write has kept

    def prepare(self) -> None:
        """Read the index, and make the directory if it does not exist.

        Raises
        ------
        StorageError
            With ``errno.EOPNOTSUPP`` in mode "a", if the store cannot replace a file on a
            condition, and the caller does not guarantee that no other process writes there.
        """
        self.base = Base.read(self._store)
        self._has_conditional_replace = self._can_replace()
        is_safe = self._has_conditional_replace or self._is_exclusive_writer
        if self._needs_condition and not is_safe:
            raise StorageError(
                errno.EOPNOTSUPP,
                "this store cannot replace a file on the condition that it is unchanged, so of two "
                "appends at once one could be lost: pass exclusive=True if no other process writes "
                "here",
                self._store.where(INDEX),
            )
        self._store.make_folders(self._folders)

    def begin(self) -> None:
        """Choose the part of file names that is unique to this write."""
        self.check_process()
        self.write_id = f"{os.urandom(8).hex()}."

    def publish_revision(self, revise: Revise) -> None:
        """Publish the index of `revise`. Call `revise` again each time another write was first."""
        for attempt in itertools.count():
            shard_files = set(self._created)
            try:
                index, files = revise(self.base, self._unique_part(attempt))
                self._store_files(files)
            except (StorageError, FormatError, IntegrityError):
                # Another write may have replaced the dataset and removed its side-car.
                if not self._has_changed():
                    raise
            else:
                if self.mode == "a" and self.base is not None:
                    self._keep(self.base)
                if self._try_publish(index):
                    break
            self._remove_files([name for name in self._created if name not in shard_files])
            self._rebase(attempt)
            if self._has_been_published():
                break
        self._created.clear()
        self._folders.clear()
        self._wait_for_jobs()
        if self.mode == "w" and self.base is not None:
            self._remove_former(self.base)

    @abstractmethod
    def _can_replace(self) -> bool:
        """Return True if a file of the store can be replaced on the condition that it is unchanged.

        A local directory without an index needs no such replacement, so the result is then True.
        """

    def _unique_part(self, attempt: int) -> str:
        """Return the part of file names that is unique to an attempt to publish."""
        return f"{self.write_id}{attempt}."

    def _has_been_published(self) -> bool:
        """Return True if another process that continued this write has published it."""
        return False

    def _has_changed(self) -> bool:
        """Return True if the index in the store is no longer the one that this write has read."""
        newest = Base.read(self._store)
        return (newest and newest.tag.content) != (self.base and self.base.tag.content)

    @abstractmethod
    def _store_files(self, files: Iterable[tuple[str, Iterable[Body]]]) -> None:
        """Store the files of a side-car."""

    @abstractmethod
    def _try_publish(self, index: bytes) -> bool:
        """Publish an index; return False if another write was first."""

    def _remove_files(self, names: list[str]) -> None:
        """Remove the side-car of an index that was not published."""
        self._discard(names)
        for name in names:
            del self._created[name]

    def _keep(self, base: Base) -> None:
        """Keep the former index under the name of its version."""
        name = version_name(base.version)
        with suppress(FileNotFoundError):
            if self._store.read(name) == base.tag.content:
                return
        self._put(name, base.tag.content)
        self._kept_base = base

    def _put(self, name: str, content: bytes) -> None:
        """Store a file, also in place of another one."""
        self._store.put(name, content)

    def _rebase(self, attempt: int) -> None:
        """Read the index that another write has published."""
        former, self.base = self.base, Base.read(self._store)
        contents = [None if base is None else base.tag.content for base in (former, self.base)]
        if attempt >= _MAX_UNCHANGED and contents[0] == contents[1]:
            raise StorageError(
                errno.EIO,
                "the store refuses to replace this file, as if it had changed, but it has not",
                self._store.where(INDEX),
            )
        kept_base, self._kept_base = self._kept_base, None
        if kept_base is None or (self.base is not None and kept_base.is_extended_by(self.base)):
            return
        # Another write has replaced the dataset. It removes the files of the former dataset, unless
        # it finds the kept index first. If files are missing, the kept index is removed, too.
        if not all(self._store.exist_many(kept_base.files())):
            self._store.remove(version_name(kept_base.version))

    def _published_names(self) -> Container[str]:
        """Return the created files that may not be removed, because a published index names them.

        These are all files of this write if an index names one of them, and otherwise none.
        """
        if self._may_be_published and self._find_published() is not None:
            return frozenset(self._created)
        return ()

    def _find_published(self) -> bytes | None:
        """Return an index, or a kept one, that names files of this write; None if none does."""
        versions = [n for n in self._store.entries() if version_of_name(n) is not None]
        for name in (INDEX, *versions):
            with suppress(FileNotFoundError):
                # Another process may replace the index while it is read.
                text = self._store.read_tagged(name).content
                if self._is_from_this_write(text):
                    return text
        return None

    def _is_from_this_write(self, text: bytes) -> bool:
        """Return True if an index names files of this write."""
        return self.write_id.encode() in text

    def _remove_former(self, base: Base) -> None:
        """Remove the files of the dataset that this write has replaced."""
        try:
            for name in former_files(self._store, base):
                self._store.remove(name)
        except (StorageError, FormatError) as error:
            log("%s was replaced, but files of the former dataset remain: %s", self.path, error)


class LocalRevision(Revision, LocalDestination):
    """A directory that may hold a dataset. A lock on the index excludes other processes."""

    _store: LocalStore

    def _can_replace(self) -> bool:
        return self.base is None or self._store.can_replace(INDEX)

    def _store_files(self, files: Iterable[tuple[str, Iterable[Body]]]) -> None:
        self._put_all(files)

    def _put(self, name: str, content: bytes) -> None:
        self._store.put(name, content, self._token)

    def _try_publish(self, index: bytes) -> bool:
        self._sync()
        self._may_be_published = True
        try:
            if self.base is None:
                self.put(INDEX, [index])
            elif self._has_conditional_replace:
                self._store.replace(INDEX, index, self.base.tag, self._token)
            else:
                if self._store.read(INDEX) != self.base.tag.content:
                    return False
                self._put(INDEX, index)
        except (FileExistsError, FileNotFoundError):
            return False
        self._store.sync(self.path)
        return True


class RemoteRevision(Revision, RemoteDestination):
    """A URL that may hold a dataset. The server replaces the index on a condition."""

    _store: RemoteStore

    def prepare(self) -> None:
        """Read the index, and make the directory if the store has directories."""
        self.submit(Revision.prepare, self).result()

    def _can_replace(self) -> bool:
        if not self._store.can_replace(INDEX):
            return False
        is_trusted = self._store.checks_conditions or self._is_exclusive_writer
        return is_trusted or not self._needs_condition or probe_conditions(self._store)

    def _store_files(self, files: Iterable[tuple[str, Iterable[Body]]]) -> None:
        try:
            for name, pieces in files:
                data = b"".join(map(bytes, pieces))
                self._wait_for_uploads(self._max_uploads - 1)
                self._uploads.append(self.submit(self._upload, name, data))
            self._wait_for_uploads(0)
        finally:
            while self._uploads:  # after an error: the caller removes what these store
                self._uploads.popleft().exception()

    def _try_publish(self, index: bytes) -> bool:
        self._may_be_published = True
        try:
            self.submit(self._replace_index, index).result()
        except StorageError as error:
            with suppress(StorageError):
                text = self._store.read_tagged(INDEX).content
                if text == index or self._is_from_this_write(text):
                    return True  # the upload succeeded, and only its response was lost
            if isinstance(error, FileExistsError):
                return False
            if isinstance(error, FileNotFoundError) and self.base is not None:
                return False
            self._is_index_uncertain = error.errno in (errno.ETIMEDOUT, errno.EIO)
            raise
        return True

    def _replace_index(self, index: bytes) -> None:
        if self.base is None:
            try:
                self._store.create(INDEX, index)
                return
            except StorageError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise
            if self._store.exists(INDEX):
                raise self._occupied_error(INDEX)
        elif self._has_conditional_replace:
            self._store.replace(INDEX, index, self.base.tag)
            return
        elif self._store.read(INDEX) != self.base.tag.content:
            raise self._occupied_error(INDEX)
        self._store.put(INDEX, index)


def publish_shards(
    destination: Revision,
    layout: ShardFormat,
    entries: list[dict[str, Any]],
    sidecar_builder: SidecarBuilder | None,
) -> None:
    """Publish shards that are stored, alone or after those of the dataset that is here.

    Parameters
    ----------
    destination : Revision
    layout : ShardFormat
        The format of the shards.
    entries : list of dict
        The index entries of the shards.
    sidecar_builder : SidecarBuilder or None
        Builds the side-car of the shards; None to publish no side-car.
    """

    def revise(base: Base | None, unique: str) -> RevisedIndex:
        base = base if destination.mode == "a" else None
        has_sidecar = sidecar_builder is not None
        if base is not None:
            check_columns(base, layout)
            if not entries:
                return RevisedIndex(base.tag.content, ())
            has_sidecar &= base.can_name_sidecar and (not base.entries or base.sidecar is not None)
        name = f"index.{unique}msgpack" if has_sidecar else ""
        if base is None:
            document = new_document(layout, entries, name)
        else:
            document = base.extended_document(entries, layout.annotations.dtypes, name)
        text = json.dumps(document, sort_keys=True).encode()
        if sidecar_builder is None or not has_sidecar:
            return RevisedIndex(text, ())
        sidecar = index = None
        if base is not None and base.entries:
            sidecar, index = base.sidecar, base.index
        new = new_document(layout, entries)
        files = revised_sidecar_files(sidecar_builder, text, name, new, sidecar, index, unique)
        return RevisedIndex(text, files)

    try:
        if entries or destination.mode == "w" or destination.base is None:
            destination.publish_revision(revise)
        else:
            destination.remove()  # nothing to append: only end the threads
    finally:
        if sidecar_builder is not None:
            sidecar_builder.close()


def probe_conditions(store: RemoteStore) -> bool:
    """Return True if the server refuses to replace a file that has changed."""
    name = f"index.{os.urandom(8).hex()}.lock"
    try:
        store.put(name, b"1")
        outdated = store.tag(name)
        store.put(name, b"2")
        store.replace(name, b"3", outdated)
    except StorageError as error:
        if isinstance(error, FileExistsError) or isinstance(error.__cause__, FileExistsError):
            return True
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
    finally:
        with suppress(StorageError):
            store.remove(name)
    return False
