"""Writing, compared with the writers of other packages, where they are installed.

All sides sync their files.
"""

from __future__ import annotations

import itertools
import os
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import npstream
from bench_writing import Samples, sync_file
from data import Data, sync
from figures import SIDES, Figure, Pair, compare_and_time, figure, require


def write_pair(
    data: Data, ours: Callable[[Path], object], theirs: Callable[[Path], object], calls: int = 1
) -> Pair:
    """Write to a file or directory with npstream, and with another package; sync both."""
    target = data.directory / f"written-{os.getpid()}"

    def timed(write: Callable[[Path], object]) -> float:
        start = time.perf_counter()
        write(target)
        if target.is_dir():
            sync(target)
        else:
            sync_file(target)
        elapsed = time.perf_counter() - start
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink()
        return elapsed / calls

    return Pair(
        lambda number: timed(ours),
        lambda number: timed(theirs),
        lambda left, right: None,
        returns_value=True,
    )


@dataclass(frozen=True)
class Rows:
    """Samples, and how they are given to each package."""

    samples: Samples
    count: int
    columns: dict[str, str]
    """The encodings of npstream."""
    features: Callable[[Any], dict[str, Any]]
    """Returns the features of `datasets`, given the module."""
    schema: Callable[[Any], Any]
    """Returns the schema of Arrow, given the module."""
    encode: Callable[[dict[str, Any]], bytes]
    """Returns a sample's bytes."""

    def write(self, path: Path) -> None:
        npstream.write(path, self.samples(), columns=self.columns)


