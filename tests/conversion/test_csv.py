"""CSV and TSV files as datasets: types, options, compression and errors."""

from __future__ import annotations

import bz2
import gzip
import lzma

import numpy as np
import pytest

import npstream
from npstream.conversion import csv
from npstream.errors import FormatError

pytest.importorskip("pyarrow")

TEXT = 'id,name,score,day,flag\n1,Ada,0.5,2024-01-31,true\n2,"B, ""x""\ny",-1e3,2024-02-01,false\n'
COLUMNS = {
    "id": "int64", "name": "str", "score": "float64", "day": "datetime64[D]", "flag": "bool",
}  # fmt: skip


@pytest.fixture
def convert(tmp_path):
    """Return a function that converts text, and returns the dataset."""

    def run(text, name="a.csv", **options):
        content = text.encode() if isinstance(text, str) else text
        (tmp_path / name).write_bytes(content)
        npstream.convert(tmp_path / name, tmp_path / "out", **options)
        return npstream.open(tmp_path / "out")

    return run


def test_types_are_inferred_and_quotes_are_read(tmp_path, convert):
    ds = convert(TEXT)
    assert ds[1] == {
        "id": 2, "name": 'B, "x"\ny', "score": -1000.0,
        "day": np.datetime64("2024-02-01"), "flag": False,
    }  # fmt: skip
    plan = npstream.convert(tmp_path / "a.csv", tmp_path / "o", dry_run=True)
    assert (plan.columns, plan.samples, plan.kind) == (COLUMNS, 2, "csv")


@pytest.mark.parametrize("extension", ["gz", "bz2", "xz", "zst"])
def test_compressed_files_are_read_and_truncated_ones_raise(convert, tmp_path, extension):
    zstd = pytest.importorskip("backports.zstd")
    compress = {
        "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd.compress,
    }[extension]  # fmt: skip
    assert convert(compress(TEXT.encode()), f"a.csv.{extension}")["id"].load().tolist() == [1, 2]
    cut = compress((TEXT * 50).encode())[:-8]
    (tmp_path / f"b.csv.{extension}").write_bytes(cut)
    with pytest.raises(FormatError, match=rf"b\.csv\.{extension}: cannot be decompressed"):
        npstream.convert(tmp_path / f"b.csv.{extension}", tmp_path / "out2")


def test_reader_options_set_the_delimiter_and_the_names(convert):
    text = "1;x\n2;y\n"
    ds = convert(text, reader_options={"delimiter": ";", "names": ["n", "s"]})
    assert ds[0] == {"n": 1, "s": "x"}


def test_columns_of_tsv_files_are_separated_by_tabs(convert):
    assert convert("a\tb\n1\tx,y\n", "a.tsv")[0] == {"a": 1, "b": "x,y"}


def test_encodings_of_the_user_decide_the_types(convert):
    columns = {"zip": "str", "n": "uint8", "f": "float32", "t": "datetime64[s]"}
    ds = convert("n,zip,f,t\n7,00123,0.1,2024-01-01T00:00:00\n", columns=columns)
    assert ds[0] == {
        "zip": "00123", "n": 7, "f": np.float32(0.1), "t": np.datetime64("2024-01-01T00:00:00"),
    }  # fmt: skip
    assert ds.dtypes["n"] == np.uint8


def test_a_later_value_of_another_type_names_file_row_column_and_value(convert, monkeypatch):
    monkeypatch.setattr(csv, "CSV_BLOCK", 200)
    text = "a,b\n" + "1,x\n" * 200 + "one,x\n"
    with pytest.raises(ValueError, match=r"a\.csv: row 202: column 'a': 'one' .* int64.*columns="):
        convert(text)
    assert convert(text, columns={"a": "str", "b": "str"})["a"][200] == "one"


def test_a_value_that_is_not_of_the_named_type_raises(convert):
    with pytest.raises(ValueError, match=r"row 3: column 'a': '300' .*'uint8' in columns="):
        convert("a\n1\n300\n", columns={"a": "uint8"})


def test_empty_values_are_missing_except_in_text(convert):
    with pytest.raises(ValueError, match=r"sample 1: column 'n'.*null"):
        convert("n,s\n1,x\n,\n")
    ds = convert("n,s\n1,x\n,\n", fill={"n": -1})
    assert ds[1] == {"n": -1, "s": ""}


