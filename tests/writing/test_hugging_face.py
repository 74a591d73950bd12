"""Datasets of Hugging Face keep the types of their features."""

from __future__ import annotations

import io
import wave

import numpy as np
import pytest
from PIL import Image
from rewriting import jpeg, write_and_open

import npstream
from npstream.writing.inputs import hugging_face

datasets = pytest.importorskip("datasets", reason="needs Hugging Face's datasets")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def sound():
    """Return the bytes of a WAV file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(8000)
        out.writeframes(bytes(100))
    return file.getvalue()


ROWS = 5


def dataset():
    features = datasets.Features({
        "number": datasets.Value("int32"),
        "label": datasets.ClassLabel(names=["cat", "dog"]),
        "image": datasets.Image(),
        "audio": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
        "tokens": datasets.List(datasets.Value("int64")),
        "matrix": datasets.Array2D((2, 3), "float32"),
        "ragged": datasets.Array2D((None, 2), "float32"),
        "text": datasets.Value("string"),
        "meta": {"a": datasets.Value("int8"), "b": datasets.List(datasets.Value("string"))},
    })  # fmt: skip
    data = {
        "number": list(range(ROWS)),
        "label": [k % 2 for k in range(ROWS)],
        "image": [{"bytes": jpeg(k), "path": None} for k in range(ROWS)],
        "audio": [{"bytes": sound(), "path": None}] * ROWS,
        "tokens": [list(range(k + 1)) for k in range(ROWS)],
        "matrix": [np.full((2, 3), k, "f4") for k in range(ROWS)],
        "ragged": [np.full((k + 1, 2), k, "f4") for k in range(ROWS)],
        "text": [str(k) for k in range(ROWS)],
        "meta": [{"a": k, "b": ["x"] * k} for k in range(ROWS)],
    }
    dataset = datasets.Dataset.from_dict(data, features=features)
    return dataset.cast_column("audio", datasets.Audio())


ENCODINGS = {
    **{"number": "int32", "label": "int64", "image": "jpeg", "audio": "bytes"},
    **{"tokens": "ndarray:int64", "matrix": "ndarray:float32:2,3", "ragged": "ndarray:float32"},
    **{"text": "str", "meta": "json"},
}


@pytest.mark.parametrize(
    ("change", "rows"),
    [
        (lambda ds: ds, [0, 1, 2, 3, 4]),
        (lambda ds: ds.select([3, 0]), [3, 0]),
        (lambda ds: ds.filter(lambda n: n % 2, input_columns="number"), [1, 3]),
        (lambda ds: ds.to_iterable_dataset(), [0, 1, 2, 3, 4]),
        (lambda ds: ds.with_format("torch"), [0, 1, 2, 3, 4]),
        (lambda ds: ds.select([]), []),
    ],
    ids=["plain", "select", "filter", "iterable", "torch", "empty"],
)
def test_datasets_keep_their_features(change, rows, tmp_path):
    report, ds = write_and_open(tmp_path / "a", change(dataset()))
    if not rows:  # no file tells that the images are JPEG
        assert report.columns == {**ENCODINGS, "image": "png"}
        return
    assert report.columns == ENCODINGS
    assert ds["number"].load().tolist() == rows
    assert ds["label"].load().tolist() == [k % 2 for k in rows]
    assert ds["tokens"][0].tolist() == list(range(rows[0] + 1))
    assert np.array_equal(ds["matrix"].load()[1], np.full((2, 3), rows[1]))
    assert ds["ragged"][0].shape == (rows[0] + 1, 2)
    assert ds[1]["meta"] == {"a": rows[1], "b": ["x"] * rows[1]}
    raw = npstream.open(tmp_path / "a", columns={"image": "bytes", "audio": "bytes"})
    assert list(raw["image"]) == [jpeg(k) for k in rows]
    assert list(raw["audio"]) == [sound()] * len(rows)


def test_rows_of_many_batches_in_any_order(tmp_path, monkeypatch):
    parts = [dataset().select([k % ROWS]).flatten_indices() for k in range(30)]
    whole = datasets.concatenate_datasets(parts)
    monkeypatch.setattr(hugging_face, "_BATCH_ROWS", 7)
    for number, data in enumerate((whole.shuffle(seed=1), whole.select([29, 0, 0, 5]), whole)):
        write_and_open(tmp_path / f"{number}a", data)
        npstream.write(tmp_path / f"{number}b", data.flatten_indices())
        actual, expected = (tmp_path / f"{number}{name}" / "shard.00000.mds" for name in "ab")
        assert actual.read_bytes() == expected.read_bytes()


def test_files_with_only_a_path(tmp_path):
    (tmp_path / "one.jpg").write_bytes(jpeg(1))
    Image.new("RGB", (4, 4)).save(tmp_path / "two.png")
    paths = [str(tmp_path / "one.jpg"), str(tmp_path / "two.png")]
    data = datasets.Dataset.from_dict({"image": paths}).cast_column("image", datasets.Image())
    report, ds = write_and_open(tmp_path / "a", data)
    assert report.columns == {"image": "jpeg"}
    raw = npstream.open(tmp_path / "a", columns={"image": "bytes"})
    assert raw["image"][1] == (tmp_path / "two.png").read_bytes()
    assert ds["image"][1].size == (4, 4)
    (tmp_path / "two.png").unlink()
    with pytest.raises(ValueError, match=r"sample 1: column 'image': its file .* cannot be"):
        npstream.write(tmp_path / "b", data)


def test_columns_and_transforms(tmp_path):
    columns = {"tokens": "ndarray:uint16", "number": "int8"}
    report, ds = write_and_open(tmp_path / "a", dataset(), columns=columns)
    assert report.columns == columns
    assert ds["tokens"][4].tolist() == [0, 1, 2, 3, 4]
    formatted = dataset().with_format("numpy", columns=["text", "number"])
    report, _ = write_and_open(tmp_path / "b", formatted)
    assert set(report.columns) == {"text", "number"}
    transformed = (
        dataset()
        .remove_columns("audio")
        .with_transform(lambda rows: {"double": [2 * k for k in rows["number"]]})
    )
    report, ds = write_and_open(tmp_path / "c", transformed)
    assert list(ds["double"]) == [0, 2, 4, 6, 8]


def test_a_stream_of_unknown_features(tmp_path):
    def rows():
        for k in range(3):
            yield {"number": k, "image": Image.new("RGB", (4, 4))}

    data = datasets.IterableDataset.from_generator(rows)
    report, ds = write_and_open(tmp_path / "a", data)
    assert report.columns == {"number": "int", "image": "png"}
    assert list(ds["number"]) == [0, 1, 2]


def test_datasets_that_are_refused(tmp_path):
    several = datasets.DatasetDict({"train": dataset()})
    with pytest.raises(TypeError, match=r"is a DatasetDict, .* as with data\['train'\]"):
        npstream.write(tmp_path / "a", several)
    nulls = datasets.Dataset.from_dict({"x": [1, 2, None], "y": ["a", "b", "c"]})
    for data in (nulls, nulls.to_iterable_dataset(), nulls.select([0, 1, 2])):
        with pytest.raises(ValueError, match="sample 2: column 'x': 1 null in 3 values"):
            npstream.write(tmp_path / "a", data)
    images = datasets.Dataset.from_dict(
        {"x": [[{"bytes": b"a", "path": None}]]},
        features=datasets.Features({"x": datasets.List(datasets.Image())}),
    )
    with pytest.raises(TypeError, match=r"column 'x': .* JSON, which cannot store binary: cast"):
        npstream.write(tmp_path / "a", images)
    assert not (tmp_path / "a").exists()
