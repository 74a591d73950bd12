"""Folders of images and other files as datasets, also with metadata as Hugging Face reads them."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from started import started_threads

import npstream
from npstream.conversion.file_samples import folder
from npstream.conversion.files import find_files, read_whole_files
from npstream.errors import ColumnError, FormatError, StorageError


def image(number: int, format: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (4, 5, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format)
    return file.getvalue()


def write(root, files: dict[str, bytes]) -> dict[str, bytes]:
    for name, body in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    return files


@pytest.fixture
def photos(tmp_path):
    """Return a folder of three classes, with nested folders, and its files in natural order."""
    names = ["cat/2.jpg", "cat/10.jpg", "cat/more/1.JPEG", "dog/1.jpg", "10/1.jpg", "10/2.jpg"]
    write(tmp_path / "photos", {name: image(n) for n, name in enumerate(names)})
    write(tmp_path / "photos", {".DS_Store": b"x", "cat/._2.jpg": b"x", ".cache/1.jpg": b"x"})
    return tmp_path / "photos"


ORDER = ["10/1.jpg", "10/2.jpg", "cat/2.jpg", "cat/10.jpg", "cat/more/1.JPEG", "dog/1.jpg"]
LABELS = {"10": 0, "cat": 1, "dog": 2}


def assert_photos(path, photos) -> None:
    ds = npstream.open(path)
    assert list(ds["path"]) == ORDER
    assert list(ds["class"]) == [name.partition("/")[0] for name in ORDER]
    assert ds["label"].load().tolist() == [LABELS[name.partition("/")[0]] for name in ORDER]
    stored = npstream.open(path, columns={"image": "bytes"})["image"]
    assert [bytes(body) for body in stored] == [(photos / name).read_bytes() for name in ORDER]


def test_files_are_stored_as_they_are_with_labels_in_the_order_of_class_names(photos, tmp_path):
    report = npstream.convert(photos, tmp_path / "out")
    assert report.columns == {"image": "jpeg", "label": "int", "class": "str", "path": "str"}
    assert_photos(tmp_path / "out", photos)
    ds = npstream.open(tmp_path / "out")
    assert ds[0]["image"].size == (5, 4)


@pytest.mark.parametrize("options", [{"workers": 2}, {"compression": "zstd", "shard_size": 512}])
def test_options_of_write_apply(photos, tmp_path, options):
    npstream.convert(photos, tmp_path / "out", **options)
    assert_photos(tmp_path / "out", photos)


@pytest.mark.parametrize("kind", ["glob", "list", "memory", "s3"])
def test_sources_are_globs_lists_and_urls(photos, tmp_path, upload, servers, kind):
    options = {}
    source = {"glob": photos / "**" / "*.[jJ]*", "list": [photos / name for name in ORDER]}.get(
        kind
    )
    if kind == "memory":
        source = upload(photos)
    elif kind == "s3":
        remote_dir = servers["s3"].new_directory()
        for name in ORDER:
            remote_dir.put(name, (photos / name).read_bytes())
        source, options = remote_dir.url, {"source_options": remote_dir.storage_options}
    npstream.convert(source, tmp_path / "out", **options)
    assert_photos(tmp_path / "out", photos)


def test_a_dry_run_reads_no_file(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "read_files", None)
    plan = npstream.convert(photos, tmp_path / "out", dry_run=True)
    assert (plan.kind, plan.files, plan.samples) == ("folder", 6, 6)
    report = npstream.convert(photos, tmp_path / "out", columns=["path", "label"])
    assert report.columns == {"path": "str", "label": "int"}


def test_files_in_no_folder_have_no_labels(tmp_path):
    files = write(tmp_path / "in", {"2.png": image(0, "PNG"), "10.png": image(1, "PNG")})
    report = npstream.convert(tmp_path / "in", tmp_path / "out")
    assert report.columns == {"image": "png", "path": "str"}
    assert list(npstream.open(tmp_path / "out")["path"]) == list(files)
    report = npstream.convert(tmp_path / "in" / "2.png", tmp_path / "one")
    assert (report.samples, report.columns) == (1, {"image": "png", "path": "str"})


def test_a_column_holds_images_of_several_formats(tmp_path):
    formats = {
        "jpg": "JPEG",
        "png": "PNG",
        "webp": "WEBP",
        "gif": "GIF",
        "bmp": "BMP",
        "tif": "TIFF",
    }
    write(tmp_path / "in", {f"{ext}/x.{ext}": image(1, name) for ext, name in formats.items()})
    write(tmp_path / "in", {"png/y.jpg": image(2, "PNG")})  # its content decides, not its name
    report = npstream.convert(tmp_path / "in", tmp_path / "out")
    # The extension of the first file, bmp/x.bmp, decides. All formats but JPEG have this encoding.
    assert report.columns["image"] == "png"
    for row in npstream.open(tmp_path / "out"):
        expected = "PNG" if row["path"] == "png/y.jpg" else formats[row["class"]]
        assert row["image"].format == expected


def test_other_files_are_bytes(tmp_path):
    files = write(tmp_path / "in", {"a/1.wav": b"RIFF1", "a/2.flac": b"", "b/3": b"\0" * 9})
    report = npstream.convert(tmp_path / "in", tmp_path / "out", kind="folder")
    assert report.columns == {"file": "bytes", "label": "int", "class": "str", "path": "str"}
    ds = npstream.open(tmp_path / "out")
    assert [bytes(body) for body in ds["file"]] == list(files.values())
    (tmp_path / "in" / "b" / "3").unlink()
    # Folders of sounds are recognized without kind=.
    assert npstream.convert(tmp_path / "in", tmp_path / "x", dry_run=True).kind == "folder"


def test_a_chosen_encoding_parses_the_files(tmp_path):
    write(tmp_path / "in", {"pos/1.txt": "gut é".encode(), "neg/2.txt": b"bad"})
    columns = {"file": "str", "label": "uint8"}
    npstream.convert(tmp_path / "in", tmp_path / "out", kind="folder", columns=columns)
    assert list(npstream.open(tmp_path / "out")["file"]) == ["bad", "gut é"]
    np.save(tmp_path / "in" / "pos" / "1.npy", np.arange(3.0))
    columns = {"file": "ndarray:float64"}
    npstream.convert(
        tmp_path / "in" / "*" / "*.npy", tmp_path / "npy", kind="folder", columns=columns
    )
    assert npstream.open(tmp_path / "npy")["file"][0].tolist() == [0, 1, 2]


def test_images_among_other_files_raise(tmp_path):
    write(tmp_path / "in", {"a/1.jpg": image(1), "a/1.txt": b"caption", "b/2.jpg": image(2)})
    with pytest.raises(ValueError, match=r"1 file of 3 are no images, such as 'a/1\.txt': give a"):
        npstream.convert(tmp_path / "in", tmp_path / "out")
    report = npstream.convert(tmp_path / "in" / "**" / "*.jpg", tmp_path / "out")
    assert report.samples == 2
    files = npstream.convert(
        tmp_path / "in", tmp_path / "all", columns={"file": "bytes", "path": None}
    )
    assert files.samples == 3


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["cat/1.jpg", "2.jpg"], r"'2\.jpg' is in no folder, so it has no class"),
        (["train/cat/1.jpg", "val/cat/1.jpg"], "'train', 'val' seem to be splits"),
        (["train/cat/1.jpg"], "'train' seem to be splits"),
    ],
)
def test_folders_that_may_be_no_classes_raise(tmp_path, names, words):
    write(tmp_path / "in", {name: image(1) for name in names})
    with pytest.raises(ValueError, match=words):
        npstream.convert(tmp_path / "in", tmp_path / "out")
    report = npstream.convert(tmp_path / "in", tmp_path / "out", reader_options={"labels": False})
    assert report.columns == {"image": "jpeg", "path": "str"}


def test_the_option_labels_makes_folders_classes_that_seem_to_be_splits(tmp_path):
    write(tmp_path / "in", {"train/1.jpg": image(1), "test/1.jpg": image(2)})
    npstream.convert(tmp_path / "in", tmp_path / "out", reader_options={"labels": True})
    assert list(npstream.open(tmp_path / "out")["class"]) == ["test", "train"]
    with pytest.raises(TypeError, match="labels='yes': expected True, False or None"):
        npstream.convert(tmp_path / "in", tmp_path / "x", reader_options={"labels": "yes"})


@pytest.mark.parametrize("body", [b"", b"<html>", image(1)[1:]])
def test_files_that_are_no_images_are_refused_or_skipped(photos, tmp_path, body):
    (photos / "cat" / "10.jpg").write_bytes(body)
    with pytest.raises(ValueError, match=r"sample 3: column 'image': .*cat/10\.jpg: not an image"):
        npstream.convert(photos, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    report = npstream.convert(photos, tmp_path / "out", on_error="skip")
    assert (report.samples, report.rejected) == (5, 1)
    assert "cat/10.jpg" not in list(npstream.open(tmp_path / "out")["path"])
    # A map would get the bad value, so the error is raised at once.
    with pytest.raises(FormatError, match="not an image"):
        npstream.convert(photos, tmp_path / "map", map=lambda sample: sample)


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_metadata_become_columns_as_in_hugging_face(tmp_path, form):
    source = tmp_path / "in"
    write(source, {"a/1.png": image(1, "PNG"), "2.png": image(2, "PNG"), "3.png": image(3, "PNG")})
    rows = {
        "a/1.png": {"text": 'été, "x"', "n": 3, "score": 0.5, "code": "007"},
        "3.png": {"text": "", "n": -1, "score": 2, "code": "010"},
        "2.png": {"text": "b", "n": 0, "score": 1.0, "code": "x"},
    }
    if form == "jsonl":
        lines = [
            json.dumps({"file_name": name, **row, "box": [1, 2]}) for name, row in rows.items()
        ]
        text = "\n".join(lines) + "\n\n"
    else:
        text = 'file_name,text,n,score,code\na/1.png,"été, ""x""",3,0.5,007\n'
        text += "3.png,,-1,2,010\r\n./2.png,b,0,1.0,x\n"
    (source / f"metadata.{form}").write_bytes(text.encode())
    report = npstream.convert(source, tmp_path / "out")
    expected = {"image": "png", "path": "str", "text": "str", "n": "int", "score": "float64",
                "code": "str"}  # fmt: skip
    assert report.columns == expected | ({"box": "json"} if form == "jsonl" else {})
    for row in npstream.open(tmp_path / "out"):
        for name, value in rows[row["path"]].items():
            assert row[name] == value
    pytest.importorskip("datasets")
    ds = npstream.open(tmp_path / "out")
    # `datasets` leaves the file open, so it runs in its own process.
    command = [sys.executable, "-c", HUGGING_FACE, str(source), str(tmp_path / "hf")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    numbers, texts = json.loads(result.stdout.splitlines()[-1])
    assert sorted(numbers) == sorted(ds["n"].load().tolist())
    assert sorted(text or "" for text in texts) == sorted(ds["text"])


HUGGING_FACE = """
import json, sys, datasets
table = datasets.load_dataset("imagefolder", data_dir=sys.argv[1], cache_dir=sys.argv[2])["train"]
print(json.dumps([table["n"][:], table["text"][:]]))
"""


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("metadata.csv", "name,x\n1.png,1\n", "row 0 has no 'file_name'"),
        ("metadata.csv", "file_name,x\n1.png,1\n1.png,2\n", "row 1: '1.png' has two rows"),
        ("metadata.csv", "file_name,x\n1.png\n", "row 0 has not the 2 values of the first line"),
        ("metadata.csv", "file_name,x\n1.png,1,2\n", "row 0 has not the 2 values"),
        ("metadata.csv", "file_name,x,x\n1.png,1,2\n", "two columns have one name"),
        ("metadata.csv", "file_name,x\n2.png,1\n", "'2.png' is not among the files"),
        (
            "metadata.csv",
            "file_name,path\n1.png,1\n",
            "column 'path' is also a column of the files",
        ),
        ("metadata.jsonl", "{", "line 1 is not JSON"),
        ("metadata.jsonl", "[]", r"line 1 is \[\], and no object"),
        ("metadata.jsonl", '{"file_name": 1}', "row 0 has no 'file_name'"),
    ],
)
def test_wrong_metadata_raise(tmp_path, name, text, words):
    write(tmp_path / "in", {"1.png": image(1, "PNG"), name: text.encode()})
    with pytest.raises(ValueError, match=words):
        npstream.convert(tmp_path / "in", tmp_path / "out")


