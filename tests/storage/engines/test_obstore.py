"""Range requests through obstore: they equal those of s3fs, or s3fs sends them."""

from __future__ import annotations

import asyncio
import errno
import importlib.util
import logging
import os
import socket
import subprocess
import sys
import threading
import time

import pytest
from children import fork_child, run_in_child, wait_for_child
from faults import FOR_EVER, stall, status
from servers import HOST, OBSTORE, choose_reader

from npstream.errors import StorageError
from npstream.storage import requests
from npstream.storage.engines import obstore as obstore_ranges
from npstream.storage.engines.obstore import FastRanges, fast_ranges
from npstream.storage.remote import RemoteStore

DATA = bytes(range(256)) * 40
HEADERS = {
    "authorization": "AWS4-HMAC-SHA256 Credential=AK/ID/20261122/eu-west-1/s3/aws4_request, Signed",
    "x-amz-request-payer": "requester",
}


@pytest.fixture
def remote_dir(servers, monkeypatch):
    """Return a new directory with one file."""
    choose_reader(OBSTORE, monkeypatch)
    monkeypatch.setattr(requests, "_BACKOFF", 0.01)
    remote_dir = servers[OBSTORE].new_directory()
    remote_dir.put("file", DATA)
    return remote_dir


@pytest.fixture
def log_messages(caplog):
    """Return a function that returns the logged messages."""
    caplog.set_level(logging.INFO, "npstream")
    return lambda: caplog.messages


def state(store):
    return store._connect()._read.state


def read(store, count=1):
    """Read ranges one after the other, and check their bytes."""
    for k in range(count):
        assert store.ranges([("file", 10 * k, 100)]) == [DATA[10 * k : 10 * k + 100]]


def proven_store(remote_dir, **options):
    store = RemoteStore(remote_dir.url, remote_dir.storage_options | options)
    read(store, 2)
    assert state(store) == "proven"
    return store


def failure(store, timeout=60.0):
    store.timeout, store.retries = timeout, 1
    with pytest.raises(StorageError) as caught:
        read(store)
    return caught.value


def test_obstore_reads_after_the_warmup_of_s3fs(remote_dir, monkeypatch):
    monkeypatch.setattr(obstore_ranges, "WARMUP_READS", 5)
    store = RemoteStore(remote_dir.url, remote_dir.storage_options)
    read(store, 4)
    assert state(store) == "watching"
    read(store)
    assert state(store) == "trying"
    read(store)
    assert state(store) == "proven"
    spans = [("file", i, 100) for i in range(500)]
    assert store.ranges(spans) == [DATA[i : i + 100] for i in range(500)]


def test_s3fs_reads_large_ranges(remote_dir, monkeypatch):
    monkeypatch.setattr(obstore_ranges, "MAX_RANGE", 99)
    store = RemoteStore(remote_dir.url, remote_dir.storage_options)
    read(store, 3)
    assert state(store) == "watching"
    monkeypatch.setattr(obstore_ranges, "MAX_RANGE", 100)
    read(store, 3)
    assert state(store) == "proven"
    assert store.ranges([("file", 0, 101)]) == [DATA[:101]]
    assert store._connect()._read._last_request is None  # it no longer watches s3fs


@pytest.mark.parametrize("value", ["0", "1", ""])
def test_an_environment_variable_disables_obstore(remote_dir, monkeypatch, value):
    monkeypatch.setenv("NPSTREAM_OBSTORE", value)
    store = RemoteStore(remote_dir.url, remote_dir.storage_options)
    read(store, 2)
    assert isinstance(store._connect()._read, FastRanges) == (value != "0")


def test_an_invalid_setting_raises(monkeypatch):
    monkeypatch.setenv("NPSTREAM_OBSTORE", "no")
    with pytest.raises(ValueError, match="NPSTREAM_OBSTORE='no': expected 0 or 1"):
        fast_ranges(object, len, str)


def test_s3fs_reads_if_obstore_is_not_installed(remote_dir, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        obstore_ranges, "find_spec", lambda name: None if name == "obstore" else find(name)
    )
    store = RemoteStore(remote_dir.url, remote_dir.storage_options)
    read(store, 3)
    assert not isinstance(store._connect()._read, FastRanges)


