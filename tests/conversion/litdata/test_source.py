"""Datasets that `litdata` wrote: serializers, loaders and compressions; damage is refused."""

from __future__ import annotations

import io
import json
import math
import random
import struct
from contextlib import suppress

import numpy as np
import pytest

import npstream
from npstream.conversion.files import find_files
from npstream.conversion.litdata.chunks import read_items
from npstream.conversion.litdata.source import LitDataSource
from npstream.conversion.litdata.values import leaf_names, leaf_of
from npstream.conversion.source import SourceRequest
from npstream.errors import ColumnError, FormatError

litdata = pytest.importorskip("litdata")
torch = pytest.importorskip("torch")
Image = pytest.importorskip("PIL.Image")
writer = pytest.importorskip("litdata.streaming.writer")

SAMPLES = 10


def picture(number: int):
    pixels = np.random.default_rng(number).integers(0, 256, (4, 5, 3), np.uint8)
    return Image.fromarray(pixels)


def jpeg(number: int) -> bytes:
    file = io.BytesIO()
    picture(number).save(file, "JPEG")
    return file.getvalue()


def sample_of_all_types(number: int) -> dict:
    return {
        "id": number,
        "score": number / 4,
        "ok": number % 2 == 0,
        "text": "é" * number,
        "raw": bytes([number]) * number,
        "vector": np.arange(number + 1, dtype=np.float32),
        "matrix": np.full((2, number + 1), number, np.int16),
        "flat": torch.arange(number + 1),
        "half": torch.full((2, 2), number, dtype=torch.float16),
        "pil": picture(number),
        "jpeg": litdata.Jpeg(bytes=jpeg(number)),
        "jpegs": litdata.JpegArray(images=[litdata.Jpeg(bytes=jpeg(number))] * 2),
        "nested": {"a": {"b": number}, "pair": (number, f"t{number}")},
        "list": [1, 2.5, None, {"k": ["x", True]}, {"deep": [[number]]}],
        "records": [{"k": "a", "n": number, "f": 0.5, "o": None, "b": True}] * 2,
        "pickled": {1, 2},
    }


COLUMNS = {
    "id": "int", "score": "float64", "ok": "bool", "text": "str", "raw": "bytes",
    "vector": "ndarray:float32", "matrix": "ndarray:int16", "flat": "ndarray:int64",
    "half": "ndarray:float16", "pil": "pil", "jpeg": "jpeg", "jpegs": "jpeg_array",
    "nested.a.b": "int", "nested.pair.0": "int", "nested.pair.1": "str", "list": "json",
    "records": "json", "pickled": "bytes",
}  # fmt: skip


def arrow_row(number: int) -> dict:
    """Return a dict of JSON values, which LitData stores as a row of an Arrow table."""
    sample = {
        "text": f"t{number}", "n": number, "score": number / 2, "ok": number % 2 == 0,
        "tags": [number] * (number + 1), "words": ["x"] * number, "meta": {"k": [number]},
    }  # fmt: skip
    return sample | ({"note": "later"} if number > 6 else {})


def write(path, sample, count=SAMPLES, **options):
    """Write a dataset with the class that `litdata.optimize` uses, in this process."""
    options = {"chunk_size": 4} | options
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATA_OPTIMIZER_GLOBAL_RANK", "0")
        binary_writer = writer.BinaryWriter(str(path), **options)
        for number in range(count):
            binary_writer[number] = sample(number)
        binary_writer.done()
        binary_writer._merge_no_wait()
    return path


def assert_samples_of_all_types(path) -> None:
    ds = npstream.open(path)
    assert len(ds) == SAMPLES
    stored = npstream.open(path, columns={"jpeg": "bytes"})["jpeg"]
    for number, row in enumerate(ds):
        expected = sample_of_all_types(number)
        for name in ("id", "score", "ok", "text", "raw", "list", "records"):
            assert row[name] == expected[name], name
        for name in ("vector", "matrix", "flat", "half"):
            np.testing.assert_array_equal(row[name], np.asarray(expected[name]))
            assert row[name].dtype == np.asarray(expected[name]).dtype
        assert row["nested.a.b"] == row["nested.pair.0"] == number
        assert row["nested.pair.1"] == f"t{number}"
        assert row["pil"].tobytes() == expected["pil"].tobytes()
        assert bytes(stored[number]) == jpeg(number)
        assert [image.size for image in row["jpegs"]] == [(5, 4), (5, 4)]


def sample_of_tokens(number: int) -> dict:
    return {"id": number, "tokens": np.arange(number + 1, dtype=np.int32)}


