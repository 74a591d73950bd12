"""`gather="device"`: the values, what the device gathers, and the fallbacks with their one warning.

A stand-in device takes the place of CUDA, see `gather_device`.
"""

from __future__ import annotations

import gc
import os
import pickle
import warnings

import numpy as np
import pytest

import npstream

torch = pytest.importorskip("torch")
from gather_device import GatherDevice  # noqa: E402

from npstream.torch import device as device_module  # noqa: E402
from npstream.torch import device_gather, registry  # noqa: E402
from npstream.torch.gather_columns import GatherError  # noqa: E402

ROWS = 600


class Devices:
    """The stand-ins that loops have made, and the registry that they share.

    Each stand-in gets the attributes in `changes`.
    """

    def __init__(self, limit=1 << 30):
        self.limit, self.all, self.registry, self.changes = limit, [], None, {}

    def make(self, device):
        memory = self.all[0].memory if self.all else None
        self.all.append(GatherDevice(memory))
        vars(self.all[-1]).update(self.changes)
        return self.all[-1]

    def registry_of(self, device, memory, ranks):
        if self.registry is None:
            self.registry = registry.ShardRegistry(memory, self.limit)
        return self.registry

    @property
    def memory(self):
        return self.all[0].memory

    @property
    def gathered(self):
        """The columns that the devices have gathered, for each batch."""
        return [columns for device in self.all for columns in device.gathered]


@pytest.fixture
def devices(monkeypatch):
    """Let device="cuda" mean the stand-in."""
    devices = Devices()
    monkeypatch.setattr(device_gather, "CudaGatherBackend", devices.make)
    monkeypatch.setattr(device_gather, "find_cuda_obstacle", lambda: None)
    monkeypatch.setattr(device_gather, "process_registry", devices.registry_of)
    monkeypatch.setattr(device_gather, "_warned", set())
    monkeypatch.setattr(device_module, "CudaBackend", lambda device: GatherDevice())
    return devices


COLUMNS = {
    "number": np.arange(ROWS),
    "vector": np.random.default_rng(0).standard_normal((ROWS, 25, 5), dtype=np.float32),
    "small": np.arange(ROWS).astype(np.uint8),
    "flag": np.arange(ROWS) % 3 == 0,
    "date": np.arange(ROWS).astype("datetime64[s]"),
}


@pytest.fixture
def ds(tmp_path):
    npstream.write(tmp_path / "data", COLUMNS, shard_size="8KiB")
    with npstream.open(tmp_path / "data") as dataset:
        yield dataset


def loop(dataset, **options):
    return dataset.iter(0, 1, **{"batch_size": 20, "device": "cuda", "gather": "device"} | options)


def assert_same_loops(batches, dataset, epochs=1, **options):
    """Compare with a loop that yields arrays."""
    expected = dataset.iter(0, 1, **{"batch_size": 20, "threads": 0} | options)
    for _ in range(epochs):
        for batch, arrays in zip(batches, expected, strict=True):
            assert list(batch) == list(arrays)
            assert np.array_equal(batch.ids, arrays.ids)
            assert np.array_equal(batch.repeated, arrays.repeated)
            for name, column in arrays.items():
                if column.dtype.kind == "M":
                    assert np.array_equal(batch[name], column)
                else:
                    assert batch[name].numpy().dtype == column.dtype
                    assert np.array_equal(batch[name].numpy(), column)
        assert batches.state_dict() == expected.state_dict()


