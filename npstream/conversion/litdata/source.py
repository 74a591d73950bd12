"""Provide `LitDataSource`, which reads datasets that `litdata.optimize` wrote, without litdata.

A directory has ``index.json`` and chunks. The index says how samples are made of values, and which
serializer stored each value. The format follows https://github.com/Lightning-AI/litData, version
0.2.76.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from npstream._core.arguments import quantity
from npstream._core.memory import ensure_fits
from npstream._core.optional import import_optional
from npstream.conversion.arrow import TableColumns
from npstream.conversion.file_samples.types import array_encoding, choose_type
from npstream.conversion.litdata.chunks import read_arrow, read_items
from npstream.conversion.litdata.values import Leaf, leaf_names, leaf_of
from npstream.conversion.source import InputSource, SourceRequest, read_in_thread
from npstream.errors import FormatError, short_repr
from npstream.formats.encodings.encodings import infer
from npstream.formats.encodings.images import decode_pil
from npstream.writing.inputs.bad_value import BadValue
from npstream.writing.inputs.parts import Part

if TYPE_CHECKING:
    from npstream.conversion.files import FileList, SourceFile

__all__ = ["LitDataSource"]

_INDEX = "index.json"

_BATCH_BYTES = 1 << 20
_BATCH_SAMPLES = 256

_TABLE_BYTES = 1 << 24
"""Approximate bytes of a record batch."""

_LOADERS = ("PyTreeLoader", "TokensLoader")


@dataclass(frozen=True, slots=True)
class _Chunk:
    file: SourceFile
    samples: int


class LitDataSource(InputSource):
    """The samples of a directory that `litdata.optimize` wrote.

    The name of a column is the path to its value in a sample: the keys of nested dicts, and the
    positions in lists and tuples, joined by dots. If samples are single values, the column is
    ``value``, or ``tokens`` if the index names the TokensLoader.
    """

    kind = "litdata"

    def __init__(self, files: FileList, request: SourceRequest) -> None:
        super().__init__(files, request)
        index_file = next((file for file in files.files if file.name == _INDEX), None)
        if index_file is None:
            raise ValueError(f"{files.where}: there is no {_INDEX}, so it is no LitData directory")
        self._where = index_file.where
        index = _read_json(index_file)
        config = index.get("config")
        if not isinstance(config, dict) or not isinstance(index.get("chunks"), list):
            raise FormatError(f"{self._where}: it has no chunks and config of LitData")
        self._config: Mapping[str, Any] = config
        self._check_config()
        by_name = {file.name: file for file in files.files}
        self._chunks = [self._chunk(entry, by_name) for entry in index["chunks"]]
        if not self._chunks:
            raise ValueError(f"{self._where}: it has no chunks, so there are no samples")
        self.samples = sum(chunk.samples for chunk in self._chunks)
        self._table: TableColumns | None = None
        self._leaves: list[Leaf] = []
        first = read_arrow(self._chunks[0].file)
        if first is None:
            self._set_leaves()
        else:
            self._set_table(first.schema)

    @classmethod
    def recognizes(cls, files: FileList) -> bool:
        """Return True for a directory with an ``index.json`` of LitData."""
        for file in files.files:
            if file.name == _INDEX:
                with suppress(FormatError):
                    index = _read_json(file)
                    return "chunks" in index and "shards" not in index
        return False

    def parts(self) -> Sequence[Part]:
        """Return a part for each chunk."""
        read: Callable[[_Chunk], Iterator[Any]] = self._batches
        if self._table is None:
            read = self._samples
        elif self.request.is_mapped:
            read = self._rows
        return [
            Part(chunk.file.name, partial(read, chunk), chunk.samples) for chunk in self._chunks
        ]

    def data_files(self) -> tuple[SourceFile, ...]:
        """Return the chunks."""
        return tuple(chunk.file for chunk in self._chunks)

    # The index

    def _check_config(self) -> None:
        """Raise for data that cannot be read."""
        encryption = self._config.get("encryption")
        if encryption:
            algorithm = encryption.get("algorithm") if isinstance(encryption, dict) else encryption
            raise ValueError(
                f"{self._where}: the samples are encrypted ({short_repr(algorithm)}): read them "
                "with litdata.StreamingDataset(..., encryption=...), and give it to npstream.write"
            )
        loader = self._config.get("item_loader", _LOADERS[0])
        if loader == "ParquetLoader":
            raise ValueError(
                f"{self._where}: its chunks are Parquet files: convert '*.parquet' of the directory"
            )
        if loader not in _LOADERS:
            raise ValueError(
                f"{self._where}: the samples were written for {short_repr(loader)}; only those for "
                f"{' and '.join(_LOADERS)} can be read: read them with litdata.StreamingDataset, "
                "and give it to npstream.write"
            )

    def _chunk(self, entry: Any, files: Mapping[str, SourceFile]) -> _Chunk:
        name = entry.get("filename") if isinstance(entry, dict) else None
        samples = entry.get("chunk_size") if isinstance(entry, dict) else None
        if not isinstance(name, str) or type(samples) is not int or samples < 0:
            raise FormatError(f"{self._where}: {short_repr(entry)} is no chunk")
        if name not in files:
            raise FormatError(
                f"{self._where}: it names the chunk {short_repr(name)}, which is not there"
            )
        return _Chunk(files[name], samples)

    # Samples that are stored as serialized values

    def _set_leaves(self) -> None:
        """Set the leaves of a sample, and the columns.

        `_leaves` has all leaves; `_selection` has the names of the leaves to read.
        """
        formats = self._config.get("data_format")
        spec = self._config.get("data_spec")
        if not isinstance(formats, list) or not all(isinstance(each, str) for each in formats):
            raise FormatError(f"{self._where}: data_format is {short_repr(formats)}")
        if spec is not None and not isinstance(spec, str):
            raise FormatError(f"{self._where}: data_spec is {short_repr(spec)}")
        self._is_tokens = self._config.get("item_loader") == "TokensLoader"
        try:
            names = leaf_names(spec, len(formats))
            if self._is_tokens:
                names = ["tokens" if name == "value" else name for name in names]
            leaves = [leaf_of(*pair) for pair in zip(names, formats, strict=True)]
        except ValueError as error:
            error_class = FormatError if isinstance(error, FormatError) else ValueError
            raise error_class(f"{self._where}: {error}") from error
        if self._is_tokens and len(leaves) != 1:
            raise FormatError(f"{self._where}: samples of tokens have one value, not {len(leaves)}")
        self._leaves = [self._with_requested_encoding(leaf) for leaf in leaves]
        self._selection = set(self.select_columns(names, self._where))
        encodings = {
            leaf.name: leaf.encoding for leaf in self._leaves if leaf.name in self._selection
        }
        encodings |= self.request.encodings
        if None in encodings.values():
            encodings = self._infer_encodings(encodings)
        self.is_encoded = True
        order = self.request.columns or [*names, *(n for n in self.request.fill if n not in names)]
        self.columns = {
            name: encodings.get(name) or infer(self.request.fill[name]).name for name in order
        }

    def _with_requested_encoding(self, leaf: Leaf) -> Leaf:
        """Return a leaf with a parser for the encoding that the user chose.

        If the leaf needs no other parser, it is returned unchanged.
        """
        requested = self.request.encodings.get(leaf.name)
        if requested is None or requested == leaf.encoding:
            return leaf
        if leaf.encoding in ("bytes", "jpeg", "png"):
            extension = "jpg" if leaf.encoding != "bytes" else ""
            return replace(leaf, parse=choose_type(extension, requested).parse)
        if leaf.encoding == "pil" and requested != "bytes":
            return replace(leaf, parse=decode_pil)
        return leaf

    def _infer_encodings(self, encodings: Mapping[str, str | None]) -> dict[str, str | None]:
        """Replace None, the unknown encoding of arrays, by the encoding of the first sample."""
        for chunk in self._chunks:
            for item in self._items(chunk):
                values = self._values(item, f"{chunk.file.where}: sample 0")
                for name, encoding in encodings.items():
                    if encoding is None and isinstance(values[name], BadValue):
                        raise FormatError(values[name].reason)
                return {
                    name: encoding or array_encoding(values[name])
                    for name, encoding in encodings.items()
                }
        raise ValueError(f"{self._where}: there are no samples")

    def _items(self, chunk: _Chunk) -> Iterator[bytes]:
        has_compressed_samples = self._config.get("compression_level") == "sample"
        return read_items(chunk.file, chunk.samples, has_compressed_samples=has_compressed_samples)

    def _samples(self, chunk: _Chunk) -> Iterator[dict[str, Any]]:
        """Yield the samples of a chunk, which a thread reads ahead."""
        yield from chain.from_iterable(read_in_thread(self._sample_batches(chunk)))

    def _sample_batches(self, chunk: _Chunk) -> Iterator[list[dict[str, Any]]]:
        batch: list[dict[str, Any]] = []
        nbytes = 0
        for number, item in enumerate(self._items(chunk)):
            batch.append(self._values(item, f"{chunk.file.where}: sample {number}"))
            nbytes += len(item)
            if nbytes >= _BATCH_BYTES or len(batch) >= _BATCH_SAMPLES:
                yield batch
                batch, nbytes = [], 0
        if batch:
            yield batch

    def _values(self, item: bytes, where: str) -> dict[str, Any]:
        """Return the values of a sample."""
        if self._is_tokens:
            return {self._leaves[0].name: self._parse(self._leaves[0], item, where)}
        count = len(self._leaves)
        start = 4 * count
        if len(item) < start:
            raise FormatError(f"{where}: {quantity(len(item), 'byte')} for {count} values")
        sizes = struct.unpack_from(f"<{count}I", item)
        if start + sum(sizes) != len(item):
            raise FormatError(
                f"{where}: {quantity(len(item), 'byte')}; its values have {start + sum(sizes):,}"
            )
        values = {}
        for leaf, size in zip(self._leaves, sizes, strict=True):
            if leaf.name in self._selection:
                values[leaf.name] = self._parse(leaf, item[start : start + size], where)
            start += size
        return values

    def _parse(self, leaf: Leaf, body: bytes, where: str) -> Any:
        """Return a value, or a `BadValue` if it cannot be parsed."""
        try:
            return leaf.parse(body)
        except ValueError as error:
            return self.bad_value(f"{where}: {leaf.name!r}: {error}")

    # Samples that are stored as rows of an Arrow table

    def _set_table(self, schema: Any) -> None:
        """Set the schema and the columns, from the index and the schema of the first chunk."""
        pa = import_optional("pyarrow", "pyarrow", "arrow")
        types = self._config.get("types")
        self._types: dict[str, Any] = {}
        for name, declared in types.items() if isinstance(types, dict) else ():
            target = _arrow_type(declared)
            if target is not None:
                self._types[name] = target
        names = list(dict.fromkeys([*schema.names, *self._types]))
        full = pa.schema(
            [(name, self._types.get(name) or schema.field(name).type) for name in names]
        )
        requested = self.request.columns
        names = self.select_columns(names, self._where)
        names += [
            name
            for name in self.request.fill
            if name not in names and (requested is None or name in requested)
        ]
        self._table = TableColumns(names, full, self.request, self._chunks[0].file.where)
        self.columns = self._table.encodings

    def _batches(self, chunk: _Chunk) -> Iterator[Any]:
        return read_in_thread(self._read_batches(chunk))

    def _rows(self, chunk: _Chunk) -> Iterator[dict[str, Any]]:
        """Yield the rows of a chunk as dicts: lists stay lists, and nulls are None.

        Unlike litdata, which leaves out a column that is null in all rows of a chunk.
        """
        for batch in self._batches(chunk):
            yield from batch.to_pylist()

    def _read_batches(self, chunk: _Chunk) -> Iterator[Any]:
        """Yield the rows of a chunk as record batches with the types of the index."""
        assert self._table is not None
        where = chunk.file.where
        table = read_arrow(chunk.file)
        if table is None:
            raise FormatError(
                f"{where}: it has no Arrow rows, and {self._chunks[0].file.where} has: read the "
                "data with litdata.StreamingDataset, and give it to npstream.write"
            )
        for name, target in self._types.items():
            if name in self._table.encodings:
                table = _with_type(table, name, target, where)
        self._table.check(table.schema, where)
        table = table.select([name for name in self._table.encodings if name in table.schema.names])
        cast = self._table.caster(table.schema)
        rows = max(_TABLE_BYTES // max(table.nbytes // max(table.num_rows, 1), 1), 1)
        for batch in table.to_batches(max_chunksize=rows):
            yield batch if cast is None else cast(batch)


def _read_json(file: SourceFile) -> dict[str, Any]:
    # A parsed document takes several times the memory of its text.
    ensure_fits(8 * file.nbytes, "reading {}", file.where)
    with file.open() as opened:
        body = opened.read()
    try:
        index = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{file.where}: not JSON: {error}") from error
    if not isinstance(index, dict):
        raise FormatError(f"{file.where}: {short_repr(index)} is no index")
    return index


_ARROW_TYPES = {"str": "string", "int": "int64", "float": "float64", "bool": "bool_"}
_ARROW_TYPES |= {"bytes": "binary"}


def _arrow_type(declared: Any) -> Any:
    """Return the Arrow type of a type in the index; None if the index does not define it fully."""
    pa = import_optional("pyarrow", "pyarrow", "arrow")
    if isinstance(declared, dict):
        if declared.get("type") == "list":
            element = _arrow_type(declared.get("value"))
            return None if element is None else pa.list_(element)
        declared = declared.get("type")
    name = _ARROW_TYPES.get(declared) if isinstance(declared, str) else None
    return None if name is None else getattr(pa, name)()


def _with_type(table: Any, name: str, target: Any, where: str) -> Any:
    """Return a table with a column cast to a type.

    If no row of the chunk has the column, a column of nulls is added.
    """
    pa = import_optional("pyarrow", "pyarrow", "arrow")
    if name not in table.schema.names:
        return table.append_column(name, pa.nulls(table.num_rows, target))
    if table.schema.field(name).type == target:
        return table
    try:
        column = table.column(name).cast(target)
    except (pa.ArrowException, ValueError) as error:
        raise FormatError(f"{where}: column {name!r} is no {target}: {error}") from error
    return table.set_column(table.schema.get_field_index(name), name, column)
