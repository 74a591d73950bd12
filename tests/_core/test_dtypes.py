"""Columns with dtypes that the MDS format lacks are read as they were written."""

from __future__ import annotations

import json
import math
import operator
import pickle
import re
import sys

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import npstream
from npstream._core.dtypes import (
    ML_DTYPES,
    NUMBERS,
    convert_exactly,
    dtype_of,
    is_column_dtype,
    storage_dtype,
)
from npstream.errors import FormatError, MissingDependencyError
from npstream.formats.encodings.encodings import column_type, parse, with_dtype
from npstream.formats.index import parse_index
from npstream.formats.sidecar.sidecar import Sidecar
from npstream.storage.local import open_store

ROWS = 300
RNG = np.random.default_rng(0)
BF16 = np.dtype(ml_dtypes.bfloat16)
FLOAT8 = np.dtype(ml_dtypes.float8_e4m3fn)


def random_ragged(dtype, ndim=1):
    shapes = [(k % 3 + 1, 2, k % 2 + 1)[:ndim] for k in range(ROWS)]
    return [random_array(dtype, shape) for shape in shapes]


def random_array(dtype, shape):
    dtype = np.dtype(dtype)
    if dtype.kind == "c":
        return (RNG.random(shape) + 1j * RNG.random(shape)).astype(dtype)
    if dtype.kind in "bmM":
        return RNG.integers(0, 2 if dtype.kind == "b" else 10**6, shape).astype(dtype)
    return RNG.random(shape).astype(dtype)


TABLE = {
    "text": [f"row {k}" for k in range(ROWS)],
    "flag": random_array(bool, ROWS),
    "day": random_array("M8[D]", ROWS),
    "span": random_array("m8[25ms]", ROWS),
    "half": random_array("f2", ROWS),
    "brain": random_array(BF16, ROWS),
    "tiny": random_array(FLOAT8, ROWS),
    "phase": random_array("c8", ROWS),
    "wide": random_array("c16", ROWS),
    "flags": random_array(bool, (ROWS, 3, 2)),
    "days": random_array("M8[ns]", (ROWS, 2)),
    "phases": random_array("c8", (ROWS, 2, 3)),
    "brains": random_array(BF16, (ROWS, 4)),
    "some_flags": random_ragged(bool),
    "some_days": random_ragged("M8[s]"),
    "some_phases": random_ragged("c16"),
    "more_phases": random_ragged("c8", 2),
    "most_phases": random_ragged("c8", 3),
    "some_brains": random_ragged(BF16),
    "any_rank": [random_array(bool, (2,) * (k % 2 + 1)) for k in range(ROWS)],
}
TABLE["day"][3] = "NaT"

# The encodings of these columns in index.json.
STORED = {
    **{"text": "str", "flag": "uint8", "day": "int64", "span": "int64", "half": "float16"},
    **{"brain": "uint16", "tiny": "uint8", "phase": "ndarray:float32:2"},
    **{"wide": "ndarray:float64:2", "flags": "ndarray:uint8:3,2", "days": "ndarray:int64:2"},
    **{"phases": "ndarray:float32:2,3,2", "brains": "ndarray:uint16:4"},
    **{"some_flags": "ndarray:uint8", "some_days": "ndarray:int64"},
    **{"some_phases": "ndarray:float64", "more_phases": "ndarray:float32"},
    **{"most_phases": "ndarray:float32", "some_brains": "ndarray:uint16"},
    "any_rank": "ndarray:uint8",
}  # fmt: skip


def assert_same(got, expected):
    """Fail unless two values have the same dtype, shape and bytes."""
    if isinstance(expected, str):
        assert got == expected
        return
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
    assert got.tobytes() == expected.tobytes()


