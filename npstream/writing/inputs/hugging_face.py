"""Datasets of Hugging Face as tables to write.

Rows are read as Arrow record batches. Images and audio stay encoded files.

Tested in tests/writing/test_hugging_face.py.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np

from npstream._core.optional import import_optional
from npstream.writing.inputs.arrow_columns import ArrowColumn, plain
from npstream.writing.inputs.fill import NO_FILL, Fill
from npstream.writing.tables import (
    Columns,
    ConstantColumn,
    InputColumn,
    InputTable,
    ListColumn,
    RowError,
    TableStream,
    with_column,
)

__all__ = [
    "ARRAY_FEATURES", "FILE_ENCODINGS", "dataset_stream", "file_bodies", "fixed_arrays",
    "image_encoding",
]  # fmt: skip

_BATCH_BYTES = 1 << 23
_BATCH_ROWS = 1 << 16
_STREAM_ROWS = 1000
"""Rows of a batch, for a dataset of unknown size."""

ARRAY_FEATURES = ("Array2D", "Array3D", "Array4D", "Array5D")
"""The features that are arrays of several axes."""

FILE_ENCODINGS = {"Audio": "bytes", "Video": "bytes", "Pdf": "bytes", "Image": ""}
"""The encodings of features that are files. The first file decides the encoding of images."""


def dataset_stream(
    data: Any, names: Collection[str] | None, fill: Mapping[str, Fill]
) -> TableStream | None:
    """Return the rows of a Dataset or IterableDataset as a stream of tables.

    Parameters
    ----------
    data : datasets.Dataset or datasets.IterableDataset
    names : collection of str, optional
        The columns to write; by default all.
    fill : mapping of str to Fill

    Returns
    -------
    TableStream or None
        None if the dataset has a user-defined transform or unknown features. The caller must
        then write it sample by sample.
    """
    output_format = getattr(data, "format", None) or {}
    if output_format.get("type") == "custom" or data.features is None:
        return None
    visible = output_format.get("columns") or list(data.features)
    selected = [name for name in visible if names is None or name in names]
    features = {name: data.features[name] for name in selected}
    data = data.select_columns(selected).with_format("arrow")
    image_encodings: dict[str, str] = {}

    def table(rows: Any) -> InputTable:
        return _table(rows, features, image_encodings, names, fill)

    batches = (table(rows) for rows in _batches(data, _batch_rows(data)))
    for first in batches:
        return TableStream(first, chain([first], batches))
    return TableStream(table(data.features.arrow_schema.empty_table()), iter(()))


def _batches(data: Any, rows: int) -> Iterator[Any]:
    """Yield the rows of a dataset as Arrow tables.

    A shuffled or filtered dataset has an array of row numbers. `datasets` reads such rows one by
    one, in 20 us each. This function collects the rows of an output table with one call for each
    record batch that holds some of them.
    """
    numbers = getattr(data, "_indices", None)
    source = getattr(getattr(data, "data", None), "table", None)
    if numbers is None or source is None:
        yield from data.iter(rows)
        return
    pa = import_optional("pyarrow", "pyarrow", "arrow")
    parts = source.to_batches()
    starts = np.concatenate([[0], np.cumsum([len(part) for part in parts], dtype=np.int64)])
    for start in range(0, len(data), rows):
        row_numbers = numbers.column(0).slice(start, rows).to_numpy().astype(np.int64)
        part_numbers = np.searchsorted(starts, row_numbers, side="right") - 1
        order = np.argsort(part_numbers, kind="stable")
        ends = np.flatnonzero(np.diff(part_numbers[order], append=-1)) + 1
        pieces = []
        for positions in np.split(order, ends[:-1]):
            part = int(part_numbers[positions[0]])
            pieces.append(parts[part].take(pa.array(row_numbers[positions] - starts[part])))
        inverse = np.empty(len(order), np.int64)
        inverse[order] = np.arange(len(order))
        yield pa.Table.from_batches(pieces).combine_chunks().take(pa.array(inverse))


def _batch_rows(data: Any) -> int:
    if not hasattr(data, "__len__") or not len(data):
        return _STREAM_ROWS
    row_bytes = max(data.data.nbytes // len(data), 1)
    return int(min(max(_BATCH_BYTES // row_bytes, 1), _BATCH_ROWS))


def _table(
    rows: Any,
    features: Mapping[str, Any],
    image_encodings: dict[str, str],
    names: Collection[str] | None,
    fill: Mapping[str, Fill],
) -> Columns:
    """Return a batch as a table; add new encodings of images to `image_encodings`."""
    columns: dict[str, InputColumn] = {}
    for name, feature in features.items():
        try:
            columns[name] = _column(
                name, rows[name], feature, image_encodings, fill.get(name, NO_FILL)
            )
        except (TypeError, ValueError) as error:
            raise with_column(name, error) from error
    for name, value in fill.items():
        if name not in columns and (names is None or name in names):
            columns[name] = ConstantColumn(len(rows), value)
    return Columns(columns, [*rows.column_names])


def _column(
    name: str, array: Any, feature: Any, image_encodings: dict[str, str], fill: Fill
) -> InputColumn:
    kind = type(feature).__name__
    pa = import_optional("pyarrow", "pyarrow", "arrow")
    if kind in FILE_ENCODINGS and pa.types.is_struct(array.type):
        files = file_bodies(array)
        if name not in image_encodings:
            image_encodings[name] = FILE_ENCODINGS[kind] or image_encoding(files)
        return ArrowColumn(files, fill, image_encodings[name])
    if kind in ARRAY_FEATURES:
        return _arrays(array, feature, fill)
    return ArrowColumn(array, fill)


def file_bodies(array: Any) -> Any:
    """Return the bytes of files; read the files that have only a path."""
    pc = import_optional("pyarrow.compute", "pyarrow", "arrow")
    pa = import_optional("pyarrow", "pyarrow", "arrow")
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    files = pc.struct_field(array, "bytes")
    absent = np.flatnonzero(files.is_null().to_numpy(zero_copy_only=False))
    if not len(absent):
        return files
    paths = pc.struct_field(array, "path")
    bodies = files.to_pylist()
    for row in absent.tolist():
        if (path := paths[row].as_py()) is not None:
            bodies[row] = _read(path, row)
    return pa.array(bodies, pa.large_binary())


def _read(path: str, row: int) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise RowError(
            row,
            f"its file {path!r} cannot be read: {error.strerror}; embed the files, as with "
            "data.map(...), or leave the sample out",
        ) from error


def image_encoding(files: Any) -> str:
    """Return "jpeg" if the first image file is a JPEG file, otherwise "png".

    Both encodings store files of any format, so a column may mix formats.
    """
    first = next((file.as_py() for file in files if file.is_valid), b"")
    return "jpeg" if first.startswith(b"\xff\xd8") else "png"


def _arrays(array: Any, feature: Any, fill: Fill) -> InputColumn:
    """Return arrays of several dimensions, which Arrow stores as nested lists, as a column."""
    shape, dtype = tuple(feature.shape), np.dtype(feature.dtype)
    storage = plain(array)
    if None in shape:
        rows = [None if row is None else np.array(row, dtype) for row in storage.to_pylist()]
        return ListColumn(rows, f"ndarray:{dtype.name}", fill)
    if storage.null_count:
        ArrowColumn(storage).check()
    return ArrowColumn(fixed_arrays(storage, shape), fill)


def fixed_arrays(storage: Any, shape: tuple[int, ...]) -> Any:
    """Return nested lists of one shape, which Arrow stores with offsets, as lists of fixed size.

    Raises
    ------
    ValueError
        If they do not all have the shape.
    """
    pa = import_optional("pyarrow", "pyarrow", "arrow")
    pc = import_optional("pyarrow.compute", "pyarrow", "arrow")
    flat = storage
    for size in shape:
        if (pc.list_value_length(flat).to_numpy(zero_copy_only=False) != size).any():
            raise ValueError(f"its arrays do not all have the shape {shape} of its feature")
        flat = flat.flatten()
    for size in reversed(shape):
        flat = pa.FixedSizeListArray.from_arrays(flat, size)
    return flat
