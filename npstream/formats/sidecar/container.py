"""The container format of the side-car: a file of arrays that are read on demand.

The file is a sequence of msgpack objects, so that any msgpack reader can parse it::

    bin 8    the head of 30 bytes: b"npstream", u16 version, u32 bytes of the table, u64 bytes of
             the file, u64 hash of the table; all little-endian
    map      the table: dtype, length, offset and block hashes of each array, and other entries
    nil ...  padding
    bin 32   an array: little-endian numbers, aligned to 64 bytes
    ...      more padding and arrays

Hashes are 64-bit xxh3. The table has one hash for each block of an array. Offsets of arrays count
from the end of the table, rounded up to 64 bytes. An array with its name is a *section*. The file
is untrusted input: a violation of the format raises `FormatError`.

Tested in tests/formats/sidecar/test_sidecar.py.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from npstream._core.arguments import quantity
from npstream._core.memory import fits_in_memory
from npstream._core.typing import AnyArray, Body
from npstream.errors import FormatError, short_repr
from npstream.formats.sharing import SharedBytes
from npstream.formats.sidecar.blocks import HASH_BLOCK, BlockArray, RangeReader, block_hashes, xxh3

SIDECAR_VERSION = 1

_HEAD = struct.Struct("<2s8sHIQQ")
_BIN8 = b"\xc4\x1e"
_BIN32 = struct.Struct(">cI")
_NIL = b"\xc0"
_MAGIC = b"npstream"
_ALIGNMENT = 64
_MAX_TABLE = 1 << 26
"""A larger table is rejected. A table holds 8 bytes for each 256 KiB of arrays, and the schemas."""

_MAX_UNPACKED_RATIO = 64
"""Maximum bytes of memory for each byte of msgpack; the worst case is an empty map in one byte."""

_FIRST_READ = 1 << 16
"""Bytes of the first read, which covers most side-cars completely."""


def encode_sections(entries: Mapping[str, Any], arrays: Mapping[str, AnyArray]) -> Iterator[Body]:
    """Yield the parts of a file with these arrays, and with these entries in its table."""
    import msgpack

    sections: list[tuple[str, str, int, int, bytes]] = []
    # Offsets count from `start`, because the size of the table is not known yet. `end` is where the
    # next array could begin without alignment: after the previous array and the next header.
    end = _BIN32.size
    little_endian = {
        name: np.ascontiguousarray(a, a.dtype.newbyteorder("<")) for name, a in arrays.items()
    }
    for name, array in little_endian.items():
        if array.nbytes >= 1 << 32:
            raise ValueError(
                f"section {name!r} takes {quantity(array.nbytes, 'byte')}; the maximum is below "
                "4 GiB"
            )
        offset = _align(end)
        hashes = block_hashes(array.view(np.uint8).data).astype("<u8").tobytes()
        sections.append((name, array.dtype.str, len(array), offset, hashes))
        end = offset + array.nbytes + _BIN32.size
    try:
        table = msgpack.packb({**entries, "sections": sections})
    except UnicodeEncodeError as error:
        raise FormatError(f"{short_repr(error.object)} in the index is not UTF-8") from None
    start = _align(_HEAD.size + len(table))
    nbytes = start + end - _BIN32.size if arrays else start
    yield _HEAD.pack(_BIN8, _MAGIC, SIDECAR_VERSION, len(table), nbytes, xxh3(table))
    yield table
    written = _HEAD.size + len(table)
    for array, (_, _, _, offset, _) in zip(little_endian.values(), sections, strict=True):
        yield _NIL * (start + offset - _BIN32.size - written)
        yield _BIN32.pack(b"\xc6", array.nbytes)
        yield array.view(np.uint8).data
        written = start + offset + array.nbytes
    yield _NIL * (nbytes - written)


def _align(offset: int) -> int:
    """Round an offset up to the alignment of arrays."""
    return -(-offset // _ALIGNMENT) * _ALIGNMENT


class Sections:
    """The arrays of a container file, opened for reading.

    Parameters
    ----------
    store : RangeReader
    name : str
        The name of the file.

    Attributes
    ----------
    table : dict
        The table; its entries are not validated.
    where : str
        The path or URL of the file, for messages.

    Raises
    ------
    FormatError
        If the file is not such a container, or is damaged.
    """

    def __init__(self, store: RangeReader, name: str) -> None:
        self.where = store.where(name)
        nbytes = store.size(name)
        (first,) = store.ranges([(name, 0, min(nbytes, _FIRST_READ))])
        if len(first) < _HEAD.size:
            raise self.error(f"{quantity(nbytes, 'byte')}; expected a side-car")
        prefix, magic, version, length, recorded_nbytes, table_hash = _HEAD.unpack_from(first)
        if (prefix, magic) != (_BIN8, _MAGIC):
            raise self.error("it does not begin as a side-car does")
        if version != SIDECAR_VERSION:
            raise self.error(f"version {version}; this release reads version {SIDECAR_VERSION}")
        if recorded_nbytes != nbytes:
            raise self.error(f"{quantity(nbytes, 'byte')}; its head says {recorded_nbytes:,}")
        self._start = _align(_HEAD.size + length)
        if self._start > nbytes:
            raise self.error(f"{quantity(nbytes, 'byte')}; the table takes {length:,}")
        if length > _MAX_TABLE or not fits_in_memory(_MAX_UNPACKED_RATIO * length):
            raise self.error(
                f"its table takes {quantity(length, 'byte')}, which is too much to read"
            )
        self._store = _PrefixStore(store, name, first)
        (table,) = self._store.ranges([(name, _HEAD.size, length)])
        if xxh3(table) != table_hash:
            raise self.error("the hash of its table is wrong")
        self.table = self._unpack(table)
        self._name = name
        self._nbytes = nbytes
        self._sections: dict[str, tuple[np.dtype[Any], int, int, bytes]] = {}
        for section in self.entry("sections", list):
            key, dtype, count, offset, hashes = self.row(section, str, str, int, int, bytes)
            self._sections[key] = self.dtype(dtype), count, offset, hashes
        self._arrays: dict[str, BlockArray] = {}

    def __contains__(self, name: str) -> bool:
        """Return True if the file has an array of that name."""
        return name in self._sections

    def blocks(self, name: str, count: int | None = None, kind: str = "u") -> BlockArray:
        """Return an array without reading it.

        Parameters
        ----------
        name : str
        count : int, optional
            The expected length.
        kind : str, default: "u"
            The expected kinds of the dtype, as in `numpy.dtype.kind`.

        Raises
        ------
        FormatError
            If the array is missing, or is not the expected one.
        """
        array = self._arrays.get(name)
        if array is None:
            array = self._arrays.setdefault(name, self._open(name))
        if count not in (None, array.count) or array.dtype.kind not in kind:
            raise self.error(f"section {name!r} is {array.count} of {array.dtype}")
        return array

    def _open(self, name: str) -> BlockArray:
        if name not in self._sections:
            raise self.error(f"section {name!r} is missing")
        dtype, count, offset, hashes = self._sections[name]
        nbytes, begin = count * dtype.itemsize, self._start + offset
        if count < 0 or offset < 0 or begin + nbytes > self._nbytes:
            raise self.error(
                f"section {name!r} has {quantity(nbytes, 'byte')} at {begin} of {self._nbytes}"
            )
        if len(hashes) != 8 * -(-nbytes // HASH_BLOCK):
            raise self.error(
                f"section {name!r} of {quantity(nbytes, 'byte')} has "
                f"{quantity(len(hashes), 'byte')} of hashes"
            )
        return BlockArray(
            self._store, self._name, begin, count, dtype, np.frombuffer(hashes, "<u8")
        )

    def _unpack(self, table: bytes) -> dict[str, Any]:
        import msgpack

        try:
            unpacked = msgpack.unpackb(table)
        except (ValueError, msgpack.UnpackException) as error:
            raise self.error(f"its table is not msgpack: {error}") from None
        if not isinstance(unpacked, dict):
            raise self.error(f"its table is {type(unpacked).__name__}; expected a map")
        return unpacked

    # Validated access to the table

    def entry(self, key: str, kind: type) -> Any:
        """Return the table's entry `key`; raise if it is not of type `kind`, or a negative int."""
        (value,) = self.row([self.table.get(key)], kind)
        return value

    def row(self, values: Any, *kinds: Any) -> tuple[Any, ...]:
        """Return a list as a tuple.

        Raise if its values are not of the types `kinds`, in this order, or if an int is negative.
        """
        if type(values) is not list or len(values) != len(kinds):
            raise self.error(f"{short_repr(values)}; expected a list of {len(kinds)}")
        for value, kind in zip(values, kinds, strict=True):
            if type(value) is not kind or (kind is int and not 0 <= value < 1 << 63):
                raise self.error(f"{short_repr(value)}; expected {kind.__name__}")
        return tuple(values)

    def dtype(self, text: str) -> np.dtype[Any]:
        """Return the numeric dtype with the array-protocol string `text`."""
        if text not in {f"{order}{kind}" for order in "<|" for kind in _NUMBERS}:
            raise self.error(f"dtype {short_repr(text)}; expected a numeric dtype")
        return np.dtype(text)

    def error(self, problem: str) -> FormatError:
        """Return a `FormatError` for this file."""
        return FormatError(f"{self.where}: {problem}")


_NUMBERS = ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8")


class _PrefixStore:
    """A store that serves the first bytes of one file from memory."""

    def __init__(self, store: RangeReader, name: str, prefix: bytes) -> None:
        self._store = store
        self._name = name
        self._prefix = SharedBytes(prefix)
        self.size, self.where, self.discard = store.size, store.where, store.discard

    def ranges(self, spans: Iterable[tuple[str, int, int]]) -> list[bytes]:
        requests = list(spans)
        if all(
            name == self._name and offset + length <= len(self._prefix)
            for name, offset, length in requests
        ):
            return [self._prefix[offset : offset + length] for _, offset, length in requests]
        return self._store.ranges(requests)
