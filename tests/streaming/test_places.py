"""`remote` and `local`: reading in place, copying, caching, and files that Streaming downloaded."""

from __future__ import annotations

import pickle
import shutil

import fsspec
import golden_data as golden
import numpy as np
import pytest

import npstream
from npstream.streaming import Stream, StreamingDataset


@pytest.fixture
def remote(tmp_path):
    """Return a URL and the directory with the same files: shards of 64 KiB."""
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    columns = {"id": np.arange(256), "noise": np.random.default_rng(0).random((256, 256))}
    npstream.write(tmp_path / "source", columns, shard_size="64KiB", hashes=["sha1"], sidecar=False)
    for path in (tmp_path / "source").iterdir():
        filesystem.pipe(f"memory://bucket/corpus/{path.name}", path.read_bytes())
    yield "memory://bucket/corpus", tmp_path / "source"
    filesystem.store.clear()


def ids(samples):
    return [int(sample["id"]) for sample in samples]


def bytes_requested(ds):
    return sum(dataset.stats.bytes_requested for dataset in ds._npstream_samples.datasets)


def test_remote_data_are_cached_in_local(remote, tmp_path):
    url, source = remote
    local = tmp_path / "local"
    ds = StreamingDataset(remote=url, local=str(local), batch_size=8, shuffle=True)
    assert sorted(ids(ds)) == list(range(256))
    assert ds.streams[0].local == str(local)
    size = sum(path.stat().st_size for path in source.glob("*.mds"))
    assert bytes_requested(ds) >= size
    assert ds.cache_usage >= size
    again = StreamingDataset(remote=url, local=str(local), batch_size=8)
    assert ids(again) == list(range(256))
    assert bytes_requested(again) < size // 10


def test_without_local_the_cache_of_npstream_is_used(remote, tmp_path, monkeypatch):
    monkeypatch.setenv("NPSTREAM_CACHE", str(tmp_path / "cache"))
    ds = StreamingDataset(remote=remote[0], batch_size=8)
    assert ids(ds) == list(range(256))
    assert ds.streams[0].local == str(tmp_path / "cache")
    assert list((tmp_path / "cache").glob("*.shard"))


def test_a_path_with_another_local_is_copied_there(remote, tmp_path):
    _, source = remote
    local = tmp_path / "local"
    ds = StreamingDataset(remote=str(source), local=str(local), batch_size=8)
    assert ids(ds) == list(range(256))
    for path in source.glob("*.mds"):
        path.write_bytes(bytes(path.stat().st_size))
    assert ids(ds) == list(range(256))
    np.testing.assert_equal(ds[7]["noise"], np.random.default_rng(0).random((256, 256))[7])


@pytest.mark.parametrize("has_local", [False, True])
def test_a_path_is_read_in_place(remote, has_local):
    _, source = remote
    local = str(source) if has_local else None
    ds = StreamingDataset(remote=str(source), local=local, batch_size=8)
    assert ids(ds) == list(range(256))
    assert ds.cache_usage == 0
    assert not list(source.glob("*.shard"))


def test_the_limit_holds_for_all_streams(remote, tmp_path):
    url, source = remote
    streams = [
        Stream(remote=url, local=str(tmp_path / "a")),
        Stream(remote=str(source), local=str(tmp_path / "b")),
    ]
    ds = StreamingDataset(streams=streams, cache_limit="300kb", batch_size=8)
    assert ids(ds) == [*range(256)] * 2
    assert 0 < ds.cache_usage <= 300 << 10
    assert not (tmp_path / "b").exists()


ORDERS = {
    "sequential": {},
    "shuffled": {"shuffle": True, "shuffle_algo": "py1br", "shuffle_block_size": 64},
    "two lanes": {"num_canonical_nodes": 2},
}


@pytest.mark.parametrize(
    ("order", "second_column"), [*((order, "noise") for order in ORDERS), ("sequential", "other")]
)
def test_the_cache_keeps_the_chunks_that_are_used_first(
    tmp_path, upload, requests, monkeypatch, order, second_column
):
    """Half of the chunks fit. With LRU eviction, each epoch would fetch all chunks."""
    monkeypatch.setattr("npstream.formats.chunks.CHUNK_BYTES", 1 << 17)
    monkeypatch.setattr("npstream.streaming.samples.PIECE_BYTES", 1 << 17)
    noise = np.random.default_rng(0).random((2048, 1024))
    limit = noise.nbytes // 2
    parts = {
        "a": {"id": np.arange(1024), "noise": noise[:1024]},
        "b": {"id": np.arange(1024, 2048), second_column: noise[1024:]},
    }
    streams = []
    for name, part in parts.items():
        npstream.write(tmp_path / name, part, shard_size="512KiB", sidecar=False)
        local = str(tmp_path / f"{name}-cache")
        streams.append(Stream(remote=upload(tmp_path / name), local=local))
    ds = StreamingDataset(streams=streams, cache_limit=limit, batch_size=8, **ORDERS[order])
    fetched = []
    for _ in range(4):
        requests.clear()
        assert sorted(ids(ds)) == list(range(2048))
        fetched.append(sum(span[2] for span in requests if span[0].startswith("shard")))
        assert ds.cache_usage <= limit
    assert fetched[0] >= noise.nbytes
    assert max(fetched[1:]) < 0.8 * noise.nbytes  # about half is in the cache
    # A loop that resumes in mid-epoch reads the rest.
    rest = iter(ds)
    first = ids(next(rest) for _ in range(64))
    ds.load_state_dict(ds.state_dict(64, True))
    assert sorted(first + ids(ds)) == list(range(2048))


