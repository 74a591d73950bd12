"""The SLURM script of the guide on launchers runs with stand-ins for srun and scontrol."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pages
import pytest

import npstream

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "launch.md"

PROGRAM = """
import json, os
import torch.distributed as dist
import npstream

dist.init_process_group("gloo")
batches = npstream.open("points").iter(batch_size=5)
facts = os.environ["NPSTREAM_CACHE"], dist.get_world_size(), [b.ids.tolist() for b in batches]
with open(f"rank-{dist.get_rank()}.json", "w") as file:
    json.dump(facts, file)
dist.destroy_process_group()
"""

# Two tasks of srun, which are two machines to torchrun.
COMMANDS = f"""
scontrol() {{ echo 127.0.0.1; }}
torchrun() {{ "{sys.executable}" -m torch.distributed.run --local-addr=127.0.0.1 "$@"; }}
srun() {{
    "$@" & first=$!
    "$@" & second=$!
    wait $first && wait $second
}}
"""


def test_the_script_of_slurm_starts_all_ranks_on_two_machines(tmp_path):
    pytest.importorskip("torch")
    npstream.write(tmp_path / "points", {"x": np.arange(40)})
    (tmp_path / "train.py").write_text(PROGRAM)
    blocks = pages.parse(GUIDE.read_text())
    (script,) = [block.text for block in blocks if "#SBATCH --nodes" in block.text]
    for old, new in (("--nproc-per-node=8", "--nproc-per-node=2"), (":29500", f":{free_port()}")):
        assert script.count(old) == 1
        script = script.replace(old, new)
    slurm = {"SLURM_NNODES": "2", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "nodes[0-1]"}
    paths = [str(Path(npstream.__file__).parents[1]), os.environ.get("PYTHONPATH")]
    done = subprocess.run(
        ["bash", "-c", COMMANDS + script],
        cwd=tmp_path,
        env={
            **os.environ,
            **slurm,
            "USER": "me",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": ":".join(filter(None, paths)),
        },
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr[-8000:]
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(4)]
    assert {(cache, world) for cache, world, _ in ranks} == {("/local/me/cache", 4)}
    # Each machine reads every second position: ranks 0 and 1 are on the first one.
    assert [ids[0] for _, _, ids in ranks] == [
        [0, 4, 8, 12, 16],
        [2, 6, 10, 14, 18],
        [1, 5, 9, 13, 17],
        [3, 7, 11, 15, 19],
    ]


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])
