"""`threads=` and `prefetch=` of `ds.iter`: the same batches, states and errors as without."""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from started import wait_for_threads

import npstream
from npstream._core.memory import address_of
from npstream.iteration.feeding.feed import MAX_NBYTES, MAX_READ_THREADS, choose_limits

TIMEOUT = 60
ROWS = 1000


@pytest.fixture
def ds(tmp_path):
    generator = np.random.default_rng(0)
    texts = ["x" * int(n) for n in generator.integers(0, 20, ROWS)]
    arrays = [np.arange(int(n), dtype=np.int16) for n in generator.integers(1, 9, ROWS)]
    columns = {"number": np.arange(ROWS), "text": texts, "array": arrays}
    path = tmp_path / "data"
    npstream.write(path, columns, shard_size="8KiB")
    with npstream.open(path) as dataset:
        yield dataset


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        if isinstance(left[name], npstream.Ragged):
            assert np.array_equal(left[name].values, right[name].values)
            assert np.array_equal(left[name].offsets, right[name].offsets)
        assert left[name][0].__class__ is right[name][0].__class__
        assert all(map(np.array_equal, left[name], right[name]))
    assert np.array_equal(left.ids, right.ids)
    assert np.array_equal(left.repeated, right.repeated)


@pytest.mark.parametrize("batch_size", [1, 7, 256, 2000])
@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_neither_batches_nor_states(ds, batch_size, threads):
    plain = ds.iter(0, 1, batch_size=batch_size, shuffle=True, threads=0)
    ahead = ds.iter(0, 1, batch_size=batch_size, shuffle=True, threads=threads)
    for _ in range(2):
        for left, right in zip(plain, ahead, strict=True):
            assert_same(left, right)
            assert plain.state_dict() == ahead.state_dict()


def test_threads_change_no_samples(ds):
    plain, ahead = (ds.iter(0, 1, shuffle=True, threads=threads) for threads in (0, 2))
    left, right = list(plain), list(ahead)
    assert [sample["number"] for sample in left] == [sample["number"] for sample in right]
    assert [sample["text"] for sample in left] == [sample["text"] for sample in right]


@pytest.mark.parametrize("stop", [0, 1, 5, 17])
def test_a_loop_that_was_left_resumes_after_the_last_yielded_batch(ds, stop):
    whole = [batch.ids for batch in ds.iter(0, 1, batch_size=32, shuffle=True, threads=0)]
    ahead = ds.iter(0, 1, batch_size=32, shuffle=True, threads=2)
    for number, _ in enumerate(ahead):
        if number == stop:
            break
    resumed = ds.iter(0, 1, batch_size=32, shuffle=True, threads=2)
    resumed.load_state_dict(ahead.state_dict())
    rest = [batch.ids for batch in resumed]
    assert np.array_equal(np.concatenate(rest), np.concatenate(whole[stop + 1 :]))


def test_transforms_run_in_threads_if_threads_are_given(ds):
    names = set()

    def transform(batch):
        names.add(threading.current_thread().name)
        return batch.ids

    batches = list(ds.iter(0, 1, batch_size=100, transform=transform, threads=2))
    assert np.array_equal(np.concatenate(batches), np.arange(ROWS))
    assert names == {"npstream-batches"}
    names.clear()
    list(ds.iter(0, 1, batch_size=100, transform=transform))
    assert names == {threading.current_thread().name}


def test_order_is_kept_if_transforms_end_in_another_order(ds):
    second_is_done = threading.Event()

    def transform(batch):
        if batch.ids[0] == 0:
            assert second_is_done.wait(TIMEOUT)
        if batch.ids[0] == 10:
            second_is_done.set()
        return batch.ids[0]

    batches = ds.iter(0, 1, batch_size=10, transform=transform, threads=2)
    assert list(batches) == list(range(0, ROWS, 10))


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("is_batched", [True, False])
def test_an_error_of_a_transform_names_the_samples_and_the_loop_continues(ds, threads, is_batched):
    def transform(item):
        numbers = item["number"].tolist() if is_batched else [item["number"]]
        if 25 in numbers:
            raise KeyError("wrong")
        return numbers

    size = 10 if is_batched else None
    items = iter(ds.iter(0, 1, batch_size=size, transform=transform, threads=threads))
    count = 2 if is_batched else 25
    for _ in range(count):
        next(items)
    with pytest.raises(KeyError, match="wrong") as info:
        next(items)
    (note,) = info.value.__notes__
    assert note.startswith("in transform= of ")
    assert "samples 20, 21, 22" in note if is_batched else note.endswith("sample 25")
    assert next(items)[0] == (30 if is_batched else 26)