def test_a_limit_that_is_too_low_raises(remote, tmp_path):
    with pytest.raises(ValueError, match="cache_limit"):
        StreamingDataset(remote=remote[0], local=str(tmp_path / "local"), cache_limit="10kb")


def test_shards_are_fetched_and_evicted(remote, tmp_path):
    ds = StreamingDataset(remote=remote[0], local=str(tmp_path / "local"), batch_size=8)
    before = ds.cache_usage
    ds.prepare_shard(1)
    prepared = ds.cache_usage
    assert prepared - before >= ds.shards[1].get_raw_size()
    first = int(ds.sample_offset_per_shard[1])
    fetched = bytes_requested(ds)
    assert ids(ds[first : first + 4]) == list(range(first, first + 4))
    assert bytes_requested(ds) == fetched
    ds.evict_shard(1)
    # A file system may keep blocks at the ends of a hole in a file.
    assert ds.cache_usage <= before + (prepared - before) // 4
    assert ids(ds[first : first + 4]) == list(range(first, first + 4))
    assert bytes_requested(ds) > fetched


def test_a_local_that_streaming_has_filled_is_read_in_place(remote, tmp_path):
    url, source = remote
    shutil.copytree(source, tmp_path / "local")
    fsspec.filesystem("memory").store.clear()  # nothing can be fetched
    ds = StreamingDataset(remote=url, local=str(tmp_path / "local"), batch_size=8)
    assert ids(ds) == list(range(256))
    assert ds.cache_usage == 0


@pytest.mark.parametrize("is_path", [False, True])
def test_files_that_streaming_has_downloaded_are_not_fetched_again(remote, tmp_path, is_path):
    """Half of the shards are in `local`; their files at `remote` are damaged, and not read."""
    url, source = remote
    local = tmp_path / "local"
    local.mkdir()
    shards = sorted(source.glob("*.mds"))
    filesystem = fsspec.filesystem("memory")
    copied = tmp_path / "copied"
    shutil.copytree(source, copied)
    for path in [*shards[::2], source / "index.json"]:
        shutil.copy(path, local)
    for path in shards[::2]:
        damaged = bytes(path.stat().st_size)
        filesystem.pipe(f"memory://bucket/corpus/{path.name}", damaged)
        (copied / path.name).write_bytes(damaged)
    place = str(copied) if is_path else url
    ds = StreamingDataset(remote=place, local=str(local), batch_size=8, shuffle=True)
    assert sorted(ids(ds)) == list(range(256))
    copy = pickle.loads(pickle.dumps(ds))
    assert ids(copy[:]) == list(range(256))
    assert sorted(path.name for path in local.glob("*.mds")) == [path.name for path in shards[::2]]


def test_files_of_another_version_are_not_used(remote, tmp_path, caplog):
    url, _ = remote
    local = tmp_path / "local"
    npstream.write(local, {"id": np.arange(1000, 1256)}, shard_samples=10)
    next(local.glob("shard.00003.mds")).unlink()
    ds = StreamingDataset(remote=url, local=str(local), batch_size=8)
    assert ids(ds) == list(range(256))
    assert "has the files of another version of" in caplog.text


def test_a_directory_with_decompressed_shards():
    """Streaming has decompressed all shards, and removed the compressed ones."""
    case = golden.case("cache_raw_only")
    ds = StreamingDataset(local=str(golden.FORMATS / case["dir"]), split=case["split"])
    for sample, tagged in zip(ds[:], golden.expected(case), strict=True):
        golden.assert_same_sample(sample, tagged)


def test_hashes_are_checked(remote, tmp_path):
    _, source = remote
    settings = {"local": str(tmp_path / "local"), "batch_size": 8}
    ds = StreamingDataset(remote=str(source), validate_hash="sha1", **settings)
    assert ids(ds) == list(range(256))
    with pytest.raises(ValueError, match="xxh64"):
        StreamingDataset(remote=str(source), validate_hash="xxh64", **settings)
    path = source / "shard.00001.mds"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    ds = StreamingDataset(local=str(source), validate_hash="sha1", batch_size=8)
    with pytest.raises(OSError, match="sha1"):
        list(ds)


def test_an_absent_remote_dataset(tmp_path):
    for place in ("memory://bucket/nothing", str(tmp_path / "nothing")):
        with pytest.raises(FileNotFoundError):
            StreamingDataset(remote=place, local=str(tmp_path / "local"))


# The option `copy` of `npstream.open`


def test_open_copies_a_path_to_the_cache(remote, tmp_path):
    _, source = remote
    ds = npstream.open(source, cache=tmp_path / "cache", cache_limit="500KB", copy=True)
    assert ds["id"].load().tolist() == list(range(256))
    first = ds[3]["noise"]
    for path in source.glob("*.mds"):
        path.unlink()
    np.testing.assert_array_equal(ds[3]["noise"], first)
    assert 0 < npstream.cache.info(tmp_path / "cache").nbytes <= 500_000
    with pytest.raises(TypeError, match="copy='yes'"):
        npstream.open(source, copy="yes")


def test_names_of_directories_are_taken_as_they_are(tmp_path):
    path = tmp_path / "a b%20#c"
    npstream.write(path / "train", {"x": np.arange(3)})
    ds = npstream.open(path, split="train", cache=tmp_path / "cache", copy=True)
    assert ds["x"].load().tolist() == [0, 1, 2]
    with pytest.raises(FileNotFoundError, match="val"):
        npstream.open(path, split="val", cache=tmp_path / "cache", copy=True)
