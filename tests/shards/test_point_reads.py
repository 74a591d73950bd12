"""Offsets of remote samples: read in runs of rows, kept, and not taken for another version's."""

from __future__ import annotations

import json
import multiprocessing
import pickle
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import fsspec
import golden_data as golden
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import npstream
from npstream._core import lru
from npstream.errors import FormatError, StorageError
from npstream.formats import mds
from npstream.formats import text as text_format
from npstream.shards import point_reads
from npstream.shards import remote as remote_shards

ROWS = 8

SHARDS = [5, 8, 1, 0, 9, 17, 64]
"""Rows of the shards: less than a run, just one, one row, none, one more, several."""

STARTS = np.cumsum([0, *SHARDS]).tolist()
RUNS = [(shard, row // ROWS) for shard, rows in enumerate(SHARDS) for row in range(rows)]
"""The shard and the run of every sample."""

COLUMNS = {"id": "int", "text": "str"}


@pytest.fixture(autouse=True)
def all_is_exact(monkeypatch):
    """Make runs short, and have every sample read on its own, however many are."""
    monkeypatch.setattr(point_reads, "OFFSETS_RUN_ROWS", ROWS)
    for module, name, value in (
        (point_reads, "MAX_OFFSETS_GAP", 0),
        (point_reads, "MAX_SAMPLE_GAP", 0),
        (remote_shards, "SMALL_CHUNK", 0),
        (remote_shards, "DENSE_FRACTION", 0),
        (remote_shards, "SPARSE_READS", 1 << 30),
    ):
        monkeypatch.setattr(module, name, value)


def text(sample, version=0):
    """Return a text; those of another version are as long, in all, but in reverse order."""
    shard, _ = RUNS[sample]
    like = STARTS[shard] + STARTS[shard + 1] - 1 - sample if version else sample
    return f"{sample:03} of {version}, " * (1 + (like * 7) % 23)


def write(directory, version=0):
    """Write a dataset of those shards."""
    directory.mkdir()
    entries = []
    for number, (start, rows) in enumerate(zip(STARTS, SHARDS, strict=False)):
        part = directory.with_name(f"{directory.name}-{number}")
        ids = range(start, start + rows) if rows else [0]
        npstream.write(part, [{"id": k, "text": text(k, version)} for k in ids], columns=COLUMNS)
        (entry,) = json.loads((part / "index.json").read_text())["shards"]
        body = (part / entry["raw_data"]["basename"]).read_bytes()
        if not rows:
            configuration = body[12 : int.from_bytes(body[4:8], "little")]
            words = np.array([0, 8 + len(configuration)], "<u4")
            body = words.tobytes() + configuration
        name = f"shard.{number:05}.mds"
        entry |= {"samples": rows, "raw_data": {"basename": name, "bytes": len(body), "hashes": {}}}
        entries.append(entry)
        (directory / name).write_bytes(body)
    (directory / "index.json").write_text(json.dumps({"shards": entries, "version": 2}))
    return directory


@pytest.fixture(scope="module")
def versions(tmp_path_factory):
    directory = tmp_path_factory.mktemp("versions")
    return [write(directory / str(version), version) for version in (0, 1)]


@pytest.fixture
def url(versions, upload):
    return upload(versions[0])


@pytest.fixture
def ds(url, tmp_path, requests):
    with npstream.open(url, cache=tmp_path / "cache") as opened:
        requests.clear()
        yield opened


def is_offsets(span):
    """Tell whether a request is for nothing but offsets, all of which there are."""
    name, begin, nbytes = span
    rows = SHARDS[int(name.split(".")[1])]
    return begin >= 4 and begin + nbytes <= 8 + 4 * rows


def check(ds, ids, version=0):
    batch = ds[ids].load()
    assert batch["id"].tolist() == ids
    assert list(batch["text"]) == [text(k, version) for k in ids]


# What is read.


@pytest.mark.parametrize("sample", range(STARTS[-1]))
def test_each_sample_first(sample, ds, requests):
    assert ds[sample] == {"id": sample, "text": text(sample)}
    shard, run = RUNS[sample]
    first, stop = run * ROWS, min((run + 1) * ROWS, SHARDS[shard])
    assert requests[0] == (f"shard.{shard:05}.mds", 4 + 4 * first, 4 * (stop - first + 1))
    assert len(requests) == 2


def test_a_run_is_read_once(ds, requests):
    for sample in np.random.default_rng(0).permutation(STARTS[-1]).tolist():
        seen = len(requests)
        assert ds[sample]["text"] == text(sample)
        assert not is_offsets(requests[-1])
        assert len(requests) <= seen + 2
    assert sum(map(is_offsets, requests)) == len(set(RUNS))
    assert len(requests) == len(set(RUNS)) + STARTS[-1]


def test_any_samples_in_any_order(url, tmp_path, requests):
    caches = iter(range(1000))
    some = st.lists(st.integers(0, STARTS[-1] - 1), min_size=1, max_size=40)

    @given(st.lists(some, min_size=1, max_size=6))
    def reads(chosen):
        with npstream.open(url, cache=tmp_path / f"cache{next(caches)}") as ds:
            for ids in chosen:
                requests.clear()
                cost = ds[ids].explain()
                assert requests == []
                check(ds, ids)
                assert cost.requests == len(requests)
                if not any(map(is_offsets, requests)):  # else it knows but the average
                    assert cost.nbytes == sum(nbytes for *_, nbytes in requests)

    reads()


def test_several_runs_are_read_where_they_are_little(ds, requests, monkeypatch):
    """Else only what is asked for is."""
    monkeypatch.setattr(point_reads, "OFFSETS_FRACTION", 1 << 20)
    few = [STARTS[5], STARTS[5] + 9]  # in two runs of a shard
    check(ds, few)
    asked = [span for span in requests if is_offsets(span)]
    assert [nbytes for *_, nbytes in asked] == [8, 8]
    requests.clear()
    monkeypatch.setattr(point_reads, "OFFSETS_FRACTION", 0)
    more = [STARTS[6], STARTS[6] + 9, STARTS[6] + 63]
    check(ds, more)
    asked = [span for span in requests if is_offsets(span)]
    name = "shard.00006.mds"
    assert asked == [(name, 4, 4 * 17), (name, 4 + 4 * 56, 4 * 9)]  # neighbors are merged
    requests.clear()
    check(ds, [k + 1 for k in more[:2]])
    assert len(requests) == 2


def test_how_much_is_little():
    index = Rows([100, 100], [100 * 600, 100 * 600])
    rows = np.array([3, 50, 7])
    runs, _ = point_reads.offset_runs(index, np.array([0, 0, 1]), rows)
    assert (runs.ends - runs.begins).tolist() == [36, 36, 36]
    assert runs.keys is not None
    for nbytes, is_little in ((4 * 36, True), (4 * 36 - 1, False)):
        index = Rows([100, 100], [100 * nbytes, 100 * nbytes])
        runs, _ = point_reads.offset_runs(index, np.array([0, 0, 1]), rows)
        assert (runs.keys is not None) == is_little
        # A single run is always read.
        runs, _ = point_reads.offset_runs(index, np.array([0, 0]), rows[[0, 2]])
        assert runs.first.tolist() == [0]
        assert runs.stop.tolist() == [ROWS]


class Rows:
    """What is asked of an index."""

    def __init__(self, samples, nbytes):
        self.starts = np.cumsum([0, *samples])
        self.nbytes = np.array(nbytes)


def test_no_more_is_kept_than_the_bound(url, tmp_path, requests, monkeypatch):
    two_runs = 2 * (lru.ENTRY_OVERHEAD + 4 * (ROWS + 1))
    monkeypatch.setattr(point_reads, "OFFSETS_CACHE_BYTES", two_runs)
    with npstream.open(url, cache=tmp_path / "cache") as ds:
        first = [STARTS[6] + ROWS * k for k in (0, 1, 2)]
        for sample in first:
            assert ds[sample]["id"] == sample
        requests.clear()
        for sample in reversed(first):  # the first run has left, the others are here
            assert ds[sample + 1]["id"] == sample + 1
        assert sum(map(is_offsets, requests)) == 1
        assert len(requests) == 4


@pytest.mark.parametrize("name", ["jsonl_shards", "jsonl_crlf", "csv_shards", "xsv_weird"])
def test_lines_of_text(name, upload, tmp_path, requests):
    case = golden.case(name)
    expected = golden.expected(case)
    ds = npstream.open(upload(golden.directory(case)), cache=tmp_path)
    requests.clear()
    for row in np.random.default_rng(1).permutation(len(expected)).tolist():
        golden.assert_same_sample(ds[row], expected[row], f"sample {row}")
    rows = ds.shards["samples"].tolist()
    asked = [span for span in requests if ".meta" in span[0]]
    assert len(asked) == sum(-(-count // ROWS) for count in rows)
    assert len(requests) == len(asked) + len(expected)
    assert max(begin + nbytes for _, begin, nbytes in asked) == 8 + 4 * max(rows)


def test_one_sample_of_every_kind_is_kept(ds, requests):
    """Neither duplicates nor what was read before are asked for."""
    check(ds, [70, 3, 70, 70, 3])
    requests.clear()
    check(ds, [3, 3, 70])
    assert ds[[3, 70]].explain().requests == 0
    assert requests == []


@pytest.mark.parametrize("name", ["s3", "http"])
def test_what_a_server_counts(name, servers, versions, tmp_path):
    place, proxy = servers[name].new_directory(), servers.proxy(name)
    for path in versions[0].iterdir():
        place.put(path.name, path.read_bytes())
    place, begin = place.via(proxy), STARTS[6]
    with npstream.open(place.url, cache=tmp_path, storage_options=place.storage_options) as ds:
        proxy.clear()
        assert ds[begin]["text"] == text(begin)
        run, _ = proxy.log
        assert run.range == f"bytes=4-{4 + 4 * (ROWS + 1) - 1}"
        for sample in (begin + 1, begin + ROWS - 1):
            cost, seen = ds[[sample]].explain(), len(proxy.log)
            assert ds[sample]["text"] == text(sample)
            (request,) = proxy.log[seen:]
            assert (cost.requests, cost.nbytes) == (1, request.nbytes)


def test_samples_alone_make_no_file(ds, tmp_path):
    before = npstream.cache.info(tmp_path / "cache").files
    for sample in (0, STARTS[5], STARTS[6], STARTS[6] + 1):
        assert ds[sample]["id"] == sample
    assert npstream.cache.info(tmp_path / "cache").files == before


# Who reads.


def test_threads(url, tmp_path, requests):
    with npstream.open(url, cache=tmp_path / "cache") as ds, ThreadPoolExecutor(8) as pool:
        ids = np.random.default_rng(2).permutation(np.arange(4 * STARTS[-1]) % STARTS[-1]).tolist()
        for sample, read in zip(ids, pool.map(ds.__getitem__, ids), strict=True):
            assert read == {"id": sample, "text": text(sample)}
        requests.clear()
        for sample in range(STARTS[-1]):
            assert ds[sample]["id"] == sample
        assert not any(map(is_offsets, requests))


def read_in_child(ds, ids, requests, sender):
    requests.clear()
    check(ds, ids)
    sender.send(list(map(is_offsets, requests)))


def test_a_forked_process(ds, requests):
    """It has the offsets, and locks of its own, also if a thread held one when it was forked."""
    begin, fork = STARTS[6], multiprocessing.get_context("fork")
    assert ds[begin]["id"] == begin
    receiver, sender = fork.Pipe(duplex=False)
    process = fork.Process(target=read_in_child, args=(ds, [begin, begin + 1], requests, sender))
    reader = ds._source.remote.point_reader
    with reader._samples_cache._lock, reader._offsets._cache._lock:
        process.start()
    try:
        assert receiver.poll(30), "it waits for a lock"
        assert receiver.recv() == [False]
    finally:
        process.kill()
        process.join()


def test_pickles_hold_none(ds, requests):
    assert ds[3]["id"] == 3
    again = pickle.loads(pickle.dumps(ds))
    requests.clear()
    assert again[3]["id"] == 3
    assert len(requests) == 2


# What goes wrong.


def put(url, number, body):
    """Put a shard in the place of one of a dataset's, below the same index."""
    name = f"{url.removeprefix('memory:/')}/shard.{number:05}.mds"
    fsspec.filesystem("memory").pipe_file(name, bytes(body))


def body_of(directory, number):
    return bytearray((directory / f"shard.{number:05}.mds").read_bytes())


def test_a_shard_that_was_replaced(ds, url, versions, requests):
    """Its new offsets are read, as if none had been kept."""
    begin, end = STARTS[6:]
    for sample in range(begin, end, ROWS):
        assert ds[sample]["text"] == text(sample)
    put(url, 6, body_of(versions[1], 6))
    requests.clear()
    for sample in range(begin + 1, end, ROWS):
        assert ds[sample] == {"id": sample, "text": text(sample, 1)}
    assert sum(map(is_offsets, requests)) == -(-SHARDS[6] // ROWS)
    requests.clear()
    check(ds, list(range(begin + 2, end, ROWS)), version=1)
    assert not any(map(is_offsets, requests))


@pytest.mark.parametrize("name", ["jsonl_shards", "csv_shards"])
def test_lines_that_were_replaced(name, upload, tmp_path, requests):
    case = golden.case(name)
    url, expected = upload(golden.directory(case)), golden.expected(case)
    ds = npstream.open(url, cache=tmp_path)
    stored, rows = ds._source.index.files(0), int(ds.shards["samples"][0])
    for row in (0, rows - 1):
        golden.assert_same_sample(ds[row], expected[row], f"sample {row}")
    # The other version has the same lines in reverse order.
    files, root = fsspec.filesystem("memory"), url.removeprefix("memory:/")
    data, meta = (files.cat_file(f"{root}/{f.name}") for f in (stored.data, stored.meta))
    bounds = np.frombuffer(meta[4 : 8 + 4 * rows], "<u4")
    words = bounds[0] + np.append(0, np.cumsum(np.diff(bounds)[::-1]))
    lines = [data[a:b] for a, b in pairwise(bounds)]
    files.pipe_file(f"{root}/{stored.data.name}", data[: bounds[0]] + b"".join(lines[::-1]))
    body = meta[:4] + words.astype("<u4").tobytes() + meta[8 + 4 * rows :]
    files.pipe_file(f"{root}/{stored.meta.name}", body)
    for row in range(1, rows - 1):
        golden.assert_same_sample(ds[row], expected[rows - 1 - row], f"sample {row}")


def test_a_shard_that_was_cut_short(url, versions, tmp_path, requests):
    """What is kept of it does not outlive the error."""
    last, body = STARTS[-1] - 1, body_of(versions[0], 6)
    ds = npstream.open(url, cache=tmp_path, retries=0)
    assert ds[last - 1]["id"] == last - 1
    put(url, 6, body[:-1])
    with pytest.raises(StorageError, match=r"shard\.00006\.mds"):
        ds[last]
    put(url, 6, body)
    requests.clear()
    check(ds, [last])
    assert [is_offsets(span) for span in requests] == [True, False]


@pytest.mark.parametrize("word", [0, 3, 1 << 31], ids=["zero", "low", "high"])
def test_offsets_that_are_damaged(word, ds, url, versions):
    """Nothing that is read with them is returned, nor are they kept."""
    body = body_of(versions[0], 6)
    damaged = body.copy()
    damaged[4 + 4 * 2 : 8 + 4 * 2] = word.to_bytes(4, "little")
    put(url, 6, damaged)
    first = STARTS[6]
    for row in range(4):
        with pytest.raises(FormatError, match=r"\(shard 6\): sample \d .*its offsets do not fit"):
            ds[first + row]
    put(url, 6, body)
    check(ds, list(range(first, first + 4)))


def test_offsets_that_are_exchanged(ds, url, versions):
    """Samples that lie between others' offsets are whole, but not the ones that are asked for."""
    damaged = body_of(versions[0], 6)
    offsets = np.frombuffer(damaged, "<u4", 8, 4)
    damaged[4 + 4 * 1 : 4 + 4 * 3] = offsets[3:5].tobytes()
    put(url, 6, damaged)
    with pytest.raises(FormatError, match=r"\(shard 6\): .*its offsets do not fit"):
        ds[STARTS[6] + 1]


def test_samples_that_overlap(ds, url, versions):
    body = body_of(versions[0], 6)
    damaged = body.copy()
    damaged[4 + 4 * 8 : 8 + 4 * 8] = body[4 : 4 + 4]  # the eighth begins where the first does
    put(url, 6, damaged)
    with pytest.raises(FormatError, match=r"\(shard 6\): sample 8 .*its offsets do not fit"):
        ds[[STARTS[6], STARTS[6] + 8]].load()


def test_a_sample_that_is_damaged(ds, url, versions, requests):
    """It is looked for anew once, in each read."""
    first, body = STARTS[6], body_of(versions[0], 6)
    assert ds[first]["id"] == first
    body[int.from_bytes(body[8:12], "little")] ^= 1
    put(url, 6, body)
    for _ in range(2):
        requests.clear()
        with pytest.raises(FormatError, match="do not add up"):
            ds[first + 1]
        # And whether the dataset was replaced.
        assert len([span for span in requests if span[0] != "index.json"]) <= 3


@pytest.mark.parametrize("size", [0, 3, 4, 11, 12, 14, 15])
def test_what_looks_like_a_sample(size):
    layout = mds.SampleLayout({}, 1, 8)
    sample = (2).to_bytes(4, "little") + bytes(8) + b"hi!"
    assert mds.has_consistent_sizes(layout, sample[:size]) == (size == 14)


@pytest.mark.parametrize(
    ("name", "line", "is_one"),
    [
        ("jsonl_basic", b'{"a": 1}\n', True),
        ("jsonl_basic", b'{"a": 1}', False),
        ("jsonl_basic", b'"a": 1}\n', False),
        ("jsonl_basic", b'{"a": 1}\n{"a": 2}\n', False),
        ("jsonl_crlf", b'{"a": 1}\r\n', True),
        ("jsonl_basic", b"", False),
        ("csv_basic", b"\n1,2\n", True),
        ("csv_basic", b"\n\n", True),
        ("csv_basic", b"\n", False),
        ("csv_basic", b"1,2\n", False),
        ("csv_basic", b"\n1\n2\n", False),
    ],
)
def test_what_looks_like_a_line(name, line, is_one):
    (schema, *_) = npstream.open(golden.directory(golden.case(name)))._source.index.schemas
    assert text_format.is_complete_line(schema, line) == is_one
