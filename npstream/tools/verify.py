"""Verification of a whole dataset.

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
from npstream.formats.statistics import ColumnStatistics, merge_statistics
from npstream.formats.versions import COLUMNS_FILE
from npstream.joins.added import read_column_groups
from npstream.shards.manifest import warn_sidecar_denied
from npstream.storage.local import open_store, options_for
from npstream.storage.remote import UNKNOWN_SIZE
from npstream.storage.urls import join_url
from npstream.tools.index_builder import read_index
from npstream.tools.scan import ShardScanner
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
    """The result of verifying a dataset.

    Attributes
    ----------
    where : str
        Path or URL of the index.
    shards, samples, nbytes : int
        Numbers of shards and samples, and uncompressed bytes of all shards.
    sidecar : str
        Path or URL of the side-car, or "" if none was checked.
    problems : tuple of str
        The problems, each with its file and shard.

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
        sidecar = f"with {self.sidecar}" if self.sidecar else "without a side-car"
        count = len(self.problems)
        verdict = "no problems" if not count else quantity(count, "problem")
        counts = {"shard": self.shards, "sample": self.samples, "byte": self.nbytes}
        size = ", ".join(quantity(number, noun) for noun, number in counts.items())
        return "\n".join([*self.problems, f"{self.where}: {size}, {sidecar}: {verdict}"])


def verify_dataset(
    url: str | PathLike[str],
    *,
    index: str | PathLike[str] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    client: Any = None,
) -> VerifyReport:
    """Read a whole dataset, and check all redundant records for consistency.

    The checks are:

    - the index: files exist and have the recorded sizes and hashes; the first bytes of each shard,
      its head, agree with the index; recorded dtypes agree with the encodings;
    - samples: the column sizes add up to the sample's length; bools of fixed size are 0 or 1;
    - the side-car: it agrees with the index; its hashes agree with the shards, and its columns,
      bounds and statistics with the samples. Quantiles and counts of values are not checked;
    - columns that were added with `npstream.add_columns`: the same checks. In addition, the number
      of their values is the number that was recorded when they were added.

    Parameters
    ----------
    url : str or os.PathLike
        The directory that holds ``index.json``.
    index : str or os.PathLike, optional
        The directory or URL of the side-car; by default that of the index.
    storage_options : mapping, optional
        Options of the store's driver.
    client : distributed.Client, optional
        A client of a Dask cluster, whose workers then read the shards. The workers must reach the
        path or URL. By default this process reads the shards. It always reads those of added
        columns.

    Returns
    -------
    VerifyReport
        All problems that were found.

    Raises
    ------
    FormatError, StorageError
        If the index cannot be read; the report lists all other problems. If the index does not
        exist, the error is also a FileNotFoundError.

    Examples
    --------
    >>> report = npstream.write("numbers", {"x": np.arange(10)})
    >>> verify_dataset("numbers").problems
    ()
    """
    store = open_store(url, storage_options, argument="url")
    sidecar_store = store
    if index is not None:
        sidecar_store = open_store(
            index, options_for(url, storage_options, index), argument="index"
        )
    dataset_index, index_digest = read_index(store)
    problems: list[str] = []
    has_index_argument = index is not None
    sidecar = _open_sidecar(
        sidecar_store, dataset_index, index_digest, has_index_argument, problems
    )
    readable = _readable_shards(store, dataset_index, problems)
    check = _ShardCheck(dataset_index, sidecar, problems)
    for compressed in (False, True):
        shards = np.flatnonzero(readable[int(compressed)]).tolist()
        mask = np.full(len(dataset_index), compressed)
        scanner = ShardScanner(dataset_index, store, mask, check.columns, check_all=True)
        title = "verifying compressed shards" if compressed else "verifying"
        groups = scanner.groups(shards)
        results = scanner.scan_groups(groups, client)
        for _ in progress(groups, title):
            for shard, result in next(results):
                check.check_shard(shard, result)
    check.finish()
    problems += _problems_of_added_columns(url, store, storage_options)
    return VerifyReport(
        dataset_index.where, len(dataset_index), dataset_index.samples, dataset_index.total_nbytes,
        sidecar.where if sidecar else "", tuple(dict.fromkeys(problems)),
    )  # fmt: skip


def _problems_of_added_columns(
    url: str | PathLike[str], store: Store, storage_options: Mapping[str, Any] | None
) -> Iterator[str]:
    """Yield the problems of columns that were added to a dataset with `npstream.add_columns`."""
    try:
        groups = read_column_groups(store)
    except NpstreamError as error:
        if not (isinstance(error, StorageError) and error.errno == errno.EACCES):
            yield str(error)
        return
    samples = {part.path: part.samples for group in groups for part in group.parts}
    for path in dict.fromkeys(path for group in groups for path in sorted(group.paths)):
        try:
            report = verify_dataset(join_url(url, path), storage_options=storage_options)
        except NpstreamError as error:
            yield str(error)
            continue
        yield from report.problems
        # A path that belongs to no part is the dataset of the fill values, which has one sample.
        if (expected := samples.get(path, 1)) != report.samples:
            yield (
                f"{report.where}: {quantity(report.samples, 'sample')}; "
                f"{store.where(COLUMNS_FILE)} says {expected:,}"
            )


