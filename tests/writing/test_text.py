"""Text shards hold the bytes that Streaming writes, and give back exactly what was written."""

from __future__ import annotations

import json
import math
import os
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from golden_data import FORMATS, case, cases, directory, inputs, sample, units, value
from hypothesis import given
from hypothesis import strategies as st
from written_shards import (
    load_index,
    read_described,
    streaming_files,
    without_annotations,
    without_zip_sizes,
)

import npstream
from npstream.errors import ColumnError
from npstream.formats.compression import decompress
from npstream.writing import shard as shards

WRITERS = {"JSONWriter": "jsonl", "CSVWriter": "csv", "TSVWriter": "tsv", "XSVWriter": "xsv"}
CODECS = [None, "zstd:7", "gz", "bz2:2", "br:3", "snappy"]


def golden_cases():
    """Yield Streaming's writer, its arguments, its samples and its directory."""
    for golden_case in cases():
        if golden_case["writer"] in WRITERS and golden_case["byte_exact"] in ("files", "raw"):
            golden_inputs = inputs(golden_case)
            for part in golden_inputs.get("partitions", [golden_inputs]):
                golden = directory(golden_case) / part.get("dir", "")
                name = "/".join([golden_case["name"], *([part["dir"]] if "dir" in part else [])])
                writer = part.get("writer", golden_case["writer"])
                yield pytest.param(writer, part["args"], part["samples"], golden, id=name)


def arguments(writer, args):
    renamed = {"format": WRITERS[writer], **args}
    if "size_limit" in renamed:
        renamed["shard_size"] = renamed.pop("size_limit")
    return renamed


def shard_files(root, entry):
    """Return the content of a shard's files, uncompressed; check their sizes and hashes."""
    contents = {}
    for kind in ("data", "meta"):
        raw, compressed = entry[f"raw_{kind}"], entry[f"zip_{kind}"]
        if compressed is None:
            contents[raw["basename"]] = read_described(root, entry, raw)
        else:
            body = read_described(root, entry, compressed)
            contents[raw["basename"]] = decompress(body, entry["compression"], raw["bytes"])
    return contents


def normalized(root):
    """Return an index without sizes and hashes of compressed files, and without annotations."""
    index = load_index(root)
    index.pop("npstream", None)
    for entry in without_zip_sizes(index)["shards"]:
        if entry.get("zip_meta"):
            entry["zip_meta"] |= {"bytes": None, "hashes": None}
    return index


def rows(root):
    return [dict(sample) for sample in npstream.open(root)]


def same(ours, theirs):
    """Return True for equal values, where a NaN equals a NaN and 0.0 is not -0.0."""
    if isinstance(ours, float) and isinstance(theirs, float):
        if math.isnan(ours) or math.isnan(theirs):
            return math.isnan(ours) and math.isnan(theirs)
        return ours.hex() == theirs.hex()
    return type(ours) is type(theirs) and ours == theirs


def assert_rows(actual, expected):
    assert len(actual) == len(expected)
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert same(ours[name], theirs[name]), (name, ours[name], theirs[name])


# The bytes of Streaming


@pytest.mark.parametrize(("writer", "args", "samples", "golden"), [*golden_cases()])
def test_bytes_equal_those_of_streaming(writer, args, samples, golden, tmp_path):
    report = npstream.write(tmp_path, map(sample, samples), **arguments(writer, args))
    ours, theirs = load_index(tmp_path)["shards"], load_index(golden)["shards"]
    if golden.name == "jsonl_too_big":  # no empty shard before a first sample that is too large
        assert theirs[0]["samples"] == 0
        for our, their in zip(ours, theirs[1:], strict=True):
            our_files, their_files = shard_files(tmp_path, our), shard_files(golden, their)
            assert [*our_files.values()] == [*their_files.values()]
        return
    if not args.get("compression"):
        assert streaming_files(tmp_path) == streaming_files(golden)
        actual, expected = ((d / "index.json").read_bytes() for d in (tmp_path, golden))
        assert without_annotations(actual) == without_annotations(expected)
    assert normalized(tmp_path) == normalized(golden)
    for our, their in zip(ours, theirs, strict=True):
        assert shard_files(tmp_path, our) == shard_files(golden, their)
    assert (report.samples, report.shards) == (len(samples), len(theirs))
    assert report.columns == args["columns"]


