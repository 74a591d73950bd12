"""Arguments that are paths or URLs: valid ones are accepted, and neither is taken for the other."""

from __future__ import annotations

import os
import pathlib

import numpy as np
import pytest
from fake_drivers import DATA

import npstream
from npstream.__main__ import main
from npstream.cache.cache import ShardCache
from npstream.errors import StorageError
from npstream.storage.local import open_store
from npstream.storage.remote import RemoteStore
from npstream.storage.urls import join_url, local_path, location_str, scheme_of


class ForeignPath(os.PathLike):
    """A path object of another library, whose `str` and `os.fspath` differ."""

    def __init__(self, text, path):
        self.text, self.path = text, path

    def __str__(self):
        return self.text

    def __fspath__(self):
        return self.path


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("/a/b", "/a/b"),
        ("/a/./b/../c/", "/a/c"),
        ("rel/x", os.path.join(os.getcwd(), "rel/x")),
        ("~/x", os.path.expanduser("~/x")),
        (pathlib.Path("/a"), "/a"),
        ("file:///a/b", "/a/b"),
        ("file://localhost/a", "/a"),
        ("FILE:///a", "/a"),
        ("file:///a%20b/%C3%A4", "/a b/ä"),
        ("file:///a?b#c", "/a?b#c"),
        ("file:/a/b", "/a/b"),
        (pathlib.Path("file:///a/b"), "/a/b"),
        (ForeignPath("a path", "/a"), "/a"),
        ("/a:b", "/a:b"),
        ("c:/x", os.path.join(os.getcwd(), "c:/x")),
        ("./x3:/x", os.path.join(os.getcwd(), "x3:/x")),
        ("run:1/x", os.path.join(os.getcwd(), "run:1/x")),
    ],
)
def test_local_path(url, path):
    assert local_path(url) == path


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/x", "gs://x", "https://x/y", "file://host/x", "local://x", "azure-dl://x",
        "dbfs:/x", "x::s3://bucket", ForeignPath("s3://bucket/x", "bucket/x"), "s3://user:secret@x/secret",
    ],
)  # fmt: skip
def test_remote_urls_are_not_local_paths(url):
    with pytest.raises(ValueError, match=r"^cache: '.*' is not on this machine") as caught:
        local_path(url, "cache")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", [b"/a", 5, None, ForeignPath("b", b"/b"), ["/a"]])
def test_other_types_are_not_local_paths(url):
    with pytest.raises(TypeError, match=r"cache: expected str or os\.PathLike of str, not "):
        local_path(url, "cache")


@pytest.mark.parametrize("url", ["file://", "file:///", "file://localhost", "file:/", ""])
def test_urls_without_a_directory_are_refused(url):
    with pytest.raises(ValueError, match=r"cache.*(names no directory|is empty)"):
        local_path(url, "cache")


@pytest.mark.parametrize(
    "url",
    [
        "s3:/bucket/x", pathlib.Path("s3://bucket/x"), pathlib.Path("s3://bucket").absolute(),
        "other3:/x", "./s3:/bucket", pathlib.Path("memory://"), "/data/HTTPS:/host/x", "x/gs:",
        pathlib.Path("simplecache::s3://bucket/x"), pathlib.Path("a::s3://bucket").absolute(),
    ],
)  # fmt: skip
def test_urls_that_lost_a_slash_are_refused(url):
    for function in (local_path, open_store):
        with pytest.raises(ValueError, match=r"URL .*that lost a slash.* give a URL as a str"):
            function(url)


@pytest.mark.parametrize("url", ["s3://", "gs:///", "az://", "https://", "http:///", "hf://"])
def test_urls_without_a_bucket_or_host_are_refused(url):
    with pytest.raises(ValueError, match=r"url: '.*/' names no bucket or host: give a URL such as"):
        npstream.open(url)
    with pytest.raises(ValueError, match="names no bucket or host"):
        npstream.write(url, {"x": [1]})


def test_an_existing_directory_named_like_a_scheme_is_accepted(tmp_path, monkeypatch):
    (tmp_path / "s3:" / "x").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert local_path("./s3:/x/y") == local_path(tmp_path / "s3:/x/y") == f"{tmp_path}/s3:/x/y"
    with pytest.raises(ValueError, match="lost a slash"):
        local_path("s3:/x/y")


def test_an_object_whose_str_is_a_url_stands_for_that_url(tmp_path):
    url = ForeignPath("memory://shown/data", "shown/data")
    assert npstream.write(url, {"x": [1]}).path == "memory://shown/data"
    assert npstream.open(url, cache=tmp_path / "cache")[0] == {"x": 1}
    assert location_str(url) == "memory://shown/data"


@pytest.mark.parametrize(
    ("url", "scheme"),
    [("S3://b", "s3"), ("file:/a", "file"), ("c:/x", ""), ("a/b", ""), ("dbfs:/a", "dbfs:")],
)
def test_scheme_of(url, scheme):
    assert scheme_of(url) == scheme


def test_join_url():
    assert join_url("data", "train") == "data/train"
    assert join_url(pathlib.Path("/data"), "train") == "/data/train"
    assert join_url("memory://", "train") == "memory://train"
    assert join_url("s3://bucket/a?b/", "train") == "s3://bucket/a?b/train"
    assert join_url("HTTPS://host/a/?key=x/y", "train") == "HTTPS://host/a/train?key=x/y"
    where = open_store(join_url("https://host/a?sig=secret", "train")).where("index.json")
    assert where == "https://host/a/train/index.json"


@pytest.mark.parametrize("split", ["/train", "s3://bucket/train", "file:///train", b"train", ""])
def test_invalid_splits_raise(split):
    with pytest.raises((TypeError, ValueError), match="split"):
        npstream.open("data", split=split)


