"""Validation of the heads of MDS shards."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from npstream.errors import FormatError
from npstream.formats.index import Schema
from npstream.formats.mds import ColumnLayout, SampleLayout, check_mds_head, sample_layout

VARIABLE = Schema("mds", ("a", "b", "c"), ("int32", "str", "uint8"), (4, None, 1))
FIXED = Schema("mds", ("a", "c"), ("int32", "uint8"), (4, 1))
BODIES = [b"xxxxxxxxx", b"yyyyyyyyyyyy", b"zzzzzzzzzz"]


def test_a_layout_has_the_position_of_each_column_and_the_stride():
    assert sample_layout(VARIABLE) == SampleLayout(
        {"a": ColumnLayout(0, 0, 4), "b": ColumnLayout(0, 4, None), "c": ColumnLayout(1, 4, 1)},
        nvariable=1,
        fixed_nbytes=5,
    )
    assert sample_layout(VARIABLE).stride == 0
    assert sample_layout(FIXED).stride == 5


def shard(bodies, configuration=b"{}", **changed):
    """Return a shard; an argument ``w<number>=value`` overwrites a word of its head."""
    begin = 4 * (len(bodies) + 2) + len(configuration)
    words = [len(bodies), *(begin + np.cumsum([0, *map(len, bodies)])).tolist()]
    for name, value in changed.items():
        words[int(name[1:])] = value
    head = struct.pack(f"<{len(words)}I", *words)
    return np.frombuffer(head + configuration + b"".join(bodies), np.uint8)


@pytest.mark.parametrize("configuration", [b"", b"{}", b"anything"])
def test_valid_heads_give_the_offset_of_the_first_sample(configuration):
    data = shard(BODIES, configuration)
    assert check_mds_head(VARIABLE, data, 3, 0) == 20 + len(configuration)
    data = shard([b"12345"] * 7, configuration)
    assert check_mds_head(FIXED, data, 7, 5) == 36 + len(configuration)
    for schema, stride in ((VARIABLE, 0), (FIXED, 5)):
        assert check_mds_head(schema, shard([], configuration), 0, stride) == 8 + len(configuration)


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"w0": 2}, "2 samples in the shard's head; the index says 3"),
        ({"w0": 2**32 - 1}, "4,294,967,295 samples"),
        ({"w1": 0}, "samples begin at byte 0; expected 20 to 53"),
        ({"w1": 19}, "samples begin at byte 19"),
        ({"w1": 54}, "samples begin at byte 54"),
        ({"w1": 2**31}, "samples begin at byte 2147483648"),
        ({"w4": 52}, "samples end at byte 52 of 53"),
        ({"w4": 54}, "samples end at byte 54 of 53"),
        ({"w2": 22}, "sample 0 begins at byte 22, ends at 22"),
        ({"w2": 0}, "sample 0 begins at byte 22, ends at 0"),
        ({"w2": 2**32 - 1}, "sample 1 begins at byte 4294967295, ends at 43"),
        ({"w3": 31}, "sample 1 begins at byte 31, ends at 31"),
        ({"w2": 43, "w3": 53}, "sample 2 begins at byte 53, ends at 53"),
    ],
)
def test_damaged_heads_raise(changed, match):
    with pytest.raises(FormatError, match=match):
        check_mds_head(VARIABLE, shard(BODIES, **changed), 3, 0)


def test_a_shard_of_a_wrong_length_raises():
    data = shard(BODIES).tobytes()
    for length in range(len(data)):
        with pytest.raises(FormatError):
            check_mds_head(VARIABLE, np.frombuffer(data[:length], np.uint8), 3, 0)
    with pytest.raises(FormatError, match="samples end at byte 53 of 54"):
        check_mds_head(VARIABLE, np.frombuffer(data + b"x", np.uint8), 3, 0)


@pytest.mark.parametrize(
    ("bodies", "changed"),
    [
        ([b"12345"] * 3, {"w1": 23}),
        ([b"12345"] * 3, {"w1": 20}),
        ([b"12345", b"1234", b"12345"], {}),
        ([b"123456"] * 3, {}),
    ],
)
def test_samples_of_fixed_size_must_fill_the_file(bodies, changed):
    with pytest.raises(
        FormatError, match=r"3 samples of 5 bytes from byte \d+ on would end at byte \d+ of"
    ):
        check_mds_head(FIXED, shard(bodies, **changed), 3, 5)


def test_offsets_of_samples_of_fixed_size_are_not_read():
    data = shard([b"12345"] * 3, w2=2**32 - 1, w3=0)
    assert check_mds_head(FIXED, data, 3, 5) == 22


@pytest.mark.parametrize(
    "configuration",
    [
        b'{"column_names": ["a", "b", "d"]}',
        b'{"column_names": ["a", "c", "b"]}',
        b'{"column_names": null}',
        b'{"column_encodings": ["uint32", "str", "uint8"]}',
        b'{"column_names": ["a", "b", "c"], "column_encodings": []}',
    ],
)
def test_a_configuration_with_other_columns_raises(configuration):
    with pytest.raises(FormatError, match=r"its own 'column_\w+' are .*; the index says \["):
        check_mds_head(VARIABLE, shard(BODIES, configuration), 3, 0)


def test_bytes_between_configuration_and_first_sample_raise():
    """The first sample is zeros, so that a wrong offset could go unnoticed."""
    data = shard([bytes(13), b"yyyyyyyyyyyy"])
    assert check_mds_head(VARIABLE, data, 2, 0) == 18
    data = shard([bytes(13), b"yyyyyyyyyyyy"], w1=22)
    with pytest.raises(FormatError, match="other bytes follow its configuration"):
        check_mds_head(VARIABLE, data, 2, 0)


@pytest.mark.parametrize(
    "configuration",
    [
        b'{"column_names": ["a", "b", "c"], "column_encodings": ["int32", "str", "uint8"], "x": 1}',
        b'{"columns": 1, "column_sizes": 3}',
        b"[" * 5000,
        b"[] []",
        b"12 x",
        b" {} \n",
        b'{"column_names": ["d"]' + b"\xff",
        b'{"column_names": ["d"]}' + b" " * (1 << 20),  # too large to be compared
    ],
)
def test_other_content_of_a_configuration_is_ignored(configuration):
    assert check_mds_head(VARIABLE, shard(BODIES, configuration), 3, 0) == 20 + len(configuration)
