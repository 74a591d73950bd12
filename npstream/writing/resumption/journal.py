"""Provide `Journal`, the work file of a write to a directory that can resume.

The file is a sequence of frames, each a list of a kind and its values:

- ``["settings", settings]``: the first frame.
- ``["file", name, file_id]``: before a file gets this name.
- ``["shard", number, record]``: after all files of a shard have their names.
- ``["cut", count]``: a resumed write keeps the first `count` shards, and writes the others again.
- ``["publication", publication]``: before the index is published.

The last frame is ignored if it was not written completely. The process that writes holds a lock on
the file. The operating system releases the lock when the process ends.

Tested in tests/writing/resumption/test_records.py.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from npstream._core.fork import renew_in_child
from npstream.errors import StorageError
from npstream.formats.sidecar.blocks import xxh3
from npstream.storage.local import write_fully

__all__ = ["Journal", "JournalContent"]

_HEADER = struct.Struct("<IQ")
"""The size of a frame's body in bytes, and the XXH3 hash of the body."""

_MAX_FRAME_BYTES = 1 << 31
"""Maximum bytes of a frame."""


@dataclass(slots=True)
class JournalContent:
    """The content of a journal.

    Attributes
    ----------
    settings : dict or None
        The first frame; None if there is none.
    shards : dict of int to (int, int)
        The location of each shard's frame body in the file: its offset and its size in bytes.
    files : dict of str to tuple of int
        The result of `file_id` for each file that this write created, by name.
    publication : dict or None
        What the write recorded before it published.
    end : int
        The size of all complete frames, in bytes.
    """

    settings: dict[str, Any] | None = None
    shards: dict[int, tuple[int, int]] = field(default_factory=dict)
    files: dict[str, tuple[int, ...]] = field(default_factory=dict)
    publication: dict[str, Any] | None = None
    end: int = 0


class Journal:
    """The work file, open and locked by this process.

    Parameters
    ----------
    path : str
    create : bool, default: False
        Whether to create the file. By default it must exist.

    Raises
    ------
    FileExistsError
        If the file exists and `create` is True.
    BlockingIOError
        If another process has locked it.
    FileNotFoundError
        If the file does not exist, or another process removed it before it was locked.
    OSError
        If the file cannot be opened, or its file system has no locks.
    """

    def __init__(self, path: str, create: bool = False) -> None:
        self.path = path
        self._mutex = threading.Lock()
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        self._descriptor = os.open(path, flags | (os.O_CREAT | os.O_EXCL if create else 0), 0o666)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not self.is_current():
                raise FileNotFoundError(errno.ENOENT, "the file was removed", path)
            self._end = os.fstat(self._descriptor).st_size
        except BaseException:
            self.close()
            raise
        renew_in_child(self)

    def __del__(self) -> None:
        self.close()

    def reset_process_state(self) -> None:
        """Close the file in a forked process, which would hold the lock after its parent's end."""
        self._mutex = threading.Lock()
        self.close()

    def close(self) -> None:
        """Release the lock."""
        descriptor, self._descriptor = getattr(self, "_descriptor", -1), -1
        if descriptor >= 0:
            os.close(descriptor)

    def is_current(self) -> bool:
        """Return True if the path still names the file that is open."""
        try:
            at_path, opened = os.stat(self.path), os.fstat(self._descriptor)
        except FileNotFoundError:
            return False
        return os.path.samestat(at_path, opened)

    def remove(self) -> None:
        """Remove the file, and release the lock."""
        if self._descriptor >= 0 and self.is_current():
            os.unlink(self.path)
        self.close()

    def append(self, kind: str, *values: Any) -> None:
        """Append a frame, which is on the disk when this returns.

        Raises
        ------
        StorageError
            If it cannot be written. The file is then as before.
        """
        import msgpack

        body = msgpack.packb([kind, *values])
        frame = _HEADER.pack(len(body), xxh3(body)) + body
        with self._mutex, self._storage_errors():
            offset = self._end

            def write(data: memoryview) -> int:
                nonlocal offset
                count = os.pwrite(self._descriptor, data, offset)
                offset += count
                return count

            try:
                write_fully(write, frame)
                os.fsync(self._descriptor)
            except BaseException:
                os.ftruncate(self._descriptor, self._end)
                raise
            self._end = offset

    def read(self) -> JournalContent:
        """Return the content, and drop a last frame that is not complete."""
        import msgpack

        content = JournalContent()
        with self._storage_errors():
            size = os.fstat(self._descriptor).st_size
            while (body := self._frame(content.end, size)) is not None:
                start = content.end + _HEADER.size
                content.end = start + len(body)
                kind, *values = msgpack.unpackb(body)
                if kind == "settings":
                    content.settings = values[0]
                elif kind == "file":
                    content.files[values[0]] = tuple(values[1])
                elif kind == "shard":
                    content.shards[values[0]] = start, len(body)
                elif kind == "cut":
                    content.shards = {k: v for k, v in content.shards.items() if k < values[0]}
                elif kind == "publication":
                    content.publication = values[0]
            os.ftruncate(self._descriptor, content.end)
            self._end = content.end
        return content

    def shard_record(self, location: tuple[int, int]) -> bytes:
        """Return the record of a shard, given its location in `JournalContent.shards`."""
        import msgpack

        offset, nbytes = location
        with self._storage_errors():
            body = os.pread(self._descriptor, nbytes, offset)
        record: bytes = msgpack.unpackb(body)[2]
        return record

    def _frame(self, start: int, size: int) -> bytes | None:
        """Return the body of a frame; None if there is no complete one."""
        header = os.pread(self._descriptor, _HEADER.size, start)
        if len(header) < _HEADER.size:
            return None
        nbytes, recorded_hash = _HEADER.unpack(header)
        if nbytes > min(size - start - _HEADER.size, _MAX_FRAME_BYTES):
            return None
        body = os.pread(self._descriptor, nbytes, start + _HEADER.size)
        return body if xxh3(body) == recorded_hash else None

    @contextmanager
    def _storage_errors(self) -> Iterator[None]:
        try:
            yield
        except StorageError:
            raise
        except OSError as error:
            reason = error.strerror or str(error)
            message = f"{reason}: cannot store what this write needs to resume"
            raise StorageError(error.errno, message, self.path) from error
