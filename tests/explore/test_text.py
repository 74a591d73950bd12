"""The methods of `Column.str` and `Column.isin` test the text and bytes of stored values."""

from __future__ import annotations

import numpy as np
import pytest

import npstream
from npstream.explore.text import stored_texts, text_bytes

TEXTS = ["", "a", "ab", "b", "é", "aé", "😀 ab", "ab" * 100]


def write_texts(kind, tmp_path):
    """Write a dataset with the texts in a format; return their column."""
    if kind == "jsonl":
        npstream.write(tmp_path / "a", {"t": TEXTS}, format="jsonl")
        return npstream.open(tmp_path / "a")["t"]
    npstream.write(tmp_path / "a", {"x": np.arange(len(TEXTS)), "t": TEXTS})
    return npstream.open(tmp_path / "a")["t"]


@pytest.mark.parametrize("kind", ["mds", "jsonl"])
def test_methods_return_the_values_of_those_of_str(kind, tmp_path):
    column = write_texts(kind, tmp_path)
    for pattern in ("", "a", "é", "😀 a", "b" * 300, "ab" * 99):
        assert column.str.contains(pattern).tolist() == [pattern in t for t in TEXTS]
        assert column.str.startswith(pattern).tolist() == [t.startswith(pattern) for t in TEXTS]
        assert column.str.endswith(pattern).tolist() == [t.endswith(pattern) for t in TEXTS]
    assert column.str.startswith(("é", "😀")).tolist() == [t[:1] in ("é", "😀") for t in TEXTS]
    assert column.str.endswith(()).tolist() == [False] * len(TEXTS)
    assert column.str.len().tolist() == list(map(len, TEXTS))
    assert column.isin(["ab", "é", 3, b"a", "é"]).tolist() == [t in ("ab", "é") for t in TEXTS]
    assert not column.isin([]).any()


def test_columns_of_bytes_take_bytes(tmp_path):
    values = [b"\xff\x00", b"", b"\xff"]
    npstream.write(tmp_path / "a", {"b": values})
    column = npstream.open(tmp_path / "a")["b"]
    assert column.str.contains(b"\x00").tolist() == [True, False, False]
    assert column.str.len().tolist() == [2, 0, 1]
    assert column.isin([b"", "\xff"]).tolist() == [False, True, False]
    with pytest.raises(TypeError, match=r"column 'b' holds bytes, .* is 'x' .str."):
        column.str.contains("x")
    with pytest.raises(TypeError, match="pass bytes"):
        column.str.contains((b"x", b"y"))


def test_views_keep_their_shape_and_order(tmp_path):
    column = write_texts("mds", tmp_path)
    rows = np.array([[6, 0, 1], [1, 7, 2]])
    matches = npstream.open(tmp_path / "a")[rows]["t"].str.contains("ab")
    assert matches.tolist() == [["ab" in TEXTS[k] for k in row] for row in rows]
    assert column[:0].str.len().shape == (0,)


def test_names_of_sources_are_tested(tmp_path):
    write_texts("mds", tmp_path)
    ds = npstream.open(tmp_path / "a")
    mixture = npstream.mix({"web": ds, "code": ds[:2]}, columns=["t", "source"])
    assert mixture["source"].str.startswith("we").sum() == len(TEXTS)
    assert mixture["t"].str.contains("ab").sum() == sum("ab" in t for t in TEXTS + TEXTS[:2])


def test_renamed_and_concatenated_columns_are_tested(tmp_path):
    write_texts("mds", tmp_path)
    ds = npstream.open(tmp_path / "a")
    expected = ["ab" in text for text in TEXTS]
    assert ds.rename({"t": "u"})["u"].str.contains("ab").tolist() == expected
    both = npstream.concat([ds, ds[::-1]])
    assert both["t"].str.contains("ab").tolist() == expected + expected[::-1]


def test_surrogates_occur_in_no_value(tmp_path):
    assert not write_texts("mds", tmp_path).str.contains("\udc80").any()


def test_only_columns_of_text_have_str(tmp_path):
    write_texts("mds", tmp_path)
    column = npstream.open(tmp_path / "a")["x"]
    assert not hasattr(column, "str")
    with pytest.raises(AttributeError, match="column 'x' holds int64 values"):
        _ = column.str


def test_arguments_are_encoded():
    assert text_bytes("é", "str", "t") == "é".encode()
    assert stored_texts(["a", b"b", 3], "bytes") == [b"b"]