def test_integers_that_floats_would_round_are_refused(convert):
    text = "id\n1\n12345678901234567891\n"
    with pytest.raises(
        ValueError, match=r"row 3: column 'id': .*round 12345678901234567891, .*exc"
    ):
        convert(text)
    assert convert(text, columns={"id": "uint64"})["id"][1] == 12345678901234567891


def test_an_integer_among_floats_is_rounded_only_for_a_named_type(convert):
    text = "x\n1.5\n12345678901234567\n"
    with pytest.raises(ValueError, match=r"round 12345678901234567, .*among floats.*'float64' to"):
        convert(text)
    assert convert(text, columns={"x": "float64"})["x"][1] == 12345678901234568.0


@pytest.mark.parametrize(
    ("text", "words"),
    [("a,b\n1,2\n3\n", r"a\.csv: cannot be read as CSV: .*Expected 2 columns, got 1"),
     ("a,a\n1,2\n", "two columns have the name 'a'"), ("", "all files are empty"),
     (b"a\n\xff\xff\n", r"a\.csv: cannot be read as CSV.*UTF8|invalid UTF8")],
)  # fmt: skip
def test_bad_files_raise(convert, text, words):
    with pytest.raises(ValueError, match=words):
        convert(text)


def test_files_have_one_schema(tmp_path):
    (tmp_path / "1.csv").write_text("a,b\n1,x\n")
    (tmp_path / "2.csv").write_text("b,a\ny,2\n")
    (tmp_path / "3.csv").write_text("")
    npstream.convert(tmp_path, tmp_path / "out", kind="csv")
    assert npstream.open(tmp_path / "out")[1] == {"a": 2, "b": "y"}
    (tmp_path / "4.csv").write_text("a,c\n1,2\n")
    with pytest.raises(ValueError, match=r"4\.csv: there is no column 'b', which .*1\.csv has"):
        npstream.convert(f"{tmp_path}/*.csv", tmp_path / "out2")


def test_only_the_chosen_columns_are_read(convert):
    ds = convert("a,b\n1,x\n2,y\n", columns=["b"], where="a > 1")
    assert ds.columns == ("b",)
    assert list(ds["b"]) == ["y"]


def test_quoted_newlines_are_read_across_blocks(convert, monkeypatch):
    monkeypatch.setattr(csv, "CSV_BLOCK", 64)
    values = [f"line\n{number}, \n" * (number % 4) for number in range(200)]
    text = "n,t\n" + "".join(f'{number},"{value}"\n' for number, value in enumerate(values))
    ds = convert(text)
    assert list(ds["t"]) == values
    assert ds["n"].load().tolist() == list(range(200))


def test_a_file_without_rows_has_the_types_of_the_next_one(tmp_path):
    (tmp_path / "1.csv").write_text("a,b\n")
    (tmp_path / "2.csv").write_text("a,b\n1,x\n")
    report = npstream.convert(f"{tmp_path}/*.csv", tmp_path / "out")
    assert report.columns == {"a": "int64", "b": "str"}
    with pytest.raises(ValueError, match=r"1\.csv: there are no rows after the line of names"):
        npstream.convert(tmp_path / "1.csv", tmp_path / "none")
    columns = {"a": "int8", "b": "str"}
    assert npstream.convert(tmp_path / "1.csv", tmp_path / "none", columns=columns).samples == 0


