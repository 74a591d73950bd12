"""Tests of the shard table: reads are right when shards are loaded, evicted or closed."""

from __future__ import annotations

import gc
import itertools
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import golden_data as golden
import numpy as np
import pytest
from children import fork_child, wait_for_child
from dataset_files import write_shards

import npstream
from npstream._core import memory
from npstream.errors import FormatError, IntegrityError, StorageError
from npstream.reading.gather import Lookup
from npstream.shards import kernels
from npstream.shards import table as shard_table
from npstream.storage.local import LocalStore

WITH_MAPPED_FILES = [
    "mds_tokens",
    "mds_ragged",
    "mds_scalars",
    "jsonl_shards",
    "csv_shards",
    "xsv_bar",
]
WITH_COMPRESSED_FILES = ["mds_c_zstd", "mds_c_gz", "mds_c_br", "jsonl_zstd", "tsv_br"]


def open_case(name, **options):
    """Open a golden dataset without column "n", whose integers do not fit int64."""
    ds = npstream.open(golden.directory(golden.case(name)), **options)
    return ds[[column for column in ds.columns if column != "n"]]


def expected_of(name):
    samples = golden.expected(golden.case(name))
    return [{c: value for c, value in sample.items() if c != "n"} for sample in samples]


def check(name, ds):
    """Read everything in several ways, and compare with the samples that Streaming reads."""
    expected = expected_of(name)
    rows = np.random.default_rng(0).integers(0, len(expected), 2 * len(expected)).tolist()
    for i in rows:
        golden.assert_same_sample(ds[i], expected[i])
    for part in (ds, ds[rows], ds[::-3]):
        for i, sample in zip(part.load().ids.tolist(), part, strict=True):
            golden.assert_same_sample(sample, expected[i])
        for column in ds.columns:
            values, all_values = part[column].load(), ds[column].load()
            for row, i in enumerate(part.load().ids.tolist()):
                np.testing.assert_array_equal(values[row], all_values[i])


def loaded_shards(ds):
    return ds._source.fetcher.table.loaded


# Limits of maps and buffers.


