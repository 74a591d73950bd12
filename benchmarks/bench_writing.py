"""Writing sample by sample, compressed shards, and copies; all sides sync their files."""

from __future__ import annotations

import math
import multiprocessing
import os
import shutil
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest

import npstream
from data import Data, sync
from figures import SIDES, Figure, Pair, compare_and_time, figure, warm

Samples = Callable[[], Iterator[dict[str, Any]]]


def row_by_row(
    data: Data,
    samples: Samples,
    columns: dict[str, str],
    loop: Callable[[Iterator[dict[str, Any]], BinaryIO], None],
    count: int,
) -> Pair:
    """Write samples with npstream, and with a loop that writes their values to one file."""
    target = data.directory / f"written-{os.getpid()}"

    def ours(number: int) -> float:
        start = time.perf_counter()
        npstream.write(target, samples(), columns=columns)
        sync(target)
        elapsed = time.perf_counter() - start
        assert len(npstream.open(target)) == count
        shutil.rmtree(target)
        return elapsed / count

    def reference(number: int) -> float:
        start = time.perf_counter()
        with target.open("wb") as file:
            loop(samples(), file)
            file.flush()
            os.fsync(file.fileno())
        elapsed = time.perf_counter() - start
        target.unlink()
        return elapsed / count

    return Pair(ours, reference, lambda left, right: None, returns_value=True)


LOOP = "a loop of `struct.pack`, `tobytes` and `write` of the same samples, both synced"


@figure("writing T row by row, for one sample", LOOP, factor=1.5, rounds=7)
def tokens(data: Data) -> Pair:
    rows = np.array(data.records()["tokens"])

    def samples() -> Iterator[dict[str, Any]]:
        return ({"id": number, "tokens": row} for number, row in enumerate(rows))

    def loop(samples: Iterator[dict[str, Any]], file: BinaryIO) -> None:
        pack = struct.Struct("<q").pack
        for sample in samples:
            file.write(pack(sample["id"]))
            file.write(sample["tokens"].tobytes())

    columns = {"id": "int", "tokens": f"ndarray:uint16:{rows.shape[1]}"}
    return row_by_row(data, samples, columns, loop, len(rows))


@figure("writing S row by row, for one sample", LOOP, factor=1.5, rounds=7)
def small(data: Data) -> Pair:
    rows = list(zip(data.labels().tolist(), data.texts(), strict=True))

    def samples() -> Iterator[dict[str, Any]]:
        return (
            {"id": number, "label": label, "text": text}
            for number, (label, text) in enumerate(rows)
        )

    def loop(samples: Iterator[dict[str, Any]], file: BinaryIO) -> None:
        pack = struct.Struct("<Iqi").pack
        for sample in samples:
            text = sample["text"].encode()
            file.write(pack(len(text), sample["id"], sample["label"]))
            file.write(text)

    columns = {"id": "int", "label": "int32", "text": "str"}
    return row_by_row(data, samples, columns, loop, len(rows))


@figure("writing J with zstd", "`zstd -T2` of the same bytes, both synced", factor=1.3, rounds=7)
def write_zstd(data: Data) -> Pair:
    files = data.jpegs()
    target = data.directory / f"written-{os.getpid()}"
    source = data.directory / f"J-{data.images}" / "files"

    def ours(number: int) -> float:
        start = time.perf_counter()
        npstream.write(
            target, ({"image": file} for file in files),
            columns={"image": "jpeg"}, compression="zstd",
        )  # fmt: skip
        sync(target)
        elapsed = time.perf_counter() - start
        assert len(npstream.open(target)) == len(files)
        shutil.rmtree(target)
        return elapsed

    def reference(number: int) -> float:
        start = time.perf_counter()
        subprocess.run(["zstd", "-T2", "-q", "-o", target, source], check=True)
        sync_file(target)
        elapsed = time.perf_counter() - start
        target.unlink()
        return elapsed

    return Pair(ours, reference, lambda left, right: None, returns_value=True)


