"""Parquet files as a source, also those of a directory with partitions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import unquote

from npstream._core.optional import import_optional
from npstream.conversion.arrow import TABLE_BYTES, TableColumns
from npstream.conversion.hugging_face import StoredFeature
from npstream.conversion.source import InputSource, SourceRequest, read_in_thread
from npstream.errors import FormatError, StorageError
from npstream.writing.inputs.hugging_face import image_encoding
from npstream.writing.inputs.parts import Part
from npstream.writing.tables import with_column

if TYPE_CHECKING:
    from npstream.conversion.files import FileList, SourceFile

__all__ = ["ParquetSource"]

_FOOTER_THREADS = 8
"""Number of files whose footers are read concurrently."""

_MAX_ROWS = 1 << 17
"""Maximum rows of a batch."""

_LOCAL_BUFFER, _REMOTE_BUFFER = 1 << 20, 1 << 23
"""Bytes of a column that are read together."""

_MAX_WHOLE_GROUP = 1 << 26
"""Maximum mean bytes of the row groups of a remote file that is read one row group at a time.

All selected columns of a row group are then fetched together. The columns of larger row groups are
read in pieces of `_REMOTE_BUFFER` bytes.
"""

_NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class _Footer:
    """Metadata in the footer of a file.

    `schema` has the type of each column after conversion. `features` has the columns of Hugging
    Face's `datasets` whose stored type differs from the type in `schema`. `rows` is the number of
    rows. `row_bytes` is the mean size of a decompressed row in bytes.
    """

    schema: Any
    features: Mapping[str, StoredFeature]
    rows: int
    row_bytes: int


class ParquetSource(InputSource):
    """Parquet files, in the natural order of their names.

    Directories such as ``year=2024`` become columns: of integers if all values are integers, else
    of text. ``partitioning=False`` leaves them out. Images and audio of Hugging Face's `datasets`
    are stored as files, without decoding.
    """

    kind = "parquet"
    extensions = (".parquet", ".pq", ".parq")
    OPTIONS: ClassVar[tuple[str, ...]] = ("partitioning",)

    def __init__(self, files: FileList, request: SourceRequest) -> None:
        super().__init__(files, request)
        data_files = self.data_files()
        has_partitions = request.options.get("partitioning", True)
        self._partitions = _partitions(data_files) if has_partitions else [{} for _ in data_files]
        with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
            footers = list(pool.map(_read_footer, data_files))
        self._files = list(zip(data_files, footers, strict=True))
        schemas = [
            _with_partitions(footer.schema, partition)
            for footer, partition in zip(footers, self._partitions, strict=True)
        ]
        where = data_files[0].where
        names = self.select_columns(schemas[0].names, where)
        names += [n for n in request.fill if n not in names and _is_requested(n, request)]
        self._columns = TableColumns(names, schemas[0], request, where)
        for file, schema in zip(data_files[1:], schemas[1:], strict=True):
            self._columns.check(schema, file.where)
        self.columns = self._columns.encodings
        self._set_image_encodings(footers[0])
        self.samples = sum(footer.rows for footer in footers)

    def _set_image_encodings(self, footer: _Footer) -> None:
        """Set the encodings of Hugging Face's images: the first image of a column decides."""
        images = [
            name
            for name, feature in footer.features.items()
            if feature.kind == "Image"
            and name in self._columns.encodings
            and name not in self.request.encodings
        ]
        if not images:
            return
        file = self._files[0][0]
        with _arrow_errors(file), _open_parquet(file) as parquet:
            first = next(parquet.iter_batches(1, columns=images), None)
        for name in images:
            encoding = "png"  # this encoding stores image files of any format
            if first is not None and len(first):
                # Files must be embedded: a path is on the machine that wrote the Parquet file.
                files = footer.features[name].convert(first.column(name), is_local=False)
                encoding = image_encoding(files)
            self._columns.encodings[name] = encoding

    def parts(self) -> Sequence[Part]:
        """Return a part for each file."""
        return [
            Part(file.name, partial(self._open, file, footer, partition), footer.rows)
            for (file, footer), partition in zip(self._files, self._partitions, strict=True)
        ]

    def locate(self, part: str, row: int) -> str:
        """Return the number of a row in its file, counted from 0."""
        return f"row {row}, counted from 0"

    def _open(
        self, file: SourceFile, footer: _Footer, partition: Mapping[str, Any]
    ) -> Iterator[Any]:
        return read_in_thread(self._batches(file, footer, partition))

    def _batches(
        self, file: SourceFile, footer: _Footer, partition: Mapping[str, Any]
    ) -> Iterator[Any]:
        pa = import_optional("pyarrow", "pyarrow", "arrow")
        encodings = self._columns.encodings
        names = [name for name in footer.schema.names if name in encodings]
        constants = {
            name: value
            for name, value in partition.items()
            if name in encodings and name not in names
        }
        cast = self._columns.caster(_with_partitions(footer.schema, partition))
        rows = min(max(TABLE_BYTES // max(footer.row_bytes, 1), 1), _MAX_ROWS)
        with _arrow_errors(file):
            # If only columns of the partition are written, a batch still needs its number of rows.
            # All columns are read for it.
            for batch in _record_batches(file, rows, names or None):
                arrays = [_column(batch, name, footer) for name in names]
                arrays += [pa.repeat(value, len(batch)) for value in constants.values()]
                selected = pa.RecordBatch.from_arrays(arrays, [*names, *constants])
                yield selected if cast is None else cast(selected)


def _read_footer(file: SourceFile) -> _Footer:
    with _arrow_errors(file), _open_parquet(file) as parquet:
        metadata = parquet.metadata
        groups = range(metadata.num_row_groups)
        nbytes = sum(metadata.row_group(number).total_byte_size for number in groups)
        schema = parquet.schema_arrow
        features = _features(schema)
        for name, feature in features.items():
            index = schema.get_field_index(name)
            schema = schema.set(index, feature.arrow_field(schema.field(index)))
        rows = metadata.num_rows
        return _Footer(schema, features, rows, nbytes // max(rows, 1))


def _features(schema: Any) -> dict[str, StoredFeature]:
    """Return the features of Hugging Face whose values are files or arrays of one shape."""
    try:
        info = json.loads((schema.metadata or {})[b"huggingface"])["info"]
        documents = dict(info["features"]).items()
    except (KeyError, TypeError, ValueError):
        return {}
    features = {name: StoredFeature(name, document) for name, document in documents}
    return {
        name: feature
        for name, feature in features.items()
        if name in schema.names
        and (
            feature.is_file(schema.field(name).type)
            or (feature.shape and not feature.is_varying_array)
        )
    }


def _column(batch: Any, name: str, footer: _Footer) -> Any:
    """Return a column of a batch with the type in the schema of the footer."""
    array = batch.column(name)
    if name not in footer.features:
        return array
    try:
        return footer.features[name].convert(array, is_local=False)
    except (TypeError, ValueError) as error:
        raise with_column(name, error) from None


def _open_parquet(file: SourceFile, *, whole_groups: bool = False) -> Any:
    """Open a file.

    With `whole_groups`, all selected columns of a row group are fetched together.
    """
    parquet = import_optional("pyarrow.parquet", "pyarrow", "arrow", "reading Parquet files")
    return parquet.ParquetFile(
        file.path if file.path is not None else file.open(buffered=False),
        # With buffer_size=0, pyarrow reads the columns of a whole row group for its first batch.
        buffer_size=_LOCAL_BUFFER if file.path is not None else _REMOTE_BUFFER,
        pre_buffer=whole_groups,
        page_checksum_verification=True,
    )


def _record_batches(file: SourceFile, rows: int, names: list[str] | None) -> Iterator[Any]:
    """Yield the record batches of a file, with bounded memory."""
    with _open_parquet(file) as parquet:
        groups = parquet.metadata.num_row_groups
        if file.path is not None or file.nbytes > groups * _MAX_WHOLE_GROUP:
            yield from parquet.iter_batches(rows, columns=names)
            return
    with _open_parquet(file, whole_groups=True) as parquet:
        # `iter_batches` keeps the fetched bytes until it ends, so each group has its own call.
        for group in range(groups):
            yield from parquet.iter_batches(rows, row_groups=[group], columns=names)


@contextmanager
def _arrow_errors(file: SourceFile) -> Iterator[None]:
    """Convert exceptions of pyarrow to errors that name the file."""
    pa = import_optional("pyarrow", "pyarrow", "arrow", "reading Parquet files")
    try:
        yield
    except pa.ArrowException as error:
        raise FormatError(f"{file.where}: cannot be read as Parquet: {error}") from error
    except OSError as error:
        if isinstance(error, StorageError) or error.errno is not None:
            raise
        raise FormatError(f"{file.where}: cannot be read as Parquet: {error}") from error


def _partitions(files: Sequence[SourceFile]) -> list[dict[str, Any]]:
    """Return for each file the values in the names of its directories, as Arrow scalars.

    Raises
    ------
    ValueError
        If the files have different partition columns.
    """
    texts = [_partition_texts(file.name) for file in files]
    for file, values in zip(files, texts, strict=True):
        if list(values) != list(texts[0]):
            raise ValueError(
                f"{file.where}: its directories have the partition columns {list(values)}, and "
                f"{files[0].where} has {list(texts[0])}: give a glob of files with the same ones, "
                "or reader_options={'partitioning': False}, which leaves these columns out"
            )
    pa = import_optional("pyarrow", "pyarrow", "arrow", "reading Parquet files")
    types = {
        name: pa.int64() if all(_is_int64(values[name]) for values in texts) else pa.string()
        for name in texts[0]
    }

    def scalar(name: str, text: str | None) -> Any:
        value = int(text) if text is not None and pa.types.is_integer(types[name]) else text
        return pa.scalar(value, types[name])

    return [{name: scalar(name, text) for name, text in values.items()} for values in texts]


def _partition_texts(name: str) -> dict[str, str | None]:
    """Return the partition values in the path of a file; None for a missing value."""
    pairs = (part.partition("=") for part in name.split("/")[:-1] if "=" in part)
    return {
        unquote(key): None if value == _NULL_PARTITION else unquote(value)
        for key, _, value in pairs
    }


def _is_int64(text: str | None) -> bool:
    """Return True for a missing value, and for an int64 in canonical form.

    Numbers such as "007" stay text.
    """
    if text is None:
        return True
    digits = text.removeprefix("-")
    if not digits.isdecimal() or len(digits) > len(str(2**63)):
        return False
    return str(int(text)) == text and abs(int(text)) < 2**63


def _with_partitions(schema: Any, partition: Mapping[str, Any]) -> Any:
    pa = import_optional("pyarrow", "pyarrow", "arrow", "reading Parquet files")
    for name, value in partition.items():
        if name not in schema.names:
            schema = schema.append(pa.field(name, value.type))
    return schema


def _is_requested(name: str, request: SourceRequest) -> bool:
    return request.columns is None or name in request.columns
