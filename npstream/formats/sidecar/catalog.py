"""The files of very many shards as arrays: names as runs of numbers, digests back to back.

Names that only count on, such as ``shard.00000.mds`` and those after it, take one run together.
For each kind of file (`FILE_KINDS`) there are these sections, unless no shard has one:

    KIND.first    first shard of each run
    KIND.number   what its name counts from
    KIND.digits   to how many digits numbers are filled up; 0 where the names do not count
    KIND.ends     where the text before and after the number ends, for each run, in
    KIND.text     UTF-8; a run without text has no such file
    KIND.bytes    of each shard, 0 where it has none
    KIND.digests  of each shard, as its hashes name them
    KIND.hashes   of each shard, which of the table's lists of (hash, bytes) it has

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
from npstream.errors import FormatError, shown
from npstream.formats.index import BELOW, MAX_FILE_BYTES, File, Index, ShardFiles

if TYPE_CHECKING:
    from npstream.formats.sidecar.container import Sections

FILE_KINDS = ("data", "zip_data", "meta", "zip_meta")

_NUMBERED = re.compile(r"(.*?)([0-9]{1,18})([^0-9]*)", re.DOTALL)


# Writing


def catalog_sections(index: Index) -> tuple[dict[str, Any], dict[str, AnyArray]]:
    """Return what the table and the sections of a side-car say of an index's files."""
    each = [index.files(shard) for shard in range(len(index))]
    compressions: dict[str | None, int] = {}
    numbers = [compressions.setdefault(files.compression, len(compressions)) for files in each]
    facts: dict[str, Any] = {"compressions": list(compressions), "hashes": {}}
    sections = {"compression": least(numbers)}
    for kind in FILE_KINDS:
        mine: list[File | None] = [getattr(files, kind) for files in each]
        if any(mine):
            shapes, more = _hash_sections(mine, kind, index.where)
            facts["hashes"][kind] = shapes
            sections |= _name_sections([file.name if file else "" for file in mine], kind) | more
            sections[f"{kind}.bytes"] = least([file.nbytes if file else 0 for file in mine])
    return facts, sections


def least(numbers: list[int] | AnyArray) -> AnyArray:
    """Return numbers as an array of the smallest unsigned dtype that holds them."""
    array = np.asarray(numbers, np.uint64)
    return array.astype(np.min_scalar_type(array.max(initial=0)))


def _name_sections(names: list[str], kind: str) -> dict[str, AnyArray]:
    first, number, digits, texts = [], [], [], []
    following = None
    for shard, name in enumerate(names):
        if name != following:
            match = _NUMBERED.fullmatch(name)
            before, counter, after = match.groups() if match else (name, "", "")
            first.append(shard)
            number.append(int(counter or 0))
            digits.append(len(counter))
            texts += [before.encode(), after.encode()]
        following = _name(before, number[-1] + shard + 1 - first[-1], digits[-1], after)
    return {
        f"{kind}.first": least(first),
        f"{kind}.number": least(number),
        f"{kind}.digits": least(digits),
        f"{kind}.ends": least(np.cumsum([len(text) for text in texts])),
        f"{kind}.text": np.frombuffer(b"".join(texts), np.uint8),
    }


def _name(before: str, number: int, digits: int, after: str) -> str:
    return f"{before}{number:0{digits}}{after}" if digits else before + after


