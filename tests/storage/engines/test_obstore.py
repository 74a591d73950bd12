"""Tests of reads through obstore: they return what the drivers return, or the drivers read."""

from __future__ import annotations

import asyncio
import errno
import importlib.util
import logging
import os
import subprocess
import sys
import threading
import time

import pytest
from children import fork_child, run_in_child, wait_for_child
from faults import FOR_EVER, nameless, oversized, slow, stall, status, truncate, wrong_length
from servers import ENGINE_KINDS, ENGINE_SUFFIX, choose_engine

from npstream.errors import StorageError
from npstream.storage import requests
from npstream.storage.engines import library
from npstream.storage.engines import obstore as engines
from npstream.storage.remote import RemoteStore

DATA = bytes(range(256)) * 40

S3 = ENGINE_KINDS[0]


@pytest.fixture(autouse=True)
def use_obstore(monkeypatch):
    choose_engine(S3, monkeypatch)
    monkeypatch.setattr(requests, "_BACKOFF", 0.01)


def new_directory(servers, kind, proxy=None):
    """Return a new directory with one file."""
    remote_dir = servers[kind].new_directory()
    remote_dir.put("file", DATA)
    return remote_dir if proxy is None else remote_dir.with_proxy(proxy)


@pytest.fixture
def remote_dir(servers):
    return new_directory(servers, S3)


@pytest.fixture
def log_messages(caplog):
    """Return a function that returns the logged messages."""
    caplog.set_level(logging.INFO, "npstream")
    return lambda: caplog.messages


def state(store):
    engine = store._connect()._engine
    return "none" if engine is None else engine.state


def read(store, count=1):
    """Read ranges one after the other, and check their bytes."""
    for k in range(count):
        assert store.ranges([("file", 10 * k, 100)]) == [DATA[10 * k : 10 * k + 100]]


def store_at(remote_dir, **options):
    return RemoteStore(remote_dir.url, remote_dir.storage_options | options)


def proven_store(remote_dir, **options):
    store = store_at(remote_dir, **options)
    read(store)
    assert state(store) == "proven"
    return store


def failure(store, timeout=60.0, retries=1):
    """Return the error of a read."""
    store.timeout, store.retries = timeout, retries
    with pytest.raises(StorageError) as caught:
        read(store)
    return caught.value


def run_python(code, **env):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **env}
    out = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return out.stdout.split()


@pytest.mark.parametrize("kind", ENGINE_KINDS)
def test_both_engines_give_the_same_results(servers, kind, monkeypatch):
    names = ["file", "folder/file ä+%.bin", "a b#c?d=e&f", "quote'd~(x)", "percent%20"]
    remote_dir = new_directory(servers, kind)
    for name in names:
        remote_dir.put(name, DATA)
    results = []
    for engine in (kind, kind.removesuffix(ENGINE_SUFFIX)):
        choose_engine(engine, monkeypatch)
        store = store_at(remote_dir)
        versions = [store.version(name) for name in names]
        results.append(
            {
                "bodies": store.ranges([(name, 5, 1000) for name in names]),
                "whole": [store.read(name) for name in names],
                "versions": versions,
                "exact": [version.is_exact for version in versions],
                "sizes": store.sizes([*names, "none"]),
                "exists": store.exist_many(["file", "none", "folder", "fil"]),
                "names": sorted(store.names()),
            }
        )
        expected = "proven" if engine == kind else "none"
        assert state(store) == expected
    assert results[0] == results[1]
    assert results[0]["whole"] == [DATA] * len(names)


