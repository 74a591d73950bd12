from __future__ import annotations

import errno
import itertools
import json
import os
import pickle
import re
import signal
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas
import pyarrow
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

import npstream
from npstream.errors import ColumnError, StorageError
from npstream.formats.compression import decompress
from npstream.formats.encodings import encodings
from npstream.formats.encodings.encodings import parse, register_encoding
from npstream.formats.hashes import digest
from npstream.writing import shard as mds_encode
from npstream.writing.writer import Writer, write


def load_index(root):
    text = (Path(root) / "index.json").read_text("ascii")
    return json.loads(text)


def checked(root, entry, facts):
    """Return a file of a dataset, after a check of what the index says of it."""
    data = Path(root, facts["basename"]).read_bytes()
    assert_described(data, entry, facts)
    return data


def assert_described(data, entry, facts):
    assert len(data) == facts["bytes"]
    assert {name: digest(name, data) for name in entry["hashes"]} == facts["hashes"]


def shard_bytes(root, entry):
    """Return a shard, uncompressed."""
    raw, packed = entry["raw_data"], entry["zip_data"]
    if packed is None or not Path(root, packed["basename"]).exists():
        return checked(root, entry, raw)
    data = decompress(checked(root, entry, packed), entry["compression"], raw["bytes"])
    assert_described(data, entry, raw)
    return data


def read(root):
    """Decode a dataset by the letter of the format."""
    samples = []
    for entry in load_index(root)["shards"]:
        data = shard_bytes(root, entry)
        (count,) = struct.unpack_from("<I", data)
        ends = struct.unpack_from(f"<{count + 1}I", data, 4)
        assert count == entry["samples"]
        assert ends[-1] == len(data)
        for begin, end in itertools.pairwise(ends):
            samples.append(decode(entry, data[begin:end]))
    return samples


def decode(entry, data):
    sizes = list(entry["column_sizes"])
    position = 4 * sizes.count(None)
    varying = iter(struct.unpack_from(f"<{sizes.count(None)}I", data))
    decoded = {}
    for name, encoding, size in zip(
        entry["column_names"], entry["column_encodings"], sizes, strict=True
    ):
        end = position + (next(varying) if size is None else size)
        decoded[name] = parse(encoding).decode(data[position:end])
        position = end
    assert position == len(data)
    return decoded


def without_zip_sizes(index):
    for entry in index["shards"]:
        if entry["zip_data"]:
            entry["zip_data"] |= {"bytes": None, "hashes": None}
    return index


def without_annotations(text):
    """Return an index as Streaming writes it: without our key, which says what it cannot."""
    index = json.loads(text)
    index.pop("npstream", None)
    return json.dumps(index, sort_keys=True).encode()


def streamings(path):
    """Return the names of the files that Streaming writes, too: all but the side-car's."""
    names = sorted(os.listdir(path))
    return [name for name in names if name not in ("index.columns", "index.msgpack")]


def same_dataset(written, golden, exactness):
    """Fail unless a dataset has the golden one's bytes: of the files, or of what is in them."""
    if exactness == "files":
        names = streamings(golden)
        assert streamings(written) == names
        for name in names:
            ours, theirs = ((root / name).read_bytes() for root in (written, golden))
            if name == "index.json":
                ours, theirs = without_annotations(ours), without_annotations(theirs)
            assert ours == theirs, name
    else:
        ours, theirs = load_index(written), load_index(golden)
        ours.pop("npstream", None)
        for our, their in zip(ours["shards"], theirs["shards"], strict=True):
            assert shard_bytes(written, our) == shard_bytes(golden, their)
        files = [entry["zip_data"] or entry["raw_data"] for entry in ours["shards"]]
        names = {"index.json", *(facts["basename"] for facts in files)}
        assert set(streamings(written)) == names
        assert without_zip_sizes(ours) == without_zip_sizes(theirs)


def arguments(args):
    renamed = dict(args)
    if "size_limit" in renamed:
        renamed["shard_size"] = renamed.pop("size_limit")
    return renamed


def exact_cases():
    """Yield Streaming's arguments, its samples, its directory and how exact we must be."""
    for described in cases():
        if described["writer"] != "MDSWriter" or described["byte_exact"] not in ("files", "raw"):
            continue
        given_ = inputs(described)
        for part in given_.get("partitions", [given_]):
            name = "/".join([described["name"], *([part["dir"]] if "dir" in part else [])])
            exactness = "raw" if part["args"].get("compression") else "files"
            golden = directory(described) / part.get("dir", "")
            if name not in EMPTY_FIRST_SHARD:
                yield pytest.param(part["args"], part["samples"], golden, exactness, id=name)


