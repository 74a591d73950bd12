"""Placers of `ds.iter(to=, device=)`: tensors over the same memory, pinned buffers, and events.

A stand-in device takes the place of CUDA. Its copies take place only when something waits for them,
so a race on a device is an error here.
"""

from __future__ import annotations

import threading
from collections import deque

import numpy as np
import pytest

import npstream

torch = pytest.importorskip("torch")
from npstream.torch import device as device_module  # noqa: E402
from npstream.torch.device import PinnedPlacer, PinnedRing, Placer, make_placer  # noqa: E402

ROWS = 600

WRONG = 99
"""Value of the elements of a tensor until the stand-in has done the copy."""


class Event:
    """An event after copies of the stand-in, which take place when something waits for it."""

    def __init__(self, device, number):
        self._device, self._number = device, number
        self.is_done = False

    def synchronize(self):
        self._device.host_waits.append(threading.current_thread().name)
        self.complete()

    def complete(self):
        self._device.run_copies(self._number)
        self.is_done = True


class StandIn:
    """A device whose copies are late: they take place when the loop or a buffer waits for them.

    As in a stream, they take place in the order in which they were started.
    """

    device = torch.device("cpu")

    def __init__(self):
        self._lock, self._started, self._copies = threading.Lock(), 0, deque()
        self.pinned_sizes, self.host_waits, self.received, self.pinned_ranges = [], [], 0, []

    def pinned(self, nbytes):
        memory = torch.empty(nbytes, dtype=torch.uint8)
        self.pinned_sizes.append(nbytes)
        self.pinned_ranges.append((memory.data_ptr(), memory.data_ptr() + nbytes, memory))
        return memory

    def send(self, sources):
        for source in sources:
            begin, end = source.data_ptr(), source.data_ptr() + source.nbytes
            assert not source.nbytes or any(
                a <= begin and end <= b for a, b, _ in self.pinned_ranges
            )
        copies = [torch.full_like(source, WRONG) for source in sources]
        with self._lock:
            self._started += 1
            self._copies.append((self._started, copies, sources))
            return copies, Event(self, self._started)

    def run_copies(self, last):
        """Run all copies up to those with the number `last`."""
        with self._lock:
            while self._copies and self._copies[0][0] <= last:
                _, copies, sources = self._copies.popleft()
                for copy, source in zip(copies, sources, strict=True):
                    copy.copy_(source)

    def receive(self, copies, event):
        event.complete()
        self.received += 1


@pytest.fixture
def stand_in(monkeypatch):
    """Let device="cuda" mean the stand-in; return the list of the stand-ins that loops make."""
    backends = []

    def make(device):
        backends.append(StandIn())
        return backends[-1]

    monkeypatch.setattr(device_module, "CudaBackend", make)
    return backends


@pytest.fixture
def ds(tmp_path):
    generator = np.random.default_rng(0)
    columns = {
        "number": np.arange(ROWS),
        "vector": generator.standard_normal((ROWS, 3), dtype=np.float32),
        "text": [f"sample {k}" for k in range(ROWS)],
        "array": [np.arange(int(n), dtype=np.int16) for n in generator.integers(1, 9, ROWS)],
    }
    path = tmp_path / "data"
    npstream.write(path, columns, shard_size="8KiB")
    with npstream.open(path) as dataset:
        yield dataset


def assert_same(tensors, arrays):
    assert list(tensors) == list(arrays)
    assert np.array_equal(tensors.ids, arrays.ids)
    assert np.array_equal(tensors.repeated, arrays.repeated)
    for name, column in arrays.items():
        if name == "text":
            assert list(tensors[name]) == list(column)
        elif isinstance(column, npstream.Ragged):
            assert tensors[name].is_nested
            assert all(
                torch.equal(row, torch.from_numpy(np.asarray(expected)))
                for row, expected in zip(tensors[name].unbind(), column, strict=True)
            )
        else:
            assert np.array_equal(tensors[name].numpy(), column)


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("columns", [["number", "vector"], ["number", "text", "array"]])
def test_cpu_tensors_have_the_values_of_the_arrays(ds, threads, columns):
    view = ds[columns]
    arrays = view.iter(0, 1, batch_size=70, shuffle=True, threads=0)
    tensors = view.iter(0, 1, batch_size=70, shuffle=True, threads=threads, to="torch")
    for left, right in zip(tensors, arrays, strict=True):
        assert_same(left, right)


def test_cpu_tensors_share_the_memory_of_the_arrays(ds):
    seen = []

    def transform(batch):
        seen.append(batch["vector"])
        return batch

    for batch in ds.iter(0, 1, batch_size=100, to="torch", transform=transform, threads=0):
        assert batch["vector"].data_ptr() == seen[-1].ctypes.data


@pytest.mark.parametrize("threads", [0, 1, 3])
@pytest.mark.parametrize(
    "columns", [["number", "vector"], ["number", "text", "array"], ["text"], ["array"]]
)
def test_device_batches_have_the_values_of_the_arrays(ds, stand_in, threads, columns):
    """Copies are late, so a buffer that was used again too early would give wrong values."""
    view = ds[columns]
    arrays = view.iter(0, 1, batch_size=20, shuffle=True, threads=0)
    moved = view.iter(0, 1, batch_size=20, shuffle=True, threads=threads, device="cuda")
    for _ in range(2):
        for left, right in zip(moved, arrays, strict=True):
            assert_same(left, right)
            assert moved.state_dict() == arrays.state_dict()
    assert sum(backend.received for backend in stand_in) == 2 * ROWS // 20


