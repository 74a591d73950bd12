"""Datasets, iterations and columns with torch and dask."""

from __future__ import annotations

import atexit
import copy
import multiprocessing
import subprocess
import sys
import threading

import dask.array
import numpy as np
import pytest
from torch.utils.data import DataLoader, IterableDataset

import npstream
import npstream.torch
import torch
from npstream.reading.batch import Batch, Ragged

N = 61

pytestmark = [
    # Torch warns if there are more workers than cores, as on a small machine.
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
    # Python 3.12 and later warn if torch forks workers from a process with threads.
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
    """Return a batch as lists, to compare it."""
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
    assert isinstance(batches, npstream.iteration.iteration.Iteration)
    assert not isinstance(ds, IterableDataset)


def test_an_iteration_works_with_torch_that_is_imported_later(path):
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


def test_two_ranks_with_workers_read_every_sample_once(ds):
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
def test_persistent_workers_read_the_next_epochs(ds, start):
    settings = {"batch_size": 8, "batched": False, "shuffle": True}
    samples = ds.with_transform(label).iter(0, 1, **settings)
    loader = DataLoader(
        samples,
        batch_size=8,
        num_workers=2,
        multiprocessing_context=start,
        persistent_workers=True,
    )
    epochs = [[row for batch in loader for row in batch.tolist()] for _ in range(2)]
    view = ds.with_transform(label)
    assert epochs == [list(view.iter(0, 1, epoch=epoch, **settings)) for epoch in range(2)]
    samples.load_state_dict({**view.iter(0, 1, **settings).state_dict(), "position": 16})
    rows = [[row for batch in loader for row in batch.tolist()] for _ in range(2)]
    assert rows == [epochs[0][16:], epochs[1]]


UNIMPORTABLE = {
    "view": lambda ds: ds.with_transform(lambda sample: sample),
    "view of a view": lambda ds: ds.with_transform(label).with_transform(lambda number: number),
    "samples": lambda ds: ds.with_transform(lambda sample: sample).iter(0, 1),
    "batches": lambda ds: ds.iter(0, 1, batch_size=8, transform=lambda batch: batch),
    "mixture": lambda ds: npstream.mix({"a": ds.with_transform(lambda sample: sample)}),
    "transformed mixture": lambda ds: npstream.mix({"a": ds}).with_transform(lambda sample: sample),
}


@pytest.mark.filterwarnings("ignore:Got pickle error:UserWarning")  # of torch
@pytest.mark.parametrize("kind", UNIMPORTABLE)
def test_a_lambda_raises_before_spawned_workers_start(ds, kind):
    data = UNIMPORTABLE[kind](ds)
    loader = DataLoader(data, batch_size=None, num_workers=1, multiprocessing_context="spawn")
    with pytest.raises(TypeError, match=r"define it at the top level of a module"):
        next(iter(loader))
    assert len(copy.deepcopy(data)) == len(data)  # a copy in this process keeps the lambda


@pytest.mark.filterwarnings("ignore:Got pickle error:UserWarning")  # of torch
@pytest.mark.parametrize("name", ["collate_fn", "worker_init_fn", "transform="])
def test_a_loader_with_spawned_workers_names_the_function_that_they_cannot_import(ds, name):
    options = {"num_workers": 1, "multiprocessing_context": "spawn"}
    transform = None
    if name == "transform=":
        transform = lambda sample: sample  # noqa: E731
    else:
        options[name] = lambda value: value
    samples = ds.iter(0, 1, transform=transform)
    loader = npstream.torch.DataLoader(samples, **options)
    with pytest.raises(TypeError, match=f"{name} is or holds '.*<lambda>'"):
        next(iter(loader))


@pytest.mark.filterwarnings("ignore:2 workers take single samples in turn:UserWarning")
def test_single_samples_of_workers_keep_their_order(ds):
    samples = DataLoader(ds.iter(0, 1), batch_size=None, num_workers=2)
    assert [int(sample["label"]) for sample in samples] == list(range(N))


# Epochs and states


def batch_ids(loader):
    return [batch.ids.tolist() for batch in loader]


def expected_epochs(ds, count, **settings):
    """Return the ids of the batches of the first epochs, without torch."""
    return [batch_ids(ds.iter(0, 1, epoch=epoch, **settings)) for epoch in range(count)]


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("kind", [DataLoader, npstream.torch.DataLoader], ids=["torch", "ours"])
def test_epochs_advance_and_can_be_set(ds, persistent, kind):
    settings = {"batch_size": 9, "shuffle": True}
    expected = expected_epochs(ds, 6, **settings)
    iteration = ds.iter(0, 1, **settings)
    loader = kind(iteration, batch_size=None, num_workers=2, persistent_workers=persistent)
    assert batch_ids(loader) == expected[0]
    assert next(iter(loader)).ids.tolist() == expected[1][0]  # the loop is left early
    assert batch_ids(loader) == expected[2]
    iteration.set_epoch(5)
    assert batch_ids(loader) == expected[5]
    iteration.load_state_dict({**ds.iter(0, 1, **settings).state_dict(), "position": 18})
    assert batch_ids(loader) == expected[0][2:]
    assert batch_ids(loader) == expected[1]


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        ("spawn", DataLoader),
        ("forkserver", npstream.torch.DataLoader),
    ],
)
def test_epochs_advance_however_workers_are_started(ds, start, kind):
    settings = {"batch_size": 31, "shuffle": True}
    loader = kind(
        ds.iter(0, 1, **settings),
        batch_size=None,
        num_workers=2,
        multiprocessing_context=start,
    )
    assert [batch_ids(loader) for _ in range(2)] == expected_epochs(ds, 2, **settings)


