"""Objects of other libraries: torch's datasets, structured arrays, samples without names."""

from __future__ import annotations

import collections
import dataclasses
import subprocess
import sys

import awkward
import numpy as np
import pytest
import zarr
from rewriting import write_and_open
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
)

import npstream
import torch


class Map(Dataset):
    """A map-style dataset, which never raises IndexError."""

    def __init__(self, value, count=3):
        self.value, self.count = value, count

    def __len__(self):
        return self.count

    def __getitem__(self, k):
        return self.value(k)


class Numbers(IterableDataset):
    def __iter__(self):
        return ({"a": k, "b": torch.full((2,), k)} for k in range(3))


# Torch


def test_datasets_of_torch(tmp_path):
    mappings = Map(lambda k: {"x": torch.full((2,), k), "y": k})
    for number, (data, labels) in enumerate(
        [
            (mappings, [0, 1, 2]),
            (Subset(mappings, [2, 0]), [2, 0]),
            (ConcatDataset([mappings, mappings]), [0, 1, 2, 0, 1, 2]),
        ]
    ):
        report, ds = write_and_open(tmp_path / str(number), data)
        assert report.columns == {"x": "ndarray:int64", "y": "int"}
        assert list(ds["y"]) == labels
    _, ds = write_and_open(tmp_path / "iterable", Numbers())
    assert list(ds["a"]) == [0, 1, 2]
    assert ds["b"][2].tolist() == [2, 2]


def test_names_of_values_come_from_the_columns_argument(tmp_path):
    columns = {"x": "ndarray:int64:2", "y": "int"}
    for number, data in enumerate(
        [
            Map(lambda k: (torch.full((2,), k), k)),
            Map(lambda k: [np.full(2, k), k]),
            [(np.full(2, k), k) for k in range(3)],
        ]
    ):
        report, ds = write_and_open(tmp_path / str(number), data, columns=columns)
        assert report.columns == columns
        assert list(ds["y"]) == [0, 1, 2]
    single = Map(lambda k: torch.full((2,), k))
    _, ds = write_and_open(tmp_path / "one", single, columns={"x": "ndarray"})
    assert ds["x"][2].tolist() == [2, 2]
    pairs = TensorDataset(torch.arange(6).reshape(3, 2), torch.arange(3))
    _, ds = write_and_open(
        tmp_path / "tensors", pairs, columns={"x": "ndarray:int64:2", "y": "int8"}
    )
    assert ds["x"].load().tolist() == [[0, 1], [2, 3], [4, 5]]
    assert ds["y"].load().tolist() == [0, 1, 2]


def test_a_writer_names_values(tmp_path):
    with npstream.Writer(tmp_path / "a", {"y": "str", "x": "int"}) as out:
        out.write(("a", 1))
        out.write(["b", 2])
        with pytest.raises(TypeError, match="sample 2 is a tuple of 1 value without names, and c"):
            out.write((3,))
        out.write({"x": 3, "y": "c"})
    assert npstream.open(tmp_path / "a")["x"].load().tolist() == [1, 2, 3]
    rows = [("a", 1), ("b",), ("c", 3), 4]
    columns = {"y": "str", "x": "int"}
    report = npstream.write(tmp_path / "b", rows, columns=columns, on_error="skip")
    assert report.rejected == 2
    assert list(npstream.open(tmp_path / "b")["y"]) == ["a", "c"]
    pairs = Map(lambda k: (str(k), k), 50)
    npstream.write(tmp_path / "c", pairs, columns=columns, workers=2)
    assert npstream.open(tmp_path / "c")["x"].load().tolist() == list(range(50))


def test_samples_that_name_their_values(tmp_path):
    Point = collections.namedtuple("Point", "x y")

    @dataclasses.dataclass
    class Pair:
        x: int
        y: str

    records = np.array([(1, "a"), (2, "b")], [("x", "i4"), ("y", "U1")])
    for number, data in enumerate(
        [
            [Point(1, "a"), Point(2, "b")],
            [Pair(1, "a"), Pair(2, "b")],
            list(records),
        ]
    ):
        _, ds = write_and_open(tmp_path / str(number), data)
        assert list(ds["x"]) == [1, 2]
        assert list(ds["y"]) == ["a", "b"]


