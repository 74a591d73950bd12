"""Stores behind fault-injecting proxies."""

from __future__ import annotations

import dataclasses
import errno
import random
import time
from collections.abc import Callable
from typing import Any

import pytest
from faults import Proxy
from servers import ENGINE_KINDS, SERVER_KINDS, RemoteDirectory

from npstream.errors import StorageError
from npstream.storage.remote import RemoteStore

NAME = "folder/file ä+%.bin"
DATA = random.Random(0).randbytes(300_000)

SPAN = (NAME, 1000, 250_000)  # name, offset and number of bytes
PART = DATA[1000:251_000]

HANG = 60.0  # seconds after the deadline at which a read counts as hanging, on any machine
MIDDLE = 100_000  # an offset in the body; for SFTP, in all bytes that the server sends
READERS = [*SERVER_KINDS, *ENGINE_KINDS]  # all servers by fsspec's drivers, three by obstore

WEB = [name for name in READERS if name != "sftp"]


@dataclasses.dataclass
class FaultyStore:
    """A directory with one file, behind a proxy, and a store that is connected to it."""

    remote_dir: RemoteDirectory
    proxy: Proxy
    remote_store: RemoteStore

    def store(self, timeout: float = 60.0, retries: int = 2) -> RemoteStore:
        """Return the store, with a new timeout and number of retries."""
        self.remote_store.timeout, self.remote_store.retries = timeout, retries
        return self.remote_store

    def statuses(self) -> list[int]:
        return [request.status for request in self.proxy.log]


def store_at(remote_dir: RemoteDirectory, timeout: float = 4.0, retries: int = 2) -> RemoteStore:
    return RemoteStore(remote_dir.url, remote_dir.storage_options, timeout, retries)


on_every_server = pytest.mark.parametrize("faulty", READERS, indirect=True)

on_web_servers = pytest.mark.parametrize("faulty", WEB, indirect=True)


def failure(store: RemoteStore, read: Callable[[], Any], deadline: float = 0.0) -> StorageError:
    """Return the error of a read; check that its message is complete, and that it did not hang.

    `deadline` is in seconds. It may be 0 if the read fails without waiting for its timeout.
    """
    start = time.monotonic()
    with pytest.raises(StorageError) as caught:
        read()
    assert time.monotonic() - start < deadline + HANG
    message = str(caught.value)
    assert store.where(NAME) in message
    assert " attempt" in message
    assert " s: " in message
    assert caught.value.errno in errno.errorcode
    return caught.value
