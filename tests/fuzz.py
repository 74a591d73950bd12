"""Damage datasets, and read them in every way: ``python tests/fuzz.py --mutations 20000``.

Mutations of golden datasets (`fuzz_mutations`) are read by other processes, so that one which
crashes, hangs or takes too much memory is noticed, and does not end the run. `fuzz_oracle` says
what may be read. A mutation is known by the seed and its number, which ``--only`` runs alone.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import golden_data as golden
import npstream
from fuzz_mutations import Files, mutate
from fuzz_oracle import Original, Place, judge
from guards import guarded
from npstream import _jit, fetch, memory, shards, store
from npstream.errors import FormatError, IntegrityError, StorageError
from npstream.formats.compression import decompress

SECONDS = 20
"""What reading one damaged dataset may take."""

MEMORY = 1 << 30
"""What it may take beside what the process holds at its start."""

MOST = 400
"""Samples that are read one by one, where the index says that there are more."""

SCRATCH = "/dev/shm" if os.path.isdir("/dev/shm") else None
"""Where damaged datasets are written."""

RAISED: tuple[type[Exception], ...] = (FormatError, IntegrityError, StorageError)
"""What damage may raise, and whatever is documented for one way of reading."""

Report = Callable[[str], None]


class Case:
    """A golden dataset, and what is read from it undamaged."""

    def __init__(self, case: dict[str, Any]) -> None:
        self.name = case["name"]
        root = golden.directory(case)
        self.files: Files = {
            path.relative_to(root).as_posix(): path.read_bytes()
            for path in sorted(root.rglob("*"))
            if path.is_file() and (path.name != "index.json" or path.parent == root)
        }
        self.original = Original(self.files)
        index = json.loads(self.files["index.json"])
        self.compressed = {
            entry[which]["basename"]
            for entry in index["shards"]
            for which in ("zip_data", "zip_meta")
            if entry.get(which)
        }
        ds = npstream.open(root)
        self.values = {column: [ds[i][column] for i in range(len(ds))] for column in ds.columns}
        self.stored = {column: _stored(ds[column]) for column in ds.columns}
        # Where each shard's rows are among these, by the shard's identity.
        self.first: dict[int, int] = {}
        row = 0
        for entry in index["shards"]:
            shard = self.original.shards[entry["raw_data"]["basename"]]
            self.first.setdefault(id(shard), row)
            row += entry["samples"]

    def expected(self, table: dict[str, list[Any]], place: Place, column: str) -> Any:
        """Return the value of a column at a place, out of `values` or `stored`."""
        return table[column][self.first[id(place.shard)] + place.row]


def cases() -> list[Case]:
    """Return the golden datasets that can be damaged and read; pickles could do anything."""
    known = [case for case in golden.cases() if case["readable"] is True and case["num_samples"]]
    return [Case(case) for case in known if not case.get("unsafe")]


def _stored(column: Any) -> list[Any]:
    """Return what batches of one row hold; None where an integer does not fit one."""
    rows: list[Any] = []
    for row in range(len(column)):
        try:
            rows.append(column[[row]].load()[0])
        except OverflowError:
            rows.append(None)
    return rows


def identity(value: Any) -> Any:
    """Return what is equal exactly where two values are the same."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, np.int64):
        value = int(value)  # what it is depends on the shard that the index names first
    if isinstance(value, np.generic):
        return value.dtype.str, value.tobytes()
    if isinstance(value, list):
        return [identity(item) for item in value]
    if hasattr(value, "getpalette"):
        return value.mode, value.size, value.tobytes()
    return type(value), repr(value)


# Reading a damaged dataset in every way.


