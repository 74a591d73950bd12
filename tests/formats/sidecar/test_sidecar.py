"""Round trips of the side-car, and detection of damage."""

from __future__ import annotations

import copy
import json
import pickle
import random
from contextlib import suppress

import golden_data as golden
import hypothesis.strategies as st
import msgpack
import numpy as np
import pytest
from hypothesis import given

from npstream.errors import ColumnError, FormatError, IntegrityError, StorageError
from npstream.formats.chunks import CHUNK_BYTES, chunk_counts, piece_bounds, piece_rows
from npstream.formats.index import parse_index
from npstream.formats.sidecar.blocks import HASH_BLOCK, BlockArray, block_hashes, xxh3
from npstream.formats.sidecar.container import _HEAD, _align
from npstream.formats.sidecar.sidecar import (
    END_BYTES,
    ColumnFile,
    Sidecar,
    digest_index,
    digest_index_ends,
    encode_sidecar,
    npy_header,
)
from npstream.formats.versions import SIDECAR_FILE
from tests.formats.test_index import ENTRIES


class MemoryStore:
    """A store of files in memory that counts the bytes read."""

    def __init__(self, files):
        self.files = dict(files)
        self.nbytes = 0

    def where(self, name):
        return f"memory/{name}"

    def size(self, name):
        return len(self.files[name])

    def discard(self, spans):
        """No-op: this store has no cache."""

    def ranges(self, spans):
        parts = []
        for name, offset, nbytes in spans:
            part = self.files[name][offset : offset + nbytes]
            self.nbytes += len(part)
            if len(part) != nbytes:
                raise StorageError(f"{name}: too short")
            parts.append(part)
        return parts


def encode(text, columns=(), sections=()):
    index = parse_index(text, "here/index.json")
    return b"".join(encode_sidecar(index, digest_index(text), columns, dict(sections)))


def open_encoded(text, **more):
    return Sidecar(MemoryStore({SIDECAR_FILE: encode(text, **more)}))


def text_of(entries):
    return json.dumps({"shards": entries, "version": 2}).encode()


def assert_equal(index, other):
    for name in ("starts", "nbytes", "compressed", "schema_ids", "guide"):
        array, other_array = getattr(index, name), getattr(other, name)
        assert array.dtype == other_array.dtype, name
        assert array.tolist() == other_array.tolist(), name
    for name in ("schemas", "shift", "total_nbytes", "where", "samples"):
        assert getattr(index, name) == getattr(other, name)
    assert len(index) == len(other)
    assert index.fingerprint() == other.fingerprint()
    for shard in range(len(index)):
        assert index.files(shard) == other.files(shard)
        assert index.name(shard) == other.name(shard)


INDEXES = [golden.directory(case) / "index.json" for case in golden.cases() if case["readable"]]


@pytest.mark.parametrize("path", INDEXES, ids=lambda path: path.parent.name)
def test_golden_indexes_round_trip(path):
    text = path.read_bytes()
    want = parse_index(text, "here/index.json")
    assert_equal(open_encoded(text).index("here/index.json"), want)


names = st.one_of(
    st.from_regex(r"[a-z]{0,2}[0-9]{1,3}", fullmatch=True),
    st.integers(0, 3).map("part/shard.{:05}.mds".format),
    st.integers(99998, 100001).map("shard.{:05}.mds".format),
    st.sampled_from(["ä", "x.mp3", "1" * 30, "0", "00", "...", "a 1 b"]),
)
hashes = st.dictionaries(
    st.sampled_from(["sha1", "xxh64", "other"]),
    st.binary(max_size=3).map(bytes.hex),
    max_size=2,
)
files = st.builds(
    lambda name, nbytes, digests: {"basename": name, "bytes": nbytes, "hashes": digests},
    *(names, st.integers(40, 2**40 - 1), hashes),
)


@st.composite
def entries(draw):
    entry = copy.deepcopy(draw(st.sampled_from(list(ENTRIES.values()))))
    for key in ("raw_data", "raw_meta"):
        if key in entry:
            entry[key] = draw(files)
    for key in ("zip_data", "zip_meta"):
        if key in entry:
            entry[key] = draw(st.none() | files)
    entry["samples"] = draw(st.integers(0, 8))
    entry["compression"] = draw(st.sampled_from([None, "zstd", "gz:3"]))
    return entry


@given(st.lists(entries(), max_size=8))
def test_generated_indexes_round_trip(shards):
    text = text_of(shards)
    want = parse_index(text, "here/index.json")
    sidecar = open_encoded(text)
    assert_equal(sidecar.index("here/index.json"), want)
    assert_equal(pickle.loads(pickle.dumps(sidecar)).index("here/index.json"), want)
    assert sidecar.index_digest == digest_index(text)
    assert not sidecar.has_hashes
    if shards:
        assert sidecar.piece_hashes(0) is sidecar.first_offset(0) is sidecar.meta_hash(0) is None