def assert_falls_back(batches, dataset, reason, epochs=2, **options):
    """Compare with a loop that yields arrays; there is one warning, which has the reason."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert_same_loops(batches, dataset, epochs, **options)
    (warning,) = caught
    assert warning.category is RuntimeWarning
    assert dataset._source.fetcher.shards.root in str(warning.message)
    assert "threads read batches into pinned buffers" in str(warning.message)
    assert reason in str(warning.message)


@pytest.mark.parametrize("threads", [None, 1, 3])
@pytest.mark.parametrize("batch_size", [1, 20, 250, 1000])
def test_batches_have_the_values_of_the_arrays(ds, devices, threads, batch_size):
    options = {"shuffle": True, "batch_size": batch_size}
    assert_same_loops(loop(ds, threads=threads, **options), ds, 2, **options)
    assert {tuple(columns) for columns in devices.gathered} == {("number", "vector", "small")}
    assert len(devices.gathered) == 2 * -(-ROWS // batch_size)


@pytest.mark.parametrize("columns", [["vector"], ["flag", "number"], ["date", "small"]])
def test_the_device_gathers_numbers_and_threads_read_other_columns(ds, devices, columns):
    assert_same_loops(loop(ds[columns]), ds[columns])
    expected = [name for name in columns if name not in ("flag", "date")]
    assert {tuple(columns) for columns in devices.gathered} == {tuple(expected)}


def test_each_batch_has_memory_of_its_own(ds, devices):
    storages = {
        batch["number"].untyped_storage().data_ptr() for batch in [*loop(ds[["number"]], threads=1)]
    }
    assert len(storages) == ROWS // 20


def test_a_short_last_batch(ds, devices):
    assert_same_loops(loop(ds, batch_size=70, last="short"), ds, batch_size=70, last="short")


def test_a_broken_bool_is_found(ds, devices, tmp_path):
    npstream.write(tmp_path / "flags", {"flag": np.zeros(10, bool), "number": np.arange(10)})
    with npstream.open(tmp_path / "flags") as dataset:
        (stride,) = (layout.stride for layout in dataset._source.fetcher.layouts)
        offset = dataset._source.fetcher.layouts[0].columns["flag"].offset
    (shard,) = (tmp_path / "flags").glob("*.mds")
    content = bytearray(shard.read_bytes())
    content[len(content) - 3 * stride + offset] = 2
    shard.write_bytes(content)
    with (
        npstream.open(tmp_path / "flags") as dataset,
        pytest.raises(npstream.errors.FormatError, match=r"sample 7 .*the byte 2 is not a bool"),
    ):
        list(loop(dataset, batch_size=5))


def test_a_loop_in_order_registers_no_more_bytes_than_the_limit(ds, devices):
    """The stand-in raises if a shard is unregistered before the device has read it."""
    devices.limit = 4 * 8192
    assert_same_loops(loop(ds, threads=3, prefetch=2), ds, 2)
    assert 3 * 8192 <= devices.memory.max_nbytes <= devices.limit
    # Up to four shards of the first epoch are still registered in the second one.
    assert devices.memory.registrations >= 2 * len(ds._source.index) - 4
    assert len(devices.gathered) == 2 * ROWS // 20


def test_batches_of_more_shards_than_the_limit_are_read_by_threads(ds, devices):
    devices.limit = 4 * 8192
    reason = "more bytes than the 32.0 KiB that are registered at most; shuffle in blocks"
    assert_falls_back(loop(ds, shuffle=True), ds, reason, shuffle=True)
    assert not devices.memory.pages


def test_shards_are_not_registered_again_and_again(ds, devices):
    """Each batch of 2 needs few shards, but other ones than the batch before."""
    devices.limit = 4 * 8192
    reason = "registering shards moves more bytes than the batches have"
    options = {"shuffle": True, "batch_size": 2}
    assert_falls_back(loop(ds, threads=1, prefetch=2, **options), ds, reason, **options)
    assert devices.gathered
    assert devices.memory.max_nbytes <= devices.limit


def test_the_first_batches_register_few_shards_each(ds, devices, monkeypatch):
    """Until the device can read all shards of a batch, threads read it, without a warning."""
    monkeypatch.setattr(registry, "MAX_NEW_BYTES", 4 * 8192)
    options = {"shuffle": True, "batch_size": 50}
    assert_same_loops(loop(ds, threads=1, prefetch=2, **options), ds, 2, **options)
    assert 0 < len(devices.gathered) < 2 * ROWS // 50
    assert devices.memory.registrations == len(ds._source.index)


def test_closing_the_dataset_unregisters_its_shards(ds, devices):
    iterator = iter(loop(ds, shuffle=True, threads=2))
    next(iterator)
    assert devices.memory.pages
    ds.close()
    assert not devices.memory.pages


def test_deleting_the_dataset_unregisters_its_shards(tmp_path, devices):
    npstream.write(tmp_path / "other", COLUMNS)
    dataset = npstream.open(tmp_path / "other")
    for _ in loop(dataset):
        pass
    assert devices.memory.pages
    del dataset, _
    gc.collect()
    assert not devices.memory.pages


def test_loops_share_registrations(ds, devices):
    first, second = iter(loop(ds)), iter(loop(ds[::2]))
    for _ in range(10):
        next(first), next(second)
    assert devices.memory.registrations == len(devices.memory.pages)


def test_mixtures_are_gathered(ds, devices, tmp_path):
    npstream.write(tmp_path / "other", COLUMNS)
    with npstream.open(tmp_path / "other") as other:
        mixture = npstream.mix({"a": ds, "b": other[::-1]})
        assert_same_loops(loop(mixture, shuffle=True), mixture, shuffle=True)
        assert devices.gathered


def test_renamed_and_added_columns(ds, devices, tmp_path):
    renamed = ds.rename({"number": "n"})
    assert_same_loops(loop(renamed), renamed)
    assert devices.gathered[-1] == ["n", "vector", "small"]
    npstream.add_columns(tmp_path / "data", {"extra": np.arange(ROWS)[::-1]})
    with npstream.open(tmp_path / "data") as added:
        assert_same_loops(loop(added), added)
    assert devices.gathered[-1] == ["number", "vector", "small"]


def test_cached_shards_are_gathered_once_the_cache_has_them(devices, tmp_path):
    npstream.write("memory://gathered/data", COLUMNS, shard_size="8KiB")
    with npstream.open("memory://gathered/data", cache=tmp_path / "cache") as dataset:
        reason = "not all chunks of the shards are in the cache"
        assert_falls_back(loop(dataset), dataset, reason, 1)
        before = len(devices.gathered)
        batches = loop(dataset)
        assert_same_loops(batches, dataset)
        assert len(devices.gathered) == before + ROWS // 20
        assert devices.memory.pages
        assert batches.stats.requests == 0
        assert batches.stats.bytes_used > 0


@pytest.mark.parametrize(
    ("columns", "write_options", "reason"),
    [
        ({"text": ["a", "bc"] * 300, "number": COLUMNS["number"]}, {}, "samples vary in size"),
        ({"flag": COLUMNS["flag"]}, {}, "no values of fixed size that torch has a dtype for"),
        ({"number": COLUMNS["number"]}, {"compression": "zstd"}, "the shards are compressed"),
        ({"number": COLUMNS["number"]}, {"format": "jsonl"}, "lines of text"),
    ],
    ids=["varying", "bool", "compressed", "text"],
)
def test_datasets_that_no_device_can_gather(devices, tmp_path, columns, write_options, reason):
    npstream.write(tmp_path / "other", columns, **write_options)
    with npstream.open(tmp_path / "other") as dataset:
        view = dataset if "text" not in columns else dataset[["number"]]
        assert_falls_back(loop(view), view, reason)
    assert not devices.gathered


def test_shards_with_other_columns(devices, tmp_path):
    npstream.write(tmp_path / "a", {"x": np.arange(50)})
    npstream.write(tmp_path / "b", {"w": np.arange(50), "x": np.arange(50)})
    with npstream.open(tmp_path / "a") as first, npstream.open(tmp_path / "b") as second:
        both = npstream.concat([first, second[["x"]]])
        reason = "not all shards have the same columns of fixed size"
        assert_falls_back(loop(both, shuffle=True), both, reason, shuffle=True)
        assert_same_loops(loop(both, batch_size=50, prefetch=2), both, batch_size=50)
        assert len(devices.gathered) == 2


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"on_error": "skip"}, "on_error='skip' reads samples one by one"),
        ({"transform": lambda batch: batch}, "transforms take arrays"),
        ({"transform": lambda batch: batch, "threads": 2}, "transforms take arrays"),
        ({"device": "meta"}, "'meta' is no CUDA device"),
    ],
    ids=["on_error", "transform", "threads", "device"],
)
def test_loops_that_no_device_can_gather(ds, devices, options, reason):
    with pytest.warns(RuntimeWarning, match=reason) as caught:
        batches = list(loop(ds[["number"]], **options))
    assert len(caught) == 1
    assert len(batches) == ROWS // 20
    assert len(list(loop(ds[["number"]], **options))) == ROWS // 20  # without a warning
    assert not devices.gathered


def test_an_obstacle_of_cuda_is_named(ds, devices, monkeypatch):
    monkeypatch.setattr(device_gather, "find_cuda_obstacle", lambda: "Triton is not installed")
    assert_falls_back(loop(ds), ds, "Triton is not installed")


@pytest.mark.parametrize(
    "change",
    [{"error": GatherError("Triton failed: no compiler")}, {"is_wrong": True}],
    ids=["kernel", "values"],
)
def test_a_device_that_fails_is_not_asked_again(ds, devices, change):
    devices.changes = change
    reason = "Triton failed: no compiler" if "error" in change else "differ from those that the"
    assert_falls_back(loop(ds, threads=1), ds, reason, 1)
    assert len(devices.gathered) <= ROWS // 20 // 2


def test_a_driver_that_refuses_is_not_asked_again(ds, devices):
    iterator = iter(loop(ds))
    next(iterator)
    ds.close()
    devices.memory.error = "cuMemHostRegister returned 801 (CUDA_ERROR_NOT_SUPPORTED)"
    with npstream.open(ds._source.fetcher.shards.root) as again:
        before = len(devices.gathered)
        assert_falls_back(loop(again), again, "CUDA_ERROR_NOT_SUPPORTED")
        assert len(devices.gathered) == before


def test_a_full_device_raises(ds, devices):
    devices.changes = {"error": torch.OutOfMemoryError("the device is full")}
    with pytest.raises(torch.OutOfMemoryError):
        list(loop(ds, threads=1))


def test_a_registry_belongs_to_one_device(monkeypatch, ds):
    monkeypatch.setattr(device_gather, "_registry", None)
    monkeypatch.setattr(device_gather, "available_memory", lambda: 1600)
    memory = GatherDevice().memory
    first = device_gather.process_registry(0, memory, 8)
    assert first.limit == 100  # half of the memory, for 8 ranks
    assert device_gather.process_registry(0, memory, 8) is first
    assert device_gather.process_registry(1, memory, 8) is None


def test_a_fork_after_cuda_started_is_refused(ds, monkeypatch):
    monkeypatch.setattr(device_gather, "find_cuda_obstacle", lambda: None)
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    with pytest.raises(RuntimeError, match="forked after its parent had started CUDA"):
        next(iter(loop(ds)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_without_cuda_the_loop_raises_before_it_reads(ds):
    with pytest.raises(RuntimeError, match="torch finds no CUDA device here"):
        next(iter(loop(ds)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gather": "host"}, "gather='host': expected 'device'"),
        ({"device": None}, "gather='device' needs a device"),
        ({"batch_size": None}, "this iteration yields samples"),
        ({"batched": False}, "this iteration yields samples"),
        ({"threads": 0}, "gather='device' with threads=0"),
        ({"prefetch": 0}, "gather='device' with prefetch=0"),
        ({"prefetch": "0B"}, "gather='device' with prefetch='0B'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(ds, options, message):
    with pytest.raises(ValueError, match=message):
        loop(ds, **options)


def test_a_pickled_iteration_keeps_the_setting(ds, devices):
    batches = pickle.loads(pickle.dumps(loop(ds)))
    assert len(list(batches)) == ROWS // 20
    assert devices.gathered


def test_a_forked_process_forgets_registered_shards(ds, devices):
    list(loop(ds))
    assert devices.registry.nbytes
    child = os.fork()
    if not child:
        os._exit(1 if devices.registry.nbytes else 0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
