"""Damaged and hostile datasets cause no crash, hang, wrong value or unbounded allocation.

The mutations of `fuzz` are random; the script `fuzz` can run many more of them. The bombs are
handwritten.
"""

from __future__ import annotations

import json
import random
import struct
import tracemalloc
import zlib
from functools import partial
from pathlib import Path

import fuzz_reading
import numpy as np
import pytest
from fuzz_oracle import STRUCTURE, judge
from fuzz_reading import Case

import fuzz
import npstream
from npstream.errors import FormatError
from npstream.formats.compression import compress


@pytest.mark.parametrize("python", [False, True], ids=["compiled", "python"])
def test_mutations_of_local_datasets_have_no_findings(python):
    findings = []
    totals = fuzz.fuzz("local", 0, list(range(200)), findings.append, python)
    assert findings == []
    assert totals["mutations"] == 200
    # Most mutations have an effect, and most values can still be read.
    assert totals["read"] > totals["mutations"]
    assert totals["raised"] > totals["mutations"]
    assert 0 < totals["excused"] < totals["read"] / 10


@pytest.mark.parametrize(
    ("kind", "count"),
    [("annotated", 30), ("remote", 25), ("cache", 25), ("work", 100), ("states", 300)],
)
def test_mutations_of_other_kinds_have_no_findings(kind, count):
    findings = []
    totals = fuzz.fuzz(kind, 0, list(range(count)), findings.append)
    assert findings == []
    assert totals["mutations"] == count
    assert totals["read"]
    assert totals["raised"] or kind == "cache"  # a damaged cache need not raise


# Tests of the fuzzer itself


def sample_case():
    return Case.golden("mds_no_limit")


def findings_of(tmp_path, case, changed):
    """Return the findings for a dataset with these changed files."""
    findings = []
    for name, content in (case.files | changed).items():
        (tmp_path / name).write_bytes(content)
    opened = partial(npstream.open, tmp_path)
    fuzz_reading.read_damaged(opened, case, changed, random.Random(0), findings.append)
    return findings


def test_an_undamaged_dataset_has_no_findings(tmp_path):
    assert findings_of(tmp_path, sample_case(), {}) == []


def test_wrong_values_are_reported(tmp_path):
    case = sample_case()
    case.values = {column: values[::-1] for column, values in case.values.items()}
    case.stored = {column: values[::-1] for column, values in case.stored.items()}
    findings = findings_of(tmp_path, case, {})
    for way in ("ds[0]", "iter(ds)", "load()"):
        assert any(finding.startswith(way) for finding in findings)


def test_undocumented_exceptions_are_reported(tmp_path, monkeypatch):
    case = sample_case()
    monkeypatch.setattr(npstream.Dataset, "__getitem__", lambda ds, index: {}["x"])
    assert "KeyError" in findings_of(tmp_path, case, {})[0]


def test_a_crash_of_the_worker_is_reported(monkeypatch):
    """The second mutation crashes its process, and the third runs in a new one."""
    findings = []
    monkeypatch.setattr(fuzz, "__file__", str(Path(__file__).with_name("fuzz_crash.py")))
    totals = fuzz.fuzz("local", 0, [0, 1, 2], findings.append)
    assert totals["mutations"] == 3
    assert len(findings) == 1
    assert "exit -11" in findings[0]


def test_only_columns_with_changed_bytes_are_excused():
    case = sample_case()
    (name, *_) = [name for name in case.files if name.endswith(".mds")]
    shard, content = case.original.shards[name], case.files[name]
    for at in range(0, len(content), 7):
        new = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
        ((_, rows),) = judge(case.original, {name: new}, "auto")
        excused = {k: expected.excused for k, expected in enumerate(rows) if expected.excused}
        row, column = divmod(int(shard.owner[at]), len(shard.columns))
        in_a_value = shard.owner[at] != STRUCTURE
        assert excused == ({row: {shard.columns[column]}} if in_a_value else {})
    size_bytes = shard.sizes == 3  # swapping the two sizes of sample 3 keeps their sum
    new = np.frombuffer(content, np.uint8).copy()
    new[size_bytes] = np.roll(new[size_bytes], 4)
    ((_, rows),) = judge(case.original, {name: new.tobytes()}, "auto")
    assert [expected.excused for expected in rows if expected.excused] == [set(shard.columns)]