def test_a_dataset_that_optimize_wrote_is_converted(tmp_path, capsys):
    litdata.optimize(
        sample_of_tokens, list(range(SAMPLES)), str(tmp_path / "in"), num_workers=2, chunk_size=3,
        verbose=False,
    )  # fmt: skip
    report = npstream.convert(tmp_path / "in", tmp_path / "out")
    assert report.columns == {"id": "int", "tokens": "ndarray:int32"}
    expected = litdata.StreamingDataset(str(tmp_path / "in"))
    ds = npstream.open(tmp_path / "out")
    assert ds["id"].load().tolist() == [expected[k]["id"] for k in range(SAMPLES)]
    for row in ds:
        assert row["tokens"].tolist() == list(range(row["id"] + 1))


COMPRESSIONS = {
    "none": {},
    "frames": {"compression": "zstd", "compression_batch_size": 3},
    "frame": {"compression": "zstd:7"},
    "chunk": {"compression": "zstd", "compression_level": "chunk"},
    "sample": {"compression": "zstd", "compression_level": "sample"},
    "bytes": {"chunk_bytes": 4000, "chunk_size": None},
}
"""What is compressed: frames of 3 samples, a frame of all samples, a whole chunk, or each sample.

With "chunk", the header and offsets of a chunk are also compressed. With "none" and "bytes" nothing
is compressed. With "bytes" the size of chunks is limited in bytes.
"""


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_serializers_and_compressions_are_read(tmp_path, name):
    write(tmp_path / "in", sample_of_all_types, **COMPRESSIONS[name])
    report = npstream.convert(tmp_path / "in", tmp_path / "out")
    assert report.columns == COLUMNS
    assert_samples_of_all_types(tmp_path / "out")


@pytest.fixture
def source(tmp_path):
    return write(tmp_path / "in", sample_of_all_types)


@pytest.mark.parametrize("options", [{"workers": 2}, {"compression": "zstd", "shard_size": 4096}])
def test_options_of_write_apply(source, tmp_path, options):
    npstream.convert(source, tmp_path / "out", **options)
    assert_samples_of_all_types(tmp_path / "out")


@pytest.mark.parametrize("name", ["frames", "chunk"])
def test_remote_datasets_are_read(tmp_path, upload, servers, name):
    write(tmp_path / "in", sample_of_all_types, **COMPRESSIONS[name])
    npstream.convert(upload(tmp_path / "in"), tmp_path / "memory")
    assert_samples_of_all_types(tmp_path / "memory")
    remote_dir = servers["s3"].new_directory()
    for path in (tmp_path / "in").iterdir():
        remote_dir.put(path.name, path.read_bytes())
    options = {"source_options": remote_dir.storage_options}
    npstream.convert(remote_dir.url, tmp_path / "s3", **options)
    assert_samples_of_all_types(tmp_path / "s3")


@pytest.mark.parametrize("codec", [None, "zstd"])
def test_rows_of_arrow_become_columns(tmp_path, codec, upload):
    pytest.importorskip("pyarrow")
    write(tmp_path / "in", arrow_row, compression=codec)
    assert b"LDARW01" in (tmp_path / "in" / "chunk-0-0.bin").read_bytes()
    # The first chunk has 4 samples, and none of them has a note.
    with pytest.raises(ValueError, match=r"column 'note'.*4 null"):
        npstream.convert(tmp_path / "in", tmp_path / "out")
    report = npstream.convert(upload(tmp_path / "in"), tmp_path / "out", fill={"note": ""})
    assert report.columns == {
        "text": "str", "n": "int64", "score": "float64", "ok": "bool", "tags": "ndarray:int64",
        "words": "json", "meta": "json", "note": "str",
    }  # fmt: skip
    for number, row in enumerate(npstream.open(tmp_path / "out")):
        expected = {"note": ""} | arrow_row(number)
        for name, value in expected.items():
            stored = row[name].tolist() if isinstance(row[name], np.ndarray) else row[name]
            assert stored == value, name


def test_a_map_gets_rows_of_arrow_with_all_columns(tmp_path):
    pytest.importorskip("pyarrow")
    write(tmp_path / "in", arrow_row)
    npstream.convert(tmp_path / "in", tmp_path / "out", map=lambda sample: {"row": sample})
    for number, row in enumerate(npstream.open(tmp_path / "out")["row"]):
        assert row == {"note": None} | arrow_row(number)


