"""Collections of Dask as datasets, written by threads and by processes of a cluster."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import npstream
from npstream.conversion import partitions as partitioned
from npstream.conversion.dask import write
from npstream.errors import ColumnError, PartitionError
from npstream.tools.verify import verify_dataset

for module in ("array", "bag", "dataframe", "distributed"):
    pytest.importorskip(f"dask.{module}")
dask = pytest.importorskip("dask")
pd = pytest.importorskip("pandas")

N = 100
THREADS = 2


@pytest.fixture(autouse=True)
def threads():
    with dask.config.set(scheduler="threads"):
        yield


@pytest.fixture
def pool():
    """Return the pool of threads that runs the tasks if no client is passed.

    Tests that kill a worker cannot use it. Dask sends its configuration to the new worker, and
    cannot pickle a pool.
    """
    with ThreadPoolExecutor(THREADS) as pool, dask.config.set(pool=pool):
        yield pool


def numbers(npartitions=5):
    return dask.bag.range(N, npartitions=npartitions).map(lambda n: {"n": n, "text": str(n)})


def folders(path):
    """Return the partitions' directories, and the work file, which exists during a write."""
    return sorted(name for name in os.listdir(path) if name.startswith("partition"))


def wait_for_tasks(runner):
    """Wait until the workers of a client, or the threads of a pool, have finished their tasks."""
    if isinstance(runner, ThreadPoolExecutor):
        barrier = threading.Barrier(THREADS)
        for each in [runner.submit(barrier.wait) for _ in range(THREADS)]:
            each.result()
        return
    addresses = runner.scheduler_info(n_workers=-1)["workers"]
    # A worker has one thread, so these tasks run after all earlier ones.
    runner.gather([runner.submit(int, workers=[each], pure=False) for each in addresses])


def assert_numbers(path, samples=range(N)):
    ds = npstream.open(path)
    assert ds["n"].load().tolist() == list(samples)
    assert ds["text"].load().to_list() == [str(n) for n in samples]
    assert verify_dataset(path).problems == ()


@pytest.mark.parametrize("uses_cluster", [False, True])
def test_a_bag_keeps_its_order(tmp_path, client, uses_cluster):
    path = tmp_path / "out"
    report = write(path, numbers(), client=client if uses_cluster else None, shard_samples=7)
    assert (report.samples, report.shards) == (N, 15)
    assert report.columns == {"n": "int", "text": "str"}
    assert_numbers(path)
    assert len(folders(path)) == 5


def test_a_data_frame_keeps_its_types(tmp_path):
    frame = pd.DataFrame(
        {
            "n": np.arange(N, dtype=np.uint8),
            "text": [str(n) for n in range(N)],
            "day": pd.date_range("2026-01-01", periods=N, unit="s"),
            "share": np.linspace(0, 1, N, dtype=np.float32),
        }
    )
    report = write(tmp_path / "out", dask.dataframe.from_pandas(frame, npartitions=4))
    expected = npstream.write(tmp_path / "expected", frame)
    assert report.columns == expected.columns
    ds, whole = npstream.open(tmp_path / "out"), npstream.open(tmp_path / "expected")
    pd.testing.assert_frame_equal(ds.to_pandas(), whole.to_pandas())
    report = write(tmp_path / "one", dask.dataframe.from_pandas(frame, npartitions=4)["n"])
    assert report.columns == {"n": "uint8"}


def test_delayed_partitions_are_anything_that_write_takes(tmp_path):
    rows = [{"n": n, "text": str(n)} for n in range(N)]
    parts = [
        dask.delayed(rows[:20]),
        dask.delayed(iter)(rows[20:50]),
        dask.delayed(pd.DataFrame)(rows[50:60]),
        dask.delayed({"n": list(range(60, N)), "text": [str(n) for n in range(60, N)]}),
    ]
    write(tmp_path / "out", parts, columns={"n": "int64", "text": "str"})
    assert_numbers(tmp_path / "out")
    assert write(tmp_path / "one", parts[3]).samples == 40


