"""Provide `merge`, which joins datasets: it writes an index that names the shards of all datasets.

No shard is read or copied. The side-car is joined from those of the datasets.
"""

from __future__ import annotations

import errno
import json
import os
import posixpath
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from npstream._core.arguments import quantity
from npstream._core.log import log
from npstream._core.redaction import redact_url
from npstream.dataset.missing_dataset import explain_missing_dataset
from npstream.errors import (
    FormatError,
    IntegrityError,
    MissingDependencyError,
    StorageError,
    StorageExistsError,
    short_traceback,
)
from npstream.formats.encodings.encodings import with_dtype
from npstream.formats.index import (
    ANNOTATIONS_KEY,
    INDEX,
    INDEX_VERSION,
    RELATIVE_PATH,
    Annotations,
    check_size,
    parse_index,
)
from npstream.formats.sidecar.blocks import HASH_BLOCK, xxh3
from npstream.formats.sidecar.catalog import smallest_uint
from npstream.formats.sidecar.sidecar import (
    Sidecar,
    digest_index,
    encode_sidecar,
    npy_header,
)
from npstream.formats.statistics import encode_statistics, merge_statistics
from npstream.formats.versions import COLUMNS_FILE, SIDECAR_FILE
from npstream.joins.added import parse_column_groups
from npstream.reading.schema import encoding_key, schema_fields
from npstream.shards.manifest import size_in_version
from npstream.storage.local import LocalStore, open_store
from npstream.storage.urls import Location, local_path, location_str, scheme_of
from npstream.writing.destination import destination
from npstream.writing.report import WriteReport, count_bytes
from npstream.writing.sidecar import column_files

if TYPE_CHECKING:
    from npstream._core.typing import AnyArray, Body
    from npstream.formats.encodings.encodings import Encoding
    from npstream.formats.index import Index
    from npstream.formats.sidecar.sidecar import ColumnFile, IndexDigest
    from npstream.storage.local import Store

__all__ = ["merge"]

_THREADS = 8
"""Maximum number of datasets whose indexes are read at once."""

_COLUMN_BYTES = 1 << 22
"""Bytes of a side-car's column that are copied at a time: a multiple of `HASH_BLOCK`."""

_FILES = ("raw_data", "zip_data", "raw_meta", "zip_meta")
"""The keys of the files in a shard's entry."""


def merge(
    urls: Iterable[Location],
    out: Location,
    *,
    sidecar: bool | None = None,
    storage_options: Mapping[str, Any] | None = None,
    timeout: float = 60.0,
    retries: int = 4,
) -> WriteReport:
    """Join datasets into one, without copying their shards.

    The result is an index in `out`, which refers to the shards in the directories of the datasets.
    Its samples are those of the first dataset, then those of the second, and so on. The datasets
    are not changed. They must not be removed or replaced, because the result reads their shards.
    Streaming can read the result, too.

    Parameters
    ----------
    urls : iterable of str or os.PathLike
        The directories or URLs of the datasets, in the order of the samples. They may be results
        of `merge` themselves.
    out : str or os.PathLike
        A directory or URL that contains all of `urls`, at any depth, and holds no dataset.
    sidecar : bool, optional
        Whether to write a side-car, with the statistics, hashes and scalar columns of all
        datasets. By default it is written if each dataset has one.
    storage_options : mapping, optional
        Options of the storage driver, for URLs.
    timeout : float, default: 60.0
        Seconds that a request to the store may take, including all retries.
    retries : int, default: 4
        Number of retries of a request.

    Returns
    -------
    WriteReport
        The summary of the merged dataset.

    Raises
    ------
    ValueError
        If a dataset is not below `out`, is given twice, or has other columns than the first one.
        If columns were added to a dataset with `npstream.add_columns`.
        Also if `sidecar` is True and a dataset has no side-car.
    TypeError
        If `urls` is a single path or URL.
    FileExistsError
        If `out` holds a dataset or a part of one.
    FormatError
        If an index does not follow the format.
    StorageError
        If a file cannot be read or stored. If a dataset does not exist, the error is also a
        FileNotFoundError.

    See Also
    --------
    copy : Copies samples to a new dataset, which can be anywhere.
    mix : Joins datasets when they are read, with weights.
    build_index : Builds the side-car of a dataset without one.

    Examples
    --------
    >>> for day in range(2):
    ...     report = npstream.write(f"logs/day{day}", {"x": np.arange(3) + 10 * day})
    >>> merge(["logs/day0", "logs/day1"], "logs").samples
    6
    >>> npstream.open("logs")["x"].load()
    array([ 0,  1,  2, 10, 11, 12])
    """
    with short_traceback:
        start = time.perf_counter()
        if isinstance(urls, str | os.PathLike):
            raise TypeError(f"urls is one path, {urls!r}: expected a list of paths or URLs")
        open_url = partial(
            open_store, storage_options=storage_options, timeout=timeout, retries=retries
        )
        store = open_url(out, argument="out")
        folders = _folders(list(urls), out, store, open_url)
        target = destination(store)
        try:
            try:
                target.prepare()
            except StorageExistsError as error:
                error.add_note(
                    "to merge anew, remove 'index.*' and 'shard.*' from out, and keep the "
                    "datasets' directories"
                )
                raise
            parts = _read_parts(folders, with_sidecars=sidecar is not False)
            columns = _common_columns(parts)
            entries = [entry for part in parts for entry in part.entries()]
            _require_distinct_shards(parts)
            text = _index_text(parts, entries)
            has_sidecar = sidecar is not False and _have_sidecars(parts, is_required=sidecar)
            target.begin()
            files = _sidecar_files(parts, text, target.write_id) if has_sidecar else ()
            target.publish(text, files)
        except BaseException as error:
            if message := target.remove():
                error.add_note(message)
            raise
        raw_bytes, stored_bytes = count_bytes(entries)
        log("merged %s in %s", quantity(len(parts), "dataset"), store.where(INDEX))
        return WriteReport(
            path=store.root,
            columns={name: _encoding_name(*column) for name, column in columns.items()},
            samples=sum(part.index.samples for part in parts),
            shards=len(entries),
            raw_bytes=raw_bytes,
            stored_bytes=stored_bytes,
            seconds=time.perf_counter() - start,
        )


