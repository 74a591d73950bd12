"""File hashes equal those of Streaming."""

from __future__ import annotations

import pytest
from golden_data import blob, units

from npstream.formats.hashes import HASHES, digest, fastest, hasher


@pytest.mark.parametrize("case", units()["hash"], ids=lambda case: f"{len(blob(case['data']))}B")
def test_digests_equal_those_of_streaming(case):
    data = blob(case["data"])
    assert sorted(case["digests"]) == sorted(HASHES)
    for name, expected in case["digests"].items():
        assert digest(name, data) == digest(name, memoryview(data)) == expected


@pytest.mark.parametrize("name", HASHES)
def test_incremental_hash_equals_the_hash_of_the_whole(name):
    pieces = hasher(name)
    for piece in (b"one, ", b"", memoryview(b"two")):
        pieces.update(piece)
    assert pieces.hexdigest() == digest(name, b"one, two")


@pytest.mark.parametrize("name", ["crc32", "SHA1", "shake_128", ""])
def test_unknown_hash_raises_with_a_list_of_known_ones(name):
    with pytest.raises(ValueError, match=f"unknown hash '{name}'.*blake2b.*xxh64"):
        digest(name, b"")


def test_fastest_returns_the_fastest_known_hash():
    assert fastest(HASHES) == "xxh3_64"
    assert fastest(["sha3_512", "sha1", "crc32"]) == "sha1"
    assert fastest(iter(["crc32"])) is None
    assert fastest([]) is None