EMPTY_FIRST_SHARD = {"mds_first_too_big", "mds_one_per_shard", "mds_zstd_empty_first"}
EXACT_CASES = list(exact_cases())


@pytest.mark.parametrize(("args", "samples", "golden", "exactness"), EXACT_CASES)
def test_bytes_are_streamings(args, samples, golden, exactness, tmp_path):
    columns = args["columns"]
    given_ = (
        {name: without_palette(item, columns[name]) for name, item in sample(each).items()}
        for each in samples
    )
    report = write(tmp_path, given_, **arguments(args))
    same_dataset(tmp_path, golden, exactness)
    assert report.samples == len(samples)
    assert report.shards == len(load_index(golden)["shards"])
    assert report.columns == dict(sorted(args["columns"].items()))


def test_all_golden_datasets_are_covered():
    assert len(EXACT_CASES) >= 69


@pytest.mark.parametrize("name", ["mds_png", "mds_jpeg_pil", "mds_list_png"])
def test_images_that_we_encode_ourselves(name, tmp_path):
    described = case(name)
    given_ = inputs(described)
    write(tmp_path, map(sample, given_["samples"]), **arguments(given_["args"]))
    for ours, theirs in zip(read(tmp_path), expected(described), strict=True):
        if name != "mds_jpeg_pil":  # another version of libjpeg may give other pixels
            assert_same_sample(ours, theirs)
        else:
            image = theirs["im"]
            assert (ours["im"].mode, list(ours["im"].size)) == (image["mode"], image["size"])


def test_pickles(tmp_path):
    described = case("mds_pkl")
    given_ = inputs(described)
    write(tmp_path, map(sample, given_["samples"]), **arguments(given_["args"]))
    if pickle.DEFAULT_PROTOCOL == 4:
        same_dataset(tmp_path, directory(described), "files")
    for ours, theirs in zip(read(tmp_path), expected(described), strict=True):
        assert_same_sample(ours, theirs)


@pytest.mark.parametrize("name", sorted(EMPTY_FIRST_SHARD))
def test_no_empty_first_shard(name, tmp_path):
    described = case(name)
    given_ = inputs(described)
    write(tmp_path, map(sample, given_["samples"]), **arguments(given_["args"]))
    ours, theirs = load_index(tmp_path)["shards"], load_index(directory(described))["shards"]
    assert theirs[0]["samples"] == 0
    for our, their in zip(ours, theirs[1:], strict=True):
        assert shard_bytes(tmp_path, our) == shard_bytes(directory(described), their)


def test_a_partial_cache_holds_some_of_our_shards(tmp_path):
    described = case("cache_partial")
    given_ = inputs(described)
    write(tmp_path, map(sample, given_["samples"]), **arguments(given_["args"]))
    ours, theirs = load_index(tmp_path), load_index(directory(described))
    for shard in described["present_shards"]:
        our, their = ours["shards"][shard], theirs["shards"][shard]
        assert shard_bytes(tmp_path, our) == shard_bytes(directory(described), their)
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
    same_dataset(tmp_path, FORMATS / "empty_mds", "files")
    assert (report.samples, report.shards, report.raw_bytes) == (0, 0, 0)
    ds = npstream.open(tmp_path)
    assert (ds.columns, ds["a"].shape, ds["a"].dtype) == (("a",), (0, 1), np.uint8)


@pytest.mark.parametrize("data", [[], iter([]), {}, {"a": []}, {"a": np.zeros(0, object)}])
def test_nothing_that_says_what_a_dataset_holds(data, tmp_path):
    with pytest.raises(ValueError, match=r"columns=|at least one column"):
        write(tmp_path / "out", data)
    assert not (tmp_path / "out").exists()