def test_consecutive_names_are_stored_as_one_run():
    shards = []
    for number in range(3000):
        entry = copy.deepcopy(ENTRIES["mds"])
        entry["raw_data"]["basename"] = f"part{number // 1000}/shard.{number % 1000:05}.mds"
        shards.append(entry)
    few = len(encode(text_of(shards)))
    random.Random(0).shuffle(shards)
    # 12 bytes for each shard suffice only if the names take next to none.
    assert few < 3000 * 12 < len(encode(text_of(shards)))


def test_digests_that_are_not_hexadecimal_raise():
    entry = copy.deepcopy(ENTRIES["mds"])
    for digest in ("xyz", "AB", "abc", " ab"):
        entry["raw_data"]["hashes"] = {"sha1": digest}
        with pytest.raises(FormatError, match=r"shard 0: sha1 is .* expected hexadecimal"):
            encode(text_of([entry]))


def test_text_that_is_not_utf8_raises():
    with pytest.raises(FormatError, match="not UTF-8"):
        encode(text_of([ENTRIES["mds"] | {"compression": "\ud800"}]))


# Digests of the index


def test_digests_match_unless_they_show_a_difference():
    text = random.Random(0).randbytes(3 * END_BYTES)
    digest = digest_index(text, "v1", "s3://here")
    assert digest == digest_index_ends(
        len(text), text[:END_BYTES], text[-END_BYTES:], "v1", "s3://here"
    )
    assert digest.matches(digest_index(text))
    assert digest.matches(digest_index(text, "v2"))
    assert digest.matches(digest_index(text, "v2", "s3://a copy"))
    assert not digest.matches(digest_index(text, "v2", "s3://here"))
    assert not digest.matches(digest_index(b"x" + text[1:]))
    assert not digest.matches(digest_index(text[:-1] + b"x"))
    assert not digest.matches(digest_index(text + b"x"))


# Sections

COUNT = 100_000


def large(count=COUNT):
    """Return a store with a side-car whose sections have several blocks, its hashes and values."""
    entry = copy.deepcopy(ENTRIES["mds"])
    entry["samples"] = count
    entry["raw_data"]["bytes"] = 3 * CHUNK_BYTES
    shards = [entry] * 3
    rng = np.random.default_rng(0)
    pieces = rng.integers(0, 1 << 63, 12, np.uint64)
    values = rng.integers(-100, 100, 3 * count)
    column = ColumnFile("a", np.dtype("<i8"), "index.columns/a.npy")
    shard_values = values.reshape(3, -1)
    sections = {
        "pieces": pieces,
        "begins": np.array([1, 2, 3], "u1"),
        "min/a": shard_values.min(axis=1),
        "max/a": shard_values.max(axis=1),
        "column/a": block_hashes(values.tobytes()),
    }
    body = npy_header(column.dtype, len(values)) + values.tobytes()
    text = text_of(shards)
    sidecar = encode(text, columns=[column], sections=sections)
    return MemoryStore({SIDECAR_FILE: sidecar, column.file: body}), pieces, values


def test_piece_hashes_and_bounds_of_columns_are_read_back():
    store, pieces, values = large()
    sidecar = Sidecar(store)
    assert sidecar.has_hashes
    for shard in range(3):
        assert sidecar.piece_hashes(shard).tolist() == pieces[4 * shard : 4 * shard + 4].tolist()
        assert sidecar.first_offset(shard) == shard + 1
        assert sidecar.meta_hash(shard) is None
    minimum, maximum = sidecar.shard_range("a")
    assert minimum.tolist() == values.reshape(3, -1).min(axis=1).tolist()
    assert maximum.tolist() == values.reshape(3, -1).max(axis=1).tolist()
    with pytest.raises(ColumnError, match=r"memory/index\.msgpack: no column 'b'"):
        sidecar.shard_range("b")


def test_columns_are_read_by_byte_ranges():
    store, _, values = large()
    sidecar = Sidecar(store)
    opened_nbytes = store.nbytes
    assert sidecar.column("a", 100_000, 100_003).tolist() == values[100_000:100_003].tolist()
    assert store.nbytes - opened_nbytes <= HASH_BLOCK + 256  # one block, the header and hashes
    # The last span crosses from one block of 32,768 values to the next.
    for start, stop in ((0, 0), (0, 1), (len(values), len(values)), (32_767, 32_769)):
        assert sidecar.column("a", start, stop).tolist() == values[start:stop].tolist()
    assert np.array_equal(sidecar.column("a"), values)
    for start, stop in ((-1, 3), (3, 2), (0, len(values) + 1)):
        with pytest.raises(IndexError):
            sidecar.column("a", start, stop)


