"""Settings and servers that all tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from servers import SERVER_KINDS, RemoteDirectory, Servers

from npstream._core import jit as _jit
from npstream._core.typing import Span
from npstream.shards import point_reads
from npstream.shards import remote as remote_shards
from npstream.storage.remote import RemoteStore


@pytest.fixture(params=["compiled", "python"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run kernels in either way, whatever their size."""
    if request.param == "python":
        monkeypatch.setattr(_jit.Kernel, "for_size", lambda self, rows: self.py_func)
    else:
        monkeypatch.setattr(_jit.Kernel, "for_size", lambda self, rows: self.compiled())


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have kernels compiled at their first call: not in the midst of what a test measures."""
    monkeypatch.setattr(_jit, "_eager", True)


@pytest.fixture(scope="session")
def torch() -> ModuleType:
    """Return torch, or skip the test."""
    return pytest.importorskip("torch")


@pytest.fixture(scope="session")
def pyarrow() -> ModuleType:
    """Return pyarrow, or skip the test."""
    return pytest.importorskip("pyarrow")


@pytest.fixture(scope="session")
def awkward() -> ModuleType:
    """Return awkward, or skip the test."""
    return pytest.importorskip("awkward")


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Real servers by their names, each started when it is first asked for."""
    running = Servers(tmp_path_factory.mktemp("servers"))
    yield running
    running.close()


@pytest.fixture(params=SERVER_KINDS)
def remote_dir(request: pytest.FixtureRequest, servers: Servers) -> RemoteDirectory:
    """Return a fresh directory on each of the servers in turn."""
    return servers[request.param].new_directory()


@pytest.fixture
def upload() -> Iterator[Callable[[Path], str]]:
    """Return a function that copies a directory to a store, and returns its URL there."""
    import fsspec

    files = fsspec.filesystem("memory")
    roots: list[str] = []

    def copy(directory: Path) -> str:
        roots.append(f"/bucket-{len(roots)}")
        for path in directory.rglob("*"):
            if path.is_file():
                files.pipe_file(f"{roots[-1]}/{path.relative_to(directory)}", path.read_bytes())
        return f"memory:/{roots[-1]}"

    yield copy
    for root in roots:
        files.rm(root, recursive=True)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut shards into chunks of about 1 KiB, none of which is too small to be read in part."""
    monkeypatch.setattr("npstream.formats.chunks.CHUNK_BYTES", 1 << 10)
    monkeypatch.setattr(remote_shards, "SMALL_CHUNK", 0)
    monkeypatch.setattr(point_reads, "MAX_SAMPLE_GAP", 0)


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[Span]:
    """Return the list of what is requested from now on."""
    made: list[Span] = []
    stream = RemoteStore.stream

    def spied(self, spans):
        spans = list(spans)
        made.extend(spans)
        return stream(self, spans)

    monkeypatch.setattr(RemoteStore, "stream", spied)
    return made