def test_a_writer_that_was_given_nothing(tmp_path):
    with (
        pytest.raises(ValueError, match="no samples, and no columns=: nothing says"),
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


# Columns


def test_inference_from_samples(tmp_path):
    report = write(
        tmp_path,
        [{"i": 1, "f": 0.5, "s": "a", "b": b"a", "n": np.int16(1), "x": np.zeros((2, 3)), "j": {}}],
    )
    assert report.columns == {
        **{"b": "bytes", "f": "float64", "i": "int", "j": "json", "n": "int16", "s": "str"},
        "x": "ndarray:float64",
    }


def test_inference_from_columns(tmp_path):
    report = write(
        tmp_path,
        {
            **{"n": np.zeros(2, np.int16), "x": np.zeros((2, 3, 4), ">f4"), "s": ["a", "b"]},
            **{"u": np.array(["a", "b"]), "o": np.array(["a", b"b"], object), "i": [1, 2]},
            **{"r": [np.zeros(2, np.uint8), np.zeros(3, np.uint8)]},
        },
        columns=None,
    )
    assert report.columns == {
        **{"i": "int", "n": "int16", "o": "str", "r": "ndarray:uint8", "s": "str", "u": "str"},
        "x": "ndarray:float32:3,4",
    }


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"a": [1, 2], "b": [1]}, r"columns differ in length: {'a': 2, 'b': 1}"),
        ({"text": "hello"}, r"column 'text': it is of type str.*a single sample goes into a list"),
        ({"x": 1}, r"column 'x': it is of type int"),
        ({"x": iter([1])}, r"column 'x': it is of type list_iterator"),
        ([("a", 1)], r"sample 0 is of type tuple; expected a mapping"),
        (["a"], r"sample 0 is of type str; expected a mapping"),
        ([{}], r"at least one column"),
        ([{1: 2}], r"both str"),
        ({"x": np.zeros((2, 0))}, r"ndarray:float64:0"),
        ({"x": np.zeros(2, "g")}, r"column 'x': cannot store an array of dtype float128"),
        ({"x": np.array(5)}, r"column 'x': it is of type ndarray"),
        (5, r"data is of type int: expected samples"),
    ],
)
def test_what_is_no_dataset(data, message, tmp_path):
    with pytest.raises((TypeError, ValueError), match=message):
        write(tmp_path / "out", data)
    assert not (tmp_path / "out" / "index.json").exists()


def test_a_missing_column_names_the_sample_and_a_near_name(tmp_path):
    with pytest.raises(ColumnError, match="sample 1: no column 'label'; did you mean 'labels'"):
        write(tmp_path, [{"label": 1}, {"labels": 1}])
    with pytest.raises(ColumnError, match="no column 'label'; did you mean 'labels'"):
        write(tmp_path, {"labels": [1]}, columns={"label": "int"})


@pytest.mark.parametrize(
    ("encoding", "bad", "kind"),
    [
        ("int", "1", TypeError),
        ("str", 1, TypeError),
        ("uint8", 256, ValueError),
        ("int32", b"abc", ValueError),
        ("ndarray:uint8:2", np.zeros(3, np.uint8), ValueError),
        ("ndarray:uint8", np.zeros(3, np.int8), ValueError),
    ],
)
def test_a_refused_value_is_located(encoding, bad, kind, tmp_path):
    good = {"int": 1, "str": "", "uint8": 1, "int32": 1}.get(encoding, np.zeros(2, np.uint8))
    with Writer(tmp_path, {"a": encoding}) as writer:
        writer.write({"a": good})
        message = rf"sample 1: column 'a' is '{encoding}' and cannot take this {type(bad).__name__}"
        with pytest.raises(kind, match=message):
            writer.write({"a": bad})
        writer.write({"a": good})
    assert len(read(tmp_path)) == 2


def test_a_refused_value_in_an_array_is_located(tmp_path):
    with pytest.raises(ValueError, match="sample 2: column 'a' is 'uint8'"):
        write(tmp_path, {"a": np.array([1, 2, 256])}, columns={"a": "uint8"})


def test_a_name_that_is_no_encoding_names_the_column(tmp_path):
    with pytest.raises(ValueError, match="column 'a': unknown encoding 'strr': did you mean 'str'"):
        Writer(tmp_path, {"a": "strr"})
    with pytest.raises(TypeError, match="both str"):
        Writer(tmp_path, {"a": np.uint8})


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
        same_dataset(by_column, by_sample, "files")


