"""An fsspec driver of local files that can block all reads of shards."""

from __future__ import annotations

import threading

import fsspec
from fsspec.implementations.local import LocalFileSystem


class Stalling(LocalFileSystem):
    """Files at ``stalling:///path``.

    While `stalls` is set, a read of a shard sets `reached` and waits for `released`.
    """

    protocol = "stalling"
    stalls = False
    reached = threading.Event()
    released = threading.Event()

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("stalling://"))

    def cat_file(self, path, start=None, end=None, **options):
        if Stalling.stalls and path.endswith(".mds"):
            Stalling.reached.set()
            Stalling.released.wait(1000)  # seconds: longer than any test
        return super().cat_file(path, start, end, **options)


fsspec.register_implementation("stalling", Stalling, clobber=True)
