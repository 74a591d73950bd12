"""A spawned process maps the memory of an index; pickles for other uses contain its values."""

from __future__ import annotations

import copy
import gc
import io
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
from contextlib import suppress
from multiprocessing.context import set_spawning_popen
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest

import npstream
from npstream.formats.index import parse_index
from npstream.formats.sharing import SharedArrays, SharedBytes, SharedEntries
from npstream.orders.balance import RowCosts
from npstream.orders.valid import RowMask

SHARDS = 20_000
ROWS = 10_000


class FakePopen:
    """A stand-in for the process that multiprocessing is spawning while it pickles."""

    def __init__(self):
        self.files = []

    def duplicate_for_child(self, file):
        self.files.append(file)
        return file

    class DupFd:
        def __init__(self, file):
            self.file = file

        def detach(self):
            return os.dup(self.file)


def dumps(value) -> bytes:
    """Pickle a value as for a spawned process."""
    file = io.BytesIO()
    set_spawning_popen(FakePopen())
    try:
        ForkingPickler(file, 5).dump(value)
    finally:
        set_spawning_popen(None)
    return file.getvalue()


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Return a dataset with an index of many shards, of which only the first two exist."""
    path = tmp_path_factory.mktemp("large")
    npstream.write(path / "one", {"x": np.arange(ROWS)}, hashes=("sha1",))
    document = json.loads((path / "one" / "index.json").read_text())
    (entry,) = document["shards"]
    body = (path / "one" / entry["raw_data"]["basename"]).read_bytes()
    (path / "data").mkdir()
    document["shards"] = []
    for shard in range(SHARDS):
        raw = {**entry["raw_data"], "basename": f"shard.{shard:05}.mds"}
        document["shards"].append({**entry, "raw_data": raw})
    (path / "data" / "index.json").write_text(json.dumps(document))
    for shard in range(2):
        (path / "data" / f"shard.{shard:05}.mds").write_bytes(body)
    return npstream.open(path / "data")


def private_bytes() -> int:
    """Return the bytes of memory that this process does not share; Linux only."""
    with open("/proc/self/smaps_rollup") as file:
        fields = dict(line.split(":", 1) for line in file if ":" in line and "kB" in line)
    return sum(int(fields[name].split()[0]) << 10 for name in ("Private_Clean", "Private_Dirty"))


class Measured:
    """A value that is unpickled as a pair: itself, and the memory that this took.

    The spawned process unpickles `Start`, the value and `End` in this order. `Start` first imports
    modules, so that they do not count.
    """

    def __init__(self, value):
        self.value = value

    def __reduce__(self):
        import sys

        modules = [name for name in sys.modules if name.split(".")[0] in ("npstream", "numpy")]
        return pair_with_growth, (Start(modules), self.value, End())


class Start:
    def __init__(self, modules):
        self.modules = modules

    def __reduce__(self):
        return import_and_measure, (self.modules,)


class End:
    def __reduce__(self):
        return private_bytes, ()


def import_and_measure(modules) -> int:
    import importlib

    for module in modules:
        importlib.import_module(module)
    gc.collect()
    return private_bytes()


def pair_with_growth(before, value, after):
    return value, after - before


def read_first(measured, pipe) -> None:
    value, nbytes = measured
    if isinstance(value, npstream.Dataset):
        pipe.send((nbytes, len(value), value.version, value["x"][:3].tolist()))
    else:
        pipe.send((nbytes, *next(iter(value)).ids.tolist()))
    pipe.close()


def run_spawned(value):
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=read_first, args=(Measured(value), sender))
    process.start()
    sender.close()
    result = receiver.recv()
    process.join()
    assert process.exitcode == 0
    return result


def test_a_large_dataset_has_a_small_pickle_for_workers(large):
    ds = large
    assert len(ds) == SHARDS * ROWS
    batches = ds.iter(0, 1, batch_size=4, shuffle=True)
    assert len(dumps(ds)) < 10_000
    assert len(dumps(batches)) < 10_000
    assert len(dumps(ds[::3])) < 10_000
    assert len(pickle.dumps(ds)) > 1_000_000


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="needs Linux's /proc")
def test_a_started_worker_has_little_private_memory(large):
    ds = large
    nbytes, *facts = run_spawned(ds)
    assert facts == [SHARDS * ROWS, ds.version, [0, 1, 2]]
    assert nbytes < 10_000_000
    nbytes, *ids = run_spawned(ds.iter(0, 1, batch_size=4))
    assert ids == [0, 1, 2, 3]
    assert nbytes < 10_000_000


def spawned_copy(value):
    """Return a value as a spawned process would unpickle it."""
    body = dumps(value)
    return pickle.loads(body)


def assert_same_indexes(left, right):
    for name in ("starts", "nbytes", "schema_ids", "compressed", "guide"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name))
    assert left.fingerprint() == right.fingerprint()
    assert left.schemas == right.schemas
    for shard in (0, len(left) // 2, len(left) - 1):
        assert left.files(shard) == right.files(shard)
        assert left.name(shard) == right.name(shard)
        assert left.size_limit(shard) == right.size_limit(shard)


COPIES = {
    "spawned": spawned_copy,
    "spawned twice": lambda index: spawned_copy(spawned_copy(index)),
    "pickle": lambda index: pickle.loads(pickle.dumps(index)),
    "pickle of a spawned copy": lambda i: pickle.loads(pickle.dumps(spawned_copy(i))),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("name", COPIES)
@pytest.mark.parametrize("samples", [0, 13, 3900])
def test_copies_of_an_index_are_equal(tmp_path, samples, name):
    npstream.write(tmp_path / "x", {"x": np.arange(samples)}, shard_size="220B")
    index = parse_index((tmp_path / "x" / "index.json").read_bytes(), "index.json")
    if not samples:
        index = parse_index(b'{"version": 2, "shards": []}', "index.json")
        assert COPIES[name](index).fingerprint() == index.fingerprint()
        return
    assert_same_indexes(COPIES[name](index), index)
    renamed = index.renamed({"x": "y"})
    copied = COPIES[name](renamed)
    assert_same_indexes(copied, renamed)
    assert copied.original.schemas == index.schemas


def test_a_renamed_index_shares_the_arrays_of_the_original(large):
    index = large._source.index
    restored, original = spawned_copy((index.renamed({"x": "y"}), index))
    assert np.shares_memory(restored.starts, original.starts)
    assert restored.original is original


def test_arrays_of_several_dtypes_round_trip():
    arrays = {
        "a": np.arange(3, dtype=np.int32), "b": np.random.default_rng(0).random((700, 3)),
        "c": np.zeros(0), "d": np.array([True, False]),
    }  # fmt: skip
    shared = SharedArrays(arrays)
    for restored in (spawned_copy(shared), pickle.loads(pickle.dumps(shared))):
        for name, array in arrays.items():
            np.testing.assert_array_equal(restored[name], array)
            assert restored[name].dtype == array.dtype


def test_a_write_in_a_spawned_process_stays_there():
    shared = SharedArrays({"a": np.zeros(10_000)})
    restored = spawned_copy(shared)
    restored["a"][:] = 1
    assert not shared["a"].any()


def test_a_shared_write_is_seen_by_all():
    shared = SharedArrays({"a": np.zeros(10_000)}, shares_writes=True)
    restored = spawned_copy(shared)
    restored["a"][7] = 1
    shared["a"][8] = 2
    assert shared["a"][7:9].tolist() == restored["a"][7:9].tolist() == [1, 2]


def test_small_arrays_are_copied():
    shared = SharedArrays({"a": np.arange(3)})
    spawned_copy(shared)
    assert shared._file is None  # no memory file was made


def test_the_file_is_closed_with_the_arrays():
    shared = SharedArrays({"a": np.zeros(10_000)})
    dumps(shared)
    file = shared._file
    status = os.fstat(file)
    del shared
    gc.collect()
    with suppress(OSError):  # another thread may have opened a file, which has the same number
        assert not os.path.samestat(os.fstat(file), status)


def test_shared_entries_and_bytes_are_read_like_lists_and_bytes():
    entries = [{"samples": k, "name": "é" * k} for k in range(200)]
    shared = SharedEntries.of(entries)
    assert [*shared] == entries
    assert shared[-1] == entries[-1]
    assert shared[3:5] == entries[3:5]
    assert SharedEntries.of(shared) is shared
    with pytest.raises(IndexError):
        shared[200]
    body = os.urandom(10_000)
    for restored in (SharedBytes(body), spawned_copy(SharedBytes(body))):
        assert len(restored) == 10_000
        assert restored[5:300] == body[5:300]
        assert restored[:] == body


def test_masks_and_costs_are_shared():
    rows = 1_000_000
    mask = RowMask.pack(np.random.default_rng(0).random(rows) < 0.5)
    costs = RowCosts(np.arange(rows, dtype=np.uint16))
    for values in (mask, costs):
        assert len(dumps(values)) < 1000
        assert spawned_copy(values).identity() == values.identity()
        assert pickle.loads(pickle.dumps(values)).identity() == values.identity()


SCRIPT = """
import multiprocessing, sys
import npstream

def count(batches):
    assert len(list(batches)) == 10
    assert "torch" not in sys.modules

if __name__ == "__main__":
    batches = npstream.open("data").iter(0, 1, batch_size=100)
    process = multiprocessing.get_context("spawn").Process(target=count, args=(batches,))
    process.start()
    process.join()
    sys.exit(process.exitcode)
"""


def test_an_iteration_starts_in_a_process_without_torch(tmp_path):
    npstream.write(tmp_path / "data", {"x": np.arange(1000)})
    (tmp_path / "script.py").write_text(SCRIPT)
    subprocess.run([sys.executable, "script.py"], cwd=tmp_path, check=True, timeout=600)
