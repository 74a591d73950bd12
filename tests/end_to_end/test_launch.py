"""The SLURM script and the function of the guide on launchers run under SLURM, on two nodes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pages
import pytest
import slurm

import npstream

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "launch.md"

# Stops by SIGTERM as in the guide on preemption. In the first run, rank 0 asks for the signal.
TRAINING = """
import json, os, pathlib, signal, subprocess, threading
import torch
import torch.distributed as dist
import npstream

stopped = threading.Event()
signal.signal(signal.SIGTERM, lambda signum, frame: stopped.set())

dist.init_process_group("gloo")
batches = npstream.open("points").iter(batch_size=5, shuffle=True)
state = pathlib.Path("state.json")
if state.exists():
    batches.load_state_dict(json.loads(state.read_text()))
with open(f"rank-{dist.get_rank()}.txt", "a") as log:
    for step, batch in enumerate(batches):
        print(json.dumps([dist.get_world_size(), batch.ids.tolist()]), file=log, flush=True)
        if step == 2 and dist.get_rank() == 0 and not state.exists():
            subprocess.run(["scancel", "--signal=TERM", os.environ["SLURM_JOB_ID"]], check=True)
            stopped.wait()
        flag = torch.tensor([float(stopped.is_set())])
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        if flag.item():
            break
    else:
        pathlib.Path("finished").touch()
dist.barrier()
if flag.item() and dist.get_rank() == 0:
    state.write_text(json.dumps(batches.state_dict()))
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """Return the environment in which commands use a cluster of two nodes."""
    with slurm.running_slurm() as environment:
        paths = [str(Path(npstream.__file__).parents[1]), environment.get("PYTHONPATH")]
        yield {
            **environment,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        }


def test_a_job_that_slurm_stops_and_queues_again_trains_each_sample_once(cluster, tmp_path):
    pytest.importorskip("torch")
    npstream.write(tmp_path / "points", {"x": np.arange(100)})
    (tmp_path / "train.py").write_text(TRAINING)
    (script,) = [text for text in blocks() if "#SBATCH --nodes" in text]
    for old, new in (
        ("--nodes=4", "--nodes=2"),
        ("#SBATCH --gpus-per-node=8\n", ""),
        ("--nproc-per-node=8", "--nproc-per-node=2"),
        (":29500", f":{slurm.free_ports(1)[0]}"),
    ):
        assert script.count(old) == 1
        script = script.replace(old, new)
    (tmp_path / "job.sh").write_text(script)
    run(["sbatch", "--wait", "--output=job.txt", "job.sh"], cluster, tmp_path)
    assert (tmp_path / "finished").exists(), (tmp_path / "job.txt").read_text()
    state = json.loads((tmp_path / "state.json").read_text())
    assert state["position"] == 3 * 5 * 4
    lines = [
        json.loads(line)
        for rank in range(4)
        for line in (tmp_path / f"rank-{rank}.txt").read_text().splitlines()
    ]
    assert {world for world, _ in lines} == {4}
    assert sorted(number for _, ids in lines for number in ids) == list(range(100))


def test_the_rank_of_a_task_of_srun_selects_its_samples(cluster, tmp_path):
    npstream.write(tmp_path / "points", {"x": np.arange(40)})
    (source,) = [text for text in blocks() if "def slurm_rank" in text]
    function = source[: source.index("environment = {")]
    (tmp_path / "task.py").write_text(
        f"import os\nimport npstream\n{function}\n"
        "batches = npstream.open('points').iter(*slurm_rank(os.environ), batch_size=5)\n"
        "print(slurm_rank(os.environ), [batch.ids.tolist() for batch in batches], flush=True)\n"
    )
    task = ["srun", "--nodes=2", "--ntasks=4", sys.executable, "task.py"]
    printed = sorted(run(task, cluster, tmp_path).splitlines())
    ids = [np.arange(rank, 40, 4).reshape(2, 5).tolist() for rank in range(4)]
    assert printed == [f"({rank}, 4) {ids[rank]}" for rank in range(4)]


def blocks() -> list[str]:
    """Return the texts of the code blocks of the guide."""
    return [block.text for block in pages.parse(GUIDE.read_text())]


def run(command: list[str], environment: dict[str, str], directory: Path) -> str:
    """Run a command, which must succeed, and return what it printed."""
    done = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr[-8000:]
    return done.stdout
