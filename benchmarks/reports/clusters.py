"""Write S with Dask and with Spark; print the times relative to those of other writers.

python benchmarks/reports/clusters.py --data DIRECTORY [--rounds N]

Spark's reference needs the package mosaicml-streaming, which asks for other versions of some
packages: install it in a venv of its own, together with npstream[dask,spark].
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from data import Data, sync  # noqa: E402
from figures import (  # noqa: E402
    Figure,
    Pair,
    Result,
    Unavailable,
    measure,
    require,
)

PARTITIONS = 8


@contextmanager
def dask_pair(data: Data) -> Iterator[Pair]:
    """Yield a pair that writes S from the memory of two workers.

    npstream writes a dataset, and Dask writes Parquet files.
    """
    distributed = require("distributed", "distributed")
    frames = require("dask.dataframe", "dask[dataframe]")
    from npstream.conversion.dask import write

    table = data.small_table().to_pandas()
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        frame = frames.from_pandas(table, npartitions=PARTITIONS).persist()
        distributed.wait(frame)
        yield output_pair(
            data,
            lambda path: write(path, frame, client=client),
            lambda path: frame.to_parquet(str(path), write_index=False),
        )


@contextmanager
def spark_pair(data: Data) -> Iterator[Pair]:
    """Yield a pair that writes S from the memory of Spark.

    npstream and Streaming both write a dataset.
    """
    sql = require("pyspark.sql", "pyspark")
    converters = require("streaming.base.converters", "mosaicml-streaming")
    from npstream.conversion.spark import write

    builder = sql.SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
    session = builder.config("spark.driver.memory", "4g").getOrCreate()
    try:
        frame = session.read.parquet(str(data.small_parquet())).repartition(PARTITIONS).cache()
        frame.count()

        def streaming(path: Path) -> None:
            converters.dataframe_to_mds(frame, mds_kwargs={"out": str(path), "compression": None})

        yield output_pair(data, lambda path: write(path, frame), streaming)
    finally:
        session.stop()


def output_pair(data: Data, ours: Callable[[Path], Any], theirs: Callable[[Path], Any]) -> Pair:
    """Return a pair of functions that write to a new directory, sync it, and remove it."""
    target = data.directory / f"written-{os.getpid()}"

    def run(write: Callable[[Path], Any]) -> float:
        start = time.perf_counter()
        write(target)
        sync(target)
        elapsed = time.perf_counter() - start
        shutil.rmtree(target)
        return elapsed

    return Pair(
        lambda number: run(ours), lambda number: run(theirs), lambda left, right: None,
        returns_value=True,
    )  # fmt: skip


FIGURES = (
    ("S through Dask, 2 workers", "`dask.dataframe.to_parquet`", 1.2, dask_pair),
    ("S through Spark, 2 cores", "Streaming's `dataframe_to_mds`", 1 / 3, spark_pair),
)
"""The title, the reference, the factor to reach, and the function of each figure."""


def main() -> None:
    """Print a row of a table for each figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    data = Data(options.data)
    print("| what | npstream | reference | ratio | target |\n|---|---|---|---|---|")
    for title, reference, factor, prepare in FIGURES:
        try:
            with prepare(data) as pair:
                figure = Figure(title, reference, lambda _, pair=pair: pair, factor=factor)
                print(row(measure(figure, data, options.rounds)), flush=True)
        except Unavailable as error:
            print(f"| {title} | | {reference} | {error} | {factor:.2f} x |")


def row(result: Result) -> str:
    """Return a row of the table."""
    figure, ratio = result.figure, result.ours / result.theirs
    return (
        f"| {figure.title} | {result.ours:.2f} s | {figure.reference}: {result.theirs:.2f} s "
        f"| {ratio:.2f} | {figure.factor:.2f} x |"
    )


if __name__ == "__main__":
    main()
