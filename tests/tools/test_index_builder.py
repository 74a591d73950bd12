"""Building side-cars, and verifying datasets."""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading

import golden_data as golden
import numpy as np
import pytest
from dataset_files import write_jsonl

import npstream
from npstream.__main__ import main
from npstream.errors import ColumnError, FormatError, IntegrityError, StorageError
from npstream.formats.chunks import CHUNK_BYTES
from npstream.formats.sidecar.blocks import xxh3
from npstream.formats.sidecar.sidecar import Sidecar
from npstream.storage.local import LocalStore, open_store
from npstream.tools import index_builder, scan

READABLE = [case for case in golden.cases() if case["readable"] is True]


def sidecar_of(path):
    return Sidecar(LocalStore(str(path)))


def copy_golden(case, path):
    shutil.copytree(golden.directory(golden.case(case)), path)
    return path


@pytest.fixture
def data(tmp_path):
    """Write three shards of several chunks without a side-car; return the path and the columns.

    The item "bytes" of the columns is the side-car that the writer makes.
    """
    rng = np.random.default_rng(0)
    path = tmp_path / "data"
    columns = {
        "half": rng.random(3000).astype("f2"),
        "label": np.arange(3000) % 17,
        "noise": rng.integers(0, 256, (3000, 9000), np.uint8),
        "text": [("x" * (k % 5)) for k in range(3000)],
    }
    npstream.write(path, columns, shard_size="9MiB")
    columns["bytes"] = (path / "index.msgpack").read_bytes()
    shutil.rmtree(path / "index.columns")
    (path / "index.msgpack").unlink()
    return path, columns


def damage(file, at=-1):
    body = bytearray(file.read_bytes())
    body[at] ^= 1
    file.write_bytes(body)


# Building


def test_build_index_writes_the_same_bytes_as_the_writer(data):
    path, columns = data
    assert npstream.build_index(path) == str(path / "index.msgpack")
    assert (path / "index.msgpack").read_bytes() == columns["bytes"]
    assert not (path / ".index.work").exists()


