"""Validation and parsing of text shards."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npstream.errors import FormatError
from npstream.formats.index import Schema
from npstream.formats.text import check_text_head, guard_nbytes, parser

JSONL = Schema("json", ("a", "b", "c"), ("str", "int", "float"), newline="\n")
CSV = Schema("csv", ("a", "b", "c"), ("str", "int", "float"), newline="\n", separator=",")
XSV = Schema("xsv", ("a", "ü"), ("str", "str"), newline="\r\n", separator="||")
LINES = [b"x,1,2.5\n", b",-3,inf\n", b"\xc3\xa4,0,1e3\n"]


def meta(begin, lengths, configuration=b"{}", **changed):
    """Return a meta file; an argument ``w<number>=value`` overwrites one of its words."""
    words = [len(lengths), *(begin + np.cumsum([0, *lengths])).tolist()]
    for name, value in changed.items():
        words[int(name[1:])] = value
    return np.frombuffer(struct.pack(f"<{len(words)}I", *words) + configuration, np.uint8)


def as_bytes(text):
    return np.frombuffer(text, np.uint8)


def check_head(schema, header, lines, **changed):
    """Call `check_text_head` for a shard; `changed` are further arguments of `meta`."""
    data = as_bytes(header + b"".join(lines))
    return check_text_head(
        schema, data, meta(len(header), [*map(len, lines)], **changed), len(lines)
    )


def test_xsv_lines_have_the_newline_before_them_as_guard_bytes():
    assert [guard_nbytes(schema) for schema in (JSONL, CSV, XSV)] == [0, 1, 2]


def test_valid_files_give_the_offset_of_the_first_line():
    assert check_head(CSV, b"a,b,c\n", LINES) == 6
    assert check_head(XSV, "a||ü\r\n".encode(), [b"1||2\r\n"]) == 7
    assert check_head(JSONL, b"", [b"{}\n", b"{}\n"]) == 0
    assert check_head(CSV, b"a,b,c\n", []) == 6
    assert check_head(JSONL, b"", []) == 0


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"w0": 4}, "4 samples in the meta file; the index says 3"),
        ({"w1": 0}, "0 bytes before the first line; expected b'a,b,c"),
        ({"w1": 7}, "7 bytes before the first line"),
        ({"w1": 2**32 - 1}, "4,294,967,295 bytes before"),
        ({"w4": 30}, "lines end at byte 30 of 31"),
        ({"w2": 6}, "sample 0 begins at byte 6, ends at 6"),
        ({"w2": 2**31}, "sample 1 begins at byte 2147483648, ends at 22"),
        ({"w3": 3}, "sample 1 begins at byte 14, ends at 3"),
        ({"configuration": b'{"column_names": ["a", "b", "d"]}'}, "its own 'column_names' are"),
        ({"configuration": b'{"column_encodings": ["str", "str", "str"]}'}, "'column_encodings'"),
    ],
)
def test_damaged_meta_files_raise(changed, match):
    with pytest.raises(FormatError, match=match):
        check_head(CSV, b"a,b,c\n", LINES, **changed)


def test_a_truncated_meta_file_raises():
    data = as_bytes(b"a,b,c\n" + b"".join(LINES))
    meta_bytes = meta(6, [*map(len, LINES)], b"").tobytes()
    for length in range(len(meta_bytes)):
        with pytest.raises(FormatError, match=r"bytes? of meta; 3 samples need 20"):
            check_text_head(CSV, data, as_bytes(meta_bytes[:length]), 3)
    assert check_text_head(CSV, data, as_bytes(meta_bytes), 3) == 6


@pytest.mark.parametrize("header", [b"a,b,d\n", b"a;b;c\n", b"a,b,c ", b"b,a,c\n", b""])
def test_a_wrong_header_line_raises(header):
    with pytest.raises(FormatError, match=r"bytes before the first line; expected b'a,b,c\\n'"):
        check_head(CSV, header, LINES)


def test_a_json_configuration_may_list_columns_in_any_order():
    columns = {"c": "float", "a": "str", "b": "int"}
    assert (
        check_head(JSONL, b"", [b"{}\n"], configuration=json.dumps({"columns": columns}).encode())
        == 0
    )
    columns["b"] = "float"
    with pytest.raises(FormatError, match="its own 'columns' are"):
        check_head(JSONL, b"", [b"{}\n"], configuration=json.dumps({"columns": columns}).encode())


# Lines


def test_a_parser_returns_only_the_requested_columns():
    line = b'{"a": "x", "b": 1, "c": 2.5, "more": []}\n'
    assert parser(JSONL, ["c", "a"])(line) == {"c": 2.5, "a": "x"}
    assert parser(CSV, ["b"])(b"x,1,2.5\n") == {"b": 1}
    assert parser(XSV, ["ü", "a"])("ö||\r\n".encode()) == {"ü": "", "a": "ö"}


@pytest.mark.parametrize(
    ("line", "match"),
    [
        (b"", "Expecting value"),
        (b"\n", "Expecting value"),
        (b"null\n", "the line holds NoneType; expected an object"),
        (b"[1]\n", "the line holds list"),
        (b"5\n", "the line holds int"),
        (b'{"a": "x", "b": 1}\n', "the line has no 'c'"),
        (b'{"a": 1, "b": 1, "c": 1.5}\n', "column 'a': 1 is not of type str"),
        (b'{"a": null, "b": 1, "c": 1.5}\n', "column 'a': None is not of type str"),
        (b'{"a": "x", "b": 1.0, "c": 1.5}\n', "column 'b': 1.0 is not of type int"),
        (b'{"a": "x", "b": "1", "c": 1.5}\n', "column 'b': '1' is not of type int"),
        (b'{"a": "x", "b": 1, "c": "1"}\n', "column 'c': '1' is not of type float"),
        (b'{"a": "x", "b": 1, "c": [1]}\n', "column 'c'"),
        (b'{"a": "x", "b": 1, "c": 1' + b"0" * 400 + b"}\n", "column 'c': int too large"),
        (b'{"a": "x", "b": 1' + b"0" * 5000 + b', "c": 1.5}\n', "limit"),
        (b'{"a": "x", "b": 1, "c": 1.5} {}\n', "Extra data"),
        (b'{"a": "x", "b": 1, "c": 1.5}}\n', "Extra data"),
        (b'{"a": "x", "b": 1, "c": 1.5\n', "delimiter"),
        (b'{"a": "\xff", "b": 1, "c": 1.5}\n', "codec can't decode"),
        (b'{"a": "x", "b": 1, "c": ' + b"[" * 100_000 + b"\n", "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
    ],
)
def test_invalid_json_lines_raise(line, match):
    with pytest.raises(ValueError, match=match):
        parser(JSONL, JSONL.names)(line)


def test_json_bools_are_ints_and_json_ints_are_floats():
    """Streaming's writer checks types with isinstance, so it stores bools in int columns."""
    parsed = parser(JSONL, JSONL.names)(b'{"a": "", "b": true, "c": 3}\n')
    assert [(type(v), v) for v in parsed.values()] == [(str, ""), (int, 1), (float, 3.0)]


