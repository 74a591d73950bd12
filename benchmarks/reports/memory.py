"""Measure the memory of writes at two sizes of data, and write the table of docs/benchmarks.md.

python benchmarks/reports/memory.py [--directory DIRECTORY] [--nbytes N] [--only WORD]

Each operation runs in a process of its own. A first run on little data imports packages and starts
threads. The memory before the second run is subtracted. The parent process samples the memory, so
that the samples do not wait for the GIL of the operation's process.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from select import select
from typing import IO, Any

import fsspec
import numpy as np

import npstream
from npstream._core.arguments import size_text
from page import fill_in

Run = Callable[[Path, Any], object]
"""Function of the directory of the source, and of the path or URL to write."""

FIRST_BYTES = 1 << 22
"""Bytes of the data of the first run."""

SHARDS = 16
"""Shards of the smaller data."""

TOKENS = 1024
DIMENSIONS = 768
FILE_BYTES = 30_000

HEAD = "| operation | MB at {} of data | MB at {} |\n|---|---|---|\n"


@dataclass(frozen=True)
class Operation:
    """A write: a function that makes its source, and the function that is measured."""

    title: str
    make: Callable[[Path, int], None]
    run: Run
    is_remote: bool = False


OPERATIONS: list[Operation] = []

options: dict[str, Any] = {}
"""The options of every write, which the process of an operation sets."""


def operation(
    title: str, make: Callable[[Path, int], None], *, is_remote: bool = False
) -> Callable[[Run], Run]:
    def add(run: Run) -> Run:
        OPERATIONS.append(Operation(title, make, run, is_remote))
        return run

    return add


# Sources


def random_bytes(count: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(count)


def make_tokens(directory: Path, nbytes: int) -> None:
    """Store T's tokens as an array."""
    rows = nbytes // (2 * TOKENS)
    array = np.lib.format.open_memmap(
        directory / "tokens.npy", "w+", np.dtype("<u2"), (rows, TOKENS)
    )
    for start in range(0, rows, 1 << 12):
        count = min(1 << 12, rows - start)
        array[start : start + count] = np.random.default_rng(start).integers(
            0, 50_000, (count, TOKENS)
        )


def tokens(directory: Path) -> np.ndarray:
    array: np.ndarray = np.load(directory / "tokens.npy", mmap_mode="r")
    return array


def token_columns(directory: Path) -> dict[str, np.ndarray]:
    array = tokens(directory)
    return {"id": np.arange(len(array)), "tokens": array}


def token_samples(directory: Path) -> Iterator[dict[str, Any]]:
    return ({"id": number, "tokens": row} for number, row in enumerate(tokens(directory)))


def make_tokens_dataset(directory: Path, nbytes: int) -> None:
    make_tokens(directory, nbytes)
    npstream.write(directory / "dataset", token_columns(directory), **options)


def make_two_datasets(directory: Path, nbytes: int) -> None:
    make_tokens(directory, nbytes)
    columns = token_columns(directory)
    half = len(columns["id"]) // 2
    for name, part in (("a", slice(half)), ("b", slice(half, None))):
        rows = {column: values[part] for column, values in columns.items()}
        npstream.write(directory / "parts" / name, rows, **options)


def make_embeddings(directory: Path, nbytes: int) -> None:
    """Store a dataset of ids, and an array of embeddings of its samples."""
    rows = nbytes // (4 * DIMENSIONS)
    shape = rows, DIMENSIONS
    array = np.lib.format.open_memmap(directory / "embeddings.npy", "w+", np.dtype("<f4"), shape)
    for start in range(0, rows, 1 << 12):
        count = min(1 << 12, rows - start)
        generator = np.random.default_rng(start)
        array[start : start + count] = generator.standard_normal((count, DIMENSIONS), np.float32)
    npstream.write(directory / "dataset", {"id": np.arange(rows)})


def small_tables(nbytes: int) -> Iterator[Any]:
    """Yield tables of S: ids, labels and texts of 20 to 200 letters."""
    import pyarrow as pa

    row_bytes = 8 + 4 + 110  # the mean: an id, a label and a text
    rows, step = nbytes // row_bytes, 1 << 14
    for start in range(0, rows, step):
        count = min(step, rows - start)
        generator = np.random.default_rng(start)
        lengths = generator.integers(20, 201, count)
        letters = generator.integers(97, 123, lengths.sum(), np.uint8).tobytes()
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        text = pa.StringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(letters))
        yield pa.table(
            {
                "id": np.arange(start, start + count),
                "label": generator.integers(0, 1000, count, np.int32),
                "text": text,
            }
        )


