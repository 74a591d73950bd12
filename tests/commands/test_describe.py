"""The command ``describe``, against `Dataset.describe`."""

from __future__ import annotations

import json

import numpy as np
import pytest

import npstream
from npstream.__main__ import main
from npstream.commands.table import display_width

ROWS = 400


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Write a dataset in a new directory, go there, and return the dataset."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    columns = {
        "label": np.arange(ROWS) % 10,
        "score": np.linspace(0, 1, ROWS),
        "text": [f"text {number}" for number in range(ROWS)],
    }
    npstream.write("data", columns)
    return npstream.open("data")


def lines_of(capsys, *words: str) -> list[str]:
    assert main(["describe", *words]) == 0
    return capsys.readouterr().out.splitlines()


def test_the_tables_hold_the_statistics(data, capsys, tmp_path):
    lines = lines_of(capsys, "data")
    assert lines[0] == f"{tmp_path}/data: 400 samples, 3 columns"
    description = data.describe()
    for name in ("label", "score"):
        (line,) = [line for line in lines if line.startswith(name)]
        cells = [cell for cell in description[name].numbers() if cell]
        assert line.split() == [name, description[name].type, *cells]
    (line,) = [line for line in lines if line.startswith("text")]
    assert description["text"].lengths_text() in line
    assert lines[-1] == "all 400 rows."


@pytest.mark.parametrize("columns", [40, 60, 80, 120])
def test_tables_fit_the_width(data, capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = lines_of(capsys, "data")
    # A line that names the omitted statistics ends with the last one, and can be longer.
    tables = [line for line in lines[1:] if not line.endswith(("max", "frequent"))]
    assert max(map(display_width, tables)) <= columns
    text = "\n".join(lines)
    for statistic in ("mean", "25%", "max", "lengths"):  # in a table, or named below it
        assert statistic in text


def test_json_has_every_known_statistic(data, capsys, tmp_path):
    (line,) = lines_of(capsys, "data", "--json")
    document = json.loads(line)
    assert (document["url"], document["samples"]) == (f"{tmp_path}/data", ROWS)
    assert list(document["columns"]) == ["label", "score", "text"]
    label, text = document["columns"]["label"], document["columns"]["text"]
    assert (label["min"], label["max"], label["mean"], label["distinct"]) == (0, 9, 4.5, 10)
    assert label["quantiles"]["0.5"] == np.quantile(np.arange(10), 0.5)
    assert label["type"] == "int64"
    shortest, _mean, longest = text["lengths"]
    assert (shortest, longest, text["unit"]) == (6, 8, "bytes")
    assert "mean" not in text


def test_columns_are_chosen_and_samples_are_drawn_by_seed(data, capsys):
    words = ["data", "--columns", "text", "--json", "--sample", "50"]
    columns = json.loads(lines_of(capsys, *words, "--seed", "3")[0])["columns"]
    expected = data[["text"]].describe(sample=50, seed=3)["text"]
    assert list(columns) == ["text"]
    assert (columns["text"]["count"], columns["text"]["origin"]) == (50, "sample")
    assert columns["text"]["lengths"] == list(expected.lengths)
    assert lines_of(capsys, *words) == lines_of(capsys, *words)


def test_several_datasets_are_described_and_a_missing_one_is_an_error(data, capsys):
    npstream.write("more", {"x": np.arange(3)})
    assert main(["describe", "absent", "data", "more", "--json"]) == 1
    captured = capsys.readouterr()
    documents = map(json.loads, captured.out.splitlines())
    assert [document["samples"] for document in documents] == [ROWS, 3]
    assert "absent" in captured.err
    lines = lines_of(capsys, "more", "data")
    assert lines[0].endswith("more: 3 samples, 1 column")
    assert sum(line.endswith("data: 400 samples, 3 columns") for line in lines) == 1


def test_errors_name_the_wrong_argument(data, capsys):
    assert main(["describe", "data", "--columns", "txt"]) == 1
    assert "no column 'txt'; did you mean 'text'?" in capsys.readouterr().err
    assert main(["describe", "data", "--sample", "0"]) == 1
    assert "sample" in capsys.readouterr().err
