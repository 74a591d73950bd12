"""Datasets that `datasets` saved to disk, as datasets."""

from __future__ import annotations

import filecmp
import io
import json

import fsspec
import numpy as np
import pytest

import npstream
from npstream.conversion.files import find_files
from npstream.conversion.source import recognize_kind
from npstream.errors import ColumnError, FormatError

pa = pytest.importorskip("pyarrow")
hf = pytest.importorskip("datasets")
Image = pytest.importorskip("PIL.Image")

ROWS = 20


def image(number, kind="JPEG"):
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(file, kind)
    return file.getvalue()


FEATURES = {
    "image": hf.Image(),
    "label": hf.ClassLabel(names=["cat", "dog"]),
    "tokens": hf.List(hf.Value("int32")),
    "matrix": hf.Array2D((2, 3), "float32"),
    "text": hf.Value("string"),
    "meta": {"key": hf.Value("string")},
    "day": hf.Value("date32"),
}
COLUMNS = {
    "image": "jpeg", "label": "int64", "tokens": "ndarray:int32",
    "matrix": "ndarray:float32:2,3", "text": "str", "meta": "json", "day": "datetime64[D]",
}  # fmt: skip


def sample(number):
    return {
        "image": {"bytes": image(number), "path": None},
        "label": number % 2,
        "tokens": list(range(number % 3 + 1)),
        "matrix": np.full((2, 3), number, np.float32),
        "text": f"ü{number}",
        "meta": {"key": str(number)},
        "day": f"2026-01-{number + 1:02}",
        "frames": np.full((number % 3 + 1, 3), number, np.float32),
    }


def make_dataset(features=FEATURES, rows=ROWS):
    samples = [{name: sample(number)[name] for name in features} for number in range(rows)]
    return hf.Dataset.from_list(samples, features=hf.Features(features))


@pytest.fixture(autouse=True)
def quiet():
    hf.disable_progress_bars()


def same_shards(left, right):
    names = sorted(path.name for path in left.glob("shard.*"))
    assert names
    return all(filecmp.cmp(left / name, right / name, shallow=False) for name in names)


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("files", [1, 3])
def test_a_saved_dataset_is_written_as_the_dataset_itself(tmp_path, files, remote):
    dataset = make_dataset()
    dataset.save_to_disk(tmp_path / "hf", num_shards=files)
    source = tmp_path / "hf"
    if remote:
        source = f"memory://hf-{files}/data"
        fsspec.filesystem("memory").put(str(tmp_path / "hf"), source, recursive=True)
    report = npstream.convert(source, tmp_path / "out")
    assert report.columns == COLUMNS
    assert report.samples == ROWS
    npstream.write(tmp_path / "written", dataset)
    assert same_shards(tmp_path / "out", tmp_path / "written")


def test_arrays_of_varying_length_keep_their_shape(tmp_path):
    features = {"frames": hf.Array2D((None, 3), "float32"), **FEATURES}
    dataset = make_dataset(features)
    dataset.save_to_disk(tmp_path / "hf")
    report = npstream.convert(tmp_path / "hf", tmp_path / "out")
    assert report.columns == {"frames": "ndarray:float32", **COLUMNS}
    npstream.write(tmp_path / "written", dataset)
    assert same_shards(tmp_path / "out", tmp_path / "written")
    assert npstream.open(tmp_path / "out")["frames"][5].shape == (3, 3)


def test_images_in_a_dataset_with_arrays_of_varying_length_are_stored_as_they_are(tmp_path):
    features = {"frames": hf.Array2D((None, 3), "float32"), "image": hf.Image()}
    samples = [
        {"frames": sample(k)["frames"], "image": {"bytes": image(k, "PNG"), "path": None}}
        for k in range(3)
    ]
    hf.Dataset.from_list(samples, features=hf.Features(features)).save_to_disk(tmp_path / "hf")
    report = npstream.convert(tmp_path / "hf", tmp_path / "out")
    assert report.columns == {"frames": "ndarray:float32", "image": "png"}
    stored = npstream.open(tmp_path / "out", columns={"image": "bytes"})["image"]
    assert list(stored) == [image(k, "PNG") for k in range(3)]


def test_images_of_other_formats_and_audio_are_stored_as_they_are(tmp_path):
    bodies = [image(k, "PNG") for k in range(3)]
    sounds = [b"RIFF" + bytes([k]) * 9 for k in range(3)]
    table = pa.table(
        {
            "image": [{"bytes": body, "path": None} for body in bodies],
            "sound": [{"bytes": body, "path": "x.wav"} for body in sounds],
        }
    )
    features = hf.Features({"image": hf.Image(), "sound": hf.Audio()})
    dataset = hf.Dataset(table.cast(features.arrow_schema))
    dataset.save_to_disk(tmp_path / "hf")
    report = npstream.convert(tmp_path / "hf", tmp_path / "out")
    assert report.columns == {"image": "png", "sound": "bytes"}
    ds = npstream.open(tmp_path / "out", columns={"image": "bytes", "sound": "bytes"})
    assert list(ds["image"]) == bodies
    assert list(ds["sound"]) == sounds