@pytest.mark.parametrize("kind", ENGINE_KINDS)
def test_both_engines_raise_the_same_errors(servers, kind, monkeypatch):
    remote_dir = new_directory(servers, kind)
    errors = []
    for engine in (kind, kind.removesuffix(ENGINE_SUFFIX)):
        choose_engine(engine, monkeypatch)
        store = store_at(remote_dir)
        read(store)
        codes = []
        end = len(DATA)
        for name, start, nbytes in (("none", 0, 10), ("file", end, 10), ("file", end - 40, 99)):
            with pytest.raises(StorageError) as caught:
                store.ranges([(name, start, nbytes)])
            codes.append((type(caught.value), caught.value.errno))
            assert store.where(name) in str(caught.value)
        if remote_dir.rejected_options is not None:
            rejected = RemoteStore(remote_dir.url, remote_dir.rejected_options)
            with pytest.raises(StorageError) as caught:
                rejected.ranges([("file", 0, 10)])
            codes.append((type(caught.value), caught.value.errno))
        errors.append(codes)
    assert errors[0] == errors[1]


@pytest.mark.parametrize("kind", ENGINE_KINDS)
def test_the_driver_is_not_imported_for_reads(servers, kind):
    remote_dir = new_directory(servers, kind)
    code = (
        "import sys, threading; from npstream.storage.remote import RemoteStore\n"
        f"store = RemoteStore({remote_dir.url!r}, {remote_dir.storage_options!r})\n"
        "print('fsspec' in sys.modules, 'obstore' in sys.modules, threading.active_count())\n"
        "assert store.ranges([('file', 0, 9)]); store.version('file'); store.exists('none')\n"
        "print({'s3fs', 'gcsfs', 'adlfs', 'botocore', 'aiohttp'} & set(sys.modules))\n"
        "store.put('new', b'text'); print(store.read('new'), list(store.names('new')))"
    )
    assert run_python(code)[:4] == ["False", "False", "1", "set()"]


@pytest.mark.parametrize("value", ["0", "1", ""])
def test_an_environment_variable_disables_obstore(remote_dir, monkeypatch, value):
    monkeypatch.setenv("NPSTREAM_OBSTORE", value)
    store = store_at(remote_dir)
    read(store)
    assert state(store) == ("none" if value == "0" else "proven")


def test_an_invalid_setting_raises(monkeypatch):
    monkeypatch.setenv("NPSTREAM_OBSTORE", "no")
    with pytest.raises(ValueError, match="NPSTREAM_OBSTORE='no': expected 0 or 1"):
        engines.find_engine("s3", "bucket", {}, str)


def test_the_driver_reads_if_obstore_is_not_installed(remote_dir, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        library, "find_spec", lambda name: None if name == "obstore" else find(name)
    )
    store = store_at(remote_dir)
    read(store, 3)
    assert state(store) == "none"


@pytest.mark.parametrize(
    ("engine", "threads", "width"), [(1, "", 128), (0, "", 32), (1, "7", 7), (0, "7", 7)]
)
def test_an_engine_has_more_requests_at_once(remote_dir, monkeypatch, engine, threads, width):
    monkeypatch.setenv("NPSTREAM_OBSTORE", str(engine))
    monkeypatch.setenv("NPSTREAM_THREADS", threads)
    assert store_at(remote_dir)._connect().width == width


LARGE = DATA * 20


@pytest.fixture
def large_file_store(servers, monkeypatch):
    """Return a store whose file "large" arrives in several parts, and counts as large."""
    monkeypatch.setattr(engines, "_MAX_STREAM_BYTES", 100)
    proxy = servers.proxy(S3)
    remote_dir = new_directory(servers, S3, proxy)
    remote_dir.put("large", LARGE)
    store = proven_store(remote_dir)
    proxy.faults = [slow(0.02, times=FOR_EVER)]  # pauses between blocks of 64 KiB
    yield store
    proxy.clear()


def test_ranges_are_bytes(large_file_store):
    assert large_file_store.read("large") == LARGE
    spans = [("large", 1, 150_000), ("file", 7, 3)]
    assert large_file_store.ranges(spans) == [LARGE[1:150_001], DATA[7:10]]


