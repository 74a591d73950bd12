"""Trainings with several frameworks: each rank reads its part, and resumes from a checkpoint."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from frameworks import ACCUMULATION, EPOCHS, LIMIT, SAVED_STEP, SETTINGS, STEPS
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, default_collate

import npstream
import npstream.torch
import torch
from npstream.reading.batch import Batch, Ragged

N = 64
LAUNCH = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
TEXT = ["", "a", "aa"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("frameworks") / "data"
    columns = {
        "x": np.random.default_rng(0).random((N, 2), dtype=np.float32),
        "y": np.arange(N, dtype=np.float32) / N,
        "number": np.arange(N),
        "text": ["a" * i for i in range(N)],
    }
    npstream.write(path, columns, shard_size="512B")
    return path


@pytest.fixture
def run_training(path, tmp_path):
    """Return a function that runs a training and returns the results of each rank."""

    def run(name, processes=2, package=None, launch=True):
        if package is not None and importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}, which .ci/run installs")
        launcher = [*LAUNCH, str(processes)] if launch else []
        script = Path(__file__).parents[1] / "helpers" / "frameworks.py"
        paths = [str(Path(npstream.__file__).parents[1]), os.environ.get("PYTHONPATH")]
        done = subprocess.run(
            [sys.executable, *launcher, script, name, path, tmp_path],
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": ":".join(filter(None, paths)),
                "PYTHONSAFEPATH": "1",  # keeps modules of this directory off sys.path
                "HF_HUB_OFFLINE": "1",
            },
            capture_output=True,
            text=True,
            timeout=280,  # below the limit of pytest-timeout
        )
        assert done.returncode == 0, done.stderr[-8000:]
        files = [tmp_path / f"{name}-{rank}.json" for rank in range(processes)]
        return [json.loads(file.read_text()) for file in files]

    return run


def expected(path, rank, world=2):
    """Return the batches of a rank, read without a trainer."""
    ds = npstream.open(path)
    return [
        batch.ids.tolist()
        for epoch in range(EPOCHS)
        for batch in ds.iter(rank, world, epoch=epoch, **SETTINGS)
    ]


def assert_ranks_read_and_resume(ranks, path):
    whole = [expected(path, rank) for rank in range(2)]
    assert [rank["whole"] for rank in ranks] == whole
    assert [rank["resumed"] for rank in ranks] == [part[SAVED_STEP:] for part in whole]
    first_epoch = [row for part in whole for batch in part[:STEPS] for row in batch]
    assert sorted(first_epoch) == list(range(N))


def test_lightning_trains_and_resumes(run_training, path):
    # Lightning's launcher sets the rank only after the iteration is created.
    ranks = run_training("lightning", package="lightning", launch=False)
    assert_ranks_read_and_resume(ranks, path)
    assert ranks[0]["moved"] == ["Batch", "meta", TEXT, [0, 1, 2]]
    for number, rank in enumerate(ranks):
        part = expected(path, number)
        limited = [*part[:LIMIT], *part[STEPS : STEPS + LIMIT]]
        assert rank["limited"] == limited
        starts = (LIMIT - 1, LIMIT, LIMIT + 1)
        assert rank["limited and resumed"] == [limited[start:] for start in starts]


def test_fabric_trains_and_resumes(run_training, path):
    assert_ranks_read_and_resume(run_training("fabric", package="lightning"), path)


def test_accelerate_trains_and_resumes(run_training, path):
    ranks = run_training("accelerate", package="accelerate")
    assert_ranks_read_and_resume(ranks, path)
    for rank in ranks:
        assert "the part of one of 2 ranks" in rank["dispatched"]
        assert rank["sharded"] == rank["spawned"] == rank["dispatched"]
        assert rank["skipped"] == rank["resumed"]
        assert rank["moved"] == ["Batch", "meta", TEXT, [0, 1, 2]]
    # A loader for rank 0 of 1 has all samples. Accelerate may divide its batches among the ranks:
    # in each step, the ranks together get the samples of two batches.
    alone = np.sort(np.reshape(expected(path, 0, 1)[: 2 * STEPS], (STEPS, 8)), 1).tolist()
    for way in ("one reads for all", "all read all"):
        steps = zip(*(rank[way] for rank in ranks), strict=True)
        assert [sorted(first + second) for first, second in steps] == alone


def test_hugging_face_trainer_trains_and_resumes(run_training, path):
    ranks = run_training("transformers", package="transformers")
    assert_ranks_read_and_resume(ranks, path)
    for rank in ranks:
        assert "let get_train_dataloader return one" in rank["dispatched"]
        assert rank["nothing to skip"] == rank["resumed"]
        assert "load the checkpoint's state into the" in rank["without a state"]
        assert rank["moved"] == ["Batch", "cpu", TEXT, None]
        for loss, errors in rank["evaluated"].values():
            # The last step repeats samples to fill its 8, and the Trainer counts these twice.
            repeated = errors + errors[: -len(errors) % 8]
            assert loss == pytest.approx(np.mean(repeated), rel=1e-5)
        steps, weights, seen = rank["accumulated"]
        assert steps == EPOCHS * -(-STEPS // ACCUMULATION)
        assert len(seen) == EPOCHS * STEPS
        starts = 2 * ACCUMULATION, STEPS, STEPS + ACCUMULATION
        for start, resumed in zip(starts, rank["accumulated and resumed"], strict=True):
            assert resumed == [steps, weights, seen[start:]]


def test_composer_trains_and_resumes(run_training, path):
    ranks = run_training("composer", package="composer")
    assert_ranks_read_and_resume(ranks, path)
    assert ranks[0]["moved"] == ["dict", "cpu", TEXT, None]


def test_ranks_of_a_device_mesh_are_found(run_training, path):
    ranks = run_training("mesh", processes=4)
    assert [rank["at"] for rank in ranks] == [[0, 0], [0, 1], [1, 0], [1, 1]]
    for rank in ranks:
        assert rank["given"] == rank["detected"] == expected(path, rank["at"][0])[:STEPS]


# Batches and torch


def test_a_batch_moves_with_its_ids():
    batch = Batch(
        {"x": np.arange(2), "text": Ragged.from_list(["a", "bc"]), "o": np.array([None, 1])},
        ids=[7, 3],
        repeated=[False, True],
    )
    moved = batch.to("meta", non_blocking=True)
    assert moved["x"].device.type == batch.to_torch().to("meta")["x"].device.type == "meta"
    assert moved["text"] is batch["text"]
    assert moved["o"] is batch["o"]
    assert moved.ids.tolist() == [7, 3]
    assert moved.repeated.tolist() == [False, True]
    assert isinstance(batch["x"], np.ndarray)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", ["dataset", "mixture"])
def test_batches_of_batches_raise(path, workers, kind):
    ds = npstream.open(path)
    view = npstream.mix({"a": ds[:32], "b": ds[32:]}) if kind == "mixture" else ds
    with pytest.raises(TypeError, match="each of 4 samples: give it batch_size=None"):
        list(DataLoader(view.iter(0, 1, batch_size=4), num_workers=workers))
    samples = view.iter(0, 1, batch_size=4, batched=False)
    assert len(list(DataLoader(samples, batch_size=4, num_workers=workers))) == N // 4


def test_a_loader_of_batches_rejects_batch_size(path):
    batches = npstream.open(path).iter(0, 1, batch_size=4)
    with pytest.raises(ValueError, match="batch_size=2: the dataset yields batches already"):
        npstream.torch.DataLoader(batches, batch_size=2)
    loader = npstream.torch.DataLoader(batches, batch_size=2, collate_fn=len)
    assert list(loader) == [2] * 8  # `collate_fn` gets two of the 16 batches


def test_a_batch_is_a_pytree_of_its_columns():
    batch = Batch({"x": torch.arange(3), "y": torch.ones(3, 2)}, ids=[5, 6, 7])
    doubled = pytree.tree_map(lambda column: 2 * column, batch)
    assert type(doubled) is Batch
    assert doubled["x"].tolist() == [0, 2, 4]
    assert doubled.ids.tolist() == [5, 6, 7]
    leaves, spec = pytree.tree_flatten(batch)
    assert [leaf.shape for leaf in leaves] == [(3,), (3, 2)]
    assert spec == pytree.tree_flatten(doubled)[1]
    assert pytree.treespec_loads(pytree.treespec_dumps(spec)) == spec
    paths = [pytree.keystr(path) for path, _ in pytree.tree_flatten_with_path(batch)[0]]
    assert paths == ["['x']", "['y']"]
    # Sums are not rows, so they have no ids.
    assert not hasattr(pytree.tree_map(lambda column: column.sum(), batch), "ids")


def test_rows_of_different_lengths_collate_as_a_list():
    rows = [Ragged.from_list([[1], [2, 3]]), Ragged.from_list([[4, 5, 6]])]
    assert default_collate(rows) == rows
    assert torch.equal(default_collate([rows[0][1], rows[0][1]])[0], torch.tensor([2, 3]))