# Directories of the datasets


class _Folder:
    """A directory below the root of a store; it implements `RangeReader`.

    All folders of a store share its connection.

    Parameters
    ----------
    store : LocalStore or RemoteStore
    name : str
        The path of the directory relative to the root.
    reopen : callable
        Returns a store whose root is the directory.
    """

    def __init__(self, store: Store, name: str, reopen: Callable[[], Store]) -> None:
        self.name = name
        self.reopen = reopen
        self._store = store

    @property
    def root(self) -> str:
        """The path or URL of the directory, for messages."""
        return self._store.where(self.name)

    def where(self, name: str) -> str:
        """Return the path or URL of a file, for messages."""
        return self._store.where(f"{self.name}/{name}")

    def digest(self, text: bytes, version: str) -> IndexDigest:
        """Return the digest of the index with this content and version."""
        return digest_index(text, *(("", "") if self._store.is_local else (version, self.root)))

    def size(self, name: str) -> int:
        """Return the size of a file in bytes."""
        return self._store.size(f"{self.name}/{name}")

    def version(self, name: str) -> str:
        """Return the version of a file."""
        return self._store.version(f"{self.name}/{name}")

    def read(self, name: str, nbytes: int | None) -> bytes:
        """Return a whole file."""
        return self._store.read(f"{self.name}/{name}", nbytes)

    def ranges(self, spans: Iterable[tuple[str, int, int]]) -> list[bytes]:
        """Return byte ranges of files."""
        return self._store.ranges(
            (f"{self.name}/{name}", offset, size) for name, offset, size in spans
        )

    def discard(self, spans: Iterable[tuple[str, int, int]]) -> None:
        """No-op: there are no cached copies."""


def _folders(
    urls: Sequence[Location], out: Location, store: Store, open_url: Callable[..., Store]
) -> list[_Folder]:
    """Return the folder of each dataset below `out`; raise ValueError if one is elsewhere."""
    if not urls:
        raise ValueError("urls is empty: give the directories or URLs of the datasets to merge")
    url_texts: dict[str, str] = {}
    folders = []
    for url in urls:
        text = redact_url(location_str(url, "urls"))
        name = _relative_name(url, out, store)
        if name is None:
            raise ValueError(_outside_message(urls, text, store))
        if not name:
            raise ValueError(
                f"{text!r} is out= itself: the merged index would replace that of the dataset. "
                "Choose a directory above all datasets"
            )
        if not RELATIVE_PATH.fullmatch(f"{name}/shard"):
            raise ValueError(f"{text!r}: an index cannot name shards in {name!r}: rename it")
        path = os.path.realpath(store.where(name)) if store.is_local else name
        if path in url_texts:
            alias = f" as {url_texts[path]!r}" if url_texts[path] != text else ""
            raise ValueError(
                f"{text!r} was given before{alias}: give each dataset once. To read one more "
                "often than others, use npstream.mix with weights"
            )
        url_texts[path] = text
        folders.append(_Folder(store, name, partial(open_url, url)))
    return folders


