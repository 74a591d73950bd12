"""A fake Hugging Face Hub, with repositories in memory.

Responses and names of errors follow the source of the client huggingface_hub, not the real server.
Small files are sent directly. Requests for JSON files are redirected to the Hub's cache. Requests
for shards are redirected to another origin, like the Hub's CDN, with signed URLs that accept no
token. Xet, the Hub's storage for large files, is not implemented.

Usage: ``python hf_fake.py PORT TOKENS``, where TOKENS is JSON that maps each token to its rights.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, parse_qsl, quote, unquote, urlencode, urlsplit

REPOSITORY = "npstream/data"
GATED = "npstream/gated"
BUCKET = "npstream/bucket"
PAGE = 100  # entries of a listing; the real Hub has pages of 1000
VALID_SECONDS = 600  # lifetime of a signed URL
CDN = "localhost"  # another name of the same machine is another origin
SECRET = b"shared by the CDN and the Hub"


class ErrorResponse(Exception):
    """An error response: status, code and message."""


class Repository:
    """The files of each commit, and the newest commit of each branch."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.refs: dict[str, str] = {}
        self.commits: dict[str, dict[str, bytes]] = {}
        self.commit("main", {})

    def commit(self, ref: str, changes: dict[str, bytes | None]) -> str:
        """Add a commit to a branch; None removes a file."""
        files = dict(self.commits[self.refs[ref]]) if ref in self.refs else {}
        for path, data in changes.items():
            if data is None:
                if files.pop(path, None) is None:
                    raise ErrorResponse(404, "EntryNotFound", "A file with this name doesn't exist")
            else:
                files[path] = data
        sha = hashlib.sha1(f"{ref} {len(self.commits)}".encode()).hexdigest()
        self.commits[sha], self.refs[ref] = files, sha
        return sha

    def commit_at(self, revision: str) -> tuple[str, dict[str, bytes]]:
        sha = self.refs.get(revision, revision)
        if sha not in self.commits:
            raise ErrorResponse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha, self.commits[sha]


def describe(path: str, data: bytes, is_bucket: bool) -> dict[str, object]:
    entry = {"type": "file", "path": path, "size": len(data)}
    if is_bucket:
        return entry | {"xetHash": hashlib.sha256(data).hexdigest()}
    return entry | {"oid": oid(data)}