def test_arguments_of_write_apply_to_each_partition(tmp_path):
    report = write(
        tmp_path / "out",
        numbers(),
        columns={"n": "int16", "text": "str"},
        map=lambda sample: sample if sample["n"] % 2 else {"n": sample["n"], "text": None},
        fill={"text": "even"},
        compression="zstd",
        hashes=["xxh3_64"],
    )
    ds = npstream.open(tmp_path / "out")
    assert report.stored_bytes != report.raw_bytes
    shards = json.loads((tmp_path / "out" / "index.json").read_text())["shards"]
    assert all(list(shard["zip_data"]["hashes"]) == ["xxh3_64"] for shard in shards)
    assert ds["n"].dtype == np.int16
    assert ds["text"][:3].load().to_list() == ["even", "1", "even"]
    report = write(
        tmp_path / "skipped", numbers(), columns={"n": "uint8", "text": "str"},
        map=lambda sample: {**sample, "n": sample["n"] * 3}, on_error="skip",
    )  # fmt: skip
    assert (report.samples, report.rejected) == (86, 14)  # 86 * 3 > 255


def test_empty_partitions_are_left_out(tmp_path):
    sparse = numbers(10).filter(lambda sample: 30 <= sample["n"] < 50)
    assert write(tmp_path / "out", sparse).samples == 20
    assert_numbers(tmp_path / "out", range(30, 50))
    assert len(folders(tmp_path / "out")) == 2
    none = numbers().filter(lambda sample: False)
    with pytest.raises(ValueError, match=r"no partition has samples: pass columns="):
        write(tmp_path / "none", none)
    assert not (tmp_path / "none").exists()
    assert write(tmp_path / "none", none, columns={"n": "int64"}).samples == 0
    assert npstream.open(tmp_path / "none")["n"].dtype == np.int64
    assert folders(tmp_path / "none") == []
    frame = dask.dataframe.from_pandas(pd.DataFrame({"n": range(N)}), npartitions=4)
    assert write(tmp_path / "frame", frame[frame.n > 80]).samples == 19


def test_a_partition_of_another_schema_is_named(tmp_path):
    mixed = numbers().map(lambda sample: sample if sample["n"] < 60 else {"n": 1.5, "text": ""})
    with pytest.raises(PartitionError, match=r"partition 3: its columns are {'n': 'float64'.*pass"):
        write(tmp_path / "out", mixed)
    extra = numbers().map(lambda sample: sample if sample["n"] < 40 else {"n": 1})
    with pytest.raises(PartitionError, match=r"partition 2: its columns are {'n': 'int'}, but"):
        write(tmp_path / "out", extra)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("uses_cluster", [False, True])
def test_bad_data_name_the_partition_and_leave_no_files(tmp_path, client, pool, uses_cluster):
    bad = numbers().map(lambda s: s if s["n"] != 70 else {"n": "seventy", "text": "70"})
    chosen = client if uses_cluster else None
    with pytest.raises(PartitionError, match=r"partition 3: TypeError: sample 10.*'n'") as caught:
        write(tmp_path / "out", bad, client=chosen)
    assert caught.value.partition == 3
    wait_for_tasks(chosen or pool)
    assert not (tmp_path / "out").exists()
    with pytest.raises(PartitionError, match=r"partition \d: ColumnError: .*'lable'"):
        write(tmp_path / "out", numbers(), columns=["lable"], client=chosen)
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "notes.txt").write_text("of the user")
    with pytest.raises(PartitionError):
        write(tmp_path / "kept", bad, client=chosen)
    wait_for_tasks(chosen or pool)
    assert os.listdir(tmp_path / "kept") == ["notes.txt"]


