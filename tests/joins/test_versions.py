"""Refreshed datasets, and runs whose processes open a dataset before and after an append."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import subprocess
import sys
import threading

import fsspec
import numpy as np
import pytest

import npstream
from npstream.errors import ColumnError, StorageError


def append(url, first, stop, options=None, **settings):
    data = {"x": np.arange(first, stop), "text": [f"row {row}" for row in range(first, stop)]}
    settings = {"mode": "a", "shard_samples": 16, **settings}
    npstream.write(url, data, storage_options=options, **settings)


@pytest.fixture(params=["directory", "memory", "s3"])
def target(request, tmp_path, monkeypatch):
    """Return the URL and the storage options of an empty directory; set the cache's directory."""
    monkeypatch.setenv("NPSTREAM_CACHE", str(tmp_path / "cache"))
    if request.param == "s3":
        fresh = request.getfixturevalue("servers")["s3"].new_directory()
        yield fresh.url, fresh.storage_options
    else:
        yield str(tmp_path / "out") if request.param == "directory" else "memory://grown", None
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "data")


def test_a_refreshed_dataset_begins_with_the_same_rows(target):
    url, options = target
    append(url, 0, 50, options)
    ds = npstream.open(url, storage_options=options)
    assert ds.refresh() is ds
    assert ds.refresh(ds.version) is ds
    append(url, 50, 70, options)
    append(url, 70, 80, options)
    grown = ds.refresh()
    assert (len(ds), len(grown)) == (50, 80)
    assert grown["x"].load().tolist() == list(range(80))
    assert ds["x"].load().tolist() == list(range(50))
    assert grown.version == npstream.open(url, storage_options=options).version != ds.version
    assert grown.refresh() is grown

    # To an older version, and from there to the newest.
    former = grown.refresh(version=ds.version)
    assert former["text"][49] == ds["text"][49] == "row 49"
    assert len(former.refresh()) == 80

    # A pickled dataset, too.
    copied = pickle.loads(pickle.dumps(ds)).refresh()
    assert copied["x"].load().tolist() == list(range(80))


def test_all_settings_stay(path):
    append(path, 0, 50)
    ds = npstream.open(
        path, columns={"x": "uint64"}, verify=True, implicit_read_limit="5MB", cache_limit="1GB"
    )
    view = ds.rename(x="number").rename(number="n")[["n"]].map(lambda sample: sample["n"])
    append(path, 50, 60)
    grown = view.refresh()
    assert grown.columns == ("n",)
    assert grown["n"].dtype == np.uint64
    assert grown[55] == 55
    assert grown._source.limit == 5 << 20
    assert grown._source.fetcher.shards.verify is True
    assert grown._source.opening == view._source.opening  # all arguments of npstream.open
    assert view.refresh(grown.version)[[59]].load()["n"].tolist() == [59]


def test_chunks_in_the_cache_serve_the_refreshed_dataset(requests, tmp_path):
    url = "memory://refreshed"
    append(url, 0, 50)
    ds = npstream.open(url, cache=tmp_path / "cache")
    ds.prefetch()
    append(url, 50, 60)
    grown = ds.refresh()
    requests.clear()
    assert grown[:50]["x"].load().tolist() == list(range(50))
    assert not [name for name, _, _ in requests if name.startswith("shard")]
    fsspec.filesystem("memory").store.clear()


def test_a_dataset_of_no_samples_is_refreshed(path):
    npstream.write(path, {"x": np.arange(0), "text": []}, columns={"x": "int64", "text": "str"})
    ds = npstream.open(path)
    append(path, 0, 3)
    assert ds.refresh()["x"].load().tolist() == [0, 1, 2]