@pytest.mark.parametrize("kind", [DataLoader, npstream.torch.DataLoader], ids=["torch", "ours"])
def test_consecutive_loaders_of_one_iteration_advance_the_epoch(ds, kind):
    settings = {"batch_size": 9, "shuffle": True}
    iteration = ds.iter(0, 1, **settings)
    loaders = [kind(iteration, batch_size=None, num_workers=k) for k in (2, 0, 3, 1, 2)]
    read = [batch_ids(iteration), *map(batch_ids, loaders), batch_ids(iteration)]
    assert read == expected_epochs(ds, 7, **settings)


def test_an_iteration_inside_another_dataset_advances(ds):
    class Wrapper(IterableDataset):
        def __init__(self, inner):
            self.inner = inner

        def __iter__(self):
            return iter(self.inner)

    settings = {"batch_size": 9, "shuffle": True}
    loader = DataLoader(Wrapper(ds.iter(0, 1, **settings)), batch_size=None, num_workers=2)
    assert [batch_ids(loader) for _ in range(2)] == expected_epochs(ds, 2, **settings)


def test_an_iteration_in_torchs_own_workers_has_no_state(ds):
    iteration = ds.iter(0, 1, batch_size=9)
    loader = DataLoader(iteration, batch_size=None, num_workers=2)
    next(iter(loader))
    with pytest.raises(RuntimeError, match=r"npstream\.torch\.DataLoader, which counts it"):
        iteration.state_dict()
    assert iteration.state_dict(18, True)["position"] == 18  # the caller counts


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize(
    ("settings", "batch_size"),
    [
        ({"batch_size": 7}, None),
        ({"batch_size": 7, "batched": False}, 7),
        ({"batch_size": 7, "batched": False, "last": "short"}, 7),
    ],
)
def test_a_loader_counts_yielded_batches(ds, workers, settings, batch_size):
    def loader(workers):
        samples = ds.iter(1, 2, shuffle=True, **settings)
        options = {"prefetch_factor": 2 * workers - 1} if workers else {}
        return npstream.torch.DataLoader(samples, batch_size, num_workers=workers, **options)

    def labels(loader):
        return [batch["label"].tolist() for batch in loader]

    alone = loader(0)
    first, second = labels(alone), labels(alone)
    running = loader(workers)
    for done, batch in enumerate(running, 1):
        assert batch["label"].tolist() == first[done - 1]
        state = running.state_dict()
        if done in (1, 3, len(first)):
            resumed = loader(done % 3)  # also with another number of workers
            resumed.load_state_dict(state)
            assert labels(resumed) == (first[done:] or second)
    assert done == len(first) == len(running)
    assert running.state_dict()["epoch"] == 1
    assert labels(running) == second


