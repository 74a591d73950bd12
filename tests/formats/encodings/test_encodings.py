"""Encodings compared with Streaming and NumPy, and tested with hostile bytes."""

from __future__ import annotations

import collections
import datetime
import decimal
import itertools
import operator
import pickle
import struct
import tracemalloc
import zlib

import ml_dtypes
import numpy as np
import pytest
from encoded import DTYPES, image_file, numbered_params, random_image
from golden_data import (
    assert_same,
    blob,
    cases,
    expected,
    inputs,
    units,
    value,
    without_palette,
)
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from npstream.formats.encodings import encodings
from npstream.formats.encodings.encodings import (
    column_type,
    infer,
    is_unsafe,
    parse,
    register_encoding,
    view_as,
)

NAMES = [
    *("int", *DTYPES, "ndarray", "ndarray:uint16", "ndarray:float32:2,3"),
    *("bytes", "str", "str_int", "str_float", "str_decimal", "json"),
    *("pil", "jpeg", "png", "list[pil]", "list[jpeg]", "list[png]", "jpeg_array", "jpegarray"),
]


# Comparison with Streaming


ENCODED = [unit for unit in units()["encode"] if unit["encoding"]]

INVALID_INPUTS = {
    "np.int64(3)": np.int64(3),
    "1.0": 1.0,
    "'1'": "1",
    "2**63": 2**63,
    "256": 256,
    "-1": -1,
    "'x'": "x",
    "5": 5,
    "1.5": 1.5,
    "1": 1,
    "zeros((0,), uint8)": np.zeros((0,), np.uint8),
    "zeros((2,0,3), uint8)": np.zeros((2, 0, 3), np.uint8),
    "array(5) (0-d)": np.array(5),
    "bool array": np.array([True]),
    "complex64": np.ones(2, np.complex64),
    "datetime64": np.ones(2, "datetime64[s]"),
    "int8 array": np.ones(2, np.int8),
    "shape (3,)": np.ones(3, np.uint8),
    "shape (2,1)": np.ones((2, 1), np.uint8),
    "[1, 2]": [1, 2],
    "64 axes": np.ones((1,) * 64, np.uint8),
    "ndarray": np.ones((2, 2, 3), np.uint8),
    "RGBA image": random_image("RGBA"),
    "CMYK image": random_image("CMYK"),
    "tuple": (random_image(),),
    "[bytes]": [b"x"],
    "set": {1},
    "generator": (i for i in range(3)),
}
"""The inputs of the golden table ``encode_errors``, by their text in that table."""

REJECTED_ONLY_BY_NPSTREAM = {
    ("uint8", "3.9"): "Streaming truncates the fraction",
}

ACCEPTED_ONLY_BY_NPSTREAM = {
    ("int", "np.int64(3)"): "a NumPy integer is an integer",
}

DECODED_ONLY_BY_NPSTREAM = {
    ("jpeg_array", b"\0\0\0\0"): "Streaming writes an empty list but cannot read it",
    ("jpegarray", b"\0\0\0\0"): "the same under its other name",
}


@pytest.mark.parametrize("unit", numbered_params(ENCODED))
def test_bodies_equal_those_of_streaming(unit):
    encoding = parse(unit["encoding"])
    body = blob(unit["bytes"])
    assert encoding.size == unit["size"]
    if (encoding.name, unit["input"].get("repr")) in REJECTED_ONLY_BY_NPSTREAM:
        with pytest.raises(ValueError, match=r"uint8 cannot hold 3\.9"):
            encoding.encode(value(unit["input"]))
        return
    assert encoding.encode(value(unit["input"])) == body
    if "decoded" in unit:
        assert_same(encoding.decode(body), unit["decoded"])
        assert_same(encoding.decode(memoryview(body)), unit["decoded"])
    elif (encoding.name, body) in DECODED_ONLY_BY_NPSTREAM:
        assert encoding.decode(body) == []
    else:
        with pytest.raises(ValueError, match="not an image"):
            encoding.decode(body)


def test_only_units_without_an_encoding_name_are_skipped():
    skipped_units = [unit for unit in units()["encode"] if unit not in ENCODED]
    assert {unit["class"] for unit in skipped_units} == {"NDArray(dtype=None, shape=(2, 3))"}


