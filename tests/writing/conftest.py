"""Fixtures of URLs to write to, on each kind of store."""

from __future__ import annotations

import dataclasses

import fsspec
import pytest
from destinations import WRITABLE

from npstream.storage import drivers, requests


@pytest.fixture
def short_pauses(monkeypatch):
    """Shorten the pauses between the attempts of a request."""
    monkeypatch.setattr(requests, "_BACKOFF", 0.001)


@pytest.fixture
def memory(request):
    """Return the URL of an empty directory in memory."""
    yield f"memory://{request.node.name}"
    fsspec.filesystem("memory").store.clear()


@pytest.fixture(params=["directory", "memory", *WRITABLE])
def target(request, tmp_path):
    """Return the URL and the options of an empty directory, on each kind of store."""
    if request.param == "directory":
        yield str(tmp_path / "new"), None
    elif request.param == "memory":
        yield request.getfixturevalue("memory"), None
    else:
        fresh = request.getfixturevalue("servers")[request.param].new_directory()
        yield fresh.url, fresh.storage_options


@pytest.fixture
def create(monkeypatch):
    """Return a function that replaces how the store in memory creates a file."""

    def replace(function):
        driver = drivers.SCHEMES["memory"]
        wrapped = function and (lambda *arguments: function(driver.create, *arguments))
        changed = dataclasses.replace(driver, create=wrapped)
        monkeypatch.setitem(drivers.SCHEMES, "memory", changed)

    return replace


@pytest.fixture
def replace_in_memory(monkeypatch):
    """Return a function that replaces how the store in memory replaces a file."""

    def replace(function, **changes):
        driver = drivers.SCHEMES["memory"]
        changed = dataclasses.replace(driver, replace=function, **changes)
        monkeypatch.setitem(drivers.SCHEMES, "memory", changed)

    return replace
