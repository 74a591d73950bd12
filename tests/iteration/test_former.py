"""States that were saved before an append, loaded into iterations over the grown dataset."""

from __future__ import annotations

import json
import pickle

import fsspec
import numpy as np
import pytest

import npstream

ORDERS = {
    "stored": {},
    "shuffled": {"shuffle": True, "seed": 3},
    "blocks": {"shuffle": npstream.Shuffle(block=2000, lanes=2)},
    "py1e": {"shuffle": "py1e"},
    "py2s": {"shuffle": "py2s"},
    "epochs": {"shuffle": True, "epoch_size": 30},
}


def append(path, first, stop):
    data = {"x": np.arange(first, stop), "text": ["t" * 40] * (stop - first)}
    npstream.write(path, data, mode="a", shard_samples=16)


def take(batches, count):
    """Return the ids of the next batches, also of following epochs; their values must agree."""
    batch_ids = []
    while len(batch_ids) < count:
        for batch in batches:
            assert batch["x"].tolist() == batch.ids.tolist()
            batch_ids.append(batch.ids.tolist())
            if len(batch_ids) == count:
                break
    return batch_ids


@pytest.fixture(params=["directory", "memory"])
def path(request, tmp_path, monkeypatch):
    monkeypatch.setenv("NPSTREAM_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "out" if request.param == "directory" else "memory://grown"
    fsspec.filesystem("memory").store.clear()


@pytest.mark.parametrize("order", ORDERS)
def test_a_state_of_a_former_version_continues_as_before(order, path):
    settings = {"rank": 0, "world": 2, "batch_size": 4, **ORDERS[order]}
    append(path, 0, 100)
    former = npstream.open(path)
    run = former.iter(**settings)
    take(run, 7)
    state = json.loads(json.dumps(run.state_dict()))
    again = former.iter(**settings)
    again.load_state_dict(state)
    expected = take(again, 40)

    append(path, 100, 150)
    append(path, 150, 180)
    grown = npstream.open(path)
    assert len(grown) == 180
    resumed = grown.iter(**settings)
    with pytest.warns(UserWarning, match=r"is of version .* with 100 samples: the iteration cont"):
        resumed.load_state_dict(state)
    assert len(resumed) == len(again)
    copied = pickle.loads(pickle.dumps(resumed))
    assert take(resumed, 40) == expected
    assert take(copied, 40) == expected
    later = resumed.state_dict()
    assert later == again.state_dict()
    assert later["samples"] == 100

    # A state of the grown dataset still loads, into the same iteration.
    newest = grown.iter(**settings)
    ids = take(newest, 3)
    resumed.load_state_dict(grown.iter(**settings).state_dict())
    assert take(resumed, 3) == ids
    if "epoch_size" not in settings:
        assert len(resumed) == len(newest) > len(again)


def test_the_error_of_a_view_of_a_grown_dataset_names_the_version(path):
    append(path, 0, 100)
    former = npstream.open(path)
    state = former[::2].iter(0, 1, batch_size=4, shuffle=True).state_dict()
    append(path, 100, 120)
    grown = npstream.open(path)[::2].iter(0, 1, batch_size=4, shuffle=True)
    with pytest.raises(ValueError, match=rf"kept: open it with version='{former.version}'"):
        grown.load_state_dict(state)
    opened = npstream.open(path, version=former.version)
    opened[::2].iter(0, 1, batch_size=4, shuffle=True).load_state_dict(state)


def test_the_error_of_a_dataset_that_was_replaced_names_the_version(path):
    append(path, 0, 100)
    former = npstream.open(path)
    state = former.iter(0, 1, batch_size=4).state_dict()
    append(path, 100, 120)
    npstream.write(path, {"x": np.arange(200)}, mode="w")
    with pytest.raises(ValueError, match=rf"kept: open it with version='{former.version}'"):
        npstream.open(path).iter(0, 1, batch_size=4).load_state_dict(state)


def test_the_error_for_a_version_that_was_not_kept_names_no_version(path):
    append(path, 0, 100)
    state = npstream.open(path).iter(0, 1, batch_size=4).state_dict()
    npstream.write(path, {"x": np.arange(200)}, mode="w")
    for saved in (state, state | {"fingerprint": "../x-y"}, state | {"fingerprint": 7}):
        with pytest.raises(ValueError, match="the state is of") as caught:
            npstream.open(path).iter(0, 1, batch_size=4).load_state_dict(saved)
        assert "kept" not in str(caught.value)


def test_the_error_of_a_mixture_names_the_version(path, tmp_path):
    append(path, 0, 100)
    npstream.write(tmp_path / "other", {"x": np.arange(50)})
    former = npstream.open(path)

    def mixed(ds):
        return npstream.mix({"a": ds[["x"]], "b": npstream.open(tmp_path / "other")})

    state = mixed(former).iter(0, 1, batch_size=4).state_dict()
    append(path, 100, 120)
    with pytest.raises(ValueError, match=rf"kept: open it with version='{former.version}'"):
        mixed(npstream.open(path)).iter(0, 1, batch_size=4).load_state_dict(state)
    opened = npstream.open(path, version=former.version)
    mixed(opened).iter(0, 1, batch_size=4).load_state_dict(state)


def test_workers_continue_in_the_former_order(path, torch):
    from npstream.torch import DataLoader

    settings = {"rank": 0, "world": 1, "batch_size": 4, "shuffle": True}
    append(path, 0, 100)
    former = npstream.open(path)
    loader = DataLoader(former.iter(**settings), num_workers=2)
    iterator = iter(loader)
    for _ in range(5):
        next(iterator)
    state = loader.state_dict()
    expected = [batch["x"].tolist() for batch in iterator]
    append(path, 100, 150)
    resumed = DataLoader(npstream.open(path).iter(**settings), num_workers=2)
    with pytest.warns(UserWarning, match="the iteration continues with these samples"):
        resumed.load_state_dict(state)
    assert [batch["x"].tolist() for batch in resumed] == expected
