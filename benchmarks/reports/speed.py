"""Measure the figures at full size and write a table of docs/benchmarks.md: local or remote.

python benchmarks/reports/speed.py [--data DIRECTORY] [--only WORD] [--rounds N] [--no-cold]
    [--remote]

With --only, the rows are printed, and the page is not written.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

# The benchmarks are in the parent directory, and import each other by name.
sys.path.append(str(Path(__file__).parents[1]))

import bench_disk
import bench_exploring
import bench_feeding
import bench_gather
import bench_images
import bench_mixture_order
import bench_mixture_reading
import bench_order
import bench_peers
import bench_query
import bench_samples
import bench_start
import bench_statistics
import bench_streaming_orders
import bench_torch
import bench_writing
from data import Data
from figures import Figure, Result, Unavailable, measure
from machine import describe_machine
from page import fill_in

FIGURES: list[Figure] = [
    *bench_gather.FIGURES,
    *bench_mixture_reading.FIGURES,
    *bench_samples.FIGURES,
    *bench_start.FIGURES,
    *bench_disk.FIGURES,
    *bench_writing.FIGURES,
    *bench_peers.FIGURES,
    *bench_statistics.FIGURES,
    *bench_query.FIGURES,
    *bench_exploring.FIGURES,
    *bench_order.FIGURES,
    *bench_mixture_order.FIGURES,
    *bench_torch.FIGURES,
    *bench_feeding.FIGURES,
    *bench_images.FIGURES,
    *bench_streaming_orders.FIGURES,
]

HEAD = """\
| what | reference | npstream | reference | ratio | at most | reached |
|---|---|---|---|---|---|---|
"""


def row(result: Result) -> str:
    figure = result.figure
    ratio = result.ours / result.theirs
    return (
        f"| {figure.title} | {figure.reference} | {figure.format_value(result.ours)} "
        f"| {figure.format_value(result.theirs)} | {ratio:.2f} | {figure.target} "
        f"| {verdict(result)} |\n"
    )


def verdict(result: Result) -> str:
    if result.figure.target == "none":
        return ""
    return "yes" if result.is_reached else "**no**"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(tempfile.gettempdir()) / "npstream-bench",
        help="directory of the data (about 6 GB, and 9 GB for the cold rows)",
    )
    parser.add_argument("--only", default="", help="figures whose titles contain this; print only")
    parser.add_argument("--rounds", type=int, help="rounds of each figure")
    parser.add_argument("--no-cold", action="store_true", help="skip the cold rows")
    parser.add_argument(
        "--remote",
        action="store_true",
        help="measure the figures of object stores; these need the servers of the tests",
    )
    arguments = parser.parse_args()

    table, about = HEAD, describe_machine()
    data = Data(arguments.data)
    for figure in remote_figures() if arguments.remote else FIGURES:
        if arguments.only not in figure.title:
            continue
        if arguments.no_cold and figure.title == bench_disk.COLD:
            continue
        try:
            line = row(measure(figure, data, arguments.rounds))
        except Unavailable as error:
            line = f"| {figure.title} | {figure.reference} | | | | {figure.target} | {error} |\n"
        print(line, end="", flush=True)
        table += line
    if not arguments.only:
        script = "speed.py --remote" if arguments.remote else "speed.py"
        fill_in("benchmarks.md", script, f"{about}\n{table}")


def remote_figures() -> list[Figure]:
    """Return the figures that need a test server."""
    sys.path.append(str(Path(__file__).parents[2] / "tests" / "helpers"))
    import bench_remote

    return bench_remote.FIGURES


if __name__ == "__main__":
    main()