def test_loaders_that_cannot_count_raise(ds):
    samples = ds.iter(0, 1, batch_size=4, batched=False)
    with pytest.raises(ValueError, match=r"makes batches of 8 samples, .* read 4 samples in turn"):
        iter(npstream.torch.DataLoader(samples, 8, num_workers=2))
    loader = npstream.torch.DataLoader(samples, 8, num_workers=1)
    next(iter(loader))
    assert loader.state_dict()["position"] == 8
    with pytest.raises(ValueError, match="in_order=False"):
        iter(npstream.torch.DataLoader(samples, 4, num_workers=2, in_order=False))
    with pytest.raises(TypeError, match=r"dataset is a Dataset, and not a result of ds\.iter"):
        npstream.torch.DataLoader(ds)


# Loops over loaders

LOADERS = {
    "alone": {},
    "one": {"num_workers": 1},
    "two": {"num_workers": 2},
    "persistent": {"num_workers": 2, "persistent_workers": True},
    "spawned": {"num_workers": 1, "multiprocessing_context": "spawn"},
}


def labels_of(batch):
    return batch["label"].tolist()


def stop_at_20(batch):
    """Transform a batch; spawned workers find it by name."""
    if 20 in labels_of(batch):
        raise StopIteration
    return batch


def stop(*_):
    raise StopIteration


@pytest.mark.parametrize("kind", LOADERS)
def test_batches_are_skipped_in_a_loop_over_a_loader(ds, kind):
    whole, following = (
        [b.ids.tolist() for b in ds.iter(0, 1, epoch=epoch, batch_size=6, shuffle=True)]
        for epoch in range(2)
    )
    loader = npstream.torch.DataLoader(ds.iter(0, 1, batch_size=6, shuffle=True), **LOADERS[kind])
    seen = []
    for step, batch in enumerate(loader):
        seen.append(batch.ids.tolist())
        if step == 2:
            loader.skip(4, 7)
        state = loader.state_dict()
        if step == 5:
            resumed = ds.iter(0, 1, batch_size=6, shuffle=True)
            resumed.load_state_dict(state)
            assert [b.ids.tolist() for b in resumed] == whole[9:]
    assert seen == [*whole[:4], *whole[7:]]
    assert [batch.ids.tolist() for batch in loader] == following


@pytest.mark.parametrize("kind", ["alone", "two", "persistent"])
def test_calls_that_raise_in_a_loop_over_a_loader(ds, kind):
    loader = npstream.torch.DataLoader(ds.iter(0, 1, batch_size=6), **LOADERS[kind])
    state = loader.state_dict()
    old = iter(loader)
    next(old)
    with pytest.raises(RuntimeError, match="in a loop over epoch"):
        loader.set_epoch(1)
    with pytest.raises(RuntimeError, match="in a loop over epoch"):
        loader.load_state_dict(state)
    new = iter(loader)
    with pytest.raises(RuntimeError, match="this iterator is outdated"):
        next(old)
    assert next(new).ids[0] == 0
    assert loader.state_dict()["position"] == 6


@pytest.mark.parametrize("kind", LOADERS)
def test_epoch_property_of_a_loader_in_a_loop(ds, kind):
    def train(loader, stop=None):
        seen = []
        while loader.epoch < 3:
            for batch in loader:
                seen.append((loader.epoch, batch.ids.tolist()))
                if len(seen) == stop:
                    return seen, loader.state_dict()
        return seen, None

    def make_loader(**options):
        return npstream.torch.DataLoader(ds.iter(0, 1, batch_size=30, shuffle=True), **options)

    whole, _ = train(make_loader())
    assert [epoch for epoch, _ in whole] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    first, state = train(make_loader(**LOADERS[kind]), stop=5)
    loader = make_loader(**LOADERS[kind])
    loader.load_state_dict(state)
    remaining, _ = train(loader)
    assert first + remaining == whole


def large_tensor(_):
    return torch.empty(4_000_000)


LOADER_CLASSES = {"npstream": npstream.torch.DataLoader, "torch": DataLoader}


@pytest.mark.parametrize("loader_class", LOADER_CLASSES.values(), ids=LOADER_CLASSES)
def test_a_spawned_worker_does_not_abort_when_a_loop_is_left(ds, loader_class):
    loader = loader_class(
        ds.iter(0, 1, batch_size=1), batch_size=None, num_workers=1, prefetch_factor=30,
        multiprocessing_context="spawn", collate_fn=large_tensor,
    )  # fmt: skip
    running = set(multiprocessing.active_children())
    batches = iter(loader)
    next(batches)
    (worker,) = set(multiprocessing.active_children()) - running
    del batches  # the worker is pickling other batches
    worker.join()
    assert worker.exitcode == 0


