"""A compact catalog of all shards' files: their names, sizes, hashes and compressions.

A run is a sequence of shards with consecutively numbered names, such as ``shard.00000.mds``,
``shard.00001.mds``, and so on. The catalog stores the name of a run only once.

The table of the side-car has two entries for the catalog::

    compressions  the distinct compressions
    hashes        for each kind of file: the distinct hash lists; a hash list has a pair
                  (hash name, length of the digest in bytes) for each hash of a file

The catalog has the following sections. KIND is a kind of file (`FILE_KINDS`). If no shard has a
file of a kind, this kind has no sections::

    compression   for each shard: position in the table's compressions
    KIND.first    for each run: the first shard
    KIND.number   for each run: the number in the first shard's name
    KIND.digits   for each run: digits to which numbers are zero-padded; 0 for an unnumbered name
    KIND.text     for each run: the name's text before the number, then the text after it; UTF-8.
                  If a run has neither number nor text, its shards have no file of this kind
    KIND.ends     for each run: two offsets in KIND.text, the ends of the two texts
    KIND.bytes    for each shard: size of the file; 0 if it has none
    KIND.digests  for each shard: its digests, in the order of its hash list, without gaps
    KIND.hashes   for each shard: position of its hash list in the table; this section is absent
                  if the table has only one list

Tested in tests/formats/sidecar/test_sidecar.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from npstream._core.arguments import quantity
from npstream._core.typing import AnyArray, Bools, Int64
from npstream.errors import FormatError, short_repr
from npstream.formats.index import MAX_FILE_BYTES, RELATIVE_PATH, File, Index, ShardFiles

if TYPE_CHECKING:
    from npstream.formats.sidecar.container import Sections

FILE_KINDS = ("data", "zip_data", "meta", "zip_meta")

_MAX_DIGITS = 18
"""Maximum digits of a number in a name, so that all numbers fit in int64."""

_NUMBERED = re.compile(rf"(.*?)([0-9]{{1,{_MAX_DIGITS}}})([^0-9]*)", re.DOTALL)


# Writing


def catalog_sections(index: Index) -> tuple[dict[str, Any], dict[str, AnyArray]]:
    """Return the table entries and the sections that store an index's files in a side-car."""
    shards = [index.files(shard) for shard in range(len(index))]
    positions: dict[str | None, int] = {}
    compression = [positions.setdefault(files.compression, len(positions)) for files in shards]
    entries: dict[str, Any] = {"compressions": list(positions), "hashes": {}}
    sections = {"compression": smallest_uint(compression)}
    for kind in FILE_KINDS:
        files_of_kind: list[File | None] = [getattr(files, kind) for files in shards]
        if any(files_of_kind):
            hash_lists, hash_sections = _hash_sections(files_of_kind, kind, index.where)
            entries["hashes"][kind] = hash_lists
            names = [file.name if file else "" for file in files_of_kind]
            sizes = [file.nbytes if file else 0 for file in files_of_kind]
            sections |= _name_sections(names, kind) | hash_sections
            sections[f"{kind}.bytes"] = smallest_uint(sizes)
    return entries, sections


def smallest_uint(numbers: list[int] | AnyArray) -> AnyArray:
    """Return numbers as an array of the smallest unsigned dtype that holds them."""
    array = np.asarray(numbers, np.uint64)
    return array.astype(np.min_scalar_type(array.max(initial=0)))


def _name_sections(names: list[str], kind: str) -> dict[str, AnyArray]:
    first, number, digits, texts = [], [], [], []
    next_name = None
    for shard, name in enumerate(names):
        if name != next_name:
            match = _NUMBERED.fullmatch(name)
            prefix, counter, suffix = match.groups() if match else (name, "", "")
            first.append(shard)
            number.append(int(counter or 0))
            digits.append(len(counter))
            texts += [prefix.encode(), suffix.encode()]
        # Here `prefix` and `suffix` are those of the run that contains this shard.
        next_name = _format_name(prefix, number[-1] + shard + 1 - first[-1], digits[-1], suffix)
    return {
        f"{kind}.first": smallest_uint(first),
        f"{kind}.number": smallest_uint(number),
        f"{kind}.digits": smallest_uint(digits),
        f"{kind}.ends": smallest_uint(np.cumsum([len(text) for text in texts])),
        f"{kind}.text": np.frombuffer(b"".join(texts), np.uint8),
    }