def test_all_golden_datasets_are_covered():
    assert len([*golden_cases()]) >= 17  # a filter of `golden_cases` may leave out too many


@pytest.mark.parametrize(
    "case",
    [case for case in units()["writer_errors"] if case["writer"] in WRITERS],
    ids=lambda case: case["what"],
)
def test_what_streaming_refuses(case, tmp_path):
    accepted = {"json int into float column", "json numpy int"}  # the same number comes back
    options = arguments(case["writer"], case["args"])

    def use():
        with npstream.Writer(tmp_path / "out", **options) as writer:
            if case["sample"]:
                writer.write({name: value(item) for name, item in case["sample"].items()})

    if case["raises"] is None or case["what"] in accepted:
        use()
        (row,) = rows(tmp_path / "out")
        assert all(row[name] == value(item) for name, item in case["sample"].items())
    else:
        with pytest.raises((ValueError, TypeError)):
            use()
        assert not (tmp_path / "out" / "index.json").exists()


@pytest.mark.parametrize("name", ["empty_jsonl", "empty_csv"])
def test_no_samples(name, tmp_path):
    golden_case = case(name)
    npstream.write(tmp_path, [], **arguments(golden_case["writer"], golden_case["args"]))
    actual, expected = ((d / "index.json").read_bytes() for d in (tmp_path, FORMATS / name))
    assert without_annotations(actual) == expected
    ds = npstream.open(tmp_path)
    assert (ds.columns, len(ds)) == (("a",), 0)


def test_the_types_of_a_dataset_without_samples(tmp_path):
    npstream.write(tmp_path, [], columns={"s": "str", "i": "int", "f": "float"}, format="csv")
    ds = npstream.open(tmp_path)
    assert ds.columns == ("s", "i", "f")
    assert [ds[name].dtype for name in "if"] == [np.int64, np.float64]


# Round trips

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
FLOATS = st.floats()
INTEGERS = st.integers() | st.integers(-(2**70), 2**70)


@st.composite
def datasets(draw):
    kinds = {"str": TEXT, "int": INTEGERS, "float": FLOATS}
    names = draw(st.lists(TEXT, min_size=1, max_size=4, unique=True))
    columns = {name: draw(st.sampled_from(sorted(kinds))) for name in names}
    row = st.fixed_dictionaries({name: kinds[kind] for name, kind in columns.items()})
    return columns, draw(st.lists(row, min_size=1, max_size=20))


OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "shard_size": st.sampled_from([1, 50, 200, None]),
        "compression": st.sampled_from(CODECS),
        "hashes": st.sampled_from([(), ("xxh64",), ("sha1", "md5")]),
        "sidecar": st.booleans(),
    },
)


@given(datasets(), OPTIONS, st.sampled_from([None, "\r\n", "\n\n", "\t\n"]))
def test_jsonl_gives_back_what_was_written(drawn, options, newline):
    columns, samples = drawn
    with tempfile.TemporaryDirectory() as scratch:
        npstream.write(
            scratch, samples, columns=columns, format="jsonl", newline=newline, **options
        )
        assert_rows(rows(scratch), samples)
        assert npstream.verify_dataset(scratch).problems == ()


@given(
    datasets(), OPTIONS, st.sampled_from(["csv", "tsv", "xsv"]),
    st.sampled_from(["|", "::", "aba", "~::~", "é", ", "]),
    st.sampled_from([None, "\r\n", "<END>\n", "¶", ":\n", "ab"]),
)  # fmt: skip
def test_xsv_gives_back_what_was_written_or_refuses_it(drawn, options, kind, separator, newline):
    columns, samples = drawn
    settings = {**options, "newline": newline, "format": kind}
    if kind == "xsv":
        settings["separator"] = separator
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "out")
        try:
            npstream.write(path, samples, columns=columns, **settings)
        except ValueError:
            assert not path.exists()
            return
        assert_rows(rows(path), samples)
        assert_rows([npstream.open(path)[k] for k in range(len(samples))], samples)
        assert npstream.verify_dataset(path).problems == ()