def assert_table(ds, rows):
    """Fail unless every way to read a dataset returns these rows of the table."""
    assert ds.columns == tuple(TABLE)
    assert len(ds) == len(rows)
    batch = ds.load()
    (streamed,) = ds.iter(0, 1, batch_size=len(ds), last="short")
    for name, column in TABLE.items():
        for got in (batch[name], list(ds[name]), streamed[name]):
            for k, row in enumerate(rows):
                assert_same(got[k], column[row])
        for k in (0, len(rows) // 2, -1):
            assert_same(ds[k][name], column[rows[k]])
            assert type(ds[k][name]) is type(column[rows[k]])
    for k, sample in enumerate(ds):
        for name, value in sample.items():
            assert_same(value, TABLE[name][rows[k]])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return the directory and the report of a dataset with the columns of `TABLE`."""
    root = tmp_path_factory.mktemp("dtypes") / "table"
    report = npstream.write(root, TABLE, shard_size="20KiB")
    assert report.shards > 3
    return root, report


def test_columns_are_read_as_they_were_written(written):
    root, report = written
    assert npstream.verify_dataset(root).problems == ()
    assert_table(npstream.open(root), range(ROWS))
    assert_table(pickle.loads(pickle.dumps(npstream.open(root))), range(ROWS))
    assert report.columns["span"] == "timedelta64[25ms]"
    assert report.columns["most_phases"] == "ndarray:complex64"


def test_the_index_has_streamings_encodings_and_our_dtypes(written):
    root, _ = written
    index = json.loads((root / "index.json").read_text())
    entry = index["shards"][0]
    assert dict(zip(entry["column_names"], entry["column_encodings"], strict=True)) == STORED
    assert index["npstream"] == {
        "version": 1,
        "columns": list(TABLE),
        "dtypes": {
            **{"flag": "bool", "flags": "bool", "some_flags": "bool", "any_rank": "bool"},
            **{"day": "datetime64[D]", "days": "datetime64[ns]", "some_days": "datetime64[s]"},
            **{"span": "timedelta64[25ms]", "tiny": "float8_e4m3fn"},
            **{"brain": "bfloat16", "brains": "bfloat16", "some_brains": "bfloat16"},
            **{"phase": "complex64", "phases": "complex64", "wide": "complex128"},
            **{"some_phases": "complex128", "more_phases": "complex64"},
            "most_phases": "complex64",
        },
    }
    plain = npstream.open(root, columns={"flag": "uint8", "phase": "ndarray:float32:2"})
    assert plain["flag"].dtype == np.uint8
    assert_same(plain["phase"].load(), TABLE["phase"].view("f4").reshape(-1, 2))


def test_the_index_has_no_annotations_if_no_dtype_needs_them(tmp_path):
    npstream.write(tmp_path, {"a": np.zeros(3, "f2"), "b": ["", "", ""]})
    assert json.loads((tmp_path / "index.json").read_text()).keys() == {"shards", "version"}


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_samples_are_written_like_columns(compression, written, tmp_path):
    _, report = written
    samples = ({name: column[k] for name, column in TABLE.items()} for k in range(ROWS))
    npstream.write(tmp_path, samples, columns=report.columns, compression=compression)
    assert_table(npstream.open(tmp_path), range(ROWS))


def test_encodings_are_inferred_from_samples(tmp_path):
    names = [name for name in TABLE if name != "any_rank"]
    npstream.write(tmp_path, ({name: TABLE[name][k] for name in names} for k in range(9)))
    ds = npstream.open(tmp_path)
    for name in names:
        for k in range(9):
            assert_same(ds[k][name], TABLE[name][k])


# Objects that `npstream.write` copies.
SOURCES = {
    "dataset": lambda ds: ds,
    "batch": lambda ds: ds.load(),
    "columns": lambda ds: {name: ds[name] for name in ds.columns},
    "batches": lambda ds: ds.iter(0, 1, batch_size=7, last="short"),
    "views": lambda ds: iter([ds[:5], ds[5:]]),
    "pickled batch": lambda ds: pickle.loads(pickle.dumps(ds.load())),
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    "rows", [range(0, ROWS, 3), [7, 3, 3, 299], []], ids=["step", "any", "none"]
)
def test_copies_keep_columns_and_dtypes(source, rows, written, tmp_path):
    root, report = written
    ds = npstream.open(root)[list(rows)]
    if not rows and source == "batches":
        return  # an empty view has no batches
    copy = npstream.write(tmp_path / "copy", SOURCES[source](ds), shard_size="9KiB")
    assert list(copy.columns.items()) == list(report.columns.items())
    opened = npstream.open(tmp_path / "copy")
    assert npstream.verify_dataset(tmp_path / "copy").problems == ()
    if rows:
        assert_table(opened, list(rows))
    assert opened.dtypes == ds.dtypes
    assert [opened[name].shape for name in TABLE] == [ds[name].shape for name in TABLE]


def test_a_remote_dataset_has_the_same_columns(upload, written, tmp_path):
    root, _ = written
    remote = npstream.open(upload(root), cache=tmp_path)
    assert_table(remote, range(ROWS))
    assert len(remote[remote["flag"]]) == np.count_nonzero(TABLE["flag"])


def test_comparisons_read_the_side_car_and_no_shard(upload, written, tmp_path, requests):
    root, _ = written
    remote = npstream.open(upload(root), cache=tmp_path)
    for name, other in {
        "flag": True,
        "day": np.datetime64("2400-01-01"),
        "span": np.timedelta64(1000, "s"),
        "brain": BF16.type(0.5),
        "half": np.float16(0.5),
    }.items():
        requests.clear()
        assert remote[name].explain().chunks == 0
        for compare in (np.equal, np.not_equal, np.less, np.greater_equal):
            assert np.array_equal(compare(remote[name], other), compare(TABLE[name], other))
        assert_same(remote[name].load(), TABLE[name])
        assert {file for file, *_ in requests} == {f"index.columns/{name}.npy"}
    assert np.array_equal(np.isnat(remote["day"]), np.isnat(TABLE["day"]))
    assert np.load(root / "index.columns" / "flag.npy").dtype == np.uint8
    declared = npstream.open(upload(root), cache=tmp_path, columns={"day": "uint64"})
    assert declared["day"].explain().chunks == 0
    assert_same(declared["day"].load(), TABLE["day"].view("u8"))


def test_a_side_car_built_later_is_the_same(written, tmp_path):
    root, _ = written
    npstream.build_index(root, tmp_path)
    built, written_sidecar = (Sidecar(open_store(path)) for path in (tmp_path, root))
    index = parse_index((root / "index.json").read_bytes(), "index.json")
    for sidecar in (built, written_sidecar):
        assert sidecar.index("").annotations == index.annotations
        assert sidecar.index("").annotations.order == tuple(TABLE)
        assert sidecar.index("").fingerprint() == index.fingerprint()
    assert built.columns == written_sidecar.columns


def test_a_large_index_is_not_read_for_its_dtypes(upload, tmp_path, monkeypatch):
    npstream.write(tmp_path / "many", TABLE, shard_size=1)  # one sample in each shard
    url = upload(tmp_path / "many")
    monkeypatch.setattr("npstream.shards.manifest.LARGE_INDEX", 1 << 17)
    monkeypatch.setattr("npstream.shards.manifest.parse_index", None)  # a call would raise
    remote = npstream.open(url, cache=tmp_path / "cache")
    assert len(remote.shards) == ROWS
    assert_table(remote[:9], range(9))


def test_mixtures_have_the_same_columns(written, upload, tmp_path):
    root, report = written
    local, remote = npstream.open(root), npstream.open(upload(root), cache=tmp_path)
    mixed = npstream.mix({"a": local[:9], "b": remote[9:]})
    assert_table(mixed[:], range(ROWS))
    assert np.array_equal(mixed["day"] == mixed["day"].load(), ~np.isnat(TABLE["day"]))
    names = [*TABLE, "source"]
    copy = npstream.write(
        tmp_path / "copy", npstream.mix({"a": local[:9], "b": remote[9:20]}, columns=names)
    )
    assert copy.columns == {**report.columns, "source": "str"}
    opened = npstream.open(tmp_path / "copy")
    assert_table(opened[list(TABLE)], range(20))
    assert list(opened["source"]) == ["a"] * 9 + ["b"] * 11


def test_sources_of_a_mixture_must_have_the_same_dtypes(tmp_path):
    npstream.write(tmp_path / "a", {"x": np.ones(3, bool)})
    npstream.write(tmp_path / "b", {"x": np.ones(3, np.uint8)})
    a, b = npstream.open(tmp_path / "a"), npstream.open(tmp_path / "b")
    with pytest.raises(ValueError, match="'x' is 'bool' in source 'a', but 'uint8' in 'b'"):
        npstream.mix({"a": a, "b": b})
    as_bool = npstream.open(tmp_path / "b", columns={"x": "bool"})
    assert npstream.mix({"a": a, "b": as_bool})["x"].sum() == 6


def test_versions_and_states_depend_on_the_dtypes(tmp_path):
    npstream.write(tmp_path / "a", {"x": np.ones(3, bool)})
    npstream.write(tmp_path / "b", {"x": np.ones(3, np.uint8)})
    npstream.write(tmp_path / "c", {"x": np.ones(3, bool)})
    a, b, c = (npstream.open(tmp_path / name) for name in "abc")
    assert a.version == c.version != b.version
    assert npstream.open(tmp_path / "a", version=a.version).version == a.version
    state = a.iter(0, 1, batch_size=1).state_dict()
    c.iter(0, 1, batch_size=1).load_state_dict(state)
    with pytest.raises(ValueError, match="of another dataset"):
        b.iter(0, 1, batch_size=1).load_state_dict(state)


def test_dtypes_apply_to_all_shards_of_a_merged_index(tmp_path):
    """Streaming's merged index lacks npstream's key until the user adds it."""
    for name in "ab":
        npstream.write(tmp_path / name, {"y": np.arange(3), "flag": np.ones(3, bool)})
    index = {"shards": [], "version": 2}
    for name in "ab":
        part = json.loads((tmp_path / name / "index.json").read_text())
        for entry in part["shards"]:
            entry["raw_data"]["basename"] = f"{name}/{entry['raw_data']['basename']}"
            index["shards"].append(entry)
    (tmp_path / "index.json").write_text(json.dumps(index))
    assert npstream.open(tmp_path).dtypes == {"flag": np.uint8, "y": np.int64}
    index["npstream"] = part["npstream"]
    (tmp_path / "index.json").write_text(json.dumps(index))
    assert list(npstream.open(tmp_path).dtypes.items()) == [("y", np.int64), ("flag", np.bool_)]


def test_tensors_have_the_dtypes_of_the_columns(written, torch):
    root, _ = written
    names = [name for name in TABLE if name != "most_phases"]  # rows vary along two axes
    batch = npstream.open(root)[names].load().to_torch()
    for name in ("flag", "half", "phase", "wide", "flags", "phases"):
        assert torch.equal(batch[name], torch.from_numpy(TABLE[name]))
    for name, bits in (("brain", torch.uint16), ("brains", torch.uint16), ("tiny", torch.uint8)):
        assert batch[name].dtype == getattr(torch, TABLE[name].dtype.name)
        expected = torch.from_numpy(TABLE[name].view(str(bits).removeprefix("torch.")))
        assert torch.equal(batch[name].view(bits), expected)
    assert batch["some_brains"][1].dtype == torch.bfloat16
    assert isinstance(batch["day"], np.ndarray)
    assert isinstance(batch["some_days"], npstream.Ragged)
    moved = npstream.open(root)[:3].load().to("cpu")
    assert (moved["brain"].dtype, type(moved["day"])) == (torch.bfloat16, np.ndarray)
    with pytest.raises(TypeError, match=r"torch has no dtype for datetime64\[D\].*view\('int64'\)"):
        npstream.open(root)["day"].to_torch()


def test_columns_are_loaded_into_tensors(written, torch):
    ds = npstream.open(written[0])[["flag", "brain", "brains", "phase"]]
    out = {name: torch.empty_like(column) for name, column in ds.load().to_torch().items()}
    batch = ds.load(out=out)
    for name, column in out.items():
        assert batch[name] is column
        bits = column.view(torch.uint8) if column.dtype == torch.bfloat16 else column
        expected = TABLE[name].view("u1") if column.dtype == torch.bfloat16 else TABLE[name]
        assert np.array_equal(bits.numpy(), expected)


def test_numpy_functions_return_the_results_for_arrays(written):
    ds = npstream.open(written[0])
    for name, functions in {
        "flag": (np.sum, np.mean, np.any, np.all, np.argmax, np.logical_not),
        "flags": (np.sum, np.any, np.max),
        "day": (np.min, np.max, np.argmax, np.isnat),
        "span": (np.sum, np.max, np.mean, np.abs),
        "phase": (np.sum, np.abs, np.conj, np.isfinite),
        "brain": (np.max, np.negative),
        "days": (np.max, np.ptp),
    }.items():
        for function in functions:
            got, expected = function(ds[name]), function(TABLE[name])
            assert np.asarray(got).dtype == np.asarray(expected).dtype
            if np.asarray(expected).dtype.kind in "fcV":  # V: bfloat16
                np.testing.assert_allclose(got.astype("c16"), expected.astype("c16"), rtol=1e-5)
            else:
                assert np.array_equal(got, expected, equal_nan=True)
    for name in ("flags", "days", "phases", "brains"):
        for index in (np.s_[5], np.s_[::7], np.s_[1:9, 0], np.s_[..., -1], np.s_[[3, 1], 1]):
            assert_same(np.asarray(ds[name][index]), np.asarray(TABLE[name][index]))
        out = np.empty_like(TABLE[name])
        assert ds[name].load(out=out) is out
        assert_same(out, TABLE[name])
    assert np.array_equal(
        ds["flag"] & ~ds["flags"][:, 0, 0], TABLE["flag"] & ~TABLE["flags"][:, 0, 0]
    )
    table = np.asarray(ds[["flag", "day", "phases"]])
    assert_same(table["phases"], TABLE["phases"])


def test_columns_compare_to_times_of_pandas_like_arrays(tmp_path):
    pd = pytest.importorskip("pandas")
    values = {
        "day": np.array(["2020", "2021", "NaT"], "M8[D]"),
        "delay": np.array([1, 2, "NaT"], "m8[s]"),
    }
    npstream.write(tmp_path / "a", values)
    ds = npstream.open(tmp_path / "a")
    cases = [
        ("day", pd.Timestamp("2020-06-01")),
        ("delay", pd.Timedelta("2s")),
        *((name, pd.NaT) for name in values),
    ]
    for name, other in cases:
        for function in (operator.eq, operator.ne, operator.lt, operator.le, operator.gt):
            assert_same(function(ds[name], other), function(values[name], other))
            assert_same(function(other, ds[name]), function(other, values[name]))
    assert_same(ds["day"] + pd.Timedelta("1s"), values["day"] + np.timedelta64(10**6, "us"))
    with pytest.raises(TypeError):
        operator.lt(ds["day"], pd.Timestamp("2020", tz="UTC"))


def test_columns_are_views_of_the_mapped_file(tmp_path):
    columns = {name: TABLE[name] for name in ("flag", "day", "brain", "phases")}
    npstream.write(tmp_path, columns)
    ds = npstream.open(tmp_path)
    for name, column in columns.items():
        assert_same(np.asarray(ds[name], copy=False), column)  # raises if it needs a copy


def test_reprs_show_the_dtypes(written):
    ds = npstream.open(written[0])
    assert f"'flag': shape ({ROWS},), dtype bool, stored as uint8, " in repr(ds["flag"])
    assert "days  " in repr(ds)
    assert "ndarray:datetime64[ns]:2" in repr(ds)
    assert "bfloat16" in ds._repr_html_()


# Bytes other than 0 and 1 in bool columns


@pytest.mark.parametrize("others", [{}, {"text": ["", "a", "b"]}], ids=["records", "samples"])
@pytest.mark.parametrize("shape", [(), (2,), None], ids=["scalar", "fixed", "ragged"])
def test_reading_an_invalid_bool_raises(shape, others, tmp_path, upload):
    rows = [np.ones(2, np.uint8)] * 3 if shape is None else np.ones((3, *shape), np.uint8)
    npstream.write(tmp_path / "a", {"flag": rows, **others})
    (shard,) = (tmp_path / "a").glob("*.mds")
    data = bytearray(shard.read_bytes())
    # Only the text of the last sample follows its bool.
    at = len(data) - 1 - len(others.get("text", [""])[-1])
    assert data[at] == 1
    data[at] = 7
    shard.write_bytes(data)
    index = json.loads((tmp_path / "a" / "index.json").read_text())
    index["npstream"] = {"version": 1, "dtypes": {"flag": "bool"}}
    (tmp_path / "a" / "index.json").write_text(json.dumps(index))
    problems = npstream.verify_dataset(tmp_path / "a").problems
    if shape is not None:
        assert any("sample 2: column 'flag' has a byte that is not a bool" in p for p in problems)
    ds = npstream.open(tmp_path / "a")
    ds[1]
    ds[:2].load()
    for read in (
        lambda: ds[2],
        lambda: ds["flag"][2],
        lambda: ds.load(),
        lambda: ds[["flag"]][[2, 0]].load(),
        lambda: list(ds),
        lambda: ds["flag"].load(),
    ):
        with pytest.raises(FormatError, match=r"sample 2 .*the byte 7 is not a bool"):
            read()
    if not others and shape == ():
        with pytest.raises(FormatError, match="not a bool"):
            ds.load(out={"flag": np.empty(3, bool)})


# Names and packages


def test_dtypes_of_columns_have_names_and_storage_dtypes():
    for name in (*NUMBERS, *ML_DTYPES, "bool", "complex64", "datetime64[us]", "timedelta64[7D]"):
        assert is_column_dtype(name)
        assert dtype_of(name).name == name
        assert storage_dtype(dtype_of(name)) in NUMBERS.values()
    for name in ("object", "O", "U3", "V2", "int4", "datetime64", "datetime64[0s]", "float128", ""):
        assert not is_column_dtype(name)
        with pytest.raises(ValueError, match="not a dtype of columns"):
            dtype_of(name)
    for dtype in ("O", "U3", "S3", "V2", "M8", "m8", "g", "T", [("a", "i4")]):
        assert storage_dtype(np.dtype(dtype)) is None
    assert storage_dtype(np.dtype(ml_dtypes.int4)) is None


def test_recorded_dtypes_must_match_the_stored_encoding():
    for stored, dtype in [
        ("int32", "bool"), ("int", "datetime64[s]"), ("ndarray:float32:3", "complex64"),
        ("float32", "complex64"), ("str", "bool"), ("ndarray", "bool"), ("uint8", "uint8"),
        ("ndarray:uint8", "bfloat16"), ("ndarray:float64:2", "complex64"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=r"is not stored as|takes|larger|axes|dtype"):
            with_dtype(parse(stored), dtype)
    for name in (
        "bool",
        "ndarray:bool:3",
        "ndarray:complex64:2,2",
        "complex128",
        "ndarray:bfloat16",
    ):
        encoding = column_type(name)
        assert with_dtype(parse(encoding.stored_name), encoding.dtype.name) == encoding


ANNOTATIONS = [
    ({"version": 2}, "version 2; this release reads version 1"),
    ({"version": "1"}, "version '1'"),
    ({"version": 1, "dtypes": []}, "'dtypes' is"),
    ({"version": 1, "dtypes": {"x": 5}}, "'dtypes' is"),
    ({"version": 1, "dtypes": {"x": "O"}}, "'O' is not a dtype of columns"),
    ({"version": 1, "dtypes": {"x": "float64"}}, "float64 is not stored as 'uint8'"),
    ({"version": 1, "dtypes": {"x": "datetime64[s]"}}, "is not stored as 'uint8'"),
    ({"version": 1, "columns": "xy"}, "'columns' is"),
    ({"version": 1, "columns": [["x"]]}, "'columns' is"),
    ({"version": 1, "columns": ["x", "x"]}, "names a column twice"),
    ({"version": 1, "schema": {}}, "'schema'"),
    ({"version": 1, "schema": {"column_names": ["x"]}}, "'schema'"),
    ({"version": 1, "schema": 5}, "'schema'"),
]


@pytest.mark.parametrize(
    ("annotations", "message"),
    ANNOTATIONS,
    ids=[str(annotations) for annotations, _ in ANNOTATIONS],
)
def test_invalid_annotations_raise(annotations, message, tmp_path):
    npstream.write(tmp_path, {"x": np.ones(3, np.uint8)})
    index = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps({**index, "npstream": annotations}))
    with pytest.raises(FormatError, match=message) as caught:
        npstream.open(tmp_path)
    assert "index.json" in str(caught.value)
    try:
        problems = npstream.verify_dataset(tmp_path).problems
    except FormatError as error:
        problems = (str(error),)
    assert any(re.search(message, problem) for problem in problems)


@pytest.mark.parametrize(
    "annotations",
    [5, None, "x", [], {}, {"a": 1}, {"version": 1, "dtypes": {"other": "O"}},
     {"version": 1, "columns": ["other"]}, {"version": 1, "more": {}}],
)  # fmt: skip
def test_unknown_annotations_are_ignored(annotations, tmp_path):
    npstream.write(tmp_path, {"x": np.ones(3, np.uint8)})
    index = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps({**index, "npstream": annotations}))
    assert npstream.open(tmp_path)["x"].dtype == np.uint8


JSON = st.recursive(
    st.none() | st.integers(-1, 3) | st.sampled_from(["x", "bool", "uint8", "ndarray:", "\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["version", "dtypes", "columns", "schema", "x", "column_names"]), inner
        )
    ),
    max_leaves=9,
)


@given(JSON)
def test_any_annotations_are_parsed_or_raise_format_error(annotations):
    document = {"shards": [], "version": 2, "npstream": annotations}
    try:
        index = parse_index(json.dumps(document).encode(), "index.json")
    except FormatError:
        return
    assert len(index.schemas) in (0, 1)


def test_dtypes_of_ml_dtypes_need_the_package(written, monkeypatch):
    root, _ = written
    dtype_of.cache_clear()
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(MissingDependencyError) as caught:
        npstream.open(root)
    message = str(caught.value)
    assert "column 'brain' of dtype bfloat16 needs the package 'ml_dtypes'" in message
    assert "npstream[dtypes]" in message
    assert "columns={'brain': 'uint16'}" in message
    assert npstream.open(root, columns=["flag", "text"])[1]["flag"] == TABLE["flag"][1]
    encodings = {name: STORED[name] for name in TABLE if name != "text"}
    assert npstream.open(root, columns=encodings)["brain"].dtype == np.uint16
    with pytest.raises(MissingDependencyError, match="ml_dtypes"):
        npstream.write(root / "other", [{"x": 1.5}], columns={"x": "bfloat16"})
    assert not (root / "other").exists()
    monkeypatch.undo()
    dtype_of.cache_clear()


# Exact conversion, compared to Python's numbers

EDGES = [
    0, 1, -1, 2, 3, 127, 128, 255, 256, 2**31, 2**53, 2**53 + 1, 2**63 - 1, -(2**63), 2**64 - 1,
    65504, 70000, 448, 480, 0.5, 1.5, -0.0, 1e-300, 1e300, math.inf, -math.inf, math.nan,
]  # fmt: skip
DTYPES = [
    *NUMBERS.values(),
    *map(np.dtype, ("?", "c8", "c16")),
    *(dtype_of(name) for name in ML_DTYPES if name != "float8_e8m0fnu"),
]


def edges_of(dtype):
    """Return the numbers in `EDGES` that convert to a dtype, as an array of this dtype."""
    values = []
    for value in EDGES:
        try:
            with np.errstate(all="ignore"):
                as_array = np.array([value], np.float64 if isinstance(value, float) else None)
                values.append(as_array.astype(dtype)[0])
        except (OverflowError, TypeError):
            continue
    return np.array(values, dtype)


def to_python(value):
    """Return a NumPy scalar as a Python number."""
    if value.dtype.name in ML_DTYPES:
        return float(value)
    return value.item()


@pytest.mark.parametrize("source", DTYPES, ids=str)
@pytest.mark.parametrize("target", DTYPES, ids=str)
def test_conversion_reports_exactly_the_changed_values(source, target):
    array = edges_of(source)
    if source.kind == "c" and target.kind != "c":
        with pytest.raises(TypeError, match="expected"):
            convert_exactly(array, target)
        return
    converted, is_changed = convert_exactly(array, target)
    assert converted.dtype == target
    is_float = [dtype.kind in "fc" or dtype.name in ML_DTYPES for dtype in (source, target)]
    triples = zip(map(to_python, array), map(to_python, converted), is_changed, strict=True)
    for value, got, reported in triples:
        if all(is_float):  # may be rounded, but not to infinity, and NaN must stay NaN
            parts = [
                (complex(value).real, complex(got).real),
                (complex(value).imag, complex(got).imag),
            ]
            changed = any(
                (math.isfinite(a), math.isnan(a)) != (math.isfinite(b), math.isnan(b))
                for a, b in parts
            )
            assert reported == changed
        elif reported:
            assert not _is_representable(value, target)
        else:
            assert got == value


def _is_representable(value, dtype):
    """Return True if a dtype can represent a Python number."""
    if dtype.kind == "b":
        return value in (0, 1)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return math.isfinite(value) and value == int(value) and limits.min <= value <= limits.max
    with np.errstate(all="ignore"):
        return to_python(np.array([float(value)]).astype(dtype)[0]) == value


def test_times_convert_to_other_units_if_no_value_changes():
    days = np.array(["2026-11-22", "NaT"], "M8[D]")
    converted, is_changed = convert_exactly(days, np.dtype("M8[ns]"))
    assert not is_changed.any()
    assert_same(converted, days.astype("M8[ns]"))
    hours = np.array(["2026-11-22T00", "2026-11-22T01"], "M8[h]")
    assert convert_exactly(hours, np.dtype("M8[D]"))[1].tolist() == [False, True]
    years = np.array(["2026", "5000000"], "M8[Y]")
    assert convert_exactly(years, np.dtype("M8[ns]"))[1].tolist() == [False, True]
    for array, dtype in [
        (hours, "m8[h]"),
        (np.arange(2), "M8[D]"),
        (hours, "f8"),
        (np.arange(2).astype("m8"), "m8[s]"),
        (np.array(["2026"]), "M8[Y]"),
    ]:
        with pytest.raises(TypeError):
            convert_exactly(array, np.dtype(dtype))