def test_column_files_are_npy_files(tmp_path):
    store, _, values = large()
    path = tmp_path / "a.npy"
    path.write_bytes(store.files["index.columns/a.npy"])
    assert np.array_equal(np.load(path), values)


def test_a_msgpack_reader_can_parse_the_file():
    store, pieces, _ = large()
    unpacker = msgpack.Unpacker(max_buffer_size=1 << 30)
    unpacker.feed(store.files[SIDECAR_FILE])
    head, table, *items = unpacker
    assert head.startswith(b"npstream")
    assert table["shards"] == 3
    arrays = [item for item in items if item is not None]
    assert len(arrays) == len(table["sections"])
    bodies = dict(zip([section[0] for section in table["sections"]], arrays, strict=True))
    assert bodies["pieces"] == pieces.tobytes()


def test_opening_reads_only_the_index():
    count = 20_000
    shards = [ENTRIES["mds"] | {"hashes": ["sha1"]}] * count
    pieces = np.arange(2 * count, dtype=np.uint64)
    store = MemoryStore({SIDECAR_FILE: encode(text_of(shards), sections={"pieces": pieces})})
    sidecar = Sidecar(store)
    assert len(sidecar.index("here/index.json")) == count
    assert store.nbytes < 12 * count
    assert sidecar.piece_hashes(count - 1).tolist() == [2 * count - 2, 2 * count - 1]
    assert store.nbytes < 12 * count + 2 * HASH_BLOCK


# Damage


def read_everything(store):
    """Read the whole side-car, and return its content in a comparable form."""
    sidecar = Sidecar(store)
    index = sidecar.index("here/index.json")
    values = [index.starts, index.nbytes, index.schema_ids, index.schemas, index.fingerprint()]
    values += [index.files(shard) for shard in range(len(index))]
    values += [sidecar.piece_hashes(shard) for shard in range(len(index))]
    values += [sidecar.first_offset(shard) for shard in range(len(index))]
    for name in sorted(sidecar.columns):
        values += [*sidecar.shard_range(name), sidecar.column(name)]
    return pickle.dumps(
        [np.asarray(f).tolist() if isinstance(f, np.ndarray) else f for f in values]
    )


def test_damage_raises_or_changes_no_value():
    store, _, _ = large(2000)
    intact, want = store.files[SIDECAR_FILE], read_everything(store)
    rng = random.Random(0)
    for k in range(300):
        damaged = bytearray(intact)
        if k % 3 == 0:
            del damaged[rng.randrange(len(damaged)) :]
        elif k % 3 == 1:
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        else:
            begin = rng.randrange(len(damaged))
            damaged[begin : begin + 8] = rng.randbytes(8)
        store.files[SIDECAR_FILE] = bytes(damaged)
        with suppress(FormatError, IntegrityError):
            # Damage in the padding changes nothing.
            assert read_everything(store) == want


def with_edited_table(edit):
    """Return a store whose side-car has an edited table, with consistent offsets and hash.

    `edit` changes the table in place, or returns another one.
    """
    store, _, _ = large(2000)
    intact = store.files[SIDECAR_FILE]
    prefix, magic, version, length, nbytes, _ = _HEAD.unpack_from(intact)
    table = msgpack.unpackb(intact[_HEAD.size : _HEAD.size + length])
    table = edit(table) or table
    body = msgpack.packb(table)
    start = _align(_HEAD.size + length)
    moved = _align(_HEAD.size + len(body)) - start
    head = _HEAD.pack(prefix, magic, version, len(body), nbytes + moved, xxh3(body))
    filler = bytes(-(_HEAD.size + len(body)) % 64)
    store.files[SIDECAR_FILE] = head + body + filler + intact[start:]
    return store


def test_with_edited_table_changes_nothing_but_the_table():
    store, _, _ = large(2000)
    assert read_everything(with_edited_table(lambda table: None)) == read_everything(store)


HOSTILE = [None, -1, 1 << 62, 1 << 63, True, 1.5, "x", b"x", [], {}, [[]], ["a"], "<O8", "../x"]


