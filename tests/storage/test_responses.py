"""Checks of HTTP responses: unit tests, and tests with faulty web servers."""

from __future__ import annotations

import asyncio
import errno
import http.server
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import npstream
from npstream.errors import IntegrityError, StorageError
from npstream.storage import connection, remote
from npstream.storage.failures import classify
from npstream.storage.remote import RemoteStore
from npstream.storage.responses import (
    ResponseError,
    check_encoding,
    check_range,
    file_size,
    read_body,
)

DATA = bytes(range(256)) * 40


# Unit tests


def range_headers(
    first: int, last: int, total: object, length: int | None = None, **extra_headers: str
) -> dict:
    headers = {"Content-Range": f"bytes {first}-{last}/{total}", **extra_headers}
    return headers if length is None else headers | {"Content-Length": str(length)}


@pytest.mark.parametrize(
    ("status", "headers", "span", "expected"),
    [
        (206, range_headers(2, 5, 9, 4), (2, 6), 4),
        (206, range_headers(2, 5, "*", 4), (2, 6), 4),
        (206, range_headers(2, 5, 9), (2, 6), None),
        (206, {"content-range": "BYTES 0-0/1"}, (0, 1), None),
        (200, {"Content-Length": "6"}, (0, 6), 6),
        (200, {}, (0, 6), None),  # the body shows its length
        (206, {"Content-Length": "4"}, (2, 6), 4),
        (206, range_headers(2, 5, 9, 4, **{"Content-Encoding": "identity"}), (2, 6), 4),
        (206, range_headers(2, 5, 9, 4, **{"Content-Encoding": "aws-chunked"}), (2, 6), 4),
    ],
)
def test_matching_responses_are_accepted(status, headers, span, expected):
    assert check_range(status, headers, "shard.mds", *span) == expected


@pytest.mark.parametrize(
    ("status", "headers", "transient", "message"),
    [
        (206, range_headers(1, 4, 9, 4), True, "bytes 1 to 5 came; expected 2 to 6"),
        (206, range_headers(2, 6, 9, 5), True, "bytes 2 to 7 came"),
        (206, range_headers(2, 4, 9, 3), True, "bytes 2 to 5 came"),
        (206, range_headers(2, 4, 5, 3), True, "3 of 4 bytes came, and the file ends"),
        (206, range_headers(5, 2, 9, 4), True, "bytes 5 to 3 came"),
        (206, {}, True, "Content-Range is None"),
        (206, {"Content-Length": "3"}, True, "Content-Range is None"),
        (206, {"Content-Range": "bytes */9"}, True, "the response does not name its range"),
        (206, {"Content-Range": "bytes 2-5/9, bytes 7-8/9"}, True, "does not name its range"),
        (206, {"Content-Range": "rows 2-5/9"}, True, "the response does not name its range"),
        (
            206,
            {"Content-Type": "multipart/byteranges; boundary=x"},
            True,
            "does not name its range",
        ),
        (
            206,
            {"Content-Type": "Multipart/ByteRanges; boundary=x", "Content-Length": "4"},
            True,
            "does not name its range",
        ),
        (206, range_headers(2, 5, 9, 3), True, "3 of 4 bytes came"),
        (206, range_headers(2, 5, 9, 5), False, "5 of 4 bytes came"),
        (200, {"Content-Length": "4"}, False, "the server ignores Range requests"),
        (200, {}, False, "a whole file came"),
        (203, range_headers(2, 5, 9, 4), True, "status 203"),
        (304, range_headers(2, 5, 9, 4), True, "status 304"),
        (
            206,
            range_headers(2, 5, 9, 4, **{"Content-Encoding": "gzip"}),
            False,
            "encoded as 'gzip'",
        ),
        (206, range_headers(2, 5, 9, 4, **{"Content-Encoding": "br, gzip"}), False, "encoded as"),
    ],
)
def test_responses_that_do_not_match_raise(status, headers, transient, message):
    with pytest.raises(ResponseError, match=message.replace("*", r"\*")) as caught:
        check_range(status, headers, "shard.mds", 2, 6)
    assert caught.value.transient == transient
    cause = classify(caught.value)
    assert cause == ((errno.EIO, True) if transient else (errno.EINVAL, False))


def test_a_whole_file_of_another_length_is_rejected():
    for length in ("5", "7"):
        with pytest.raises(ResponseError, match="ignores Range"):
            check_range(200, {"Content-Length": length}, "x", 0, 6)


@pytest.mark.parametrize(
    ("name", "encoding"),
    [("a.mds.gz", "gzip"), ("A.GZ", "x-gzip"), ("a.zstd", "zstd"), ("a.mds.zst", "ZSTD")],
)
def test_content_encoding_is_accepted_only_for_compressed_files(name, encoding):
    check_encoding({"Content-Encoding": encoding}, name)
    for other in ("a.mds", "gz", "a.gz.mds"):
        with pytest.raises(ResponseError, match="which was not requested"):
            check_encoding({"Content-Encoding": encoding}, other)
    with pytest.raises(ResponseError, match="which was not requested"):
        check_encoding({"Content-Encoding": f"{encoding}, {encoding}"}, name)