def token_rows(data: Data, part: int = 1) -> Rows:
    tokens = np.array(data.records()["tokens"][: data.tokens // part])
    width, pack = tokens.shape[1], struct.Struct("<q").pack
    return Rows(
        samples=lambda: ({"id": number, "tokens": row} for number, row in enumerate(tokens)),
        count=len(tokens),
        columns={"id": "int", "tokens": f"ndarray:uint16:{width}"},
        features=lambda datasets: {
            "id": datasets.Value("int64"),
            "tokens": datasets.List(datasets.Value("uint16"), length=width),
        },
        schema=lambda pa: pa.schema({"id": pa.int64(), "tokens": pa.list_(pa.uint16(), width)}),
        encode=lambda sample: pack(sample["id"]) + sample["tokens"].tobytes(),
    )


def small_rows(data: Data, part: int = 1) -> Rows:
    samples, pack = data.small_samples()[: data.small // part], struct.Struct("<qi").pack
    return Rows(
        samples=lambda: iter(samples),
        count=len(samples),
        columns={"id": "int", "label": "int32", "text": "str"},
        features=lambda datasets: {
            name: datasets.Value(kind)
            for name, kind in (("id", "int64"), ("label", "int32"), ("text", "string"))
        },
        schema=lambda pa: pa.schema({"id": pa.int64(), "label": pa.int32(), "text": pa.string()}),
        encode=lambda sample: pack(sample["id"], sample["label"]) + sample["text"].encode(),
    )


def array_record(rows: Rows) -> Callable[[Path], object]:
    """Write records of one sample each, uncompressed: the format that Grain reads."""
    module = require("array_record.python.array_record_module", "array_record")

    def write(path: Path) -> None:
        writer = module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")
        for sample in rows.samples():
            writer.write(rows.encode(sample))
        writer.close()

    return write


def from_generator(rows: Rows) -> Callable[[Path], object]:
    datasets = require("datasets", "datasets")
    datasets.disable_progress_bars()
    features = datasets.Features(rows.features(datasets))
    fingerprints = itertools.count()

    def write(path: Path) -> None:
        # Without a fingerprint, `datasets` would first pickle and hash the generator.
        datasets.Dataset.from_generator(
            rows.samples, features=features, cache_dir=str(path),
            fingerprint=f"{os.getpid()}-{next(fingerprints)}",
        )  # fmt: skip

    return write


def lance_batches(rows: Rows) -> Callable[[Path], object]:
    """Write Arrow batches of 1,024 samples, which Lance takes instead of samples."""
    lance, pa = require("lance", "pylance"), require("pyarrow", "pyarrow")
    schema = rows.schema(pa)

    def column(values: list[Any], kind: Any) -> Any:
        if pa.types.is_fixed_size_list(kind):
            flat = pa.array(np.concatenate(values), kind.value_type)
            return pa.FixedSizeListArray.from_arrays(flat, kind.list_size)
        return pa.array(values, kind)

    def batches() -> Iterator[Any]:
        samples = rows.samples()
        while batch := list(itertools.islice(samples, 1024)):
            columns = [column([s[field.name] for s in batch], field.type) for field in schema]
            yield pa.record_batch(columns, schema)

    def write(path: Path) -> None:
        lance.write_dataset(batches(), path, schema=schema)

    return write


def lance_table(table: Any) -> Callable[[Path], object]:
    lance = require("lance", "pylance")
    return lambda path: lance.write_dataset(table, path)


Peer = Callable[[Rows], Callable[[Path], object]]
"""Function that returns the writer of another package: a function of the path to write."""


def peer_figure(
    name: str, make: Callable[[Data, int], Rows], peer: Peer, reference: str, part: int = 1
) -> Figure:
    """Return the figure of writing samples against another package.

    Both sides write the first 1 / `part` of the samples of `make`.
    """

    def prepare(data: Data) -> Pair:
        rows = make(data, part)
        return write_pair(data, rows.write, peer(rows), rows.count)

    prepare.__name__ = f"{make.__name__}_{peer.__name__}"
    title = name if part == 1 else f"1/{part} of {name}"
    return figure(f"writing {title} row by row, for one sample", reference, rounds=5)(prepare)


ARRAY_RECORD = "Grain's ArrayRecord, uncompressed, of `struct.pack` and `tobytes`, both synced"
DATASETS = "`datasets.Dataset.from_generator` of the same samples, both synced"
LANCE_BATCHES = "Lance, from Arrow batches of 1,024 samples, both synced"
LANCE_TABLE = "Lance, from an Arrow table, both synced"


@figure("writing T from arrays", LANCE_TABLE, rounds=5)
def arrays_and_lance(data: Data) -> Pair:
    require("pyarrow", "pyarrow")
    arrays = data.token_arrays()
    theirs = lance_table(data.tokens_table())
    return write_pair(data, lambda path: npstream.write(path, arrays), theirs)


@figure("writing S from an Arrow table", LANCE_TABLE, rounds=5)
def table_and_lance(data: Data) -> Pair:
    require("pyarrow", "pyarrow")
    table = data.small_table()
    return write_pair(data, lambda path: npstream.write(path, table), lance_table(table))


FIGURES = [
    peer_figure("T", token_rows, array_record, ARRAY_RECORD),
    peer_figure("T", token_rows, from_generator, DATASETS, 20),
    peer_figure("T", token_rows, lance_batches, LANCE_BATCHES),
    peer_figure("S", small_rows, array_record, ARRAY_RECORD),
    peer_figure("S", small_rows, from_generator, DATASETS, 20),
    peer_figure("S", small_rows, lance_batches, LANCE_BATCHES),
    arrays_and_lance,
    table_and_lance,
]


# Lance and ArrayRecord are compared where they are installed; the tests do not need them.
INSTALLED = [
    peer
    for peer in FIGURES
    if not ("lance" in peer.prepare.__name__ and find_spec("lance") is None)
    and not ("array_record" in peer.prepare.__name__ and find_spec("array_record") is None)
]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("figure", INSTALLED, ids=lambda figure: figure.prepare.__name__)
def test_peers(figure: Figure, side: str, benchmark: Any, data: Data) -> None:
    compare_and_time(figure, side, benchmark, data)
