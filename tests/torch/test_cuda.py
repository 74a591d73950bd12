"""`ds.iter(device="cuda")` on a GPU. Deselected by default: run ``pytest -m gpu tests/torch``."""

from __future__ import annotations

import os

import numpy as np
import pytest

import npstream

torch = pytest.importorskip("torch")
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


def test_copies_use_another_stream_than_the_loop(ds):
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