def _relative_name(url: Location, out: Location, store: Store) -> str | None:
    """Return the path of `url` relative to `out`; None if it is not in `out`."""
    if isinstance(store, LocalStore):
        if scheme_of(location_str(url, "urls")) not in ("", "file"):
            return None
        path = local_path(url, "urls")
        # First compare the paths as they are, then without symbolic links.
        for base, target in ((store.root, path), map(os.path.realpath, (store.root, path))):
            if base == target:
                return ""
            if target.startswith(base.rstrip("/") + "/"):
                return os.path.relpath(target, base)
        return None
    base, text = location_str(out, "out").rstrip("/"), location_str(url, "urls").rstrip("/")
    if text == base:
        return ""
    return text[len(base) + 1 :] if text.startswith(f"{base}/") else None


def _outside_message(urls: Sequence[Location], url_text: str, store: Store) -> str:
    """Return the message for a dataset that is not below `out`."""
    texts = [location_str(url, "urls").rstrip("/") for url in urls]
    if all(scheme_of(text) in ("", "file") for text in texts):
        texts = [local_path(text, "urls") for text in texts]
    common = texts[0].split("/")
    for text in texts[1:]:
        common = common[: len(posixpath.commonprefix([common, text.split("/")]))]
    depth = 4 if "://" in texts[0] else 2  # at least s3://bucket/directory, or /directory
    ancestor = "/".join(common)
    is_above = len(common) >= depth and ancestor not in texts
    advice = f"choose out={redact_url(ancestor)!r}, or " if is_above else ""
    return (
        f"{url_text!r} is not below out={store.root!r}: the merged index names shards by their "
        f"paths in out. So {advice}bring the dataset there with npstream.copy(npstream.open(url), "
        f"{posixpath.join(store.root, 'NAME')!r}), or copy all samples with "
        "npstream.copy(npstream.mix({...}), out)"
    )


# Contents of the datasets


@dataclass(frozen=True, slots=True)
class _Part:
    """A dataset to merge: its folder, its index, the text of the index, and its side-car."""

    folder: _Folder
    index: Index
    text: bytes
    sidecar: Sidecar | None

    def entries(self) -> Iterator[dict[str, Any]]:
        """Yield the entries of the shards, with paths relative to the store's root."""
        for entry in json.loads(self.text)["shards"]:
            for key in _FILES:
                if (file := entry.get(key)) is not None:
                    file["basename"] = f"{self.folder.name}/{file['basename']}"
            yield entry


def _read_parts(folders: Sequence[_Folder], with_sidecars: bool) -> list[_Part]:
    """Read the index and open the side-car of each dataset, several at once."""
    from concurrent.futures import ThreadPoolExecutor

    threads = ThreadPoolExecutor(min(_THREADS, len(folders)), "npstream-merge")
    try:
        return list(threads.map(partial(_read_part, with_sidecar=with_sidecars), folders))
    finally:
        threads.shutdown(cancel_futures=True)


def _refuse_added_columns(folder: _Folder) -> None:
    """Raise ValueError if columns were added to a dataset with `npstream.add_columns`."""
    where = folder.where(COLUMNS_FILE)
    try:
        groups = parse_column_groups(folder.read(COLUMNS_FILE, None), where)
    except StorageError as error:
        if error.errno not in (errno.ENOENT, errno.EACCES):
            raise
        return
    if groups:
        raise ValueError(
            f"{where}: the column {groups[0].columns[0]!r} was added beside this dataset, and a "
            "merge would lose it: copy the dataset with npstream.copy, which writes the column "
            "into the copy; or remove it with npstream.remove_columns, and add it to the result"
        )


