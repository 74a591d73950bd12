"""MDS shards, written: samples and records as bytes, and what the index says of them.

`npstream.formats.mds` shows where everything lies.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from npstream._typing import AnyArray, Body, Int64
from npstream.errors import ColumnError, MissingDependencyError
from npstream.formats.compression import parse_compression
from npstream.formats.encodings import Encoding, parse
from npstream.formats.hashes import hasher
from npstream.formats.index import Schema

__all__ = ["MAX_BYTES", "ShardFormat", "Tally", "cells"]

MAX_BYTES = 2**32 - 1
"""Where a shard may end: its offsets are uint32."""

_PIECE = 1 << 20
"""Bytes of records that are put together at a time, so that they stay in the CPU's cache."""


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
    hashes : list of str
        The different ones, sorted.
    schema : Schema
        What the index says of the columns.
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
        self.hashes = sorted(set(hashes))
        sizes = [encoding.size for encoding in self.columns.values()]
        encodings = [columns[name] for name in self.columns]
        self.schema = Schema("mds", tuple(self.columns), tuple(encodings), tuple(sizes))
        self._facts: dict[str, Any] = {
            "column_encodings": encodings,
            "column_names": list(self.columns),
            "column_sizes": sizes,
            "compression": compression,
            "format": "mds",
            "hashes": self.hashes,
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

    def records(self, columns: Sequence[AnyArray]) -> Iterator[Body]:
        """Yield the pieces of a shard of fixed columns, in stored order.

        All but the first lie in one buffer: the next piece overwrites the last.
        """
        record = np.dtype(
            [("", e.dtype.newbyteorder("<"), e.shape or ()) for e in self.columns.values()]
        )
        count = len(columns[0])
        yield self.head(record.itemsize * np.arange(1, count + 1))
        step = max(1, _PIECE // record.itemsize)
        buffer = np.empty(min(step, count), record)
        for start in range(0, count, step):
            piece = buffer[: count - start]
            for name, column in zip(record.names or (), columns, strict=True):
                piece[name] = column[start : start + step]
            yield piece.view(np.uint8).data

    def name(self, number: int, compression: str | None = None) -> str:
        """Return the name of a shard's file."""
        parsed = parse_compression(compression)
        return f"shard.{number:05}.mds" + (f".{parsed.extension}" if parsed else "")

    def entry(self, samples: int, raw: Tally, zipped: Tally | None) -> dict[str, Any]:
        """Return what the index says of a shard and its files."""
        return self._facts | {
            "raw_data": raw.facts(),
            "samples": samples,
            "zip_data": zipped and zipped.facts(),
        }


class Tally:
    """What the index says of a file, gathered while its bytes go by."""

    def __init__(self, name: str, hashes: Iterable[str]) -> None:
        self.name = name
        self.nbytes = 0
        self._hashers = {algorithm: hasher(algorithm) for algorithm in hashes}

    def watch(self, pieces: Iterable[Body]) -> Iterator[Body]:
        """Yield the pieces of the file, and take note of them."""
        for piece in pieces:
            self.nbytes += len(piece)
            for each in self._hashers.values():
                each.update(piece)
            yield piece

    def facts(self) -> dict[str, Any]:
        """Return the file's entry in the index."""
        hashes = {algorithm: each.hexdigest() for algorithm, each in self._hashers.items()}
        return {"basename": self.name, "bytes": self.nbytes, "hashes": hashes}


def _parse(name: str, encoding: str) -> Encoding:
    try:
        return parse(encoding)
    except ValueError as error:
        raise ValueError(f"column {name!r}: {error}") from None


def cells(column: AnyArray, encoding: Encoding) -> Iterator[bytes]:
    """Encode the rows of an array that is a fixed column."""
    assert encoding.size is not None
    step = max(1, _PIECE // encoding.size)
    for start in range(0, len(column), step):
        part = column[start : start + step].astype(encoding.dtype.newbyteorder("<"), order="C")
        yield from part.reshape(-1).view(f"V{encoding.size}").tolist()