def test_invalid_refreshes_raise(path):
    append(path, 0, 50)
    ds = npstream.open(path)
    for view in (ds[::2], ds[:49], ds[::-1], ds[np.arange(50)], ds.shuffle(0)):
        with pytest.raises(ValueError, match=r"a view of .* refresh the whole dataset, and select"):
            view.refresh()
    for several in (npstream.mix({"a": ds, "b": ds}), npstream.concat([ds, ds])):
        with pytest.raises(ValueError, match="such as a mixture: refresh each of them"):
            several.refresh()
    with pytest.raises(TypeError, match="version=7: expected the fingerprint"):
        ds.refresh(7)
    with pytest.raises(ValueError, match=r"version='\.\./x': expected the fingerprint"):
        ds.refresh("../x")
    with pytest.raises(StorageError, match="version='feed' of this dataset was not kept"):
        ds.refresh("feed")
    ds.close()
    with pytest.raises(ValueError, match="the dataset is closed"):
        ds.refresh()


def test_a_replaced_dataset_is_not_refreshed(path):
    append(path, 0, 50)
    ds = npstream.open(path)
    npstream.write(path, {"x": np.arange(90), "text": ["t"] * 90}, mode="w", shard_samples=16)
    with pytest.raises(ValueError, match="which other samples have replaced: open the dataset"):
        ds.refresh()


def test_added_columns_are_refreshed(path):
    append(path, 0, 50)
    npstream.add_columns(path, {"y": np.arange(50) * 2})
    ds = npstream.open(path)
    append(path, 50, 60)
    with pytest.raises(ColumnError, match="'y' has values for 50 of 60 samples"):
        ds.refresh()
    npstream.add_columns(path, {"y": np.arange(50, 60) * 2})
    assert ds.refresh()["y"].load().tolist() == list(range(0, 120, 2))


# Runs

RANK = """
import itertools, json, sys
import npstream

url, options, rank, version, state = json.loads(sys.argv[1])
ds = npstream.open(url, storage_options=options, version=version)
run = ds.iter(rank, 2, batch_size=4, shuffle=npstream.Shuffle("2KB", lanes=2), seed=3)
if state is not None:
    run.load_state_dict(state)
print(json.dumps([ds.version, len(run)]), flush=True)
for line in sys.stdin:  # the number of batches to read of the next epoch
    batches = iter(run)
    ids = [batch.ids.tolist() for batch in itertools.islice(batches, int(line))]
    print(json.dumps([ids, run.state_dict()]), flush=True)
"""


