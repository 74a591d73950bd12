"""A file of arrays, each read when it is asked for: the container of the side-car.

It is a sequence of msgpack objects, so that any reader of msgpack can walk it::

    bin 8    the head, of 30 bytes: b"npstream", u16 version, u32 bytes of the table, u64 bytes of
             the file, u64 hash of the table; little-endian, as the numbers in arrays are
    map      the table, which says what the arrays are, and where
    nil ...
    bin 32   an array, which begins at a multiple of 64; and so on

Hashes are xxh3 of 64 bits. The table holds one of each block of an array. The file is untrusted
input: whatever does not follow the format is a `FormatError`.

Tested in tests/formats/sidecar/test_sidecar.py.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from npstream._core.arguments import quantity
from npstream._core.memory import fits
from npstream._core.typing import AnyArray, Body
from npstream.errors import FormatError, shown
from npstream.formats.sidecar.blocks import HASH_BLOCK, BlockArray, Ranges, block_hashes, xxh3

SIDECAR_VERSION = 1

_HEAD = struct.Struct("<2s8sHIQQ")
_BIN8 = b"\xc4\x1e"
_BIN32 = struct.Struct(">cI")
_NIL = b"\xc0"
_MAGIC = b"npstream"
_ALIGNMENT = 64
_MAX_TABLE = 1 << 26
"""A table of more bytes is not read: there is a hash for each 256 KiB, and the schemas."""

_UNPACKED = 64
"""Bytes of memory that a byte of msgpack stands for, at most: an empty map has one."""

_FIRST = 1 << 16
"""Bytes that are read to begin with: most side-cars have no more."""


def encode_sections(facts: Mapping[str, Any], arrays: Mapping[str, AnyArray]) -> Iterator[Body]:
    """Yield the parts of a file that holds these arrays, and a table of these facts."""
    import msgpack

    sections: list[tuple[str, str, int, int, bytes]] = []
    at = _BIN32.size
    little = {
        name: np.ascontiguousarray(a, a.dtype.newbyteorder("<")) for name, a in arrays.items()
    }
    for name, array in little.items():
        if array.nbytes >= 1 << 32:
            raise ValueError(
                f"section {name!r} takes {quantity(array.nbytes, 'byte')}; less than 4 GiB is all"
            )
        at = _aligned(at)
        hashes = block_hashes(array.view(np.uint8).data).astype("<u8").tobytes()
        sections.append((name, array.dtype.str, len(array), at, hashes))
        at += array.nbytes + _BIN32.size
    try:
        table = msgpack.packb({**facts, "sections": sections})
    except UnicodeEncodeError as error:
        raise FormatError(f"{shown(error.object)} in the index is no UTF-8") from None
    start = _aligned(_HEAD.size + len(table))
    nbytes = start + at - _BIN32.size if arrays else start
    yield _HEAD.pack(_BIN8, _MAGIC, SIDECAR_VERSION, len(table), nbytes, xxh3(table))
    yield table
    at = _HEAD.size + len(table)
    for array, (_, _, _, offset, _) in zip(little.values(), sections, strict=True):
        yield _NIL * (start + offset - _BIN32.size - at)
        yield _BIN32.pack(b"\xc6", array.nbytes)
        yield array.view(np.uint8).data
        at = start + offset + array.nbytes
    yield _NIL * (nbytes - at)


def _aligned(at: int) -> int:
    return -(-at // _ALIGNMENT) * _ALIGNMENT


class Sections:
    """The arrays of a file.

    Parameters
    ----------
    store : Ranges
    name : str
        The file.

    Attributes
    ----------
    table : dict
        What the file says of itself, unchecked but for being a map.
    where : str
        The file's place, for messages.

    Raises
    ------
    FormatError
        If it is no such file, or damaged.
    """

    def __init__(self, store: Ranges, name: str) -> None:
        self.where = store.where(name)
        nbytes = store.size(name)
        (first,) = store.ranges([(name, 0, min(nbytes, _FIRST))])
        if len(first) < _HEAD.size:
            raise self.damaged(f"{quantity(nbytes, 'byte')}; expected a side-car")
        prefix, magic, version, length, said, known = _HEAD.unpack_from(first)
        if (prefix, magic) != (_BIN8, _MAGIC):
            raise self.damaged("it does not begin as a side-car does")
        if version != SIDECAR_VERSION:
            raise self.damaged(f"version {version}; this release reads version {SIDECAR_VERSION}")
        if said != nbytes:
            raise self.damaged(f"{quantity(nbytes, 'byte')}; its head says {said:,}")
        self._start = _aligned(_HEAD.size + length)
        if self._start > nbytes:
            raise self.damaged(f"{quantity(nbytes, 'byte')}; the table takes {length:,}")
        if length > _MAX_TABLE or not fits(_UNPACKED * length):
            raise self.damaged(
                f"its table takes {quantity(length, 'byte')}, which is too much to read"
            )
        self._store = _Begun(store, name, first)
        (table,) = self._store.ranges([(name, _HEAD.size, length)])
        if xxh3(table) != known:
            raise self.damaged("its table is not what was written")
        self.table = self._unpacked(table)
        self._name = name
        self._nbytes = nbytes
        self._sections: dict[str, tuple[np.dtype[Any], int, int, bytes]] = {}
        for section in self.typed("sections", list):
            key, dtype, count, offset, hashes = self.row(section, str, str, int, int, bytes)
            self._sections[key] = self.dtype(dtype), count, offset, hashes
        self._opened: dict[str, BlockArray] = {}

    def __contains__(self, name: str) -> bool:
        """Tell whether there is an array of that name."""
        return name in self._sections

    def blocks(self, name: str, count: int | None = None, kind: str = "u") -> BlockArray:
        """Return an array that has `count` numbers, or any, of that kind of dtype; unread."""
        found = self._opened.get(name)
        if found is None:
            found = self._opened.setdefault(name, self._open(name))
        if count not in (None, found.count) or found.dtype.kind not in kind:
            raise self.damaged(f"section {name!r} is {found.count} of {found.dtype}")
        return found

    def _open(self, name: str) -> BlockArray:
        if name not in self._sections:
            raise self.damaged(f"section {name!r} is missing")
        dtype, count, offset, hashes = self._sections[name]
        nbytes, begin = count * dtype.itemsize, self._start + offset
        if count < 0 or offset < 0 or begin + nbytes > self._nbytes:
            raise self.damaged(
                f"section {name!r} has {quantity(nbytes, 'byte')} at {begin} of {self._nbytes}"
            )
        if len(hashes) != 8 * -(-nbytes // HASH_BLOCK):
            raise self.damaged(
                f"section {name!r} of {quantity(nbytes, 'byte')} has {len(hashes)} of hashes"
            )
        return BlockArray(
            self._store, self._name, begin, count, dtype, np.frombuffer(hashes, "<u8")
        )

    def _unpacked(self, table: bytes) -> dict[str, Any]:
        import msgpack

        try:
            unpacked = msgpack.unpackb(table)
        except (ValueError, msgpack.UnpackException) as error:
            raise self.damaged(f"its table is no msgpack: {error}") from None
        if not isinstance(unpacked, dict):
            raise self.damaged(f"its table is {type(unpacked).__name__}; expected a map")
        return unpacked

    # What stands in the table, checked

    def typed(self, key: str, kind: type) -> Any:
        """Return a value of the table, which must be of that type, and not negative."""
        value = self.table.get(key)
        (checked,) = self.row([value], kind)
        return checked

    def row(self, values: Any, *kinds: Any) -> tuple[Any, ...]:
        """Return a list of the table, whose values must be of these types."""
        if type(values) is not list or len(values) != len(kinds):
            raise self.damaged(f"{shown(values)}; expected a list of {len(kinds)}")
        for value, kind in zip(values, kinds, strict=True):
            if type(value) is not kind or (kind is int and not 0 <= value < 1 << 63):
                raise self.damaged(f"{shown(value)}; expected {kind.__name__}")
        return tuple(values)

    def dtype(self, text: str) -> np.dtype[Any]:
        """Return the dtype of that name, which is one of a number."""
        known = {f"{order}{kind}" for order in "<|" for kind in _NUMBERS}
        if text not in known:
            raise self.damaged(f"dtype {shown(text)}; expected that of a number")
        return np.dtype(text)

    def damaged(self, what: str) -> FormatError:
        """Return the exception that says what is wrong."""
        return FormatError(f"{self.where}: {what}")


_NUMBERS = ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8")


class _Begun:
    """A store of whose file the beginning is at hand."""

    def __init__(self, store: Ranges, name: str, first: bytes) -> None:
        self._store = store
        self._name = name
        self._first = first
        self.size, self.where, self.forget = store.size, store.where, store.forget

    def ranges(self, spans: Iterable[tuple[str, int, int]]) -> list[bytes]:
        wanted = list(spans)
        if all(name == self._name and at + n <= len(self._first) for name, at, n in wanted):
            return [self._first[at : at + n] for _, at, n in wanted]
        return self._store.ranges(wanted)
