"""Shards hold the bytes that Streaming writes, for samples, columns and batches."""

from __future__ import annotations

import pickle
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
from golden_data import (
    FORMATS,
    assert_same_sample,
    case,
    cases,
    directory,
    expected,
    inputs,
    sample,
    units,
    value,
    without_palette,
)
from hypothesis import given
from hypothesis import strategies as st
from written_shards import assert_same_dataset, load_index, read, shard_bytes, without_zip_sizes

import npstream
from npstream.formats.encodings import encodings
from npstream.formats.encodings.encodings import parse, register_encoding
from npstream.writing import shard as shard_module
from npstream.writing.writer import Writer, write


def arguments(args):
    """Return the arguments of Streaming under the names that `write` gives them."""
    renamed = dict(args)
    if "size_limit" in renamed:
        renamed["shard_size"] = renamed.pop("size_limit")
    return renamed


def exact_cases():
    """Yield Streaming's arguments, samples and directory, and `exactness` for the comparison."""
    for golden_case in cases():
        if golden_case["writer"] != "MDSWriter" or golden_case["byte_exact"] not in (
            "files",
            "raw",
        ):
            continue
        golden_inputs = inputs(golden_case)
        for part in golden_inputs.get("partitions", [golden_inputs]):
            name = "/".join([golden_case["name"], *([part["dir"]] if "dir" in part else [])])
            exactness = "raw" if part["args"].get("compression") else "files"
            golden = directory(golden_case) / part.get("dir", "")
            if name not in EMPTY_FIRST_SHARD:
                yield pytest.param(part["args"], part["samples"], golden, exactness, id=name)


EMPTY_FIRST_SHARD = {"mds_first_too_big", "mds_one_per_shard", "mds_zstd_empty_first"}

EXACT_CASES = list(exact_cases())


@pytest.mark.parametrize(("args", "samples", "golden", "exactness"), EXACT_CASES)
def test_bytes_equal_those_of_streaming(args, samples, golden, exactness, tmp_path):
    columns = args["columns"]
    golden_samples = (
        {name: without_palette(item, columns[name]) for name, item in sample(each).items()}
        for each in samples
    )
    report = write(tmp_path, golden_samples, **arguments(args))
    assert_same_dataset(tmp_path, golden, exactness)
    assert report.samples == len(samples)
    assert report.shards == len(load_index(golden)["shards"])
    assert report.columns == dict(sorted(args["columns"].items()))


def test_no_exact_case_is_missing():
    assert len(EXACT_CASES) >= 69  # a filter of `exact_cases` may leave out too many


@pytest.mark.parametrize("name", ["mds_png", "mds_jpeg_pil", "mds_list_png"])
def test_images_that_we_encode_ourselves(name, tmp_path):
    golden_case = case(name)
    golden_inputs = inputs(golden_case)
    write(tmp_path, map(sample, golden_inputs["samples"]), **arguments(golden_inputs["args"]))
    for ours, theirs in zip(read(tmp_path), expected(golden_case), strict=True):
        if name != "mds_jpeg_pil":  # another version of libjpeg may give other pixels
            assert_same_sample(ours, theirs)
        else:
            image = theirs["im"]
            assert (ours["im"].mode, list(ours["im"].size)) == (image["mode"], image["size"])


def test_pickles(tmp_path):
    golden_case = case("mds_pkl")
    golden_inputs = inputs(golden_case)
    write(tmp_path, map(sample, golden_inputs["samples"]), **arguments(golden_inputs["args"]))
    if pickle.DEFAULT_PROTOCOL == 4:  # that of the golden files
        assert_same_dataset(tmp_path, directory(golden_case), "files")
    for ours, theirs in zip(read(tmp_path), expected(golden_case), strict=True):
        assert_same_sample(ours, theirs)


