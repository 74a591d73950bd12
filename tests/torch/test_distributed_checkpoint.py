"""`torch.distributed.checkpoint` saves and loads loaders and iterations."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

import npstream
from npstream import Shuffle, StreamingShuffle
from npstream.torch import DataLoader

N = 60


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoint")
    sources = {}
    for number, name in enumerate("abc"):
        npstream.write(root / name, {"x": np.arange(N) + 1000 * number}, shard_size="256B")
        sources[name] = npstream.open(root / name)
    return sources


@pytest.fixture(scope="module")
def _process_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def _mixture(names, **settings):
    def make(sources):
        mixture = npstream.mix({name: sources[name] for name in names})
        return mixture.iter(0, 1, batch_size=6, **settings)

    return make


def _dataset(**settings):
    return lambda sources: sources["a"].iter(0, 1, batch_size=6, **settings)


def _changed_mixture(sources):
    """Return an iteration over a mixture whose sources changed twice in the run."""
    first, *others = [{name: sources[name] for name in names} for names in ("ab", "bc", "abc")]
    batches = npstream.mix(first).iter(0, 1, batch_size=6, shuffle=True)
    for other in others:
        next(iter(batches))
        mixture = npstream.mix(other)
        state = mixture.continuing(batches.state_dict())
        batches = mixture.iter(0, 1, batch_size=6, shuffle=True)
        batches.load_state_dict(state)
    return batches


flags, costs = np.arange(N) % 7 > 0, np.arange(N) % 11 + 1
MAKERS = {
    "view": _dataset(),
    "shuffle": _dataset(shuffle=True),
    "lanes": _dataset(shuffle=Shuffle("200B", lanes=3)),
    "valid": _dataset(shuffle=True, valid=flags),
    "other valid": _dataset(shuffle=True, valid=~flags),
    "balance": _dataset(shuffle=True, balance=costs),
    "buckets": _dataset(shuffle=True, balance=costs, buckets=2),
    "py1e": _dataset(shuffle="py1e"),
    "mixture": _mixture("ab", shuffle=True),
    "three sources": _mixture("abc", shuffle=True),
    "changed mixture": _changed_mixture,
    "streams": _mixture("ab", shuffle=StreamingShuffle("py1e")),
    "stratified": _mixture("ab", shuffle=StreamingShuffle("py1e", batching_method="stratified")),
}


def following(batches):
    """Return the samples of the rest of this epoch and of the next one."""
    return [[batch["x"].tolist() for batch in batches] for _ in range(2)]


@pytest.fixture(scope="module")
def checkpoints(sources, _process_group, tmp_path_factory):
    """Return for each maker a state in mid-epoch, and the checkpoint of the loader."""
    result = {}
    for name, make in MAKERS.items():
        loader = DataLoader(make(sources))
        for _ in zip(range(2), loader):  # noqa: B905 - it is left early
            pass
        path = tmp_path_factory.mktemp("dcp") / "checkpoint"
        dcp.save({"loader": loader}, checkpoint_id=path)
        result[name] = json.loads(json.dumps(loader.state_dict())), path
    return result


@pytest.mark.parametrize("new", MAKERS)
def test_a_checkpoint_is_loaded_or_refused_like_its_state(sources, checkpoints, new):
    """A loader refuses the checkpoints whose states an iteration with its settings refuses."""
    for saved, (state, path) in checkpoints.items():
        plain, loader = MAKERS[new](sources), DataLoader(MAKERS[new](sources))
        try:
            plain.load_state_dict(state)
        except ValueError:
            assert saved != new
            with pytest.raises((ValueError, RuntimeError, dcp.api.CheckpointException)):
                dcp.load({"loader": loader}, checkpoint_id=path)
            continue
        dcp.load({"loader": loader}, checkpoint_id=path)
        assert following(loader) == following(plain), saved


def test_a_checkpoint_keeps_the_history_of_steps(sources, checkpoints):
    state, path = checkpoints["shuffle"]
    loader = DataLoader(MAKERS["shuffle"](sources))
    dcp.load({"loader": loader}, checkpoint_id=path)
    assert json.loads(json.dumps(loader.state_dict())) == state
    assert len(state["steps"]) == 1


@pytest.mark.usefixtures("_process_group")
def test_an_iteration_is_saved_and_loaded_with_skipped_batches(sources, tmp_path):
    expected, saved = (sources["a"].iter(0, 1, batch_size=6, shuffle=True) for _ in range(2))
    for batches in (expected, saved):
        batches.skip(3, 5)
    whole = np.concatenate([batch["x"] for batch in expected])
    for _ in zip(range(2), saved):  # noqa: B905 - it is left early
        pass
    dcp.save({"data": saved}, checkpoint_id=tmp_path / "checkpoint")
    resumed = sources["a"].iter(0, 1, batch_size=3, shuffle=True)
    dcp.load({"data": resumed}, checkpoint_id=tmp_path / "checkpoint")
    np.testing.assert_array_equal(np.concatenate([batch["x"] for batch in resumed]), whole[12:])


def test_a_state_without_a_hash_of_its_settings_is_loaded(sources):
    """Releases before the hash saved such states."""
    batches = MAKERS["valid"](sources)
    next(iter(batches))
    state = batches.state_dict()
    del state["settings_hash"]
    resumed = MAKERS["valid"](sources)
    resumed.load_state_dict(state)
    assert resumed.state_dict()["position"] == 6
