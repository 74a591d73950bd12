"""`ds.iter(device="cuda")` on a GPU. Deselected by default: run ``pytest -m gpu tests/torch``.

With `gather="device"`, a fallback fails the test, because its warning is an error.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import npstream

torch = pytest.importorskip("torch")
from npstream.torch import device_gather  # noqa: E402
from npstream.torch.cuda_gather import CudaGatherBackend  # noqa: E402
from npstream.torch.registry import ShardRegistry  # noqa: E402

pytestmark = pytest.mark.gpu
ROWS = 50_000


@pytest.fixture(scope="module")
def ds(tmp_path_factory):
    generator = np.random.default_rng(0)
    columns = {
        "number": np.arange(ROWS),
        "tokens": generator.integers(0, 50_000, (ROWS, 512), dtype=np.uint16),
        "array": [np.arange(k % 9 + 1, dtype=np.float32) for k in range(ROWS)],
    }
    path = tmp_path_factory.mktemp("cuda") / "data"
    npstream.write(path, columns)
    return npstream.open(path)


@pytest.mark.parametrize("threads", [0, 1, 8])
@pytest.mark.parametrize("size", [32, 1024, 8192])
def test_batches_on_the_device_have_the_values_of_the_arrays(ds, threads, size):
    """The loop's stream is kept busy, so a missing wait for a copy would show wrong values."""
    view = ds[["number", "tokens"]]
    sums = []
    busy = torch.rand(2048, 2048, device="cuda")
    for batch in view.iter(0, 1, batch_size=size, shuffle=True, threads=threads, device="cuda"):
        torch.mm(busy, busy)
        assert batch["tokens"].device.type == "cuda"
        sums.append((batch["number"].sum(), batch["tokens"].to(torch.int64).sum()))
    arrays = view.iter(0, 1, batch_size=size, shuffle=True, threads=0)
    for (numbers, tokens), batch in zip(sums, arrays, strict=True):
        assert int(numbers) == batch["number"].sum()
        assert int(tokens) == batch["tokens"].sum(dtype=np.int64)


def test_columns_of_varying_size_become_nested_tensors_on_the_device(ds):
    view = ds[["array"]]
    for batch in view.iter(0, 1, batch_size=1000, threads=2, device="cuda"):
        lengths = batch["array"].offsets().diff().tolist()
        assert lengths == (batch.ids % 9 + 1).tolist()
        assert batch["array"].values().device.type == "cuda"


def test_a_loop_on_another_stream_has_the_values_of_the_arrays(ds):
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for batch in ds[["number"]].iter(0, 1, batch_size=1000, threads=2, device="cuda"):
            total = batch["number"].sum()
            assert int(total) == batch.ids.sum()


def test_a_forked_process_refuses_the_device(ds):
    torch.zeros(1, device="cuda")
    child = os.fork()
    if not child:
        try:
            next(iter(ds[["number"]].iter(0, 1, batch_size=10, device="cuda")))
        except RuntimeError as error:
            os._exit(0 if "forked after its parent had started CUDA" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.fixture
def registry(monkeypatch):
    """Return the registry of one test, in place of that of the process."""
    memory = CudaGatherBackend(torch.device("cuda")).memory
    registry = ShardRegistry(memory, 1 << 34)
    monkeypatch.setattr(device_gather, "_registry", (torch.cuda.current_device(), registry))
    return registry


@pytest.fixture(scope="module")
def fixed(tmp_path_factory):
    """Return the path of a dataset whose samples have one size, and begin at any byte."""
    generator = np.random.default_rng(0)
    columns = {
        "number": np.arange(ROWS),
        "small": generator.integers(0, 256, (ROWS, 3), np.uint8),
        "tokens": generator.integers(0, 50_000, (ROWS, 515), np.uint16),
        "flag": np.arange(ROWS) % 3 == 0,
    }
    path = tmp_path_factory.mktemp("gather") / "data"
    npstream.write(path, columns, shard_size="4MiB")
    return path


def assert_gathered(dataset, **options):
    """Compare a loop on the device, whose stream is kept busy, with one that yields arrays."""
    busy = torch.rand(2048, 2048, device="cuda")
    batches = []
    for batch in dataset.iter(0, 1, device="cuda", gather="device", **options):
        torch.mm(busy, busy)
        batches.append({name: column.clone() for name, column in batch.items()})
    arrays = dataset.iter(0, 1, **options | {"threads": 0})
    for batch, expected in zip(batches, arrays, strict=True):
        for name, column in expected.items():
            assert batch[name].device.type == "cuda"
            assert np.array_equal(batch[name].cpu().numpy(), column)


@pytest.mark.parametrize("threads", [1, 8])
@pytest.mark.parametrize("size", [1, 1000, 8192])
def test_the_device_gathers_the_values_of_the_arrays(fixed, registry, threads, size):
    with npstream.open(fixed) as dataset:
        view = dataset if size > 1 else dataset[:2000]
        assert_gathered(view, batch_size=size, shuffle=True, threads=threads)
        assert registry.nbytes
    assert not registry.nbytes


def test_shards_are_unregistered_while_the_device_gathers(fixed, registry):
    registry.limit = 3 * (5 << 20)  # three shards of 4 MiB
    with npstream.open(fixed) as dataset:
        assert_gathered(dataset, batch_size=1000, threads=4)
        assert 0 < registry.nbytes <= registry.limit
    assert not registry.nbytes


def test_the_pages_of_a_registered_file_are_not_copied(fixed, registry):
    """A private map would get pages of its own."""
    with npstream.open(fixed) as dataset:
        before = private_bytes()
        assert_gathered(dataset[["tokens"]], batch_size=1000, threads=1)
        assert private_bytes() - before < registry.nbytes // 2


def private_bytes():
    """Return the bytes of anonymous pages in maps of shards."""
    total, is_file = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):
            is_file = words[-1].endswith(".mds")
        elif is_file and words[0] == "Anonymous:":
            total += 1024 * int(words[1])
    return total
