"""Parsing and validation of the index."""

from __future__ import annotations

import copy
import itertools
import json
import struct

import numpy as np
import pytest
from golden_data import FORMATS
from hypothesis import given
from hypothesis import strategies as st

import npstream
from npstream.errors import FormatError
from npstream.formats.heads import check_ascending
from npstream.formats.index import parse_index, shard_lookup_table
from npstream.formats.versions import sidecar_in_head

MDS = {
    "column_encodings": ["int", "str"],
    "column_names": ["a", "b"],
    "column_sizes": [8, None],
    "compression": None,
    "format": "mds",
    "hashes": [],
    "raw_data": {"basename": "shard.00000.mds", "bytes": 1000, "hashes": {}},
    "samples": 3,
    "size_limit": None,
    "version": 2,
    "zip_data": None,
}
TEXT = {
    "compression": None,
    "hashes": [],
    "newline": "\n",
    "raw_data": {"basename": "shard.00000.x", "bytes": 100, "hashes": {}},
    "raw_meta": {"basename": "shard.00000.x.meta", "bytes": 100, "hashes": {}},
    "samples": 3,
    "size_limit": None,
    "version": 2,
    "zip_data": None,
    "zip_meta": None,
}
COLUMN_LISTS = {"column_encodings": ["str", "int"], "column_names": ["a", "b"]}
ENTRIES = {
    "mds": MDS,
    "json": TEXT | {"format": "json", "columns": {"a": "str", "b": "int"}},
    "csv": TEXT | {"format": "csv"} | COLUMN_LISTS,
    "tsv": TEXT | {"format": "tsv"} | COLUMN_LISTS,
    "xsv": TEXT | {"format": "xsv", "separator": "||"} | COLUMN_LISTS,
}


def with_value(entry, *path_and_value):
    """Return a copy of an entry with one value replaced, or removed if the value is `DEL`."""
    *path, key, value = path_and_value
    entry = copy.deepcopy(entry)
    target = entry
    for step in path:
        target = target[step]
    if value is DEL:
        del target[key]
    else:
        target[key] = value
    return entry


DEL = object()


def parse_entries(*entries, **top):
    return parse_index(
        json.dumps({"shards": entries, "version": 2, **top}).encode(), "here/index.json"
    )


# Valid indexes


@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_of_each_format_gives_its_schema(name):
    index = parse_entries(ENTRIES[name], ENTRIES[name])
    (schema,) = index.schemas
    assert schema.format == name
    assert schema.names == ("a", "b")
    assert schema.encodings == (("int", "str") if name == "mds" else ("str", "int"))
    assert schema.sizes == ((8, None) if name == "mds" else ())
    assert schema.newline == ("" if name == "mds" else "\n")
    assert schema.separator == {"csv": ",", "tsv": "\t", "xsv": "||"}.get(name, "")
    assert (len(index), index.samples) == (2, 6)


def test_an_index_has_arrays_of_its_shards():
    entries = [with_value(MDS, "samples", count) for count in (3, 0, 5)]
    entries[1] = with_value(entries[1], "column_sizes", [8, 8])
    index = parse_entries(*entries)
    assert index.starts.tolist() == [0, 3, 3, 8]
    assert index.nbytes.tolist() == [1000] * 3
    assert index.schema_ids.tolist() == [0, 1, 0]
    assert [schema.sizes for schema in index.schemas] == [(8, None), (8, 8)]
    assert index.name(2) == "shard.00000.mds"