class WriteAtExit:
    """Write two files when the worker exits: in an exit handler, and in a thread."""

    def __init__(self, directory):
        self.directory = directory

    def __call__(self, worker):
        atexit.register((self.directory / "handler").write_text, "called")
        threading.Thread(target=self.write_after_main_thread).start()

    def write_after_main_thread(self):
        threading.main_thread().join()
        (self.directory / "thread").write_text("ended")


def test_a_spawned_worker_calls_exit_handlers_and_waits_for_threads(ds, tmp_path):
    loader = npstream.torch.DataLoader(
        ds.iter(0, 1, batch_size=6), num_workers=1, multiprocessing_context="spawn",
        worker_init_fn=WriteAtExit(tmp_path),
    )  # fmt: skip
    assert len(list(loader)) == 11
    assert (tmp_path / "handler").read_text() == "called"
    assert (tmp_path / "thread").read_text() == "ended"


@pytest.mark.parametrize("kind", ["alone", "two"])
def test_stop_iteration_does_not_end_the_epoch_of_a_loader(ds, kind):
    batches = ds.iter(0, 1, batch_size=6, transform=stop_at_20)
    loader = npstream.torch.DataLoader(batches, **LOADERS[kind])
    iterator = iter(loader)
    assert [labels_of(next(iterator))[0] for _ in range(3)] == [0, 6, 12]
    with pytest.raises(RuntimeError, match="transform= raised StopIteration"):
        next(iterator)
    assert loader.state_dict()["position"] == 18
    batches = ds.iter(0, 1, batch_size=6, transform=stop_at_20)
    plain = DataLoader(batches, batch_size=None, **LOADERS[kind])
    with pytest.raises(RuntimeError, match="transform= raised StopIteration"):
        list(plain)


@pytest.mark.parametrize("name", ["collate_fn", "worker_init_fn"])
@pytest.mark.parametrize("kind", ["alone", "two"])
def test_stop_iteration_in_functions_of_a_loader_raises(ds, kind, name):
    batches = ds.iter(0, 1, batch_size=6, batched=False)
    loader = npstream.torch.DataLoader(batches, 6, **LOADERS[kind], **{name: stop})
    if kind == "alone" and name == "worker_init_fn":
        assert len(list(loader)) == 11  # torch calls this function in workers only
        return
    with pytest.raises(RuntimeError, match=f"{name} raised StopIteration"):
        list(loader)


@pytest.mark.parametrize("kind", ["alone", "two", "persistent"])
@pytest.mark.parametrize("done", [0, 3])
def test_a_copy_of_a_loader_continues_where_the_original_was(ds, kind, done):
    loader = npstream.torch.DataLoader(ds.iter(0, 1, batch_size=6, shuffle=True), **LOADERS[kind])
    iterator = iter(loader)
    for _ in range(done):
        next(iterator)
    other = copy.deepcopy(loader)
    remaining = [batch.ids.tolist() for batch in iterator]
    assert [batch.ids.tolist() for batch in other] == remaining
    assert len(remaining) == 11 - done


def test_an_iteration_in_torchs_own_workers_cannot_be_copied(ds):
    batches = ds.iter(0, 1, batch_size=6)
    loader = DataLoader(batches, batch_size=None, num_workers=1)
    iterator = iter(loader)
    next(iterator)
    with pytest.raises(RuntimeError, match="a copy does not know where to continue"):
        copy.deepcopy(batches)


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # torchdata's own
@pytest.mark.parametrize(("workers", "persistent"), [(0, False), (2, False), (3, True)])
@pytest.mark.parametrize(
    ("settings", "batch_size"),
    [({"batch_size": 9}, None), ({"batch_size": 6, "batched": False}, 6)],
)
def test_torchdata_keeps_exact_states(ds, workers, persistent, settings, batch_size):
    stateful = pytest.importorskip("torchdata.stateful_dataloader", reason="needs torchdata")

    def loader():
        return stateful.StatefulDataLoader(
            ds.iter(0, 1, shuffle=True, **settings),
            batch_size=batch_size,
            num_workers=workers,
            persistent_workers=persistent,
        )

    def labels(loader):
        return [batch["label"].tolist() for batch in loader]

    running = loader()
    first, second, third = (labels(running) for _ in range(3))
    assert first != second != third
    running = loader()
    states = [running.state_dict() for _ in running]
    for done in (1, 4):
        resumed = loader()
        resumed.load_state_dict(states[done - 1])
        assert [labels(resumed) for _ in range(2)] == [first[done:], second]
    resumed = loader()
    resumed.load_state_dict(running.state_dict())
    assert [labels(resumed) for _ in range(2)] == [second, third]


