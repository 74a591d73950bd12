"""Routes of URLs to drivers, and datasets in buckets without permission to list.

For a missing file in such a bucket, Amazon and Google answer 403 instead of 404.
"""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest

import npstream
from npstream.errors import MissingDependencyError, StorageError
from npstream.formats.compression import decompress
from npstream.storage import drivers
from npstream.storage.local import open_store

SCHEMES = ("s3", "gs", "http")


class Handler(BaseHTTPRequestHandler):
    """Serves the files below a directory by three protocols, and forbids listings."""

    protocol_version = "HTTP/1.1"
    root: Path
    log: list[str]

    def log_message(self, *args: object) -> None:
        """Do not log requests."""

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        self.log.append(f"{self.command} {self.path}")
        is_metadata = path.startswith("/storage/v1/b/") and "alt=media" not in query
        for prefix in ("/download/storage/v1/b/", "/storage/v1/b/", "/"):
            if path.startswith(prefix):
                name = unquote(path.removeprefix(prefix).replace("/o/", "/", 1))
                break
        file = self.root / name
        if not file.is_file() or "list-type" in query:
            return self.answer(403, b"{}")
        body = file.read_bytes()
        if is_metadata:
            metadata = {"name": name.partition("/")[2], "size": len(body), "generation": "1"}
            return self.answer(200, json.dumps(metadata).encode())
        if span := self.headers.get("Range"):
            first, last = map(int, span.removeprefix("bytes=").split("-"))
            part = body[first : last + 1]
            content_range = f"bytes {first}-{first + len(part) - 1}/{len(body)}"
            return self.answer(206, part, {"Content-Range": content_range})
        return self.answer(200, body)

    do_HEAD = do_GET

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"1"')
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@contextmanager
def bucket(root: Path, scheme: str) -> Iterator[tuple[str, dict[str, Any], type[Handler]]]:
    """Serve a directory; yield the URL of its dataset, the options, and the handler."""
    if scheme != "http":
        pytest.importorskip({"s3": "s3fs", "gs": "gcsfs"}[scheme])
    handler = type("BucketHandler", (Handler,), {"root": root, "log": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        options: dict[str, Any] = {
            "s3": {"endpoint_url": address, "key": "k", "secret": "s"},
            "gs": {"endpoint_url": address, "token": "anon", "project": "p"},
            "http": {},
        }[scheme]
        yield f"{address}/b/ds" if scheme == "http" else f"{scheme}://b/ds", options, handler
        server.shutdown()


def write_dataset(root: Path, **settings: Any) -> None:
    columns = {"i": np.arange(600), "text": [f"{n}" * 9 for n in range(600)]}
    npstream.write(root / "b/ds", columns, shard_size="4KiB", **settings)


def remove_sidecar(root: Path) -> None:
    for file in [*root.glob("b/ds/index.columns/*"), root / "b/ds/index.msgpack"]:
        file.unlink()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_a_dataset_without_a_side_car_opens_if_listing_is_forbidden(tmp_path, scheme, compression):
    write_dataset(tmp_path, compression=compression)
    remove_sidecar(tmp_path)
    with bucket(tmp_path, scheme) as (url, options, _):
        settings = {"storage_options": options, "cache": tmp_path / "cache"}
        with pytest.warns(
            RuntimeWarning, match=r"index\.msgpack: permission denied"
        ) as caught_warnings:
            dataset = npstream.open(url, **settings)
        assert [warning.filename for warning in caught_warnings] == [__file__]
        with dataset as ds:
            assert ds[7]["i"] == 7
            assert ds.load()["i"].tolist() == list(range(600))
        with pytest.raises(StorageError, match=r"index\.msgpack") as caught:
            npstream.open(url, verify=True, **settings)
        assert caught.value.errno == errno.EACCES
        with pytest.warns(RuntimeWarning, match="permission denied") as caught_warnings:
            report = npstream.verify_dataset(url, storage_options=options)
        assert report.problems == ()
        assert caught_warnings[0].filename == __file__


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_compressed_shard_that_is_stored_unpacked_is_read(tmp_path, scheme):
    write_dataset(tmp_path, compression="zstd")
    remove_sidecar(tmp_path)
    for entry in json.loads((tmp_path / "b/ds/index.json").read_text())["shards"]:
        file, raw = (tmp_path / "b/ds" / entry[key]["basename"] for key in ("zip_data", "raw_data"))
        raw.write_bytes(decompress(file.read_bytes(), "zstd", entry["raw_data"]["bytes"]))
        file.unlink()
    with bucket(tmp_path, scheme) as (url, options, _), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        with npstream.open(url, storage_options=options, cache=tmp_path / "cache") as ds:
            assert ds.load()["i"].tolist() == list(range(600))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_opening_a_dataset_sends_no_list_requests(tmp_path, scheme):
    write_dataset(tmp_path)
    with (
        bucket(tmp_path, scheme) as (url, options, handler),
        npstream.open(url, storage_options=options, cache=tmp_path / "cache") as ds,
    ):
        assert len(ds) == 600
    requests = [line.partition(" ")[2] for line in handler.log]
    assert any("ds/index.json" in unquote(url) for url in requests)
    # S3 lists with the parameter list-type, Google lists "/o", and web servers list a directory.
    assert not [url for url in requests if re.search(r"list-type|/o(\?|$)|/ds/?(\?|$)", url)]


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_a_dataset_without_read_permission_raises_eacces(tmp_path, scheme):
    with (
        bucket(tmp_path, scheme) as (url, options, _),
        pytest.raises(StorageError, match="give credentials") as caught,
    ):
        npstream.open(url, storage_options=options, cache=tmp_path / "cache")
    assert caught.value.errno == errno.EACCES


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
    ("url", "variables", "user_options", "expected_url", "expected_options"),
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
        ("s3://c/x", {"MOSAICML_STREAMING_AWS_REQUESTER_PAYS": "a, b"}, {}, "s3://c/x", {}),
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
def test_routes_have_the_url_and_options_of_their_driver(
    environment, url, variables, user_options, expected_url, expected_options
):
    for name, value in variables.items():
        environment.setenv(name, value)
    route = drivers.find_route(url, user_options, max_requests=32, timeout=60.0)
    assert route.url == expected_url
    assert expected_options.items() <= route.options.items()
    assert ("requester_pays" in expected_options) == ("requester_pays" in route.options)


def test_nested_user_options_override_defaults(environment):
    user_options = {"config_kwargs": {"read_timeout": 5}}
    route = drivers.find_route("s3://b/x", user_options, max_requests=40, timeout=60.0)
    config = route.options["config_kwargs"]
    assert config["read_timeout"] == 5
    assert config["max_pool_connections"] == 40


def test_oci_uses_the_configuration_file_of_its_sdk(environment, tmp_path):
    pytest.importorskip("ocifs", reason="python -m pip install -e '.[oci]'")

    def options(**user_options):
        route = drivers.find_route("oci://b@n/x", user_options, max_requests=32, timeout=60.0)
        return route.options

    environment.setenv("HOME", str(tmp_path))
    assert "iam_type" not in options()
    (tmp_path / "config").write_text("")
    environment.setenv("OCI_CONFIG_FILE", str(tmp_path / "config"))
    assert options()["config"] == str(tmp_path / "config")
    assert options()["iam_type"] == "api_key"
    assert "iam_type" not in options(config={})


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
def test_a_missing_driver_names_the_package_to_install(environment, url, module, extra):
    scheme = url.partition(":")[0]
    driver = drivers.SCHEMES.get(scheme)
    registry = sys.modules["fsspec.registry"]._registry
    environment.delitem(registry, driver.protocol if driver else scheme, raising=False)
    environment.setitem(sys.modules, module, None)
    package = rf"'npstream\[{extra}\]'" if extra else r"pip install smbclient"
    with pytest.raises(MissingDependencyError, match=f"^{scheme}:// needs .*{package}"):
        open_store(url).read("x")


def test_opening_a_store_imports_no_driver():
    code = (
        "import sys, npstream.storage.local as s\n"
        "for scheme in ('s3', 'gs', 'hf'): s.open_store(f'{scheme}://b/x')\n"
        "drivers = {'s3fs', 'gcsfs', 'huggingface_hub', 'httpx', 'httpx2', 'aiohttp', 'botocore'}\n"
        "print(*sorted(drivers & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    output = subprocess.check_output([sys.executable, "-c", code], env=environment)
    assert output.split() == []