def test_file_size_from_response_headers():
    assert file_size(200, {"content-length": "0"}, "x") == 0
    assert file_size(200, {}, "x") is None
    assert file_size(206, range_headers(0, 0, 9, 1), "x") == 9
    assert file_size(206, range_headers(0, 0, "*", 1), "x") is None
    assert file_size(416, {"Content-Range": "bytes */0"}, "x") == 0
    assert file_size(200, {"Content-Length": "-3"}, "x") is None


def test_a_body_is_read_up_to_its_maximum_length():
    def body(*parts: bytes):
        remaining = list(parts)
        sizes: list[int] = []

        async def read(max_bytes: int) -> bytes:
            sizes.append(max_bytes)
            return remaining.pop(0) if remaining else b""

        return read, sizes

    read, sizes = body(b"abc", b"d")
    assert asyncio.run(read_body(read, 4)) == b"abcd"
    assert sizes == [5, 2, 1]  # one byte more than may remain, to detect a longer body
    read, sizes = body(b"abc", b"de", b"never")
    with pytest.raises(ResponseError, match="more than 4 bytes came"):
        asyncio.run(read_body(read, 4))
    assert sizes == [5, 2]
    read, _ = body()
    assert asyncio.run(read_body(read, 0)) == b""


# Tests with web servers


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves the files of a dictionary, with the faults that the class attributes set."""

    protocol_version = "HTTP/1.1"
    files: dict[str, bytes]
    head = 200  # the status of the response to HEAD for an existing file
    ranges = True  # whether range requests get a range
    sized = True  # whether responses have a Content-Length
    drops = 0  # the number of requests for the side-car that get no response
    tag = '"x"'
    log: list[str]

    def log_message(self, *args: object) -> None:
        """Do not log requests."""

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        cls, span = type(self), self.headers.get("Range")
        cls.log.append(f"{self.command} {self.path} {span or ''}".strip())
        if cls.drops and self.path.endswith("index.msgpack"):
            cls.drops -= 1
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        data = self.files.get(self.path)
        status = 404 if data is None else 200
        if self.command == "HEAD" and data is not None:
            status = self.head
        body, headers = data or b"", {"ETag": self.tag}
        if span and status == 200 and self.ranges:
            first, last = map(int, span.removeprefix("bytes=").split("-"))
            status, total, body = 206, len(body), body[first : last + 1]
            headers["Content-Range"] = f"bytes {first}-{first + len(body) - 1}/{total}"
            if not body:
                status, headers["Content-Range"] = 416, f"bytes */{total}"
        if self.sized or status > 206:
            headers["Content-Length"] = str(len(body))
        else:
            headers["Connection"] = "close"
            self.close_connection = True
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@contextmanager
def serve_files(files: dict[str, bytes], **behavior: Any) -> Iterator[tuple[str, type[Handler]]]:
    """Serve files, and yield the server's URL and its handler class, which sets the faults."""
    handler = type("FaultyHandler", (Handler,), {"files": files, "log": [], **behavior})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", handler
        server.shutdown()


def dataset(directory: Path, root: str = "") -> dict[str, bytes]:
    """Write a dataset, and return its files."""
    columns = {"i": np.arange(1000) + 5, "text": [f"{n:x}" * 9 for n in range(1000)]}
    npstream.write(directory / "data", columns, shard_size="8KiB")
    files = sorted((directory / "data").rglob("*.*"))
    return {
        f"{root}/{path.relative_to(directory / 'data').as_posix()}": path.read_bytes()
        for path in files
        if path.is_file()
    }


@pytest.mark.parametrize("status", [400, 403, 404, 405, 501])
def test_a_server_without_head_is_asked_by_get(status):
    with serve_files({"/a": DATA, "/empty": b""}, head=status) as (url, handler):
        store = RemoteStore(url)
        assert store.exist_many(["a", "b"]) == [True, False]
        assert store.size("a") == len(DATA)
        assert store.size("empty") == 0
        assert store.read("a") == DATA
        assert store.version("a") == f'{len(DATA)}:"x"'
    assert {line for line in handler.log if "GET /empty" in line} == {"GET /empty bytes=0-0"}


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_failed_head_request_is_retried(status, short_pauses):
    with serve_files({"/a": DATA}, head=status) as (url, handler):
        with pytest.raises(StorageError, match="after 3 attempts") as caught:
            RemoteStore(url, retries=2).exists("a")
        assert caught.value.errno != errno.ENOENT
    assert handler.log == ["HEAD /a"] * 3


