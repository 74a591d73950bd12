"""Common mistakes of beginners raise errors that state the value, the rule and the fix.

The error has the type that a beginner would catch. Its traceback shows the user's line and at most
four of npstream's.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.registry import _registry

import npstream

MAX_FRAMES = 4
"""The most lines of npstream that a traceback shows."""

MAX_CHARACTERS = 600
"""The most characters of a message. A longer one would not be read."""

PACKAGE = str(Path(npstream.__file__).parent)

Mistake = Callable[[npstream.Dataset, Path], Any]


def _write(samples: Any, **settings: Any) -> Mistake:
    return lambda ds, root: npstream.write(root / "new", samples, **settings)


def _closed_writer(ds: npstream.Dataset, root: Path) -> None:
    with npstream.Writer(root / "new") as writer:
        writer.write({"x": 1})
    writer.write({"x": 2})


def _other_state(ds: npstream.Dataset, root: Path) -> None:
    npstream.write(root / "other", {"x": np.arange(50)})
    other = npstream.open(root / "other").iter(0, 1, batch_size=5)
    ds.iter(0, 1, batch_size=5).load_state_dict(other.state_dict())


def _remote(url: str, **settings: Any) -> Mistake:
    return lambda ds, root: npstream.open(url, cache=root / "cache", **settings)


X = np.arange(3)
MISTAKES: dict[str, tuple[Mistake, type[Exception], list[str]]] = {
    # Opening
    "a path with a typo": (
        lambda ds, root: npstream.open(root / "dta"),
        FileNotFoundError, ["'dta'", "did you mean 'data'"],
    ),
    "a parent": (
        lambda ds, root: npstream.open(root), FileNotFoundError, ["'data'", "split='data'"]
    ),
    "the index": (
        lambda ds, root: npstream.open(root / "data/index.json"),
        NotADirectoryError, ["index.json", "give the directory that holds"],
    ),
    "a CSV file": (
        lambda ds, root: npstream.open(root / "table.csv"),
        NotADirectoryError, ["table.csv", "import npstream; npstream.convert("],
    ),
    "several paths": (
        lambda ds, root: npstream.open([root / "data", root / "data"]),
        TypeError, ["url is of type list", "npstream.mix"],
    ),
    "no path": (lambda ds, root: npstream.open(""), ValueError, ["url is empty", "give a path"]),
    "a number": (lambda ds, root: npstream.open(3), TypeError, ["url", "expected str", "int"]),
    "a URL without a slash": (_remote("s3:/bucket/x"), ValueError, ["'s3:/", "begins with 's3://"]),
    "a scheme with a typo": (
        _remote("s4://bucket/x"),
        ValueError, ["s4://bucket/x", "unknown scheme 's4'", "did you mean 's3'"],
    ),
    "a path of Windows": (
        lambda ds, root: npstream.open(r"C:\data\corpus"),
        FileNotFoundError, ["C:", "check the path; a relative path starts from"],
    ),
    "nothing at a URL": (
        _remote("memory://none/x"),
        FileNotFoundError, ["memory://none/x", "this process has stored nothing under this URL"],
    ),
    "one name for columns": (
        lambda ds, root: npstream.open(root / "data", columns="label"),
        TypeError, ["columns='label'", "expected a list", "['label']"],
    ),
    "a hash with a typo": (
        lambda ds, root: npstream.open(root / "data", verify="sha257"),
        ValueError, ["verify='sha257'", "expected True", "sha256"],
    ),
    "a function that is not there": (
        lambda ds, root: npstream.opan, AttributeError, ["'opan'", "did you mean 'open'"]
    ),
    # Indexing and reading
    "a column with a typo": (
        lambda ds, root: ds["lable"], KeyError, ["no column 'lable'", "did you mean 'label'"]
    ),
    "an index too large": (
        lambda ds, root: ds[100], IndexError, ["100", "out of bounds", "size 9"]
    ),
    "a float": (lambda ds, root: ds[1.5], IndexError, ["1.5 is not an integer", "divide with //"]),
    "a row and a name": (
        lambda ds, root: ds[0, "label"], IndexError, ["ds[0, 'label']", "ds['label'][0]"]
    ),
    "rows and names": (
        lambda ds, root: ds[2:5, "label"], IndexError, ["ds[2:5, 'label']", "ds['label'][2:5]"]
    ),
    "names without a list": (
        lambda ds, root: ds["label", "text"], IndexError, ["a list", "ds[['label', 'text']]"]
    ),
    "a mask of another length": (
        lambda ds, root: ds[np.ones(4, bool)], IndexError, ["4", "9", "boolean"]
    ),
    "a deletion": (
        lambda ds, root: ds.__delitem__(0), TypeError, ["del dataset[0]", "read-only", "ds.filter"]
    ),
    "a deletion from a column": (
        lambda ds, root: ds["label"].__delitem__(0), TypeError, ["del column[0]", "read-only"]
    ),
    "an assignment": (
        lambda ds, root: ds.__setitem__(0, {"label": 1}), TypeError, ["ds[0]", "read-only", "write"]
    ),
    "an assignment to a column": (
        lambda ds, root: ds["label"].__setitem__(0, 1),
        TypeError, ["ds['label'][0]", "read-only", "load()"],
    ),
    "an array of rows that vary": (
        lambda ds, root: np.asarray(ds), TypeError, ["varying size", "text", "ds[[...]]", "load()"]
    ),
    "an array of a column whose rows vary": (
        lambda ds, root: np.asarray(ds["tokens"]),
        TypeError, ["column 'tokens'", "ndarray:int64", "of varying size", "use load()"],
    ),
    "an array of loaded rows that vary": (
        lambda ds, root: np.asarray(ds["tokens"].load()),
        TypeError, ["9 rows of int64", "lengths 1 to 3", "pad()", "dtype=object"],
    ),
    "the mean of rows that vary": (
        lambda ds, root: ds["tokens"].mean(), TypeError, ["column 'tokens'", "of varying size"]
    ),
    "a float in a column": (
        lambda ds, root: ds["label"][1.5], IndexError, ["1.5 is not an integer", "divide with //"]
    ),
    "out= that is no mapping": (
        lambda ds, root: ds.load(out=np.zeros(9)), TypeError, ["out", "ndarray", "out={'x': array}"]
    ),
    # Iterating
    "a batch size as rank": (
        lambda ds, root: ds.iter(32),
        ValueError, ["rank=32 and world=None", "did you mean batch_size=32?"],
    ),
    "a batch size that is a float": (
        lambda ds, root: ds.iter(0, 1, batch_size=2.5), TypeError, ["batch_size=2.5", "an integer"]
    ),
    "a batch size of 0": (
        lambda ds, root: ds.iter(0, 1, batch_size=0), ValueError, ["batch_size=0", "at least 1"]
    ),
    "shuffle as text": (
        lambda ds, root: ds.iter(0, 1, batch_size=3, shuffle="yes"),
        ValueError, ["shuffle='yes'", "expected False, True", "'py1e'"],
    ),
    "shuffle as a number": (
        lambda ds, root: ds.iter(0, 1, batch_size=3, shuffle=1),
        TypeError, ["shuffle=1", "expected False, True"],
    ),
    "a rank that is not there": (
        lambda ds, root: ds.iter(4, 4), ValueError, ["rank=4", "world=4", "numbered from 0"]
    ),
    "a rank without a world": (
        lambda ds, root: ds.iter(rank=0), ValueError, ["rank=0", "world=None", "give both"]
    ),
    "the state of another dataset": (
        _other_state,
        ValueError, ["the state is of a view of 50 samples", "this view has 9", "same dataset"],
    ),
    # Mixing
    "a list of sources": (
        lambda ds, root: npstream.mix([ds, ds]),
        TypeError, ["sources is of type list", "a mapping from names to datasets", "{'web': web"],
    ),
    "a negative weight": (
        lambda ds, root: npstream.mix({"a": ds, "b": ds}, weights={"a": 1, "b": -1}),
        ValueError, ["-1", "source 'b'", "a positive number"],
    ),
    # Writing
    "an encoding of another library": (
        _write({"x": ["a"]}, columns={"x": "string"}),
        ValueError, ["column 'x'", "'string'", "did you mean 'str'?"],
    ),
    "a dict and the path swapped": (
        lambda ds, root: npstream.write({"x": X}, root / "new"),
        TypeError, ["path is of type dict", "the path comes first", "npstream.write(path, data)"],
    ),
    "a file as data": (
        _write("table.csv"),
        TypeError, ["a name instead of samples", "npstream.convert(source, url)"],
    ),
    "a codec that is not there": (
        _write({"x": X}, compression="lz4"), ValueError, ["'lz4'", "zstd"]
    ),
    "a hash that is not there": (
        _write({"x": X}, hashes=["crc"]), ValueError, ["unknown hash 'crc'", "sha1"]
    ),
    "a negative size": (
        _write({"x": X}, shard_size=-1), ValueError, ["-1", "0 or more"]
    ),
    "a size without a unit": (
        _write({"x": X}, shard_size="64 megs"), ValueError, ["'64 megs'", "MB"]
    ),
    "an existing dataset": (
        lambda ds, root: npstream.write(root / "data", {"x": X}),
        FileExistsError, ["a dataset, or a part of one, is here", "remove it", "mode='w'"],
    ),
    "a Writer to an existing dataset": (
        lambda ds, root: npstream.Writer(root / "data"),
        FileExistsError, ["a dataset, or a part of one, is here", "remove it", "mode='w'"],
    ),
    "one sample": (
        _write({"x": 1, "y": 2}),
        TypeError, ["column 'x'", "int", "a single sample goes into a list"],
    ),
    "columns of other lengths": (
        _write({"x": X, "y": np.arange(4)}), ValueError, ["differ in length", "'y': 4"]
    ),
    "an object": (
        _write([{"x": object()}]), TypeError, ["column 'x'", "object", "columns="]
    ),
    "another type later": (
        _write([{"x": 1}, {"x": "two"}]), TypeError, ["sample 1", "column 'x'", "'two'"]
    ),
    "another shape later": (
        _write([{"x": X}, {"x": np.zeros((2, 2))}], columns={"x": "ndarray:int64:3"}),
        ValueError, ["sample 1", "column 'x'", "int64:3", "float64"],
    ),
    "a key that is missing": (
        _write([{"x": 1, "y": 2}, {"x": 1}]), KeyError, ["sample 1", "'y'"]
    ),
    "a number too large": (
        _write({"x": [1, 300]}, columns={"x": "uint8"}), ValueError, ["sample 1", "300", "uint8"]
    ),
    "a missing value": (
        _write([{"x": 1}, {"x": None}]), TypeError, ["sample 1", "'x'", "expected an int", "None"]
    ),
    "a missing text": (
        _write([{"x": "a"}, {"x": None}]),
        TypeError, ["sample 1", "'x'", "fill=", "on_error='skip'"],
    ),
    "a missing number of pandas": (
        lambda ds, root: npstream.write(
            root / "new", pytest.importorskip("pandas").DataFrame({"x": [1, None]}).convert_dtypes()
        ),
        ValueError, ["sample 1", "column 'x'", "give fill= a value", "on_error='skip'"],
    ),
    # Converting
    "a source with a typo": (
        lambda ds, root: npstream.convert(root / "tble.csv", root / "new"),
        FileNotFoundError, ["tble.csv", "did you mean 'table.csv'?"],
    ),
    "texts as a source": (
        lambda ds, root: npstream.convert(["to be or", "not to be"], root / "new"),
        FileNotFoundError, ["source is a list of paths", "[{'text': 'to be'}]"],
    ),
    "a file of another program": (
        lambda ds, root: [
            (root / "book.xlsx").touch(), npstream.convert(root / "book.xlsx", root / "new")
        ],
        ValueError, ["book.xlsx", "give kind=", "pandas.read_excel"],
    ),
    "a column by its former name": (
        lambda ds, root: npstream.convert(
            root / "table.csv", root / "new", rename={"x": "y"}, columns=["x"]
        ),
        KeyError, ["no column 'x'", "rename= calls it 'y'"],
    ),
    "a name of a tokenizer": (
        lambda ds, root: npstream.convert([{"text": "to be"}], root / "new", tokenizer="gpt2"),
        TypeError, ["tokenizer= is of type str", "from_pretrained"],
    ),
    "a text in another column": (
        lambda ds, root: npstream.convert(
            [{"txt": "to be"}], root / "new", tokenizer=str.split, block=2
        ),
        KeyError, ["no column 'text'", "column="],
    ),
    "a text as a date": (
        lambda ds, root: npstream.convert(
            [{"day": np.datetime64("2026-11-29")}], root / "new", dry_run=True,
            columns={"day": "datetime64[D]"}, fill={"day": "soon"},
        ),
        TypeError, ["'day'", "'soon'", "datetime64[D]"],
    ),
    "a closed writer": (_closed_writer, ValueError, ["this Writer is closed", "open another"]),
}  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    tokens = [np.arange(1 + row % 3) for row in range(9)]
    columns = {"text": list("abcdefghi"), "label": np.arange(9), "tokens": tokens}
    npstream.write(tmp_path / "data", columns)
    (tmp_path / "table.csv").write_text("x\n1\n")
    return tmp_path


def own_frames(error: BaseException) -> list[str]:
    """Return npstream's frames in the tracebacks of an error and of its causes."""
    current: BaseException | None = error
    frames = []
    while current is not None:
        frames += [
            f"{frame.filename[len(PACKAGE) :]}:{frame.lineno} {frame.name}"
            for frame in traceback.extract_tb(current.__traceback__)
            if frame.filename.startswith(PACKAGE)
        ]
        context = None if current.__suppress_context__ else current.__context__
        current = current.__cause__ or context
    return frames


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_raises_a_helpful_error(name: str, root: Path) -> None:
    mistake, kind, words = MISTAKES[name]
    with pytest.raises(kind) as caught:
        mistake(npstream.open(root / "data"), root)
    message = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
    assert [word for word in words if word not in message] == [], message
    assert len(message) <= MAX_CHARACTERS
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert len(frames := own_frames(caught.value)) <= MAX_FRAMES, frames