@pytest.mark.parametrize("unit", numbered_params(units()["encode_errors"]))
def test_inputs_that_streaming_rejects_raise(unit):
    name, text = unit["encoding"], unit["input"]
    if unit["raises"] is None or (name, text) in ACCEPTED_ONLY_BY_NPSTREAM:
        return  # covered by the next test
    with pytest.raises((TypeError, ValueError, OverflowError)):
        parse(name).encode(INVALID_INPUTS[text])


def test_inputs_that_only_npstream_accepts_are_encoded():
    assert parse("int").encode(np.int64(3)) == parse("int").encode(3)
    assert parse("json").encode(b"bytes") == b"bytes"
    big = np.arange(2, dtype=">i4")  # Streaming stores this big-endian, and reads it wrongly
    assert parse("ndarray").encode(big) == parse("ndarray").encode(big.astype("<i4"))
    assert parse("ndarray:int32:2").encode(big) == b"\0\0\0\0\1\0\0\0"


@pytest.mark.parametrize(
    "unit", numbered_params(units()["column_strings"], operator.itemgetter("string"))
)
def test_names_of_encodings_are_valid_as_in_streaming(unit):
    if unit["valid"]:
        encoding = parse(unit["string"])
        assert (encoding.name, encoding.size) == (unit["string"], unit["size"])
    else:
        with pytest.raises(ValueError, match=r"encoding|shape"):
            parse(unit["string"])


@pytest.mark.parametrize("unit", numbered_params(units()["decode_errors"]))
def test_bodies_that_streaming_rejects_raise(unit):
    name, body = unit["encoding"], blob(unit["bytes"])
    if (name, body) in DECODED_ONLY_BY_NPSTREAM:
        assert parse(name).decode(body) == []
    else:
        with pytest.raises(ValueError):  # noqa: PT011 - Python's own messages among them
            parse(name).decode(body)


MDS = [case for case in cases() if case["writer"] == "MDSWriter" and case["args"]]


@pytest.mark.parametrize("case", numbered_params(MDS, operator.itemgetter("name")))
def test_values_of_golden_datasets_round_trip(case):
    columns = {name: parse(encoding) for name, encoding in case["args"]["columns"].items()}
    samples = zip(inputs(case)["samples"], expected(case), strict=True)
    for (sample, tagged), (name, encoding) in itertools.product(samples, columns.items()):
        item = without_palette(value(sample[name]), encoding.name)
        decoded = encoding.decode(encoding.encode(item))
        if case["byte_exact"] == "codec" and encoding.name == "jpeg":
            assert (decoded.mode, [*decoded.size]) == (tagged[name]["mode"], tagged[name]["size"])
        else:
            assert_same(decoded, tagged[name], name)


# Values


@pytest.mark.parametrize("name", ["uint8", "float32"])
def test_a_scalar_column_rejects_arrays(name):
    for values in ([7], [1, 2], np.ones(1)):
        with pytest.raises(TypeError):
            parse(name).encode(values)


def test_a_bytes_column_accepts_other_buffers():
    assert parse("bytes").encode(bytearray(b"ab")) == b"ab"
    assert parse("bytes").encode(memoryview(b"ab")[1:]) == b"b"


def test_bytes_are_stored_unchanged_in_every_encoding():
    for name in NAMES:
        size = parse(name).size
        body = bytes(range(size or 5))
        assert parse(name).encode(body) == body
        if size is not None:
            with pytest.raises(ValueError, match=f"which takes {size}"):
                parse(name).encode(body + b"x")


# Hostile bytes: decoding returns a value or raises ValueError, and allocates little memory


VALID = {
    "int": b"12345678",
    "ndarray": parse("ndarray").encode(np.arange(300, dtype="u2").reshape(3, 100)),
    "ndarray:uint16": parse("ndarray:uint16").encode(np.ones((2, 3), "u2")),
    "ndarray:float32:2,3": bytes(24),
    "str": "é😀 text".encode(),
    "str_int": b"-123456789012345678901234567890",
    "str_float": b"-1.5e300",
    "str_decimal": b"1.50E+7",
    "json": b'{"a": [1, 2.5, null, "\\u00e9"]}',
    "pil": parse("pil").encode(random_image()),
    "jpeg": image_file("JPEG"),
    "png": image_file("PNG"),
    "list[pil]": parse("list[pil]").encode([random_image(), random_image("1")]),
    "list[jpeg]": parse("list[jpeg]").encode([random_image(), random_image("L")]),
    "list[png]": parse("list[png]").encode([random_image(), random_image("L")]),
    "jpeg_array": parse("jpeg_array").encode([image_file("JPEG"), image_file("JPEG", seed=1)]),
}

