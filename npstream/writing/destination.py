"""Where a dataset is written: every file appears whole, the index last, and no other's is touched.

docs/design/writing.md says why this holds with several writers at once, and after every failure.
"""

from __future__ import annotations

import datetime
import errno
import json
import os
import sys
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from npstream._core.log import log
from npstream._core.typing import Body
from npstream.errors import FormatError, StorageError
from npstream.formats.index import INDEX, parse_index
from npstream.formats.sidecar.sidecar import NAME as SIDECAR
from npstream.storage.local import LocalStore, file_id

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

    from npstream.storage.local import Draft, Store
    from npstream.storage.remote import RemoteStore

__all__ = ["LOCK", "Destination", "LocalDestination", "RemoteDestination", "destination"]

LOCK = "index.json.lock"
"""The file that identifies the write in progress at a URL."""

_PARTS = (INDEX, "index.columns", SIDECAR, "shard.")
"""Prefixes of the names of a dataset's files."""

T = TypeVar("T")

_MOST_PLAIN = 2
"""Shards that are written to a disk at once."""

_MOST_COMPRESSED = 4
"""Shards that are compressed at once, at most, as each is in memory."""

_LOCK_BYTES = 1 << 10
"""No lock file is longer than this."""


def destination(store: Store) -> Destination:
    """Return the place of a store's URL or path, for a dataset to be written there."""
    return LocalDestination(store) if isinstance(store, LocalStore) else RemoteDestination(store)


def _run_now(job: Callable[..., T], *arguments: Any) -> Future[T]:
    """Run a job in this thread, and return its result as a future."""
    from concurrent.futures import Future

    future: Future[T] = Future()
    try:
        future.set_result(job(*arguments))
    except Exception as error:
        future.set_exception(error)
    return future


class Destination:
    """The place of a dataset that is being written, and the files there that one write made.

    Parameters
    ----------
    store : LocalStore or RemoteStore

    Attributes
    ----------
    path : str
        The directory, or URL.
    mark : str
        What this write's names of files have in them; nothing where no two writers can create the
        same file. It is known once `begin` was called.
    is_local : bool
        Whether this is a local directory.
    """

    mark = ""

    def __init__(self, store: Store) -> None:
        self.path = store.root
        self.is_local = store.is_local
        self._store = store
        self._process = os.getpid()
        self._threads: ThreadPoolExecutor | None = None
        self._made: dict[str, tuple[int, ...]] = {}
        self._folders: list[str] = []

    def prepare(self) -> None:
        """Make the directory if need be.

        Raises
        ------
        FileExistsError
            If there is a dataset, or a part of one: a write is under way, or was interrupted.
        """
        if found := [name for name in self._names() if name.lstrip(".").startswith(_PARTS)]:
            raise self._taken(min(found, key=lambda name: (name != INDEX, name != LOCK, name)))
        self._store.make_folders(self._folders)

    def begin(self) -> None:
        """Claim the place for this write, before its first file."""

    def max_parallel(self, compressed: bool) -> int:
        """Return how many shards are stored at once."""
        raise NotImplementedError

    def submit(self, job: Callable[..., T], *arguments: Any) -> Future[T]:
        """Run a job that stores something in another thread.

        An interruption of the calling thread then does not leave open whether it is done: `remove`
        waits for it.
        """
        self.check_process()
        try:
            if self._threads is None:
                from concurrent.futures import ThreadPoolExecutor

                self._threads = ThreadPoolExecutor(self._most_threads(), "npstream-write")
            return self._threads.submit(job, *arguments)
        except RuntimeError as error:
            if self._threads is not None and "interpreter shutdown" not in str(error):
                raise
        return _run_now(job, *arguments)  # as the interpreter ends, no thread can be started

    def _most_threads(self) -> int:
        return self.max_parallel(compressed=True)

    def put(self, name: str, pieces: Iterable[Body]) -> None:
        """Store a new file; each piece is used before the next is asked for.

        Several threads may call it at once.
        """
        raise NotImplementedError

    def publish(self, index: bytes, files: Iterable[tuple[str, Iterable[Body]]]) -> None:
        """Store the last files, and then the index, with which the dataset is there."""
        raise NotImplementedError

    def remove(self) -> str:
        """Remove the unpublished files of this write; return a message about any that remain.

        Files of other writes stay, and so do all files that a published index names.
        """
        if os.getpid() != self._process:
            return ""
        try:
            self._stop()
            if self._made:
                published = self._published()
                self._discard([name for name in self._made if name not in published])
                self._made.clear()
            self._leave()
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

    def _names(self) -> Iterable[str]:
        """Yield the names of files that are there."""
        raise NotImplementedError

    def _stop(self) -> None:
        """Wait until nothing more is stored."""
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)

    def _published(self) -> Container[str]:
        """Return the names of files that another write has published."""
        return ()

    def _discard(self, names: list[str]) -> None:
        """Remove files that this write made."""
        raise NotImplementedError

    def _leave(self) -> None:
        """Let others write to this place."""

    def _taken(self, name: str) -> StorageError:
        place = "directory" if self._store.is_local else "URL"
        what = f"a dataset, or a part of one, is here: remove it, or choose another {place}"
        with suppress(StorageError):
            if not self._store.exists(INDEX):
                what += (
                    f"; it has no index, as a write is under way or was interrupted{self._writer()}"
                )
        return StorageError(errno.EEXIST, what, self._store.where(name))

    def _writer(self) -> str:
        """Say who writes here, as far as that is known."""
        return ""