def test_files_without_metadata_are_refused_or_filled(tmp_path):
    metadata = b'{"file_name": "1.png", "text": "one"}\n{"file_name": "2.png", "text": null}\n'
    source = tmp_path / "in"
    write(source, {f"{n}.png": image(n, "PNG") for n in (1, 2, 3)} | {"metadata.jsonl": metadata})
    with pytest.raises(ValueError, match=r"sample 1: column 'text': .*'2\.png' has no value"):
        npstream.convert(source, tmp_path / "out")
    npstream.convert(source, tmp_path / "out", fill={"text": ""})
    assert list(npstream.open(tmp_path / "out")["text"]) == ["one", "", ""]
    write(source, {"metadata.csv": b"file_name,text\n3.png,5\n"})
    with pytest.raises(FormatError, match=r"'text' has values of several types: int, str"):
        npstream.convert(source, tmp_path / "x")


def test_links_are_followed_and_pipes_and_broken_links_raise(photos, tmp_path):
    (photos / "fox").symlink_to(photos / "cat")
    (photos / "dog" / "again").symlink_to(photos)  # a cycle, which is not followed
    npstream.convert(photos, tmp_path / "out")
    classes = list(npstream.open(tmp_path / "out")["class"])
    assert [classes.count(name) for name in ("10", "cat", "dog", "fox")] == [2, 3, 1, 3]
    (photos / "dog" / "again").unlink()
    (photos / "cat" / "lost.jpg").symlink_to("nowhere.jpg")
    with pytest.raises(FileNotFoundError, match=r"lost\.jpg"):
        npstream.convert(photos, tmp_path / "x")
    (photos / "cat" / "lost.jpg").unlink()
    os.mkfifo(photos / "cat" / "pipe.jpg")
    with pytest.raises(StorageError, match=r"neither a file nor a directory.*pipe\.jpg"):
        npstream.convert(photos, tmp_path / "x")