@pytest.mark.parametrize(
    ("data", "columns", "words"),
    [
        (DataLoader(Map(lambda k: {"a": k})), None, "is a DataLoader, .*: write its dataset"),
        (Map(lambda k: (k, k)), None, "sample 0 is a tuple of 2 values without names: name each"),
        (Map(lambda k: [k]), None, "sample 0 is a list of 1 value without names: name each with"),
        (
            [(1, 2), (1,)],
            {"a": "int", "b": "int"},
            "sample 1 is a tuple of 1 value without names, and columns= has 2 names",
        ),
        (Map(lambda k: k), None, "sample 0 is of type int; expected a mapping"),
        (TensorDataset(torch.zeros(2)), None, "is a TensorDataset of 1 tensor without names: name"),
        (
            TensorDataset(torch.zeros(2)),
            {"a": "float32", "b": "float32"},
            "TensorDataset of 1 tensor without names, and columns= has 2 names",
        ),
        (np.zeros((5, 4), "u2"), None, r"of shape \(5, 4\), .*: write {'x': data}, .*:uint16:4'}"),
        (np.zeros((5, 4)), {"a": "int", "b": "int"}, "and columns= has 2 names: write {'x': data}"),
        (torch.zeros(5), None, r"is a Tensor of shape \(5,\), .*columns={'x': 'float32'}"),
        (np.zeros(2, [("a", [("b", "i4")])]), None, "column 'a': its values have fields of their"),
        (
            awkward.Array([{"a": 1, "b": [2, 3]}]),
            None,
            "is several columns: write a mapping of them, {name: data.name. for .* in data.fields}",
        ),
        ("file.csv", None, "data is of type str, a name instead of samples: open it first"),
        (5, None, "data is of type int: expected samples"),
    ],
)
def test_objects_that_are_refused(data, columns, words, tmp_path):
    with pytest.raises(TypeError, match=words):
        npstream.write(tmp_path / "a", data, columns=columns)
    assert not (tmp_path / "a").exists()


def test_a_tensor_dict(tmp_path):
    tensordict = pytest.importorskip("tensordict")
    values = {"a": torch.arange(3), "b": torch.ones(3, 2)}
    data = tensordict.TensorDict(values, batch_size=[3])
    report, ds = write_and_open(tmp_path / "a", data)
    assert report.columns == {"a": "int64", "b": "ndarray:float32:2"}
    assert ds["a"].load().tolist() == [0, 1, 2]
    _, ds = write_and_open(tmp_path / "b", [data[k] for k in range(3)])
    assert list(ds["a"]) == [0, 1, 2]
    nested = tensordict.TensorDict({"a": torch.arange(3), "b": data}, batch_size=[3])
    with pytest.raises(TypeError, match=r"column 'b': .*data\.flatten_keys.*, or leave it out"):
        npstream.write(tmp_path / "c", nested)
    _, ds = write_and_open(tmp_path / "d", nested.flatten_keys("."))
    assert ds["b.a"].load().tolist() == [0, 1, 2]


# Arrays


FIELDS = [("a", "i4"), ("t", "U3"), ("v", "u2", (2,)), ("f", ">f8")]


def test_structured_arrays(tmp_path):
    array = np.array([(1, "x", [1, 2], 0.5), (2, "yy", [3, 4], 1.5)], FIELDS)
    array.tofile(tmp_path / "file")
    for number, data in enumerate(
        [
            array,
            np.rec.array(array),
            np.memmap(tmp_path / "file", array.dtype, "r"),
            np.repeat(array, 2)[::2],  # not contiguous
        ]
    ):
        report, ds = write_and_open(tmp_path / str(number), data)
        assert report.columns == {
            **{"a": "int32", "t": "str", "v": "ndarray:uint16:2", "f": "float64"}
        }
        assert ds["a"].load().tolist() == [1, 2]
        assert list(ds["t"]) == ["x", "yy"]
        assert ds["v"].load().tolist() == [[1, 2], [3, 4]]
        assert ds["f"].load().tolist() == [0.5, 1.5]
    _, ds = write_and_open(tmp_path / "some", array, columns={"a": "uint8"})
    assert ds[1] == {"a": 2}
    with pytest.raises(ValueError, match="column 'a': its mask hides 1 of 2 values"):
        npstream.write(tmp_path / "m", np.ma.array(array[["a"]], mask=[(True,), (False,)]))


