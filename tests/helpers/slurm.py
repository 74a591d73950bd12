"""SLURM on this machine: a controller and two nodes that belong to the user of the tests."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

SBIN = "/usr/sbin:/usr/local/sbin"
PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch")

# A queued job waits for its old credential to expire: 2 minutes by default, 5 seconds at least.
# The scheduler looks at the queue once a minute by default.
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket,cred_expire=5
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool-%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1
MailProg={true}
SlurmdParameters=config_overrides
NodeName={host},{host}-2 NodeHostname={host} NodeAddr=127.0.0.1 Port=[{node_ports}] CPUs=4
PartitionName=all Nodes=ALL Default=YES State=UP
"""


@contextlib.contextmanager
def running_slurm() -> Iterator[dict[str, str]]:
    """Run a cluster of two nodes and yield the environment in which its commands find it."""
    path = os.pathsep.join([os.environ["PATH"], SBIN])
    missing = [program for program in PROGRAMS if not shutil.which(program, path=path)]
    if missing:
        pytest.skip(f"{', '.join(missing)} of the packages slurm-wlm and munge are not installed")
    # The name of a socket has at most 107 bytes, which a directory of pytest can exceed.
    with tempfile.TemporaryDirectory(prefix="slurm-") as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        host = socket.gethostname().split(".")[0]
        _write_files(directory, host)
        environment = {
            **os.environ,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), path]),
            "SLURM_CONF": str(directory / "slurm.conf"),
        }
        munge = [f"--{name}={directory}/munge.{name}" for name in ("socket", "pid-file")]
        files = [
            f"--{name}={directory}/munge.{name}" for name in ("key-file", "seed-file", "log-file")
        ]
        # munged returns when it listens. The commands of SLURM try again until slurmctld listens.
        subprocess.run(["munged", "--force", *munge, *files], env=environment, check=True)
        stack.callback(subprocess.run, ["munged", "--stop", *munge], env=environment, check=True)
        for command in (["slurmctld"], ["slurmd", "-N", host], ["slurmd", "-N", f"{host}-2"]):
            with (directory / f"{'-'.join(command)}.log").open("wb") as log:
                daemon = subprocess.Popen([*command, "-D"], env=environment, stdout=log, stderr=log)
            stack.callback(daemon.wait, 60)
            stack.callback(daemon.terminate)
        yield environment


def _write_files(directory: Path, host: str) -> None:
    key = directory / "munge.key-file"
    key.touch(0o600)
    key.write_bytes(os.urandom(1024))
    (directory / "state").mkdir()
    controller, first = free_ports(1)[0], free_ports(2)[0]
    text = CONFIGURATION.format(
        host=host,
        user=getpass.getuser(),
        directory=directory,
        controller_port=controller,
        node_ports=f"{first}-{first + 1}",
        true=shutil.which("true"),
    )
    (directory / "slurm.conf").write_text(text)


def free_ports(count: int) -> range:
    """Return consecutive ports on which nobody listens."""
    while True:
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            first = stack.enter_context(socket.socket())
            first.bind(("127.0.0.1", 0))
            start: int = first.getsockname()[1]
            for port in range(start + 1, start + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return range(start, start + count)