def test_files_of_a_shard_have_names_sizes_and_hashes():
    packed = {"basename": "x.zstd", "bytes": 7, "hashes": {"md5": "ff"}}
    entry = with_value(ENTRIES["json"], "zip_meta", packed) | {"compression": "zstd:3"}
    files = parse_entries(entry).files(0)
    assert (files.data.name, files.data.nbytes, files.data.hashes) == ("shard.00000.x", 100, {})
    assert (files.meta.name, files.zip_data) == ("shard.00000.x.meta", None)
    assert (files.zip_meta.name, files.zip_meta.nbytes) == ("x.zstd", 7)
    assert files.zip_meta.hashes == {"md5": "ff"}
    assert files.compression == "zstd:3"
    assert parse_entries(MDS).files(0).meta is None


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b'{"shards": [], "version": 2}', id="no shards"),
        pytest.param(
            b'{"version": 2, "more": {"a": [1]}, "shards": []}', id="other keys at the top"
        ),
        pytest.param(b'\xef\xbb\xbf{"shards": [], "version": 2}', id="byte order mark"),
    ],
)
def test_an_index_without_shards_is_empty(text):
    index = parse_index(text, "here/index.json")
    assert (len(index), index.samples, index.schemas) == (0, 0, ())


@pytest.mark.parametrize(
    "name",
    [
        "a",
        "part3/shard.00000.mds",
        "a/b/c",
        "...",
        ".hidden",
        "a..b",
        "a.",
        "..a/b",
        "a//b",
        "ä",
        "a b",
    ],
)
def test_relative_file_names_are_accepted(name):
    assert parse_entries(with_value(MDS, "raw_data", "basename", name)).name(0) == name


# Invalid indexes, rejected when the dataset is opened


def assert_rejected(text, match, in_shard=True):
    """Assert that an index is rejected, with a message that names shard 1 if `in_shard` is True."""
    target = r"here/index\.json: shard 1: .*" if in_shard else r"here/index\.json: "
    with pytest.raises(FormatError, match=target + match):
        parse_index(text, "here/index.json")


def assert_entry_rejected(entry, match):
    assert_rejected(json.dumps({"shards": [MDS, entry], "version": 2}).encode(), match)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"", "an empty file"),
        (b" \n", "an empty file"),
        (b"\0", "not JSON"),
        (b'{"shards": [', "not JSON"),
        (b'{"shards": [], "version": 2} x', "not JSON"),
        (b'{"shards": [], "version": 2, "a": "\xff"}', "not JSON"),
        (b"9" * 5000, "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"a":' * 100_000, "not JSON"),
        (b"[]", "list at the top"),
        (b"null", "NoneType at the top"),
        (b'"shards"', "str at the top"),
        (b'{"shards": []}', "version None; this release reads version 2"),
        (b'{"shards": [], "version": 3}', "version 3"),
        (b'{"shards": [], "version": "2"}', "version '2'"),
        (b'{"shards": [], "version": [2]}', r"version \[2\]"),
        (b'{"version": 2}', "'shards' is NoneType; expected a list"),
        (b'{"shards": {}, "version": 2}', "'shards' is dict"),
        (b'{"shards": "ab", "version": 2}', "'shards' is str"),
    ],
)
def test_invalid_documents_raise(text, match):
    assert_rejected(text, match, in_shard=False)


NOT_COUNTS = [
    None,
    True,
    False,
    -1,
    2**40,
    10**30,
    1.0,
    3.5,
    float("nan"),
    float("inf"),
    "3",
    [3],
    {},
]


@pytest.mark.parametrize("count", NOT_COUNTS, ids=repr)
@pytest.mark.parametrize("name", ENTRIES)
def test_invalid_counts_raise(name, count):
    assert_entry_rejected(with_value(ENTRIES[name], "samples", count), "'samples' is")
    assert_entry_rejected(with_value(ENTRIES[name], "raw_data", "bytes", count), "'bytes' is")


@pytest.mark.parametrize("name", ENTRIES)
def test_more_samples_than_the_bytes_allow_raise(name):
    head = "raw_data" if name == "mds" else "raw_meta"
    for samples in (3, 1000, 2**31, 2**32 - 1):
        entry = with_value(ENTRIES[name], "samples", samples)
        entry = with_value(entry, "raw_data", "bytes", 2**39)
        # The file needs 4 bytes for the count, and for each of samples + 1 offsets.
        parse_entries(with_value(entry, head, "bytes", 8 + 4 * samples))
        assert_entry_rejected(
            with_value(entry, head, "bytes", 7 + 4 * samples), f"{samples:,} samples cannot lie in"
        )
    assert_entry_rejected(with_value(ENTRIES[name], "samples", 2**32), "'samples' is 4294967296")
    if name != "mds":
        entry = with_value(ENTRIES[name], "raw_data", "bytes", 2)
        assert_entry_rejected(entry, "3 samples cannot lie in 2 bytes")