@pytest.mark.parametrize(
    ("dtype", "encoding"),
    [("int8", "int"), ("uint16", "int"), ("int64", "uint8"), ("uint64", "int8"), (">i2", "int64"),
     ("float64", "float32"), ("int32", "float64"), ("bool", "uint8")],
)  # fmt: skip
def test_an_array_of_another_dtype_is_converted_as_its_values_are(dtype, encoding, tmp_path):
    array = np.array([0, 1, 1]).astype(dtype)
    write(tmp_path / "columns", {"a": array}, columns={"a": encoding})
    write(tmp_path / "samples", [{"a": x} for x in array], columns={"a": encoding})
    same_dataset(tmp_path / "columns", tmp_path / "samples", "files")


def test_columns_longer_than_a_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(mds_encode, "_PIECE", 64)
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
def test_a_shard_ends_where_its_offsets_can_say(data, tmp_path, monkeypatch):
    write(tmp_path / "whole", data, shard_size=None)
    nbytes = (tmp_path / "whole" / "shard.00000.mds").stat().st_size
    monkeypatch.setattr(mds_encode, "MAX_BYTES", nbytes)
    write(tmp_path / "limit", data, shard_size=None)
    monkeypatch.setattr(mds_encode, "MAX_BYTES", nbytes - 1)
    with pytest.raises(ValueError, match=rf"sample 19 .*{nbytes} bytes.*set shard_size"):
        write(tmp_path / "beyond", data, shard_size=None)
    assert not (tmp_path / "beyond").exists()
    assert len(read(tmp_path / "limit")) == 20
    write(tmp_path / "split", data, shard_size=nbytes - 1)
    assert len(load_index(tmp_path / "split")["shards"]) == 2


def test_offsets_up_to_the_last_byte():
    shards = mds_encode.ShardFormat({"x": parse("uint8")}, None, None, [])
    begin = shards.empty + 8
    head = shards.head(np.array([2**31, mds_encode.MAX_BYTES - begin]))
    assert struct.unpack_from("<4I", head) == (2, begin, begin + 2**31, 2**32 - 1)


def test_a_sample_beyond_4_gib_is_refused(tmp_path, monkeypatch):
    class Huge(bytes):
        def __len__(self):
            return 2**32

    monkeypatch.setattr(encodings, "_KNOWN", dict(encodings._KNOWN))
    register_encoding("huge", lambda value: Huge(), lambda body: None)
    writer = Writer(tmp_path, {"x": "huge"})
    with pytest.raises(ValueError, match=r"sample 0 .* 4294967296 bytes.*split the sample"):
        writer.write({"x": 1})


def test_a_batch_beyond_4_gib_is_refused_as_a_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(mds_encode, "MAX_BYTES", 1000)
    with Writer(tmp_path, {"x": "str"}, shard_size=None) as writer:
        writer.write({"x": "a"})
        with pytest.raises(ValueError, match=r"with sample 3 a shard would have 1.* bytes"):
            writer.write(npstream.Batch({"x": ["b", "c", "d" * 900, "e"]}))
        writer.write(npstream.Batch({"x": ["b", "c"]}))
    assert read(tmp_path) == [{"x": "a"}, {"x": "b"}, {"x": "c"}]


def test_a_row_of_a_batch_that_no_shard_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(mds_encode, "MAX_BYTES", 1000)
    with Writer(tmp_path, {"x": "str"}, shard_size=300) as writer:
        with pytest.raises(ValueError, match=r"with sample 2 a shard would have .* split the"):
            writer.write(npstream.Batch({"x": ["b", "c", "d" * 900]}))
        writer.write({"x": "a"})
    assert read(tmp_path) == [{"x": "a"}]


@pytest.mark.parametrize(
    ("columns", "kind", "words"),
    [
        (["x"], TypeError, r"columns maps names to encodings; got \['x'\]"),
        ("int", TypeError, "columns maps names to encodings; got 'int'"),
        ({"x": int}, TypeError, "both str; got 'x': <class 'int'>"),
        ({1: "int"}, TypeError, "both str; got 1: 'int'"),
        ({"\ud800": "int"}, ValueError, "its name has surrogates"),
    ],
)
def test_columns_that_are_none(columns, kind, words, tmp_path):
    with pytest.raises(kind, match=words):
        write(tmp_path / "a", [{"x": 1}], columns=columns)
    assert os.listdir(tmp_path) == []


