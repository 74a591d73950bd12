"""Compare npstream with other packages, and write the tables of docs/peers.md.

python benchmarks/peers/environments.py --directory DIRECTORY
python benchmarks/peers/compare.py --environments DIRECTORY [--data DIRECTORY]
    [--work DIRECTORY] [--use NAME=ENVIRONMENT ...] [--only NAME ...] [--rounds N]
    [--count T=N S=N]

Each measurement is a process of its own, in the environment of the package. In each round, all
packages do each task, one after the other. Each round begins with another package. The tables have
the medians of the rounds. With --only, the tables are printed, and the page stays as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path += [str(HERE.parent), str(HERE.parent / "reports")]

from adapters import ADAPTERS
from data import Data
from environments import interpreter
from figures import format_seconds
from machine import describe_machine
from page import fill_in

COUNTS = {"T": 20_000, "S": 50_000}

COLUMNS = {
    "write": "write",
    "bytes": "size",
    "order": "epoch in order",
    "shuffled": "shuffled epoch",
    "samples": "a sample at random",
    "first": "start of Python to the first sample",
}

TASKS = ["write", "order", "shuffled", "samples", "first"]

TITLES = {
    "T": "## Tokens: {count:,} samples of `tokens` uint16[1024] and `id`\n",
    "S": "## Text: {count:,} samples of `id`, `label` and `text` (20 to 200 letters)\n",
}


@dataclass
class Package:
    """A package, the Python that has it, and what was measured."""

    name: str
    python: Path
    version: str = ""
    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, column: str, value: float) -> None:
        self.values.setdefault(column, []).append(value)

    def median(self, column: str) -> float | None:
        values = self.values.get(column)
        return statistics.median(values) if values else None


class Comparison:
    """The measurements of all packages with samples of one kind."""

    def __init__(self, kind: str, count: int, data: Path, work: Path) -> None:
        self.kind, self.count, self.data, self.work = kind, count, data, work

    def run_task(self, package: Package, task: str) -> None:
        """Run a task in a process, and record its figures."""
        path = self.work / f"{package.name}-{self.kind}"
        if task == "write":
            shutil.rmtree(path, ignore_errors=True)
        command: list[Any] = [package.python, HERE / "measure.py", package.name, task]
        command += ["--kind", self.kind, "--data", self.data, "--path", path]
        command += ["--count", self.count]
        start = time.time()
        done = subprocess.run(
            [str(part) for part in command],
            cwd=self.work,
            env=environment(package.name, self.work),
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"{package.name}, {task}, {self.kind}:\n{done.stderr[-4000:]}")
        figures = json.loads(done.stdout.splitlines()[-1])
        package.version = figures["version"]
        package.add(task, figures["now"] - start if task == "first" else figures["format_seconds"])
        if "bytes" in figures:
            package.add("bytes", figures["bytes"])

    def run_rounds(self, packages: list[Package], rounds: int) -> None:
        for number in range(rounds):
            for task in TASKS:
                shift = number % len(packages)
                for package in packages[shift:] + packages[:shift]:
                    if task == "samples" and not ADAPTERS[package.name].has_random_access:
                        continue
                    self.run_task(package, task)
                print(f"{self.kind}: round {number + 1} of {rounds}, {task}", file=sys.stderr)


def environment(name: str, work: Path) -> dict[str, str]:
    """Return the environment variables of a process; only npstream's process has PYTHONPATH."""
    variables = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(work / "home")}
    if name != "npstream":
        variables.pop("PYTHONPATH", None)
    return variables


def format_value(column: str, value: float | None) -> str:
    """Format a figure in the unit of its column.

    >>> format_value("order", 1.25e-05), format_value("first", 1.5), format_value("samples", None)
    ('12.5 us', '1500 ms', 'none')
    """
    if value is None:
        return "none"
    if column == "bytes":
        return f"{value / 2**20:.1f} MiB"
    if column == "first":
        return f"{value * 1e3:.0f} ms"
    return format_seconds(value)


def table(kind: str, count: int, packages: list[Package]) -> str:
    """Return a table, with the best value of each column in bold."""
    best = {
        column: min(filter(None, (package.median(column) for package in packages)))
        for column in COLUMNS
    }
    lines = [
        TITLES[kind].format(count=count),
        f"| package | {' | '.join(COLUMNS.values())} | shuffles |",
        "|---" * (len(COLUMNS) + 2) + "|",
    ]
    for package in packages:
        cells = []
        for column in COLUMNS:
            value = package.median(column)
            text = format_value(column, value)
            cells.append(f"**{text}**" if value == best[column] else text)
        adapter = ADAPTERS[package.name]
        name = f"{adapter.package} {package.version}"
        lines.append(f"| {name} | {' | '.join(cells)} | {adapter.shuffle} |")
    return "\n".join(lines) + "\n"


def make_data(directory: Path) -> Data:
    """Make the files that the packages read their samples from."""
    data = Data(directory)
    data.records_file()
    data.small_rows()
    return data


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare npstream with other packages.")
    parser.add_argument("--environments", type=Path, required=True)
    parser.add_argument(
        "--use",
        nargs="*",
        default=[],
        metavar="NAME=ENVIRONMENT",
        help="environments in other places",
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(tempfile.gettempdir()) / "npstream-bench",
        help="directory of the data (about 1 GB)",
    )
    parser.add_argument("--work", type=Path, help="directory for the datasets (about 1 GB)")
    parser.add_argument("--only", nargs="*", choices=ADAPTERS, help="print only")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", nargs="*", default=[], metavar="KIND=SAMPLES")
    return parser.parse_args()


def main() -> None:
    """Run all rounds, and write the tables."""
    options = parse()
    about = f"Rounds: {options.rounds}. {describe_machine()}"
    paths = {name: options.environments.absolute() / name for name in ADAPTERS}
    paths |= {name: Path(path).absolute() for name, path in pairs(options.use)}
    names = [name for name in ADAPTERS if not options.only or name in options.only]
    counts = COUNTS | {kind: int(count) for kind, count in pairs(options.count)}
    data = make_data(options.data.absolute())
    tables = []
    with tempfile.TemporaryDirectory(dir=options.work, prefix="npstream-peers-") as work:
        for kind, count in counts.items():
            packages = [Package(name, interpreter(paths[name])) for name in names]
            comparison = Comparison(kind, count, data.directory, Path(work))
            comparison.run_rounds(packages, options.rounds)
            tables.append(table(kind, count, packages))
            print(tables[-1], flush=True)
    if not options.only:
        fill_in("peers.md", "compare.py", "\n".join([about, *tables]), folder="peers")


def pairs(texts: list[str]) -> list[tuple[str, str]]:
    """Split texts of the form NAME=VALUE."""
    return [(name, value) for name, _, value in (text.partition("=") for text in texts)]


if __name__ == "__main__":
    main()
