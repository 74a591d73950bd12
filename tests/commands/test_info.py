"""The command ``info``."""

from __future__ import annotations

import json

import numpy as np
import pytest

import npstream
from npstream.__main__ import main


@pytest.fixture
def two_datasets(tmp_path, monkeypatch):
    """Write two datasets in a new directory, and go there."""
    monkeypatch.chdir(tmp_path)
    npstream.write("a/train", {"x": np.arange(3), "text": ["x", "y", "z"]})
    npstream.write("b", {"x": np.arange(700)}, shard_samples=100)


def test_each_dataset_is_printed_as_its_repr(two_datasets, capsys):
    assert main(["info", "b", "a/train"]) == 0
    assert capsys.readouterr().out == "".join(
        f"{npstream.open(url)!r}\n" for url in ("b", "a/train")
    )


def test_json_is_a_line_for_each_dataset(two_datasets, capsys):
    assert main(["info", "--json", "b", "a/train"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    ds = npstream.open("b")
    assert first == {
        "url": ds._source.index.where.removesuffix("/index.json"),
        "samples": 700,
        "shards": 7,
        "nbytes": int(ds.shards["bytes"].sum()),
        "version": ds.version,
        "columns": {"x": "int64"},
    }
    assert second["columns"] == {"x": "int64", "text": "str"}


def test_a_missing_dataset_does_not_stop_the_others(two_datasets, capsys):
    assert main(["info", "absent", "b", "--json"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["samples"] == 700
    assert captured.err.startswith("npstream: ")
    assert "absent" in captured.err


def test_a_split_is_chosen(two_datasets, capsys):
    assert main(["info", "a", "--split", "train", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 3