def test_names_are_checked_before_anything_is_stored(tmp_path):
    with pytest.raises(ValueError, match="its name has surrogates"):
        write(tmp_path / "a", [{"\ud800": 1}])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (pandas.DataFrame({"a": [1]}), "DataFrame, which holds no samples.* in data.columns}"),
        (pyarrow.table({"a": [1]}), "Table, which holds no samples.* in data.column_names}"),
        (np.zeros(2, [("a", "i4")]), "ndarray, which holds no samples.* in data.dtype.names}"),
        (np.zeros(2), "sample 0 is of type float64; expected a mapping"),
    ],
)
def test_tables_that_are_no_samples(data, words, tmp_path):
    with pytest.raises(TypeError, match=words):
        write(tmp_path / "a", data)
    assert os.listdir(tmp_path) == []


# All or nothing


@pytest.mark.parametrize("how", ["samples", "a batch"])
def test_an_error_that_a_loop_survives_loses_no_sample(how, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)  # for the side-car, at the first shard
    writer = Writer(tmp_path / "a", {"x": "str"}, shard_size=300)
    rows = [{"x": "a" * 100} for _ in range(6)]
    given_ = rows if how == "samples" else [npstream.Batch({"x": [row["x"] for row in rows]})]
    for each in given_:
        try:
            writer.write(each)
        except OSError:
            break
    monkeypatch.undo()
    with pytest.raises(ValueError, match="this Writer is closed"):
        writer.write(rows[0])
    with pytest.raises(ValueError, match="this Writer is closed"):
        writer.close()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("how", ["samples", "columns"])
def test_a_full_directory_of_temporary_files(how, tmp_path, monkeypatch):
    """It is named, and nothing is left in the dataset's directory, which is not full."""
    full = []

    def open_full(**options):
        full.append(open("/dev/full", "w+b"))  # noqa: SIM115 - the spool closes it
        return full[-1]

    monkeypatch.setattr(tempfile, "TemporaryFile", open_full)
    data = [{"x": 1}] if how == "samples" else {"x": np.arange(10**5)}
    with pytest.raises(StorageError, match=r"No space left.*side-car; TMPDIR names") as caught:
        write(tmp_path / "a", data, shard_size=1000)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == tempfile.gettempdir()
    assert os.listdir(tmp_path) == []
    assert all(file.closed for file in full)


