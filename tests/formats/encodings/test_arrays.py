"""Encodings of arrays and scalars."""

from __future__ import annotations

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from encoded import DTYPES
from hypothesis import given
from hypothesis import strategies as st

from npstream.formats.encodings.encodings import (
    parse,
    parse_array_head,
    view_as,
)


@given(
    hnp.arrays(
        st.sampled_from(DTYPES).flatmap(
            lambda name: st.sampled_from([np.dtype(name), np.dtype(name).newbyteorder(">")])
        ),
        hnp.array_shapes(max_dims=4, max_side=4),
    ),
    st.booleans(),
)
def test_arrays_round_trip_in_every_encoding(array, transposed):
    array = array.T if transposed else array
    native = array.astype(array.dtype.newbyteorder("="))
    dims = ",".join(map(str, array.shape))
    for name in ("ndarray", f"ndarray:{native.dtype}", f"ndarray:{native.dtype}:{dims}"):
        encoding = parse(name)
        decoded = encoding.decode(encoding.encode(array))
        assert (decoded.dtype, decoded.shape) == (native.dtype, native.shape)
        assert decoded.tobytes() == native.tobytes()
        assert decoded.flags.writeable
        assert decoded.flags.owndata


@pytest.mark.parametrize("side", [255, 256, 65535, 65536])
def test_dimensions_in_a_head_have_the_smallest_sufficient_width(side):
    width = 1 if side < 256 else 2 if side < 65536 else 4
    body = parse("ndarray:uint8").encode(np.zeros((1, side), np.uint8))
    assert len(body) == 1 + 2 * width + side
    assert parse_array_head(body, np.dtype(np.uint8)) == (np.uint8, (1, side), 1 + 2 * width)


@given(st.sampled_from(DTYPES).flatmap(lambda name: hnp.arrays(name, ())))
def test_scalars_round_trip_bit_for_bit(array):
    scalar = array[()]
    encoding = parse(scalar.dtype.name)
    decoded = encoding.decode(encoding.encode(scalar))
    assert type(decoded) is type(scalar)
    assert decoded.tobytes() == scalar.tobytes() == encoding.encode(array)


SIGNALING_NAN = np.frombuffer(b"\1\0\x80\x7f", np.float32)[0]


def test_the_payload_of_a_nan_is_kept():
    assert parse("float32").encode(SIGNALING_NAN) == b"\1\0\x80\x7f"
    assert parse("float32").decode(b"\1\0\x80\x7f").tobytes() == b"\1\0\x80\x7f"


def test_decoded_arrays_do_not_share_memory_with_the_body():
    data = bytearray(range(8))
    for name in ("ndarray:uint8:8", "ndarray:uint16:4"):
        decoded = parse(name).decode(memoryview(data))
        assert not np.shares_memory(decoded, np.frombuffer(data, np.uint8))
    viewed = view_as(parse("bytes"), "uint8").decode(memoryview(data))
    assert not np.shares_memory(viewed, np.frombuffer(data, np.uint8))
