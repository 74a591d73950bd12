"""Appends and replacements with ``resume=True``: a killed one goes on, and publishes once."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import shutil
import signal
from functools import partial

import numpy as np
import pytest
from children import fork_child, wait_for_child
from destinations import names
from growing import assert_sound
from resumed_writes import (
    STORE_CALLS,
    SYSTEM_CALLS,
    count_steps,
    facts,
    kill_at_step,
    local_files,
    write_case,
)

import npstream
from npstream.errors import StorageError
from npstream.formats.index import INDEX
from npstream.formats.statistics import encode_statistics
from npstream.storage import remote as remote_module
from npstream.storage.local import LocalStore, open_store
from npstream.storage.remote import RemoteStore
from npstream.writing.destination import LOCK, WORK
from npstream.writing.resumption import remote
from npstream.writing.resumption.revisions import _FORMER as FORMER
from npstream.writing.resumption.revisions import ResumableRemoteRevision
from npstream.writing.revisions.base import Base

pytestmark = pytest.mark.usefixtures("short_pauses")

LOCAL_STEPS = {"owner": os, "names": (*SYSTEM_CALLS, "replace")}
REMOTE_STEPS = {"owner": RemoteStore, "names": (*STORE_CALLS, "replace", "remove")}

LOCAL_CASES = [
    "samples",
    "compressed samples",
    "tuples",
    "bad samples, encoded by workers",
    "arrays in shards of 7",
    "a filled frame",
    "a stream",
    "a view of a dataset",
    "map in workers, and bad samples",
    "parts of tables",
    "lines of JSON",
]

REMOTE_CASES = [
    ("s3", "a", "map in workers, and bad samples", 0.3),
    ("s3", "w", "arrays", 0.9),
    ("gcs", "a", "samples", 0.95),
    ("azure", "w", "samples", 0.4),
]
"""The kind of store, the mode, the case, and the fraction of the steps before the first kill."""


def normalize(text):
    """Replace the part of file names that is unique to a write."""
    return re.sub(r"\b[0-9a-f]{16}\.(\d\.)*", "<id>.", text)


def contents(url, options=None):
    """Return the parts of a dataset that interruptions of its writes must not change."""
    assert_sound(url, options)
    store = open_store(url, options)
    base = Base.read(store)
    with npstream.open(url, storage_options=options) as ds:
        values = [{name: np.asarray(v).tolist() for name, v in row.items()} for row in ds]
    index = json.loads(normalize(base.tag.content.decode()))
    statistics = base.sidecar and encode_statistics(base.sidecar.statistics())
    files = sorted(normalize(name) for name in names(url, options))
    return files, index, values, statistics


def index_of(url, options=None):
    """Return the bytes of the index of a dataset."""
    return open_store(url, options).read(INDEX)


def shards_of_index(url, options=None):
    return json.loads(index_of(url, options))["shards"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NPSTREAM_CACHE", str(tmp_path / "cache"))


# Kills


@pytest.mark.parametrize("mode", ["a", "w"])
@pytest.mark.parametrize("case", LOCAL_CASES)
def test_a_killed_write_goes_on(case, mode, tmp_path):
    rejects, path = tmp_path / "rejects", tmp_path / "ds"
    write_case(case, tmp_path / "base", rejects, resume=False)
    shutil.copytree(tmp_path / "base", tmp_path / "whole")
    report = write_case(case, tmp_path / "whole", rejects, resume=False, mode=mode)
    whole, rejected = contents(tmp_path / "whole"), rejects.exists() and rejects.read_bytes()
    assert report.shards > 3

    def write():
        return write_case(case, path, rejects, resume=True, mode=mode)

    shutil.copytree(tmp_path / "base", path)
    steps = count_steps(write, **LOCAL_STEPS)
    assert contents(path) == whole
    former = index_of(tmp_path / "base")
    # Each case begins its kills at another step. Its second run is killed while it publishes.
    number = LOCAL_CASES.index(case) * 2 + (mode == "w")
    for first in (1 + number % (steps // 3), steps - number):
        shutil.rmtree(path)
        shutil.copytree(tmp_path / "base", path)
        for step in itertools.count(first, steps // 3):
            is_killed = kill_at_step(step, write, **LOCAL_STEPS)
            is_published = index_of(path) != former
            if is_published and WORK in local_files(path):
                assert facts(write()) == facts(report)
                break
            if not is_killed or is_published:
                break
            assert len(npstream.open(path)) == len(npstream.open(tmp_path / "base"))
        assert contents(path) == whole
        assert (rejects.exists() and rejects.read_bytes()) == rejected


@pytest.mark.parametrize(("kind", "mode", "case", "fraction"), REMOTE_CASES)
def test_a_killed_upload_goes_on(kind, mode, case, fraction, servers, tmp_path):
    rejects = tmp_path / "rejects"
    write_case(case, tmp_path / "whole", rejects, resume=False)
    report = write_case(case, tmp_path / "whole", rejects, resume=False, mode=mode)
    whole, rejected = contents(tmp_path / "whole"), rejects.exists() and rejects.read_bytes()

    def begin():
        fresh = servers[kind].new_directory()
        url, options = fresh.url, fresh.storage_options
        write_case(case, url, rejects, resume=False, options=options)
        return url, options

    def write(url, options):
        return write_case(case, url, rejects, resume=True, options=options, mode=mode)

    place = begin()
    steps = count_steps(partial(write, *place), **REMOTE_STEPS)
    assert contents(*place) == whole
    place = begin()
    former = index_of(*place)
    for step in itertools.count(int(steps * fraction), steps // 3):
        is_killed = kill_at_step(step, partial(write, *place), **REMOTE_STEPS)
        is_published = index_of(*place) != former
        if is_published and any(name.startswith(LOCK) for name in names(*place)):
            assert facts(write(*place)) == facts(report)
            break
        if not is_killed or is_published:
            break
    assert contents(*place) == whole
    assert (rejects.exists() and rejects.read_bytes()) == rejected


# Interruptions


def numbers(stop=None, count=200):
    """Yield samples, and raise before number `stop`."""
    for number in range(count):
        if number == stop:
            raise ZeroDivisionError
        yield {"x": number, "text": "t" * (number % 5)}


def write(url, data, mode="a", **settings):
    return npstream.write(
        url, data, **{"shard_samples": 8, "resume": True, "mode": mode, **settings}
    )


def begin(url, stop=150, **settings):
    """Write a dataset of 50 samples, and then an interrupted append or replacement."""
    options = settings.get("storage_options")
    npstream.write(url, numbers(count=50), shard_samples=8, storage_options=options)
    with pytest.raises(ZeroDivisionError) as caught:
        write(url, numbers(stop), **settings)
    assert re.search(r"keeps \d+ whole shards, which readers", "\n".join(caught.value.__notes__))
    assert values(url, options) == list(range(50))


def values(url, options=None):
    assert_sound(url, options)
    with npstream.open(url, storage_options=options) as ds:
        return ds["x"].load().tolist()


@pytest.fixture(params=["directory", "memory"])
def place(request, tmp_path):
    """Return the URL and the options of an empty directory."""
    is_local = request.param == "directory"
    return str(tmp_path / "ds") if is_local else request.getfixturevalue("memory"), None


@pytest.fixture
def s3(servers):
    """Return the URL and the options of an empty directory at a server of S3."""
    fresh = servers["s3"].new_directory()
    return fresh.url, fresh.storage_options


@pytest.mark.parametrize("mode", ["a", "w"])
def test_an_exception_keeps_the_whole_shards(mode, place):
    url, options = place
    begin(url, mode=mode, storage_options=options)
    published = {entry["raw_data"]["basename"] for entry in shards_of_index(url, options)}
    kept = {name for name in names(url, options) if name.startswith("shard.")} - published
    assert kept
    report = write(url, numbers(), mode, storage_options=options)
    assert report.samples == 200
    assert values(url, options) == [*(range(50) if mode == "a" else ()), *range(200)]
    now = set(names(url, options))
    assert kept <= now
    assert not [name for name in now if name.startswith((WORK, LOCK))]
    # The next append is a new one.
    write(url, numbers(count=3), storage_options=options)
    assert values(url, options)[-4:] == [199, 0, 1, 2]


@pytest.mark.parametrize("mode", ["a", "w"])
def test_a_failed_first_write_goes_on(mode, place):
    url, options = place
    with pytest.raises(ZeroDivisionError):
        write(url, numbers(150), mode, storage_options=options)
    assert INDEX not in names(url, options)
    write(url, numbers(), mode, storage_options=options)
    assert values(url, options) == list(range(200))


def test_nothing_stays_before_the_first_shard(place):
    url, options = place
    npstream.write(url, numbers(count=50), storage_options=options)
    former = names(url, options)
    for mode in ("a", "w"):
        with pytest.raises(ZeroDivisionError):
            write(url, numbers(3), mode, storage_options=options)
        assert names(url, options) == former
    assert write(url, iter(()), storage_options=options).samples == 0
    assert names(url, options) == former
    write(url, iter(()), "w", columns={"y": "int"}, storage_options=options)
    assert npstream.open(url, storage_options=options).columns == ("y",)
    assert not [name for name in names(url, options) if name.startswith((WORK, LOCK))]


def test_an_interrupted_append_goes_on_after_another_append(place):
    """Appends without `resume` do not wait for an interrupted one."""
    url, options = place
    begin(url, storage_options=options)
    npstream.write(url, numbers(count=7), mode="a", compression="zstd", storage_options=options)
    write(url, numbers(), storage_options=options)
    assert values(url, options) == [*range(50), *range(7), *range(200)]
    assert shards_of_index(url, options)[-1]["compression"] is None


def test_an_append_to_a_dataset_that_was_replaced_meanwhile(place):
    url, options = place
    begin(url, storage_options=options)
    npstream.write(url, {"x": [7], "text": [""]}, mode="w", storage_options=options)
    npstream.write(url, {"other": [7]}, mode="w", storage_options=options)
    with pytest.raises(ValueError, match=r"column 'other' of .* is 'int', and what is appended"):
        write(url, numbers(), storage_options=options)
    npstream.write(url, {"x": [8], "text": [""]}, mode="w", storage_options=options)
    write(url, numbers(), storage_options=options)
    assert values(url, options) == [8, *range(200)]


def test_a_dataset_without_a_sidecar_grows_without_one(place):
    url, options = place
    npstream.write(url, numbers(count=50), sidecar=False, storage_options=options)
    with pytest.raises(ZeroDivisionError):
        write(url, numbers(150), storage_options=options)
    write(url, numbers(), storage_options=options)
    assert values(url, options) == [*range(50), *range(200)]
    assert not [name for name in names(url, options) if name.endswith(".msgpack")]


def test_a_writer_goes_on(place):
    url, options = place
    settings = {"mode": "a", "shard_samples": 10, "resume": True, "storage_options": options}
    rows = list(numbers())
    npstream.write(url, iter(rows[:50]), storage_options=options)

    def append(stop):
        with npstream.Writer(url, **settings) as writer:
            for row in rows[writer.input_samples : stop]:
                writer.write(row)
            if stop < 200:
                raise ZeroDivisionError
        return writer.input_samples

    for stop in (95, 120):
        with pytest.raises(ZeroDivisionError):
            append(stop)
    assert 0 < append(200) <= 120  # shards that wait for a thread are dropped
    assert values(url, options) == [*range(50), *range(200)]


# Refusals


def test_other_settings_are_refused(place):
    url, options = place
    begin(url, storage_options=options)
    former = names(url, options)
    for mode, settings, words in [
        ("a", {"shard_samples": 9}, "shard_samples: 8 then, 9 now"),
        ("a", {"compression": "zstd"}, "compression: none then, 'zstd' now"),
        ("a", {"sidecar": False}, "sidecar: True then, False now"),
        ("w", {}, "mode: 'a' then, 'w' now"),
    ]:
        with pytest.raises(ValueError, match=words) as caught:
            write(url, numbers(), mode, storage_options=options, **settings)
        # The error names the files that are to be removed to give the append up.
        kinds = re.search(r"remove the files of the interrupted write \((.*)\)$", str(caught.value))
        assert kinds
    shards = [name for name in names(url, options) if name.startswith("shard.")]
    assert shards == [name for name in former if name.startswith("shard.")]
    patterns = [pattern.strip("*") for pattern in re.split(", | and ", kinds[1])]
    store = open_store(url, options)
    for name in names(url, options):
        if any(pattern in name for pattern in patterns):
            store.remove(name)
    assert values(url, options) == list(range(50))
    assert not [name for name in names(url, options) if name.startswith((WORK, LOCK))]
    write(url, numbers(), "w", storage_options=options)
    assert values(url, options) == list(range(200))


def test_a_write_of_another_mode_is_refused(place):
    url, options = place
    with pytest.raises(ZeroDivisionError):
        write(url, numbers(150), "x", storage_options=options)
    former = [name for name in names(url, options) if name.startswith("shard.")]
    with pytest.raises(ValueError, match="mode: 'x' then, 'a' now"):
        write(url, numbers(), "a", storage_options=options)
    assert [name for name in names(url, options) if name.startswith("shard.")] == former
    write(url, numbers(), "x", storage_options=options)
    assert values(url, options) == list(range(200))
    with pytest.raises(ZeroDivisionError):
        write(url, numbers(150), "a", storage_options=options)
    with pytest.raises(FileExistsError, match="a dataset, or a part of one, is here"):
        write(url, numbers(), "x", storage_options=options)


def test_a_store_without_exclusive_creation(memory, create):
    npstream.write(memory, numbers(count=50))
    former = names(memory)
    create(None)
    for mode in ("a", "w"):
        with pytest.raises(StorageError, match="resume=True needs a store that creates") as error:
            write(memory, numbers(), mode)
        assert error.value.errno == errno.EOPNOTSUPP
    assert names(memory) == former


def test_a_store_without_conditional_replacement(memory, replace_in_memory):
    npstream.write(memory, numbers(count=50))
    replace_in_memory(None)
    for mode in ("a", "w"):
        with pytest.raises(StorageError, match="pass exclusive=True if no other process") as error:
            write(memory, numbers(), mode)
        assert error.value.errno == errno.EOPNOTSUPP
    with pytest.raises(ZeroDivisionError):
        write(memory, numbers(150), exclusive=True)
    write(memory, numbers(), exclusive=True)
    assert values(memory) == [*range(50), *range(200)]


# Two processes


@pytest.mark.parametrize("kind", ["directory", "s3"])
def test_two_processes_that_resume_at_once(kind, tmp_path, request):
    url, options = str(tmp_path / "ds"), None
    if kind == "s3":
        url, options = request.getfixturevalue("s3")
    begin(url, storage_options=options)
    children = []
    for number in range(2):

        def work(number=number):
            try:
                write(url, numbers(), storage_options=options)
                outcome = "won"
            except FileExistsError as error:
                outcome = str(error)
            (tmp_path / f"outcome{number}").write_text(outcome)

        children.append(fork_child(work))
    assert [wait_for_child(child) for child in children] == [0, 0]
    outcomes = [(tmp_path / f"outcome{number}").read_text() for number in range(2)]
    # One process may begin after the other one has published. If the records are still there, it
    # finds its samples in the dataset. Otherwise it appends again.
    content = values(url, options)
    count = (len(content) - 50) // 200
    assert 1 <= count <= outcomes.count("won"), outcomes
    assert content == [*range(50), *list(range(200)) * count]


def leave_as_if_killed(destination):
    """Replace `finish`: the locks and records stay, and their process seems to have ended."""
    remote._active_writers.discard(destination._writer_id)


def test_the_record_of_the_replaced_index_is_removed_while_another_process_resumes(
    memory, monkeypatch
):
    begin(memory)
    with monkeypatch.context() as patch:
        patch.setattr(remote.ResumableUrl, "finish", leave_as_if_killed)
        write(memory, numbers())
    assert FORMER in names(memory)
    read = RemoteStore.read

    def remove_first(self, name, *args):
        if name == FORMER:
            self.remove(name)
        return read(self, name, *args)

    monkeypatch.setattr(RemoteStore, "read", remove_first)
    assert write(memory, numbers()).samples == 200
    assert values(memory) == [*range(50), *range(200)]
    assert not [name for name in names(memory) if name.startswith((WORK, LOCK))]


def test_the_index_is_replaced_while_another_process_resumes(memory, monkeypatch):
    begin(memory)
    with monkeypatch.context() as patch:
        patch.setattr(remote.ResumableUrl, "finish", leave_as_if_killed)
        write(memory, numbers())
    longer = open_store(memory).read(INDEX).replace(b'"shards"', b' "shards"')
    size_of = remote_module._size_of

    def replace_after_the_size(info):
        monkeypatch.setattr(remote_module, "_size_of", size_of)
        size = size_of(info)
        open_store(memory).put(INDEX, longer)
        return size

    revision = ResumableRemoteRevision(open_store(memory), "a", exclusive=False)
    revision.prepare()
    monkeypatch.setattr(remote_module, "_size_of", replace_after_the_size)
    assert revision._find_published() == longer


def test_a_process_that_still_writes_is_not_disturbed(place):
    url, options = place
    npstream.write(url, numbers(count=50), storage_options=options)

    def data():
        yield from itertools.islice(numbers(), 120)
        for mode in ("a", "w"):
            with pytest.raises(FileExistsError, match="writes here"):
                write(url, numbers(), mode, storage_options=options)
        npstream.write(url, numbers(count=5), mode="a", storage_options=options)
        yield from itertools.islice(numbers(), 120, None)

    write(url, data(), storage_options=options)
    assert values(url, options) == [*range(50), *range(5), *range(200)]


def test_a_former_owner_publishes_at_the_same_time(s3, monkeypatch):
    """Both publish the shards of one append: the one that is second finds them in the index."""
    url, options = s3
    begin(url, storage_options=options)
    monkeypatch.setattr(remote, "_require_dead", lambda *args: None)
    replace = RemoteStore.replace

    def replace_after_another_owner(self, name, *args):
        if name == INDEX:
            monkeypatch.setattr(RemoteStore, "replace", replace)
            write(url, numbers(), storage_options=options)
            npstream.write(url, numbers(count=2), mode="a", storage_options=options)
        replace(self, name, *args)

    monkeypatch.setattr(RemoteStore, "replace", replace_after_another_owner)
    report = write(url, numbers(), storage_options=options)
    assert report.samples == 200
    assert values(url, options) == [*range(50), *range(200), 0, 1]
    assert not [name for name in names(url, options) if name.startswith((WORK, LOCK))]


@pytest.mark.parametrize("number", [0, 3])
def test_another_process_finishes_while_the_records_are_read(number, memory, monkeypatch):
    begin(memory)
    monkeypatch.setattr(remote, "_require_dead", lambda *args: None)
    ranges = RemoteStore.ranges

    def finish_first(self, spans):
        spans = list(spans)
        if spans[0][0] == f"{WORK}.{number:05}":
            monkeypatch.setattr(RemoteStore, "ranges", ranges)
            write(memory, numbers())
        return ranges(self, spans)

    monkeypatch.setattr(remote, "_READ_BATCH", 3)
    monkeypatch.setattr(RemoteStore, "ranges", finish_first)
    with pytest.raises(FileExistsError, match="taken over this write, and finished it"):
        write(memory, numbers())
    assert values(memory) == [*range(50), *range(200)]
    assert not [name for name in names(memory) if name.startswith((WORK, LOCK))]


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_former_owner_publishes_after_the_end(is_replaced, s3, monkeypatch):
    url, options = s3
    begin(url, storage_options=options)
    monkeypatch.setattr(remote, "_require_dead", lambda *args: None)

    def data():
        yield from numbers()
        write(url, numbers(), storage_options=options)
        if is_replaced:
            npstream.write(url, numbers(count=3), mode="w", storage_options=options)

    if is_replaced:
        with pytest.raises(FileExistsError, match="taken over this write, and finished it"):
            write(url, data(), storage_options=options)
        expected = [0, 1, 2]
    else:
        assert write(url, data(), storage_options=options).samples == 200
        expected = [*range(50), *range(200)]
    assert values(url, options) == expected
    assert not [name for name in names(url, options) if name.startswith((WORK, LOCK))]


def test_a_write_that_was_published_and_replaced_is_not_published_again(place, monkeypatch):
    """The write is interrupted after it has published. Then another one replaces the dataset."""
    url, options = place
    begin(url, storage_options=options)
    kind = LocalStore if options is None and not url.startswith("memory") else RemoteStore
    replace = kind.replace

    def replace_and_die(self, name, *args):
        replace(self, name, *args)
        if name == INDEX:
            raise KeyboardInterrupt

    monkeypatch.setattr(kind, "replace", replace_and_die)
    with pytest.raises(KeyboardInterrupt):
        write(url, numbers(), storage_options=options)
    monkeypatch.setattr(kind, "replace", replace)
    assert values(url, options) == [*range(50), *range(200)]
    npstream.write(url, numbers(count=3), mode="w", storage_options=options)
    with pytest.raises(FileExistsError, match=r"was replaced when an interrupted write had stored"):
        write(url, numbers(), storage_options=options)
    assert values(url, options) == [0, 1, 2]


def test_a_killed_replacement_removes_the_former_files(tmp_path):
    """The process is killed between the publication and the removal of the former files."""
    path = tmp_path / "ds"
    npstream.write(path, numbers(count=50), shard_size=400)
    former = set(local_files(path)) - {INDEX}

    def work():
        unlink = os.unlink

        def die(name, *args, **kwargs):
            if "shard." in os.fspath(name) and not os.path.basename(name).startswith("."):
                os.kill(os.getpid(), signal.SIGKILL)
            return unlink(name, *args, **kwargs)

        os.unlink = die
        write(path, numbers(), "w")

    assert wait_for_child(fork_child(work)) == signal.SIGKILL
    assert former & set(local_files(path))
    assert write(path, numbers(), "w").samples == 200
    assert not former & set(local_files(path))
    assert values(path) == list(range(200))


def test_an_append_by_convert_goes_on(tmp_path):
    for number in range(4):
        content = "".join(f'{{"x": {k}}}\n' for k in range(number * 50, number * 50 + 50))
        (tmp_path / f"{number}.jsonl").write_text(content)
    settings = {"mode": "a", "resume": True, "shard_samples": 20}
    npstream.write(tmp_path / "ds", {"x": np.arange(3)})

    def killed():
        def die(sample):
            if sample["x"] == 130:
                os.kill(os.getpid(), signal.SIGKILL)
            return sample

        npstream.convert(tmp_path / "*.jsonl", tmp_path / "ds", map=die, **settings)

    assert wait_for_child(fork_child(killed)) == signal.SIGKILL
    npstream.convert(tmp_path / "*.jsonl", tmp_path / "ds", map=lambda s: s, **settings)
    assert values(tmp_path / "ds") == [*range(3), *range(200)]
