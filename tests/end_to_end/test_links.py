"""The script that checks external links finds the broken ones."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "docs" / "links.py"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/here")
        else:
            self.send_response(200 if self.path == "/here" else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def url():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def run(*files):
    return subprocess.run(
        [sys.executable, SCRIPT, *files],
        env={**os.environ, "NO_PROXY": "*"},
        capture_output=True,
        text=True,
        timeout=250,
    )


def test_each_external_link_is_checked_once(url, tmp_path):
    page, module = tmp_path / "page.md", tmp_path / "module.py"
    page.write_text(f"[one]({url}/here#part), [two]({url}/moved), <{url}/here>\n`{url}/example`\n")
    module.write_text(f'"""Text.\n\nSource: {url}/here, directory x.\n"""\n')
    done = run(page, module)
    # A fragment makes no other link, and a URL in a code span is no link.
    assert (done.returncode, done.stdout) == (0, "2 links, 0 of them broken\n")


def test_broken_links_are_printed_with_their_places(url, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"[one]({url}/here)\n[two]({url}/gone) [three](http://127.0.0.1:1/x)\n")
    done = run(page)
    assert done.returncode == 1
    gone, away, summary = done.stdout.splitlines()
    assert gone == f"{url}/gone answers 404: {page}:2"
    assert away.startswith("http://127.0.0.1:1/x cannot be reached: ")
    assert summary == "3 links, 2 of them broken"