@pytest.mark.parametrize("threads", [0, 2])
def test_stop_iteration_of_a_transform_does_not_end_the_loop(ds, threads):
    def transform(batch):
        raise StopIteration

    with pytest.raises(RuntimeError, match="transform=") as info:
        list(ds.iter(0, 1, batch_size=10, transform=transform, threads=threads))
    assert isinstance(info.value.__cause__, StopIteration)


def damage(path, row):
    """Make the sizes of a sample's columns wrong."""
    (shard,) = path.glob("shard.00000.mds")
    content = bytearray(shard.read_bytes())
    offset = int(np.frombuffer(content[4 * (row + 1) : 4 * (row + 2)], "<u4")[0])
    content[offset : offset + 4] = b"\xff" * 4
    shard.write_bytes(content)


@pytest.mark.parametrize("threads", [0, 2])
def test_a_damaged_sample_fails_only_its_batch(tmp_path, threads):
    path = tmp_path / "damaged"
    npstream.write(path, {"x": np.arange(100), "text": ["a"] * 100})
    damage(path, 35)
    ds = npstream.open(path, verify=False)
    items = iter(ds.iter(0, 1, batch_size=10, threads=threads))
    assert [next(items).ids[0] for _ in range(3)] == [0, 10, 20]
    with pytest.raises(npstream.errors.FormatError, match="sample 35"):
        next(items)
    assert next(items).ids[0] == 40


def test_stats_count_the_batches_that_are_ahead(ds):
    batches = ds.iter(0, 1, batch_size=10, threads=1, prefetch=8)
    assert batches.stats.batches_ready == batches.stats.hits == 0
    iterator = iter(batches)
    for _ in range(20):
        next(iterator)
    stats = batches.stats
    assert stats.hits + stats.misses >= 20
    assert stats.batches_ready <= 8
    assert stats.bytes_ahead > 0
    assert "batches ready" in repr(stats)
    iterator.close()
    assert batches.stats.bytes_ahead == 0


def test_prefetch_bounds_bytes(ds):
    per_sample = ds.shards["bytes"].sum() / ROWS
    limit = int(40 * per_sample)
    batches = ds.iter(0, 1, batch_size=10, threads=2, prefetch=str(limit))
    for _ in batches:
        assert batches.stats.bytes_ahead <= 1.2 * limit  # sizes vary


INTERRUPTED_LOOP = """
import sys, threading
import npstream

def transform(batch):
    return batch.ids

for ids in npstream.open(sys.argv[1]).iter(0, 1, batch_size=10, transform=transform, threads=2):
    print(len(threading.enumerate()), flush=True)
    sys.stdin.readline()
"""


def test_ctrl_c_ends_the_loop_and_the_process(ds):
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED_LOOP, str(ds._source.fetcher.shards.root)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline().strip() == "3"  # the loop's thread, and two that read
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=TIMEOUT)
    assert "KeyboardInterrupt" in errors
    assert process.returncode == -signal.SIGINT


def test_threads_end_with_the_loop(ds):
    for _ in ds.iter(0, 1, batch_size=10, threads=2):
        break
    wait_for_threads("npstream-batches")


def test_batches_of_a_group_share_no_elements(ds):
    batches = list(ds.iter(0, 1, batch_size=10, threads=1))
    for batch in batches:
        batch["number"][:] = batch.ids[0]
    assert [batch["number"][-1] for batch in batches] == list(range(0, ROWS, 10))


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_mixtures_read_in_threads(ds, threads):
    mixture = npstream.mix({"a": ds[:300], "b": ds[300:]})
    plain = [batch.ids for batch in mixture.iter(0, 1, batch_size=50, shuffle=True, threads=0)]
    ahead = mixture.iter(0, 1, batch_size=50, shuffle=True, threads=threads)
    assert np.array_equal(plain, [batch.ids for batch in ahead])


@pytest.mark.parametrize("limit", ["1MiB", "64MiB"])
@pytest.mark.parametrize("shuffle", [False, npstream.Shuffle(block="128KiB")])
def test_threads_request_at_most_twice_the_bytes_of_a_loop_without_threads(
    tmp_path, limit, shuffle
):
    url = "memory://test-feed/data"
    rows = 20_000
    columns = {"x": np.arange(rows), "payload": np.zeros((rows, 128), np.uint8)}
    npstream.write(url, columns, shard_size="256KiB", mode="w")
    numbers, nbytes = [], []
    for threads in (0, 3):
        cache = tmp_path / f"cache-{threads}"
        with npstream.open(url, cache=cache, cache_limit=limit) as dataset:
            batches = dataset.iter(0, 1, batch_size=64, shuffle=shuffle, threads=threads)
            numbers.append(np.concatenate([batch["x"] for batch in batches]))
            nbytes.append(batches.stats.bytes_requested)
    assert np.array_equal(*numbers)
    # Which chunks are evicted, and so requested again, depends on timing.
    assert nbytes[1] <= 2 * nbytes[0]


