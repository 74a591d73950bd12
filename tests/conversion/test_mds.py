"""Datasets as sources: other shards, compressions, columns, and filters."""

from __future__ import annotations

import numpy as np
import pytest

import npstream

DATA = {"id": np.arange(1000), "text": [f"text {n}" for n in range(1000)], "t": np.ones((1000, 3))}


@pytest.fixture
def source(tmp_path):
    npstream.write(tmp_path / "source", DATA, shard_size="4KiB")
    return tmp_path / "source"


def test_shards_get_another_size_and_compression(source, tmp_path):
    report = npstream.convert(source, tmp_path / "out", compression="zstd", shard_size=None)
    assert (report.samples, report.shards) == (1000, 1)
    assert report.columns == {"id": "int64", "text": "str", "t": "ndarray:float64:3"}
    ds = npstream.open(tmp_path / "out")
    assert (ds["id"].load() == DATA["id"]).all()
    assert list(ds["text"]) == DATA["text"]


def test_columns_are_chosen_renamed_and_get_another_encoding(source, tmp_path):
    columns = {"number": "int32", "text": None}
    npstream.convert(
        source, tmp_path / "out", columns=columns, rename={"id": "number"}, where="number % 2 == 1"
    )
    ds = npstream.open(tmp_path / "out")
    assert ds.columns == ("number", "text")
    assert ds.dtypes["number"] == np.int32
    assert (ds["number"].load() == np.arange(1, 1000, 2)).all()
    assert ds["text"][0] == "text 1"


def test_rows_are_filtered_by_text(source, tmp_path):
    npstream.convert(
        source, tmp_path / "out", where="'99' in text", format="jsonl", columns=["text"]
    )
    assert len(npstream.open(tmp_path / "out")) == sum("99" in text for text in DATA["text"])


def test_a_remote_dataset_is_converted(source, tmp_path, upload):
    npstream.convert(upload(source), tmp_path / "out", reader_options={"cache": tmp_path / "cache"})
    assert (npstream.open(tmp_path / "out")["id"].load() == DATA["id"]).all()
