"""`StreamingDataset` reads what Streaming's class reads: samples, attributes and orders."""

from __future__ import annotations

import hashlib
import importlib
import json
import pickle
import subprocess
import sys
from pathlib import Path

import golden_data as golden
import numpy as np
import pytest
from streaming_reference import arrays
from streaming_reference import golden as golden_runs
from streaming_runs import DATA

import npstream
import npstream.streaming
from npstream.iteration.counter import EpochCursor
from npstream.streaming import Stream, StreamingDataset
from npstream.streaming.base.spanner import Spanner
from npstream.streaming.epoch import begin_epoch

CASES = [c for c in golden.cases() if c["readable"] is True or c.get("unsafe")]


def assert_samples(samples, expected):
    assert len(samples) == len(expected)
    for row, (sample, tagged) in enumerate(zip(samples, expected, strict=True)):
        golden.assert_same_sample(sample, tagged, f"sample {row}")


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_golden_samples(case):
    expected = golden.expected(case)
    ds = StreamingDataset(
        local=str(golden.FORMATS / case["dir"]), split=case["split"], batch_size=3,
        allow_unsafe_types=bool(case.get("unsafe")),
    )  # fmt: skip
    n = len(expected)
    assert ds.size == ds.num_samples == len(ds) == n
    assert_samples([ds[i] for i in range(n)], expected)
    assert_samples(ds[:], expected)
    assert_samples(ds[np.arange(-n, 0)], expected)
    assert_samples(list(ds), expected)


WORK = [case for case in golden_runs("orders") if case["kind"] == "work"]
SETTINGS = (
    "epoch_size", "sampling_method", "sampling_granularity", "partition_algo",
    "num_canonical_nodes", "batch_size", "shuffle", "shuffle_algo", "shuffle_seed",
    "shuffle_block_size", "batching_method", "replication",
)  # fmt: skip


def write_index(path, sizes):
    """Write an index with the given shard sizes, without shards."""
    entry = json.loads((DATA / "index.json").read_text())["shards"][0]
    raw = {"basename": "x", "bytes": 1 << 20, "hashes": {}}
    shards = [entry | {"samples": int(size), "raw_data": raw} for size in sizes]
    path.mkdir()
    (path / "index.json").write_text(json.dumps({"version": 2, "shards": shards}))
    return str(path)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("case", WORK, ids=[case["id"] for case in WORK])
