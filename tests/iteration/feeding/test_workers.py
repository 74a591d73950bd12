"""Transforms in worker processes: order, errors, ends, and what is sent between processes."""

from __future__ import annotations

import os
import pickle
import signal
import socket
from types import SimpleNamespace

import numpy as np
import pytest
from started import started_children

import npstream
from npstream.iteration.feeding import workers
from npstream.iteration.feeding.workers import receive_value, send_value

ROWS = 200


class OwnError(Exception):
    """An exception that pickle can store, but not load."""

    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


def double(batch):
    return {"twice": 2 * batch["x"], "ids": batch.ids, "process": os.getpid()}


def fail(batch):
    if 30 in batch["x"]:
        raise KeyError("wrong")
    return batch


def fail_with_own_error(batch):
    raise OwnError(1, 2)


def die(batch):
    os.kill(os.getpid(), signal.SIGKILL)


def make_function(batch):
    return lambda: None


def negate(sample):
    return -sample["x"]


@pytest.fixture(scope="module")
def ds(tmp_path_factory):
    path = tmp_path_factory.mktemp("workers") / "data"
    npstream.write(path, {"x": np.arange(ROWS), "text": ["a"] * ROWS})
    return npstream.open(path)


def count_descriptors():
    """Return the number of file descriptors that this process has open."""
    return len(os.listdir("/dev/fd"))


def test_workers_transform_batches_in_order(ds):
    batches = list(ds.iter(0, 1, batch_size=10, transform=double, transform_workers=2))
    assert [batch["ids"][0] for batch in batches] == list(range(0, ROWS, 10))
    assert all(np.array_equal(batch["twice"], 2 * batch["ids"]) for batch in batches)
    assert os.getpid() not in {batch["process"] for batch in batches}
    assert not started_children("npstream-transform")
    batches[0]["twice"][:] = 0  # results are writable


def test_an_error_in_a_worker_names_the_samples_and_the_loop_continues(ds):
    batches = iter(ds.iter(0, 1, batch_size=10, transform=fail, transform_workers=1))
    for _ in range(3):
        next(batches)
    with pytest.raises(KeyError, match="wrong") as info:
        next(batches)
    notes = "\n".join(info.value.__notes__)
    assert "in transform= of batch 3 of this loop: samples 30, 31, 32" in notes
    assert "in a process of transform_workers=" in notes
    assert "in fail" in notes
    assert next(batches).ids[0] == 40
    batches.close()
    assert not started_children("npstream-transform")


@pytest.mark.parametrize(
    ("transform", "error", "message"),
    [
        (fail_with_own_error, RuntimeError, "OwnError: 1 and 2"),
        (die, RuntimeError, "exit code -9"),
        (make_function, TypeError, "cannot be sent"),
    ],
)
def test_failures_of_workers_are_raised(ds, transform, error, message):
    with pytest.raises(error, match=message):
        next(iter(ds.iter(0, 1, batch_size=10, transform=transform, transform_workers=1)))


def test_transforms_that_a_worker_cannot_import_are_refused(ds):
    batches = ds.iter(0, 1, batch_size=10, transform=lambda batch: batch, transform_workers=1)
    with pytest.raises(TypeError, match="transform="):
        iter(batches)
    assert not started_children("npstream-transform")


class HangAfterFirst:
    """A transform that hangs for all batches except the first, after it opened a pipe."""

    def __init__(self, pipe):
        self.pipe = pipe

    def __call__(self, batch):
        if batch["x"][0]:
            with open(self.pipe, "w"):
                signal.pause()
        return batch


def test_closing_ends_workers_that_hang(ds, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    transform = HangAfterFirst(pipe)
    batches = iter(
        ds.iter(0, 1, batch_size=10, transform=transform, transform_workers=2, prefetch=4)
    )
    next(batches)
    with open(pipe):  # waits until a worker opens the pipe
        batches.close()
    assert not started_children("npstream-transform")


def test_samples_are_transformed(ds):
    values = list(ds.iter(0, 1, transform=negate, transform_workers=2))
    assert values == [-number for number in range(ROWS)]


def test_values_are_sent_without_copies_of_arrays_into_the_pickle(monkeypatch):
    pickled_bytes = []

    def loads(data, **options):
        pickled_bytes.append(len(data))
        return pickle.loads(data, **options)

    monkeypatch.setattr(workers, "pickle", SimpleNamespace(**{**vars(pickle), "loads": loads}))
    left, right = socket.socketpair()
    array = np.arange(100_000).reshape(100, 1000)
    ragged = npstream.Ragged.from_list(["one", "three"])
    send_value(left, {"array": array, "ragged": ragged, "empty": np.empty((0, 3)), "text": "t"})
    received = receive_value(right)
    assert pickled_bytes[0] < 1000 < array.nbytes
    assert np.array_equal(received["array"], array)
    assert list(received["ragged"]) == ["one", "three"]
    assert received["empty"].shape == (0, 3)
    assert received["text"] == "t"
    received["array"][0, 0] = 7  # its own memory
    assert array[0, 0] == 0
    left.close()
    with pytest.raises(EOFError):
        receive_value(right)
    right.close()


def test_tensors_are_received_as_tensors():
    torch = pytest.importorskip("torch")
    left, right = socket.socketpair()
    value = torch.arange(10, dtype=torch.bfloat16)
    send_value(left, [value, value[::2]])
    first, second = receive_value(right)
    assert torch.equal(first, value)
    assert torch.equal(second, value[::2])
    left.close()
    right.close()


def test_no_descriptors_are_left_open():
    left, right = socket.socketpair()
    before = count_descriptors()
    for _ in range(20):
        send_value(left, np.zeros(1000))
        receive_value(right)
    assert count_descriptors() == before
    left.close()
    right.close()
