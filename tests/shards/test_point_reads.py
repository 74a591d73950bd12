"""Tests of point reads: offsets are read in runs, cached, and dropped if a shard was replaced."""

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

RUN_ROWS = 8
"""Rows of a run of offsets."""

SHARDS = [5, 8, 1, 0, 9, 17, 64]
"""Rows of the shards: below a run, one run, one row, none, one more than a run, several runs."""

STARTS = np.cumsum([0, *SHARDS]).tolist()
RUNS = [(shard, row // RUN_ROWS) for shard, rows in enumerate(SHARDS) for row in range(rows)]
"""The shard and the run of every sample."""

HANG = 120
"""Seconds after which a process is regarded as hanging."""

COLUMNS = {"id": "int", "text": "str"}


@pytest.fixture(autouse=True)
def point_reads_only(monkeypatch):
    """Make runs short, and have every sample read on its own."""
    monkeypatch.setattr(point_reads, "OFFSETS_RUN_ROWS", RUN_ROWS)
    for module, name, value in (
        (point_reads, "MAX_OFFSETS_GAP", 0),
        (point_reads, "MAX_SAMPLE_GAP", 0),
        (remote_shards, "SMALL_CHUNK", 0),
        (remote_shards, "DENSE_DIVISOR", 0),
        (remote_shards, "SPARSE_READS", 1 << 30),
    ):
        monkeypatch.setattr(module, name, value)


def text(sample, version=0):
    """Return the text of a sample; in version 1 the lengths of a shard's texts are reversed."""
    shard, _ = RUNS[sample]
    seed = STARTS[shard] + STARTS[shard + 1] - 1 - sample if version else sample
    return f"{sample:03} of {version}, " * (1 + (seed * 7) % 23)


def write(directory, version=0):
    """Write a dataset with the shards of `SHARDS`."""
    directory.mkdir()
    entries = []
    for number, (start, rows) in enumerate(zip(STARTS, SHARDS, strict=False)):
        part = directory.with_name(f"{directory.name}-{number}")
        ids = range(start, start + rows) if rows else [0]
        npstream.write(part, [{"id": k, "text": text(k, version)} for k in ids], columns=COLUMNS)
        (entry,) = json.loads((part / "index.json").read_text())["shards"]
        body = (part / entry["raw_data"]["basename"]).read_bytes()
        if not rows:  # leave only the configuration of the shard, which was written with a row
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
    """Return True if a request is for offsets only, within the table of a shard."""
    name, begin, nbytes = span
    rows = SHARDS[int(name.split(".")[1])]
    return begin >= 4 and begin + nbytes <= 8 + 4 * rows


def check(ds, ids, version=0):
    batch = ds[ids].load()
    assert batch["id"].tolist() == ids
    assert list(batch["text"]) == [text(k, version) for k in ids]


# Requests.


@pytest.mark.parametrize("sample", range(STARTS[-1]))
def test_a_first_read_takes_one_request_for_offsets_and_one_for_the_sample(sample, ds, requests):
    assert ds[sample] == {"id": sample, "text": text(sample)}
    shard, run = RUNS[sample]
    first, stop = run * RUN_ROWS, min((run + 1) * RUN_ROWS, SHARDS[shard])
    assert requests[0] == (f"shard.{shard:05}.mds", 4 + 4 * first, 4 * (stop - first + 1))
    assert len(requests) == 2


def test_each_run_of_offsets_is_read_once(ds, requests):
    for sample in np.random.default_rng(0).permutation(STARTS[-1]).tolist():
        start = len(requests)
        assert ds[sample]["text"] == text(sample)
        assert not is_offsets(requests[-1])
        assert len(requests) <= start + 2
    assert sum(map(is_offsets, requests)) == len(set(RUNS))
    assert len(requests) == len(set(RUNS)) + STARTS[-1]


def test_samples_in_any_order_take_the_estimated_requests(url, tmp_path, requests):
    caches = iter(range(1000))
    id_lists = st.lists(st.integers(0, STARTS[-1] - 1), min_size=1, max_size=40)

    @given(st.lists(id_lists, min_size=1, max_size=6))
    def read_all(lists):
        with npstream.open(url, cache=tmp_path / f"cache{next(caches)}") as ds:
            for ids in lists:
                requests.clear()
                cost = ds[ids].explain()
                assert requests == []
                check(ds, ids)
                assert cost.requests == len(requests)
                if not any(map(is_offsets, requests)):  # otherwise, the bytes are estimated
                    assert cost.nbytes == sum(nbytes for *_, nbytes in requests)

    read_all()


def test_several_runs_are_read_only_if_they_are_small(ds, requests, monkeypatch):
    """If they are large, only the offsets of the samples are read."""
    monkeypatch.setattr(point_reads, "OFFSETS_DIVISOR", 1 << 20)
    two_runs = [STARTS[5], STARTS[5] + 9]
    check(ds, two_runs)
    offsets = [span for span in requests if is_offsets(span)]
    assert [nbytes for *_, nbytes in offsets] == [8, 8]
    requests.clear()
    monkeypatch.setattr(point_reads, "OFFSETS_DIVISOR", 0)
    three_runs = [STARTS[6], STARTS[6] + 9, STARTS[6] + 63]
    check(ds, three_runs)
    offsets = [span for span in requests if is_offsets(span)]
    name = "shard.00006.mds"
    assert offsets == [(name, 4, 4 * 17), (name, 4 + 4 * 56, 4 * 9)]  # neighbors are merged
    requests.clear()
    check(ds, [k + 1 for k in three_runs[:2]])
    assert len(requests) == 2


def test_runs_are_small_up_to_a_quarter_of_the_bytes_of_the_samples():
    index = FakeIndex([100, 100], [100 * 600, 100 * 600])
    rows = np.array([3, 50, 7])
    runs, _ = point_reads.offset_runs(index, np.array([0, 0, 1]), rows)
    run_bytes = 4 * (RUN_ROWS + 1)
    assert (runs.ends - runs.begins).tolist() == [run_bytes] * 3
    assert runs.keys is not None
    for nbytes, is_small in ((4 * run_bytes, True), (4 * run_bytes - 1, False)):
        index = FakeIndex([100, 100], [100 * nbytes, 100 * nbytes])
        runs, _ = point_reads.offset_runs(index, np.array([0, 0, 1]), rows)
        assert (runs.keys is not None) == is_small
        # A single run is always read.
        runs, _ = point_reads.offset_runs(index, np.array([0, 0]), rows[[0, 2]])
        assert runs.first.tolist() == [0]
        assert runs.stop.tolist() == [RUN_ROWS]


class FakeIndex:
    """The attributes of an index that `offset_runs` uses."""

    def __init__(self, samples, nbytes):
        self.starts = np.cumsum([0, *samples])
        self.nbytes = np.array(nbytes)


def test_the_offsets_cache_evicts_runs_beyond_its_limit(url, tmp_path, requests, monkeypatch):
    two_runs = 2 * (lru.ENTRY_OVERHEAD + 4 * (RUN_ROWS + 1))
    monkeypatch.setattr(point_reads, "OFFSETS_CACHE_BYTES", two_runs)
    with npstream.open(url, cache=tmp_path / "cache") as ds:
        first = [STARTS[6] + RUN_ROWS * k for k in (0, 1, 2)]
        for sample in first:
            assert ds[sample]["id"] == sample
        requests.clear()
        for sample in reversed(first):  # the first run is evicted, the others are cached
            assert ds[sample + 1]["id"] == sample + 1
        assert sum(map(is_offsets, requests)) == 1
        assert len(requests) == 4


@pytest.mark.parametrize("name", ["jsonl_shards", "jsonl_crlf", "csv_shards", "xsv_weird"])
def test_lines_of_text_are_read_one_by_one(name, upload, tmp_path, requests):
    case = golden.case(name)
    expected = golden.expected(case)
    ds = npstream.open(upload(golden.directory(case)), cache=tmp_path)
    requests.clear()
    for row in np.random.default_rng(1).permutation(len(expected)).tolist():
        golden.assert_same_sample(ds[row], expected[row], f"sample {row}")
    rows = ds.shards["samples"].tolist()
    offsets = [span for span in requests if ".meta" in span[0]]
    assert len(offsets) == sum(-(-count // RUN_ROWS) for count in rows)
    assert len(requests) == len(offsets) + len(expected)
    assert max(begin + nbytes for _, begin, nbytes in offsets) == 8 + 4 * max(rows)


def test_samples_are_cached_in_memory(ds, requests):
    """Duplicates, and samples that were read before, take no request."""
    check(ds, [70, 3, 70, 70, 3])
    requests.clear()
    check(ds, [3, 3, 70])
    assert ds[[3, 70]].explain().requests == 0
    assert requests == []


@pytest.mark.parametrize("name", ["s3", "http"])
def test_servers_receive_the_estimated_requests(name, servers, versions, tmp_path):
    bucket, proxy = servers[name].new_directory(), servers.proxy(name)
    for path in versions[0].iterdir():
        bucket.put(path.name, path.read_bytes())
    bucket, begin = bucket.with_proxy(proxy), STARTS[6]
    with npstream.open(bucket.url, cache=tmp_path, storage_options=bucket.storage_options) as ds:
        proxy.clear()
        assert ds[begin]["text"] == text(begin)
        run, _ = proxy.log
        assert run.range == f"bytes=4-{4 + 4 * (RUN_ROWS + 1) - 1}"
        for sample in (begin + 1, begin + RUN_ROWS - 1):
            cost, start = ds[[sample]].explain(), len(proxy.log)
            assert ds[sample]["text"] == text(sample)
            (request,) = proxy.log[start:]
            assert (cost.requests, cost.nbytes) == (1, request.nbytes)


def test_point_reads_create_no_cached_file(ds, tmp_path):
    files_before = npstream.cache.info(tmp_path / "cache").files
    for sample in (0, STARTS[5], STARTS[6], STARTS[6] + 1):
        assert ds[sample]["id"] == sample
    assert npstream.cache.info(tmp_path / "cache").files == files_before


# Threads and processes.


def test_threads_share_the_offsets(url, tmp_path, requests):
    with npstream.open(url, cache=tmp_path / "cache") as ds, ThreadPoolExecutor(8) as pool:
        ids = np.random.default_rng(2).permutation(np.arange(4 * STARTS[-1]) % STARTS[-1]).tolist()
        for sample, values in zip(ids, pool.map(ds.__getitem__, ids), strict=True):
            assert values == {"id": sample, "text": text(sample)}
        requests.clear()
        for sample in range(STARTS[-1]):
            assert ds[sample]["id"] == sample
        assert not any(map(is_offsets, requests))


def read_in_child(ds, ids, requests, sender):
    requests.clear()
    check(ds, ids)
    sender.send(list(map(is_offsets, requests)))


def test_a_forked_process_has_the_offsets_and_new_locks(ds, requests):
    """The locks are new, because a thread may have held one during the fork."""
    begin, fork = STARTS[6], multiprocessing.get_context("fork")
    assert ds[begin]["id"] == begin
    receiver, sender = fork.Pipe(duplex=False)
    process = fork.Process(target=read_in_child, args=(ds, [begin, begin + 1], requests, sender))
    reader = ds._source.remote.point_reader
    with reader._samples_cache._lock, reader._offsets._cache._lock:
        process.start()
    try:
        assert receiver.poll(HANG), "the child waits for a lock"
        assert receiver.recv() == [False]
    finally:
        process.kill()
        process.join()


def test_pickles_contain_no_offsets(ds, requests):
    assert ds[3]["id"] == 3
    unpickled = pickle.loads(pickle.dumps(ds))
    requests.clear()
    assert unpickled[3]["id"] == 3
    assert len(requests) == 2


# Damage and replacement.


def put(url, number, body):
    """Replace a shard of a dataset, but not its index."""
    name = f"{url.removeprefix('memory:/')}/shard.{number:05}.mds"
    fsspec.filesystem("memory").pipe_file(name, bytes(body))


def body_of(directory, number):
    return bytearray((directory / f"shard.{number:05}.mds").read_bytes())


def test_offsets_of_a_replaced_shard_are_read_again(ds, url, versions, requests):
    begin, end = STARTS[6:]
    for sample in range(begin, end, RUN_ROWS):
        assert ds[sample]["text"] == text(sample)
    put(url, 6, body_of(versions[1], 6))
    requests.clear()
    for sample in range(begin + 1, end, RUN_ROWS):
        assert ds[sample] == {"id": sample, "text": text(sample, 1)}
    assert sum(map(is_offsets, requests)) == -(-SHARDS[6] // RUN_ROWS)
    requests.clear()
    check(ds, list(range(begin + 2, end, RUN_ROWS)), version=1)
    assert not any(map(is_offsets, requests))


@pytest.mark.parametrize("name", ["jsonl_shards", "csv_shards"])
def test_lines_of_a_replaced_shard_are_found(name, upload, tmp_path, requests):
    case = golden.case(name)
    url, expected = upload(golden.directory(case)), golden.expected(case)
    ds = npstream.open(url, cache=tmp_path)
    stored, rows = ds._source.index.files(0), int(ds.shards["samples"][0])
    for row in (0, rows - 1):
        golden.assert_same_sample(ds[row], expected[row], f"sample {row}")
    # The new version has the same lines in reverse order.
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


def test_cached_offsets_are_dropped_after_an_error(url, versions, tmp_path, requests):
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
def test_damaged_offsets_raise_and_are_not_cached(word, ds, url, versions):
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


def test_offsets_that_are_not_ascending_raise(ds, url, versions):
    """Without this check, a read would return the bytes of another row."""
    damaged = body_of(versions[0], 6)
    offsets = np.frombuffer(damaged, "<u4", 8, 4)
    damaged[4 + 4 * 1 : 4 + 4 * 3] = offsets[3:5].tobytes()
    put(url, 6, damaged)
    with pytest.raises(FormatError, match=r"\(shard 6\): .*its offsets do not fit"):
        ds[STARTS[6] + 1]


def test_overlapping_samples_raise(ds, url, versions):
    body = body_of(versions[0], 6)
    damaged = body.copy()
    damaged[4 + 4 * 8 : 8 + 4 * 8] = body[4 : 4 + 4]  # sample 8 begins at the first sample
    put(url, 6, damaged)
    with pytest.raises(FormatError, match=r"\(shard 6\): sample 8 .*its offsets do not fit"):
        ds[[STARTS[6], STARTS[6] + 8]].load()


def test_a_damaged_sample_is_located_again_once_for_each_read(ds, url, versions, requests):
    first, body = STARTS[6], body_of(versions[0], 6)
    assert ds[first]["id"] == first
    body[int.from_bytes(body[8:12], "little")] ^= 1
    put(url, 6, body)
    for _ in range(2):
        requests.clear()
        with pytest.raises(FormatError, match="do not add up"):
            ds[first + 1]
        # The sample, its offsets and the sample again. A read of index.json finds out if the
        # dataset was replaced.
        assert len([span for span in requests if span[0] != "index.json"]) <= 3


@pytest.mark.parametrize("size", [0, 3, 4, 11, 12, 14, 15])
def test_samples_with_consistent_sizes_are_recognized(size):
    layout = mds.SampleLayout({}, 1, 8)
    sample = (2).to_bytes(4, "little") + bytes(8) + b"hi!"
    assert mds.has_consistent_sizes(layout, sample[:size]) == (size == 14)


@pytest.mark.parametrize(
    ("name", "line", "is_complete"),
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
def test_complete_lines_are_recognized(name, line, is_complete):
    (schema, *_) = npstream.open(golden.directory(golden.case(name)))._source.index.schemas
    assert text_format.is_complete_line(schema, line) == is_complete
