"""Tars that `webdataset` wrote are converted to datasets."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

import npstream
from npstream.conversion.file_samples import webdataset
from npstream.conversion.file_samples.tar import read_members
from npstream.errors import ColumnError, FormatError

wds = pytest.importorskip("webdataset")
tariterators = pytest.importorskip("webdataset.tariterators")

SAMPLES = 20


def image(number: int) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (8, 9, 3), np.uint8)
    return Image.fromarray(pixels)


def sample(number: int) -> dict:
    return {
        "__key__": f"d/{number:03}",
        "left.jpg": image(number),
        "right.png": image(number),
        "cls": number,
        "json": {"a": [number]},
        "npy": np.arange(number + 1, dtype=np.float32),
        "txt": f"é {number}",
        "mp": {"k": number},
        "dat": bytes([number]),
        "txt.gz": f"zipped {number}",
    }


def write(path, samples, **options) -> None:
    with wds.TarWriter(str(path), **options) as writer:
        for each in samples:
            writer.write(each)


def read_raw(path) -> list[dict]:
    """Return the samples that `webdataset` reads, without its decoders."""
    with open(path, "rb") as file:
        files = tariterators.tar_file_expander([{"url": str(path), "stream": file}])
        return list(tariterators.group_by_keys(files))


@pytest.fixture
def source(tmp_path):
    """Return a directory of two tars, whose names must be sorted as numbers."""
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "s-9.tar", map(sample, range(12)))
    write(tmp_path / "in" / "s-10.tar", map(sample, range(12, SAMPLES)))
    return tmp_path / "in"


COLUMNS = {
    "__key__": "str", "cls": "int", "dat": "bytes", "json": "json", "left.jpg": "jpeg",
    "mp": "json", "npy": "ndarray:float32", "right.png": "png", "txt": "str", "txt.gz": "str",
}  # fmt: skip


def check(path) -> None:
    """Compare a dataset with the samples that `source` wrote to the tars."""
    ds = npstream.open(path)
    assert len(ds) == SAMPLES
    for number, row in enumerate(ds):
        expected = sample(number)
        assert row["__key__"] == expected["__key__"]
        for name in ("cls", "json", "mp", "txt", "dat", "txt.gz"):
            assert row[name] == expected[name], name
        np.testing.assert_array_equal(row["npy"], expected["npy"])
        assert np.array_equal(np.asarray(row["right.png"]), np.asarray(expected["right.png"]))


def test_samples_are_those_that_webdataset_reads(source, tmp_path):
    report = npstream.convert(source, tmp_path / "out")
    assert report.columns == COLUMNS
    assert report.samples == SAMPLES
    check(tmp_path / "out")
    raw = read_raw(source / "s-9.tar") + read_raw(source / "s-10.tar")
    bodies = npstream.open(tmp_path / "out", columns={"left.jpg": "bytes", "right.png": "bytes"})
    for row, expected in zip(bodies, raw, strict=True):
        assert row["__key__"] == expected["__key__"]
        for name in ("left.jpg", "right.png"):  # the files, byte for byte
            assert bytes(row[name]) == expected[name]


@pytest.mark.parametrize("options", [{"workers": 2}, {"compression": "zstd", "shard_size": 4096}])
def test_options_of_write_apply(source, tmp_path, options):
    npstream.convert(source, tmp_path / "out", **options)
    check(tmp_path / "out")


@pytest.mark.parametrize(
    "pattern", ["*.tar", "s-{9,10}.tar", "s-{9..10}.tar", "s-9.tar s-10.tar", "memory", "s3"]
)
def test_sources_are_globs_braces_lists_and_urls(source, tmp_path, upload, servers, pattern):
    options = {}
    if pattern == "memory":
        tars = upload(source) + "/s-{9..10}.tar"
    elif pattern == "s3":
        remote_dir = servers["s3"].new_directory()
        for path in source.iterdir():
            remote_dir.put(path.name, path.read_bytes())
        tars, options = remote_dir.url, {"source_options": remote_dir.storage_options}
    else:
        tars = [str(source / name) for name in pattern.split()]
        tars = tars[0] if len(tars) == 1 else tars
    npstream.convert(tars, tmp_path / "out", **options)
    check(tmp_path / "out")


@pytest.mark.parametrize("extension", ["tar.gz", "tgz", "tar.bz2", "tar.xz"])
def test_compressed_tars(tmp_path, extension):
    codec = {"tgz": "gz"}.get(extension, extension.rpartition(".")[2])
    with open(tmp_path / f"s.{extension}", "wb") as file:
        writer = wds.TarWriter(file, compress=codec)
        for number in range(SAMPLES):
            writer.write(sample(number))
        writer.close()
    npstream.convert(tmp_path / f"s.{extension}", tmp_path / "out")
    check(tmp_path / "out")


def test_a_dry_run_counts_the_samples(source, tmp_path):
    plan = npstream.convert(source, tmp_path / "out", dry_run=True)
    assert (plan.kind, plan.files, plan.samples) == ("webdataset", 2, SAMPLES)
    assert plan.columns == COLUMNS


def test_columns_are_chosen_typed_and_renamed(source, tmp_path):
    columns = {"label": "uint8", "text": "bytes", "picture": "pil", "number": "str"}
    rename = {"cls": "label", "txt": "text", "left.jpg": "picture", "__key__": "number"}
    npstream.convert(source, tmp_path / "out", columns=columns, rename=rename, where="label >= 15")
    ds = npstream.open(tmp_path / "out")
    assert ds.columns == ("label", "text", "picture", "number")
    assert ds["label"].load().tolist() == [15, 16, 17, 18, 19]
    assert ds[0]["text"] == "é 15".encode()
    jpeg = npstream.convert(source, tmp_path / "jpeg", columns=["left.jpg"])
    assert jpeg.columns == {"left.jpg": "jpeg"}
    stored = npstream.open(tmp_path / "jpeg")[15]["left.jpg"]
    assert np.array_equal(np.asarray(ds[0]["picture"]), np.asarray(stored))


def test_a_map_accepts_samples_with_different_extensions(tmp_path):
    write(
        tmp_path / "s.tar", [{"__key__": "0", "jpg": image(0)}, {"__key__": "1", "png": image(1)}]
    )

    def merge(files):
        return {"key": files["__key__"], "image": files.get("jpg") or files["png"]}

    npstream.convert(
        tmp_path / "s.tar", tmp_path / "out", map=merge, columns={"key": "str", "image": "png"}
    )
    assert [row["image"].format for row in npstream.open(tmp_path / "out")] == ["JPEG", "PNG"]


def write_tar(tmp_path, *samples):
    """Write samples of bytes, and return the tar."""
    write(tmp_path / "s.tar", [{"__key__": f"k{n}", **each} for n, each in enumerate(samples)])
    return tmp_path / "s.tar"


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        ([{"txt": b"a", "cls": b"1"}, {"txt": b"b"}], "sample 'k1' has no file 'cls': give fill="),
        (
            [{"txt": b"a"}, {"txt": b"b", "cls": b"1"}],
            "sample 'k1' has a file 'cls', and the first",
        ),
        ([{"cls": b"1"}, {"cls": b"dog"}], "member 'k1.cls': not an integer: b'dog'"),
        ([{"json": b"1"}, {"json": b"{"}], "member 'k1.json': not JSON"),
        ([{"jpg": b"\xff\xd8\xff"}, {"jpg": b""}], "member 'k1.jpg': not an image: the file is em"),
        ([{"txt": b"a"}, {"txt": b"\xff"}], "member 'k1.txt': not UTF-8"),
        ([{"x.json": b"1"}, {"x.json": b'["\xff"]'}], "member 'k1.x.json': not JSON"),
    ],
)
def test_bad_samples_are_refused_or_skipped(tmp_path, samples, words):
    source = write_tar(tmp_path, *samples)
    with pytest.raises(ValueError, match=rf"sample 1: column '.*s\.tar: {words}"):
        npstream.convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for workers in (0, 1):
        target = tmp_path / f"out{workers}"
        report = npstream.convert(
            source, target, on_error="skip", rejects=tmp_path / "rejects", workers=workers
        )
        assert (report.samples, report.rejected) == (1, 1)
        (line,) = (tmp_path / "rejects").read_text().splitlines()
        assert words in json.loads(line)["reason"]
    # The function raises KeyError for the first sample. But both samples are read in one batch
    # before it is called, so a member that cannot be parsed raises first.
    with pytest.raises(FormatError) if "member" in words else pytest.raises(KeyError):
        npstream.convert(source, tmp_path / "map", map=lambda each: {"x": each["nothing"]})


def test_a_filter_does_not_lose_bad_samples(tmp_path):
    source = write_tar(tmp_path, {"cls": b"1", "txt": b"a"}, {"cls": b"dog", "txt": b"b"})
    with pytest.raises(ValueError, match=r"member 'k1\.cls': not an integer"):
        npstream.convert(source, tmp_path / "out", where="cls == 1", columns=["txt"])
    report = npstream.convert(
        source, tmp_path / "out", where="cls == 1", columns=["txt"], on_error="skip"
    )
    assert (report.samples, report.rejected) == (1, 1)


def test_missing_files_are_filled(tmp_path):
    source = write_tar(tmp_path, {"txt": b"a"}, {"cls": b"5"}, {"txt": b"c", "cls": b"6"})
    report = npstream.convert(source, tmp_path / "out", fill={"cls": -1, "txt": "none"})
    assert report.columns == {"__key__": "str", "txt": "str", "cls": "int"}
    ds = npstream.open(tmp_path / "out")
    assert ds["cls"].load().tolist() == [-1, 5, 6]
    assert list(ds["txt"]) == ["a", "none", "c"]


def test_a_filled_column_has_the_type_of_its_value(tmp_path):
    source = write_tar(tmp_path, {"txt": b"a"}, {"txt": b"b", "weight": b"7"})
    report = npstream.convert(source, tmp_path / "out", fill={"weight": 1})
    assert report.columns == {"__key__": "str", "txt": "str", "weight": "int"}
    assert npstream.open(tmp_path / "out")["weight"].load().tolist() == [1, 7]


def test_the_error_for_an_array_that_no_column_stores_names_a_fix(tmp_path):
    file = io.BytesIO()
    np.save(file, np.array(["text"]))
    source = write_tar(tmp_path, {"npy": file.getvalue()})
    with pytest.raises(FormatError, match=r"k0\.npy: cannot store .* columns= can choose 'bytes'"):
        npstream.convert(source, tmp_path / "out")
    npstream.convert(source, tmp_path / "out", columns={"npy": "bytes"})
    assert bytes(npstream.open(tmp_path / "out")["npy"][0]) == file.getvalue()


@pytest.mark.parametrize("name", ["left.jpg", "LEFT.JPG"])
def test_two_files_with_the_same_extension_in_a_sample_raise(tmp_path, name):
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        for each in ("k.left.jpg", f"k.{name}"):
            archive.addfile(tarfile.TarInfo(each), io.BytesIO())
    with pytest.raises(FormatError, match=r"sample 'k' already has a file 'left\.jpg'"):
        npstream.convert(tmp_path / "s.tar", tmp_path / "out")


def test_names_are_split_as_webdataset_splits_them(tmp_path):
    names = ["a.b/c.d.TXT", "a.b/e.d.txt", "./f.d.txt", "README", ".hidden", "__x__/y.txt"]
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        for each in names:
            archive.addfile(tarfile.TarInfo(each), io.BytesIO())
    npstream.convert(tmp_path / "s.tar", tmp_path / "out")
    ds = npstream.open(tmp_path / "out")
    expected = read_raw(tmp_path / "s.tar")
    assert (
        list(ds["__key__"]) == [each["__key__"] for each in expected] == ["a.b/c", "a.b/e", "./f"]
    )
    assert ds.columns == ("__key__", "d.txt")


def test_a_key_that_comes_again_later_is_another_sample(tmp_path):
    write(tmp_path / "s.tar", [{"__key__": key, "txt": key} for key in ("a", "b", "a")])
    npstream.convert(tmp_path / "s.tar", tmp_path / "out")
    assert list(npstream.open(tmp_path / "out")["__key__"]) == ["a", "b", "a"]


def test_tars_without_samples(tmp_path):
    write(tmp_path / "0.tar", [])
    with pytest.raises(ValueError, match="there is no sample"):
        npstream.convert(tmp_path / "0.tar", tmp_path / "out")
    write(tmp_path / "1.tar", [{"__key__": "a", "txt": "x"}])
    write(tmp_path / "2.tar", [])
    npstream.convert(tmp_path / "*.tar", tmp_path / "out")
    assert list(npstream.open(tmp_path / "out")["txt"]) == ["x"]


def test_a_truncated_tar_publishes_nothing(source, tmp_path):
    path = source / "s-10.tar"
    path.write_bytes(path.read_bytes()[:5120])
    with pytest.raises(FormatError, match=r"s-10\.tar: after member '.*': the tar is truncated"):
        npstream.convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unknown_column_raises(source, tmp_path):
    with pytest.raises(ColumnError, match="no column 'jpg'"):
        npstream.convert(source, tmp_path / "out", columns=["jpg"])


def test_a_write_goes_on_in_the_tar_where_it_stopped(tmp_path, monkeypatch):
    for number in range(3):
        samples = [{"__key__": f"{number}-{k}", "cls": 10 * number + k} for k in range(10)]
        write(tmp_path / f"{number}.tar", samples)
    opened, fails = [], [True]

    def read_until_failure(file, where, *arguments):
        opened.append(where[-5:])
        for member in read_members(file, where, *arguments):
            if fails[0] and member[0] == "2-5.cls":
                raise RuntimeError("the server is gone")
            yield member

    monkeypatch.setattr(webdataset, "read_members", read_until_failure)
    arguments = {"resume": True, "shard_samples": 8}
    with pytest.raises(RuntimeError, match="the server is gone"):
        npstream.convert(tmp_path / "*.tar", tmp_path / "out", **arguments)
    opened.clear()
    fails[0] = False
    npstream.convert(tmp_path / "*.tar", tmp_path / "out", **arguments)
    # Only two shards were complete, and their last sample is in 1.tar. 0.tar is opened only to find
    # the columns.
    assert opened == ["0.tar", "1.tar", "2.tar"]
    assert npstream.open(tmp_path / "out")["cls"].load().tolist() == list(range(30))
    npstream.convert(tmp_path / "*.tar", tmp_path / "whole", shard_samples=8)
    for path in (tmp_path / "whole").glob("*.*"):
        assert path.is_dir() or path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()


def test_memory_does_not_grow_with_the_tars(tmp_path):
    body = bytes(1 << 20)
    for number in range(4):
        write(tmp_path / f"{number}.tar", [{"__key__": f"{k}", "bin": body} for k in range(16)])
    # In its own process: tracemalloc can hang when a thread starts while libraries have threads.
    code = (
        "import sys, tracemalloc, npstream\n"
        "path, options = sys.argv[1], {'shard_size': '2MiB'}\n"
        "npstream.convert(f'{path}/0.tar', f'{path}/first', **options)  # imports what it needs\n"
        "tracemalloc.start()\n"
        "npstream.convert(f'{path}/*.tar', f'{path}/out', **options)\n"
        "print(tracemalloc.get_traced_memory()[1])\n"
    )
    result = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 28 << 20  # of 64 MiB
