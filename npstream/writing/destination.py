"""Provide `Destination`, which stores the files of one write, and removes them after an error.

A file gets its name only when it is complete, and the index is the last file. Files of other writes
are not changed.

docs/design/writing.md says why this holds with several writers at once, and after every failure.
"""

from __future__ import annotations

import datetime
import errno
import json
import os
import sys
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from npstream._core.log import log
from npstream._core.typing import Body
from npstream.errors import FormatError, StorageError
from npstream.formats.index import INDEX, parse_index
from npstream.formats.versions import SIDECAR_FILE
from npstream.storage.local import LocalStore, file_id

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

    from npstream.storage.local import Draft, Store
    from npstream.storage.remote import RemoteStore

__all__ = [
    "LOCK",
    "WORK",
    "Destination",
    "LocalDestination",
    "RemoteDestination",
    "destination",
    "is_dataset_file",
]

LOCK = "index.json.lock"
"""The file that identifies the write in progress at a URL."""

WORK = "index.json.work"
"""The file from which a write with ``resume=True`` continues."""

_DATASET_PREFIXES = (INDEX, "index.columns", SIDECAR_FILE, "shard.")
"""Prefixes of the names of a dataset's files."""

T = TypeVar("T")

_MAX_UNCOMPRESSED_SHARDS = 2
"""Maximum number of uncompressed shards that are written to a disk at once."""

_MAX_COMPRESSED_SHARDS = 4
"""Maximum number of shards that are compressed at once; each is in memory."""

_SCAN_THREADS = 2
"""Maximum number of shards that are scanned at once.

More threads would be idle: the caller fills shards more slowly than two threads scan them.
"""

_LOCK_BYTES = 1 << 10
"""Maximum bytes of a lock file."""


def destination(store: Store) -> Destination:
    """Return the destination for a dataset in `store`."""
    return LocalDestination(store) if isinstance(store, LocalStore) else RemoteDestination(store)


def is_dataset_file(name: str) -> bool:
    """Return True if a file of that name may be part of a dataset, or of a write in progress."""
    return name.lstrip(".").startswith(_DATASET_PREFIXES)


def _run_now(job: Callable[..., T], *arguments: Any) -> Future[T]:
    """Run a job in this thread, and return its result as a future."""
    from concurrent.futures import Future

    future: Future[T] = Future()
    try:
        future.set_result(job(*arguments))
    except Exception as error:
        future.set_exception(error)
    return future


