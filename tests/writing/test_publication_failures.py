"""Appends and replacements that fail, are killed or get no response."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress

import numpy as np
import pytest
from crash_cache import in_child
from destinations import SHARD, names
from faults import garbage, reset, status
from growing import append, assert_sound, contents, lacks_conditional_uploads

import npstream
from npstream.errors import StorageError
from npstream.formats.index import INDEX
from npstream.storage import uploads

pytestmark = pytest.mark.usefixtures("short_pauses")


def test_a_response_that_is_lost(memory, replace_in_memory, tmp_path):
    """The index is replaced, and then the connection breaks. The retry finds the new index."""
    append(memory, None, [1])
    failed_paths = []

    def break_once(filesystem, path, data, tag):
        uploads.memory_replace(filesystem, path, data, tag)
        if not failed_paths:
            failed_paths.append(path)
            raise ConnectionResetError

    replace_in_memory(break_once)
    append(memory, None, [2])
    assert failed_paths
    assert contents(memory, None, tmp_path / "cache") == [1, 2]
    assert_sound(memory, None)


def test_a_response_that_is_lost_before_another_append(memory, replace_in_memory, tmp_path):
    """The index is replaced, the connection breaks, and another append extends this index."""
    append(memory, None, [1])
    failed_paths = []

    def break_once(filesystem, path, data, tag):
        uploads.memory_replace(filesystem, path, data, tag)
        if not failed_paths:
            failed_paths.append(path)
            thread = threading.Thread(target=append, args=(memory, None, [3]))
            thread.start()
            thread.join()
            raise ConnectionResetError

    replace_in_memory(break_once)
    append(memory, None, [2])
    assert contents(memory, None, tmp_path / "cache") == [1, 2, 3]
    assert_sound(memory, None)


def test_a_response_that_is_lost_before_a_replacement(memory, replace_in_memory, tmp_path):
    """The replacement has removed the files of the append, which must not be published again."""
    append(memory, None, [1])
    failed_paths = []

    def break_once(filesystem, path, data, tag):
        uploads.memory_replace(filesystem, path, data, tag)
        if not failed_paths:
            failed_paths.append(path)
            data = {"v": [5], "text": ["5"]}
            thread = threading.Thread(
                target=npstream.write, args=(memory, data), kwargs={"mode": "w"}
            )
            thread.start()
            thread.join()
            raise ConnectionResetError

    replace_in_memory(break_once)
    with pytest.raises(StorageError, match="after 2 attempts"):
        append(memory, None, [2])
    assert contents(memory, None, tmp_path / "cache") == [5]
    assert_sound(memory, None)


def test_a_replacement_that_never_succeeds(memory, replace_in_memory, tmp_path):
    append(memory, None, [1])
    former_names = names(memory)

    def refuse(filesystem, path, data, tag):
        raise PermissionError

    replace_in_memory(refuse)
    with pytest.raises(PermissionError):
        append(memory, None, [2])
    new_names = [name for name in names(memory) if name not in former_names]
    assert len(new_names) == 1  # the kept index of the version that is still the newest
    assert contents(memory, None, tmp_path / "cache") == [1]


def test_a_condition_that_always_fails(memory, replace_in_memory, tmp_path):
    append(memory, None, [1])

    def refuse(filesystem, path, data, tag):
        raise FileExistsError(path)

    replace_in_memory(refuse)
    with pytest.raises(StorageError, match="refuses to replace this file, as if it had changed"):
        append(memory, None, [2])
    assert contents(memory, None, tmp_path / "cache") == [1]
    assert len([name for name in names(memory) if name.startswith("shard.")]) == 1


def test_a_replacement_that_times_out_and_may_succeed_later(memory, replace_in_memory, tmp_path):
    append(memory, None, [1])
    released = threading.Event()

    def stall(filesystem, path, data, tag):
        released.wait(30)
        uploads.memory_replace(filesystem, path, data, tag)

    replace_in_memory(stall)
    with pytest.raises(TimeoutError) as caught:
        append(memory, None, [2], timeout=0.3, retries=0)
    assert "may still succeed, so its files stay" in caught.value.__notes__[0]
    assert contents(memory, None, tmp_path / "cache") == [1]
    released.set()


FAULTS = [
    reset(method="PUT", path=INDEX),  # no response
    reset(0, method="PUT", path=INDEX),  # a response that is lost after its headers
    status(503, times=2, method="PUT", path=INDEX),
    status(503, times=2, method="PUT", path=".msgpack"),
    garbage(method="PUT", path=INDEX),
    reset(0, method="GET", path=INDEX),
]


@pytest.mark.parametrize("kind", ["s3", "azure"])
def test_a_connection_that_breaks(kind, servers, tmp_path):
    fresh = servers[kind].new_directory()
    url, options = fresh.url, fresh.storage_options
    proxy = servers.proxy(kind)
    proxied = fresh.with_proxy(proxy)
    append(url, options, [0])
    for number, fault in enumerate(FAULTS, 1):
        proxy.faults, logged = [fault], len(proxy.log)
        append(proxied.url, proxied.storage_options, [number])
        assert any(fault.matches(r.method, r.path) for r in proxy.log[logged:])
    assert contents(url, options, tmp_path / "cache") == list(range(len(FAULTS) + 1))
    assert_sound(url, options)


@pytest.mark.parametrize("mode", ["a", "w"])
def test_an_exception_of_the_input(mode, target, tmp_path):
    url, options = target
    settings = {"exclusive": lacks_conditional_uploads(url), "mode": mode}
    append(url, options, [1], exclusive=lacks_conditional_uploads(url))
    before = names(url, options)

    def failing():
        for value in range(30):
            yield {"v": np.int64(value), "text": str(value)}
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        npstream.write(url, failing(), shard_size=SHARD, storage_options=options, **settings)
    assert names(url, options) == before
    assert contents(url, options, tmp_path / "cache") == [1]


STEPS = ("link", "replace", "unlink", "fsync")
"""The system calls by which files are published and removed."""


def kill_at(step):
    """Kill this process before its call number `step`, from 0, of `STEPS`."""
    remaining = step

    def patch(name):
        call = getattr(os, name)

        def counted(*arguments, **options):
            nonlocal remaining
            remaining -= 1
            if remaining < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        setattr(os, name, counted)

    for name in STEPS:
        patch(name)


@pytest.mark.parametrize("mode", ["a", "w"])
def test_killed_before_any_call(mode, tmp_path):
    """Readers see the old dataset or the new one, and later appends work."""
    old, new = [1, 2, 3], [1, 2, 3, 8, 9] if mode == "a" else [8, 9]
    outcomes = set()
    for step in range(200):
        path = tmp_path / f"{step}"
        append(path, None, old[:1], shard_samples=1)
        append(path, None, old[1:], shard_samples=1)

        def write(path=path, step=step):
            kill_at(step)
            data = {"v": np.array([8, 9]), "text": ["8", "9"]}
            npstream.write(path, data, mode=mode, shard_samples=1)

        _, status = os.waitpid(in_child(write), 0)
        values = contents(path, None, None)
        assert values in (old, new)
        outcomes.add(tuple(values))
        append(path, None, [5])
        assert contents(path, None, None) == [*values, 5]
        assert_sound(path, None)
        if not status:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
    else:
        pytest.fail("more steps than expected")
    assert outcomes == {tuple(old), tuple(new)}


@pytest.mark.parametrize("mode", ["a", "w"])
def test_interrupted_after_any_call(mode, tmp_path, monkeypatch):
    """After an exception at any call, the old dataset or the new one is complete."""
    data = {"v": np.array([8, 9]), "text": ["8", "9"]}
    old, new = [1], [1, 8, 9] if mode == "a" else [8, 9]
    outcomes = set()
    for step in range(200):
        path = tmp_path / f"{step}"
        append(path, None, old)
        with monkeypatch.context() as patched:
            remaining = step

            def counted(call):
                def run(*arguments, **options):
                    nonlocal remaining
                    remaining -= 1
                    result = call(*arguments, **options)
                    if remaining == -1:
                        raise KeyboardInterrupt
                    return result

                return run

            for name in STEPS:
                patched.setattr(os, name, counted(getattr(os, name)))
            with suppress(KeyboardInterrupt):
                npstream.write(path, data, mode=mode, shard_samples=1)
            if remaining >= 0:
                break
        values = contents(path, None, None)
        assert values in (old, new)
        outcomes.add(tuple(values))
        assert_sound(path, None)
    else:
        pytest.fail("more steps than expected")
    assert outcomes == {tuple(old), tuple(new)}