@figure(
    "copying a tenth of J by a mask",
    "`read` and `write` of the same bytes, file by file, both synced",
    factor=1.3,
    rounds=15,
)
def copy_tenth(data: Data) -> Pair:
    data.jpegs()  # makes the files of J
    source = data.directory / f"J-{data.images}"
    begins = np.load(source / "ends.npy").tolist()
    dataset = npstream.open(data.jpegs_dataset())
    mask = np.random.default_rng(0).random(len(dataset)) < 0.1
    target = data.directory / f"written-{os.getpid()}"
    warm(dataset[mask])

    def ours(number: int) -> float:
        start = time.perf_counter()
        npstream.copy(dataset[mask], target)
        sync(target)
        elapsed = time.perf_counter() - start
        assert len(npstream.open(target)) == np.count_nonzero(mask)
        shutil.rmtree(target)
        return elapsed

    def reference(number: int) -> float:
        start = time.perf_counter()
        with (source / "files").open("rb") as files, target.open("wb") as file:
            for row in np.flatnonzero(mask).tolist():
                files.seek(begins[row])
                file.write(files.read(begins[row + 1] - begins[row]))
            file.flush()
            os.fsync(file.fileno())
        elapsed = time.perf_counter() - start
        target.unlink()
        return elapsed

    return Pair(ours, reference, lambda left, right: None, returns_value=True)


def embeddings_pair(data: Data, measure: Callable[[float, Path], float]) -> Pair:
    """Add embeddings to a dataset, and save the same array.

    `measure` takes the elapsed time and the path of the result, and returns the measured value.
    """
    array = np.array(data.embeddings())
    target = data.directory / f"written-{os.getpid()}"
    file = data.directory / f"written-{os.getpid()}.npy"

    def ours(number: int) -> float:
        npstream.write(target, {"id": np.arange(len(array))})
        start = time.perf_counter()
        npstream.add_columns(target, {"embedding": array})
        sync(target / "columns")
        value = measure(time.perf_counter() - start, target / "columns")
        assert len(npstream.open(target)["embedding"]) == len(array)
        shutil.rmtree(target)
        return value

    def reference(number: int) -> float:
        start = time.perf_counter()
        np.save(file, array)
        sync_file(file)
        value = measure(time.perf_counter() - start, file)
        file.unlink()
        return value

    return Pair(ours, reference, lambda left, right: None, returns_value=True)


def total_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())


@figure(
    "`add_columns` of 768 float32", "`np.save` of the same array, both synced",
    factor=1.3, rounds=7,
)  # fmt: skip
def embeddings(data: Data) -> Pair:
    return embeddings_pair(data, lambda elapsed, path: elapsed)


@figure(
    "the files of `add_columns` of 768 float32", "`np.save` of the same array",
    factor=1.05, rounds=1, format_value=lambda nbytes: f"{nbytes / 1e6:.2f} MB",
)  # fmt: skip
def embeddings_bytes(data: Data) -> Pair:
    return embeddings_pair(data, lambda elapsed, path: total_bytes(path))


def read_embeddings(data: Data, read: Callable[[npstream.Dataset, int], Any]) -> Pair:
    """Read an added column, and the same column in the samples of a dataset."""
    added, stored = (npstream.open(data.embeddings_dataset(added=added)) for added in (True, False))
    for ds in (added, stored):
        warm(ds)
    return Pair(
        lambda number: read(added, number), lambda number: read(stored, number),
        np.testing.assert_array_equal,
    )  # fmt: skip


STORED_COLUMN = "the same of a column in the samples"


@figure("256 random rows of an added column of 768 float32", STORED_COLUMN, factor=1.1)
def random_embeddings(data: Data) -> Pair:
    def read(ds: npstream.Dataset, number: int) -> Any:
        rng = np.random.default_rng(number)
        batches = rng.integers(0, len(ds), (40, 256))
        return np.stack([ds["embedding"][rows].load()[:, 0] for rows in batches])

    return read_embeddings(data, read)


def first_embeddings(ds: npstream.Dataset) -> np.ndarray:
    """Iterate over a dataset, and return the first number of each batch."""
    return np.array(
        [batch["embedding"][0, 0] for batch in ds.iter(0, 1, batch_size=256, last="short")]
    )


@figure("iterating over an added column of 768 float32", STORED_COLUMN, factor=1.1)
def sequential_embeddings(data: Data) -> Pair:
    return read_embeddings(data, lambda ds, _: first_embeddings(ds[["embedding"]]))


