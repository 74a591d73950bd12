"""Secrets in URLs, options and the environment never appear in messages, logs or files."""

from __future__ import annotations

import asyncio
import logging
import pickle
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import fsspec
import fsspec.asyn
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import npstream
from npstream.__main__ import main
from npstream._core.redaction import (
    Redactor,
    location_hash,
    redact,
    redact_url,
    secret_strings,
    url_secrets,
)
from npstream.errors import NpstreamError
from npstream.storage import drivers, requests
from npstream.storage.drivers import find_route
from npstream.storage.local import local_path, open_store
from npstream.storage.remote import RemoteStore

SECRET = "-".join(["Sw0rd", "FISH", "77"])
OTHER_SECRETS = ["Sw0rdFish", "Xyl0phone"]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (f"s3://KEY:{SECRET}@bucket/x/", "s3://bucket/x"),
        (f"s3://KEY:{SECRET}/{SECRET}@bucket/x", "s3://bucket/x"),
        (f"s3://KEY:12/{SECRET}@bucket/x", "s3://bucket/x"),
        (f"s3://KEY:{SECRET}", "s3://***"),
        (f"s3:/KEY:{SECRET}@bucket/x", "s3:/bucket/x"),
        (f"sftp://me:{SECRET}@host:22/a@b", "sftp://host:22/a@b"),
        (f"sftp://me:{SECRET}#{SECRET}?{SECRET}@host/a", "sftp://host/a"),
        (f"sftp://me%3A{SECRET}@host/a", "sftp://host/a"),
        ("sftp://me@host:22/a@b", "sftp://me@host:22/a@b"),
        (f"sftp://host/a#{SECRET}", "sftp://host/a#***"),
        (f"az://box/a?sv=1&sig={SECRET}", "az://box/a?***"),
        ("abfs://box@mine.dfs.core.windows.net/a", "abfs://box@mine.dfs.core.windows.net/a"),
        ("oci://bucket@namespace/a", "oci://bucket@namespace/a"),
        ("hf://datasets/owner/name@v1/a", "hf://datasets/owner/name@v1/a"),
        (f"https://{SECRET}@host:80/a?sig={SECRET}#{SECRET}", "https://host:80/a"),
        (f"https://host/a;token={SECRET}/b", "https://host/a;***/b"),
        (f"zip://x::s3://KEY:{SECRET}@bucket/a", "zip://bucket/a"),
        (f"simplecache::s3://KEY:{SECRET}@bucket/a", "simplecache::s3://bucket/a"),
        ("memory://x/y/", "memory://x/y"),
        ("/a/b:c@d", "/a/b:c@d"),
        ("data", "data"),
    ],
)
def test_urls_are_shown_without_secrets(url, expected):
    assert redact_url(url) == expected
    assert (SECRET in url) == any(SECRET in text for text in url_secrets(url))


class Credential:
    """An object with a secret, like the credentials of drivers."""

    def __init__(self, secret: str) -> None:
        self.scope = "https://public.example/scope"
        self._client_secret = secret
        self.itself = self


class Slotted:
    __slots__ = ("name", "token")

    def __init__(self, secret: str) -> None:
        self.token = secret


@pytest.mark.parametrize(
    "options",
    [
        {"secret": SECRET},
        {"anything": SECRET},
        {"password": SECRET.encode()},
        {"config_kwargs": {"proxies": {"https": f"http://me:{SECRET}@proxy:1"}}},
        {"client_kwargs": {"headers": {"X-Any": SECRET}}},
        {"client_kwargs": {"auth": ("me", SECRET)}},
        {"headers": [["a", [SECRET]]]},
        {"endpoint_url": f"me:{SECRET}@host:9000"},
        {"endpoint_url": f"https://me:{SECRET}@host:9000/a"},
        {"endpoint_url": f"https://host:9000/a?x={SECRET}"},
        {"connection_string": f"AccountName=mine;AccountKey={SECRET};BlobEndpoint=http://h"},
        {"token": {"type": "service_account", "private_key": f"-BEGIN-\n{SECRET}\n-END-"}},
        {"credential": Credential(SECRET)},
        {"session": SimpleNamespace(inner=Credential(SECRET))},
        {"auth": SimpleNamespace(username="me", value=SECRET)},
        {"login": Slotted(SECRET)},
    ],
)
@pytest.mark.parametrize("spelling", [str, str.lower, repr], ids=["plain", "lower", "repr"])
def test_secret_options_are_redacted(options, spelling):
    message = f"no access with {spelling(SECRET)} to https://h/a"
    redacted = Redactor("s3://bucket/x", options)(message)
    assert SECRET.lower() not in redacted.lower()
    assert "no access with" in redacted
    assert redacted.endswith("https://h/a")