EDITS = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=6), st.integers(0, 6)),
    max_size=3,
)


def apply_edits(body, edits):
    """Replace bytes; an edit has a relative position, the new bytes, and a number to remove."""
    for fraction, new_bytes, removed_count in edits:
        position = int(fraction * (len(body) + 1))
        body = body[:position] + new_bytes + body[position + removed_count :]
    return body


@pytest.mark.parametrize("name", VALID)
@given(edits=EDITS, cut=st.floats(0, 1) | st.just(1.0))
def test_damaged_bodies_give_a_value_or_a_value_error(name, edits, cut):
    body = apply_edits(VALID[name], edits)
    body = body[: int(cut * len(body))]
    tracemalloc.start()
    try:
        decoded = parse(name).decode(memoryview(body))
    except ValueError:
        decoded = None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
    if isinstance(decoded, np.ndarray):
        assert decoded.nbytes <= len(body)


@pytest.mark.parametrize("name", NAMES)
@given(body=st.binary(max_size=40))
def test_any_bytes_give_a_value_or_a_value_error(name, body):
    try:
        parse(name).decode(body)
    except ValueError:
        return
    assert parse(name).size in (None, len(body))


def uint32s(*numbers):
    return struct.pack(f"<{len(numbers)}I", *numbers)


def png_of(width, height):
    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


HOSTILE = [
    ("int", b"1234567"),
    ("float64", b""),
    ("ndarray:float32:2,3", bytes(23)),
    ("ndarray", b""),
    ("ndarray", b"\x08"),
    ("ndarray", b"\x07\x04\x01\x00"),  # no such dtype
    ("ndarray", b"\x08\x00\x01"),  # no axis
    ("ndarray", b"\x08\x04\x00"),  # no element
    ("ndarray", b"\x08\xfc" + bytes(63)),  # 63 axes of length 0
    ("ndarray", b"\x08\x06\xff\xff"),  # a truncated head
    ("ndarray", b"\x08\x08\x02\x02abc"),
    ("ndarray", b"\x08\x08\x02\x02abcde"),
    ("ndarray", b"\x42\x0b" + b"\xff" * 16 + b"x"),  # 2**128 elements
    ("ndarray", b"\x08\x0b" + struct.pack("<2Q", 2**32, 2**32) + b"x"),  # 2**64: 0 in 64 bits
    ("ndarray", b"\x42\x07" + struct.pack("<Q", 2**61)),  # 2**64 bytes
    ("str", b"\xff"),
    ("str_int", b"9" * 5000),  # more digits than Python's limit
    ("str_int", b""),
    ("str_int", b"1.5"),
    ("str_float", b"1,5"),
    ("str_decimal", b"one"),
    ("str_decimal", b"\xff"),
    ("json", b"[" * 100_000),
    ("json", b"\xff\xfe[\0]\0"),  # UTF-16
    ("json", b"[1] 2"),
    ("json", b"9" * 5000),
    ("pil", uint32s(1, 1)),
    ("pil", uint32s(65535, 65535, 1) + b"L"),
    (
        "pil",
        uint32s(0, 2**31 - 1, 1) + b"L",
    ),  # Pillow allocates a pointer of eight bytes for each row
    ("pil", uint32s(2**32 - 1, 0, 1) + b"L"),
    ("pil", uint32s(1, 1, 2**32 - 1) + b"L"),
    ("pil", uint32s(1, 1, 3) + b"RGB" + bytes(4)),
    ("pil", uint32s(1, 1, 2) + b"\xff\xff"),
    ("pil", uint32s(1, 1, 4) + b"nope" + bytes(4)),
    ("png", png_of(20_000, 20_000)),  # more than twice Pillow's limit
    ("png", b""),
    ("jpeg", b"\xff\xd8\xff"),
    ("jpeg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"),
    ("list[pil]", b"\0\0\0"),
    ("list[pil]", uint32s(1, 0)),
    ("list[pil]", uint32s(0, 2**32 - 1)),
    ("list[pil]", uint32s(0, 2, 2**32 - 1, 1)),
    ("list[pil]", uint32s(0, 0) + b"x"),
    ("jpeg_array", uint32s(2**32 - 1)),
    ("jpeg_array", uint32s(1, 2**32 - 1) + b"x"),
    ("jpeg_array", uint32s(2, 0, 0)),
]


