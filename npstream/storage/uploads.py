"""Uploads in one atomic step: new files, and replacements of an unchanged version of a file.

`Tag` identifies a version of a file. A server replaces the file only if the tag is still that of
the current version, so that no change by another process is lost.

Tested in tests/storage/test_writing.py.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import quote

from npstream._core.fork import renew_in_child

__all__ = [
    "Tag",
    "create_oci",
    "create_with_mode",
    "lock_file",
    "make_folders",
    "memory_create",
    "memory_replace",
    "put_then_rename",
    "remove_folder",
    "rename_local",
    "rename_sftp",
    "replace_azure",
    "replace_gcs",
    "replace_local",
    "replace_oci",
    "replace_s3",
    "replace_unchanged",
]


class Tag(NamedTuple):
    """A version of a file.

    Attributes
    ----------
    content : bytes
        The whole file; empty if the tag comes from `RemoteStore.tag`.
    info : mapping of str to object
        The info that the driver returned for this version; empty for a local file.
    """

    content: bytes
    info: Mapping[str, Any]


class _MemoryLock:
    """The lock for replacements in fsspec's memory store, which exists in only one process."""

    def __init__(self) -> None:
        self.reset_process_state()
        renew_in_child(self)

    def reset_process_state(self) -> None:
        """Replace the lock in a forked process: a thread of the parent may have held it."""
        self.lock = threading.Lock()


_memory = _MemoryLock()


# New files


def create_with_mode(filesystem: Any, path: str, data: bytes) -> Any:
    """Store bytes if the object does not exist; S3, Google and Azure support this condition."""
    return filesystem._pipe_file(path, data, mode="create")


def memory_create(filesystem: Any, path: str, data: bytes) -> None:
    """Store bytes in memory if there is no file of that name."""
    file = import_module("fsspec.implementations.memory").MemoryFile(filesystem, path, data)
    with _memory.lock:
        if filesystem.store.setdefault(path, file) is not file:
            raise FileExistsError(path)


def create_oci(filesystem: Any, path: str, data: bytes) -> None:
    """Store bytes as an object of Oracle's store if the object does not exist."""
    bucket, namespace, key = filesystem.split_path(path)
    filesystem.oci_client.put_object(namespace, bucket, key, data, if_none_match="*")


# Replacements


def memory_replace(filesystem: Any, path: str, data: bytes, tag: Tag) -> None:
    """Replace a file in memory if its content is that of the tag."""
    file = import_module("fsspec.implementations.memory").MemoryFile(filesystem, path, data)
    with _memory.lock:
        current = filesystem.store.get(path)
        if current is None or current.getvalue() != tag.content:
            raise FileExistsError(path)
        filesystem.store[path] = file


def replace_local(_filesystem: Any, path: str, data: bytes, tag: Tag) -> None:
    """Replace a file of this machine if its content is that of the tag."""
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{os.urandom(8).hex()}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        replace_unchanged(temporary, path, tag)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)


def replace_unchanged(new: str, path: str, tag: Tag) -> None:
    """Rename the file `new` to `path`, whose content must be that of the tag.

    A lock on the file excludes other processes that replace it. The operating system releases it
    if a process dies.
    """
    with lock_file(path) as file:
        if file.read() != tag.content:
            raise FileExistsError(errno.EEXIST, "another process has changed it", path)
        os.replace(new, path)


@contextmanager
def lock_file(path: str) -> Iterator[BinaryIO]:
    """Open and lock a file that other holders of the lock may replace."""
    while True:
        with open(_open_to_lock(path), "rb") as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX)
            try:
                # If the last holder has replaced the file, this lock is on the old file: try again.
                if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                    yield file
                    return
            finally:
                # Closing would not unlock it if a forked process has inherited the descriptor.
                fcntl.flock(file.fileno(), fcntl.LOCK_UN)


def _open_to_lock(path: str) -> int:
    """Open a file. On a network file system, a lock needs the right to write."""
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except PermissionError:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


async def replace_s3(filesystem: Any, path: str, data: bytes, tag: Tag) -> None:
    """Replace an object if its ETag is that of the tag."""
    bucket, key, _ = filesystem.split_path(path)
    etag = _version_entry(tag, "ETag")
    await filesystem._call_s3("put_object", Bucket=bucket, Key=key, Body=data, IfMatch=etag)


