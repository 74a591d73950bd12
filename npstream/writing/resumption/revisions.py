"""Provide destinations of writes that replace a dataset, or append to it, and can resume.

The names of all files of such a write contain a part that is unique to the write. This part,
`write_id`, is recorded with the settings. If the text of an index contains it, the dataset has the
shards of the write.

docs/design/writing.md says how a resumed write detects that it has published already.

Tested in tests/writing/resumption/test_resume_revisions.py.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from npstream._core.log import log
from npstream.errors import FormatError, StorageError
from npstream.formats.index import INDEX
from npstream.storage.uploads import Tag
from npstream.writing.destination import LOCK, WORK
from npstream.writing.resumption.local import ResumableDirectory
from npstream.writing.resumption.records import OTHER_DATA, SavedWrite, difference_error
from npstream.writing.resumption.remote import ResumableUrl, lock_numbers
from npstream.writing.revisions.base import Base, files_in_use
from npstream.writing.revisions.publication import (
    LocalRevision,
    RemoteRevision,
    Revise,
    Revision,
)

if TYPE_CHECKING:
    from npstream.storage.local import LocalStore
    from npstream.storage.remote import RemoteStore
    from npstream.writing.resumption.journal import JournalContent

__all__ = ["ResumableLocalRevision", "ResumableRemoteRevision"]

_FORMER = f"{WORK}.former"
"""The object with the content of the index that a write at a URL replaces."""


class _ResumableRevision(Revision):
    """The methods that do not depend on the kind of the store."""

    saved: SavedWrite | None
    totals: dict[str, Any]

    def __init__(self, store: Any, mode: str, exclusive: bool) -> None:
        super().__init__(store, mode, exclusive)
        self._needs_condition = True  # another process can publish the same write
        # The content of the index that a published write has replaced; b"" if there was none.
        self._former = b""

    @property
    def remaining_files(self) -> str:
        """A text for messages: the files to remove in order to give up an interrupted write."""
        kinds = WORK if self.is_local else f"{WORK}*, {LOCK}*"
        return f"the files of the interrupted write ({kinds} and *{self.write_id}*)"

    def publish_revision(self, revise: Revise) -> None:
        """Publish as a Revision does, and then remove the files that a resumed write would need.

        The current index is read again before the publication, because `_try_publish` must record
        the newest index.
        """
        assert self.saved is None or not self.saved.index
        recorded = self.saved and self.saved.publication
        if recorded and recorded["entries"] != self.totals["entries"]:
            raise ValueError(f"{OTHER_DATA} {self.remaining_files}")
        self.base = Base.read(self._store)
        if self._has_been_published():
            self._created.clear()
            self._folders.clear()
            self._wait_for_jobs()
        else:
            super().publish_revision(revise)
        self.finish()

    def finish(self) -> None:
        """Remove the files that a published write no longer needs."""
        if self.mode == "w" and self._former:
            self._remove_former(self._base_of(self._former))

    def _base_of(self, content: bytes) -> Base:
        return Base(self._store, INDEX, Tag(content, {}))

    def _base_content(self) -> bytes:
        return b"" if self.base is None else self.base.tag.content

    def _published_shards(self) -> bytes | None:
        """Return an index of this write's shards only; None if no published index names them."""
        text = self._find_published()
        if text is None:
            return None
        shards = json.loads(text)["shards"]
        own = [entry for entry in shards if self.write_id in entry["raw_data"]["basename"]]
        return json.dumps({"shards": own}).encode()

    def _require_unreplaced(self, recorded: bytes) -> None:
        """Raise StorageError if this write may have been published, and then replaced.

        A write that replaces this one removes its shards. So this write must not publish them
        again. `recorded` is the content of the index that this write was about to replace.
        """
        if self.base is None:
            return
        # The recorded dataset is still there, perhaps with appended shards: nothing replaced it.
        if recorded and self._base_of(recorded).is_extended_by(self.base):
            return
        reason = (
            "this dataset was replaced when an interrupted write had stored all samples, so that "
            "write may have been published and replaced. It cannot continue: remove "
            f"{self.remaining_files}, and write again if its samples are missing"
        )
        raise StorageError(errno.EEXIST, reason, self._store.where(INDEX))

    def _mode_error(self) -> ValueError:
        differences = [f"mode: 'x' then, {self.mode!r} now"]
        return difference_error(self.path, differences, "the files of the interrupted write")

    def _occupied_error(self, name: str) -> StorageError:
        if name == INDEX:
            return super()._occupied_error(name)
        reason = (
            "another write is in progress here, or was interrupted"
            f"{self._describe_writer()}: wait for its end, or remove its files"
        )
        return StorageError(errno.EEXIST, reason, self._store.where(name))