def test_a_later_file_of_other_types_raises(tmp_path):
    (tmp_path / "1.csv").write_text("a\n1\n")
    (tmp_path / "2.csv").write_text("a\n2\nx\n")
    with pytest.raises(
        ValueError, match=r"2\.csv: row 3: column 'a': 'x' is not of the type int64"
    ):
        npstream.convert(f"{tmp_path}/*.csv", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_of_pandas_and_polars_are_read(tmp_path):
    pd = pytest.importorskip("pandas")
    pl = pytest.importorskip("polars")
    data = {"a": [1, 2], "s": ['x"y', "a,\nb"], "f": [0.1, 1e300]}
    pd.DataFrame(data).to_csv(tmp_path / "1.csv", index=False)
    pl.DataFrame(data).write_csv(tmp_path / "2.csv")
    npstream.convert(f"{tmp_path}/*.csv", tmp_path / "out")
    rows = [{name: values[k] for name, values in data.items()} for k in (0, 1)]
    assert [dict(sample) for sample in npstream.open(tmp_path / "out")] == rows * 2


def test_remote_compressed_files_are_read(tmp_path, servers):
    remote_dir = servers["s3"].new_directory()
    for number in range(2):
        remote_dir.put(f"d/{number}.csv.gz", gzip.compress(f"a\n{number}\n".encode()))
    options = remote_dir.storage_options
    npstream.convert(f"{remote_dir.url}/d", tmp_path / "out", source_options=options)
    assert npstream.open(tmp_path / "out")["a"].load().tolist() == [0, 1]


@pytest.mark.parametrize(
    ("before", "options", "row"),
    [
        ("x\n", {}, 3),
        ("#\n#\nx\n", {"skip_rows": 2}, 5),
        ("", {"names": ["x"]}, 2),
        ("#\n", {"names": ["x"], "skip_rows": 1}, 3),
    ],
)
def test_rows_in_errors_include_skipped_rows_and_names(convert, before, options, row):
    # pyarrow finds the first error, and npstream the second one; both name the same row.
    for text, columns in (("1\n300\n", {"x": "int8"}), (f"1\n{2**63 + 1}\n", None)):
        with pytest.raises(ValueError, match=rf"a\.csv: row {row}: column 'x'"):
            convert(before + text, columns=columns, reader_options=options)


def test_missing_dates_and_numbers_are_filled_with_text_and_nan(tmp_path):
    (tmp_path / "a.csv").write_text("n,day,time\n1,2026-11-29,2026-11-29 10:00:00\n,,\n")
    fill = {"n": -1, "day": "NaT", "time": "2026-11-30T12"}
    npstream.convert(tmp_path / "a.csv", tmp_path / "o", fill=fill)
    ds = npstream.open(tmp_path / "o")
    assert ds["n"].load().tolist() == [1, -1]
    assert ds["day"][0] == np.datetime64("2026-11-29")
    assert np.isnat(ds["day"][1])
    assert ds["time"][1] == np.datetime64("2026-11-30T12:00:00")


@pytest.mark.parametrize("day", ["soon", "2026-11-29T05", "today", 3])
def test_a_fill_that_is_no_day_is_refused_before_a_dry_run(tmp_path, day):
    (tmp_path / "a.csv").write_text("n,day\n1,2026-11-29\n2,\n")
    for dry_run in (True, False):
        with pytest.raises((TypeError, ValueError), match="'day'"):
            npstream.convert(tmp_path / "a.csv", tmp_path / "o", fill={"day": day}, dry_run=dry_run)


@pytest.mark.parametrize(("where", "sample"), [(None, 40), ("n != 3", 39), (lambda s: True, 40)])
def test_a_missing_value_names_its_row(tmp_path, monkeypatch, where, sample):
    monkeypatch.setattr(csv, "CSV_BLOCK", 64)
    rows = [f"{n},{'' if n == 40 else n}\n" for n in range(60)]
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("n,x\n" + "".join(rows if name == "b.csv" else rows[:7]))
    first = 6 if where == "n != 3" else 7  # the samples of a.csv
    with pytest.raises(ValueError, match=rf"sample {first + sample}: column 'x'") as caught:
        npstream.convert(tmp_path / "*.csv", tmp_path / "out", where=where)
    # Row 1 has the names, and row 2 the number 0.
    assert "in part 'b.csv' of the source, row 42" in caught.value.__notes__


def test_rows_may_be_longer_than_a_block(convert, monkeypatch):
    monkeypatch.setattr(csv, "_READ_BLOCK", 64)
    texts = ["short"] * 30 + ["long" * 50] + ["short"] * 30 + ["longer" * 50, "end"]
    ds = convert("n,text\n" + "".join(f"{n},{text}\n" for n, text in enumerate(texts)))
    assert list(ds["text"]) == texts
    assert ds["n"].load().tolist() == list(range(len(texts)))
