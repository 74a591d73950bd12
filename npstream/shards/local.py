"""Opening a shard: its files mapped or decompressed, and checked against the index."""

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
from npstream.shards.base import LoadedShard, Verify, concatenate_parts
from npstream.shards.snapshot import Snapshot, explain_replacement

if TYPE_CHECKING:
    from npstream._core.arrays import Rows
    from npstream.formats.index import File, Index
    from npstream.formats.mds import SampleLayout
    from npstream.shards.base import RemotePart
    from npstream.storage.local import Store

_ALL_RESIDENT: Bytes = np.empty(0, np.uint8)

_MAX_OFFSET = 1 << 32
"""Where samples end that offsets of four bytes can reach."""


class LocalShards:
    """The shards of a dataset, as they are stored.

    Parameters
    ----------
    index : Index
    store : LocalStore or RemoteStore
    verify : bool or str
    snapshot : Snapshot, optional
        The index as it was when the dataset was opened. Errors of reads then say if the dataset
        was replaced.

    Attributes
    ----------
    layouts : list of SampleLayout or None
        As `layouts_of` returns them.
    """

    def __init__(
        self, index: Index, store: Store, verify: Verify, snapshot: Snapshot | None = None
    ) -> None:
        self.index = index
        self.snapshot = snapshot
        self.store = store
        self.verify = verify
        self.layouts = layouts_of(index)
        guards = [text.guard(schema) for schema in index.schemas]
        self.guards = np.array(guards, np.int64)[index.schema_of]
        self._is_checked = np.zeros(len(index), bool)  # opened once, and so checked

    def __reduce__(self) -> tuple[Any, ...]:
        return LocalShards, (self.index, self.store, self.verify, self.snapshot)

    @property
    def root(self) -> str:
        """The place of the dataset, for messages."""
        return self.store.root

    @property
    def remotes(self) -> Sequence[RemotePart[Any]]:
        """The datasets that are in object stores."""
        return ()

    def split(self, shard_of: Int64) -> Iterator[tuple[RemotePart[Any], Rows]]:
        """Yield the datasets in object stores that samples belong to, and which samples do."""
        yield from ()

    def buffer_bytes(self, shard: int) -> int | None:
        """Return the bytes of memory that a shard takes, open, besides maps."""
        files = self.index.files(shard)
        pairs = ((files.data, files.zip_data), (files.meta, files.zip_meta))
        return sum(raw.nbytes for raw, zipped in pairs if raw and self._is_compressed(raw, zipped))

    def _is_compressed(self, raw: File, zipped: File | None) -> bool:
        return zipped is not None and not self.store.exists(raw.name)

    @explain_replacement
    def open(self, shards: Iterable[int]) -> dict[int, LoadedShard]:
        """Map or decompress the files of shards, and check them against the index."""
        # All heads are asked for before the first is looked at.
        loaded = [(shard, *self._load(shard)) for shard in shards]
        return {shard: self._check_shard(shard, data, head) for shard, data, head in loaded}

    def _load(self, shard: int) -> tuple[Bytes, Bytes]:
        """Return a shard's data, and the file with its offsets."""
        files = self.index.files(shard)
        pairs = [(files.data, files.zip_data)]
        if files.meta is not None:
            pairs.append((files.meta, files.zip_meta))
        loaded = [
            self._load_file(
                raw, zipped if self._is_compressed(raw, zipped) else None, files.compression
            )
            for raw, zipped in pairs
        ]
        data, head = loaded[0], loaded[-1]
        if memory.is_mapped(head):
            layout, end = (
                self.layouts[self.index.schema_of[shard]],
                4 * (self._sample_count(shard) + 2),
            )
            if layout is None or not layout.stride:
                memory.will_need(head[: end + 1])
            else:  # only the first and the last offset are looked at
                memory.will_need(head[:8])
                memory.will_need(head[end - 4 : end + 1])
        return data, head

    def _check_shard(
        self, shard: int, data: Bytes, head: Bytes, resident: Bytes = _ALL_RESIDENT
    ) -> LoadedShard:
        """Return a shard in memory, whose files are held against the index.

        Parameters
        ----------
        shard : int
        data, head : ndarray of uint8
            The shard's bytes, and those of the file with its offsets.
        resident : ndarray of uint8
            A byte for each chunk, as a LoadedShard has them; none if all of the shard is in memory.
        """
        number = int(self.index.schema_ids[shard])
        schema, layout = self.index.schemas[number], self.layouts[number]
        samples, stride = self._sample_count(shard), layout.stride if layout is not None else 0
        try:
            if layout is not None:
                begin = mds.check_mds_head(schema, data, samples, stride)
            else:
                begin = text.check_text_head(schema, data, head, samples)
        except FormatError as error:
            where = self.store.where(self.index.name(shard))
            raise FormatError(f"{where} (shard {shard}): {error}") from None
        self._is_checked[shard] = True
        offsets = head[4 : 4 * (samples + 2)].view("<u4")
        return LoadedShard(data, offsets, begin, stride, resident)

    def _sample_count(self, shard: int) -> int:
        """Return the number of samples of a shard."""
        return int(self.index.starts[shard + 1]) - int(self.index.starts[shard])

    def fetch_shards(self, ids: Int64, shard_of: Int64) -> Int64:
        """Return the shards to open so that samples are in memory."""
        return np.unique(shard_of)

    def is_stale(self, shard: int, loaded: LoadedShard) -> bool:
        """Return True if a shard that is in memory is to be opened again."""
        return False

    @explain_replacement
    def read_samples(self, ids: Int64, shard_of: Int64) -> tuple[Int64, Int64, list[object]]:
        """Read samples of shards that cannot stay in memory."""
        address, nbytes = np.empty((2, len(ids)), np.int64)
        held: list[object] = []
        for shard in np.unique(shard_of).tolist():
            samples = np.flatnonzero(shard_of == shard)
            rows = ids[samples] - self.index.starts[shard]
            loaded = self._open_whole(shard)
            if loaded is None:
                begins, ends = self._read_bounds(shard, rows)
                guard = self.check_bounds(shard, rows, begins, ends)
                name, begins = self.index.files(shard).data.name, begins - guard
                spans = zip(begins.tolist(), (ends - begins).tolist(), strict=True)
                parts = self.store.ranges((name, begin, size) for begin, size in spans)
                address[samples], nbytes[samples], arena = concatenate_parts(parts, guard)
            else:
                address[samples], nbytes[samples], arena = self._copy_rows(shard, loaded, rows)
            held.append(arena)
        return address, nbytes, held

    def _open_whole(self, shard: int) -> LoadedShard | None:
        """Open a shard that must be read whole; None if ranges of it will do."""
        whole = bool(self.buffer_bytes(shard)) or not self._is_checked[shard]
        return self.open([shard])[shard] if whole else None

    def _read_bounds(self, shard: int, rows: Int64) -> tuple[Int64, Int64]:
        """Return where rows of a shard that is not open begin and end."""
        files = self.index.files(shard)
        layout = self.layouts[self.index.schema_ids[shard]]
        if layout is not None and layout.stride:
            begins = files.data.nbytes - (self._sample_count(shard) - rows) * layout.stride
            return begins, begins + layout.stride
        head = (files.meta or files.data).name
        pairs = b"".join(self.store.ranges((head, 4 + 4 * row, 8) for row in rows.tolist()))
        begins, ends = np.frombuffer(pairs, "<u4").reshape(-1, 2).T.astype(np.int64)
        return begins, ends

    def _copy_rows(
        self, shard: int, loaded: LoadedShard, rows: Int64
    ) -> tuple[Int64, Int64, Bytes]:
        """Copy rows of a shard in memory, and return them as `concatenate_parts` does."""
        if loaded.stride:
            begins = loaded.begin + rows * loaded.stride
            ends = begins + loaded.stride
        else:
            begins, ends = (loaded.offsets[at].astype(np.int64) for at in (rows, rows + 1))
        guard = self.check_bounds(shard, rows, begins, ends)
        spans = zip((begins - guard).tolist(), ends.tolist(), strict=True)
        return concatenate_parts([loaded.data[begin:end].tobytes() for begin, end in spans], guard)

    def check_bounds(self, shard: int, rows: Int64, begins: Int64, ends: Int64) -> int:
        """Raise FormatError unless rows lie within their shard; return their guard."""
        files = self.index.files(shard)
        guard = int(self.guards[shard])
        low = 0 if files.meta else 4 * (self._sample_count(shard) + 2)
        wrong = (begins < max(low, guard)) | (ends < begins) | (ends > files.data.nbytes)
        if wrong.any():
            sample = int(self.index.starts[shard]) + int(rows[wrong.argmax()])
            self.raise_damaged(sample, "its offsets do not fit the shard")
        return guard

    def _load_file(self, raw: File, zipped: File | None, compression: str | None) -> Bytes:
        """Return a file's bytes: the compressed file unpacked, or the stored one mapped."""
        if zipped is None:
            data = self.store.map(raw.name, raw.nbytes)
            self._check_size(len(data), raw)
            self._verify(data, raw, self.verify != "auto")
            return data
        where = self.store.where(zipped.name)
        if compression is None:
            raise FormatError(f"{where}: compressed, but the index names no compression")
        if raw.nbytes > _MAX_OFFSET:
            raise FormatError(
                f"{where}: {quantity(raw.nbytes, 'byte')} unpacked; offsets reach {_MAX_OFFSET:,}"
            )
        if self.store.is_local:
            self._check_size(self.store.size(zipped.name), zipped)
        packed = self.store.read(zipped.name, zipped.nbytes)
        if not memory.fits_in_memory(raw.nbytes):
            raise FormatError(f"{where}: {memory.too_large_text(raw.nbytes)}")
        # What the recorded hash of the content covers need not be hashed before, too.
        self._verify(packed, zipped, self.verify != "auto" or not raw.hashes)
        try:
            data = np.frombuffer(decompress(packed, compression, raw.nbytes), np.uint8)
        except ValueError as error:
            raise FormatError(f"{where}: {error}") from error
        self._verify(data, raw, True)
        return data

    def _check_size(self, nbytes: int, file: File) -> None:
        if nbytes != file.nbytes:
            raise FormatError(
                f"{self.store.where(file.name)}: {quantity(nbytes, 'byte')}; the index says "
                f"{file.nbytes:,}"
            )

    def _verify(self, data: Bytes | bytes, file: File, wanted: bool) -> None:
        """Compare a file's recorded hash with its bytes'."""
        if not self.verify or not wanted:
            return
        named = isinstance(self.verify, str) and self.verify != "auto"
        name = str(self.verify) if named else fastest(file.hashes)
        if name is None and (self.verify == "auto" or not file.hashes):
            return
        where = self.store.where(file.name)
        if name not in file.hashes:
            raise IntegrityError(
                f"{where}: the index records {', '.join(file.hashes) or 'no hash'}; expected "
                f"{name or 'one that is known'} to verify it by"
            )
        found = digest(name, data if isinstance(data, bytes) else data.data)
        if found != (expected := file.hashes[name]):
            raise IntegrityError(f"{where}: its {name} is {found}; the index says {expected}")

    def close(self) -> None:
        """Stop what runs in the background."""

    @explain_replacement
    def raise_damaged(self, sample: int, what: str, cause: Exception | None = None) -> NoReturn:
        """Raise FormatError for a sample, saying where it is stored."""
        raise FormatError(f"{self.describe(sample)}: {what}") from cause

    def require_hash(self, name: str) -> None:
        """Raise ValueError unless the index records the hash that is to be checked."""
        files = self.index.files(0)
        recorded = sorted(files.data.hashes)
        if name not in recorded:
            raise ValueError(
                f"verify={name!r}, but {self.index.where} records {recorded or 'no hashes'}"
            )

    def describe(self, sample: int) -> str:
        """Say where a sample is stored, for messages."""
        shard = int(np.searchsorted(self.index.starts, sample, side="right")) - 1
        row = sample - int(self.index.starts[shard])
        where = self.store.where(self.index.name(shard))
        return f"{where} (shard {shard}): sample {row} (sample {sample} of the dataset)"


def layouts_of(index: Index) -> list[SampleLayout | None]:
    """Return for each schema of an index how its samples are laid out; None for text."""
    return [mds.layout(schema) if schema.format == "mds" else None for schema in index.schemas]
