"""`fill`, `on_error`, `rejects`, `max_errors` and `shard_samples`."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from destinations import assert_no_files

import npstream
from npstream.errors import ColumnError, StorageError


@pytest.fixture(params=["write", "writer", "workers"])
def write(request):
    """Return a function that writes samples, in each way."""

    def with_writer(path, samples, **settings):
        with npstream.Writer(path, **settings) as writer:
            for sample in samples:
                writer.write(sample)
        return writer.close()

    def with_workers(path, samples, **settings):
        return npstream.write(path, samples, workers=2, **settings)

    return {"write": npstream.write, "writer": with_writer, "workers": with_workers}[request.param]


def stored_x(path):
    return npstream.open(path)["x"].load().tolist()


# Fill


@pytest.mark.parametrize("missing", [None, pd.NA, np.ma.masked, "no key"])
@pytest.mark.parametrize("first", [0, 30])
def test_missing_values_are_filled(missing, first, write, tmp_path):
    samples = []
    for number in range(60):
        sample = {"x": number, "lang": "en"}
        if number >= first and number % 3 == 0:
            sample["lang"] = missing
            if isinstance(missing, str):  # "no key"
                del sample["lang"]
        samples.append(sample)
    original_samples = [dict(sample) for sample in samples]
    write(tmp_path, samples, fill={"lang": "none"})
    ds = npstream.open(tmp_path)
    expected = ["none" if k >= first and k % 3 == 0 else "en" for k in range(60)]
    assert list(ds["lang"]) == expected
    assert stored_x(tmp_path) == list(range(60))
    assert samples == original_samples  # a write must not change the user's mappings


def test_none_is_filled_where_the_encoding_would_store_it(write, tmp_path):
    samples = [{"x": {"a": k} if k % 2 else None} for k in range(40)]
    write(tmp_path, samples, columns={"x": "json"}, fill={"x": []})
    assert list(npstream.open(tmp_path)["x"]) == [{"a": k} if k % 2 else [] for k in range(40)]


def test_nan_and_nat_are_values(write, tmp_path):
    samples = [{"x": float("nan"), "t": np.datetime64("NaT", "s")}] * 20
    write(tmp_path, samples, fill={"x": 0.0, "t": np.datetime64(0, "s")})
    ds = npstream.open(tmp_path)
    assert np.isnan(ds["x"].load()).all()
    assert np.isnat(ds["t"].load()).all()


def test_a_table_is_filled(tmp_path):
    npstream.write(tmp_path, {"x": [1, None, 3], "y": ["a", "b", None]}, fill={"x": 0, "y": ""})
    assert stored_x(tmp_path) == [1, 0, 3]
    assert list(npstream.open(tmp_path)["y"]) == ["a", "b", ""]


def test_values_that_cannot_fill(tmp_path):
    for columns in (None, {"x": "int"}):
        with pytest.raises(TypeError, match=r"fill: column 'x' is 'int' and cannot take this str"):
            npstream.write(tmp_path / "out", [{"x": 1}], columns=columns, fill={"x": "no"})
    with pytest.raises(ColumnError, match="fill: no column 'y'"):
        npstream.write(tmp_path / "out", [{"x": 1}], columns={"x": "int"}, fill={"y": 1})
    with pytest.raises(TypeError, match="fill maps names of columns to values"):
        npstream.write(tmp_path / "out", [{"x": 1}], fill=["x"])
    assert_no_files(str(tmp_path / "out"))


# Samples that are left out


BAD = {3: {"x": "text"}, 17: {}, 18: 5, 40: {"x": None}, 41: {"x": 2**80}}
SAMPLES = [BAD.get(number, {"x": number}) for number in range(100)]
GOOD = [number for number in range(100) if number not in BAD]


def test_samples_that_are_refused_are_left_out(write, tmp_path):
    report = write(
        tmp_path / "out", SAMPLES, columns={"x": "int"}, on_error="skip",
        rejects=tmp_path / "rejects.jsonl",
    )  # fmt: skip
    assert (report.rejected, report.samples) == (5, 95)
    assert stored_x(tmp_path / "out") == GOOD
    lines = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert [line["sample"] for line in lines] == list(BAD)
    assert [line["value"] for line in lines] == [repr(value)[:1000] for value in BAD.values()]
    for line, words in zip(
        lines,
        ["expected an int, got str", "no column 'x'", "is of type int", "fill it in", "81 bits"],
        strict=True,
    ):
        assert f"sample {line['sample']}" in line["reason"]
        assert words in line["reason"]


def test_a_refused_sample_raises_by_default(write, tmp_path):
    with pytest.raises(TypeError, match="sample 3: column 'x'"):
        write(tmp_path / "out", SAMPLES, columns={"x": "int"})
    assert_no_files(str(tmp_path / "out"))


def test_bad_first_samples_are_left_out(write, tmp_path):
    report = write(tmp_path, [{"x": None}, 5, {}, {"x": 1}, {"x": 2, "y": 3}], on_error="skip")
    assert report.rejected == 4
    assert stored_x(tmp_path) == [1]


@pytest.mark.parametrize(("max_errors", "is_refused"), [(5, False), (4, True), (0, True)])
def test_too_many_errors(max_errors, is_refused, write, tmp_path):
    settings = {"columns": {"x": "int"}, "on_error": "skip", "max_errors": max_errors}
    path = tmp_path / "out"
    if not is_refused:
        assert write(path, SAMPLES, **settings).rejected == 5
        return
    count = max_errors + 1
    with pytest.raises(
        ValueError, match=f"^{count} refused samples?, more than max_errors={max_errors}"
    ):
        write(path, SAMPLES, rejects=tmp_path / "rejects.jsonl", **settings)
    assert_no_files(str(path))
    assert len((tmp_path / "rejects.jsonl").read_text().splitlines()) == count


def test_a_writer_that_met_too_many_errors_publishes_nothing(tmp_path):
    writer = npstream.Writer(tmp_path / "out", {"x": "int"}, on_error="skip", max_errors=0)
    writer.write({"x": 1})
    with pytest.raises(ValueError, match="more than max_errors=0"):
        writer.write({"x": "no"})
    with pytest.raises(ValueError, match="this Writer is closed"):
        writer.close()
    assert_no_files(str(tmp_path / "out"))


def test_fill_comes_before_errors(write, tmp_path):
    report = write(
        tmp_path, SAMPLES, columns={"x": "int"}, on_error="skip", fill={"x": -1}, max_errors=3
    )
    assert report.rejected == 3
    assert stored_x(tmp_path).count(-1) == 2


def test_rows_of_tables_are_left_out(tmp_path):
    table = {"x": [1, None, 3, "no"], "y": ["a", "b", "c", "d"]}
    report = npstream.write(tmp_path / "a", table, on_error="skip")
    assert report.rejected == 2
    assert list(npstream.open(tmp_path / "a")["y"]) == ["a", "c"]
    with npstream.Writer(tmp_path / "b", {"x": "int", "y": "str"}, on_error="skip") as writer:
        writer.write(npstream.Batch(table))
    assert writer.close().rejected == 2


def test_large_samples_and_values_without_a_repr(tmp_path):
    class Mute:
        def __repr__(self):
            raise LookupError

    samples = [{"x": 1}, {"x": "long" * 10_000}, {"x": list(range(10_000))}, {"x": Mute()}]
    rejects = tmp_path / "rejects"
    npstream.write(tmp_path / "out", samples, on_error="skip", rejects=rejects)
    lines = [json.loads(line) for line in rejects.read_text().splitlines()]
    assert [line["sample"] for line in lines] == [1, 2, 3]
    assert all(len(line["value"]) <= 1000 for line in lines)


def test_the_file_of_rejects_is_replaced_and_must_be_writable(tmp_path):
    rejects = tmp_path / "rejects"
    rejects.write_text("of another run")
    npstream.write(tmp_path / "out", [{"x": 1}], on_error="skip", rejects=rejects)
    assert rejects.read_text() == ""
    with pytest.raises(StorageError, match="cannot write rejects="):
        npstream.write(tmp_path / "b", [{"x": 1}], on_error="skip", rejects=tmp_path / "no" / "dir")
    assert_no_files(str(tmp_path / "b"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"on_error": "ignore"}, "it is 'raise' or 'skip'"),
        ({"max_errors": 3}, "max_errors= is for on_error='skip'"),
        ({"rejects": "r"}, "rejects= is for on_error='skip'"),
        ({"on_error": "skip", "max_errors": -1}, "max_errors=-1"),
        ({"on_error": "skip", "max_errors": 1.5}, "max_errors=1.5"),
    ],
)
def test_settings_that_make_no_sense(settings, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        npstream.write(tmp_path / "out", [{"x": 1}], **settings)
    assert_no_files(str(tmp_path / "out"))


# Samples of a shard


@pytest.mark.parametrize("count", [1, 7, 100, 1000])
def test_a_shard_has_at_most_shard_samples(count, write, tmp_path):
    samples = [{"x": k, "text": "t" * (k * 37 % 100)} for k in range(100)]
    report = write(tmp_path, samples, shard_samples=count)
    shards = [shard["samples"] for shard in npstream.open(tmp_path).shards]
    assert shards[:-1] == [count] * (len(shards) - 1)
    assert sum(shards) == 100
    assert report.shards == -(-100 // count)
    assert stored_x(tmp_path) == list(range(100))


@pytest.mark.parametrize("columns", [{"x": np.arange(100)}, {"x": [str(k) for k in range(100)]}])
@pytest.mark.parametrize("count", [1, 7, 1000])
def test_shards_of_tables(columns, count, tmp_path):
    npstream.write(tmp_path, columns, shard_samples=count)
    shards = [shard["samples"] for shard in npstream.open(tmp_path).shards]
    assert set(shards[:-1]) <= {count}
    assert sum(shards) == 100


def test_whichever_limit_is_reached_first(write, tmp_path):
    samples = [{"x": "t" * (100 if k < 20 else 1)} for k in range(60)]
    write(tmp_path, samples, shard_samples=10, shard_size=800)
    shards = npstream.open(tmp_path).shards
    assert max(shards["samples"]) == 10
    assert max(shards["bytes"]) <= 800
    assert min(shards["samples"][:2]) < 10


@pytest.mark.parametrize("count", [0, -1, 1.5, True, "7"])
def test_values_of_shard_samples_that_make_no_sense(count, tmp_path):
    with pytest.raises(ValueError, match="shard_samples="):
        npstream.write(tmp_path / "out", [{"x": 1}], shard_samples=count)
    assert_no_files(str(tmp_path / "out"))
