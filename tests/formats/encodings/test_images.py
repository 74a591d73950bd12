"""Encodings of images."""

from __future__ import annotations

import sys

import pytest
from encoded import random_image
from PIL import Image

from npstream.errors import MissingDependencyError
from npstream.formats.encodings.encodings import parse


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "I;16", "F"])
@pytest.mark.parametrize("size", [(9, 2), (1, 1), (0, 3)])
def test_raw_pixels_round_trip(mode, size):
    encoding = parse("pil")
    image = random_image(mode, size)  # in mode "P", it has no palette
    decoded = encoding.decode(encoding.encode(image))
    assert (decoded.mode, decoded.size) == (mode, size)
    assert decoded.tobytes() == image.tobytes()


@pytest.mark.parametrize("name", ["pil", "list[pil]"])
def test_pil_rejects_a_palette_and_png_keeps_it(name):
    image = random_image().quantize(4)
    with pytest.raises(ValueError, match=r"indices into a palette.*convert.*or choose 'png'"):
        parse(name).encode([image] if "list" in name else image)
    decoded = parse("png").decode(parse("png").encode(image))
    assert decoded.convert("RGB").tobytes() == image.convert("RGB").tobytes()


@pytest.fixture
def jpeg(tmp_path):
    path = tmp_path / "image.jpg"
    random_image(size=(40, 30)).save(path, quality=50)
    return path


def open_image(path):
    with Image.open(path) as image:
        image.load()
    return image


def test_a_jpeg_file_is_stored_verbatim(jpeg):
    assert parse("jpeg").encode(open_image(jpeg)) == jpeg.read_bytes()
    with Image.open(jpeg) as unread:
        assert parse("jpeg").encode(unread) == jpeg.read_bytes()


def test_an_edited_image_is_encoded_anew(jpeg):
    """The package Streaming would store the original file instead of the edited image."""
    smaller, edited = open_image(jpeg), open_image(jpeg)
    smaller.thumbnail((20, 20))
    edited.paste((255, 0, 0), (0, 0, 40, 30))
    for image in (smaller, edited):
        decoded = parse("jpeg").decode(parse("jpeg").encode(image))
        assert decoded.size == image.size
        # JPEG is lossy, so compare only the mean colors.
        assert decoded.resize((1, 1)).getpixel((0, 0)) == pytest.approx(
            image.resize((1, 1)).getpixel((0, 0)), abs=8
        )


def test_an_image_whose_file_is_removed_is_encoded_anew(jpeg):
    image, original = open_image(jpeg), jpeg.read_bytes()
    jpeg.unlink()
    encoded = parse("jpeg").encode(image)
    assert encoded != original
    assert parse("jpeg").decode(encoded).size == image.size


@pytest.mark.parametrize(("name", "mode"), [("jpeg", "RGBA"), ("png", "CMYK")])
def test_a_mode_that_a_format_cannot_store_raises(name, mode):
    with pytest.raises(ValueError, match=f"cannot write mode {mode}.*convert"):
        parse(name).encode(random_image(mode))


def test_the_errors_of_list_jpeg_and_jpeg_array_suggest_the_other_encoding():
    with pytest.raises(TypeError, match="got bytes; jpeg_array takes"):
        parse("list[jpeg]").encode([b"x"])
    with pytest.raises(TypeError, match=r"list\[jpeg\]"):
        parse("jpeg_array").encode([random_image()])


def test_without_pillow_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    for name in ("pil", "jpeg", "png"):
        with pytest.raises(MissingDependencyError, match=r"npstream\[images\]"):
            parse(name).decode(bytes(12))
        with pytest.raises(MissingDependencyError, match=r"npstream\[images\]"):
            parse(name).encode("x")