def _open_sidecar(
    sidecar_store: Store,
    index: Index,
    index_digest: IndexDigest,
    is_required: bool,
    problems: list[str],
) -> Sidecar | None:
    """Open the side-car and compare it with the index; return None if it cannot be used."""
    try:
        # With the argument `index`, the side-car has the usual name.
        annotated_name = "" if is_required else index.annotations.sidecar
        sidecar = _choose_sidecar(sidecar_store, annotated_name, index_digest)
        if not sidecar.index_digest.matches(index_digest):
            problems.append(f"{sidecar.where}: it was built from another version of {index.where}")
            return None
        problems.extend(_differences(index, sidecar.index(index.where), sidecar.where))
    except StorageError as error:
        if is_required or error.errno not in (errno.ENOENT, errno.EACCES):
            problems.append(str(error))
        elif error.errno == errno.EACCES:
            warn_sidecar_denied(sidecar_store, stacklevel=4)
        return None
    except NpstreamError as error:
        problems.append(str(error))
        return None
    return sidecar


def _choose_sidecar(
    sidecar_store: Store, annotated_name: str, index_digest: IndexDigest
) -> Sidecar:
    """Open the side-car with the usual name, or else with the name in the index's annotations."""
    try:
        sidecar = Sidecar(sidecar_store)
    except FileNotFoundError:
        if not annotated_name:
            raise
        return Sidecar(sidecar_store, annotated_name)
    if annotated_name and not sidecar.index_digest.matches(index_digest):
        # The side-car with the usual name belongs to a former version.
        return Sidecar(sidecar_store, annotated_name)
    return sidecar


def _differences(index: Index, other: Index, where: str) -> Iterator[str]:
    if index.schemas != other.schemas or len(index) != len(other):
        yield f"{where}: its schemas or number of shards are not those of {index.where}"
        return
    for name in ("starts", "nbytes", "schema_ids", "compressed"):
        differs = getattr(index, name) != getattr(other, name)
        if differs.any():
            yield f"{where}: {name} differs from {index.where} at {differs.argmax()}"
    if index.fingerprint() != other.fingerprint():
        yield f"{where}: its fingerprint is not that of {index.where}"
    for shard in range(len(index)):
        if index.files(shard) != other.files(shard):
            yield f"{where}: the files of shard {shard} are not those of {index.where}"


def _readable_shards(store: Store, index: Index, problems: list[str]) -> tuple[Bools, Bools]:
    """Return two masks: shards with readable uncompressed files, and with compressed ones."""
    size_of = _file_sizes(store, index)
    raw, compressed = np.zeros((2, len(index)), bool)
    for shard in range(len(index)):
        files = index.files(shard)
        forms = [[files.data, files.meta], [files.zip_data, files.zip_meta]]
        absences = []
        for mask, form in zip((raw, compressed), forms, strict=True):
            form_files = [file for file in form if file is not None]
            sizes = [size_of(file.name) for file in form_files]
            mask[shard] = bool(form_files) and not any(map(_is_absent, sizes))
            for file, size in zip(form_files, sizes, strict=True):  # an error may replace a size
                where = f"{store.where(file.name)} (shard {shard})"
                if _is_absent(size):
                    absences.append(f"{where}: {size or 'there is no such file'}")
                elif size not in (UNKNOWN_SIZE, file.nbytes):
                    problem = str(size)
                    if isinstance(size, int):
                        problem = f"{quantity(size, 'byte')}; the index says {file.nbytes:,}"
                    problems.append(f"{where}: {problem}")
                    mask[shard] = False
                    absences = []  # this problem already explains why the shard is not readable
        # A shard needs only one of its forms.
        if absences and not (raw[shard] or compressed[shard]):
            problems.append(absences[-1])
    return raw, compressed


def _is_absent(size: int | StorageError | None) -> bool:
    """Return True if a file is missing; S3 reports EACCES if the user may not list the bucket."""
    return size is None or (isinstance(size, StorageError) and size.errno == errno.EACCES)


def _file_sizes(store: Store, index: Index) -> Callable[[str], int | StorageError | None]:
    """Return a function from the name of a file to its size, or to None if the file is missing.

    If the store can list, one listing replaces a request for each file.
    """
    if store.can_list:
        with suppress(StorageError):
            return dict(store.names()).get
    names = list(dict.fromkeys(_file_names(index)))
    return dict(zip(names, store.sizes(names), strict=True)).get