@pytest.mark.parametrize("name", ENTRIES)
def test_unknown_and_missing_keys_raise(name):
    entry = ENTRIES[name]
    assert_entry_rejected(entry | {"more": 1}, r"unknown keys \['more'\]")
    required_keys = entry.keys() - {"compression", "hashes", "size_limit", "zip_data", "zip_meta"}
    for key in required_keys:
        assert_entry_rejected(with_value(entry, key, DEL), f"the key '{key}' is missing")
        assert_entry_rejected(with_value(entry, key, None), "")
    for key in ("basename", "bytes"):
        assert_entry_rejected(
            with_value(entry, "raw_data", key, DEL), f"the key '{key}' is missing"
        )
    for key in entry.keys() - required_keys:
        parse_entries(with_value(entry, key, DEL)).files(0)


@pytest.mark.parametrize("entry", [None, 1, "mds", [], {}, [[]], True], ids=repr)
def test_entries_of_a_wrong_type_raise(entry):
    assert_entry_rejected(entry, "")


@pytest.mark.parametrize("kind", ["", "MDS", "parquet", None, 1, ["mds"], {"mds": 1}], ids=repr)
def test_unknown_formats_raise(kind):
    assert_entry_rejected(with_value(MDS, "format", kind), "")


@pytest.mark.parametrize("version", [1, 3, None, "2", [2], float("nan"), 10**30], ids=repr)
def test_unknown_versions_raise(version):
    assert_entry_rejected(with_value(MDS, "version", version), "version")


@pytest.mark.parametrize("key", ["column_names", "column_encodings", "column_sizes"])
@pytest.mark.parametrize("value", ["ab", 2, None, {"a": 1, "b": 2}, True, 1.5], ids=repr)
def test_column_lists_of_a_wrong_type_raise(key, value):
    assert_entry_rejected(with_value(MDS, key, value), f"'{key}' is .* expected a list")


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("column_names", ["a"], "1 column names, 2 encodings, 2 sizes"),
        ("column_encodings", ["int"], "2 column names, 1 encoding, 2 sizes"),
        ("column_sizes", [8], "2 column names, 2 encodings, 1 size"),
        ("column_names", ["a", "a"], r"duplicate columns \['a'\]"),
        ("column_names", ["a", "\ud800"], "must be UTF-8"),
        ("column_names", ["a", None], "must be strings"),
        ("column_names", ["a", 1.5], "must be strings"),
        ("column_encodings", ["int", float("nan")], "must be strings"),
        ("column_names", ["a", ["b"]], "wrong type"),
        ("column_encodings", [{"int": 1}, "str"], "wrong type"),
        ("column_sizes", [[8], None], "wrong type"),
        ("column_sizes", [0, None], "column sizes"),
        ("column_sizes", [-8, None], "column sizes"),
        ("column_sizes", [True, None], "column sizes"),
        ("column_sizes", [8.0, None], "column sizes"),
        ("column_sizes", ["8", None], "column sizes"),
        ("column_sizes", [2**32, None], "column sizes"),
        ("column_sizes", [10**30, None], "column sizes"),
        ("column_sizes", [float("nan"), None], "column sizes"),
    ],
)
def test_invalid_columns_raise(key, value, match):
    with pytest.raises(FormatError, match=rf"here/index\.json: shard 0: .*{match}"):
        parse_entries(with_value(MDS, key, value))


@pytest.mark.parametrize("name", ENTRIES)
def test_a_shard_without_columns_raises(name):
    entry = copy.deepcopy(ENTRIES[name])
    for key in entry.keys() & {"columns", "column_names", "column_encodings", "column_sizes"}:
        entry[key] = type(entry[key])()
    with pytest.raises(FormatError, match=r"here/index\.json: shard 0: a shard has no columns"):
        parse_entries(entry)