class ResumableLocalRevision(_ResumableRevision, LocalRevision, ResumableDirectory):
    """A directory that may hold a dataset, with a journal that stays after an interruption.

    Only the process that holds the lock of the journal can publish the write.
    """

    _store: LocalStore

    def prepare(self) -> None:
        """Read the index, and open the journal of an interrupted write, if there is one.

        Raises
        ------
        FileExistsError
            If another process writes there with ``resume=True``.
        ValueError
            If the interrupted write was made with mode "x", for a new dataset.
        """
        journal = self._open_journal()
        Revision.prepare(self)
        if journal is not None:
            self._load(journal)
        self._is_loading = False

    def begin(self) -> None:
        """Record the settings, and the part of file names that is unique to this write."""
        if self.saved is None:
            Revision.begin(self)
        ResumableDirectory.begin(self)

    def finish(self) -> None:
        """Remove the files of the replaced dataset, and then the journal."""
        super().finish()
        ResumableDirectory.finish(self)

    def _try_publish(self, index: bytes) -> bool:
        assert self._journal is not None
        shards = len(self._recorded_shards)
        publication = {"shards": shards, "base": self._base_content(), **self.totals}
        self._journal.append("publication", publication)
        return super()._try_publish(index)

    # An interrupted write

    def _naming(self) -> dict[str, str]:
        return {**super()._naming(), "write_id": self.write_id}

    def _restore_naming(self, settings: dict[str, Any]) -> None:
        if "write_id" not in settings:
            raise self._mode_error()
        self.write_id = settings["write_id"]
        super()._restore_naming(settings)

    def _files(self) -> Iterator[str]:
        """Yield the names of this write's files."""
        columns = self._store.where("index.columns")
        names = list(self._names())
        if os.path.isdir(columns):
            names += [f"index.columns/{name}" for name in os.listdir(columns)]
        return (name for name in names if self.write_id and self.write_id in name)

    def _load_published(self, content: JournalContent) -> bool:
        if content.publication is None or content.settings is None:
            return False
        index = self._published_shards()
        if index is None:
            self._require_unreplaced(content.publication["base"])
            return False
        self._former = content.publication["base"]
        self._set_published(content, index)
        return True


