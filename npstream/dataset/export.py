"""Provide conversion of views to tables of pyarrow, pandas, polars and Hugging Face's datasets.

Each conversion starts from the same Arrow table, so that types are the same in all of them. Columns
and views also become lazy collections of Dask, which read one range of rows in each task.
Tested in tests/dataset/test_export.py.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from npstream._core.memory import ensure_fits
from npstream._core.optional import import_optional
from npstream._core.progress import progress

if TYPE_CHECKING:
    from npstream._core.typing import Int64
    from npstream.indexing.selection import Selection
    from npstream.reading.source import Source

__all__ = [
    "block_bounds",
    "to_arrow_table",
    "to_dask_array",
    "to_dask_frame",
    "to_data_frame",
    "to_hugging_face",
    "to_polars_frame",
]

_MIN_BLOCK_BYTES = 1 << 20
"""Shards are joined until a block of Dask has about this size. Each block costs a task."""

_IMAGE_FILES = ("jpeg", "png")
"""Encodings whose stored bytes are files of images."""


def to_arrow_table(source: Source, selection: Selection, names: tuple[str, ...]) -> Any:
    """Read columns of a view into a pyarrow Table.

    Raises
    ------
    ValueError
        If the view has several axes, or no columns.
    TypeError
        If Arrow has no type for a column.
    MemoryError
        If the rows that remain to be read need more memory than is free.
    """
    pa = import_optional("pyarrow", "pyarrow", "arrow")
    from npstream.reading.arrow_stream import record_batches

    if selection.ndim != 1:
        raise ValueError(f"a view of shape {selection.shape} is not a table: take its ravel()")
    if not names:
        raise ValueError("a view without columns is not a table: select columns, as in ds[['a']]")
    reader = record_batches(source, selection, names, is_limited=False)
    batches, rows, nbytes = [], 0, 0
    for batch in reader:
        batches.append(batch)
        rows, nbytes = rows + len(batch), nbytes + batch.nbytes
        remaining = selection.size - rows
        ensure_fits(nbytes * remaining // max(rows, 1), "a table with {:,} more rows", remaining)
    return pa.Table.from_batches(batches, reader.schema)


def to_data_frame(source: Source, selection: Selection, names: tuple[str, ...]) -> Any:
    """Read columns of a view into a DataFrame of pandas."""
    import_optional("pandas", "pandas", "pandas")
    table = to_arrow_table(source, selection, names)
    ensure_fits(table.nbytes, "a DataFrame of {:,} rows", len(table))
    return table.to_pandas(date_as_object=False)


def to_polars_frame(source: Source, selection: Selection, names: tuple[str, ...]) -> Any:
    """Read columns of a view into a DataFrame of polars."""
    polars = import_optional("polars", "polars", "polars")
    return polars.from_arrow(to_arrow_table(source, selection, names), rechunk=False)


def to_hugging_face(source: Source, selection: Selection, names: tuple[str, ...]) -> Any:
    """Read columns of a view into a Dataset of Hugging Face's datasets, in memory."""
    datasets = import_optional("datasets", "datasets", "datasets")
    table = to_arrow_table(source, selection, names)
    features = datasets.Features.from_arrow_schema(table.schema)
    for position, name in enumerate(names):
        encoding = source.field(name).encoding
        if encoding.kind == "image":
            features[name] = datasets.Image()
            column = table.column(position)
            column = _image_column(name, column, encoding.name, features[name].pa_type)
            table = table.set_column(position, name, column)
    memory = datasets.table.InMemoryTable(table)
    return datasets.Dataset(memory, info=datasets.DatasetInfo(features=features))


def _image_column(name: str, column: Any, encoding: str, storage: Any) -> Any:
    """Return images as Hugging Face stores them: the bytes of files, and no paths.

    Parameters
    ----------
    name : str
    column : pyarrow.ChunkedArray
        The stored bytes.
    encoding : str
        Their encoding. Images of another encoding than JPEG and PNG become PNG files.
    storage : pyarrow.DataType
        The type of the result, ``struct<bytes: binary, path: string>``.
    """
    pa = import_optional("pyarrow", "pyarrow", "arrow")
    chunks = []
    for chunk in progress(column.chunks, "images"):
        if encoding in _IMAGE_FILES:
            files = chunk.cast(pa.binary())
        else:
            files = pa.array([_png_file(name, body) for body in chunk.to_pylist()], pa.binary())
        paths = pa.nulls(len(files), pa.string())
        chunks.append(pa.StructArray.from_arrays([files, paths], ["bytes", "path"]).cast(storage))
    return pa.chunked_array(chunks, storage)


