"""Subclasses as users write them: text, fine-tuning, images and latents."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

import npstream
import torch
from npstream.streaming import LocalDataset, Stream, StreamingDataLoader, StreamingDataset


class Tokens(StreamingDataset):
    """Like a pretraining dataset: stored bytes become tensors of at most `length` numbers."""

    def __init__(self, *, length, **arguments):
        super().__init__(**arguments)
        self.length = length
        self.tokenizer = str.split

    def __getitem__(self, idx):
        sample = super().__getitem__(idx)
        tokens = np.frombuffer(sample["tokens"], np.int64)[: self.length].copy()
        return {"id": sample["id"], "input_ids": torch.from_numpy(tokens)}


class Images(StreamingDataset):
    """Like a captioning dataset: changes a column in place, and yields tuples instead of dicts."""

    def __init__(self, transform, **arguments):
        super().__init__(**arguments)
        self.transform = transform

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        sample["array"] *= 2  # samples are new and writable
        return self.transform(sample["array"]), int(sample["id"])


class Items(StreamingDataset):
    """Overrides the method for one sample."""

    def get_item(self, sample_id, retry=7):
        return {**super().get_item(sample_id, retry), "number": sample_id}


class Scaled(Tokens):
    """Like a dataset of packed samples: the loader counts packs of two samples."""

    def state_dict(self, num_samples, from_beginning):
        return super().state_dict(num_samples=num_samples * 2, from_beginning=from_beginning)


@pytest.fixture
def tokens(tmp_path):
    rows = np.arange(60 * 8).reshape(60, 8)
    columns = {"id": np.arange(60), "tokens": [row.tobytes() for row in rows]}
    npstream.write(tmp_path / "tokens", columns, columns={"id": "int64", "tokens": "bytes"})
    return str(tmp_path / "tokens")


class Counting(StreamingDataset):
    calls = 0

    def __getitem__(self, idx):
        Counting.calls += 1
        return super().__getitem__(idx)


def test_the_constructor_reads_no_sample(numbers):
    Counting.calls = 0
    ds = Counting(local=numbers, batch_size=4)
    assert Counting.calls == 0
    assert len(list(ds)) == 100
    assert Counting.calls == 100


@pytest.mark.parametrize("workers", [0, 2])
def test_iteration_yields_what_getitem_returns(tokens, workers):
    ds = Tokens(local=tokens, length=5, batch_size=7, shuffle=True)
    plain = StreamingDataset(local=tokens, batch_size=7, shuffle=True)
    want = [int(sample["id"]) for sample in plain]
    loader = StreamingDataLoader(ds, batch_size=7, num_workers=workers)
    batches = list(loader)
    assert torch.cat([batch["id"] for batch in batches]).tolist() == want
    rows = torch.cat([batch["input_ids"] for batch in batches])
    np.testing.assert_array_equal(rows, np.arange(480).reshape(60, 8)[want, :5])
    assert loader.state_dict()["sample_in_epoch"] == 60


def test_in_place_changes_stay_in_their_sample(numbers):
    ds = Images(np.sum, local=numbers, batch_size=10)
    # Row i of `array` is 3 * i, 3 * i + 1, 3 * i + 2.
    want = [(float(2 * (9 * i + 3)), i) for i in range(100)]
    assert list(ds) == list(ds) == [ds[i] for i in range(100)] == want


def test_an_overridden_get_item_is_used_everywhere(numbers):
    ds = Items(local=numbers, batch_size=10)
    assert [sample["number"] for sample in ds] == list(range(100))
    assert ds[7]["number"] == ds[5:9][2]["number"] == ds[np.array([7])][0]["number"] == 7


def test_lists_use_the_overridden_method(numbers):
    """As in Streaming, slices use `get_item`, and lists use `__getitem__` of each element."""
    ds = Images(np.sum, local=numbers, batch_size=10)
    assert [number for _, number in StreamingDataset.__getitem__(ds, [3, 4])] == [3, 4]
    assert [int(s["id"]) for s in StreamingDataset.__getitem__(ds, slice(3, 5))] == [3, 4]


def test_scaled_states_resume(tokens):
    ds = Scaled(local=tokens, length=5, batch_size=4)
    loader = StreamingDataLoader(ds, batch_size=2, collate_fn=lambda samples: [samples])
    for number, _ in enumerate(loader, 1):
        if number == 3:
            break
    state = loader.state_dict()
    assert state["sample_in_epoch"] == 12
    again = Scaled(local=tokens, length=5, batch_size=4)
    again.load_state_dict(state)
    assert int(next(iter(again))["id"]) == 12


def test_a_subset_uses_the_method_of_the_user(numbers):
    subset = torch.utils.data.Subset(Images(np.sum, local=numbers), [5, 9])
    assert [number for _, number in subset] == [5, 9]
    loader = torch.utils.data.DataLoader(subset, batch_size=2)
    ((_, numbers_of_batch),) = loader
    assert numbers_of_batch.tolist() == [5, 9]


def test_streams_with_different_columns_and_a_method(numbers, tokens):
    class First(StreamingDataset):
        def __getitem__(self, at):
            return sorted(super().__getitem__(at))

    streams = [Stream(local=numbers), Stream(local=tokens)]
    counts = Counter(map(tuple, First(streams=streams, batch_size=10, shuffle=True)))
    assert counts == {("array", "id", "name"): 100, ("id", "tokens"): 60}


def test_the_method_gets_the_error_of_its_sample(tmp_path):
    """A method that leaves out damaged samples is called for each of them alone."""
    npstream.write(tmp_path, {"x": [1234, 8765, 5678]}, columns={"x": "str_int"}, sidecar=False)
    (shard,) = tmp_path.glob("*.mds")
    shard.write_bytes(shard.read_bytes().replace(b"8765", b"bad!"))

    class Careful(StreamingDataset):
        def __getitem__(self, at):
            try:
                return super().__getitem__(at)["x"]
            except ValueError as error:
                return str(error)

    first, second, third = Careful(local=str(tmp_path), batch_size=3)
    assert (first, third) == (1234, 5678)
    assert "bad!" in second


def test_the_sample_ahead_is_not_read_twice(numbers, monkeypatch):
    ds = Images(np.sum, local=numbers, batch_size=10)
    read = []
    monkeypatch.setattr(ds._npstream_samples, "read_one", read.append)
    assert [number for _, number in ds] == list(range(100))
    assert read == []


def test_a_method_may_read_other_samples(numbers):
    class Pairs(StreamingDataset):
        def __getitem__(self, at):
            return [int(super(Pairs, self).__getitem__(i)["id"]) for i in (at, (at + 1) % 100, at)]

    assert list(Pairs(local=numbers, batch_size=10)) == [[i, (i + 1) % 100, i] for i in range(100)]


def test_private_names_of_users_do_not_collide():
    """Private names of the classes begin with the name of the package."""
    for cls in (StreamingDataset, LocalDataset, Stream):
        for base in cls.__mro__:
            if base.__module__.startswith("npstream."):
                private = [n for n in vars(base) if n[0] == "_" and not n.startswith("__")]
                assert [n for n in private if not n.startswith(("_npstream_", "_abc_"))] == []


def test_private_attributes_do_not_collide(numbers):
    ds = StreamingDataset(local=numbers, batch_size=10)
    list(ds)
    assert [n for n in vars(ds) if n[0] == "_" and not n.startswith("_npstream_")] == []
