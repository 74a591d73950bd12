"""The methods of datasets that shuffle and split samples, and what a shuffle costs."""

from __future__ import annotations

import json
import math
import pickle

import numpy as np
import pytest
from dataset_files import write_shards

import npstream
from npstream import Shuffle


@pytest.fixture(scope="module")
def ds(tmp_path_factory):
    return write_shards(
        tmp_path_factory.mktemp("epoch"), {"number": np.arange(300)}, [100, 0, 1, 150, 49]
    )


VIEWS = [
    ..., slice(20, 250), slice(None, None, -3), np.arange(300) % 3 == 0, [5, 3, 5, 299],
    [[1, 2], [3, 4]], [], slice(7, 8),
]  # fmt: skip


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("block", ["auto", "300B", None, 0])
def test_views_have_orders(ds, view, block):
    view = ds[view].ravel()
    rows = view.order(3, 1, block=block)[:]
    assert np.array_equal(np.sort(rows), np.arange(len(view)))
    shuffled = view.shuffle(3, 1, block=block)
    numbers = view["number"].to_numpy()[rows]
    assert np.array_equal(shuffled["number"], numbers)
    assert np.array_equal(view[rows]["number"], numbers)
    settings = Shuffle(block)
    read = view.iter(0, 1, batch_size=7, shuffle=settings, seed=3, epoch=1, last="short")
    assert np.array_equal(np.concatenate([[], *[batch["number"] for batch in read]]), numbers)


def test_block_0_keeps_the_order_of_the_view(ds):
    view = ds[::-3]
    order = view.order(7, 2, block=0)
    assert order[5:9].tolist() == [5, 6, 7, 8]
    assert order.find(order[[3, 1]]).tolist() == [3, 1]
    assert (order.nbytes, len(order), repr(order)) == (0, 100, "<SequentialOrder: 100 rows>")
    rows = order[:]
    rows[:] = 0
    assert order[-1] == 99
    for call in (order.at, order.find):
        numbers = np.arange(3)
        call(numbers)[:] = 9  # the result is a new array
        assert numbers.tolist() == [0, 1, 2]
        with pytest.raises(IndexError, match="100 is out of bounds for an order of 100 rows"):
            call(np.array([0, 100]))
    assert view.shuffle(7, block=0) is view
    with pytest.raises(TypeError, match="seed='7': expected an integer"):
        view.order("7", block=0)


def test_an_iteration_with_block_0_is_not_shuffled(ds):
    plain = ds.iter(0, 1, batch_size=8)
    sequential = ds.iter(0, 1, batch_size=8, shuffle=Shuffle(0))
    next(iter(plain))
    sequential.load_state_dict(plain.state_dict())
    assert next(iter(sequential)).ids.tolist() == list(range(8, 16))
    assert sequential.state_dict()["shuffle"] is None
    mixture = npstream.mix({"a": ds, "b": ds[::2]})
    batch = next(iter(mixture.iter(0, 1, batch_size=450, seed=1)))
    assert np.array_equal(mixture.order(1, block=0)[:], batch.ids)


def test_projections_and_splits_have_orders(ds):
    assert np.array_equal(ds[["number"]].order(3)[:], ds.order(3)[:])
    for part in ds.random_split([0.7, 0.3], seed=1):
        rows = part.order(3, block="300B", lanes=2)[:]
        assert np.array_equal(np.sort(rows), np.arange(len(part)))
        assert np.array_equal(
            part.shuffle(3, block="300B", lanes=2)["number"], part["number"].to_numpy()[rows]
        )


def test_compressed_shards_are_one_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr("npstream.formats.chunks.CHUNK_BYTES", 1000)
    for compression in (None, "zstd"):
        path = tmp_path / str(compression)
        numbers = {"number": np.arange(5000)}
        npstream.write(path, numbers, shard_size=8000, compression=compression)
        shards = json.loads((path / "index.json").read_text())["shards"]
        first = np.cumsum([0, *(shard["samples"] for shard in shards)])
        rows = npstream.open(path).order(0, block=1, lanes=1)[:]  # no chunk is cut
        begins = rows[np.diff(rows, prepend=-2) != 1]  # the first rows of chunks
        assert len(begins) > len(shards) // 2
        assert np.isin(begins, first).all() == (compression is not None)


@pytest.mark.parametrize("flight", [4, 16])
def test_batch_means_of_single_class_shards_have_the_predicted_spread(tmp_path, flight):
    """All samples of a shard have one label, and samples of `flight` shards are mixed.

    Two samples of a batch then have the same shard with probability 1 / `flight`. So the variance
    of batch means is 1 + (`batch` - 1) / `flight` times that of independent samples.
    """
    shards, each, batch = 256, 32, 64
    labels = np.repeat(np.random.default_rng(0).standard_normal(shards), each)
    ds = write_shards(tmp_path, {"label": labels}, [each] * shards)
    block = flight * sum(path.stat().st_size for path in tmp_path.glob("*/*.mds")) // shards
    means = [
        ds.shuffle(seed, block=block, lanes=2)["label"].to_numpy().reshape(-1, batch).mean(axis=1)
        for seed in range(8)
    ]
    spread = np.std(means) / (labels.std() / math.sqrt(batch))
    assert spread == pytest.approx(math.sqrt(1 + (batch - 1) / flight), rel=0.12)


def test_orders_of_views_equal_recorded_values(ds):
    """The default settings and the chunks of views are recorded, too."""
    assert ds.order(0)[:6].tolist() == [116, 58, 286, 290, 273, 297]
    assert ds[::-2].order(0, 1, block="300B", lanes=3)[:6].tolist() == [100, 28, 80, 102, 27, 78]


def test_views_of_shuffled_views_behave_like_arrays(ds):
    rows = ds.order(0, block="200B", lanes=3)[:]
    shuffled = ds.shuffle(0, block="200B", lanes=3)
    assert shuffled[17]["number"] == rows[17]
    assert np.array_equal(shuffled[5:50:3]["number"], rows[5:50:3])
    assert np.array_equal(shuffled[::-1]["number"], rows[::-1])
    assert np.array_equal(shuffled[rows > 100]["number"], rows[rows > 100])
    assert np.array_equal(shuffled.shuffle(1).ravel()["number"], rows[shuffled.order(1)[:]])


def test_shuffled_views_are_pickled_without_their_chunks(ds):
    shuffled = ds.shuffle(0)
    shuffled[:5].load()
    again = pickle.dumps(shuffled)
    assert len(again) < len(pickle.dumps(ds)) + 700
    assert np.array_equal(pickle.loads(again)["number"], shuffled["number"])