def test_a_side_car_has_piece_hashes_and_columns(data):
    path, columns = data
    npstream.build_index(path)
    sidecar = sidecar_of(path)
    index = sidecar.index("x")
    for shard in range(len(index)):
        body = (path / index.name(shard)).read_bytes()
        rows = int(index.starts[shard + 1] - index.starts[shard])
        offsets = np.frombuffer(body[4 : 8 + 4 * rows], "<u4").tolist()
        chunks = -(-len(body) // CHUNK_BYTES)
        ends = [offsets[i * rows // chunks] for i in range(chunks)] + [len(body)]
        cuts = zip([0, *ends], ends, strict=False)
        assert sidecar.piece_hashes(shard).tolist() == [xxh3(body[a:b]) for a, b in cuts]
        assert sidecar.first_offset(shard) == offsets[0]
    assert list(sidecar.columns) == ["half", "label"]
    for name in sidecar.columns:
        values = np.load(path / "index.columns" / f"{name}.npy")
        assert np.array_equal(values, columns[name])
        assert np.array_equal(sidecar.column(name, 5, 2000), columns[name][5:2000])
        for bound, bounds in zip((np.min, np.max), sidecar.shard_range(name), strict=True):
            parts = np.split(columns[name], index.starts[1:-1])
            assert bounds.tolist() == [bound(part) for part in parts]


@pytest.mark.parametrize("case", READABLE, ids=lambda case: case["name"])
def test_golden_datasets_have_no_problems(case, tmp_path):
    directory = golden.directory(case)
    npstream.build_index(directory, out=tmp_path / "aside")
    report = npstream.verify_dataset(directory, index=tmp_path / "aside")
    assert report.problems == ()
    assert report.sidecar == str(tmp_path / "aside" / "index.msgpack")
    sidecar = sidecar_of(tmp_path / "aside")
    for name in sidecar.columns:
        expected = [golden.value(row[name]) for row in golden.expected(case)]
        array = np.array(expected, sidecar.columns[name].dtype)
        assert sidecar.column(name).tobytes() == array.tobytes()


def test_text_shards_have_only_requested_columns(tmp_path):
    rows = [{"k": k, "x": k / 2, "wide": 2 ** (62 + k), "s": "a"} for k in range(3)]
    path = tmp_path / "text"
    write_jsonl(path, rows, {"k": "int", "x": "float", "wide": "int", "s": "str"})
    npstream.build_index(path)
    assert list(sidecar_of(path).columns) == []
    npstream.build_index(path, columns=["k", "x"])
    assert sidecar_of(path).column("k").tolist() == [0, 1, 2]
    assert sidecar_of(path).shard_range("x") == (0, 1)
    with pytest.raises(OverflowError, match="sample 1: column 'wide' is beyond int64; leave it"):
        npstream.build_index(path, columns=["wide"])


def test_columns_and_hashes_are_optional(data, tmp_path):
    path, _ = data
    npstream.build_index(path, columns=["label"], hashes=False)
    sidecar = sidecar_of(path)
    assert (list(sidecar.columns), sidecar.has_hashes) == (["label"], False)
    npstream.build_index(path, columns=[], hashes=False)
    assert list(sidecar_of(path).columns) == []
    assert len(sidecar_of(path).index("x")) == 3
    with pytest.raises(ColumnError, match="no column 'lable'; did you mean 'label'"):
        npstream.build_index(path, columns=["lable"])
    with pytest.raises(ValueError, match="column 'text' is not a scalar"):
        npstream.build_index(path, columns=["text"])
    with pytest.raises(TypeError, match="expected a list of names"):
        npstream.build_index(path, columns="label")


def test_a_shard_with_nan_has_infinite_bounds(tmp_path):
    values = np.array([1.0, np.nan, 3.0, 4.0])
    with npstream.Writer(tmp_path, {"x": "float64"}, shard_size=1) as writer:
        for value in values:
            writer.write({"x": value})
    minimum, maximum = sidecar_of(tmp_path).shard_range("x")
    assert minimum.tolist() == [1.0, -np.inf, 3.0, 4.0]
    assert maximum.tolist() == [1.0, np.inf, 3.0, 4.0]


def test_columns_can_have_any_name(tmp_path):
    names = ["a/b", "..", "A", "a", "ä", "x" * 300, "x" * 299 + "y"]
    npstream.write(tmp_path, {name: np.arange(k, k + 5) for k, name in enumerate(names)})
    sidecar = sidecar_of(tmp_path)
    for k, name in enumerate(names):
        assert sidecar.column(name).tolist() == list(range(k, k + 5))
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"index.columns"}
    assert npstream.verify_dataset(tmp_path).problems == ()


def test_a_side_car_can_be_written_to_another_directory(data, tmp_path, monkeypatch):
    path, columns = data
    put = LocalStore.put

    def refuse(self, name, body):
        assert not self.root.startswith(str(path))
        put(self, name, body)

    monkeypatch.setattr(LocalStore, "put", refuse)
    before = sorted(path.rglob("*"))
    npstream.build_index(path, out=tmp_path / "aside")
    assert (tmp_path / "aside" / "index.msgpack").read_bytes() == columns["bytes"]
    assert sorted(path.rglob("*")) == before
    assert npstream.verify_dataset(path, index=tmp_path / "aside").problems == ()


def test_a_side_car_of_a_remote_dataset(data, tmp_path, monkeypatch):
    pytest.importorskip("fsspec")
    path, columns = data
    monkeypatch.setenv("NPSTREAM_CACHE", str(tmp_path / "cache"))
    store = open_store("memory://sidecars/data")
    for file in path.iterdir():
        store.put(file.name, file.read_bytes())
    url = npstream.build_index("memory://sidecars/data")
    assert url == store.where("index.msgpack")
    sidecar = Sidecar(store)
    assert np.array_equal(sidecar.column("label"), columns["label"])
    assert sidecar.index_digest.version == store.version("index.json")
    report = npstream.verify_dataset("memory://sidecars/data")
    assert report.problems == ()
    assert report.samples == 3000


def test_existence_of_uncompressed_files_is_checked_concurrently(tmp_path, upload, monkeypatch):
    from fsspec.implementations.memory import MemoryFileSystem

    npstream.write(tmp_path, {"x": np.arange(2048)}, shard_size=2048, compression="zstd")
    (name, *others) = sorted(path.name[: -len(".zstd")] for path in tmp_path.glob("*.zstd"))
    assert len(others) > 6
    (tmp_path / name).write_bytes(b"unpacked")
    store = open_store(upload(tmp_path))
    index, _ = index_builder.read_index(store)
    requested, barrier, info = [], threading.Barrier(1 + len(others)), MemoryFileSystem.info

    def info_at_once(self, path, **options):
        requested.append(path.rpartition("/")[2])
        barrier.wait(timeout=120)
        return info(self, path, **options)

    monkeypatch.setattr(MemoryFileSystem, "info", info_at_once)
    assert index_builder.compressed_only_mask(store, index).tolist() == [False] + [True] * len(
        others
    )
    assert sorted(requested) == [name, *others]


# Interruptions

KILLED_BUILD = """
import sys
from npstream.tools import index_builder, scan
scan.ShardScanner.groups = lambda self, shards: [[shard] for shard in shards]
index_builder._SAVE_INTERVAL = 0
scan_shard = scan.ShardScanner._scan_shard
def stop(self, shard, *arguments):
    if shard == 2:
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
    return scan_shard(self, shard, *arguments)
scan.ShardScanner._scan_shard = stop
index_builder.build_index(sys.argv[1])
"""


def kill_build(path):
    """Build a side-car in a process that is killed before it scans the last of three shards."""
    process = subprocess.run([sys.executable, "-c", KILLED_BUILD, path], timeout=300, check=False)
    assert process.returncode == -signal.SIGKILL
    assert not (path / "index.msgpack").exists()


@pytest.fixture
def scanned_shards(monkeypatch):
    """Return the list of the shards that this process scans."""
    numbers, scan_shard = [], scan.ShardScanner._scan_shard

    def record_shard(self, shard, *arguments):
        numbers.append(shard)
        return scan_shard(self, shard, *arguments)

    monkeypatch.setattr(scan.ShardScanner, "_scan_shard", record_shard)
    return numbers


def test_a_killed_build_is_resumed(data, scanned_shards):
    path, columns = data
    kill_build(path)
    npstream.build_index(path)
    assert scanned_shards == [2]
    assert (path / "index.msgpack").read_bytes() == columns["bytes"]
    assert not (path / ".index.work").exists()


def test_unfinished_work_with_other_arguments_is_not_used(data, scanned_shards):
    path, _ = data
    kill_build(path)
    npstream.build_index(path, columns=["label"])
    assert scanned_shards == [0, 1, 2]
    assert list(sidecar_of(path).columns) == ["label"]


def test_damaged_unfinished_work_is_not_used(data, scanned_shards):
    path, columns = data
    kill_build(path)
    (path / ".index.work" / "values").write_bytes(b"")
    npstream.build_index(path)
    assert scanned_shards == [0, 1, 2]
    assert (path / "index.msgpack").read_bytes() == columns["bytes"]


def test_unfinished_work_of_older_shards_is_not_used(data, scanned_shards):
    path, columns = data
    kill_build(path)
    (path / "index.json").write_bytes(
        (path / "index.json").read_bytes()
    )  # a new version with equal content
    npstream.build_index(path)
    assert scanned_shards == [0, 1, 2]
    assert (path / "index.msgpack").read_bytes() == columns["bytes"]


@pytest.mark.parametrize("kind", ["directory", "memory"])
def test_an_existing_side_car_stays_valid_until_it_is_replaced(kind, data, upload, monkeypatch):
    path, _ = data
    url = str(path) if kind == "directory" else upload(path)
    store = open_store(url)
    npstream.build_index(url, columns=["label"])
    before = dict(store.names())
    put = type(store).put

    def fail(self, name, content):
        if name == "index.msgpack":
            raise StorageError(errno.ENOSPC, "disk full", name)
        put(self, name, content)

    monkeypatch.setattr(type(store), "put", fail)
    with pytest.raises(StorageError, match="disk full"):
        npstream.build_index(url)
    monkeypatch.undo()
    after = dict(store.names())
    assert {name: n for name, n in after.items() if not name.startswith(".index.work/")} == before
    assert npstream.verify_dataset(url).problems == ()
    npstream.build_index(url)
    assert npstream.verify_dataset(url).problems == ()
    assert len(list(store.names("index.columns/"))) == 2


def test_a_side_car_of_another_index_is_removed_before_the_build(data, monkeypatch):
    path, _ = data
    npstream.build_index(path)
    (path / "index.json").write_bytes((path / "index.json").read_bytes() + b" ")

    def fail(*_):
        raise StorageError(errno.ENOSPC, "disk full", "column")

    monkeypatch.setattr(LocalStore, "put", fail)
    with pytest.raises(StorageError, match="disk full"):
        npstream.build_index(path)
    assert not (path / "index.msgpack").exists()


def test_only_one_process_builds_a_side_car(data):
    path, _ = data
    (path / ".index.work").mkdir()
    with open(path / ".index.work" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StorageError, match="another process is building this side-car"):
            npstream.build_index(path)
    npstream.build_index(path)


def test_an_unusable_working_directory_raises(data):
    path, _ = data
    (path / ".index.work").write_text("a file")
    with pytest.raises(StorageError, match="out="):
        npstream.build_index(path)


# Damage


def test_damaged_shards_get_no_side_car(tmp_path):
    copy_golden("mds_h_sha1", tmp_path / "hashed")
    damage(next((tmp_path / "hashed").glob("*.mds")))
    with pytest.raises(IntegrityError, match=r"shard\.\d+\.mds: its sha1 is"):
        npstream.build_index(tmp_path / "hashed")
    npstream.write(tmp_path / "plain", [{"x": "a"}])
    damage(tmp_path / "plain" / "shard.00000.mds", 0)
    with pytest.raises(FormatError, match=r"shard\.00000\.mds \(shard 0\): "):
        npstream.build_index(tmp_path / "plain")
    (tmp_path / "plain" / "shard.00000.mds").unlink()
    with pytest.raises(StorageError, match=r"shard\.00000\.mds"):
        npstream.build_index(tmp_path / "plain")


def problems(path):
    return "\n".join(npstream.verify_dataset(path).problems)


def test_verify_reports_damaged_shards(data):
    path, _ = data
    npstream.build_index(path)
    assert problems(path) == ""
    assert npstream.verify_dataset(path).sidecar == str(path / "index.msgpack")
    damage(path / "shard.00000.mds")
    damage(path / "shard.00001.mds", 4)
    with open(path / "shard.00002.mds", "ab") as file:
        file.write(b"x")
    text = problems(path)
    assert "shard 0: the hashes of pieces [3] are not those of its bytes" in text
    assert "shard.00001.mds (shard 1): " in text
    assert "shard.00002.mds (shard 2): " in text
    assert "bytes; the index says" in text
    (path / "shard.00002.mds").unlink()
    assert "shard.00002.mds (shard 2): there is no such file" in problems(path)


def test_verify_reports_a_damaged_side_car(data):
    path, _ = data
    npstream.build_index(path)
    sidecar, values = path / "index.msgpack", path / "index.columns" / "label.npy"
    whole, column = sidecar.read_bytes(), values.read_bytes()
    damage(values)
    assert "label.npy: " in problems(path)
    values.unlink()
    assert "label.npy" in problems(path)
    values.write_bytes(column)
    damage(sidecar, 100)
    assert "index.msgpack: the hash of its table is wrong" in problems(path)
    sidecar.write_bytes(whole[:-1])
    assert "its head says" in problems(path)
    sidecar.write_bytes(whole)
    text = (path / "index.json").read_text()
    (path / "index.json").write_text(text + " ")
    assert "it was built from another" in problems(path)
    (path / "index.json").write_text(text)
    assert problems(path) == ""


def test_verify_reports_a_side_car_of_other_shards(tmp_path):
    for name, label in (("a", 1), ("b", 2)):
        npstream.write(tmp_path / name, {"label": np.full(10, label)})
    for file in ("index.msgpack", "index.columns/label.npy"):
        shutil.copy(tmp_path / "a" / file, tmp_path / "b" / file)
    text = problems(tmp_path / "b")
    assert "pieces [1] are not those of its bytes" in text
    assert "column 'label' is within" in text
    assert "the values of column 'label' are not those of its samples" in text


def test_verify_reads_compressed_and_uncompressed_files(tmp_path):
    path = copy_golden("cache_zip_and_raw", tmp_path / "both")
    shard = json.loads((path / "index.json").read_text())["shards"][0]
    assert npstream.verify_dataset(path).problems == ()
    body = (path / shard["zip_data"]["basename"]).read_bytes()
    damage(path / shard["zip_data"]["basename"], len(body) // 2)
    assert shard["zip_data"]["basename"] in problems(path)


def test_verify_reports_a_missing_side_car_that_was_named(data, tmp_path):
    path, _ = data
    (tmp_path / "nothing").mkdir()
    report = npstream.verify_dataset(path, index=tmp_path / "nothing")
    assert len(report.problems) == 1
    assert "index.msgpack" in report.problems[0]


def test_verify_parses_text_shards(tmp_path):
    path = copy_golden("jsonl_basic", tmp_path / "text")
    shard = json.loads((path / "index.json").read_text())["shards"][0]
    file = path / shard["raw_data"]["basename"]
    body = file.read_bytes()
    file.write_bytes(body.replace(b"{", b"[", 1))
    assert "sample 0: " in problems(path)


# The command line


def test_the_commands_index_and_verify(data, tmp_path, capsys):
    path, _ = data
    assert main(["index", str(path), "--out", str(tmp_path / "aside"), "--columns", "label"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "aside" / "index.msgpack")
    assert list(sidecar_of(tmp_path / "aside").columns) == ["label"]
    assert main(["index", str(path), "--no-hashes"]) == 0
    assert not sidecar_of(path).has_hashes
    assert main(["verify", str(path), "--index", str(tmp_path / "aside")]) == 0
    assert "3 shards, 3,000 samples" in capsys.readouterr().out
    damage(path / "shard.00000.mds", 4)
    assert main(["verify", str(path)]) == 1
    assert capsys.readouterr().out.rstrip().endswith("1 problem")
    assert main(["verify", str(path / "absent")]) == 1


# Writing


def test_writing_does_not_overwrite_remains_of_a_side_car(tmp_path):
    npstream.write(tmp_path, {"x": np.arange(3)})
    for name in ("index.json", "shard.00000.mds"):
        (tmp_path / name).unlink()
    with pytest.raises(FileExistsError, match=r"index\.(columns|msgpack)"):
        npstream.write(tmp_path, {"x": np.arange(3)})
    shutil.rmtree(tmp_path / "index.columns")
    (tmp_path / "index.msgpack").unlink()
    (tmp_path / "index.html").touch()
    npstream.write(tmp_path, {"x": np.arange(3)})


def test_pieces_of_compressed_shards_are_hashed_uncompressed(tmp_path):
    npstream.write(tmp_path, {"x": np.arange(100)}, compression="zstd", hashes=["sha1"])
    whole = (tmp_path / "index.msgpack").read_bytes()
    assert len(sidecar_of(tmp_path).piece_hashes(0)) == 2
    npstream.build_index(tmp_path)
    assert (tmp_path / "index.msgpack").read_bytes() == whole


def test_column_files_are_synced_before_they_are_renamed(tmp_path, monkeypatch):
    npstream.write(tmp_path, {f"c{number}": np.arange(20) for number in range(40)})
    calls: list[str] = []

    def record(name):
        call = getattr(os, name)

        def record_call(*args):
            calls.append(name)
            call(*args)

        monkeypatch.setattr(os, name, record_call)

    record("fsync")
    record("replace")
    npstream.build_index(tmp_path)
    steps = [(call, len(list(group))) for call, group in itertools.groupby(calls)]
    assert steps[-4:] == [("fsync", 40), ("replace", 40), ("fsync", 1), ("replace", 1)]
    assert npstream.open(tmp_path)["c39"][-1] == 19