def test_a_missing_torch_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "npstream.torch", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'npstream\[torch\]'"):
        importlib.import_module("npstream.torch")


def check(caught: pytest.ExceptionInfo[Exception], words: list[str]) -> None:
    message = str(caught.value)
    assert [word for word in words if word not in message] == [], message
    assert len(own_frames(caught.value)) <= MAX_FRAMES


def test_a_missing_s3fs_names_the_extra(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(_registry, "s3", raising=False)  # if an earlier test used it
    with pytest.raises(npstream.errors.MissingDependencyError) as caught:
        npstream.open("s3://bucket/data", cache=root / "cache")
    check(caught, ["s3://", "'s3fs'", "pip install 'npstream[s3]'"])


class _Refusing(fsspec.AbstractFileSystem):
    """A driver whose methods raise an error that s3fs can raise."""

    protocol = "refusing"
    cachable = False
    error: Exception

    def _open(self, path: str, *args: Any, **options: Any) -> Any:
        raise self.error

    def info(self, path: str, **options: Any) -> Any:
        raise self.error

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        raise self.error

    def cat_file(self, path: str, start: Any = None, end: Any = None, **options: Any) -> Any:
        raise self.error


class NoCredentialsError(Exception):
    """An error with the name of botocore's."""


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (
            NoCredentialsError("Unable to locate credentials"),
            PermissionError,
            ["Unable to locate credentials", "give credentials", "storage_options"],
        ),
        (
            FileNotFoundError("The specified bucket does not exist"),
            FileNotFoundError,
            ["no dataset is here", "check the names of the bucket and of the path"],
        ),
    ],
    ids=["no credentials", "no bucket"],
)
def test_errors_of_a_store_state_the_fix(
    root: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type, words: list[str]
) -> None:
    fsspec.register_implementation("refusing", _Refusing, clobber=True)
    monkeypatch.setattr(_Refusing, "error", error, raising=False)
    with pytest.raises(kind) as caught:
        npstream.open("refusing://bucket/data", cache=root / "cache", retries=0)
    check(caught, ["refusing://bucket/data/index.json", *words])


def test_a_batch_size_of_the_loader_for_batches_raises(root: Path) -> None:
    data = pytest.importorskip("torch.utils.data")
    batches = npstream.open(root / "data")[["label"]].iter(0, 1, batch_size=3)
    with pytest.raises(TypeError) as caught:
        next(iter(data.DataLoader(batches, batch_size=2)))
    check(caught, ["a batch of 2 batches", "each of 3 samples", "batch_size=None", "batched=False"])


def test_shuffle_of_the_loader_raises(root: Path) -> None:
    pytest.importorskip("torch")
    batches = npstream.open(root / "data").iter(0, 1, batch_size=3)
    with pytest.raises(ValueError, match="shuffle=True") as caught:
        npstream.torch.DataLoader(batches, shuffle=True)
    check(caught, ["not the DataLoader", "ds.iter(shuffle=True)"])


def test_a_dataset_does_not_equal_a_list_and_iterates_over_samples(root: Path) -> None:
    ds = npstream.open(root / "data")
    assert (ds == [1, 2]) is False
    assert len(ds.iter(0, 1)) == 9  # samples, as there is no batch size