@pytest.mark.parametrize(
    ("name", "key", "value", "match"),
    [
        ("json", "columns", ["a", "b"], "wrong type"),
        ("json", "columns", {"a": 1}, "must be strings"),
        ("json", "columns", {"a": ["str"]}, "wrong type"),
        ("json", "newline", "", "an empty newline"),
        ("json", "newline", 1, "must be strings"),
        ("csv", "newline", ["\n"], "wrong type"),
        ("csv", "newline", "", "an empty newline"),
        ("csv", "separator", ",", "unknown keys"),
        ("xsv", "separator", "", "an empty separator"),
        ("xsv", "separator", 5, "must be strings"),
        ("xsv", "separator", "|\udd8a", "must be UTF-8"),
        ("json", "newline", "\udfff", "must be UTF-8"),
        ("xsv", "separator", {}, "wrong type"),
        ("xsv", "raw_meta", None, "wrong type"),
        ("xsv", "raw_meta", [], "wrong type"),
        ("tsv", "column_names", "ab", "expected a list"),
    ],
)
def test_invalid_entries_of_text_formats_raise(name, key, value, match):
    with pytest.raises(FormatError, match=rf"here/index\.json: shard 0: .*{match}"):
        parse_entries(with_value(ENTRIES[name], key, value))


HOSTILE_NAMES = [
    *("", "..", ".", "../x", "a/..", "a/../x", "a/./x", "./x", "x/."),
    *("/etc/passwd", "//host/share", "\\\\host\\share", "\\x", "a\\..\\b", "C:x", "c:/x", "C:\\x"),
    *("a\0b", "\0", "s3://bucket/key", "file:///etc/passwd", "x/y://z", "\ud800", "a\udcff"),
]


@pytest.mark.parametrize("basename", [*HOSTILE_NAMES, None, 5, ["x"], {}], ids=repr)
@pytest.mark.parametrize("file_key", ["raw_data", "zip_data", "raw_meta", "zip_meta"])
def test_file_names_outside_the_directory_raise(file_key, basename):
    entry = copy.deepcopy(ENTRIES["json"])
    entry[file_key] = {"basename": basename, "bytes": 100, "hashes": {}}
    match = "leaves the dataset's directory" if isinstance(basename, str) else "wrong type"
    assert_entry_rejected(entry, match)


@pytest.mark.parametrize("compression", [1, True, ["zstd"], {}, 1.5], ids=repr)
def test_compressions_of_a_wrong_type_raise(compression):
    assert_entry_rejected(with_value(MDS, "compression", compression), "'compression' is")


def test_deeply_nested_values_raise_or_are_ignored():
    deep = json.loads("[" * 500 + "]" * 500)
    assert_entry_rejected(with_value(MDS, "column_names", ["a", deep]), "wrong type")
    assert_entry_rejected(with_value(MDS, "column_sizes", deep), "")
    assert_entry_rejected(with_value(MDS, "format", deep), "")
    parse_entries(with_value(MDS, "size_limit", deep))


# Invalid entries, rejected when a shard is read


@pytest.mark.parametrize("file_key", ["zip_data", "raw_meta", "zip_meta"])
@pytest.mark.parametrize("nbytes", [*NOT_COUNTS, DEL], ids=[*map(repr, NOT_COUNTS), "left out"])
def test_invalid_sizes_of_other_files_raise(file_key, nbytes):
    entry = copy.deepcopy(ENTRIES["json"])
    entry[file_key] = with_value({"basename": "x", "bytes": 100, "hashes": {}}, "bytes", nbytes)
    with pytest.raises(FormatError, match=r"here/index\.json: shard 0: "):
        parse_entries(entry).files(0)