def _read_part(folder: _Folder, with_sidecar: bool) -> _Part:
    try:
        version = folder.version(INDEX)
        nbytes = size_in_version(version)
        check_size(nbytes or 0, folder.where(INDEX))
        text = folder.read(INDEX, nbytes)
    except StorageError as error:
        if (explanation := explain_missing_dataset(error, folder.reopen())) is not None:
            raise explanation from None
        raise
    index = parse_index(text, folder.where(INDEX))
    _refuse_added_columns(folder)
    sidecar = None
    if with_sidecar and len(index):
        sidecar = _open_sidecar(folder, text, version, SIDECAR_FILE)
        if sidecar is None and (name := index.annotations.sidecar):
            sidecar = _open_sidecar(folder, text, version, name)
    return _Part(folder, index, text, sidecar)


def _open_sidecar(folder: _Folder, text: bytes, version: str, name: str) -> Sidecar | None:
    """Open the side-car of an index; return None if it is absent, damaged or of another index."""
    try:
        sidecar = Sidecar(folder, name)
    except StorageError as error:
        # S3 reports EACCES for a missing file if the user may not list the bucket.
        if error.errno not in (errno.ENOENT, errno.EACCES):
            raise
        return None
    except (FormatError, IntegrityError) as error:
        log("merging without a side-car: %s", error)
        return None
    return sidecar if sidecar.index_digest.matches(folder.digest(text, version)) else None


def _common_columns(parts: Sequence[_Part]) -> dict[str, tuple[Encoding, str]]:
    """Return the encoding of each column, and its recorded dtype, in the order of the first part.

    Raises
    ------
    ValueError
        If two parts, or two shards of one part, differ in a column.
    """
    common: dict[str, tuple[Encoding, str]] = {}
    first: _Part | None = None
    for part in parts:
        dtypes = part.index.annotations.dtypes
        for schema in part.index.schemas:
            fields = schema_fields(schema, part.index.where)
            columns = {name: (f.encoding, dtypes.get(name, "")) for name, f in fields.items()}
            if first is None:
                order = dict.fromkeys([*part.index.annotations.order, *columns])
                common, first = {name: columns[name] for name in order}, part
            _require_equal(common, first, columns, part)
    return common


def _require_equal(
    common: Mapping[str, tuple[Encoding, str]],
    first: _Part,
    columns: Mapping[str, tuple[Encoding, str]],
    part: _Part,
) -> None:
    """Raise ValueError unless the columns of `part` are those of the first part."""
    first_name = repr(first.folder.root)
    part_name = "a shard of it" if part is first else repr(part.folder.root)
    for name in {**common, **columns}:
        if name not in columns or name not in common:
            owner, other = (first_name, part_name) if name in common else (part_name, first_name)
            raise ValueError(
                f"column {name!r}: {other} lacks it, and {owner} has it: write the dataset without "
                "the column, or with it, by npstream.copy or npstream.write"
            )
        (first_encoding, first_dtype), (encoding, dtype) = common[name], columns[name]
        if encoding_key(first_encoding) != encoding_key(encoding) or first_dtype != dtype:
            raise ValueError(
                f"column {name!r} is {_encoding_name(first_encoding, first_dtype)!r} in "
                f"{first_name}, but {_encoding_name(encoding, dtype)!r} in {part_name}: write one "
                "of them anew with npstream.copy(view, url, columns={column: encoding})"
            )


def _encoding_name(encoding: Encoding, dtype: str) -> str:
    """Return the name of an encoding with the dtype that an index records for it."""
    try:
        return with_dtype(encoding, dtype).name if dtype else encoding.name
    except MissingDependencyError:
        return f"{encoding.name} of dtype {dtype}"


def _require_distinct_shards(parts: Sequence[_Part]) -> None:
    """Raise ValueError if two parts name the same file.

    For instance, a merged dataset names the files of each dataset from which it was made.
    """
    owners: dict[str, _Part] = {}
    for part in parts:
        for shard in range(len(part.index)):
            name = posixpath.normpath(f"{part.folder.name}/{part.index.name(shard)}")
            if (other := owners.setdefault(name, part)) is not part:
                raise ValueError(
                    f"{other.folder.root!r} and {part.folder.root!r} both have the shard {name!r}, "
                    "so its samples would come twice: leave one of the two out"
                )