@figure("iterating over it and a column of the dataset", STORED_COLUMN, factor=math.inf)
def joined_embeddings(data: Data) -> Pair:
    return read_embeddings(data, lambda ds, _: first_embeddings(ds))


def sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def parquet_pair(data: Data, reference: Callable[[Path, Path], None]) -> Pair:
    """Convert the Parquet file of S, and call `reference` with the file and an output path."""
    source = data.small_parquet()
    target = data.directory / f"written-{os.getpid()}"

    def timed(run: Callable[[], object]) -> float:
        start = time.perf_counter()
        run()
        sync(target)
        elapsed = time.perf_counter() - start
        shutil.rmtree(target)
        return elapsed

    def ours(number: int) -> float:
        return timed(lambda: npstream.convert(source, target))

    def theirs(number: int) -> float:
        return timed(lambda: reference(source, target))

    return Pair(ours, theirs, lambda left, right: None, returns_value=True)


def columns_to_file(source: Path, target: Path) -> None:
    import pyarrow.parquet as pq

    target.mkdir()
    with (target / "columns").open("wb") as file:
        for column in pq.read_table(source).columns:
            for chunk in column.chunks:
                for buffer in filter(None, chunk.buffers()):
                    np.frombuffer(buffer, np.uint8).tofile(file)


def to_datasets(source: Path, target: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    datasets.Dataset.from_parquet(str(source), cache_dir=str(target))


def parquet_rows(source: str) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    for batch in pq.ParquetFile(source).iter_batches():
        yield from batch.to_pylist()


def to_litdata(source: Path, target: Path) -> None:
    litdata = pytest.importorskip("litdata")
    start_method = multiprocessing.get_start_method()
    litdata.optimize(
        parquet_rows, [str(source)], str(target), num_workers=1, chunk_bytes="64MB", verbose=False
    )
    multiprocessing.set_start_method(start_method, force=True)  # litdata has changed it
    assert (target / "index.json").exists()  # a worker that fails raises no exception


@figure(
    "Parquet of S to a dataset", "pyarrow reading it, and `tofile` of the columns, both synced",
    factor=2, rounds=7,
)  # fmt: skip
def parquet(data: Data) -> Pair:
    return parquet_pair(data, columns_to_file)


@figure("Parquet of S to a dataset", "`datasets.Dataset.from_parquet`, both synced", rounds=3)
def parquet_datasets(data: Data) -> Pair:
    return parquet_pair(data, to_datasets)


@figure("Parquet of S to a dataset", "LitData's `optimize` of its rows, both synced", rounds=1)
def parquet_litdata(data: Data) -> Pair:
    return parquet_pair(data, to_litdata)


@figure(
    "J as files in folders to a dataset", "reading the files and writing them to one, both synced",
    factor=1.5, rounds=7,
)  # fmt: skip
def folders(data: Data) -> Pair:
    source = data.jpeg_folders()
    target = data.directory / f"written-{os.getpid()}"

    def ours(number: int) -> float:
        start = time.perf_counter()
        report = npstream.convert(source, target)
        sync(target)
        elapsed = time.perf_counter() - start
        assert report.samples == data.images
        shutil.rmtree(target)
        return elapsed

    def reference(number: int) -> float:
        start = time.perf_counter()
        with target.open("wb") as file:
            for path in sorted(source.rglob("*.jpg")):
                file.write(path.read_bytes())
            file.flush()
            os.fsync(file.fileno())
        elapsed = time.perf_counter() - start
        target.unlink()
        return elapsed

    return Pair(ours, reference, lambda left, right: None, returns_value=True)


FIGURES = [
    tokens, small, write_zstd, copy_tenth, parquet, parquet_datasets, parquet_litdata, folders,
    embeddings, embeddings_bytes, random_embeddings, sequential_embeddings, joined_embeddings,
]  # fmt: skip


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.prepare.__name__)
def test_writing(figure: Figure, side: str, benchmark: Any, data: Data) -> None:
    if figure is write_zstd and side == "reference" and shutil.which("zstd") is None:
        pytest.skip("there is no command zstd")
    compare_and_time(figure, side, benchmark, data)
