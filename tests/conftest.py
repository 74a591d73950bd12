"""Fixtures that all tests share: kernels, optional packages, servers and remote datasets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from servers import SERVER_KINDS, RemoteDirectory, Servers
from started import forget_earlier

from npstream._core import jit as _jit
from npstream._core.typing import Span
from npstream.shards import point_reads
from npstream.shards import remote as remote_shards
from npstream.storage.remote import RemoteStore


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Do not count threads and processes of earlier tests as those of this test."""
    forget_earlier()


@pytest.fixture(params=["compiled", "python"])
def kernel_mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run all kernels compiled, or all as Python; return "compiled" or "python"."""
    if request.param == "python":
        monkeypatch.setattr(_jit.Kernel, "for_size", lambda self, rows: self.py_func)
    else:
        monkeypatch.setattr(_jit.Kernel, "for_size", lambda self, rows: self.compiled())
    return request.param


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile kernels at their first call, so that compilation does not disturb a measurement."""
    monkeypatch.setattr(_jit, "_always_compiles", True)


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
    """Return the real servers by name; each starts at its first use."""
    running = Servers(tmp_path_factory.mktemp("servers"))
    yield running
    running.close()


@pytest.fixture(params=SERVER_KINDS)
def remote_dir(request: pytest.FixtureRequest, servers: Servers) -> RemoteDirectory:
    """Return a new directory on a server; the test runs once for each server."""
    return servers[request.param].new_directory()


@pytest.fixture
def upload() -> Iterator[Callable[[Path], str]]:
    """Return a function that copies a directory to a store in memory, and returns its URL."""
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
    """Set the size of chunks to about 1 KiB, and allow reads of parts of such small chunks."""
    monkeypatch.setattr("npstream.formats.chunks.CHUNK_BYTES", 1 << 10)
    monkeypatch.setattr(remote_shards, "SMALL_CHUNK", 0)
    monkeypatch.setattr(point_reads, "MAX_SAMPLE_GAP", 0)


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[Span]:
    """Return a list to which all later range requests are appended."""
    recorded: list[Span] = []
    stream = RemoteStore.stream_bodies

    def record(self, spans):
        spans = list(spans)
        recorded.extend(spans)
        return stream(self, spans)

    monkeypatch.setattr(RemoteStore, "stream_bodies", record)
    return recorded
