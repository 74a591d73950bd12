"""JSON lines as datasets: types, nested values, compression and errors."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import re

import numpy as np
import pytest

import npstream
from npstream.conversion import jsonl
from npstream.errors import FormatError

pytest.importorskip("pyarrow")

FLAT = [{"id": n, "text": f"t\n{n}é", "score": n / 4, "flag": n % 2 == 0} for n in range(500)]
NESTED = [{"id": n, "meta": {f"k{n % 3}": [n, None]}, "tags": [1] * (n % 3)} for n in range(500)]


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def convert(tmp_path):
    """Return a function that converts text, and returns the dataset."""

    def run(text, name="a.jsonl", **options):
        (tmp_path / name).write_bytes(text.encode() if isinstance(text, str) else text)
        npstream.convert(tmp_path / name, tmp_path / "out", **options)
        return npstream.open(tmp_path / "out")

    return run


@pytest.mark.parametrize("block", [300, 1 << 22])
@pytest.mark.parametrize("rows", [FLAT, NESTED], ids=["flat", "nested"])
def test_values_are_kept(convert, monkeypatch, rows, block):
    monkeypatch.setattr(jsonl, "JSON_BLOCK", block)
    ds = convert(lines(rows))
    assert len(ds) == len(rows)
    assert [dict(sample) for sample in ds] == rows


def test_columns_are_inferred_from_the_first_rows(tmp_path, convert):
    ds = convert(
        lines([{"a": 1, "b": 1, "c": [1]}, {"a": 2.5, "b": None, "c": [2]}]), fill={"b": 0}
    )
    assert ds[1] == {"a": 2.5, "b": 0, "c": [2]}
    plan = npstream.convert(tmp_path / "a.jsonl", "x", dry_run=True)
    assert (plan.columns, plan.samples) == ({"a": "float64", "b": "int64", "c": "json"}, 2)


def test_encodings_of_the_user_decide_the_types(convert):
    text = lines([{"a": 1, "t": [1, 2], "m": 1}, {"a": 2, "t": [3], "m": "x"}])
    ds = convert(text, columns={"a": "uint8", "t": "ndarray:uint16", "m": "json"})
    assert ds.dtypes["a"] == np.uint8
    assert ds[0]["t"].tolist() == [1, 2]
    assert [ds[0]["m"], ds[1]["m"]] == [1, "x"]


@pytest.mark.parametrize("extension", ["gz", "bz2", "xz", "zst"])
def test_compressed_files_are_read_and_truncated_ones_raise(convert, tmp_path, extension):
    zstd = pytest.importorskip("backports.zstd")
    compress = {
        "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd.compress,
    }[extension]  # fmt: skip
    body = compress(lines(FLAT).encode())
    assert len(convert(body, f"a.jsonl.{extension}")) == 500
    (tmp_path / f"b.jsonl.{extension}").write_bytes(body[:-8])
    with pytest.raises(FormatError, match=rf"b\.jsonl\.{extension}: cannot be decompressed"):
        npstream.convert(tmp_path / f"b.jsonl.{extension}", tmp_path / "out2")
    assert not (tmp_path / "out2").exists()


@pytest.mark.parametrize(
    ("later", "words"),
    [('{"a": 1, "b": 5}', r"line 301: column 'b': 5 is an integer.*'str'.*columns="),
     ('{"a": 1.5, "b": "x"}', r"line 301: column 'a': 1\.5 is a number"),
     ('{"a": true, "b": "x"}', r"line 301: column 'a': True is true or false"),
     ('{"a": 1, "b": "x", "c": 1}', r"line 301 has the key 'c', which the first rows lack"),
     ('{"a": 1, "b": }', r"line 301 is not JSON"), ("[1]", r"line 301 is a list and not an object"),
     ('{"a": 9223372036854775808, "b": "x"}', r"column 'a'.*int"),
     ('{"a": 1}', r"sample 300:? .*'b'")],
)  # fmt: skip
@pytest.mark.parametrize("nested", [False, True])
def test_a_later_line_that_does_not_fit_raises(convert, monkeypatch, later, words, nested):
    monkeypatch.setattr(jsonl, "JSON_BLOCK", 400)
    first = {"a": 1, "b": "x", **({"m": {}} if nested else {})}
    if nested:
        later = later.replace('{"a"', '{"m": {}, "a"')
    with pytest.raises((ValueError, TypeError, KeyError)) as caught:
        convert(lines([first] * 300) + later + "\n" + lines([first] * 10))
    assert re.search(words, str(caught.value))
    assert any("a.jsonl" in each for each in [str(caught.value), *vars(caught.value)["__notes__"]])


def test_other_keys_are_left_out_if_columns_are_named(convert, monkeypatch):
    monkeypatch.setattr(jsonl, "JSON_BLOCK", 50)
    ds = convert(lines([{"a": 1}] * 20 + [{"a": 2, "c": 3}]), columns=["a"])
    assert ds["a"].load().tolist() == [1] * 20 + [2]


def test_numbers_that_pyarrow_cannot_parse_are_read_by_python(convert, monkeypatch):
    monkeypatch.setattr(jsonl, "JSON_BLOCK", 50)
    values = convert(lines([{"a": 1.5}] * 9) + '{"a": NaN}\n{"a": 3}\n')["a"].load()
    assert values[-1] == 3
    assert np.isnan(values[-2])


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "no samples, so the columns are unknown"), ('{"a": null}\n', "'a' has only null"),
     ('{"a": 1}\n{"a": "x"}\n', "column 'a' has an integer and text: keep both with columns="),
     ('[{"a": 1}]', "line 1 is a list and not an object; the file is one JSON list"),
     (b'{"a": "\xff"}\n', r"line 1 is not JSON")],
)  # fmt: skip
def test_files_whose_columns_cannot_be_inferred_raise(convert, text, words):
    with pytest.raises((ValueError, TypeError), match=words):
        convert(text)


def test_blank_lines_and_a_byte_order_mark_are_left_out(convert):
    ds = convert(b'\xef\xbb\xbf{"a": 1}\r\n\r\n  \n{"a": 2}')
    assert ds["a"].load().tolist() == [1, 2]


def test_files_of_pandas_and_datasets_are_read(tmp_path):
    pd = pytest.importorskip("pandas")
    datasets = pytest.importorskip("datasets")
    frame = pd.DataFrame({"a": [1, 2], "s": ["x", "é"]})
    frame.to_json(tmp_path / "1.jsonl", orient="records", lines=True)
    datasets.Dataset.from_dict({"a": [3], "s": ["y"]}).to_json(str(tmp_path / "2.jsonl"))
    npstream.convert(tmp_path, tmp_path / "out")
    assert list(npstream.open(tmp_path / "out")["s"]) == ["x", "é", "y"]


def test_an_integer_that_a_float_would_round_raises(convert, monkeypatch):
    monkeypatch.setattr(jsonl, "JSON_BLOCK", 50)
    rows = [{"a": 0.5}] * 9
    with pytest.raises(
        ValueError, match=r"a\.jsonl: line 10: column 'a': .* round 9007199254740993"
    ):
        convert(lines([*rows, {"a": 2**53 + 1}]))
    values = convert(lines([*rows, {"a": 2**60}, {"a": 1e17}]))["a"].load()
    assert values[9:].tolist() == [2.0**60, 1e17]


@pytest.mark.parametrize(
    ("encoding", "value"), [("uint64", 2**64 - 1), ("str_int", 10**40), ("str_int", -(2**63) - 1)]
)
def test_integers_that_exceed_int64_fit_the_encodings_that_hold_them(
    convert, monkeypatch, encoding, value
):
    monkeypatch.setattr(jsonl, "JSON_BLOCK", 64)
    rows = [{"x": n % 7} for n in range(50)] + [{"x": value}]
    ds = convert(lines(rows), columns={"x": encoding})
    assert [int(x) for x in ds["x"]] == [row["x"] for row in rows]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("\ud83d", r"line 300: column 'x': '\\ud83d' is not of the type string: .*surrogates"),
        (2**63, r"line 300: column 'x': 9223372036854775808 is not of the type int64"),
    ],
)
def test_a_value_that_arrow_cannot_hold_raises_with_its_line(convert, value, words):
    good = "a" if isinstance(value, str) else 1
    rows = [{"x": good}] * 299 + [{"x": value}] + [{"x": good}] * 100
    with pytest.raises(ValueError, match=words):
        convert(lines(rows))


@pytest.mark.parametrize("where", [None, "id != 3", lambda sample: sample["id"] != 3])
@pytest.mark.parametrize("rows", [FLAT, NESTED], ids=["flat", "nested"])
def test_a_null_names_its_line(tmp_path, monkeypatch, rows, where):
    monkeypatch.setattr(jsonl, "JSON_BLOCK", 400)
    written = [dict(row) for row in rows[:60]]
    written[40]["id"] = None
    (tmp_path / "a.jsonl").write_text(lines(written[:30]) + "\n \n" + lines(written[30:]))
    with pytest.raises((TypeError, ValueError), match=r"sample (39|40): column 'id'") as caught:
        npstream.convert(tmp_path / "a.jsonl", tmp_path / "out", where=where)
    # Line 1 has the number 0, and two lines are blank.
    assert "in part 'a.jsonl' of the source, line 43" in caught.value.__notes__
