"""Secrets in URLs, options and the environment, and where none of them may be seen."""

from __future__ import annotations

import asyncio
import logging
import pickle
import sys
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
    redacted_url,
    secret_strings,
    url_secrets,
)
from npstream.errors import NpstreamError
from npstream.storage import drivers, requests
from npstream.storage.drivers import find_route
from npstream.storage.local import local_path, open_store
from npstream.storage.remote import RemoteStore

SECRET = "-".join(["Sw0rd", "FISH", "77"])
HALVES = ["Sw0rdFish", "Xyl0phone"]


@pytest.mark.parametrize(
    ("url", "shown"),
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
def test_what_is_shown_of_a_url(url, shown):
    assert redacted_url(url) == shown
    assert (SECRET in url) == any(SECRET in text for text in url_secrets(url))


class Credential:
    """An object with a secret, as those of drivers' packages are."""

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
def test_options_that_are_left_out(options, spelling):
    shown = Redactor("s3://bucket/x", options)(f"no access with {spelling(SECRET)} to https://h/a")
    assert SECRET.lower() not in shown.lower()
    assert "no access with" in shown
    assert shown.endswith("https://h/a")


def test_options_that_users_need_to_see():
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
    ("text", "shown"),
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
def test_messages_without_secrets(text, shown):
    assert redact(text, ["swordfish", "abcd", "is", ""]) == shown


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
def test_spellings_of_a_secret(secret, text):
    shown = redact(text, [secret])
    assert "***" in shown
    assert "one" not in shown
    assert "b" not in shown
    assert "so" not in shown


def test_objects_that_refer_to_the_whole_program_are_not_searched_for_ever():
    ring = SimpleNamespace(modules=dict(sys.modules))
    ring.itself = ring
    assert len(list(secret_strings({"client": ring}))) < 5000


def test_secrets_of_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:{HALVES[0]}@proxy:1")
    monkeypatch.setenv("SOME_KEY_FILE", str(tmp_path))
    text = Redactor("s3://bucket", {})(f"{SECRET}, {HALVES[0]}, {tmp_path}")
    assert text == f"***, ***, {tmp_path}"


# What a program that was given secrets says.


def told(error: BaseException | None) -> str:
    """Return all that an exception, and those that it is chained to, can be made to say."""
    if error is None:
        return ""
    parts = [str(error), repr(error), *map(str, error.args), *getattr(error, "__notes__", ())]
    parts += [str(getattr(error, name, "")) for name in ("filename", "filename2", "strerror")]
    parts += traceback.format_exception(error)
    return "\n".join([*parts, told(error.__cause__), told(error.__context__)])


class Indiscreet:
    """What a driver does that fails and says all it knows, in many spellings."""

    protocol = "indiscreet"
    cachable = False
    said: str

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


class Blocking(Indiscreet, fsspec.AbstractFileSystem):
    info = ls = find = cat_file = open = exists = pipe_file = put_file = rm_file = Indiscreet._fail


class Awaited(Indiscreet, fsspec.asyn.AsyncFileSystem):
    async def _afail(self, path, *args, **options):
        self._fail(path)

    _info = _ls = _find = _cat_file = _pipe_file = _put_file = _rm_file = _afail


class Unmade(fsspec.AbstractFileSystem):
    protocol = "indiscreet"

    def __init__(self, *args, **options):
        raise TypeError(f"unexpected {options}")


class Unparsed(fsspec.AbstractFileSystem):
    protocol = "indiscreet"

    @classmethod
    def _strip_protocol(cls, path):
        raise ValueError(f"cannot take {path} apart")


class Unasked(fsspec.AbstractFileSystem):
    protocol = "indiscreet"

    @staticmethod
    def _get_kwargs_from_urls(path):
        raise ValueError(f"Port could not be cast to integer value as {path!r}")


URLS = [
    f"indiscreet://key:{SECRET}@bucket/corpus",
    f"indiscreet://key:{HALVES[0]}/{HALVES[1]}@bucket/corpus",
    f"indiscreet://bucket/corpus?sig={SECRET}",
    f"indiscreet://bucket/corpus#{SECRET}",
    f"indiscreet://bucket/corpus;token={SECRET}",
]
OPTIONS = {
    "key": "me",
    "secret": SECRET,
    "nested": {"deep": [{"headers": {"X-Any": HALVES[0]}}]},
    "endpoint_url": f"user:{HALVES[1]}@host:9000",
}


@pytest.fixture(params=[Blocking, Awaited, Unmade, Unparsed, Unasked])
def indiscreet(request):
    fsspec.register_implementation("indiscreet", request.param, clobber=True)


@pytest.fixture
def everything_said(caplog, capfd, monkeypatch):
    """Return what returns all that was logged, warned of and printed."""
    monkeypatch.setattr(requests, "_BACKOFF", 0.001)
    caplog.set_level(logging.INFO)
    return lambda: caplog.text + "".join(capfd.readouterr())


def failure(do: Callable[[], object]) -> Exception:
    with pytest.raises((NpstreamError, ValueError, TypeError)) as caught:
        do()
    return caught.value


def has_secret(text: str) -> bool:
    return any(secret.lower() in text.lower() for secret in (SECRET, *HALVES))


def ways(url: str, tmp_path: Path) -> dict[str, Callable[[], object]]:
    """Return all that can be done with a URL."""
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
def test_a_driver_that_says_all_it_knows(indiscreet, url, tmp_path, everything_said):
    for way, do in ways(url, tmp_path).items():
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            error = failure(do)
        assert not has_secret(told(error)), way
        assert not has_secret(f"{[str(warning.message) for warning in warned]}"), way
    assert not has_secret(everything_said())


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
def test_the_command_line(words, everything_said):
    fsspec.register_implementation("indiscreet", Awaited, clobber=True)
    try:
        status = main(words)
    except SystemExit as exit:
        status = exit.code
    assert status != 0
    text = everything_said()
    assert "error" in text or "npstream: " in text
    assert not has_secret(text)


class Shelf(MemoryFileSystem):
    """A store in memory that takes whatever it is told, and is found by any URL of a bucket."""

    protocol = "shelf"
    cachable = False
    store: ClassVar = {}
    pseudo_dirs: ClassVar = [""]

    def __init__(self, *args, **options):
        super().__init__(*args)

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("shelf://").strip("/")


@pytest.mark.parametrize("url", URLS, ids=["user", "slash", "query", "fragment", "parameter"])
def test_a_dataset_that_is_found(url, tmp_path, everything_said):
    fsspec.register_implementation("shelf", Shelf, clobber=True)
    url = url.replace("indiscreet", "shelf")
    report = npstream.write(url, {"x": np.arange(2000), "t": ["a"] * 2000}, storage_options=OPTIONS)
    npstream.build_index(url, storage_options=OPTIONS)
    checked = npstream.verify_dataset(url, storage_options=OPTIONS)
    cache = tmp_path / "cache"
    ds = npstream.open(url, storage_options=OPTIONS, cache=cache)
    ds.prefetch()
    it = ds.iter(rank=0, world=1, batch_size=100, shuffle=True)
    next(iter(it))
    seen = [
        repr(report), str(report), repr(checked), str(checked), repr(ds), str(ds), ds._repr_html_(),
        repr(ds["x"]), str(ds.explain()), repr(ds.explain()), repr(it.state_dict()), repr(it),
        repr(npstream.cache.info(cache)), str(ds[:3].load()), repr(ds.shards), repr(ds.locate(3)),
    ]  # fmt: skip
    assert not any(map(has_secret, seen))
    for part in inside(ds):
        assert not has_secret(repr(part)), type(part)
    for file in [*cache.rglob("*"), *map(Path, Shelf.store)]:
        assert not has_secret(file.name)
    for file in cache.rglob("*"):
        assert not has_secret(file.read_bytes().decode("latin-1"))
    for name, file in Shelf.store.items():
        assert not has_secret(file.getvalue().decode("latin-1")), name
    assert not has_secret(everything_said())
    ds.close()
    assert not has_secret(told(failure(ds.load)))


def inside(ds: npstream.Dataset) -> list[object]:
    """Return the parts of a dataset that know where it is."""
    shards = ds._source.fetcher.shards
    link = shards.remote._connect()
    known = [shards, shards.remote, shards.files, shards.files.cache, link, link._redactor]
    known += [ds._source, ds._source.fetcher, drivers.Need(URLS[0], OPTIONS, 1, 1.0)]
    return [*known, link.route, find_route(URLS[0], OPTIONS, 1, 1.0)]


def test_what_travels_to_workers_shows_nothing(tmp_path):
    store = RemoteStore(URLS[0], OPTIONS)
    assert not has_secret(repr(store))
    assert not has_secret(repr(pickle.loads(pickle.dumps(store))))


CLOSED = "127.0.0.1:1"
REAL = {
    "s3": (f"s3://KEY:{HALVES[0]}@bucket/x", {
        "endpoint_url": f"http://{CLOSED}", "key": "me", "secret": SECRET,
    }),
    "s3-query": (f"s3://bucket/x?X-Amz-Signature={HALVES[0]}", {
        "endpoint_url": f"http://me:{HALVES[1]}@{CLOSED}", "key": "me", "secret": SECRET,
    }),
    "gs": (f"gs://bucket/x?sig={HALVES[0]}", {
        "endpoint_url": f"http://{CLOSED}", "token": {
            "type": "authorized_user", "client_id": "x", "client_secret": SECRET,
            "refresh_token": HALVES[1], "token_uri": f"http://{CLOSED}/token",
        },
    }),
    "az": (f"az://box/x?sv=1&sig={HALVES[0]}", {
        "connection_string": f"DefaultEndpointsProtocol=http;AccountName=me;AccountKey={SECRET}"
        f";BlobEndpoint=http://{CLOSED}/me",
    }),
    "sas": ("az://box/x", {
        "account_name": "me", "account_host": CLOSED, "sas_token": f"sv=1&sig={SECRET}",
    }),
    "oci": (f"oci://bucket@ns/x?{HALVES[0]}", {
        "config": {"user": "u", "tenancy": "t", "fingerprint": "f", "region": "us-ashburn-1",
                   "key_content": SECRET},
        "config_kwargs": {"service_endpoint": f"http://{CLOSED}"},
    }),
    "sftp": (f"sftp://me:{SECRET}@{CLOSED}/x", {}),
    "sftp-port": (f"sftp://me:a/{SECRET}@{CLOSED}/x", {}),
    "sftp-option": (f"sftp://{CLOSED}/x", {"username": "me", "password": SECRET}),
    "https": (f"http://me:{HALVES[0]}@{CLOSED}/x?sig={SECRET}", {
        "headers": {"Authorization": f"Bearer {HALVES[1]}"},
    }),
    "hf": (f"hf://datasets/a/b/{'x'}?sig={HALVES[0]}", {
        "token": f"hf_{SECRET}", "endpoint": f"http://me:{HALVES[1]}@{CLOSED}",
    }),
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_real_drivers(name, tmp_path, everything_said):
    url, options = REAL[name]
    for module in ("s3fs", "gcsfs", "adlfs", "ocifs", "paramiko", "aiohttp", "huggingface_hub"):
        pytest.importorskip(module, reason="python -m pip install -e '.[servers]'")
    settings = {"storage_options": options, "cache": tmp_path, "timeout": 2.0, "retries": 0}
    text = told(failure(lambda: npstream.open(url, **settings)))
    assert not has_secret(text), text
    assert not has_secret(everything_said())


def test_an_event_loop_is_told_nothing(everything_said, monkeypatch):
    """What a driver raises after it was given up is not written to the log either."""

    class Late(Awaited):
        async def _cat_file(self, path, *args, **options):
            try:
                await asyncio.sleep(60)
            finally:
                self._fail(path)

    fsspec.register_implementation("indiscreet", Late, clobber=True)
    failure(lambda: RemoteStore(URLS[0], OPTIONS, 0.2, 0).ranges([("a", 0, 1)]))
    asyncio.run_coroutine_threadsafe(asyncio.sleep(0.05), fsspec.asyn.get_loop()).result(5)
    assert not has_secret(everything_said())


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
def test_places_of_different_services_differ(url, options, variables, monkeypatch):
    for name in ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "STORAGE_EMULATOR_HOST"):
        monkeypatch.delenv(name, raising=False)
    plain = location_hash(url, {})
    secrets = {"key": "k", "secret": "s", "token": "t", "AccountKey": "x"}
    assert location_hash(url, secrets) == plain
    for name, text in variables.items():
        monkeypatch.setenv(name, text)
    assert location_hash(url, options) != plain
    assert location_hash(url, options | secrets) == location_hash(url, options)


def test_the_place_is_the_same_however_it_is_told(monkeypatch):
    given = location_hash("s3://a/b", {"client_kwargs": {"endpoint_url": "http://one/"}})
    assert location_hash("s3://a/b", {"endpoint_url": "http://one"}) == given
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://one")
    assert location_hash("s3://a/b", {}) == given
