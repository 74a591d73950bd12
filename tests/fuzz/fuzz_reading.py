"""Reader of `fuzz`: read a damaged dataset in every way, and report violations."""

from __future__ import annotations

import json
import random
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import golden_data as golden
import numpy as np
from fuzz_mutations import Files
from fuzz_oracle import ExpectedRow, Original, judge

import npstream
from npstream.errors import FormatError, IntegrityError, StorageError

MAX_ROWS = 400
"""Maximum number of samples to read one by one."""

DOCUMENTED_ERRORS: tuple[type[Exception], ...] = (FormatError, IntegrityError, StorageError)
"""The exceptions that any read of a damaged dataset may raise."""

Report = Callable[[str], None]


class Case:
    """A dataset with its undamaged values.

    Parameters
    ----------
    name : str
    root : Path
        The directory that holds its ``index.json``.
    """

    def __init__(self, name: str, root: Path) -> None:
        self.name = name
        self.files: Files = {
            path.relative_to(root).as_posix(): path.read_bytes()
            for path in sorted(root.rglob("*"))
            if path.is_file() and (path.name != "index.json" or path.parent == root)
        }
        self.original = Original(self.files)
        self.index = index = json.loads(self.files["index.json"])
        self.compressed = {
            entry[which]["basename"]
            for entry in index["shards"]
            for which in ("zip_data", "zip_meta")
            if entry.get(which)
        }
        ds = npstream.open(root)
        self.values = {column: [ds[i][column] for i in range(len(ds))] for column in ds.columns}
        self.stored = {column: _stored(ds[column]) for column in ds.columns}
        # The first row of each shard in these lists, by the shard's `id`.
        self.first: dict[int, int] = {}
        row = 0
        for entry in index["shards"]:
            shard = self.original.shards[entry["raw_data"]["basename"]]
            self.first.setdefault(id(shard), row)
            row += entry["samples"]

    @classmethod
    def golden(cls, name: str) -> Case:
        """Return a golden dataset."""
        return cls(name, golden.directory(golden.case(name)))

    def write(self, root: Path) -> None:
        """Write the files to a directory."""
        for name, content in self.files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def expected(self, table: dict[str, list[Any]], expected_row: ExpectedRow, column: str) -> Any:
        """Return the value of a column at an expected row, from `values` or `stored`."""
        return table[column][self.first[id(expected_row.shard)] + expected_row.row]


def cases() -> list[Case]:
    """Return the readable golden datasets, except those with pickles, which could run any code."""
    known = [case for case in golden.cases() if case["readable"] is True and case["num_samples"]]
    return [Case.golden(case["name"]) for case in known if not case.get("unsafe")]


def write_annotated(root: Path, compression: str | None = None) -> None:
    """Write a dataset whose index has annotations: dtypes, and the order of columns."""
    rows = np.arange(60)
    columns = {
        "when": rows.astype("M8[D]"),
        "even": rows % 2 == 0,
        "place": rows * (1 + 2j),
        "label": (rows % 7).astype(np.int16),
        "text": [f"sample {row}" for row in rows],
        "pairs": [np.arange(1 + row % 3).astype("m8[s]") for row in rows],
    }
    hashes = [] if compression is None else ["xxh64"]
    npstream.write(root, columns, shard_size=700, compression=compression, hashes=hashes)


def _stored(column: Any) -> list[Any]:
    """Return the values in batches of one row, or None if an integer does not fit int64."""
    rows: list[Any] = []
    for row in range(len(column)):
        try:
            rows.append(column[[row]].load()[0])
        except OverflowError:
            rows.append(None)
    return rows


