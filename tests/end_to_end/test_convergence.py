"""A model trained with the native order reaches the loss of a full permutation."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from convergence import Data, Task, losses  # noqa: E402  (it imports torch)


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_the_native_order_trains_as_well_as_a_full_permutation(tmp_path):
    """Without a shuffle, the loss is higher. `reports/convergence.py` trains longer."""
    task = Task(samples=1 << 12, held_out=1 << 8, batch=32, epochs=1, hidden=16, seeds=3)
    data = Data(task, tmp_path / "data")
    full = losses(data, task, "full permutation")
    blocks = losses(data, task, "npstream, blocks of 1/16, 4 lanes") - full
    none = losses(data, task, "no shuffle") - full
    noise = full.std(ddof=1)
    assert abs(blocks.mean()) < noise
    assert none.mean() > noise
    assert none.mean() > 3 * abs(blocks.mean())