@pytest.mark.parametrize(
    "hashes", [1, "md5", ["md5"], {"md5": 1}, {"md5": None}, {"a": {}}], ids=repr
)
def test_invalid_hashes_raise(hashes):
    with pytest.raises(FormatError, match=r"here/index\.json: shard 0: raw_data has 'hashes'"):
        parse_entries(with_value(MDS, "raw_data", "hashes", hashes)).files(0)


# Opening datasets


def golden_copy(tmp_path, name, edit):
    """Copy a golden dataset, with its index's first shard edited."""
    for path in (FORMATS / name).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    index = json.loads((tmp_path / "index.json").read_text())
    edit(index["shards"][0])
    (tmp_path / "index.json").write_text(json.dumps(index))
    return tmp_path


@pytest.mark.parametrize(
    ("encoding", "size", "match"),
    [
        ("int", None, "has size None; its values take 8"),
        ("int", 4, "has size 4"),
        ("str", 8, "has size 8; its values take different sizes"),
        ("ndarray:uint8:4", 8, "has size 8; its values take 4"),
        ("ndarray:float64:99999,99999", 2**32 - 1, "larger than a shard"),
        ("ndarray:uint8:" + ",".join("1" * 70), 1, "a shape is 1 to 63 positive numbers"),
        ("ndarray:uint8:0", 1, "positive numbers"),
        ("ndarray:object:1", 8, "is not an encoding"),
        ("ndarray::2", None, "is not an encoding"),
        ("int128", 16, "unknown encoding"),
        ("", None, "unknown encoding"),
        ("x" * 10_000, None, "unknown encoding"),
    ],
)
def test_encodings_that_contradict_sizes_raise(tmp_path, encoding, size, match):
    def edit(shard):
        shard["column_encodings"][0] = encoding
        shard["column_sizes"][0] = size

    root = golden_copy(tmp_path, "mds_single", edit)
    with pytest.raises(FormatError, match=rf"index\.json: column '\w+'.*{match}"):
        npstream.open(root)


@pytest.mark.parametrize("encoding", ["bytes", "json", "float64", "int32", ""])
def test_encodings_that_text_formats_lack_raise(tmp_path, encoding):
    def edit(shard):
        shard["columns"][next(iter(shard["columns"]))] = encoding

    with pytest.raises(FormatError, match="json columns are str, int, float"):
        npstream.open(golden_copy(tmp_path, "jsonl_basic", edit))


def test_an_index_with_too_many_samples_opens_but_reading_raises(tmp_path):
    def edit(shard):
        shard["samples"] = 2**32 - 1
        shard["raw_data"]["bytes"] = 2**40 - 1

    ds = npstream.open(golden_copy(tmp_path, "mds_single", edit))
    assert len(ds) == 2**32 - 1
    for read in (lambda: ds[0], lambda: ds[-1], lambda: ds[[5]].load(), lambda: next(iter(ds))):
        with pytest.raises(FormatError, match=r"mds_single|shard\.00000\.mds.*the index says"):
            read()


def test_an_index_that_contradicts_its_shards_raises(tmp_path):
    """Reading with such an index would return wrong values."""

    def rename(shard):
        shard["column_names"] = [name + "x" for name in shard["column_names"]]

    def retype(shard):
        same_size = {"float32": "int32", "int64": "float64", "uint16": "float16"}
        shard["column_encodings"] = [same_size.get(e, e) for e in shard["column_encodings"]]

    def reorder(shard):
        for key in ("column_names", "column_encodings", "column_sizes"):
            shard[key].reverse()

    for edit in (rename, retype, reorder):
        ds = npstream.open(golden_copy(tmp_path, "mds_scalars", edit))
        with pytest.raises(FormatError, match=r"shard\.00000\.mds \(shard 0\): its own 'column_"):
            ds[0]

    def retype_text(shard):
        shard["columns"] = dict.fromkeys(shard["columns"], "str")

    ds = npstream.open(golden_copy(tmp_path, "jsonl_basic", retype_text))
    with pytest.raises(FormatError, match=r"shard 0\): its own 'columns' are"):
        ds[0]