@pytest.mark.parametrize("row", numbered_params(HOSTILE, operator.itemgetter(0)))
def test_hostile_bodies_raise(row):
    name, body = row
    for form in (body, memoryview(body)):
        with pytest.raises(ValueError):  # noqa: PT011 - Python's own messages among them
            parse(name).decode(form)


def test_damaged_pickles_raise_value_error():
    with pytest.raises(ValueError, match="not a pickle"):
        parse("pkl").decode(b"\x80\x04K")
    assert [name for name in [*NAMES, "pkl"] if is_unsafe(name)] == ["pkl"]


# Names


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("unit8", "did you mean 'uint8'"),
        ("text", "known are int, ndarray, bytes, str, .*, bool, .*datetime64"),
        ("ndarray:uint8:4294967296", "larger than a shard"),
        ("ndarray:float64:65536,65536", "larger than a shard"),
        ("ndarray:uint8:" + "9" * 5000, "positive numbers"),
        ("ndarray:uint8:" + "1," * 63 + "1", "1 to 63"),
    ],
)
def test_invalid_names_raise(name, match):
    with pytest.raises(ValueError, match=match):
        parse(name)


@pytest.mark.parametrize(
    ("name", "kind", "dtype", "shape"),
    [
        ("int", "fixed", "int64", ()),
        ("float16", "fixed", "float16", ()),
        ("ndarray:uint8:2,3", "fixed", "uint8", (2, 3)),
        ("ndarray:uint8", "ndarray", "uint8", None),
        ("ndarray", "ndarray", object, None),
        ("str", "str", np.dtypes.StringDType(), None),
        ("bytes", "bytes", object, None),
        ("png", "image", object, None),
        ("str_int", "int_text", "int64", None),
        ("str_float", "float_text", "float64", None),
        ("str_decimal", "object", object, None),
    ],
)
def test_encodings_have_the_expected_kind_dtype_and_shape(name, kind, dtype, shape):
    encoding = parse(name)
    assert (encoding.kind, encoding.dtype, encoding.shape) == (kind, np.dtype(dtype), shape)
    assert not encoding.headless


@pytest.mark.parametrize("name", NAMES)
def test_encodings_can_be_pickled(name):
    encoding = parse(name)
    copy = pickle.loads(pickle.dumps(encoding))
    assert copy == encoding
    assert hash(copy) == hash(encoding)
    if name in VALID and encoding.kind not in ("image", "object"):
        assert np.array_equal(copy.decode(VALID[name]), encoding.decode(VALID[name]))


INFERRED = [
    (1, "int"),
    (2.5, "float64"),
    ("a", "str"),
    (np.str_("a"), "str"),
    (b"a", "bytes"),
    ([1], "json"),
    ({"a": 1}, "json"),
    (np.float64(1), "float64"),
    (np.float16(1), "float16"),
    (np.uint64(1), "uint64"),
    (True, "bool"),
    (np.True_, "bool"),
    (1j, "complex128"),
    (np.complex64(1), "complex64"),
    (np.datetime64("2026-11-22", "D"), "datetime64[D]"),
    (np.timedelta64(25, "ms"), "timedelta64[ms]"),
    (datetime.date(2026, 11, 22), "datetime64[D]"),
    (datetime.datetime(2026, 11, 22, 1), "datetime64[us]"),
    (datetime.timedelta(1), "timedelta64[us]"),
    (ml_dtypes.bfloat16(1.5), "bfloat16"),
    (np.array(5), "int64"),
    (np.zeros((2, 3), np.complex64), "ndarray:complex64"),
    (np.zeros((2, 3), np.int16), "ndarray:int16"),
    (np.zeros((2, 3), ">i4"), "ndarray:int32"),
    (random_image(), "png"),
]


@pytest.mark.parametrize("row", numbered_params(INFERRED, operator.itemgetter(1)))
def test_encodings_are_inferred_from_the_first_value(row):
    first, name = row
    assert infer(first) == column_type(name)
    decoded = infer(first).decode(infer(first).encode(first))
    if not isinstance(first, Image.Image):
        assert np.array_equal(decoded, first)


INFERRED_FROM_OTHER_LIBRARIES = [
    ("pandas", lambda pandas: pandas.Timestamp("2026-11-22").as_unit("ns"), "datetime64[ns]"),
    ("torch", lambda torch: torch.tensor(5, dtype=torch.int16), "int16"),
    ("torch", lambda torch: torch.zeros(2, dtype=torch.bool), "ndarray:bool"),
]


