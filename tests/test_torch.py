"""Datasets, iterations and columns in the hands of torch, and of dask."""

from __future__ import annotations

import subprocess
import sys

import dask.array
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

import npstream
from npstream.batch import Batch, Ragged

N = 61

pytestmark = [
    # Three workers are more than a small machine has cores, and worth a test all the same.
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
    # Torch forks its workers from a process that has threads, from Python 3.12 on noted.
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("torch") / "data"
    columns = {
        "x": np.arange(2 * N, dtype=np.float32).reshape(N, 2),
        "tokens": np.arange(3 * N, dtype=np.uint16).reshape(N, 3),
        "label": np.arange(N),
        "text": ["z" * (i % 7) for i in range(N)],
    }
    npstream.write(path, columns, shard_size="512B")
    return path


@pytest.fixture(scope="module")
def ds(path):
    return npstream.open(path)


def label(sample):
    """Transform a sample; spawned workers find it by name."""
    return int(sample["label"])


def contents(batch):
    """Return a batch in a form that compares."""
    assert type(batch) is Batch
    assert isinstance(batch["x"], torch.Tensor)
    assert isinstance(batch["text"], Ragged)
    numbers = batch["x"].tolist(), batch["tokens"].tolist(), batch["label"].tolist()
    return numbers, list(batch["text"]), batch.ids.tolist(), batch.repeated.tolist()


# Iterations


def test_an_iteration_is_an_iterable_dataset(ds):
    batches = ds.iter(0, 1, batch_size=4)
    assert isinstance(batches, IterableDataset)
    assert not isinstance(batches, torch.utils.data.IterDataPipe)
    assert isinstance(batches, npstream.iterate.Iteration)
    assert not isinstance(ds, IterableDataset)


def test_an_iteration_needs_no_torch_and_knows_it_when_it_comes(path):
    code = f"""
import sys
import npstream
batches = npstream.open({str(path)!r}).iter(0, 1, batch_size=10)
assert [batch.n for batch in batches] == [10] * 7
assert "torch" not in sys.modules
from torch.utils.data import DataLoader, IterableDataset
assert isinstance(batches, IterableDataset)
loader = DataLoader(batches, batch_size=None)
assert [tuple(batch["x"].shape) for batch in loader] == [(10, 2)] * 7
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("last", ["repeat", "drop", "short"])
def test_batches_are_the_same_for_any_number_of_workers(ds, last):
    batches = ds.shuffle(1, block=None).iter(1, 2, batch_size=7, last=last)
    loaders = [DataLoader(batches, batch_size=None, num_workers=k) for k in range(4)]
    alone, *shared = [[contents(batch) for batch in loader] for loader in loaders]
    assert alone == [contents(batch.to_torch()) for batch in batches]
    assert len(loaders[0]) == len(alone) > 1
    for share in shared:
        assert share == alone


def test_torch_makes_the_same_batches_of_samples_for_any_number_of_workers(ds):
    view = ds.shuffle(1, block=None)
    samples = view.iter(0, 2, batch_size=4, batched=False, last="short")
    loaders = [DataLoader(samples, batch_size=4, num_workers=k) for k in range(4)]
    alone, *shared = [[batch["label"].tolist() for batch in loader] for loader in loaders]
    assert alone == [b.ids.tolist() for b in view.iter(0, 2, batch_size=4, last="short")]
    assert len(loaders[0]) == len(alone) == 8
    for share in shared:
        assert share == alone


def test_two_ranks_with_workers_see_every_sample_once(ds):
    seen = [
        row
        for rank in range(2)
        for batch in DataLoader(
            ds.iter(rank, 2, batch_size=4, last="short"), batch_size=None, num_workers=2
        )
        for row in batch["label"].tolist()
    ]
    assert sorted(seen) == list(range(N))


@pytest.mark.parametrize("start", ["fork", "spawn", "forkserver"])
def test_workers_of_any_kind_live_on(ds, start):
    samples = ds.with_transform(label).iter(0, 1, batch_size=8, batched=False)
    loader = DataLoader(
        samples,
        batch_size=8,
        num_workers=2,
        multiprocessing_context=start,
        persistent_workers=True,
    )
    epochs = [[row for batch in loader for row in batch.tolist()] for _ in range(2)]
    assert epochs == [[*range(N), 0, 1, 2]] * 2


@pytest.mark.filterwarnings("ignore:samples are dealt to 2 workers one by one:UserWarning")
def test_samples_that_are_dealt_one_by_one_keep_their_order(ds):
    samples = DataLoader(ds.iter(0, 1), batch_size=None, num_workers=2)
    assert [int(sample["label"]) for sample in samples] == list(range(N))


# Ranks


@pytest.fixture
def process_group():
    """Initialise torch.distributed for this process alone."""
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture
def launched(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")


@pytest.mark.usefixtures("launched", "process_group")
def test_a_process_group_is_asked_before_the_environment(ds):
    assert len(ds.iter()) == N


@pytest.mark.usefixtures("process_group")
def test_what_is_given_goes_before_a_process_group(ds):
    assert len(ds.iter(1, 2, last="drop")) == N // 2


@pytest.mark.usefixtures("launched")
def test_a_process_group_that_disagrees_raises(ds, request):
    made, used, given = ds.iter(), ds.iter(), ds.iter(1, 2)
    assert len(used) == len(given) == 31
    request.getfixturevalue("process_group")
    assert len(made) == N
    assert len(given) == 31
    for use in (len, iter):
        with pytest.raises(RuntimeError, match=r"was \(1, 2\).*says \(0, 1\).*init_process_group"):
            use(used)


# Datasets and columns


@pytest.mark.parametrize("workers", [0, 2])
def test_a_dataset_is_a_map_style_one(ds, workers):
    loader = DataLoader(ds, batch_size=8, shuffle=True, num_workers=workers)
    rows = []
    for batch in loader:
        assert batch["tokens"].dtype == torch.uint16
        np.testing.assert_array_equal(batch["x"][:, 0], 2 * batch["label"])
        assert [len(text) % 7 for text in batch["text"]] == (batch["label"] % 7).tolist()
        rows += batch["label"].tolist()
    assert sorted(rows) == list(range(N))


def test_a_view_with_a_transform_is_a_map_style_dataset(ds):
    loader = DataLoader(ds[::2].with_transform(label), batch_size=16, num_workers=1)
    assert [row for batch in loader for row in batch.tolist()] == list(range(0, N, 2))


def test_the_samples_of_a_batch_are_read_together(ds, monkeypatch):
    reads = []
    samples = npstream.source.Source.samples
    monkeypatch.setattr(
        npstream.source.Source,
        "samples",
        lambda self, names, ids: reads.append(len(ids)) or samples(self, names, ids),
    )
    assert len(list(DataLoader(ds, batch_size=20))) == 4
    assert reads == [20, 20, 20, 1]


def test_from_numpy_shares_memory(ds):
    batch = ds[5:9].load()
    tensor = torch.from_numpy(batch["x"])
    tensor[0, 0] = -1
    assert batch["x"][0, 0] == -1


def test_a_column_becomes_a_tensor(ds):
    assert ds["label"].to_torch().tolist() == list(range(N))
    assert torch.equal(ds["x"][::-2].to_torch(), torch.from_numpy(ds["x"].load()[::-2].copy()))


@pytest.mark.parametrize("chunks", ["auto", (20, 1)])
def test_dask_reads_a_column(ds, chunks):
    array = dask.array.from_array(ds["x"], chunks=chunks)
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array.compute(), ds["x"].load())
    np.testing.assert_array_equal(array[::7, 1].compute(), ds["x"].load()[::7, 1])
    assert array.sum().compute() == ds["x"].load().sum()