@pytest.mark.parametrize(("limit", "is_grouped"), [("1MiB", False), ("64MiB", True)])
def test_batches_are_read_together_if_the_cache_holds_their_dataset(tmp_path, limit, is_grouped):
    url, batches = "memory://test-feed/groups", 0
    columns = {"x": np.arange(30_000), "payload": np.zeros((30_000, 72), np.uint8)}
    npstream.write(url, columns, shard_size="256KiB", mode="w")
    reads = []
    with (
        npstream.open(url, cache=tmp_path / "cache", cache_limit=limit) as dataset,
        npstream.on_event(lambda event: reads.append(event.kind)),
    ):
        for batch in dataset.iter(0, 1, batch_size=100, threads=1):
            assert np.array_equal(batch["x"], batch.ids)
            batches += 1
    assert batches == 300
    assert (reads.count("gather") < batches / 4) == is_grouped


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threads": -1}, "threads=-1"),
        ({"threads": 1.5}, "threads=1.5"),
        ({"prefetch": -1}, "prefetch=-1"),
        ({"prefetch": "much"}, "prefetch"),
        ({"threads": 2, "prefetch": 0}, "threads=2 with prefetch=0"),
        ({"transform_workers": 2, "prefetch": 0}, "transform_workers=2 with prefetch=0"),
    ],
)
def test_invalid_settings_raise(ds, arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ds.iter(0, 1, batch_size=2, **arguments)


def test_default_threads_leave_a_processor_to_the_loop():
    assert choose_limits(None, None, 1, True).threads == 0
    assert choose_limits(None, None, 4, True).threads == 3
    assert choose_limits(None, None, 100, True).threads == MAX_READ_THREADS
    assert choose_limits(None, None, 100, False).threads == 0


def test_given_limits_replace_the_defaults():
    assert choose_limits(5, None, 1, False).threads == 5
    assert choose_limits(None, 0, 8, True).threads == 0
    assert choose_limits(2, None, 8, True).nbytes <= MAX_NBYTES
    assert choose_limits(2, (1 << 20,), 8, True).nbytes == 1 << 20
    assert choose_limits(2, 7, 8, True).tasks == 7


@pytest.fixture
def wide(tmp_path):
    """Return a dataset with samples of 16 KiB, so that the arrays of batches come from pools."""
    values = np.repeat(np.arange(640), 4096).reshape(640, 4096).astype(np.int32)
    npstream.write(tmp_path / "wide", {"values": values, "number": np.arange(640)})
    with npstream.open(tmp_path / "wide") as dataset:
        yield dataset


@pytest.mark.parametrize("to", [None, "torch"])
@pytest.mark.parametrize("threads", [1, 3])
def test_batches_that_are_kept_do_not_change(wide, threads, to):
    if to == "torch":
        pytest.importorskip("torch")
    batches = wide.iter(0, 1, batch_size=64, shuffle=True, threads=threads, prefetch=2, to=to)
    kept = []
    for _ in range(3):
        for step, batch in enumerate(batches):
            if step % 2:
                kept.append((batch.ids, batch["values"][:, 1::1000]))
            for ids, values in kept:
                assert (np.asarray(values) == ids[:, np.newaxis]).all()
    assert len(kept) == 15


def test_loops_use_few_buffers(wide):
    batches = wide.iter(0, 1, batch_size=64, shuffle=True, threads=1, prefetch=2)
    addresses = [{address_of(batch["values"]) for batch in batches} for _ in range(3)]
    assert len(set.union(*addresses)) <= 5  # of 30 batches
    assert not addresses[0].isdisjoint(addresses[2])


def test_copies_of_iterations_have_their_own_memory(wide):
    batches = wide.iter(0, 1, batch_size=64, threads=1)
    for batch in batches:
        assert batch["values"][0, 0] == batch["number"][0]
    twin = pickle.loads(pickle.dumps(batches))
    assert twin._pools is not batches._pools
    assert [batch["number"][0] for batch in twin] == [*range(0, 640, 64)]