def test_a_head_request_without_a_password_is_not_repeated_as_get():
    with serve_files({"/a": DATA}, head=401) as (url, handler):
        with pytest.raises(StorageError, match="after 1 attempt in") as caught:
            RemoteStore(url).exists("a")
        assert caught.value.errno == errno.EACCES
    assert handler.log == ["HEAD /a"]


def test_a_server_without_ranges_serves_small_files():
    with serve_files({"/a": DATA, "/empty": b""}, ranges=False) as (url, _):
        store = RemoteStore(url)
        assert store.read("a") == DATA
        assert store.ranges([("a", 0, len(DATA))]) == [DATA]
        assert store.read("empty") == b""
        for span in ((0, 100), (5, len(DATA) - 5), (1, 10)):
            with pytest.raises(StorageError, match="the server ignores Range requests"):
                store.ranges([("a", *span)])


def test_a_server_without_content_lengths(tmp_path, monkeypatch):
    files = dataset(tmp_path)
    for ranges in (True, False):
        with serve_files(files, sized=False, ranges=ranges) as (url, _):
            store = RemoteStore(url)
            assert store.read("index.json") == files["/index.json"]
            if ranges:
                with npstream.open(url, cache=tmp_path / "cache") as ds:
                    assert ds.load()["i"].tolist() == list(range(5, 1005))
                assert npstream.verify_dataset(url).problems == ()
    with serve_files({"/a": DATA}, sized=False, ranges=False) as (url, _):
        store = RemoteStore(url)
        assert store.sizes(["a", "b"]) == [remote.UNKNOWN_SIZE, None]
        monkeypatch.setattr(connection, "MAX_UNSIZED", len(DATA) - 1)
        with pytest.raises(StorageError, match=f"more than {len(DATA) - 1:,} bytes came"):
            store.read("a")
        monkeypatch.setattr(connection, "MAX_UNSIZED", len(DATA))
        assert store.read("a") == DATA
        with pytest.raises(StorageError, match="more than 9 bytes came; the server ignores Range"):
            store.ranges([("a", 0, 9)])


def test_a_lost_connection_does_not_hide_the_side_car(tmp_path, short_pauses):
    """Its hashes show that the shards are damaged."""
    files = dataset(tmp_path)
    damaged = {
        name: data[:-8] + bytes(8) if name.endswith(".mds") else data
        for name, data in files.items()
    }
    with serve_files(damaged) as (url, handler):
        for drops in (1, 4, 7):
            handler.drops = drops
            with npstream.open(url, cache=tmp_path / f"{drops}", verify=True) as ds:
                assert handler.drops == 0
                with pytest.raises(IntegrityError, match=r"shard\.\d+\.mds"):
                    ds[999]
        handler.drops = 1 << 30
        with pytest.raises(StorageError, match=r"index\.msgpack") as caught:
            npstream.open(url, cache=tmp_path / "more", retries=1)
        assert caught.value.errno != errno.ENOENT


def test_refused_connections_do_not_look_like_missing_files(tmp_path, short_pauses):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/data"
    with pytest.raises(StorageError, match="after 3 attempts") as caught:
        npstream.open(url, cache=tmp_path, timeout=60.0, retries=2)
    assert caught.value.errno not in (errno.ENOENT, errno.EINVAL)


@pytest.mark.parametrize("listing", [None, b"", b"<html>nothing</html>", b'<a href="other">o</a>'])
def test_verification_without_listings_requests_each_file(tmp_path, listing):
    files = dataset(tmp_path)
    pages = {} if listing is None else dict.fromkeys(("/", "/data", "/data/"), listing)
    with serve_files({**{f"/data{name}": data for name, data in files.items()}, **pages}) as (
        url,
        _,
    ):
        report = npstream.verify_dataset(f"{url}/data")
        assert report.problems == ()
        assert report.shards > 1
    (first, *_, last) = [name for name in files if name.endswith(".mds")]
    changed = {name: data for name, data in files.items() if name != first}
    changed[last] = files[last] + b"x"
    with serve_files(changed) as (url, _):
        problems = npstream.verify_dataset(url).problems
    assert len(problems) == 2
    assert f"{first} (shard 0): there is no such file" in problems[0]
    assert f"{len(changed[last]):,} bytes; the index says {len(files[last]):,}" in problems[1]


def test_verification_reports_a_shard_whose_size_request_fails(tmp_path, short_pauses):
    files = dataset(tmp_path)
    (name, *_) = [name for name in files if name.endswith(".mds")]

    def answer(self: Handler) -> None:
        if self.path == name:
            self.send_error(503)
        else:
            Handler.answer(self)

    with serve_files(files, do_HEAD=answer, do_GET=answer) as (url, _):
        problems = npstream.verify_dataset(url).problems
    assert len(problems) == 1
    assert f"{name} (shard 0): " in problems[0]
    assert "Service Unavailable" in problems[0]
    assert "no such file" not in problems[0]
