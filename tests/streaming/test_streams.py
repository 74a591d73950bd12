"""Streams of several datasets: their weights, their columns, and errors."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

import npstream
from npstream.streaming import Stream, StreamingDataset
from npstream.streaming.base.stream import StreamsRegistry, streams_registry


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a dataset, and returns its directory."""

    def write_columns(folder, **columns):
        npstream.write(tmp_path / folder, columns, shard_samples=4)
        return str(tmp_path / folder)

    return write_columns


@pytest.fixture
def mixed(write):
    """Return the directories of three streams, which differ in their columns and encodings."""
    return [
        write("a", x=np.arange(10), name=[f"a{i}" for i in range(10)]),
        write("b", x=np.arange(10, 16, dtype=np.int32)),
        write("c", text=["c0", "c1", "c2", "c3", "c4"], array=np.ones((5, 2))),
    ]


def expected(paths):
    return [npstream.open(path)[i] for path in paths for i in range(len(npstream.open(path)))]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_streams_may_have_different_columns(mixed, count):
    paths = mixed[:count]
    ds = StreamingDataset(streams=[Stream(local=path) for path in paths], batch_size=4)
    want = expected(paths)
    n = len(want)
    assert ds.size == n
    np.testing.assert_equal([ds[i] for i in range(n)], want)
    np.testing.assert_equal(ds[::-1], want[::-1])
    np.testing.assert_equal(list(ds), want)
    assert [list(sample) for sample in ds] == [sorted(sample) for sample in want]
    assert [list(ds[i]) for i in range(n)] == [sorted(sample) for sample in want]
    order = np.random.default_rng(0).integers(0, n, 50)
    np.testing.assert_equal(ds[order], [want[i] for i in order])
    np.testing.assert_equal(pickle.loads(pickle.dumps(ds))[-1], want[-1])


def test_streams_with_the_same_columns_are_read_together(write):
    paths = [write(name, x=np.arange(10), y=np.arange(10.0)) for name in "ab"]
    ds = StreamingDataset(streams=[Stream(local=path) for path in paths], batch_size=4)
    assert ds._npstream_samples._has_same_columns
    np.testing.assert_equal(list(ds), expected(paths))
    assert ds.stream_per_shard.tolist() == [0, 0, 0, 1, 1, 1]
    assert ds.shard_offset_per_stream.tolist() == [0, 3]
    assert ds.sample_offset_per_stream.tolist() == [0, 10]


def test_shuffled_streams_with_different_columns(mixed):
    streams = [Stream(local=mixed[0], proportion=1), Stream(local=mixed[2], proportion=3)]
    ds = StreamingDataset(streams=streams, batch_size=4, shuffle=True, epoch_size="1k")
    samples = list(ds)
    assert len(samples) == len(ds) == 1000
    assert sum("text" in sample for sample in samples) == 750
    assert [stream.choose for stream in streams] == [250, 750]
    assert [stream.proportion for stream in streams] == [0.25, 0.75]
    assert [stream.repeat for stream in streams] == [25.0, 150.0]


def test_streams_can_be_used_again(mixed):
    """The weights that the user gave still apply, although a dataset sets all three weights."""
    streams = [Stream(local=mixed[0], repeat=2), Stream(local=mixed[2])]
    first = StreamingDataset(streams=streams, batch_size=4)
    second = StreamingDataset(streams=streams[:1], batch_size=4)
    assert (first.epoch_size, second.epoch_size) == (25, 20)


def test_an_empty_stream_raises(mixed, tmp_path):
    npstream.write(tmp_path / "empty", [], columns={"x": "int"})
    streams = [Stream(local=mixed[0]), Stream(local=str(tmp_path / "empty"))]
    with pytest.raises(RuntimeError, match=r"Stream\(local='.*empty'\) has no samples"):
        StreamingDataset(streams=streams)


def test_settings_come_from_the_dataset(write, tmp_path):
    write("a/train", x=np.arange(3))
    write("a/val", x=np.arange(5))
    local = str(tmp_path / "a")
    streams = [Stream(local=local), Stream(local=local, split="val", download_retry=7)]
    ds = StreamingDataset(streams=streams, split="train", download_timeout=5)
    assert ds.samples_per_stream.tolist() == [3, 5]
    assert [stream.split for stream in streams] == ["train", "val"]
    assert [stream.download_retry for stream in streams] == [2, 7]
    assert [stream.download_timeout for stream in streams] == [5, 5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"proportion": 1, "repeat": 2}, "at most one weight, not proportion and repeat"),
        ({"proportion": -1}, "proportion=-1"),
        ({"repeat": -1}, "repeat=-1"),
        ({"choose": -1}, "choose=-1"),
        ({"download_retry": -1}, "download_retry=-1"),
        ({"download_timeout": 0}, "download_timeout=0"),
    ],
)
def test_invalid_streams_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        Stream(local="x", **arguments)


