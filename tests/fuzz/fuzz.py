"""Fuzzer: damage datasets, and read them in every way.

``PYTHONPATH=tests/helpers python tests/fuzz/fuzz.py --mutations 20000`` runs 20,000 mutations of
each kind of target.

Worker processes apply mutations (`fuzz_mutations`) to targets (`fuzz_kinds`), and read these
targets. If a worker crashes, hangs or exceeds the memory limit, the run reports this and continues.
`fuzz_oracle` defines which values may be read. The kind, the seed and the number identify a
mutation; ``--only`` runs single mutations.
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

TIMEOUT = 120
"""Seconds after which reading one damaged dataset counts as a hang."""

MEMORY_LIMIT = 3 << 30
"""Bytes that a worker may allocate after its start."""

SCRATCH = "/dev/shm" if os.path.isdir("/dev/shm") else None
"""Directory of the damaged datasets."""


# The worker process


def work(root: Path, kind: str, seed: int, numbers: list[int], python: bool) -> None:
    """Run mutations in a directory; print a line of JSON before and after each.

    If `python` is True, kernels run as plain Python and are never compiled.
    """
    if python:
        _jit.SMALL_CALL_ROWS = _jit.IMPORT_THRESHOLD = _jit.COMPILE_THRESHOLD = 1 << 62
    else:
        npstream.precompile()
    target = KINDS[kind](root)
    with open("/proc/self/statm") as file:
        limit = int(file.read().split()[0]) * resource.getpagesize() + MEMORY_LIMIT
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for number in numbers:
        _run(target, seed, number)


def _run(target: Kind, seed: int, number: int) -> None:
    description, run_mutation = target.mutation(random.Random(f"{seed}/{number}"))
    print(json.dumps({"start": number, "what": description}), flush=True)
    findings: list[str] = []
    faulthandler.dump_traceback_later(TIMEOUT, exit=True)  # also in compiled code
    try:
        reads = run_mutation(findings.append)
    finally:
        faulthandler.cancel_dump_traceback_later()
    print(json.dumps({"end": number, "reads": reads, "findings": findings[:3]}), flush=True)


# The main process


def fuzz(
    kind: str, seed: int, numbers: list[int], report: Report, python: bool = False
) -> Counter[str]:
    """Run mutations in a worker, and in a new one after each crash; report all findings."""
    totals = Counter[str]()
    remaining = list(numbers)
    while remaining:
        with tempfile.TemporaryDirectory(dir=SCRATCH) as root:
            command = [sys.executable, "-X", "faulthandler", __file__, f"--worker={root}"]
            command += [f"--kinds={kind}", f"--seed={seed}", *(["--python"] if python else [])]
            worker = subprocess.run(
                [*command, "--only", *map(str, remaining)],
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
        descriptions = {line["start"]: line["what"] for line in lines if "start" in line}
        for line in lines:
            if "end" in line:
                totals.update(line["reads"], mutations=1)
                for finding in line["findings"]:
                    totals["findings"] += 1
                    report(f"{line['end']} ({descriptions[line['end']]}): {finding}")
        if worker.returncode == 0:
            break
        if not descriptions:
            raise RuntimeError(f"the worker did not start: {worker.stderr}")
        crashed = max(descriptions, key=remaining.index)  # the last mutation that started
        totals.update(findings=1, mutations=1)
        what = descriptions[crashed]
        report(f"{crashed} ({what}): exit {worker.returncode}: {worker.stderr[-3000:]}")
        remaining = remaining[remaining.index(crashed) + 1 :]
    return totals


def main() -> int:
    """Run from the command line; the exit status is 1 if there are findings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=20_000, help="mutations of each kind")
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
