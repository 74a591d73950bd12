"""`npstream.streaming.dataframe_to_mds` writes a DataFrame; it takes Streaming's arguments."""

from __future__ import annotations

import numpy as np
import pytest

import npstream
from npstream.streaming.base.converters import dataframe_to_mds
from npstream.streaming.base.util import merge_index

pytest.importorskip("pyspark.sql")


def frame(spark):
    return spark.range(0, 20, 1, 3).selectExpr("id AS n", "CAST(id AS STRING) AS text")


def test_rows_are_written_in_order(spark, tmp_path):
    out = str(tmp_path / "out")
    assert dataframe_to_mds(frame(spark), mds_kwargs={"out": out, "hashes": ["sha1"]}) == (out, "")
    ds = npstream.open(out, verify="sha1")
    assert ds["n"].load().tolist() == list(range(20))
    assert ds["text"].load().to_list() == list(map(str, range(20)))
    assert list((tmp_path / "out").glob("*/*.mds.zstd"))


def test_a_pair_of_directories_is_written_to_the_second(spark, tmp_path):
    local, remote = str(tmp_path / "local"), str(tmp_path / "remote")
    settings = {"out": (local, remote), "compression": None, "keep_local": False}
    assert dataframe_to_mds(frame(spark), mds_kwargs=settings) == ("", remote)
    assert len(npstream.open(remote)) == 20
    assert not (tmp_path / "local").exists()


def sums(batch, step):
    """Yield a sample for every `step` rows of a batch: their sum."""
    numbers = batch["n"].tolist()
    for first in range(0, len(numbers), step):
        yield {"sum": sum(numbers[first : first + step])}


def test_a_function_of_batches_makes_the_samples(spark, tmp_path):
    out = str(tmp_path / "out")
    settings = {"out": out, "columns": {"sum": "int64"}, "size_limit": "1kb"}
    dataframe_to_mds(
        frame(spark).coalesce(1), mds_kwargs=settings, udf_iterable=sums, udf_kwargs={"step": 5}
    )
    assert sum(npstream.open(out)["sum"].load().tolist()) == sum(range(20))
    assert len(npstream.open(out)) < 20


@pytest.mark.parametrize("function", [None, sums])
def test_each_partition_is_a_dataset_without_merge_index(spark, tmp_path, function):
    out = tmp_path / "out"
    mds_kwargs = {"out": str(out), "columns": {"sum": "int64"}} if function else {"out": str(out)}
    arguments = {
        "mds_kwargs": mds_kwargs, "udf_iterable": function,
        "udf_kwargs": function and {"step": 1}, "merge_index": False,
    }  # fmt: skip
    assert dataframe_to_mds(frame(spark), **arguments) == (str(out), "")
    assert not (out / "index.json").exists()
    assert not (out / "partitions.work").exists()
    parts = sorted(out.iterdir())
    name = "sum" if function else "n"
    columns = [npstream.open(part)[name].load() for part in parts]
    assert np.concatenate(columns).tolist() == list(range(20))
    assert len(parts) == 3
    merge_index(str(out))
    assert npstream.open(out)[name].load().tolist() == list(range(20))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mds_kwargs": {}}, "needs out="),
        ({"mds_kwargs": {"out": "x"}, "udf_iterable": sums}, "needs columns="),
        ({"mds_kwargs": {"out": "x", "odd": 1}}, "unknown arguments: odd"),
    ],
)
def test_invalid_arguments_raise(spark, arguments, message):
    with pytest.raises(ValueError, match=message):
        dataframe_to_mds(frame(spark), **arguments)
    with pytest.raises(ValueError, match="the DataFrame is empty"):
        dataframe_to_mds(frame(spark).where("n < 0"), mds_kwargs={"out": "x"})
