"""Files behind URLs: the one way to them, its bounds, and what is said of drivers' failures."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import gc
import http.client
import os
import pickle
import subprocess
import sys
import threading
import time
from urllib.parse import quote

import fsspec
import fsspec.asyn
import numpy as np
import pytest
from servers import KINDS, OBSTORE, choose_reader

import npstream
from npstream.errors import MissingDependencyError, StorageError
from npstream.storage import drivers, failures, remote
from npstream.storage import requests as jobs
from npstream.storage.local import open_store
from npstream.storage.remote import RemoteStore
from npstream.writing import shard as mds_encode

DATA = bytes(range(256)) * 40


class Fake(fsspec.asyn.AsyncFileSystem):
    """A driver with coroutines, which does what the test says."""

    protocol = "fake"
    cachable = False
    answer = None  # given the path and the range, what to return, raise or wait for
    running = most = calls = 0

    async def _cat_file(self, path, start=None, end=None, **kwargs):
        cls = type(self)
        cls.calls += 1
        cls.running += 1
        cls.most = max(cls.most, cls.running)
        try:
            found = cls.answer(path, start, end)
            return await found if asyncio.iscoroutine(found) else found
        finally:
            cls.running -= 1


class Blocking(fsspec.AbstractFileSystem):
    """The same for a driver without."""

    protocol = "blocking"
    cachable = False
    answer = None
    made = 0

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        type(self).made += 1
        self.thread = threading.get_ident()

    def cat_file(self, path, start=None, end=None, **kwargs):
        assert threading.get_ident() == self.thread  # none is shared
        return type(self).answer(path, start, end)


@pytest.fixture
def fake():
    Fake.running = Fake.most = Fake.calls = 0
    Fake.answer = staticmethod(lambda path, start, end: DATA[start:end])
    fsspec.register_implementation("fake", Fake, clobber=True)
    return Fake


@pytest.fixture
def blocking():
    Blocking.made = 0
    Blocking.answer = staticmethod(lambda path, start, end: DATA[start:end])
    fsspec.register_implementation("blocking", Blocking, clobber=True)
    return Blocking


@pytest.fixture(params=[*(name for name in KINDS if name != "http"), OBSTORE])
def writable(request, servers, monkeypatch):
    """Return a fresh directory on each of the servers that can be written to."""
    choose_reader(request.param, monkeypatch)
    return servers[request.param].fresh()


@pytest.fixture
def memory(request):
    url = f"memory://{request.node.name}"
    yield RemoteStore(url)
    fsspec.filesystem("memory").store.clear()


def loop_is_idle():
    """Wait until the loop has done what was asked of it so far."""
    asyncio.run_coroutine_threadsafe(asyncio.sleep(0), fsspec.asyn.get_loop()).result(5)


def exercise(store):
    """Do everything that a store can do."""
    name = "part/file 1+ä%.bin"
    assert not store.exists(name)
    assert list(store.names()) == []
    store.put(name, DATA)
    store.put("other", b"abc")
    assert store.exists(name)
    assert store.size(name) == len(DATA)
    assert store.read(name) == store.read(name, len(DATA)) == DATA
    spans = [(name, 5000, 300), ("other", 1, 1), (name, 0, 0), (name, 0, 1), (name, 5000, 300)]
    expected = [DATA[5000:5300], b"b", b"", DATA[:1], DATA[5000:5300]]
    assert store.ranges(spans) == expected
    assert dict(store.stream(spans)) == dict(enumerate(expected))
    assert store.ranges([]) == []
    assert list(store.names()) == [("other", 3), (name, len(DATA))]
    assert list(store.names("part/")) == list(store.names("part/fi")) == [(name, len(DATA))]
    before = store.version("other")
    assert store.version("other") == before
    store.put("other", b"longer")
    assert store.version("other") != before
    store.remove("other")
    store.remove("other")
    assert not store.exists("other")
    assert store.exist(["other", name, "part/none", name]) == [False, True, False, True]
    store.create("part/new", DATA)
    for other in (DATA, b"", b"other"):
        with pytest.raises(FileExistsError, match="cannot create this file") as caught:
            store.create("part/new", other)
        assert isinstance(caught.value, StorageError)
    assert store.read("part/new") == DATA
    assert store.exist([]) == []
    with pytest.raises(StorageError, match="cannot read this file") as caught:
        store.read("other")
    assert caught.value.errno == errno.ENOENT
    assert caught.value.filename == store.where("other")
    assert store.is_local is False


def test_a_store_in_memory(memory):
    exercise(memory)


def test_a_store_of_files(tmp_path):
    exercise(RemoteStore(f"file://{tmp_path}/new"))
    assert not [name for name in os.listdir(tmp_path / "new") if name.endswith(".tmp")]


def test_each_server(writable):
    exercise(RemoteStore(writable.url, writable.storage_options))


def test_what_is_absent_is_a_missing_file(place, tmp_path):
    npstream.write(tmp_path / "data", {"x": np.arange(3)})
    options = place.storage_options
    for read in (npstream.open, npstream.verify_dataset, npstream.build_index):
        with pytest.raises(StorageError) as caught:
            read(place.url, storage_options=options)
        assert isinstance(caught.value, FileNotFoundError)
        assert caught.value.errno == errno.ENOENT
        assert caught.value.filename == f"{place.url}/index.json"
    place.put("index.json", (tmp_path / "data" / "index.json").read_bytes())
    with pytest.raises(FileNotFoundError) as caught:
        npstream.open(place.url, storage_options=options)[0]
    assert caught.value.filename.endswith("/shard.00000.mds")
    with pytest.raises(FileNotFoundError, match="was not kept"):
        npstream.open(place.url, storage_options=options, version="0123456789abcdef")


def test_what_is_refused_is_a_permission_error(place):
    if place.refused:
        with pytest.raises(PermissionError) as caught:
            npstream.open(place.url, storage_options=place.refused)
        assert isinstance(caught.value, StorageError)


ODD = [
    "#", "a?b#c", "a#b?c=1&d", "a?versionId=1", "a?versionid=1", "a%20%b", "ä日本 *[b]{c}+~",
    "a@b:c;d=e,'\"|^$HOME!...",
]  # fmt: skip
ODD_FILE = "#?%20+&[*] ä.bin"


def test_odd_characters_in_a_path(writable):
    place, options = writable, writable.storage_options
    odd = [*ODD, "a//b", "a\\b"] if place.server.name == "gcs" else ODD  # others change these
    for number, name in enumerate(odd):
        RemoteStore(f"{place.url}/{name}/ds", options).put(ODD_FILE, DATA[: number + 1])
    above = RemoteStore(place.url, options)
    assert dict(above.names()) == {f"{name}/ds/{ODD_FILE}": k for k, name in enumerate(odd, 1)}
    for size, name in enumerate(odd, 1):
        store = RemoteStore(f"{place.url}/{name}/ds/", options)
        assert store.exist([ODD_FILE, f"{ODD_FILE}#"]) == [True, False]
        assert store.ranges([(ODD_FILE, size - 1, 1)]) == [DATA[size - 1 : size]]
        assert store.read(ODD_FILE) == DATA[:size]
        assert list(store.names()) == [(ODD_FILE, size)]
    store.remove(ODD_FILE)
    assert len(list(above.names())) == len(odd) - 1


def test_odd_characters_in_a_web_address(servers):
    place = servers["http"].fresh()
    for size, name in enumerate(ODD, 1):
        place.put(f"{name}/ds/{ODD_FILE}", DATA[:size])
        store = RemoteStore(f"{place.url}/{quote(name)}/ds/", place.storage_options)
        assert store.exist([ODD_FILE, f"{ODD_FILE}#"]) == [True, False]
        assert store.read(ODD_FILE) == DATA[:size]
        assert list(store.names()) == [(ODD_FILE, size)]
    with pytest.raises(ValueError, match=r"'https://host/a': .*fragment.*write %23"):
        open_store("https://host/a#b?sig=secret")


def test_a_dataset_in_an_odd_place(tmp_path):
    url = "memory://odd/a#b?c=1%20[*]&ä+/x y"
    npstream.write(url, {"# a?": np.arange(50)})
    ds = npstream.open(url, cache=tmp_path)
    assert ds["# a?"].max() == 49
    assert ds[7] == {"# a?": 7}
    assert npstream.verify_dataset(url).problems == ()
    fsspec.filesystem("memory").store.clear()


def test_a_server_that_only_reads(servers):
    place = servers["http"].fresh()
    place.put("part/a b", DATA)
    store = RemoteStore(place.url, place.storage_options)
    assert store.ranges([("part/a b", 3, 5)]) == [DATA[3:8]]
    assert store.read("part/a b") == DATA
    assert list(store.names()) == [("part/a b", len(DATA))]
    for write in (lambda: store.put("x", b"y"), lambda: store.remove("part/a b")):
        with pytest.raises(StorageError):
            write()


@pytest.mark.parametrize("name", ["s3", OBSTORE, "gcs", "azure", "oci", "http", "hf"])
def test_one_request_a_range(servers, name, monkeypatch):
    choose_reader(name, monkeypatch)
    proxy = servers.proxy(name)
    place = servers[name].fresh().through(proxy)
    place.put("file", DATA)
    store = RemoteStore(place.url, place.storage_options)
    store.ranges([("file", 0, 1)])
    proxy.clear()
    # What the driver had open is gone now, and asked for again where it has no connection.
    store.ranges([("file", 0, 1)])
    seen = len(proxy.log)
    spans = [("file", 100 * i, 50) for i in range(100)]
    assert store.ranges(spans) == [DATA[begin : begin + 50] for _, begin, _ in spans]
    asked = proxy.log[seen:]
    assert sorted(r.range for r in asked) == sorted(f"bytes={b}-{b + 49}" for _, b, _ in spans)
    assert sum(r.nbytes for r in asked) == 100 * 50


def test_a_file_from_disk(memory, tmp_path):
    (tmp_path / "x").write_bytes(DATA)
    memory.put("x", tmp_path / "x")
    assert memory.read("x") == DATA
    with pytest.raises(StorageError, match=r"No such file.*none"):
        memory.put("y", tmp_path / "none")


@pytest.mark.parametrize("name", ["s3", OBSTORE, "hf"])
def test_in_a_child_process_and_in_threads(servers, name, monkeypatch):
    choose_reader(name, monkeypatch)
    place = servers[name].fresh()
    place.put("file", DATA)
    store = RemoteStore(place.url, place.storage_options)
    spans = [("file", i, 10) for i in range(30)]
    expected = [DATA[i : i + 10] for i in range(30)]
    assert store.ranges(spans) == expected
    running = store.stream(spans)
    next(running)
    if (child := os.fork()) == 0:
        running.close()
        os._exit(0 if store.ranges(spans) == expected else 1)
    assert os.waitpid(child, 0)[1] == 0
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(store.ranges(spans))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 8
    assert len(list(running)) == 29


def test_a_pickle_is_the_arguments(tmp_path):
    (tmp_path / "x").write_bytes(DATA)
    store = RemoteStore(f"file://{tmp_path}", {"auto_mkdir": False}, timeout=7.0, retries=2)
    assert store.read("x") == DATA
    text = pickle.dumps(store)
    assert len(text) < 300
    copy = pickle.loads(text)
    assert (copy.timeout, copy.retries, copy.root) == (7.0, 2, store.root)
    code = f"import pickle; print(len(pickle.loads({text!r}).read('x')))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    out = subprocess.run([sys.executable, "-c", code], env=environment, stdout=-1, check=True)
    assert int(out.stdout) == len(DATA)


def test_bounded_requests(fake, monkeypatch):
    monkeypatch.setenv("NPSTREAM_THREADS", "5")

    async def answer(start, end):
        await asyncio.sleep(0.002)
        return DATA[start:end]

    fake.answer = staticmethod(lambda path, start, end: answer(start, end))
    taken = []

    def spans():
        for i in range(100):
            taken.append(i)
            yield "x", i, 4

    store = RemoteStore("fake://a")
    parts = store.stream(spans())
    next(parts)
    assert len(taken) <= 5 + 1
    assert len(list(parts)) == 99
    assert fake.most == 5
    together = [threading.Thread(target=lambda: store.ranges(spans())) for _ in range(3)]
    for thread in together:
        thread.start()
    for thread in together:
        thread.join()
    assert fake.most == 5


def test_bounded_bytes(fake, monkeypatch):
    monkeypatch.setattr(jobs, "_IN_FLIGHT_BYTES", 1000)
    held = []

    async def answer(start, end):
        held.append(end - start)
        await asyncio.sleep(0.002)
        assert sum(held) <= 1000 or len(held) == 1
        held.remove(end - start)
        return DATA[start:end]

    fake.answer = staticmethod(lambda path, start, end: answer(start, end))
    sizes = [400, 400, 400, 2000, 10, 900, 400] * 5
    parts = RemoteStore("fake://a").ranges(("x", 0, size) for size in sizes)
    assert [len(part) for part in parts] == sizes


def test_closing_cancels_the_rest(fake):
    waiting = asyncio.Event()
    cancelled = []

    async def answer(start):
        if start == 0:
            return b"0"
        try:
            await waiting.wait()
        except asyncio.CancelledError:
            cancelled.append(start)
            raise

    fake.answer = staticmethod(lambda path, start, end: answer(start))
    parts = RemoteStore("fake://a").stream(("x", i, 1) for i in range(10))
    assert next(parts) == (0, b"0")
    parts.close()
    loop_is_idle()
    loop_is_idle()
    assert fake.running == 0
    assert len(cancelled) == fake.calls - 1


@pytest.mark.parametrize(
    ("error", "attempts"),
    [(ConnectionResetError, 3), (PermissionError, 1), (FileNotFoundError, 1), (KeyError, 1)],
)
def test_what_may_pass_is_tried_again(fake, monkeypatch, error, attempts):
    monkeypatch.setattr(jobs, "_BACK_OFF", 0.001)

    def answer(path, start, end):
        raise error("what happened")

    fake.answer = staticmethod(answer)
    with pytest.raises(StorageError) as caught:
        RemoteStore("fake://a", retries=2).ranges([("b/c", 0, 1)])
    assert fake.calls == attempts
    message = str(caught.value)
    assert f"{attempts} attempt" in message
    assert "fake://a/b/c" in message
    assert f"{error.__name__}: " in message
    assert caught.value.__context__ is caught.value.__cause__ is None


def test_what_passes_is_not_noticed(fake, monkeypatch):
    monkeypatch.setattr(jobs, "_BACK_OFF", 0.001)
    outcomes = iter([TimeoutError(), DATA[:3], ConnectionResetError(), DATA[:5]])

    def answer(path, start, end):
        if isinstance(outcome := next(outcomes), Exception):
            raise outcome
        return outcome

    fake.answer = staticmethod(answer)
    assert RemoteStore("fake://a").ranges([("x", 0, 5)]) == [DATA[:5]]


def test_answers_of_the_wrong_length(fake, monkeypatch):
    monkeypatch.setattr(jobs, "_BACK_OFF", 0.001)
    fake.answer = staticmethod(lambda path, start, end: DATA[start : end - 1])
    with pytest.raises(StorageError, match=r"after 3 attempts.* 9 of 10 bytes came"):
        RemoteStore("fake://a", retries=2).ranges([("x", 5, 10)])
    fake.answer = staticmethod(lambda path, start, end: DATA)
    with pytest.raises(StorageError, match=r"after 1 attempt .*the server ignores Range"):
        RemoteStore("fake://a", retries=2).ranges([("x", 5, 10)])


@pytest.mark.parametrize("stubborn", [False, True])
def test_a_request_that_stalls_ends_in_time(fake, monkeypatch, stubborn):
    monkeypatch.setattr(jobs, "_BACK_OFF", 0.001)
    never = asyncio.Event()

    async def answer():
        try:
            await never.wait()
        except asyncio.CancelledError:
            if not stubborn:
                raise
            await asyncio.wait_for(never.wait(), 1.0)

    fake.answer = staticmethod(lambda path, start, end: answer())
    start = time.monotonic()
    with pytest.raises(StorageError, match=r"after 2 attempts in 0\.\d s: .*no answer") as caught:
        RemoteStore("fake://a", timeout=0.3).ranges([("x", 0, 1)])
    assert time.monotonic() - start < 0.8
    assert caught.value.errno == errno.ETIMEDOUT


def test_one_stall_is_got_over(fake):
    never = asyncio.Event()
    fake.answer = staticmethod(
        lambda path, start, end: never.wait() if fake.calls == 1 else DATA[start:end]
    )
    assert RemoteStore("fake://a", timeout=1.0).ranges([("x", 0, 5)]) == [DATA[:5]]


def test_drivers_that_block_have_a_filesystem_a_thread(blocking):
    spans = [("x", i, 10) for i in range(300)]
    store = RemoteStore("blocking://a")
    assert store.ranges(spans) == [DATA[i : i + 10] for i in range(300)]
    assert 1 <= blocking.made <= 32
    made = blocking.made
    assert store.ranges(spans[:1]) == [DATA[:10]]
    assert blocking.made == made


def test_a_blocking_driver_that_stalls(blocking):
    released = threading.Event()
    blocking.answer = staticmethod(lambda path, start, end: released.wait(30))
    start = time.monotonic()
    with pytest.raises(StorageError, match="no answer within"):
        RemoteStore("blocking://a", timeout=0.3).ranges([("x", 0, 1)])
    assert time.monotonic() - start < 0.8
    released.set()


def test_a_driver_that_cannot_be_made(blocking, monkeypatch):
    def refuse(self, **options):
        raise TypeError(f"no option {list(options)}")

    monkeypatch.setattr(blocking, "__init__", refuse)
    with pytest.raises(StorageError, match=r"after 1 attempt.*TypeError: no option \['colour'\]"):
        RemoteStore("blocking://a", {"colour": "red"}).read("x")


def test_threads_end_with_their_store(blocking):
    before = set(threading.enumerate())
    store = RemoteStore("blocking://a")
    store.ranges([("x", i, 1) for i in range(50)])
    started = set(threading.enumerate()) - before
    threads = [thread for thread in started if thread.name == "npstream-store"]
    assert threads
    del store
    gc.collect()
    loop_is_idle()
    for thread in threads:
        thread.join(5)
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5"])
def test_a_number_of_requests_that_is_none(monkeypatch, text):
    monkeypatch.setenv("NPSTREAM_THREADS", text)
    with pytest.raises(ValueError, match=f"NPSTREAM_THREADS='{text}': expected a number"):
        remote.requests_at_once()


@pytest.mark.parametrize(("timeout", "retries"), [(0, 1), (-1, 1), (float("nan"), 1), (1, -1)])
def test_settings_that_make_no_sense(timeout, retries):
    with pytest.raises(ValueError, match="expected"):
        RemoteStore("memory://x", timeout=timeout, retries=retries)


VARIABLES = [
    "AZURE_ACCOUNT_NAME", "AZURE_ACCOUNT_ACCESS_KEY", "COMPOSER_SFTP_KEY_FILE",
    "COMPOSER_SFTP_KNOWN_HOSTS_FILE", "GCS_KEY", "GCS_SECRET", "OCI_CONFIG_FILE",
    "OCIFS_CONFIG_LOCATION", "OCIFS_IAM_TYPE", "MOSAICML_STREAMING_AWS_REQUESTER_PAYS",
    "S3_ENDPOINT_URL",
]  # fmt: skip


@pytest.fixture
def environment(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("url", "variables", "given", "expected", "options"),
    [
        ("s3://b/x", {}, {}, "s3://b/x", {}),
        ("S3://b/x", {"S3_ENDPOINT_URL": "http://e"}, {}, "s3://b/x", {"endpoint_url": "http://e"}),
        (
            "s3://b/x",
            {"S3_ENDPOINT_URL": "http://e"},
            {"endpoint_url": "http://f"},
            "s3://b/x",
            {"endpoint_url": "http://f"},
        ),
        (
            "s3://b/x",
            {"MOSAICML_STREAMING_AWS_REQUESTER_PAYS": "a, b"},
            {},
            "s3://b/x",
            {"requester_pays": True},
        ),
        (
            "azure://c/x",
            {"AZURE_ACCOUNT_NAME": "n", "AZURE_ACCOUNT_ACCESS_KEY": "k"},
            {},
            "abfs://c/x",
            {"account_name": "n", "account_key": "k"},
        ),
        ("azure-dl://c/x", {}, {"account_name": "m"}, "abfs://c/x", {"account_name": "m"}),
        ("az://c/x", {}, {}, "abfs://c/x", {}),
        ("gs://b/x", {}, {}, "gcs://b/x", {}),
        (
            "gs://b/x",
            {"GCS_KEY": "k", "GCS_SECRET": "s"},
            {},
            "s3://b/x",
            {"key": "k", "secret": "s", "endpoint_url": "https://storage.googleapis.com"},
        ),
        (
            "gs://b/x",
            {"GCS_KEY": "k", "GCS_SECRET": "s"},
            {"token": "anon"},
            "gcs://b/x",
            {"token": "anon"},
        ),
        ("sftp://h/x", {"COMPOSER_SFTP_KEY_FILE": "f"}, {}, "sftp://h/x", {"key_filename": "f"}),
        ("https://h/x", {}, {}, "https://h/x", {}),
        ("ftp://h/x", {}, {"port": 2}, "ftp://h/x", {"port": 2}),
    ],
)
def test_the_table_of_drivers(environment, url, variables, given, expected, options):
    for name, value in variables.items():
        environment.setenv(name, value)
    found = drivers.route(url, given, 32, 60.0)
    assert found.url == expected
    assert options.items() <= found.options.items()
    assert "requester_pays" in options or "requester_pays" not in found.options


def test_options_lie_on_top_within_options(environment):
    found = drivers.route("s3://b/x", {"config_kwargs": {"read_timeout": 5}}, 40, 60.0)
    config = found.options["config_kwargs"]
    assert config["read_timeout"] == 5
    assert config["max_pool_connections"] == 40


def test_ocis_configuration(environment, tmp_path):
    pytest.importorskip("ocifs", reason="python -m pip install -e '.[oci]'")
    environment.setenv("HOME", str(tmp_path))
    assert "iam_type" not in drivers.route("oci://b@n/x", {}, 32, 60.0).options
    (tmp_path / "config").write_text("")
    environment.setenv("OCI_CONFIG_FILE", str(tmp_path / "config"))
    found = drivers.route("oci://b@n/x", {}, 32, 60.0).options
    assert found["config"] == str(tmp_path / "config")
    assert found["iam_type"] == "api_key"
    assert "iam_type" not in drivers.route("oci://b@n/x", {"config": {}}, 32, 60.0).options


@pytest.mark.parametrize(
    ("url", "module", "extra"),
    [
        ("s3://b/x", "s3fs", "s3"),
        ("gs://b/x", "gcsfs.core", "gcs"),
        ("azure://b/x", "adlfs", "azure"),
        ("oci://b@n/x", "oci.retry", "oci"),
        ("sftp://h/x", "fsspec.implementations.sftp", "sftp"),
        ("https://h/x", "fsspec.implementations.http", "http"),
        ("hf://datasets/a/b", "huggingface_hub", "hf"),
        ("smb://h/x", "smbclient", None),
    ],
)
def test_a_driver_that_is_missing(environment, url, module, extra):
    scheme = url.partition(":")[0]
    known = drivers.SCHEMES.get(scheme)
    loaded = sys.modules["fsspec.registry"]._registry
    environment.delitem(loaded, known.protocol if known else scheme, raising=False)
    environment.setitem(sys.modules, module, None)
    wanted = rf"'npstream\[{extra}\]'" if extra else r"pip install smbclient"
    with pytest.raises(MissingDependencyError, match=wanted):
        open_store(url).read("x")


def test_opening_imports_no_driver():
    code = (
        "import sys, npstream.storage.local as s\n"
        "for scheme in ('s3', 'gs', 'hf'): s.open_store(f'{scheme}://b/x')\n"
        "drivers = {'s3fs', 'gcsfs', 'huggingface_hub', 'httpx', 'httpx2', 'aiohttp', 'botocore'}\n"
        "print(*sorted(drivers & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    out = subprocess.run([sys.executable, "-c", code], env=environment, stdout=-1, check=True)
    assert out.stdout.split() == []


@pytest.mark.parametrize(
    ("url", "root"),
    [
        ("s3://bucket/a/", "s3://bucket/a"),
        ("sftp://user:word@host:22/a", "sftp://host:22/a"),
        ("sftp://user@host/a", "sftp://user@host/a"),
        ("https://user:word@host/a?sig=x", "https://host/a"),
        ("https://token@host/a/?sig=x", "https://host/a"),
        ("abfs://c@account.dfs.core.windows.net/a", "abfs://c@account.dfs.core.windows.net/a"),
        ("oci://bucket@namespace/a", "oci://bucket@namespace/a"),
    ],
)
def test_what_is_shown_of_a_url(url, root):
    store = RemoteStore(url)
    assert store.root == root
    assert store.where("b/c") == f"{root}/b/c"
    assert repr(store) == f"RemoteStore({root!r})"


def test_a_signed_url(servers):
    proxy = servers.proxy("http")
    place = servers["http"].fresh().through(proxy)
    place.put("a b", DATA)
    store = RemoteStore(f"{place.url}?sig=wonderful&x=1", place.storage_options)
    assert store.ranges([("a b", 1, 2)]) == [DATA[1:3]]
    assert proxy.log[-1].path.endswith("/a%20b?sig=wonderful&x=1")
    with pytest.raises(StorageError) as caught:
        store.read("none")
    assert "wonderful" not in str(caught.value)


def caused(error, cause):
    error.__cause__ = cause
    return error


def examples():
    """Yield exceptions as the drivers raise them, and what they mean."""
    import aiohttp
    import azure.core.exceptions
    import botocore.exceptions
    import gcsfs.retry
    import huggingface_hub.errors
    import oci.exceptions
    import paramiko
    import urllib3.exceptions

    def amazon(status, code="x"):
        answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
        return botocore.exceptions.ClientError(answer, "GetObject")

    def web(status):
        return aiohttp.ClientResponseError(None, (), status=status)

    def azures(status):
        error = azure.core.exceptions.HttpResponseError("x")
        error.status_code = status
        return error

    def google(status):
        return gcsfs.retry.HttpError({"code": status, "message": "x"})

    for make in (
        amazon,
        web,
        azures,
        google,
        lambda s: oci.exceptions.ServiceError(s, "x", {}, ""),
    ):
        for status, code, transient in [
            (400, errno.EINVAL, False), (403, errno.EACCES, False), (404, errno.ENOENT, False),
            (416, errno.ERANGE, False), (429, errno.EBUSY, True), (500, errno.EIO, True),
            (503, errno.EBUSY, True), (504, errno.ETIMEDOUT, True),
        ]:  # fmt: skip
            yield make(status), code, transient
    yield amazon(400, "RequestTimeout"), errno.ETIMEDOUT, True
    yield amazon(400, "ExpiredToken"), errno.EACCES, False
    yield caused(OSError(errno.EBUSY, "slow down"), amazon(503)), errno.EBUSY, True
    yield caused(FileNotFoundError("x"), web(503)), errno.EBUSY, True
    yield FileNotFoundError("x"), errno.ENOENT, False
    yield OSError("Forbidden: x"), errno.EACCES, False
    yield OSError(errno.ENOSPC, "x"), errno.ENOSPC, False
    yield botocore.exceptions.NoCredentialsError(), errno.EACCES, False
    yield botocore.exceptions.ReadTimeoutError(endpoint_url="x"), errno.EIO, True
    yield aiohttp.ClientPayloadError("cut"), errno.EIO, True
    yield paramiko.AuthenticationException("x"), errno.EACCES, False
    yield paramiko.SSHException("x"), errno.EIO, True
    yield huggingface_hub.errors.OfflineModeIsEnabled("x"), errno.ENETDOWN, False
    yield huggingface_hub.errors.LocalTokenNotFoundError("x"), errno.EACCES, False
    yield http.client.RemoteDisconnected("x"), errno.EIO, True
    yield EOFError(), errno.EIO, True
    yield urllib3.exceptions.ProtocolError("x"), errno.EIO, True
    yield TimeoutError(), errno.ETIMEDOUT, True
    yield TypeError("x"), errno.EINVAL, False


def test_what_drivers_mean():
    pytest.importorskip("oci", reason="python -m pip install -e '.[oci]'")
    for error, code, transient in examples():
        assert failures.classify(error) == (code, transient), repr(error)


def raised(error, cause=None, context=None):
    """Return an exception as it is raised from another, or while another is handled."""
    try:
        if context is None:
            raise error from cause
        try:
            raise context
        except Exception:
            raise error  # noqa: B904
    except Exception as caught:
        return caught


@pytest.mark.parametrize("lost", [ConnectionResetError, TimeoutError, EOFError, BrokenPipeError])
def test_a_file_that_a_driver_calls_missing_for_a_lost_connection(lost):
    for error in (
        raised(FileNotFoundError("a"), lost()),
        raised(FileNotFoundError("a"), context=lost()),
        raised(FileNotFoundError("a"), raised(FileNotFoundError("b"), context=lost())),
    ):
        assert failures.classify(error).transient
        assert failures.classify(error).code != errno.ENOENT
    for error in (
        raised(FileNotFoundError("a"), KeyError("a")),
        raised(FileNotFoundError("a"), context=KeyError("a")),
        raised(FileNotFoundError("a"), PermissionError("a")),
        raised(FileNotFoundError("a")),
    ):
        assert failures.classify(error) == (errno.ENOENT, False)


def test_a_driver_that_takes_a_lost_connection_for_a_missing_file(fake):
    left = [1, 1]

    async def info(self, path, **kwargs):
        if left:
            left.pop()
            raise FileNotFoundError(path) from ConnectionResetError()
        return {"name": path, "size": 3, "type": "file"}

    fake._info = info
    try:
        assert RemoteStore("fake://x").exists("a")
        assert not left
        left[:] = [1] * 9
        with pytest.raises(StorageError, match="after 2 attempts") as caught:
            RemoteStore("fake://x", retries=1).exists("a")
        assert caught.value.errno == errno.EIO
    finally:
        del fake._info


@pytest.mark.parametrize(
    ("info", "size"),
    [
        ({"size": 3}, 3),
        ({"size": np.int64(3)}, 3),
        ({"size": None}, remote.UNKNOWN_SIZE),
        ({}, remote.UNKNOWN_SIZE),
        ({"size": "3"}, 3),
        ({"size": "x"}, remote.UNKNOWN_SIZE),
        ({"size": -7}, remote.UNKNOWN_SIZE),
        ({"size": 2.5}, remote.UNKNOWN_SIZE),
        ({"size": 0, "type": "directory"}, None),
    ],
)
def test_sizes_that_drivers_tell(fake, info, size, monkeypatch):
    async def told(self, path, **kwargs):
        return info

    monkeypatch.setattr(fake, "_info", told)
    store = RemoteStore("fake://x")
    assert store.sizes(["a"]) == [size]
    if size == 3:
        assert store.size("a") == 3
    else:
        with pytest.raises(StorageError, match=r"does not say its size|a directory"):
            store.size("a")


@pytest.mark.parametrize("answer", ["abc", None, [1, 2, 3], np.arange(3)])
def test_what_is_no_bytes_is_not_taken(fake, answer):
    fake.answer = staticmethod(lambda path, start, end: answer)
    with pytest.raises(StorageError, match="came; expected bytes"):
        RemoteStore("fake://x").ranges([("a", 0, 3)])


def table(n=1000):
    return {"id": np.arange(n), "text": [str(i) * 20 for i in range(n)]}


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_writing_to_a_url(memory, compression):
    report = npstream.write(memory.root, table(), shard_size="8KiB", compression=compression)
    assert report.path == memory.root
    assert report.shards > 5
    names = [name for name, _ in memory.names()]
    assert "index.json" in names
    assert len([name for name in names if name.startswith("shard.")]) == report.shards
    with pytest.raises(FileExistsError, match=r"a dataset, or a part of one, is here.*another URL"):
        npstream.Writer(memory.root)


def test_writing_to_each_server(writable):
    place, options = writable, writable.storage_options
    report = npstream.write(place.url, table(), shard_size="16KiB", storage_options=options)
    store = RemoteStore(place.url, options)
    stored = dict(store.names())
    assert sum(n for name, n in stored.items() if name.startswith("shard.")) == report.stored_bytes
    assert stored["index.json"] > 0
    with pytest.raises(FileExistsError):
        npstream.write(place.url, table(), storage_options=options)


def test_columns_that_are_written_in_several_pieces(memory, tmp_path, monkeypatch):
    monkeypatch.setattr(mds_encode, "_PIECE", 1 << 10)
    columns = {"x": np.arange(4000).reshape(-1, 4), "id": np.arange(1000)}
    for url in (memory.root, tmp_path):
        npstream.write(url, columns)
    for path in tmp_path.glob("*.mds"):
        assert memory.read(path.name) == path.read_bytes()
    assert npstream.verify_dataset(memory.root).problems == ()


def test_a_split_below_an_address_with_a_query(servers, tmp_path):
    place = servers["http"].fresh()
    npstream.write(tmp_path / "data", table())
    for path in (tmp_path / "data").iterdir():
        if path.is_file():
            place.put(f"train/{path.name}", path.read_bytes())
    ds = npstream.open(f"{place.url}/?sig=secret/", split="train", cache=tmp_path / "cache")
    assert len(ds) == len(npstream.open(tmp_path / "data"))
    assert ds[7]["id"] == 7
    assert "secret" not in repr(ds)


def test_an_exception_publishes_nothing(memory):
    stored = []

    def samples():
        for i in range(1000):
            yield {"id": i, "text": "x" * 100}
        stored.extend(memory.names("shard."))
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        npstream.write(memory.root, samples(), shard_size="8KiB")
    assert len(stored) > 3
    assert list(memory.names()) == []


def test_an_upload_that_fails(memory, monkeypatch):
    monkeypatch.setattr(jobs, "_BACK_OFF", 0.001)
    driver = drivers.SCHEMES["memory"]

    def fail(filesystem, path, data):
        if "00003" in path:
            raise ConnectionResetError("again")
        driver.create(filesystem, path, data)

    monkeypatch.setitem(drivers.SCHEMES, "memory", dataclasses.replace(driver, create=fail))
    with pytest.raises(
        StorageError, match=r"cannot create this file of \d+ bytes, after 5 attempts"
    ):
        npstream.write(memory.root, table(), shard_size="16KiB")
    assert list(memory.names()) == []