ALPHABET = st.text(st.sampled_from("ab:x\n"), max_size=5)


@given(st.lists(st.tuples(ALPHABET, ALPHABET, ALPHABET), min_size=1, max_size=4), st.data())
def test_separators_across_the_ends_of_fields(lines, data):
    """Accepted samples are read back unchanged. Others would be split into other fields."""
    separator = data.draw(st.sampled_from(["ab", "::", "aa", "aba", "x"]))
    newline = data.draw(st.sampled_from(["\n", "\n\n", "b\n", ":x"]))
    samples = [dict(zip("abc", line, strict=True)) for line in lines]
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "out")
        try:
            npstream.write(path, samples, format="xsv", separator=separator, newline=newline)
        except ValueError:
            text = separator.join("abc")
            exact = text.split(separator) == [*"abc"] and newline not in text
            for line in lines:
                text = separator.join(line)
                exact &= text.split(separator) == [*line]
                exact &= (text + newline).find(newline) == len(text)
            assert not exact or separator in newline or newline in separator
            return
        assert_rows(rows(path), samples)


@given(datasets(), st.sampled_from(["jsonl", "csv"]))
def test_columns_give_the_bytes_of_samples(drawn, kind):
    columns, samples = drawn
    table = {name: [row[name] for row in samples] for name in columns}
    with tempfile.TemporaryDirectory() as scratch:
        one, two = Path(scratch, "one"), Path(scratch, "two")
        try:
            npstream.write(one, samples, columns=columns, format=kind, shard_size=100)
        except ValueError:
            with pytest.raises(ValueError, match=r"sample|column"):
                npstream.write(two, table, columns=columns, format=kind, shard_size=100)
            return
        npstream.write(two, table, columns=columns, format=kind, shard_size=100)
        assert streaming_files(one) == streaming_files(two)
        for file in streaming_files(one):
            assert (one / file).read_bytes() == (two / file).read_bytes()


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_arrays_and_their_inferred_types(kind, tmp_path):
    table = {
        **{"u": np.array([0, 2**64 - 1], np.uint64), "b": np.array([-1, 1], ">i2")},
        **{"h": np.array([0.1, np.inf], np.float16), "f": np.array([0.1, -0.0], np.float32)},
        **{"t": np.array(["a", "é"]), "d": np.array([np.nan, 1e300])},
    }
    report = npstream.write(tmp_path, table, format=kind)
    kinds = {"u": "int", "b": "int", "h": "float", "f": "float", "t": "str", "d": "float"}
    assert report.columns == kinds
    expected = [{name: table[name][k].item() for name in table} for k in range(2)]
    assert_rows(rows(tmp_path), expected)


@pytest.mark.parametrize("source", ["mds", "jsonl", "tsv"])
@pytest.mark.parametrize("target", ["mds", "jsonl", "csv"])
def test_copies_between_formats(source, target, tmp_path):
    samples = [{"t": f"é{k}", "n": k * 10**6, "x": k / 7} for k in range(50)]
    npstream.write(tmp_path / "one", samples, format=source, shard_size=500)
    ds = npstream.open(tmp_path / "one")
    npstream.write(tmp_path / "two", ds[ds["n"] >= 10**7], format=target, compression="zstd")
    assert_rows(rows(tmp_path / "two"), samples[10:])
    npstream.write(tmp_path / "three", ds[::3][["n", "t"]], format=target)
    assert_rows(rows(tmp_path / "three"), [{"n": s["n"], "t": s["t"]} for s in samples[::3]])


# Settings


def test_the_formula_of_a_shards_size(tmp_path):
    """Lines count toward the limit, and the header and the offsets do not."""
    npstream.write(tmp_path, [{"a": "x" * 9}] * 7, format="csv", shard_size=30)
    assert [entry["samples"] for entry in load_index(tmp_path)["shards"]] == [3, 3, 1]