def test_streamed_bodies_are_not_copied(large_file_store):
    bodies = dict(large_file_store.stream_bodies([("large", 1, 150_000), ("file", 7, 3)]))
    assert [type(bodies[number]) for number in (0, 1)] == [memoryview, memoryview]
    assert [bodies[number].tobytes() for number in (0, 1)] == [LARGE[1:150_001], DATA[7:10]]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (oversized(1, times=FOR_EVER), "more than 150,000 bytes came"),
        (wrong_length(149_999, times=FOR_EVER), "149,999 of 150,000 bytes came"),
        (truncate(149_999, times=FOR_EVER), "after 2 attempts"),
    ],
    ids=["oversized", "wrong_length", "truncated"],
)
def test_a_large_body_of_another_length_raises(large_file_store, servers, fault, message):
    servers.proxy(S3).faults = [fault]
    large_file_store.retries = 1
    with pytest.raises(StorageError, match=message):
        large_file_store.ranges([("large", 1, 150_000)])


def test_the_driver_reads_a_store_with_an_option_that_obstore_lacks(remote_dir, log_messages):
    options = {"s3_additional_kwargs": {"ExpectedBucketOwner": "1"}}
    store = store_at(remote_dir, **options)
    read(store, 3)
    assert state(store) == "none"
    (line,) = [line for line in log_messages() if "not obstore" in line]
    assert "s3_additional_kwargs.ExpectedBucketOwner" in line
    assert remote_dir.storage_options["secret"] not in line


def test_fsspecs_configuration_counts_as_options(remote_dir, monkeypatch, log_messages):
    from fsspec.config import conf

    options = dict(remote_dir.storage_options)
    monkeypatch.setitem(conf, "s3", {"endpoint_url": options.pop("endpoint_url")})
    store = RemoteStore(remote_dir.url, options)
    read(store)
    assert state(store) == "proven"
    monkeypatch.setitem(conf, "s3", conf["s3"] | {"config_kwargs": {"proxies": {"http": "x"}}})
    store = RemoteStore(remote_dir.url, options)
    assert state(store) == "none"
    assert "config_kwargs.proxies" in " ".join(log_messages())


def test_the_driver_reads_keys_that_obstore_does_not_support(remote_dir):
    store = proven_store(remote_dir)
    store.put("a//b", b"0123456789")
    assert store.ranges([("a//b", 1, 2), ("file", 0, 1)]) == [b"12", DATA[:1]]
    assert state(store) == "proven"


@pytest.mark.parametrize("key", ["/file", "folder/", "a//b", "a/../b", "./a"])
def test_the_driver_reads_keys_that_obstore_changes(remote_dir, key):
    engine = proven_store(remote_dir)._connect()._engine

    async def driver():
        return "driver"

    assert asyncio.run(engine.read(key, 0, 1, driver)) == "driver"


@pytest.mark.parametrize("code", [301, 400, 403])
def test_the_driver_reads_if_only_obstore_is_refused(servers, log_messages, code):
    proxy = servers.proxy(S3)
    remote_dir = new_directory(servers, S3, proxy)
    store = store_at(remote_dir)
    proxy.faults = [status(code)]
    read(store)
    assert [request.status for request in proxy.log] == [code, 206]
    assert state(store) == "off"
    assert "is read by fsspec, not obstore" in " ".join(log_messages())
    read(store, 3)


def test_the_driver_reads_if_the_server_leaves_out_content_range(servers):
    proxy = servers.proxy(S3)
    store = store_at(new_directory(servers, S3, proxy))
    proxy.faults = [nameless(times=FOR_EVER)]
    read(store, 3)
    assert state(store) == "off"


def test_obstore_stays_in_use_if_the_driver_is_refused_as_well(servers):
    proxy = servers.proxy(S3)
    store = store_at(new_directory(servers, S3, proxy))
    proxy.faults = [status(403, times=2)]
    assert failure(store).errno == errno.EACCES
    assert state(store) == "new"
    read(store)
    assert state(store) == "proven"


@pytest.mark.parametrize("kind", ENGINE_KINDS)
def test_obstore_stays_in_use_if_its_first_request_finds_a_busy_server(servers, kind):
    proxy = servers.proxy(kind)
    store = store_at(new_directory(servers, kind, proxy))
    proxy.faults = [status(503)]
    read(store)
    assert [request.status for request in proxy.log] == [503, 206]
    assert state(store) == "proven"