def identity(value: Any) -> Any:
    """Return a comparable form of a value, equal only for identical values."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, np.int64):
        value = int(value)  # the type depends on the first shard in the index
    if isinstance(value, np.generic):
        return value.dtype.str, value.tobytes()
    if isinstance(value, list):
        return [identity(item) for item in value]
    if hasattr(value, "getpalette"):
        return value.mode, value.size, value.tobytes()
    return type(value), repr(value)


# Reading a damaged dataset in every way


class DatasetReader:
    """Reads a damaged dataset in every way, and reports violations."""

    def __init__(
        self,
        ds: Any,
        case: Case,
        expected_rows: Iterator[ExpectedRow],
        report: Report,
        rng: random.Random,
    ) -> None:
        self.ds = ds
        self.case = case
        self.report = report
        self.rng = rng
        self.expected_rows = [
            expected_row for expected_row, _ in zip(expected_rows, range(MAX_ROWS), strict=False)
        ]
        self.reads = Counter[str]()
        self.compares = True  # whether values are compared with the original
        self.is_typed = True  # whether the columns have their original dtypes

    def attempt(self, what: str, read: Callable[[], Any], *documented: type[Exception]) -> Any:
        """Return the result of a read, or None if it raises; report undocumented exceptions."""
        try:
            result = read()
            self.reads["read"] += 1
            return result
        except DOCUMENTED_ERRORS:
            self.reads["raised"] += 1
        except documented:
            self.reads["documented"] += 1
        except MemoryError:
            if len(self.ds) < MAX_ROWS:  # the index may claim too many samples
                self.report(f"{what} raised {traceback.format_exc(limit=-3)}")
        except Exception:
            self.report(f"{what} raised {traceback.format_exc(limit=-3)}")
        return None

    def compare(self, what: str, row: int, column: str, value: Any, table: Any) -> None:
        """Report a value that differs from the original and is not excused."""
        expected_row = self.expected_rows[row]
        if not self.compares:
            return
        if column in expected_row.excused:
            self.reads["excused"] += 1
            return
        if expected_row.shard is None or column not in table:
            self.report(f"{what}, sample {row}, column {column!r}: read {value!r:.80}; must raise")
            return
        original = self.case.expected(table, expected_row, column)
        if identity(value) != identity(original):
            self.report(
                f"{what}, sample {row}, column {column!r}: {value!r:.80}; expected {original!r:.80}"
            )

    def read_all(self) -> None:
        """Read the dataset in every way."""
        rows = range(len(self.expected_rows))
        for row in rows:
            sample = self.attempt(f"ds[{row}]", partial(self.ds.__getitem__, row))
            self.compare_sample(f"ds[{row}]", row, sample)
        self.iterate()
        order = list(rows)
        self.rng.shuffle(order)
        self.read_batches(self.ds, order)
        for column in self.ds.columns:
            part = self.attempt("ds[[column]]", partial(self.ds.__getitem__, [column]))
            if part is not None:
                self.read_batches(part, list(rows))
                self.compare_text(column, list(rows))
                self.read_without_copy(column)

    def call_other_methods(self) -> None:
        """Call other methods of the dataset, and read it in a shuffled order."""
        rows = list(range(len(self.expected_rows)))
        self.attempt("repr()", lambda: repr(self.ds))
        self.attempt("shards", lambda: self.ds.shards)
        self.attempt("explain()", lambda: self.ds.explain())
        self.attempt("locate()", lambda: self.ds.locate(rows))
        if len(self.ds) > MAX_ROWS:
            return
        self.attempt("prefetch()", lambda: self.ds.prefetch())
        self.attempt("iter()", self._shuffled, OverflowError)
        for column in self.ds.columns:
            values = self.attempt("ds[column]", partial(self.ds.__getitem__, column))
            if values is None:
                continue
            if self.is_typed and isinstance(self.case.values[column][0], np.number):
                self.attempt("min()", values.min)
                self.attempt("==", partial(np.equal, values, 1))

    def _shuffled(self) -> None:
        for _ in self.ds.iter(0, 1, batch_size=5, shuffle=True):
            pass

    def compare_sample(self, what: str, row: int, sample: Any) -> None:
        """Compare the values of a sample."""
        for column, value in (sample or {}).items():
            self.compare(what, row, column, value, self.case.values)

    def iterate(self) -> None:
        """Iterate over samples up to the first that raises."""
        samples = iter(self.ds)
        for row in range(len(self.expected_rows)):
            sample = self.attempt("iter(ds)", lambda: next(samples))
            if sample is None:
                return
            self.compare_sample("iter(ds)", row, sample)

    def read_batches(self, ds: Any, rows: list[int]) -> None:
        """Load samples in one batch; if this raises, load the halves."""
        batch = self.attempt("load()", lambda: ds[rows].load(), OverflowError)
        if batch is None and len(rows) > 1:
            self.read_batches(ds, rows[: len(rows) // 2])
            self.read_batches(ds, rows[len(rows) // 2 :])
        for column, values in (batch or {}).items():
            for k, row in enumerate(rows):
                value = self.attempt("batch row", partial(values.__getitem__, k))
                if value is not None:
                    self.compare("load()", row, column, value, self.case.stored)

    def read_without_copy(self, column: str) -> None:
        """Read a column without a copy, if possible."""
        view = self.ds[column][: len(self.expected_rows)]
        array = self.attempt("copy=False", lambda: np.array(view, copy=False), ValueError)
        for row, value in enumerate(() if array is None else array):
            self.compare("copy=False", row, column, value, self.case.stored)

    def compare_text(self, column: str, rows: list[int]) -> None:
        """Compare a column of text with a value, which compares stored bytes."""
        target = self.case.values.get(column, [None])[0]
        if not rows or not isinstance(target, str | bytes):
            return
        mask = self.attempt("==", lambda: self.ds[column][rows] == target)
        for row, equal in enumerate(() if mask is None else mask):
            expected_row = self.expected_rows[row]
            if column in expected_row.excused or not self.compares:
                continue
            if expected_row.shard is None:
                self.report(f"ds[{column!r}] == ..., sample {row}: must raise")
            elif bool(equal) != (
                self.case.expected(self.case.values, expected_row, column) == target
            ):
                self.report(f"ds[{column!r}] == ..., sample {row}: {equal}")


def read_damaged(
    opened: Callable[..., Any],
    case: Case,
    changed: Files,
    rng: random.Random,
    report: Report,
    compares: bool = True,
) -> Counter[str]:
    """Read a damaged dataset, and report violations.

    Parameters
    ----------
    opened : callable
        Function of `verify` that opens the dataset.
    case : Case
        The undamaged dataset.
    changed : dict of str to bytes
        The changed files.
    rng : random.Random
    report : callable
    compares : bool
        Whether reads that do not raise must return the original values.
    """
    verify = rng.choice(("auto", "auto", "auto", True, True, False))
    verdict = judge(case.original, changed, verify)
    try:
        ds = opened(verify=verify)
    except DOCUMENTED_ERRORS:
        return Counter(refused=1)
    except Exception as error:
        # A damaged index may claim a column of pickles, which `open` refuses with a ValueError.
        if not (isinstance(error, ValueError) and "pickled" in str(error)):
            report(f"open() raised {traceback.format_exc(limit=-3)}")
        return Counter(refused=1)
    if verdict is None:
        report("open() accepted an invalid index")
        return Counter()
    if len(ds) != sum(count for count, _ in verdict):
        if compares:
            report(f"{len(ds)} samples; the index says {sum(count for count, _ in verdict)}")
            return Counter()
        verdict = [(len(ds), [])]
    expected_rows = (
        expected_row
        for count, known in verdict
        for expected_row in (known or (ExpectedRow() for _ in range(min(count, MAX_ROWS))))
    )
    with ds:
        reading = DatasetReader(ds, case, expected_rows, report, rng)
        reading.compares = compares and _annotations(case, changed) == case.index.get("npstream")
        reading.is_typed = "index.json" not in changed
        reading.read_all()
        reading.call_other_methods()
    return reading.reads


def _annotations(case: Case, changed: Files) -> Any:
    """Return the annotations in the damaged index."""
    document = json.loads(changed.get("index.json", case.files["index.json"]))
    return document.get("npstream")