def test_obstore_is_not_imported_before_its_first_use(remote_dir):
    code = (
        "import sys; from npstream.storage.remote import RemoteStore\n"
        f"store = RemoteStore({remote_dir.url!r}, {remote_dir.storage_options!r})\n"
        "store.ranges([('file', 0, 9)] * 9); print('obstore' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    out = subprocess.run([sys.executable, "-c", code], env=environment, stdout=-1, check=True)
    assert out.stdout.split() == [b"False"]


@pytest.mark.parametrize(
    "options",
    [
        {"client_kwargs": {"region_name": "eu-west-1"}},
        {"requester_pays": True},
        {"config_kwargs": {"signature_version": "s3v4", "s3": {"addressing_style": "path"}}},
        {"use_ssl": False, "cache_regions": True, "default_block_size": 1 << 20},
    ],
    ids=lambda options: next(iter(options)),
)
def test_obstore_supports_common_options(remote_dir, options):
    read(proven_store(remote_dir, **options), 20)


def test_obstore_uses_the_endpoint_in_client_kwargs(remote_dir):
    options = dict(remote_dir.storage_options)
    options["client_kwargs"] = {"endpoint_url": options.pop("endpoint_url")}
    store = RemoteStore(remote_dir.url, options)
    read(store, 3)
    assert state(store) == "proven"


def test_obstore_uses_credentials_from_the_environment(remote_dir, monkeypatch):
    for name, value in remote_dir.env.items():
        monkeypatch.setenv(name, value)
    store = RemoteStore(remote_dir.url)
    read(store, 3)
    assert state(store) == "proven"


def test_obstore_uses_credentials_from_a_profile(remote_dir, monkeypatch, tmp_path):
    options = remote_dir.storage_options
    (tmp_path / "credentials").write_text(
        f"[mine]\naws_access_key_id={options['key']}\naws_secret_access_key={options['secret']}\n"
    )
    (tmp_path / "config").write_text(
        f"[profile mine]\nregion=eu-north-1\nendpoint_url={options['endpoint_url']}\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    store = RemoteStore(remote_dir.url, {"profile": "mine"})
    read(store, 3)
    assert state(store) == "proven"


def test_obstore_ignores_the_environment_after_s3fs_has_connected(remote_dir, monkeypatch):
    store = RemoteStore(remote_dir.url, remote_dir.storage_options)
    read(store)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "another",
        "AWS_SECRET_ACCESS_KEY": "another",
        "AWS_SESSION_TOKEN": "another",
        "AWS_ENDPOINT_URL_S3": "http://nowhere.invalid",
        "AWS_SKIP_SIGNATURE": "true",
        "AWS_REGION": "xx",
    }.items():
        monkeypatch.setenv(name, value)
    read(store, 2)
    assert state(store) == "proven"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"s3_additional_kwargs": {"ExpectedBucketOwner": "1"}}, "x-amz-expected-bucket-owner"),
        ({"config_kwargs": {"proxies": {"https": "http://nowhere.invalid"}}}, "a proxy"),
        ({"client_kwargs": {"verify": False}}, "certificates are not verified"),
        ({"config_kwargs": {"signature_version": "s3"}}, "s3fs signs in another way"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_s3fs_reads_with_settings_that_obstore_does_not_support(
    remote_dir, log_messages, options, reason
):
    store = RemoteStore(remote_dir.url, remote_dir.storage_options | options)
    read(store, 10)
    assert state(store) == "off"
    (line,) = [line for line in log_messages() if "not obstore" in line]
    assert reason in line
    assert remote_dir.storage_options["secret"] not in line


def test_s3fs_reads_other_buckets(remote_dir):
    store = proven_store(remote_dir)
    filesystem, root = remote_dir.filesystem()
    filesystem.mkdir("elsewhere")
    filesystem.pipe_file("elsewhere/file", b"another")
    reader = store._connect()._read
    call = reader(filesystem, f"{root}/file", 0, 3)
    assert asyncio.run_coroutine_threadsafe(call, filesystem.loop).result() == DATA[:3]
    call = reader(filesystem, "elsewhere/file", 0, 3)
    assert asyncio.run_coroutine_threadsafe(call, filesystem.loop).result() == b"ano"


def test_s3fs_reads_keys_that_obstore_does_not_support(remote_dir):
    store = proven_store(remote_dir)
    store.put("a//b", b"0123456789")
    assert store.ranges([("a//b", 1, 2), ("file", 0, 1)]) == [b"12", DATA[:1]]
    assert state(store) == "proven"


def test_s3fs_reads_if_the_first_obstore_request_is_refused(servers, remote_dir, log_messages):
    proxy = servers.proxy(OBSTORE)
    remote_dir = remote_dir.with_proxy(proxy)
    store = RemoteStore(remote_dir.url, remote_dir.storage_options)
    read(store)
    proxy.clear()
    proxy.faults = [status(403)]
    read(store)
    assert [request.status for request in proxy.log] == [403, 206]
    assert state(store) == "off"
    assert "AccessDenied" in " ".join(log_messages())
    read(store, 3)


def test_obstore_stays_in_use_if_its_first_request_finds_a_busy_server(servers, remote_dir):
    proxy = servers.proxy(OBSTORE)
    remote_dir = remote_dir.with_proxy(proxy)
    store = RemoteStore(remote_dir.url, remote_dir.storage_options)
    read(store)
    proxy.clear()
    proxy.faults = [status(503)]
    read(store)
    assert [request.status for request in proxy.log] == [503, 206]
    assert state(store) == "proven"


def test_obstore_uses_renewed_credentials_of_s3fs(remote_dir):
    from botocore.credentials import ReadOnlyCredentials

    store = proven_store(remote_dir)
    reader = store._connect()._read
    options = remote_dir.storage_options

    class Renewed:
        secret = "not-the-secret"

        async def get_frozen_credentials(self):
            return ReadOnlyCredentials(options["key"], self.secret, None)

    reader._credentials = Renewed()
    error = failure(store)
    assert error.errno == errno.EACCES
    assert "SignatureDoesNotMatch" in str(error)
    assert "not-the-secret" not in str(error)
    assert options["key"] not in str(error)
    Renewed.secret = options["secret"]
    read(store, 3)


def test_a_child_of_a_process_that_uses_obstore_reads_through_s3fs(remote_dir):
    store = proven_store(remote_dir)

    def in_child():
        read(store, 5)
        assert state(store) == "off"

    run_in_child(in_child)
    read(store, 3)


def test_a_child_forked_during_the_import_of_obstore_reads_through_s3fs(remote_dir, monkeypatch):
    """The parent's event loop holds an import lock, which stays locked in the child."""
    store = RemoteStore(remote_dir.url, remote_dir.storage_options)
    monkeypatch.setattr(obstore_ranges, "_obstore_pids", set())
    has_begun_import, has_forked = threading.Event(), threading.Event()
    load = obstore_ranges.import_module

    def slowly(name):
        has_begun_import.set()
        assert has_forked.wait(60)
        return load(name)

    def in_child():
        imported = []
        monkeypatch.setattr(obstore_ranges, "import_module", imported.append)
        read(store, obstore_ranges.WARMUP_READS + 3)
        assert state(store) == "off"
        assert not imported

    read(store, obstore_ranges.WARMUP_READS - 1)
    monkeypatch.setattr(obstore_ranges, "import_module", slowly)
    reading = threading.Thread(target=read, args=(store,))
    reading.start()
    assert has_begun_import.wait(60)
    child = fork_child(in_child)
    has_forked.set()
    reading.join()
    assert wait_for_child(child) == 0
    read(store, 3)
    assert state(store) == "proven"


def test_a_child_forked_before_the_import_of_obstore_uses_it(remote_dir):
    code = (
        "import os; from npstream.storage.engines import obstore as obstore_ranges\n"
        "from npstream.storage.remote import RemoteStore\n"
        f"store = RemoteStore({remote_dir.url!r}, {remote_dir.storage_options!r})\n"
        "def read(count): [store.ranges([('file', 0, 9)]) for _ in range(count)]\n"
        "read(obstore_ranges.WARMUP_READS - 1)\n"
        "if (child := os.fork()) == 0:\n"
        "    read(obstore_ranges.WARMUP_READS + 1)\n"
        "    os._exit(store._connect()._read.state != 'proven')\n"
        "raise SystemExit(os.waitpid(child, 0)[1])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_timed_out_requests_close_their_connections(servers, remote_dir):
    proxy = servers.proxy(OBSTORE)
    remote_dir = remote_dir.with_proxy(proxy)
    store = proven_store(remote_dir)
    proxy.clear()
    proxy.faults = [stall(times=FOR_EVER)]
    descriptor_count = descriptors()
    assert failure(store, timeout=0.5).errno == errno.ETIMEDOUT
    assert len(proxy.log) == 2
    proxy.faults = []
    deadline = time.monotonic() + 60  # only a leak lasts that long
    while descriptors() > descriptor_count and time.monotonic() < deadline:
        read(store)
    assert descriptors() <= descriptor_count


def descriptors():
    """Return the number of open files and sockets of this process."""
    return len(os.listdir("/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"))


def fetch(base, headers=HEADERS):
    """Request a byte from `base`; return the converted exception of obstore."""
    pytest.importorskip("obstore", reason="python -m pip install -e '.[fast]'")
    import obstore

    store = obstore_ranges._store_factory("bucket", base, headers, None)(None)

    async def request():
        with pytest.raises(Exception, match="S3") as caught:
            await obstore.get_range_async(store, "key", start=0, length=1)
        return caught.value

    return obstore_ranges._as_driver_error(asyncio.run(request()))


def test_connection_errors_of_obstore_are_converted():
    with socket.create_server((HOST, 0)) as listener:
        port = listener.getsockname()[1]
    anonymous: dict[str, str] = {}
    refused = fetch(f"http://{HOST}:{port}/bucket", anonymous)
    assert isinstance(refused, ConnectionRefusedError)
    assert refused.errno == errno.ECONNREFUSED
    assert f"{HOST}:{port}" in str(refused)
    assert "Connection refused" in str(refused)
    unknown = fetch("http://nowhere.invalid/bucket", anonymous)
    assert isinstance(unknown, obstore_ranges._NoAnswerError)
    assert "nowhere.invalid" in str(unknown)
    assert "\n" not in str(unknown)


def test_obstore_is_configured_as_s3fs_signs():
    pytest.importorskip("obstore", reason="python -m pip install -e '.[fast]'")
    base = "https://bucket.s3.eu-west-1.amazonaws.com"
    config = obstore_ranges._store_factory("bucket", base, HEADERS, None)(None).config
    assert config["region"] == "eu-west-1"
    assert config["endpoint"] == base
    assert (config["request_payer"], config["skip_signature"]) == ("true", "false")
    config = obstore_ranges._store_factory("bucket", base, {}, None)(None).config
    assert (config["request_payer"], config["skip_signature"]) == ("false", "true")