def test_the_header_counts_toward_the_largest_offset(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "MAX_SHARD_BYTES", 50)
    name = "n" * 30
    with npstream.Writer(tmp_path, {name: "str"}, format="csv", shard_size=None) as writer:
        writer.write({name: "x" * 9})
        with pytest.raises(ValueError, match=r"with sample 1 a shard would have 51 bytes"):
            writer.write({name: "x" * 9})
        writer.write({name: "x" * 8})
    assert len(rows(tmp_path)) == 2


@pytest.mark.parametrize("kind", ["mds", "jsonl", "csv", "tsv"])
def test_without_a_side_car(kind, tmp_path):
    npstream.write(tmp_path, {"a": [1, 2]}, format=kind, sidecar=False)
    names = sorted(os.listdir(tmp_path))
    assert [name for name in names if not name.startswith("shard.00000.")] == ["index.json"]
    assert rows(tmp_path) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_the_side_car_agrees_with_the_shards(kind, tmp_path):
    samples = [{"t": f"line {k}", "n": k} for k in range(100)]
    npstream.write(tmp_path, samples, format=kind, shard_size=300, compression="gz")
    assert (tmp_path / "index.msgpack").exists()
    report = npstream.verify_dataset(tmp_path)
    assert report.problems == ()


def test_the_report_counts_both_files(tmp_path):
    report = npstream.write(
        tmp_path, {"a": ["x" * 50] * 100}, format="tsv", compression="bz2", shard_size=1000
    )
    files = [file for file in tmp_path.iterdir() if file.name.startswith("shard.")]
    assert report.stored_bytes == sum(file.stat().st_size for file in files)
    entries = load_index(tmp_path)["shards"]
    bodies = [body for entry in entries for body in shard_files(tmp_path, entry).values()]
    assert report.raw_bytes == sum(map(len, bodies))


def test_meta_files_hold_the_offsets(tmp_path):
    npstream.write(tmp_path, {"a": ["é", ""]}, format="csv")
    (entry,) = load_index(tmp_path)["shards"]
    data, meta = shard_files(tmp_path, entry).values()
    assert data == "a\né\n\n".encode()
    assert np.frombuffer(meta[:16], "<u4").tolist() == [2, 2, 5, 6]
    assert [data[i:j] for i, j in pairwise([2, 5, 6])] == ["é\n".encode(), b"\n"]
    assert json.loads(meta[16:])["format"] == "csv"


# What is refused


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"format": "json"}, "unknown format 'json': did you mean 'jsonl'. choose from mds, jsonl"),
        ({"format": "xsv"}, "needs separator="),
        ({"format": "csv", "separator": ";"}, "choose format='xsv'"),
        ({"format": "mds", "separator": ";"}, "need a text format"),
        ({"format": "mds", "newline": "\n"}, "need a text format"),
        ({"format": "xsv", "separator": "\n"}, "contain each other"),
        ({"format": "xsv", "separator": "\ud800"}, "has surrogates"),
        ({"format": "csv", "newline": ""}, "at least a character"),
        ({"format": "jsonl", "newline": "¶"}, "only"),
        ({"format": "csv", "columns": {"a": "int32"}}, "columns of text are str, int, float"),
        ({"format": "csv", "columns": {"a,b": "int"}}, "column 'a,b': its name contains the"),
    ],
)
def test_settings_that_are_refused(options, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        npstream.write(tmp_path / "a", [{"a": 1}], **options)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("kind", "encoding", "bad", "error", "words"),
    [
        ("csv", "str", "a,b", ValueError, "contains the separator ','.*choose another"),
        ("csv", "str", "a\nb", ValueError, "contains the newline"),
        ("tsv", "str", "a\tb", ValueError, "contains the separator"),
        ("jsonl", "str", "\ud83d\ude00", ValueError, "surrogates"),
        ("csv", "str", "\ud800", ValueError, "surrogates"),
        ("csv", "str", b"a", TypeError, "expected a str, got bytes"),
        ("csv", "str", None, TypeError, "fill it in"),
        ("csv", "int", 1.0, TypeError, "expected an int, got float"),
        ("jsonl", "int", None, TypeError, "fill it in"),
        ("jsonl", "float", 2**53 + 1, ValueError, "float64 cannot hold"),
        ("csv", "float", "1.5", TypeError, "expected one float64"),
        ("csv", "float", None, TypeError, "fill it in"),
    ],
)
def test_values_that_are_refused(kind, encoding, bad, error, words, tmp_path):
    good = {"str": "a", "int": 1, "float": 1.5}[encoding]
    with npstream.Writer(tmp_path, {"a": encoding, "z": "int"}, format=kind) as writer:
        writer.write({"a": good, "z": 0})
        with pytest.raises(error, match=rf"(?s)sample 1: column 'a'.*{words}"):
            writer.write({"a": bad, "z": 0})
        with pytest.raises(ColumnError, match="sample 1"):
            writer.write({"a": good})
        writer.write({"a": good, "z": 0})
    assert len(rows(tmp_path)) == 2


