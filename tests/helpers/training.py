"""A small training, started by torchrun, that `test_resumable` kills and resumes.

Usage: training.py DATASET DIRECTORY WORKERS KILLED_STEP

Each rank writes the ids of its batches to the directory. Rank 0 saves a checkpoint every third
step. All ranks resume from an existing checkpoint. After KILLED_STEP steps, the last rank kills
itself.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import npstream
import npstream.torch
import torch

GLOBAL_BATCH = 12
EPOCHS = 2


def train(dataset: str, directory: Path, workers: int, killed_step: int) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    batches = npstream.open(dataset).iter(
        global_batch_size=GLOBAL_BATCH, shuffle=npstream.Shuffle("2KB", lanes=4)
    )
    dist.init_process_group("gloo")  # npstream reads rank and world after this
    loader = npstream.torch.DataLoader(batches, num_workers=workers)
    step, checkpoint = 0, directory / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint)
        model.load_state_dict(saved["model"])
        loader.load_state_dict(saved["loader"])
        step = saved["step"]
    dist.barrier()  # all ranks have read the checkpoint before rank 0 writes the next one
    ddp = DistributedDataParallel(model)
    rank, world = dist.get_rank(), dist.get_world_size()
    with open(directory / f"{world}-{rank}.jsonl", "w", buffering=1) as log:
        while loader.state_dict()["epoch"] < EPOCHS:
            for batch in loader:
                if step == killed_step and rank == world - 1:
                    os.kill(os.getpid(), signal.SIGKILL)
                loss = torch.nn.functional.mse_loss(ddp(batch["x"])[:, 0], batch["y"])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                step += 1
                log.write(json.dumps([step, batch.ids.tolist(), loss.item()]) + "\n")
                if rank == 0 and step % 3 == 0:
                    saved = {"model": model.state_dict(), "step": step}
                    torch.save({**saved, "loader": loader.state_dict()}, directory / "next.pt")
                    os.replace(directory / "next.pt", checkpoint)
    torch.save(model.state_dict(), directory / f"{world}.pt")
    dist.barrier()  # gloo's destructors may wait forever for ranks that have exited
    # The destructor of `ddp` holds the GIL while it joins a thread that may wait for the GIL.
    os._exit(0)


if __name__ == "__main__":
    train(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
