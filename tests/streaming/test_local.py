"""`LocalDataset` reads a directory by index."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import npstream
import torch
from npstream.streaming import LocalDataset


def test_samples(numbers):
    ds = LocalDataset(numbers)
    assert len(ds) == ds.size == ds.num_samples == 100
    assert int(ds[-1]["id"]) == 99
    assert [int(sample["id"]) for sample in ds[5:8]] == [5, 6, 7]
    assert [int(sample["id"]) for sample in ds[np.array([7, -1])]] == [7, 99]
    assert [shard.samples for shard in ds.shards] == [10] * 10
    assert int(pickle.loads(pickle.dumps(ds))[3]["id"]) == 3
    with pytest.raises(IndexError, match="out of bounds"):
        ds[100]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_torch_loader_shuffles_samples(numbers, workers):
    loader = torch.utils.data.DataLoader(
        LocalDataset(numbers), batch_size=16, shuffle=True, num_workers=workers
    )
    ids = torch.cat([batch["id"] for batch in loader]).tolist()
    assert sorted(ids) == list(range(100)) != ids


def test_a_split_and_compressed_shards(tmp_path):
    npstream.write(tmp_path / "val", {"x": np.arange(10)}, compression="zstd")
    assert LocalDataset(str(tmp_path), split="val")[3] == {"x": 3}


def test_an_overridden_method(numbers):
    class Ids(LocalDataset):
        def get_item(self, sample_id):
            return int(super().get_item(sample_id)["id"])

    ds = Ids(numbers)
    assert ds[3:5] == ds[[3, 4]] == [3, 4]


def test_an_absent_dataset(tmp_path):
    with pytest.raises(FileNotFoundError):
        LocalDataset(str(tmp_path))
