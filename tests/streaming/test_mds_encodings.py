"""Encodings as classes, and classes of the user in `_encodings`."""

from __future__ import annotations

import pickle
from decimal import Decimal

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

import npstream
from npstream.errors import FormatError
from npstream.formats.encodings import encodings as npstream_encodings
from npstream.formats.encodings.encodings import parse
from npstream.streaming import LocalDataset, MDSWriter, StreamingDataset
from npstream.streaming.base.format.mds import encodings as mds
from npstream.streaming.base.format.mds.encodings import Encoding, _encodings

IMAGE = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))

VALUES = {
    "bytes": b"a\0", "str": "é", "int": -5, "ndarray": np.ones((2, 3), np.int16),
    "str_int": 1 << 70, "str_float": 0.5, "str_decimal": Decimal("1.50"), "json": {"a": [1]},
    "pkl": {1, 2}, **{name: np.dtype(name).type(7) for name in npstream_encodings.DTYPES},
}  # fmt: skip


@pytest.fixture(autouse=True)
def _remove_encodings():
    """Remove the encodings that a test has set."""
    yield
    for name in list(_encodings._set):
        del _encodings[name]


class Raw(Encoding):
    """A replacement of "uint8", which stores the bytes of an array of any size."""

    def encode(self, obj):
        self._validate(obj, np.ndarray)
        return obj.tobytes()

    def decode(self, data):
        return np.frombuffer(data, np.uint8)


class Fixed:
    """A class without the base class, for values of 4 bytes."""

    size = 4

    def encode(self, obj):
        return obj.encode("ascii")

    def decode(self, data):
        return data.decode("ascii")


def test_names_are_those_of_npstream():
    assert mds.get_mds_encodings() == set(_encodings) == set(npstream_encodings._BUILT_IN)
    assert len(_encodings) == 28
    assert repr(_encodings).startswith("{'bytes': <class")
    assert isinstance(_encodings["jpegarray"](), mds.JPEGArray)


@pytest.mark.parametrize("name", VALUES)
def test_classes_store_the_same_bytes(name):
    value = VALUES[name]
    coder = _encodings[name]()
    body = coder.encode(value)
    assert body == parse(name).encode(value) == mds.mds_encode(name, value)
    np.testing.assert_equal(coder.decode(body), value)
    np.testing.assert_equal(mds.mds_decode(name, body), value)
    assert type(coder.decode(body)) is type(value)
    assert coder.size == parse(name).size == mds.get_mds_encoded_size(name)
    assert mds.is_mds_encoding(name)
    assert mds.is_mds_encoding_safe(name) == (name != "pkl")
    np.testing.assert_equal(pickle.loads(pickle.dumps(coder)).decode(body), value)


@pytest.mark.parametrize("name", ["pil", "png", "jpeg", "list[pil]", "list[png]", "list[jpeg]"])
def test_classes_of_images(name):
    coder, is_list = _encodings[name](), name.startswith("list")
    value = [IMAGE, IMAGE] if is_list else IMAGE
    decoded = coder.decode(coder.encode(value))
    for image in decoded if is_list else [decoded]:
        assert (image.size, image.mode) == (IMAGE.size, IMAGE.mode)
        if "jpeg" not in name:
            np.testing.assert_array_equal(image, IMAGE)


def test_files_of_several_images():
    coder, body = mds.JPEGArray(), mds.JPEG().encode(IMAGE)
    images = coder.decode(coder.encode([body, bytearray(body)]))
    assert [image.size for image in images] == [IMAGE.size] * 2


@pytest.mark.parametrize(
    ("text", "name", "size"),
    [("", "ndarray", None), ("uint16", "ndarray:uint16", None), ("f4", None, None),
     ("uint16:2,3", "ndarray:uint16:2,3", 12), ("uint16:2,x", None, None)],
)  # fmt: skip
def test_arrays(text, name, size):
    if name is None:
        with pytest.raises(ValueError, match=r"f4|x"):
            mds.NDArray.from_str(text)
        return
    coder, array = mds.NDArray.from_str(text), np.arange(6, dtype=np.uint16).reshape(2, 3)
    assert coder.size == size
    assert coder.encode(array) == parse(name).encode(array)
    np.testing.assert_equal(coder.decode(coder.encode(array)), array)


def test_a_shape_needs_a_dtype():
    with pytest.raises(ValueError, match=r"shape=\(2,\): give dtype="):
        mds.NDArray(shape=(2,))


@pytest.mark.parametrize("kind", [TypeError, AttributeError])
@pytest.mark.parametrize(
    ("name", "value"), [("bytes", 9), ("str", b"9"), ("int", "27"), ("jpeg", b"9"), ("pil", 2.5)]
)
def test_values_of_another_type_raise(name, value, kind):
    """The error is a TypeError, as npstream's, and an AttributeError, as Streaming's."""
    with pytest.raises(kind):
        _encodings[name]().encode(value)
    if not isinstance(value, bytes):  # `mds_encode` returns bytes unchanged
        with pytest.raises(kind):
            mds.mds_encode(name, value)