@pytest.mark.parametrize(
    ("line", "match"),
    [
        (b"", r"does not end in the newline '\\n'"),
        (b"x,1,2.5", r"does not end in the newline"),
        (b"x,1,2.5\r", r"does not end in the newline"),
        (b"\n", "1 field; expected 3"),
        (b"x,1\n", "2 fields; expected 3"),
        (b"x,1,2.5,\n", "4 fields; expected 3"),
        (b"x,1,2.5\ny,2,3\n", r"the newline '\\n' within the line"),
        (b"\nx,1,2.5\n", "within the line"),
        (b"x,one,2.5\n", "invalid literal for int"),
        (b"x,1.0,2.5\n", "invalid literal for int"),
        (b"x,,2.5\n", "invalid literal for int"),
        (b"x,1" + b"0" * 5000 + b",2.5\n", "limit"),
        (b"x,1,\n", "could not convert string to float"),
        (b"\xff,1,2.5\n", "codec can't decode"),
    ],
)
def test_invalid_xsv_lines_raise(line, match):
    with pytest.raises(ValueError, match=match):
        parser(CSV, CSV.names)(line)


@given(
    st.lists(
        st.text(st.characters(exclude_characters="|\r\n", codec="utf-8")), min_size=2, max_size=2
    )
)
def test_a_line_splits_into_the_joined_values(values):
    line = "||".join(values) + "\r\n"
    assert parser(XSV, XSV.names)(line.encode()) == dict(zip(XSV.names, values, strict=True))


@given(st.binary(max_size=30))
def test_any_bytes_parse_or_raise_value_error(line):
    for schema in (JSONL, CSV, XSV):
        try:
            values = parser(schema, schema.names)(line)
        except ValueError:
            continue
        assert list(values) == list(schema.names)