@pytest.mark.parametrize("name", sorted(EMPTY_FIRST_SHARD))
def test_no_empty_first_shard(name, tmp_path):
    golden_case = case(name)
    golden_inputs = inputs(golden_case)
    write(tmp_path, map(sample, golden_inputs["samples"]), **arguments(golden_inputs["args"]))
    ours, theirs = load_index(tmp_path)["shards"], load_index(directory(golden_case))["shards"]
    assert theirs[0]["samples"] == 0
    for our, their in zip(ours, theirs[1:], strict=True):
        assert shard_bytes(tmp_path, our) == shard_bytes(directory(golden_case), their)


def test_a_partial_cache_holds_some_of_our_shards(tmp_path):
    golden_case = case("cache_partial")
    golden_inputs = inputs(golden_case)
    write(tmp_path, map(sample, golden_inputs["samples"]), **arguments(golden_inputs["args"]))
    ours, theirs = load_index(tmp_path), load_index(directory(golden_case))
    for shard in golden_case["present_shards"]:
        our, their = ours["shards"][shard], theirs["shards"][shard]
        assert shard_bytes(tmp_path, our) == shard_bytes(directory(golden_case), their)
    ours.pop("npstream")  # the order of the columns
    assert without_zip_sizes(ours) == without_zip_sizes(theirs)


@pytest.mark.parametrize(
    ("args", "data"),
    [
        ({"columns": {"a": "ndarray:uint8:1"}}, []),
        ({"columns": {"a": "ndarray:uint8:1"}}, {"a": []}),
        ({}, {"a": np.zeros((0, 1), np.uint8)}),
    ],
    ids=["rows", "list", "array"],
)
def test_no_samples(args, data, tmp_path):
    report = write(tmp_path, data, **args)
    assert_same_dataset(tmp_path, FORMATS / "empty_mds", "files")
    assert (report.samples, report.shards, report.raw_bytes) == (0, 0, 0)
    ds = npstream.open(tmp_path)
    assert (ds.columns, ds["a"].shape, ds["a"].dtype) == (("a",), (0, 1), np.uint8)


@pytest.mark.parametrize("data", [[], iter([]), {}, {"a": []}, {"a": np.zeros(0, object)}])
def test_empty_data_without_encodings_is_refused(data, tmp_path):
    with pytest.raises(ValueError, match=r"columns=|at least one column"):
        write(tmp_path / "out", data)
    assert not (tmp_path / "out").exists()


def test_a_writer_without_samples(tmp_path):
    with (
        pytest.raises(ValueError, match="no samples and no columns=: the columns"),
        Writer(tmp_path / "out"),
    ):
        pass
    assert not (tmp_path / "out" / "index.json").exists()
    with Writer(tmp_path / "named", {"b": "int", "a": "bool"}) as writer:
        pass
    assert writer.close().samples == 0
    assert npstream.open(tmp_path / "named").columns == ("b", "a")


@pytest.mark.parametrize(
    "case",
    [case for case in units()["writer_errors"] if case["writer"] == "MDSWriter"],
    ids=lambda case: case["what"],
)
def test_what_streaming_refuses(case, tmp_path):
    # npstream accepts the first, raises another type for the second, and only npstream refuses the
    # third.
    ours = {"unsorted hashes": None, "unknown keyword": TypeError, "mds no columns": ValueError}
    refusal = ours.get(case["what"], (ValueError, KeyError) if case["raises"] else None)

    def use():
        with Writer(tmp_path / "out", **arguments(case["args"])) as writer:
            if case["sample"]:
                writer.write({name: value(item) for name, item in case["sample"].items()})

    if refusal is None:
        use()
        assert (tmp_path / "out" / "index.json").exists()
    else:
        with pytest.raises(refusal):
            use()
        assert not (tmp_path / "out" / "index.json").exists()


# Columns against samples


SCALARS = ["uint8", "int16", "uint32", "int64", "float16", "float64"]


