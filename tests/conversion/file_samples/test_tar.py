"""Tars as streams: every kind that `tarfile` writes is read, and every damaged one raises."""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import lzma
import random
import sys
import tarfile
import tracemalloc

import pytest

from npstream.conversion.file_samples.tar import read_members
from npstream.errors import FormatError, StorageError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

CODECS = {
    "none": bytes,
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstd.compress,
}

MEMBERS = [("a/0.txt", b"first"), ("a/0.cls", b""), ("b" * 300 + ".bin", bytes(range(256)) * 9)]


def tar(members=MEMBERS, format=tarfile.PAX_FORMAT) -> bytes:
    """Return a tar of (name, content) or TarInfo."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            archive.addfile(info, io.BytesIO(member[1]))
    return file.getvalue()


def member(name, **attributes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for attribute, value in attributes.items():
        setattr(info, attribute, value)
    return info


def read(data: bytes):
    return list(read_members(io.BufferedReader(io.BytesIO(data)), "x.tar"))


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("codec", CODECS)
def test_all_members_are_read(format, codec):
    data = CODECS[codec](tar([member("a", type=tarfile.DIRTYPE), *MEMBERS], format))
    assert read(data) == MEMBERS
    members = list(
        read_members(io.BufferedReader(io.BytesIO(data)), "x", lambda name: name.endswith(".bin"))
    )
    assert members == MEMBERS[-1:]


@pytest.mark.parametrize("codec", CODECS)
def test_a_truncated_tar_raises_wherever_it_ends(codec):
    data = CODECS[codec](tar())
    # Zeros mark the end of a tar. Without a codec, all but their first block may be missing.
    end = len(data) if codec != "none" else -(-len(data.rstrip(b"\0")) // 512) * 512 + 512
    for stop in range(0, end, 7):
        with pytest.raises(FormatError, match=r"x\.tar: "):
            read(data[:stop])
    assert read(data[:end]) == MEMBERS


def test_the_message_names_the_member():
    data = tar([("0.txt", b"x" * 1000), ("1.txt", b"y" * 1000)])
    # The header of 1.txt is at bytes 1536 to 2047, and its content follows.
    with pytest.raises(FormatError, match=r"x\.tar: member '1\.txt': unexpected end of data"):
        read(data[:2500])
    with pytest.raises(FormatError, match=r"x\.tar: after member '0\.txt': "):
        read(data[:1600])
    with pytest.raises(FormatError, match=r"x\.tar: not a tar file"):
        read(b"x" * 2000)
    with pytest.raises(FormatError, match=r"x\.tar: not a tar file: empty"):
        read(b"")


def test_a_damaged_header_does_not_end_the_tar_silently():
    data = bytearray(tar([("0.txt", b""), ("1.txt", b""), ("2.txt", b"")], tarfile.USTAR_FORMAT))
    data[512 + 3] ^= 1
    with pytest.raises(FormatError, match=r"after member '0\.txt': bad checksum"):
        read(bytes(data))


def test_random_damage_raises_or_changes_only_contents():
    names = [name for name, _ in MEMBERS]
    generator = random.Random(0)
    data = tar()
    for _ in range(500):
        damaged = bytearray(data)
        # The first four blocks are three headers and one content.
        damaged[generator.randrange(len(data) - 8192)] = generator.randrange(256)
        try:
            members = read(bytes(damaged))
        except FormatError:
            continue
        assert [name for name, _ in members] == names


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (("/etc/passwd.txt", b""), "its path leads out of the directory"),
        (("a/../../b.txt", b""), "its path leads out of the directory"),
        (member("a.txt", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "a symbolic link to"),
        (member("a.txt", type=tarfile.LNKTYPE, linkname="b"), "a hard link to 'b'"),
        (member("a.txt", type=tarfile.FIFOTYPE), "a device or a pipe"),
        (member("a.txt", type=tarfile.CHRTYPE), "a device or a pipe"),
        (("\udcff.txt", b""), "its name is not UTF-8"),
    ],
)
def test_members_that_are_no_plain_files_raise(bad, words):
    data = tar([("0.txt", b"x"), bad], tarfile.GNU_FORMAT)
    with pytest.raises(FormatError, match=rf"x\.tar: member '.*': {words}"):
        read(data)


def test_a_sparse_file_raises(tmp_path):
    sparse = member("a.bin", type=tarfile.GNUTYPE_SPARSE, size=0)
    with pytest.raises(FormatError, match="a sparse file"):
        read(tar([sparse], tarfile.GNU_FORMAT))


@pytest.mark.parametrize("size", [1 << 32, 1 << 40, 1 << 60])
def test_a_huge_size_takes_no_memory(size):
    header = member("a.bin", size=size).tobuf(tarfile.GNU_FORMAT)
    with pytest.raises(FormatError, match="a shard can store at most 4,294,967,295"):
        read(header + bytes(2048))
    tracemalloc.start()
    try:
        header = member("a.bin", size=(1 << 32) - 1).tobuf(tarfile.GNU_FORMAT)
        # The size is refused if less memory is free; otherwise the content is truncated.
        with pytest.raises((FormatError, MemoryError)):
            read(header + bytes(2048))
        assert tracemalloc.get_traced_memory()[1] < 1 << 22
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
def test_a_huge_extended_header_takes_no_memory(kind):
    header = member("h", type=kind, size=1 << 33).tobuf(tarfile.GNU_FORMAT)
    with pytest.raises(FormatError, match="an extended header of 8,589,934,592 bytes"):
        read(header + bytes(1024))


def test_endless_extended_headers_raise():
    header = member("././@LongLink", type=b"L", size=2).tobuf(tarfile.GNU_FORMAT) + b"a".ljust(512)
    with pytest.raises(FormatError, match="nested too deeply"):
        read(header * 5000)


@pytest.mark.parametrize("size", ["-1", "x", "1e3"])
def test_wrong_sizes_in_extended_headers_raise(size):
    info = member("a.txt")
    info.pax_headers = {"size": size}
    with pytest.raises(FormatError):
        read(info.tobuf(tarfile.PAX_FORMAT) + b"y" * 512 + bytes(1024))


def test_joined_tars_raise():
    with pytest.raises(FormatError, match="tars that were joined are not read"):
        read(tar() + tar())


def test_a_tar_of_nothing_has_no_members():
    assert read(tar([])) == []


def test_errors_of_the_storage_are_not_taken_for_damage():
    class Failing(io.RawIOBase):
        def readable(self):
            return True

        def readinto(self, buffer):
            raise StorageError(errno.EIO, "the disk is gone", "x.tar")

    with pytest.raises(StorageError, match="the disk is gone"):
        list(read_members(io.BufferedReader(Failing()), "x.tar"))


def test_memory_does_not_grow_with_the_tar():
    data = tar([(f"{number}.bin", bytes(1 << 16)) for number in range(200)])
    tracemalloc.start()
    try:
        for _ in read_members(io.BufferedReader(io.BytesIO(data)), "x.tar"):
            pass
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