class LocalDestination(Destination):
    """A local directory; it is claimed by its first file, which only one writer can create."""

    _store: LocalStore

    def __init__(self, store: LocalStore) -> None:
        super().__init__(store)
        self._token = os.urandom(8).hex()

    def max_parallel(self, compressed: bool) -> int:
        """Return how many shards are stored at once: a few, as each is in memory."""
        if not compressed:
            return _MOST_PLAIN
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
        return max(_MOST_PLAIN, min(cores, _MOST_COMPRESSED))

    def put(self, name: str, pieces: Iterable[Body]) -> None:
        """Store a new file: it has its name once it is whole and on the disk."""
        self._put_all([(name, pieces)])

    def publish(self, index: bytes, files: Iterable[tuple[str, Iterable[Body]]]) -> None:
        """Store the last files, and then the index."""
        self._put_all(files)
        self._sync()
        self.put(INDEX, [index])
        self._sync()
        self._made.clear()
        self._folders.clear()
        self._stop()

    def _put_all(self, files: Iterable[tuple[str, Iterable[Body]]]) -> None:
        """Store new files: they have their names once all are whole and on the disk."""
        self.check_process()
        with ExitStack() as stack:
            drafts: list[tuple[str, Draft]] = []
            for name, pieces in files:
                written = self._store.draft(name, pieces, self._token, self._folders)
                drafts.append((name, stack.enter_context(written)))
            self._store.sync_all(drafts, "create")
            for name, draft in drafts:
                self._link(name, draft)

    def _link(self, name: str, draft: Draft) -> None:
        """Give a file its name."""
        self._made[name] = file_id(draft.path)
        try:
            with self._reporting(name):
                draft.link()
        except FileExistsError:
            del self._made[name]
            raise self._taken(name) from None

    @contextmanager
    def _reporting(self, name: str) -> Iterator[None]:
        """Raise an OSError as a StorageError that names the file."""
        try:
            yield
        except OSError as error:
            what = f"{error.strerror or error}: cannot create this file"
            raise StorageError(error.errno, what, self._store.where(name)) from error

    def _names(self) -> Iterable[str]:
        try:
            return os.listdir(self.path)
        except FileNotFoundError:
            return []
        except OSError as error:
            what = f"{error.strerror}: cannot write a dataset here"
            raise StorageError(error.errno, what, self.path) from error

    def _discard(self, names: list[str]) -> None:
        for name in reversed(names):  # the index before all others
            # It may have been created by another after this write was interrupted.
            with suppress(FileNotFoundError):
                if file_id(self._store.where(name)) == self._made[name]:
                    self._store.remove(name)

    def _leave(self) -> None:
        """Remove hidden files, which are there if their own removal was interrupted."""
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
    """The place of a dataset in a remote store.

    A few files are uploaded at once. The place is claimed by a lock file, where the store creates
    files in one step; elsewhere every file has a name of this write's own.
    """

    _store: RemoteStore

    def __init__(self, store: RemoteStore) -> None:
        super().__init__(store)
        self._lock = self._text = b""
        self._unknown = False
        self._uploads: deque[Future[None]] = deque()
        self._most = store.max_uploads

    def prepare(self) -> None:
        """Make the directory, where there are directories."""
        self.submit(super().prepare).result()

    def begin(self) -> None:
        """Claim the place: create the lock file, and find out whether the store can do that."""
        self.check_process()
        writer = {
            "writer": os.urandom(8).hex(),
            "host": os.uname().nodename,
            "process": self._process,
            "begun": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        self._lock = json.dumps(writer).encode()
        if not self.submit(self._is_exclusive).result():
            self._leave()
            self.mark = f"{writer['writer']}."
        if self._store.exists(INDEX):
            raise self._taken(INDEX)

    def put(self, name: str, pieces: Iterable[Body]) -> None:
        """Store a new file."""
        self._upload(name, b"".join(map(bytes, pieces)))

    def max_parallel(self, compressed: bool) -> int:
        """Return how many files the store takes at once."""
        return self._most

    def publish(self, index: bytes, files: Iterable[tuple[str, Iterable[Body]]]) -> None:
        """Store the last files, and then the index."""
        later = []
        for name, pieces in files:
            if self.mark and name == SIDECAR:
                # Its name is no write's own, so only the one who has published may store it.
                later.append((name, b"".join(pieces)))
            else:
                data = b"".join(map(bytes, pieces))
                self._finish(self._most - 1)
                self._uploads.append(self.submit(self._upload, name, data))
        self._finish(0)
        self._store_index(index)
        self._made.clear()
        self._folders.clear()
        super()._stop()
        try:
            for name, data in later:
                self._store.put(name, data)
            self._leave()
        except StorageError as error:
            log("%s was published, but not all of its side-car or lock file: %s", self.path, error)

    def _store_index(self, index: bytes) -> None:
        """Store the index, and make sure that it is this write's."""
        if self.mark and self._store.exists(INDEX):
            raise self._taken(INDEX)
        self._text = index
        try:
            self.submit(self._create, INDEX, index).result()
        except StorageError as error:
            with suppress(StorageError):
                if self._holds(INDEX, index):  # only the answer was lost
                    return
            if error.errno == errno.ETIMEDOUT:
                self._unknown = True
            raise
        if self.mark and not self._holds(INDEX, index):
            raise self._taken(INDEX)

    def _upload(self, name: str, data: bytes) -> None:
        """Create a file, and its directory where there are directories."""
        if "/" in name:
            self._store.make_folders(self._folders, name.rpartition("/")[0])
        self._create(name, data)

    def _create(self, name: str, data: bytes) -> None:
        """Store a new file now, unless another has one of that name."""
        self._made[name] = ()
        if self.mark:
            self._store.put(name, data)
            return
        try:
            self._store.create(name, data)
        except FileExistsError:
            # It may be our own, if the answer to a first attempt was lost.
            if not self._holds(name, data):
                del self._made[name]
                raise self._taken(name) from None

    def _is_exclusive(self) -> bool:
        """Create the lock file, and return True if the store then refuses to create it again."""
        try:
            self._create(LOCK, self._lock)
        except StorageError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            del self._made[LOCK]
            return False
        del self._made[LOCK]
        try:
            self._store.create(LOCK, self._lock)
        except FileExistsError:
            return True
        return False

    def _finish(self, left: int) -> None:
        """Wait until at most `left` uploads are in progress; raise the error of a failed one."""
        while len(self._uploads) > left:
            self._uploads.popleft().result()

    def _names(self) -> Iterable[str]:
        return [name for name, _ in self._store.names()]

    def _stop(self) -> None:
        # What is under way would appear after it was removed.
        super()._stop()
        if self._unknown:
            raise StorageError(
                errno.ETIMEDOUT,
                "no answer came to the upload of the index, which may still appear, so its files "
                "stay: look whether it is there, and else remove them",
                self._store.where(INDEX),
            )

    def _published(self) -> Container[str]:
        """Return the names of files of an index that is there, unless it is this write's own."""
        is_made = self._made.pop(INDEX, None) is not None
        try:
            text = self._store.read(INDEX)
        except FileNotFoundError:
            return ()
        if is_made and text == self._text:
            # Before all others, so that no reader finds it without them.
            self._store.remove(INDEX)
            return ()
        index = parse_index(text, self._store.where(INDEX))
        names = {INDEX}
        for shard in range(len(index)):
            files = index.files(shard)
            named = (files.data, files.zip_data, files.meta, files.zip_meta)
            names.update(file.name for file in named if file is not None)
        return names

    def _leave(self) -> None:
        self._store.remove_leftovers()
        if self._lock and self._holds(LOCK, self._lock):
            self._store.remove(LOCK)
        self._lock = b""

    def _discard(self, names: list[str]) -> None:
        self._store.remove_all(names)

    def _holds(self, name: str, data: bytes) -> bool:
        """Return True if a file has this content."""
        try:
            nbytes = len(data)
            return self._store.size(name) == nbytes and self._store.read(name, nbytes) == data
        except FileNotFoundError:
            return False

    def _writer(self) -> str:
        with suppress(FileNotFoundError, ValueError, LookupError, TypeError, RecursionError):
            nbytes = self._store.size(LOCK)
            if nbytes <= _LOCK_BYTES:
                said = json.loads(self._store.read(LOCK, nbytes))
                return f" (begun {said['begun']} by process {said['process']} on {said['host']})"
        return ""
