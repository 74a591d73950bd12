"""Ranges by obstore: sent as s3fs sends them, or left to s3fs."""

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
from npstream.storage import obstore as fastranges
from npstream.storage import requests
from npstream.storage.obstore import FastRanges, fast_ranges
from npstream.storage.remote import RemoteStore

DATA = bytes(range(256)) * 40
HEADERS = {
    "authorization": "AWS4-HMAC-SHA256 Credential=AK/ID/20261122/eu-west-1/s3/aws4_request, Signed",
    "x-amz-request-payer": "requester",
}


@pytest.fixture
def remote_dir(servers, monkeypatch):
    """Return a fresh directory with a file in it."""
    choose_reader(OBSTORE, monkeypatch)
    monkeypatch.setattr(requests, "_BACKOFF", 0.01)
    found = servers[OBSTORE].new_directory()
    found.put("file", DATA)
    return found


@pytest.fixture
def logged(caplog):
    """Return what says which lines were logged."""
    caplog.set_level(logging.INFO, "npstream")
    return lambda: caplog.messages


def state(store):
    return store._connect()._read.state


def read(store, count=1):
    """Read ranges one after the other, and compare them."""
    for at in range(count):
        assert store.ranges([("file", 10 * at, 100)]) == [DATA[10 * at : 10 * at + 100]]


def proven(remote_dir, **options):
    store = RemoteStore(remote_dir.url, remote_dir.storage_options | options)
    read(store, 2)
    assert state(store) == "proven"
    return store


def fails(store, timeout=10.0):
    store.timeout, store.retries = timeout, 1
    with pytest.raises(StorageError) as caught:
        read(store)
    return caught.value


def test_s3fs_goes_first(remote_dir, monkeypatch):
    monkeypatch.setattr(fastranges, "WARMUP_READS", 5)
    store = RemoteStore(remote_dir.url, remote_dir.storage_options)
    read(store, 4)
    assert state(store) == "watching"
    read(store)
    assert state(store) == "trying"
    read(store)
    assert state(store) == "proven"
    spans = [("file", i, 100) for i in range(500)]
    assert store.ranges(spans) == [DATA[i : i + 100] for i in range(500)]


def test_large_ranges_are_left_to_s3fs(remote_dir, monkeypatch):
    monkeypatch.setattr(fastranges, "MAX_RANGE", 99)
    store = RemoteStore(remote_dir.url, remote_dir.storage_options)
    read(store, 3)
    assert state(store) == "watching"
    monkeypatch.setattr(fastranges, "MAX_RANGE", 100)
    read(store, 3)
    assert state(store) == "proven"
    assert store.ranges([("file", 0, 101)]) == [DATA[:101]]
    assert store._connect()._read._last_request is None  # it no longer looks at what s3fs sends


@pytest.mark.parametrize("value", ["0", "1", ""])
def test_it_can_be_turned_off(remote_dir, monkeypatch, value):
    monkeypatch.setenv("NPSTREAM_OBSTORE", value)
    store = RemoteStore(remote_dir.url, remote_dir.storage_options)
    read(store, 2)
    assert isinstance(store._connect()._read, FastRanges) == (value != "0")


def test_a_setting_that_is_none(monkeypatch):
    monkeypatch.setenv("NPSTREAM_OBSTORE", "no")
    with pytest.raises(ValueError, match="NPSTREAM_OBSTORE='no': expected 0 or 1"):
        fast_ranges(object, len, str)


def test_where_it_is_not_installed(remote_dir, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        fastranges, "find_spec", lambda name: None if name == "obstore" else find(name)
    )
    store = RemoteStore(remote_dir.url, remote_dir.storage_options)
    read(store, 3)
    assert not isinstance(store._connect()._read, FastRanges)


def test_nothing_is_imported_before_it_is_used(remote_dir):
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
def test_options_that_make_no_difference(remote_dir, options):
    read(proven(remote_dir, **options), 20)


def test_an_endpoint_among_the_clients_arguments(remote_dir):
    options = dict(remote_dir.storage_options)
    options["client_kwargs"] = {"endpoint_url": options.pop("endpoint_url")}
    store = RemoteStore(remote_dir.url, options)
    read(store, 3)
    assert state(store) == "proven"


