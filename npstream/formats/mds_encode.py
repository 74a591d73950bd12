"""MDS shards, written: samples and records as bytes, and what the index says of them.

`npstream.formats.mds` shows where everything lies.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from npstream._typing import AnyArray, Body, Bytes, Int64
from npstream.errors import ColumnError, MissingDependencyError
from npstream.formats.compression import parse_compression
from npstream.formats.encodings import Encoding, parse
from npstream.formats.hashes import digest

__all__ = ["MAX_BYTES", "ShardFormat", "cells"]

MAX_BYTES = 2**32 - 1
"""Where a shard may end: its offsets are uint32."""

_SLICE = 1 << 20
"""Bytes of records that are filled column after column, while they stay in the CPU's cache."""


class ShardFormat:
    """What all shards of a dataset have in common.

    Parameters
    ----------
    columns : mapping of str to str
        The encoding of each column.
    size_limit : int or None
        Bytes that a shard of more than one sample may have; None for no limit but the format's.
    compression : str or None
        The codec of the stored files.
    hashes : iterable of str
        The hashes that the index shall hold of every file.

    Attributes
    ----------
    columns : dict of str to Encoding
        The columns in stored order, which is that of their names.
    size_limit : int or None
        As given.
    compression : str or None
        As given.
    empty : int
        Bytes of a shard without samples; each sample adds its own and four for its offset.
    """

    def __init__(
        self,
        columns: Mapping[str, str],
        size_limit: int | None,
        compression: str | None,
        hashes: Iterable[str],
    ) -> None:
        self.columns = {name: _parse(name, columns[name]) for name in sorted(columns)}
        self.size_limit = size_limit
        self.compression = compression
        sizes = [encoding.size for encoding in self.columns.values()]
        self._facts: dict[str, Any] = {
            "column_encodings": [columns[name] for name in self.columns],
            "column_names": list(self.columns),
            "column_sizes": sizes,
            "compression": compression,
            "format": "mds",
            "hashes": sorted(set(hashes)),
            "size_limit": size_limit,
            "version": 2,
        }
        self._configuration = json.dumps(self._facts, sort_keys=True).encode()
        self._plan = [(name, e.encode, e.size is None) for name, e in self.columns.items()]
        self._sizes = struct.Struct(f"<{sizes.count(None)}I")
        self.empty = 8 + len(self._configuration)

    def encode(self, sample: Mapping[str, Any], number: int) -> bytes:
        """Return the bytes of a sample; `number` is for messages."""
        sizes, bodies = [], [b""]
        for name, encode, varies in self._plan:
            try:
                body = encode(sample[name])
            except (MemoryError, MissingDependencyError):
                raise
            except Exception as error:
                raise self._refusal(sample, name, number, error) from error
            bodies.append(body)
            if varies:
                sizes.append(len(body))
        try:
            bodies[0] = self._sizes.pack(*sizes)
        except struct.error:
            raise self._too_long(max(sizes), number) from None
        return b"".join(bodies)

    def _refusal(
        self, sample: Mapping[str, Any], name: str, number: int, error: Exception
    ) -> Exception:
        """Return the exception that says which value of which sample could not be encoded."""
        if name not in sample:
            return ColumnError(name, map(str, sample), f"sample {number}: ")
        kind = TypeError if isinstance(error, TypeError) else ValueError
        return kind(
            f"sample {number}: column {name!r} is {self.columns[name].name!r} and cannot take "
            f"this {type(sample[name]).__name__}: {error}"
        )

    def check_end(self, nbytes: int, number: int) -> None:
        """Refuse the sample with which a shard would end beyond what its offsets can say."""
        if nbytes > MAX_BYTES:
            raise self._too_long(nbytes, number)

    def _too_long(self, nbytes: int, number: int) -> ValueError:
        mend = "split the sample" if self.size_limit else "set shard_size to less than 4 GiB"
        return ValueError(
            f"with sample {number} a shard would have {nbytes} bytes, but its offsets are uint32 "
            f"and end at {MAX_BYTES}: {mend}"
        )

    def head(self, ends: Int64) -> bytes:
        """Return what stands before the samples, given where each ends, counted from the first."""
        begin = self.empty + 4 * len(ends)
        words = np.empty(len(ends) + 2, "<u4")
        words[:2] = len(ends), begin
        np.add(ends, begin, out=words[2:], casting="unsafe")
        return words.tobytes() + self._configuration

    def record(self) -> np.dtype[np.void]:
        """Return the packed dtype of a sample, all of whose columns are fixed."""
        return np.dtype(
            [("", e.dtype.newbyteorder("<"), e.shape or ()) for e in self.columns.values()]
        )

    def fill(self, buffer: Bytes, columns: Sequence[AnyArray]) -> memoryview:
        """Make a shard of fixed columns, in stored order, at the start of a buffer."""
        record, count = self.record(), len(columns[0])
        head = self.head(record.itemsize * np.arange(1, count + 1))
        shard = buffer[: len(head) + count * record.itemsize]
        shard[: len(head)] = np.frombuffer(head, np.uint8)
        records = shard[len(head) :].view(record)
        step = max(1, _SLICE // record.itemsize)
        for start in range(0, count, step):
            for name, column in zip(record.names or (), columns, strict=True):
                records[name][start : start + step] = column[start : start + step]
        return shard.data

    def entry(self, number: int, samples: int, raw: Body, stored: Body) -> dict[str, Any]:
        """Return a shard's entry in the index; `stored` is `raw`, or `raw` compressed."""
        name = f"shard.{number:05}.mds"
        compression = parse_compression(self.compression)
        zipped = compression and self._file(f"{name}.{compression.extension}", stored)
        return self._facts | {
            "raw_data": self._file(name, raw),
            "samples": samples,
            "zip_data": zipped,
        }

    def _file(self, name: str, data: Body) -> dict[str, Any]:
        hashes = {algorithm: digest(algorithm, data) for algorithm in self._facts["hashes"]}
        return {"basename": name, "bytes": len(data), "hashes": hashes}


def _parse(name: str, encoding: str) -> Encoding:
    try:
        return parse(encoding)
    except ValueError as error:
        raise ValueError(f"column {name!r}: {error}") from None


def cells(column: AnyArray, encoding: Encoding) -> Iterator[bytes]:
    """Encode the rows of an array that is a fixed column."""
    assert encoding.size is not None
    step = max(1, _SLICE // encoding.size)
    for start in range(0, len(column), step):
        part = column[start : start + step].astype(encoding.dtype.newbyteorder("<"), order="C")
        yield from part.reshape(-1).view(f"V{encoding.size}").tolist()