@pytest.mark.parametrize(
    ("name", "excusing"),  # the second is the values of `verify` that compare no hash
    [
        ("mds_h_sha1", ["auto", False]),
        ("mds_hz_sha1", [False]),
        ("csv_basic", ["auto", True, False]),
        ("jsonl_shards", ["auto", False]),
    ],
)
def test_checked_hashes_excuse_nothing(name, excusing):
    case = Case.golden(name)
    shard = next(shard for shard in case.original.shards.values() if shard.rows)
    (file, *_) = [file for file, known in case.original.shards.items() if known is shard]
    at = int(np.flatnonzero(shard.owner != STRUCTURE)[-1])
    new = shard.raw[:at] + bytes([shard.raw[at] ^ 1]) + shard.raw[at + 1 :]
    changed = {file: new}
    if file not in case.files:
        changed = {f"{file}.zstd": compress(new, "zstd")}
    for verify in ("auto", True, False):
        shards = judge(case.original, changed, verify)
        is_excused = any(expected.excused for _, rows in shards for expected in rows)
        assert is_excused == (verify in excusing)


# Bombs: small data that decode to large values


def dataset(root, columns, bodies, compression=None, claimed=None):
    """Write a dataset of one shard without npstream's writer, and open it.

    The index records `claimed` bytes for the uncompressed shard; by default the true number.
    """
    names, encodings = sorted(columns), [columns[name] for name in sorted(columns)]
    head = 4 * (len(bodies) + 2)
    ends = head + np.cumsum([0, *map(len, bodies)])
    shard = struct.pack(f"<{len(ends) + 1}I", len(bodies), *ends.tolist()) + b"".join(bodies)
    entry = {
        "column_encodings": encodings,
        "column_names": names,
        "column_sizes": [None] * len(names),
        "compression": compression,
        "format": "mds",
        "hashes": [],
        "raw_data": {"basename": "shard.00000.mds", "bytes": claimed or len(shard), "hashes": {}},
        "samples": len(bodies),
        "size_limit": None,
        "version": 2,
        "zip_data": None,
    }
    if compression:
        shard = compress(shard, compression)
        entry["zip_data"] = {"basename": "shard.00000.x", "bytes": len(shard), "hashes": {}}
    (root / ("shard.00000.x" if compression else "shard.00000.mds")).write_bytes(shard)
    (root / "index.json").write_text(json.dumps({"shards": [entry], "version": 2}))
    return npstream.open(root)


def sized(body):
    return struct.pack("<I", len(body)) + body


def assert_reads_raise(ds, peak):
    """Assert that every read raises FormatError, and allocates at most `peak` bytes."""
    (column,) = ds.columns
    reads = [lambda: ds[0], lambda: list(ds), lambda: ds[column][0]]
    reads.append(lambda: np.asarray(ds[column], object))
    if column != "image":  # a batch holds the undecoded bytes of images
        reads.append(lambda: list(ds.load()[column]))
    with pytest.raises(FormatError):
        ds[0]  # import lazily imported modules before measuring
    for read in reads:
        tracemalloc.start()
        try:
            with pytest.raises(FormatError):
                read()
            assert tracemalloc.get_traced_memory()[1] < peak
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("compression", ["zstd", "gz", "bz2", "br", "snappy"])
def test_compressed_bombs_raise(tmp_path, compression):
    """A few bytes decompress to 16 MiB of zeros, but the index records a smaller size."""
    body = sized(bytes(1 << 24))
    for claimed in (100, 1 << 16):
        assert_reads_raise(dataset(tmp_path, {"x": "bytes"}, [body], compression, claimed), 1 << 22)


@pytest.mark.parametrize("compression", ["zstd", "gz", "bz2", "br", "snappy"])
@pytest.mark.parametrize("claimed", [1 << 20, 1 << 31, (1 << 32) - 1, 1 << 39])
def test_compressed_data_that_claim_a_larger_size_raise(tmp_path, compression, claimed):
    ds = dataset(tmp_path, {"x": "bytes"}, [sized(b"abc")], compression, claimed)
    tracemalloc.start()
    try:
        with pytest.raises((FormatError, MemoryError)):
            ds[0]
        assert tracemalloc.get_traced_memory()[1] < 1 << 22
    finally:
        tracemalloc.stop()