# All arguments that are paths or URLs, or only paths

REMOTE = "memory://urls/data"
LOCATIONS = {
    "open": lambda location: npstream.open(location),
    "write": lambda location: npstream.write(location, {"x": [1]}),
    "Writer": lambda location: npstream.Writer(location).close(),
    "verify": lambda location: npstream.verify_dataset(location),
    "build": lambda location: npstream.build_index(location),
    "open index": lambda location: npstream.open(REMOTE, index=location, cache="kept"),
    "verify index": lambda location: npstream.verify_dataset(REMOTE, index=location),
    "build out": lambda location: npstream.build_index(REMOTE, out=location),
}
DIRECTORIES = {
    "open cache": lambda location: npstream.open(REMOTE, cache=location)[0],
    "local cache": lambda location: npstream.open("data", cache=location),
    "Cache": ShardCache,
    "info": npstream.cache.info,
    "clear": npstream.cache.clear,
}


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    """Change to a directory with a dataset, and store another dataset at `REMOTE`."""
    monkeypatch.chdir(tmp_path)
    npstream.write("data", {"x": [1]})
    if not open_store(REMOTE).exists("index.json"):
        npstream.write(REMOTE, {"x": [1]})
    return tmp_path


@pytest.mark.parametrize("location", LOCATIONS)
@pytest.mark.parametrize(
    "invalid",
    [
        b"out", b"s3://bucket/out", pathlib.Path("s3://bucket/out"), "s3:/bucket/out", "",
        pathlib.Path("s3://bucket/out").absolute(), "nothing://bucket/out", "file://host/out", 5,
    ],
    ids=repr,
)  # fmt: skip
def test_an_invalid_location_creates_no_files(location, invalid, workdir):
    with pytest.raises((TypeError, ValueError)):
        LOCATIONS[location](invalid)
    assert set(os.listdir(workdir)) <= {"data", "kept"}


@pytest.mark.parametrize("directory", DIRECTORIES)
@pytest.mark.parametrize(
    "invalid",
    [
        "s3://bucket/cache", "memory://cache", b"cache", pathlib.Path("s3://bucket"), "gs:/b", "",
        pathlib.Path("az://container").absolute(), "https://host/cache", "file://host/cache", 5,
    ],
    ids=repr,
)  # fmt: skip
def test_an_invalid_cache_directory_creates_no_files(directory, invalid, workdir):
    with pytest.raises((TypeError, ValueError), match=r"^cache"):
        DIRECTORIES[directory](invalid)
    assert os.listdir(workdir) == ["data"]


def test_the_command_line_creates_no_files_for_an_invalid_cache(workdir, capsys):
    for command in (["cache", "info"], ["cache", "clear"], ["cache", "fetch", REMOTE, "--cache"]):
        assert main([*command, "s3://bucket/cache"]) != 0
        assert "cache: 's3://...' is not on this machine" in capsys.readouterr().err
    assert os.listdir(workdir) == ["data"]


@pytest.mark.parametrize("invalid", ["s3://bucket/cache", "gs:/bucket", "file://host/cache"])
def test_an_invalid_cache_in_the_environment_creates_no_files(invalid, workdir, monkeypatch):
    monkeypatch.setenv("NPSTREAM_CACHE", invalid)
    calls = [
        lambda: npstream.open(REMOTE),
        npstream.cache.info,
        npstream.cache.clear,
        lambda: npstream.build_index(REMOTE, out="memory://urls/aside"),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="NPSTREAM_CACHE"):
            call()
    assert os.listdir(workdir) == ["data"]


@pytest.mark.parametrize("form", ["{}", "file://{}", "file://localhost{}", "file:{}", "path"])
def test_valid_local_locations(form, workdir, monkeypatch):
    def location(name):
        path = workdir / name
        return path if form == "path" else form.format(path)

    columns = {"x": np.arange(5)}
    assert npstream.write(location("one"), columns).path == str(workdir / "one")
    assert npstream.open(location("one"))["x"].load().tolist() == [0, 1, 2, 3, 4]
    assert npstream.build_index(location("one"), out=location("aside")) == str(
        workdir / "aside/index.msgpack"
    )
    assert npstream.verify_dataset(location("one"), index=location("aside")).problems == ()
    assert npstream.open(REMOTE, cache=location("cache"))[0] == {"x": 1}
    assert npstream.cache.info(location("cache")).directory == str(workdir / "cache")
    assert npstream.cache.info(location("cache")).files > 0
    monkeypatch.setenv("NPSTREAM_CACHE", str(location("chosen")))
    assert ShardCache().directory == str(workdir / "chosen")
    assert set(os.listdir(workdir)) == {"data", "one", "aside", "cache", "chosen"}


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
def test_roots_and_reprs_contain_no_secrets(url, root):
    store = RemoteStore(url)
    assert store.root == root
    assert store.where("b/c") == f"{root}/b/c"
    assert repr(store) == f"RemoteStore({root!r})"


def test_the_query_of_a_signed_url_is_sent_but_not_shown(servers):
    proxy = servers.proxy("http")
    remote_dir = servers["http"].new_directory().with_proxy(proxy)
    remote_dir.put("a b", DATA)
    store = RemoteStore(f"{remote_dir.url}?sig=wonderful&x=1", remote_dir.storage_options)
    assert store.ranges([("a b", 1, 2)]) == [DATA[1:3]]
    assert proxy.log[-1].path.endswith("/a%20b?sig=wonderful&x=1")
    with pytest.raises(StorageError) as caught:
        store.read("none")
    assert "wonderful" not in str(caught.value)