class Rank:
    """A process of a run, which opens the dataset when it starts."""

    def __init__(self, url, options, rank, version=None, state=None):
        arguments = json.dumps([url, options, rank, version, state])
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", RANK, arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.version, self.batches = self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        assert line, f"rank ended with {self.process.wait()}"
        return json.loads(line)

    def read(self, batches=100):
        """Return the rows of the batches of an epoch, and the state after them."""
        self.process.stdin.write(f"{batches}\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self):
        self.process.communicate()
        assert self.process.returncode == 0


@pytest.fixture
def start_rank():
    """Return a function that starts a `Rank`, which ends with the test."""
    with contextlib.ExitStack() as ranks:
        yield lambda *arguments: ranks.enter_context(contextlib.closing(Rank(*arguments)))


def read_epoch(ranks):
    """Read an epoch on each rank, to its end; return the rows of all ranks, sorted."""
    return sorted(row for rank in ranks for batch in rank.read()[0] for row in batch)


@pytest.mark.parametrize("target", ["directory", "s3"], indirect=True)
def test_ranks_that_open_around_an_append_read_one_version(target, start_rank):
    url, options = target
    append(url, 0, 80, options)
    first = start_rank(url, options, 0)
    append(url, 80, 120, options)
    # Without a version, this rank would read all 120 samples.
    second = start_rank(url, options, 1, first.version)
    assert (second.version, second.batches) == (first.version, first.batches)
    assert read_epoch([first, second]) == list(range(80))
    # The run stays on its version in later epochs.
    assert read_epoch([first, second]) == list(range(80))

    first_batches, state = first.read(3)
    second_batches, second_state = second.read(3)
    assert second_state == state
    # The state decides, whichever version the ranks of the resumed run open.
    newest = npstream.open(url, storage_options=options).version
    assert newest != first.version
    again = [
        start_rank(url, options, 0, first.version, state),
        start_rank(url, options, 1, None, state),
    ]
    assert [rank.version for rank in again] == [first.version, newest]
    rows_before = [row for batch in first_batches + second_batches for row in batch]
    assert sorted(rows_before + read_epoch(again)) == list(range(80))


def test_a_state_of_a_newer_version_names_it(target):
    url, options = target
    append(url, 0, 50, options)
    ds = npstream.open(url, storage_options=options)
    append(url, 50, 60, options)
    grown = ds.refresh()
    state = grown.iter(0, 1, batch_size=4).state_dict()
    message = rf"a newer version of .*: call refresh\(version='{grown.version}'\) of the dataset"
    with pytest.raises(ValueError, match=message):
        ds.iter(0, 1, batch_size=4).load_state_dict(state)
    append(url, 60, 70, options)
    with pytest.raises(ValueError, match=message):
        ds.iter(0, 1, batch_size=4).load_state_dict(state)
    refreshed = ds.refresh(version=grown.version)
    refreshed.iter(0, 1, batch_size=4).load_state_dict(state)


def consume(*iterables):
    """Iterate over each of these once; one that is given twice is read for two epochs."""
    for iterable in iterables:
        for _ in iterable:
            pass


def wait_for_opening_threads():
    for thread in threading.enumerate():
        if thread.name == "npstream-open":
            thread.join()


def take_warnings(caplog):
    """Return the warnings of newer versions since the last call."""
    wait_for_opening_threads()
    messages = [record.getMessage() for record in caplog.records if "newer" in record.msg]
    caplog.clear()
    return messages


def test_a_run_says_that_it_stays_on_its_version(target, caplog):
    caplog.set_level(logging.WARNING, logger="npstream")
    url, options = target
    append(url, 0, 20, options)
    ds = npstream.open(url, storage_options=options)
    run, pinned = (
        opened.iter(0, 1, batch_size=8)
        for opened in (ds, npstream.open(url, storage_options=options, version=ds.version))
    )
    others = npstream.mix({"a": ds, "b": ds}).iter(0, 1, batch_size=8)
    consume(run, run, others, pinned)
    assert take_warnings(caplog) == []
    append(url, 20, 30, options)
    newest = ds.refresh().version
    consume(run)
    (message,) = take_warnings(caplog)
    assert f"has version {newest!r} with 30 samples now. This run goes on with" in message
    assert f"version {ds.version!r} and 20 samples, which it opened" in message
    # The run warns once. A named version, a rank other than 0, and the newest version do not warn.
    rank_1, refreshed = ds.iter(1, 2, batch_size=4), ds.refresh().iter(0, 1, batch_size=8)
    consume(run, pinned, pinned, rank_1, rank_1, refreshed, refreshed)
    assert take_warnings(caplog) == []
    consume(others)
    assert len(take_warnings(caplog)) == 1
    append(url, 30, 40, options)
    consume(run)
    assert len(take_warnings(caplog)) == 1


def test_a_run_goes_on_if_its_index_is_gone(path, caplog):
    append(path, 0, 20)
    run = npstream.open(path).iter(0, 1, batch_size=8)
    assert len([*run]) == 3
    os.remove(f"{path}/index.json")
    assert len([*run]) == 3
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_loader_says_that_it_stays_on_its_version(path, caplog, torch):
    append(path, 0, 20)
    ds = npstream.open(path)
    from npstream.torch import DataLoader

    loader = DataLoader(ds.iter(0, 1, batch_size=8), num_workers=2)
    consume(loader)
    append(path, 20, 30)
    consume(loader)
    assert len(take_warnings(caplog)) == 1