def test_only_threads_wait_for_copies_on_the_host(ds, stand_in):
    view = ds[["number", "vector"]]
    for batch in view.iter(0, 1, batch_size=20, threads=2, prefetch=2, device="cuda"):
        assert batch["number"][0] == batch.ids[0]
    (backend,) = stand_in
    assert set(backend.host_waits) == {"npstream-batches"}


def test_pinned_memory_is_reused(ds, stand_in):
    view = ds[["number", "vector"]]
    batches = view.iter(0, 1, batch_size=20, threads=2, prefetch=4, device="cuda")
    assert len(list(batches)) == ROWS // 20
    (backend,) = stand_in
    buffers = 2 * device_module.BUFFERS_PER_THREAD + 1
    # Each buffer grows at most once per doubling of the size of a group.
    assert len(backend.pinned_sizes) <= 3 * buffers
    # A group has at most 4 batches of 20 samples, and a sample less than 64 bytes.
    assert max(backend.pinned_sizes) <= 4 * 20 * 64


def test_transforms_take_arrays_and_their_results_are_moved(ds, stand_in):
    def transform(batch):
        assert isinstance(batch["vector"], np.ndarray)
        return {"twice": 2 * batch["vector"], "pair": (batch["number"], "text")}

    for threads in (None, 2):
        batches = ds.iter(0, 1, batch_size=20, threads=threads, device="cuda", transform=transform)
        vectors = ds["vector"].load()
        for number, batch in enumerate(batches):
            rows = slice(20 * number, 20 * number + 20)
            assert np.array_equal(batch["twice"].numpy(), 2 * vectors[rows])
            numbers, text = batch["pair"]
            assert (numbers.tolist(), text) == (list(range(rows.start, rows.stop)), "text")


def test_samples_are_moved(ds, stand_in):
    samples = list(ds[["number", "vector"]].iter(0, 1, threads=2, device="cuda"))
    assert [int(sample["number"]) for sample in samples] == list(range(ROWS))
    assert torch.is_tensor(samples[0]["vector"])


def test_a_failed_read_gives_its_buffer_back(ds, stand_in, monkeypatch):
    """There are fewer buffers than failed reads, so a lost one would end in a hang."""
    source = ds._source
    columns, is_failing = type(source).columns, [True]

    def fail(self, *arguments):
        if is_failing[0]:
            raise OSError("unreadable")
        return columns(self, *arguments)

    monkeypatch.setattr(type(source), "columns", fail)
    batches = iter(ds[["number"]].iter(0, 1, batch_size=20, threads=1, device="cuda"))
    for _ in range(20):
        with pytest.raises(OSError, match="unreadable"):
            next(batches)
    is_failing[0] = False
    assert next(batches)["number"][0] == 400


def test_stats_count_the_bytes_of_device_batches(ds, stand_in):
    batches = ds[["vector"]].iter(0, 1, batch_size=20, threads=1, prefetch=8, device="cuda")
    iterator = iter(batches)
    for _ in range(10):
        next(iterator)
    assert 0 < batches.stats.bytes_ahead <= 8 * 20 * 64


def test_a_ring_waits_for_the_last_copy_of_a_buffer():
    backend = StandIn()
    ring = PinnedRing(backend, 2)
    first, second = ring.take(10), ring.take(10)
    _, event = backend.send([])
    ring.give_back(first, event)
    ring.give_back(second, None)
    assert not event.is_done
    assert ring.take(5) is first
    assert event.is_done
    assert len(backend.pinned_sizes) == 2


def test_a_ring_keeps_a_buffer_that_cannot_grow():
    class Full(StandIn):
        def pinned(self, nbytes):
            raise MemoryError

    ring = PinnedRing(Full(), 1)
    for _ in range(3):
        with pytest.raises(MemoryError):
            ring.take(10)


def test_a_failed_copy_gives_its_buffer_back():
    """There are fewer buffers than failed copies, so a lost one would end in a hang."""

    class Full(StandIn):
        def send(self, sources):
            raise MemoryError

    placer = PinnedPlacer(Full(), 1)
    for _ in range(5):
        with pytest.raises(MemoryError):
            placer.place({"x": np.arange(10)})


def test_other_devices_get_plain_copies(ds):
    for batch in ds[["number", "text"]].iter(0, 1, batch_size=100, threads=2, device="meta"):
        assert batch["number"].device.type == "meta"
        assert batch.ids[0] % 100 == 0
    assert type(make_placer("cpu", 2)) is type(make_placer(None, 2)) is Placer


def test_placers_copy_tensors_that_are_not_contiguous():
    placer = PinnedPlacer(StandIn(), 1)
    value = torch.arange(12).reshape(3, 4).T
    assert torch.equal(placer.receive(placer.place({"x": value}))["x"], value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_without_cuda_the_loop_raises_before_it_reads(ds):
    batches = ds.iter(0, 1, batch_size=10, device="cuda")
    with pytest.raises(RuntimeError, match="torch finds no CUDA device here"):
        next(iter(batches))


def test_a_fork_after_cuda_started_is_refused(ds, monkeypatch):
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    with pytest.raises(RuntimeError, match="forked after its parent had started CUDA"):
        next(iter(ds.iter(0, 1, batch_size=10, device="cuda")))


def test_workers_of_a_dataloader_refuse_a_device(ds):
    batches = ds[["number"]].iter(0, 1, batch_size=10, device="cuda")
    loader = torch.utils.data.DataLoader(
        batches, batch_size=None, num_workers=1, multiprocessing_context="fork"
    )
    with pytest.raises(RuntimeError, match="in a worker of a DataLoader"):
        next(iter(loader))


def test_another_kind_of_tensor_is_refused(ds):
    with pytest.raises(ValueError, match="to='jax'"):
        ds.iter(0, 1, batch_size=10, to="jax")