def test_a_separator_across_two_fields_names_sample_and_column(tmp_path):
    samples = [{"a": "x", "b": "y"}, {"a": "x:", "b": "y"}]
    with pytest.raises(ValueError, match=r"sample 1: column 'a' cannot take 'x:'.*separator"):
        npstream.write(tmp_path / "a", samples, format="xsv", separator="::")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("bad", [True, [1], np.zeros(2), b"a", np.datetime64("2026-11-29")])
def test_values_that_no_text_column_suits(bad, tmp_path):
    with pytest.raises(TypeError, match=r"column 'a': .*convert them and name 'str'"):
        npstream.write(tmp_path / "a", [{"a": bad}], format="jsonl")
    assert os.listdir(tmp_path) == []


def test_an_integer_that_python_does_not_convert_to_text(tmp_path):
    with pytest.raises(ValueError, match=r"sample 0: column 'a' is 'int' and cannot take this int"):
        npstream.write(tmp_path / "a", [{"a": 10**5000}], columns={"a": "int"}, format="jsonl")


@pytest.mark.parametrize("kind", ["jsonl", "tsv"])
def test_workers_and_fill(kind, tmp_path):
    samples = [{"n": k, "t": f"é{k}"} if k % 3 else {"n": k} for k in range(200)]
    options = {"fill": {"t": "none"}, "columns": {"t": "str", "n": "int"}, "shard_size": 300}
    npstream.write(tmp_path / "one", samples, format=kind, **options)
    npstream.write(tmp_path / "two", samples, format=kind, workers=2, **options)
    assert rows(tmp_path / "one")[0] == {"t": "none", "n": 0}
    for file in streaming_files(tmp_path / "one"):
        one, two = ((tmp_path / name / file).read_bytes() for name in ("one", "two"))
        assert one == two


def test_samples_that_are_refused_can_be_left_out(tmp_path):
    samples = [{"t": "a"}, {"t": "b,c"}, {"t": "d"}]
    report = npstream.write(tmp_path, samples, format="csv", on_error="skip")
    assert (report.samples, report.rejected) == (2, 1)
    assert rows(tmp_path) == [{"t": "a"}, {"t": "d"}]


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_shard_samples(kind, tmp_path):
    npstream.write(tmp_path, {"a": range(10)}, format=kind, shard_samples=4)
    assert [entry["samples"] for entry in load_index(tmp_path)["shards"]] == [4, 4, 2]
    npstream.write(tmp_path / "rows", [{"a": k} for k in range(10)], format=kind, shard_samples=4)
    assert [entry["samples"] for entry in load_index(tmp_path / "rows")["shards"]] == [4, 4, 2]


def test_tables_of_other_libraries(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"n": [1, 2], "x": [0.5, np.inf], "t": ["a", "b"]})
    npstream.write(tmp_path / "one", frame, format="jsonl")
    assert_rows(rows(tmp_path / "one"), frame.to_dict("records"))
    arrow = pytest.importorskip("pyarrow")
    npstream.write(tmp_path / "two", arrow.Table.from_pandas(frame), format="csv")
    assert_rows(rows(tmp_path / "two"), frame.to_dict("records"))
