"""Codecs round-trip, read Streaming's data, and reject damaged data in bounded memory."""

from __future__ import annotations

import base64
import sys
import tracemalloc
from contextlib import suppress

import pytest
from golden_data import blob, units

from npstream.errors import FormatError, MissingDependencyError
from npstream.formats.compression import Compression, compress, decompress, parse_compression

CODECS = ["br", "bz2", "gz", "snappy", "zstd"]
STREAMS = ["bz2", "gz", "zstd"]
"""Codecs whose data may consist of several concatenated streams."""

TEXT = b"".join(b"%d bottles of beer on the wall, " % i for i in range(2_000))


@pytest.mark.parametrize("case", units()["compression"], ids=lambda case: case["compression"])
def test_data_compressed_by_streaming_decompresses(case):
    spec, data = case["compression"], blob(case["data"])
    assert parse_compression(spec).extension == case["extension"]
    assert decompress(base64.b64decode(case["compressed"]), spec, len(data)) == data
    assert decompress(compress(data, spec), spec, len(data)) == data


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("data", [b"", b"a", TEXT, bytes(5 << 20)], ids=["0", "1", "text", "zeros"])
def test_compression_round_trips(codec, data):
    packed = compress(memoryview(data), codec)
    assert compress(data, codec) == packed
    assert decompress(memoryview(packed), codec, len(data)) == data


def test_gzip_header_has_no_timestamp():
    assert compress(TEXT, "gz")[4:8] == bytes(4)


@pytest.mark.parametrize(
    ("spec", "name", "level"),
    [
        *(("br", "br", 11), ("bz2", "bz2", 9), ("gz", "gz", 9), ("zstd", "zstd", 3)),
        *(("snappy", "snappy", None), ("gz:0", "gz", 0), ("zstd:22", "zstd", 22)),
    ],
)
def test_a_specification_gives_codec_and_level(spec, name, level):
    assert parse_compression(spec) == Compression(name, level)


@pytest.mark.parametrize(
    "spec",
    ["", "lz4", "ZSTD", "zstd:", "zstd:0", "zstd:23", "zstd:03", "br:12", "gz:10", "bz2:0",
     "snappy:1", "zstd:3:3", "zstd:-1", " gz", "gz\n"],
)  # fmt: skip
def test_unknown_compression_raises_with_a_list_of_known_ones(spec):
    with pytest.raises(ValueError, match=r"unknown compression .*br:0 to br:11.*snappy, zstd:1"):
        parse_compression(spec)


def test_none_is_no_compression():
    assert parse_compression(None) is None


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("size", [0, len(TEXT) - 1, len(TEXT) + 1, 1 << 40])
def test_a_wrong_size_raises(codec, size):
    with pytest.raises(FormatError, match=f"expected {size:,}"):
        decompress(compress(TEXT, codec), codec, size)


@pytest.mark.parametrize("codec", CODECS)
def test_truncated_data_raise(codec):
    packed = compress(TEXT[:200], codec)
    for end in range(len(packed)):
        with pytest.raises(FormatError, match=codec):
            decompress(packed[:end], codec, 200)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("trailing_bytes", [b"x", b"garbage " * 10_000])
def test_trailing_bytes_raise(codec, trailing_bytes):
    with pytest.raises(FormatError, match=codec):
        decompress(compress(TEXT, codec) + trailing_bytes, codec, len(TEXT))


@pytest.mark.parametrize("codec", CODECS)
def test_flipped_bits_raise_or_keep_the_size(codec):
    packed = bytearray(compress(TEXT[:500], codec))
    for i in range(8 * len(packed)):
        packed[i // 8] ^= 1 << i % 8
        with suppress(FormatError):
            assert len(decompress(bytes(packed), codec, 500)) == 500
        packed[i // 8] ^= 1 << i % 8


@pytest.mark.parametrize("codec", STREAMS)
def test_concatenated_streams_decompress(codec):
    packed = compress(TEXT, codec) + compress(b"", codec) + compress(b"more", codec)
    assert decompress(packed, codec, len(TEXT) + 4) == TEXT + b"more"


@pytest.mark.parametrize("codec", STREAMS)
def test_many_empty_streams_decompress(codec):
    assert decompress(compress(b"", codec) * 50_000, codec, 0) == b""


@pytest.mark.parametrize("codec", ["br", "bz2", "gz", "zstd"])
def test_a_bomb_allocates_little_more_than_the_expected_size(codec):
    bomb = compress(bytes(64 << 20), f"{codec}:1")
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="hold more than 1,000 bytes; expected 1,000"):
            decompress(bomb, codec, 1000)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_a_snappy_bomb_is_rejected_for_its_claimed_size():
    claims_4_gib = b"\xff\xff\xff\xff\x0f" + b"\x00a"
    with pytest.raises(FormatError, match="claim to hold 4,294,967,295 bytes; expected 1,000"):
        decompress(claims_4_gib, "snappy", 1000)


@pytest.mark.parametrize(("codec", "package"), [("br", "brotli"), ("snappy", "cramjam")])
def test_a_missing_package_raises_with_the_extra(codec, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    for use in (lambda: compress(b"", codec), lambda: decompress(b"", codec, 0)):
        with pytest.raises(MissingDependencyError, match=rf"'{package}'.*npstream\[codecs\]"):
            use()