def test_public_options_are_not_redacted():
    options = {
        "endpoint_url": "https://minio.local:9000",
        "client_kwargs": {"region_name": "eu-central-1"},
        "key_filename": "/home/me/.ssh/id",
        "anon": True,
        "token": "anon",
        "timeout": 30,
    }
    text = "no answer of https://minio.local:9000 in eu-central-1, /home/me/.ssh/id, anon, 30 s"
    assert Redactor("sftp://me@host/a", options)(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("url='https://h/a?sig=abc%3D&se=2'", "url='https://h/a'"),
        ("https://h/a#token=abc", "https://h/a"),
        ("https://user:word@h/a", "https://h/a"),
        ("AccountKey=abc==;Blob=x", "AccountKey=***;Blob=x"),
        ("SharedAccessSignature=sv=1&sig=2", "SharedAccessSignature=***"),
        ("{'Authorization': 'Bearer abcdef.ghi'}", "{'Authorization': 'Bearer ***'}"),
        ("the key is swordfish.", "the key is ***."),
        ("the key is Swordfish%2Fthere", "the key is ***%2Fthere"),
        ("of abcd, but not abcdef", "of ***, but not abcdef"),
        ("is it? a=b", "is it? a=b"),
    ],
)
def test_secrets_in_messages_are_redacted(text, expected):
    assert redact(text, ["swordfish", "abcd", "is", ""]) == expected


@pytest.mark.parametrize(
    ("secret", "text"),
    [
        ("a b/c+d=e", "a%20b%2Fc%2Bd%3De"),
        ("a b/c+d=e", "a+b%2Fc%2Bd%3De"),
        ("a%20b/c%2B", "a b/c+"),
        ("one line\nand two", "'one line\\nand two'"),
        ("one line\nand two", "one line and two"),
        ("one line\nand two", "what is in one line"),
        ('say "so"', '{"x": "say \\"so\\""}'),
    ],
)
def test_quoted_and_escaped_secrets_are_redacted(secret, text):
    redacted = redact(text, [secret])
    assert "***" in redacted
    assert "one" not in redacted
    assert "b" not in redacted
    assert "so" not in redacted


def test_the_search_in_objects_is_limited():
    cyclic = SimpleNamespace(modules=dict(sys.modules))
    cyclic.itself = cyclic
    assert len(list(secret_strings({"client": cyclic}))) < 5000


