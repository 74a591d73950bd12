"""A proxy in front of a server that logs requests, adds latency, and injects faults.

The proxy is a separate process. So it takes no time from the tested interpreter, and a fork of that
interpreter inherits none of the proxy's sockets::

    with Proxy(port) as proxy:
        proxy.faults = [status(503, times=2)]
        ...  # the client under test, which connects to proxy.port
        assert [request.status for request in proxy.log] == [503, 503, 206]
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import re
import socket
import ssl
import struct
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

FOR_EVER = 1 << 62
BLOCK = 1 << 16
_CODES = {403: "AccessDenied", 404: "NoSuchKey", 429: "TooManyRequests", 503: "SlowDown"}


class Request(NamedTuple):
    """A logged request; `nbytes` is the length of the response body that was sent."""

    method: str
    path: str
    range: str
    status: int
    nbytes: int


@dataclass(frozen=True)
class Fault:
    """A fault for the first `times` requests whose method and path match.

    With `every`, only every k-th of these requests has the fault. `at` is an offset in the body.
    """

    kind: str
    times: int = 1
    every: int = 1
    at: int = 0
    status: int = 0
    seconds: float = 0.0
    method: str = ""
    path: str = ""

    def matches(self, method: str, path: str) -> bool:
        return self.times > 0 and self.method in ("", method) and self.path in unquote(path)


def status(code: int, **match: object) -> Fault:
    """Respond with an error instead of forwarding the request."""
    return Fault("status", status=code, **match)


def reset(at: int = -1, **match: object) -> Fault:
    """Reset the connection after `at` bytes of the body; before the headers if negative."""
    return Fault("reset", at=at, **match)


def truncate(at: int, **match: object) -> Fault:
    """Close the connection after `at` bytes of the body, as if the body were complete."""
    return Fault("truncate", at=at, **match)


def stall(at: int = -1, **match: object) -> Fault:
    """Stop sending after `at` bytes of the body, and keep the connection open."""
    return Fault("stall", at=at, **match)


def delay(seconds: float, **match: object) -> Fault:
    """Wait before forwarding the request."""
    return Fault("delay", seconds=seconds, **match)


def slow(seconds: float, **match: object) -> Fault:
    """Wait before every 64 KiB of the body."""
    return Fault("slow", seconds=seconds, **match)


def flip(at: int, **match: object) -> Fault:
    """Change one bit of the body."""
    return Fault("flip", at=at, **match)


def wrong_length(at: int, **match: object) -> Fault:
    """Send the first `at` bytes of the body, with a matching Content-Length."""
    return Fault("length", at=at, **match)


def ignore_range(**match: object) -> Fault:
    """Respond to a range request with 200 and a whole object; other bytes are zeros."""
    return Fault("whole", **match)


def other_range(distance: int, **match: object) -> Fault:
    """Respond to a range request with wrong bytes of the right length.

    The range in the response is shifted down by `distance` bytes.
    """
    return Fault("shift", at=distance, **match)


def unranged(**match: object) -> Fault:
    """Respond to a range request with 200 and wrong bytes of the right length."""
    return Fault("unranged", **match)


def nameless(**match: object) -> Fault:
    """Respond to a range request without Content-Range."""
    return Fault("nameless", **match)


def multipart(**match: object) -> Fault:
    """Respond to a range request with 206 multipart and wrong bytes of the right length."""
    return Fault("multipart", **match)


def encoded(**match: object) -> Fault:
    """Respond with a compressed body that decompresses to wrong bytes of the right length."""
    return Fault("encoded", **match)


def flood(**match: object) -> Fault:
    """Respond with an endless body without Content-Length."""
    return Fault("flood", **match)


def oversized(at: int, **match: object) -> Fault:
    """Respond with `at` more bytes than were requested, and with a matching Content-Length."""
    return Fault("oversized", at=at, **match)


def unsized(**match: object) -> Fault:
    """Respond without Content-Length: the body ends with the connection."""
    return Fault("unsized", **match)


def garbage(**match: object) -> Fault:
    """Respond with an invalid status line."""
    return Fault("garbage", **match)


class Proxy:
    """The process of a proxy in front of a server on this machine.

    Parameters
    ----------
    port : int
        The server's port.
    raw : bool
        Whether to forward bytes without parsing HTTP. Each connection then counts as a request,
        and the bytes from the server as its body.
    certificate : tuple of Path
        The files of a certificate and its key, for a TLS proxy.
    """

    def __init__(self, port: int, raw: bool = False, certificate: tuple[Path, ...] = ()) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(port), str(int(raw)), *map(str, certificate)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.port: int = json.loads(self._process.stdout.readline())
        self._faults: list[Fault] = []
        self._latency = 0.0

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    @property
    def log(self) -> list[Request]:
        """The requests so far, in order of arrival."""
        return [Request(*entry) for entry in self._ask("log")]

    @property
    def faults(self) -> list[Fault]:
        """The faults to inject; each request takes the first fault that matches."""
        return self._faults

    @faults.setter
    def faults(self, faults: Iterable[Fault]) -> None:
        self._faults = list(faults)
        self._ask("faults", [asdict(fault) for fault in self._faults])

    @property
    def latency(self) -> float:
        """The delay in seconds before each request is forwarded."""
        return self._latency

    @latency.setter
    def latency(self, seconds: float) -> None:
        self._latency = seconds
        self._ask("latency", seconds)

    def close_port(self) -> None:
        """Drop all connections and refuse new ones, as if the server had stopped."""
        self._ask("close_port")

    def open_port(self) -> None:
        """Accept connections again."""
        self._ask("open_port")

    def clear(self) -> None:
        """Reset the log, the faults and the latency."""
        self._faults, self._latency = [], 0.0
        self._ask("clear")

    def stop(self) -> None:
        """Kill the process, which drops all connections."""
        self._process.kill()
        self._process.communicate()

    def _ask(self, *message: object) -> list[list[object]]:
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


class _Server:
    """The server in the proxy's process."""

    def __init__(self, port: int, raw: bool, certificate: list[str]) -> None:
        self.port = port
        self.raw = raw
        self.tls = None
        if certificate:
            self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.tls.load_cert_chain(*certificate)
        self.server: asyncio.Server | None = None
        self.clients: set[asyncio.StreamWriter] = set()
        # Reserves the port while no socket listens on it.
        self.reserved = _bound_socket(("127.0.0.1", 0))
        self.clear()

    def clear(self) -> None:
        self.log: list[list[object]] = []
        self.faults: list[dict[str, object]] = []
        self.matches: dict[int, int] = {}  # number of a fault -> requests that matched
        self.latency = 0.0

    async def run(self) -> None:
        await self.open_port()
        print(json.dumps(self.reserved.getsockname()[1]), flush=True)
        commands = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(commands), sys.stdin
        )
        while line := await commands.readline():
            print(json.dumps(await self.command(*json.loads(line))), flush=True)

    async def command(self, name: str, value: object = None) -> object:
        if name == "log":
            return self.log
        if name == "clear":
            self.clear()
        elif name == "open_port":
            await self.open_port()
        elif name == "close_port":
            self.close_port()
        else:
            setattr(self, name, value)
            self.matches = {}
        return []

    async def open_port(self) -> None:
        if self.server is None:
            self.server = await asyncio.start_server(
                self.connect,
                sock=_bound_socket(self.reserved.getsockname()),
                backlog=512,
                ssl=self.tls,
            )

    def close_port(self) -> None:
        if self.server is not None:
            self.server.close()
            self.server = None
        for client in self.clients:
            client.transport.abort()

    async def connect(self, reader, writer) -> None:
        handle = self.pass_on if self.raw else self.serve
        disconnections = (OSError, asyncio.IncompleteReadError)
        self.clients.add(writer)
        try:
            with contextlib.suppress(*disconnections), contextlib.closing(writer):
                await handle(reader, writer)
        finally:
            self.clients.remove(writer)

    def next_fault(self, method: str, path: str) -> Fault:
        for number, entry in enumerate(self.faults):
            fault = Fault(**entry)
            if fault.matches(method, path):
                matches = self.matches[number] = self.matches.get(number, 0) + 1
                if matches % entry["every"]:
                    continue
                entry["times"] -= 1
                return fault
        return Fault("none")

    async def serve(self, reader, writer) -> None:
        """Respond to the requests of a connection, one after the other."""
        while head := await _head(reader):
            lines = head.decode("latin-1").split("\r\n")
            method, path, _ = lines[0].split(" ", 2)
            headers = _headers(lines)
            span = headers.get("range", headers.get("x-ms-range", ""))
            entry = [method, path, span, 0, 0]  # the fields of Request: [3] is status, [4] nbytes
            self.log.append(entry)
            fault = self.next_fault(method, path)
            if "expect" in headers:
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            body = await _body(reader, headers)
            await asyncio.sleep(self.latency + fault.seconds * (fault.kind == "delay"))
            if fault.kind == "status":
                entry[3] = fault.status
                answer, content = _error(fault.status, path, headers)
                writer.write(answer if method == "HEAD" else answer + content)
                await writer.drain()
            elif fault.kind == "garbage":
                writer.write(b"HTTP/1.1 abc\r\nContent-Length: 0\r\n\r\n")
                await writer.drain()
                return
            elif fault.at < 0 and fault.kind in ("reset", "stall"):
                await _stop(fault, reader, writer)
                return
            else:
                await self.forward(head, body, fault, entry, writer)
                if fault.kind in ("reset", "stall"):
                    await _stop(fault, reader, writer)
                short = fault.kind == "length" and entry[4] < fault.at
                if short or fault.kind in ("reset", "stall", "truncate", "flood", "unsized"):
                    return

    async def forward(self, head, body, fault, entry, client) -> None:
        """Forward a request to the server, and send the response with the fault."""
        dropped_headers = rb"(?im)^(?:connection|expect|keep-alive):.*\r\n"
        reader, server = await asyncio.open_connection("127.0.0.1", self.port, limit=4 * BLOCK)
        with contextlib.closing(server):
            end = re.sub(dropped_headers, b"", head).removesuffix(b"\r\n")
            if b"\r\nauthorization:" not in end.lower():
                # The fake server of Google's storage serves only requests that name its own port.
                end = re.sub(rb"(?im)^(host: 127\.0\.0\.1):\d+", rb"\1:%d" % self.port, end)
            server.write(end + b"Connection: close\r\n\r\n" + body)
            await server.drain()
            answer = await _head(reader)
            answer = re.sub(dropped_headers, b"", answer)
            entry[3] = int(answer.split(b" ", 2)[1])
            if fault.kind == "length":
                answer = re.sub(
                    rb"(?im)^content-length:.*\r\n", b"Content-Length: %d\r\n" % fault.at, answer
                )
            if fault.kind == "whole" and entry[3] == 206:
                await _whole(answer, reader, entry, client)
                return
            if fault.kind in _REWRITES:
                await _rewrite(fault, answer, reader, entry, client)
                return
            client.write(answer)
            if entry[0] != "HEAD":
                await _relay(reader, client, fault, entry)

    async def pass_on(self, reader, writer) -> None:
        """Forward bytes in both directions; the fault applies to bytes from the server."""
        fault = self.next_fault("", "")
        entry = ["", "", "", 0, 0]
        self.log.append(entry)
        if fault.at < 0:
            await _stop(fault, reader, writer)
            return
        server_reader, server = await asyncio.open_connection("127.0.0.1", self.port)
        with contextlib.closing(server):
            upload = asyncio.create_task(_relay(reader, server, Fault("none"), list(entry)))
            download = asyncio.create_task(_relay(server_reader, writer, fault, entry))
            await asyncio.wait({upload, download}, return_when=asyncio.FIRST_COMPLETED)
            download.cancel()
            if fault.kind == "stall":
                await upload
            elif fault.kind == "reset":
                await _stop(fault, reader, writer)
            upload.cancel()
            await asyncio.gather(upload, download, return_exceptions=True)