def test_credentials_from_the_environment(remote_dir, monkeypatch):
    for name, value in remote_dir.env.items():
        monkeypatch.setenv(name, value)
    store = RemoteStore(remote_dir.url)
    read(store, 3)
    assert state(store) == "proven"


def test_credentials_from_a_profile(remote_dir, monkeypatch, tmp_path):
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


def test_an_environment_that_is_not_asked(remote_dir, monkeypatch):
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
        ({"config_kwargs": {"signature_version": "s3"}}, "it signs in another way"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_it_cannot_be_told_is_left_to_s3fs(remote_dir, logged, options, reason):
    store = RemoteStore(remote_dir.url, remote_dir.storage_options | options)
    read(store, 10)
    assert state(store) == "off"
    (line,) = [line for line in logged() if "not obstore" in line]
    assert reason in line
    assert remote_dir.storage_options["secret"] not in line


def test_another_bucket_is_left_to_s3fs(remote_dir):
    store = proven(remote_dir)
    filesystem, root = remote_dir.filesystem()
    filesystem.mkdir("elsewhere")
    filesystem.pipe_file("elsewhere/file", b"another")
    reader = store._connect()._read
    call = reader(filesystem, f"{root}/file", 0, 3)
    assert asyncio.run_coroutine_threadsafe(call, filesystem.loop).result() == DATA[:3]
    call = reader(filesystem, "elsewhere/file", 0, 3)
    assert asyncio.run_coroutine_threadsafe(call, filesystem.loop).result() == b"ano"


def test_names_that_it_does_not_take_are_left_to_s3fs(remote_dir):
    store = proven(remote_dir)
    store.put("a//b", b"0123456789")
    assert store.ranges([("a//b", 1, 2), ("file", 0, 1)]) == [b"12", DATA[:1]]
    assert state(store) == "proven"


def test_a_first_refusal_is_left_to_s3fs(servers, remote_dir, logged):
    proxy = servers.proxy(OBSTORE)
    remote_dir = remote_dir.via(proxy)
    store = RemoteStore(remote_dir.url, remote_dir.storage_options)
    read(store)
    proxy.clear()
    proxy.faults = [status(403)]
    read(store)
    assert [request.status for request in proxy.log] == [403, 206]
    assert state(store) == "off"
    assert "AccessDenied" in " ".join(logged())
    read(store, 3)


def test_a_server_that_is_busy_at_first_is_no_refusal(servers, remote_dir):
    proxy = servers.proxy(OBSTORE)
    remote_dir = remote_dir.via(proxy)
    store = RemoteStore(remote_dir.url, remote_dir.storage_options)
    read(store)
    proxy.clear()
    proxy.faults = [status(503)]
    read(store)
    assert [request.status for request in proxy.log] == [503, 206]
    assert state(store) == "proven"


def test_credentials_are_renewed_as_s3fs_renews_them(remote_dir):
    from botocore.credentials import ReadOnlyCredentials

    store = proven(remote_dir)
    reader = store._connect()._read
    options = remote_dir.storage_options

    class Renewed:
        secret = "not-the-secret"

        async def get_frozen_credentials(self):
            return ReadOnlyCredentials(options["key"], self.secret, None)

    reader._credentials = Renewed()
    error = fails(store)
    assert error.errno == errno.EACCES
    assert "SignatureDoesNotMatch" in str(error)
    assert "not-the-secret" not in str(error)
    assert options["key"] not in str(error)
    Renewed.secret = options["secret"]
    read(store, 3)


def test_a_child_of_a_process_that_uses_it(remote_dir):
    store = proven(remote_dir)

    def in_child():
        read(store, 5)
        assert state(store) == "off"

    run_in_child(in_child)
    read(store, 3)


def test_a_child_of_a_process_that_is_loading_it(remote_dir, monkeypatch):
    """A lock of the import that the parent's event loop holds stays locked in the child."""
    store = RemoteStore(remote_dir.url, remote_dir.storage_options)
    monkeypatch.setattr(fastranges, "_started", set())
    importing, forked = threading.Event(), threading.Event()
    load = fastranges.import_module

    def slowly(name):
        importing.set()
        assert forked.wait(60)
        return load(name)

    def in_child():
        asked = []
        monkeypatch.setattr(fastranges, "import_module", asked.append)
        read(store, fastranges.WARMUP_READS + 3)
        assert state(store) == "off"
        assert not asked

    read(store, fastranges.WARMUP_READS - 1)
    monkeypatch.setattr(fastranges, "import_module", slowly)
    reading = threading.Thread(target=read, args=(store,))
    reading.start()
    assert importing.wait(60)
    child = fork_child(in_child)
    forked.set()
    reading.join()
    assert wait_for_child(child) == 0
    read(store, 3)
    assert state(store) == "proven"


def test_a_child_of_a_process_that_has_only_opened(remote_dir):
    code = (
        "import os; from npstream.storage import obstore as fastranges\n"
        "from npstream.storage.remote import RemoteStore\n"
        f"store = RemoteStore({remote_dir.url!r}, {remote_dir.storage_options!r})\n"
        "def read(count): [store.ranges([('file', 0, 9)]) for _ in range(count)]\n"
        "read(fastranges.WARMUP_READS - 1)\n"
        "if (child := os.fork()) == 0:\n"
        "    read(fastranges.WARMUP_READS + 1)\n"
        "    os._exit(store._connect()._read.state != 'proven')\n"
        "raise SystemExit(os.waitpid(child, 0)[1])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_requests_that_nobody_waits_for_are_given_up(servers, remote_dir):
    proxy = servers.proxy(OBSTORE)
    remote_dir = remote_dir.via(proxy)
    store = proven(remote_dir)
    proxy.clear()
    proxy.faults = [stall(times=FOR_EVER)]
    before = descriptors()
    assert fails(store, timeout=0.5).errno == errno.ETIMEDOUT
    assert len(proxy.log) == 2
    proxy.faults = []
    deadline = time.monotonic() + 5
    while descriptors() > before and time.monotonic() < deadline:
        read(store)
    assert descriptors() <= before


def descriptors():
    """Return how many files and sockets this process has open."""
    return len(os.listdir("/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"))


def fetch(base, headers=HEADERS):
    """Ask a place for a byte; return what obstore says, as it is passed on."""
    pytest.importorskip("obstore", reason="python -m pip install -e '.[fast]'")
    import obstore

    store = fastranges._store_factory("bucket", base, headers, None)(None)

    async def ask():
        with pytest.raises(Exception, match="S3") as caught:
            await obstore.get_range_async(store, "key", start=0, length=1)
        return caught.value

    return fastranges._as_driver_error(asyncio.run(ask()))


def test_what_it_says_of_connections():
    with socket.create_server((HOST, 0)) as held:
        port = held.getsockname()[1]
    anonymous: dict[str, str] = {}
    refused = fetch(f"http://{HOST}:{port}/bucket", anonymous)
    assert isinstance(refused, ConnectionRefusedError)
    assert refused.errno == errno.ECONNREFUSED
    assert f"{HOST}:{port}" in str(refused)
    assert "Connection refused" in str(refused)
    unknown = fetch("http://nowhere.invalid/bucket", anonymous)
    assert isinstance(unknown, fastranges._NoAnswerError)
    assert "nowhere.invalid" in str(unknown)
    assert "\n" not in str(unknown)


def test_what_it_is_told():
    pytest.importorskip("obstore", reason="python -m pip install -e '.[fast]'")
    base = "https://bucket.s3.eu-west-1.amazonaws.com"
    config = fastranges._store_factory("bucket", base, HEADERS, None)(None).config
    assert config["region"] == "eu-west-1"
    assert config["endpoint"] == base
    assert (config["request_payer"], config["skip_signature"]) == ("true", "false")
    config = fastranges._store_factory("bucket", base, {}, None)(None).config
    assert (config["request_payer"], config["skip_signature"]) == ("false", "true")