def _hash_sections(
    files: list[File | None], kind: str, where: str
) -> tuple[list[Any], dict[str, AnyArray]]:
    shapes: dict[tuple[tuple[str, int], ...], int] = {}
    numbers, digests = [], []
    for shard, file in enumerate(files):
        hashes = file.hashes if file else {}
        numbers.append(
            shapes.setdefault(tuple((n, len(h) // 2) for n, h in hashes.items()), len(shapes))
        )
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
    if len(shapes) > 1:
        sections[f"{kind}.hashes"] = least(numbers)
    return [[list(pair) for pair in shape] for shape in shapes], sections


# Reading


@dataclass(frozen=True, slots=True)
class _Runs:
    """The names of one kind of file."""

    first: Int64
    number: Int64
    digits: Int64
    ends: Int64
    text: bytes

    def name(self, shard: int) -> str:
        run = int(np.searchsorted(self.first, shard, side="right")) - 1
        begin = int(self.ends[2 * run - 1]) if run else 0
        middle, end = self.ends[2 * run : 2 * run + 2].tolist()
        number = int(self.number[run]) + shard - int(self.first[run])
        before, after = self.text[begin:middle].decode(), self.text[middle:end].decode()
        return _name(before, number, int(self.digits[run]), after)


class SidecarCatalog:
    """The files of the shards, as a side-car lists them."""

    def __init__(self, sections: Sections, shards: int) -> None:
        self._sections = sections
        self._shards = shards
        self._runs: dict[str, _Runs] = {}
        self._kinds = [kind for kind in FILE_KINDS if f"{kind}.first" in sections]
        table = sections.typed("hashes", dict)
        self._shapes = {kind: self._checked_shapes(table.get(kind)) for kind in self._kinds}
        self._compressions = sections.typed("compressions", list)
        self._fingerprint = sections.typed("fingerprint", str)
        for text in self._compressions:
            if not isinstance(text, str | None):
                raise sections.damaged(f"compression {shown(text)}; expected str or nil")

    def present(self, kind: str) -> Bools:
        """Return which shards have a file of a kind."""
        if kind not in self._kinds:
            return np.zeros(self._shards, np.bool_)
        runs = self._names(kind)
        texts = np.diff(runs.ends[1::2], prepend=0) > 0
        return np.repeat(texts | (runs.digits > 0), np.diff(runs.first, append=self._shards))

    def sizes(self, kind: str) -> Int64:
        """Return the bytes of the shards' files of a kind."""
        return self._sections.blocks(f"{kind}.bytes", self._shards).array().astype(np.int64)

    def name(self, shard: int) -> str:
        """Return the name of a shard's (uncompressed) data file."""
        return self._name("data", shard)

    def files(self, shard: int) -> ShardFiles:
        """Return the files of a shard."""
        data, zip_data, meta, zip_meta = (self._file(kind, shard) for kind in FILE_KINDS)
        if data is None:
            raise self._sections.damaged(f"shard {shard} has no data file")
        (number,) = self._sections.blocks("compression", self._shards).part(shard, shard + 1)
        if number >= len(self._compressions):
            raise self._sections.damaged(f"shard {shard} has compression number {number}")
        return ShardFiles(data, zip_data, meta, zip_meta, self._compressions[number])

    def fingerprint(self, index: Index) -> str:
        """Return the fingerprint that the index had when the side-car was made."""
        return str(self._fingerprint)

    def _file(self, kind: str, shard: int) -> File | None:
        if kind not in self._kinds or not (name := self._name(kind, shard)):
            return None
        (nbytes,) = self._sections.blocks(f"{kind}.bytes", self._shards).part(shard, shard + 1)
        if nbytes >= MAX_FILE_BYTES:
            raise self._sections.damaged(f"shard {shard} has {quantity(nbytes, 'byte')}")
        return File(name, int(nbytes), self._hashes(kind, shard))

    def _name(self, kind: str, shard: int) -> str:
        try:
            name = self._names(kind).name(shard)
        except UnicodeDecodeError as error:
            raise self._sections.damaged(
                f"the name of shard {shard} is no UTF-8: {error}"
            ) from None
        if name and not BELOW.fullmatch(name):
            raise self._sections.damaged(f"{name!r} leaves the dataset's directory")
        return name

    def _names(self, kind: str) -> _Runs:
        runs = self._runs.get(kind)
        if runs is None:
            runs = self._runs.setdefault(kind, self._read_names(kind))
        return runs

    def _read_names(self, kind: str) -> _Runs:
        blocks = self._sections.blocks
        first = blocks(f"{kind}.first").array().astype(np.int64)
        number, digits = (
            blocks(f"{kind}.{which}", len(first)).array().astype(np.int64)
            for which in ("number", "digits")
        )
        ends = blocks(f"{kind}.ends", 2 * len(first)).array().astype(np.int64)
        text = blocks(f"{kind}.text").array().tobytes()
        bounds = np.append(first, self._shards)
        sound = (
            len(first) > 0
            and first[0] == 0
            and (bounds[1:] > bounds[:-1]).all()
            and (np.diff(ends, prepend=0, append=len(text)) >= 0).all()
            and (number >= 0).all()
            and (number <= 10**18).all()
            and (digits <= 18).all()
        )
        if not sound:
            raise self._sections.damaged(f"the names of {kind} files do not follow the format")
        return _Runs(first, number, digits, ends, text)

    # Hashes

    def _checked_shapes(self, shapes: Any) -> list[list[tuple[str, int]]]:
        checked = []
        if type(shapes) is not list or not shapes:
            raise self._sections.damaged(f"hashes {shown(shapes)}; expected a list")
        for shape in shapes:
            if type(shape) is not list:
                raise self._sections.damaged(f"hashes {shown(shape)}; expected a list")
            pairs = [self._sections.row(pair, str, int) for pair in shape]
            if any(nbytes > 255 for _, nbytes in pairs):
                raise self._sections.damaged(f"hashes {shown(shape)} are too long")
            checked.append([(str(name), int(nbytes)) for name, nbytes in pairs])
        return checked

    def _hashes(self, kind: str, shard: int) -> dict[str, str]:
        shapes = self._shapes[kind]
        if len(shapes) == 1:
            shape, at = shapes[0], shard * sum(nbytes for _, nbytes in shapes[0])
        else:
            numbers, ends = self._digest_ends[kind]
            shape, at = shapes[numbers[shard]], int(ends[shard])
        found = {}
        for name, nbytes in shape:
            digests = self._sections.blocks(f"{kind}.digests")
            if at + nbytes > digests.count:
                raise self._sections.damaged(f"the digests of shard {shard} are missing")
            found[name] = digests.part(at, at + nbytes).tobytes().hex()
            at += nbytes
        return found

    @cached_property
    def _digest_ends(self) -> dict[str, tuple[AnyArray, Int64]]:
        """Which hashes each shard has, and where their digests begin, where that differs."""
        return {kind: self._read_ends(kind) for kind in self._kinds if len(self._shapes[kind]) > 1}

    def _read_ends(self, kind: str) -> tuple[AnyArray, Int64]:
        shapes = self._shapes[kind]
        numbers = self._sections.blocks(f"{kind}.hashes", self._shards).array()
        if (numbers >= len(shapes)).any():
            raise self._sections.damaged(f"{kind} files have hashes that are not listed")
        sizes = np.array([sum(nbytes for _, nbytes in shape) for shape in shapes], np.int64)
        return numbers, np.cumsum(sizes[numbers]) - sizes[numbers]