def test_a_file_that_vanishes_raises(photos, tmp_path):
    files = find_files(photos)
    (photos / "dog" / "1.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"dog/1\.jpg"):
        list(folder.read_files(files.files))


def test_unknown_columns_raise(photos, tmp_path):
    with pytest.raises(ColumnError, match="no column 'labels'; did you mean 'label'"):
        npstream.convert(photos, tmp_path / "out", columns=["image", "labels"])


def count_pending(files, monkeypatch):
    """Read files. For each file, return the number of files that were requested but not used."""
    requested, counts = [], []

    def record(batch):
        requested.extend(batch)
        return read_whole_files(batch)

    with monkeypatch.context() as patch:
        patch.setattr(folder, "read_whole_files", record)
        for number, content in enumerate(folder.read_files(files)):
            assert len(content) == files[number].nbytes
            counts.append(len(requested) - number)
    assert len(requested) == len(counts) == len(files)
    return counts


def test_threads_read_ahead_in_bounded_memory_and_end(tmp_path, monkeypatch):
    body = bytes(1 << 16)
    write(tmp_path / "in", {f"{number}.bin": body for number in range(1000)})
    files = find_files(tmp_path / "in").files
    assert max(count_pending(files, monkeypatch)) <= 384  # 24 MiB; the limit is 64
    reader = folder.read_files(files)
    next(reader)
    reader.close()
    assert not started_threads("npstream-source")


def test_parts_are_found_again_only_if_the_files_are_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "_PART_FILES", 4)
    write(tmp_path / "in", {f"{number}.jpg": image(number) for number in range(10)})

    def names():
        source = folder.FolderSource(find_files(tmp_path / "in"), folder.SourceRequest())
        return [(part.name, part.samples) for part in source.parts()]

    assert names() == [("0.jpg to 3.jpg", 4), ("4.jpg to 7.jpg", 4), ("8.jpg to 9.jpg", 2)]
    (tmp_path / "in" / "0.jpg").unlink()
    assert names() == [("1.jpg to 4.jpg", 4), ("5.jpg to 8.jpg", 4), ("9.jpg", 1)]