# The head of an array: a dtype code unless the encoding has a dtype, the number of axes << 2 | the
# base-2 logarithm of the bytes of a length, and the lengths.
ONES = bytes([1] * 62)
HOSTILE_BODIES = {
    "ndarray": [
        bytes([8, 1 << 2 | 3]) + struct.pack("<Q", 2**63),
        bytes([8, 1 << 2 | 3]) + struct.pack("<Q", 2**40),
        bytes([66, 2 << 2 | 3]) + struct.pack("<2Q", 2**61, 8) + bytes(8),
        bytes([8, 2 << 2 | 2]) + struct.pack("<2I", 2**32 - 1, 2**32 - 1) + bytes(8),
        bytes([8, 63 << 2]) + bytes([255] * 63),
        bytes([8, 63 << 2]) + ONES + b"\2",
    ],
    "ndarray:float64": [bytes([1 << 2 | 3]) + struct.pack("<Q", 2**61) + bytes(8)],
    "pil": [
        struct.pack("<3I", 2**31, 2**31, 3) + b"RGB",
        struct.pack("<3I", 0, 2**31, 3) + b"RGB",
        struct.pack("<3I", 2**31, 1, 1) + b"1",
        struct.pack("<3I", 1, 1, 2**32 - 1) + b"RGB",
    ],
    "list[png]": [struct.pack("<2I", 0, 2**32 - 1), struct.pack("<3I", 0, 1, 2**32 - 1)],
    "list[pil]": [struct.pack("<2I", 0, 2**31)],
    "jpeg_array": [struct.pack("<I", 2**32 - 1), struct.pack("<2I", 1, 2**32 - 1)],
    "json": [b"[" * 1_000_000, b'{"a":' * 100_000, b"9" * 10_000, b'"' + b"\\u0000" * 9],
    "str_int": [b"9" * 1_000_000, b"1e99999", b"\xff"],
    "str_decimal": [b"1e", b"\xff", b"x" * 1_000_000],
    "str": [b"\xff", b"\xed\xa0\x80", b"\xc0\x80"],
}


@pytest.mark.parametrize(
    ("encoding", "body"),
    [(encoding, body) for encoding in HOSTILE_BODIES for body in HOSTILE_BODIES[encoding]],
)
def test_values_that_claim_to_be_large_raise(tmp_path, encoding, body):
    column = "image" if encoding == "pil" else "x"
    assert_reads_raise(dataset(tmp_path, {column: encoding}, [sized(body)]), 1 << 25)


@pytest.mark.parametrize("size", [(40_000, 40_000), (2**31 - 1, 1), (2**31 - 1, 2**31 - 1)])
def test_images_that_claim_to_be_large_raise(tmp_path, size):
    def chunk(kind, data):
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    header = chunk(b"IHDR", struct.pack(">2I5B", *size, 8, 2, 0, 0, 0))
    png = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000)))
    in_list = struct.pack("<3I", 0, 1, len(png)) + png
    assert_reads_raise(dataset(tmp_path, {"image": "png"}, [sized(png)]), 1 << 20)
    assert_reads_raise(dataset(tmp_path, {"image": "jpeg"}, [sized(png)]), 1 << 20)
    assert_reads_raise(dataset(tmp_path, {"x": "list[png]"}, [sized(in_list)]), 1 << 20)


def test_column_sizes_that_overflow_raise(tmp_path):
    """The sum of the sizes is correct modulo 2**32, but each size is larger than the file."""
    for sizes in ((2**32 - 4, 8), (2**31 + 2, 2**31 + 2), (2**32 - 1, 5)):
        body = struct.pack("<2I", *sizes) + b"abcd"
        ds = dataset(tmp_path, {"x": "bytes", "y": "bytes"}, [body])
        for read in (lambda ds=ds: ds[0], lambda ds=ds: ds.load(), lambda ds=ds: ds["y"].load()):
            with pytest.raises(FormatError, match="do not add up"):
                read()


def test_an_index_that_claims_too_many_samples_opens_but_reading_raises(tmp_path):
    """Claimed counts allocate nothing; reading compares them with the file."""
    dataset(tmp_path, {"x": "bytes"}, [sized(b"abc")])
    index = json.loads((tmp_path / "index.json").read_text())
    index["shards"][0].update(samples=2**32 - 1)
    index["shards"][0]["raw_data"]["bytes"] = 2**39
    index["shards"] *= 50
    (tmp_path / "index.json").write_text(json.dumps(index))
    tracemalloc.start()
    try:
        ds = npstream.open(tmp_path)
        assert len(ds) == 50 * (2**32 - 1)
        for read in (lambda: ds[-1], lambda: next(iter(ds)), lambda: ds[:: 2**30].load()):
            with pytest.raises(FormatError, match="the index says 549,755,813,888"):
                read()
        with pytest.raises(MemoryError, match="read a part of it"):
            ds.load()
        assert tracemalloc.get_traced_memory()[1] < 1 << 27
    finally:
        tracemalloc.stop()
    with pytest.raises(FormatError, match="the index says 549,755,813,888"):
        next(iter(ds))
