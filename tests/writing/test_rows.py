"""Compiled encoders return the same bytes as the general encoder, or None."""

from __future__ import annotations

import datetime
import decimal
import tempfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import npstream
from npstream.formats.encodings.encodings import column_type
from npstream.writing.rows import compile_encoder
from npstream.writing.shard import MdsFormat, ShardOptions

NUMBERS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
FLOATS = ["float16", "float32", "float64"]
COLUMNS = [
    *("int", "bool", "str", "bytes", "json", "str_int", "str_float", "str_decimal", "pkl"),
    *("datetime64[us]", "complex64", "bfloat16"),
    *("ndarray", "ndarray:uint16", "ndarray:float32:2", "ndarray:int64:2,1", "ndarray:bool:2"),
    *(NUMBERS + FLOATS),
]

scalars = st.one_of(
    st.booleans(),
    st.integers(-(2**65), 2**65),
    st.integers(-3, 300),
    st.floats(),
    st.floats(width=16),
    st.text(max_size=3),
    st.text(st.characters(), max_size=2),
    st.binary(max_size=9),
    st.none(),
    st.just(datetime.datetime(2020, 1, 1, 5)),
    st.just(decimal.Decimal("1.50")),
    st.just([1, {"a": 2}]),
    *(npst.from_dtype(np.dtype(name)) for name in [*NUMBERS, *FLOATS, "bool", "complex64"]),
)
arrays = npst.arrays(
    st.sampled_from([np.dtype(d) for d in ("u2", ">u2", "f4", "i8", "?", "M8[s]", "c8")]),
    st.sampled_from([(), (2,), (2, 1), (0,), (300,), (2, 0), (70000,)]),
    elements=st.nothing(),
    fill=st.just(0),
)
views = arrays.map(lambda a: a.T if a.ndim > 1 else a[::-1] if a.ndim else a)
values = st.one_of(scalars, arrays, views)


def layout_of(columns, inferred):
    encodings = {name: column_type(encoding) for name, encoding in columns.items()}
    return MdsFormat(encodings, ShardOptions(), inferred=inferred)


def general_bytes(layout, sample):
    """Return the bytes of the general encoder, or None if it raises."""
    try:
        return layout.encode(sample, 0)
    except Exception:
        return None


@given(
    st.lists(st.tuples(st.sampled_from(COLUMNS), values, values), min_size=1, max_size=4),
    st.booleans(),
    st.booleans(),
)
def test_a_compiled_encoder_gives_the_same_bytes_or_none(columns, inferred, has_extra_key):
    layout = layout_of({str(k): name for k, (name, *_) in enumerate(columns)}, inferred)
    samples = [{str(k): row[number] for k, row in enumerate(columns)} for number in (1, 2)]
    if has_extra_key:
        samples[1]["more"] = 1
    encode = compile_encoder(layout, samples[0], only_columns=inferred)
    for sample in samples:
        row = encode(sample)
        assert row is None or row == general_bytes(layout, sample)
        if inferred and "more" in sample:
            assert row is None


ENCODABLE = [
    ("int", 5),
    ("int", np.int16(-5)),
    ("bool", True),
    ("uint8", 255),
    ("int32", np.int32(-1)),
    ("float64", 0.5),
    ("float32", 0.1),
    ("float32", np.float32(0.1)),
    ("str", "é"),
    ("bytes", b"\xff"),
    ("json", {"a": [1]}),
    ("ndarray:uint16", np.arange(3, dtype=np.uint16)),
    ("ndarray:uint16:3", np.arange(6, dtype=np.uint16)[::2]),
    ("jpeg", b"a file"),
]


@pytest.mark.parametrize(("encoding", "value"), ENCODABLE)
def test_common_values_are_encoded(encoding, value):
    layout = layout_of({"x": encoding, "y": "str", "z": "int"}, inferred=False)
    sample = {"x": value, "y": "text", "z": 1}
    row = compile_encoder(layout, sample, only_columns=False)(sample)
    assert row is not None
    assert row == layout.encode(sample, 0)


def test_a_signaling_nan_keeps_its_bits():
    bits = np.uint32(0x7F800001)
    value = bits.view(np.float32)
    layout = layout_of({"x": "float32"}, inferred=False)
    encode = compile_encoder(layout, {"x": value}, only_columns=False)
    assert encode({"x": value}) == bits.tobytes()


def test_names_of_columns_are_not_code():
    name = '"]; raise SystemExit  #'
    layout = layout_of({name: "int"}, inferred=False)
    encode = compile_encoder(layout, {name: 1}, only_columns=False)
    assert encode({name: 7}) == (7).to_bytes(8, "little")


def test_an_array_that_changes_later_does_not_change_what_was_written(tmp_path):
    row = np.zeros(4, np.uint16)
    with npstream.Writer(tmp_path) as writer:
        for number in range(100):
            row[:] = number
            writer.write({"x": row})
    assert [row.tolist() for row in npstream.open(tmp_path)["x"]] == [[k] * 4 for k in range(100)]


# Encoders are compiled after 16 samples.
@pytest.mark.parametrize("bad", [1, 15, 16, 17, 40, 129])
@pytest.mark.parametrize("value", [None, 2**40, 1.5, "x"])
def test_the_write_whose_sample_is_bad_raises(bad, value, tmp_path):
    """A bad sample raises before and after encoders are compiled, and does not change the data."""
    with npstream.Writer(tmp_path, {"x": "int32", "y": "str"}) as writer:
        for number in range(200):
            if number == bad:
                with pytest.raises((TypeError, ValueError), match=f"sample {bad}: column 'x'"):
                    writer.write({"x": value, "y": "bad"})
            writer.write({"x": number, "y": str(number)})
    ds = npstream.open(tmp_path)
    assert ds["x"].load().tolist() == list(range(200))
    assert list(ds["y"]) == [str(number) for number in range(200)]


def test_keys_without_a_column_are_refused_at_any_sample(tmp_path):
    with npstream.Writer(tmp_path) as writer:
        for number in range(40):
            writer.write({"x": number})
        with pytest.raises(ValueError, match="sample 40 has 'y', which the first sample lacks"):
            writer.write({"x": 1, "y": 2})
        with pytest.raises(npstream.errors.ColumnError, match="sample 40: no column 'x'"):
            writer.write({"y": 2})
    assert len(npstream.open(tmp_path)) == 40


@given(st.lists(st.sampled_from([1, np.int32(2), np.float64(3.0), True]), max_size=300))
def test_types_may_change_at_any_sample(numbers):
    with tempfile.TemporaryDirectory() as folder:
        columns = {"x": "int64"}
        npstream.write(f"{folder}/out", ({"x": x} for x in numbers), columns=columns)
        if numbers:
            assert npstream.open(f"{folder}/out")["x"].load().tolist() == [int(x) for x in numbers]