def test_rows_of_the_tokens_loader_are_read(tmp_path):
    def tokens(number):
        return torch.arange(number + 1).to(torch.uint16)

    for name, options in {"a": {}, "b": COMPRESSIONS["chunk"]}.items():
        source = tmp_path / name
        write(source, tokens, item_loader=litdata.TokensLoader(), **options, chunk_size=20)
        report = npstream.convert(source, tmp_path / f"{name}-out")
        assert report.columns == {"tokens": "ndarray:uint16"}
        rows = npstream.open(tmp_path / f"{name}-out")["tokens"]
        assert [row.tolist() for row in rows] == [[*range(n + 1)] for n in range(SAMPLES)]


@pytest.mark.parametrize(
    ("sample", "columns"),
    [
        (lambda n: (n, [float(n), "x"]), {"0": "int", "1.0": "float64", "1.1": "str"}),
        (lambda n: np.arange(n + 1), {"value": "ndarray:int64"}),
        # Dicts of JSON values are rows of an Arrow table. A nested dict stays one value.
        (lambda n: {"a": {"x": n}, "b": {"x": str(n)}}, {"a": "json", "b": "json"}),
    ],
    ids=["tuple", "array", "dicts"],
)
def test_trees_become_columns(tmp_path, sample, columns):
    write(tmp_path / "in", sample)
    report = npstream.convert(tmp_path / "in", tmp_path / "out")
    assert report.columns == columns
    assert report.samples == SAMPLES


def test_columns_are_chosen_typed_and_renamed(source, tmp_path):
    columns = {"number": "uint8", "picture": "png", "photo": "bytes", "pickled": "pkl"}
    rename = {"id": "number", "pil": "picture", "jpeg": "photo"}
    npstream.convert(source, tmp_path / "out", columns=columns, rename=rename, where="number > 7")
    ds = npstream.open(tmp_path / "out", columns={"pickled": "bytes"})
    assert ds["number"].load().tolist() == [8, 9]
    assert ds[0]["picture"].tobytes() == picture(8).tobytes()
    assert bytes(ds[1]["photo"]) == jpeg(9)
    with pytest.raises(ColumnError, match="no column 'x'"):
        npstream.convert(source, tmp_path / "x", columns=["x"])
    filled = npstream.convert(source, tmp_path / "f", columns=["id", "x"], fill={"x": 1})
    assert filled.columns == {"id": "int", "x": "int"}


def test_a_dry_run_knows_columns_and_samples(source, tmp_path):
    plan = npstream.convert(source, tmp_path / "out", dry_run=True)
    assert (plan.kind, plan.files, plan.samples, plan.columns) == ("litdata", 3, SAMPLES, COLUMNS)


def edit(source, **changes):
    """Change the config in the index."""
    index = json.loads((source / "index.json").read_text())
    index["config"] |= changes
    (source / "index.json").write_text(json.dumps(index))


def test_encrypted_data_are_refused(tmp_path):
    pytest.importorskip("cryptography")
    encryption = pytest.importorskip("litdata.utilities.encryption")
    for level in ("sample", "chunk"):
        key = encryption.FernetEncryption(password="secret", level=level)
        write(tmp_path / level, sample_of_tokens, encryption=key)
        with pytest.raises(
            ValueError, match=r"index\.json: the samples are encrypted \('fernet'\)"
        ):
            npstream.convert(tmp_path / level, tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"item_loader": "ParquetLoader"}, "its chunks are Parquet files"),
        ({"item_loader": "TemporalArrayLoader"}, "were written for 'TemporalArrayLoader'"),
        ({"data_format": ["mine"]}, "1 value|data_spec has 18 values, and data_format 1"),
        ({"data_format": None}, "data_format is None"),
        ({"data_format": ["mine"], "data_spec": None}, "the serializer 'mine'"),
        ({"data_format": ["no_header_numpy:14"], "data_spec": None}, "dtype number 14"),
        ({"data_spec": "x"}, "data_spec"),
        ({"data_spec": "[2, null]"}, "data_spec cannot be parsed"),
        ({"data_spec": 5}, "data_spec is 5"),
    ],
)
def test_a_config_that_cannot_be_read_is_refused(source, tmp_path, changes, words):
    edit(source, **changes)
    with pytest.raises(ValueError, match=rf"index\.json: .*({words})"):
        npstream.convert(source, tmp_path / "out", kind="litdata")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"chunks": []}', "it has no chunks and config"),
        ('{"chunks": [], "config": {}}', "it has no chunks"),
        ('{"chunks": [5], "config": {}}', "5 is no chunk"),
        ('{"chunks": [{"filename": "../x", "chunk_size": 1}], "config": {}}', "which is not there"),
        ('{"chunks": [{"filename": "x", "chunk_size": -1}], "config": {}}', "is no chunk"),
        ("[" * 100_000, "not JSON"),
        ("5", "5 is no index"),
    ],
)
def test_wrong_indexes_raise(tmp_path, text, words):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "index.json").write_text(text)
    with pytest.raises(ValueError, match=words):
        npstream.convert(tmp_path / "in", tmp_path / "out", kind="litdata")
    (tmp_path / "in" / "index.json").unlink()
    with pytest.raises(ValueError, match=r"no index\.json"):
        LitDataSource(find_files(tmp_path / "in"), SourceRequest())


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_truncated_and_damaged_chunks_raise(tmp_path, name):
    write(tmp_path / "in", sample_of_all_types, **COMPRESSIONS[name])
    path = sorted((tmp_path / "in").glob("chunk-0-0*"))[0]
    whole = path.read_bytes()
    has_compressed_samples = name == "sample"
    samples = json.loads((tmp_path / "in" / "index.json").read_text())["chunks"][0]["chunk_size"]

    def items():
        (file,) = find_files(path).files
        return list(read_items(file, samples, has_compressed_samples=has_compressed_samples))

    expected = items()
    for stop in [*range(60), *range(60, len(whole), 97)]:
        path.write_bytes(whole[:stop])
        with pytest.raises(FormatError, match=path.name.replace(".", r"\.")):
            items()
    path.write_bytes(whole + b"x")
    if name not in ("frames", "frame"):  # bytes after the frames are not read
        with pytest.raises(FormatError):
            items()
    generator = random.Random(0)
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        # Sizes that are damaged can exceed the memory. Compressed samples have no checksums, and
        # the size of each decompressed sample is not stored.
        try:
            assert list(map(len, items())) == list(map(len, expected)) or name == "sample"
        except (FormatError, MemoryError):
            continue


