"""Files of a source: paths, directories, globs, lists and URLs; their order, and reading them."""

from __future__ import annotations

import bz2
import gzip
import lzma
from pathlib import Path

import pytest

from npstream.conversion.files import find_files, natural_key, split_extension
from npstream.errors import StorageError
from npstream.storage.local import open_store


def write(directory: Path, *names: str) -> None:
    for name in names:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def names(source, options=None):
    return [file.name for file in find_files(source, options).files]


def test_a_directory_is_read_in_natural_order_without_hidden_files(tmp_path):
    write(tmp_path, "p-10.csv", "p-9.csv", "a/1.csv", ".hidden", ".git/x.csv", "a/.x")
    assert names(tmp_path) == ["a/1.csv", "p-9.csv", "p-10.csv"]
    assert find_files(tmp_path).root == str(tmp_path)


def test_a_linked_directory_is_read_once(tmp_path):
    write(tmp_path, "real/1.csv")
    (tmp_path / "real" / "again").symlink_to(tmp_path / "real")
    assert names(tmp_path) == ["real/1.csv"]


@pytest.mark.parametrize("scheme", ["local", "memory"])
@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.csv", ["b.csv", "c10.csv"]),
        ("**/*.csv", ["a/1.csv", "a/d/2.csv", "b.csv", "c10.csv"]),
        ("a/*.csv", ["1.csv"]),
        ("c1?.csv", ["c10.csv"]),
        ("[bx].csv", ["b.csv"]),
        ("[!b]*.csv", ["c10.csv"]),
        ("a*", ["a/1.csv", "a/d/2.csv"]),
        ("a/d", ["2.csv"]),
        ("b.csv", ["b.csv"]),
    ],
)
def test_globs_match_the_same_files_everywhere(tmp_path, upload, scheme, pattern, expected):
    write(tmp_path, "a/1.csv", "a/d/2.csv", "b.csv", "c10.csv", "x.txt", ".h.csv")
    root = tmp_path if scheme == "local" else upload(tmp_path)
    assert names(f"{root}/{pattern}") == expected


def test_a_list_keeps_its_order_and_names_files_by_their_paths(tmp_path):
    write(tmp_path, "b/1.csv", "a.csv")
    source = [tmp_path / "b", tmp_path / "a.csv"]
    assert names(source) == [str(tmp_path / "b/1.csv"), str(tmp_path / "a.csv")]
    with pytest.raises(ValueError, match=r"a\.csv is named twice"):
        find_files([tmp_path / "a.csv", tmp_path / "*.csv"])
    with pytest.raises(ValueError, match="empty list"):
        find_files([])


@pytest.mark.parametrize(
    ("source", "words"),
    [("nothing", "no such file"), ("*.csv", "no file matches"), ("memory://void/x", "no such"),
     ("memory://void/*.csv", "no file matches")],
)  # fmt: skip
def test_missing_files_raise(tmp_path, monkeypatch, source, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=words) as caught:
        find_files(source)
    assert isinstance(caught.value, StorageError)


def test_options_are_for_remote_sources(tmp_path):
    write(tmp_path, "a.csv")
    with pytest.raises(ValueError, match="source_options are for remote stores"):
        find_files(tmp_path, {"key": "x"})


def test_remote_files_are_read_from_any_position(servers):
    remote_dir = servers["s3"].new_directory()
    body = bytes(range(256)) * (1 << 14)
    remote_dir.put("d/one.bin", body)
    remote_dir.put("d/two.bin", b"")
    files = find_files(f"{remote_dir.url}/d", remote_dir.storage_options).files
    assert [(file.name, file.nbytes) for file in files] == [
        ("one.bin", len(body)),
        ("two.bin", 0),
    ]
    for buffered in (True, False):
        with files[0].open(buffered=buffered) as file:
            assert file.read(1000) == body[:1000]
            assert file.seek(-5, 2) == len(body) - 5
            assert file.read() == body[-5:]
            assert file.seek(3) == 3
            assert file.read(len(body)) == body[3:]
            assert file.read(1) == b""
        with files[1].open(buffered=buffered) as file:
            assert file.read() == b""


def test_files_and_directories_are_found_on_every_server(remote_dir):
    for name in ("d/p-10.csv", "d/p-9.csv", "d/e/1.csv", "d/.hidden"):
        remote_dir.put(name, name.encode())
    options = remote_dir.storage_options
    (file,) = find_files(f"{remote_dir.url}/d/p-9.csv", options).files
    with file.open() as opened:
        assert (file.name, opened.read()) == ("p-9.csv", b"d/p-9.csv")
    if open_store(remote_dir.url, options).can_list:
        assert names(f"{remote_dir.url}/d", options) == ["e/1.csv", "p-9.csv", "p-10.csv"]
        assert names(f"{remote_dir.url}/*/p*.csv", options) == ["d/p-9.csv", "d/p-10.csv"]
        assert names(remote_dir.url, options) == ["d/e/1.csv", "d/p-9.csv", "d/p-10.csv"]
    with pytest.raises((StorageError, ValueError), match=r"no such file|does not list"):
        find_files(f"{remote_dir.url}/nothing.csv", options)


def test_http_cannot_list_but_reads_a_file(servers):
    remote_dir = servers["http"].new_directory()
    remote_dir.put("one.csv", b"a\n1\n")
    (file,) = find_files(f"{remote_dir.url}/one.csv", remote_dir.storage_options).files
    assert file.open().read() == b"a\n1\n"
    with pytest.raises(ValueError, match="does not list"):
        find_files(f"{remote_dir.url}/*.csv", remote_dir.storage_options)


def test_compressed_files_are_decompressed_by_their_names(tmp_path):
    zstd = pytest.importorskip("backports.zstd")
    text = b"line\n" * 50_000
    for extension, compress in {
        "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd.compress,
        "txt": bytes,
    }.items():  # fmt: skip
        path = tmp_path / f"x.csv.{extension}"
        path.write_bytes(compress(text[:100]) + compress(text[100:]))  # two members or frames
        with find_files(path).files[0].decompressed() as file:
            assert file.read() == text


def test_extensions_and_the_natural_order():
    assert split_extension("a.B.Tar.GZ") == (".tar", "gzip")
    assert split_extension("noextension") == ("", None)
    paths = ["a/10", "a/9", "a10", "a9", "b", "10", "9", "a"]
    assert sorted(paths, key=natural_key) == ["9", "10", "a", "a/9", "a/10", "a9", "a10", "b"]
