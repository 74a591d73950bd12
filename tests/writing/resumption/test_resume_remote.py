"""Writes with ``resume=True`` to stores: after a kill at any request, the next call completes."""

from __future__ import annotations

import errno
import itertools
import json
import os
from functools import partial

import pytest
from children import fork_child, wait_for_child
from destinations import WRITABLE, names
from faults import FOR_EVER, reset, status
from resumed_writes import (
    CASES,
    count_steps,
    facts,
    kill_at_step,
    local_files,
    store_steps,
    write_case,
)

import npstream
from npstream.errors import StorageError
from npstream.storage.local import open_store
from npstream.writing.destination import LOCK, WORK
from npstream.writing.resumption import remote

pytestmark = pytest.mark.usefixtures("short_pauses")

AT_S3 = ["samples", "arrays in shards of 7", "map in workers, and bad samples", "parts of tables"]


def stored(url, options):
    """Return the content of each file at a URL by its name."""
    store = open_store(url, options)
    return {name: store.read(name) for name in names(url, options)}


@pytest.mark.parametrize(
    ("kind", "case"),
    [("s3", case) for case in AT_S3] + [(kind, "samples") for kind in WRITABLE if kind != "s3"],
)
def test_a_killed_upload_goes_on(kind, case, servers, tmp_path):
    rejects = tmp_path / "rejects"
    write_case(case, tmp_path / "whole", rejects, resume=False)
    whole, rejected = local_files(tmp_path / "whole"), rejects.exists() and rejects.read_bytes()

    def write(fresh):
        options = fresh.storage_options
        return write_case(case, fresh.url, rejects, resume=True, options=options)

    fresh = servers[kind].new_directory()
    steps = count_steps(lambda: write(fresh), **store_steps())
    assert stored(fresh.url, fresh.storage_options) == whole
    for first in (1, 2 + steps // 6):
        fresh = servers[kind].new_directory()
        url, options = fresh.url, fresh.storage_options
        for step in itertools.count(first, steps // 3):
            is_killed = kill_at_step(step, partial(write, fresh), **store_steps())
            stored_names = names(url, options)
            if not is_killed or ("index.json" in stored_names and not has_locks(stored_names)):
                break
            assert "index.json" not in stored_names or set(stored_names) >= set(whole)
        assert stored(url, options) == whole
        assert (rejects.exists() and rejects.read_bytes()) == rejected


def has_locks(stored_names):
    return any(name.startswith(LOCK) for name in stored_names)


def test_an_upload_that_is_killed_while_it_publishes(servers, tmp_path):
    report = write_case("samples", tmp_path / "whole", None, resume=False)
    whole = local_files(tmp_path / "whole")

    def write(fresh):
        options = fresh.storage_options
        return write_case("samples", fresh.url, None, resume=True, options=options)

    steps = count_steps(lambda: write(servers["s3"].new_directory()), **store_steps())
    published = 0
    for step in range(steps, steps - 28, -3):
        fresh = servers["s3"].new_directory()
        url, options = fresh.url, fresh.storage_options
        assert kill_at_step(step, partial(write, fresh), **store_steps())
        if has_locks(stored_names := names(url, options)):
            published += "index.json" in stored_names
            assert facts(write(fresh)) == facts(report)
        assert stored(url, options) == whole
    assert published


# Two processes


def failing_samples(count):
    """Yield the first `count` samples, and then raise."""
    make_data, _ = CASES["samples"]
    yield from itertools.islice(make_data(), count)
    raise ZeroDivisionError


def begin(url, options, count=50):
    """Write some of the samples and fail, so that whole shards stay; return the file names."""
    with pytest.raises(ZeroDivisionError) as caught:
        npstream.write(
            url, failing_samples(count), shard_size=400, resume=True, storage_options=options
        )
    assert "whole shards, which readers do not see" in str(caught.value.__notes__)
    return names(url, options)


@pytest.fixture(params=["s3", "gcs", "azure"])
def interrupted_write(request, servers):
    """Return the URL and options of an interrupted write."""
    fresh = servers[request.param].new_directory()
    begin(fresh.url, fresh.storage_options)
    return fresh.url, fresh.storage_options


def test_two_processes_that_resume_at_once(interrupted_write, tmp_path):
    url, options = interrupted_write
    write_case("samples", tmp_path / "whole", None, resume=False)
    children = []
    for number in range(2):

        def work(number=number):
            try:
                write_case("samples", url, None, resume=True, options=options)
                outcome = "won"
            except FileExistsError as error:
                outcome = str(error)
            (tmp_path / f"outcome{number}").write_text(outcome)

        children.append(fork_child(work))
    assert [wait_for_child(child) for child in children] == [0, 0]
    outcomes = [(tmp_path / f"outcome{number}").read_text() for number in range(2)]
    assert outcomes.count("won") == 1, outcomes
    assert stored(url, options) == local_files(tmp_path / "whole")


def test_a_process_that_has_published_and_removes_its_locks_is_not_resumed(
    interrupted_write, monkeypatch
):
    url, options = interrupted_write
    release, attempts = remote.ResumableUrl._release, []

    def resume_and_release(destination):
        if not attempts:
            attempts.append(url)
            assert "index.json" in names(url, options)
            with pytest.raises(FileExistsError, match="writes here since"):
                write_case("samples", url, None, resume=True, options=options)
        release(destination)

    monkeypatch.setattr(remote.ResumableUrl, "_release", resume_and_release)
    write_case("samples", url, None, resume=True, options=options)
    assert attempts == [url]


def test_a_writer_that_another_machine_took_over_does_not_publish(
    interrupted_write, tmp_path, monkeypatch
):
    """The former process still runs, but a process on another machine cannot detect that."""
    url, options = interrupted_write
    write_case("samples", tmp_path / "whole", None, resume=False)
    make_data, _ = CASES["samples"]

    def data():
        yield from itertools.islice(make_data(), 55)
        with monkeypatch.context() as patch:
            patch.setattr(remote, "_require_dead", lambda *args: None)
            with pytest.raises(ZeroDivisionError):
                npstream.write(
                    url, failing_samples(53), shard_size=400, resume=True, storage_options=options
                )
        yield from itertools.islice(make_data(), 55, None)

    with pytest.raises(FileExistsError, match="another process has taken over this write"):
        npstream.write(url, data(), shard_size=400, resume=True, storage_options=options)
    assert "index.json" not in names(url, options)
    write_case("samples", url, None, resume=True, options=options)
    assert stored(url, options) == local_files(tmp_path / "whole")


def test_a_process_that_still_writes_is_not_disturbed(interrupted_write):
    url, options = interrupted_write
    make_data, _ = CASES["samples"]

    def data():
        yield from itertools.islice(make_data(), 30)
        former_names = names(url, options)
        with pytest.raises(FileExistsError, match=f"process {os.getpid()} on .* writes here since"):
            write_case("samples", url, None, resume=True, options=options)
        with pytest.raises(FileExistsError, match="to continue that write, repeat its call"):
            write_case("samples", url, None, resume=False, options=options)
        assert names(url, options) == former_names
        yield from itertools.islice(make_data(), 30, None)

    npstream.write(url, data(), shard_size=400, resume=True, storage_options=options)
    assert not has_locks(names(url, options))


# Faults


@pytest.mark.parametrize("name", ["shard.00003.mds", f"{WORK}.00003", "index.msgpack", f"{LOCK}.1"])
def test_an_upload_that_fails_is_retried_and_then_goes_on(name, servers, tmp_path):
    write_case("samples", tmp_path / "whole", None, resume=False)
    proxy = servers.proxy("s3")
    fresh = servers["s3"].new_directory().with_proxy(proxy)
    url, options = fresh.url, fresh.storage_options
    settings = {"resume": True, "options": options, "retries": 2}
    proxy.faults = [status(503, times=FOR_EVER, method="PUT", path=name)]
    with pytest.raises(StorageError, match=r"after 3 attempts.*SlowDown") as caught:
        write_case("samples", url, None, **settings)
    count = 3 if "00003" in name else 10  # 10 are all shards
    assert f"keeps {count} whole shards" in str(caught.value.__notes__)
    assert "index.json" not in names(url, options)
    proxy.faults = [status(503, times=2, method="PUT", path="shard.0000")]
    write_case("samples", url, None, **settings)
    assert stored(url, options) == local_files(tmp_path / "whole")


@pytest.mark.parametrize("name", ["shard.00003.mds", f"{WORK}.00003", "index.json", f"{LOCK}.1"])
def test_an_upload_whose_response_is_lost_has_succeeded(name, servers, tmp_path):
    write_case("samples", tmp_path / "whole", None, resume=False)
    proxy = servers.proxy("s3")
    fresh = servers["s3"].new_directory().with_proxy(proxy)
    url, options = fresh.url, fresh.storage_options
    proxy.faults = [reset(at=0, times=1, method="PUT", path=name)]
    write_case("samples", url, None, resume=True, options=options)
    assert stored(url, options) == local_files(tmp_path / "whole")


# Refusals


def test_a_write_that_cannot_resume_is_refused(servers):
    fresh = servers["s3"].new_directory()
    url, options = fresh.url, fresh.storage_options
    open_store(url, options).put(LOCK, json.dumps({"host": "h", "process": 1}).encode())
    with pytest.raises(FileExistsError, match="a dataset, or a part of one, is here"):
        write_case("samples", url, None, resume=True, options=options)
    open_store(url, options).remove(LOCK)
    write_case("samples", url, None, resume=False, options=options)
    former_files = stored(url, options)
    with pytest.raises(FileExistsError, match="a dataset, or a part of one, is here"):
        write_case("samples", url, None, resume=True, options=options)
    assert stored(url, options) == former_files


def test_a_store_without_exclusive_creation(memory, create):
    create(None)
    with pytest.raises(
        StorageError, match="resume=True needs a store that creates a file"
    ) as error:
        write_case("samples", memory, None, resume=True)
    assert error.value.errno == errno.EOPNOTSUPP
    assert names(memory) == []


def test_shards_after_a_changed_one_are_written_again(memory, tmp_path):
    write_case("samples", tmp_path / "whole", None, resume=False)
    stored_names = begin(memory, None)
    assert f"{WORK}.00003" in stored_names
    open_store(memory).put("shard.00002.mds", b"short")
    write_case("samples", memory, None, resume=True)
    assert stored(memory, None) == local_files(tmp_path / "whole")


def test_a_failed_first_shard_leaves_nothing(memory, create):
    def fail(create, *args):
        if "shard" in str(args):
            raise PermissionError(errno.EACCES, "no")
        return create(*args)

    create(fail)
    with pytest.raises(StorageError):
        write_case("samples", memory, None, resume=True)
    assert names(memory) == []