def _bound_socket(address: tuple[str, int]) -> socket.socket:
    """Return a bound socket; with SO_REUSEADDR, several sockets may bind one port."""
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(address)
    return bound


async def _head(reader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""


def _headers(lines: list[str]) -> dict[str, str]:
    pairs = (line.partition(":") for line in lines[1:] if line)
    return {name.lower(): value.strip() for name, _, value in pairs}


async def _body(reader, headers: dict[str, str]) -> bytes:
    """Return a request's body as it was sent, with chunk headers if it is chunked."""
    if headers.get("transfer-encoding", "").lower() != "chunked":
        return await reader.readexactly(int(headers.get("content-length", 0)))
    parts, size = [], -1
    while size:
        parts.append(line := await reader.readuntil(b"\r\n"))
        size = int(line.split(b";")[0], 16)
        parts.append(await reader.readexactly(size + 2))
    return b"".join(parts)


def _error(code: int, path: str, headers: dict[str, str]) -> tuple[bytes, bytes]:
    """Return an error response in the format of the requested service."""
    name = _CODES.get(code, "InternalError")
    kind, body = "application/xml", f"<Error><Code>{name}</Code><Message>injected</Message></Error>"
    signed_for_oci = headers.get("authorization", "").startswith("Signature")
    if signed_for_oci or path.startswith(("/storage/v1", "/download/", "/upload/")):
        error = {
            "code": name,
            "message": "injected",
            "error": {"code": code, "message": "injected"},
        }
        kind, body = "application/json", json.dumps(error)
    head = f"HTTP/1.1 {code} {HTTPStatus(code).phrase}\r\nContent-Type: {kind}\r\n"
    if "x-ms-version" in headers:
        head += f"x-ms-error-code: {name}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode(), body.encode()


async def _relay(reader, writer, fault: Fault, entry: list[object]) -> None:
    """Forward a body until it ends or reaches the fault."""
    is_limited = fault.kind in ("reset", "truncate", "stall", "length")
    while data := await reader.read(min(BLOCK, fault.at - entry[4]) if is_limited else BLOCK):
        if fault.kind == "slow":
            await asyncio.sleep(fault.seconds)
        if fault.kind == "flip" and entry[4] <= fault.at < entry[4] + len(data):
            data = bytearray(data)
            data[fault.at - entry[4]] ^= 1
        entry[4] += len(data)
        writer.write(data)
        await writer.drain()


async def _stop(fault: Fault, reader, writer) -> None:
    """Reset the connection, or keep it open without sending until the client closes it."""
    if fault.kind == "reset":
        # With a linger time of 0, closing sends a reset instead of an end of file.
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        await asyncio.sleep(0.02)
        writer.transport.abort()
    elif fault.kind == "stall":
        while await reader.read(BLOCK):
            pass


async def _whole(answer: bytes, reader, entry: list[object], writer) -> None:
    """Respond like a server that does not support ranges."""
    lines = answer.decode("latin-1").split("\r\n")
    first, last, total = map(int, re.findall(r"\d+", _headers(lines)["content-range"]))
    kept_lines = [line for line in lines[1:-2] if not line.lower().startswith("content-")]
    head = ["HTTP/1.1 200 OK", *kept_lines, f"Content-Length: {total}"]
    part = await reader.readexactly(last + 1 - first)
    entry[3], entry[4] = 200, total
    writer.write("\r\n".join([*head, "", ""]).encode("latin-1"))
    writer.write(bytes(first) + part + bytes(total - last - 1))
    await writer.drain()


_REWRITES = (
    "shift",
    "unranged",
    "nameless",
    "multipart",
    "encoded",
    "flood",
    "oversized",
    "unsized",
)


async def _rewrite(fault: Fault, answer: bytes, reader, entry: list[object], writer) -> None:
    """Respond with changed headers and, except for "unsized", changed bytes."""
    status, *lines = answer.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    headers = _headers(["", *lines])
    length = int(headers.pop("content-length", 0))
    body = b"" if entry[0] == "HEAD" else await reader.readexactly(length)
    if fault.kind not in ("unsized", "nameless"):
        body = bytes(byte ^ 255 for byte in body)
    if fault.kind == "shift" and entry[3] == 206:
        first, last, total = map(int, re.findall(r"\d+", headers["content-range"]))
        headers["content-range"] = f"bytes {first - fault.at}-{last - fault.at}/{total}"
    elif fault.kind == "unranged":
        status, entry[3] = "HTTP/1.1 200 OK", 200
        headers.pop("content-range", None)
    elif fault.kind == "nameless":
        headers.pop("content-range", None)
    elif fault.kind == "multipart":
        headers.pop("content-range", None)
        headers["content-type"] = "multipart/byteranges; boundary=x"
    elif fault.kind == "encoded":
        body = gzip.compress(body)
        headers["content-encoding"] = "gzip"
    elif fault.kind == "flood":
        headers["transfer-encoding"] = "chunked"
    elif fault.kind == "oversized":
        body += bytes(fault.at)
    if fault.kind in ("flood", "unsized"):
        headers["connection"] = "close"
    else:
        headers["content-length"] = str(len(body) or length)
    head = [status, *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    writer.write("\r\n".join(head).encode("latin-1"))
    if fault.kind == "flood" and entry[0] != "HEAD":
        while True:  # until the client closes the connection, and writing fails
            entry[4] += BLOCK
            writer.write(b"%x\r\n%s\r\n" % (BLOCK, bytes(BLOCK)))
            await writer.drain()
    for start in range(0, len(body), BLOCK):  # until the client closes the connection
        block = body[start : start + BLOCK]
        entry[4] += len(block)
        writer.write(block)
        await writer.drain()


if __name__ == "__main__":
    asyncio.run(_Server(int(sys.argv[1]), sys.argv[2] == "1", sys.argv[3:]).run())