def test_unknown_names():
    assert not mds.is_mds_encoding("pngg")
    for function in (mds.get_mds_encoded_size, lambda name: mds.mds_decode(name, b"")):
        with pytest.raises(ValueError, match="unknown encoding 'pngg'"):
            function("pngg")
    with pytest.raises(KeyError):
        _encodings["pngg"]
    with pytest.raises(KeyError):
        del _encodings["png"]


# Classes of the user


@pytest.mark.parametrize("workers", [None, 0, 2])
def test_a_class_of_the_user(tmp_path, workers):
    _encodings["fixed"] = Fixed
    assert _encodings["fixed"] is Fixed
    out = str(tmp_path / "out")
    with MDSWriter(columns={"x": "fixed", "i": "int"}, out=out) as writer:
        for i in range(20):
            writer.write({"x": f"{i:04}", "i": i})
    assert writer.get_config()["column_sizes"] == [8, 4]
    want = [f"{i:04}" for i in range(20)]
    if workers is None:
        assert [sample["x"] for sample in LocalDataset(out)[:]] == want
        assert npstream.open(out)["x"].load().tolist() == want
        return
    ds = StreamingDataset(local=out, batch_size=5)
    assert [x for batch in DataLoader(ds, 5, num_workers=workers) for x in batch["x"]] == want


def test_a_class_that_replaces_an_encoding(tmp_path):
    """A column of the name has values of any size; columns of other names stay as they were."""
    _encodings.update({"uint8": Raw})
    out = str(tmp_path / "out")
    rows = [{"x": np.arange(n, dtype=np.uint8), "y": n} for n in range(1, 10)]
    with MDSWriter(columns={"x": "uint8", "y": "int8"}, out=out) as writer:
        for row in rows:
            writer.write(row)
    ds = StreamingDataset(local=out, batch_size=5)
    np.testing.assert_equal(list(ds), rows)
    np.testing.assert_equal(ds[4], rows[4])
    np.testing.assert_equal(LocalDataset(out)[:], rows)
    copy = pickle.loads(pickle.dumps(ds))
    del _encodings["uint8"]
    assert _encodings["uint8"] is mds.UInt8
    np.testing.assert_equal(copy[4], rows[4])  # an open dataset keeps its encodings
    with pytest.raises(FormatError, match=r"column 'x' of encoding 'uint8' has size None"):
        LocalDataset(out)


def test_a_class_reads_columns_whose_index_has_a_size(tmp_path):
    """As in Streaming, the size in the index applies, not the size of the class."""
    npstream.write(tmp_path, {"x": np.arange(5, dtype=np.uint8), "flag": np.arange(5) % 2 == 0})
    _encodings["uint8"] = Raw
    ds = StreamingDataset(local=str(tmp_path), batch_size=5)
    np.testing.assert_equal([sample["x"] for sample in ds], np.arange(5)[:, None])
    # The class does not read this column: npstream has stored its dtype in the index.
    assert [sample["flag"] for sample in ds] == [True, False, True, False, True]
    assert npstream.open(tmp_path)["flag"].load().dtype == bool


def test_a_class_that_replaces_a_dtype_of_npstream(tmp_path):
    class Complex(Encoding):
        def encode(self, obj):
            return repr(obj).encode()

        def decode(self, data):
            return complex(data.decode())

    npstream.write(tmp_path / "own", {"z": np.arange(4) * 1j})
    _encodings["complex128"] = Complex
    with MDSWriter(columns={"z": "complex128"}, out=str(tmp_path / "out")) as writer:
        writer.write({"z": 1 + 2j})
    assert b"(1+2j)" in (tmp_path / "out" / "shard.00000.mds").read_bytes()
    assert LocalDataset(str(tmp_path / "out"))[0] == {"z": 1 + 2j}
    assert npstream.open(tmp_path / "own")["z"].load().tolist() == [0j, 1j, 2j, 3j]


def test_text_formats_keep_their_types(tmp_path):
    npstream.write(tmp_path, [{"x": 5, "t": "a"}], format="jsonl", columns={"x": "int", "t": "str"})
    _encodings["int"] = _encodings["str"] = Raw
    assert npstream.open(tmp_path)[0] == {"x": 5, "t": "a"}


def test_setting_the_built_in_class_removes_the_replacement():
    _encodings["uint8"] = Raw
    _encodings["uint8"] = mds.UInt8
    assert mds.mds_decode("uint8", b"a") == np.uint8(97)
    assert "uint8" not in _encodings._set


@pytest.mark.parametrize(
    ("name", "cls", "error", "message"),
    [
        ("x", object, TypeError, r"_encodings\['x'\]: expected a class with the methods encode"),
        ("a:b", Raw, ValueError, "cannot register 'a:b': the name is empty or has a colon"),
        ("", Raw, ValueError, "cannot register '': the name is empty or has a colon"),
    ],
)
def test_invalid_classes_raise(name, cls, error, message):
    with pytest.raises(error, match=message):
        _encodings[name] = cls
    assert name not in _encodings


def test_the_error_for_a_value_of_the_wrong_type_names_the_column(tmp_path):
    _encodings["raw"] = Raw
    with MDSWriter(columns={"x": "raw"}, out=str(tmp_path / "out")) as writer:
        with pytest.raises(TypeError, match=r"column 'x' is 'raw' and cannot take this str 'text'"):
            writer.write({"x": "text"})
        writer.write({"x": np.zeros(3, np.uint8)})
