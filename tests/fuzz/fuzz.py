"""Damage datasets, and read them in every way.

``PYTHONPATH=tests/helpers python tests/fuzz/fuzz.py --mutations 20000`` runs so many mutations.

Mutations of golden datasets (`fuzz_mutations`) are read by other processes, so that one which
crashes, hangs or takes too much memory is noticed, and does not end the run. `fuzz_oracle` says
what may be read. A mutation is known by the seed and its number, which ``--only`` runs alone.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from fuzz_kinds import KINDS, Kind
from fuzz_reading import Report

import npstream
from npstream._core import jit as _jit

SECONDS = 20
"""What reading one damaged dataset may take."""

MEMORY = 3 << 30
"""What it may take beside what the process holds at its start."""

SCRATCH = "/dev/shm" if os.path.isdir("/dev/shm") else None
"""Where damaged datasets are written."""


# The process that reads.


def work(root: Path, kind: str, seed: int, numbers: list[int], python: bool) -> None:
    """Run mutations in a directory; write a line of JSON before and after each."""
    if python:
        _jit.SMALL_CALL_ROWS = _jit.IMPORT_THRESHOLD = _jit.COMPILE_THRESHOLD = 1 << 62
    else:
        npstream.precompile()
    damaged = KINDS[kind](root)
    with open("/proc/self/statm") as file:
        held = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
    for number in numbers:
        _run(damaged, seed, number)


def _run(damaged: Kind, seed: int, number: int) -> None:
    what, check = damaged.mutation(random.Random(f"{seed}/{number}"))
    print(json.dumps({"start": number, "what": what}), flush=True)
    findings: list[str] = []
    faulthandler.dump_traceback_later(SECONDS, exit=True)  # even out of compiled code
    try:
        reads = check(findings.append)
    finally:
        faulthandler.cancel_dump_traceback_later()
    print(json.dumps({"end": number, "reads": reads, "findings": findings[:3]}), flush=True)


# The process that watches.


def fuzz(
    kind: str, seed: int, numbers: list[int], report: Report, python: bool = False
) -> Counter[str]:
    """Run mutations in a process, in another one after each crash; report what breaks the rule."""
    totals = Counter[str]()
    rest = list(numbers)
    while rest:
        with tempfile.TemporaryDirectory(dir=SCRATCH) as root:
            command = [sys.executable, "-X", "faulthandler", __file__, f"--worker={root}"]
            command += [f"--kinds={kind}", f"--seed={seed}", *(["--python"] if python else [])]
            worker = subprocess.run(
                [*command, "--only", *map(str, rest)],
                capture_output=True,
                text=True,
                check=False,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(sys.path),
                    "MALLOC_ARENA_MAX": "2",
                },
            )
        lines = [json.loads(line) for line in worker.stdout.splitlines() if line.startswith("{")]
        what = {line["start"]: line["what"] for line in lines if "start" in line}
        for line in lines:
            if "end" in line:
                totals.update(line["reads"], mutations=1)
                for finding in line["findings"]:
                    totals["findings"] += 1
                    report(f"{line['end']} ({what[line['end']]}): {finding}")
        if worker.returncode == 0:
            break
        if not what:
            raise RuntimeError(f"the worker did not start: {worker.stderr}")
        died = max(what, key=rest.index)
        totals.update(findings=1, mutations=1)
        report(f"{died} ({what[died]}): exit {worker.returncode}: {worker.stderr[-3000:]}")
        rest = rest[rest.index(died) + 1 :]
    return totals


def main() -> int:
    """Run from the command line; the exit status tells whether anything was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=20_000, help="of each kind")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--first", type=int, default=0, help="number of the first mutation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="+", help="numbers of mutations")
    parser.add_argument("--python", action="store_true", help="run kernels as plain Python")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    numbers = options.only or list(range(options.first, options.first + options.mutations))
    if options.worker:
        work(options.worker, *options.kinds, options.seed, numbers, options.python)
        return 0
    findings = 0
    for kind in options.kinds:
        totals = Counter[str]()
        for start in range(0, len(numbers), 1000):
            some = numbers[start : start + 1000]
            totals += fuzz(kind, options.seed, some, print, options.python)
            print(f"{kind}:", ", ".join(f"{n} {name}" for name, n in totals.items()), flush=True)
        findings += totals["findings"]
    return int(bool(findings))


if __name__ == "__main__":
    sys.exit(main())
