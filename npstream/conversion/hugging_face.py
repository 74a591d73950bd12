"""Datasets that Hugging Face's `datasets` saved with ``save_to_disk``, as a source.

Their files are streams of Arrow record batches. They are read with pyarrow, so that `datasets` need
not be installed. Local files are memory-mapped.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from npstream._core.optional import import_optional
from npstream.conversion.arrow import TABLE_BYTES, TableColumns
from npstream.conversion.source import InputSource, SourceRequest
from npstream.errors import ColumnError, FormatError, StorageError
from npstream.writing.inputs.arrow_columns import plain
from npstream.writing.inputs.fill import check_fill
from npstream.writing.inputs.hugging_face import (
    ARRAY_FEATURES,
    FILE_ENCODINGS,
    file_bodies,
    fixed_arrays,
    image_encoding,
)
from npstream.writing.inputs.parts import Part
from npstream.writing.inputs.recognition import table_of
from npstream.writing.mapping import table_rows
from npstream.writing.tables import with_column

if TYPE_CHECKING:
    from npstream.conversion.files import FileList, SourceFile

__all__ = ["HuggingFaceSource", "StoredFeature"]

_SPLITS = "dataset_dict.json"
_STATE = "state.json"
_INFO = "dataset_info.json"
_PURPOSE = "reading datasets of Hugging Face"


class HuggingFaceSource(InputSource):
    """A directory that ``save_to_disk`` of `datasets` wrote.

    A ``DatasetDict`` has several datasets: the option ``split`` chooses one of them. Images and
    audio are stored as files, without decoding.
    """

    kind = "huggingface"
    OPTIONS: ClassVar[tuple[str, ...]] = ("split",)

    def __init__(self, files: FileList, request: SourceRequest) -> None:
        super().__init__(files, request)
        self._folder = _dataset_folder(files, request.options.get("split"))
        state = self._document(_STATE)
        info = self._document(_INFO)
        if state.get("_indices_data_files"):
            raise ValueError(
                f"{self._where}: an old version of datasets saved it with a file of row numbers: "
                "load it with datasets.load_from_disk, and save it again"
            )
        self._files = [self._file(str(item["filename"])) for item in state["_data_files"]]
        features = info.get("features") or {}
        schema = self._schema()
        visible = state.get("_format_columns") or list(features) or schema.names
        names = [name for name in self.select_columns(visible, self._where) if name in schema.names]
        self._features = {name: StoredFeature(name, features.get(name)) for name in names}
        fields = [self._features[name].arrow_field(schema.field(name)) for name in names]
        names += [
            name
            for name in request.fill
            if name not in names and (request.columns is None or name in request.columns)
        ]
        pa = import_optional("pyarrow", "pyarrow", "arrow", _PURPOSE)
        self._columns = TableColumns(names, pa.schema(fields), request, self._where)
        self.columns = dict(self._columns.encodings)
        self._set_image_encodings(schema)
        # If a column has arrays of varying length, the parts yield samples and not tables. In these
        # samples, a value of type `bytes` is the content of a file, which is an encoded value.
        self.is_encoded = any(feature.is_varying_array for feature in self._features.values())

    @classmethod
    def recognizes(cls, files: FileList) -> bool:
        """Return True for a directory with the metadata that ``save_to_disk`` writes."""
        names = files.names()
        return files.root is not None and (_SPLITS in names or {_STATE, _INFO} <= names)

    @property
    def _where(self) -> str:
        return posixpath.join(self.files.where, self._folder) if self._folder else self.files.where

    def _file(self, name: str) -> SourceFile:
        path = posixpath.normpath(posixpath.join(self._folder, name))
        for file in self.files.files:
            if file.name == path:
                return file
        raise FormatError(f"{self._where}: its file {name!r} is missing")

    def _document(self, name: str) -> dict[str, Any]:
        file = self._file(name)
        with file.open() as opened:
            try:
                document = json.load(opened)
            except ValueError as error:
                raise FormatError(f"{file.where}: not JSON: {error}") from error
        if not isinstance(document, dict):
            raise FormatError(f"{file.where}: not a JSON object")
        return document

    def _schema(self) -> Any:
        if not self._files:
            raise ValueError(f"{self._where}: the dataset has no files")
        with _open_stream(self._files[0]) as reader:
            return reader.schema

    def _set_image_encodings(self, schema: Any) -> None:
        """Set the encodings of images: the first image of a column decides."""
        assert self.columns is not None
        # In FILE_ENCODINGS, images have an empty encoding.
        images = [
            name
            for name, feature in self._features.items()
            if name not in self.request.encodings
            and feature.is_file(schema.field(name).type)
            and not FILE_ENCODINGS[feature.kind]
        ]
        first = next(self._batches(self._files[0], images), None) if images else None
        for name in images:
            self.columns[name] = "png" if first is None else image_encoding(first.column(name))

    def parts(self) -> Sequence[Part]:
        """Return a part for each file."""
        return [Part(file.name, partial(self._open, file)) for file in self._files]

    def _open(self, file: SourceFile) -> Iterator[Any]:
        array_names = [name for name, each in self._features.items() if each.is_varying_array]
        if array_names:
            return self._samples(file, array_names)
        return self._batches(file, list(self._features))

    def _batches(self, file: SourceFile, names: list[str]) -> Iterator[Any]:
        """Yield record batches of some columns.

        The content of files becomes bytes. Arrays of a fixed shape become lists of fixed size.
        """
        pa = import_optional("pyarrow", "pyarrow", "arrow", _PURPOSE)
        with _open_stream(file) as reader:
            for name in names:
                if name not in reader.schema.names:
                    raise ColumnError(name, reader.schema.names, f"{file.where}: ")
            cast = self._columns.caster(reader.schema)
            for batch in reader:
                for part in _slices(batch.select(names)):
                    arrays = []
                    for name in names:
                        try:
                            is_local = file.path is not None
                            arrays.append(self._features[name].convert(part.column(name), is_local))
                        except (TypeError, ValueError) as error:
                            column_error = with_column(name, error)
                            column_error.add_note(f"in {file.where}")
                            raise column_error from None
                    converted = pa.RecordBatch.from_arrays(arrays, names)
                    yield converted if cast is None else cast(converted)

    def _samples(self, file: SourceFile, array_names: list[str]) -> Iterator[dict[str, Any]]:
        """Yield samples.

        The columns `array_names` have arrays whose first axis varies in length.
        """
        fill = check_fill(self.request.fill)
        for batch in self._batches(file, list(self._features)):
            table = table_of(batch, list(self._features), fill, check=False)
            assert table is not None
            for row in table_rows(table):
                for name in array_names:
                    if row[name] is not None:
                        row[name] = np.array(row[name], self._features[name].dtype)
                yield row


class StoredFeature:
    """The description of a column in ``dataset_info.json``.

    Parameters
    ----------
    name : str
        The name of the column.
    document : object
        The JSON value that describes the column; anything but a dict counts as an empty one.

    Attributes
    ----------
    name : str
    kind : str
        The class in `datasets`, such as ``"Image"``; "" if it is unknown.
    shape : tuple of int or None
        The shape of an array; None for an axis that varies in length. It is empty for other kinds.
    dtype : str
        The dtype of an array; "" for other kinds.
    """

    def __init__(self, name: str, document: Any) -> None:
        feature = document if isinstance(document, dict) else {}
        self.name = name
        self.kind = str(feature.get("_type", ""))
        self.shape: tuple[int | None, ...] = ()
        self.dtype = ""
        if self.kind in ARRAY_FEATURES:
            self.shape, self.dtype = tuple(feature["shape"]), str(feature["dtype"])

    @property
    def is_varying_array(self) -> bool:
        """True for arrays of several axes if the length of one axis varies."""
        return None in self.shape

    def is_file(self, arrow_type: Any) -> bool:
        """Return True if the values are files, stored as bytes and a path."""
        types = import_optional("pyarrow.types", "pyarrow", "arrow", _PURPOSE)
        return self.kind in FILE_ENCODINGS and bool(types.is_struct(_storage(arrow_type)))

    def arrow_field(self, field: Any) -> Any:
        """Return the field of the converted values."""
        pa = import_optional("pyarrow", "pyarrow", "arrow", _PURPOSE)
        if self.is_file(field.type):
            return pa.field(self.name, pa.large_binary())
        arrow_type = _storage(field.type)
        if self.is_varying_array:
            arrow_type = pa.list_(pa.from_numpy_dtype(np.dtype(self.dtype)))
        elif self.shape:
            arrow_type = pa.from_numpy_dtype(np.dtype(self.dtype))
            for size in reversed(self.shape):
                arrow_type = pa.list_(arrow_type, size)
        return pa.field(self.name, arrow_type)

    def convert(self, array: Any, is_local: bool) -> Any:
        """Return values as they are written: files as bytes, arrays as lists of fixed size."""
        if self.is_file(array.type):
            if not is_local:
                _refuse_paths(array)
            return file_bodies(array)
        array = plain(array)
        if not self.shape or self.is_varying_array:
            return array
        if array.null_count:
            raise ValueError(
                "an array is missing: leave the sample out, as with dataset.filter(...)"
            )
        shape = tuple(size for size in self.shape if size is not None)
        return fixed_arrays(array, shape)


def _storage(arrow_type: Any) -> Any:
    """Return the type that an extension type is stored as."""
    return getattr(arrow_type, "storage_type", arrow_type)


def _refuse_paths(array: Any) -> None:
    """Raise ValueError for files stored only as a path on the machine that saved the dataset."""
    pc = import_optional("pyarrow.compute", "pyarrow", "arrow", _PURPOSE)
    is_path = pc.and_(
        pc.is_null(pc.struct_field(array, "bytes")), pc.is_valid(pc.struct_field(array, "path"))
    )
    if (row := is_path.index(True).as_py()) >= 0:
        path = pc.struct_field(array, "path")[row].as_py()
        raise ValueError(
            f"its file {path!r} is not in the dataset, which has its path only: save the dataset "
            "with the files embedded"
        )


def _slices(batch: Any) -> Iterator[Any]:
    """Yield a record batch in parts of about `TABLE_BYTES`."""
    rows = max(TABLE_BYTES * len(batch) // max(batch.nbytes, 1), 1)
    for start in range(0, len(batch), rows):
        yield batch.slice(start, rows)


def _dataset_folder(files: FileList, split: Any) -> str:
    """Return the folder of the dataset to read, relative to the source.

    Raises
    ------
    ValueError
        If there are several splits and none is chosen, or there is no such split.
    """
    if files.root is None:
        raise ValueError(
            f"{files.where}: a dataset of Hugging Face is a directory: give the one that holds "
            f"{_STATE} or {_SPLITS}"
        )
    names = files.names()
    nested = sorted({name.rpartition("/")[0] for name in names if name.endswith(f"/{_STATE}")})
    if _STATE in names:
        if split is not None:
            raise ValueError(
                f"{files.where}: reader_options={{'split': {split!r}}}: it is a single dataset "
                "without splits"
            )
        return ""
    if split is None and len(nested) == 1:
        return nested[0]
    if split in nested:
        return str(split)
    example = nested[0] if nested else "train"
    reason = f"there is no split {split!r}" if split is not None else "it has several datasets"
    raise ValueError(
        f"{files.where}: {reason}: choose one of {', '.join(map(repr, nested)) or 'none'}, as with "
        f"reader_options={{'split': {example!r}}}, or give its directory"
    )


@contextmanager
def _open_stream(file: SourceFile) -> Iterator[Any]:
    """Open a file as a reader of record batches."""
    pa = import_optional("pyarrow", "pyarrow", "arrow", _PURPOSE)
    try:
        if file.path is not None:
            opened = pa.memory_map(file.path)
        else:
            opened = pa.PythonFile(file.open(), "r")
        with opened, pa.ipc.open_stream(opened) as reader:
            yield reader
    except pa.ArrowException as error:
        raise FormatError(f"{file.where}: cannot be read as Arrow: {error}") from error
    except OSError as error:
        if isinstance(error, StorageError) or error.errno is not None:
            raise
        raise FormatError(f"{file.where}: cannot be read as Arrow: {error}") from error