def test_wrong_arguments_fail_before_any_task(tmp_path):
    for data in ([1, 2], "bag", dask.array.arange(10), pd.DataFrame(), dask.delayed):
        with pytest.raises(TypeError, match=r"expected a dask.bag.Bag of mappings"):
            write(tmp_path / "out", data)
    assert not (tmp_path / "out").exists()
    write(tmp_path / "out", numbers())
    before = sorted(os.listdir(tmp_path / "out"))
    with pytest.raises(FileExistsError, match="a dataset"):
        write(tmp_path / "out", numbers())
    assert sorted(os.listdir(tmp_path / "out")) == before


def test_a_killed_worker_leaves_no_trace(tmp_path, client):
    first_attempt = tmp_path / "first attempt"

    def kill_once(sample):
        import os
        import signal
        from contextlib import suppress

        if sample["n"] == 50:
            with suppress(FileExistsError), open(first_attempt, "x"):
                os.kill(os.getpid(), signal.SIGKILL)
        return sample

    path = tmp_path / "out"
    write(path, numbers(), client=client, map=kill_once, shard_samples=5)
    assert first_attempt.exists()
    wait_for_tasks(client)
    assert_numbers(path)
    assert len(folders(path)) == 5


def test_a_killed_worker_leaves_no_files_in_a_bucket(servers, client, tmp_path):
    directory = servers["s3"].new_directory()
    first_attempt = tmp_path / "first attempt"

    def kill_once(sample):
        import os
        import signal
        from contextlib import suppress

        if sample["n"] == 30:
            with suppress(FileExistsError), open(first_attempt, "x"):
                os.kill(os.getpid(), signal.SIGKILL)
        return sample

    options = directory.storage_options
    write(
        directory.url, numbers(), client=client, map=kill_once, shard_samples=5,
        storage_options=options,
    )  # fmt: skip
    wait_for_tasks(client)
    ds = npstream.open(directory.url, storage_options=options)
    assert ds["n"].load().tolist() == list(range(N))
    filesystem, root = directory.filesystem()
    names = {file[len(root) + 1 :].partition("/")[0] for file in filesystem.find(root)}
    assert len({name for name in names if name.startswith("partition.")}) == 5
    assert partitioned._WORK not in names


def test_a_task_that_ends_after_the_write_removes_its_files(tmp_path):
    """The driver ends while a duplicate of a task still writes."""
    started = partitioned.begin_write(tmp_path / "out", {}, {})
    rows = [{"n": n} for n in range(10)]
    result = partitioned.write_partition(started, 0, rows)

    def slow_rows():
        yield from rows[:5]
        report = partitioned.merge_partitions(started, [result], time.perf_counter())
        assert report.samples == 10
        yield from rows[5:]

    with pytest.raises(PartitionError, match="the write has ended without this partition"):
        partitioned.write_partition(started, 0, slow_rows())
    assert folders(tmp_path / "out") == [result.directory]
    assert npstream.open(tmp_path / "out")["n"].load().tolist() == list(range(10))


@pytest.mark.parametrize(
    ("error", "raised"), [(ZeroDivisionError(), PartitionError), (OSError(28, "full"), OSError)]
)
def test_a_task_that_fails_after_the_write_leaves_no_directory(tmp_path, error, raised):
    """The driver ends because of another task, and does not see the directory of this one yet."""
    started = partitioned.begin_write(tmp_path / "out", {}, {"shard_samples": 2})

    def failing_rows():
        yield from ({"n": n} for n in range(5))
        started.store().remove(partitioned._WORK)
        raise error

    with pytest.raises(raised):
        partitioned.write_partition(started, 0, failing_rows())
    assert not (tmp_path / "out").exists()