@pytest.mark.parametrize("kind", ENGINE_KINDS)
def test_a_child_of_a_process_that_uses_obstore_uses_a_copy(servers, kind):
    store = proven_store(new_directory(servers, kind))

    def in_child():
        read(store, 5)
        assert state(store) == "proven"

    run_in_child(in_child)
    run_in_child(lambda: run_in_child(in_child))
    read(store, 3)


def test_the_driver_reads_in_a_child_that_cannot_copy_obstore(remote_dir, monkeypatch):
    store = proven_store(remote_dir)
    monkeypatch.delattr(os, "memfd_create")

    def in_child():
        read(store, 5)
        assert state(store) == "off"

    run_in_child(in_child)
    read(store, 3)


def test_a_child_forked_during_the_import_of_obstore_reads(remote_dir, monkeypatch):
    """A thread of the parent holds an import lock, which stays locked in the child."""
    store = store_at(remote_dir)
    monkeypatch.setattr(library, "_users", set())
    monkeypatch.setattr(library, "_libraries", {})
    has_begun_import, has_forked = threading.Event(), threading.Event()
    load = library.import_module

    def import_slowly(name):
        has_begun_import.set()
        assert has_forked.wait(60)
        return load(name)

    def in_child():
        names = []
        monkeypatch.setattr(library, "import_module", names.append)
        read(store, 3)
        assert state(store) == "proven"
        assert not names

    monkeypatch.setattr(library, "import_module", import_slowly)
    reader = threading.Thread(target=read, args=(store,))
    reader.start()
    assert has_begun_import.wait(60)
    child = fork_child(in_child)
    has_forked.set()
    reader.join()
    assert wait_for_child(child) == 0
    read(store, 3)
    assert state(store) == "proven"


@pytest.mark.parametrize("kind", ENGINE_KINDS)
def test_timed_out_requests_close_their_connections(servers, kind):
    proxy = servers.proxy(kind)
    store = proven_store(new_directory(servers, kind, proxy))
    proxy.clear()
    proxy.faults = [stall(times=FOR_EVER)]
    descriptor_count = descriptors()
    assert failure(store, timeout=0.5).errno == errno.ETIMEDOUT
    assert len(proxy.log) == 2
    proxy.faults = []
    store.timeout = 60.0
    deadline = time.monotonic() + 60  # only a leak lasts that long
    while descriptors() > descriptor_count and time.monotonic() < deadline:
        read(store)
    assert descriptors() <= descriptor_count


def descriptors():
    """Return the number of open files and sockets of this process."""
    return len(os.listdir("/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"))


@pytest.mark.parametrize("kind", ENGINE_KINDS)
def test_a_refused_connection_has_its_errno(servers, kind):
    proxy = servers.proxy(kind)
    store = store_at(new_directory(servers, kind, proxy))
    proxy.close_port()
    error = failure(store, retries=0)  # the last of several attempts may time out instead
    proxy.open_port()
    assert error.errno == errno.ECONNREFUSED
    assert "Connection refused" in str(error)
    assert "\n" not in str(error)


def test_the_driver_names_the_reason_of_an_unknown_host(remote_dir):
    store = store_at(remote_dir, endpoint_url="http://nowhere.invalid")
    error = failure(store)
    assert error.errno == errno.EHOSTUNREACH
    assert "nowhere.invalid" in str(error)


def test_a_process_exits_normally_while_results_arrive(remote_dir):
    """Without protection, about one of ten such processes is aborted on a busy machine."""
    code = (
        "from npstream.storage.remote import RemoteStore\n"
        f"store = RemoteStore({remote_dir.url!r}, {remote_dir.storage_options!r})\n"
        "store.ranges([('file', k, 100) for k in range(100)])\n"
    )
    for _ in range(3):
        assert run_python(code, PYTHONWARNINGS="error::ResourceWarning") == []