def make_parquet(directory: Path, nbytes: int) -> None:
    import pyarrow.parquet as pq

    writer = None
    for table in small_tables(nbytes):
        writer = writer or pq.ParquetWriter(directory / "s.parquet", table.schema)
        writer.write_table(table, row_group_size=1 << 20)
    assert writer is not None
    writer.close()


def make_csv(directory: Path, nbytes: int) -> None:
    with (directory / "s.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "label", "text"])
        for table in small_tables(nbytes):
            writer.writerows(zip(*(column.to_pylist() for column in table.columns), strict=True))


def make_json_lines(directory: Path, nbytes: int) -> None:
    with (directory / "s.jsonl").open("w") as file:
        for table in small_tables(nbytes):
            file.writelines(json.dumps(row) + "\n" for row in table.to_pylist())


def compressed(make: Callable[[Path, int], None], extension: str) -> Callable[[Path, int], None]:
    """Return a function that makes one file and compresses it."""

    def make_compressed(directory: Path, nbytes: int) -> None:
        make(directory, nbytes)
        (path,) = directory.iterdir()
        target = path.with_name(path.name + extension)
        with fsspec.open(str(target), "wb", compression="infer") as file, path.open("rb") as source:
            shutil.copyfileobj(source, file, 1 << 20)
        path.unlink()

    return make_compressed


def make_folder(directory: Path, nbytes: int) -> None:
    """Store files of 30 KB in a folder for each of 100 classes."""
    for number in range(max(nbytes // FILE_BYTES, 1)):
        folder = directory / f"class-{number % 100:02}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:06}.bin").write_bytes(random_bytes(FILE_BYTES, number))


def make_tar(directory: Path, nbytes: int) -> None:
    """Store the samples of a WebDataset in one tar file."""
    with tarfile.open(directory / "0.tar", "w") as tar:
        for number in range(max(nbytes // FILE_BYTES, 1)):
            for name, body in (("bin", random_bytes(FILE_BYTES, number)), ("cls", b"7")):
                member = tarfile.TarInfo(f"{number:06}.{name}")
                member.size = len(body)
                tar.addfile(member, BytesIO(body))


def make_hugging_face(directory: Path, nbytes: int) -> None:
    import datasets

    make_parquet(directory, nbytes)
    datasets.disable_progress_bars()
    dataset = datasets.Dataset.from_parquet(
        str(directory / "s.parquet"), cache_dir=str(directory / "cache")
    )
    dataset.save_to_disk(directory / "hf", num_shards=2)
    shutil.rmtree(directory / "cache")
    (directory / "s.parquet").unlink()


def make_litdata(directory: Path, nbytes: int) -> None:
    import litdata

    rows = range(nbytes // (2 * TOKENS))
    litdata.optimize(
        litdata_sample, list(rows), str(directory), num_workers=1, chunk_bytes="8MB", verbose=False
    )


def litdata_sample(number: int) -> dict[str, Any]:
    generator = np.random.default_rng(number)
    return {"id": number, "tokens": generator.integers(0, 50_000, TOKENS).astype(np.uint16)}


def make_npz(directory: Path, nbytes: int) -> None:
    make_tokens(directory, nbytes)
    np.savez(directory / "t.npz", **token_columns(directory))
    (directory / "tokens.npy").unlink()


def make_hdf5(directory: Path, nbytes: int) -> None:
    import h5py

    make_tokens(directory, nbytes)
    with h5py.File(directory / "t.h5", "w") as file:
        for name, values in token_columns(directory).items():
            file[name] = values
    (directory / "tokens.npy").unlink()


def make_zarr(directory: Path, nbytes: int) -> None:
    import zarr

    make_tokens(directory, nbytes)
    group = zarr.open_group(directory / "t.zarr", mode="w")
    for name, values in token_columns(directory).items():
        chunks = (256, *values.shape[1:])
        group.create_array(name, shape=values.shape, chunks=chunks, dtype=values.dtype)[:] = values
    (directory / "tokens.npy").unlink()


# Writes


@operation("`write` of arrays, T", make_tokens)
def write_arrays(source: Path, url: Any) -> object:
    return npstream.write(url, token_columns(source), **options)


@operation("`write` of arrays to an object store, T", make_tokens, is_remote=True)
def write_arrays_remote(source: Path, url: Any) -> object:
    return npstream.write(url, token_columns(source), **options)


@operation("`write` of arrays with zstd, T", make_tokens)
def write_zstd(source: Path, url: Any) -> object:
    return npstream.write(url, token_columns(source), compression="zstd", **options)


@operation("`write` row by row, T", make_tokens)
def write_rows(source: Path, url: Any) -> object:
    return npstream.write(url, token_samples(source), **options)


@operation("`write` row by row with `resume=True`, T", make_tokens)
def write_resumable(source: Path, url: Any) -> object:
    return npstream.write(url, token_samples(source), resume=True, **options)


@operation("`write` with `map=` and two workers, T", make_tokens)
def write_workers(source: Path, url: Any) -> object:
    return npstream.write(url, token_samples(source), map=unchanged, workers=2, **options)


def unchanged(sample: dict[str, Any]) -> dict[str, Any]:
    return sample


@operation('`write` with `mode="a"`, T', make_tokens_dataset)
def append(source: Path, url: Any) -> object:
    return npstream.write(source / "dataset", token_columns(source), mode="a", **options)


@operation('`write` with `mode="w"`, T', make_tokens_dataset)
def replace(source: Path, url: Any) -> object:
    return npstream.write(source / "dataset", token_columns(source), mode="w", **options)


@operation("`copy` of half of the samples by a mask, T", make_tokens_dataset)
def copy(source: Path, url: Any) -> object:
    dataset = npstream.open(source / "dataset")
    return npstream.copy(dataset[np.arange(len(dataset)) % 2 == 0], url, **options)


@operation("`copy` of one column with zstd, T", make_tokens_dataset)
def copy_column(source: Path, url: Any) -> object:
    dataset = npstream.open(source / "dataset")
    return npstream.copy(dataset[["tokens"]], url, compression="zstd", **options)


@operation("`merge` of two datasets, T", make_two_datasets)
def merge(source: Path, url: Any) -> object:
    parts = source / "parts"
    return npstream.merge([parts / "a", parts / "b"], parts)


@operation("`add_columns` by position, 768 float32", make_embeddings)
def add_by_position(source: Path, url: Any) -> object:
    array = np.load(source / "embeddings.npy", mmap_mode="r")
    return npstream.add_columns(source / "dataset", {"embedding": array}, **options)


@operation("`add_columns` by a key, 768 float32", make_embeddings)
def add_by_key(source: Path, url: Any) -> object:
    array = np.load(source / "embeddings.npy", mmap_mode="r")
    columns = {"id": np.arange(len(array))[::-1], "embedding": array}
    return npstream.add_columns(source / "dataset", columns, key="id", **options)


def convert_files(pattern: str, **arguments: Any) -> Run:
    """Return a function that converts a file or folder of the source, or all of it for ""."""

    def run(source: Path, url: Any) -> object:
        return npstream.convert(source / pattern, url, **arguments, **options)

    return run


def tokenize(source: Path, url: Any, **arguments: Any) -> object:
    """Convert text to ids: the code points of its letters."""
    return npstream.convert(
        source / "s.parquet", url, tokenizer=code_points, columns=["text"], **arguments, **options
    )


def code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-16-le"), "<u2")


CONVERSIONS: list[tuple[str, Callable[[Path, int], None], Run]] = [
    ("Parquet, S", make_parquet, convert_files("s.parquet")),
    (
        "Parquet with a condition, S",
        make_parquet,
        convert_files("s.parquet", where="label < 500", columns=["id", "label", "text"]),
    ),
    ("Parquet with `workers=2`, S", make_parquet, convert_files("s.parquet", workers=2)),
    ("CSV, S", make_csv, convert_files("s.csv")),
    ("CSV, gzip, S", compressed(make_csv, ".gz"), convert_files("s.csv.gz")),
    ("JSON lines, S", make_json_lines, convert_files("s.jsonl")),
    ("JSON lines, zstd, S", compressed(make_json_lines, ".zst"), convert_files("s.jsonl.zst")),
    ("a folder of files", make_folder, convert_files("", kind="folder")),
    ("a WebDataset", make_tar, convert_files("0.tar")),
    ("a WebDataset, gzip", compressed(make_tar, ".gz"), convert_files("0.tar.gz")),
    ("a Hugging Face dataset on disk, S", make_hugging_face, convert_files("hf")),
    ("a LitData dataset, T", make_litdata, convert_files("")),
    (".npy, T", make_tokens, convert_files("tokens.npy")),
    (".npz, T", make_npz, convert_files("t.npz")),
    ("HDF5, T", make_hdf5, convert_files("t.h5")),
    ("Zarr, T", make_zarr, convert_files("t.zarr")),
    ("a dataset, T", make_tokens_dataset, convert_files("dataset")),
    (
        "a dataset, with zstd, T",
        make_tokens_dataset,
        convert_files("dataset", compression="zstd"),
    ),
    ("text to ids, S", make_parquet, tokenize),
    (
        "text to blocks of ids, two workers, S",
        make_parquet,
        lambda source, url: tokenize(source, url, block=2048, separator=0, workers=2),
    ),
]

OPERATIONS += [Operation(f"`convert` of {title}", make, run) for title, make, run in CONVERSIONS]


# Processes


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--directory", type=Path, help="directory of the data; by default temporary"
    )
    parser.add_argument("--nbytes", type=int, default=1 << 27, help="bytes of the smaller data")
    parser.add_argument(
        "--only", default="", help="operations whose titles contain this; print only"
    )
    parser.add_argument("--step", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    options.update(shard_size=arguments.nbytes // SHARDS, progress=False)
    if arguments.step:
        run_step(*arguments.step)
        return
    sizes = arguments.nbytes, 4 * arguments.nbytes
    table = HEAD.format(*map(size_text, sizes))
    print(table, end="", flush=True)
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory, ExitStack() as stack:
        for number, each in enumerate(OPERATIONS):
            if arguments.only in each.title:
                peaks = []
                for nbytes in sizes:
                    target = new_target(stack) if each.is_remote else None
                    peaks.append(measure(number, nbytes, Path(directory), target))
                line = f"| {each.title} | {peaks[0] / 1e6:.0f} | {peaks[1] / 1e6:.0f} |\n"
                print(line, end="", flush=True)
                table += line
    if not arguments.only:
        text = f"Shards have {size_text(options['shard_size'])}.\n\n{table}"
        fill_in("benchmarks.md", "memory.py", text)


def new_target(stack: ExitStack) -> tuple[str, dict[str, Any]]:
    """Return the URL and the storage options of a directory of an object store."""
    sys.path.append(str(Path(__file__).parents[2] / "tests" / "helpers"))
    from servers import Servers

    servers = Servers()
    stack.callback(servers.close)
    directory = servers["s3"].directory_at(f"{servers['s3'].root}/memory")
    return directory.url, directory.storage_options


def measure(
    number: int, nbytes: int, directory: Path, target: tuple[str, dict[str, Any]] | None
) -> int:
    """Return the bytes that an operation takes at most, in addition to those after a first run.

    `target` is the URL and the storage options of the result; by default a local directory.
    """
    command = [sys.executable, *sys.argv, "--step", str(number), str(directory)]
    try:
        for name, size in (("first", FIRST_BYTES), ("data", nbytes)):
            (directory / name).mkdir()
            subprocess.run([*command, f"{name}:{size}"], check=True, stdout=subprocess.DEVNULL)
        with subprocess.Popen(
            [*command, "run", json.dumps(target)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            expect(process.stdout, b"ready\n")
            before = peak = anonymous_bytes(process.pid)
            process.stdin.write(b"\n")
            process.stdin.flush()
            while not select([process.stdout], [], [], 0.001)[0]:
                peak = max(peak, anonymous_bytes(process.pid))
            expect(process.stdout, b"done\n")
    finally:
        for path in directory.iterdir():
            shutil.rmtree(path)
    return peak - before


def expect(file: IO[bytes], line: bytes) -> None:
    if file.readline() != line:
        raise RuntimeError("the process of the operation has failed: see its traceback above")


def anonymous_bytes(process: int) -> int:
    """Return the bytes of memory of a process and its children.

    The pages of mapped files are not counted: the system takes them back when it needs memory. A
    page that several processes share is counted once.
    """
    processes = [process]
    for current in processes:
        with suppress(OSError):
            for thread in os.listdir(f"/proc/{current}/task"):
                children = Path(f"/proc/{current}/task/{thread}/children").read_text()
                processes += map(int, children.split())
    # `smaps_rollup` is exact for shared pages, but reading it takes longer.
    file, field = ("status", "RssAnon:") if len(processes) == 1 else ("smaps_rollup", "Pss_Anon:")
    total = 0
    for current in processes:
        with suppress(OSError):  # a worker has ended
            for line in Path(f"/proc/{current}/{file}").read_text().splitlines():
                if line.startswith(field):
                    total += int(line.split()[1]) << 10
    return total


def run_step(number: str, directory: str, step: str, target: str = "null") -> None:
    """Make data of an operation, or run it: first on little data, then on data to measure.

    `step` is "run", or "NAME:BYTES" to make a source. `target` is that of `measure`, as JSON.
    """
    each, parent = OPERATIONS[int(number)], Path(directory)
    if step != "run":
        name, _, size = step.partition(":")
        each.make(parent / name, int(size))
        return
    npstream.precompile()
    url: Any = parent / "written"
    if (remote := json.loads(target)) is not None:
        url, options["storage_options"] = remote
    each.run(parent / "first", f"{url}-first")
    print("ready", flush=True)
    sys.stdin.readline()
    each.run(parent / "data", f"{url}-data")
    print("done", flush=True)


if __name__ == "__main__":
    main()