def test_a_split_is_chosen(tmp_path):
    dataset = make_dataset({"label": FEATURES["label"]})
    splits = hf.DatasetDict({"train": dataset, "test": dataset.select(range(3))})
    splits.save_to_disk(tmp_path / "hf")
    with pytest.raises(ValueError, match=r"several datasets: choose one of 'test', 'train', as wi"):
        npstream.convert(tmp_path / "hf", "no")
    with pytest.raises(ValueError, match=r"there is no split 'tst': choose one of"):
        npstream.convert(tmp_path / "hf", "no", reader_options={"split": "tst"})
    options = {"split": "test"}
    assert npstream.convert(tmp_path / "hf", tmp_path / "a", reader_options=options).samples == 3
    assert npstream.convert(tmp_path / "hf" / "test", tmp_path / "b").samples == 3
    with pytest.raises(ValueError, match="it is a single dataset without splits"):
        npstream.convert(tmp_path / "hf" / "test", "no", reader_options=options)
    hf.DatasetDict({"all": dataset}).save_to_disk(tmp_path / "one")
    assert npstream.convert(tmp_path / "one", tmp_path / "c").samples == ROWS


def test_the_columns_of_the_format_are_converted_unless_others_are_chosen(tmp_path):
    dataset = make_dataset({name: FEATURES[name] for name in ("label", "text", "tokens")})
    dataset.with_format("numpy", columns=["text", "label"]).save_to_disk(tmp_path / "hf")
    report = npstream.convert(tmp_path / "hf", tmp_path / "out", where="label == 1")
    assert report.columns == {"text": "str", "label": "int64"}
    assert list(npstream.open(tmp_path / "out")["text"]) == [f"ü{k}" for k in range(1, ROWS, 2)]
    with pytest.raises(ColumnError, match="did you mean 'text'"):
        npstream.convert(tmp_path / "hf", "no", columns=["texts"])
    report = npstream.convert(
        tmp_path / "hf", tmp_path / "typed", columns={"label": "uint8", "lang": "str"},
        fill={"lang": "de"},
    )  # fmt: skip
    assert report.columns == {"label": "uint8", "lang": "str"}


def test_shuffled_and_selected_rows_keep_their_order(tmp_path):
    dataset = make_dataset({"text": FEATURES["text"]}).shuffle(seed=1).select(range(10))
    dataset.save_to_disk(tmp_path / "hf")
    npstream.convert(tmp_path / "hf", tmp_path / "out")
    assert list(npstream.open(tmp_path / "out")["text"]) == dataset["text"][:]


def test_directories_are_recognized(tmp_path):
    make_dataset({"text": FEATURES["text"]}).save_to_disk(tmp_path / "hf")
    assert recognize_kind(find_files(tmp_path / "hf")).kind == "huggingface"
    with pytest.raises(ValueError, match="is a directory: give the one that holds"):
        npstream.convert(tmp_path / "hf" / "state.json", "no", kind="huggingface")


def test_damaged_directories_raise_format_error(tmp_path):
    path = tmp_path / "hf"
    make_dataset({"text": FEATURES["text"]}).save_to_disk(path)
    [data] = path.glob("*.arrow")
    body = data.read_bytes()
    for damaged in (body[:300], b"no", body[: len(body) // 2]):
        data.write_bytes(damaged)
        with pytest.raises(FormatError, match=r"\.arrow: cannot be read as Arrow"):
            npstream.convert(path, "no")
    data.unlink()
    with pytest.raises(FormatError, match=r"its file 'data-.*' is missing"):
        npstream.convert(path, "no")
    (path / "state.json").write_text("{")
    with pytest.raises(FormatError, match=r"state.json: not JSON"):
        npstream.convert(path, "no")


def test_a_file_that_has_only_a_path_is_refused_from_a_store(tmp_path):
    """A dataset in a store could name any file of the user's machine."""
    (tmp_path / "secret").write_bytes(image(1))
    table = pa.table({"image": [{"bytes": None, "path": str(tmp_path / "secret")}]})
    features = hf.Features({"image": hf.Image()})
    hf.Dataset(table.cast(features.arrow_schema)).save_to_disk(tmp_path / "hf")
    # `save_to_disk` has stored the bytes of the file. Store only its path.
    [data] = (tmp_path / "hf").glob("*.arrow")
    with pa.OSFile(str(data), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    assert npstream.convert(tmp_path / "hf", tmp_path / "out").columns == {"image": "jpeg"}
    fsspec.filesystem("memory").put(str(tmp_path / "hf"), "memory://paths/x", recursive=True)
    with pytest.raises(ValueError, match=r"column 'image': its file .*secret' is not in the data"):
        npstream.convert("memory://paths/x", "no")


def test_datasets_writes_features_in_the_form_that_is_read(tmp_path):
    make_dataset().save_to_disk(tmp_path / "hf")
    features = json.loads((tmp_path / "hf" / "dataset_info.json").read_text())["features"]
    assert features["matrix"] == {"shape": [2, 3], "dtype": "float32", "_type": "Array2D"}
    assert features["image"]["_type"] == "Image"