def test_most_hostile_tables_raise_and_others_can_be_read():
    rng = random.Random(0)

    def paths(value, path=()):
        if isinstance(value, dict | list):
            for key in value if isinstance(value, dict) else range(len(value)):
                yield from paths(value[key], (*path, key))
        if path:
            yield path

    rejected = 0
    for _ in range(300):
        choice = rng.random(), rng.choice(HOSTILE)

        def edit(table, choice=choice):
            table_paths = list(paths(table))
            *path, key = table_paths[int(choice[0] * len(table_paths))]
            for step in path:
                table = table[step]
            table[key] = choice[1]

        try:
            read_everything(with_edited_table(edit))
        except (FormatError, IntegrityError, StorageError):
            rejected += 1
    assert rejected > 200


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (lambda t: [t], "its table is list; expected a map"),
        (lambda t: t.update(chunk_bytes=1), "chunks of 1 byte;"),
        (lambda t: t.update(shards=2), "section 'samples' is 3 of"),
        (lambda t: t.update(samples=5), "6,000 samples, not 5"),
        (lambda t: t.pop("schemas"), "expected list"),
        (lambda t: t["schemas"][0].__setitem__(0, "parquet"), "format 'parquet'"),
        (lambda t: t["schemas"][0].__setitem__(1, ["a", "a"]), "duplicate columns"),
        (lambda t: t["schemas"].clear(), "a schema that is not listed"),
        (lambda t: t["columns"][0].__setitem__(2, "index.columns/../a.npy"), "cannot lie in"),
        (lambda t: t["columns"][0].__setitem__(1, "|O8"), "expected a numeric dtype"),
        (lambda t: t["columns"][0].__setitem__(1, "<i4"), "bounds of column 'a' are not int32"),
        (lambda t: t["compressions"].clear(), "compression number 0"),
        (lambda t: t["hashes"].clear(), "hashes None"),
        (lambda t: t["hashes"].update(data=[[["md5", 4]]]), "digests of shard 0 are missing"),
        (lambda t: t["sections"].clear(), "section .* is missing"),
        (lambda t: t["sections"][0].__setitem__(3, 1 << 40), "bytes at .* of"),
        (lambda t: t["sections"][0].__setitem__(4, b""), "has 0 bytes of hashes"),
    ],
)
def test_invalid_tables_raise(edit, match):
    def changed(table):
        # Only the first edit returns a new table. Others return what `pop` or `update` returns.
        result = edit(table)
        return result if isinstance(result, list) and result and result[0] is table else None

    with pytest.raises(FormatError, match=rf"memory/index\.msgpack: .*{match}"):
        read_everything(with_edited_table(changed))


def test_file_names_are_checked_on_access():
    # The index would reject this name, so the test replaces a valid name of the same length.
    entry = copy.deepcopy(ENTRIES["mds"])
    entry["raw_data"]["basename"] = "aa/shard"
    body = encode(text_of([entry]))
    store = MemoryStore({SIDECAR_FILE: body.replace(b"aa/shard", b"../shard")})
    with pytest.raises((FormatError, IntegrityError)):
        Sidecar(store).index("x").files(0)


def test_column_files_are_checked():
    for change, match in (
        (lambda body: body[:-1], "expected 6,000 of int64"),
        (lambda body: body.replace(b"i8", b"u8"), "its header does not describe"),
    ):
        store, _, _ = large(2000)
        store.files["index.columns/a.npy"] = change(store.files["index.columns/a.npy"])
        with pytest.raises(FormatError, match=match):
            Sidecar(store).column("a")
    store, _, _ = large(2000)
    body = bytearray(store.files["index.columns/a.npy"])
    body[5000] ^= 1
    store.files["index.columns/a.npy"] = bytes(body)
    with pytest.raises(IntegrityError, match=r"index\.columns/a\.npy"):
        Sidecar(store).column("a", 0, 1)  # the damaged byte is in the same block


def test_damage_in_transit_is_read_again():
    body = random.Random(0).randbytes(1000)
    hashes = block_hashes(body)

    class Flaky(MemoryStore):
        reads = 0

        def ranges(self, spans):
            self.reads += 1
            parts = super().ranges(spans)
            return [b"x" + parts[0][1:]] if self.reads == 1 else parts

    blocks = BlockArray(Flaky({"f": body}), "f", 0, 1000, np.dtype("u1"), hashes)
    assert blocks.read().tobytes() == body


# Pieces


@given(
    samples=st.integers(0, 50),
    nbytes=st.integers(0, 20),
    compressed=st.booleans(),
    chunk=st.integers(1, 9),
)
def test_pieces_cover_the_whole_shard(samples, nbytes, compressed, chunk):
    (count,) = chunk_counts(np.array([samples]), np.array([nbytes]), np.array([compressed]), chunk)
    rows = piece_rows(samples, int(count))
    assert rows.tolist() == [i * samples // count for i in range(count + 1)]
    sizes = np.random.default_rng(samples).integers(1, 5, samples)
    offsets = np.concatenate([[7], 7 + np.cumsum(sizes)]).astype(np.uint32)
    end = int(offsets[-1])
    bounds = piece_bounds(rows, 7, end, offsets).tolist()
    assert bounds == [0, *(int(offsets[row]) for row in rows[:-1]), end]
    # Without offsets, all samples have the same size.
    assert piece_bounds(rows, 7, 7 + 3 * samples).tolist() == [0, *(7 + 3 * rows).tolist()]