class Reading:
    """One damaged dataset, as it is read; what must not be is reported."""

    def __init__(
        self, ds: Any, case: Case, places: Iterator[Place], report: Report, rng: random.Random
    ) -> None:
        self.ds = ds
        self.case = case
        self.report = report
        self.rng = rng
        self.places = [place for place, _ in zip(places, range(MOST), strict=False)]
        self.reads = Counter[str]()

    def attempt(self, what: str, read: Callable[[], Any], *documented: type[Exception]) -> Any:
        """Return what is read, or None if it raises what it may raise."""
        try:
            result = read()
            self.reads["read"] += 1
            return result
        except (*RAISED, *documented):
            self.reads["raised"] += 1
        except MemoryError:
            if len(self.ds) < MOST:  # what the index claims may be too much
                self.report(f"{what} raised {traceback.format_exc(limit=-3)}")
        except Exception:
            self.report(f"{what} raised {traceback.format_exc(limit=-3)}")
        return None

    def compare(self, what: str, row: int, column: str, value: Any, table: Any) -> None:
        """Report a value that is neither the original nor excused."""
        place = self.places[row]
        if column in place.excused:
            self.reads["excused"] += 1
            return
        if place.shard is None or column not in table:
            self.report(f"{what}, sample {row}, column {column!r}: read {value!r:.80}; must raise")
            return
        wanted = self.case.expected(table, place, column)
        if identity(value) != identity(wanted):
            self.report(
                f"{what}, sample {row}, column {column!r}: {value!r:.80}; expected {wanted!r:.80}"
            )

    def all(self) -> None:
        """Read the dataset in every way."""
        rows = range(len(self.places))
        for row in rows:
            sample = self.attempt(f"ds[{row}]", partial(self.ds.__getitem__, row))
            self.sample(f"ds[{row}]", row, sample)
        self.iterate()
        order = list(rows)
        self.rng.shuffle(order)
        self.batches(self.ds, order)
        for column in self.ds.columns:
            part = self.attempt("ds[[column]]", partial(self.ds.__getitem__, [column]))
            if part is not None:
                self.batches(part, list(rows))
                self.equal(column, list(rows))
                self.mapped(column)

    def sample(self, what: str, row: int, sample: Any) -> None:
        """Compare what a sample holds."""
        for column, value in (sample or {}).items():
            self.compare(what, row, column, value, self.case.values)

    def iterate(self) -> None:
        """Read samples one after the other, up to the first that raises."""
        samples = iter(self.ds)
        for row in range(len(self.places)):
            sample = self.attempt("iter(ds)", lambda: next(samples))
            if sample is None:
                return
            self.sample("iter(ds)", row, sample)

    def batches(self, ds: Any, rows: list[int]) -> None:
        """Load samples at once or, where that raises, in halves."""
        batch = self.attempt("load()", lambda: ds[rows].load(), OverflowError)
        if batch is None and len(rows) > 1:
            self.batches(ds, rows[: len(rows) // 2])
            self.batches(ds, rows[len(rows) // 2 :])
        for column, values in (batch or {}).items():
            for k, row in enumerate(rows):
                value = self.attempt("batch row", partial(values.__getitem__, k))
                if value is not None:
                    self.compare("load()", row, column, value, self.case.stored)

    def mapped(self, column: str) -> None:
        """Read a column where it lies, if that can be."""
        view = self.ds[column][: len(self.places)]
        array = self.attempt("copy=False", lambda: np.array(view, copy=False), ValueError)
        for row, value in enumerate(() if array is None else array):
            self.compare("copy=False", row, column, value, self.case.stored)

    def equal(self, column: str, rows: list[int]) -> None:
        """Look for a value among texts, which compares bytes where they lie."""
        wanted = self.case.values.get(column, [None])[0]
        if not rows or not isinstance(wanted, str | bytes):
            return
        mask = self.attempt("==", lambda: self.ds[column][rows] == wanted)
        for row, equal in enumerate(() if mask is None else mask):
            place = self.places[row]
            if column in place.excused:
                continue
            if place.shard is None:
                self.report(f"ds[{column!r}] == ..., sample {row}: must raise")
            elif bool(equal) != (self.case.expected(self.case.values, place, column) == wanted):
                self.report(f"ds[{column!r}] == ..., sample {row}: {equal}")


def check(
    root: Path, case: Case, changed: Files, rng: random.Random, report: Report
) -> Counter[str]:
    """Read a damaged dataset and report what breaks the rule."""
    verify = rng.choice(("auto", "auto", "auto", True, True, False))
    verdict = judge(case.original, changed, verify)
    try:
        ds = npstream.open(root, verify=verify)
    except RAISED:
        return Counter(refused=1)
    except Exception as error:
        if not (isinstance(error, ValueError) and "pickled" in str(error)):
            report(f"open() raised {traceback.format_exc(limit=-3)}")
        return Counter(refused=1)
    if verdict is None:
        report("open() took an index that is none")
        return Counter()
    if len(ds) != sum(count for count, _ in verdict):
        report(f"{len(ds)} samples; the index says {sum(count for count, _ in verdict)}")
        return Counter()
    places = (
        place
        for count, known in verdict
        for place in (known or (Place() for _ in range(min(count, MOST))))
    )
    with ds:
        reading = Reading(ds, case, places, report, rng)
        reading.all()
    return reading.reads


# The process that reads.


def _guard(rng: random.Random) -> dict[tuple[Any, str], Any]:
    """Return what to replace this time, by module and name.

    That is files and buffers by ones that end where nobody may read on, and limits by such that
    keep shards from staying in memory.
    """
    replaced: dict[tuple[Any, str], Any] = {}
    if rng.random() < 0.5:
        replaced[store, "map_file"] = lambda path: guarded(Path(path).read_bytes(), 4)
        replaced[shards, "decompress"] = lambda *args: guarded(decompress(*args), 4)
    if rng.random() < 0.2:
        replaced[memory, "map_budget"] = lambda: 0
        replaced[fetch, "_budget"] = lambda table: rng.choice((0, 5000))
    return replaced


def work(root: Path, seed: int, numbers: list[int], python: bool) -> None:
    """Run mutations in a directory; write a line of JSON before and after each."""
    if python:
        _jit.SMALL = _jit.PATIENCE = 1 << 62
    else:
        npstream.precompile()
    known = cases()
    for case in known:
        for name, content in case.files.items():
            path = root / case.name / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    with open("/proc/self/statm") as file:
        held = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
    for number in numbers:
        _run(root, known, seed, number)


def _run(root: Path, known: list[Case], seed: int, number: int) -> None:
    rng = random.Random(f"{seed}/{number}")
    case = rng.choice(known)
    changed, done = mutate(rng, case.files, case.compressed)
    what = f"{case.name}: {done}"
    print(json.dumps({"start": number, "what": what}), flush=True)
    findings: list[str] = []
    for name, content in changed.items():
        (root / case.name / name).write_bytes(content)
    replaced = _guard(rng)
    before = {(module, name): getattr(module, name) for module, name in replaced}
    for (module, name), value in replaced.items():
        setattr(module, name, value)
    signal.alarm(SECONDS)  # ends the process, even out of compiled code
    try:
        reads = check(root / case.name, case, changed, rng, findings.append)
    finally:
        signal.alarm(0)
        for (module, name), value in before.items():
            setattr(module, name, value)
        for name in changed:
            (root / case.name / name).write_bytes(case.files[name])
    print(json.dumps({"end": number, "reads": reads, "findings": findings[:3]}), flush=True)


# The process that watches.


def fuzz(seed: int, numbers: list[int], report: Report, python: bool = False) -> Counter[str]:
    """Run mutations in a process, in another one after each crash; report what breaks the rule."""
    totals = Counter[str]()
    rest = list(numbers)
    while rest:
        with tempfile.TemporaryDirectory(dir=SCRATCH) as root:
            command = [sys.executable, "-X", "faulthandler", __file__, f"--worker={root}"]
            command += [f"--seed={seed}", *(["--python"] if python else [])]
            worker = subprocess.run(
                [*command, "--only", *map(str, rest)],
                capture_output=True,
                text=True,
                check=False,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
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
    parser.add_argument("--mutations", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first mutation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="+", help="numbers of mutations")
    parser.add_argument("--python", action="store_true", help="run kernels as plain Python")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    numbers = options.only or list(range(options.first, options.first + options.mutations))
    if options.worker:
        work(options.worker, options.seed, numbers, options.python)
        return 0
    totals = Counter[str]()
    for start in range(0, len(numbers), 1000):
        totals += fuzz(options.seed, numbers[start : start + 1000], print, options.python)
        print(", ".join(f"{count} {name}" for name, count in totals.items()), flush=True)
    return int(bool(totals["findings"]))


if __name__ == "__main__":
    sys.exit(main())