@pytest.mark.parametrize(
    "configuration", [b"", b"{}", b"[]", b"null", b"\xff", b"[" * 9999, b'{"a": 1}']
)
def test_shards_without_a_configuration_are_read(tmp_path, configuration):
    begin = 4 * (2 + 2) + len(configuration)
    shard = struct.pack("<4I", 2, begin, begin + 8, begin + 16) + configuration
    shard += np.array([5, 6]).tobytes()
    entry = with_value(MDS, "raw_data", "bytes", len(shard)) | {"samples": 2}
    entry |= {"column_names": ["a"], "column_encodings": ["int"], "column_sizes": [8]}
    (tmp_path / "shard.00000.mds").write_bytes(shard)
    (tmp_path / "index.json").write_text(json.dumps({"shards": [entry], "version": 2}))
    assert list(npstream.open(tmp_path)) == [{"a": 5}, {"a": 6}]


# Shard lookup


@given(st.lists(st.one_of(st.integers(0, 3), st.integers(0, 10**6)), max_size=40))
def test_the_lookup_table_bounds_the_shard_of_each_sample(counts):
    starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    guide, shift = shard_lookup_table(starts)
    assert len(guide) <= 4 * len(counts) + 4
    n = int(starts[-1])
    samples = np.unique(np.concatenate([starts[:-1], starts[1:] - 1, np.arange(min(n, 50))]))
    samples = samples[(samples >= 0) & (samples < n)]
    shard = np.searchsorted(starts, samples, "right") - 1
    assert (guide[samples >> shift] <= shard).all()
    assert (shard <= guide[(samples >> shift) + 1]).all()
    # If all shards are equally large, the bounds leave at most three candidates: a short search.
    if len(set(counts)) == 1 and n:
        assert (np.diff(guide) <= 2).all()


def test_the_lookup_table_bounds_samples_beyond_32_bits():
    starts = np.array([0, 2**32 - 1, 2 * (2**32 - 1), 2 * (2**32 - 1) + 1])
    guide, shift = shard_lookup_table(starts)
    for sample in (0, 2**32 - 2, 2**32 - 1, 2**33 - 3, 2**33 - 2):
        shard = int(np.searchsorted(starts, sample, "right")) - 1
        assert guide[sample >> shift] <= shard <= guide[(sample >> shift) + 1]


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=8))
def test_offsets_must_ascend(offsets):
    array = np.array(offsets, np.uint32)
    if all(a < b for a, b in itertools.pairwise(offsets)):
        check_ascending(array)
        return
    row = next(k for k, (a, b) in enumerate(itertools.pairwise(offsets)) if a >= b)
    with pytest.raises(FormatError, match=rf"^sample {row} begins at byte {offsets[row]}, ends at"):
        check_ascending(array)


def test_sums_stay_within_int64():
    entries = [with_value(MDS, "raw_data", "bytes", 2**40 - 1) for _ in range(1000)]
    entries = [with_value(entry, "samples", 2**32 - 1) for entry in entries]
    index = parse_entries(*entries)
    assert index.samples == 1000 * (2**32 - 1)
    assert int(index.nbytes.sum()) == 1000 * (2**40 - 1)


def test_the_name_of_a_sidecar_is_read_and_checked():
    annotations = {"version": 1, "sidecar": "index.1f.0.msgpack", "columns": ["x"]}
    text = json.dumps({"npstream": annotations, "shards": [], "version": 2}).encode()
    index = parse_index(text, "here")
    assert index.annotations.sidecar == "index.1f.0.msgpack"
    assert index.annotations.to_document()["sidecar"] == "index.1f.0.msgpack"
    assert sidecar_in_head(text) == "index.1f.0.msgpack"
    assert sidecar_in_head(b'{"shards": []}') == ""
    for name in ("../index.1f.msgpack", "index.json", "index./.msgpack", 7, ["a"]):
        document = {"npstream": {"version": 1, "sidecar": name}, "shards": [], "version": 2}
        with pytest.raises(FormatError, match=r"'sidecar' is .*expected a name such as"):
            parse_index(json.dumps(document).encode(), "here")