def _format_name(prefix: str, number: int, digits: int, suffix: str) -> str:
    return f"{prefix}{number:0{digits}}{suffix}" if digits else prefix + suffix


def _hash_sections(
    files: list[File | None], kind: str, where: str
) -> tuple[list[Any], dict[str, AnyArray]]:
    hash_lists: dict[tuple[tuple[str, int], ...], int] = {}
    list_positions, digests = [], []
    for shard, file in enumerate(files):
        hashes = file.hashes if file else {}
        hash_list = tuple((name, len(digest) // 2) for name, digest in hashes.items())
        list_positions.append(hash_lists.setdefault(hash_list, len(hash_lists)))
        for name, digest in hashes.items():
            try:
                body = bytes.fromhex(digest)
            except ValueError:
                body = b""
            if body.hex() != digest:
                raise FormatError(
                    f"{where}: shard {shard}: {name} is {digest!r}; expected hexadecimal"
                )
            digests.append(body)
    sections = {f"{kind}.digests": np.frombuffer(b"".join(digests), np.uint8)}
    if len(hash_lists) > 1:
        sections[f"{kind}.hashes"] = smallest_uint(list_positions)
    return [[list(pair) for pair in hash_list] for hash_list in hash_lists], sections


# Reading


@dataclass(frozen=True, slots=True)
class _Runs:
    """The runs of names of one kind of file; see the module's docstring."""

    first: Int64
    number: Int64
    digits: Int64
    ends: Int64
    text: bytes

    def name(self, shard: int) -> str:
        """Return the name of a shard's file, or an empty string if it has none."""
        run = int(np.searchsorted(self.first, shard, side="right")) - 1
        begin = int(self.ends[2 * run - 1]) if run else 0
        prefix_end, suffix_end = self.ends[2 * run : 2 * run + 2].tolist()
        number = int(self.number[run]) + shard - int(self.first[run])
        prefix = self.text[begin:prefix_end].decode()
        suffix = self.text[prefix_end:suffix_end].decode()
        return _format_name(prefix, number, int(self.digits[run]), suffix)


class SidecarCatalog:
    """The catalog of shard files in a side-car; it implements `npstream.formats.index.Catalog`."""

    def __init__(self, sections: Sections, shards: int) -> None:
        self._sections = sections
        self._shards = shards
        self._runs: dict[str, _Runs] = {}
        self._kinds = [kind for kind in FILE_KINDS if f"{kind}.first" in sections]
        table = sections.entry("hashes", dict)
        self._hash_lists = {kind: self._check_hash_lists(table.get(kind)) for kind in self._kinds}
        self._compressions = sections.entry("compressions", list)
        self._fingerprint = sections.entry("fingerprint", str)
        for compression in self._compressions:
            if not isinstance(compression, str | None):
                raise sections.error(f"compression {short_repr(compression)}; expected str or nil")

    def has_file(self, kind: str) -> Bools:
        """Return the mask of shards that have a file of a kind."""
        if kind not in self._kinds:
            return np.zeros(self._shards, np.bool_)
        runs = self._get_runs(kind)
        has_text = np.diff(runs.ends[1::2], prepend=0) > 0
        return np.repeat(has_text | (runs.digits > 0), np.diff(runs.first, append=self._shards))

    def sizes(self, kind: str) -> Int64:
        """Return the size of each shard's file of a kind, or 0 if it has none."""
        return self._sections.blocks(f"{kind}.bytes", self._shards).read().astype(np.int64)

    def name(self, shard: int) -> str:
        """Return the name of a shard's (uncompressed) data file."""
        return self._read_name("data", shard)

    def files(self, shard: int) -> ShardFiles:
        """Return the files of a shard."""
        data, zip_data, meta, zip_meta = (self._file(kind, shard) for kind in FILE_KINDS)
        if data is None:
            raise self._sections.error(f"shard {shard} has no data file")
        block = self._sections.blocks("compression", self._shards)
        (position,) = block.read_cached(shard, shard + 1)
        if position >= len(self._compressions):
            raise self._sections.error(f"shard {shard} has compression number {position}")
        return ShardFiles(data, zip_data, meta, zip_meta, self._compressions[position])

    def size_limit(self, shard: int) -> None:
        """Return None: a side-car does not record size limits."""

    def fingerprint(self, index: Index) -> str:
        """Return the stored fingerprint of the index from which the side-car was built."""
        return str(self._fingerprint)

    def _file(self, kind: str, shard: int) -> File | None:
        if kind not in self._kinds or not (name := self._read_name(kind, shard)):
            return None
        (nbytes,) = self._sections.blocks(f"{kind}.bytes", self._shards).read_cached(
            shard, shard + 1
        )
        if nbytes >= MAX_FILE_BYTES:
            raise self._sections.error(f"shard {shard} has {quantity(nbytes, 'byte')}")
        return File(name, int(nbytes), self._hashes(kind, shard))

    def _read_name(self, kind: str, shard: int) -> str:
        try:
            name = self._get_runs(kind).name(shard)
        except UnicodeDecodeError as error:
            raise self._sections.error(f"the name of shard {shard} is not UTF-8: {error}") from None
        if name and not RELATIVE_PATH.fullmatch(name):
            raise self._sections.error(f"{name!r} leaves the dataset's directory")
        return name

    def _get_runs(self, kind: str) -> _Runs:
        runs = self._runs.get(kind)
        if runs is None:
            runs = self._runs.setdefault(kind, self._read_runs(kind))
        return runs

    def _read_runs(self, kind: str) -> _Runs:
        blocks = self._sections.blocks
        first = blocks(f"{kind}.first").read().astype(np.int64)
        number, digits = (
            blocks(f"{kind}.{name}", len(first)).read().astype(np.int64)
            for name in ("number", "digits")
        )
        ends = blocks(f"{kind}.ends", 2 * len(first)).read().astype(np.int64)
        text = blocks(f"{kind}.text").read().tobytes()
        bounds = np.append(first, self._shards)
        is_valid = (
            len(first) > 0
            and first[0] == 0
            and (bounds[1:] > bounds[:-1]).all()
            and (np.diff(ends, prepend=0, append=len(text)) >= 0).all()
            and (number >= 0).all()
            and (number <= 10**_MAX_DIGITS).all()
            and (digits <= _MAX_DIGITS).all()
        )
        if not is_valid:
            raise self._sections.error(f"the names of {kind} files do not follow the format")
        return _Runs(first, number, digits, ends, text)

    # Hashes

    def _check_hash_lists(self, hash_lists: Any) -> list[list[tuple[str, int]]]:
        result = []
        if type(hash_lists) is not list or not hash_lists:
            raise self._sections.error(f"hashes {short_repr(hash_lists)}; expected a list")
        for hash_list in hash_lists:
            if type(hash_list) is not list:
                raise self._sections.error(f"hashes {short_repr(hash_list)}; expected a list")
            pairs = [self._sections.row(pair, str, int) for pair in hash_list]
            if any(nbytes > 255 for _, nbytes in pairs):
                raise self._sections.error(f"hashes {short_repr(hash_list)} are too long")
            result.append([(str(name), int(nbytes)) for name, nbytes in pairs])
        return result

    def _hashes(self, kind: str, shard: int) -> dict[str, str]:
        hash_lists = self._hash_lists[kind]
        if len(hash_lists) == 1:
            hash_list, offset = hash_lists[0], shard * sum(nbytes for _, nbytes in hash_lists[0])
        else:
            positions, offsets = self._list_positions_and_offsets[kind]
            hash_list, offset = hash_lists[positions[shard]], int(offsets[shard])
        hashes = {}
        for name, nbytes in hash_list:
            digests = self._sections.blocks(f"{kind}.digests")
            if offset + nbytes > digests.count:
                raise self._sections.error(f"the digests of shard {shard} are missing")
            hashes[name] = digests.read_cached(offset, offset + nbytes).tobytes().hex()
            offset += nbytes
        return hashes

    @cached_property
    def _list_positions_and_offsets(self) -> dict[str, tuple[AnyArray, Int64]]:
        """For each shard, the position of its hash list and the offset of its digests.

        A kind of file is included only if it has several hash lists.
        """
        kinds = [kind for kind in self._kinds if len(self._hash_lists[kind]) > 1]
        return {kind: self._read_positions_and_offsets(kind) for kind in kinds}

    def _read_positions_and_offsets(self, kind: str) -> tuple[AnyArray, Int64]:
        hash_lists = self._hash_lists[kind]
        positions = self._sections.blocks(f"{kind}.hashes", self._shards).read()
        if (positions >= len(hash_lists)).any():
            raise self._sections.error(f"{kind} files have hashes that are not listed")
        sizes = np.array([sum(nbytes for _, nbytes in pairs) for pairs in hash_lists], np.int64)
        return positions, np.cumsum(sizes[positions]) - sizes[positions]