def test_a_write_goes_on_at_the_part_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "_PART_FILES", 4)
    write(tmp_path / "in", {f"{number}.jpg": image(number) for number in range(20)})
    (tmp_path / "in" / "17.jpg").write_bytes(b"")
    arguments = {"resume": True, "shard_samples": 3}
    with pytest.raises(ValueError, match=r"17\.jpg: not an image"):
        npstream.convert(tmp_path / "in", tmp_path / "out", **arguments)
    write(tmp_path / "in", {"17.jpg": image(17)})
    names = []

    def record(files):
        names.extend(file.name for file in files)
        return read_whole_files(files)

    monkeypatch.setattr(folder, "read_whole_files", record)
    npstream.convert(tmp_path / "in", tmp_path / "out", **arguments)
    assert "11.jpg" not in names
    assert "17.jpg" in names
    expected = [f"{number}.jpg" for number in range(20)]
    assert list(npstream.open(tmp_path / "out")["path"]) == expected


def test_large_files_are_not_read_ahead(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "_MAX_PENDING_BYTES", 1 << 20)
    write(tmp_path / "in", {f"{number}.bin": bytes(3 << 20) for number in range(8)})
    files = find_files(tmp_path / "in").files
    # One file is in use, and one is read.
    assert max(count_pending(files, monkeypatch)) <= 2


def test_labels_of_the_metadata_replace_those_of_folders_and_columns_are_filled(tmp_path):
    source = tmp_path / "in"
    metadata = b"file_name,label,class\na/1.png,7,x\na/2.png,8,y\n"
    write(source, {f"a/{n}.png": image(n, "PNG") for n in (1, 2)} | {"metadata.csv": metadata})
    report = npstream.convert(source, tmp_path / "out", fill={"lang": "en"})
    assert report.columns == {
        "image": "png", "path": "str", "label": "int", "class": "str", "lang": "str",
    }  # fmt: skip
    row = npstream.open(tmp_path / "out")[1]
    assert (row["label"], row["class"], row["lang"]) == (8, "y", "en")
    with pytest.raises(ValueError, match="column 'label' is also a column of the files"):
        npstream.convert(source, tmp_path / "x", reader_options={"labels": True})