def test_golden_orders(case, tmp_path, set_rank, monkeypatch):
    """Up to three ranks, with all their workers, read the samples that Streaming's read."""
    params = case["params"]
    world, workers = params["nodes"] * params["ranks_per_node"], params["workers_per_rank"]
    weights = [
        {name: stream[name] for name in ("proportion", "repeat", "choose") if name in stream}
        for stream in params["streams"]
    ]
    streams = [
        Stream(local=write_index(tmp_path / str(number), stream["shards"]), **weights[number])
        for number, stream in enumerate(params["streams"])
    ]

    def read(rank, worker):
        set_rank(rank, world, params["ranks_per_node"])
        monkeypatch.setattr("npstream.streaming.epoch.this_worker", lambda: (worker, workers))
        arguments = {name: params[name] for name in SETTINGS if params[name] is not None}
        ds = StreamingDataset(streams=streams, **arguments)
        ds.initial_physical_nodes = params["initial_physical_nodes"]
        ds._npstream_position.move_to(EpochCursor(params["epoch"], params["sample_in_epoch"]))
        pieces = begin_epoch(ds).pieces(1000)
        return ds, np.concatenate([np.empty(0, np.int64), *pieces])

    if "raises" in case:
        with pytest.raises(ValueError, match=r"\w+"):
            read(0, 0)
        return
    resolved = case["resolved"]
    work = arrays(f"orders/{case['file']}")[f"{case['id']}.work"]
    work = work.reshape(-1, *work.shape[2:])  # one row for each rank, of all nodes
    replication = params["replication"] or 1
    for rank in range(0, world, max(1, world // 2)):
        for worker, slots in enumerate(work[rank // replication]):
            ds, numbers = read(rank, worker)
            np.testing.assert_array_equal(numbers, slots[slots >= 0])
    assert ds.epoch_size == resolved["epoch_size"]
    assert len(ds) == -(-ds.epoch_size // (world // replication))
    for name in ("num_canonical_nodes", "shuffle_block_size"):
        assert getattr(ds, name) == resolved[name]
    for stream, expected in zip(ds.streams, resolved["streams"], strict=True):
        assert stream.choose == expected["choose"]
        assert stream.proportion.hex() == expected["proportion"]
        assert stream.repeat.hex() == expected["repeat"]


def test_attributes(numbers):
    ds = StreamingDataset(local=numbers, batch_size=4)
    assert (ds.size, ds.num_samples, ds.epoch_size, len(ds)) == (100, 100, 100, 100)
    assert (ds.num_shards, ds.num_streams, ds.batch_size) == (10, 1, 4)
    assert ds.samples_per_shard.tolist() == [10] * 10
    assert ds.sample_offset_per_shard.tolist() == list(range(0, 100, 10))
    assert ds.samples_per_stream.tolist() == [100]
    assert ds.shards_per_stream.tolist() == [10]
    assert ds.stream_per_shard.tolist() == [0] * 10
    assert ds.shard_offset_per_stream.tolist() == ds.sample_offset_per_stream.tolist() == [0]
    assert [len(shard) for shard in ds.shards] == [10] * 10
    shard = ds.shards[3]
    (size,) = [p.stat().st_size for p in Path(numbers).glob("shard.00003.mds")]
    assert (shard.samples, shard.size, shard.compression) == (10, 10, None)
    assert shard.get_raw_size() == shard.get_max_size() == size
    assert shard.get_zip_size() is None
    assert shard.get_persistent_size(keep_zip=True) == size
    assert ds.streams[0].local == numbers
    assert ds.predownload == 8 * 4  # 8 batches
    assert StreamingDataset(local=numbers).predownload == 64


def test_the_shard_of_a_sample(numbers):
    ds = StreamingDataset(local=numbers)
    assert [ds.spanner[sample] for sample in (0, 9, 10, np.int64(99))] == [
        (0, 0), (0, 9), (1, 0), (9, 9),
    ]  # fmt: skip
    for sample in (-1, 100):
        with pytest.raises(IndexError, match=f"index {sample} is out of bounds for 100 samples"):
            ds.spanner[sample]
    assert Spanner(np.array([2, 0, 3]))[2] == (2, 0)


def test_files_of_shards(tmp_path):
    rows = [{"x": i, "text": "t"} for i in range(9)]
    settings = {"columns": {"x": "int", "text": "str"}, "hashes": ["sha1"], "shard_samples": 5}
    npstream.write(tmp_path / "text", rows, format="jsonl", compression="zstd", **settings)
    first, second = StreamingDataset(local=str(tmp_path / "text")).shards
    assert (first.number, second.number) == (0, 1)
    for raw, zipped in second.file_pairs:
        assert zipped.basename == f"{raw.basename}.zstd"
        content = (tmp_path / "text" / zipped.basename).read_bytes()
        assert zipped.bytes == len(content)
        assert zipped.hashes == {"sha1": hashlib.sha1(content).hexdigest()}
    assert len(second.file_pairs) == 2


def test_sizes_of_compressed_shards(tmp_path):
    npstream.write(tmp_path, {"x": np.zeros(1000)}, compression="zstd")
    (shard,) = StreamingDataset(local=str(tmp_path)).shards
    (file,) = tmp_path.glob("*.zstd")
    assert shard.compression == "zstd"
    assert shard.get_zip_size() == file.stat().st_size < shard.get_raw_size()
    assert shard.get_max_size() == shard.get_raw_size() + shard.get_zip_size()
    assert shard.get_persistent_size(keep_zip=False) == shard.get_raw_size()


def ids(samples):
    return [int(sample["id"]) for sample in samples]


@pytest.mark.parametrize(
    "index",
    [
        slice(2, 5), slice(None, None, -1), slice(-3, None), slice(90, 1000, 4), slice(5, 2),
        [3, -1, 3], [], np.array([3, -1, 3]), np.array([7], np.uint8),
    ],
)  # fmt: skip
def test_an_index_of_several_samples_returns_a_list(numbers, index):
    ds = StreamingDataset(local=numbers)
    assert ids(ds[index]) == np.arange(100)[index].astype(int).tolist()


def test_nested_indices_return_nested_lists(numbers):
    ds = StreamingDataset(local=numbers)
    nested = ds[np.array([[1, 2], [3, -1]])]
    assert [ids(row) for row in nested] == [[1, 2], [3, 99]]
    first, second = ds[[4, [5, slice(6, 8)]]]
    assert int(first["id"]) == 4
    assert int(second[0]["id"]) == 5
    assert ids(second[1]) == [6, 7]
    assert int(ds[np.int16(-1)]["id"]) == 99
    assert int(ds[True]["id"]) == 1


@pytest.mark.parametrize("index", [100, -101, [0, 100], np.array([-101]), np.int64(100)])
def test_an_index_out_of_bounds_raises(numbers, index):
    with pytest.raises(IndexError, match="out of bounds for a dataset of 100 samples"):
        StreamingDataset(local=numbers)[index]


@pytest.mark.parametrize(
    "index", ["id", None, (1, 2), 1.5, np.array([0.5]), np.array([True, False]), [np.True_]]
)
def test_an_index_of_another_type_raises(numbers, index):
    with pytest.raises(ValueError, match="an index of type"):
        StreamingDataset(local=numbers)[index]


def test_a_0d_array_is_no_index(numbers):
    with pytest.raises(TypeError, match="0-d"):
        StreamingDataset(local=numbers)[np.array(3)]


@pytest.mark.parametrize(
    "read",
    [lambda ds: ds[5], lambda ds: ds[5:6][0], lambda ds: list(ds)[5]],
    ids=["integer", "slice", "iteration"],
)
def test_samples_are_new_and_writable(numbers, read):
    ds = StreamingDataset(local=numbers, batch_size=1)
    first, original = read(ds), read(StreamingDataset(local=numbers, batch_size=1))
    first["array"][:] = -1
    first["name"] = "changed"
    again = read(StreamingDataset(local=numbers, batch_size=1))
    np.testing.assert_equal(again, original)
    np.testing.assert_equal(ds[5]["array"], [15, 16, 17])


def test_iteration_moves_on_to_the_next_epoch(numbers):
    ds = StreamingDataset(local=numbers, batch_size=4, shuffle=True)
    assert ds.next_epoch == 0
    first = ids(ds)
    assert ds.next_epoch == 1
    iterator = iter(ds)
    second = ids(next(iterator) for _ in range(3))
    assert ds.next_epoch == 2
    assert sorted(first) == list(range(100))
    assert second != first[:3]
    ds.next_epoch = 0
    assert ids(ds) == first
    assert ids(ds)[:3] == second


def test_iteration_needs_the_batch_size(numbers):
    ds = StreamingDataset(local=numbers)
    with pytest.raises(ValueError, match="batch_size=None: give StreamingDataset"):
        next(iter(ds))
    ds.batch_size = 8
    assert ds.next_epoch == 0
    assert ids(ds) == list(range(100))


def test_a_copy_goes_on_at_the_next_epoch(numbers):
    ds = StreamingDataset(local=numbers, batch_size=4, shuffle=True)
    first = ids(ds)
    copied = pickle.loads(pickle.dumps(ds))
    assert copied.next_epoch == 1
    assert ids(copied) == ids(ds) != first
    assert int(copied[3]["id"]) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either streams="),
        ({"local": "x", "streams": [Stream(local="y")]}, "either streams="),
        ({"local": "x", "sampling_method": "odd"}, "sampling_method='odd'"),
        ({"local": "x", "sampling_granularity": 0}, "sampling_granularity=0"),
        ({"local": "x", "batching_method": "odd"}, "batching_method='odd'"),
        ({"local": "x", "shuffle_algo": "odd"}, "shuffle_algo='odd'"),
        ({"local": "x", "shuffle_seed": -1}, "shuffle_seed=-1"),
        ({"local": "x", "epoch_size": -5}, "epoch_size=-5"),
        ({"local": "x", "epoch_size": "5q"}, "'5q': expected a number"),
        ({"local": "x", "cache_limit": "5q"}, "'5q': expected a number"),
        ({"local": "x", "replication": 2}, "replication=2 does not divide 1 rank"),
        ({"local": "x", "stream_name": "odd"}, "stream_name='odd'"),
    ],
)
def test_invalid_arguments_raise_before_anything_is_read(arguments, message):
    with pytest.raises(ValueError, match=message):
        StreamingDataset(**arguments)


def test_pickled_columns_need_permission(tmp_path):
    npstream.write(tmp_path, [{"x": {1}}], columns={"x": "pkl"})
    with pytest.raises(ValueError, match=r"column 'x' is pickled.*allow_unsafe_types=True"):
        StreamingDataset(local=str(tmp_path))
    assert StreamingDataset(local=str(tmp_path), allow_unsafe_types=True)[0] == {"x": {1}}


def test_an_absent_dataset_raises_file_not_found_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        StreamingDataset(local=str(tmp_path / "nothing"))


# Warnings


def test_a_small_predownload_warns(numbers):
    with pytest.warns(UserWarning, match=r"predownload < batch_size \(3 < 4\)"):
        StreamingDataset(local=numbers, batch_size=4, predownload=3)


def test_fewer_samples_than_canonical_nodes_warn(numbers):
    ds = StreamingDataset(local=numbers, batch_size=4, num_canonical_nodes=128)
    with pytest.warns(UserWarning, match="Trying to partition 100 samples over 128"):
        assert len(ids(ds)) == 128


def test_fewer_samples_than_ranks_warn(numbers, set_rank):
    set_rank(3, 128, 128)
    ds = StreamingDataset(local=numbers, batch_size=4)
    with pytest.warns(UserWarning, match="Attempting to partition 100 samples per"):
        assert ids(ds) == [3]


def test_small_blocks_warn(numbers):
    ds = StreamingDataset(local=numbers, batch_size=4, shuffle=True, shuffle_block_size=9)
    with pytest.warns(UserWarning, match="Shuffle block size was smaller than shard size"):
        assert sorted(ids(ds)) == list(range(100))


def test_writers_and_helper_functions_need_no_torch():
    program = (
        "import sys; import npstream.streaming as s; s.MDSWriter; s.base.util; s.merge_index; "
        "assert 'torch' not in sys.modules; s.StreamingDataset"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_unknown_names_raise():
    with pytest.raises(AttributeError, match="no attribute 'nothing'; it has CSVWriter"):
        npstream.streaming.nothing  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'nothing'; it has CSVWriter"):
        npstream.streaming.base.nothing  # noqa: B018


def test_modules_of_base_have_the_same_classes():
    assert npstream.streaming.base.StreamingDataset is StreamingDataset
    for name, module in [
        ("StreamingDataset", "dataset"), ("StreamingDataLoader", "dataloader"),
        ("LocalDataset", "local"), ("Array", "array"), ("MDSWriter", "format"),
    ]:  # fmt: skip
        value = getattr(importlib.import_module(f"npstream.streaming.base.{module}"), name)
        assert value is getattr(npstream.streaming, name, value)
    assert set(npstream.streaming.__all__) <= set(dir(npstream.streaming))