def test_a_structured_array_of_another_library_is_read_once(tmp_path):
    array = np.array([(k, k / 2) for k in range(10)], [("a", "i4"), ("b", "f4")])
    reads = []

    class Stored:
        dtype, shape, ndim, chunks = array.dtype, array.shape, 1, (4,)

        def __len__(self):
            return len(array)

        def __getitem__(self, rows):
            reads.append((rows.start, rows.stop))
            return array[rows]

    _, ds = write_and_open(tmp_path / "a", Stored())
    assert ds["b"].load().tolist() == array["b"].tolist()
    assert reads == [(None, 1), (0, 10)]  # the first read infers the encodings


def test_a_single_array_is_the_column_that_is_named(tmp_path):
    rows = np.arange(20, dtype="u2").reshape(5, 4)
    for number, data in enumerate((rows, torch.tensor(rows), zarr.array(rows))):
        _, ds = write_and_open(tmp_path / str(number), data, columns={"tokens": "ndarray:uint16:4"})
        assert np.array_equal(ds["tokens"].load(), rows)


# Values and names that are refused


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([{"a": 1}, {"a": "x"}], "sample 1: column 'a' is 'int' and cannot take this str 'x'"),
        ([{"a": 1}, {"a": 1.5}], "sample 1: column 'a' is 'int' and cannot take this float 1.5"),
        ([{"a": 1.5}, {"a": "x"}], "sample 1: column 'a' is 'float64' and cannot take this str"),
        ([{"a": "x"}, {"a": 1}], "sample 1: column 'a' is 'str' and cannot take this int 1"),
        (
            [{"a": np.zeros(2)}, {"a": np.zeros(2, "f4")}],
            "sample 1: column 'a' .* dtype float64, g",
        ),
        ([{"a": 1}, {"a": None}], "sample 1: column 'a' .* NoneType: .*fill it in"),
        ([{"a": 1}, {}], "sample 1: no column 'a'"),
        ([{"a": 1}, {"a": 1, "b": 2}], "sample 1 has 'b', which the first sample lacks"),
        ([{"a": 1}, {"a": 2**63}], "sample 1: column 'a' .* 9223372036854775808: .* 'str_int'"),
        ([{1: "a"}], "sample 0 has the key 1, of type int: the name of a column is a str"),
        ({"a": [1, None]}, "sample 1: column 'a' .*fill it in"),
        ({"a": [1, "x"]}, "sample 1: column 'a' is 'int' and cannot take this str 'x'"),
        ({"a": [1, 2], "b": [1]}, "columns differ in length: {'a': 2, 'b': 1}"),
        ({1: [1, 2]}, "columns maps names to encodings, such as 'int32', or types; got 1: 'int'"),
    ],
)
def test_values_and_names_that_are_refused(data, words, tmp_path):
    with pytest.raises((TypeError, ValueError, KeyError), match=words):
        npstream.write(tmp_path / "a", data)
    assert not (tmp_path / "a").exists()


def test_no_library_is_imported_to_recognize_objects(tmp_path):
    script = """
import sys
import npstream
npstream.write(sys.argv[1] + "/a", [{"x": 1}])
npstream.write(sys.argv[1] + "/b", [(1, "a")], columns={"x": "int", "y": "str"})
for name in ("pandas", "polars", "pyarrow", "torch", "datasets", "tensordict", "numba"):
    assert name not in sys.modules, name
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)


class UnknownFrame:
    """A table of an unknown library, which yields the names of its columns."""

    columns = ("a", "b")

    def __iter__(self):
        return iter(self.columns)


def test_an_unknown_table_is_refused_with_the_mapping_to_write(tmp_path):
    with pytest.raises(TypeError, match=r"type UnknownFrame, which yields names .* {name: data"):
        npstream.write(tmp_path / "out", UnknownFrame())
    assert not (tmp_path / "out").exists()
