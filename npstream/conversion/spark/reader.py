"""Provide `read`, which opens a dataset as a DataFrame of Spark.

Tested in tests/conversion/spark/test_reader.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

from npstream._core.optional import import_optional
from npstream.dataset.export import block_bounds
from npstream.dataset.opening import open_dataset
from npstream.errors import short_traceback

if TYPE_CHECKING:
    from npstream._core.typing import Int64
    from npstream.dataset.dataset import Dataset

__all__ = ["read"]

_BATCH_ROWS = 1 << 13
"""Rows of a record batch."""


def read(
    session: Any,
    source: str | PathLike[str] | Dataset,
    *,
    columns: Sequence[str] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Any:
    """Return a DataFrame of Spark that reads a dataset, with a partition for each shard.

    The DataFrame is lazy: executors read the shards, so they need access to the path or URL. If
    the sample ids of a view are neither ascending nor descending, partitions do not follow the
    shards. They then have the average number of rows of a shard.

    Parameters
    ----------
    session : pyspark.sql.SparkSession
    source : str, os.PathLike or Dataset
        The directory or URL of a dataset, or an opened dataset or view.
    columns : sequence of str, optional
        The columns to read; by default all. Numbers, booleans, text, bytes, times and arrays of
        numbers are supported.
    storage_options : mapping, optional
        Options of the storage driver, if `source` is a URL.

    Returns
    -------
    pyspark.sql.DataFrame

    Raises
    ------
    TypeError
        If Spark has no type for a column. The message names the column.
    ColumnError
        If the dataset lacks one of `columns`.
    MissingDependencyError
        If pyspark is not installed.
    """
    with short_traceback:
        import_optional("pyspark", "pyspark", "spark")
        if isinstance(source, str | PathLike):
            source = open_dataset(source, storage_options=storage_options)
        view = source if columns is None else source[list(columns)]
        schema = _spark_schema(view)
        bounds = block_bounds(view._source, view._selection)
        partitions = max(len(bounds) - 1, 1)
        numbers = session.range(0, len(bounds) - 1, 1, partitions)
        return numbers.mapInArrow(_task(view, bounds), schema)


def _task(view: Dataset, bounds: Int64) -> Callable[[Iterator[Any]], Iterator[Any]]:
    """Return the function of each Spark task: it takes partition numbers, and yields their rows."""

    def read_partitions(batches: Iterator[Any]) -> Iterator[Any]:
        schema = _arrow_schema(view)
        for batch in batches:
            for number in batch.column(0).to_pylist():
                start, stop = bounds[number : number + 2].tolist()
                for first in range(start, stop, _BATCH_ROWS):
                    rows = view[first : min(first + _BATCH_ROWS, stop)]
                    yield from rows.to_arrow().cast(schema).to_batches()

    return read_partitions


def _spark_schema(view: Dataset) -> Any:
    """Return the schema of a view as Spark's StructType."""
    types = import_optional("pyspark.sql.types", "pyspark", "spark")
    convert = import_optional("pyspark.sql.pandas.types", "pyspark", "spark").from_arrow_type
    fields = [
        types.StructField(field.name, convert(field.type), nullable=False)
        for field in _arrow_schema(view)
    ]
    return types.StructType(fields)


def _arrow_schema(view: Dataset) -> Any:
    """Return the Arrow schema of a view, with types that Spark has."""
    pa = import_optional("pyarrow", "pyarrow", "arrow")
    fields = view[:0].to_arrow().schema
    return pa.schema([(field.name, _supported_type(field.name, field.type)) for field in fields])


def _supported_type(name: str, arrow_type: Any) -> Any:
    """Return the type of Spark for an Arrow type.

    It holds all values, except that timestamps and durations get microseconds. Casting them raises
    if a value would change.
    """
    pa = import_optional("pyarrow", "pyarrow", "arrow")
    types = pa.types
    if types.is_list(arrow_type) or types.is_large_list(arrow_type):
        return pa.list_(_supported_type(name, arrow_type.value_type))
    if types.is_fixed_size_list(arrow_type):
        return pa.list_(_supported_type(name, arrow_type.value_type))
    if types.is_timestamp(arrow_type):
        return pa.timestamp("us", arrow_type.tz)
    if types.is_duration(arrow_type):
        return pa.duration("us")
    wider = {
        pa.uint8(): pa.int16(), pa.uint16(): pa.int32(), pa.uint32(): pa.int64(),
        pa.uint64(): pa.decimal128(20, 0), pa.float16(): pa.float32(),
        pa.large_string(): pa.string(), pa.large_binary(): pa.binary(),
    }  # fmt: skip
    supported = (
        *wider.values(), pa.bool_(), pa.int8(), pa.float64(), pa.date32(),
    )  # fmt: skip
    result = wider.get(arrow_type, arrow_type)
    if result not in supported:
        raise TypeError(
            f"column {name!r}: Spark has no type for Arrow's {arrow_type}: leave the column out "
            "with columns="
        )
    return result
