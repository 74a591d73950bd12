"""The commands ``head``, ``sample`` and ``query``, against the dataset itself."""

from __future__ import annotations

import json

import numpy as np
import pytest

import npstream
from npstream.__main__ import main

ROWS = 600


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Write a dataset in a new directory, go there, and return the dataset."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    columns = {
        "label": np.arange(ROWS) % 10,
        "score": np.linspace(0, 1, ROWS, dtype=np.float32),
        "text": [f"text {number} \x1b[31m\n" for number in range(ROWS)],
        "tokens": [np.arange(1 + number % 5) for number in range(ROWS)],
    }
    npstream.write("data", columns, shard_samples=100)
    return npstream.open("data")


def lines_of(capsys, *words: str) -> list[str]:
    assert main(words) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "\x1b" not in captured.out
    return captured.out.splitlines()


def samples_of(capsys, *words: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in lines_of(capsys, *words, "--json")]


def plain(sample) -> dict[str, object]:
    """Return a sample as `json.loads` gives it.

    JSON has the shortest decimal number of a float32, such as 0.1.
    """
    values = {name: getattr(value, "tolist", lambda v=value: v)() for name, value in sample.items()}
    return values | {"score": float(str(sample["score"]))}


def test_head_shows_a_table(data, capsys):
    lines = lines_of(capsys, "head", "data", "-n", "3", "--columns", "label", "text")
    assert lines == [
        "row  label  text",
        "     int64  str",
        r"  0      0  text 0 \x1b[31m\n",
        r"  1      1  text 1 \x1b[31m\n",
        r"  2      2  text 2 \x1b[31m\n",
        "3 of 600 samples",
    ]
    assert len(lines_of(capsys, "head", "data")) == 10 + 3
    assert lines_of(capsys, "head", "data", "--limit", "1000")[-1] == "600 samples"


def test_head_of_an_empty_dataset(data, capsys):
    npstream.write("empty", {"x": np.arange(0)})
    assert lines_of(capsys, "head", "empty") == ["row  x", "     int64", "0 samples"]
    assert lines_of(capsys, "head", "empty", "--json") == []


def test_columns_that_do_not_fit_are_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    names = [f"column_{number}" for number in range(6)]
    npstream.write(tmp_path / "wide", dict.fromkeys(names, np.arange(3)))
    lines = lines_of(capsys, "head", str(tmp_path / "wide"))
    assert max(map(len, lines[:-1])) <= 30
    assert lines[-1] == "4 more columns: column_2, column_3, column_4, column_5"


def test_json_is_a_line_for_each_sample(data, capsys):
    assert samples_of(capsys, "head", "data", "-n", "20") == [plain(s) for s in data[:20]]
    samples = samples_of(capsys, "head", "data", "-n", "2", "--columns", "text", "label")
    assert [list(sample) for sample in samples] == [["text", "label"]] * 2


def test_sample_draws_what_the_dataset_draws(data, capsys):
    words = ["sample", "data", "-n", "300", "--seed", "7", "--row-index", "row"]
    drawn = samples_of(capsys, *words)
    order = data.shuffle(7, block=None).load().ids.tolist()
    assert [sample.pop("row") for sample in drawn] == order[:300]
    assert drawn == [plain(sample) for sample in data.shuffle(7, block=None)[:300]]
    assert samples_of(capsys, *words) == samples_of(capsys, *words)
    words[5] = "8"  # the seed
    assert samples_of(capsys, *words)[0] != samples_of(capsys, "sample", "data", "--seed", "7")[0]
    assert len(samples_of(capsys, "sample", "data", "-n", "1000")) == ROWS


