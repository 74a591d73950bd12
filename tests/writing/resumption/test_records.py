"""The records and the journal of a write that can resume are read as they were written."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

from npstream.errors import StorageError
from npstream.formats.index import Schema
from npstream.formats.scan import Scan, scalar_columns
from npstream.formats.statistics import encode_statistics
from npstream.writing.resumption.journal import Journal
from npstream.writing.resumption.records import (
    Checkpoint,
    ShardRecord,
    decode_record,
    encode_record,
    settings_differences,
)

CHECKPOINT = Checkpoint(7, 2, ("a/b.csv", 3), "00ff", (1, 40))
ENTRY = {"samples": 2, "raw_data": {"basename": "shard.00000.mds", "bytes": 9}, "zip_data": None}


def scan_of_a_shard():
    """Return the scan of a shard of two columns."""
    schema = Schema("mds", ("f", "t"), ("float64", "str"), (8, None))
    columns = scalar_columns([schema])
    scan = Scan(schema, 2, columns, compressed=False, statistics_dtypes={})
    rows = [np.float64(v).tobytes() + t for v, t in ((0.1, b"a"), (np.nan, b""))]
    rows = [np.uint32(len(row) - 8).tobytes() + row for row in rows]
    head = 4 * 4  # the number of samples, and three offsets
    ends = np.cumsum([head, *map(len, rows)]).astype("<u4")
    body = np.uint32(2).tobytes() + ends.tobytes() + b"".join(rows)
    b"".join(scan.tee([body]))
    return scan.finish()


def test_a_record_of_a_shard_is_read_as_it_was_written():
    scan = scan_of_a_shard()
    record = decode_record(encode_record(ShardRecord(ENTRY, CHECKPOINT, scan)))
    assert (record.entry, record.checkpoint) == (ENTRY, CHECKPOINT)
    assert record.files() == {"shard.00000.mds": 9}
    decoded = record.scan
    assert (decoded.begin, decoded.meta) == (scan.begin, scan.meta)
    assert decoded.pieces.tolist() == scan.pieces.tolist()
    np.testing.assert_array_equal(decoded.columns["f"], scan.columns["f"])
    assert decoded.columns["f"].dtype == scan.columns["f"].dtype
    assert encode_statistics(decoded.statistics) == encode_statistics(scan.statistics)
    assert decode_record(encode_record(ShardRecord(ENTRY, CHECKPOINT, None))).scan is None


def test_damaged_records_are_refused():
    body = encode_record(ShardRecord(ENTRY, CHECKPOINT, None))
    for damaged in (b"", body[:-1], body.replace(b"entry", b"entrx"), b"\x80", b"\xc1"):
        with pytest.raises(ValueError, match="a record of an interrupted write is damaged"):
            decode_record(damaged)
    with pytest.raises(ValueError, match="version 2; expected 1"):
        decode_record(body.replace(b"version\x01", b"version\x02"))


def test_differences_name_the_setting_and_both_values():
    saved, current = {"compression": None, "x": 1, "old": 2}, {"compression": "zstd", "x": 1}
    assert settings_differences(saved, current) == [
        "compression: none then, 'zstd' now",
        "old: 2 then, none now",
    ]


# The journal


def test_a_journal_is_read_as_it_was_written(tmp_path):
    path = str(tmp_path / "work")
    journal = Journal(path, create=True)
    assert journal.read().settings is None
    journal.append("settings", {"a": 1})
    for number in (1, 0, 2):
        journal.append("file", f"shard.{number}", (1, 2, number))
        journal.append("shard", number, b"record %d" % number)
    journal.append("cut", 2)
    journal.append("publication", {"index": "ff"})
    journal.close()
    journal = Journal(path)
    content = journal.read()
    assert (content.settings, content.publication) == ({"a": 1}, {"index": "ff"})
    assert content.files == {f"shard.{number}": (1, 2, number) for number in range(3)}
    records = {number: journal.shard_record(at) for number, at in content.shards.items()}
    assert records == {0: b"record 0", 1: b"record 1"}
    journal.remove()
    assert not os.path.exists(path)


def test_a_journal_that_ends_anywhere_has_the_complete_frames(tmp_path):
    path = str(tmp_path / "work")
    journal = Journal(path, create=True)
    ends = []
    for number in range(3):
        journal.append("shard", number, b"x" * number)
        ends.append(os.path.getsize(path))
    journal.close()
    all_frames = (tmp_path / "work").read_bytes()
    for nbytes in range(len(all_frames) + 1):
        for tail in (b"", b"\0" * 40, b"\xff" * 40):
            content = all_frames[:nbytes] + tail
            (tmp_path / "work").write_bytes(content)
            journal = Journal(path)
            complete = sum(content[:end] == all_frames[:end] for end in ends)
            assert sorted(journal.read().shards) == list(range(complete))
            journal.append("shard", 9, b"later")
            assert sorted(journal.read().shards) == [*range(complete), 9]
            journal.close()


def test_a_journal_that_cannot_grow_stays_as_it_was(tmp_path, monkeypatch):
    path = str(tmp_path / "work")
    journal = Journal(path, create=True)
    journal.append("shard", 0, b"first")
    write = os.pwrite

    def full(descriptor, data, at):
        if len(data) > 8:
            return write(descriptor, data[:8], at)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StorageError, match=r"No space left.*cannot store what this write needs"):
        journal.append("shard", 1, b"second")
    monkeypatch.undo()
    assert sorted(journal.read().shards) == [0]
    journal.append("shard", 2, b"third")
    assert sorted(journal.read().shards) == [0, 2]
    journal.close()


def test_one_process_locks_the_journal(tmp_path):
    path = str(tmp_path / "work")
    journal = Journal(path, create=True)
    with pytest.raises(FileExistsError):
        Journal(path, create=True)
    with pytest.raises(BlockingIOError):
        Journal(path)
    if (child := os.fork()) == 0:  # a child does not keep the lock
        os._exit(0 if journal._descriptor == -1 else 1)
    assert os.waitpid(child, 0)[1] == 0
    with pytest.raises(BlockingIOError):
        Journal(path)
    journal.close()
    other = Journal(path)
    other.remove()
    with pytest.raises(FileNotFoundError):
        Journal(path)
