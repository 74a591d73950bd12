"""Provide `ResumableDirectory`, a local directory in which an interrupted write can resume.

Tested in tests/writing/resumption/test_resume.py.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from npstream._core.log import log
from npstream._core.typing import Body
from npstream.errors import StorageError
from npstream.formats.hashes import digest
from npstream.formats.index import INDEX
from npstream.storage.local import file_id
from npstream.writing.destination import WORK, LocalDestination, is_dataset_file
from npstream.writing.resumption.journal import Journal, JournalContent
from npstream.writing.resumption.records import (
    ALL_FILES,
    OTHER_DATA,
    SavedWrite,
    decode_record,
    keep_message,
)

if TYPE_CHECKING:
    from npstream.storage.local import Draft, LocalStore

__all__ = ["ResumableDirectory"]


class ResumableDirectory(LocalDestination):
    """A local directory. An open journal claims it; the journal stays after an interruption.

    Attributes
    ----------
    saved : SavedWrite or None
        The interrupted write that this one continues, which `prepare` sets.
    settings : dict
        The settings to record, which the caller sets before `begin`.
    totals : dict
        The number of input samples ("input"), and of samples that were left out ("rejected"). For a
        Revision also the hash of the shards' index entries ("entries"). The caller sets all of them
        before it publishes.
    """

    def __init__(self, store: LocalStore) -> None:
        super().__init__(store)
        self.saved: SavedWrite | None = None
        self.settings: dict[str, Any] = {}
        self.totals: dict[str, Any] = {}
        self._is_loading = False  # a failure while loading leaves the interrupted write unchanged
        self._journal: Journal | None = None
        self._recorded_shards: set[int] = set()

    @property
    def remaining_files(self) -> str:
        """What to remove to give up an interrupted write, for messages."""
        return ALL_FILES

    def prepare(self) -> None:
        """Open the journal of an interrupted write, or create the directory.

        Raises
        ------
        FileExistsError
            If there is a dataset, or a part of one without a journal, or a file that is not of the
            interrupted write, or if another process writes there.
        FileNotFoundError
            If the interrupted write had stored all samples, and one of its files is missing or
            truncated.
        """
        journal = self._open_journal()
        if journal is None:
            super().prepare()
        else:
            self._load(journal)
        self._is_loading = False

    def _open_journal(self) -> Journal | None:
        """Open and lock the journal of an interrupted write; return None if there is none."""
        if WORK not in self._names():
            return None
        try:
            self._journal = Journal(self._store.where(WORK))
        except FileNotFoundError:  # the process that held the journal has removed it
            return None
        except OSError as error:
            raise self._lock_error(error) from error
        self._is_loading = True
        return self._journal

    def begin(self) -> None:
        """Claim the directory for this write, before its first file."""
        if self._journal is None:
            try:
                self._journal = Journal(self._store.where(WORK), create=True)
            except FileExistsError:
                raise self._occupied_error(WORK) from None
            except OSError as error:
                raise self._lock_error(error) from error
        if self.saved is None:
            self._journal.append("settings", self.settings | self._naming())

    def record(self, number: int, body: bytes) -> None:
        """Record that a shard is stored. Several threads may call it at once."""
        assert self._journal is not None
        self._journal.append("shard", number, body)
        self._recorded_shards.add(number)

    def publish(self, index: bytes, files: Iterable[tuple[str, Iterable[Body]]]) -> None:
        """Store the last files, and then the index. Then remove the journal."""
        assert self._journal is not None
        publication = {
            "index": digest("xxh3_128", index),
            "shards": len(self._recorded_shards),
            **self.totals,
        }
        former = self.saved and self.saved.publication
        if former and former["index"] != publication["index"]:
            raise ValueError(f"{OTHER_DATA} {self.remaining_files}")
        self._journal.append("publication", publication)
        super().publish(index, files)
        self.finish()

    def finish(self) -> None:
        """Remove the journal, which a published write no longer needs."""
        assert self._journal is not None
        try:
            self._journal.remove()
            self._store.sync(self.path)
        except OSError as error:
            log("%s was published, but its work file could not be removed: %s", self.path, error)

    def remove(self) -> str:
        """Keep the whole shards and the journal; remove everything if there is no whole shard.

        After an error in `prepare`, the files of an interrupted write stay.
        """
        if os.getpid() != self._process:
            return ""
        with suppress(StorageError):
            self._wait_for_jobs()
        if self._journal is None or not (self._recorded_shards or self._is_loading):
            return super().remove()
        self._remove_drafts()
        self._journal.close()
        if self._is_loading:
            return ""
        return keep_message(self.path, self._recorded_shards)

    def _release(self) -> None:
        super()._release()
        if self._journal is not None:
            with suppress(OSError):
                self._journal.remove()

    def _link(self, name: str, draft: Draft) -> None:
        """Record which file gets a name, so that it can be removed if its shard is not recorded."""
        assert self._journal is not None
        self._journal.append("file", name, file_id(draft.path))
        super()._link(name, draft)

    def _lock_error(self, error: OSError) -> StorageError:
        """Return the error of a journal that cannot be opened and locked."""
        if error.errno in (errno.EAGAIN, errno.EACCES) and isinstance(error, BlockingIOError):
            reason = "another process writes here, or resumes a write"
            return StorageError(errno.EEXIST, reason, self._store.where(WORK))
        reason = f"{error.strerror or error}: cannot open and lock the file that resume=True needs"
        return StorageError(error.errno, reason, self._store.where(WORK))

    # An interrupted write

    def _load(self, journal: Journal) -> None:
        """Set `saved`, and remove the files of shards that are not whole."""
        content = journal.read()
        if content.settings is not None:
            self._restore_naming(content.settings)
        self._remove_drafts()
        if self._load_published(content):
            return
        whole_files, count, missing = self._whole_shards(journal, content)
        if missing and content.publication is not None:
            self._close_journal()
            reason = "this file of a complete write is missing or truncated: remove all its files"
            raise StorageError(errno.ENOENT, reason, self._store.where(missing))
        self._remove_partial_files(content, set(self._files()) - whole_files - {WORK})
        journal.append("cut", count)  # the files of later shards were removed above
        if content.settings is not None and count:
            self._recorded_shards = set(range(count))
            locations = [content.shards[number] for number in range(count)]
            bodies = (journal.shard_record(location) for location in locations)
            self.saved = SavedWrite(content.settings, bodies, count, content.publication)

    def _naming(self) -> dict[str, str]:
        """Return the unique parts of file names, which the journal records."""
        return {"token": self._token}

    def _restore_naming(self, settings: dict[str, Any]) -> None:
        """Take the unique parts of file names from the recorded settings."""
        self._token = settings.pop("token")
        # Only a Revision records this. In mode "x", `ResumeSession.start` then refuses to resume.
        settings.pop("write_id", None)

    def _whole_shards(self, journal: Journal, content: JournalContent) -> tuple[set[str], int, str]:
        """Return the files of the whole shards, and the number of these shards.

        A shard is whole if it and all shards before it are recorded, and their files are complete.
        Also return the name of the first recorded file that is missing or truncated; "" if none is.
        """
        whole_files: set[str] = set()
        for count in range(len(content.shards)):
            if count not in content.shards:
                return whole_files, count, ""
            files = decode_record(journal.shard_record(content.shards[count])).files()
            for name, nbytes in files.items():
                if self._size(name) != nbytes:
                    return whole_files, count, name
            whole_files |= files.keys()
        return whole_files, len(content.shards), ""

    def _load_published(self, content: JournalContent) -> bool:
        """Set `saved` if the interrupted write has published its index; otherwise return False."""
        try:
            index = self._store.read(INDEX)
        except FileNotFoundError:
            return False
        publication = content.publication or {}
        if content.settings is None or publication.get("index") != digest("xxh3_128", index):
            self._close_journal()
            raise self._occupied_error(INDEX)
        self._set_published(content, index)
        return True

    def _set_published(self, content: JournalContent, index: bytes) -> None:
        """Set `saved` to a write that has published an index."""
        assert content.settings is not None
        count = len(content.shards)
        self._recorded_shards = set(content.shards)
        self.saved = SavedWrite(content.settings, iter(()), count, content.publication, index)

    def _remove_partial_files(self, content: JournalContent, names: set[str]) -> None:
        """Remove files that the interrupted write created; raise if there are others."""
        for name in sorted(names):
            path = self._store.where(name)
            if content.files.get(name) != file_id(path):
                self._close_journal()
                reason = (
                    "this file is not known to be of the write that was interrupted here: move it "
                    "away, or choose another directory"
                )
                raise StorageError(errno.EEXIST, reason, path)
            self._store.remove(name)

    def _close_journal(self) -> None:
        journal, self._journal = self._journal, None
        if journal is not None:
            journal.close()

    def _files(self) -> Iterator[str]:
        """Yield the names of files that may be of a dataset."""
        for name in self._names():
            if name == "index.columns":
                columns = os.listdir(self._store.where(name))
                yield from (f"{name}/{column}" for column in columns)
            elif is_dataset_file(name):
                yield name

    def _size(self, name: str) -> int | None:
        try:
            return os.stat(self._store.where(name)).st_size
        except OSError:
            return None