class _ThreadPool:
    """Threads that start with the first job.

    While the interpreter shuts down, no thread can start. Then `submit` runs the job itself.
    """

    def __init__(self, max_threads: int, name: str) -> None:
        self._max_threads, self._name = max_threads, name
        self._executor: ThreadPoolExecutor | None = None

    def submit(self, job: Callable[..., T], *arguments: Any) -> Future[T]:
        try:
            if self._executor is None:
                from concurrent.futures import ThreadPoolExecutor

                self._executor = ThreadPoolExecutor(self._max_threads, self._name)
            return self._executor.submit(job, *arguments)
        except RuntimeError as error:
            if self._executor is not None and "interpreter shutdown" not in str(error):
                raise
        return _run_now(job, *arguments)

    def shutdown(self) -> None:
        """Wait for the running jobs, and cancel the others."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)


class Destination(ABC):
    """Stores the files of one write, and knows which files it created.

    Parameters
    ----------
    store : LocalStore or RemoteStore

    Attributes
    ----------
    path : str
        The directory, or URL.
    write_id : str
        The unique part of the names of this write's files, which `begin` sets. Empty if the store
        can create a file exclusively.
    is_local : bool
        Whether this is a local directory.
    """

    write_id = ""

    def __init__(self, store: Store) -> None:
        self.path = store.root
        self.is_local = store.is_local
        self._store = store
        self._process = os.getpid()
        self._threads: _ThreadPool | None = None
        self._scan_threads = _ThreadPool(_SCAN_THREADS, "npstream-scan")
        # The files that this write created, each with its `file_id`, which is () at a URL.
        self._created: dict[str, tuple[int, ...]] = {}
        self._folders: list[str] = []  # the directories that this write created

    def prepare(self) -> None:
        """Create the directory if it does not exist.

        Raises
        ------
        FileExistsError
            If there is a dataset, or a part of one: a write is in progress or was interrupted.
        """
        if existing := [name for name in self._names() if is_dataset_file(name)]:
            raise self._occupied_error(
                min(existing, key=lambda name: (name != INDEX, name != LOCK, name))
            )
        self._store.make_folders(self._folders)

    def begin(self) -> None:  # noqa: B027 - a claim is optional
        """Claim the directory or URL for this write, before its first file."""

    @abstractmethod
    def max_parallel(self, compressed: bool) -> int:
        """Return the maximum number of shards that are stored at once."""

    def submit(self, job: Callable[..., T], *arguments: Any) -> Future[T]:
        """In another thread, run a job that stores something.

        If the calling thread is interrupted, the job continues, and `remove` waits for its end.
        """
        self.check_process()
        if self._threads is None:
            self._threads = _ThreadPool(self._max_threads(), "npstream-write")
        return self._threads.submit(job, *arguments)

    def submit_scan(self, job: Callable[..., T], *arguments: Any) -> Future[T]:
        """In another thread, run a job that scans bytes of a shard.

        Scans and the jobs of `submit` have separate threads. So a job of `submit` can wait for a
        scan.
        """
        self.check_process()
        return self._scan_threads.submit(job, *arguments)

    def _max_threads(self) -> int:
        return self.max_parallel(compressed=True)

    @abstractmethod
    def put(self, name: str, pieces: Iterable[Body]) -> None:
        """Store a new file; each piece is used before the next one is requested.

        Several threads may call it at once.
        """

    def write_draft(
        self, name: str, pieces: Iterable[Body]
    ) -> Callable[[Future[Any] | None], None]:
        """Write a new file under a hidden name in a local directory.

        The returned function syncs the file to the disk, waits for its argument, and then gives the
        file its name. The argument is the future of the dataset's first shard, or None.
        """
        raise TypeError(f"{self.path} is not a local directory")

    @abstractmethod
    def publish(self, index: bytes, files: Iterable[tuple[str, Iterable[Body]]]) -> None:
        """Store the last files, and then the index, which publishes the dataset."""

    def remove(self) -> str:
        """Remove the unpublished files of this write; return a message about any that remain.

        Files of other writes stay, and so do all files that a published index names.
        """
        if os.getpid() != self._process:
            return ""  # the files belong to the process from which this one was forked
        try:
            self._wait_for_jobs()
            if self._created:
                published = self._published_names()
                self._discard([name for name in self._created if name not in published])
                self._created.clear()
            self._release()
            while self._folders:
                self._store.remove_folder(self._folders[-1])
                self._folders.pop()
        except (StorageError, FormatError) as error:
            log("%s: a write that failed leaves files behind: %s", self.path, error)
            return f"what was written to {self.path} could not be removed: {error}"
        return ""

    def check_process(self) -> None:
        """Raise RuntimeError in a process that was forked from the one that writes."""
        if os.getpid() != self._process:
            raise RuntimeError(
                f"{self.path}: this write belongs to process {self._process}, and was begun before "
                f"process {os.getpid()} was forked from it: write in the process that opened it"
            )

    @abstractmethod
    def _names(self) -> Iterable[str]:
        """Yield the names of existing files."""

    def _wait_for_jobs(self) -> None:
        """Wait for the running jobs, and cancel the others."""
        # The jobs of `submit` first: they wait for scans, and would fail if these were canceled.
        if self._threads is not None:
            self._threads.shutdown()
        self._scan_threads.shutdown()

    def _published_names(self) -> Container[str]:
        """Return the names of files that another write has published."""
        return ()

    @abstractmethod
    def _discard(self, names: list[str]) -> None:
        """Remove files that this write created."""

    def _release(self) -> None:  # noqa: B027
        """Release the claim, so that other writes can begin."""

    def _occupied_error(self, name: str) -> StorageError:
        kind = "directory" if self._store.is_local else "URL"
        message = f"a dataset, or a part of one, is here: remove it, or choose another {kind}"
        with suppress(StorageError):
            if self._store.exists(INDEX):
                message += (
                    "; npstream.write replaces it with mode='w', and appends to it with mode='a'"
                )
            else:
                writer = self._describe_writer()
                message += (
                    f"; it has no index, as a write is in progress or was interrupted{writer}"
                )
                if self._store.exists(WORK):
                    message += "; to continue that write, repeat its call with resume=True"
        return StorageError(errno.EEXIST, message, self._store.where(name))

    def _describe_writer(self) -> str:
        """Return a message about the writer that the lock file names; empty if there is none."""
        return ""


class LocalDestination(Destination):
    """A local directory.

    The file of the first shard claims the directory, because only one writer can create that file.
    """

    _store: LocalStore

    def __init__(self, store: LocalStore) -> None:
        super().__init__(store)
        self._token = os.urandom(8).hex()  # part of the names of this write's drafts

    def max_parallel(self, compressed: bool) -> int:
        """Return the maximum number of shards that are stored at once; each is in memory."""
        if not compressed:
            return _MAX_UNCOMPRESSED_SHARDS
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
        return max(_MAX_UNCOMPRESSED_SHARDS, min(cores, _MAX_COMPRESSED_SHARDS))

    def put(self, name: str, pieces: Iterable[Body]) -> None:
        """Store a new file, which gets its name once it is complete and on the disk."""
        self._put_all([(name, pieces)])

    def write_draft(
        self, name: str, pieces: Iterable[Body]
    ) -> Callable[[Future[Any] | None], None]:
        """Write a new file under a hidden name; the returned function gives it its name."""
        self.check_process()
        with ExitStack() as stack:
            draft_context = self._store.draft(name, pieces, self._token, self._folders)
            drafts = [(name, stack.enter_context(draft_context))]
            cleanup = stack.pop_all()

        def publish(first: Future[Any] | None) -> None:
            with cleanup:
                self._store.sync_all(drafts, "create")
                if first is not None:
                    first.result()
                self._link(*drafts[0])

        return publish

    def publish(self, index: bytes, files: Iterable[tuple[str, Iterable[Body]]]) -> None:
        """Store the last files, and then the index."""
        with ExitStack() as index_stack:
            with ExitStack() as stack:
                drafts = self._write_drafts(stack, files)
                (index_draft,) = self._write_drafts(index_stack, [(INDEX, [index])])
                self._store.sync_all([*drafts, index_draft], "create")
                for name, draft in drafts:
                    self._link(name, draft)
            self._sync()
            self._link(*index_draft)
        self._store.sync(self.path)
        self._created.clear()
        self._folders.clear()
        self._wait_for_jobs()

    def _put_all(self, files: Iterable[tuple[str, Iterable[Body]]]) -> None:
        """Store new files, which get their names once all are complete and on the disk."""
        with ExitStack() as stack:
            drafts = self._write_drafts(stack, files)
            self._store.sync_all(drafts, "create")
            for name, draft in drafts:
                self._link(name, draft)

    def _write_drafts(
        self, stack: ExitStack, files: Iterable[tuple[str, Iterable[Body]]]
    ) -> list[tuple[str, Draft]]:
        """Write new files under hidden names, which are removed when `stack` is closed."""
        self.check_process()
        drafts = []
        for name, pieces in files:
            draft_context = self._store.draft(name, pieces, self._token, self._folders)
            drafts.append((name, stack.enter_context(draft_context)))
        return drafts

    def _link(self, name: str, draft: Draft) -> None:
        """Give a file its name."""
        self._created[name] = file_id(draft.path)
        try:
            with self._storage_errors(name):
                draft.link()
        except FileExistsError:
            del self._created[name]
            raise self._occupied_error(name) from None

    @contextmanager
    def _storage_errors(self, name: str) -> Iterator[None]:
        """Convert an OSError to a StorageError that names the file."""
        try:
            yield
        except OSError as error:
            message = f"{error.strerror or error}: cannot create this file"
            raise StorageError(error.errno, message, self._store.where(name)) from error

    def _names(self) -> Iterable[str]:
        try:
            return os.listdir(self.path)
        except FileNotFoundError:
            return []
        except OSError as error:
            message = f"{error.strerror}: cannot write a dataset here"
            raise StorageError(error.errno, message, self.path) from error

    def _discard(self, names: list[str]) -> None:
        for name in reversed(names):  # the index before all others
            # An interruption may have stopped this write before it created the file. Another write
            # may have created it since.
            with suppress(FileNotFoundError):
                if file_id(self._store.where(name)) == self._created[name]:
                    self._store.remove(name)

    def _release(self) -> None:
        self._remove_drafts()

    def _remove_drafts(self) -> None:
        """Remove the hidden drafts that remain after an interrupted removal."""
        for folder in (self.path, os.path.join(self.path, "index.columns")):
            with suppress(OSError):
                for name in os.listdir(folder):
                    if name.endswith(f".{self._token}.tmp"):
                        os.unlink(os.path.join(folder, name))

    def _sync(self) -> None:
        folders = [self.path, *self._folders, *map(os.path.dirname, self._folders)]
        for folder in dict.fromkeys(folders):
            self._store.sync(folder)


class RemoteDestination(Destination):
    """A URL of a remote store.

    If the store can create a file exclusively, a lock file claims the URL. Otherwise each file name
    has a part that is unique to this write. Several files are uploaded at once.
    """

    _store: RemoteStore

    def __init__(self, store: RemoteStore) -> None:
        super().__init__(store)
        self._lock = b""  # the content of the lock file; empty if there is none
        self._index_bytes = b""  # the index that this write has tried to store
        self._is_index_uncertain = False  # whether its upload failed, but may still succeed
        self._uploads: deque[Future[None]] = deque()
        self._max_uploads = store.max_uploads

    def prepare(self) -> None:
        """Create the directory, if the store has directories."""
        self.submit(super().prepare).result()

    def begin(self) -> None:
        """Create the lock file, or set `write_id` if the store cannot create exclusively."""
        self.check_process()
        writer = self._writer()
        self._lock = json.dumps(writer).encode()
        if not self.submit(self._is_exclusive).result():
            self._release()
            self.write_id = f"{writer['writer']}."
        if self._store.exists(INDEX):
            raise self._occupied_error(INDEX)

    def _writer(self) -> dict[str, Any]:
        """Return the content of the lock file."""
        return {
            "writer": os.urandom(8).hex(),
            "host": os.uname().nodename,
            "process": self._process,
            "begun": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }

    def put(self, name: str, pieces: Iterable[Body]) -> None:
        """Store a new file."""
        self._upload(name, b"".join(map(bytes, pieces)))

    def max_parallel(self, compressed: bool) -> int:
        """Return the maximum number of concurrent uploads."""
        return self._max_uploads

    def publish(self, index: bytes, files: Iterable[tuple[str, Iterable[Body]]]) -> None:
        """Store the last files, and then the index."""
        last_files = []
        for name, pieces in files:
            if self.write_id and name == SIDECAR_FILE:
                # The side-car has no unique name, so only a published write may store it.
                last_files.append((name, b"".join(pieces)))
            else:
                data = b"".join(map(bytes, pieces))
                self._wait_for_uploads(self._max_uploads - 1)
                self._uploads.append(self.submit(self._upload, name, data))
        self._wait_for_uploads(0)
        self._store_index(index)
        self._created.clear()
        self._folders.clear()
        super()._wait_for_jobs()
        try:
            for name, data in last_files:
                self._store.put(name, data)
            self._release()
        except StorageError as error:
            log(
                "%s was published, but its side-car could not be stored or its lock file could not "
                "be removed: %s",
                self.path,
                error,
            )

    def _store_index(self, index: bytes) -> None:
        """Store the index, and check that no other write has replaced it."""
        if self.write_id and self._store.exists(INDEX):
            raise self._occupied_error(INDEX)
        self._index_bytes = index
        try:
            self.submit(self._create, INDEX, index).result()
        except StorageError as error:
            with suppress(StorageError):
                if self._has_content(INDEX, index):
                    return  # the upload succeeded, and only its response was lost
            if error.errno == errno.ETIMEDOUT:
                self._is_index_uncertain = True
            raise
        if self.write_id and not self._has_content(INDEX, index):
            raise self._occupied_error(INDEX)

    def _upload(self, name: str, data: bytes) -> None:
        """Create a file, and its directory if the store has directories."""
        if "/" in name:
            self._store.make_folders(self._folders, name.rpartition("/")[0])
        self._create(name, data)

    def _create(self, name: str, data: bytes) -> None:
        """Store a new file; raise if another write has created a file of that name."""
        self._created[name] = ()
        if self._may_overwrite:
            self._store.put(name, data)
            return
        try:
            self._store.create(name, data)
        except FileExistsError:
            # This write has created it, if the response to its first attempt was lost.
            if not self._has_content(name, data):
                del self._created[name]
                raise self._occupied_error(name) from None

    @property
    def _may_overwrite(self) -> bool:
        """Whether no other process creates files of the names of this write."""
        return bool(self.write_id)

    def _is_exclusive(self) -> bool:
        """Create the lock file, and return True if the store then refuses to create it again."""
        try:
            self._create(LOCK, self._lock)
        except StorageError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            del self._created[LOCK]
            return False
        del self._created[LOCK]  # `_release` removes the lock file
        try:
            self._store.create(LOCK, self._lock)
        except FileExistsError:
            return True
        return False

    def _wait_for_uploads(self, max_pending: int) -> None:
        """Wait until at most `max_pending` uploads are in progress; raise the first error."""
        while len(self._uploads) > max_pending:
            self._uploads.popleft().result()

    def _names(self) -> Iterable[str]:
        # Not the names below directories: they may hold many shards of datasets to merge.
        return self._store.entries()

    def _wait_for_jobs(self) -> None:
        # An upload in progress would create its file after the removal.
        super()._wait_for_jobs()
        if self._is_index_uncertain:
            raise StorageError(
                errno.ETIMEDOUT,
                "the upload of the index got no response and may still succeed, so its files stay: "
                "check for the index, and remove the files if it is missing",
                self._store.where(INDEX),
            )

    def _published_names(self) -> Container[str]:
        """Return the names of files in an existing index of another write."""
        has_tried_index = self._created.pop(INDEX, None) is not None
        try:
            text = self._store.read(INDEX)
        except FileNotFoundError:
            return ()
        if has_tried_index and text == self._index_bytes:
            # This write has stored the index. It is removed before all other files, so that no
            # reader finds it without them.
            self._store.remove(INDEX)
            return ()
        index = parse_index(text, self._store.where(INDEX))
        names = {INDEX}
        for shard in range(len(index)):
            files = index.files(shard)
            shard_files = (files.data, files.zip_data, files.meta, files.zip_meta)
            names.update(file.name for file in shard_files if file is not None)
        return names

    def _release(self) -> None:
        self._store.remove_leftovers()
        if self._lock and self._has_content(LOCK, self._lock):
            self._store.remove(LOCK)
        self._lock = b""

    def _discard(self, names: list[str]) -> None:
        self._store.remove_all(names)

    def _has_content(self, name: str, data: bytes) -> bool:
        """Return True if a file has the content `data`."""
        try:
            nbytes = len(data)
            return self._store.size(name) == nbytes and self._store.read(name, nbytes) == data
        except FileNotFoundError:
            return False

    def _describe_writer(self) -> str:
        with suppress(FileNotFoundError, ValueError, LookupError, TypeError, RecursionError):
            nbytes = self._store.size(LOCK)
            if nbytes <= _LOCK_BYTES:
                lock = json.loads(self._store.read(LOCK, nbytes))
                return f" (begun {lock['begun']} by process {lock['process']} on {lock['host']})"
        return ""