def test_invalid_weights_raise(mixed):
    streams = [Stream(local=mixed[0], proportion=1), Stream(local=mixed[1], repeat=2)]
    with pytest.raises(ValueError, match="some streams have a proportion"):
        StreamingDataset(streams=streams)
    with pytest.raises(ValueError, match="epoch_size"):
        StreamingDataset(streams=[Stream(local=mixed[0], repeat=2)], epoch_size=5)
    with pytest.raises(ValueError, match="neither remote nor local"):
        StreamingDataset(streams=[Stream(split="train")])


def test_shards_are_numbered_over_all_streams(mixed):
    ds = StreamingDataset(streams=[Stream(local=path) for path in mixed])
    assert [shard.samples for shard in ds.shards] == [4, 4, 2, 4, 2, 4, 1]
    for shard in range(7):
        ds.prepare_shard(shard)
    with pytest.raises(IndexError, match="no shard of the number"):
        ds.prepare_shard(7)


def test_registered_streams(write):
    class Tagged(Stream):
        def __init__(self, tag, **arguments):
            super().__init__(**arguments)
            self.tag = tag

    registry = StreamsRegistry()
    assert registry.register("tagged", func=Tagged) is registry.get("tagged") is Tagged
    assert registry.register("again")(Tagged) is registry.get("again") is Tagged
    assert streams_registry.get("stream") is Stream
    streams_registry.register("tagged", func=Tagged)
    ds = StreamingDataset(
        local=write("a", x=np.arange(5)), stream_name="tagged", stream_config={"tag": 7}
    )
    assert isinstance(ds.streams[0], Tagged)
    assert (ds.streams[0].tag, ds.size) == (7, 5)
    with pytest.raises(ValueError, match="stream_name='odd': expected one of 'stream', 'tagged'"):
        StreamingDataset(local="x", stream_name="odd")


def test_a_class_may_have_a_weight(write):
    class Half(Stream):
        proportion = 0.5

    class Rest(Stream):
        proportion = 1.5

    paths = [write(name, x=np.arange(10)) for name in "ab"]
    streams = [Half(local=paths[0]), Rest(local=paths[1])]
    ds = StreamingDataset(streams=streams, batch_size=4, epoch_size=8)
    assert [stream.choose for stream in streams] == [2, 6]
    assert ds.epoch_size == 8


class Prepared(Stream):
    """Puts the index and the shards into its directory when they are needed."""

    def __init__(self, source, **arguments):
        super().__init__(**arguments)
        self.source, self.prepared = source, []

    def get_shards(self, world, allow_unsafe_types):
        if world.is_local_leader:
            Path(self.local).mkdir(exist_ok=True)
            shutil.copy(Path(self.source) / "index.json", self.local)
        return super().get_shards(world, allow_unsafe_types)

    def prepare_shard(self, shard):
        for raw, _ in shard.file_pairs:
            shutil.copy(Path(self.source) / raw.basename, self.local)
        self.prepared.append(shard.number)
        return shard.raw_bytes


@pytest.mark.parametrize("workers", [0, 2])
def test_methods_of_a_subclass_provide_the_files(write, tmp_path, workers):
    paths = [write("a", x=np.arange(10)), write("b", x=np.arange(10, 20))]
    stream = Prepared(paths[1], local=str(tmp_path / "local"))
    ds = StreamingDataset(streams=[Stream(local=paths[0]), stream], batch_size=5)
    assert stream.prepared == []
    assert ds[3]["x"] == 3
    assert stream.prepared == []
    assert ds[19]["x"] == 19
    assert stream.prepared == [2]
    assert not (tmp_path / "local" / "shard.00000.mds").exists()
    loader = DataLoader(ds, batch_size=5, num_workers=workers)
    assert sorted(x for batch in loader for x in batch["x"].tolist()) == list(range(20))
    if not workers:
        assert sorted(stream.prepared) == [0, 1, 2]
    shutil.rmtree(tmp_path / "local")
    (tmp_path / "local").mkdir()
    ds.prepare_shard(4)
    assert (tmp_path / "local" / "shard.00001.mds").exists()


def test_overrides_that_npstream_cannot_use_raise(write):
    class Fewer(Stream):
        def get_shards(self, world, allow_unsafe_types):
            return super().get_shards(world, allow_unsafe_types)[1:]

    class Own(Stream):
        def get_shards(self, world, allow_unsafe_types):
            return []

    class Downloads(Stream):
        def _download_file(self, from_basename, to_basename=None):
            raise AssertionError

    path = write("a", x=np.arange(10))
    for cls in (Fewer, Own):
        with pytest.raises(TypeError, match=f"{cls.__name__}.get_shards returned other shards"):
            StreamingDataset(streams=[cls(local=path)])
    with pytest.raises(TypeError, match="Downloads has a method _download_file, which npstream"):
        StreamingDataset(streams=[Downloads(local=path)])
    with pytest.raises(ValueError, match="is not open: give it to a StreamingDataset first"):
        Stream(local=path).prepare_shard(None)
