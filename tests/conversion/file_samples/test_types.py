"""Files are parsed by their extension, to the values of `webdataset`; bad files raise."""

from __future__ import annotations

import gzip
import io
import pickle

import msgpack
import numpy as np
import pytest
from PIL import Image

from npstream.conversion.file_samples.types import (
    choose_type,
    file_type,
    image_format,
    parse_npy,
)


def npy(array: np.ndarray, **options: bool) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


@pytest.mark.parametrize("extension", ["txt", "cls", "index", "id", "json", "mp", "npy"])
def test_values_are_those_of_webdataset(extension):
    decoders = pytest.importorskip("webdataset.autodecode").decoders
    body = {
        "txt": "é\n".encode(), "json": b'{"a": [1, 2.5, null]}', "mp": msgpack.packb({"a": [1]}),
        "npy": npy(np.arange(6.0).reshape(2, 3)),
    }.get(extension, b" 12\n")  # fmt: skip
    np.testing.assert_equal(file_type(extension).parse(body), decoders[extension](body))


@pytest.mark.parametrize(
    ("extension", "encoding"),
    [
        ("txt", "str"), ("a.B.TXT", "str"), ("class", "int"), ("jpg", "jpeg"),
        ("left.JPEG", "jpeg"), ("npz", "bytes"), ("cbor", "bytes"),
        ("png", "png"), ("webp", "png"), ("npy", None), ("msgpack", "json"), ("json.gz", "json"),
        ("pth", "bytes"), ("pkl", "bytes"), ("pickle", "bytes"),
        ("xyz", "bytes"), ("nii.gz", "bytes"), ("gz", "bytes"), ("", "bytes"),
    ],
)  # fmt: skip
def test_the_extension_decides_the_encoding(extension, encoding):
    assert file_type(extension).encoding == encoding


def test_nothing_is_unpickled():
    body = npy(np.array([{}], object), allow_pickle=True)
    with pytest.raises(ValueError, match="Python objects, which are not unpickled"):
        parse_npy(body)
    pickled = pickle.dumps(print)
    assert file_type("pkl").parse(pickled) is pickled
    assert choose_type("pkl", "pkl").parse(pickled) is pickled


@pytest.mark.parametrize("dtype", ["<i4", ">f8", "?", "<c16", "<M8[s]"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (2, 0, 3)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_are_those_of_numpy(dtype, shape, order):
    array = np.asarray(np.ones(shape, dtype), order=order)
    read = parse_npy(npy(array))
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)


def test_damaged_arrays_raise_value_error_or_are_read():
    body = npy(np.arange(6.0).reshape(2, 3))
    for stop in range(len(body)):
        with pytest.raises(ValueError, match="not an array of NumPy"):
            parse_npy(body[:stop])
    huge = body.replace(b"(2, 3)", b"(2, 1000000000000)".ljust(6))
    with pytest.raises(ValueError, match="not an array of NumPy"):
        parse_npy(huge)
    # A changed byte of the header raises ValueError, or describes another array. It must not raise
    # anything else. The header is all but the 48 bytes of the values.
    for seed in range(300):
        generator = np.random.default_rng(seed)
        damaged = bytearray(body)
        damaged[generator.integers(len(body) - 48)] = generator.integers(256)
        try:
            parse_npy(bytes(damaged))
        except ValueError:
            continue


@pytest.mark.parametrize(
    ("extension", "body", "words"),
    [
        ("txt", b"\xff", "not UTF-8: invalid start byte at byte 0"),
        ("cls", b"dog", "not an integer: b'dog'"),
        ("cls", b"1_0", "not an integer"),
        ("cls", b"", "not an integer: b''"),
        ("json", b"{", "not JSON"),
        ("json", b"[" * 100_000, "JSON that is nested too deeply"),
        ("mp", b"\xc1", "not MessagePack"),
        ("mp", b"\xdd\xff\xff\xff\xff", "not MessagePack"),
        ("jpg", b"", "not an image: the file is empty"),
        ("png", b"<html>not found</html>", "not an image: it starts with b'<html>not found<'"),
        ("txt.gz", b"plain", "not gzip"),
        ("txt.gz", gzip.compress(b"x" * 100)[:-9], "not gzip"),
    ],
)
def test_bad_files_raise(extension, body, words):
    with pytest.raises(ValueError, match=words):
        file_type(extension).parse(body)


@pytest.mark.parametrize(
    ("extension", "encoding", "body", "value"),
    [
        ("cls", "str", b"7", "7"),
        ("txt", "int32", b"7\n", 7),
        ("txt", "float32", b"0.5", 0.5),
        ("txt", "bool", b"True", True),
        ("json", "bytes", b"[]", b"[]"),
        ("dat", "json", b"[1]", [1]),
        ("dat.gz", "str", gzip.compress(b"x"), "x"),
        ("txt", "str_int", b"123", b"123"),
        ("txt", "jpeg", b"\xff\xd8\xff", b"\xff\xd8\xff"),
    ],
)
def test_the_encoding_of_the_user_decides_how_files_are_parsed(extension, encoding, body, value):
    kind = choose_type(extension, encoding)
    assert kind.encoding == encoding
    assert kind.parse(body) == value


@pytest.mark.parametrize(
    ("extension", "encoding", "words"),
    [
        ("txt", "uint8", "not an integer"),
        ("txt", "float64", "not a number"),
        ("txt", "bool", "neither true nor false"),
        ("dat", "ndarray:int8", "only .npy files become arrays"),
        ("txt", "datetime64[s]", "choose 'str'"),
        ("txt", "str_decimal", "no value of 'str_decimal'"),
        ("dat", "jpeg_array", "no value of 'jpeg_array'"),
        ("dat", "png", "not an image"),
        ("dat", "pil", "not an image"),
    ],
)
def test_files_that_do_not_fit_the_chosen_encoding_raise(extension, encoding, words):
    with pytest.raises(ValueError, match=words):
        choose_type(extension, encoding).parse(b"x?")


def test_the_pixels_of_a_file_become_a_pil_value():
    file = io.BytesIO()
    Image.new("RGB", (2, 3), (1, 2, 3)).save(file, "PNG")
    assert choose_type("png", "pil").parse(file.getvalue()).size == (2, 3)


@pytest.mark.parametrize("name", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
def test_formats_of_images_are_known_by_their_first_bytes(name):
    file = io.BytesIO()
    Image.new("RGB", (2, 2)).save(file, name)
    assert image_format(file.getvalue()) == name.lower()


def test_a_bomb_is_not_decompressed(monkeypatch):
    monkeypatch.setattr("npstream.conversion.file_samples.types.MAX_BYTES", 1 << 22)
    with pytest.raises(ValueError, match="more than 4 GiB when decompressed"):
        file_type("txt.gz").parse(gzip.compress(bytes(1 << 23)))