async def replace_gcs(filesystem: Any, path: str, data: bytes, tag: Tag) -> None:
    """Replace an object if its generation is that of the tag."""
    bucket, key, _ = filesystem.split_path(path)
    boundary = os.urandom(16).hex()
    head = "\r\n".join(
        [
            *(f"--{boundary}", "Content-Type: application/json; charset=UTF-8", ""),
            *(json.dumps({"name": key}), f"--{boundary}"),
            *("Content-Type: application/octet-stream", "", ""),
        ]
    )
    await filesystem._call(
        "POST",
        f"{filesystem._location}/upload/storage/v1/b/{quote(bucket)}/o",
        uploadType="multipart",
        ifGenerationMatch=_version_entry(tag, "generation"),
        headers={"Content-Type": f'multipart/related; boundary="{boundary}"'},
        data=head.encode() + data + f"\r\n--{boundary}--".encode(),
    )


async def replace_azure(filesystem: Any, path: str, data: bytes, tag: Tag) -> None:
    """Replace a blob if its ETag is that of the tag."""
    unmodified = import_module("azure.core").MatchConditions.IfNotModified
    container, blob, _ = filesystem.split_path(filesystem._strip_protocol(path))
    client = filesystem.service_client.get_blob_client(container=container, blob=blob)
    async with client:
        await client.upload_blob(
            data,
            overwrite=True,
            metadata={"is_directory": "false"},  # as adlfs marks the files that it uploads
            etag=_version_entry(tag, "etag"),
            match_condition=unmodified,
            **filesystem._timeout_kwargs,
        )


def replace_oci(filesystem: Any, path: str, data: bytes, tag: Tag) -> None:
    """Replace an object if its ETag is that of the tag."""
    bucket, namespace, key = filesystem.split_path(path)
    etag = _version_entry(tag, "ETag")
    filesystem.oci_client.put_object(namespace, bucket, key, data, if_match=etag)


def _version_entry(tag: Tag, key: str) -> str:
    """Return the entry of a tag that identifies the version; raise if the server sent none."""
    if not tag.info.get(key):
        raise OSError(errno.EOPNOTSUPP, f"the server sends no {key} that identifies a version")
    return str(tag.info[key])


# Stores with directories


def put_then_rename(
    filesystem: Any,
    path: str,
    put: Callable[[Any, str], object],
    rename: Callable[[str, str], object],
    leftovers: list[str],
) -> None:
    """Store a file under a temporary name, then rename it to `path`.

    If the connection breaks, the temporary file cannot be removed now. Its path stays in
    `leftovers`.
    """
    folder, _, name = path.rpartition("/")
    temporary = f"{folder}/.{name}.{os.urandom(8).hex()}.tmp"
    filesystem.makedirs(folder, exist_ok=True)
    leftovers.append(temporary)
    try:
        put(filesystem, temporary)
        rename(temporary, path)
    except BaseException:
        with suppress(Exception):
            filesystem.rm_file(temporary)
            leftovers.remove(temporary)
        raise
    leftovers.remove(temporary)


def rename_sftp(filesystem: Any, old: str, new: str) -> None:
    """Rename a file to a new name: SFTP's rename never replaces a file."""
    try:
        filesystem.ftp.rename(old, new)
    except OSError as error:
        # Servers report only that the rename failed, not why.
        if error.errno is None and filesystem.exists(new):
            raise FileExistsError(new) from error
        raise


def rename_local(_filesystem: Any, old: str, new: str) -> None:
    """Rename a file to a new name. `os.link`, unlike `os.rename`, never replaces a file."""
    os.link(old, new)
    os.unlink(old)


def make_folders(filesystem: Any, folder: str) -> list[str]:
    """Make a directory and its parents; return the new ones, top first."""
    missing, new_folders = [], []
    while folder and not filesystem.exists(folder):
        missing.append(folder)
        folder = folder.rpartition("/")[0]
    for folder in reversed(missing):
        # Another process may have made the directory meanwhile.
        with suppress(FileExistsError):
            filesystem.mkdir(folder, create_parents=False)
            new_folders.append(folder)
    return new_folders


def remove_folder(filesystem: Any, folder: str) -> None:
    """Remove a directory if it is empty."""
    if not filesystem.ls(folder, detail=False):
        filesystem.rmdir(folder)