@st.composite
def tables(draw):
    """Draw columns of equal length, with the encodings that hold them."""
    n = draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    table, columns = {}, {}
    for name in draw(st.sets(st.sampled_from(["b", "a", "é", "", "x y"]), min_size=1)):
        dtype = np.dtype(draw(st.sampled_from(SCALARS))).newbyteorder(draw(st.sampled_from("<>")))
        shape = draw(st.sampled_from([(), (), (1,), (3,), (2, 2)]))
        array = rng.integers(0, 200, (*(2 * length for length in (n, *shape)),)).astype(dtype)
        layout = draw(st.sampled_from(["every second", "reversed", "fortran", "contiguous"]))
        array = array[tuple(slice(None, None, 2) for _ in array.shape)]
        array = {
            "every second": array,
            "reversed": array[::-1],
            "fortran": np.asfortranarray(array),
            "contiguous": np.ascontiguousarray(array),
        }[layout]
        table[name] = array
        columns[name] = f"ndarray:{dtype.name}:{','.join(map(str, shape))}" if shape else dtype.name
    if draw(st.booleans()):
        table["text"], columns["text"] = [str(i) * (i % 7) for i in range(n)], "str"
    return table, columns


@given(tables(), st.sampled_from([None, 1, 300, 500, "1kb"]), st.sampled_from([None, "zstd"]))
def test_columns_give_the_bytes_of_samples(drawn, shard_size, compression):
    table, columns = drawn
    options = {"shard_size": shard_size, "compression": compression, "hashes": ["xxh64"]}
    samples = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    with tempfile.TemporaryDirectory() as scratch:
        by_column, by_sample = Path(scratch, "columns"), Path(scratch, "samples")
        report = write(by_column, table, **options)
        assert report.columns == dict(sorted(columns.items()))
        write(by_sample, samples, columns=columns, **options)
        assert_same_dataset(by_column, by_sample, "files")


@pytest.mark.parametrize(
    ("dtype", "encoding"),
    [("int8", "int"), ("uint16", "int"), ("int64", "uint8"), ("uint64", "int8"), (">i2", "int64"),
     ("float64", "float32"), ("int32", "float64"), ("bool", "uint8")],
)  # fmt: skip
def test_an_array_of_another_dtype_is_converted_as_its_values_are(dtype, encoding, tmp_path):
    array = np.array([0, 1, 1]).astype(dtype)
    write(tmp_path / "columns", {"a": array}, columns={"a": encoding})
    write(tmp_path / "samples", [{"a": x} for x in array], columns={"a": encoding})
    assert_same_dataset(tmp_path / "columns", tmp_path / "samples", "files")


def test_columns_larger_than_the_record_buffer(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_module, "_PIECE_BYTES", 64)
    array = np.arange(3000, dtype=np.uint16).reshape(-1, 3)
    options = {"shard_size": "4kb", "hashes": ["md5"], "compression": "zstd"}
    write(tmp_path / "one", {"x": array, "n": np.arange(1000)}, **options)
    write(tmp_path / "two", {"x": array, "n": np.arange(1000), "s": [""] * 1000})
    for root in (tmp_path / "one", tmp_path / "two"):
        samples = read(root)
        assert np.array_equal([row["x"] for row in samples], array)
        assert [row["n"] for row in samples] == list(range(1000))


# Sizes


@pytest.mark.parametrize("shard_size", [None, 0, "0kb"])
def test_a_single_shard(shard_size, tmp_path):
    write(tmp_path, {"x": np.zeros((100, 1000))}, shard_size=shard_size)
    (entry,) = load_index(tmp_path)["shards"]
    assert entry["size_limit"] is None


