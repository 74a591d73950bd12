"""Provide `dataframe_to_mds`, which writes a DataFrame of Spark as a dataset.

Tested in tests/conversion/spark/test_dataframes.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from npstream.conversion.spark.types import column_encodings
from npstream.conversion.spark.writer import write_dataframe, write_separate_datasets
from npstream.streaming.base.util import bytes_to_int

_IGNORED = {"keep_local", "progress_bar", "max_workers"}


def dataframe_to_mds(
    dataframe: Any,
    merge_index: bool = True,
    mds_kwargs: dict[str, Any] | None = None,
    udf_iterable: Callable[..., Iterable[Any]] | None = None,
    udf_kwargs: dict[str, Any] | None = None,
) -> tuple[str, str]:
    """Write a DataFrame of Spark as a dataset, by `npstream.conversion.spark.write`.

    Parameters
    ----------
    dataframe : pyspark.sql.DataFrame
        The rows. Each partition is written by one task.
    merge_index : bool, default: True
        If False, no index joins the datasets that the tasks write, each in a directory of its
        own. `merge_index` joins them later.
    mds_kwargs : dict, optional
        Arguments of `MDSWriter`. ``out`` is required. With `udf_iterable`, ``columns`` is required,
        too. The default of ``compression`` is "zstd". ``keep_local`` is not used.
    udf_iterable : callable, optional
        Called with DataFrames of pandas, one for each batch of rows; returns the samples to write.
    udf_kwargs : dict, optional
        Further arguments of `udf_iterable`.

    Returns
    -------
    (str, str)
        The local directory and the URL of the dataset. Only one of the two is written; the other
        one is "".

    Raises
    ------
    ValueError
        If the DataFrame is empty, or an argument is invalid.
    TypeError
        If no encoding follows from the type of a column.

    Examples
    --------
    >>> dataframe_to_mds(None, mds_kwargs={"out": "s3://bucket/corpus"})
    Traceback (most recent call last):
        ...
    ValueError: the DataFrame is empty
    """
    settings = dict(mds_kwargs or {})
    if dataframe is None or dataframe.isEmpty():
        raise ValueError("the DataFrame is empty")
    if "out" not in settings:
        raise ValueError("mds_kwargs needs out=, the directory or URL of the dataset")
    if udf_iterable is not None and "columns" not in settings:
        raise ValueError("with udf_iterable, mds_kwargs needs columns=, the encodings of samples")
    out = settings.pop("out")
    local, remote = ("", out) if isinstance(out, str) and "://" in out else (out, "")
    if not isinstance(out, str):
        local, remote = out
    options: dict[str, Any] = {
        "columns": settings.pop("columns", None),
        "compression": settings.pop("compression", "zstd"),
        "hashes": settings.pop("hashes", None) or (),
        "shard_size": bytes_to_int(settings.pop("size_limit", None) or 1 << 26),
    }
    connection = {"storage_options": None, "timeout": 60.0, "retries": settings.pop("retry", 4)}
    if unknown := settings.keys() - _IGNORED:
        raise ValueError(f"mds_kwargs has unknown arguments: {', '.join(sorted(unknown))}")
    samples = None if udf_iterable is None else partial(_samples, udf_iterable, udf_kwargs or {})
    if samples is None:
        columns = column_encodings(dataframe, options["columns"])
        options["columns"] = columns
        if list(columns) != dataframe.columns:
            dataframe = dataframe.select(*(f"`{name}`" for name in columns))
    write_all = write_dataframe if merge_index else write_separate_datasets
    write_all(remote or local, dataframe, connection, options, samples)
    return ("", remote) if remote else (local, "")


def _samples(
    function: Callable[..., Iterable[Any]], arguments: dict[str, Any], reader: Any
) -> Iterator[Any]:
    """Yield what a function of DataFrames of pandas returns for each batch of a partition."""
    for batch in reader:
        yield from function(batch.to_pandas(), **arguments)
