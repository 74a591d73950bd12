"""Checking a dataset from end to end.

Tested in tests/tools/test_index_builder.py.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from npstream._core.arguments import quantity
from npstream._core.progress import progress
from npstream.errors import MissingDependencyError, NpstreamError, StorageError
from npstream.formats.encodings.encodings import parse, with_dtype
from npstream.formats.scan import scalar_columns
from npstream.formats.sidecar.sidecar import IndexDigest, Sidecar
from npstream.shards.manifest import warn_of_refused
from npstream.storage.local import open_store, options_for
from npstream.storage.remote import UNKNOWN_SIZE
from npstream.tools.index_builder import index_of
from npstream.tools.scan import Reading
from npstream.writing.sidecar import bounds

if TYPE_CHECKING:
    from os import PathLike

    from npstream._core.typing import AnyArray, Bools
    from npstream.formats.index import Index
    from npstream.formats.scan import ScanResult
    from npstream.storage.local import Store

__all__ = ["VerifyReport", "verify_dataset"]


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was checked, and what is wrong.

    Attributes
    ----------
    where : str
        The place of the index.
    shards, samples, nbytes : int
        How many there are; the bytes of all shards, uncompressed.
    sidecar : str
        The place of the side-car that was checked too, or nothing.
    problems : tuple of str
        What is wrong, each with its place.

    Examples
    --------
    >>> _ = npstream.write("numbers", {"x": np.arange(10)})
    >>> report = verify_dataset("numbers")
    >>> report.samples, report.problems
    (10, ())
    """

    where: str
    shards: int
    samples: int
    nbytes: int
    sidecar: str
    problems: tuple[str, ...]

    def __str__(self) -> str:
        aside = f"with {self.sidecar}" if self.sidecar else "without a side-car"
        count = len(self.problems)
        verdict = "sound" if not count else quantity(count, "problem")
        counts = {"shard": self.shards, "sample": self.samples, "byte": self.nbytes}
        facts = ", ".join(quantity(number, noun) for noun, number in counts.items())
        return "\n".join([*self.problems, f"{self.where}: {facts}, {aside}: {verdict}"])