def test_secrets_of_the_environment_are_redacted(monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:{OTHER_SECRETS[0]}@proxy:1")
    monkeypatch.setenv("SOME_KEY_FILE", str(tmp_path))
    text = Redactor("s3://bucket", {})(f"{SECRET}, {OTHER_SECRETS[0]}, {tmp_path}")
    assert text == f"***, ***, {tmp_path}"


# Messages of drivers that received secrets.


def text_of_error(error: BaseException | None) -> str:
    """Return all text of an exception and of the exceptions chained to it."""
    if error is None:
        return ""
    parts = [str(error), repr(error), *map(str, error.args), *getattr(error, "__notes__", ())]
    parts += [str(getattr(error, name, "")) for name in ("filename", "filename2", "strerror")]
    parts += traceback.format_exception(error)
    chained = (text_of_error(error.__cause__), text_of_error(error.__context__))
    return "\n".join([*parts, *chained])


class Leaking:
    """A driver whose every method fails, with all secrets in the error in many spellings."""

    protocol = "leaking"
    cachable = False

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.options = options

    def _fail(self, path, *args, **options):
        from urllib.parse import quote

        bucket, _, key = str(path).partition("/")
        texts = (path, bucket, key, str(path).lower(), quote(str(path), safe=""), self.options)
        error = ValueError(f"bad bucket {bucket!r}: {texts}")
        error.add_note(f"at {path} with {self.options}")
        try:
            raise KeyError(path)
        except KeyError as cause:
            raise error from cause


class LeakingSync(Leaking, fsspec.AbstractFileSystem):
    info = ls = find = cat_file = open = exists = pipe_file = put_file = rm_file = Leaking._fail


class LeakingAsync(Leaking, fsspec.asyn.AsyncFileSystem):
    async def _afail(self, path, *args, **options):
        self._fail(path)

    _info = _ls = _find = _cat_file = _pipe_file = _put_file = _rm_file = _afail


class LeakingInit(fsspec.AbstractFileSystem):
    protocol = "leaking"

    def __init__(self, *args, **options):
        raise TypeError(f"unexpected {options}")


class LeakingStripProtocol(fsspec.AbstractFileSystem):
    protocol = "leaking"

    @classmethod
    def _strip_protocol(cls, path):
        raise ValueError(f"cannot parse {path}")


class LeakingUrlOptions(fsspec.AbstractFileSystem):
    protocol = "leaking"

    @staticmethod
    def _get_kwargs_from_urls(path):
        raise ValueError(f"Port could not be cast to integer value as {path!r}")


URLS = [
    f"leaking://key:{SECRET}@bucket/corpus",
    f"leaking://key:{OTHER_SECRETS[0]}/{OTHER_SECRETS[1]}@bucket/corpus",
    f"leaking://bucket/corpus?sig={SECRET}",
    f"leaking://bucket/corpus#{SECRET}",
    f"leaking://bucket/corpus;token={SECRET}",
]
OPTIONS = {
    "key": "me",
    "secret": SECRET,
    "nested": {"deep": [{"headers": {"X-Any": OTHER_SECRETS[0]}}]},
    "endpoint_url": f"user:{OTHER_SECRETS[1]}@host:9000",
}


@pytest.fixture(
    params=[LeakingSync, LeakingAsync, LeakingInit, LeakingStripProtocol, LeakingUrlOptions]
)
def leaking_driver(request):
    fsspec.register_implementation("leaking", request.param, clobber=True)


@pytest.fixture
def output(caplog, capfd, monkeypatch):
    """Return a function that returns all text that was logged and printed."""
    monkeypatch.setattr(requests, "_BACKOFF", 0.001)
    caplog.set_level(logging.INFO)
    return lambda: caplog.text + "".join(capfd.readouterr())


def failure(do: Callable[[], object]) -> Exception:
    with pytest.raises((NpstreamError, ValueError, TypeError)) as caught:
        do()
    return caught.value


def has_secret(text: str) -> bool:
    return any(secret.lower() in text.lower() for secret in (SECRET, *OTHER_SECRETS))


def operations(url: str, tmp_path: Path) -> dict[str, Callable[[], object]]:
    """Return all operations on a URL, by name."""
    settings = {"storage_options": OPTIONS}
    local = {"cache": tmp_path / "cache", "timeout": 5, "retries": 0}
    npstream.write(tmp_path / "data", {"x": np.arange(3)})
    store = RemoteStore(url, OPTIONS, 5.0, 0)
    return {
        "open": lambda: npstream.open(url, **settings, **local),
        "split": lambda: npstream.open(url, split="train", **settings, **local),
        "index": lambda: npstream.open("memory://none", index=url, **local),
        "write": lambda: npstream.write(url, {"x": np.arange(3)}, **settings),
        "build_index": lambda: npstream.build_index(url, **settings),
        "out": lambda: npstream.build_index(tmp_path / "data", url),
        "verify": lambda: npstream.verify_dataset(url, **settings),
        "exists": lambda: store.exists("a"),
        "names": lambda: list(store.names()),
        "ranges": lambda: store.ranges([("a", 0, 1)]),
        "put": lambda: store.put("a", b"x"),
        "put a file": lambda: store.put("a", tmp_path / "data" / "index.json"),
        "remove": lambda: store.remove("a"),
        "a path": lambda: local_path(url),
        "bytes": lambda: open_store(url.encode()),
        "a scheme": lambda: open_store("x" + url),
    }


@pytest.mark.parametrize("url", URLS, ids=["user", "slash", "query", "fragment", "parameter"])
def test_secrets_in_a_drivers_errors_are_redacted(leaking_driver, url, tmp_path, output):
    for name, do in operations(url, tmp_path).items():
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            error = failure(do)
        assert not has_secret(text_of_error(error)), name
        assert not has_secret(f"{[str(warning.message) for warning in warned]}"), name
    assert not has_secret(output())


@pytest.mark.parametrize(
    "words",
    [
        ["info", URLS[0]],
        ["verify", URLS[2]],
        ["index", URLS[3]],
        ["cache", "fetch", URLS[4]],
        ["info", URLS[0], URLS[2]],
        ["info", "--nothing", URLS[0]],
        [URLS[0]],
        ["cache", URLS[2]],
    ],
)
def test_the_command_line_prints_no_secrets(words, output):
    fsspec.register_implementation("leaking", LeakingAsync, clobber=True)
    try:
        status = main(words)
    except SystemExit as exit:
        status = exit.code
    assert status != 0
    text = output()
    assert "error" in text or "npstream: " in text
    assert not has_secret(text)


class AnyOptions(MemoryFileSystem):
    """A store in memory that accepts any options and any URL of a bucket."""

    protocol = "anyoptions"
    cachable = False
    store: ClassVar = {}
    pseudo_dirs: ClassVar = [""]

    def __init__(self, *args, **options):
        super().__init__(*args)

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("anyoptions://").strip("/")


@pytest.mark.parametrize("url", URLS, ids=["user", "slash", "query", "fragment", "parameter"])
def test_no_repr_file_or_log_of_a_dataset_contains_secrets(url, tmp_path, output):
    fsspec.register_implementation("anyoptions", AnyOptions, clobber=True)
    url = url.replace("leaking", "anyoptions")
    report = npstream.write(url, {"x": np.arange(2000), "t": ["a"] * 2000}, storage_options=OPTIONS)
    npstream.build_index(url, storage_options=OPTIONS)
    checked = npstream.verify_dataset(url, storage_options=OPTIONS)
    cache = tmp_path / "cache"
    ds = npstream.open(url, storage_options=OPTIONS, cache=cache)
    ds.prefetch()
    it = ds.iter(rank=0, world=1, batch_size=100, shuffle=True)
    next(iter(it))
    texts = [
        repr(report), str(report), repr(checked), str(checked), repr(ds), str(ds), ds._repr_html_(),
        repr(ds["x"]), str(ds.explain()), repr(ds.explain()), repr(it.state_dict()), repr(it),
        repr(npstream.cache.info(cache)), str(ds[:3].load()), repr(ds.shards), repr(ds.locate(3)),
    ]  # fmt: skip
    assert not any(map(has_secret, texts))
    for part in parts_with_url(ds):
        assert not has_secret(repr(part)), type(part)
    for file in [*cache.rglob("*"), *map(Path, AnyOptions.store)]:
        assert not has_secret(file.name)
    for file in cache.rglob("*"):
        assert not has_secret(file.read_bytes().decode("latin-1"))
    for name, file in AnyOptions.store.items():
        assert not has_secret(file.getvalue().decode("latin-1")), name
    assert not has_secret(output())
    ds.close()
    assert not has_secret(text_of_error(failure(ds.load)))


def parts_with_url(ds: npstream.Dataset) -> list[object]:
    """Return objects that hold a URL or options: those of a dataset, and a route with settings."""
    shards = ds._source.fetcher.shards
    connection = shards.remote_store._connect()
    parts = [shards, shards.remote_store, shards.files, shards.files.cache, connection]
    parts += [connection._redactor]
    parts += [ds._source, ds._source.fetcher, drivers.RouteSettings(URLS[0], OPTIONS, 1, 1.0)]
    return [*parts, connection.route, find_route(URLS[0], OPTIONS, 1, 1.0)]


def test_a_pickled_store_shows_no_secrets(tmp_path):
    store = RemoteStore(URLS[0], OPTIONS)
    assert not has_secret(repr(store))
    assert not has_secret(repr(pickle.loads(pickle.dumps(store))))


CLOSED = "127.0.0.1:1"
REAL = {
    "s3": (f"s3://KEY:{OTHER_SECRETS[0]}@bucket/x", {
        "endpoint_url": f"http://{CLOSED}", "key": "me", "secret": SECRET,
    }),
    "s3-query": (f"s3://bucket/x?X-Amz-Signature={OTHER_SECRETS[0]}", {
        "endpoint_url": f"http://me:{OTHER_SECRETS[1]}@{CLOSED}", "key": "me", "secret": SECRET,
    }),
    "gs": (f"gs://bucket/x?sig={OTHER_SECRETS[0]}", {
        "endpoint_url": f"http://{CLOSED}", "token": {
            "type": "authorized_user", "client_id": "x", "client_secret": SECRET,
            "refresh_token": OTHER_SECRETS[1], "token_uri": f"http://{CLOSED}/token",
        },
    }),
    "az": (f"az://box/x?sv=1&sig={OTHER_SECRETS[0]}", {
        "connection_string": f"DefaultEndpointsProtocol=http;AccountName=me;AccountKey={SECRET}"
        f";BlobEndpoint=http://{CLOSED}/me",
    }),
    "sas": ("az://box/x", {
        "account_name": "me", "account_host": CLOSED, "sas_token": f"sv=1&sig={SECRET}",
    }),
    "oci": (f"oci://bucket@ns/x?{OTHER_SECRETS[0]}", {
        "config": {"user": "u", "tenancy": "t", "fingerprint": "f", "region": "us-ashburn-1",
                   "key_content": SECRET},
        "config_kwargs": {"service_endpoint": f"http://{CLOSED}"},
    }),
    "sftp": (f"sftp://me:{SECRET}@{CLOSED}/x", {}),
    "sftp-port": (f"sftp://me:a/{SECRET}@{CLOSED}/x", {}),
    "sftp-option": (f"sftp://{CLOSED}/x", {"username": "me", "password": SECRET}),
    "https": (f"http://me:{OTHER_SECRETS[0]}@{CLOSED}/x?sig={SECRET}", {
        "headers": {"Authorization": f"Bearer {OTHER_SECRETS[1]}"},
    }),
    "hf": (f"hf://datasets/a/b/{'x'}?sig={OTHER_SECRETS[0]}", {
        "token": f"hf_{SECRET}", "endpoint": f"http://me:{OTHER_SECRETS[1]}@{CLOSED}",
    }),
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_errors_of_real_drivers_contain_no_secrets(name, tmp_path, output):
    url, options = REAL[name]
    for module in ("s3fs", "gcsfs", "adlfs", "ocifs", "paramiko", "aiohttp", "huggingface_hub"):
        pytest.importorskip(module, reason="python -m pip install -e '.[servers]'")
    settings = {"storage_options": options, "cache": tmp_path, "timeout": 2.0, "retries": 0}
    text = text_of_error(failure(lambda: npstream.open(url, **settings)))
    assert not has_secret(text), text
    assert not has_secret(output())


def test_an_error_after_the_timeout_is_not_logged_with_secrets(output, monkeypatch):
    """Asyncio logs the exception of a task that nobody awaits."""
    started, cancelled = threading.Event(), threading.Event()

    class Late(LeakingAsync):
        async def _cat_file(self, path, *args, **options):
            started.set()
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()
                self._fail(path)

    fsspec.register_implementation("leaking", Late, clobber=True)
    failure(lambda: RemoteStore(URLS[0], OPTIONS, 0.2, 0).ranges([("a", 0, 1)]))
    # On a slow machine, the timeout may pass before the request starts.
    assert not started.is_set() or cancelled.wait(60)
    asyncio.run_coroutine_threadsafe(asyncio.sleep(0.05), fsspec.asyn.get_loop()).result(60)
    assert not has_secret(output())


@pytest.mark.parametrize(
    ("url", "options", "variables"),
    [
        ("s3://a/b", {"endpoint_url": "http://one"}, {}),
        ("s3://a/b", {"client_kwargs": {"endpoint_url": "http://one", "region_name": "x"}}, {}),
        ("s3a://a/b", {}, {"AWS_ENDPOINT_URL": "http://one"}),
        ("s3://a/b", {}, {"AWS_DEFAULT_REGION": "us-gov-west-1"}),
        ("gs://a/b", {"endpoint_url": "http://one"}, {}),
        ("gs://a/b", {}, {"STORAGE_EMULATOR_HOST": "http://one"}),
        ("az://a/b", {"account_name": "one"}, {}),
        ("az://a/b", {}, {"AZURE_STORAGE_ACCOUNT_NAME": "one"}),
        ("az://a/b", {"connection_string": "AccountName=one;AccountKey=secret=="}, {}),
        ("abfs://a/b", {"connection_string": "AccountKey=k;BlobEndpoint=http://one"}, {}),
        ("oci://a@n/b", {"config_kwargs": {"service_endpoint": "http://one"}}, {}),
        ("sftp://host/b", {"port": 2222}, {}),
        ("hf://datasets/a/b", {"endpoint": "http://one"}, {}),
    ],
)
def test_locations_of_different_services_have_different_hashes(
    url, options, variables, monkeypatch
):
    for name in ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "STORAGE_EMULATOR_HOST"):
        monkeypatch.delenv(name, raising=False)
    plain = location_hash(url, {})
    secrets = {"key": "k", "secret": "s", "token": "t", "AccountKey": "x"}
    assert location_hash(url, secrets) == plain
    for name, text in variables.items():
        monkeypatch.setenv(name, text)
    assert location_hash(url, options) != plain
    assert location_hash(url, options | secrets) == location_hash(url, options)


def test_the_hash_does_not_depend_on_how_the_endpoint_is_set(monkeypatch):
    expected = location_hash("s3://a/b", {"client_kwargs": {"endpoint_url": "http://one/"}})
    assert location_hash("s3://a/b", {"endpoint_url": "http://one"}) == expected
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://one")
    assert location_hash("s3://a/b", {}) == expected