def test_a_value_that_is_damaged_is_refused_or_skipped(source, tmp_path):
    path = source / "chunk-0-1.bin"
    path.write_bytes(path.read_bytes().replace("é".encode() * 5, b"\xff" * 10, 1))
    with pytest.raises(
        ValueError, match=r"sample 5: column 'text': .*chunk-0-1\.bin: sample 1: 'te"
    ):
        npstream.convert(source, tmp_path / "out")
    report = npstream.convert(source, tmp_path / "out", on_error="skip")
    assert (report.samples, report.rejected) == (9, 1)


@pytest.mark.parametrize("serializer", ["json", "numpy", "tensor", "int", "no_header_numpy:3"])
def test_random_values_raise_only_value_errors(serializer):
    leaf = leaf_of("x", serializer)
    # Random bytes, random arrays with at most one damaged byte, and huge sizes.
    generator = random.Random(1)
    bodies = [bytes(generator.randrange(20) for _ in range(n % 40)) for n in range(3000)]
    for n in range(2000):
        order = "<" if serializer == "numpy" else ">"
        shape = [generator.randrange(4) for _ in range(generator.randrange(4))]
        head = struct.pack(f"{order}{2 + len(shape)}I", generator.randrange(20), len(shape), *shape)
        body = bytearray(head + bytes(math.prod(shape) * 2 ** generator.randrange(4)))
        if n % 2:
            body[generator.randrange(len(body))] = generator.randrange(256)
        bodies.append(bytes(body))
    bodies += [bytes([kind]) + struct.pack("<I", 2**32 - 1) + b"\x05" * 40 for kind in range(33)]
    bodies += [b"\x06" + struct.pack("<II", 2**31, 2**31) + bytes(20), b"\x05\x01\0\0\0" * 3000]
    parsed = 0
    for body in bodies:
        with suppress(ValueError):
            leaf.parse(body)
            parsed += 1
    assert 0 < parsed < len(bodies)


def test_two_values_with_the_same_column_name_raise():
    leaf = {"type": None, "context": None, "children_spec": []}
    inner = {"type": "builtins.dict", "context": '["b"]', "children_spec": [leaf]}
    spec = {"type": "builtins.dict", "context": '["a", "a.b"]', "children_spec": [inner, leaf]}
    with pytest.raises(FormatError, match=r"two values of a sample would be the column 'a\.b'"):
        leaf_names(json.dumps([1, spec]), 2)
    with pytest.raises(ValueError, match="samples hold a mine, which only litdata can read"):
        leaf_names(json.dumps([1, {"type": "mine", "context": "", "children_spec": []}]), 0)


def test_a_chunk_that_is_missing_raises_before_anything_is_written(source, tmp_path):
    (source / "chunk-0-2.bin").unlink()
    with pytest.raises(FormatError, match=r"it names the chunk 'chunk-0-2\.bin', which is not th"):
        npstream.convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