def verify_dataset(
    url: str | PathLike[str],
    *,
    index: str | PathLike[str] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> VerifyReport:
    """Read a whole dataset, and hold everything that is recorded twice against each other.

    That is: the index with the files that are there and their sizes, with every hash that it
    records, and with what shards say of themselves; the dtypes that it records with the encodings,
    and bools of one size with their bytes; the sizes in every sample with its own; the side-car
    with the index, its hashes with the shards, and its columns with the samples.

    Parameters
    ----------
    url : str or os.PathLike
        The directory that holds ``index.json``.
    index : str or os.PathLike, optional
        Where the side-car is, if not beside the index.
    storage_options : mapping, optional
        Options of the store's driver.

    Returns
    -------
    VerifyReport

    Raises
    ------
    FormatError, StorageError
        If the index cannot be read; all else is reported. If there is no index, the error is also
        a FileNotFoundError.

    Examples
    --------
    >>> report = npstream.write("numbers", {"x": np.arange(10)})
    >>> verify_dataset("numbers").problems
    ()
    """
    store = open_store(url, storage_options, argument="url")
    aside = store
    if index is not None:
        aside = open_store(index, options_for(url, storage_options, index), argument="index")
    known, index_digest = index_of(store)
    problems: list[str] = []
    sidecar = _open_sidecar(aside, known, index_digest, index is not None, problems)
    there = _there(store, known, problems)
    check = _Check(known, sidecar, problems)
    for packed in (False, True):
        shards = np.flatnonzero(there[int(packed)]).tolist()
        chosen = np.full(len(known), packed)
        reading = Reading(known, store, chosen, check.columns, every=True)
        what = "verifying compressed shards" if packed else "verifying"
        for group in progress(reading.groups(shards), what):
            for shard, found in reading.shards(group):
                check.shard(shard, found)
    return VerifyReport(
        known.where, len(known), known.samples, known.total,
        sidecar.where if sidecar else "", tuple(dict.fromkeys(problems)),
    )  # fmt: skip


def _open_sidecar(
    aside: Store, index: Index, index_digest: IndexDigest, needed: bool, problems: list[str]
) -> Sidecar | None:
    """Open the side-car and hold it against the index; one that fails is not used."""
    try:
        sidecar = Sidecar(aside)
        if not sidecar.index_digest.matches(index_digest):
            problems.append(f"{sidecar.where}: it was made of another {index.where}")
            return None
        problems.extend(_differences(index, sidecar.index(index.where), sidecar.where))
    except StorageError as error:
        if needed or error.errno not in (errno.ENOENT, errno.EACCES):
            problems.append(str(error))
        elif error.errno == errno.EACCES:
            warn_of_refused(aside, stacklevel=4)
        return None
    except NpstreamError as error:
        problems.append(str(error))
        return None
    return sidecar


def _differences(index: Index, other: Index, where: str) -> Iterator[str]:
    if index.schemas != other.schemas or len(index) != len(other):
        yield f"{where}: its schemas or number of shards are not those of {index.where}"
        return
    for name in ("starts", "nbytes", "schema_ids", "compressed"):
        wrong = getattr(index, name) != getattr(other, name)
        if wrong.any():
            yield f"{where}: {name} differs from {index.where} at {wrong.argmax()}"
    if index.fingerprint() != other.fingerprint():
        yield f"{where}: its fingerprint is not that of {index.where}"
    for shard in range(len(index)):
        if index.files(shard) != other.files(shard):
            yield f"{where}: the files of shard {shard} are not those of {index.where}"


def _there(store: Store, index: Index, problems: list[str]) -> tuple[Bools, Bools]:
    """Return which shards can be read as they are, and which compressed."""
    size = _sizes(store, index)
    raw, packed = np.zeros((2, len(index)), bool)
    for shard in range(len(index)):
        files = index.files(shard)
        ways = [[files.data, files.meta], [files.zip_data, files.zip_meta]]
        absent = []
        for there, way in zip((raw, packed), ways, strict=True):
            wanted = [file for file in way if file is not None]
            found = [size(file.name) for file in wanted]
            there[shard] = bool(wanted) and not any(map(_is_absent, found))
            for file, nbytes in zip(wanted, found, strict=True):
                place = f"{store.where(file.name)} (shard {shard})"
                if _is_absent(nbytes):
                    absent.append(f"{place}: {nbytes or 'there is no such file'}")
                elif nbytes not in (UNKNOWN_SIZE, file.nbytes):
                    wrong = str(nbytes)
                    if isinstance(nbytes, int):
                        wrong = f"{quantity(nbytes, 'byte')}; the index says {file.nbytes:,}"
                    problems.append(f"{place}: {wrong}")
                    there[shard] = False
                    absent = []
        if absent and not (raw[shard] or packed[shard]):
            problems.append(absent[-1])
    return raw, packed


def _is_absent(size: int | StorageError | None) -> bool:
    """Return whether a file is absent, or must be taken for that since the store refuses it."""
    return size is None or (isinstance(size, StorageError) and size.errno == errno.EACCES)


def _sizes(store: Store, index: Index) -> Callable[[str], int | StorageError | None]:
    """Return a function that gives the size of a file, or None if it is missing.

    A listing takes fewer requests than one for each file, where the store can list.
    """
    if store.can_list:
        with suppress(StorageError):
            return dict(store.names()).get
    names = list(dict.fromkeys(_names(index)))
    return dict(zip(names, store.sizes(names), strict=True)).get


def _names(index: Index) -> Iterator[str]:
    for shard in range(len(index)):
        files = index.files(shard)
        for file in (files.data, files.meta, files.zip_data, files.zip_meta):
            if file is not None:
                yield file.name


def _recorded(index: Index, problems: list[str]) -> dict[str, np.dtype[Any]]:
    """Hold recorded dtypes against encodings; return the bytes of bools, which shards must hold."""
    bools: dict[str, np.dtype[Any]] = {}
    for name, dtype in index.annotations.dtypes.items():
        sizes = []
        for schema in index.schemas:
            if name not in schema.names:
                continue
            column = schema.names.index(name)
            try:
                encoding = with_dtype(parse(schema.encodings[column]), dtype)
            except MissingDependencyError:
                continue
            except ValueError as error:
                problems.append(f"{index.where}: column {name!r}: {error}")
                continue
            told = schema.sizes[column] if schema.format == "mds" else None
            sizes.append(encoding.size if told == encoding.size else None)
        if dtype == "bool" and sizes and sizes == [sizes[0]] * len(index.schemas) and sizes[0]:
            bools[name] = np.dtype(f"V{sizes[0]}")
    return bools


class _Check:
    """Holds what was found in shards against what the index and the side-car say of them."""

    def __init__(self, index: Index, sidecar: Sidecar | None, problems: list[str]) -> None:
        self._index = index
        self._sidecar = sidecar
        self._problems = problems
        self._ranges: dict[str, tuple[AnyArray, AnyArray]] = {}
        self._bools = _recorded(index, problems)
        self.columns = dict(self._bools)
        known = scalar_columns(index.schemas)
        if sidecar is None:
            return
        for name, column in sidecar.columns.items():
            if known.get(name) != column.dtype:
                problems.append(f"{sidecar.where}: column {name!r} is no {column.dtype}")
                continue
            try:
                self._ranges[name] = sidecar.shard_range(name)
                self.columns[name] = column.dtype
            except NpstreamError as error:
                problems.append(str(error))

    def shard(self, shard: int, found: ScanResult | NpstreamError) -> None:
        """Take note of what is wrong with a shard."""
        if isinstance(found, NpstreamError):
            self._problems.append(str(found))
            return
        for name in self._bools:
            values = found.columns[name].view(np.uint8).reshape(len(found.columns[name]), -1)
            if (wrong := (values > 1).any(axis=1)).any():
                place = f"{self._index.where}: shard {shard}: sample {wrong.argmax()}"
                self._problems.append(f"{place}: column {name!r} holds a byte that is no bool")
        if self._sidecar is not None:
            try:
                self._problems.extend(self._compare(self._sidecar, shard, found))
            except NpstreamError as error:
                self._problems.append(str(error))

    def _compare(self, sidecar: Sidecar, shard: int, found: ScanResult) -> Iterator[str]:
        place = f"{sidecar.where}: shard {shard}"
        hashes = sidecar.piece_hashes(shard)
        if hashes is not None:
            wrong = np.flatnonzero(hashes != found.pieces).tolist()
            if wrong:
                yield f"{place}: the hashes of pieces {wrong} are not those of its bytes"
            if (begin := sidecar.begin(shard)) != found.begin:
                yield f"{place}: its samples begin at byte {found.begin}, not {begin}"
            if found.meta != (sidecar.meta_hash(shard) or 0):
                yield f"{place}: the hash of its meta file is not that of its bytes"
        start, stop = self._index.starts[shard : shard + 2].tolist()
        for name in self._ranges:
            values = found.columns[name]
            said = tuple(bound[shard] for bound in self._ranges[name])
            if said != bounds(values):
                yield f"{place}: column {name!r} is within {bounds(values)}, not {said}"
            if sidecar.column(name, start, stop).tobytes() != values.tobytes():
                yield f"{place}: the values of column {name!r} are not those of its samples"
