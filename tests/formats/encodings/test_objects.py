"""Encodings of Python objects."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npstream.formats.encodings.encodings import (
    parse,
)


@pytest.mark.parametrize("number", [300, np.int64(300), np.array(300), -1, np.int8(-1)])
def test_integers_out_of_bounds_raise(number):
    with pytest.raises(OverflowError, match="out of bounds for uint8"):
        parse("uint8").encode(number)


@given(st.integers())
def test_integers_round_trip(number):
    text = parse("str_int")
    assert text.decode(text.encode(number)) == number
    if -(2**63) <= number < 2**63:
        assert parse("int").decode(parse("int").encode(number)) == number
    else:
        with pytest.raises(OverflowError, match="'str_int' holds any"):
            parse("int").encode(number)


@given(st.floats())
def test_floats_as_text_round_trip(number):
    encoding = parse("str_float")
    decoded = encoding.decode(encoding.encode(number))
    assert np.float64(decoded).tobytes() == np.float64(number).tobytes() or number != number


@given(st.decimals())
def test_decimals_keep_their_scale(number):
    encoding = parse("str_decimal")
    assert str(encoding.decode(encoding.encode(number))) == str(number)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(JSON)
@settings(max_examples=50)
def test_json_round_trips(obj):
    assert parse("json").decode(parse("json").encode(obj)) == obj


@given(st.text())
def test_text_round_trips(text):
    assert parse("str").decode(parse("str").encode(text)) == text