@pytest.mark.parametrize(
    "row", numbered_params(INFERRED_FROM_OTHER_LIBRARIES, operator.itemgetter(2))
)
def test_encodings_are_inferred_from_values_of_other_libraries(row):
    package, make, name = row
    first = make(pytest.importorskip(package))
    assert infer(first) == column_type(name)
    decoded = infer(first).decode(infer(first).encode(first))
    assert np.array_equal(decoded, first.to_numpy() if package == "pandas" else first)


NOT_INFERRED = [(1, 2), {1}, object(), decimal.Decimal(1), datetime.time(1)]


@pytest.mark.parametrize("row", numbered_params(NOT_INFERRED, lambda row: type(row).__name__))
def test_values_without_an_inferred_encoding_raise(row):
    with pytest.raises(TypeError, match=f"from a {type(row).__name__}: name one in columns="):
        infer(row)


@pytest.mark.parametrize("row", [None, np.ma.masked])
def test_missing_values_raise(row):
    with pytest.raises(TypeError, match="fill it in with a value of your own, or leave the sample"):
        infer(row)


@pytest.mark.parametrize("name", ["NA", "NaT"])
def test_missing_values_of_pandas_raise(name):
    row = getattr(pytest.importorskip("pandas"), name)
    with pytest.raises(TypeError, match="fill it in with a value of your own, or leave the sample"):
        infer(row)


@pytest.mark.parametrize(
    ("row", "match"),
    [
        # `np.zeros` makes these values without the warning that NumPy 2.5 has for other ways.
        (np.zeros((), "M8")[()], r"datetime64: it has no unit"),
        (np.zeros((), "m8")[()], r"timedelta64: it has no unit"),
        (np.longdouble(1), "dtype float128: known are bool"),
        (np.zeros(3, "V4"), "known are bool"),
        (np.zeros(0), r"shape \(0,\)"),
        (datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC), "has a time zone"),
        (np.array([2], np.uint8).view(bool), "an array of bool holds the byte 2"),
    ],
)
def test_values_that_cannot_be_stored_raise(row, match):
    with pytest.raises(ValueError, match=match):
        infer(row)


# Custom encodings


Point = collections.namedtuple("Point", "x y")


def encode_point(point):
    return struct.pack("<2h", *point)


def decode_point(body):
    assert type(body) is bytes
    return Point(*struct.unpack("<2h", body))


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(encodings, "_ENCODINGS", dict(encodings._ENCODINGS))


@pytest.mark.usefixtures("registry")
def test_registered_encodings_encode_and_decode():
    register_encoding("point", encode_point, decode_point, size=4)
    encoding = parse("point")
    assert (encoding.kind, encoding.size, encoding.dtype) == ("object", 4, np.dtype(object))
    assert encoding.encode(Point(1, -2)) == b"\1\0\xfe\xff"
    assert encoding.decode(memoryview(b"\1\0\xfe\xff")) == Point(1, -2)
    assert pickle.loads(pickle.dumps(encoding)).decode(b"\1\0\xfe\xff") == Point(1, -2)
    with pytest.raises(ValueError, match="3 bytes for a value of point, which takes 4"):
        encoding.decode(b"\1\0\1")


@pytest.mark.usefixtures("registry")
def test_registering_a_name_again_replaces_the_encoding():
    register_encoding("point", encode_point, decode_point)
    assert parse("point").size is None
    register_encoding("point", lambda point: "text", decode_point)
    with pytest.raises(TypeError, match="'point' returned str, not bytes"):
        parse("point").encode(Point(1, 2))


@pytest.mark.parametrize("name", ["", "a:b", "int", "ndarray", "jpeg_array"])
def test_registering_a_reserved_name_raises(name):
    with pytest.raises(ValueError, match="cannot register"):
        register_encoding(name, encode_point, decode_point)


@pytest.mark.parametrize("size", [0, -1, 2**32])
def test_registering_an_invalid_size_raises(size):
    with pytest.raises(ValueError, match="must be 1 to 4294967295"):
        register_encoding("point", encode_point, decode_point, size=size)


# Views


BODY = bytes(range(24))


