"""DataFrames of Spark as datasets."""

from __future__ import annotations

import os
from decimal import Decimal

import numpy as np
import pytest

import npstream
from npstream.errors import ColumnError, PartitionError
from npstream.tools.verify import verify_dataset

pytest.importorskip("pyspark.sql")
from npstream.conversion.spark import column_encodings, write

N = 100


def numbers(spark, partitions=5):
    return spark.range(0, N, 1, partitions).selectExpr("id AS n", "CAST(id AS STRING) AS text")


def partition_names(path):
    return sorted(name for name in os.listdir(path) if name.startswith("partition"))


def assert_numbers(path, samples=range(N)):
    ds = npstream.open(path)
    assert ds["n"].load().tolist() == list(samples)
    assert ds["text"].load().to_list() == [str(n) for n in samples]
    assert verify_dataset(path).problems == ()


def test_rows_keep_the_order_of_the_partitions(spark, tmp_path):
    report = write(tmp_path / "out", numbers(spark), shard_samples=7)
    assert (report.samples, report.shards) == (N, 15)
    assert report.columns == {"n": "int64", "text": "str"}
    assert_numbers(tmp_path / "out")
    assert len(partition_names(tmp_path / "out")) == 5
    few = numbers(spark).where("n >= 30 AND n < 50")
    assert write(tmp_path / "few", few).samples == 20
    assert_numbers(tmp_path / "few", range(30, 50))
    assert len(partition_names(tmp_path / "few")) == 2  # empty partitions are left out
    none = numbers(spark).where("n < 0")
    assert write(tmp_path / "none", none).samples == 0
    assert npstream.open(tmp_path / "none")["n"].dtype == np.int64


def test_encodings_are_those_of_streaming(spark, tmp_path):
    frame = spark.sql(
        "SELECT 1Y AS a, 2S AS b, 3 AS c, 4L AS d, CAST(0.5 AS FLOAT) AS e, 0.25D AS f,"
        " CAST(1.25 AS DECIMAL(5, 2)) AS g, 'text' AS h, X'00FF' AS i, array(1, 2) AS j,"
        " array(1S) AS k, array(1L) AS l, array(CAST(0.5 AS FLOAT)) AS m, array(0.5D, 1D) AS n"
    )
    assert column_encodings(frame) == {
        "a": "uint8", "b": "uint16", "c": "int32", "d": "int64", "e": "float32", "f": "float64",
        "g": "str_decimal", "h": "str", "i": "bytes", "j": "ndarray:int32",
        "k": "ndarray:int16", "l": "ndarray:int64", "m": "ndarray:float32",
        "n": "ndarray:float64",
    }  # fmt: skip
    write(tmp_path / "out", frame)
    sample = npstream.open(tmp_path / "out")[0]
    assert (sample["a"], sample["b"], sample["c"], sample["d"]) == (1, 2, 3, 4)
    assert (sample["e"], sample["f"], sample["g"]) == (0.5, 0.25, Decimal("1.25"))
    assert (sample["h"], sample["i"]) == ("text", b"\x00\xff")
    assert [sample[name].tolist() for name in "jklmn"] == [[1, 2], [1], [1], [0.5], [0.5, 1.0]]


def test_types_that_streaming_refuses_are_written_if_they_have_an_encoding(spark, tmp_path):
    frame = spark.sql(
        "SELECT true AS a, DATE'2026-01-02' AS b, TIMESTAMP_NTZ'2026-01-02 03:04:05' AS c,"
        " named_struct('x', 1, 'y', 'z') AS d, map('k', 1) AS e, array('p', 'q') AS f"
    )
    write(tmp_path / "out", frame)
    sample = npstream.open(tmp_path / "out")[0]
    assert sample["a"]
    assert sample["b"] == np.datetime64("2026-01-02")
    assert sample["c"] == np.datetime64("2026-01-02T03:04:05")
    assert sample["d"] == {"x": 1, "y": "z"}
    assert sample["f"] == ["p", "q"]
    with pytest.raises(TypeError, match=r"column 't' of Spark's type timestamp: .*time zone"):
        write(tmp_path / "no", spark.sql("SELECT TIMESTAMP'2026-01-02 03:04:05' AS t"))
    with pytest.raises(TypeError, match=r"column 't' of Spark's type interval month: no encoding"):
        write(tmp_path / "no", spark.sql("SELECT INTERVAL '3' MONTH AS t"))
    assert not (tmp_path / "no").exists()


def test_columns_compression_and_map_apply(spark, tmp_path):
    report = write(tmp_path / "a", numbers(spark), columns=["n"], compression="zstd")
    assert report.columns == {"n": "int64"}
    report = write(tmp_path / "b", numbers(spark), columns={"text": "str", "n": "uint8"})
    assert report.columns == {"text": "str", "n": "uint8"}
    mapped = write(tmp_path / "c", numbers(spark), map=lambda row: {"square": row["n"] ** 2})
    assert list(mapped.columns) == ["square"]
    assert npstream.open(tmp_path / "c")["square"][9] == 81
    with pytest.raises(ColumnError, match=r"did you mean 'text'"):
        write(tmp_path / "d", numbers(spark), columns=["test"])
    assert not (tmp_path / "d").exists()


def test_bad_values_name_the_partition_and_leave_no_files(spark, tmp_path):
    frame = numbers(spark).selectExpr("n", "IF(n = 70, NULL, text) AS text")
    with pytest.raises(PartitionError, match=r"partition 3: .*sample 10: column 'text'.*fill="):
        write(tmp_path / "out", frame)
    assert not (tmp_path / "out").exists()
    assert write(tmp_path / "out", frame, fill={"text": ""}).samples == N
    with pytest.raises(FileExistsError, match="a dataset"):
        write(tmp_path / "out", frame, fill={"text": ""})
    negative = spark.range(-2, 2, 1, 2).selectExpr("CAST(id AS BYTE) AS level")
    with pytest.raises(PartitionError, match=r"partition 0: .*'level'.*-2"):
        write(tmp_path / "levels", negative)
    assert write(tmp_path / "levels", negative, columns={"level": "int8"}).samples == 4


def kill_once(path, number):
    """Return a function that kills its process at the row `number`.

    Only the first attempt dies: it creates the file `path`, and later attempts find the file.
    """

    def apply(row):
        import os
        import signal
        from contextlib import suppress

        if row["n"] == number:
            with suppress(FileExistsError), open(path, "x"):
                os.kill(os.getpid(), signal.SIGKILL)
        return row

    return apply


def test_a_killed_worker_leaves_no_trace(spark, tmp_path):
    kill = kill_once(tmp_path / "first attempt", 50)
    write(tmp_path / "out", numbers(spark), map=kill, shard_samples=5)
    assert (tmp_path / "first attempt").exists()
    assert_numbers(tmp_path / "out")
    assert len(partition_names(tmp_path / "out")) == 5


def test_a_killed_worker_leaves_no_files_in_a_bucket(spark, servers, tmp_path):
    directory = servers["s3"].new_directory()
    kill = kill_once(tmp_path / "first attempt", 30)
    options = directory.storage_options
    write(directory.url, numbers(spark), map=kill, shard_samples=5, storage_options=options)
    ds = npstream.open(directory.url, storage_options=options)
    assert ds["n"].load().tolist() == list(range(N))
    filesystem, root = directory.filesystem()
    names = {file[len(root) + 1 :].partition("/")[0] for file in filesystem.find(root)}
    assert len({name for name in names if name.startswith("partition.")}) == 5
    assert "partitions.work" not in names
