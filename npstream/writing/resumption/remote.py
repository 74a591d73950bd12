"""Provide `ResumableUrl`, a URL of a store at which an interrupted write can resume.

Each process that takes over a write creates another lock file, with the next number. The last lock
file names the owner. Before the owner publishes, it creates one more, so that no other process can
take over in between and remove files that the index names.

Tested in tests/writing/resumption/test_resume_remote.py.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any

from npstream._core.arguments import quantity
from npstream._core.log import log
from npstream._core.typing import Body
from npstream.errors import StorageError
from npstream.formats.hashes import digest
from npstream.formats.index import INDEX
from npstream.writing.destination import LOCK, WORK, Destination, RemoteDestination, is_dataset_file
from npstream.writing.resumption.records import (
    ALL_FILES,
    OTHER_DATA,
    SavedWrite,
    decode_record,
    keep_message,
)

if TYPE_CHECKING:
    from npstream.storage.remote import RemoteStore

__all__ = ["ResumableUrl", "lock_name", "lock_numbers"]

_READ_BATCH = 32
"""The number of records that are read concurrently."""

_active_writers: set[str] = set()
"""The IDs of the writers of this process that are in progress."""


class ResumableUrl(RemoteDestination):
    """A URL of a store. Lock files claim it, and each stored shard has a record.

    An interrupted write leaves its lock files, shards and records.

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

    def __init__(self, store: RemoteStore) -> None:
        super().__init__(store)
        self.saved: SavedWrite | None = None
        self.settings: dict[str, Any] = {}
        self.totals: dict[str, Any] = {}
        self._recorded_shards: set[int] = set()
        self._lock_number = -1  # of the last lock file that this process created; -1 for none
        self._writer_id = ""
        self._is_loading = False  # a failure while loading leaves the interrupted write unchanged

    @property
    def remaining_files(self) -> str:
        """What to remove to give up an interrupted write, for messages."""
        return ALL_FILES

    def prepare(self) -> None:
        """Take over an interrupted write, or create the directory.

        Raises
        ------
        FileExistsError
            If there is a dataset, or a part of one that cannot resume, or another process writes
            there.
        """
        self.submit(self._prepare).result()

    def _prepare(self) -> None:
        sizes = dict(self._store.names())
        if not (locks := lock_numbers(sizes)):
            Destination.prepare(self)
            return
        self._take_over(sizes, locks)

    def _take_over(self, sizes: dict[str, int], locks: list[int]) -> None:
        """Become the owner of an interrupted write, given the numbers of its lock files."""
        writers = {number: self._read_writer(number) for number in locks}
        publication = next((w["publication"] for w in writers.values() if "publication" in w), None)
        # A process that has published may still be removing its lock files.
        _require_dead(writers[locks[-1]], self._store.where(lock_name(locks[-1])))
        if self._load_published(sizes, publication):
            return
        if not all(writer.get("resume") for writer in writers.values()):
            raise self._occupied_error(LOCK)
        self._claim(locks[-1] + 1)
        self._is_loading = True
        self._load_claimed(publication)
        self._is_loading = False

    def _load_claimed(self, publication: dict[str, Any] | None) -> None:
        """Set `saved` to the interrupted write that this process has claimed."""
        sizes = dict(self._store.names())
        try:
            if not self._load_published(sizes, publication):  # by another process, in between
                self._load(sizes, publication)
        except FileNotFoundError:
            if sizes.keys() <= dict(self._store.names()).keys():
                raise
            # Files have disappeared: another process has finished the write, and cleans up.
            raise self._finished_error() from None

    def _finished_error(self) -> StorageError:
        """Remove this process's lock; return the error for a write that another has finished."""
        name = lock_name(self._lock_number)
        self._store.remove(name)
        self._lock_number = -1
        self._is_loading = False
        reason = "another process has taken over this write, and finished it"
        return StorageError(errno.EEXIST, reason, self._store.where(name))

    def begin(self) -> None:
        """Create the first lock file, and the file of the settings."""
        if self._lock_number < 0:
            self._create_first_lock()
        if self.saved is None:
            self._store.put(WORK, json.dumps(self.settings | self._naming()).encode())
            self._created[WORK] = ()

    def _create_first_lock(self) -> None:
        super().begin()
        self._lock_number = 0
        if self.write_id:
            raise self._exclusive_error()

    def _exclusive_error(self) -> StorageError:
        reason = (
            "resume=True needs a store that creates a file only where there is none, and "
            "this one cannot: write without resume=True"
        )
        return StorageError(errno.EOPNOTSUPP, reason, self.path)

    def record(self, number: int, body: bytes) -> None:
        """Record that a shard is stored. Several threads may call it at once."""
        self._create(_record_name(number), body)
        self._recorded_shards.add(number)

    def publish(self, index: bytes, files: Iterable[tuple[str, Iterable[Body]]]) -> None:
        """Store the last files, and then the index. Then remove locks and records."""
        publication = {
            "index": digest("xxh3_128", index),
            "shards": len(self._recorded_shards),
            "settings": self.settings,
            **self.totals,
        }
        former = self.saved and self.saved.publication
        if former and former["index"] != publication["index"]:
            raise ValueError(f"{OTHER_DATA} {self.remaining_files}")
        self._claim(self._lock_number + 1, publication)
        super().publish(index, files)

    def finish(self) -> None:
        """Remove the locks and records, which a published write no longer needs."""
        try:
            self._release()
        except StorageError as error:
            log("%s was published, but its lock files could not be removed: %s", self.path, error)

    def remove(self) -> str:
        """Keep the whole shards and their records; remove everything if there is no whole shard.

        After an error in `prepare`, the files of an interrupted write stay.
        """
        if os.getpid() != self._process:
            return ""
        if self._lock_number < 0:
            return super().remove()
        keeps = bool(self._recorded_shards) or self._is_loading
        try:
            self._wait_for_jobs()
            # "released" lets another process resume at once. "resume": False stops all others
            # while this process removes the files.
            status = {"released": True} if keeps else {"resume": False}
            self._create_lock(self._lock_number + 1, self._writer() | status)
        except FileExistsError:
            return ""  # the files belong to the process that has taken over
        except StorageError as error:
            log("%s: a write that failed could not release its lock: %s", self.path, error)
        finally:
            _active_writers.discard(self._writer_id)
        if not keeps:
            return super().remove()
        return keep_message(self.path, self._recorded_shards)

    def _release(self) -> None:
        """Remove all records, and then the lock files in order, the last one at the end."""
        _active_writers.discard(self._writer_id)
        self._store.remove_leftovers()
        if self._lock_number < 0:
            super()._release()
            return
        names = [name for name, _ in self._store.names(WORK)]
        self._store.remove_all(name for name in names if name != WORK)
        self._store.remove(WORK)
        for number in lock_numbers(name for name, _ in self._store.names(LOCK)):
            self._store.remove(lock_name(number))
        self._lock = b""

    def _writer(self) -> dict[str, Any]:
        writer = super()._writer() | {"resume": True, "started": _process_start(self._process)}
        _active_writers.discard(self._writer_id)
        self._writer_id = writer["writer"]
        _active_writers.add(self._writer_id)
        return writer

    # Locks

    def _claim(self, number: int, publication: dict[str, Any] | None = None) -> None:
        """Create the lock file with a number; raise FileExistsError if another process did."""
        writer = self._writer()
        if publication is not None:
            writer["publication"] = publication
        self._create_lock(number, writer)
        self._lock_number = number

    def _create_lock(self, number: int, writer: dict[str, Any]) -> None:
        name, body = lock_name(number), json.dumps(writer).encode()
        try:
            self._store.create(name, body)
        except FileExistsError:
            if not self._has_content(name, body):
                reason = "another process has taken over this write, and continues it"
                raise StorageError(errno.EEXIST, reason, self._store.where(name)) from None

    def _read_writer(self, number: int) -> dict[str, Any]:
        name = lock_name(number)
        try:
            writer = json.loads(self._store.read(name))
            return writer if isinstance(writer, dict) else {}
        except (FileNotFoundError, ValueError, RecursionError):
            return {}

    # An interrupted write

    def _load(self, sizes: dict[str, int], publication: dict[str, Any] | None) -> None:
        """Set `saved`, and remove the files of shards that are not whole."""
        whole_files: set[str] = set()
        count = 0
        for body in self._bodies(sizes) if WORK in sizes else ():
            files = decode_record(body).files()
            if any(sizes.get(name) != nbytes for name, nbytes in files.items()):
                break
            whole_files |= {*files, _record_name(count)}
            count += 1
        if publication is not None and count != publication["shards"]:
            reason = (
                f"a complete write of {quantity(publication['shards'], 'shard')} was interrupted "
                f"here, and the file of shard {count} is missing: remove all its files"
            )
            raise StorageError(errno.ENOENT, reason, self.path)
        if publication is None:
            # Files of a write that was about to publish stay: its process may still be alive.
            others = self._own_names(sizes)
            self._store.remove_all([name for name in others if name not in whole_files | {WORK}])
        if count:
            self._recorded_shards = set(range(count))
            settings = json.loads(self._store.read(WORK))
            self._restore_naming(settings)
            bodies = self._bodies(sizes, count)
            self.saved = SavedWrite(settings, bodies, count, publication)

    def _naming(self) -> dict[str, str]:
        """Return the unique parts of file names, which the file of the settings records."""
        return {}

    def _restore_naming(self, settings: dict[str, Any]) -> None:
        """Take the unique parts of file names from the recorded settings."""
        # Only a Revision records `write_id`. A write of mode "x" cannot resume one:
        # `ResumeSession.start` raises, because the modes differ.
        settings.pop("write_id", None)

    def _own_names(self, names: Iterable[str]) -> Iterator[str]:
        """Yield those names that are of this write's files, without its locks."""
        return (n for n in names if is_dataset_file(n) and not n.startswith(LOCK))

    def _load_published(self, sizes: dict[str, int], publication: dict[str, Any] | None) -> bool:
        """Set `saved` if the interrupted write has published its index.

        Return False if there is no index; raise FileExistsError if another write published it.
        """
        if INDEX not in sizes:
            return False
        index = self._store.read(INDEX)
        if publication is None or publication["index"] != digest("xxh3_128", index):
            raise self._occupied_error(INDEX)
        self._set_published(publication, index)
        return True

    def _set_published(self, publication: dict[str, Any], index: bytes) -> None:
        """Set `saved` to a write that has published an index."""
        self._lock_number = 0  # so that `_release` removes all lock files
        count = publication["shards"]
        self._recorded_shards = set(range(count))
        self.saved = SavedWrite(publication["settings"], iter(()), count, publication, index)

    def _bodies(self, sizes: dict[str, int], count: int | None = None) -> Iterator[bytes]:
        """Yield the records of the shards, in order, until one is missing or `count` are read."""
        numbers = range(len(sizes) if count is None else count)
        names = takewhile(sizes.__contains__, map(_record_name, numbers))
        while batch := list(islice(names, _READ_BATCH)):
            yield from self._store.ranges((name, 0, sizes[name]) for name in batch)