@pytest.mark.parametrize(
    "dtype", ["int32", "ndarray:int32", np.int64, np.dtype("f4"), ">u2", "M8[s]"]
)
@pytest.mark.parametrize("stored", ["bytes", "str", "jpeg", "json"])
def test_variable_bytes_can_be_viewed_as_arrays(stored, dtype):
    encoding = view_as(parse(stored), dtype)
    viewed = np.frombuffer(BODY, dtype.removeprefix("ndarray:") if type(dtype) is str else dtype)
    assert (encoding.kind, encoding.size, encoding.shape) == ("ndarray", None, None)
    assert encoding.headless
    assert encoding.dtype == viewed.dtype
    decoded = encoding.decode(BODY)
    assert np.array_equal(decoded, viewed)
    assert decoded.flags.writeable
    assert encoding.encode(decoded) == BODY
    assert encoding.decode(b"").shape == (0,)
    assert view_as(encoding, np.uint8).decode(BODY).tobytes() == BODY
    assert pickle.loads(pickle.dumps(encoding)) == encoding
    with pytest.raises(ValueError, match="not a multiple of the size"):
        encoding.decode(BODY[:23])
    with pytest.raises(TypeError, match="one-dimensional"):
        encoding.encode(viewed.reshape(1, -1))


@pytest.mark.parametrize("shape", [(), (6,), (2, 3), (3, 1)])
@pytest.mark.parametrize("old", ["uint16", "int32", "float64"])
@pytest.mark.parametrize("new", ["uint8", "int16", "float32", "int64", "bool", "M8[s]", "i4, i2"])
def test_fixed_values_are_viewed_like_numpy_arrays(shape, old, new):
    stored = parse(f"ndarray:{old}:{','.join(map(str, shape))}" if shape else old)
    row = np.frombuffer(bytes(i % 2 for i in range(stored.size)), old).reshape(shape)
    try:
        viewed = row.view(new)
    except ValueError:
        with pytest.raises(ValueError, match="cannot be viewed"):
            view_as(stored, np.dtype(new))
        return
    encoding = view_as(stored, np.dtype(new))
    decoded = encoding.decode(row.tobytes())
    assert (encoding.kind, encoding.size, encoding.shape) == ("fixed", stored.size, viewed.shape)
    assert (decoded.dtype, decoded.shape) == (viewed.dtype, viewed.shape)
    assert decoded.tobytes() == viewed.tobytes()


def test_columns_can_be_viewed_as_a_named_encoding():
    stored = parse("bytes")
    assert view_as(stored, "ndarray:int64:3") is parse("ndarray:int64:3")
    assert view_as(stored, "str") is parse("str")
    assert view_as(parse("pkl"), "bytes") is parse("bytes")
    assert view_as(parse("int64"), "int") is parse("int")
    assert view_as(parse("int"), "uint64") == parse("uint64")
    assert view_as(parse("ndarray:uint8:8"), "ndarray:int16") == parse("ndarray:int16:4")
    assert view_as(parse("ndarray:int32"), "float32") == parse("ndarray:float32")


@pytest.mark.usefixtures("registry")
def test_custom_values_of_fixed_size_can_be_viewed_as_arrays():
    register_encoding("point", encode_point, decode_point, size=4)
    assert view_as(parse("point"), "int16") == parse("ndarray:int16:2")
    assert view_as(parse("bytes"), "point") is parse("point")


@pytest.mark.parametrize(
    ("stored", "meaning", "match"),
    [
        ("bytes", "text", "neither a dtype nor an encoding"),
        ("bytes", "ndarray:object", "dtype out of"),
        ("bytes", "a,,", "neither a dtype"),
        ("bytes", object, "cannot be viewed as object"),
        ("bytes", "S0", "cannot be viewed"),
        ("bytes", np.dtype((np.int32, 2)), "cannot be viewed"),
        ("int32", "int", "'int32' values cannot be viewed as int: they have 4 bytes, not 8"),
        ("ndarray:uint8:6", "ndarray:uint16:2", "6 bytes, not 4"),
        ("bytes", None, "None is neither"),
        (
            "float32",
            "uint8",
            "4 bytes in elements of 4 along the last axis cannot be divided into elements of 1",
        ),
        ("ndarray", "uint8", "their heads count"),
        ("ndarray", "ndarray:uint8:2", "a head of its own"),
        ("ndarray:uint8", "ndarray", "a head of its own"),
        ("ndarray:uint16", "uint8", "their heads count"),
    ],
)
def test_incompatible_views_raise(stored, meaning, match):
    with pytest.raises(ValueError, match=match):
        view_as(parse(stored), meaning)
