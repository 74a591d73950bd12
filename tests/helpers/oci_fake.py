"""A fake of Oracle's object storage, with objects in memory.

It implements the calls of the REST reference, and verifies the RSA signature of each request.
Usage: ``python oci_fake.py PORT PUBLIC_KEY.pem KEY_ID``.
"""

from __future__ import annotations

import base64
import email.utils
import hashlib
import itertools
import json
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

NAMESPACE = "ns"
REQUIRED_HEADERS = {"date", "(request-target)", "host"}
MAX_CLOCK_SKEW = 300  # seconds


class ErrorResponse(Exception):
    """An error response: status, code and message."""


class Buckets:
    """The stored objects and unfinished uploads."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.objects: dict[str, dict[str, tuple[bytes, str, str]]] = {}
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.numbers = itertools.count(1)

    def put(self, bucket: str, name: str, data: bytes) -> str:
        etag = f"etag-{next(self.numbers)}"
        self.bucket(bucket)[name] = data, etag, email.utils.formatdate(usegmt=True)
        return etag

    def bucket(self, name: str) -> dict[str, tuple[bytes, str, str]]:
        if name not in self.objects:
            raise ErrorResponse(404, "BucketNotFound", f"no bucket {name!r}")
        return self.objects[name]

    def object(self, bucket: str, name: str) -> tuple[bytes, str, str]:
        if name not in self.bucket(bucket):
            raise ErrorResponse(404, "ObjectNotFound", f"no object {name!r} in bucket {bucket!r}")
        return self.bucket(bucket)[name]

    def listing(self, bucket: str, query: dict[str, str]) -> dict[str, object]:
        """Return one page: objects, common prefixes, and the start of the next page."""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        limit = min(int(query.get("limit", 1000)), 1000)
        is_prefix: dict[str, bool] = {}
        for name in sorted(self.bucket(bucket)):
            if name.startswith(prefix) and name >= query.get("start", ""):
                cut = name.find(delimiter, len(prefix)) if delimiter else -1
                is_prefix[name if cut < 0 else name[: cut + 1]] = cut >= 0
        page, remaining = list(is_prefix)[:limit], list(is_prefix)[limit:]
        answer: dict[str, object] = {
            "objects": [self.describe(bucket, name) for name in page if not is_prefix[name]],
            "prefixes": [name for name in page if is_prefix[name]],
        }
        return answer | ({"nextStartWith": remaining[0]} if remaining else {})

    def describe(self, bucket: str, name: str) -> dict[str, object]:
        data, etag, modified = self.object(bucket, name)
        time_modified = email.utils.parsedate_to_datetime(modified).isoformat()
        return {"name": name, "size": len(data), "etag": etag, "timeModified": time_modified}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    buckets: Buckets
    key_id: str
    key: object

    def log_message(self, *args: object) -> None:
        """No-op: do not log requests."""

    def handle_any(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        try:
            self.verify()
            with self.buckets.lock:
                answer = self.route(parts.path, query)
        except ErrorResponse as error:
            status, code, message = error.args
            answer = status, {}, {"code": code, "message": message}
        self.answer(*answer)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any

    def verify(self) -> None:
        """Reject requests that are not signed with the key, or whose date is too far from now."""
        fields = dict(re.findall(r'(\w+)="([^"]*)"', self.headers.get("Authorization", "")))
        signed_headers = fields.get("headers", "").split()
        lines = [f"{name}: {self.signed_value(name)}" for name in signed_headers]
        try:
            if not REQUIRED_HEADERS.issubset(signed_headers) or fields.get("keyId") != self.key_id:
                raise ValueError("another key signed it, or not all required headers are signed")
            date = email.utils.parsedate_to_datetime(self.headers["date"]).timestamp()
            if abs(time.time() - date) > MAX_CLOCK_SKEW:
                raise ValueError("the date is too far from now")
            digest = base64.b64encode(hashlib.sha256(self.body).digest()).decode()
            if "x-content-sha256" in signed_headers and self.headers["x-content-sha256"] != digest:
                raise ValueError("the body is not what was signed")
            if not is_signed(self.key, base64.b64decode(fields["signature"]), "\n".join(lines)):
                raise ValueError("the signature is not of this key, or of other lines")
        except (KeyError, ValueError) as error:
            message = f"The required information to complete authentication was wrong: {error}"
            raise ErrorResponse(401, "NotAuthenticated", message) from error

    def signed_value(self, name: str) -> str:
        if name == "(request-target)":
            return f"{self.command.lower()} {self.path}"
        return self.headers.get(name, "")

    def route(self, path: str, query: dict[str, str]) -> tuple[int, dict[str, str], object]:
        """Return the status, headers and body that answer a request."""
        match [unquote(part) for part in path.removeprefix("/").split("/", 5)]:
            case ["n"]:
                return 200, {}, NAMESPACE
            case ["n", namespace, "b"] if self.command == "POST" and namespace == NAMESPACE:
                bucket = json.loads(self.body)["name"]
                if bucket in self.buckets.objects:
                    raise ErrorResponse(409, "BucketAlreadyExists", f"{bucket!r} is there")
                self.buckets.objects[bucket] = {}
                return 200, {}, {"name": bucket, "namespace": NAMESPACE}
            case ["n", namespace, "b"] if namespace == NAMESPACE:
                return 200, {}, [{"name": name} for name in sorted(self.buckets.objects)]
            case ["n", namespace, "b", bucket] if namespace == NAMESPACE:
                self.buckets.bucket(bucket)
                return 200, {"etag": bucket}, {"name": bucket, "namespace": NAMESPACE}
            case ["n", namespace, "b", bucket, "o"] if namespace == NAMESPACE:
                return 200, {}, self.buckets.listing(bucket, query)
            case ["n", namespace, "b", bucket, "o", name] if namespace == NAMESPACE:
                return self.object(bucket, name)
            case ["n", namespace, "b", bucket, "u", *name] if namespace == NAMESPACE:
                return self.upload(bucket, name, query)
        raise ErrorResponse(404, "NotAuthorizedOrNotFound", f"nothing at {path}")

    def object(self, bucket: str, name: str) -> tuple[int, dict[str, str], object]:
        """Store, delete, describe or return an object or a byte range of an object."""
        if self.command == "PUT":
            if self.headers.get("if-none-match") == "*" and name in self.buckets.bucket(bucket):
                raise ErrorResponse(412, "IfNoneMatchFailed", f"{name!r} is there")
            expected = self.headers.get("if-match")
            if expected and expected != self.buckets.bucket(bucket).get(name, (b"", "", ""))[1]:
                raise ErrorResponse(412, "IfMatchFailed", f"{name!r} has another ETag")
            return 200, {"etag": self.buckets.put(bucket, name, self.body)}, None
        data, etag, modified = self.buckets.object(bucket, name)
        if self.command == "DELETE":
            del self.buckets.objects[bucket][name]
            return 204, {}, None
        headers = {
            "etag": etag,
            "last-modified": modified,
            "accept-ranges": "bytes",
            "content-type": "application/octet-stream",
            "version-id": etag,
            "storage-tier": "Standard",
        }
        span = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if span is None:
            return 200, headers, data
        first, last = span.groups()
        start = int(first) if first else max(len(data) - int(last), 0)
        stop = min(int(last) + 1 if first and last else len(data), len(data))
        if start >= stop:
            raise ErrorResponse(416, "InvalidRange", f"{span[0]} of {len(data)} bytes")
        headers["content-range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        return 206, headers, data[start:stop]

    def upload(
        self, bucket: str, name: list[str], query: dict[str, str]
    ) -> tuple[int, dict[str, str], object]:
        """Start a multipart upload, store a part, or finish the upload."""
        uploads = self.buckets.uploads
        if not name:
            upload_id = f"upload-{next(self.buckets.numbers)}"
            uploads[upload_id] = {}
            key = json.loads(self.body)["object"]
            details = {"uploadId": upload_id, "object": key, "bucket": bucket}
            return 200, {}, details | {"namespace": NAMESPACE}
        if query.get("uploadId") not in uploads:
            raise ErrorResponse(404, "NoSuchUpload", f"no upload {query.get('uploadId')!r}")
        if self.command == "PUT":
            part = int(query["uploadPartNum"])
            uploads[query["uploadId"]][part] = self.body
            return 200, {"etag": f"part-{part}"}, None
        parts = uploads.pop(query["uploadId"])
        if self.command == "DELETE":
            return 204, {}, None
        numbers = [part["partNum"] for part in json.loads(self.body)["partsToCommit"]]
        data = b"".join(parts[number] for number in sorted(numbers))
        return 200, {"etag": self.buckets.put(bucket, name[0], data)}, None

    def answer(self, status: int, headers: dict[str, str], content: object) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        if content is None:
            body = b""
        elif not isinstance(content, bytes):
            headers = headers | {"content-type": "application/json"}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.send_header("opc-request-id", "fake")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def is_signed(key, signature: bytes, text: str) -> bool:
    """Return True if a signature is that of a text."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding

    try:
        key.verify(signature, text.encode(), padding.PKCS1v15(), hashes.SHA256())
    except InvalidSignature:
        return False
    return True


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def main(port: str, public_key: str, key_id: str) -> None:
    from cryptography.hazmat.primitives import serialization

    Handler.buckets = Buckets()
    Handler.key = serialization.load_pem_public_key(Path(public_key).read_bytes())
    Handler.key_id = key_id
    Server(("127.0.0.1", int(port)), Handler).serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