def _file_names(index: Index) -> Iterator[str]:
    for shard in range(len(index)):
        files = index.files(shard)
        for file in (files.data, files.meta, files.zip_data, files.zip_meta):
            if file is not None:
                yield file.name


def _check_annotations(index: Index, problems: list[str]) -> dict[str, np.dtype[Any]]:
    """Check annotated dtypes against encodings.

    Return the bool columns whose values have a fixed size, with the dtypes for `ShardScanner`. Each
    is a void dtype of this size, so a scan extracts the bytes of each value as they are stored.
    """
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
            schema_size = schema.sizes[column] if schema.format == "mds" else None
            sizes.append(encoding.size if schema_size == encoding.size else None)
        if dtype == "bool" and sizes and sizes == [sizes[0]] * len(index.schemas) and sizes[0]:
            bools[name] = np.dtype(f"V{sizes[0]}")
    return bools


class _ShardCheck:
    """Compares the scans of shards with the index and the side-car, and collects problems."""

    def __init__(self, index: Index, sidecar: Sidecar | None, problems: list[str]) -> None:
        self._index = index
        self._sidecar = sidecar
        self._problems = problems
        self._bounds: dict[str, tuple[AnyArray, AnyArray]] = {}
        self._statistics: dict[str, ColumnStatistics] = {}
        self._shards: set[int] = set()
        self._bools = _check_annotations(index, problems)
        self.columns = dict(self._bools)
        scalars = scalar_columns(index.schemas)
        if sidecar is None:
            return
        for name, column in sidecar.columns.items():
            if scalars.get(name) != column.dtype:
                problems.append(f"{sidecar.where}: column {name!r} is not {column.dtype}")
                continue
            try:
                self._bounds[name] = sidecar.shard_range(name)
                self.columns[name] = column.dtype
            except NpstreamError as error:
                problems.append(str(error))

    def check_shard(self, shard: int, result: ScanResult | NpstreamError) -> None:
        """Record the problems of a shard."""
        if isinstance(result, NpstreamError):
            self._problems.append(str(result))
            return
        for name in self._bools:
            values = result.columns[name].view(np.uint8).reshape(len(result.columns[name]), -1)
            if (is_invalid := (values > 1).any(axis=1)).any():
                where = f"{self._index.where}: shard {shard}: sample {is_invalid.argmax()}"
                self._problems.append(f"{where}: column {name!r} has a byte that is not a bool")
        if self._sidecar is not None:
            try:
                self._problems.extend(self._compare_sidecar(self._sidecar, shard, result))
            except NpstreamError as error:
                self._problems.append(str(error))

        if shard not in self._shards:  # a shard with raw and compressed files is scanned twice
            if self._shards:
                merge_statistics(self._statistics, result.statistics)
            else:
                self._statistics = dict(result.statistics)
            self._shards.add(shard)

    def finish(self) -> None:
        """Record the problems of the dataset as a whole, once all shards were checked."""
        if self._sidecar is None or len(self._shards) < len(self._index):
            return
        try:
            sidecar_statistics = self._sidecar.statistics()
        except NpstreamError as error:
            self._problems.append(str(error))
            return
        for name, expected in sidecar_statistics.items():
            actual = self._statistics.get(name)
            if actual is None or not actual.is_close(expected):
                where = self._sidecar.where
                self._problems.append(f"{where}: the statistics of column {name!r} are wrong")

    def _compare_sidecar(self, sidecar: Sidecar, shard: int, result: ScanResult) -> Iterator[str]:
        where = f"{sidecar.where}: shard {shard}"
        hashes = sidecar.piece_hashes(shard)
        if hashes is not None:
            pieces = np.flatnonzero(hashes != result.pieces).tolist()
            if pieces:
                yield f"{where}: the hashes of pieces {pieces} are not those of its bytes"
            if (begin := sidecar.first_offset(shard)) != result.begin:
                yield f"{where}: its samples begin at byte {result.begin}, not {begin}"
            if result.meta != (sidecar.meta_hash(shard) or 0):
                yield f"{where}: the hash of its meta file is not that of its bytes"
        start, stop = self._index.starts[shard : shard + 2].tolist()
        for name in self._bounds:
            values = result.columns[name]
            sidecar_bounds = tuple(bound[shard] for bound in self._bounds[name])
            if sidecar_bounds != bounds(values):
                yield f"{where}: column {name!r} is within {bounds(values)}, not {sidecar_bounds}"
            if sidecar.column(name, start, stop).tobytes() != values.tobytes():
                yield f"{where}: the values of column {name!r} are not those of its samples"