def test_query_shows_what_matches(data, capsys):
    lines = lines_of(capsys, "query", "data", "label == 3 and score > 0.5", "--columns", "label")
    rows = np.flatnonzero((data["label"].load() == 3) & (data["score"].load() > 0.5))
    assert [int(line.split()[0]) for line in lines[2:-1]] == rows[:10].tolist()
    assert lines[-1] == f"10 of {len(rows)} samples that match"
    samples = samples_of(capsys, "query", "data", "label == 3 and score > 0.5")
    assert samples == [plain(data[row]) for row in rows.tolist()]
    lines = lines_of(capsys, "query", "data", "label == 3", "-n", "2", "--columns", "text")
    assert [line.split()[0] for line in lines[2:-1]] == ["3", "13"]
    assert lines[-1].startswith("2 of ")


def test_query_reads_columns_that_it_does_not_show(data, capsys):
    words = ["query", "data", "len(text) < 14", "--columns", "label", "--row-index", "id"]
    samples = samples_of(capsys, *words)
    assert samples == [{"id": row, "label": row} for row in range(10)]


def test_query_counts(data, capsys):
    assert lines_of(capsys, "query", "data", "label >= 3", "--count") == ["420"]
    assert samples_of(capsys, "query", "data", "label > 100", "--count") == [{"count": 0}]
    assert lines_of(capsys, "query", "data", "label > 100")[-1] == "0 samples that match"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["query", "data", "lable == 3"], "no column 'lable'; did you mean 'label'?"),
        (["query", "data", "label = 3"], "label = 3"),
        (["query", "data", "label == 'x'"], "label"),
        (["head", "data", "--columns", "txt"], "no column 'txt'; did you mean 'text'?"),
        (["head", "data", "--json", "--row-index", "text"], "--row-index 'text': a column has"),
        (["head", "dat"], "did you mean 'data'?"),
    ],
)
def test_errors_are_one_message(data, capsys, words, message):
    assert main(words) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("npstream: ")
    assert message in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("number", ["-1", "x", "1.5"])
def test_limits_are_whole_numbers(data, capsys, number):
    with pytest.raises(SystemExit, match="2"):
        main(["head", "data", f"--limit={number}"])
    assert f"{number!r}: expected a whole number, 0 or more" in capsys.readouterr().err


def test_splits_and_options_of_the_store_are_passed(tmp_path, capsys):
    npstream.write(tmp_path / "train", {"x": np.arange(3)})
    assert samples_of(capsys, "head", str(tmp_path), "--split", "train")[2] == {"x": 2}
    url = "memory://commands/data"
    npstream.write(url, {"x": np.arange(5)})
    words = ["--cache", str(tmp_path / "cache"), "--storage-options", "use_listings_cache=false"]
    assert samples_of(capsys, "query", url, "x > 2", *words) == [{"x": 3}, {"x": 4}]
    with pytest.raises(SystemExit, match="2"):
        main(["head", url, "--storage-options", "pass-of-me"])
    assert "pass-of-me" not in capsys.readouterr().err


def test_a_condition_fetches_at_most_the_limit(tmp_path, upload, capsys):
    npstream.write(tmp_path / "data", {"text": ["word " * 20] * 1000}, sidecar=False)
    url = upload(tmp_path / "data")
    words = ["query", url, "len(text) > 3", "--count", "--cache", str(tmp_path / "cache")]
    assert main([*words, "--read-limit", "1KiB"]) == 1
    assert "on the command line: --read-limit SIZE" in capsys.readouterr().err
    assert lines_of(capsys, *words, "--read-limit", "none") == ["1000"]
    assert lines_of(capsys, *words, "--read-limit", "2MiB") == ["1000"]
    with pytest.raises(SystemExit, match="2"):
        main([*words, "--read-limit", "much"])
    assert "cannot read the size 'much'" in capsys.readouterr().err


def test_head_of_a_remote_dataset_reads_only_its_samples(tmp_path, upload, requests, capsys):
    npstream.write(tmp_path / "data", {"x": [bytes(10_000)] * 1000}, shard_size="1MiB")
    url = upload(tmp_path / "data")
    assert len(samples_of(capsys, "head", url, "-n", "2", "--cache", str(tmp_path / "c"))) == 2
    requested = [length for name, _, length in requests if name.endswith(".mds")]
    assert 20_000 <= sum(requested) < 1_000_000