@pytest.mark.parametrize("shard_size", [2**32, "4GiB", "1tb", -1, "64x"])
def test_shard_size_out_of_range(shard_size, tmp_path):
    with pytest.raises(ValueError, match="size"):
        Writer(tmp_path / "out", shard_size=shard_size)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "data",
    [
        {"x": np.zeros((20, 100), np.uint8)},
        {"x": np.zeros((20, 100), np.uint8), "s": [""] * 20},
        [{"x": np.zeros(100, np.uint8)}] * 20,
    ],
    ids=["arrays", "mixed", "rows"],
)
def test_a_shard_is_limited_by_its_offsets(data, tmp_path, monkeypatch):
    write(tmp_path / "whole", data, shard_size=None)
    nbytes = (tmp_path / "whole" / "shard.00000.mds").stat().st_size
    monkeypatch.setattr(shard_module, "MAX_SHARD_BYTES", nbytes)
    write(tmp_path / "limit", data, shard_size=None)
    monkeypatch.setattr(shard_module, "MAX_SHARD_BYTES", nbytes - 1)
    with pytest.raises(ValueError, match=rf"sample 19 .*{nbytes:,} bytes.*set shard_size"):
        write(tmp_path / "beyond", data, shard_size=None)
    assert not (tmp_path / "beyond").exists()
    assert len(read(tmp_path / "limit")) == 20
    write(tmp_path / "split", data, shard_size=nbytes - 1)
    assert len(load_index(tmp_path / "split")["shards"]) == 2


def test_offsets_up_to_the_last_byte():
    shards = shard_module.MdsFormat({"x": parse("uint8")}, shard_module.ShardOptions())
    begin = shards.empty_bytes + 8
    head = shards.head(np.array([2**31, shard_module.MAX_SHARD_BYTES - begin]))
    assert struct.unpack_from("<4I", head) == (2, begin, begin + 2**31, 2**32 - 1)


def test_a_sample_beyond_4_gib_is_refused(tmp_path, monkeypatch):
    class Huge(bytes):
        def __len__(self):
            return 2**32

    monkeypatch.setattr(encodings, "_ENCODINGS", dict(encodings._ENCODINGS))
    register_encoding("huge", lambda value: Huge(), lambda body: None)
    writer = Writer(tmp_path, {"x": "huge"})
    with pytest.raises(ValueError, match=r"sample 0 .* 4,294,967,296 bytes.*split the sample"):
        writer.write({"x": 1})


def test_a_batch_beyond_4_gib_is_refused_as_a_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_module, "MAX_SHARD_BYTES", 1000)
    with Writer(tmp_path, {"x": "str"}, shard_size=None) as writer:
        writer.write({"x": "a"})
        with pytest.raises(ValueError, match=r"with sample 3 a shard would have 1.* bytes"):
            writer.write(npstream.Batch({"x": ["b", "c", "d" * 900, "e"]}))
        writer.write(npstream.Batch({"x": ["b", "c"]}))
    assert read(tmp_path) == [{"x": "a"}, {"x": "b"}, {"x": "c"}]


def test_a_row_of_a_batch_that_no_shard_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_module, "MAX_SHARD_BYTES", 1000)
    with Writer(tmp_path, {"x": "str"}, shard_size=300) as writer:
        with pytest.raises(ValueError, match=r"with sample 2 a shard would have .* split the"):
            writer.write(npstream.Batch({"x": ["b", "c", "d" * 900]}))
        writer.write({"x": "a"})
    assert read(tmp_path) == [{"x": "a"}]


# Hashes


def test_hashes_in_any_order(tmp_path):
    write(tmp_path / "one", [{"x": 1}], hashes=("xxh64", "md5", "xxh64"))
    write(tmp_path / "two", [{"x": 1}], hashes=["md5", "xxh64"])
    write(tmp_path / "three", [{"x": 1}], hashes="md5")
    assert_same_dataset(tmp_path / "one", tmp_path / "two", "files")
    assert load_index(tmp_path / "one")["shards"][0]["hashes"] == ["md5", "xxh64"]
    assert load_index(tmp_path / "three")["shards"][0]["hashes"] == ["md5"]
