"""Provide `LocalShards`, which maps or decompresses shards and checks them against the index."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from npstream._core import memory
from npstream._core.arguments import quantity
from npstream._core.typing import Bytes, Int64
from npstream.errors import FormatError, IntegrityError
from npstream.formats import mds, text
from npstream.formats.compression import decompress
from npstream.formats.hashes import digest, fastest
from npstream.shards.base import FetchResult, LoadedShard, Verify, concatenate_parts
from npstream.shards.snapshot import Snapshot, explain_replacement

if TYPE_CHECKING:
    from npstream._core.arrays import Rows
    from npstream.formats.index import File, Index
    from npstream.formats.mds import SampleLayout
    from npstream.shards.base import RemotePart
    from npstream.storage.local import Store

_ALL_RESIDENT: Bytes = np.empty(0, np.uint8)
"""`LoadedShard.resident` of a shard that is mapped or in memory as a whole."""

_OFFSET_LIMIT = 1 << 32
"""Offsets are stored in four bytes, so they are less than this."""


class LocalShards:
    """The shards of a dataset in a directory.

    Parameters
    ----------
    index : Index
    store : LocalStore or RemoteStore
        The store of the directory. Only the subclass `RemoteShards` passes a RemoteStore.
    verify : bool or str
        Which hashes to check, as in `npstream.open`.
    snapshot : Snapshot, optional
        The index as it was when the dataset was opened. With it, errors say if the dataset was
        replaced.

    Attributes
    ----------
    layouts : list of SampleLayout or None
        The result of `layouts_of`.
    guard_nbytes : ndarray of int64, shape (shards,)
        The result of `text.guard_nbytes` for the schema of each shard.
    """

    def __init__(
        self, index: Index, store: Store, verify: Verify, snapshot: Snapshot | None = None
    ) -> None:
        self.index = index
        self.snapshot = snapshot
        self.store = store
        self.verify = verify
        self.layouts = layouts_of(index)
        sizes = [text.guard_nbytes(schema) for schema in index.schemas]
        self.guard_nbytes = np.array(sizes, np.int64)[index.schema_ids]
        self._is_checked = np.zeros(len(index), bool)  # shards that were opened before

    def __reduce__(self) -> tuple[Any, ...]:
        return LocalShards, (self.index, self.store, self.verify, self.snapshot)

    @property
    def root(self) -> str:
        """The URL or directory of the dataset, for messages."""
        return self.store.root

    @property
    def remotes(self) -> Sequence[RemotePart[Any]]:
        """The datasets that are in object stores."""
        return ()

    def split(self, shard_of: Int64) -> Iterator[tuple[RemotePart[Any], Rows]]:
        """Yield nothing: no dataset is in an object store."""
        yield from ()

    def buffer_bytes(self, shard: int) -> int | None:
        """Return the bytes of memory that an open shard takes, without memory-mapped files."""
        files = self.index.files(shard)
        pairs = ((files.data, files.zip_data), (files.meta, files.zip_meta))
        return sum(
            file.nbytes
            for file, compressed in pairs
            if file and self._needs_decompression(file, compressed)
        )

    def _needs_decompression(self, file: File, compressed: File | None) -> bool:
        return compressed is not None and not self.store.exists(file.name)

    @explain_replacement
    def open(self, shards: Iterable[int]) -> dict[int, LoadedShard]:
        """Map or decompress the files of shards, and check them against the index."""
        # The pages of all headers are requested before the first header is read.
        loaded = [(shard, *self._load(shard)) for shard in shards]
        return {shard: self._check_shard(shard, data, header) for shard, data, header in loaded}

    def _load(self, shard: int) -> tuple[Bytes, Bytes]:
        """Return the bytes of a shard's data file and of the file with its offsets."""
        files = self.index.files(shard)
        pairs = [(files.data, files.zip_data)]
        if files.meta is not None:
            pairs.append((files.meta, files.zip_meta))
        loaded = [
            self._load_file(
                file,
                compressed if self._needs_decompression(file, compressed) else None,
                files.compression,
            )
            for file, compressed in pairs
        ]
        data, header = loaded[0], loaded[-1]
        if memory.is_mapped(header):
            layout = self.layouts[self.index.schema_ids[shard]]
            end = 4 * (self._sample_count(shard) + 2)
            # `end + 1` adds the page of the configuration, which begins at `end`.
            if layout is None or not layout.stride:
                memory.will_need(header[: end + 1])
            else:  # `_check_shard` reads only the first and the last offset
                memory.will_need(header[:8])
                memory.will_need(header[end - 4 : end + 1])
        return data, header

    def _check_shard(
        self, shard: int, data: Bytes, header: Bytes, resident: Bytes = _ALL_RESIDENT
    ) -> LoadedShard:
        """Check the files of a shard against the index, and return the shard.

        Parameters
        ----------
        shard : int
        data, header : ndarray of uint8
            The bytes of the data file and of the file with the offsets.
        resident : ndarray of uint8
            As in `LoadedShard`.
        """
        schema_id = int(self.index.schema_ids[shard])
        schema, layout = self.index.schemas[schema_id], self.layouts[schema_id]
        samples, stride = self._sample_count(shard), layout.stride if layout is not None else 0
        try:
            if layout is not None:
                begin = mds.check_mds_head(schema, data, samples, stride)
            else:
                begin = text.check_text_head(schema, data, header, samples)
        except FormatError as error:
            where = self.store.where(self.index.name(shard))
            raise FormatError(f"{where} (shard {shard}): {error}") from None
        self._is_checked[shard] = True
        offsets = header[4 : 4 * (samples + 2)].view("<u4")
        return LoadedShard(data, offsets, begin, stride, resident)

    def _sample_count(self, shard: int) -> int:
        """Return the number of samples of a shard."""
        return int(self.index.starts[shard + 1]) - int(self.index.starts[shard])

    def fetch(self, ids: Int64, shard_of: Int64) -> FetchResult:
        """Return the distinct shards of samples: a local shard needs no fetch."""
        return FetchResult(np.unique(shard_of), np.zeros((2, len(ids)), np.int64), [])

    def is_stale(self, shard: int, loaded: LoadedShard) -> bool:
        """Return False: an open local shard stays valid."""
        return False

    @explain_replacement
    def read_samples(self, ids: Int64, shard_of: Int64) -> tuple[Int64, Int64, list[object]]:
        """Read samples into new buffers, without keeping their shards in memory."""
        address, nbytes = np.empty((2, len(ids)), np.int64)
        owners: list[object] = []
        for shard in np.unique(shard_of).tolist():
            positions = np.flatnonzero(shard_of == shard)
            rows = ids[positions] - self.index.starts[shard]
            loaded = self._open_whole(shard)
            if loaded is None:
                begins, ends = self._read_bounds(shard, rows)
                guard = self.check_bounds(shard, rows, begins, ends)
                name, begins = self.index.files(shard).data.name, begins - guard
                spans = zip(begins.tolist(), (ends - begins).tolist(), strict=True)
                parts = self.store.ranges((name, begin, size) for begin, size in spans)
                address[positions], nbytes[positions], buffer = concatenate_parts(parts, guard)
            else:
                address[positions], nbytes[positions], buffer = self._copy_rows(shard, loaded, rows)
            owners.append(buffer)
        return address, nbytes, owners

    def _open_whole(self, shard: int) -> LoadedShard | None:
        """Open a shard that must be read whole; return None if byte ranges are enough."""
        whole = bool(self.buffer_bytes(shard)) or not self._is_checked[shard]
        return self.open([shard])[shard] if whole else None

    def _read_bounds(self, shard: int, rows: Int64) -> tuple[Int64, Int64]:
        """Return where rows begin and end, read from the offsets table of a shard on disk."""
        files = self.index.files(shard)
        layout = self.layouts[self.index.schema_ids[shard]]
        if layout is not None and layout.stride:
            begins = files.data.nbytes - (self._sample_count(shard) - rows) * layout.stride
            return begins, begins + layout.stride
        name = (files.meta or files.data).name
        pairs = b"".join(self.store.ranges((name, 4 + 4 * row, 8) for row in rows.tolist()))
        begins, ends = np.frombuffer(pairs, "<u4").reshape(-1, 2).T.astype(np.int64)
        return begins, ends

    def _copy_rows(
        self, shard: int, loaded: LoadedShard, rows: Int64
    ) -> tuple[Int64, Int64, Bytes]:
        """Copy rows of a loaded shard; return them as `concatenate_parts` does."""
        if loaded.stride:
            begins = loaded.begin + rows * loaded.stride
            ends = begins + loaded.stride
        else:
            begins, ends = (loaded.offsets[row].astype(np.int64) for row in (rows, rows + 1))
        guard = self.check_bounds(shard, rows, begins, ends)
        spans = zip((begins - guard).tolist(), ends.tolist(), strict=True)
        return concatenate_parts([loaded.data[begin:end].tobytes() for begin, end in spans], guard)

    def check_bounds(self, shard: int, rows: Int64, begins: Int64, ends: Int64) -> int:
        """Raise FormatError unless rows lie within their shard; return its `guard_nbytes`."""
        files = self.index.files(shard)
        guard = int(self.guard_nbytes[shard])
        head_size = 0 if files.meta else 4 * (self._sample_count(shard) + 2)
        wrong = (begins < max(head_size, guard)) | (ends < begins) | (ends > files.data.nbytes)
        if wrong.any():
            sample = int(self.index.starts[shard]) + int(rows[wrong.argmax()])
            self.raise_damaged(sample, "its offsets do not fit the shard")
        return guard

    def _load_file(self, file: File, compressed: File | None, compression: str | None) -> Bytes:
        """Return the bytes of a file, mapped, or decompressed from `compressed` if it is given."""
        if compressed is None:
            data = self.store.map(file.name, file.nbytes)
            self._check_size(len(data), file)
            self._verify(data, file, self.verify != "auto")
            return data
        where = self.store.where(compressed.name)
        if compression is None:
            raise FormatError(f"{where}: compressed, but the index names no compression")
        if file.nbytes > _OFFSET_LIMIT:
            raise FormatError(
                f"{where}: {quantity(file.nbytes, 'byte')} when decompressed; offsets reach "
                f"{_OFFSET_LIMIT:,}"
            )
        if self.store.is_local:
            self._check_size(self.store.size(compressed.name), compressed)
        stored_bytes = self.store.read(compressed.name, compressed.nbytes)
        if not memory.fits_in_memory(file.nbytes):
            raise FormatError(f"{where}: {memory.too_large_text(file.nbytes)}")
        # A recorded hash of the decompressed bytes makes a hash of the compressed ones redundant.
        self._verify(stored_bytes, compressed, self.verify != "auto" or not file.hashes)
        try:
            data = np.frombuffer(decompress(stored_bytes, compression, file.nbytes), np.uint8)
        except ValueError as error:
            raise FormatError(f"{where}: {error}") from error
        self._verify(data, file, True)
        return data

    def _check_size(self, nbytes: int, file: File) -> None:
        if nbytes != file.nbytes:
            raise FormatError(
                f"{self.store.where(file.name)}: {quantity(nbytes, 'byte')}; the index says "
                f"{file.nbytes:,}"
            )

    def _verify(self, data: Bytes | bytes, file: File, is_required: bool) -> None:
        """Compare the hash of a file's bytes with the recorded one.

        Parameters
        ----------
        data : ndarray of uint8 or bytes
        file : File
        is_required : bool
            False if the current mode of `verify` does not check this file.
        """
        if not self.verify or not is_required:
            return
        is_hash_name = isinstance(self.verify, str) and self.verify != "auto"
        name = str(self.verify) if is_hash_name else fastest(file.hashes)
        if name is None and (self.verify == "auto" or not file.hashes):
            return
        where = self.store.where(file.name)
        if name not in file.hashes:
            raise IntegrityError(
                f"{where}: the index records {', '.join(file.hashes) or 'no hash'}; expected "
                f"{name or 'a known hash'} to verify it by"
            )
        actual = digest(name, data if isinstance(data, bytes) else data.data)
        if actual != (expected := file.hashes[name]):
            raise IntegrityError(f"{where}: its {name} is {actual}; the index says {expected}")

    def close(self) -> None:
        """No-op: local shards have no background work."""

    @explain_replacement
    def raise_damaged(self, sample: int, reason: str, cause: Exception | None = None) -> NoReturn:
        """Raise FormatError with the location of a sample and the reason."""
        raise FormatError(f"{self.describe(sample)}: {reason}") from cause

    def require_hash(self, name: str) -> None:
        """Raise ValueError unless the index records the hash `name` for the first shard."""
        files = self.index.files(0)
        recorded = sorted(files.data.hashes)
        if name not in recorded:
            raise ValueError(
                f"verify={name!r}, but {self.index.where} records {recorded or 'no hashes'}"
            )

    def describe(self, sample: int) -> str:
        """Return the location of a sample, for messages."""
        shard = int(np.searchsorted(self.index.starts, sample, side="right")) - 1
        row = sample - int(self.index.starts[shard])
        where = self.store.where(self.index.name(shard))
        return f"{where} (shard {shard}): sample {row} (sample {sample} of the dataset)"


def layouts_of(index: Index) -> list[SampleLayout | None]:
    """Return the sample layout of each schema of an index; None for a text format."""
    return [
        mds.sample_layout(schema) if schema.format == "mds" else None for schema in index.schemas
    ]