def _record_name(number: int) -> str:
    return f"{WORK}.{number:05}"


def lock_name(number: int) -> str:
    """Return the name of the lock file with a number."""
    return f"{LOCK}.{number}" if number else LOCK


def lock_numbers(names: Iterable[str]) -> list[int]:
    """Return the numbers of the lock files among some names, in order."""
    matches = (re.fullmatch(re.escape(LOCK) + r"(?:\.(\d+))?", name) for name in names)
    return sorted(int(match[1] or 0) for match in matches if match)


def _process_start(process: int) -> str:
    """Return when a process of this machine started, as text to compare; empty if unknown."""
    with suppress(OSError, IndexError):
        with open(f"/proc/{process}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            # `fields` begins with field 3. Field 22 is the start, in clock ticks since the boot.
            return f"{file.read().strip()}:{fields[19].decode()}"
    return ""


def _require_dead(writer: dict[str, Any], where: str) -> None:
    """Raise if the last owner of a write is still a running process of this machine."""
    if writer.get("released") or writer.get("host") != os.uname().nodename:
        return
    process, start = writer.get("process"), writer.get("started")
    if process == os.getpid() and writer.get("writer") not in _active_writers:
        return  # an earlier write of this process has ended
    if start and isinstance(process, int) and _process_start(process) == start:
        reason = (
            f"process {process} on {writer['host']} writes here since {writer.get('begun')}: wait "
            "for its end, or end it"
        )
        raise StorageError(errno.EEXIST, reason, where)