class ResumableRemoteRevision(_ResumableRevision, RemoteRevision, ResumableUrl):
    """A URL that may hold a dataset, with lock files and records that stay after an interruption.

    The former owner of a write, another process, may still run on another machine, and publish the
    write, too. Both processes replace the index on the condition that it is unchanged. The process
    that fails finds the shards of the write in the new index.
    """

    _store: RemoteStore

    def __init__(self, store: RemoteStore, mode: str, exclusive: bool) -> None:
        super().__init__(store, mode, exclusive)
        self._is_publication_claimed = False
        # The content of the index that this write has tried to replace; None before it tries.
        self._attempted: bytes | None = None

    def prepare(self) -> None:
        """Read the index, and take over an interrupted write, if there is one.

        Raises
        ------
        FileExistsError
            If another process writes there with ``resume=True``.
        ValueError
            If the interrupted write was made with mode "x", for a new dataset.
        """
        self.submit(self._prepare).result()

    def _prepare(self) -> None:
        Revision.prepare(self)
        sizes = dict(self._store.names())
        if locks := lock_numbers(sizes):
            self._take_over(sizes, locks)

    def begin(self) -> None:
        """Create the first lock file, and the file of the settings."""
        self.check_process()
        if self._lock_number < 0:
            self._create_first_lock()
        if self.saved is None:
            Revision.begin(self)
        ResumableUrl.begin(self)

    def _create_first_lock(self) -> None:
        self._lock = json.dumps(self._writer()).encode()
        if not self.submit(self._is_exclusive).result():
            self._release()
            raise self._exclusive_error()
        self._lock_number = 0

    def finish(self) -> None:
        """Remove the files of the replaced dataset, unused files of this write, and its locks."""
        super().finish()
        if self.saved is not None:
            self._remove_unused()
        ResumableUrl.finish(self)

    def _remove_unused(self) -> None:
        """Remove the files that former owners of this write have stored for their side-cars."""
        try:
            in_use = files_in_use(self._store)
            names = [name for name, _ in self._store.names() if self.write_id in name]
            self._store.remove_all([name for name in names if name not in in_use])
        except (StorageError, FormatError) as error:
            log("%s: files of an interrupted write remain: %s", self.path, error)

    @property
    def _may_overwrite(self) -> bool:
        return False  # a former owner of this write uses the same names

    def _unique_part(self, attempt: int) -> str:
        return f"{self.write_id}{self._lock_number}.{attempt}."

    def _has_been_published(self) -> bool:
        if self.base is not None and self._is_from_this_write(self.base.tag.content):
            return True
        if self._attempted is not None:
            self._require_unreplaced(self._attempted)
        return False

    def _try_publish(self, index: bytes) -> bool:
        if not self._is_publication_claimed:
            self._claim_publication()
        self._attempted = self._base_content()
        self._store.put(_FORMER, self._attempted)
        return super()._try_publish(index)

    def _claim_publication(self) -> None:
        """Create the next lock file, so that no other process removes files of this write."""
        publication = {
            "shards": len(self._recorded_shards),
            "settings": self.settings,
            "write_id": self.write_id,
            **self.totals,
        }
        self._claim(self._lock_number + 1, publication)
        # A process that finishes a write removes its settings and lock files. So if the settings
        # are gone, another process has finished this write.
        if not self._store.exists(WORK):
            self._store.remove_all([name for name in self._created if name.startswith(WORK)])
            self._remove_unused()
            self._created.clear()
            self._recorded_shards.clear()
            raise self._finished_error()
        self._is_publication_claimed = True

    # An interrupted write

    def _naming(self) -> dict[str, str]:
        return {"write_id": self.write_id}

    def _own_names(self, names: Iterable[str]) -> Iterator[str]:
        for name in names:
            if name.startswith(WORK) or (self.write_id and self.write_id in name):
                yield name

    def _load(self, sizes: dict[str, int], publication: dict[str, Any] | None) -> None:
        if WORK in sizes:
            settings = json.loads(self._store.read(WORK))
            if "write_id" not in settings:
                raise self._mode_error()
            self.write_id = settings["write_id"]
        super()._load(sizes, publication)

    def _load_published(self, sizes: dict[str, int], publication: dict[str, Any] | None) -> bool:
        if publication is None or "write_id" not in publication:
            return False
        self.write_id = publication["write_id"]
        index = self._published_shards()
        former = self._read_former() if _FORMER in sizes else None
        if index is None:
            if former is not None:
                self._require_unreplaced(former)
                self._attempted = former
            return False
        self._former = former or b""
        self._set_published(publication, index)
        return True

    def _read_former(self) -> bytes | None:
        """Return the recorded index; None if another process has removed it since the listing."""
        try:
            return self._store.read(_FORMER)
        except FileNotFoundError:
            return None