def _png_file(name: str, body: bytes) -> bytes:
    """Return an image of the encoding ``pil`` as a PNG file."""
    from npstream.formats.encodings.images import decode_pil, encode_png

    image = decode_pil(body)
    try:
        return encode_png(image)
    except ValueError as error:
        raise TypeError(
            f"column {name!r} has an image of mode {image.mode!r}, which PNG files cannot store: "
            f"leave the column out, as in ds.drop({name!r})"
        ) from error


def to_dask_array(column: Any, source: Source, selection: Selection) -> Any:
    """Return a lazy dask array of a column, with blocks along the shards.

    Raises
    ------
    ValueError
        If the column has several axes of rows.
    TypeError
        If the values vary in size, or are not numbers, bools or times.
    """
    dask = import_optional("dask.array", "dask", "dask")
    name, dtype = column.name, column.dtype
    if selection.ndim != 1:
        raise ValueError(
            f"column {name!r} of a view of shape {selection.shape}: take the view's ravel()"
        )
    if dtype.kind not in "biufcmM":
        raise TypeError(
            f"column {name!r} holds values of dtype {dtype} and not of one size, as a dask array "
            "needs: read tables with ds.to_dask_dataframe()"
        )
    value_shape = column.shape[1:]
    bounds = block_bounds(source, selection, _MIN_BLOCK_BYTES)
    chunks = (tuple((bounds[1:] - bounds[:-1]).tolist()) or (0,), *((n,) for n in value_shape))
    meta = np.empty((0,) * column.ndim, dtype)
    return dask.from_array(_EagerColumn(column), chunks, name=False, asarray=False, meta=meta)


def to_dask_frame(view: Any, source: Source, selection: Selection) -> Any:
    """Return a lazy dask DataFrame of a view, with partitions along the shards.

    Raises
    ------
    ValueError
        If the view has several axes, or no columns.
    TypeError
        If Arrow has no type for a column.
    """
    frames = import_optional("dask.dataframe", "dask", "dask")
    dask = import_optional("dask", "dask", "dask")
    delayed = dask.delayed
    bounds = block_bounds(source, selection, _MIN_BLOCK_BYTES).tolist()
    bounds = bounds if len(bounds) > 1 else [0, 0]
    # All tasks share one key for the view, so that the graph contains the view once.
    shared_view, read = delayed(view, pure=False), delayed(_read_frame, pure=False)
    tasks = [read(shared_view, start, stop) for start, stop in pairwise(bounds)]
    divisions = (*bounds[:-1], max(bounds[-1] - 1, 0))
    # By default Dask converts all columns of objects to text, arrays included.
    with dask.config.set({"dataframe.convert-string": False}):
        return frames.from_delayed(tasks, meta=_read_frame(view, 0, 0), divisions=divisions)


def block_bounds(source: Source, selection: Selection, min_bytes: int = 0) -> Int64:
    """Return the bounds that cut a view into ranges, each with the rows of one or more shards.

    `partition_bounds` describes the result, also for a view whose order does not follow the shards.

    Parameters
    ----------
    source : Source
    selection : Selection
        The rows of a view of the source.
    min_bytes : int, default: 0
        Consecutive shards are joined until a range has about this number of bytes.
    """
    from npstream.indexing.partitions import partition_bounds

    rows = source.estimate_rows(min_bytes)
    return partition_bounds(selection, _shard_rows(source, selection.dataset_size), rows)


def _shard_rows(source: Source, size: int) -> Int64:
    """Return the first row of each shard of a source of `size` rows, followed by `size`."""
    if not source.members:
        return source.index.starts
    bounds, rows = [], 0
    for member in source.members:
        bounds.append(rows + block_bounds(member.source, member.selection)[:-1])
        rows += member.selection.size
    return np.array([*np.concatenate(bounds), size], np.int64)


class _EagerColumn:
    """A column whose parts are read when they are indexed, in a task of Dask.

    It has no method `copy`. Dask would call the method when it makes the collection, and so read
    the whole column.
    """

    def __init__(self, column: Any) -> None:
        self.shape, self.dtype, self.ndim = column.shape, column.dtype, column.ndim
        self._column = column

    def __getitem__(self, index: Any) -> Any:
        values = self._column[index]  # a value itself, or a lazy column
        return values.load() if isinstance(values, type(self._column)) else values


def _read_frame(view: Any, start: int, stop: int) -> Any:
    """Read rows of a view into a DataFrame of pandas, with their row numbers as its index."""
    pandas = import_optional("pandas", "pandas", "pandas")
    frame = view[start:stop].to_pandas()
    frame.index = pandas.RangeIndex(start, stop)
    return frame