def test_repeated_tasks_leave_no_duplicates(tmp_path):
    started = partitioned.begin_write(tmp_path / "out", {}, {"shard_samples": 2})
    results = [
        partitioned.write_partition(started, number, [{"n": number}] * 3)
        for number in (1, 0, 0, 1, 0)
    ]
    assert len(folders(tmp_path / "out")) == 6  # with the work file
    report = partitioned.merge_partitions(started, results[-2:], time.perf_counter())
    assert report.samples == 6
    assert folders(tmp_path / "out") == sorted(r.directory for r in results[-2:])
    assert npstream.open(tmp_path / "out")["n"].load().tolist() == [0] * 3 + [1] * 3


def test_an_interrupted_driver_is_noticed(tmp_path):
    path = tmp_path / "out"
    if (child := os.fork()) == 0:
        started = partitioned.begin_write(path, {}, {})
        partitioned.write_partition(started, 0, [{"n": 1}])
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    with pytest.raises(FileNotFoundError):
        npstream.open(path)
    with pytest.raises(FileExistsError, match=r"another partitioned write is in progress, or was"):
        write(path, numbers())
    for name in folders(path):
        target = path / name
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    write(path, numbers())
    assert_numbers(path)


def test_files_are_converted_by_a_cluster(tmp_path, client):
    source = tmp_path / "source"
    source.mkdir()
    for number in range(4):
        rows = range(25 * number, 25 * number + 25)
        frame = pd.DataFrame({"n": rows, "text": [str(n) for n in rows]})
        frame.to_parquet(source / f"part-{number}.parquet")
    report = npstream.convert(source, tmp_path / "out", client=client, where="n % 2 == 0")
    assert report.samples == 50
    assert_numbers(tmp_path / "out", range(0, N, 2))
    npstream.convert(
        source, tmp_path / "ids", client=client,
        tokenizer=lambda text: [ord(character) for character in text],
    )  # fmt: skip
    ids = npstream.open(tmp_path / "ids")["tokens"]
    assert ids[11].tolist() == [49, 49]
    with pytest.raises(ValueError, match=r"workers=2 is not possible with client="):
        npstream.convert(source, tmp_path / "no", client=client, workers=2)
    with pytest.raises(ValueError, match=r"block=8 is not possible with client="):
        npstream.convert(source, tmp_path / "no", client=client, tokenizer=list, block=8)
    with pytest.raises(ColumnError, match="lable"):
        npstream.convert(source, tmp_path / "no", client=client, columns=["lable"])
    with pytest.raises(PartitionError, match=r"partition \d: .*ZeroDivisionError.*part-\d.parquet"):
        npstream.convert(source, tmp_path / "no", client=client, map=lambda sample: 1 / 0)
    wait_for_tasks(client)
    assert not (tmp_path / "no").exists()


def test_a_cluster_builds_and_verifies_a_side_car(tmp_path, client):
    values = {"n": np.arange(5000), "text": [str(n) for n in range(5000)]}
    npstream.write(tmp_path / "out", values, shard_samples=300, sidecar=False)
    for name in ("alone", "cluster"):
        os.mkdir(tmp_path / name)
    npstream.build_index(tmp_path / "out", tmp_path / "alone")
    npstream.build_index(tmp_path / "out", tmp_path / "cluster", client=client)
    files = sorted(path.relative_to(tmp_path / "alone") for path in tmp_path.glob("alone/**/*"))
    assert files
    for name in files:
        if (tmp_path / "alone" / name).is_file():
            expected = (tmp_path / "alone" / name).read_bytes()
            assert (tmp_path / "cluster" / name).read_bytes() == expected, name
    report = verify_dataset(tmp_path / "out", index=tmp_path / "alone", client=client)
    assert report == verify_dataset(tmp_path / "out", index=tmp_path / "alone")
    shard = tmp_path / "out" / "shard.00003.mds"
    data = bytearray(shard.read_bytes())
    data[-9] ^= 1
    shard.write_bytes(data)
    report = verify_dataset(tmp_path / "out", index=tmp_path / "alone", client=client)
    assert report == verify_dataset(tmp_path / "out", index=tmp_path / "alone")
    assert "shard 3" in report.problems[0]