def test_an_error_at_the_end_removes_everything(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    writer = Writer(tmp_path / "a")
    writer.write({"x": 1})
    with pytest.raises(OSError, match="Too many open files"):
        writer.close()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_an_exception_publishes_nothing_and_leaves_nothing(compression, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")

    def samples():
        for i in range(50):
            yield {"x": i}
        assert len(list(tmp_path.glob("shard.*"))) > 1
        raise InterruptedError("in the middle")

    with pytest.raises(InterruptedError, match="in the middle"):
        write(tmp_path, samples(), shard_size=300, compression=compression)
    assert os.listdir(tmp_path) == ["notes.txt"]
    write(tmp_path, [{"x": 1}])
    assert len(read(tmp_path)) == 1


def test_a_block_left_by_an_exception(tmp_path):
    writer = Writer(tmp_path, shard_size=1)

    def block():
        with writer:
            writer.write({"x": 1})
            writer.write({"x": 2})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        block()
    assert os.listdir(tmp_path) == []
    with pytest.raises(ValueError, match="this Writer is closed"):
        writer.write({"x": 3})
    with pytest.raises(ValueError, match="this Writer is closed"):
        writer.close()


def test_an_exception_after_close_keeps_the_dataset(tmp_path):
    writer = Writer(tmp_path)

    def block():
        with writer:
            writer.write({"x": 1})
            writer.close()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        block()
    assert read(tmp_path) == [{"x": 1}]
    assert writer.close() is writer.close()
    with pytest.raises(ValueError, match="this Writer is closed"):
        writer.write({"x": 3})


@pytest.mark.parametrize("call", [1, 2, 3, 4, 5])
def test_a_disk_that_fails_at_any_moment(call, tmp_path, monkeypatch):
    """Two shards, the directory, the index, the directory again: five times to the disk."""
    calls = []
    sync = os.fsync

    def fail(descriptor):
        calls.append(descriptor)
        if len(calls) == call:
            raise OSError(28, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    writer = Writer(tmp_path, shard_size=1)

    def write_two():
        for x in range(2):
            writer.write({"x": x})
        writer.close()

    with pytest.raises(OSError, match="No space left"):
        write_two()
    assert os.listdir(tmp_path) == []
    with pytest.raises(ValueError, match="this Writer is closed"):
        writer.close()


@pytest.mark.parametrize("name", ["index.json", "shard.00000.mds", "shard.00007.json.meta"])
def test_a_directory_that_holds_a_dataset_is_refused(name, tmp_path):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(FileExistsError, match=rf"remove it, or choose another.*{name}"):
        write(tmp_path, [{"x": 1}])
    assert os.listdir(tmp_path) == [name]


def test_of_two_writers_the_first_wins(tmp_path):
    first, second = Writer(tmp_path, shard_size=1), Writer(tmp_path)
    first.write({"x": 1})
    first.close()
    second.write({"y": 2})
    with pytest.raises(FileExistsError, match=r"shard\.00000\.mds"):
        second.close()
    assert read(tmp_path) == [{"x": 1}]
    assert streamings(tmp_path) == ["index.json", "shard.00000.mds"]


def test_an_index_is_never_replaced(tmp_path):
    writer = Writer(tmp_path)
    (tmp_path / "index.json").write_text("theirs")
    writer.write({"x": 1})
    with pytest.raises(FileExistsError, match=r"index\.json"):
        writer.close()
    assert (tmp_path / "index.json").read_text() == "theirs"
    assert os.listdir(tmp_path) == ["index.json"]


def test_a_file_system_without_hard_links(tmp_path, monkeypatch):
    def refuse(source, target):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    first, second = Writer(tmp_path), Writer(tmp_path)
    first.write({"x": 1})
    first.close()
    second.write({"x": 2})
    with pytest.raises(FileExistsError, match=r"shard\.00000\.mds"):
        second.close()
    assert read(tmp_path) == [{"x": 1}]
    assert streamings(tmp_path) == ["index.json", "shard.00000.mds"]


def test_a_killed_writer_leaves_no_index(tmp_path):
    script = """
import itertools, sys
from npstream.writing.writer import Writer
writer = Writer(sys.argv[1], shard_size=1000)
for i in itertools.count():
    writer.write({"x": 1})
    if i == 500:
        print("several shards", flush=True)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "killed")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "several shards\n"
        process.send_signal(signal.SIGKILL)
    left = os.listdir(tmp_path / "killed")
    assert "index.json" not in left
    for name in left:
        assert re.fullmatch(r"shard\.\d{5}\.mds|\.shard\.\d{5}\.mds\.[0-9a-f]{16}\.tmp", name)
    with pytest.raises(FileExistsError, match="remove it"):
        Writer(tmp_path / "killed")
    write(tmp_path / "again", [{"x": 1}])
    assert read(tmp_path / "again") == [{"x": 1}]


# The rest


def test_hashes_in_any_order(tmp_path):
    write(tmp_path / "one", [{"x": 1}], hashes=("xxh64", "md5", "xxh64"))
    write(tmp_path / "two", [{"x": 1}], hashes=["md5", "xxh64"])
    write(tmp_path / "three", [{"x": 1}], hashes="md5")
    same_dataset(tmp_path / "one", tmp_path / "two", "files")
    assert load_index(tmp_path / "one")["shards"][0]["hashes"] == ["md5", "xxh64"]
    assert load_index(tmp_path / "three")["shards"][0]["hashes"] == ["md5"]


def test_the_report(tmp_path):
    report = write(tmp_path / "out", {"x": np.zeros((100, 100))}, compression="gz", shard_size=5000)
    files = list((tmp_path / "out").glob("shard.*"))
    assert report.path == str(tmp_path / "out")
    assert (report.samples, report.shards) == (100, len(files))
    assert report.stored_bytes == sum(file.stat().st_size for file in files)
    entries = load_index(tmp_path / "out")["shards"]
    assert report.raw_bytes == sum(len(shard_bytes(tmp_path / "out", entry)) for entry in entries)
    assert report.raw_bytes > 100 * 800
    assert report.seconds > 0


def test_where_it_is_written(tmp_path):
    assert write(f"file://{tmp_path}/a", [{"x": 1}]).path == str(tmp_path / "a")
    assert write(tmp_path / "b" / "c", [{"x": 1}]).path == str(tmp_path / "b" / "c")
    with pytest.raises(ValueError, match="unknown scheme"):
        write("s33://bucket/data", [{"x": 1}])


def test_files_have_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    write(tmp_path / "out", [{"x": 1}])
    for file in filter(Path.is_file, (tmp_path / "out").rglob("*")):
        assert file.stat().st_mode == (tmp_path / "plain").stat().st_mode