# Ranks


@pytest.fixture
def process_group():
    """Initialize torch.distributed with this process only."""
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture
def launcher_environment(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")


@pytest.mark.usefixtures("launcher_environment", "process_group")
def test_a_process_group_takes_precedence_over_the_environment(ds):
    assert len(ds.iter()) == N


@pytest.mark.usefixtures("process_group")
def test_given_ranks_take_precedence_over_a_process_group(ds):
    assert len(ds.iter(1, 2, last="drop")) == N // 2


@pytest.mark.usefixtures("launcher_environment")
def test_a_process_group_that_disagrees_raises(ds, request):
    unused, used, explicit = ds.iter(), ds.iter(), ds.iter(1, 2)
    assert len(used) == len(explicit) == 31
    request.getfixturevalue("process_group")
    assert len(unused) == N
    assert len(explicit) == 31
    for use in (len, iter):
        with pytest.raises(RuntimeError, match=r"was \(1, 2\).*says \(0, 1\).*init_process_group"):
            use(used)


# Datasets and columns


@pytest.mark.parametrize("workers", [0, 2])
def test_a_dataset_is_a_map_style_dataset(ds, workers):
    loader = DataLoader(ds, batch_size=8, shuffle=True, num_workers=workers)
    rows = []
    for batch in loader:
        assert batch["tokens"].dtype == torch.uint16
        np.testing.assert_array_equal(batch["x"][:, 0], 2 * batch["label"])
        assert [len(text) for text in batch["text"]] == (batch["label"] % 7).tolist()
        rows += batch["label"].tolist()
    assert sorted(rows) == list(range(N))


def test_a_view_with_a_transform_is_a_map_style_dataset(ds):
    loader = DataLoader(ds[::2].with_transform(label), batch_size=16, num_workers=1)
    assert [row for batch in loader for row in batch.tolist()] == list(range(0, N, 2))


def test_the_samples_of_a_batch_are_read_together(ds, monkeypatch):
    reads = []
    samples = npstream.reading.source.Source.samples
    monkeypatch.setattr(
        npstream.reading.source.Source,
        "samples",
        lambda self, names, lookup: reads.append(len(lookup.rows)) or samples(self, names, lookup),
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
def test_dask_can_read_a_column(ds, chunks):
    array = dask.array.from_array(ds["x"], chunks=chunks)
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array.compute(), ds["x"].load())
    np.testing.assert_array_equal(array[::7, 1].compute(), ds["x"].load()[::7, 1])
    assert array.sum().compute() == ds["x"].load().sum()


def one_batch(_):
    return Batch(
        {"x": torch.arange(6).view(3, 2), "y": torch.ones(3, dtype=torch.uint16), "s": "abc",
         "empty": torch.empty(0, 2), "t": torch.zeros(2, 3).T},
        ids=[4, 5, 6],
        repeated=[False, False, True],
    )  # fmt: skip


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_of_a_worker_uses_one_block_of_shared_memory(workers):
    loader = torch.utils.data.DataLoader([0], None, num_workers=workers, collate_fn=one_batch)
    ((batch, expected),) = zip(loader, [one_batch(0)], strict=True)
    assert type(batch) is Batch
    assert list(batch) == list(expected)
    for name, column in expected.items():
        assert type(batch[name]) is type(column)
        assert np.array_equal(batch[name], column)
        if name != "s":
            assert batch[name].dtype is column.dtype
            batch[name].zero_()  # must not change the columns that are compared next
    assert batch.ids.tolist() == [4, 5, 6]
    assert batch.repeated.tolist() == [False, False, True]
    storages = {batch[name].untyped_storage().data_ptr() for name in ("x", "y", "t")}
    assert len(storages) == (1 if workers else 3)
