"""Datasets as DataFrames of Spark."""

from __future__ import annotations

import datetime
from decimal import Decimal

import numpy as np
import pytest

import npstream
from npstream.errors import ColumnError

pytest.importorskip("pyspark.sql")
from npstream.conversion.spark import read

VALUES = {
    "n": np.arange(20),
    "text": [str(n) for n in range(20)],
    "data": [bytes([n]) for n in range(20)],
    "small": np.arange(20, dtype=np.uint8),
    "large": np.arange(20, dtype=np.uint64) + 2**63,
    "half": np.linspace(0, 1, 20, dtype=np.float16),
    "flag": np.arange(20) % 2 == 0,
    "day": np.datetime64("2026-01-01") + np.arange(20),
    "vector": np.arange(40, dtype=np.uint16).reshape(20, 2),
    "ragged": [np.arange(n + 1, dtype=np.float32) for n in range(20)],
}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("dataset") / "out"
    npstream.write(path, VALUES, shard_samples=6)
    return path


def test_each_shard_is_a_partition_and_rows_keep_their_order(spark, path):
    frame = read(spark, path)
    assert frame.rdd.getNumPartitions() == 4
    rows = frame.collect()
    assert [row.n for row in rows] == list(range(20))
    assert [row.text for row in rows] == VALUES["text"]
    assert [bytes(row.data) for row in rows] == VALUES["data"]
    assert [row.small for row in rows] == list(range(20))
    assert rows[3].large == Decimal(2**63 + 3)
    assert [row.half for row in rows] == VALUES["half"].astype(np.float32).tolist()
    assert [row.flag for row in rows] == VALUES["flag"].tolist()
    assert rows[3].day == datetime.date(2026, 1, 4)
    assert [row.vector for row in rows] == VALUES["vector"].tolist()
    assert [row.ragged for row in rows] == [list(row) for row in VALUES["ragged"]]


def test_views_and_chosen_columns_are_read(spark, path):
    assert read(spark, path, columns=["text", "n"]).columns == ["text", "n"]
    view = npstream.open(path)[::-3][["n"]]
    assert [row.n for row in read(spark, view).collect()] == list(range(19, -1, -3))
    assert read(spark, view[:0]).count() == 0
    assert read(spark, path, columns=["n"]).where("n % 5 = 0").count() == 4
    with pytest.raises(ColumnError, match="did you mean 'text'"):
        read(spark, path, columns=["test"])


def test_a_column_without_a_type_is_named(spark, tmp_path):
    npstream.write(tmp_path / "out", {"wave": np.arange(3) * 1j})
    with pytest.raises(TypeError, match="'wave'"):
        read(spark, tmp_path / "out")