def oid(data: bytes) -> str:
    """Return the git object id of a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def listing(files: dict[str, bytes], folder: str, is_bucket: bool) -> list[dict[str, object]]:
    """Return the files below a folder; in a repository, also the folders."""
    files_below = {path: data for path, data in files.items() if f"{path}/".startswith(folder)}
    if not files_below and folder and not is_bucket:
        raise ErrorResponse(404, "EntryNotFound", f"{folder} does not exist")
    entries = [describe(path, data, is_bucket) for path, data in files_below.items()]
    if not is_bucket:
        parents = {
            path[:end] for path in files_below for end, sign in enumerate(path) if sign == "/"
        }
        entries += [
            {"type": "directory", "path": path, "size": 0, "oid": oid(path.encode())}
            for path in parents
            if path.startswith(folder)
        ]
    return sorted(entries, key=lambda entry: entry["path"])


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    tokens: dict[str, list[str]]
    repositories: dict[str, Repository]

    def log_message(self, *args: object) -> None:
        """No-op: do not log requests."""

    def handle_any(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.url = urlsplit(self.path)
        self.query = dict(parse_qsl(self.url.query))
        try:
            answer = self.route(*self.url.path.removeprefix("/").split("/"))
        except ErrorResponse as error:
            status, code, message = error.args
            headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
            answer = status, headers, {"error": message}
        self.answer(*answer)

    do_GET = do_PUT = do_POST = handle_any

    def route(self, *parts: str) -> tuple[int, dict[str, str], object]:
        """Return the status, headers and body that answer a request."""
        match parts:
            case ["cdn", sha, signature]:
                return self.serve_signed(sha, signature)
            case ["put", owner, name, revision, *path]:  # how the tests store a file
                repository = self.repositories[f"{owner}/{name}"]
                with repository.lock:
                    repository.commit(unquote(revision), {unquote("/".join(path)): self.body})
                return 200, {}, {}
        self.verify()
        match parts:
            case ["datasets", owner, name, "resolve", revision, *path]:
                return self.resolve(self.repository(owner, name), revision, path)
            case ["buckets", owner, name, "resolve", *path]:
                return self.resolve(self.repository(owner, name), "main", path)
            case ["api", "resolve-cache", "datasets", owner, name, sha, *path]:
                repository = self.repository(owner, name)
                return self.file(repository.commit_at(sha)[1][unquote("/".join(path))], sha)
            case ["api", "datasets", owner, name, endpoint, revision, *path]:
                return self.metadata(
                    self.repository(owner, name), endpoint, unquote(revision), path
                )
            case ["api", "buckets", owner, name, endpoint, *path]:
                return self.metadata(self.repository(owner, name), endpoint, "main", path)
            case ["api", "datasets", owner, name]:
                return (
                    200,
                    {},
                    {
                        "id": f"{owner}/{name}",
                        "sha": self.repository(owner, name).commit_at("main")[0],
                    },
                )
        raise ErrorResponse(404, "", f"Sorry, we can't find the page: {self.path}")

    def verify(self) -> None:
        """Reject requests without a token or with a wrong one.

        The Hub does not reveal private repositories: without a token, they are "not found".
        """
        kind, _, token = self.headers.get("Authorization", "").partition(" ")
        if not kind:
            raise ErrorResponse(401, "RepoNotFound", "Repository not found")
        if kind != "Bearer" or token not in self.tokens:
            raise ErrorResponse(401, "", "Invalid credentials in Authorization header")
        self.rights = self.tokens[token]

    def repository(self, owner: str, name: str) -> Repository:
        if f"{owner}/{name}" == GATED:
            raise ErrorResponse(403, "GatedRepo", f"Access to dataset {GATED} is restricted")
        if f"{owner}/{name}" not in self.repositories:
            raise ErrorResponse(404, "RepoNotFound", "Repository not found")
        return self.repositories[f"{owner}/{name}"]

    def resolve(
        self, repository: Repository, revision: str, path: list[str]
    ) -> tuple[int, dict[str, str], object]:
        """Return a file, or a redirect to it."""
        sha, files = repository.commit_at(unquote(revision))
        name = unquote("/".join(path))
        if name not in files:
            raise ErrorResponse(404, "EntryNotFound", "Entry not found")
        data = files[name]
        if name.endswith(".mds"):
            return 302, self.redirect_to_cdn(name, data, sha), None
        if name.endswith(".json") and self.url.path.startswith("/datasets"):
            root = "/".join(self.url.path.split("/")[1:4])
            return 307, {"Location": f"/api/resolve-cache/{root}/{sha}/{quote(name)}"}, None
        return self.file(data, sha)

    def redirect_to_cdn(self, name: str, data: bytes, sha: str) -> dict[str, str]:
        content = hashlib.sha256(data).hexdigest()
        self.server.content[content] = data
        expiry = str(int(time.time()) + VALID_SECONDS)
        disposition = f"inline; filename*=UTF-8''{quote(name.rpartition('/')[2])}"
        query = urlencode({"response-content-disposition": disposition, "Expires": expiry})
        port = self.headers["Host"].rpartition(":")[2]
        return {
            "Location": f"http://{CDN}:{port}/cdn/{content}/{sign(content, expiry)}?{query}",
            "X-Repo-Commit": sha,
            "X-Linked-Size": str(len(data)),
            "X-Linked-ETag": f'"{content}"',
        }

    def serve_signed(self, content: str, signature: str) -> tuple[int, dict[str, str], object]:
        """Respond like a store with signed URLs, which rejects an additional token."""
        if self.headers.get("Authorization"):
            raise ErrorResponse(400, "", "Only one auth mechanism allowed")
        expiry = self.query.get("Expires", "0")
        if not hmac.compare_digest(signature, sign(content, expiry)) or int(expiry) < time.time():
            raise ErrorResponse(403, "", "Access denied")
        return self.file(self.server.content[content])

    def file(self, data: bytes, sha: str = "") -> tuple[int, dict[str, str], object]:
        headers = {"ETag": f'"{oid(data)}"', "Accept-Ranges": "bytes"}
        headers |= {"X-Repo-Commit": sha} if sha else {}
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if span is None:
            return 200, headers, data
        start, stop = int(span[1]), min(int(span[2]) + 1, len(data))
        if start >= stop:
            raise ErrorResponse(416, "", f"{span[0]} of {len(data)} bytes")
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        return 206, headers, data[start:stop]

    def metadata(
        self, repository: Repository, endpoint: str, revision: str, path: list[str]
    ) -> tuple[int, dict[str, str], object]:
        """Return metadata of a repository or bucket, or change it."""
        is_bucket = self.url.path.startswith("/api/buckets")
        sha, files = repository.commit_at(revision)
        match endpoint:
            case "revision":
                return 200, {}, {"id": REPOSITORY, "sha": sha}
            case "paths-info":
                paths = json.loads(self.body)["paths"] if is_bucket else self.form()["paths"]
                existing = [path for path in paths if path in files]
                entries = [describe(path, files[path], is_bucket) for path in existing]
                folders = [path for path in paths if any(n.startswith(f"{path}/") for n in files)]
                if not is_bucket:
                    entries += [{"type": "directory", "path": p, "oid": p} for p in folders]
                return 200, {}, entries
            case "tree":
                folder = "".join(f"{unquote(part)}/" for part in path)
                return self.page(listing(files, folder, is_bucket))
            case "preupload" | "commit" if "write" not in self.rights:
                raise ErrorResponse(403, "", "Forbidden: you don't have the right to write here")
            case "preupload":
                paths = [file["path"] for file in json.loads(self.body)["files"]]
                modes = [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]
                return 200, {}, {"files": modes}
            case "commit":
                return self.commit(repository, revision)
        raise ErrorResponse(404, "", f"Sorry, we can't find the page: {self.path}")

    def form(self) -> dict[str, list[str]]:
        return parse_qs(self.body.decode())

    def page(self, entries: list[dict[str, object]]) -> tuple[int, dict[str, str], object]:
        """Return one page, and a link to the next page."""
        start = int(self.query.get("cursor", 0))
        if start + PAGE >= len(entries):
            return 200, {}, entries[start:]
        query = urlencode(self.query | {"cursor": start + PAGE})
        next_url = f"http://{self.headers['Host']}{self.url.path}?{query}"
        return 200, {"Link": f'<{next_url}>; rel="next"'}, entries[start : start + PAGE]

    def commit(self, repository: Repository, branch: str) -> tuple[int, dict[str, str], object]:
        changes: dict[str, bytes | None] = {}
        parent = None
        for line in self.body.splitlines():
            match json.loads(line):
                case {"key": "header", "value": header}:
                    parent = header.get("parentCommit")
                case {"key": "file", "value": {"path": path, "content": content}}:
                    changes[path] = base64.b64decode(content, validate=True)
                case {"key": "deletedFile", "value": {"path": path}}:
                    changes[path] = None
        with repository.lock:
            if parent is not None and parent != repository.refs.get(branch):
                raise ErrorResponse(
                    412, "", "A commit has happened since. Please refresh and try again."
                )
            sha = repository.commit(branch, changes)
        address = f"http://{self.headers['Host']}/datasets/{REPOSITORY}/commit/{sha}"
        return 200, {}, {"success": True, "commitOid": sha, "commitUrl": address}

    def answer(self, status: int, headers: dict[str, str], content: object) -> None:
        if content is None:
            content = f"Redirecting to {headers['Location']}".encode()
        elif not isinstance(content, bytes):
            headers = headers | {"Content-Type": "application/json; charset=utf-8"}
            content = json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def sign(content: str, expiry: str) -> str:
    return hmac.new(SECRET, f"{content} {expiry}".encode(), hashlib.sha256).hexdigest()


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    content: dict[str, bytes]


def main(port: str, tokens: str) -> None:
    Handler.tokens = json.loads(tokens)
    Handler.repositories = {name: Repository() for name in (REPOSITORY, BUCKET)}
    server = Server(("127.0.0.1", int(port)), Handler)
    server.content = {}
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
