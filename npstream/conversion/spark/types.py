"""Provide the encodings of the columns of a DataFrame of Spark.

Types that MosaicML Streaming's ``dataframe_to_mds`` converts get the same encodings as there. So
the encodings of ``tinyint`` and ``smallint`` are unsigned. Streaming refuses all other types. They
get the encodings of the Arrow types to which Spark converts them.

Source: ``SPARK_TO_MDS`` in streaming/base/converters/dataframe_to_mds.py of Streaming 0.13.

Tested in tests/conversion/spark/test_writer.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from npstream._core.arguments import name_list
from npstream._core.optional import import_optional
from npstream.errors import ColumnError
from npstream.writing.inputs.arrow_columns import arrow_encoding

__all__ = ["column_encodings"]

_STREAMING_ENCODINGS = {
    "tinyint": "uint8",
    "smallint": "uint16",
    "int": "int32",
    "bigint": "int64",
    "float": "float32",
    "double": "float64",
    "string": "str",
    "binary": "bytes",
    "array<int>": "ndarray:int32",
    "array<smallint>": "ndarray:int16",
    "array<bigint>": "ndarray:int64",
    "array<float>": "ndarray:float32",
    "array<double>": "ndarray:float64",
}
"""Spark's name of a type -> encoding. All decimals have ``str_decimal``; see `_encoding`."""


def column_encodings(
    dataframe: Any, columns: Mapping[str, str] | Sequence[str] | None = None
) -> dict[str, str]:
    """Return the encoding of each column of a DataFrame.

    Parameters
    ----------
    dataframe : pyspark.sql.DataFrame
    columns : mapping of str to str, or sequence of str, optional
        The encodings of columns, or the names of columns whose encodings follow from their types.
        Other columns are left out. By default all columns are used.

    Returns
    -------
    dict of str to str

    Raises
    ------
    ColumnError
        If the DataFrame lacks a column.
    TypeError
        If no encoding follows from the type of a column.
    """
    fields = {each.name: each.dataType for each in dataframe.schema.fields}
    names = list(fields) if columns is None else list(columns)
    if columns is not None and not isinstance(columns, Mapping):
        names = name_list(columns)
    for name in names:
        if name not in fields:
            raise ColumnError(name, fields)
    if isinstance(columns, Mapping):
        return {name: columns[name] for name in names}
    return {name: _encoding(name, fields[name]) for name in names}


def _encoding(name: str, spark_type: Any) -> str:
    """Return the encoding of a column with a type of Spark."""
    text = spark_type.simpleString()
    if text.startswith("decimal("):
        return "str_decimal"
    if (encoding := _STREAMING_ENCODINGS.get(text)) is not None:
        return encoding
    try:
        return arrow_encoding(_arrow_type(spark_type)).name
    except TypeError as error:
        raise TypeError(f"column {name!r} of Spark's type {text}: {error}") from None


def _arrow_type(spark_type: Any) -> Any:
    """Return the Arrow type to which Spark converts a type; raise TypeError if it is not known."""
    pa = import_optional("pyarrow", "pyarrow", "arrow")
    name = spark_type.typeName()
    if name == "array":
        return pa.list_(_arrow_type(spark_type.elementType))
    if name == "map":
        return pa.map_(_arrow_type(spark_type.keyType), _arrow_type(spark_type.valueType))
    if name == "struct":
        return pa.struct([(f.name, _arrow_type(f.dataType)) for f in spark_type.fields])
    if name == "decimal":
        return pa.decimal128(spark_type.precision, spark_type.scale)
    arrow_types = {
        "byte": pa.int8(), "short": pa.int16(), "integer": pa.int32(), "long": pa.int64(),
        "float": pa.float32(), "double": pa.float64(), "boolean": pa.bool_(),
        "string": pa.string(), "binary": pa.binary(), "date": pa.date32(),
        "timestamp": pa.timestamp("us", "UTC"), "timestamp_ntz": pa.timestamp("us"),
        "interval day to second": pa.duration("us"), "daytimeinterval": pa.duration("us"),
    }  # fmt: skip
    if (arrow_type := arrow_types.get(name)) is None:
        raise TypeError("no encoding follows from it: cast the column, or leave it out")
    return arrow_type