def _index_text(parts: Sequence[_Part], entries: Sequence[Mapping[str, Any]]) -> bytes:
    """Return the content of the merged index."""
    document: dict[str, Any] = {"shards": entries, "version": INDEX_VERSION}
    part = next((part for part in parts if part.index.schemas), None)
    if part is not None and (part.index.annotations or not entries):
        schema = None if entries else part.index.schemas[0]
        dtypes, order = part.index.annotations.dtypes, part.index.annotations.order
        document[ANNOTATIONS_KEY] = Annotations(dtypes, order).to_document(schema)
    return json.dumps(document, sort_keys=True).encode()


# The side-car


def _have_sidecars(parts: Sequence[_Part], *, is_required: bool | None) -> bool:
    """Return True if each part with shards has a side-car; raise if one is required and missing.

    Return False if no part has shards.
    """
    missing = [part for part in parts if len(part.index) and part.sidecar is None]
    if missing and is_required:
        url = missing[0].folder.root
        raise ValueError(
            f"{url!r} has no side-car of its index: build it with npstream.build_index({url!r}), "
            "or merge without side-cars (sidecar=False), and build one for out"
        )
    if missing:
        log("merging without a side-car: %s has none", missing[0].folder.root)
    return not missing and any(len(part.index) for part in parts)


def _sidecar_files(
    parts: Sequence[_Part], text: bytes, write_id: str
) -> Iterator[tuple[str, Iterator[Body]]]:
    """Yield the names and contents of the side-car's files.

    Each content must be read before the next file is requested: the side-car, which comes last, has
    the hashes of the column files.
    """
    index = parse_index(text, INDEX, trusted=True)
    sidecars = [part.sidecar for part in parts if part.sidecar is not None]
    files = _column_files(sidecars, write_id)
    sections: dict[str, AnyArray] = {}
    for column in files:
        hashes: list[int] = []
        yield column.file, _column_pieces(column, sidecars, index.samples, hashes)
        sections[f"column/{column.name}"] = np.array(hashes, np.uint64)
    for column in files:
        ranges = [sidecar.shard_range(column.name) for sidecar in sidecars]
        for key, bounds in zip(("min", "max"), zip(*ranges, strict=True), strict=True):
            sections[f"{key}/{column.name}"] = np.concatenate(bounds)
    statistics = sidecars[0].statistics()
    for sidecar in sidecars[1:]:
        merge_statistics(statistics, sidecar.statistics())
    if statistics:
        sections["statistics"] = np.frombuffer(encode_statistics(statistics), np.uint8)
    if all(sidecar.has_hashes for sidecar in sidecars):
        arrays = zip(*(sidecar.shard_hashes() for sidecar in sidecars), strict=True)
        offsets, metas, pieces = map(np.concatenate, arrays)
        sections["begins"], sections["pieces"] = smallest_uint(offsets), pieces
        if any(schema.format != "mds" for schema in index.schemas):
            sections["metas"] = metas
    yield SIDECAR_FILE, encode_sidecar(index, digest_index(text), files, sections)


def _column_files(sidecars: Sequence[Sidecar], write_id: str) -> list[ColumnFile]:
    """Return the files of the columns that all side-cars have with the same dtype."""
    dtypes = {name: column.dtype for name, column in sidecars[0].columns.items()}
    for sidecar in sidecars[1:]:
        others = {name: column.dtype for name, column in sidecar.columns.items()}
        dtypes = {name: dtype for name, dtype in dtypes.items() if others.get(name) == dtype}
    return column_files(dtypes, write_id)


def _column_pieces(
    column: ColumnFile, sidecars: Sequence[Sidecar], samples: int, hashes: list[int]
) -> Iterator[bytes]:
    """Yield the content of a column's file, and append the hash of each block to `hashes`."""
    yield npy_header(column.dtype, samples)
    step = _COLUMN_BYTES // column.dtype.itemsize
    partial_block = b""
    for sidecar in sidecars:
        for start in range(0, sidecar.samples, step):
            stop = min(start + step, sidecar.samples)
            data = partial_block + sidecar.column(column.name, start, stop).tobytes()
            end = len(data) - len(data) % HASH_BLOCK
            blocks, partial_block = data[:end], data[end:]
            hashes += map(xxh3, _blocks(blocks))
            yield blocks
    hashes += map(xxh3, _blocks(partial_block))
    yield partial_block


def _blocks(body: bytes) -> Iterator[memoryview]:
    """Yield the blocks of `body` that have a hash each."""
    view = memoryview(body)
    return (view[start : start + HASH_BLOCK] for start in range(0, len(view), HASH_BLOCK))