def test_maps_keep_no_descriptors(tmp_path):
    n = 2000
    npstream.write(tmp_path / "data", {"x": np.arange(n)}, shard_size=1)
    assert len(npstream.open(tmp_path / "data").shards) == n
    code = f"""
        import os, resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
        import numpy as np, npstream
        ds = npstream.open({str(tmp_path / "data")!r})
        assert (ds["x"].load() == np.arange({n})).all()
        assert [sample["x"] for sample in ds[::-50]] == list(range({n}))[::-50]
        assert len(os.listdir("/dev/fd")) < 10
        assert len(ds._source.fetcher.table.loaded) == {n}
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, env=environment)


@pytest.mark.parametrize("name", WITH_MAPPED_FILES + WITH_COMPRESSED_FILES)
def test_shards_beyond_the_map_budget_are_read_by_range(monkeypatch, name):
    """Each shard is opened once, to check it, and then closed."""
    monkeypatch.setattr(memory, "map_budget", lambda: 1)
    names = []
    ranges = LocalStore.ranges

    def record_ranges(self, spans):
        spans = list(spans)
        names.extend(name for name, _, _ in spans)
        return ranges(self, spans)

    monkeypatch.setattr(LocalStore, "ranges", record_ranges)
    ds = open_case(name)
    check(name, ds)
    if name in WITH_COMPRESSED_FILES:
        assert names == []
        return
    assert loaded_shards(ds) == {}
    assert {file for file in names if ".meta" not in file} == set(ds.shards["name"])


def test_maps_are_used_up_to_the_budget(monkeypatch, tmp_path):
    ds = write_shards(tmp_path, {"x": np.arange(12), "s": list("abcdefghijkl")}, [3, 3, 3, 3])
    budgets = iter([4, *[0] * 100])  # a shard may take two maps
    monkeypatch.setattr(memory, "map_budget", lambda: next(budgets))
    batch = ds[::-1].load()
    assert sorted(loaded_shards(ds)) == [0, 1]
    assert batch["x"].tolist() == list(range(12))[::-1]
    assert "".join(batch["s"]) == "lkjihgfedcba"


@pytest.mark.parametrize("name", WITH_MAPPED_FILES)
def test_files_that_are_not_mapped_are_checked(monkeypatch, tmp_path, name):
    monkeypatch.setattr(memory, "map_budget", lambda: 0)
    for path in golden.directory(golden.case(name)).iterdir():
        content = path.read_bytes()
        if path.suffix in (".mds", ".meta"):
            content = bytes([content[0] ^ 1]) + content[1:]
        (tmp_path / path.name).write_bytes(content)
    ds = npstream.open(tmp_path)
    for read in (lambda: ds[0], lambda: ds[[0]].load()):
        with pytest.raises(FormatError, match=r"\(shard 0\): "):
            read()


@pytest.mark.parametrize("name", ["mds_tokens", "mds_ragged", "csv_shards"])
def test_a_file_that_shrinks_after_its_check_raises(monkeypatch, tmp_path, name):
    monkeypatch.setattr(memory, "map_budget", lambda: 0)
    for path in golden.directory(golden.case(name)).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    ds = npstream.open(tmp_path)
    column = ds[next(column for column in ds.columns if column != "n")]
    column[:2].load()
    path = tmp_path / str(ds.shards["name"][0])
    path.write_bytes(path.read_bytes()[:5])
    with pytest.raises(StorageError, match="the file is shorter than its index says"):
        column[:2].load()


def test_hashes_of_files_that_are_not_mapped_are_checked(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "map_budget", lambda: 0)
    for path in golden.directory(golden.case("mds_h_sha1")).iterdir():
        content = bytearray(path.read_bytes())
        if path.suffix == ".mds":
            content[-1] ^= 1
        (tmp_path / path.name).write_bytes(content)
    for _ in range(2):
        with pytest.raises(IntegrityError, match="its sha1 is"):
            npstream.open(tmp_path, verify=True)[[0]].load()


@pytest.mark.parametrize("name", WITH_COMPRESSED_FILES)
@pytest.mark.parametrize("shards", [0, 1, 2])
def test_buffers_stay_within_their_limit(monkeypatch, name, shards):
    """The oldest buffers are evicted, or samples are copied without keeping a buffer."""
    ds = open_case(name)
    largest = max(ds._source.fetcher.shards.buffer_bytes(shard) for shard in range(len(ds.shards)))
    monkeypatch.setattr(shard_table, "_buffer_limit", lambda table: shards * largest)
    check(name, ds)
    table = ds._source.fetcher.table
    assert table.buffer_bytes.keys() == table.loaded.keys()
    assert sum(table.buffer_bytes.values()) <= shards * largest
    assert {int(i) for i in np.flatnonzero(table.entries[:, 0])} == set(table.loaded)


def test_evicting_buffers_leaves_the_old_table_unchanged(monkeypatch, tmp_path):
    values = {"x": np.arange(400).repeat(100).reshape(400, 100)}
    npstream.write(tmp_path / "data", values, shard_size=40_000, compression="zstd")
    ds = npstream.open(tmp_path / "data")
    assert len(ds.shards) == 9
    monkeypatch.setattr(shard_table, "_buffer_limit", lambda table: 100_000)
    for start in range(0, 400, 7):
        assert (ds["x"][start : start + 7].load() == values["x"][start : start + 7]).all()
        assert (ds["x"][::50].load() == values["x"][::50]).all()
        assert len(loaded_shards(ds)) <= 2
    old = ds._source.fetcher.table
    entries = old.entries.copy()
    ds["x"][:100].load()
    assert (old.entries == entries).all()  # for calls that still read through it


def test_the_buffer_limit_is_a_quarter_of_the_memory_free_without_buffers(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 1000)
    table = SimpleNamespace(buffer_bytes={0: 100, 3: 500})
    assert shard_table._buffer_limit(table) == 400


def test_a_shard_that_cannot_be_opened_is_not_in_the_table(monkeypatch, tmp_path):
    npstream.write(tmp_path / "data", {"x": np.arange(4000)}, shard_size=9000, compression="zstd")
    damaged = sorted((tmp_path / "data").glob("*.zstd"))[2]
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-1])
    ds = npstream.open(tmp_path / "data")
    for _ in range(3):
        with pytest.raises(FormatError, match=damaged.name):
            ds.load()
    table = ds._source.fetcher.table
    assert table.buffer_bytes.keys() == table.loaded.keys()
    damaged.write_bytes(content)
    monkeypatch.setattr(shard_table, "_buffer_limit", lambda table: 10_000)
    assert ds["x"].load().tolist() == list(range(4000))


# Closing.


def test_closing_releases_maps_at_once():
    gc.collect()
    budget_before = memory.map_budget()
    for name in WITH_MAPPED_FILES:
        ds = open_case(name)
        list(ds)
        ds.load()
        results = [ds[0], ds[ds.columns[0]][0]], iter(ds)
        assert memory.map_budget() < budget_before
        ds.close()
        assert memory.map_budget() == budget_before
        assert results  # results and iterators that are still alive keep no maps
        ds.close()


def test_reads_of_a_closed_dataset_raise():
    ds = open_case("mds_ragged")
    views = [ds, ds[::2], ds[ds.columns[0]]]
    ds[0]
    with ds:
        pass
    for view in views:
        for read in (lambda v=view: v[0], lambda v=view: v.load(), lambda v=view: list(v)):
            with pytest.raises(
                ValueError, match=r"mds_ragged: the dataset is closed; open it again"
            ):
                read()


def test_mapped_arrays_outlive_the_dataset():
    gc.collect()
    budget_before = memory.map_budget()
    ds = open_case("mds_tokens_one")
    column = ds.columns[-1]
    expected = ds[column].load()
    mapped = np.array(ds[column], copy=False)
    ds.close()
    assert memory.map_budget() == budget_before - 1
    assert (mapped == expected).all()
    del mapped
    assert memory.map_budget() == budget_before


def until_closed(samples):
    """Yield samples until the dataset is closed."""
    samples = iter(samples)
    while True:
        try:
            sample = next(samples)
        except StopIteration:
            return
        except ValueError as error:
            if "the dataset is closed" not in str(error):
                raise
            return
        yield sample


class ClosingKernel:
    """The kernel `read`, but it closes the dataset before it runs the given steps."""

    def __init__(self, steps, ds):
        self.steps, self.ds = steps, ds

    def for_size(self, rows):
        def run(steps, *args):
            if steps == self.steps:
                self.ds.close()
                gc.collect()
            return kernels.read.compiled()(steps, *args)

        return run


STEPS = {
    "locate": kernels.LOCATE,
    "split": kernels.SPLIT,
    "locate and split": kernels.BOTH,
}


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        *itertools.product(["mds_tokens", "mds_ragged", "mds_c_zstd"], STEPS),
        ("csv_shards", "locate"),
    ],
)
def test_a_read_in_progress_keeps_its_shards(monkeypatch, name, steps):
    ds = open_case(name)
    expected = expected_of(name)
    list(ds)
    ds.load()
    # While pages are in memory, a read calls the kernel once, otherwise once for each step.
    ds._source.fetcher._pages.is_resident = steps == "locate and split"
    kernel = ClosingKernel(STEPS[steps], ds)
    fake = SimpleNamespace(**{**vars(kernels), "read": kernel})
    monkeypatch.setattr(shard_table, "kernels", fake)
    samples = list(until_closed(ds[::-1]))
    assert samples
    assert ds._source.fetcher.table is None  # the kernel closed the dataset
    for i, sample in enumerate(samples):
        golden.assert_same_sample(sample, expected[-1 - i])


@pytest.mark.parametrize("name", ["mds_tokens", "mds_ragged", "mds_c_zstd", "jsonl_shards"])
def test_a_dataset_may_be_closed_while_threads_read(name):
    expected = expected_of(name)
    n = len(expected)

    def read(ds, seed):
        rng = np.random.default_rng(seed)
        while True:
            rows = rng.integers(0, n, 20).tolist()
            samples = [*until_closed(ds[rows]), *until_closed(map(ds.__getitem__, rows))]
            for i, sample in zip(rows * 2, samples, strict=False):
                golden.assert_same_sample(sample, expected[i])
            if len(samples) < 40:
                return

    with ThreadPoolExecutor(4) as pool:
        for round_ in range(8):
            ds = open_case(name)
            readers = [pool.submit(read, ds, 10 * round_ + k) for k in range(4)]
            time.sleep(0.01 * (round_ % 4))  # closes before, during or after the first reads
            ds.close()
            for reader in readers:
                reader.result()
            assert ds._source.fetcher.table is None


def test_threads_may_load_shards_concurrently(tmp_path):
    n = 3000
    npstream.write(tmp_path / "data", {"x": np.arange(n), "y": np.arange(n)}, shard_size=600)
    ds = npstream.open(tmp_path / "data")
    start = threading.Barrier(6)

    def read(seed):
        rows = np.random.default_rng(seed).permutation(n)
        start.wait()
        for part in np.array_split(rows, 30):
            assert (ds[part].load()["x"] == part).all()
            assert ds[int(part[0])]["y"] == part[0]
        return True

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(read, range(6)))


# Processes.


def test_pickles_contain_no_maps():
    ds = open_case("mds_ragged")
    ds.load()
    copy = pickle.loads(pickle.dumps(ds))
    assert loaded_shards(copy) == {}
    assert copy._source.fetcher.shards.verify == "auto"
    check("mds_ragged", copy)
    ds.close()
    check("mds_ragged", copy)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_process_forked_while_a_thread_loads_shards_can_read():
    ds = open_case("mds_ragged")
    ds[0]
    fetcher = ds._source.fetcher
    locked, done = threading.Event(), threading.Event()

    def hold_locks():
        with fetcher._lock, fetcher._publish_lock:
            locked.set()
            done.wait()

    thread = threading.Thread(target=hold_locks)
    thread.start()
    locked.wait()
    child = fork_child(lambda: check("mds_ragged", ds))
    done.set()
    thread.join()
    assert wait_for_child(child) == 0


# Prefetching.


def test_prefetching_does_not_change_values():
    ds = open_case("mds_ragged")
    fetcher, plan = ds._source.fetcher, ds._source.plan(ds.columns)
    expected = ds.load()
    parts = np.array_split(np.arange(len(ds)), 3)
    assert not fetcher.prefetch(parts[0])  # no page was missing so far
    fetcher._pages._reads_to_prefetch = 4
    assert all(fetcher.prefetch(part) for part in parts)
    for part in parts:
        for name, column in ds._source.columns(plan, Lookup(part, part, True), {}).items():
            for i, value in zip(part, column, strict=True):
                np.testing.assert_array_equal(value, expected[name][i])


# Arrays that do not fit in memory.


@pytest.mark.parametrize(
    ("name", "column"), [("mds_tokens", "tokens"), ("mds_ragged", "text"), ("mds_ragged", "tokens")]
)
def test_columns_too_large_for_memory_are_not_allocated(monkeypatch, name, column):
    ds = open_case(name)
    monkeypatch.setattr(memory, "_UNCHECKED_BYTES", 2000)
    ds[column].load()
    monkeypatch.setattr(memory, "available_memory", lambda: 3000)
    for read in (ds[column].load, ds.load, ds[::-1].load):
        match = r"rows \([\d,]+\) of column '\w+' takes [\d,]+ bytes and 3,000"
        with pytest.raises(MemoryError, match=match):
            read()
    assert ds[:5].load().n == 5
